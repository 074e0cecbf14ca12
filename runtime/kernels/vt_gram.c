#include "vt_gram.h"
#include "vt_gram_part.h"

/* y = x ((x^T a) b) / d. */
void vt_gram(const vt_gram_args *a, const vt_step *s) {
    const vt_norm plain = {NULL, NULL, NULL, NULL};
    const vt_gram_part p = {a->x, &plain, a->a, a->b, a->n, a->d, a->r, a->n, a->rows, a->gram_block};
    int32_t i;
    for (i = 0; i < a->n; i++) vt_fill(a->y + (ptrdiff_t)i * a->d, a->d, 0.0f);
    vt_gram_forward(s, &p, a->y, (float *)a->scratch);
}

/* Its gradients; a and b change only after their last use. */
void vt_gram_grad(const vt_gram_grad_args *a, const vt_step *s) {
    const vt_norm plain = {NULL, NULL, NULL, NULL};
    const vt_gram_part p = {a->x, &plain, a->a, a->b, a->n, a->d, a->r, a->n, a->rows, a->gram_block};
    int32_t i;
    for (i = 0; a->d_x && i < a->n; i++) vt_fill(a->d_x + (ptrdiff_t)i * a->d, a->d, 0.0f);
    vt_gram_backward(s, &p, a->dy, NULL, a->d_x, &a->d_a, &a->d_b, NULL, (float *)a->scratch);
}
