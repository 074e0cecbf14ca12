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

/* What a tile does with y: adds its chain of terms, which starts from 0, to it; the same to a y that holds nothing yet
 * and counts as 0; or starts the chain from it. */
enum { VT_ADD, VT_SET, VT_CHAIN };

/* The widest power of two that is at most `limit` (itself a power of two) and at most `left`. */
VT_INLINE int32_t vt_width(int32_t left, int32_t limit) {
    int32_t w = limit;
    while (w > left) w >>= 1;
    return w;
}

/* Whether each row of b has its terms side by side: such products have tall and wide tiles too. */
VT_INLINE int vt_along(const vt_product *p) { return p->bcs == 1 && !p->bi && !p->xi; }

/* Rows of the next tile of so many lanes, and lanes of the next one of so many rows, of those left. xl: see vt_tile. */
VT_INLINE int32_t vt_tile_rows(const vt_product *p, int32_t left, int32_t lanes, const uint16_t *xl) {
    if (vt_along(p) && left >= VT_TALL && lanes * VT_TALL <= VT_SUMS) return VT_TALL;
    return left >= VT_ROWS ? VT_ROWS : left >= 4 && !xl ? 4 : 1;
}
VT_INLINE int32_t vt_tile_lanes(const vt_product *p, int32_t left, int32_t rows, const uint16_t *xl) {
    const int32_t wide = VT_SUMS / rows < VT_WIDE ? VT_SUMS / rows : VT_WIDE;
    if (xl) return left >= VT_LANES ? VT_LANES : 1;
    return vt_along(p) && left >= wide ? wide : vt_width(left, VT_LANES);
}

/* One tile of the product p, `rows` by `lanes` as the functions above choose, with all of its terms in one chain: y[r]
 * and b[r] point at row r's lanes and terms, x at the tile's first lane (p->b, p->brs, p->x and p->fresh are not read).
 * y may not overlap b or x. xl, when not NULL, says where lane l stands in a row of x: at xl[l] - p->xo; then bi and xi
 * are NULL. */
void vt_tile(float *const *y, const float *const *b, const float *x, const uint16_t *xl, const vt_product *p,
             int32_t rows, int32_t lanes, int start);

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

/* y (m, n; ld ldy) = the transpose of x (n, m; ld ldx): y[r * ldy + i] = x[i * ldx + r]. Apart. */
void vt_turn(float *y, ptrdiff_t ldy, const float *x, ptrdiff_t ldx, int32_t m, int32_t n);

/* rows[t * ld + i] = panel[i * T + t] and back. */
VT_INLINE void vt_panel_to_rows(float *rows, ptrdiff_t ld, const float *panel, int32_t T, int32_t n) {
    vt_turn(rows, ld, panel, T, T, n);
}
VT_INLINE void vt_rows_to_panel(float *panel, int32_t T, const float *rows, ptrdiff_t ld, int32_t n) {
    vt_turn(panel, T, rows, ld, n, T);
}
#endif
