#include "vt_elementwise.h"
#include "vt_gradient.h"

/* y = GELU(x); tanh 1: the tanh form. In place allowed. No scratch. */
void vt_gelu(const vt_gelu_args *a, const vt_step *s) {
    int32_t i;
    (void)s;
    if (a->tanh) for (i = 0; i < a->size; i++) a->y[i] = vt_gelu_tanh_value(a->x[i]);
    else for (i = 0; i < a->size; i++) a->y[i] = vt_gelu_value(a->x[i]);
}

/* d_x = dy * GELU'(x). d_x may be x or dy. No scratch. */
void vt_gelu_grad(const vt_gelu_grad_args *a, const vt_step *s) {
    int32_t i;
    (void)s;
    if (a->tanh) for (i = 0; i < a->size; i++) a->d_x[i] = a->dy[i] * vt_gelu_tanh_slope(a->x[i]);
    else for (i = 0; i < a->size; i++) a->d_x[i] = a->dy[i] * vt_gelu_slope(a->x[i]);
}

/* y = max(x, 0). In place allowed. No scratch. */
void vt_relu(const vt_relu_args *a, const vt_step *s) {
    int32_t i;
    (void)s;
    for (i = 0; i < a->size; i++) a->y[i] = a->x[i] <= 0.0f ? 0.0f : a->x[i];   /* NaN stays NaN: it is to be seen */
}

/* d_x = dy where x > 0, else 0. d_x may be x or dy. No scratch. */
void vt_relu_grad(const vt_relu_grad_args *a, const vt_step *s) {
    int32_t i;
    (void)s;
    for (i = 0; i < a->size; i++) a->d_x[i] = a->x[i] > 0.0f ? a->dy[i] : 0.0f;
}

/* y = a + b. y may be a or b. No scratch. */
void vt_add(const vt_add_args *a, const vt_step *s) {
    int32_t i;
    (void)s;
    for (i = 0; i < a->size; i++) a->y[i] = a->a[i] + a->b[i];
}

/* y = value * x. In place allowed. No scratch. */
void vt_mul_const(const vt_mul_const_args *a, const vt_step *s) {
    int32_t i;
    (void)s;
    for (i = 0; i < a->size; i++) a->y[i] = a->value * a->x[i];
}

/* y[n][c] = x[n][c] * s[c]. In place allowed. No scratch. */
void vt_scale(const vt_scale_args *a, const vt_step *s) {
    int32_t i, c;
    (void)s;
    for (i = 0; i < a->n; i++)
        for (c = 0; c < a->d; c++) {
            const ptrdiff_t k = (ptrdiff_t)i * a->d + c;
            a->y[k] = a->x[k] * a->s[c];
        }
}

/* d_x = dy * s; d_s = column sums of dy * x. d_x may be dy: d_s, whose sums read dy, comes first in a column block, and
 * s changes after its block of d_x. No scratch. */
void vt_scale_grad(const vt_scale_grad_args *a, const vt_step *s) {
    int32_t c0, i, l, w;
    for (c0 = 0; c0 < a->d; c0 += w) {
        float sum[16];
        for (l = 0; l < 16; l++) sum[l] = 0.0f;
        w = a->d - c0 >= 16 ? 16 : a->d - c0;
        for (i = 0; i < a->n; i++) {
            const ptrdiff_t k = (ptrdiff_t)i * a->d + c0;
            for (l = 0; l < w; l++) {
                const float g = a->dy[k + l];
                if (a->x) sum[l] = VT_FMA(g, a->x[k + l], sum[l]);
                if (a->d_x) a->d_x[k + l] = g * a->s[c0 + l];
            }
        }
        vt_apply(s, &a->d_s, c0, sum, w);
    }
}

/* The parameter in the sink p takes the gradient g. No scratch. */
void vt_sgd(const vt_sgd_args *a, const vt_step *s) { vt_apply(s, &a->p, 0, a->g, a->size); }
