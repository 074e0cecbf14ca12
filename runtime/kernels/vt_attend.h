/* Softmax attention of one head for a few queries, VT_KEYS keys at a time; never an N x N map.
 *
 * The softmax is made online, from running maxima and sums of exponentials: Milakov and Gimelshein, "Online normalizer
 * calculation for softmax", 2018; Rabe and Staats, "Self-attention does not need O(n^2) memory", 2021; Dao et al.,
 * "FlashAttention", 2022.
 *
 * Keys (nk, d) and values (nk, e) are rows with leading dimensions ldk, ldv. qt (d, T) is the panel of queries, already
 * times the scale. m, l hold each query's running maximum and sum of exponentials. T is at most VT_QUERIES. */
#ifndef VT_ATTEND_H
#define VT_ATTEND_H
#include "vt_panel.h"

enum { VT_KEYS = 16, VT_QUERIES = 16 };

VT_INLINE float vt_minus_infinity(void) { return vt_from_bits(0xff800000u); }

/* o (T, e; ld ldo), m, l take in nk more keys (start from 0, -infinity, 0); at the end o is to be divided by l.
 * st: VT_KEYS * T floats. */
void vt_attend(const vt_step *s, const float *K, ptrdiff_t ldk, const float *V, ptrdiff_t ldv, int32_t nk,
               const float *qt, int32_t T, int32_t d, int32_t e, float *m, float *l, float *o, ptrdiff_t ldo, float *st);

/* The first pass of the gradient: m, l as above and delta = sum of e^(s - m) * dp, where dp = V g and gt (e, T; ld ldg)
 * is the gradient of o. Start from -infinity, 0, 0; at the end l := 1 / l, delta := delta * l. st, pt: VT_KEYS * T
 * floats. */
void vt_attend_measure(const vt_step *s, const float *K, ptrdiff_t ldk, const float *V, ptrdiff_t ldv,
                       int32_t nk, const float *qt, const float *gt, ptrdiff_t ldg, int32_t T, int32_t d, int32_t e,
                       float *m, float *l, float *delta, float *st, float *pt);

VT_INLINE void vt_attend_measured(float *l, float *delta, int32_t n) {
    int32_t t;
    for (t = 0; t < n; t++) {
        l[t] = 1.0f / l[t];
        delta[t] = delta[t] * l[t];
    }
}

/* The queries of one panel in the second pass: panels and the same as rows. g, gt may be NULL where only o is made. */
typedef struct {
    const float *qt, *gt;        /* (d, T), (e, T) */
    const float *q, *g;          /* (T, d; ld ldq), (T, e; ld ldg) */
    ptrdiff_t ldq, ldg;
    const float *m, *l, *delta;  /* (T,) from the first pass; l is 1 / sum */
    float *dq;                   /* (T, d; ld lddq) += scale ds K, or NULL */
    ptrdiff_t lddq;
    float scale;                 /* 1: dq is the gradient of the scaled query */
    float *o;                    /* (T, e; ld ldo) += p V, or NULL */
    ptrdiff_t ldo;
} vt_queries;

/* The second pass: [dK += ds^T q,] [dV += p^T g,] [dq += scale ds K,] [o += p V], where p = e^(s - m) * l and
 * ds = p (dp - delta). Of dK, dV, dq and o each may be NULL. */
void vt_attend_backward(const vt_step *s, const float *K, ptrdiff_t ldk, const float *V, ptrdiff_t ldv,
                        int32_t nk, const vt_queries *u, int32_t T, int32_t d, int32_t e, float *dK, ptrdiff_t lddk,
                        float *dV, ptrdiff_t lddv, float *st, float *pt);
#endif
