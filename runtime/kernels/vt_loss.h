#ifndef VT_LOSS_H
#define VT_LOSS_H
#include "vt_kernels.h"

typedef struct {
    const float *logits;     /* (1, k) */
    const int32_t *label;    /* (1,) in 0..k-1 */
    float *loss;             /* (1,) */
    int32_t k;
} vt_cross_entropy_args;
void vt_cross_entropy(const vt_cross_entropy_args *a, const vt_step *s);

typedef struct {
    const float *logits;     /* (1, k) */
    const int32_t *label;    /* (1,) */
    float *d_logits;         /* (1, k), may be logits */
    int32_t k;
} vt_cross_entropy_grad_args;
void vt_cross_entropy_grad(const vt_cross_entropy_grad_args *a, const vt_step *s);
#endif
