/* The elementary functions of the kernels: the same bits on every core and at every optimisation level.
 *
 * Only IEEE single-precision operations and explicit fused multiply-adds are used, so no compiler may change a
 * result. Every function is branch-free (selections only) and vectorises when called in a loop.
 * Errors against the exact function, measured over the whole range: expf < 1 ulp, erff < 1.1 ulp, tanhf < 1.9 ulp,
 * logf < 1 ulp (tests/compilation/test_ops.py). NaN in, NaN out. Minimax polynomials after N. Juffa. */
#ifndef VT_MATH_H
#define VT_MATH_H
#include "vt_kernels.h"
#include "vt_tile.h"

#if defined(__GNUC__)
#define VT_INLINE static inline __attribute__((always_inline))
#define VT_FMA(a, b, c) __builtin_fmaf((a), (b), (c))
#define VT_SQRT(a) __builtin_sqrtf(a)
#define VT_PREFETCH(p) __builtin_prefetch(p)
#else
#include <math.h>
#define VT_INLINE static inline
#define VT_FMA(a, b, c) fmaf((a), (b), (c))
#define VT_SQRT(a) sqrtf(a)
#define VT_PREFETCH(p) ((void)(p))
#endif

typedef union { float f; uint32_t u; int32_t i; } vt_bits;

VT_INLINE float vt_from_bits(uint32_t u) { vt_bits b; b.u = u; return b.f; }
VT_INLINE uint32_t vt_to_bits(float f) { vt_bits b; b.f = f; return b.u; }
VT_INLINE float vt_fabsf(float a) { return vt_from_bits(vt_to_bits(a) & 0x7fffffffu); }
VT_INLINE float vt_copysignf(float a, float s) {
    return vt_from_bits((vt_to_bits(a) & 0x7fffffffu) | (vt_to_bits(s) & 0x80000000u));
}

/* e^a for every float: overflow gives infinity, underflow goes through the subnormals to zero. */
VT_INLINE float vt_expf(float a) {
    float c = a > 90.0f ? 90.0f : a;         /* keeps the exponent arithmetic in range */
    c = c < -110.0f ? -110.0f : c;           /* a comparison with NaN is false: NaN stays */
    const float j = VT_FMA(c, 1.442695f, 12582912.0f) - 12582912.0f;
    float f = VT_FMA(j, -6.93145752e-1f, c);
    f = VT_FMA(j, -1.42860677e-6f, f);
    float r = 1.37805939e-3f;
    r = VT_FMA(r, f, 8.37312452e-3f);
    r = VT_FMA(r, f, 4.16695364e-2f);
    r = VT_FMA(r, f, 1.66664720e-1f);
    r = VT_FMA(r, f, 4.99999851e-1f);
    r = VT_FMA(r, f, 1.0f);
    r = VT_FMA(r, f, 1.0f);
    const int32_t i = (int32_t)(j == j ? j : 0.0f);
    const int32_t h = i >> 1;                /* 2^i in two factors, so that neither leaves the range */
    r = r * vt_from_bits((uint32_t)(h + 127) << 23);
    return r * vt_from_bits((uint32_t)(i - h + 127) << 23);
}

/* Natural logarithm of a normal positive number (zero gives -infinity, negative gives NaN). */
VT_INLINE float vt_logf(float a) {
    const uint32_t tiny = vt_to_bits(a) < 0x00800000u;
    const float b = tiny ? a * 8388608.0f : a;
    const uint32_t e = (vt_to_bits(b) - 0x3f2aaaabu) & 0xff800000u;
    const float m = vt_from_bits(vt_to_bits(b) - e);
    const float i = VT_FMA((float)(int32_t)e, 1.19209290e-7f, tiny ? -23.0f : 0.0f);
    const float f = m - 1.0f;
    const float s = f * f;
    float r = -0.130310059f;
    float t = 0.140869141f;
    r = VT_FMA(r, s, -0.121483028f);
    t = VT_FMA(t, s, 0.139814854f);
    r = VT_FMA(r, s, -0.166846126f);
    t = VT_FMA(t, s, 0.200120345f);
    r = VT_FMA(r, s, -0.249996200f);
    r = VT_FMA(t, f, r);
    r = VT_FMA(r, f, 0.333331972f);
    r = VT_FMA(r, f, -0.5f);
    r = VT_FMA(r, s, f);
    r = VT_FMA(i, 0.693147182f, r);
    r = a < vt_from_bits(0x7f800000u) ? r : a + a;              /* infinity and NaN */
    r = a == 0.0f ? vt_from_bits(0xff800000u) : r;
    return a < 0.0f ? vt_from_bits(0x7fc00000u) : r;
}

