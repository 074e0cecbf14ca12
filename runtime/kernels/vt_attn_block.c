/* The attention of a transformer block, streamed: one head at a time, `rows` queries by `key_block` keys. */
#include "vt_attn_block.h"
#include "vt_attend.h"
#include "vt_attn_row.h"
#include "vt_gradient.h"
#include "vt_gram_part.h"
#include "vt_lora.h"

/* Where the queries, keys and values of a head come from: w times LN(x) + bias + the low-rank addition.
 * xt (width, rows), out (d, rows) and lt (r, rows) are panels to work in; low (n, r) as in vt_lora.h. */
typedef struct {
    const float *x;
    const vt_norm *nm;
    const vt_matrix *w;
    const float *bias;
    int32_t width, d, rows;
    float *xt, *out;
    vt_lora lora;
    float *low, *lt;
} vt_head_source;

/* low of all n tokens. */
static void vt_source_low(const vt_head_source *a, const vt_step *s, int32_t n) {
    int32_t n0, T;
    for (n0 = 0; n0 < n; n0 += T) {
        T = vt_width(n - n0, a->rows);
        vt_load_panel(a->xt, T, a->x, a->width, n0, a->nm);
        vt_lora_down(s, &a->lora, a->lt, T, 0, a->width, a->xt);
        vt_panel_to_rows(a->low + (ptrdiff_t)n0 * a->lora.r, a->lora.r, a->lt, T, a->lora.r);
    }
}

/* The panels xt and lt of tokens n0..n0+T. */
static void vt_source_panel(const vt_head_source *a, int32_t n0, int32_t T) {
    vt_load_panel(a->xt, T, a->x, a->width, n0, a->nm);
    if (a->lora.r) vt_rows_to_panel(a->lt, T, a->low + (ptrdiff_t)n0 * a->lora.r, a->lora.r, a->lora.r);
}

/* out (d, T) = scale * features o0..o0+d of the tokens in the panels xt and lt. */
static void vt_head(const vt_head_source *a, const vt_step *s, float *out, int32_t T, int32_t o0, float scale) {
    const int32_t d = a->d;
    int32_t i;
    vt_fill_panel(out, d, T, a->bias ? a->bias + o0 : NULL);
    vt_forward(s, out, T, a->w, o0, o0 + d, 0, a->width, a->xt);
    if (a->lora.r) vt_lora_up(s, &a->lora, out, T, o0, o0 + d, a->lt);
    if (scale != 1.0f)
        for (i = 0; i < d * T; i++) out[i] = out[i] * scale;
}

/* K, V (k1 - k0, d; ld) = keys and values of head h for tokens k0..k1, and, when q is given, q (scaled queries). */
static void vt_keys_values(const vt_head_source *a, const vt_step *s, int32_t h, int32_t k0, int32_t k1, float *K,
                           float *V, float *q, ptrdiff_t ld) {
    int32_t n0, T;
    for (n0 = k0; n0 < k1; n0 += T) {
        T = vt_width(k1 - n0, a->rows);
        vt_source_panel(a, n0, T);
        if (q) {
            vt_head(a, s, a->out, T, h * a->d, 1.0f / VT_SQRT((float)a->d));
            vt_panel_to_rows(q + n0 * (ptrdiff_t)a->width, a->width, a->out, T, a->d);
        }
        vt_head(a, s, a->out, T, a->width + h * a->d, 1.0f);
        vt_panel_to_rows(K + (n0 - k0) * ld, ld, a->out, T, a->d);
        vt_head(a, s, a->out, T, 2 * a->width + h * a->d, 1.0f);
        vt_panel_to_rows(V + (n0 - k0) * ld, ld, a->out, T, a->d);
    }
}

/* One panel of queries against nk keys. First and last say where the panel stands in its sequence of key blocks. */
static void vt_panel_attend(const vt_step *s, const float *K, const float *V, ptrdiff_t ld, int32_t nk, const float *qt,
                            int32_t T, int32_t d, float *m, float *l, float *o, float *st, float *y, int32_t width,
                            int first, int last) {
    int32_t c, t;
    if (first) {
        vt_fill(m, T, vt_minus_infinity());
        vt_fill(l, T, 0.0f);
        vt_fill(o, d * T, 0.0f);
    } else {
        for (t = 0; t < T; t++)
            for (c = 0; c < d; c++) o[t * d + c] = y[(ptrdiff_t)t * width + c];
    }
    vt_attend(s, K, ld, V, ld, nk, qt, T, d, d, m, l, o, d, st);
    for (t = 0; t < T; t++)
        for (c = 0; c < d; c++) y[(ptrdiff_t)t * width + c] = last ? o[t * d + c] / l[t] : o[t * d + c];
}

