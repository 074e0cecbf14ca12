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

void vt_load_turned(float *y, ptrdiff_t ldy, const float *x, ptrdiff_t ldx, int32_t n, int32_t d, const vt_norm *nm) {
    float block[VT_LANES * VT_LANES];        /* rows, on their way */
    int32_t c0, t0, t, l, rows, lanes;
    if (!nm->mean) {
        vt_turn(y, ldy, x, ldx, d, n);
        return;
    }
    for (t0 = 0; t0 < n; t0 += rows) {
        rows = n - t0 < VT_LANES ? n - t0 : VT_LANES;
        for (c0 = 0; c0 < d; c0 += lanes) {
            lanes = d - c0 < VT_LANES ? d - c0 : VT_LANES;
            for (t = 0; t < rows; t++) {
                const float *row = x + (t0 + t) * ldx + c0, mean = nm->mean[t0 + t], rstd = nm->rstd[t0 + t];
                float *out = block + t * VT_LANES;
                if (lanes == VT_LANES)
                    for (l = 0; l < VT_LANES; l++) out[l] = vt_normed(row[l], mean, rstd, nm->gamma, nm->beta, c0 + l);
                else
                    for (l = 0; l < lanes; l++) out[l] = vt_normed(row[l], mean, rstd, nm->gamma, nm->beta, c0 + l);
            }
            vt_turn(y + c0 * ldy + t0, ldy, block, VT_LANES, lanes, rows);
        }
    }
}

/* n values of vt_apply. */
VT_INLINE void vt_hand(const vt_step *s, const vt_sink *k, ptrdiff_t i0, const float *g, int32_t n) {
    const float momentum = s->momentum, lr = -s->lr;
    float *grad = k->grad, *param = k->param, *velocity = k->velocity;
    if (grad && k->add) {
        VT_EACH(grad + i0, n, i, grad[i0 + i] + g[i]);
    } else if (grad) {
        VT_EACH(grad + i0, n, i, g[i]);
    } else if (velocity) {
        VT_EACH(velocity + i0, n, i, VT_FMA(momentum, velocity[i0 + i], g[i]));
        VT_EACH(param + i0, n, i, VT_FMA(lr, velocity[i0 + i], param[i0 + i]));
    } else if (param) {
        VT_EACH(param + i0, n, i, VT_FMA(lr, g[i], param[i0 + i]));
    }
}

void vt_apply(const vt_step *s, const vt_sink *k, ptrdiff_t i0, const float *g, int32_t n) { vt_hand(s, k, i0, g, n); }

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

void vt_weight_block(const vt_step *s, const vt_sink *k, const vt_part *w, int32_t r0, int32_t r1, int32_t j0,
                     int32_t j1, const float *g, ptrdiff_t gns, ptrdiff_t gos, int32_t o0, int32_t n, const float *x,
                     ptrdiff_t ldx, const uint16_t *xl, ptrdiff_t xo, const float *scale) {
    vt_product p = {NULL, 0, gns, NULL, ldx, NULL, NULL, 0, xo, 0, 1};
    int32_t r, rows, j, lanes, n0, i, l;
    const int direct = k->grad && !scale && (!k->add || n <= VT_BLOCK);      /* the tile does what vt_hand would */
    float sums[VT_SUMS];
    float *y[VT_TALL];
    const float *first[VT_TALL], *b[VT_TALL];
    VT_COUNT(s, (uint64_t)(r1 - r0) * (uint64_t)(j1 - j0) * (uint64_t)n);
    for (r = r0; r < r1; r += rows) {
        rows = vt_tile_rows(&p, r1 - r, VT_LANES, xl);
        for (i = 0; i < VT_TALL; i++) {      /* all, or gcc warns */
            const int32_t o = i < rows ? r + i : r;
            first[i] = g + ((w->rows ? w->rows[o] : o) - o0) * gos;
            y[i] = sums + (i < rows ? i : 0) * (VT_SUMS / rows);
        }
        for (j = j0; j < j1; j += lanes) {
            const ptrdiff_t at = (ptrdiff_t)r * w->n_cols + j;
            const uint16_t *list = xl ? xl + (j - j0) : NULL;
            const float *xj = xl ? x : x + (j - j0);
            lanes = vt_tile_lanes(&p, j1 - j, rows, list);
            p.k = n > VT_BLOCK ? VT_BLOCK : n;
            for (i = 0; direct && i < VT_TALL; i++) y[i] = k->grad + at + (i < rows ? i : 0) * (ptrdiff_t)w->n_cols;
            vt_tile(y, first, xj, list, &p, rows, lanes, direct && k->add ? VT_ADD : VT_SET);
            for (n0 = p.k; n0 < n; n0 += p.k) {
                p.k = n - n0 > VT_BLOCK ? VT_BLOCK : n - n0;
                for (i = 0; i < VT_TALL; i++) b[i] = first[i] + n0 * gns;
                vt_tile(y, b, xj + n0 * ldx, list, &p, rows, lanes, VT_ADD);
            }
            for (i = 0; !direct && i < rows; i++) {
                const ptrdiff_t row = at + (ptrdiff_t)i * w->n_cols;
                if (scale)
                    for (l = 0; l < lanes; l++) y[i][l] = y[i][l] * scale[w->rows ? w->rows[r + i] : r + i];
                if (lanes == VT_LANES) vt_hand(s, k, row, y[i], VT_LANES);
                else vt_apply(s, k, row, y[i], lanes);
            }
        }
    }
}

void vt_norm_backward(float *dx, const float *g, const float *x, const float *dy, int32_t d, float mean,
                      float rstd) {
    float a[16];
    float m1, m2;
    int32_t i, l;
    for (l = 0; l < 16; l++) a[l] = 0.0f;
    m1 = vt_sum(g, d) / (float)d;
    for (i = 0; i + 16 <= d; i += 16)
        for (l = 0; l < 16; l++) a[l] = VT_FMA(g[i + l], (x[i + l] - mean) * rstd, a[l]);
    for (l = 0; i < d; i++, l++) a[l] = VT_FMA(g[i], (x[i] - mean) * rstd, a[l]);
    m2 = vt_tree16(a) / (float)d;
    if (dy) VT_EACH(dx, d, c, dy[c] + rstd * (VT_FMA(-((x[c] - mean) * rstd), m2, g[c] - m1)));
    else VT_EACH(dx, d, c, rstd * (VT_FMA(-((x[c] - mean) * rstd), m2, g[c] - m1)));
}
