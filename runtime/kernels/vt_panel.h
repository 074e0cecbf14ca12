/* Matrix products of the kernels, over token panels and token rows.
 *
 * A token panel of width T holds T tokens feature by feature: panel[c * T + t]. Rows are the plain (token, feature)
 * layout. A linear layer runs forward on panels (vectors across tokens) and backward on rows (vectors across the
 * features of a weight row), so that the weights are always read along their rows.
 *
 * Every sum has one chain in a fixed order: it starts from the value already in y and takes the terms of the frozen
 * part in ascending packed order, then those of the trained part. Tile sizes never change it. */
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

/* y[r][l] += sum over k of b[r * brs + bk * bcs] * x[xk * ldx + l], where bk = bi ? bi[k] - bo : k, xk likewise. */
typedef struct {
    const float *b;
    ptrdiff_t brs, bcs;
    const float *x;
    ptrdiff_t ldx;
    const uint16_t *bi, *xi;
    ptrdiff_t bo, xo;
    int32_t k;
} vt_product;

VT_INLINE void vt_tile(float *const *y, const vt_product *p, const float *b, const float *x, const int R, const int L) {
    float acc[8][16] = {{0.0f}};    /* R x L are used */
    const ptrdiff_t brs = p->brs, bcs = p->bcs, ldx = p->ldx, bo = p->bo, xo = p->xo;
    const uint16_t *bi = p->bi, *xi = p->xi;
    const int32_t n = p->k;
    int r, l;
    int32_t k;
    for (r = 0; r < R; r++)
        for (l = 0; l < L; l++) acc[r][l] = y[r][l];
    for (k = 0; k < n; k++) {
        const float *xk = x + (xi ? (ptrdiff_t)xi[k] - xo : k) * ldx;
        const float *bk = b + (bi ? (ptrdiff_t)bi[k] - bo : k) * bcs;
        for (r = 0; r < R; r++) {
            const float w = bk[r * brs];
            for (l = 0; l < L; l++) acc[r][l] = VT_FMA(w, xk[l], acc[r][l]);
        }
    }
    for (r = 0; r < R; r++)
        for (l = 0; l < L; l++) y[r][l] = acc[r][l];
}

#define VT_TILE_CASE(R, L) \
    case (R) * 32 + (L): vt_tile(y, p, b, x, (R), (L)); break
VT_OUTLINE void vt_tiles(float *const *y, const vt_product *p, const float *b, const float *x, int32_t rows,
                         int32_t lanes) {
    switch (rows * 32 + lanes) {
#if VT_LANES >= 16
    VT_TILE_CASE(8, 16);
    VT_TILE_CASE(4, 16);
    VT_TILE_CASE(1, 16);
#endif
#if VT_LANES >= 8
    VT_TILE_CASE(4, 8);
    VT_TILE_CASE(1, 8);
#endif
    VT_TILE_CASE(4, 4);
    VT_TILE_CASE(1, 4);
    VT_TILE_CASE(4, 2);
    VT_TILE_CASE(1, 2);
    VT_TILE_CASE(4, 1);
    VT_TILE_CASE(1, 1);
    default: break;
    }
}

/* The widest power of two that is at most `limit` (itself a power of two) and at most `left`. */
VT_INLINE int32_t vt_width(int32_t left, int32_t limit) {
    int32_t w = limit;
    while (w > left) w >>= 1;
    return w;
}

/* The product over m rows and n lanes. Row r of y is y + (yi ? yi[r] - yo : r) * ldy; its lane l is at l, or, when
 * li is not NULL, at li[l] - lo. */
