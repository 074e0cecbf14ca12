#ifndef VT_GRAM_H
#define VT_GRAM_H
#include "vt_kernels.h"

/* T = min(rows, n) rounded down to a power of two; R = min(gram_block, r). */
typedef struct {
    const float *x;              /* (n, d) */
    const float *a, *b;          /* (n, r), (r, d) */
    float *y;                    /* (n, d), apart from x */
    void *scratch;               /* (R * d + (d + R) * T) floats */
    int32_t rows, gram_block;    /* tokens and ranks at a time */
    int32_t n, d, r;
} vt_gram_args;
void vt_gram(const vt_gram_args *a, const vt_step *s);

typedef struct {
    const float *x;              /* (n, d) */
    const float *a, *b;
    const float *dy;             /* (n, d) */
    float *d_x;                  /* (n, d), apart from all inputs, or NULL */
    vt_sink d_a, d_b;
    void *scratch;               /* (R * d * (U + V + W) + (d + R) * T) floats, U = 1 if d_x or d_b, V = 1 if d_x or
                                    d_a, W = 1 if d_b is wanted */
    int32_t rows, gram_block;
    int32_t n, d, r;
} vt_gram_grad_args;
void vt_gram_grad(const vt_gram_grad_args *a, const vt_step *s);
#endif
