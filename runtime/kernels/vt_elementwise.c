/* Functions of one or two windows, element by element. None needs scratch. */
#include "vt_elementwise.h"
#include "vt_gradient.h"

typedef float vt_function(float a, float b);

/* n elements at their strides. They are computed side by side into a buffer first, so that vectors serve where y is a
 * or b as well. */
VT_INLINE void vt_run(float *y, ptrdiff_t sy, const float *a, ptrdiff_t sa, const float *b, ptrdiff_t sb, int32_t n,
                      vt_function *f) {
    float v[VT_LANES];
    int32_t i, l;
    for (i = 0; i + VT_LANES <= n; i += VT_LANES) {
        for (l = 0; l < VT_LANES; l++) v[l] = f(a[(i + l) * sa], b[(i + l) * sb]);
        for (l = 0; l < VT_LANES; l++) y[(i + l) * sy] = v[l];
    }
    for (; i < n; i++) y[i * sy] = f(a[i * sa], b[i * sb]);
}

/* y = f(a, b) over (n, c): runs along the axis in which y is contiguous, one run where all operands are. */
VT_INLINE void vt_map(const vt_out *y, const vt_in *a, const vt_in *b, int32_t n, int32_t c, vt_function *f) {
    const int down = y->row == 1 && (y->col != 1 || c == 1);
    const ptrdiff_t sy = down ? y->row : y->col, oy = down ? y->col : y->row;
    const ptrdiff_t sa = down ? a->row : a->col, oa = down ? a->col : a->row;
    const ptrdiff_t sb = down ? b->row : b->col, ob = down ? b->col : b->row;
    int32_t run = down ? n : c, runs = down ? c : n, i;
    if (oy == run * sy && oa == run * sa && ob == run * sb) {
        run = run * runs;
        runs = 1;
    }
    if (sy == 1 && sa == 1 && sb == 1)
        for (i = 0; i < runs; i++) vt_run(y->at + i * oy, 1, a->at + i * oa, 1, b->at + i * ob, 1, run, f);
    else if (sy == 1 && sa == 1 && sb == 0)
        for (i = 0; i < runs; i++) vt_run(y->at + i * oy, 1, a->at + i * oa, 1, b->at + i * ob, 0, run, f);
    else
        for (i = 0; i < runs; i++) vt_run(y->at + i * oy, sy, a->at + i * oa, sa, b->at + i * ob, sb, run, f);
}

VT_INLINE float vt_sigmoid_value(float x) { return 1.0f / (1.0f + vt_expf(-x)); }

/* The value of an element, and the kernel that maps it: field `y` = value(field `first`, field `second`), which the
 * expression calls a and b. */
#define VT_VALUE(name, expression) \
    VT_INLINE float name(float a, float b) { (void)a; (void)b; return (expression); }
