/* The Gram residual in blocks of ranks, forward and backward. */
#include "vt_gram_part.h"

/* ut (k1 - k0, d) = (X^T A)^T for ranks k0..k1. buf: d * T floats. */
VT_INLINE void vt_gram_project(const vt_step *s, const vt_gram_part *p, int32_t k0, int32_t k1, float *ut, float *buf) {
    int32_t n0, T;
    vt_fill(ut, (k1 - k0) * p->d, 0.0f);
    for (n0 = 0; n0 < p->n; n0 += T) {
        T = vt_width(p->n - n0, p->rows);
        vt_load_rows(buf, p->d, p->x, p->d, n0, T, p->nm);
        vt_dense(s, ut, p->d, k1 - k0, p->d, T, p->a + (ptrdiff_t)n0 * p->r + k0, 1, p->r, buf, p->d);
    }
}

void vt_gram_forward(const vt_step *s, const vt_gram_part *p, float *y, float *scratch) {
    const int32_t d = p->d, T0 = vt_width(p->n, p->rows), R = p->r < p->block ? p->r : p->block;
    float *ut = scratch, *buf = ut + (ptrdiff_t)R * d, *g = buf + (ptrdiff_t)d * T0;
    int32_t k0, k1, n0, T, i;
    for (k0 = 0; k0 < p->r; k0 = k1) {
        k1 = p->r - k0 > R ? k0 + R : p->r;
        vt_gram_project(s, p, k0, k1, ut, buf);
        for (n0 = 0; n0 < p->q; n0 += T) {
            T = vt_width(p->q - n0, T0);
            vt_load_panel(buf, T, p->x, d, n0, p->nm);
            vt_fill(g, (k1 - k0) * T, 0.0f);
            vt_dense(s, g, T, k1 - k0, T, d, ut, d, 1, buf, T);
            for (i = 0; i < (k1 - k0) * T; i++) g[i] = g[i] / (float)d;
            vt_dense(s, y + (ptrdiff_t)n0 * d, d, T, d, k1 - k0, g, 1, T, p->b + (ptrdiff_t)k0 * d, d);
        }
    }
}

void vt_gram_backward(const vt_step *s, const vt_gram_part *p, const float *dy, const float *ls, float *dx,
                      const vt_sink *d_a, const vt_sink *d_b, float *dls, float *scratch) {
    const int32_t d = p->d, r = p->r, T0 = vt_width(p->n, p->rows), R = r < p->block ? r : p->block;
    const int need_v = dx || vt_wanted(d_a), need_w = dls || vt_wanted(d_b), need_u = dx || need_w;
    const float share = 1.0f / (float)d;
    float *ut = scratch, *vt = ut + (need_u ? R * d : 0), *wt = vt + (need_v ? R * d : 0);
    float *buf = wt + (need_w ? R * d : 0), *g = buf + (ptrdiff_t)d * T0;
    int32_t k0, k1, n0, T, K, i, k, t, c;
    for (k0 = 0; k0 < r; k0 = k1) {
        const float *b = p->b + (ptrdiff_t)k0 * d;
        k1 = r - k0 > R ? k0 + R : r;
        K = k1 - k0;
        if (need_u) vt_gram_project(s, p, k0, k1, ut, buf);
        if (need_v) vt_fill(vt, K * d, 0.0f);
        if (need_w) vt_fill(wt, K * d, 0.0f);
        for (n0 = 0; n0 < p->q; n0 += T) {
            const float *gy = dy + (ptrdiff_t)n0 * d;
            T = vt_width(p->q - n0, T0);
            if (need_w) {                    /* wt += (X U)^T dy */
                vt_load_panel(buf, T, p->x, d, n0, p->nm);
                vt_fill(g, K * T, 0.0f);
                vt_dense(s, g, T, K, T, d, ut, d, 1, buf, T);
                vt_dense(s, wt, d, K, d, T, g, T, 1, gy, d);
            }
            if (need_v) {                    /* g = E^T, E = (ls * dy / d) B^T; vt += E^T X; dx += E U^T */
                for (c = 0; c < d; c++)
                    for (t = 0; t < T; t++)
                        buf[c * T + t] = (ls ? gy[(ptrdiff_t)t * d + c] * ls[c] : gy[(ptrdiff_t)t * d + c]) * share;
                vt_fill(g, K * T, 0.0f);
                vt_dense(s, g, T, K, T, d, b, d, 1, buf, T);
                vt_load_rows(buf, d, p->x, d, n0, T, p->nm);
                vt_dense(s, vt, d, K, d, T, g, T, 1, buf, d);
                if (dx) vt_dense(s, dx + (ptrdiff_t)n0 * d, d, T, d, K, g, 1, T, ut, d);
            }
        }
        for (n0 = 0; need_v && n0 < p->n; n0 += T) {
            T = vt_width(p->n - n0, T0);
            if (dx) vt_dense(s, dx + (ptrdiff_t)n0 * d, d, T, d, K, p->a + (ptrdiff_t)n0 * r + k0, r, 1, vt, d);
            if (vt_wanted(d_a)) {
                vt_load_panel(buf, T, p->x, d, n0, p->nm);
                vt_fill(g, K * T, 0.0f);
                vt_dense(s, g, T, K, T, d, vt, d, 1, buf, T);
                for (t = 0; t < T; t++)
                    for (k = 0; k < K; k++) vt_apply(s, d_a, (ptrdiff_t)(n0 + t) * r + k0 + k, g + k * T + t, 1);
            }
        }
        if (need_w) {
            for (i = 0; i < K * d; i++) wt[i] = wt[i] * share;
            for (k = 0; dls && k < K; k++)
                for (c = 0; c < d; c++) dls[c] = VT_FMA(b[k * d + c], wt[k * d + c], dls[c]);
            if (vt_wanted(d_b)) {
                for (k = 0; ls && k < K; k++)
                    for (c = 0; c < d; c++) wt[k * d + c] = wt[k * d + c] * ls[c];
                vt_apply(s, d_b, (ptrdiff_t)k0 * d, wt, K * d);
            }
        }
    }
}
