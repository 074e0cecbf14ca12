/* The MLP of a transformer block, streamed: its hidden layer exists `rows` tokens by `chunk` features at a time. */
#include "vt_mlp_block.h"
#include "vt_gradient.h"

/* See the header. y may be x: a row of x is read for the last time when its row of y is written. */
void vt_mlp_block(const vt_mlp_block_args *a, const vt_step *s) {
    const int32_t d = a->d, T0 = vt_width(a->n, a->rows);
    float *xt = (float *)a->scratch, *yt = xt + (ptrdiff_t)d * T0, *h = yt + (ptrdiff_t)d * T0;
    int32_t n0, T, j0, j1, t, c;
    for (n0 = 0; n0 < a->n; n0 += T) {
        float mean[16], rstd[16];
        const vt_norm nm = {a->norm ? mean : NULL, rstd, a->gamma, a->beta};
        const float *x = a->x + (ptrdiff_t)n0 * d;
        float *y = a->y + (ptrdiff_t)n0 * d;
        T = vt_width(a->n - n0, a->rows);
        if (a->norm) vt_statistics(mean, rstd, x, T, d, a->eps);
        vt_load_panel(xt, T, x, d, 0, &nm);
        vt_fill_panel(yt, d, T, a->b2);
        for (j0 = 0; j0 < a->hidden; j0 = j1) {
            j1 = a->hidden - j0 > a->chunk ? j0 + a->chunk : a->hidden;
            vt_fill_panel(h, j1 - j0, T, a->b1 ? a->b1 + j0 : NULL);
            vt_forward(s, h, T, &a->w1, j0, j1, 0, d, xt);
            vt_act(h, (j1 - j0) * T, a->act);
            vt_forward(s, yt, T, &a->w2, 0, d, j0, j1, h);
        }
        for (t = 0; t < T; t++)
            for (c = 0; c < d; c++) {
                const ptrdiff_t i = (ptrdiff_t)t * d + c;
                const float v = a->ls ? yt[c * T + t] * a->ls[c] : yt[c * T + t];
                y[i] = a->residual ? x[i] + v : v;
            }
    }
}

/* What a gradient call has to make, and the buffers it works in. */
typedef struct {
    int need_norm;               /* the gradient of LN(x) */
    int need_hidden;             /* the gradient of the hidden layer before its activation */
    float *xt;                   /* (d, T) panel of LN(x) */
    float *g;                    /* (T, d) rows of ls * dy, or NULL: dy itself */
    float *z;                    /* (d, T) panel of the second linear layer's result, or NULL */
    float *h;                    /* (J, T) panel */
} vt_mlp_work;

/* One panel and one hidden chunk: dh (T, j1 - j0; ld J) = gradient before the activation, dln (T, d) += its share of
 * the gradient of LN(x), z += its share of the result, keep (T, kept; ld ld_keep) = the hidden values of the columns
 * that w2 trains. */
static void vt_mlp_hidden(const vt_mlp_block_grad_args *a, const vt_step *s, const vt_mlp_work *w, int32_t T,
                          int32_t j0, int32_t j1, const float *g, float *dh, float *dln, float *keep,
                          int32_t ld_keep) {
    const int32_t d = a->d, n = j1 - j0, ld = a->hidden < a->chunk ? a->hidden : a->chunk;
    int32_t t, j;
    vt_fill_panel(w->h, n, T, a->b1 ? a->b1 + j0 : NULL);
    vt_forward(s, w->h, T, &a->w1, j0, j1, 0, d, w->xt);
    if (w->z || keep) {
        float *act = w->need_hidden ? dh : w->h;
        if (w->need_hidden)
            for (j = 0; j < n * T; j++) act[j] = w->h[j];
        vt_act(act, n * T, a->act);
        if (w->z) vt_forward(s, w->z, T, &a->w2, 0, d, j0, j1, act);
        if (keep) {
            const vt_part *p = &a->w2.trained;
            const int32_t k0 = vt_lower(p->cols, p->n_cols, j0), k1 = vt_lower(p->cols, p->n_cols, j1);
            for (t = 0; t < T; t++)
                for (j = k0; j < k1; j++)
                    keep[t * ld_keep + j - k0] = act[((p->cols ? p->cols[j] : j) - j0) * T + t];
        }
    }
    if (!w->need_hidden) return;
    vt_act_slope(w->h, n * T, a->act);
    for (t = 0; t < T; t++) vt_fill(dh + (ptrdiff_t)t * ld, n, 0.0f);
    vt_backward(s, dh, ld, T, &a->w2, 0, d, j0, j1, g, d, 1);
    for (t = 0; t < T; t++)
        for (j = 0; j < n; j++) dh[t * ld + j] = dh[t * ld + j] * w->h[j * T + t];
    if (w->need_norm) vt_backward(s, dln, d, T, &a->w1, j0, j1, 0, d, dh, ld, 1);
}

