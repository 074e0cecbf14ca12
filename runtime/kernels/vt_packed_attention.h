#ifndef VT_PACKED_ATTENTION_H
#define VT_PACKED_ATTENTION_H
#include "vt_kernels.h"

/* T = min(rows, n) rounded down to a power of two; d = width / heads; S = min(16, n). */
typedef struct {
    const float *qkv;            /* (n, 3 * width): q | k | v, each heads x d */
    float *y;                    /* (n, width), apart from qkv */
    void *scratch;               /* (2 * d + S) * T floats */
    int32_t heads, rows;
    int32_t n, width;
} vt_packed_attention_args;
void vt_packed_attention(const vt_packed_attention_args *a, const vt_step *s);

typedef struct {
    const float *qkv;            /* (n, 3 * width) */
    const float *dy;             /* (n, width) */
    float *d_qkv;                /* (n, 3 * width), apart from all inputs */
    void *scratch;               /* ((T > 1 ? 3 : 2) * d + 2 * S) * T floats */
    int32_t heads, rows;
    int32_t n, width;
} vt_packed_attention_grad_args;
void vt_packed_attention_grad(const vt_packed_attention_grad_args *a, const vt_step *s);
#endif
