#include "vt_patch_embed.h"
#include "vt_gradient.h"

enum { VT_STAGE = 16 };         /* features that a weight gradient makes again at a time */

/* Normalised value of feature f (channel, y, x) of patch number i. */
static float vt_patch_value(const uint8_t *image, int32_t width, int32_t channels, int32_t patch, const float *scale,
                            const float *shift, int32_t i, int32_t f) {
    const int32_t per_row = width / patch, c = f / (patch * patch), in = f - c * patch * patch;
    const int32_t y = (i / per_row) * patch + in / patch, x = (i % per_row) * patch + in % patch;
    return VT_FMA((float)image[((ptrdiff_t)y * width + x) * channels + c], scale[c], shift[c]);
}

/* y = concat(prefix, patches w^T + b) + pos, straight from the uint8 image, `rows` patches at a time. */
void vt_patch_embed(const vt_patch_embed_args *a, const vt_step *s) {
    const int32_t patches = (a->height / a->patch) * (a->width / a->patch), d = a->d, features = a->w.cols;
    float *xt = (float *)a->scratch;
    int32_t n0, T, i, t, f;
    for (i = 0; i < a->prefix_rows * d; i++) a->y[i] = a->pos ? a->prefix[i] + a->pos[i] : a->prefix[i];
    for (n0 = 0; n0 < patches; n0 += T) {
        const ptrdiff_t at = (ptrdiff_t)(a->prefix_rows + n0) * d;
        float *yt;
        T = vt_width(patches - n0, a->rows);
        yt = T > 1 ? xt + (ptrdiff_t)features * T : a->y + at;
        for (t = 0; t < T; t++)
            for (f = 0; f < features; f++)
                xt[f * T + t] =
                    vt_patch_value(a->image, a->width, a->channels, a->patch, a->scale, a->shift, n0 + t, f);
        vt_fill_panel(yt, d, T, a->b);
        vt_forward(s, yt, T, &a->w, 0, d, 0, features, xt);
        for (t = 0; t < T; t++)
            for (i = 0; i < d; i++) {
                const ptrdiff_t k = at + (ptrdiff_t)t * d + i;
                a->y[k] = a->pos ? yt[i * T + t] + a->pos[k] : yt[i * T + t];
            }
    }
}

/* Gradients of the parameters; the normalised patches are made again from the image, VT_STAGE features at a time. */
void vt_patch_embed_grad(const vt_patch_embed_grad_args *a, const vt_step *s) {
    const int32_t patches = (a->height / a->patch) * (a->width / a->patch), d = a->d;
    const float *dy = a->dy + (ptrdiff_t)a->prefix_rows * d;
    if (vt_wanted(&a->d_w)) {
        const vt_part *w = &a->w.trained;
        float *stage = (float *)a->scratch;
        int32_t j, lanes, i, l;
        for (j = 0; j < w->n_cols; j += lanes) {
            lanes = vt_width(w->n_cols - j, VT_STAGE);
            for (i = 0; i < patches; i++)
                for (l = 0; l < lanes; l++)
                    stage[i * lanes + l] = vt_patch_value(a->image, a->width, a->channels, a->patch, a->scale, a->shift,
                                                          i, w->cols ? w->cols[j + l] : j + l);
            vt_weight_block(s, &a->d_w, w, 0, w->n_rows, j, j + lanes, dy, d, 1, 0, patches, stage, lanes, NULL, 0, NULL);
        }
    }
    if (vt_wanted(&a->d_b)) vt_bias_gradient(s, &a->d_b, 0, dy, d, patches, d, NULL);
    if (vt_wanted(&a->d_prefix)) vt_apply(s, &a->d_prefix, 0, a->dy, a->prefix_rows * d);
    if (vt_wanted(&a->d_pos)) vt_apply(s, &a->d_pos, 0, a->dy, (a->prefix_rows + patches) * d);
}
