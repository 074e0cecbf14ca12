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

/* d_b from columns that are not neighbours: the sums of vt_bias_gradient, in its order, of rows in a block. */
static void vt_bias_strided(const vt_step *s, const vt_sink *k, const vt_in *dy, int32_t n, int32_t o) {
    float block[16 * VT_LANES], sum[VT_LANES], some[VT_LANES];
    int32_t c0, i0, i, l, w, rows;
    for (c0 = 0; c0 < o; c0 += w) {
        w = o - c0 < VT_LANES ? o - c0 : VT_LANES;
        for (l = 0; l < w; l++) sum[l] = 0.0f;
        for (i0 = 0; i0 < n; i0 += rows) {
            const float *at = dy->at + (ptrdiff_t)i0 * dy->row + (ptrdiff_t)c0 * dy->col;
            rows = n - i0 < 16 ? n - i0 : 16;
            if (dy->row == 1) vt_turn(block, w, at, dy->col, rows, w);
            else
                for (i = 0; i < rows; i++)
                    for (l = 0; l < w; l++) block[i * w + l] = at[(ptrdiff_t)i * dy->row + (ptrdiff_t)l * dy->col];
            vt_column_sums(some, block, w, rows, w);
            for (l = 0; l < w; l++) sum[l] += some[l];
        }
        vt_apply(s, k, c0, sum, w);
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
        int32_t r0 = vt_lower(w.rows, w.n_rows, a->o_at), r1 = vt_lower(w.rows, w.n_rows, o1), o0 = a->o_at;
        int32_t k0 = vt_lower(w.cols, w.n_cols, a->c_at), k1 = vt_lower(w.cols, w.n_cols, c1);
        const vt_in *const from = a->x_part.at ? &a->x_part : &a->x;
        const float *const x = a->x_part.at ? from->at + k0 : from->at;
        const uint16_t *const columns = a->x_part.at || !w.cols ? NULL : w.cols + k0;
        if (a->d_w.window) {                 /* what is trained of the window, as a part of its own */
            if (w.rows) w.rows += r0;
            else o0 -= r0;
            w.n_cols = k1 - k0;
            r1 -= r0;
            k1 -= k0;
            r0 = k0 = 0;
        }
        vt_weight_block(s, &a->d_w, &w, r0, r1, k0, k1, a->dy.at, a->dy.row, a->dy.col, o0, a->n, x, from->row, columns,
                        a->c_at, NULL);
    }
    if (vt_wanted(&a->d_b)) {
        if (a->dy.col == 1) vt_bias_gradient(s, &a->d_b, 0, a->dy.at, a->dy.row, a->n, a->o, NULL);
        else vt_bias_strided(s, &a->d_b, &a->dy, a->n, a->o);
    }
}
