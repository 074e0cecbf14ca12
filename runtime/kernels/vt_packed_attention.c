#include "vt_packed_attention.h"
#include "vt_attend.h"

/* qt (d, T) = scaled queries of head h, tokens n0.. */
static void vt_load_queries(float *qt, const float *qkv, int32_t width, int32_t h, int32_t d, int32_t n0, int32_t T) {
    const float scale = 1.0f / VT_SQRT((float)d);
    const float *q = qkv + (ptrdiff_t)n0 * 3 * width + h * d;
    int32_t t, c;
    for (c = 0; c < d; c++)
        for (t = 0; t < T; t++) qt[c * T + t] = q[(ptrdiff_t)t * 3 * width + c] * scale;
}

/* y = softmax(q k^T / sqrt(d)) v for each head, `rows` queries at a time. */
void vt_packed_attention(const vt_packed_attention_args *a, const vt_step *s) {
    const int32_t width = a->width, d = width / a->heads, T0 = vt_width(a->n, a->rows);
    float *qt = (float *)a->scratch, *o = qt + d * T0, *st = o + d * T0;
    int32_t h, n0, T, t, c;
    for (h = 0; h < a->heads; h++)
        for (n0 = 0; n0 < a->n; n0 += T) {
            float m[16], l[16];
            T = vt_width(a->n - n0, a->rows);
            vt_load_queries(qt, a->qkv, width, h, d, n0, T);
            vt_fill(m, T, vt_minus_infinity());
            vt_fill(l, T, 0.0f);
            vt_fill(o, d * T, 0.0f);
            vt_attend(s, a->qkv + width + h * d, 3 * width, a->qkv + 2 * width + h * d, 3 * width, a->n, qt, T, d, d,
                      m, l, o, d, st);
            for (t = 0; t < T; t++)
                for (c = 0; c < d; c++) a->y[(ptrdiff_t)(n0 + t) * width + h * d + c] = o[t * d + c] / l[t];
        }
}

/* d_qkv from dy; probabilities are computed again, row panel by row panel. */
void vt_packed_attention_grad(const vt_packed_attention_grad_args *a, const vt_step *s) {
    const int32_t width = a->width, d = width / a->heads, T0 = vt_width(a->n, a->rows);
    const int32_t S = a->n < VT_KEYS ? a->n : VT_KEYS, ld = 3 * width;
    const float scale = 1.0f / VT_SQRT((float)d);
    float *qt = (float *)a->scratch, *gt = qt + d * T0, *q = T0 > 1 ? gt + d * T0 : qt;
    float *st = gt + (T0 > 1 ? 2 : 1) * d * T0, *pt = st + S * T0;
    int32_t h, n0, T, t, c, i;
    for (i = 0; i < a->n; i++) vt_fill(a->d_qkv + (ptrdiff_t)i * ld, ld, 0.0f);
    for (h = 0; h < a->heads; h++) {
        const float *K = a->qkv + width + h * d, *V = K + width;
        float *dK = a->d_qkv + width + h * d, *dV = dK + width;
        for (n0 = 0; n0 < a->n; n0 += T) {
            float m[16], l[16], delta[16];
            const float *g = a->dy + (ptrdiff_t)n0 * width + h * d;
            float *dq = a->d_qkv + (ptrdiff_t)n0 * ld + h * d;
            vt_queries u = {qt, gt, q, g, d, width, m, l, delta, dq, ld, 1.0f, NULL, 0};
            T = vt_width(a->n - n0, a->rows);
            vt_load_queries(qt, a->qkv, width, h, d, n0, T);
            vt_rows_to_panel(gt, T, g, width, d);
            if (q != qt) vt_panel_to_rows(q, d, qt, T, d);
            vt_fill(m, T, vt_minus_infinity());
            vt_fill(l, T, 0.0f);
            vt_fill(delta, T, 0.0f);
            vt_attend_measure(s, K, ld, V, ld, a->n, qt, gt, T, T, d, d, m, l, delta, st, pt);
            vt_attend_measured(l, delta, T);
            vt_attend_backward(s, K, ld, V, ld, a->n, &u, T, d, d, dK, ld, dV, ld, st, pt);
            for (t = 0; t < T; t++)
                for (c = 0; c < d; c++) dq[(ptrdiff_t)t * ld + c] = dq[(ptrdiff_t)t * ld + c] * scale;
        }
    }
}
