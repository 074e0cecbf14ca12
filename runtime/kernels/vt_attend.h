/* Softmax attention of one head for a panel of queries, VT_KEYS keys at a time; never an N x N map.
 *
 * Keys and values are rows (nk, d) with leading dimensions ldk, ldv. qt (d, T) is the panel of queries, already times
 * 1 / sqrt(d). m, l hold each query's running maximum and sum of exponentials. */
#ifndef VT_ATTEND_H
#define VT_ATTEND_H
#include "vt_panel.h"

enum { VT_KEYS = 16 };

VT_INLINE float vt_minus_infinity(void) { return vt_from_bits(0xff800000u); }

/* Raises m to the maximum of the n scores st (n, T) and gives corr = e^(old m - new m). */
VT_INLINE void vt_raise(float *m, float *corr, const float *st, int32_t n, int32_t T) {
    int32_t j, t;
    for (t = 0; t < T; t++) corr[t] = m[t];
    for (j = 0; j < n; j++)
        for (t = 0; t < T; t++) m[t] = st[j * T + t] > m[t] ? st[j * T + t] : m[t];
    for (t = 0; t < T; t++) corr[t] = vt_expf(corr[t] - m[t]);
}

/* ot (d, T), m, l take in nk more keys (start from 0, -infinity, 0); at the end o = ot / l. st: VT_KEYS * T floats. */
VT_OUTLINE void vt_attend(const vt_step *s, const float *K, ptrdiff_t ldk, const float *V, ptrdiff_t ldv, int32_t nk,
                          const float *qt, int32_t T, int32_t d, float *m, float *l, float *ot, float *st) {
    int32_t j0, n, j, t, c;
    float corr[16];
    for (j0 = 0; j0 < nk; j0 += n) {
        n = nk - j0 > VT_KEYS ? VT_KEYS : nk - j0;
        vt_fill(st, n * T, 0.0f);
        vt_dense(s, st, T, n, T, d, K + j0 * ldk, ldk, 1, qt, T);
        vt_raise(m, corr, st, n, T);
        for (t = 0; t < T; t++) l[t] = l[t] * corr[t];
        for (c = 0; c < d; c++)
            for (t = 0; t < T; t++) ot[c * T + t] = ot[c * T + t] * corr[t];
        for (j = 0; j < n; j++)
            for (t = 0; t < T; t++) {
                const float p = vt_expf(st[j * T + t] - m[t]);
                st[j * T + t] = p;
                l[t] += p;
            }
        vt_dense(s, ot, T, d, T, n, V + j0 * ldv, 1, ldv, st, T);
    }
}

/* The first pass of the gradient: m, l as above and delta = sum of e^(s - m) * dp, where dp = V g and gt (d, T) is the
 * gradient of o. Start from -infinity, 0, 0; at the end l := 1 / l, delta := delta * l. st, pt: VT_KEYS * T floats. */
VT_OUTLINE void vt_attend_measure(const vt_step *s, const float *K, ptrdiff_t ldk, const float *V, ptrdiff_t ldv,
                                  int32_t nk, const float *qt, const float *gt, int32_t T, int32_t d, float *m,
                                  float *l, float *delta, float *st, float *pt) {
    int32_t j0, n, j, t;
    float corr[16];
    for (j0 = 0; j0 < nk; j0 += n) {
        n = nk - j0 > VT_KEYS ? VT_KEYS : nk - j0;
        vt_fill(st, n * T, 0.0f);
        vt_fill(pt, n * T, 0.0f);
        vt_dense(s, st, T, n, T, d, K + j0 * ldk, ldk, 1, qt, T);
        vt_dense(s, pt, T, n, T, d, V + j0 * ldv, ldv, 1, gt, T);
        vt_raise(m, corr, st, n, T);
        for (t = 0; t < T; t++) {
            l[t] = l[t] * corr[t];
            delta[t] = delta[t] * corr[t];
        }
        for (j = 0; j < n; j++)
            for (t = 0; t < T; t++) {
                const float p = vt_expf(st[j * T + t] - m[t]);
                l[t] += p;
                delta[t] = VT_FMA(p, pt[j * T + t], delta[t]);
            }
    }
}

VT_INLINE void vt_attend_measured(float *l, float *delta, int32_t n) {
    int32_t t;
    for (t = 0; t < n; t++) {
        l[t] = 1.0f / l[t];
        delta[t] = delta[t] * l[t];
    }
}

/* The queries of one panel in the second pass: panels and the same as rows. */
typedef struct {
    const float *qt, *gt;        /* (d, T) */
    const float *q, *g;          /* (T, d; ld ldq, ldg) */
    ptrdiff_t ldq, ldg;
    const float *m, *l, *delta;  /* (T,) from the first pass; l is 1 / sum */
    float *dq;                   /* (T, d; ld lddq) += ds K, for the scaled query */
    ptrdiff_t lddq;
    float *o;                    /* (T, d; ld ldo) += p V, or NULL */
    ptrdiff_t ldo;
} vt_queries;

/* The second pass: dK += ds^T q, dV += p^T g, dq += ds K [, o += p V], where p = e^(s - m) * l, ds = p (dp - delta). */
VT_OUTLINE void vt_attend_backward(const vt_step *s, const float *K, ptrdiff_t ldk, const float *V, ptrdiff_t ldv,
                                   int32_t nk, const vt_queries *u, int32_t T, int32_t d, float *dK, ptrdiff_t lddk,
                                   float *dV, ptrdiff_t lddv, float *st, float *pt) {
    int32_t j0, n, j, t;
    for (j0 = 0; j0 < nk; j0 += n) {
        n = nk - j0 > VT_KEYS ? VT_KEYS : nk - j0;
        vt_fill(st, n * T, 0.0f);
        vt_fill(pt, n * T, 0.0f);
        vt_dense(s, st, T, n, T, d, K + j0 * ldk, ldk, 1, u->qt, T);
        vt_dense(s, pt, T, n, T, d, V + j0 * ldv, ldv, 1, u->gt, T);
        for (j = 0; j < n; j++)
            for (t = 0; t < T; t++) {
                const float p = vt_expf(st[j * T + t] - u->m[t]) * u->l[t];
                st[j * T + t] = p;
                pt[j * T + t] = p * (pt[j * T + t] - u->delta[t]);
            }
        vt_dense(s, dV + j0 * lddv, lddv, n, d, T, st, T, 1, u->g, u->ldg);
        vt_dense(s, dK + j0 * lddk, lddk, n, d, T, pt, T, 1, u->q, u->ldq);
        vt_dense(s, u->dq, u->lddq, T, d, n, pt, 1, T, K + j0 * ldk, ldk);
        if (u->o) vt_dense(s, u->o, u->ldo, T, d, n, st, 1, T, V + j0 * ldv, ldv);
    }
}
#endif