#define VT_KERNEL(op, y, first, second, expression)                                   \
    VT_VALUE(vt_##op##_of, expression)                                                \
    void vt_##op(const vt_##op##_args *k, const vt_step *s) {                         \
        (void)s;                                                                      \
        vt_map(&k->y, &k->first, &k->second, k->n, k->c, vt_##op##_of);               \
    }

VT_KERNEL(copy, y, x, x, a)
VT_KERNEL(add, y, a, b, a + b)
VT_KERNEL(mul, y, a, b, a * b)
VT_KERNEL(relu, y, x, x, a <= 0.0f ? 0.0f : a)           /* NaN stays NaN: it is to be seen */
VT_KERNEL(relu_grad, d_x, x, dy, a > 0.0f ? b : 0.0f)
VT_KERNEL(sigmoid, y, x, x, vt_sigmoid_value(a))
VT_KERNEL(sigmoid_grad, d_x, x, dy, b * (vt_sigmoid_value(a) * (1.0f - vt_sigmoid_value(a))))
VT_KERNEL(silu, y, x, x, a * vt_sigmoid_value(a))
VT_KERNEL(silu_grad, d_x, x, dy, b * (vt_sigmoid_value(a) * VT_FMA(a, 1.0f - vt_sigmoid_value(a), 1.0f)))
VT_KERNEL(tanh, y, x, x, vt_tanhf(a))
VT_KERNEL(tanh_grad, d_x, x, dy, b * VT_FMA(-vt_tanhf(a), vt_tanhf(a), 1.0f))

VT_VALUE(vt_gelu_exact_of, vt_gelu_value(a))
VT_VALUE(vt_gelu_tanh_of, vt_gelu_tanh_value(a))
VT_VALUE(vt_gelu_exact_grad_of, b * vt_gelu_slope(a))
VT_VALUE(vt_gelu_tanh_grad_of, b * vt_gelu_tanh_slope(a))
VT_VALUE(vt_product_of, a * b)

/* y = GELU(x); tanh 1: the tanh form. */
void vt_gelu(const vt_gelu_args *k, const vt_step *s) {
    (void)s;
    if (k->tanh) vt_map(&k->y, &k->x, &k->x, k->n, k->c, vt_gelu_tanh_of);
    else vt_map(&k->y, &k->x, &k->x, k->n, k->c, vt_gelu_exact_of);
}

/* d_x = dy * GELU'(x). */
void vt_gelu_grad(const vt_gelu_grad_args *k, const vt_step *s) {
    (void)s;
    if (k->tanh) vt_map(&k->d_x, &k->x, &k->dy, k->n, k->c, vt_gelu_tanh_grad_of);
    else vt_map(&k->d_x, &k->x, &k->dy, k->n, k->c, vt_gelu_exact_grad_of);
}

/* d_a = dy * b, d_b = dy * a. d_b comes first: d_a may be dy. */
void vt_mul_grad(const vt_mul_grad_args *k, const vt_step *s) {
    (void)s;
    if (k->d_b.at) vt_map(&k->d_b, &k->dy, &k->a, k->n, k->c, vt_product_of);
    if (k->d_a.at) vt_map(&k->d_a, &k->dy, &k->b, k->n, k->c, vt_product_of);
}

/* y = value * x. */
void vt_mul_const(const vt_mul_const_args *k, const vt_step *s) {
    const vt_in value = {&k->value, 0, 0};
    (void)s;
    vt_map(&k->y, &k->x, &value, k->n, k->c, vt_product_of);
}

/* y[t][c] = x[t][c] * s[c]. */
void vt_scale(const vt_scale_args *k, const vt_step *s) {
    const vt_in scale = {k->s, 0, 1};
    (void)s;
    vt_map(&k->y, &k->x, &scale, k->n, k->c, vt_product_of);
}

/* d_x = dy * s; d_s = column sums of dy * x. d_x may be dy: d_s, whose sums read dy, comes first in a column block, and
 * s changes after its block of d_x. */
void vt_scale_grad(const vt_scale_grad_args *k, const vt_step *s) {
    int32_t c0, i, l, w;
    for (c0 = 0; c0 < k->c; c0 += w) {
        float sum[16];
        w = k->c - c0 >= 16 ? 16 : k->c - c0;
        if (vt_wanted(&k->d_s)) {
            const float *dy = k->dy.at + (ptrdiff_t)c0 * k->dy.col, *x = k->x.at + (ptrdiff_t)c0 * k->x.col;
            for (l = 0; l < 16; l++) sum[l] = 0.0f;
            for (i = 0; i < k->n; i++, dy += k->dy.row, x += k->x.row)
                for (l = 0; l < w; l++)
                    sum[l] = VT_FMA(dy[(ptrdiff_t)l * k->dy.col], x[(ptrdiff_t)l * k->x.col], sum[l]);
        }
        if (k->d_x.at) {
            const vt_in scale = {k->s + c0, 0, 1};
            const vt_in dy = {k->dy.at + (ptrdiff_t)c0 * k->dy.col, k->dy.row, k->dy.col};
            const vt_out dx = {k->d_x.at + (ptrdiff_t)c0 * k->d_x.col, k->d_x.row, k->d_x.col, 0};
            vt_map(&dx, &dy, &scale, k->n, w, vt_product_of);
        }
        if (vt_wanted(&k->d_s)) vt_apply(s, &k->d_s, c0, sum, w);
    }
}

/* The parameter in the sink p takes the gradient g. */
void vt_sgd(const vt_sgd_args *k, const vt_step *s) {
    int32_t t, c0, l, w;
    for (t = 0; t < k->n; t++) {
        const float *row = k->g.at + (ptrdiff_t)t * k->g.row;
        if (k->g.col == 1) {
            vt_apply(s, &k->p, (ptrdiff_t)t * k->c, row, k->c);
            continue;
        }
        for (c0 = 0; c0 < k->c; c0 += w) {
            float g[16];
            w = k->c - c0 >= 16 ? 16 : k->c - c0;
            for (l = 0; l < w; l++) g[l] = row[(ptrdiff_t)(c0 + l) * k->g.col];
            vt_apply(s, &k->p, (ptrdiff_t)t * k->c + c0, g, w);
        }
    }
}
