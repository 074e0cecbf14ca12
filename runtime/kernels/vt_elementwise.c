#include "vt_elementwise.h"
#include "vt_gradient.h"

/* y = GELU(x); tanh 1: the tanh form. In place allowed. No scratch. */
void vt_gelu(const vt_gelu_args *a, const vt_step *s) {
    const float *x = a->x;
    (void)s;
    if (a->tanh) VT_EACH(a->y, a->size, i, vt_gelu_tanh_value(x[i]));
    else VT_EACH(a->y, a->size, i, vt_gelu_value(x[i]));
}

/* d_x = dy * GELU'(x). d_x may be x or dy. No scratch. */
void vt_gelu_grad(const vt_gelu_grad_args *a, const vt_step *s) {
    const float *x = a->x, *dy = a->dy;
    (void)s;
    if (a->tanh) VT_EACH(a->d_x, a->size, i, dy[i] * vt_gelu_tanh_slope(x[i]));
    else VT_EACH(a->d_x, a->size, i, dy[i] * vt_gelu_slope(x[i]));
}

/* y = max(x, 0). In place allowed. No scratch. */
void vt_relu(const vt_relu_args *a, const vt_step *s) {
    const float *x = a->x;
    (void)s;
    VT_EACH(a->y, a->size, i, x[i] <= 0.0f ? 0.0f : x[i]);      /* NaN stays NaN: it is to be seen */
}

/* g where x > 0, else 0; both are read whatever x is: gcc 12 vectorises a read that depends on x wrongly. */
VT_INLINE float vt_where(float x, float g) { return x > 0.0f ? g : 0.0f; }

/* d_x = dy where x > 0, else 0. d_x may be x or dy. No scratch. */
void vt_relu_grad(const vt_relu_grad_args *a, const vt_step *s) {
    const float *x = a->x, *dy = a->dy;
    (void)s;
    VT_EACH(a->d_x, a->size, i, vt_where(x[i], dy[i]));
}

/* y = a + b. y may be a or b. No scratch. */
void vt_add(const vt_add_args *a, const vt_step *s) {
    const float *p = a->a, *q = a->b;
    (void)s;
    VT_EACH(a->y, a->size, i, p[i] + q[i]);
}

/* y = value * x. In place allowed. No scratch. */
void vt_mul_const(const vt_mul_const_args *a, const vt_step *s) {
    const float *x = a->x, value = a->value;
    (void)s;
    VT_EACH(a->y, a->size, i, value * x[i]);
}

/* y[n][c] = x[n][c] * s[c]. In place allowed. No scratch. */
void vt_scale(const vt_scale_args *a, const vt_step *s) {
    int32_t n;
    (void)s;
    for (n = 0; n < a->n; n++) {
        const float *x = a->x + (ptrdiff_t)n * a->d, *by = a->s;
        VT_EACH(a->y + (ptrdiff_t)n * a->d, a->d, i, x[i] * by[i]);
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
