#include "vt_buffers.h"
#include "vt_gradient.h"

/* y = 0. No scratch. */
void vt_fill_zero(const vt_fill_zero_args *a, const vt_step *s) {
    const int down = a->y.row == 1;
    const ptrdiff_t step = down ? 1 : a->y.col, between = down ? a->y.col : a->y.row;
    const int32_t run = down ? a->n : a->c, runs = down ? a->c : a->n;
    int32_t i, r;
    (void)s;
    for (r = 0; r < runs; r++) {
        float *y = a->y.at + r * between;
        if (step == 1) vt_fill(y, run, 0.0f);
        else
            for (i = 0; i < run; i++) y[i * step] = 0.0f;
    }
}

/* What is trained of the window takes the gradient d_w. No scratch. */
void vt_apply_weight(const vt_apply_weight_args *a, const vt_step *s) {
    const vt_part *w = &a->w.trained;
    const int32_t r0 = vt_lower(w->rows, w->n_rows, a->o_at), r1 = vt_lower(w->rows, w->n_rows, a->o_at + a->o);
    const int32_t k0 = vt_lower(w->cols, w->n_cols, a->c_at), k1 = vt_lower(w->cols, w->n_cols, a->c_at + a->c);
    int32_t r;
    for (r = r0; r < r1; r++)
        vt_apply(s, &a->w_sink, (ptrdiff_t)r * w->n_cols + k0, a->d_w.at + (ptrdiff_t)(r - r0) * (k1 - k0), k1 - k0);
}
