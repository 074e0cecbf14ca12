/* What a compiler may call although no source in this folder does: memory functions, for copies and initialisations, and
 * fmaf and sqrtf, for a core without these instructions. Here they are, so the folder needs no C library. Weak: where the
 * firmware has its own (as fast as it may be), those are linked. */
#include <stddef.h>
#include <stdint.h>

#if defined(__GNUC__) && !defined(_WIN32)
#define VT_WEAK __attribute__((weak))
#define VT_HERE() __asm__ volatile("" ::: "memory")     /* else a loop may become a call of the very function it is in */

typedef uint32_t __attribute__((may_alias)) vt_any;     /* four bytes of whatever is copied */
typedef union { float f; uint32_t u; } vt_single;
typedef union { double f; uint64_t u; } vt_double;

void *memset(void *to, int value, size_t n);
void *memcpy(void *restrict to, const void *restrict from, size_t n);
void *memmove(void *to, const void *from, size_t n);
int memcmp(const void *a, const void *b, size_t n);
float sqrtf(float x);

static void set(void *to, int value, size_t n) {
    uint8_t *p = (uint8_t *)to;
    const vt_any four = 0x01010101u * (uint8_t)value;
    for (; n && ((uintptr_t)p & 3u); n--) { *p++ = (uint8_t)value; VT_HERE(); }
    for (; n >= 4; n -= 4, p += 4) { *(vt_any *)(void *)p = four; VT_HERE(); }
    for (; n; n--) { *p++ = (uint8_t)value; VT_HERE(); }
}

static void copy(void *to, const void *from, size_t n) {
    uint8_t *p = (uint8_t *)to;
    const uint8_t *q = (const uint8_t *)from;
    if ((((uintptr_t)p | (uintptr_t)q) & 3u) == 0)
        for (; n >= 4; n -= 4, p += 4, q += 4) { *(vt_any *)(void *)p = *(const vt_any *)(const void *)q; VT_HERE(); }
    for (; n; n--) { *p++ = *q++; VT_HERE(); }
}

static void shift(void *to, const void *from, size_t n) {
    uint8_t *p = (uint8_t *)to;
    const uint8_t *q = (const uint8_t *)from;
    if ((uintptr_t)p <= (uintptr_t)q) copy(to, from, n);
    else
        for (; n; n--) { p[n - 1] = q[n - 1]; VT_HERE(); }
}

VT_WEAK void *memset(void *to, int value, size_t n) { set(to, value, n); return to; }
VT_WEAK void *memcpy(void *restrict to, const void *restrict from, size_t n) { copy(to, from, n); return to; }
VT_WEAK void *memmove(void *to, const void *from, size_t n) { shift(to, from, n); return to; }

VT_WEAK int memcmp(const void *a, const void *b, size_t n) {
    const uint8_t *p = (const uint8_t *)a, *q = (const uint8_t *)b;
    for (; n; n--, p++, q++) {
        if (*p != *q) return *p - *q;
        VT_HERE();
    }
    return 0;
}

#if defined(VT_SUPPORT_ALL) || !(defined(__FP_FAST_FMAF) || defined(__FMA__) || defined(__ARM_FEATURE_FMA))
float fmaf(float x, float y, float z);

/* x * y + z, rounded once. The product is exact in double; the sum is rounded to odd there (its last bit says whether
 * anything was cut off), so that the second rounding, to single, is the only one that counts. */
VT_WEAK float fmaf(float x, float y, float z) {
    const double product = (double)x * (double)y, sum = product + (double)z;
    const double part = sum - product, cut = (product - (sum - part)) + ((double)z - part);
    vt_double s;
    s.f = sum;
    if ((cut > 0.0 || cut < 0.0) && !(s.u & 1u)) s.u += (cut > 0.0) == (sum > 0.0) ? 1u : ~(uint64_t)0;
    return (float)s.f;
}
#endif

/* The square root, rounded to nearest: one result bit a turn. */
VT_WEAK float sqrtf(float x) {
    vt_single v;
    uint32_t rest, bit, root = 0, twice = 0;
    int32_t exponent;
    v.f = x;
    if (x == 0.0f || (v.u & 0x7fffffffu) > 0x7f800000u || v.u == 0x7f800000u) return x;     /* zeros, NaN, infinity */
    if (v.u >> 31) return (x - x) / (x - x);                                                /* negative: NaN */
    exponent = (int32_t)(v.u >> 23);
    rest = v.u & 0x007fffffu;
    if (exponent) rest |= 0x00800000u;
    else for (exponent = 1; !(rest & 0x00800000u); exponent--) rest <<= 1;                  /* a subnormal number */
    exponent -= 127;
    if (exponent & 1) rest <<= 1;
    rest <<= 1;
    for (bit = 0x01000000u; bit; bit >>= 1, rest <<= 1)
        if (twice + bit <= rest) {
            twice += bit;
            rest -= twice;
            twice += bit;
            root += bit;
        }
    if (rest) root += root & 1u;
    v.u = (root >> 1) + ((uint32_t)((exponent - (exponent & 1)) / 2 + 126) << 23);
    return v.f;
}

#if defined(__ARM_EABI__)       /* the names that clang calls on these cores */
#define VT_EABI(end) \
    void __aeabi_memset##end(void *to, size_t n, int value); \
    void __aeabi_memclr##end(void *to, size_t n); \
    void __aeabi_memcpy##end(void *to, const void *from, size_t n); \
    void __aeabi_memmove##end(void *to, const void *from, size_t n); \
    VT_WEAK void __aeabi_memset##end(void *to, size_t n, int value) { set(to, value, n); } \
    VT_WEAK void __aeabi_memclr##end(void *to, size_t n) { set(to, 0, n); } \
    VT_WEAK void __aeabi_memcpy##end(void *to, const void *from, size_t n) { copy(to, from, n); } \
    VT_WEAK void __aeabi_memmove##end(void *to, const void *from, size_t n) { shift(to, from, n); }
VT_EABI()
VT_EABI(4)
VT_EABI(8)
#endif
#endif
