#ifndef VT_HEADS_H
#define VT_HEADS_H
#include "vt_kernels.h"

/* Linear layers of one token, head by head: the h heads from h_at on, each with its e rows of w, (h_at + i) * e of head i,
 * and the columns c_at .. c_at + c. e_at is 0. No scratch. */

/* y_i = x_i w_i^T [+ b_i]. */
typedef struct {
    vt_in x;                 /* (h, c), any strides */
    vt_matrix w;
    const float *b;          /* (h * e,) or NULL; not read when y.add is 1 */
    vt_out y;                /* (1, h * e), any strides, apart from x; add 1: the products are added to it */
    int32_t h, e, c, h_at, e_at, c_at;
} vt_head_linear_args;
void vt_head_linear(const vt_head_linear_args *a, const vt_step *s);

/* d_x_i = dy_i w_i, d_w_i = dy_i^T x_i, d_b = dy. */
typedef struct {
    vt_in x;                 /* (h, c), rows; NULL unless d_w is wanted */
    vt_matrix w;
    vt_in dy;                /* (1, h * e), any strides */
    vt_out d_x;              /* (h, c), rows, apart from dy; add 1: added to it; NULL when not wanted */
    vt_sink d_w, d_b;        /* d_w: of the trained part what is in the window; may add, both */
    int32_t h, e, c, h_at, e_at, c_at;
} vt_head_linear_grad_args;
void vt_head_linear_grad(const vt_head_linear_grad_args *a, const vt_step *s);

/* y_i = x_i w_i. */
typedef struct {
    vt_in x;                 /* (1, h * e), any strides */
    vt_matrix w;
    vt_out y;                /* (h, c), rows, apart from x; add 1: the products are added to it */
    int32_t h, e, c, h_at, e_at, c_at;
} vt_head_linear_t_args;
void vt_head_linear_t(const vt_head_linear_t_args *a, const vt_step *s);

/* d_x_i = dy_i w_i^T, d_w_i = x_i^T dy_i. */
typedef struct {
    vt_in x;                 /* (1, h * e), any strides; NULL unless d_w is wanted */
    vt_matrix w;
    vt_in dy;                /* (h, c), rows */
    vt_out d_x;              /* (1, h * e), any strides, apart from dy; add 1: added to it; NULL when not wanted */
    vt_sink d_w;             /* as above */
    int32_t h, e, c, h_at, e_at, c_at;
} vt_head_linear_t_grad_args;
void vt_head_linear_t_grad(const vt_head_linear_t_grad_args *a, const vt_step *s);
#endif
