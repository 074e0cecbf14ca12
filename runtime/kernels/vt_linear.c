#include "vt_linear.h"
#include "vt_gradient.h"

/* y = x w^T + b, in panels of `rows` tokens. y may not overlap x. */
void vt_linear(const vt_linear_args *a, const vt_step *s) {
    const vt_norm plain = {NULL, NULL, NULL, NULL};
    const int32_t in = a->w.cols, out = a->w.rows;
    int32_t n0, T;
    for (n0 = 0; n0 < a->n; n0 += T) {
        const float *x = a->x + (ptrdiff_t)n0 * in;
        float *y = a->y + (ptrdiff_t)n0 * out;
        T = vt_width(a->n - n0, a->rows);
        if (T > 1) {
            float *xt = (float *)a->scratch, *yt = xt + (ptrdiff_t)in * T;
            vt_load_panel(xt, T, a->x, in, n0, &plain);
            vt_fill_panel(yt, out, T, a->b);
            vt_forward(s, yt, T, &a->w, 0, out, 0, in, xt);
            vt_panel_to_rows(y, out, yt, T, out);
        } else {
            vt_fill_panel(y, out, 1, a->b);
            vt_forward(s, y, 1, &a->w, 0, out, 0, in, x);
        }
    }
}

/* d_x = dy w; d_w = dy^T x on the trained part; d_b = column sums of dy. d_x is complete before w changes. */
void vt_linear_grad(const vt_linear_grad_args *a, const vt_step *s) {
    const int32_t in = a->w.cols, out = a->w.rows;
    if (a->d_x) {
        int32_t i;
        for (i = 0; i < a->n; i++) vt_fill(a->d_x + (ptrdiff_t)i * in, in, 0.0f);
        vt_backward(s, a->d_x, in, a->n, &a->w, 0, out, 0, in, a->dy, out, 1);
    }
    if (vt_wanted(&a->d_w)) {
        vt_part w = a->w.trained;
        if (a->x_sliced) w.cols = NULL;
        vt_weight_gradient(s, &a->d_w, &w, 0, out, 0, a->x_sliced ? w.n_cols : in, a->dy, out, 1, a->n, a->x,
                           a->x_sliced ? w.n_cols : in, NULL);
    }
    if (vt_wanted(&a->d_b)) vt_bias_gradient(s, &a->d_b, 0, a->dy, out, a->n, out, NULL);
}
