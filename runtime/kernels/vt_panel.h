/* Matrix products of the kernels, over token panels and token rows.
 *
 * A token panel of width T holds T tokens feature by feature: panel[c * T + t]. Rows are the plain (token, feature)
 * layout. A linear layer runs forward on panels (vectors across tokens) and backward on rows (vectors across the
 * features of a weight row), so that the weights are always read along their rows.
 *
 * Every sum has a fixed order, that of the program: terms of the frozen part in ascending packed order, then those of
 * the trained part. The width of panels and tiles never changes it. */
#ifndef VT_PANEL_H
#define VT_PANEL_H
#include "vt_math.h"

/* Widest tile. Cores with 32 scalar float registers want 4 x 4; vector units want long rows. */
#ifndef VT_LANES
#if defined(__ARM_ARCH_PROFILE) && __ARM_ARCH_PROFILE == 'M'
#define VT_LANES 4
#else
#define VT_LANES 16
#endif
#endif
#define VT_ROWS (VT_LANES >= 16 ? 8 : 4)

enum { VT_BLOCK = 256 };         /* terms of a sum that are added up before they go to y */

/* y[r][l] += sum over k of b[r * brs + bk * bcs] * x[xk * ldx + l], where bk = bi ? bi[k] - bo : k, xk likewise.
 * fresh 1: blocks of VT_BLOCK terms start from 0 and are added to y, which loses fewer bits in long sums.
 * fresh 0: one chain that starts from y, so that it does not matter in how many calls the terms come. */
typedef struct {
    const float *b;
    ptrdiff_t brs, bcs;
    const float *x;
    ptrdiff_t ldx;
    const uint16_t *bi, *xi;
    ptrdiff_t bo, xo;
    int32_t k;
    int32_t fresh;
} vt_product;

/* One tile of `rows` (8, 4 or 1) by `lanes` (16, 8, 4, 2 or 1): row pointers y, b and x already at the tile. */
void vt_tiles(float *const *y, const vt_product *p, const float *b, const float *x, int32_t rows,
              int32_t lanes);

/* The widest power of two that is at most `limit` (itself a power of two) and at most `left`. */
VT_INLINE int32_t vt_width(int32_t left, int32_t limit) {
    int32_t w = limit;
    while (w > left) w >>= 1;
    return w;
}

/* The product over m rows and n lanes. Row r of y is y + (yi ? yi[r] - yo : r) * ldy; its lane l is at l, or, when
 * li is not NULL, at li[l] - lo. */
void vt_multiply(float *y, ptrdiff_t ldy, const uint16_t *yi, int32_t yo, const uint16_t *li, int32_t lo,
                 int32_t m, int32_t n, const vt_product *p);

/* y (m, n; ld ldy) += b (m, k; strides brs, bcs) x (k, n; ld ldx). Plain dense product. */
VT_INLINE void vt_dense(const vt_step *s, float *y, ptrdiff_t ldy, int32_t m, int32_t n, int32_t k, const float *b,
                        ptrdiff_t brs, ptrdiff_t bcs, const float *x, ptrdiff_t ldx) {
    const vt_product p = {b, brs, bcs, x, ldx, NULL, NULL, 0, 0, k, 0};
    VT_COUNT(s, (uint64_t)m * (uint64_t)n * (uint64_t)k);
    vt_multiply(y, ldy, NULL, 0, NULL, 0, m, n, &p);
}

/* First position in the ascending list (or in 0..n-1 when list is NULL) that is not below v. */
VT_INLINE int32_t vt_lower(const uint16_t *list, int32_t n, int32_t v) {
    int32_t a = 0, b = n;
    if (!list) return v < n ? v : n;
    while (a < b) {
        const int32_t mid = (a + b) >> 1;
        if (list[mid] < v) a = mid + 1; else b = mid;
    }
    return a;
}

/* Panels: y[(o - o0) * T + t] += sum over c in c0..c1 of m[o][c] * x[(c - c0) * T + t], for rows o in o0..o1. */
void vt_forward(const vt_step *s, float *y, int32_t T, const vt_matrix *m, int32_t o0, int32_t o1,
                int32_t c0, int32_t c1, const float *x);

/* Rows: y[t * ldy + c - c0] += sum over o in o0..o1 of g[t * grs + (o - o0) * gcs] * m[o][c], for c in c0..c1 and
 * tokens t in 0..n. */
void vt_backward(const vt_step *s, float *y, ptrdiff_t ldy, int32_t n, const vt_matrix *m, int32_t o0,
                 int32_t o1, int32_t c0, int32_t c1, const float *g, ptrdiff_t grs, ptrdiff_t gcs);

VT_INLINE void vt_fill(float *y, int32_t n, float v) {
    int32_t i;
    for (i = 0; i < n; i++) y[i] = v;
}

/* y[i * T + t] = bias[i], or 0 without a bias. */
VT_INLINE void vt_fill_panel(float *y, int32_t n, int32_t T, const float *bias) {
    int32_t i, t;
    for (i = 0; i < n; i++)
        for (t = 0; t < T; t++) y[i * T + t] = bias ? bias[i] : 0.0f;
}

/* rows[t * ld + i] = panel[i * T + t] and back. */
VT_INLINE void vt_panel_to_rows(float *rows, ptrdiff_t ld, const float *panel, int32_t T, int32_t n) {
    int32_t i, t;
    for (t = 0; t < T; t++)
        for (i = 0; i < n; i++) rows[t * ld + i] = panel[i * T + t];
}
VT_INLINE void vt_rows_to_panel(float *panel, int32_t T, const float *rows, ptrdiff_t ld, int32_t n) {
    int32_t i, t;
    for (i = 0; i < n; i++)
        for (t = 0; t < T; t++) panel[i * T + t] = rows[t * ld + i];
}
#endif