/* The error function. */
VT_INLINE float vt_erff(float a) {
    const float t = vt_fabsf(a);
    const float s = a * a;
    float r = VT_FMA(-1.72853470e-5f, t, 3.83197126e-4f);       /* |a| > 475/512: 1 - exp(polynomial) */
    const float u = VT_FMA(-3.88396438e-3f, t, 2.42546219e-2f);
    r = VT_FMA(r, s, u);
    r = VT_FMA(r, t, -1.06777877e-1f);
    r = VT_FMA(r, t, -6.34846687e-1f);
    r = VT_FMA(r, t, -1.28717512e-1f);
    r = VT_FMA(r, t, -t);
    r = 1.0f - vt_expf(r);
    r = t > 4.0f ? 1.0f : r;                                    /* the polynomial is fitted up to here */
    r = vt_copysignf(r, a);
    float q = -5.96761703e-4f;
    q = VT_FMA(q, s, 4.99119423e-3f);
    q = VT_FMA(q, s, -2.67681349e-2f);
    q = VT_FMA(q, s, 1.12819925e-1f);
    q = VT_FMA(q, s, -3.76125336e-1f);
    q = VT_FMA(q, s, 1.28379166e-1f);
    q = VT_FMA(q, a, a);
    return t > 0.927734375f ? r : q;                            /* NaN takes q */
}

VT_INLINE float vt_tanhf(float a) {
    const float t = vt_fabsf(a);
    const float s = a * a;
    float r = 1.0f - 2.0f / (vt_expf(t + t) + 1.0f);
    r = vt_copysignf(r, a);
    float q = 1.57394409e-2f;
    q = VT_FMA(q, s, -5.23025580e-2f);
    q = VT_FMA(q, s, 1.33152470e-1f);
    q = VT_FMA(q, s, -3.33327681e-1f);
    q = q * s;
    q = VT_FMA(q, a, a);
    return t >= 0.599609375f ? r : q;
}

/* y[i] = value, an expression in i, for i in 0..n: VT_LANES at a time through registers, so that y may be an array that
 * value reads (at the same i only) and the loop still vectorises. */
#define VT_EACH(y, n, i, value)                                                      \
    do {                                                                             \
        float *const each_y = (y);                                                   \
        const int32_t each_n = (n);                                                  \
        float each[VT_LANES];                                                        \
        int32_t each_0, each_l, i;                                                   \
        VT_BY_VECTORS                                                                \
        for (each_0 = 0; each_0 + VT_LANES <= each_n; each_0 += VT_LANES) {          \
            for (each_l = 0; each_l < VT_LANES; each_l++) {                          \
                i = each_0 + each_l;                                                 \
                each[each_l] = (value);                                              \
            }                                                                        \
            VT_UNROLL                                                                \
            for (each_l = 0; each_l < VT_LANES; each_l++) each_y[each_0 + each_l] = each[each_l]; \
        }                                                                            \
        for (i = each_0; i < each_n; i++) each_y[i] = (value);                       \
    } while (0)

/* Activations. act: 0 exact GELU, 1 GELU by tanh, 2 ReLU. */
VT_INLINE float vt_gelu_value(float x) { return 0.5f * x * (1.0f + vt_erff(x * 0.707106781f)); }
VT_INLINE float vt_gelu_slope(float x) {
    const float phi = 0.398942280f * vt_expf(-0.5f * x * x);
    return VT_FMA(x, phi, 0.5f * (1.0f + vt_erff(x * 0.707106781f)));
}
VT_INLINE float vt_gelu_tanh_value(float x) {
    const float u = 0.797884561f * VT_FMA(0.044715f * x * x, x, x);
    return 0.5f * x * (1.0f + vt_tanhf(u));
}
VT_INLINE float vt_gelu_tanh_slope(float x) {
    const float u = 0.797884561f * VT_FMA(0.044715f * x * x, x, x);
    const float t = vt_tanhf(u);
    const float du = 0.797884561f * VT_FMA(0.134145f * x, x, 1.0f);
    return VT_FMA(0.5f * x * VT_FMA(-t, t, 1.0f), du, 0.5f * (1.0f + t));
}
#endif
