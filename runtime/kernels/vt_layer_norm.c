#include "vt_layer_norm.h"
#include "vt_gradient.h"

/* y = (x - mean) / sqrt(var + eps) * gamma + beta, each piece of d by itself. In place allowed. No scratch. */
void vt_layer_norm(const vt_layer_norm_args *a, const vt_step *s) {
    float mean[VT_LANES], rstd[VT_LANES];
    const vt_norm nm = {mean, rstd, a->gamma, a->beta};
    int32_t i0, i, j, c, n;
    (void)s;
    for (i0 = 0; i0 < a->n; i0 += n) {
        n = a->n - i0 < VT_LANES ? a->n - i0 : VT_LANES;
        for (j = 0; j < a->h; j++) {
            const ptrdiff_t c0 = (ptrdiff_t)j * a->d;
            const float *x = a->x.at + (ptrdiff_t)i0 * a->x.row + c0;
            float *y = a->y.at + (ptrdiff_t)i0 * a->y.row + c0 * a->y.col;
            for (i = 0; i < n; i++) vt_statistics(mean + i, rstd + i, x + (ptrdiff_t)i * a->x.row, 1, a->d, a->eps);
            if (a->y.row == 1 && a->y.col != 1) {
                vt_load_turned(y, a->y.col, x, a->x.row, n, a->d, &nm);
                continue;
            }
            for (i = 0; i < n; i++, x += a->x.row, y += a->y.row) {
                const vt_norm row = {mean + i, rstd + i, a->gamma, a->beta};
                if (a->y.col == 1) vt_load_rows(y, a->d, x, a->d, 0, 1, &row);
                else
                    for (c = 0; c < a->d; c++)
                        y[(ptrdiff_t)c * a->y.col] = vt_normed(x[c], mean[i], rstd[i], a->gamma, a->beta, c);
            }
        }
    }
}

/* Gradients of layer_norm; mean and rstd are recomputed from x. The sums for d_gamma and d_beta go over rows and, within
 * a row, over its pieces, in ascending order. d_x may be in place on dy. */
void vt_layer_norm_grad(const vt_layer_norm_grad_args *a, const vt_step *s) {
    const int want_gamma = vt_wanted(&a->d_gamma), want_beta = vt_wanted(&a->d_beta);
    float *gamma = (float *)a->scratch, *beta = gamma + (want_gamma ? a->d : 0);
    int32_t i, j, c;
    if (want_gamma) vt_fill(gamma, a->d, 0.0f);
    if (want_beta) vt_fill(beta, a->d, 0.0f);
    for (i = 0; i < a->n; i++)
        for (j = 0; j < a->h; j++) {
            const ptrdiff_t c0 = (ptrdiff_t)j * a->d;
            const float *dy = a->dy.at + (ptrdiff_t)i * a->dy.row + c0, *x = a->x.at;
            float mean = 0.0f, rstd = 0.0f;
            if (want_gamma || a->d_x.at) {
                x += (ptrdiff_t)i * a->x.row + c0;
                vt_statistics(&mean, &rstd, x, 1, a->d, a->eps);
            }
            if (want_gamma)
                for (c = 0; c < a->d; c++) gamma[c] = VT_FMA(dy[c], (x[c] - mean) * rstd, gamma[c]);
            if (want_beta)
                for (c = 0; c < a->d; c++) beta[c] += dy[c];
            if (a->d_x.at) {
                float *dx = a->d_x.at + (ptrdiff_t)i * a->d_x.row + c0;
                if (a->gamma) VT_EACH(dx, a->d, l, dy[l] * a->gamma[l]);
                else VT_EACH(dx, a->d, l, dy[l]);
                vt_norm_backward(dx, dx, x, NULL, a->d, mean, rstd);
            }
        }
    if (want_gamma) vt_apply(s, &a->d_gamma, 0, gamma, a->d);
    if (want_beta) vt_apply(s, &a->d_beta, 0, beta, a->d);
}
