#include "vt_linear.h"
#include "vt_gradient.h"

/* y = x w^T + b, or y += x w^T. y may not overlap x. */
void vt_linear(const vt_linear_args *a, const vt_step *s) {
    const vt_matrix *m = &a->w;
    float *y = a->y.at;
    const ptrdiff_t ldy = a->y.col;
    int32_t i, t;
    if (!a->y.add)
        for (i = 0; i < a->o; i++)
            for (t = 0; t < a->n; t++) y[i * ldy + t] = a->b ? a->b[i] : 0.0f;
    for (i = 0; i < 2; i++) {
        const vt_part *w = i ? &m->trained : &m->frozen;
        if (w->n_rows > 0) {
            const int32_t r0 = vt_lower(w->rows, w->n_rows, a->o_at), r1 = vt_lower(w->rows, w->n_rows, a->o_at + a->o);
            const int32_t k0 = vt_lower(w->cols, w->n_cols, a->c_at), k1 = vt_lower(w->cols, w->n_cols, a->c_at + a->c);
            const vt_product p = {w->w + (ptrdiff_t)r0 * w->n_cols + k0, w->n_cols, 1, a->x.at, a->x.col, NULL,
                                  w->cols ? w->cols + k0 : NULL, 0, a->c_at, k1 - k0, 1};
            VT_COUNT(s, (uint64_t)(r1 - r0) * (uint64_t)(k1 - k0) * (uint64_t)a->n);
            vt_multiply(y, ldy, w->rows ? w->rows + r0 : NULL, a->o_at, NULL, 0, r1 - r0, a->n, &p);
        }
    }
}

/* d_b from columns that are not neighbours: the sums of vt_bias_gradient, in its order. */
static void vt_bias_strided(const vt_step *s, const vt_sink *k, const vt_in *dy, int32_t n, int32_t o) {
    int32_t c, i, i0;
    for (c = 0; c < o; c++) {
        float sum = 0.0f;
        for (i0 = 0; i0 < n; i0 += 16) {
            const int32_t i1 = n - i0 > 16 ? i0 + 16 : n;
            float some = 0.0f;
            for (i = i0; i < i1; i++) some += dy->at[(ptrdiff_t)i * dy->row + (ptrdiff_t)c * dy->col];
            sum += some;
        }
        vt_apply(s, k, c, &sum, 1);
    }
}

/* d_x [+]= dy w; d_w = dy^T x on the trained part; d_b = column sums of dy. d_x is complete before w changes. */
void vt_linear_grad(const vt_linear_grad_args *a, const vt_step *s) {
    const int32_t o1 = a->o_at + a->o, c1 = a->c_at + a->c;
    if (a->d_x.at) {
        int32_t i;
        if (!a->d_x.add)
            for (i = 0; i < a->n; i++) vt_fill(a->d_x.at + (ptrdiff_t)i * a->d_x.row, a->c, 0.0f);
        vt_backward(s, a->d_x.at, a->d_x.row, a->n, &a->w, a->o_at, o1, a->c_at, c1, a->dy.at, a->dy.row, a->dy.col);
    }
    if (vt_wanted(&a->d_w)) {
        vt_part w = a->w.trained;
        const float *x = a->x.at;
        int32_t row = a->x.row, o_at = a->o_at, o_end = o1, c_at = a->c_at, c_end = c1;
        if (a->x_part.at) {
            const int32_t k0 = vt_lower(w.cols, w.n_cols, c_at), k1 = vt_lower(w.cols, w.n_cols, c_end);
            w.cols = NULL;
            x = a->x_part.at + k0;
            row = a->x_part.row;
            c_at = k0;
            c_end = k1;
        }
        if (a->d_w.window) {                 /* the window's trained rows and columns as a part of their own */
            const int32_t r0 = vt_lower(w.rows, w.n_rows, o_at), k0 = vt_lower(w.cols, w.n_cols, c_at);
            w.n_rows = vt_lower(w.rows, w.n_rows, o_end) - r0;
            w.n_cols = vt_lower(w.cols, w.n_cols, c_end) - k0;
            if (w.rows) w.rows += r0;
            else o_end -= o_at, o_at = 0;
            if (w.cols) w.cols += k0;
            else c_end -= c_at, c_at = 0;
        }
        vt_weight_gradient(s, &a->d_w, &w, o_at, o_end, c_at, c_end, a->dy.at, a->dy.row, a->dy.col, a->n, x, row, NULL);
    }
    if (vt_wanted(&a->d_b)) {
        if (a->dy.col == 1) vt_bias_gradient(s, &a->d_b, 0, a->dy.at, a->dy.row, a->n, a->o, NULL);
        else vt_bias_strided(s, &a->d_b, &a->dy, a->n, a->o);
    }
}
