/* A low-rank addition to a linear layer (LoRA): y += scale * B (A x), with A (r, c) and B (o, r).
 *
 * `low` stands for scale * A x, r numbers a token, and in the gradient for scale * B^T dy. Sums run in one order,
 * whatever the width of panels. Nothing here may overlap; nothing needs scratch. */
#ifndef VT_LORA_H
#define VT_LORA_H
#include "vt_gradient.h"

typedef struct {
    const float *a, *b;          /* (r, c), (o, r), row-major */
    int32_t r, c;                /* r 0: there is no addition, and nothing below may be called */
    float scale;
} vt_lora;

/* low (r, T) = scale * A[:, c0..c1] x, x (c1 - c0, T) a panel. */
void vt_lora_down(const vt_step *s, const vt_lora *l, float *low, int32_t T, int32_t c0, int32_t c1, const float *x);

/* low (r, T) += A[:, c0..c1] x. Not scaled, so that it can collect: see vt_lora_scale. */
void vt_lora_more(const vt_step *s, const vt_lora *l, float *low, int32_t T, int32_t c0, int32_t c1, const float *x);

/* y (o1 - o0, T) += B[o0..o1] low, low (r, T) a panel. */
void vt_lora_up(const vt_step *s, const vt_lora *l, float *y, int32_t T, int32_t o0, int32_t o1, const float *low);

/* low (n, r) += g B[o0..o1], g (n, o1 - o0; ld ldg) rows. Not scaled either. */
void vt_lora_collect(const vt_step *s, const vt_lora *l, float *low, int32_t n, int32_t o0, int32_t o1, const float *g,
                     ptrdiff_t ldg);

/* y (n, c1 - c0; ld ldy) += low A[:, c0..c1], low (n, r) rows. */
void vt_lora_spread(const vt_step *s, const vt_lora *l, float *y, ptrdiff_t ldy, int32_t n, int32_t c0, int32_t c1,
                    const float *low);

/* low, n tokens as rows or as a panel, times the scale. */
VT_INLINE void vt_lora_scale(const vt_lora *l, float *low, int32_t n) {
    int32_t i;
    for (i = 0; i < n * l->r; i++) low[i] = low[i] * l->scale;
}
#endif
