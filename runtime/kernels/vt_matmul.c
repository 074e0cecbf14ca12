#include "vt_matmul.h"
#include "vt_panel.h"

/* y (m, n; ld) [+]= b (m, k; strides brs, bcs) x (k, n; ld ldx). */
static void vt_product_rows(const vt_step *s, float *y, ptrdiff_t ld, int32_t add, int32_t m, int32_t n, int32_t k,
                            const float *b, ptrdiff_t brs, ptrdiff_t bcs, const float *x, ptrdiff_t ldx) {
    int32_t i;
    for (i = 0; !add && i < m; i++) vt_fill(y + i * ld, n, 0.0f);
    vt_dense(s, y, ld, m, n, k, b, brs, bcs, x, ldx);
}

/* y = a b. */
void vt_matmul(const vt_matmul_args *a, const vt_step *s) {
    vt_product_rows(s, a->y.at, a->y.row, a->y.add, a->n, a->o, a->k, a->a.at, a->a.row, a->a.col, a->b.at, a->b.row);
}

/* y = a^T b. */
void vt_matmul_tn(const vt_matmul_tn_args *a, const vt_step *s) {
    vt_product_rows(s, a->y.at, a->y.row, a->y.add, a->n, a->o, a->k, a->a.at, a->a.col, a->a.row, a->b.at, a->b.row);
}

/* y = a b^T, as y^T = b a^T on panels. */
void vt_matmul_nt(const vt_matmul_nt_args *a, const vt_step *s) {
    vt_product_rows(s, a->y.at, a->y.col, a->y.add, a->o, a->n, a->k, a->b.at, a->b.row, a->b.col, a->a.at, a->a.col);
}