/* o of all heads into y (n, width). With key_block < n, free columns of y serve as store: keys, values and queries of
 * a head stand in the columns of later heads, so that only the last two heads go block by block, and only the last
 * one computes its queries again for each block. */
static void vt_all_heads(const vt_attn_block_args *a, const vt_step *s, const vt_norm *nm, float *at) {
    const int32_t n = a->n, width = a->d, d = width / a->heads, T0 = vt_width(n, a->rows);
    const int whole = a->key_block >= n;
    const int32_t B = whole ? n : a->key_block;
    const int32_t r = a->qkv_rank;
    float *low = at, *lt = low + (ptrdiff_t)n * r;
    float *m = lt + r * T0, *l = m + n, *K = whole ? m : l + n, *V = K + (ptrdiff_t)B * d, *xt = V + (ptrdiff_t)B * d;
    float *qt = xt + (ptrdiff_t)width * T0, *ot = qt + d * T0, *st = ot + d * T0;
    const vt_head_source src = {a->x, nm, &a->wqkv, a->bqkv, width, d, a->rows, xt, qt,
                                {a->qkv_a, a->qkv_b, r, width, a->qkv_scale}, low, lt};
    int32_t h, k0, k1, n0, T;
    if (r) vt_source_low(&src, s, n);
    for (h = 0; h < a->heads; h++) {
        float *y = a->y + h * d;
        if (whole || a->heads - h > 2) {
            const ptrdiff_t ld = whole ? d : width;
            float *Kh = whole ? K : y + d, *Vh = whole ? V : y + 2 * d;
            vt_keys_values(&src, s, h, 0, n, Kh, Vh, y, ld);
            for (n0 = 0; n0 < n; n0 += T) {
                float *yn = y + (ptrdiff_t)n0 * width, mt[16], lt[16];
                T = vt_width(n - n0, a->rows);
                vt_rows_to_panel(qt, T, yn, width, d);
                vt_panel_attend(s, Kh, Vh, ld, n, qt, T, d, mt, lt, ot, st, yn, width, 1, 1);
            }
            continue;
        }
        for (k0 = 0; k0 < n; k0 = k1) {
            k1 = n - k0 > B ? k0 + B : n;
            vt_keys_values(&src, s, h, k0, k1, K, V, NULL, d);
            for (n0 = 0; n0 < n; n0 += T) {
                float *yn = y + (ptrdiff_t)n0 * width, *store = h + 1 < a->heads ? yn + d : NULL;
                T = vt_width(n - n0, a->rows);
                if (store && k0 > 0) {
                    vt_rows_to_panel(qt, T, store, width, d);
                } else {
                    vt_source_panel(&src, n0, T);
                    vt_head(&src, s, qt, T, h * d, 1.0f / VT_SQRT((float)d));
                    if (store) vt_panel_to_rows(store, width, qt, T, d);
                }
                vt_panel_attend(s, K, V, d, k1 - k0, qt, T, d, m + n0, l + n0, ot, st, yn, width, k0 == 0, k1 == n);
            }
        }
    }
}

/* y (q_rows, d) holds o; becomes its projection in place, and, without a Gram residual to come, the block's result. */
static void vt_project(const vt_attn_block_args *a, const vt_step *s, float *at) {
    const int32_t width = a->d, T0 = vt_width(a->q_rows, a->rows);
    const vt_lora lora = {a->proj_a, a->proj_b, a->proj_rank, width, a->proj_scale};
    float *lt = at, *it = lt + lora.r * T0, *ot = it + (ptrdiff_t)width * T0;
    int32_t n0, T;
    for (n0 = 0; n0 < a->q_rows; n0 += T) {
        float *y = a->y + (ptrdiff_t)n0 * width;
        T = vt_width(a->q_rows - n0, a->rows);
        vt_rows_to_panel(it, T, y, width, width);
        vt_fill_panel(ot, width, T, a->bproj);
        vt_forward(s, ot, T, &a->wproj, 0, width, 0, width, it);
        if (lora.r) {
            vt_lora_down(s, &lora, lt, T, 0, width, it);
            vt_lora_up(s, &lora, ot, T, 0, width, lt);
        }
        vt_panel_to_rows(y, width, ot, T, width);
    }
}

