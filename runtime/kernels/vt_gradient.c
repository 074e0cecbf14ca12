/* Normalisation of rows, and gradients on their way to their sinks. */
#include "vt_gradient.h"

VT_INLINE float vt_sum_square(const float *x, int32_t n, float mean) {
    float a[16];
    int32_t i = 0, l;
    for (l = 0; l < 16; l++) a[l] = 0.0f;
    for (; i + 16 <= n; i += 16)
        for (l = 0; l < 16; l++) a[l] = VT_FMA(x[i + l] - mean, x[i + l] - mean, a[l]);
    for (l = 0; i < n; i++, l++) a[l] = VT_FMA(x[i] - mean, x[i] - mean, a[l]);
    return vt_tree16(a);
}

VT_INLINE float vt_sum(const float *x, int32_t n) {
    float a[16];
    int32_t i = 0, l;
    for (l = 0; l < 16; l++) a[l] = 0.0f;
    for (; i + 16 <= n; i += 16)
        for (l = 0; l < 16; l++) a[l] += x[i + l];
    for (l = 0; i < n; i++, l++) a[l] += x[i];
    return vt_tree16(a);
}

void vt_statistics(float *mean, float *rstd, const float *x, int32_t n, int32_t d, float eps) {
    int32_t i;
    for (i = 0; i < n; i++) {
        const float *row = x + (ptrdiff_t)i * d;
        const float mu = vt_sum(row, d) / (float)d;
        mean[i] = mu;
        rstd[i] = 1.0f / VT_SQRT(vt_sum_square(row, d, mu) / (float)d + eps);
    }
}

void vt_load_rows(float *y, ptrdiff_t ldy, const float *x, int32_t d, int32_t n0, int32_t n,
                  const vt_norm *nm) {
    int32_t t, c;
    for (t = 0; t < n; t++) {
        const float *row = x + (ptrdiff_t)(n0 + t) * d;
        float *out = y + t * ldy;
        if (!nm->mean)
            for (c = 0; c < d; c++) out[c] = row[c];
        else
            for (c = 0; c < d; c++)
                out[c] = vt_normed(row[c], nm->mean[n0 + t], nm->rstd[n0 + t], nm->gamma, nm->beta, c);
    }
}

void vt_load_panel(float *y, int32_t T, const float *x, int32_t d, int32_t n0, const vt_norm *nm) {
    int32_t t, c;
    if (T == 1) {
        vt_load_rows(y, d, x, d, n0, 1, nm);
        return;
    }
    for (c = 0; c < d; c++) {
        const float *col = x + (ptrdiff_t)n0 * d + c;
        if (!nm->mean)
            for (t = 0; t < T; t++) y[c * T + t] = col[(ptrdiff_t)t * d];
        else
            for (t = 0; t < T; t++)
                y[c * T + t] =
                    vt_normed(col[(ptrdiff_t)t * d], nm->mean[n0 + t], nm->rstd[n0 + t], nm->gamma, nm->beta, c);
    }
}

void vt_apply(const vt_step *s, const vt_sink *k, ptrdiff_t i0, const float *g, int32_t n) {
    int32_t i;
    if (k->grad && k->add) {
        for (i = 0; i < n; i++) k->grad[i0 + i] += g[i];
    } else if (k->grad) {
        for (i = 0; i < n; i++) k->grad[i0 + i] = g[i];
    } else if (k->velocity) {
        for (i = 0; i < n; i++) {
            const float v = VT_FMA(s->momentum, k->velocity[i0 + i], g[i]);
            k->velocity[i0 + i] = v;
            k->param[i0 + i] = VT_FMA(-s->lr, v, k->param[i0 + i]);
        }
    } else if (k->param) {
        for (i = 0; i < n; i++) k->param[i0 + i] = VT_FMA(-s->lr, g[i], k->param[i0 + i]);
    }
}

void vt_column_sums(float *out, const float *dy, ptrdiff_t ld, int32_t n, int32_t d) {
    int32_t c0, i, i0, l, w;
    float a[16];
    for (c0 = 0; c0 < d; c0 += w) {
        w = d - c0 >= 16 ? 16 : d - c0;
        for (l = 0; l < w; l++) out[c0 + l] = 0.0f;
        for (i0 = 0; i0 < n; i0 += 16) {     /* sixteen rows at a time: long sums lose fewer bits */
            const int32_t i1 = n - i0 > 16 ? i0 + 16 : n;
            for (l = 0; l < 16; l++) a[l] = 0.0f;
            if (w == 16)
                for (i = i0; i < i1; i++)
                    for (l = 0; l < 16; l++) a[l] += dy[i * ld + c0 + l];
            else
                for (i = i0; i < i1; i++)
                    for (l = 0; l < w; l++) a[l] += dy[i * ld + c0 + l];
            for (l = 0; l < w; l++) out[c0 + l] += a[l];
        }
    }
}

void vt_bias_gradient(const vt_step *s, const vt_sink *k, ptrdiff_t i0, const float *dy, ptrdiff_t ld,
                      int32_t n, int32_t d, const float *scale) {
    int32_t c0, l, w;
    float a[16];
    for (c0 = 0; c0 < d; c0 += w) {
        w = d - c0 >= 16 ? 16 : d - c0;
        vt_column_sums(a, dy + c0, ld, n, w);
        if (scale)
            for (l = 0; l < w; l++) a[l] = a[l] * scale[c0 + l];
        vt_apply(s, k, i0 + c0, a, w);
    }
}

