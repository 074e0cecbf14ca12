#ifndef VT_PATCH_EMBED_H
#define VT_PATCH_EMBED_H
#include "vt_kernels.h"

typedef struct {
    const uint8_t *image;        /* (height, width, channels), camera order */
    vt_matrix w;                 /* (d, channels * patch * patch), columns in the order channel, y, x */
    const float *b;              /* (d,) or NULL */
    const float *scale, *shift;  /* (channels,): value = pixel * scale + shift */
    const float *prefix;         /* (prefix_rows, d) or NULL: class token, registers */
    const float *pos;            /* (prefix_rows + patches, d) or NULL */
    float *y;                    /* (prefix_rows + patches, d) */
    void *scratch;               /* (w.cols * T + (T > 1 ? d * T : 0)) floats, T = min(rows, patches) rounded down to a
                                    power of two */
    int32_t patch;               /* divides height and width */
    int32_t rows;                /* patches at a time: 1, 2, 4, 8 or 16 */
    int32_t height, width, channels, d, prefix_rows;
} vt_patch_embed_args;
void vt_patch_embed(const vt_patch_embed_args *a, const vt_step *s);

typedef struct {
    const uint8_t *image;        /* (height, width, channels) */
    vt_matrix w;                 /* needed for its trained part's index lists */
    const float *scale, *shift;  /* (channels,) */
    const float *prefix, *pos;   /* as in the forward pass; not read */
    const float *dy;             /* (prefix_rows + patches, d) */
    vt_sink d_w, d_b, d_prefix, d_pos;
    void *scratch;               /* patches * T floats when d_w is wanted, T = the largest power of two within 16 and
                                    w.trained.n_cols */
    int32_t patch;
    int32_t height, width, channels, d, prefix_rows;
} vt_patch_embed_grad_args;
void vt_patch_embed_grad(const vt_patch_embed_grad_args *a, const vt_step *s);
#endif
