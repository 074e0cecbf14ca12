#include "vt_rows.h"

/* y = x[row]. No scratch. */
void vt_take_row(const vt_take_row_args *a, const vt_step *s) {
    const float *x = a->x + (ptrdiff_t)a->row * a->d;
    int32_t c;
    (void)s;
    for (c = 0; c < a->d; c++) a->y[c] = x[c];
}

/* d_x = 0 but for d_x[row] = dy. No scratch. */
void vt_take_row_grad(const vt_take_row_grad_args *a, const vt_step *s) {
    int32_t i, c;
    (void)s;
    for (i = 0; i < a->n; i++)
        for (c = 0; c < a->d; c++) a->d_x[(ptrdiff_t)i * a->d + c] = i == a->row ? a->dy[c] : 0.0f;
}

/* y = mean of rows start.. of x. No scratch. */
void vt_mean_rows(const vt_mean_rows_args *a, const vt_step *s) {
    const float share = 1.0f / (float)(a->tokens - a->start);
    int32_t i, c;
    (void)s;
    for (c = 0; c < a->d; c++) a->y[c] = 0.0f;
    for (i = a->start; i < a->tokens; i++)
        for (c = 0; c < a->d; c++) a->y[c] += a->x[(ptrdiff_t)i * a->d + c];
    for (c = 0; c < a->d; c++) a->y[c] = a->y[c] * share;
}

/* d_x = dy / (n - start) in rows start.., 0 above. No scratch. */
void vt_mean_rows_grad(const vt_mean_rows_grad_args *a, const vt_step *s) {
    const float share = 1.0f / (float)(a->n - a->start);
    int32_t i, c;
    (void)s;
    for (i = 0; i < a->n; i++)
        for (c = 0; c < a->d; c++) a->d_x[(ptrdiff_t)i * a->d + c] = i >= a->start ? a->dy[c] * share : 0.0f;
}

/* y[n][j] = x[n][index[j]]. No scratch. */
void vt_take_cols(const vt_take_cols_args *a, const vt_step *s) {
    int32_t i, j;
    (void)s;
    for (i = 0; i < a->n; i++)
        for (j = 0; j < a->k; j++) a->y[(ptrdiff_t)i * a->k + j] = a->x[(ptrdiff_t)i * a->d + a->index[j]];
}
