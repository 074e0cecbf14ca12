#include "vt_buffers.h"
#include "vt_gradient.h"

/* y = 0. No scratch. */
void vt_fill_zero(const vt_fill_zero_args *a, const vt_step *s) {
    int32_t i, c;
    (void)s;
    for (i = 0; i < a->n; i++)
        for (c = 0; c < a->c; c++) a->y.at[(ptrdiff_t)i * a->y.row + (ptrdiff_t)c * a->y.col] = 0.0f;
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
