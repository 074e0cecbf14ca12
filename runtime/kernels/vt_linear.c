#include "vt_linear.h"
#include "vt_gradient.h"

/* y (o rows of T; ld ldy) [=] b + w x (c rows of T; ld ldx), for the window of w. */
static void vt_linear_panel(const vt_linear_args *a, const vt_step *s, float *y, ptrdiff_t ldy, const float *x,
                            ptrdiff_t ldx, int32_t T, int32_t add) {
    const vt_matrix *m = &a->w;
    int32_t i, t;
    if (!add)
        for (i = 0; i < a->o; i++)
            for (t = 0; t < T; t++) y[i * ldy + t] = a->b ? a->b[i] : 0.0f;
    for (i = 0; i < 2; i++) {
        const vt_part *w = i ? &m->trained : &m->frozen;
        if (w->n_rows > 0) {
            const int32_t r0 = vt_lower(w->rows, w->n_rows, a->o_at), r1 = vt_lower(w->rows, w->n_rows, a->o_at + a->o);
            const int32_t k0 = vt_lower(w->cols, w->n_cols, a->c_at), k1 = vt_lower(w->cols, w->n_cols, a->c_at + a->c);
            const vt_product p = {w->w + (ptrdiff_t)r0 * w->n_cols + k0, w->n_cols, 1, x, ldx, NULL,
                                  w->cols ? w->cols + k0 : NULL, 0, a->c_at, k1 - k0, 1};
            VT_COUNT(s, (uint64_t)(r1 - r0) * (uint64_t)(k1 - k0) * (uint64_t)T);
            vt_multiply(y, ldy, w->rows ? w->rows + r0 : NULL, a->o_at, NULL, 0, r1 - r0, T, &p);
        }
    }
}

/* Rows in panels of `rows` tokens through scratch: only until a last pass makes regions of such calls. */
static void vt_linear_rows(const vt_linear_args *a, const vt_step *s) {
    int32_t n0, T;
    for (n0 = 0; n0 < a->n; n0 += T) {
        const float *x = a->x.at + (ptrdiff_t)n0 * a->x.row;
        float *y = a->y.at + (ptrdiff_t)n0 * a->y.row;
        T = a->scratch ? vt_width(a->n - n0, a->rows) : 1;
        if (T > 1) {
            float *xt = (float *)a->scratch, *yt = xt + (ptrdiff_t)a->c * T;
            vt_rows_to_panel(xt, T, x, a->x.row, a->c);
            if (a->y.add) vt_rows_to_panel(yt, T, y, a->y.row, a->o);
            vt_linear_panel(a, s, yt, T, xt, T, T, a->y.add);
            vt_panel_to_rows(y, a->y.row, yt, T, a->o);
        } else {
            vt_linear_panel(a, s, y, 1, x, 1, 1, a->y.add);
        }
    }
}

/* y = x w^T + b, or y += x w^T. y may not overlap x. */
void vt_linear(const vt_linear_args *a, const vt_step *s) {
    if (a->n > 1 && (a->scratch || a->x.row != 1 || a->y.row != 1)) vt_linear_rows(a, s);
    else vt_linear_panel(a, s, a->y.at, a->y.col, a->x.at, a->x.col, a->n, a->y.add);
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