/* Rows of ls * dy for tokens n0..n0+T, or dy itself. */
static const float *vt_mlp_rows(const vt_mlp_block_grad_args *a, const vt_mlp_work *w, int32_t n0, int32_t T) {
    const float *dy = a->dy + (ptrdiff_t)n0 * a->d;
    int32_t t, c;
    if (!w->g) return dy;
    for (t = 0; t < T; t++)
        for (c = 0; c < a->d; c++) w->g[t * a->d + c] = dy[(ptrdiff_t)t * a->d + c] * a->ls[c];
    return w->g;
}

/* dls[c] += sum over the panel's tokens of dy * z. */
static void vt_mlp_scale(const vt_mlp_block_grad_args *a, const float *z, int32_t n0, int32_t T, float *dls) {
    int32_t t, c;
    for (t = 0; t < T; t++)
        for (c = 0; c < a->d; c++) dls[c] = VT_FMA(a->dy[(ptrdiff_t)(n0 + t) * a->d + c], z[c * T + t], dls[c]);
}

/* Neither weight matrix wanted: token panels outside, one pass, sums for wanted vectors in scratch. */
static void vt_mlp_rows_outer(const vt_mlp_block_grad_args *a, const vt_step *s, vt_mlp_work *w, float *dls,
                              float *at) {
    const int32_t d = a->d, T0 = vt_width(a->n, a->rows), J = a->hidden < a->chunk ? a->hidden : a->chunk;
    const int want_gamma = vt_wanted(&a->d_gamma), want_beta = vt_wanted(&a->d_beta), want_b1 = vt_wanted(&a->d_b1);
    float *dgamma = at, *dbeta, *db1, *dln, *dh;
    int32_t n0, T, j0, j1, t, c;
    dbeta = dgamma + (want_gamma ? d : 0);
    db1 = dbeta + (want_beta ? d : 0);
    vt_fill(at, (want_gamma ? d : 0) + (want_beta ? d : 0) + (want_b1 ? a->hidden : 0), 0.0f);
    w->xt = db1 + (want_b1 ? a->hidden : 0);
    at = w->xt + (ptrdiff_t)d * T0;
    if (a->ls && w->need_hidden) { w->g = at; at += (ptrdiff_t)d * T0; }
    if (dls) { w->z = at; at += (ptrdiff_t)d * T0; }
    dln = at;
    if (w->need_norm) at += (ptrdiff_t)d * T0;
    w->h = at;
    dh = at + (ptrdiff_t)J * T0;
    for (n0 = 0; n0 < a->n; n0 += T) {
        float mean[16], rstd[16];
        const vt_norm nm = {a->norm ? mean : NULL, rstd, a->gamma, a->beta};
        const float *x = a->x + (ptrdiff_t)n0 * d, *g;
        T = vt_width(a->n - n0, a->rows);
        if (a->norm) vt_statistics(mean, rstd, x, T, d, a->eps);
        vt_load_panel(w->xt, T, x, d, 0, &nm);
        g = vt_mlp_rows(a, w, n0, T);
        if (w->z) vt_fill(w->z, d * T, 0.0f);
        if (w->need_norm) vt_fill(dln, d * T, 0.0f);
        for (j0 = 0; j0 < a->hidden; j0 = j1) {
            j1 = a->hidden - j0 > a->chunk ? j0 + a->chunk : a->hidden;
            vt_mlp_hidden(a, s, w, T, j0, j1, g, dh, dln, NULL, 0);
            if (want_b1)
                for (t = 0; t < T; t++)
                    for (c = j0; c < j1; c++) db1[c] += dh[t * J + c - j0];
        }
        if (dls) vt_mlp_scale(a, w->z, n0, T, dls);
        for (t = 0; t < T && w->need_norm; t++) {
            float *gl = dln + (ptrdiff_t)t * d;
            const float *xr = x + (ptrdiff_t)t * d;
            const float *dy = a->residual ? a->dy + (ptrdiff_t)(n0 + t) * d : NULL;
            float *dx = a->d_x ? a->d_x + (ptrdiff_t)(n0 + t) * d : NULL;
            if (want_gamma)
                for (c = 0; c < d; c++) dgamma[c] = VT_FMA(gl[c], (xr[c] - mean[t]) * rstd[t], dgamma[c]);
            if (want_beta)
                for (c = 0; c < d; c++) dbeta[c] += gl[c];
            if (dx && a->norm) {
                if (a->gamma)
                    for (c = 0; c < d; c++) gl[c] = gl[c] * a->gamma[c];
                vt_norm_backward(dx, gl, xr, dy, d, mean[t], rstd[t]);
            } else if (dx) {
                for (c = 0; c < d; c++) dx[c] = dy ? dy[c] + gl[c] : gl[c];
            }
        }
    }
    if (want_gamma) vt_apply(s, &a->d_gamma, 0, dgamma, d);
    if (want_beta) vt_apply(s, &a->d_beta, 0, dbeta, d);
    if (want_b1) vt_apply(s, &a->d_b1, 0, db1, a->hidden);
}

