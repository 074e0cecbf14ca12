#ifndef VT_ATTN_BLOCK_H
#define VT_ATTN_BLOCK_H
#include "vt_kernels.h"

/* y = [x +] ls * (proj(attention(LN(x))) + T), T the Gram residual of LN(x) when gram_a is given. */
typedef struct {
    const float *x;                  /* (n, d) */
    const float *gamma, *beta;       /* (d,) or NULL */
    vt_matrix wqkv;                  /* (3 * d, d): q | k | v, each heads x (d / heads) rows */
    const float *bqkv;               /* (3 * d,) or NULL */
    vt_matrix wproj;                 /* (d, d) */
    const float *bproj, *ls;         /* (d,) or NULL */
    const float *gram_a, *gram_b;    /* (n, rank), (rank, d), both or neither */
    float *y;                        /* (q_rows, d), apart from x */
    void *scratch;                   /* see Op.scratch: compilation/ops/attn_block.py */
    float eps;
    int32_t norm, heads, residual;   /* norm 0: no layer norm; residual 1: adds x */
    int32_t q_rows;                  /* leading rows of the result that are made: n or 1 */
    int32_t rows;                    /* tokens at a time: 1, 2, 4, 8 or 16 */
    int32_t key_block;               /* keys at a time; n or more: all, without recomputation */
    int32_t gram_block;              /* ranks of the Gram residual at a time */
    int32_t n, d, rank;
} vt_attn_block_args;
void vt_attn_block(const vt_attn_block_args *a, const vt_step *s);

typedef struct {
    const float *x;                  /* (n, d) */
    const float *gamma, *beta;
    vt_matrix wqkv;
    const float *bqkv;
    vt_matrix wproj;
    const float *bproj, *ls, *gram_a, *gram_b;
    const float *dy;                 /* (q_rows, d) */
    float *d_x;                      /* (n, d), apart from x and dy, or NULL; collects the gradient of LN(x) */
    vt_sink d_gamma, d_beta, d_wqkv, d_bqkv, d_wproj, d_bproj, d_ls, d_gram_a, d_gram_b;
    void *scratch;                   /* see Op.scratch */
    float eps;
    int32_t norm, heads, residual, q_rows, rows;
    int32_t key_block;               /* must be n or more when d_wqkv or d_wproj is wanted and q_rows > 1 */
    int32_t gram_block;
    int32_t n, d, rank;
} vt_attn_block_grad_args;
void vt_attn_block_grad(const vt_attn_block_grad_args *a, const vt_step *s);
#endif