/* See the header. y may not overlap x. */
void vt_attn_block(const vt_attn_block_args *a, const vt_step *s) {
    const int32_t width = a->d;
    float *mean = (float *)a->scratch, *rstd = mean + a->n, *at = a->norm ? rstd + a->n : mean;
    const vt_norm nm = {a->norm ? mean : NULL, rstd, a->gamma, a->beta};
    int32_t i, c;
    if (a->norm) vt_statistics(mean, rstd, a->x, a->n, width, a->eps);
    if (a->q_rows == 1) vt_attn_row(a, s, nm.mean, rstd, at);
    else vt_all_heads(a, s, &nm, at);
    vt_project(a, s, at);
    if (a->gram_a) {
        const vt_gram_part p = {a->x, &nm, a->gram_a, a->gram_b, a->n, width, a->rank, a->q_rows, a->rows,
                                a->gram_block};
        vt_gram_forward(s, &p, a->y, at);
    }
    if (!a->ls && !a->residual) return;
    for (i = 0; i < a->q_rows; i++) {
        const float *x = a->x + (ptrdiff_t)i * width;
        float *y = a->y + (ptrdiff_t)i * width;
        for (c = 0; c < width; c++) {
            const float v = a->ls ? y[c] * a->ls[c] : y[c];
            y[c] = a->residual ? x[c] + v : v;
        }
    }
}

/* The buffers of a gradient call over all heads. */
typedef struct {
    float *m, *l, *delta;        /* (n,) each, when keys go block by block */
    float *bias;                 /* (d,) or, block by block, (3, d): sums for d_bqkv; or NULL */
    float *keep;                 /* (n, ld_keep): the columns of o that wproj trains, or NULL; sparing: dV */
    float *dq;                   /* (n, d) when d_wqkv is wanted, else (T, d); sparing: dK, (n, d) */
    float *K, *V, *dK, *dV;      /* (B, d) each; the first pass uses them as K, V (2 * B, d) */
    float *xt, *g, *qt, *gt, *q, *gr, *st, *pt;
    float *o;                    /* (T, d) or, sparing, dV, (n, d); or NULL */
    float *low, *dlow;           /* (n, qkv_rank): the packed linear's, its gradient's or NULL; see vt_lora.h */
    float *pg, *po;              /* (n, proj_rank): the projection's gradient's, its own or NULL */
    float *lt;                   /* panel of either rank */
    float *db, *da;              /* (3, d, qkv_rank), (proj_rank, d): sums for d_qkv_b, d_proj_a, or NULL */
    float *stage;                /* for d_qkv_a, over all but low, dlow, po: see vt_weight_gradient_normed */
    vt_lora qkv, proj;
    int32_t B, ld_keep;
    int spare, keep_dq, need_norm, need_o;
} vt_heads_work;