/* A weight matrix wanted: hidden chunks outside; each chunk's weights are updated when its last token has used them. */
static void vt_mlp_hidden_outer(const vt_mlp_block_grad_args *a, const vt_step *s, vt_mlp_work *w, float *dls,
                                float *at) {
    const int32_t n = a->n, d = a->d, T0 = vt_width(n, a->rows), J = a->hidden < a->chunk ? a->hidden : a->chunk;
    const int want_w2 = vt_wanted(&a->d_w2);
    const int32_t ld_keep = J < a->w2.trained.n_cols ? J : a->w2.trained.n_cols;
    float *mean = at, *rstd = at + n, *dln = a->d_x, *keep = NULL, *dh = NULL, *stage;
    vt_norm nm = {NULL, NULL, a->gamma, a->beta};
    int32_t n0, T, j0, j1, i, c;
    if (a->norm) {
        vt_statistics(mean, rstd, a->x, n, d, a->eps);
        nm.mean = mean;
        nm.rstd = rstd;
        at += 2 * n;
    }
    if (w->need_norm && !a->d_x) { dln = at; at += (ptrdiff_t)n * d; }
    if (want_w2) { keep = at; at += (ptrdiff_t)n * ld_keep; }
    if (w->need_hidden) { dh = at; at += (ptrdiff_t)n * J; }
    stage = w->xt = at;
    at += (ptrdiff_t)d * T0;
    if (a->ls && w->need_hidden) { w->g = at; at += (ptrdiff_t)d * T0; }
    if (dls) { w->z = at; at += (ptrdiff_t)d * T0; }
    w->h = at;
    for (i = 0; w->need_norm && i < n; i++) vt_fill(dln + (ptrdiff_t)i * d, d, 0.0f);
    for (j0 = 0; j0 < a->hidden; j0 = j1) {
        j1 = a->hidden - j0 > a->chunk ? j0 + a->chunk : a->hidden;
        for (n0 = 0; n0 < n; n0 += T) {
            const float *g;
            T = vt_width(n - n0, a->rows);
            vt_load_panel(w->xt, T, a->x, d, n0, &nm);
            g = vt_mlp_rows(a, w, n0, T);
            if (w->z) vt_fill(w->z, d * T, 0.0f);
            vt_mlp_hidden(a, s, w, T, j0, j1, g, dh ? dh + (ptrdiff_t)n0 * J : NULL, dln + (ptrdiff_t)n0 * d,
                          keep ? keep + (ptrdiff_t)n0 * ld_keep : NULL, ld_keep);
            if (dls) vt_mlp_scale(a, w->z, n0, T, dls);
        }
        if (vt_wanted(&a->d_w1))
            vt_weight_gradient(s, &a->d_w1, &a->w1.trained, j0, j1, 0, d, dh, J, 1, n, a->x, d, &nm, NULL, stage);
        if (want_w2) {
            const vt_part *p = &a->w2.trained;
            const int32_t k0 = vt_lower(p->cols, p->n_cols, j0), k1 = vt_lower(p->cols, p->n_cols, j1);
            int32_t j, lanes;
            for (j = k0; j < k1; j += lanes) {
                lanes = vt_width(k1 - j, VT_LANES);
                vt_weight_block(s, &a->d_w2, p, 0, p->n_rows, j, lanes, a->dy, d, 1, 0, n, keep + (j - k0), ld_keep,
                                a->ls);
            }
        }
        if (vt_wanted(&a->d_b1)) vt_bias_gradient(s, &a->d_b1, j0, dh, J, n, j1 - j0, NULL);
    }
    if (!w->need_norm) return;
    if (a->norm) vt_norm_parameters(s, &a->d_gamma, &a->d_beta, dln, a->x, n, d, &nm);
    for (i = 0; a->d_x && i < n; i++) {
        const ptrdiff_t k = (ptrdiff_t)i * d;
        const float *dy = a->residual ? a->dy + k : NULL;
        float *dx = a->d_x + k;
        if (a->norm) vt_norm_backward(dx, dx, a->x + k, dy, d, mean[i], rstd[i]);
        else if (dy)
            for (c = 0; c < d; c++) dx[c] = dy[c] + dx[c];
    }
}

