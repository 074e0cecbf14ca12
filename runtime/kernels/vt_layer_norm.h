#ifndef VT_LAYER_NORM_H
#define VT_LAYER_NORM_H
#include "vt_kernels.h"

/* Of each row, h pieces of d neighbours are normalised, each by itself. */
typedef struct {
    vt_in x;                     /* (n, h * d), rows */
    const float *gamma, *beta;   /* (d,) or NULL */
    vt_out y;                    /* (n, h * d), any strides; may be the window of x */
    float eps;
    int32_t n, h, d;
} vt_layer_norm_args;
void vt_layer_norm(const vt_layer_norm_args *a, const vt_step *s);

typedef struct {
    vt_in x;                     /* (n, h * d), rows; NULL when d_beta alone is wanted */
    const float *gamma;          /* (d,) or NULL */
    vt_in dy;                    /* (n, h * d), rows */
    vt_out d_x;                  /* (n, h * d), rows; may be the window of dy; NULL when not wanted */
    vt_sink d_gamma, d_beta;
    void *scratch;               /* d floats for each wanted one of d_gamma, d_beta */
    float eps;
    int32_t n, h, d;
} vt_layer_norm_grad_args;
void vt_layer_norm_grad(const vt_layer_norm_grad_args *a, const vt_step *s);
#endif
