/* Layer normalisation over token rows, and where gradients go. Shared by the kernels of layers that train.
 *
 * Sums over features run in 16 interleaved chains that are then added pairwise: one fixed order on every core. */
#ifndef VT_GRADIENT_H
#define VT_GRADIENT_H
#include "vt_panel.h"

/* How the rows of a token matrix are normalised: y = (x - mean[n]) * rstd[n] * gamma[c] + beta[c].
 * mean == NULL: rows as they are. gamma, beta may be NULL. */
typedef struct {
    const float *mean, *rstd, *gamma, *beta;
} vt_norm;

VT_INLINE float vt_tree16(const float *a) {
    float b[8], c[4];
    int i;
    for (i = 0; i < 8; i++) b[i] = a[i] + a[i + 8];
    for (i = 0; i < 4; i++) c[i] = b[i] + b[i + 4];
    return (c[0] + c[2]) + (c[1] + c[3]);
}

/* mean[n], rstd[n] of each of n rows of d features. */
void vt_statistics(float *mean, float *rstd, const float *x, int32_t n, int32_t d, float eps);

VT_INLINE float vt_normed(float x, float mean, float rstd, const float *gamma, const float *beta, int32_t c) {
    float v = (x - mean) * rstd;
    if (gamma) v = v * gamma[c];
    if (beta) v = v + beta[c];
    return v;
}

/* y (n, d; ld ldy) = normalised rows n0.. of x (ld d); nm->mean is indexed by the row's number. */
void vt_load_rows(float *y, ptrdiff_t ldy, const float *x, int32_t d, int32_t n0, int32_t n,
                  const vt_norm *nm);

/* y (d, n; ld ldy) = the first n rows of x (n, d; ld ldx), normalised and transposed; apart. */
void vt_load_turned(float *y, ptrdiff_t ldy, const float *x, ptrdiff_t ldx, int32_t n, int32_t d, const vt_norm *nm);

VT_INLINE int vt_wanted(const vt_sink *k) { return k->grad != NULL || k->param != NULL; }

/* Hands n gradient values, the parameter's i0.. , to the sink. velocity' = momentum * velocity + g;
 * param' = param - lr * velocity'. */
void vt_apply(const vt_step *s, const vt_sink *k, ptrdiff_t i0, const float *g, int32_t n);

/* out[c] = sum over n rows of dy (ld ld), c in 0..d. */
void vt_column_sums(float *out, const float *dy, ptrdiff_t ld, int32_t n, int32_t d);

/* Gradient of a bias: scale[c] (or 1) * the sum over n rows of dy (ld ld), into positions i0.. of the sink. */
void vt_bias_gradient(const vt_step *s, const vt_sink *k, ptrdiff_t i0, const float *dy, ptrdiff_t ld,
                      int32_t n, int32_t d, const float *scale);

/* Gradient of the part's rows r0..r1 and packed columns j0..j1, straight into its sink:
 * dW[r][j0 + l] = scale[o] * sum over n of g[n * gns + (o - o0) * gos] * x[n * ldx + l], o the row's number in the
 * whole matrix. With a list xl, lane l stands at xl[l] - xo of its row of x. The sink may not overlap g or x. */
void vt_weight_block(const vt_step *s, const vt_sink *k, const vt_part *w, int32_t r0, int32_t r1, int32_t j0,
                     int32_t j1, const float *g, ptrdiff_t gns, ptrdiff_t gos, int32_t o0, int32_t n, const float *x,
                     ptrdiff_t ldx, const uint16_t *xl, ptrdiff_t xo, const float *scale);

/* One row: dx[c] = [dy[c] +] rstd * (g[c] - mean(g) - xhat[c] * mean(g * xhat)), g the gradient of xhat.
 * dx may be g or dy. dy may be NULL. */
void vt_norm_backward(float *dx, const float *g, const float *x, const float *dy, int32_t d, float mean,
                      float rstd);
#endif