/* Gradients of mlp_block; the hidden layer is computed again from x. d_x is made from the weights as they were. */
void vt_mlp_block_grad(const vt_mlp_block_grad_args *a, const vt_step *s) {
    const int want_w1 = vt_wanted(&a->d_w1), want_w2 = vt_wanted(&a->d_w2);
    float *at = (float *)a->scratch, *dls = NULL;
    vt_mlp_work w = {0, 0, NULL, NULL, NULL, NULL};
    int32_t c;
    w.need_norm = a->d_x || (a->norm && (vt_wanted(&a->d_gamma) || vt_wanted(&a->d_beta)));
    w.need_hidden = w.need_norm || vt_wanted(&a->d_b1) || want_w1;
    if (vt_wanted(&a->d_ls)) {
        dls = at;
        at += a->d;
        vt_column_sums(dls, a->dy, a->d, a->n, a->d);
        for (c = 0; c < a->d; c++) dls[c] = a->b2 ? dls[c] * a->b2[c] : 0.0f;
    }
    if (vt_wanted(&a->d_b2)) vt_bias_gradient(s, &a->d_b2, 0, a->dy, a->d, a->n, a->d, a->ls);
    if (want_w1 || want_w2) vt_mlp_hidden_outer(a, s, &w, dls, at);
    else if (w.need_hidden || dls) vt_mlp_rows_outer(a, s, &w, dls, at);
    if (dls) vt_apply(s, &a->d_ls, 0, dls, a->d);
}
