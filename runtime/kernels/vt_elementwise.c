/* Functions of one or two windows, element by element. None needs scratch. */
#include "vt_elementwise.h"
#include "vt_gradient.h"

/* Where an operand is: element i of run r at at[r * between + i * step]. */
typedef struct {
    const float *at;
    ptrdiff_t between, step;
} vt_lie;

/* y[r][i] = f(a[r][i], b[r][i]) for m runs of n neighbours; ly: from run to run of y. */
typedef void vt_runs(float *y, ptrdiff_t ly, const vt_lie *a, const vt_lie *b, int32_t m, int32_t n);

/* The runs of a function, written as an expression of floats a and b. */
#define VT_RUNS(name, expression)                                                                                    \
    VT_INLINE float name##_of(float a, float b) { (void)a; (void)b; return (expression); }                           \
    static void name(float *y, ptrdiff_t ly, const vt_lie *a, const vt_lie *b, int32_t m, int32_t n) {               \
        const float *ar = a->at, *br = b->at;                                                                        \
        const ptrdiff_t la = a->between, lb = b->between;                                                            \
        for (; m > 0; m--, y += ly, ar += la, br += lb) VT_EACH(y, n, i, name##_of(ar[i], br[i]));                   \
    }

enum { VT_AREA = VT_LANES * VT_LANES };  /* elements that go through a buffer at a time where an operand has no runs */

/* m runs of n neighbours out of x, where it has them, else from the buffer. */
static vt_lie vt_gather(float *buffer, const vt_lie *x, ptrdiff_t r0, ptrdiff_t i0, int32_t m, int32_t n) {
    const vt_lie in = {x->at + r0 * x->between + i0 * x->step, x->between, x->step}, made = {buffer, n, 1};
    int32_t r, i;
    if (in.step == 1) return in;
    if (in.step == 0) {
        for (r = 0; r < m; r++) {
            const float value = in.at[r * in.between];
            VT_EACH(buffer + r * n, n, j, value);
        }
    } else if (in.between == 1) {
        vt_turn(buffer, n, in.at, in.step, m, n);
    } else {
        for (r = 0; r < m; r++)
            for (i = 0; i < n; i++) buffer[r * n + i] = in.at[r * in.between + i * in.step];
    }
    return made;
}

/* m runs of n elements, a block of them at a time through buffers where they are no neighbours. */
static void vt_blocks(float *y, ptrdiff_t between, ptrdiff_t step, const vt_lie *a, const vt_lie *b, int32_t m, int32_t n,
                      vt_runs *f) {
    float ys[VT_AREA], as[VT_AREA], bs[VT_AREA];
    const int32_t high = m < VT_LANES ? m : VT_LANES, wide = VT_AREA / high / VT_LANES * VT_LANES;
    int32_t r0, i0, r, i, rows, lanes, one;
    for (r0 = 0; r0 < m; r0 += rows) {
        rows = m - r0 < high ? m - r0 : high;
        for (i0 = 0; i0 < n; i0 += lanes) {
            float *to = y + r0 * between + i0 * step;
            vt_lie from, with;
            lanes = n - i0 < wide ? n - i0 : wide;
            from = vt_gather(as, a, r0, i0, rows, lanes);
            with = a == b ? from : vt_gather(bs, b, r0, i0, rows, lanes);
            if (step == 1) {
                one = between == lanes && from.between == lanes && with.between == lanes;
                f(to, between, &from, &with, one ? 1 : rows, one ? rows * lanes : lanes);
                continue;
            }
            f(ys, lanes, &from, &with, rows, lanes);
            for (r = 0; r < rows; r++)
                for (i = 0; i < lanes; i++) to[r * between + i * step] = ys[r * lanes + i];
        }
    }
}

/* y = f(a, b) over (n, c): runs along the axis in which y is contiguous, one run where all operands are. a == b: the same. */
static void vt_map(const vt_out *y, const vt_in *a, const vt_in *b, int32_t n, int32_t c, vt_runs *f) {
    const int down = y->row == 1 && (y->col != 1 || c == 1);
    const ptrdiff_t step = down ? y->row : y->col, between = down ? y->col : y->row;
    const vt_lie la = {a->at, down ? a->col : a->row, down ? a->row : a->col};
    const vt_lie lb = {b->at, down ? b->col : b->row, down ? b->row : b->col};
    int32_t run = down ? n : c, runs = down ? c : n;
    if (between == run * step && la.between == run * la.step && lb.between == run * lb.step) {
        run = run * runs;
        runs = 1;
    }
    if (step == 1 && la.step == 1 && lb.step == 1) f(y->at, between, &la, &lb, runs, run);
    else vt_blocks(y->at, between, step, &la, a == b ? &la : &lb, runs, run, f);
}

VT_INLINE float vt_sigmoid_value(float x) { return 1.0f / (1.0f + vt_expf(-x)); }

/* A kernel: field `y` = the expression, in which a is field `first` and b is field `second`. */
#define VT_KERNEL(op, y, first, second, expression)                                            \
    VT_RUNS(vt_##op##_runs, expression)                                                          \
    void vt_##op(const vt_##op##_args *k, const vt_step *s) {                                  \
        (void)s;                                                                               \
        vt_map(&k->y, &k->first, &k->second, k->n, k->c, vt_##op##_runs);                       \
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

VT_RUNS(vt_copy_runs, a)

/* y = x, or y += x: from rows to a panel or back at once. */
void vt_copy(const vt_copy_args *k, const vt_step *s) {
    const vt_in y = {k->y.at, k->y.row, k->y.col};
    (void)s;
    if (k->y.add) vt_map(&k->y, &y, &k->x, k->n, k->c, vt_add_runs);
    else if (k->x.row == 1 && k->x.col != 1 && k->y.col == 1) vt_turn(k->y.at, k->y.row, k->x.at, k->x.col, k->n, k->c);
    else if (k->x.col == 1 && k->y.row == 1 && k->y.col != 1) vt_turn(k->y.at, k->y.col, k->x.at, k->x.row, k->c, k->n);
    else vt_map(&k->y, &k->x, &k->x, k->n, k->c, vt_copy_runs);
}

VT_RUNS(vt_gelu_exact_runs, vt_gelu_value(a))
VT_RUNS(vt_gelu_tanh_runs, vt_gelu_tanh_value(a))
VT_RUNS(vt_gelu_exact_grad_runs, b * vt_gelu_slope(a))
VT_RUNS(vt_gelu_tanh_grad_runs, b * vt_gelu_tanh_slope(a))

/* y = GELU(x); tanh 1: the tanh form. */
void vt_gelu(const vt_gelu_args *k, const vt_step *s) {
    (void)s;
    if (k->tanh) vt_map(&k->y, &k->x, &k->x, k->n, k->c, vt_gelu_tanh_runs);
    else vt_map(&k->y, &k->x, &k->x, k->n, k->c, vt_gelu_exact_runs);
}

/* d_x = dy * GELU'(x). */
void vt_gelu_grad(const vt_gelu_grad_args *k, const vt_step *s) {
    (void)s;
    if (k->tanh) vt_map(&k->d_x, &k->x, &k->dy, k->n, k->c, vt_gelu_tanh_grad_runs);
    else vt_map(&k->d_x, &k->x, &k->dy, k->n, k->c, vt_gelu_exact_grad_runs);
}

/* d_a = dy * b, d_b = dy * a. d_b comes first: d_a may be dy. */
void vt_mul_grad(const vt_mul_grad_args *k, const vt_step *s) {
    (void)s;
    if (k->d_b.at) vt_map(&k->d_b, &k->dy, &k->a, k->n, k->c, vt_mul_runs);
    if (k->d_a.at) vt_map(&k->d_a, &k->dy, &k->b, k->n, k->c, vt_mul_runs);
}

/* y = value * x. */
void vt_mul_const(const vt_mul_const_args *k, const vt_step *s) {
    const vt_in value = {&k->value, 0, 0};
    (void)s;
    vt_map(&k->y, &k->x, &value, k->n, k->c, vt_mul_runs);
}

/* y[t][c] = x[t][c] * s[c]. */
void vt_scale(const vt_scale_args *k, const vt_step *s) {
    const vt_in scale = {k->s, 0, 1};
    (void)s;
    vt_map(&k->y, &k->x, &scale, k->n, k->c, vt_mul_runs);
}

/* sum[c] += the column sums of a * b over (n, w), in ascending order. */
static void vt_sum_products(float *sum, const vt_lie *a, const vt_lie *b, int32_t n, int32_t w) {
    const int whole = a->step == 1 && b->step == 1;
    float as[VT_AREA], bs[VT_AREA];
    int32_t c, i, r, rows, lanes;
    for (c = 0; c < w; c += lanes) {
        lanes = whole || w - c < VT_LANES ? w - c : VT_LANES;
        for (i = 0; i < n; i += rows) {
            vt_lie from, with;
            rows = whole || n - i < VT_LANES ? n - i : VT_LANES;
            from = vt_gather(as, a, i, c, rows, lanes);
            with = vt_gather(bs, b, i, c, rows, lanes);
            for (r = 0; r < rows; r++, from.at += from.between, with.at += with.between)
                VT_EACH(sum + c, lanes, l, VT_FMA(from.at[l], with.at[l], sum[c + l]));
        }
    }
}

/* d_x = dy * s; d_s = column sums of dy * x. d_x may be dy: d_s, whose sums read dy, comes first in a column block, and
 * s changes after its block of d_x. */
void vt_scale_grad(const vt_scale_grad_args *k, const vt_step *s) {
    int32_t c0, w;
    for (c0 = 0; c0 < k->c; c0 += w) {
        float sum[VT_WIDE];
        w = k->c - c0 < VT_WIDE ? k->c - c0 : VT_WIDE;
        if (vt_wanted(&k->d_s)) {
            const vt_lie dy = {k->dy.at + (ptrdiff_t)c0 * k->dy.col, k->dy.row, k->dy.col};
            const vt_lie x = {k->x.at + (ptrdiff_t)c0 * k->x.col, k->x.row, k->x.col};
            vt_fill(sum, w, 0.0f);
            vt_sum_products(sum, &dy, &x, k->n, w);
        }
        if (k->d_x.at) {
            const vt_in scale = {k->s + c0, 0, 1};
            const vt_in dy = {k->dy.at + (ptrdiff_t)c0 * k->dy.col, k->dy.row, k->dy.col};
            const vt_out dx = {k->d_x.at + (ptrdiff_t)c0 * k->d_x.col, k->d_x.row, k->d_x.col, 0};
            vt_map(&dx, &dy, &scale, k->n, w, vt_mul_runs);
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
