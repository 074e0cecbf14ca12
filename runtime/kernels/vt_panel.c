/* Tiles and the products made of them. One tile stays in registers over the whole sum. */
#include "vt_panel.h"

/* How a tile finds its terms. */
enum {
    VT_ALONG,                /* bcs is 1: a row's terms are neighbours */
    VT_ALONG_X,              /* the same, rows of x by the list xi */
    VT_ALONG_B,              /* the same, terms of b by the list bi */
    VT_ACROSS,               /* row r of b is b[0] + r */
    VT_ANY                   /* any strides and lists */
};

/* One tile; R, L, mode and gather are constants. */
VT_INLINE void vt_tile_of(float *const *y, const float *const *b, const float *x, const uint16_t *xl,
                          const vt_product *p, int start, const int R, const int L, const int mode, const int gather) {
    const ptrdiff_t bcs = mode == VT_ANY || mode == VT_ACROSS ? p->bcs : 1, ldx = p->ldx, bo = p->bo, xo = p->xo;
    const uint16_t *bi = mode == VT_ANY || mode == VT_ALONG_B ? p->bi : NULL;
    const uint16_t *xi = mode == VT_ANY || mode == VT_ALONG_X ? p->xi : NULL;
    const int32_t n = p->k;
    float acc[VT_SUMS], v[VT_WIDE];          /* R x L and L are used */
    const float *row[VT_TALL];
    float *out[VT_TALL];
    ptrdiff_t at[VT_WIDE];
    int32_t k;
    int r, l;
    VT_UNROLL
    for (r = 0; r < R; r++) {
        row[r] = mode == VT_ACROSS ? b[0] + r : b[r];
        out[r] = y[r];
    }
    VT_UNROLL
    for (l = 0; l < L; l++) at[l] = gather ? xl[l] - xo : l;
    VT_UNROLL
    for (l = 0; l < R * L; l++) acc[l] = 0.0f;
    if (start == VT_CHAIN) {
        VT_UNROLL
        for (r = 0; r < R; r++) {
            VT_UNROLL
            for (l = 0; l < L; l++) acc[r * L + l] = out[r][l];
        }
    }
    for (k = 0; k < n; k++) {
        const ptrdiff_t i = (bi ? bi[k] - bo : k) * bcs;
        const float *xk = x + (xi ? xi[k] - xo : k) * ldx;
        VT_UNROLL
        for (l = 0; l < L; l++) v[l] = xk[at[l]];
        VT_UNROLL
        for (r = 0; r < R; r++) {
            const float w = row[r][i];
            VT_UNROLL
            for (l = 0; l < L; l++) acc[r * L + l] = VT_FMA(w, v[l], acc[r * L + l]);
        }
    }
    if (start == VT_ADD) {
        float old[VT_SUMS];
        VT_UNROLL
        for (r = 0; r < R; r++) {
            VT_UNROLL
            for (l = 0; l < L; l++) old[r * L + l] = out[r][l];
        }
        VT_UNROLL
        for (l = 0; l < R * L; l++) acc[l] = old[l] + acc[l];
    } else if (start == VT_SET) {
        VT_UNROLL
        for (l = 0; l < R * L; l++) acc[l] = 0.0f + acc[l];      /* -0 becomes 0 */
    }
    VT_UNROLL
    for (r = 0; r < R; r++) {
        VT_UNROLL
        for (l = 0; l < L; l++) out[r][l] = acc[r * L + l];
    }
}

/* The shapes of tiles, VT_SHAPE(rows, lanes): what vt_tile_rows and vt_tile_lanes choose from. */
#if VT_LANES == 16
#define VT_SHAPES \
    VT_SHAPE(8, 16) VT_SHAPE(8, 8) VT_SHAPE(8, 4) VT_SHAPE(8, 2) VT_SHAPE(8, 1) VT_SHAPE(4, 16) VT_SHAPE(4, 8) \
    VT_SHAPE(4, 4) VT_SHAPE(4, 2) VT_SHAPE(4, 1) VT_SHAPE(1, 16) VT_SHAPE(1, 8) VT_SHAPE(1, 4) VT_SHAPE(1, 2) \
    VT_SHAPE(1, 1)
#define VT_SHAPES_ALONG VT_SHAPE(4, 32) VT_SHAPE(1, 64)
#elif VT_LANES == 8
#define VT_SHAPES \
    VT_SHAPE(4, 8) VT_SHAPE(4, 4) VT_SHAPE(4, 2) VT_SHAPE(4, 1) VT_SHAPE(1, 8) VT_SHAPE(1, 4) VT_SHAPE(1, 2) \
    VT_SHAPE(1, 1)