VT_OUTLINE void vt_multiply(float *y, ptrdiff_t ldy, const uint16_t *yi, int32_t yo, const uint16_t *li, int32_t lo,
                            int32_t m, int32_t n, const vt_product *p) {
    int32_t l0, r0, lanes, rows, r, l;
    float tile[8][16];
    float *at[8];
    for (l0 = 0; l0 < n; l0 += lanes) {
        lanes = vt_width(n - l0, VT_LANES);
        for (r0 = 0; r0 < m; r0 += rows) {
            rows = m - r0 >= 8 && lanes == 16 ? 8 : m - r0 >= 4 ? 4 : 1;
            for (r = 0; r < rows; r++) {
                float *row = y + (yi ? (ptrdiff_t)yi[r0 + r] - yo : r0 + r) * ldy;
                at[r] = li ? tile[r] : row + l0;
                if (li)
                    for (l = 0; l < lanes; l++) tile[r][l] = row[li[l0 + l] - lo];
            }
            vt_tiles(at, p, p->b + r0 * p->brs, p->x + l0, rows, lanes);
            if (li)
                for (r = 0; r < rows; r++) {
                    float *row = y + (yi ? (ptrdiff_t)yi[r0 + r] - yo : r0 + r) * ldy;
                    for (l = 0; l < lanes; l++) row[li[l0 + l] - lo] = tile[r][l];
                }
        }
    }
}

/* y (m, n; ld ldy) += b (m, k; strides brs, bcs) x (k, n; ld ldx). Plain dense product. */
VT_INLINE void vt_dense(const vt_step *s, float *y, ptrdiff_t ldy, int32_t m, int32_t n, int32_t k, const float *b,
                        ptrdiff_t brs, ptrdiff_t bcs, const float *x, ptrdiff_t ldx) {
    const vt_product p = {b, brs, bcs, x, ldx, NULL, NULL, 0, 0, k};
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
VT_OUTLINE void vt_forward(const vt_step *s, float *y, int32_t T, const vt_matrix *m, int32_t o0, int32_t o1,
                           int32_t c0, int32_t c1, const float *x) {
    int32_t i;
    for (i = 0; i < 2; i++) {
        const vt_part *w = i ? &m->trained : &m->frozen;
        if (w->n_rows > 0) {
            const int32_t r0 = vt_lower(w->rows, w->n_rows, o0), r1 = vt_lower(w->rows, w->n_rows, o1);
            const int32_t k0 = vt_lower(w->cols, w->n_cols, c0), k1 = vt_lower(w->cols, w->n_cols, c1);
            const vt_product p = {w->w + (ptrdiff_t)r0 * w->n_cols + k0, w->n_cols, 1, x, T, NULL,
                                  w->cols ? w->cols + k0 : NULL, 0, c0, k1 - k0};
            VT_COUNT(s, (uint64_t)(r1 - r0) * (uint64_t)(k1 - k0) * (uint64_t)T);
            vt_multiply(y, T, w->rows ? w->rows + r0 : NULL, o0, NULL, 0, r1 - r0, T, &p);
        }
    }
}

/* Rows: y[t * ldy + c - c0] += sum over o in o0..o1 of g[t * grs + (o - o0) * gcs] * m[o][c], for c in c0..c1 and
 * tokens t in 0..n. */
VT_OUTLINE void vt_backward(const vt_step *s, float *y, ptrdiff_t ldy, int32_t n, const vt_matrix *m, int32_t o0,
                            int32_t o1, int32_t c0, int32_t c1, const float *g, ptrdiff_t grs, ptrdiff_t gcs) {
    int32_t i;
    for (i = 0; i < 2; i++) {
        const vt_part *w = i ? &m->trained : &m->frozen;
        if (w->n_rows > 0) {
            const int32_t r0 = vt_lower(w->rows, w->n_rows, o0), r1 = vt_lower(w->rows, w->n_rows, o1);
            const int32_t k0 = vt_lower(w->cols, w->n_cols, c0), k1 = vt_lower(w->cols, w->n_cols, c1);
            const vt_product p = {g, grs, gcs, w->w + (ptrdiff_t)r0 * w->n_cols + k0, w->n_cols,
                                  w->rows ? w->rows + r0 : NULL, NULL, o0, 0, r1 - r0};
            VT_COUNT(s, (uint64_t)(r1 - r0) * (uint64_t)(k1 - k0) * (uint64_t)n);
            vt_multiply(y, ldy, NULL, 0, w->cols ? w->cols + k0 : NULL, c0, n, k1 - k0, &p);
        }
    }
}

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
