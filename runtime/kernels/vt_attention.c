#include "vt_attention.h"
#include "vt_attend.h"

VT_INLINE int32_t vt_keys_at_once(int32_t m) { return m < VT_KEYS ? m : VT_KEYS; }

/* 1 / sqrt(d), unless another scale is given. */
VT_INLINE float vt_score_scale(float scale, int32_t d) { return scale == 0.0f ? 1.0f / VT_SQRT((float)d) : scale; }

/* qt (d, n) = the queries of a head times the scale; at: its first element. */
static void vt_scale_queries(float *qt, const vt_in *q, const float *at, int32_t n, int32_t d, float scale) {
    int32_t t, c;
    for (c = 0; c < d; c++)
        for (t = 0; t < n; t++) qt[c * n + t] = at[(ptrdiff_t)t * q->row + (ptrdiff_t)c * q->col] * scale;
}

/* x[t] = element (t, head) of a window (n, h), and back. */
VT_INLINE void vt_load_state(float *x, const float *at, int32_t row, int32_t col, int32_t n, int32_t head) {
    int32_t t;
    for (t = 0; t < n; t++) x[t] = at[(ptrdiff_t)t * row + (ptrdiff_t)head * col];
}
VT_INLINE void vt_keep_state(const vt_out *x, const float *from, int32_t n, int32_t head) {
    int32_t t;
    for (t = 0; t < n; t++) x->at[(ptrdiff_t)t * x->row + (ptrdiff_t)head * x->col] = from[t];
}

/* The window of a head in an output of rows, cleared unless it is added to; NULL where the output is not wanted. */
VT_INLINE float *vt_head_rows(const vt_out *y, int32_t c0, int32_t n, int32_t d) {
    int32_t t;
    float *at = y->at ? y->at + c0 : NULL;
    for (t = 0; at && !y->add && t < n; t++) vt_fill(at + (ptrdiff_t)t * y->row, d, 0.0f);
    return at;
}

/* y = softmax(scale q k^T) v; the sums stand in y, unfinished, until the last keys. */
void vt_attention(const vt_attention_args *a, const vt_step *s) {
    const int32_t n = a->n, d = a->d, e = a->e;
    float *qt = (float *)a->scratch, *st = qt + (ptrdiff_t)d * n;
    const float scale = vt_score_scale(a->scale, d);
    const vt_out rows = {a->y.at, a->y.row, a->y.col, !a->first};
    float high[VT_QUERIES], total[VT_QUERIES];
    int32_t i, t, c;
    for (i = 0; i < a->h; i++) {
        float *y = vt_head_rows(&rows, i * e, n, e);
        if (a->first) {
            vt_fill(high, n, vt_minus_infinity());
            vt_fill(total, n, 0.0f);
        } else {
            vt_load_state(high, a->high.at, a->high.row, a->high.col, n, i);
            vt_load_state(total, a->total.at, a->total.row, a->total.col, n, i);
        }
        vt_scale_queries(qt, &a->q, a->q.at + (ptrdiff_t)i * d * a->q.col, n, d, scale);
        vt_attend(s, a->k.at + i * d, a->k.row, a->v.at + i * e, a->v.row, a->m, qt, n, d, e, high, total, y, a->y.row, st);
        if (a->high.at) {
            vt_keep_state(&a->high, high, n, i);
            vt_keep_state(&a->total, total, n, i);
        }
        for (t = 0; a->last && t < n; t++) {
            float *row = y + (ptrdiff_t)t * a->y.row;
            for (c = 0; c < e; c++) row[c] = row[c] / total[t];
        }
    }
}

/* high, total and delta take in m more keys. */
void vt_attention_statistics(const vt_attention_statistics_args *a, const vt_step *s) {
    const int32_t n = a->n, d = a->d, e = a->e;
    float *qt = (float *)a->scratch, *st = qt + (ptrdiff_t)d * n, *pt = st + (ptrdiff_t)vt_keys_at_once(a->m) * n;
    const float scale = vt_score_scale(a->scale, d);
    float high[VT_QUERIES], total[VT_QUERIES], delta[VT_QUERIES];
    int32_t i;
    for (i = 0; i < a->h; i++) {
        if (a->first) {
            vt_fill(high, n, vt_minus_infinity());
            vt_fill(total, n, 0.0f);
            vt_fill(delta, n, 0.0f);
        } else {
            vt_load_state(high, a->high.at, a->high.row, a->high.col, n, i);
            vt_load_state(total, a->total.at, a->total.row, a->total.col, n, i);
            vt_load_state(delta, a->delta.at, a->delta.row, a->delta.col, n, i);
        }
        vt_scale_queries(qt, &a->q, a->q.at + (ptrdiff_t)i * d * a->q.col, n, d, scale);
        vt_attend_measure(s, a->k.at + i * d, a->k.row, a->v.at + i * e, a->v.row, a->m, qt,
                          a->dy.at + (ptrdiff_t)i * e * a->dy.col, a->dy.col, n, d, e, high, total, delta, st, pt);
        vt_keep_state(&a->high, high, n, i);
        vt_keep_state(&a->total, total, n, i);
        vt_keep_state(&a->delta, delta, n, i);
    }
}

/* d_q = scale ds k, d_k = ds^T (scale q), d_v = p^T dy, y = p v with p = e^(score - high) / total, ds = p (dp - delta). */
void vt_attention_grad(const vt_attention_grad_args *a, const vt_step *s) {
    const int32_t n = a->n, d = a->d, e = a->e;
    const int slopes = a->d_q.at || a->d_k.at;
    float *qt = (float *)a->scratch, *q = qt, *gt = NULL, *st = qt + (ptrdiff_t)d * n, *pt;
    const float scale = vt_score_scale(a->scale, d);
    float high[VT_QUERIES], share[VT_QUERIES], delta[VT_QUERIES];
    int32_t i;
    if (n > 1 && a->d_k.at) {
        q = st;
        st += (ptrdiff_t)d * n;
    }
    if (n > 1 && slopes) {
        gt = st;
        st += (ptrdiff_t)e * n;
    }
    pt = st + (ptrdiff_t)vt_keys_at_once(a->m) * n;
    vt_fill(delta, n, 0.0f);
    for (i = 0; i < a->h; i++) {
        const float *g = a->dy.at ? a->dy.at + i * e : NULL;
        float *dk = vt_head_rows(&a->d_k, i * d, a->m, d), *dv = vt_head_rows(&a->d_v, i * e, a->m, e);
        const vt_queries u = {qt, gt ? gt : g, q, g, d, a->dy.row, high, share, delta,
                              vt_head_rows(&a->d_q, i * d, n, d), a->d_q.row, scale,
                              vt_head_rows(&a->y, i * e, n, e), a->y.row};
        vt_load_state(high, a->high.at, a->high.row, a->high.col, n, i);
        vt_load_state(share, a->total.at, a->total.row, a->total.col, n, i);
        if (slopes) vt_load_state(delta, a->delta.at, a->delta.row, a->delta.col, n, i);
        vt_attend_measured(share, delta, n);
        vt_scale_queries(qt, &a->q, a->q.at + (ptrdiff_t)i * d * a->q.col, n, d, scale);
        if (q != qt) vt_panel_to_rows(q, d, qt, n, d);
        if (gt) vt_rows_to_panel(gt, n, g, a->dy.row, e);
        vt_attend_backward(s, a->k.at + i * d, a->k.row, a->v.at ? a->v.at + i * e : NULL, a->v.row, a->m, &u, n, d, e, dk,
                           a->d_k.row, dv, a->d_v.row, st, pt);
    }
}
