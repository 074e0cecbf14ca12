#ifndef VT_ATTN_BLOCK_H
#define VT_ATTN_BLOCK_H
#include "vt_kernels.h"

/* y = [x +] ls * (proj(attention(LN(x))) + T), T the Gram residual of LN(x) when gram_a is given. The packed linear and
 * the projection may have a low-rank addition: linear(u) + scale * B (A u). */
typedef struct {
    const float *x;                  /* (n, d) */
    const float *gamma, *beta;       /* (d,) or NULL */
    vt_matrix wqkv;                  /* (3 * d, d): q | k | v, each heads x (d / heads) rows */
    const float *bqkv;               /* (3 * d,) or NULL */
    vt_matrix wproj;                 /* (d, d) */
    const float *bproj, *ls;         /* (d,) or NULL */
    const float *gram_a, *gram_b;    /* (n, rank), (rank, d), both or neither */
    const float *qkv_a, *qkv_b;      /* (qkv_rank, d), (3 * d, qkv_rank), both or neither */
    const float *proj_a, *proj_b;    /* (proj_rank, d), (d, proj_rank), both or neither */
    float *y;                        /* (q_rows, d), apart from x */
    void *scratch;                   /* see Op.scratch: compilation/ops/attn_block.py */
    float eps, qkv_scale, proj_scale;
    int32_t norm, heads, residual;   /* norm 0: no layer norm; residual 1: adds x */
    int32_t q_rows;                  /* leading rows of the result that are made: n or 1 */
    int32_t rows;                    /* tokens at a time: 1, 2, 4, 8 or 16 */
    int32_t key_block;               /* keys at a time; n or more: all, without recomputation */
    int32_t gram_block;              /* ranks of the Gram residual at a time */
    int32_t n, d, rank;
    int32_t qkv_rank, proj_rank;     /* 0: no low-rank addition */
} vt_attn_block_args;
void vt_attn_block(const vt_attn_block_args *a, const vt_step *s);

typedef struct {
    const float *x;                  /* (n, d) */
    const float *gamma, *beta;
    vt_matrix wqkv;
    const float *bqkv;
    vt_matrix wproj;
    const float *bproj, *ls, *gram_a, *gram_b, *qkv_a, *qkv_b, *proj_a, *proj_b;
    const float *dy;                 /* (q_rows, d) */
    float *d_x;                      /* (n, d), apart from x and dy, or NULL; collects the gradient of LN(x) */
    vt_sink d_gamma, d_beta, d_wqkv, d_bqkv, d_wproj, d_bproj, d_ls, d_gram_a, d_gram_b;
    vt_sink d_qkv_a, d_qkv_b, d_proj_a, d_proj_b;
    void *scratch;                   /* see Op.scratch */
    float eps, qkv_scale, proj_scale;
    int32_t norm, heads, residual, q_rows, rows;
    int32_t key_block;               /* must be n or more when d_wqkv or d_wproj is wanted and q_rows > 1 */
    int32_t gram_block;
    int32_t spare;                   /* 1: the gradients of queries and of keys, values in turn, in the same memory;
                                        without effect when q_rows == 1 or key_block < n */
    int32_t n, d, rank, qkv_rank, proj_rank;
} vt_attn_block_grad_args;
void vt_attn_block_grad(const vt_attn_block_grad_args *a, const vt_step *s);
#endif
