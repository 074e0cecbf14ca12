/* Functions of one or two windows, element by element. None needs scratch. */
#include "vt_elementwise.h"
#include "vt_gradient.h"

/* y[i] = f(a[i], b[i]) for n neighbours. */
typedef void vt_run(float *y, const float *a, const float *b, int32_t n);

/* The run of a function, written as an expression of floats a and b. */
#define VT_RUN(name, expression)                                                               \
    VT_INLINE float name##_of(float a, float b) { (void)a; (void)b; return (expression); }     \
    static void name(float *y, const float *a, const float *b, int32_t n) {                    \
        VT_EACH(y, n, i, name##_of(a[i], b[i]));                                               \
    }

enum { VT_PIECE = 32 };          /* elements that are gathered at a time where they are no neighbours */

static const float *vt_gather(float *piece, const float *x, ptrdiff_t stride, int32_t n) {
    int32_t i;
    if (stride == 1) return x;
    for (i = 0; i < n; i++) piece[i] = x[i * stride];
    return piece;
}

/* n elements at their strides. */
static void vt_strided(float *y, ptrdiff_t sy, const float *a, ptrdiff_t sa, const float *b, ptrdiff_t sb, int32_t n,
                       vt_run *run) {
    float ys[VT_PIECE], as[VT_PIECE], bs[VT_PIECE];
    int32_t i, j, w;
    for (i = 0; i < n; i += w) {
        const float *ai, *bi;
        w = n - i < VT_PIECE ? n - i : VT_PIECE;
        ai = vt_gather(as, a + i * sa, sa, w);
        bi = a == b && sa == sb ? ai : vt_gather(bs, b + i * sb, sb, w);
        run(sy == 1 ? y + i : ys, ai, bi, w);
        for (j = 0; sy != 1 && j < w; j++) y[(i + j) * sy] = ys[j];
    }
}

/* y = f(a, b) over (n, c): runs along the axis in which y is contiguous, one run where all operands are. */
static void vt_map(const vt_out *y, const vt_in *a, const vt_in *b, int32_t n, int32_t c, vt_run *f) {
    const int down = y->row == 1 && (y->col != 1 || c == 1);
    const ptrdiff_t sy = down ? y->row : y->col, oy = down ? y->col : y->row;
    const ptrdiff_t sa = down ? a->row : a->col, oa = down ? a->col : a->row;
    const ptrdiff_t sb = down ? b->row : b->col, ob = down ? b->col : b->row;
    int32_t run = down ? n : c, runs = down ? c : n, i;
    if (oy == run * sy && oa == run * sa && ob == run * sb) {
        run = run * runs;
        runs = 1;
    }
    for (i = 0; i < runs; i++) {
        if (sy == 1 && sa == 1 && sb == 1) f(y->at + i * oy, a->at + i * oa, b->at + i * ob, run);
        else vt_strided(y->at + i * oy, sy, a->at + i * oa, sa, b->at + i * ob, sb, run, f);
    }
}

VT_INLINE float vt_sigmoid_value(float x) { return 1.0f / (1.0f + vt_expf(-x)); }

/* A kernel: field `y` = the expression, in which a is field `first` and b is field `second`. */
#define VT_KERNEL(op, y, first, second, expression)                                            \
    VT_RUN(vt_##op##_run, expression)                                                          \
    void vt_##op(const vt_##op##_args *k, const vt_step *s) {                                  \
        (void)s;                                                                               \
        vt_map(&k->y, &k->first, &k->second, k->n, k->c, vt_##op##_run);                       \
    }

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

VT_RUN(vt_copy_run, a)

/* y = x, or y += x. */
void vt_copy(const vt_copy_args *k, const vt_step *s) {
    const vt_in y = {k->y.at, k->y.row, k->y.col};
    (void)s;
    if (k->y.add) vt_map(&k->y, &y, &k->x, k->n, k->c, vt_add_run);
    else vt_map(&k->y, &k->x, &k->x, k->n, k->c, vt_copy_run);
}

VT_RUN(vt_gelu_exact_run, vt_gelu_value(a))
VT_RUN(vt_gelu_tanh_run, vt_gelu_tanh_value(a))
VT_RUN(vt_gelu_exact_grad_run, b * vt_gelu_slope(a))
VT_RUN(vt_gelu_tanh_grad_run, b * vt_gelu_tanh_slope(a))

/* y = GELU(x); tanh 1: the tanh form. */
void vt_gelu(const vt_gelu_args *k, const vt_step *s) {
    (void)s;
    if (k->tanh) vt_map(&k->y, &k->x, &k->x, k->n, k->c, vt_gelu_tanh_run);
    else vt_map(&k->y, &k->x, &k->x, k->n, k->c, vt_gelu_exact_run);
}

/* d_x = dy * GELU'(x). */
void vt_gelu_grad(const vt_gelu_grad_args *k, const vt_step *s) {
    (void)s;
    if (k->tanh) vt_map(&k->d_x, &k->x, &k->dy, k->n, k->c, vt_gelu_tanh_grad_run);
    else vt_map(&k->d_x, &k->x, &k->dy, k->n, k->c, vt_gelu_exact_grad_run);
}

/* d_a = dy * b, d_b = dy * a. d_b comes first: d_a may be dy. */
void vt_mul_grad(const vt_mul_grad_args *k, const vt_step *s) {
    (void)s;
    if (k->d_b.at) vt_map(&k->d_b, &k->dy, &k->a, k->n, k->c, vt_mul_run);
    if (k->d_a.at) vt_map(&k->d_a, &k->dy, &k->b, k->n, k->c, vt_mul_run);
}

/* y = value * x. */
void vt_mul_const(const vt_mul_const_args *k, const vt_step *s) {
    const vt_in value = {&k->value, 0, 0};
    (void)s;
    vt_map(&k->y, &k->x, &value, k->n, k->c, vt_mul_run);
}

/* y[t][c] = x[t][c] * s[c]. */
void vt_scale(const vt_scale_args *k, const vt_step *s) {
    const vt_in scale = {k->s, 0, 1};
    (void)s;
    vt_map(&k->y, &k->x, &scale, k->n, k->c, vt_mul_run);
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
            vt_map(&dx, &dy, &scale, k->n, w, vt_mul_run);
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
            vt_apply(s, &k->p, (ptrdiff_t)t * k->ld, row, k->c);
            continue;
        }
        for (c0 = 0; c0 < k->c; c0 += w) {
            float g[16];
            w = k->c - c0 >= 16 ? 16 : k->c - c0;
            for (l = 0; l < w; l++) g[l] = row[(ptrdiff_t)(c0 + l) * k->g.col];
            vt_apply(s, &k->p, (ptrdiff_t)t * k->ld + c0, g, w);
        }
    }
}
