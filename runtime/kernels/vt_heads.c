#include "vt_heads.h"
#include "vt_gradient.h"
#include "vt_linear.h"

/* Each head is a linear layer of one token: a window of e rows of w. */

VT_INLINE vt_in vt_head_in(vt_in x, ptrdiff_t offset) {
    if (x.at) x.at += offset;
    return x;
}
VT_INLINE vt_out vt_head_out(vt_out y, ptrdiff_t offset) {
    if (y.at) y.at += offset;
    return y;
}

/* The sink behind its first n elements. */
static vt_sink vt_head_sink(vt_sink k, ptrdiff_t n) {
    if (k.grad) k.grad += n;
    if (k.param) k.param += n;
    if (k.velocity) k.velocity += n;
    return k;
}

/* The sink of the window of w from row o_at of a call's window from row o0 and of columns c_at .. c_at + c: where that has a
 * buffer of its own, behind the trained rows before. */
static vt_sink vt_head_weight(vt_sink k, const vt_part *w, int32_t o0, int32_t o_at, int32_t c_at, int32_t c) {
    if (!k.window) return k;
    return vt_head_sink(k, (ptrdiff_t)(vt_lower(w->rows, w->n_rows, o_at) - vt_lower(w->rows, w->n_rows, o0)) *
                               (vt_lower(w->cols, w->n_cols, c_at + c) - vt_lower(w->cols, w->n_cols, c_at)));
}

void vt_head_linear(const vt_head_linear_args *a, const vt_step *s) {
    int32_t i;
    for (i = 0; i < a->h; i++) {
        const vt_linear_args l = {vt_head_in(a->x, (ptrdiff_t)i * a->x.row), a->w, a->b ? a->b + i * a->e : NULL,
                                  vt_head_out(a->y, (ptrdiff_t)i * a->e * a->y.col), 1, a->c, a->e,
                                  (a->h_at + i) * a->e, a->c_at};
        vt_linear(&l, s);
    }
}

void vt_head_linear_grad(const vt_head_linear_grad_args *a, const vt_step *s) {
    const int32_t o0 = a->h_at * a->e;
    int32_t i;
    for (i = 0; i < a->h; i++) {
        const int32_t o_at = o0 + i * a->e;
        const vt_linear_grad_args l = {vt_head_in(a->x, (ptrdiff_t)i * a->x.row), {NULL, 0, 0}, a->w,
                                       vt_head_in(a->dy, (ptrdiff_t)i * a->e * a->dy.col),
                                       vt_head_out(a->d_x, (ptrdiff_t)i * a->d_x.row),
                                       vt_head_weight(a->d_w, &a->w.trained, o0, o_at, a->c_at, a->c),
                                       vt_head_sink(a->d_b, (ptrdiff_t)i * a->e), 1, a->c, 0, a->e, o_at, a->c_at};
        vt_linear_grad(&l, s);
    }
}

/* The products of linear_grad's d_x. */
void vt_head_linear_t(const vt_head_linear_t_args *a, const vt_step *s) {
    const vt_sink none = {NULL, NULL, NULL, 0, 0};
    int32_t i;
    for (i = 0; i < a->h; i++) {
        const vt_linear_grad_args l = {{NULL, 0, 0}, {NULL, 0, 0}, a->w,
                                       vt_head_in(a->x, (ptrdiff_t)i * a->e * a->x.col),
                                       vt_head_out(a->y, (ptrdiff_t)i * a->y.row), none, none, 1, a->c, 0, a->e,
                                       (a->h_at + i) * a->e, a->c_at};
        vt_linear_grad(&l, s);
    }
}

/* d_x is made of linear's products, d_w of linear_grad's with x and dy in each other's place. d_x is complete before w
 * changes. */
void vt_head_linear_t_grad(const vt_head_linear_t_grad_args *a, const vt_step *s) {
    const vt_sink none = {NULL, NULL, NULL, 0, 0};
    const vt_out nowhere = {NULL, 0, 0, 0};
    const int32_t o0 = a->h_at * a->e;
    int32_t i;
    for (i = 0; i < a->h; i++) {
        const int32_t o_at = o0 + i * a->e;
        const vt_in dy = vt_head_in(a->dy, (ptrdiff_t)i * a->dy.row);
        const vt_linear_args x = {dy, a->w, NULL, vt_head_out(a->d_x, (ptrdiff_t)i * a->e * a->d_x.col), 1, a->c,
                                  a->e, o_at, a->c_at};
        const vt_linear_grad_args w = {dy, {NULL, 0, 0}, a->w, vt_head_in(a->x, (ptrdiff_t)i * a->e * a->x.col), nowhere,
                                       vt_head_weight(a->d_w, &a->w.trained, o0, o_at, a->c_at, a->c), none, 1, a->c, 0,
                                       a->e, o_at, a->c_at};
        if (a->d_x.at) vt_linear(&x, s);
        if (vt_wanted(&a->d_w)) vt_linear_grad(&w, s);
    }
}
