#include "vt_columns.h"
#include "vt_buffers.h"
#include "vt_elementwise.h"

/* y[t][c] = x[t][start + c]. No scratch. */
void vt_columns(const vt_columns_args *a, const vt_step *s) {
    const vt_in from = {a->x.at + (ptrdiff_t)a->start * a->x.col, a->x.row, a->x.col};
    const vt_copy_args copy = {from, a->y, a->n, a->c};
    vt_copy(&copy, s);
}

static void vt_clear_columns(const vt_out *x, int32_t first, int32_t n, int32_t c, const vt_step *s) {
    const vt_out at = {x->at + (ptrdiff_t)first * x->col, x->row, x->col, 0};
    const vt_fill_zero_args fill = {at, n, c};
    vt_fill_zero(&fill, s);
}

/* d_x = 0 but for d_x[t][start + c] = dy[t][c]. No scratch. */
void vt_columns_grad(const vt_columns_grad_args *a, const vt_step *s) {
    const int32_t end = a->start + a->c;
    const vt_out to = {a->d_x.at + (ptrdiff_t)a->start * a->d_x.col, a->d_x.row, a->d_x.col, 0};
    const vt_copy_args copy = {a->dy, to, a->n, a->c};
    vt_clear_columns(&a->d_x, 0, a->n, a->start, s);
    vt_copy(&copy, s);
    vt_clear_columns(&a->d_x, end, a->n, a->w - end, s);
}
