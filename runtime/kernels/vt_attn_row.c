/* Attention when only the first query row is made (class token). Keys and values are never formed: with one query,
 * s_n = x_n . (Wk^T q) and o = Wv (sum_n p_n x_n), x the normalised rows; the bias of the keys moves all scores by the
 * same amount and drops out, so its gradient is exactly zero. One head costs 2 n width multiply-adds instead of
 * 2 n width d. A low-rank addition belongs to the weights: Wk + scale B A instead of Wk. */
#include "vt_attn_row.h"
#include "vt_attend.h"
#include "vt_lora.h"

/* low (r,) = scale * B[o0..o1]^T g, and y (c,) += A^T low when y is given. */
static void vt_low_row(const vt_step *s, const vt_lora *l, float *low, int32_t o0, int32_t o1, const float *g,
                       float *y) {
    vt_fill(low, l->r, 0.0f);
    vt_lora_collect(s, l, low, 1, o0, o1, g, o1 - o0);
    vt_lora_scale(l, low, 1);
    if (y) vt_lora_spread(s, l, y, l->c, 1, 0, l->c, low);
}

/* o of each head goes to y's columns of the head. scratch: low (qkv_rank), xr, u, xbar (width each), q (d). */
void vt_attn_row(const vt_attn_block_args *a, const vt_step *s, const float *mean, const float *rstd, float *scratch) {
    const int32_t width = a->d, d = width / a->heads;
    const float scale = 1.0f / VT_SQRT((float)d);
    const vt_norm nm = {mean, rstd, a->gamma, a->beta};
    const vt_lora lora = {a->qkv_a, a->qkv_b, a->qkv_rank, width, a->qkv_scale};
    float *low = scratch, *xr = low + lora.r, *u = xr + width, *xbar = u + width, *q = xbar + width;
    int32_t h, i, c;
    for (h = 0; h < a->heads; h++) {
        float m = vt_minus_infinity(), l = 0.0f, *o = a->y + h * d;
        vt_load_rows(xr, width, a->x, width, 0, 1, &nm);
        vt_fill_panel(q, d, 1, a->bqkv ? a->bqkv + h * d : NULL);
        vt_forward(s, q, 1, &a->wqkv, h * d, (h + 1) * d, 0, width, xr);
        if (lora.r) {
            vt_lora_down(s, &lora, low, 1, 0, width, xr);
            vt_lora_up(s, &lora, q, 1, h * d, (h + 1) * d, low);
        }
        for (c = 0; c < d; c++) q[c] = q[c] * scale;
        vt_fill(u, width, 0.0f);
        vt_backward(s, u, width, 1, &a->wqkv, width + h * d, width + (h + 1) * d, 0, width, q, d, 1);
        if (lora.r) vt_low_row(s, &lora, low, width + h * d, width + (h + 1) * d, q, u);
        vt_fill(xbar, width, 0.0f);
        VT_COUNT(s, 2 * (uint64_t)a->n * (uint64_t)width);
        for (i = 0; i < a->n; i++) {
            float score, p;
            vt_load_rows(xr, width, a->x, width, i, 1, &nm);
            score = vt_dot(xr, u, width);
            if (score > m) {
                const float corr = vt_expf(m - score);
                l = l * corr;
                for (c = 0; c < width; c++) xbar[c] = xbar[c] * corr;
                m = score;
            }
            p = vt_expf(score - m);
            l += p;
            for (c = 0; c < width; c++) xbar[c] = VT_FMA(p, xr[c], xbar[c]);
        }
        for (c = 0; c < width; c++) xbar[c] = xbar[c] / l;
        vt_fill_panel(o, d, 1, a->bqkv ? a->bqkv + 2 * width + h * d : NULL);
        vt_forward(s, o, 1, &a->wqkv, 2 * width + h * d, 2 * width + (h + 1) * d, 0, width, xbar);
        if (lora.r) {
            vt_lora_down(s, &lora, low, 1, 0, width, xbar);
            vt_lora_up(s, &lora, o, 1, 2 * width + h * d, 2 * width + (h + 1) * d, low);
        }
    }
}

/* Gradients through one row. scratch: da (qkv_rank, width) if d_qkv_a is wanted, low_x, low_s, low_v, low_q, low_k,
 * low_g (qkv_rank each), pg, po, pl (proj_rank each), g (width) if ls, xr, u, v, xs, xbar (width each), q, go, dq, o
 * (d each), p, dp (n each). */