static void vt_heads_layout(const vt_attn_block_grad_args *a, vt_heads_work *w, const float *dls, float *at) {
    const int32_t n = a->n, width = a->d, d = width / a->heads, T0 = vt_width(n, a->rows);
    const int whole = a->key_block >= n;
    const int32_t S = whole ? n : 2 * a->key_block < n ? 2 * a->key_block : n;
    const int32_t r = a->qkv_rank, rp = a->proj_rank;
    const vt_lora qkv = {a->qkv_a, a->qkv_b, r, width, a->qkv_scale};
    const vt_lora proj = {a->proj_a, a->proj_b, rp, width, a->proj_scale};
    w->qkv = qkv;
    w->proj = proj;
    w->m = w->l = w->delta = w->bias = w->keep = w->g = w->o = w->dlow = w->po = w->db = w->da = NULL;
    w->B = whole ? n : a->key_block;
    w->spare = a->spare && whole;
    w->keep_dq = w->spare || vt_wanted(&a->d_wqkv);
    w->need_o = dls || vt_wanted(&a->d_wproj) || vt_wanted(&a->d_proj_a) || vt_wanted(&a->d_proj_b);
    w->ld_keep = !w->spare && a->wproj.trained.cols && a->wproj.trained.n_cols < d ? a->wproj.trained.n_cols : d;
    w->low = at; at += (ptrdiff_t)n * r;
    if (r && (w->need_norm || vt_wanted(&a->d_qkv_a))) { w->dlow = at; at += (ptrdiff_t)n * r; }
    if (vt_wanted(&a->d_proj_b)) { w->po = at; at += (ptrdiff_t)n * rp; }
    w->stage = w->pg = at; at += (ptrdiff_t)n * rp;
    w->lt = at; at += (r > rp ? r : rp) * T0;
    if (vt_wanted(&a->d_qkv_b)) { w->db = at; at += 3 * d * r; }
    if (vt_wanted(&a->d_proj_a)) { w->da = at; at += rp * d; }
    if (!whole) { w->m = at; w->l = at + n; w->delta = at + 2 * n; at += 3 * n; }
    if (!w->spare) {
        if (vt_wanted(&a->d_bqkv)) { w->bias = at; at += whole ? d : 3 * d; }
        if (vt_wanted(&a->d_wproj)) { w->keep = at; at += (ptrdiff_t)n * w->ld_keep; }
        w->dq = at; at += (ptrdiff_t)(w->keep_dq ? n : T0) * d;
    }
    w->K = at; at += (ptrdiff_t)w->B * d;
    w->V = at; at += (ptrdiff_t)w->B * d;
    w->dK = at; at += (ptrdiff_t)w->B * d;
    w->dV = at; at += (ptrdiff_t)w->B * d;
    if (w->spare) {
        w->dq = w->dK;
        if (w->need_o) w->o = w->dV;
        if (vt_wanted(&a->d_wproj)) w->keep = w->dV;
    }
    w->xt = at; at += (ptrdiff_t)width * T0;
    if (a->ls) { w->g = at; at += (ptrdiff_t)width * T0; }
    if (w->need_o && !w->spare) { w->o = at; at += d * T0; }
    w->qt = w->q = at; at += d * T0;
    w->gt = w->gr = at; at += d * T0;
    if (T0 > 1) { w->q = at; at += d * T0; w->gr = at; at += d * T0; }
    w->st = at; at += (S < VT_KEYS ? S : VT_KEYS) * T0;
    w->pt = at;
}

/* Rows of ls * dy for tokens n0..n0+T, or dy itself. */
static const float *vt_scaled_rows(const vt_attn_block_grad_args *a, const vt_heads_work *w, int32_t n0, int32_t T) {
    const int32_t width = a->d;
    const float *dy = a->dy + (ptrdiff_t)n0 * width;
    int32_t t, c;
    if (!w->g) return dy;
    for (t = 0; t < T; t++)
        for (c = 0; c < width; c++) w->g[t * width + c] = dy[(ptrdiff_t)t * width + c] * a->ls[c];
    return w->g;
}

/* Queries and gradients of o of head h for tokens n0..n0+T: panels qt, gt and rows q, gr. */
static void vt_load_head_panel(const vt_attn_block_grad_args *a, const vt_step *s, const vt_head_source *src,
                               vt_heads_work *w, int32_t h, int32_t n0, int32_t T) {
    const int32_t width = a->d, d = width / a->heads;
    vt_source_panel(src, n0, T);
    vt_head(src, s, w->qt, T, h * d, 1.0f / VT_SQRT((float)d));
    vt_fill(w->gr, d * T, 0.0f);
    vt_backward(s, w->gr, d, T, &a->wproj, 0, width, h * d, (h + 1) * d, vt_scaled_rows(a, w, n0, T), width, 1);
    if (w->proj.r)
        vt_lora_spread(s, &w->proj, w->gr, d, T, h * d, (h + 1) * d, w->pg + (ptrdiff_t)n0 * w->proj.r);
    if (w->q != w->qt) {
        vt_panel_to_rows(w->q, d, w->qt, T, d);
        vt_rows_to_panel(w->gt, T, w->gr, d, d);
    }
}

/* What one call of vt_head_panels makes: gradients of the keys and values, and o, dq and what follows from them. */
enum { VT_OF_KEYS = 1, VT_OF_QUERIES = 2 };

