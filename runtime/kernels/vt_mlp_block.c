/* The MLP of a transformer block, streamed: its hidden layer exists `rows` tokens by `chunk` features at a time. */
#include "vt_mlp_block.h"
#include "vt_lora.h"

/* See the header. y may be x: a row of x is read for the last time when its row of y is written. */
void vt_mlp_block(const vt_mlp_block_args *a, const vt_step *s) {
    const int32_t d = a->d, T0 = vt_width(a->n, a->rows);
    const vt_lora one = {a->fc1_a, a->fc1_b, a->fc1_rank, d, a->fc1_scale};
    const vt_lora two = {a->fc2_a, a->fc2_b, a->fc2_rank, a->hidden, a->fc2_scale};
    float *low1 = (float *)a->scratch, *low2 = low1 + one.r * T0;
    float *xt = low2 + two.r * T0, *yt = xt + (ptrdiff_t)d * T0, *h = yt + (ptrdiff_t)d * T0;
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
        if (one.r) vt_lora_down(s, &one, low1, T, 0, d, xt);
        vt_fill(low2, two.r * T, 0.0f);
        for (j0 = 0; j0 < a->hidden; j0 = j1) {
            j1 = a->hidden - j0 > a->chunk ? j0 + a->chunk : a->hidden;
            vt_fill_panel(h, j1 - j0, T, a->b1 ? a->b1 + j0 : NULL);
            vt_forward(s, h, T, &a->w1, j0, j1, 0, d, xt);
            if (one.r) vt_lora_up(s, &one, h, T, j0, j1, low1);
            vt_act(h, (j1 - j0) * T, a->act);
            vt_forward(s, yt, T, &a->w2, 0, d, j0, j1, h);
            if (two.r) vt_lora_more(s, &two, low2, T, j0, j1, h);
        }
        if (two.r) {
            vt_lora_scale(&two, low2, T);
            vt_lora_up(s, &two, yt, T, 0, d, low2);
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
    vt_lora one, two;            /* the low-rank additions; see vt_lora.h for low1, low2 */
    float *low1, *dlow1;         /* (n or T, fc1_rank) rows; dlow1 of the gradient, or NULL */
    float *low2, *dlow2;         /* (n or T, fc2_rank) rows; either may be NULL */
    float *lt;                   /* panel of either rank */
    float *da1, *db1, *da2, *db2;    /* sums for the gradients, one row of ranks a feature; NULL: not wanted */
} vt_mlp_work;

/* Buffers of the low-rank additions, for `tokens` tokens and sums over `features` hidden features; returns what is
 * free. The sums start from 0. */
static float *vt_mlp_low_layout(const vt_mlp_block_grad_args *a, vt_mlp_work *w, int with_ls, int32_t tokens,
                                int32_t features, float *at) {
    const int32_t r1 = w->one.r, r2 = w->two.r, T0 = vt_width(a->n, a->rows);
    float *const start = at;
    if (vt_wanted(&a->d_fc1_a)) { w->da1 = at; at += (ptrdiff_t)a->d * r1; }
    if (vt_wanted(&a->d_fc1_b)) { w->db1 = at; at += (ptrdiff_t)features * r1; }
    if (vt_wanted(&a->d_fc2_a)) { w->da2 = at; at += (ptrdiff_t)features * r2; }
    if (vt_wanted(&a->d_fc2_b)) { w->db2 = at; at += (ptrdiff_t)a->d * r2; }
    vt_fill(start, (int32_t)(at - start), 0.0f);
    w->low1 = at; at += (ptrdiff_t)tokens * r1;
    if (r1 && (w->need_norm || w->da1)) { w->dlow1 = at; at += (ptrdiff_t)tokens * r1; }
    if (r2 && (with_ls || w->db2)) { w->low2 = at; at += (ptrdiff_t)tokens * r2; }
    if (r2 && (w->need_hidden || w->da2)) { w->dlow2 = at; at += (ptrdiff_t)tokens * r2; }
    w->lt = at;
    return at + (r1 > r2 ? r1 : r2) * T0;
}

/* Before the first hidden feature of a panel of tokens, rows i.. of the low buffers. g (T, d): rows of ls * dy. */
static void vt_mlp_low_begin(const vt_mlp_block_grad_args *a, const vt_step *s, const vt_mlp_work *w, int32_t i,
                             int32_t T, const float *g) {
    const int32_t d = a->d, r1 = w->one.r, r2 = w->two.r;
    if (r1) {
        vt_lora_down(s, &w->one, w->lt, T, 0, d, w->xt);
        vt_panel_to_rows(w->low1 + (ptrdiff_t)i * r1, r1, w->lt, T, r1);
    }
    if (w->dlow1) vt_fill(w->dlow1 + (ptrdiff_t)i * r1, T * r1, 0.0f);
    if (w->low2) vt_fill(w->low2 + (ptrdiff_t)i * r2, T * r2, 0.0f);
    if (w->dlow2) {
        float *low = w->dlow2 + (ptrdiff_t)i * r2;
        vt_fill(low, T * r2, 0.0f);
        vt_lora_collect(s, &w->two, low, T, 0, d, g, d);
        vt_lora_scale(&w->two, low, T);
    }
}

/* After the last hidden feature of a panel: tokens n0..n0+T, rows i.. of the low buffers. */
static void vt_mlp_low_end(const vt_mlp_block_grad_args *a, const vt_step *s, const vt_mlp_work *w, int32_t n0,
                           int32_t i, int32_t T, float *dln) {
    const int32_t d = a->d, r1 = w->one.r, r2 = w->two.r;
    if (w->low2) {
        float *low = w->low2 + (ptrdiff_t)i * r2;
        vt_lora_scale(&w->two, low, T);
        if (w->z) {
            vt_rows_to_panel(w->lt, T, low, r2, r2);
            vt_lora_up(s, &w->two, w->z, T, 0, d, w->lt);
        }
        if (w->db2) vt_dense(s, w->db2, r2, d, r2, T, a->dy + (ptrdiff_t)n0 * d, 1, d, low, r2);
    }
    if (w->dlow1) {
        float *low = w->dlow1 + (ptrdiff_t)i * r1;
        vt_lora_scale(&w->one, low, T);
        if (w->need_norm) vt_lora_spread(s, &w->one, dln, d, T, 0, d, low);
        if (w->da1) vt_dense(s, w->da1, r1, d, r1, T, w->xt, T, 1, low, r1);
    }
}

/* Hands sums (n, r), one row a feature, to a matrix (r, cols) from its column c0 on. */
static void vt_mlp_low_turned(const vt_step *s, const vt_sink *k, const float *sums, int32_t n, int32_t r, int32_t cols,
                              int32_t c0) {
    int32_t i, c;
    for (i = 0; i < r; i++)
        for (c = 0; c < n; c++) vt_apply(s, k, (ptrdiff_t)i * cols + c0 + c, sums + c * r + i, 1);
}

/* The gradients of hidden features j0..j0+n, whose sums are complete. */
static void vt_mlp_low_hidden(const vt_mlp_block_grad_args *a, const vt_step *s, const vt_mlp_work *w, int32_t j0,
                              int32_t n) {
    if (w->db1) vt_apply(s, &a->d_fc1_b, (ptrdiff_t)j0 * w->one.r, w->db1, n * w->one.r);
    if (w->da2) vt_mlp_low_turned(s, &a->d_fc2_a, w->da2, n, w->two.r, a->hidden, j0);
}

/* The gradients of the input's and the result's features, after all tokens. */
static void vt_mlp_low_outer(const vt_mlp_block_grad_args *a, const vt_step *s, const vt_mlp_work *w) {
    int32_t c, k;
    if (w->da1) vt_mlp_low_turned(s, &a->d_fc1_a, w->da1, a->d, w->one.r, a->d, 0);
    if (!w->db2) return;
    for (c = 0; a->ls && c < a->d; c++)
        for (k = 0; k < w->two.r; k++) w->db2[c * w->two.r + k] = w->db2[c * w->two.r + k] * a->ls[c];
    vt_apply(s, &a->d_fc2_b, 0, w->db2, a->d * w->two.r);
}

/* One panel and one hidden chunk: dh (T, j1 - j0; ld J) = gradient before the activation, dln (T, d) += its share of
 * the gradient of LN(x), z += its share of the result, keep (T, kept; ld ld_keep) = the hidden values of the columns
 * that w2 trains. The panel's low-rank rows start at i, the chunk's sums at feature f. */
static void vt_mlp_hidden(const vt_mlp_block_grad_args *a, const vt_step *s, const vt_mlp_work *w, int32_t T,
                          int32_t j0, int32_t j1, int32_t i, int32_t f, const float *g, float *dh, float *dln,
                          float *keep, int32_t ld_keep) {
    const int32_t d = a->d, n = j1 - j0, r1 = w->one.r, r2 = w->two.r;
    const int32_t ld = a->hidden < a->chunk ? a->hidden : a->chunk;
    int32_t t, j;
    vt_fill_panel(w->h, n, T, a->b1 ? a->b1 + j0 : NULL);
    vt_forward(s, w->h, T, &a->w1, j0, j1, 0, d, w->xt);
    if (r1) {
        vt_rows_to_panel(w->lt, T, w->low1 + (ptrdiff_t)i * r1, r1, r1);
        vt_lora_up(s, &w->one, w->h, T, j0, j1, w->lt);
    }
    if (w->z || keep || w->low2 || w->da2) {
        float *act = w->need_hidden ? dh : w->h;
        if (w->need_hidden)
            for (j = 0; j < n * T; j++) act[j] = w->h[j];
        vt_act(act, n * T, a->act);
        if (w->z) vt_forward(s, w->z, T, &a->w2, 0, d, j0, j1, act);
        if (w->low2) {
            float *low = w->low2 + (ptrdiff_t)i * r2;
            vt_rows_to_panel(w->lt, T, low, r2, r2);
            vt_lora_more(s, &w->two, w->lt, T, j0, j1, act);
            vt_panel_to_rows(low, r2, w->lt, T, r2);
        }
        if (w->da2) vt_dense(s, w->da2 + (ptrdiff_t)f * r2, r2, n, r2, T, act, T, 1, w->dlow2 + (ptrdiff_t)i * r2, r2);
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
    if (r2) vt_lora_spread(s, &w->two, dh, ld, T, j0, j1, w->dlow2 + (ptrdiff_t)i * r2);
    for (t = 0; t < T; t++)
        for (j = 0; j < n; j++) dh[t * ld + j] = dh[t * ld + j] * w->h[j * T + t];
    if (w->need_norm) vt_backward(s, dln, d, T, &a->w1, j0, j1, 0, d, dh, ld, 1);
    if (w->dlow1) vt_lora_collect(s, &w->one, w->dlow1 + (ptrdiff_t)i * r1, T, j0, j1, dh, ld);
    if (w->db1) vt_dense(s, w->db1 + (ptrdiff_t)f * r1, r1, n, r1, T, dh, 1, ld, w->low1 + (ptrdiff_t)i * r1, r1);
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
    w->xt = vt_mlp_low_layout(a, w, dls != NULL, T0, a->hidden, db1 + (want_b1 ? a->hidden : 0));
    at = w->xt + (ptrdiff_t)d * T0;
    if (a->ls && (w->need_hidden || w->dlow2)) { w->g = at; at += (ptrdiff_t)d * T0; }
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
        vt_mlp_low_begin(a, s, w, 0, T, g);
        for (j0 = 0; j0 < a->hidden; j0 = j1) {
            j1 = a->hidden - j0 > a->chunk ? j0 + a->chunk : a->hidden;
            vt_mlp_hidden(a, s, w, T, j0, j1, 0, j0, g, dh, dln, NULL, 0);
            if (want_b1)
                for (t = 0; t < T; t++)
                    for (c = j0; c < j1; c++) db1[c] += dh[t * J + c - j0];
        }
        vt_mlp_low_end(a, s, w, n0, 0, T, dln);
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
    vt_mlp_low_hidden(a, s, w, 0, a->hidden);
    vt_mlp_low_outer(a, s, w);
}

/* A weight matrix wanted: hidden chunks outside; each chunk's weights are updated when its last token has used them. */
static void vt_mlp_hidden_outer(const vt_mlp_block_grad_args *a, const vt_step *s, vt_mlp_work *w, float *dls,
                                float *at) {
    const int32_t n = a->n, d = a->d, T0 = vt_width(n, a->rows), J = a->hidden < a->chunk ? a->hidden : a->chunk;
    const int want_w2 = vt_wanted(&a->d_w2), low = w->one.r || w->two.r;
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
    at = vt_mlp_low_layout(a, w, dls != NULL, n, J, at);
    stage = w->xt = at;
    at += (ptrdiff_t)d * T0;
    if (a->ls && (w->need_hidden || w->dlow2)) { w->g = at; at += (ptrdiff_t)d * T0; }
    if (dls) { w->z = at; at += (ptrdiff_t)d * T0; }
    w->h = at;
    for (i = 0; w->need_norm && i < n; i++) vt_fill(dln + (ptrdiff_t)i * d, d, 0.0f);
    for (n0 = 0; low && n0 < n; n0 += T) {
        T = vt_width(n - n0, a->rows);
        vt_load_panel(w->xt, T, a->x, d, n0, &nm);
        vt_mlp_low_begin(a, s, w, n0, T, vt_mlp_rows(a, w, n0, T));
    }
    for (j0 = 0; j0 < a->hidden; j0 = j1) {
        j1 = a->hidden - j0 > a->chunk ? j0 + a->chunk : a->hidden;
        if (w->db1) vt_fill(w->db1, J * w->one.r, 0.0f);
        if (w->da2) vt_fill(w->da2, J * w->two.r, 0.0f);
        for (n0 = 0; n0 < n; n0 += T) {
            const float *g;
            T = vt_width(n - n0, a->rows);
            vt_load_panel(w->xt, T, a->x, d, n0, &nm);
            g = vt_mlp_rows(a, w, n0, T);
            if (w->z) vt_fill(w->z, d * T, 0.0f);
            vt_mlp_hidden(a, s, w, T, j0, j1, n0, 0, g, dh ? dh + (ptrdiff_t)n0 * J : NULL, dln + (ptrdiff_t)n0 * d,
                          keep ? keep + (ptrdiff_t)n0 * ld_keep : NULL, ld_keep);
            if (dls) vt_mlp_scale(a, w->z, n0, T, dls);
        }
        if (vt_wanted(&a->d_w1))
            vt_weight_gradient_normed(s, &a->d_w1, &a->w1.trained, j0, j1, 0, d, dh, J, 1, n, a->x, d, &nm, NULL, stage);
        if (want_w2) {
            const vt_part *p = &a->w2.trained;
            const int32_t k0 = vt_lower(p->cols, p->n_cols, j0), k1 = vt_lower(p->cols, p->n_cols, j1);
            vt_weight_block(s, &a->d_w2, p, 0, p->n_rows, k0, k1, a->dy, d, 1, 0, n, keep, ld_keep, NULL, 0, a->ls);
        }
        if (vt_wanted(&a->d_b1)) vt_bias_gradient(s, &a->d_b1, j0, dh, J, n, j1 - j0, NULL);
        vt_mlp_low_hidden(a, s, w, j0, j1 - j0);
    }
    for (n0 = 0; low && n0 < n; n0 += T) {
        T = vt_width(n - n0, a->rows);
        vt_load_panel(w->xt, T, a->x, d, n0, &nm);
        if (w->z) vt_fill(w->z, d * T, 0.0f);
        vt_mlp_low_end(a, s, w, n0, n0, T, w->need_norm ? dln + (ptrdiff_t)n0 * d : NULL);
        if (dls) vt_mlp_scale(a, w->z, n0, T, dls);
    }
    vt_mlp_low_outer(a, s, w);
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
    const vt_lora one = {a->fc1_a, a->fc1_b, a->fc1_rank, a->d, a->fc1_scale};
    const vt_lora two = {a->fc2_a, a->fc2_b, a->fc2_rank, a->hidden, a->fc2_scale};
    vt_mlp_work w;
    int32_t c;
    w.one = one;
    w.two = two;
    w.xt = w.g = w.z = w.h = w.low1 = w.dlow1 = w.low2 = w.dlow2 = w.lt = NULL;
    w.da1 = w.db1 = w.da2 = w.db2 = NULL;
    w.need_norm = a->d_x || (a->norm && (vt_wanted(&a->d_gamma) || vt_wanted(&a->d_beta)));
    w.need_hidden = w.need_norm || vt_wanted(&a->d_b1) || want_w1 || vt_wanted(&a->d_fc1_a) || vt_wanted(&a->d_fc1_b);
    if (vt_wanted(&a->d_ls)) {
        dls = at;
        at += a->d;
        vt_column_sums(dls, a->dy, a->d, a->n, a->d);
        for (c = 0; c < a->d; c++) dls[c] = a->b2 ? dls[c] * a->b2[c] : 0.0f;
    }
    if (vt_wanted(&a->d_b2)) vt_bias_gradient(s, &a->d_b2, 0, a->dy, a->d, a->n, a->d, a->ls);
    if (want_w1 || want_w2) vt_mlp_hidden_outer(a, s, &w, dls, at);
    else if (w.need_hidden || dls || vt_wanted(&a->d_fc2_a) || vt_wanted(&a->d_fc2_b)) vt_mlp_rows_outer(a, s, &w, dls, at);
    if (dls) vt_apply(s, &a->d_ls, 0, dls, a->d);
}
