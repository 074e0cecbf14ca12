#ifndef VT_MLP_BLOCK_H
#define VT_MLP_BLOCK_H
#include "vt_kernels.h"

/* y = [x +] ls * (act(LN(x) w1^T + b1) w2^T + b2). Each linear layer may have a low-rank addition: linear(u) +
 * scale * B (A u). In all of this file T = min(rows, n) rounded down to a power of two and J = min(chunk, hidden). */
typedef struct {
    const float *x;              /* (n, d) */
    const float *gamma, *beta;   /* (d,) or NULL */
    vt_matrix w1;                /* (hidden, d) */
    const float *b1;             /* (hidden,) or NULL */
    vt_matrix w2;                /* (d, hidden) */
    const float *b2;             /* (d,) or NULL */
    const float *ls;             /* (d,) or NULL: layer scale */
    const float *fc1_a, *fc1_b;  /* (fc1_rank, d), (hidden, fc1_rank), both or neither */
    const float *fc2_a, *fc2_b;  /* (fc2_rank, hidden), (d, fc2_rank), both or neither */
    float *y;                    /* (n, d), may be x */
    void *scratch;               /* (2 * d + J + fc1_rank + fc2_rank) * T floats */
    float eps, fc1_scale, fc2_scale;
    int32_t act;                 /* 0 GELU, 1 GELU by tanh, 2 ReLU */
    int32_t norm;                /* 0: no layer norm */
    int32_t residual;            /* 1: adds x */
    int32_t rows;                /* tokens at a time: 1, 2, 4, 8 or 16 */
    int32_t chunk;               /* hidden features at a time, > 0 */
    int32_t n, d, hidden;
    int32_t fc1_rank, fc2_rank;  /* 0: no low-rank addition */
} vt_mlp_block_args;
void vt_mlp_block(const vt_mlp_block_args *a, const vt_step *s);

typedef struct {
    const float *x;              /* (n, d) */
    const float *gamma, *beta;
    vt_matrix w1;
    const float *b1;
    vt_matrix w2;
    const float *b2, *ls, *fc1_a, *fc1_b, *fc2_a, *fc2_b;
    const float *dy;             /* (n, d) */
    float *d_x;                  /* (n, d) or NULL; may be dy when neither d_w1 nor d_w2 is wanted */
    vt_sink d_gamma, d_beta, d_w1, d_b1, d_w2, d_b2, d_ls, d_fc1_a, d_fc1_b, d_fc2_a, d_fc2_b;
    void *scratch;               /* see Op.scratch: compilation/ops/mlp_block.py */
    float eps, fc1_scale, fc2_scale;
    int32_t act, norm, residual, rows, chunk;
    int32_t n, d, hidden, fc1_rank, fc2_rank;
} vt_mlp_block_grad_args;
void vt_mlp_block_grad(const vt_mlp_block_grad_args *a, const vt_step *s);
#endif
