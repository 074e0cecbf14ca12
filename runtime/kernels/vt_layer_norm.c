#include "vt_layer_norm.h"
#include "vt_gradient.h"

/* y = (x - mean) / sqrt(var + eps) * gamma + beta, each row by itself. In place allowed. No scratch. */
void vt_layer_norm(const vt_layer_norm_args *a, const vt_step *s) {
    int32_t i;
    (void)s;
    for (i = 0; i < a->n; i++) {
        const ptrdiff_t at = (ptrdiff_t)i * a->d;
        float mean, rstd;
        const vt_norm nm = {&mean, &rstd, a->gamma, a->beta};
        vt_statistics(&mean, &rstd, a->x + at, 1, a->d, a->eps);
        vt_load_rows(a->y + at, a->d, a->x + at, a->d, 0, 1, &nm);
    }
}

/* Gradients of layer_norm; mean and rstd are recomputed from x. d_x may be in place on dy. */
void vt_layer_norm_grad(const vt_layer_norm_grad_args *a, const vt_step *s) {
    const int want_gamma = vt_wanted(&a->d_gamma), want_beta = vt_wanted(&a->d_beta);
    float *gamma = (float *)a->scratch, *beta = gamma + (want_gamma ? a->d : 0);
    int32_t i, c;
    if (want_gamma) vt_fill(gamma, a->d, 0.0f);
    if (want_beta) vt_fill(beta, a->d, 0.0f);
    for (i = 0; i < a->n; i++) {
        const float *x = a->x + (ptrdiff_t)i * a->d, *dy = a->dy + (ptrdiff_t)i * a->d;
        float mean, rstd;
        vt_statistics(&mean, &rstd, x, 1, a->d, a->eps);
        if (want_gamma)
            for (c = 0; c < a->d; c++) gamma[c] = VT_FMA(dy[c], (x[c] - mean) * rstd, gamma[c]);
        if (want_beta)
            for (c = 0; c < a->d; c++) beta[c] += dy[c];
        if (a->d_x) {
            float *dx = a->d_x + (ptrdiff_t)i * a->d;
            for (c = 0; c < a->d; c++) dx[c] = a->gamma ? dy[c] * a->gamma[c] : dy[c];
            vt_norm_backward(dx, dx, x, NULL, a->d, mean, rstd);
        }
    }
    if (want_gamma) vt_apply(s, &a->d_gamma, 0, gamma, a->d);
    if (want_beta) vt_apply(s, &a->d_beta, 0, beta, a->d);
}
