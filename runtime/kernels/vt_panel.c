/* Tiles and the products made of them. One tile stays in registers over the whole sum. */
#include "vt_panel.h"

/* plain: neither bi nor xi is given. */
VT_INLINE void vt_tile(float *const *y, const vt_product *p, const float *b, const float *x, const int R, const int L,
                       const int plain) {
    float acc[VT_ROWS][VT_LANES] = {{0.0f}};    /* R x L are used */
    const ptrdiff_t brs = p->brs, bcs = p->bcs, ldx = p->ldx, bo = p->bo, xo = p->xo;
    const uint16_t *bi = p->bi, *xi = p->xi;
    const int32_t n = p->k;
    int r, l;
    int32_t k;
    for (r = 0; r < R; r++)
        for (l = 0; l < L; l++) acc[r][l] = y[r][l];
    for (k = 0; k < n; k++) {
        const float *xk = plain ? x : x + (xi ? (ptrdiff_t)xi[k] - xo : k) * ldx;
        const float *bk = plain ? b : b + (bi ? (ptrdiff_t)bi[k] - bo : k) * bcs;
        for (r = 0; r < R; r++) {
            const float w = bk[r * brs];
            for (l = 0; l < L; l++) acc[r][l] = VT_FMA(w, xk[l], acc[r][l]);
        }
        if (plain) {
            x += ldx;
            b += bcs;
        }
    }
    for (r = 0; r < R; r++)
        for (l = 0; l < L; l++) y[r][l] = acc[r][l];
}

#define VT_TILE_CASE(R, L) \
    case (R) * 32 + (L): vt_tile(y, p, b, x, (R), (L), 0); break
static void vt_chain(float *const *y, const vt_product *p, const float *b, const float *x, int32_t rows,
                     int32_t lanes) {
    if (!p->bi && !p->xi && rows == VT_ROWS && lanes == VT_LANES) {
        vt_tile(y, p, b, x, VT_ROWS, VT_LANES, 1);
        return;
    }
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

void vt_tiles(float *const *y, const vt_product *p, const float *b, const float *x, int32_t rows, int32_t lanes) {
    float tile[VT_ROWS][VT_LANES];
    float *at[VT_ROWS];
    vt_product q = *p;
    int32_t k0, r, l;
    if (!p->fresh) {
        vt_chain(y, p, b, x, rows, lanes);
        return;
    }
    for (r = 0; r < rows; r++) at[r] = tile[r];
    for (k0 = 0; k0 < p->k; k0 += q.k) {
        q.k = p->k - k0 > VT_BLOCK ? VT_BLOCK : p->k - k0;
        q.bi = p->bi ? p->bi + k0 : NULL;
        q.xi = p->xi ? p->xi + k0 : NULL;
        for (r = 0; r < rows; r++)
            for (l = 0; l < lanes; l++) tile[r][l] = 0.0f;
        vt_chain(at, &q, p->bi ? b : b + k0 * p->bcs, p->xi ? x : x + k0 * p->ldx, rows, lanes);
        for (r = 0; r < rows; r++)
            for (l = 0; l < lanes; l++) y[r][l] += tile[r][l];
    }
}

/* Where a product's results stand. */
typedef struct {
    float *y;
    ptrdiff_t ldy;
    const uint16_t *yi, *li;
    int32_t yo, lo;
} vt_result;

static void vt_at(const vt_result *o, int32_t r0, int32_t rows, int32_t l0, int32_t lanes, const vt_product *p) {
    float tile[VT_ROWS][VT_LANES];
    float *at[VT_ROWS], *row[VT_ROWS];
    int32_t r, l;
    for (r = 0; r < VT_ROWS; r++) at[r] = tile[r];      /* all, or gcc -O1 warns */
    for (r = 0; r < rows; r++) {
        row[r] = o->y + (o->yi ? (ptrdiff_t)o->yi[r0 + r] - o->yo : r0 + r) * o->ldy;
        if (!o->li) at[r] = row[r] + l0;
        else
            for (l = 0; l < lanes; l++) tile[r][l] = row[r][o->li[l0 + l] - o->lo];
    }
    vt_tiles(at, p, p->b + r0 * p->brs, p->x + l0, rows, lanes);
    if (o->li)
        for (r = 0; r < rows; r++)
            for (l = 0; l < lanes; l++) row[r][o->li[l0 + l] - o->lo] = tile[r][l];
}

void vt_multiply(float *y, ptrdiff_t ldy, const uint16_t *yi, int32_t yo, const uint16_t *li, int32_t lo,
                 int32_t m, int32_t n, const vt_product *p) {
    const vt_result o = {y, ldy, yi, li, yo, lo};
    int32_t l0, r0, lanes, rows;
    if (n <= 16)                             /* panels: the rows of b are weights, read them once */
        for (r0 = 0; r0 < m; r0 += rows) {
            rows = VT_ROWS == 8 && m - r0 >= 8 && n == 16 ? 8 : m - r0 >= 4 ? 4 : 1;
            for (l0 = 0; l0 < n; l0 += lanes) {
                lanes = vt_width(n - l0, VT_LANES);
                vt_at(&o, r0, rows, l0, lanes, p);
            }
        }
    else
        for (l0 = 0; l0 < n; l0 += lanes) {
            lanes = vt_width(n - l0, VT_LANES);
            for (r0 = 0; r0 < m; r0 += rows) {
                rows = VT_ROWS == 8 && m - r0 >= 8 && lanes == 16 ? 8 : m - r0 >= 4 ? 4 : 1;
                vt_at(&o, r0, rows, l0, lanes, p);
            }
        }
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
