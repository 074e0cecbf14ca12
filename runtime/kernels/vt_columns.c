#include "vt_columns.h"

/* y[t][c] = x[t][start + c]. No scratch. */
void vt_columns(const vt_columns_args *a, const vt_step *s) {
    int32_t t, c;
    (void)s;
    for (t = 0; t < a->n; t++)
        for (c = 0; c < a->c; c++)
            a->y.at[(ptrdiff_t)t * a->y.row + (ptrdiff_t)c * a->y.col] =
                a->x.at[(ptrdiff_t)t * a->x.row + (ptrdiff_t)(a->start + c) * a->x.col];
}

/* d_x = 0 but for d_x[t][start + c] = dy[t][c]. No scratch. */
void vt_columns_grad(const vt_columns_grad_args *a, const vt_step *s) {
    int32_t t, c;
    (void)s;
    for (t = 0; t < a->n; t++)
        for (c = 0; c < a->w; c++)
            a->d_x.at[(ptrdiff_t)t * a->d_x.row + (ptrdiff_t)c * a->d_x.col] =
                c < a->start || c >= a->start + a->c
                    ? 0.0f : a->dy.at[(ptrdiff_t)t * a->dy.row + (ptrdiff_t)(c - a->start) * a->dy.col];
}
