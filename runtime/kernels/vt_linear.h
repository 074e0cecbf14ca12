#ifndef VT_LINEAR_H
#define VT_LINEAR_H
#include "vt_kernels.h"

/* Windows of a linear layer: n tokens, output features o_at .. o_at + o, input features c_at .. c_at + c of w. */
typedef struct {
    vt_in x;                 /* (n, c), a panel (row == 1), or n == 1 */
    vt_matrix w;
    const float *b;          /* (o,) or NULL; not read when y.add is 1 */
    vt_out y;                /* (n, o), a panel or n == 1, apart from x; add 1: the products are added to it */
    int32_t n, c, o, o_at, c_at;
} vt_linear_args;
void vt_linear(const vt_linear_args *a, const vt_step *s);

typedef struct {
    vt_in x, x_part;         /* (n, c) and (n, w.trained.n_cols), rows; x_part: all trained columns of x, where w is
                                trained by columns. One of them when d_w is wanted, else NULL */
    vt_matrix w;
    vt_in dy;                /* (n, o), any strides */
    vt_out d_x;              /* (n, c), rows, apart from dy; add 1: added to it; NULL when not wanted */
    vt_sink d_w, d_b;        /* d_w: of the trained part what is in the window; may add, both */
    int32_t n, c, k, o, o_at, c_at;      /* k: columns of x_part */
} vt_linear_grad_args;
void vt_linear_grad(const vt_linear_grad_args *a, const vt_step *s);
#endif
