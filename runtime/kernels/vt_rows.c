/* Rows and columns of a token matrix, picked or pooled. None needs scratch. */
#include "vt_rows.h"

#define AT(w, t, c) ((w).at + (ptrdiff_t)(t) * (w).row + (ptrdiff_t)(c) * (w).col)

/* y = x[row]. */
void vt_take_row(const vt_take_row_args *a, const vt_step *s) {
    int32_t c;
    (void)s;
    for (c = 0; c < a->c; c++) *AT(a->y, 0, c) = *AT(a->x, a->row, c);
}

/* d_x = 0 but for d_x[row] = dy; or d_x[row] += dy. */
void vt_take_row_grad(const vt_take_row_grad_args *a, const vt_step *s) {
    int32_t i, c;
    (void)s;
    if (a->d_x.add) {
        for (c = 0; c < a->c; c++) *AT(a->d_x, a->row, c) += *AT(a->dy, 0, c);
        return;
    }
    for (i = 0; i < a->n; i++)
        for (c = 0; c < a->c; c++) *AT(a->d_x, i, c) = i == a->row ? *AT(a->dy, 0, c) : 0.0f;
}

/* y = mean of rows start.. of x. */
void vt_mean_rows(const vt_mean_rows_args *a, const vt_step *s) {
    const float share = 1.0f / (float)(a->n - a->start);
    int32_t i, c;
    (void)s;
    for (c = 0; c < a->c; c++) *AT(a->y, 0, c) = 0.0f;
    for (i = a->start; i < a->n; i++)
        for (c = 0; c < a->c; c++) *AT(a->y, 0, c) += *AT(a->x, i, c);
    for (c = 0; c < a->c; c++) *AT(a->y, 0, c) *= share;
}

/* d_x = dy / (n - start) in rows start.., 0 above. */
void vt_mean_rows_grad(const vt_mean_rows_grad_args *a, const vt_step *s) {
    const float share = 1.0f / (float)(a->n - a->start);
    int32_t i, c;
    (void)s;
    for (i = 0; i < a->n; i++)
        for (c = 0; c < a->c; c++) *AT(a->d_x, i, c) = i >= a->start ? *AT(a->dy, 0, c) * share : 0.0f;
}

/* y[t][j] = x[t][index[j]]. */
void vt_take_cols(const vt_take_cols_args *a, const vt_step *s) {
    int32_t i, j;
    (void)s;
    for (i = 0; i < a->n; i++)
        for (j = 0; j < a->k; j++) *AT(a->y, i, j) = *AT(a->x, i, a->index[j]);
}