void vt_attn_row_grad(const vt_attn_block_grad_args *a, const vt_step *s, const float *mean, const float *rstd,
                      float *dln, float *dls, float *scratch) {
    const int32_t n = a->n, width = a->d, d = width / a->heads;
    const float scale = 1.0f / VT_SQRT((float)d);
    const vt_norm nm = {mean, rstd, a->gamma, a->beta};
    const int want_qkv = vt_wanted(&a->d_wqkv), want_bias = vt_wanted(&a->d_bqkv), want_proj = vt_wanted(&a->d_wproj);
    const int want_a = vt_wanted(&a->d_qkv_a), want_b = vt_wanted(&a->d_qkv_b);
    const int want_pa = vt_wanted(&a->d_proj_a), want_pb = vt_wanted(&a->d_proj_b);
    const int need_o = dls || want_proj || want_pa || want_pb;
    const int need_q = dln || want_qkv || want_bias || want_a || want_b;
    const int32_t r = a->qkv_rank, rp = a->proj_rank;
    const vt_lora qkv = {a->qkv_a, a->qkv_b, r, width, a->qkv_scale};
    const vt_lora proj = {a->proj_a, a->proj_b, rp, width, a->proj_scale};
    const vt_part up = {a->qkv_b, NULL, NULL, 3 * width, r}, out = {a->proj_b, NULL, NULL, width, rp};
    float *da = scratch, *low_x = da + (want_a ? (ptrdiff_t)r * width : 0), *low_s = low_x + r, *low_v = low_s + r;
    float *low_q = low_v + r, *low_k = low_q + r, *low_g = low_k + r, *pg = low_g + r, *po = pg + rp, *pl = po + rp;
    float *xr, *u, *v, *xs, *xbar, *q, *go, *dq, *o, *p, *dp;
    const float *g = a->dy;
    int32_t h, i, c;
    scratch = pl + rp;
    if (want_a) vt_fill(da, r * width, 0.0f);
    if (a->ls) {
        for (c = 0; c < width; c++) scratch[c] = a->dy[c] * a->ls[c];
        g = scratch;
        scratch += width;
    }
    xr = scratch; u = xr + width; v = u + width; xs = v + width; xbar = xs + width;
    q = xbar + width; go = q + d; dq = go + d; o = dq + d;
    p = o + d; dp = p + n;
    vt_fill(po, rp, 0.0f);
    if (rp) vt_low_row(s, &proj, pg, 0, width, g, NULL);
    if (r) {
        vt_load_rows(xr, width, a->x, width, 0, 1, &nm);
        vt_lora_down(s, &qkv, low_x, 1, 0, width, xr);
    }
    for (h = 0; h < a->heads; h++) {
        float m = vt_minus_infinity(), sum = 0.0f, delta = 0.0f;
        vt_load_rows(xr, width, a->x, width, 0, 1, &nm);
        vt_fill_panel(q, d, 1, a->bqkv ? a->bqkv + h * d : NULL);
        vt_forward(s, q, 1, &a->wqkv, h * d, (h + 1) * d, 0, width, xr);
        if (r) vt_lora_up(s, &qkv, q, 1, h * d, (h + 1) * d, low_x);
        for (c = 0; c < d; c++) q[c] = q[c] * scale;
        vt_fill(u, width, 0.0f);
        vt_backward(s, u, width, 1, &a->wqkv, width + h * d, width + (h + 1) * d, 0, width, q, d, 1);
        if (r) vt_low_row(s, &qkv, low_k, width + h * d, width + (h + 1) * d, q, u);
        vt_fill(go, d, 0.0f);
        vt_backward(s, go, d, 1, &a->wproj, 0, width, h * d, (h + 1) * d, g, width, 1);
        if (rp) vt_lora_spread(s, &proj, go, d, 1, h * d, (h + 1) * d, pg);
        vt_fill(v, width, 0.0f);
        vt_backward(s, v, width, 1, &a->wqkv, 2 * width + h * d, 2 * width + (h + 1) * d, 0, width, go, d, 1);
        if (r) vt_low_row(s, &qkv, low_g, 2 * width + h * d, 2 * width + (h + 1) * d, go, v);
        VT_COUNT(s, (uint64_t)(4 + 2 * (dln != NULL)) * (uint64_t)n * (uint64_t)width);
        for (i = 0; i < n; i++) {
            vt_load_rows(xr, width, a->x, width, i, 1, &nm);
            p[i] = vt_dot(xr, u, width);
            dp[i] = vt_dot(xr, v, width);
            m = p[i] > m ? p[i] : m;
        }
        for (i = 0; i < n; i++) {
            p[i] = vt_expf(p[i] - m);
            sum += p[i];
        }
        for (i = 0; i < n; i++) {
            p[i] = p[i] / sum;
            delta = VT_FMA(p[i], dp[i], delta);
        }
        vt_fill(xs, width, 0.0f);
        vt_fill(xbar, width, 0.0f);
        for (i = 0; i < n; i++) {
            const float pi = p[i], ds = pi * (dp[i] - delta);
            vt_load_rows(xr, width, a->x, width, i, 1, &nm);
            for (c = 0; c < width; c++) {
                xs[c] = VT_FMA(ds, xr[c], xs[c]);
                xbar[c] = VT_FMA(pi, xr[c], xbar[c]);
            }
            if (dln) {
                float *dl = dln + (ptrdiff_t)i * width;
                for (c = 0; c < width; c++) dl[c] = VT_FMA(pi, v[c], VT_FMA(ds, u[c], dl[c]));
            }
        }
        if (need_q) {
            vt_fill(dq, d, 0.0f);
            vt_forward(s, dq, 1, &a->wqkv, width + h * d, width + (h + 1) * d, 0, width, xs);
            if (r) {
                vt_lora_down(s, &qkv, low_s, 1, 0, width, xs);
                vt_lora_up(s, &qkv, dq, 1, width + h * d, width + (h + 1) * d, low_s);
            }
            for (c = 0; c < d; c++) dq[c] = dq[c] * scale;
            if (dln) vt_backward(s, dln, width, 1, &a->wqkv, h * d, (h + 1) * d, 0, width, dq, d, 1);
            if (r && (dln || want_a)) vt_low_row(s, &qkv, low_q, h * d, (h + 1) * d, dq, dln);
        }
        if (r && (need_o || want_b)) vt_lora_down(s, &qkv, low_v, 1, 0, width, xbar);
        if (need_o) {
            vt_fill_panel(o, d, 1, a->bqkv ? a->bqkv + 2 * width + h * d : NULL);
            vt_forward(s, o, 1, &a->wqkv, 2 * width + h * d, 2 * width + (h + 1) * d, 0, width, xbar);
            if (r) vt_lora_up(s, &qkv, o, 1, 2 * width + h * d, 2 * width + (h + 1) * d, low_v);
        }
        if (rp && (dls || want_pb)) {
            vt_lora_down(s, &proj, pl, 1, h * d, (h + 1) * d, o);
            for (i = 0; i < rp; i++) po[i] += pl[i];
        }
        if (dls) {
            vt_fill(xr, width, 0.0f);
            vt_forward(s, xr, 1, &a->wproj, 0, width, h * d, (h + 1) * d, o);
            if (rp) vt_lora_up(s, &proj, xr, 1, 0, width, pl);
            for (c = 0; c < width; c++) dls[c] = VT_FMA(a->dy[c], xr[c], dls[c]);
        }
        if (want_qkv) {
            const vt_sink *k = &a->d_wqkv;
            const vt_part *w = &a->wqkv.trained;
            vt_load_rows(xr, width, a->x, width, 0, 1, &nm);
            vt_weight_gradient(s, k, w, h * d, (h + 1) * d, 0, width, dq, d, 1, 1, xr, width, NULL);
            vt_weight_gradient(s, k, w, width + h * d, width + (h + 1) * d, 0, width, q, d, 1, 1, xs, width, NULL);
            vt_weight_gradient(s, k, w, 2 * width + h * d, 2 * width + (h + 1) * d, 0, width, go, d, 1, 1, xbar, width,
                               NULL);
        }
        if (want_proj)
            vt_weight_gradient(s, &a->d_wproj, &a->wproj.trained, 0, width, h * d, (h + 1) * d, a->dy, width, 1, 1, o,
                               d, a->ls);
        for (i = 0; want_b && i < 3; i++) {
            const int32_t o0 = i * width + h * d;
            vt_weight_gradient(s, &a->d_qkv_b, &up, o0, o0 + d, 0, r, i == 0 ? dq : i == 1 ? q : go, d, 1, 1,
                               i == 0 ? low_x : i == 1 ? low_s : low_v, r, NULL);
        }
        if (want_bias) {
            vt_apply(s, &a->d_bqkv, h * d, dq, d);
            vt_fill(dq, d, 0.0f);
            vt_apply(s, &a->d_bqkv, width + h * d, dq, d);
            vt_apply(s, &a->d_bqkv, 2 * width + h * d, go, d);
        }
        if (want_a) {
            vt_load_rows(xr, width, a->x, width, 0, 1, &nm);
            vt_dense(s, da, width, r, width, 1, low_q, 1, 1, xr, width);
            vt_dense(s, da, width, r, width, 1, low_k, 1, 1, xs, width);
            vt_dense(s, da, width, r, width, 1, low_g, 1, 1, xbar, width);
        }
        if (want_pa) {                       /* rows of A, this head's columns */
            for (i = 0; i < rp; i++) {
                for (c = 0; c < d; c++) xr[c] = pg[i] * o[c];
                vt_apply(s, &a->d_proj_a, (ptrdiff_t)i * width + h * d, xr, d);
            }
            VT_COUNT(s, (uint64_t)rp * (uint64_t)d);
        }
    }
    if (want_a) vt_apply(s, &a->d_qkv_a, 0, da, r * width);
    if (want_pb)
        vt_weight_gradient(s, &a->d_proj_b, &out, 0, width, 0, rp, a->dy, width, 1, 1, po, rp, a->ls);
}