#define VT_SHAPES_ALONG VT_SHAPE(8, 4) VT_SHAPE(8, 2) VT_SHAPE(8, 1) VT_SHAPE(1, 32)
#else
#define VT_SHAPES \
    VT_SHAPE(4, 4) VT_SHAPE(4, 2) VT_SHAPE(4, 1) VT_SHAPE(1, 4) VT_SHAPE(1, 2) VT_SHAPE(1, 1)
#define VT_SHAPES_ALONG VT_SHAPE(8, 2) VT_SHAPE(8, 1) VT_SHAPE(1, 16)
#endif

#define VT_SHAPE(R, L) \
    case (R) * 128 + (L): vt_tile_of(y, b, x, NULL, p, start, (R), (L), VT_ALONG, 0); break;
static void vt_tile_along(float *const *y, const float *const *b, const float *x, const vt_product *p, int32_t rows,
                          int32_t lanes, int start) {
    switch (rows * 128 + lanes) {
    VT_SHAPES
    VT_SHAPES_ALONG
    default: break;
    }
}
#undef VT_SHAPE

#define VT_SHAPE(R, L) \
    case (R) * 128 + (L): vt_tile_of(y, b, x, NULL, p, start, (R), (L), VT_ANY, 0); break;
static void vt_tile_any(float *const *y, const float *const *b, const float *x, const vt_product *p, int32_t rows,
                        int32_t lanes, int start) {
    switch (rows * 128 + lanes) {
    VT_SHAPES
    default: break;
    }
}
#undef VT_SHAPE

static void vt_tile_gather(float *const *y, const float *const *b, const float *x, const uint16_t *xl,
                           const vt_product *p, int32_t rows, int32_t lanes, int start) {
    if (rows == VT_ROWS && lanes == VT_LANES) vt_tile_of(y, b, x, xl, p, start, VT_ROWS, VT_LANES, VT_ANY, 1);
    else if (rows == VT_ROWS) vt_tile_of(y, b, x, xl, p, start, VT_ROWS, 1, VT_ANY, 1);
    else if (lanes == VT_LANES) vt_tile_of(y, b, x, xl, p, start, 1, VT_LANES, VT_ANY, 1);
    else vt_tile_of(y, b, x, xl, p, start, 1, 1, VT_ANY, 1);
}

void vt_tile(float *const *y, const float *const *b, const float *x, const uint16_t *xl, const vt_product *p,
             int32_t rows, int32_t lanes, int start) {
    const int usual = rows == VT_ROWS && lanes == VT_LANES;
    if (xl) vt_tile_gather(y, b, x, xl, p, rows, lanes, start);
    else if (vt_along(p)) vt_tile_along(y, b, x, p, rows, lanes, start);
    else if (usual && p->xi && !p->bi && p->bcs == 1)
        vt_tile_of(y, b, x, NULL, p, start, VT_ROWS, VT_LANES, VT_ALONG_X, 0);
    else if (usual && p->bi && !p->xi && p->bcs == 1)
        vt_tile_of(y, b, x, NULL, p, start, VT_ROWS, VT_LANES, VT_ALONG_B, 0);
    else if (usual && !p->xi && !p->bi && b[VT_ROWS - 1] == b[0] + (VT_ROWS - 1))
        vt_tile_of(y, b, x, NULL, p, start, VT_ROWS, VT_LANES, VT_ACROSS, 0);
    else vt_tile_any(y, b, x, p, rows, lanes, start);
}

/* Where a product's results stand. */
typedef struct {
    float *y;
    ptrdiff_t ldy;
    const uint16_t *yi, *li;
    int32_t yo, lo;
} vt_result;

static void vt_at(const vt_result *o, int32_t r0, int32_t rows, int32_t l0, int32_t lanes, const vt_product *p) {
    float tile[VT_SUMS];
    float *at[VT_TALL], *row[VT_TALL];
    const float *b[VT_TALL];
    int32_t r, l;
    for (r = 0; r < VT_TALL; r++) {          /* all, or gcc warns */
        at[r] = tile;
        b[r] = p->b;
    }
    for (r = 0; r < rows; r++) {
        row[r] = o->y + (o->yi ? (ptrdiff_t)o->yi[r0 + r] - o->yo : r0 + r) * o->ldy;
        b[r] += (r0 + r) * p->brs;
        at[r] = o->li ? tile + r * lanes : row[r] + l0;
        for (l = 0; o->li && l < lanes; l++) at[r][l] = row[r][o->li[l0 + l] - o->lo];
    }
    vt_tile(at, b, p->x + l0, NULL, p, rows, lanes, p->fresh ? VT_ADD : VT_CHAIN);
    for (r = 0; o->li && r < rows; r++)
        for (l = 0; l < lanes; l++) row[r][o->li[l0 + l] - o->lo] = at[r][l];
}

