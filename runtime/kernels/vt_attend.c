/* Attention of one head, a panel of queries by VT_KEYS keys at a time. */
#include "vt_attend.h"

/* x[i] = e^x[i] for any n: where vectors are wide the last ones go through a whole one, too. */
VT_INLINE void vt_exp_all(float *x, int32_t n) {
    const int32_t whole = n - n % VT_LANES;
    float some[VT_LANES];
    int32_t l;
    VT_EACH(x, whole, i, vt_expf(x[i]));
    if (whole == n) return;
    for (l = 0; l < VT_LANES; l++) some[l] = whole + l < n ? x[whole + l] : 0.0f;
    for (l = 0; l < VT_LANES; l++) some[l] = vt_expf(some[l]);
    for (l = 0; whole + l < n; l++) x[whole + l] = some[l];
}

/* st (n, T) = e^(st - m), across rows where T is narrow. */
VT_INLINE void vt_exp_scores(float *st, const float *m, int32_t n, int32_t T) {
    float high[VT_QUERIES];
    int32_t j, t;
    for (t = 0; t < T; t++) high[t] = m[t];
    if (VT_LANES == 4) {                     /* scalars: at once */
        for (j = 0; j < n; j++)
            for (t = 0; t < T; t++) st[j * T + t] = vt_expf(st[j * T + t] - high[t]);
        return;
    }
    if (T == VT_QUERIES)
        for (j = 0; j < n; j++)
            for (t = 0; t < VT_QUERIES; t++) st[j * VT_QUERIES + t] = st[j * VT_QUERIES + t] - high[t];
    else
        for (j = 0; j < n; j++)
            for (t = 0; t < T; t++) st[j * T + t] = st[j * T + t] - high[t];
    vt_exp_all(st, n * T);
}

/* Raises m to the maximum of the n scores st (n, T) and gives corr = e^(old m - new m). */
VT_INLINE void vt_raise(float *m, float *corr, const float *st, int32_t n, int32_t T) {
    int32_t j, t;
    for (t = 0; t < T; t++) corr[t] = m[t];
    for (j = 0; j < n; j++)
        for (t = 0; t < T; t++) m[t] = st[j * T + t] > m[t] ? st[j * T + t] : m[t];
    for (t = 0; t < T; t++) corr[t] = vt_expf(corr[t] - m[t]);
}

void vt_attend(const vt_step *s, const float *K, ptrdiff_t ldk, const float *V, ptrdiff_t ldv, int32_t nk,
               const float *qt, int32_t T, int32_t d, int32_t e, float *m, float *l, float *o, ptrdiff_t ldo, float *st) {
    int32_t j0, n, j, t, c;
    float corr[VT_QUERIES];
    for (j0 = 0; j0 < nk; j0 += n) {
        n = nk - j0 > VT_KEYS ? VT_KEYS : nk - j0;
        vt_fill(st, n * T, 0.0f);
        vt_dense(s, st, T, n, T, d, K + j0 * ldk, ldk, 1, qt, T);
        vt_raise(m, corr, st, n, T);
        for (t = 0; t < T; t++) l[t] = l[t] * corr[t];
        for (t = 0; t < T; t++) {
            float *row = o + t * ldo;
            for (c = 0; c < e; c++) row[c] = row[c] * corr[t];
        }
        vt_exp_scores(st, m, n, T);
        for (j = 0; j < n; j++)
            for (t = 0; t < T; t++) l[t] += st[j * T + t];
        vt_dense(s, o, ldo, T, e, n, st, 1, T, V + j0 * ldv, ldv);
    }
}

void vt_attend_measure(const vt_step *s, const float *K, ptrdiff_t ldk, const float *V, ptrdiff_t ldv,
                       int32_t nk, const float *qt, const float *gt, ptrdiff_t ldg, int32_t T, int32_t d, int32_t e,
                       float *m, float *l, float *delta, float *st, float *pt) {
    int32_t j0, n, j, t;
    float corr[VT_QUERIES];
    for (j0 = 0; j0 < nk; j0 += n) {
        n = nk - j0 > VT_KEYS ? VT_KEYS : nk - j0;
        vt_fill(st, n * T, 0.0f);
        vt_fill(pt, n * T, 0.0f);
        vt_dense(s, st, T, n, T, d, K + j0 * ldk, ldk, 1, qt, T);
        vt_dense(s, pt, T, n, T, e, V + j0 * ldv, ldv, 1, gt, ldg);
        vt_raise(m, corr, st, n, T);
        for (t = 0; t < T; t++) {
            l[t] = l[t] * corr[t];
            delta[t] = delta[t] * corr[t];
        }
        vt_exp_scores(st, m, n, T);
        for (j = 0; j < n; j++)
            for (t = 0; t < T; t++) {
                l[t] += st[j * T + t];
                delta[t] = VT_FMA(st[j * T + t], pt[j * T + t], delta[t]);
            }
    }
}

void vt_attend_backward(const vt_step *s, const float *K, ptrdiff_t ldk, const float *V, ptrdiff_t ldv,
                        int32_t nk, const vt_queries *u, int32_t T, int32_t d, int32_t e, float *dK, ptrdiff_t lddk,
                        float *dV, ptrdiff_t lddv, float *st, float *pt) {
    const int slopes = dK || u->dq;
    int32_t j0, n, j, t;
    for (j0 = 0; j0 < nk; j0 += n) {
        n = nk - j0 > VT_KEYS ? VT_KEYS : nk - j0;
        vt_fill(st, n * T, 0.0f);
        vt_dense(s, st, T, n, T, d, K + j0 * ldk, ldk, 1, u->qt, T);
        if (slopes) {
            vt_fill(pt, n * T, 0.0f);
            vt_dense(s, pt, T, n, T, e, V + j0 * ldv, ldv, 1, u->gt, T);
        }
        vt_exp_scores(st, u->m, n, T);
        for (j = 0; j < n; j++)
            for (t = 0; t < T; t++) {
                const float p = st[j * T + t] * u->l[t];
                st[j * T + t] = p;
                if (slopes) pt[j * T + t] = p * (pt[j * T + t] - u->delta[t]);
            }
        if (dV) vt_dense(s, dV + j0 * lddv, lddv, n, e, T, st, T, 1, u->g, u->ldg);
        if (dK) vt_dense(s, dK + j0 * lddk, lddk, n, d, T, pt, T, 1, u->q, u->ldq);
        if (u->dq) {
            if (u->scale != 1.0f)
                for (j = 0; j < n * T; j++) pt[j] = pt[j] * u->scale;
            vt_dense(s, u->dq, u->lddq, T, d, n, pt, 1, T, K + j0 * ldk, ldk);
        }
        if (u->o) vt_dense(s, u->o, u->ldo, T, e, n, st, 1, T, V + j0 * ldv, ldv);
    }
}
