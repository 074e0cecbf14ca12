#ifndef VT_LAYER_NORM_H
#define VT_LAYER_NORM_H
#include "vt_kernels.h"

typedef struct {
    const float *x;              /* (n, d) */
    const float *gamma, *beta;   /* (d,) or NULL */
    float *y;                    /* (n, d), may be x */
    float eps;
    int32_t n, d;
} vt_layer_norm_args;
void vt_layer_norm(const vt_layer_norm_args *a, const vt_step *s);

typedef struct {
    const float *x;              /* (n, d) */
    const float *gamma;          /* (d,) or NULL */
    const float *dy;             /* (n, d) */
    float *d_x;                  /* (n, d), may be dy; NULL when not wanted */
    vt_sink d_gamma, d_beta;
    void *scratch;               /* d floats for each wanted one of d_gamma, d_beta */
    float eps;
    int32_t n, d;
} vt_layer_norm_grad_args;
void vt_layer_norm_grad(const vt_layer_norm_grad_args *a, const vt_step *s);
#endif
