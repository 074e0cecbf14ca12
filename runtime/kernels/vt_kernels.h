/* Types shared by all kernels. Portable C99: no malloc, no globals, no libc beyond this folder. */
#ifndef VT_KERNELS_H
#define VT_KERNELS_H
#include <stdint.h>
#include <stddef.h>

#if defined(__FAST_MATH__) || (defined(__FINITE_MATH_ONLY__) && __FINITE_MATH_ONLY__)
#error "-ffast-math changes the results and hides NaN: build without it"
#endif

/* One part of a weight matrix, row-major (n_rows, n_cols). rows/cols, when not NULL, say which rows/columns of
 * the whole matrix this part holds, ascending. n_rows == 0: the part is absent. */
typedef struct {
    const float *w;
    const uint16_t *rows, *cols;
    int32_t n_rows, n_cols;
} vt_part;

/* A weight matrix (rows = output features, cols = input features): frozen part in flash, trained part in RAM. */
typedef struct {
    vt_part frozen, trained;
    int32_t rows, cols;
} vt_matrix;

/* A window of a token matrix: element (t, c) at at[t * row + c * col]. at == NULL: absent, or not wanted.
 * Rows have col == 1 and the leading dimension in `row`; a panel of T tokens has row == 1 and col == T.
 * add, where the kernel's contract allows it: 1 adds to what stands there, 0 writes. */
typedef struct {
    const float *at;
    int32_t row, col;
} vt_in;
typedef struct {
    float *at;
    int32_t row, col, add;
} vt_out;

/* Where a parameter's gradient goes. All NULL: not wanted. grad != NULL: written there (same shape as the
 * trained part or the whole vector), or added to what stands there (add == 1). Else param != NULL: fused SGD,
 * p -= lr * v with v = momentum * v + g (velocity == NULL: v = g). Of a vector's window, the pointers are at the
 * window; of a matrix, they are those of the whole trained part, but with window == 1, where grad has the trained rows
 * and columns of the call's window alone, row by row. */
typedef struct {
    float *grad, *param, *velocity;
    int32_t add, window;
} vt_sink;

/* What a step hands to every kernel. */
typedef struct {
    float lr, momentum;
    uint64_t *macs;          /* counts fused multiply-adds of sums of products when built with -DVT_PROFILE; may be NULL */
} vt_step;

#ifdef VT_PROFILE
#define VT_COUNT(step, n) do { if ((step)->macs) *(step)->macs += (uint64_t)(n); } while (0)
#else
#define VT_COUNT(step, n) ((void)(step))
#endif
#endif