/* The second pass of one panel against nk keys (K, V), and what follows from its o and dq. */
static void vt_head_panel_backward(const vt_attn_block_grad_args *a, const vt_step *s, vt_heads_work *w, int32_t h,
                                   int32_t n0, int32_t T, int32_t nk, const float *m, const float *l,
                                   const float *delta, int of, float *dln, float *dls) {
    const int32_t width = a->d, d = width / a->heads;
    const float scale = 1.0f / VT_SQRT((float)d);
    const int queries = of & VT_OF_QUERIES;
    float *dq = !queries ? NULL : w->keep_dq ? w->dq + (ptrdiff_t)n0 * d : w->dq;
    float *o = !queries || !w->need_o ? NULL : w->spare ? w->o + (ptrdiff_t)n0 * d : w->o;
    const vt_queries u = {w->qt, w->gt, w->q, w->gr, d, d, m, l, delta, dq, d, 1.0f, o, d};
    const int32_t r = w->qkv.r, rp = w->proj.r;
    int32_t i, t, c;
    if (dq) vt_fill(dq, d * T, 0.0f);
    if (o) vt_fill(o, d * T, 0.0f);
    vt_attend_backward(s, w->K, d, w->V, d, nk, &u, T, d, d, of & VT_OF_KEYS ? w->dK : NULL, d,
                       of & VT_OF_KEYS ? w->dV : NULL, d, w->st, w->pt);
    if (!queries) return;
    for (i = 0; i < d * T; i++) dq[i] = dq[i] * scale;
    if (w->need_norm)
        vt_backward(s, dln + (ptrdiff_t)n0 * width, width, T, &a->wqkv, h * d, (h + 1) * d, 0, width, dq, d, 1);
    if (w->dlow) vt_lora_collect(s, &w->qkv, w->dlow + (ptrdiff_t)n0 * r, T, h * d, (h + 1) * d, dq, d);
    if (w->db) vt_dense(s, w->db, r, d, r, T, dq, 1, d, w->low + (ptrdiff_t)n0 * r, r);
    if (w->bias)
        for (t = 0; t < T; t++)
            for (c = 0; c < d; c++) w->bias[c] += dq[t * d + c];
    if (w->da) vt_dense(s, w->da, d, rp, d, T, w->pg + (ptrdiff_t)n0 * rp, 1, rp, o, d);
    if (dls || w->po) vt_rows_to_panel(w->qt, T, o, d, d);
    if (rp && (dls || w->po)) vt_lora_down(s, &w->proj, w->lt, T, h * d, (h + 1) * d, w->qt);
    if (w->po)
        for (t = 0; t < T; t++)
            for (i = 0; i < rp; i++) w->po[(ptrdiff_t)(n0 + t) * rp + i] += w->lt[i * T + t];
    if (dls) {                               /* z = this head's share of the projection, in xt */
        vt_fill(w->xt, width * T, 0.0f);
        vt_forward(s, w->xt, T, &a->wproj, 0, width, h * d, (h + 1) * d, w->qt);
        if (rp) vt_lora_up(s, &w->proj, w->xt, T, 0, width, w->lt);
        for (t = 0; t < T; t++)
            for (c = 0; c < width; c++)
                dls[c] = VT_FMA(a->dy[(ptrdiff_t)(n0 + t) * width + c], w->xt[c * T + t], dls[c]);
    }
    if (w->keep) {                           /* sparing: a row of o is packed in place */
        const vt_part *p = &a->wproj.trained;
        const int32_t k0 = vt_lower(p->cols, p->n_cols, h * d), k1 = vt_lower(p->cols, p->n_cols, (h + 1) * d);
        for (t = 0; t < T; t++)
            for (i = k0; i < k1; i++)
                w->keep[(ptrdiff_t)(n0 + t) * w->ld_keep + i - k0] = o[t * d + (p->cols ? p->cols[i] : i) - h * d];
    }
}