/* The next terms of p that are added up before they go to y, from k0 on: all, or a block of them. */
static vt_product vt_terms(const vt_product *p, int32_t k0) {
    vt_product q = *p;
    q.k = p->fresh && p->k - k0 > VT_BLOCK ? VT_BLOCK : p->k - k0;
    if (p->bi) q.bi = p->bi + k0;
    else q.b = p->b + k0 * p->bcs;
    if (p->xi) q.xi = p->xi + k0;
    else q.x = p->x + k0 * p->ldx;
    return q;
}

/* Lanes that are no power of two, at the end of rows of x: in a tile that has more. All terms but the last read on into
 * the next row of x, and what is made of that is dropped. */
static void vt_at_wide(const vt_result *o, int32_t r0, int32_t rows, int32_t l0, int32_t lanes, int32_t wide,
                       const vt_product *p) {
    const ptrdiff_t end = p->k - 1;
    const ptrdiff_t bk = (p->bi ? p->bi[end] - p->bo : end) * p->bcs, xk = (p->xi ? p->xi[end] - p->xo : end) * p->ldx;
    vt_product q = *p;
    float tile[VT_SUMS];
    float *at[VT_TALL];
    const float *b[VT_TALL];
    int32_t r, l;
    q.k = (int32_t)end;
    for (r = 0; r < VT_TALL; r++) {
        at[r] = tile + (r < rows ? r : 0) * wide;
        b[r] = p->b + (r < rows ? r0 + r : r0) * p->brs;
    }
    for (r = 0; r < rows; r++) {
        const float *y = o->y + (o->yi ? (ptrdiff_t)o->yi[r0 + r] - o->yo : r0 + r) * o->ldy + l0;
        for (l = 0; l < wide; l++) at[r][l] = p->fresh || l >= lanes ? 0.0f : y[l];
    }
    vt_tile(at, b, p->x + l0, NULL, &q, rows, wide, VT_CHAIN);
    for (r = 0; r < rows; r++) {
        float *y = o->y + (o->yi ? (ptrdiff_t)o->yi[r0 + r] - o->yo : r0 + r) * o->ldy + l0;
        for (l = 0; l < lanes; l++) {
            const float sum = VT_FMA(b[r][bk], p->x[xk + l0 + l], at[r][l]);
            y[l] = p->fresh ? y[l] + sum : sum;
        }
    }
}

/* How wide a tile takes all of the lanes left, fewer than VT_LANES and no power of two; else 0. A Cortex-M has no use
 * for lanes that it drops. */
VT_INLINE int32_t vt_spare(const vt_result *o, int32_t left) {
    int32_t wide = VT_LANES;
    if (VT_LANES == 4 || o->li || left > VT_LANES || (left & (left - 1)) == 0) return 0;
    while (wide >= 2 * left) wide >>= 1;
    return wide;
}

/* Few lanes, as panels have: the rows of b, which are weights, are read once, VT_TALL at a time. */
static void vt_few_lanes(const vt_result *o, int32_t m, int32_t n, const vt_product *p) {
    int32_t m0, m1, k0, l0, r0, lanes, rows, wide;
    vt_product q;
    for (m0 = 0; m0 < m; m0 = m1) {
        m1 = m - m0 > VT_TALL ? m0 + VT_TALL : m;
        if (VT_LANES > 4 && p->bcs == 1 && p->brs != p->k)       /* a window of columns: no core foresees its next row */
            for (r0 = m1; r0 < m && r0 < m1 + VT_TALL; r0++)
                for (k0 = 0; k0 < p->k && k0 < VT_BLOCK; k0 += 16) VT_PREFETCH(p->b + r0 * p->brs + k0);
        for (k0 = 0; k0 < p->k; k0 += q.k) {
            q = vt_terms(p, k0);
            for (l0 = 0; l0 < n; l0 += lanes) {
                wide = vt_spare(o, n - l0);
                lanes = wide ? n - l0 : vt_tile_lanes(&q, n - l0, VT_ROWS, NULL);
                for (r0 = m0; r0 < m1; r0 += rows) {
                    rows = vt_tile_rows(&q, m1 - r0, wide ? wide : lanes, NULL);
                    if (wide) vt_at_wide(o, r0, rows, l0, lanes, wide, &q);
                    else vt_at(o, r0, rows, l0, lanes, &q);
                }
            }
        }
    }
}