void vt_weight_block(const vt_step *s, const vt_sink *k, const vt_part *w, int32_t r0, int32_t r1, int32_t j,
                     int32_t lanes, const float *g, ptrdiff_t gns, ptrdiff_t gos, int32_t o0, int32_t n,
                     const float *x, ptrdiff_t ldx, const float *scale) {
    const vt_product p = {NULL, gos, gns, x, ldx, NULL, NULL, 0, 0, n, 1};
    int32_t r, rows, i, l;
    float tile[VT_ROWS][VT_LANES];
    float *at[VT_ROWS];
    VT_COUNT(s, (uint64_t)(r1 - r0) * (uint64_t)lanes * (uint64_t)n);
    for (r = r0; r < r1; r += rows) {
        const int32_t o = w->rows ? w->rows[r] : r;
        rows = VT_ROWS == 8 && r1 - r >= 8 && lanes == 16 ? 8 : r1 - r >= 4 ? 4 : 1;
        if (w->rows && w->rows[r + rows - 1] != o + rows - 1) rows = 1;    /* not consecutive */
        for (i = 0; i < rows; i++) {
            at[i] = tile[i];
            for (l = 0; l < lanes; l++) tile[i][l] = 0.0f;
        }
        vt_tiles(at, &p, g + (o - o0) * gos, x, rows, lanes);
        for (i = 0; i < rows; i++) {
            if (scale)
                for (l = 0; l < lanes; l++) tile[i][l] = tile[i][l] * scale[o + i];
            vt_apply(s, k, (ptrdiff_t)(r + i) * w->n_cols + j, tile[i], lanes);
        }
    }
}

void vt_weight_gradient(const vt_step *s, const vt_sink *k, const vt_part *w, int32_t o0, int32_t o1,
                        int32_t c0, int32_t c1, const float *g, ptrdiff_t gns, ptrdiff_t gos, int32_t n,
                        const float *x, ptrdiff_t ldx, const vt_norm *nm, const float *scale, float *stage) {
    const int32_t r0 = vt_lower(w->rows, w->n_rows, o0), r1 = vt_lower(w->rows, w->n_rows, o1);
    const int32_t k0 = vt_lower(w->cols, w->n_cols, c0), k1 = vt_lower(w->cols, w->n_cols, c1);
    const int staged = w->cols || nm->mean;
    int32_t j, lanes, i, l;
    for (j = k0; j < k1; j += lanes) {
        lanes = vt_width(k1 - j, VT_LANES);
        if (staged)
            for (i = 0; i < n; i++)
                for (l = 0; l < lanes; l++) {
                    const int32_t c = (w->cols ? w->cols[j + l] : j + l) - c0;
                    const float v = x[i * ldx + c];
                    stage[i * lanes + l] =
                        nm->mean ? vt_normed(v, nm->mean[i], nm->rstd[i], nm->gamma, nm->beta, c) : v;
                }
        vt_weight_block(s, k, w, r0, r1, j, lanes, g, gns, gos, o0, n, staged ? stage : x + (j - c0),
                        staged ? lanes : ldx, scale);
    }
}

void vt_norm_parameters(const vt_step *s, const vt_sink *dgamma, const vt_sink *dbeta, float *g,
                        const float *x, int32_t n, int32_t d, const vt_norm *nm) {
    int32_t c0, i, l, w;
    float a[16], b[16];
    for (c0 = 0; c0 < d; c0 += w) {
        w = d - c0 >= 16 ? 16 : d - c0;
        for (l = 0; l < 16; l++) a[l] = b[l] = 0.0f;
        for (i = 0; i < n; i++) {
            float *gi = g + (ptrdiff_t)i * d + c0;
            const float *xi = x + (ptrdiff_t)i * d + c0;
            for (l = 0; l < w; l++) {
                b[l] += gi[l];
                a[l] = VT_FMA(gi[l], (xi[l] - nm->mean[i]) * nm->rstd[i], a[l]);
                if (nm->gamma) gi[l] = gi[l] * nm->gamma[c0 + l];
            }
        }
        vt_apply(s, dgamma, c0, a, w);
        vt_apply(s, dbeta, c0, b, w);
    }
}

void vt_norm_backward(float *dx, const float *g, const float *x, const float *dy, int32_t d, float mean,
                      float rstd) {
    float a[16];
    float m1, m2;
    int32_t c, l;
    for (l = 0; l < 16; l++) a[l] = 0.0f;
    m1 = vt_sum(g, d) / (float)d;
    for (c = 0, l = 0; c < d; c++) {
        a[l] = VT_FMA(g[c], (x[c] - mean) * rstd, a[l]);
        l = (l + 1) & 15;
    }
    m2 = vt_tree16(a) / (float)d;
    for (c = 0; c < d; c++) {
        const float v = rstd * (VT_FMA(-((x[c] - mean) * rstd), m2, g[c] - m1));
        dx[c] = dy ? dy[c] + v : v;
    }
}
