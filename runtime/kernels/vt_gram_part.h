/* The Gram residual T = (X X^T / D)(A B) as X ((X^T A) B) / D, `block` ranks at a time; no N x N map.
 * X (n, d) is x normalised by nm; A (n, r), B (r, d). Shared by gram and attn_block. */
#ifndef VT_GRAM_PART_H
#define VT_GRAM_PART_H
#include "vt_gradient.h"

typedef struct {
    const float *x;              /* (n, d) */
    const vt_norm *nm;
    const float *a, *b;          /* (n, r), (r, d) */
    int32_t n, d, r;
    int32_t q;                   /* leading rows of the result that are made, or of its gradient that are given */
    int32_t rows, block;
} vt_gram_part;

/* y (q, d) += T. scratch, with R = min(block, r), T and Q = min(rows, n) and min(rows, q) as powers of two:
 * R * d + d * T + R * Q floats. */
void vt_gram_forward(const vt_step *s, const vt_gram_part *p, float *y, float *scratch);

/* From dy (q, d), the gradient of ls * T (ls may be NULL): dx (n, d) += the gradient of X (NULL: not wanted), d_a, d_b,
 * and dls (d,) += sum over rows of dy * T (NULL: not wanted). scratch: R * (U + V + W) * d + d * T + R * G floats,
 * U = 1 if dx, d_b or dls, V = 1 if dx or d_a, W = 1 if d_b or dls is wanted; G = T if d_a is wanted, else Q. */
void vt_gram_backward(const vt_step *s, const vt_gram_part *p, const float *dy, const float *ls, float *dx,
                      const vt_sink *d_a, const vt_sink *d_b, float *dls, float *scratch);
#endif