/* Many lanes: a strip of a block of x serves all rows of b while it is near; the rows left over take wider tiles. */
static void vt_many_lanes(const vt_result *o, int32_t m, int32_t n, const vt_product *p) {
    const int32_t whole = m - m % VT_ROWS;
    int32_t k0, n0, n1, l0, r0, lanes, rows;
    vt_product q;
    for (k0 = 0; k0 < p->k; k0 += q.k) {
        q = vt_terms(p, k0);
        for (n0 = 0; n0 < n; n0 = n1) {
            n1 = n - n0 > VT_WIDE ? n0 + VT_WIDE : n;
            for (l0 = n0; l0 < n1 && whole > 0; l0 += lanes) {
                lanes = vt_tile_lanes(&q, n1 - l0, VT_ROWS, NULL);
                for (r0 = 0; r0 < whole; r0 += VT_ROWS) vt_at(o, r0, VT_ROWS, l0, lanes, &q);
            }
            for (r0 = whole; r0 < m; r0 += rows) {
                rows = vt_tile_rows(&q, m - r0, VT_LANES, NULL);
                for (l0 = n0; l0 < n1; l0 += lanes) {
                    lanes = vt_tile_lanes(&q, n1 - l0, rows, NULL);
                    vt_at(o, r0, rows, l0, lanes, &q);
                }
            }
        }
    }
}

void vt_multiply(float *y, ptrdiff_t ldy, const uint16_t *yi, int32_t yo, const uint16_t *li, int32_t lo,
                 int32_t m, int32_t n, const vt_product *p) {
    const vt_result o = {y, ldy, yi, li, yo, lo};
    if (n <= 16) vt_few_lanes(&o, m, n, p);
    else vt_many_lanes(&o, m, n, p);
}

void vt_forward(const vt_step *s, float *y, int32_t T, const vt_matrix *m, int32_t o0, int32_t o1,
                int32_t c0, int32_t c1, const float *x) {
    int32_t i;
    for (i = 0; i < 2; i++) {
        const vt_part *w = i ? &m->trained : &m->frozen;
        if (w->n_rows > 0) {
            const int32_t r0 = vt_lower(w->rows, w->n_rows, o0), r1 = vt_lower(w->rows, w->n_rows, o1);
            const int32_t k0 = vt_lower(w->cols, w->n_cols, c0), k1 = vt_lower(w->cols, w->n_cols, c1);
            const vt_product p = {w->w + (ptrdiff_t)r0 * w->n_cols + k0, w->n_cols, 1, x, T, NULL,
                                  w->cols ? w->cols + k0 : NULL, 0, c0, k1 - k0, 1};
            VT_COUNT(s, (uint64_t)(r1 - r0) * (uint64_t)(k1 - k0) * (uint64_t)T);
            vt_multiply(y, T, w->rows ? w->rows + r0 : NULL, o0, NULL, 0, r1 - r0, T, &p);
        }
    }
}

void vt_backward(const vt_step *s, float *y, ptrdiff_t ldy, int32_t n, const vt_matrix *m, int32_t o0,
                 int32_t o1, int32_t c0, int32_t c1, const float *g, ptrdiff_t grs, ptrdiff_t gcs) {
    int32_t i;
    for (i = 0; i < 2; i++) {
        const vt_part *w = i ? &m->trained : &m->frozen;
        if (w->n_rows > 0) {
            const int32_t r0 = vt_lower(w->rows, w->n_rows, o0), r1 = vt_lower(w->rows, w->n_rows, o1);
            const int32_t k0 = vt_lower(w->cols, w->n_cols, c0), k1 = vt_lower(w->cols, w->n_cols, c1);
            const vt_product p = {g, grs, gcs, w->w + (ptrdiff_t)r0 * w->n_cols + k0, w->n_cols,
                                  w->rows ? w->rows + r0 : NULL, NULL, o0, 0, r1 - r0, 1};
            VT_COUNT(s, (uint64_t)(r1 - r0) * (uint64_t)(k1 - k0) * (uint64_t)n);
            vt_multiply(y, ldy, NULL, 0, w->cols ? w->cols + k0 : NULL, c0, n, k1 - k0, &p);
        }
    }
}

void vt_turn(float *y, ptrdiff_t ldy, const float *x, ptrdiff_t ldx, int32_t m, int32_t n) {
    int32_t r0, i0, r, i;
    for (r0 = 0; r0 < m; r0 += VT_LANES)
        for (i0 = 0; i0 < n; i0 += VT_LANES) {
            float *to = y + r0 * ldy + i0;
            const float *from = x + i0 * ldx + r0;
            const int32_t rows = m - r0 < VT_LANES ? m - r0 : VT_LANES, lanes = n - i0 < VT_LANES ? n - i0 : VT_LANES;
            if (rows == VT_LANES && lanes == VT_LANES) {
                for (r = 0; r < VT_LANES; r++)
                    for (i = 0; i < VT_LANES; i++) to[r * ldy + i] = from[i * ldx + r];
            } else if (lanes == VT_LANES) {
                for (r = 0; r < rows; r++)
                    for (i = 0; i < VT_LANES; i++) to[r * ldy + i] = from[i * ldx + r];
            } else {
                for (i = 0; i < lanes; i++)
                    for (r = 0; r < rows; r++) to[r * ldy + i] = from[i * ldx + r];
            }
        }
}
