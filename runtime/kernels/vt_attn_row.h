/* The case q_rows == 1 of attn_block and its gradient. mean, rstd: of the rows of x, mean NULL without a norm. */
#ifndef VT_ATTN_ROW_H
#define VT_ATTN_ROW_H
#include "vt_attn_block.h"

/* a->y (d,) = o of all heads. scratch: 3 * d + d / heads + qkv_rank floats. */
void vt_attn_row(const vt_attn_block_args *a, const vt_step *s, const float *mean, const float *rstd, float *scratch);

/* dln (n, d) += the gradient of LN(x), or NULL; dls (d,) += sum of dy * (proj(o) without bias), or NULL; wanted
 * gradients of wqkv, bqkv, wproj and of the low-rank additions go to their sinks. scratch: (ls ? 6 : 5) * d +
 * 4 * d / heads + 2 * n + 6 * qkv_rank + 3 * proj_rank floats, and qkv_rank * d more when d_qkv_a is wanted. */
void vt_attn_row_grad(const vt_attn_block_grad_args *a, const vt_step *s, const float *mean, const float *rstd,
                      float *dln, float *dls, float *scratch);
#endif