/* The second pass of all panels of head h against nk keys (K, V). */
static void vt_head_panels(const vt_attn_block_grad_args *a, const vt_step *s, const vt_head_source *src,
                           vt_heads_work *w, int32_t h, int32_t nk, int of, float *dln, float *dls) {
    const int32_t n = a->n, d = a->d / a->heads;
    int32_t n0, T;
    for (n0 = 0; n0 < n; n0 += T) {
        float mt[16], lt[16], dt[16], *m = w->m ? w->m + n0 : mt, *l = w->m ? w->l + n0 : lt;
        float *delta = w->m ? w->delta + n0 : dt;
        T = vt_width(n - n0, a->rows);
        vt_load_head_panel(a, s, src, w, h, n0, T);
        if (!w->m) {
            vt_fill(m, T, vt_minus_infinity());
            vt_fill(l, T, 0.0f);
            vt_fill(delta, T, 0.0f);
            vt_attend_measure(s, w->K, d, w->V, d, n, w->qt, w->gt, T, T, d, d, m, l, delta, w->st, w->pt);
            vt_attend_measured(l, delta, T);
        }
        vt_head_panel_backward(a, s, w, h, n0, T, nk, m, l, delta, of, dln, dls);
    }
}

/* Rows of wqkv and bqkv of head h, after their last use: i 0 queries, 1 keys, 2 values; g is their gradient. */
static void vt_head_update_qkv(const vt_attn_block_grad_args *a, const vt_step *s, const vt_norm *nm,
                               vt_heads_work *w, int32_t h, int32_t i, const float *g) {
    const int32_t n = a->n, width = a->d, d = width / a->heads, o0 = i * width + h * d;
    if (vt_wanted(&a->d_wqkv))
        vt_weight_gradient_normed(s, &a->d_wqkv, &a->wqkv.trained, o0, o0 + d, 0, width, g, d, 1, n, a->x, width, nm,
                                  NULL, w->xt);
    if (!vt_wanted(&a->d_bqkv)) return;
    if (w->bias && (i == 0 || w->B < n)) vt_apply(s, &a->d_bqkv, o0, w->bias + i * d, d);
    else vt_bias_gradient(s, &a->d_bqkv, o0, g, d, n, d, NULL);
}

/* The other weights of head h, after their last use. */
static void vt_head_update(const vt_attn_block_grad_args *a, const vt_step *s, vt_heads_work *w, int32_t h) {
    const int32_t n = a->n, width = a->d, d = width / a->heads;
    int32_t i;
    if (w->keep) {
        vt_part p = a->wproj.trained;
        const int32_t k0 = vt_lower(p.cols, p.n_cols, h * d), k1 = vt_lower(p.cols, p.n_cols, (h + 1) * d);
        p.cols = NULL;                       /* keep is packed: its columns are the part's columns k0..k1 */
        vt_weight_gradient(s, &a->d_wproj, &p, 0, width, k0, k1, a->dy, width, 1, n, w->keep, w->ld_keep, a->ls);
    }
    for (i = 0; w->db && i < 3; i++) {
        const ptrdiff_t size = (ptrdiff_t)d * w->qkv.r;
        vt_apply(s, &a->d_qkv_b, (ptrdiff_t)(i * width + h * d) * w->qkv.r, w->db + i * size, (int32_t)size);
    }
    for (i = 0; w->da && i < w->proj.r; i++)
        vt_apply(s, &a->d_proj_a, (ptrdiff_t)i * width + h * d, w->da + i * d, d);
}

/* Before the first head: low of all tokens, pg, and the sums over heads from 0. */
static void vt_heads_low(const vt_attn_block_grad_args *a, const vt_step *s, const vt_head_source *src,
                         vt_heads_work *w) {
    const int32_t n = a->n, r = w->qkv.r, rp = w->proj.r;
    int32_t n0, T;
    if (r) vt_source_low(src, s, n);
    if (w->dlow) vt_fill(w->dlow, n * r, 0.0f);
    if (w->po) vt_fill(w->po, n * rp, 0.0f);
    if (!rp) return;
    vt_fill(w->pg, n * rp, 0.0f);
    for (n0 = 0; n0 < n; n0 += T) {
        T = vt_width(n - n0, a->rows);
        vt_lora_collect(s, &w->proj, w->pg + (ptrdiff_t)n0 * rp, T, 0, a->d, vt_scaled_rows(a, w, n0, T), a->d);
    }
    vt_lora_scale(&w->proj, w->pg, n);
}

