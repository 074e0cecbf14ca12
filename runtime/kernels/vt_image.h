#ifndef VT_IMAGE_H
#define VT_IMAGE_H
#include "vt_kernels.h"

typedef struct {
    const uint8_t *image;        /* (height, width, channels), camera order */
    const float *scale, *shift;  /* (channels,) */
    float *y;                    /* (1, channels, height, width) */
    int32_t height, width, channels;
} vt_normalize_image_args;
void vt_normalize_image(const vt_normalize_image_args *a, const vt_step *s);
#endif
