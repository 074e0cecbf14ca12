/* Low-rank additions to linear layers. */
#include "vt_lora.h"

/* y (m, n; ld ldy) += b (m, k; strides brs, bcs) x (k, n; ld ldx), long sums in blocks. */
static void vt_lora_product(const vt_step *s, float *y, ptrdiff_t ldy, int32_t m, int32_t n, int32_t k, const float *b,
                            ptrdiff_t brs, ptrdiff_t bcs, const float *x, ptrdiff_t ldx) {
    const vt_product p = {b, brs, bcs, x, ldx, NULL, NULL, 0, 0, k, 1};
    VT_COUNT(s, (uint64_t)m * (uint64_t)n * (uint64_t)k);
    vt_multiply(y, ldy, NULL, 0, NULL, 0, m, n, &p);
}

void vt_lora_more(const vt_step *s, const vt_lora *l, float *low, int32_t T, int32_t c0, int32_t c1, const float *x) {
    vt_lora_product(s, low, T, l->r, T, c1 - c0, l->a + c0, l->c, 1, x, T);
}

void vt_lora_down(const vt_step *s, const vt_lora *l, float *low, int32_t T, int32_t c0, int32_t c1, const float *x) {
    vt_fill(low, l->r * T, 0.0f);
    vt_lora_more(s, l, low, T, c0, c1, x);
    vt_lora_scale(l, low, T);
}

void vt_lora_up(const vt_step *s, const vt_lora *l, float *y, int32_t T, int32_t o0, int32_t o1, const float *low) {
    vt_lora_product(s, y, T, o1 - o0, T, l->r, l->b + (ptrdiff_t)o0 * l->r, l->r, 1, low, T);
}

void vt_lora_collect(const vt_step *s, const vt_lora *l, float *low, int32_t n, int32_t o0, int32_t o1, const float *g,
                     ptrdiff_t ldg) {
    vt_lora_product(s, low, l->r, n, l->r, o1 - o0, g, ldg, 1, l->b + (ptrdiff_t)o0 * l->r, l->r);
}

void vt_lora_spread(const vt_step *s, const vt_lora *l, float *y, ptrdiff_t ldy, int32_t n, int32_t c0, int32_t c1,
                    const float *low) {
    vt_lora_product(s, y, ldy, n, c1 - c0, l->r, low, l->r, 1, l->a + c0, l->c);
}