/* After the last head: the rest of the gradient of LN(x), then of the parameters that all heads share. */
static void vt_heads_shared(const vt_attn_block_grad_args *a, const vt_step *s, const vt_norm *nm, vt_heads_work *w,
                            float *dln) {
    const int32_t n = a->n, width = a->d, r = w->qkv.r, rp = w->proj.r;
    const vt_part down = {a->qkv_a, NULL, NULL, r, width}, up = {a->proj_b, NULL, NULL, width, rp};
    if (w->po)
        vt_weight_gradient(s, &a->d_proj_b, &up, 0, width, 0, rp, a->dy, width, 1, n, w->po, rp, a->ls);
    if (!w->dlow) return;
    vt_lora_scale(&w->qkv, w->dlow, n);
    if (dln) vt_lora_spread(s, &w->qkv, dln, width, n, 0, width, w->dlow);
    if (vt_wanted(&a->d_qkv_a))
        vt_weight_gradient_normed(s, &a->d_qkv_a, &down, 0, r, 0, width, w->dlow, r, 1, n, a->x, width, nm, NULL,
                                  w->stage);
}

static void vt_all_heads_backward(const vt_attn_block_grad_args *a, const vt_step *s, const vt_norm *nm, float *dln,
                                  float *dls, float *at) {
    const int32_t n = a->n, width = a->d, d = width / a->heads;
    vt_heads_work w;
    vt_head_source src = {a->x, nm, &a->wqkv, a->bqkv, width, d, a->rows, NULL, NULL,
                          {a->qkv_a, a->qkv_b, a->qkv_rank, width, a->qkv_scale}, NULL, NULL};
    int32_t h, k0, k1, n0, T, i, c;
    w.need_norm = dln != NULL;
    vt_heads_layout(a, &w, dls, at);
    src.xt = w.xt;
    src.out = w.qt;
    src.low = w.low;
    src.lt = w.lt;
    vt_heads_low(a, s, &src, &w);
    for (h = 0; h < a->heads; h++) {
        if (w.bias) vt_fill(w.bias, w.B < n ? 3 * d : d, 0.0f);
        if (w.db) vt_fill(w.db, 3 * d * w.qkv.r, 0.0f);
        if (w.da) vt_fill(w.da, w.proj.r * d, 0.0f);
        if (w.B < n) {                       /* first pass: maxima, sums, deltas of all queries */
            vt_fill(w.m, n, vt_minus_infinity());
            vt_fill(w.l, 2 * n, 0.0f);
            for (k0 = 0; k0 < n; k0 = k1) {
                float *V = w.K + (ptrdiff_t)2 * w.B * d;
                k1 = n - k0 > 2 * w.B ? k0 + 2 * w.B : n;
                vt_keys_values(&src, s, h, k0, k1, w.K, V, NULL, d);
                for (n0 = 0; n0 < n; n0 += T) {
                    T = vt_width(n - n0, a->rows);
                    vt_load_head_panel(a, s, &src, &w, h, n0, T);
                    vt_attend_measure(s, w.K, d, V, d, k1 - k0, w.qt, w.gt, T, T, d, d, w.m + n0, w.l + n0,
                                      w.delta + n0, w.st, w.pt);
                }
            }
            vt_attend_measured(w.l, w.delta, n);
        }
        for (k0 = 0; k0 < n; k0 = k1) {
            k1 = n - k0 > w.B ? k0 + w.B : n;
            vt_keys_values(&src, s, h, k0, k1, w.K, w.V, NULL, d);
            vt_fill(w.dK, 2 * w.B * d, 0.0f);
            vt_head_panels(a, s, &src, &w, h, k1 - k0, w.spare ? VT_OF_KEYS : VT_OF_KEYS | VT_OF_QUERIES, dln, dls);
            if (dln)
                for (i = 1; i < 3; i++)
                    vt_backward(s, dln + (ptrdiff_t)k0 * width, width, k1 - k0, &a->wqkv, i * width + h * d,
                                i * width + (h + 1) * d, 0, width, i == 1 ? w.dK : w.dV, d, 1);
            for (i = 1; i < 3; i++) {
                const float *g = i == 1 ? w.dK : w.dV;
                const int32_t r = w.qkv.r, o0 = i * width + h * d;
                if (w.dlow) vt_lora_collect(s, &w.qkv, w.dlow + (ptrdiff_t)k0 * r, k1 - k0, o0, o0 + d, g, d);
                if (w.db) vt_dense(s, w.db + i * d * r, r, d, r, k1 - k0, g, 1, d, w.low + (ptrdiff_t)k0 * r, r);
            }
            if (w.bias && w.B < n)
                for (i = 0; i < k1 - k0; i++)
                    for (c = 0; c < d; c++) {
                        w.bias[d + c] += w.dK[i * d + c];
                        w.bias[2 * d + c] += w.dV[i * d + c];
                    }
        }
        for (i = 1; i < 3; i++) vt_head_update_qkv(a, s, nm, &w, h, i, i == 1 ? w.dK : w.dV);
        if (w.spare) vt_head_panels(a, s, &src, &w, h, n, VT_OF_QUERIES, dln, dls);
        vt_head_update_qkv(a, s, nm, &w, h, 0, w.dq);
        vt_head_update(a, s, &w, h);
    }
    vt_heads_shared(a, s, nm, &w, dln);
}

/* Gradients of attn_block; everything inside is computed again from x. d_x is made from the weights as they were:
 * a head's weights change after their last use. */
void vt_attn_block_grad(const vt_attn_block_grad_args *a, const vt_step *s) {
    const int32_t n = a->n, width = a->d;
    const int want_norm = a->norm && (vt_wanted(&a->d_gamma) || vt_wanted(&a->d_beta));
    const int gram = a->gram_a != NULL;
    float *at = (float *)a->scratch, *mean = at, *rstd = at + n, *dls = NULL, *dln = NULL;
    vt_norm nm = {NULL, NULL, a->gamma, a->beta};
    int32_t i, c;
    if (a->norm) {
        vt_statistics(mean, rstd, a->x, n, width, a->eps);
        nm.mean = mean;
        nm.rstd = rstd;
        at += 2 * n;
    }
    if (vt_wanted(&a->d_ls)) {
        dls = at;
        at += width;
        vt_column_sums(dls, a->dy, width, a->q_rows, width);
        for (c = 0; c < width; c++) dls[c] = a->bproj ? dls[c] * a->bproj[c] : 0.0f;
    }
    if (vt_wanted(&a->d_bproj)) vt_bias_gradient(s, &a->d_bproj, 0, a->dy, width, a->q_rows, width, a->ls);
    if (a->d_x || want_norm) {
        dln = a->d_x;
        if (!dln) { dln = at; at += (ptrdiff_t)n * width; }
        for (i = 0; i < n; i++) vt_fill(dln + (ptrdiff_t)i * width, width, 0.0f);
    }
    if (dln || dls || vt_wanted(&a->d_wqkv) || vt_wanted(&a->d_bqkv) || vt_wanted(&a->d_wproj) ||
        vt_wanted(&a->d_qkv_a) || vt_wanted(&a->d_qkv_b) || vt_wanted(&a->d_proj_a) || vt_wanted(&a->d_proj_b)) {
        if (a->q_rows == 1) vt_attn_row_grad(a, s, nm.mean, rstd, dln, dls, at);
        else vt_all_heads_backward(a, s, &nm, dln, dls, at);
    }
    if (gram && (dln || dls || vt_wanted(&a->d_gram_a) || vt_wanted(&a->d_gram_b))) {
        const vt_gram_part p = {a->x, &nm, a->gram_a, a->gram_b, n, width, a->rank, a->q_rows, a->rows, a->gram_block};
        vt_gram_backward(s, &p, a->dy, a->ls, dln, &a->d_gram_a, &a->d_gram_b, dls, at);
    }
    if (dls) vt_apply(s, &a->d_ls, 0, dls, width);
    if (want_norm || (dln && a->norm)) vt_norm_parameters(s, &a->d_gamma, &a->d_beta, dln, a->x, n, width, &nm);
    for (i = 0; a->d_x && i < n; i++) {
        const ptrdiff_t k = (ptrdiff_t)i * width;
        const float *dy = a->residual && i < a->q_rows ? a->dy + k : NULL;
        float *dx = a->d_x + k;
        if (a->norm) vt_norm_backward(dx, dx, a->x + k, dy, width, mean[i], rstd[i]);
        else if (dy)
            for (c = 0; c < width; c++) dx[c] = dy[c] + dx[c];
    }
}
