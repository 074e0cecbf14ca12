#ifndef VT_LINEAR_H
#define VT_LINEAR_H
#include "vt_kernels.h"

typedef struct {
    const float *x;          /* (n, w.cols) */
    vt_matrix w;
    const float *b;          /* (w.rows,) or NULL */
    float *y;                /* (n, w.rows), apart from x */
    void *scratch;           /* rows == 1 or n == 1: none; else (w.cols + w.rows) * T floats, T = min(rows, n) rounded
                                down to a power of two */
    int32_t rows;            /* tokens at a time: 1, 2, 4, 8 or 16 */
    int32_t n;
} vt_linear_args;
void vt_linear(const vt_linear_args *a, const vt_step *s);

typedef struct {
    const float *x;          /* (n, w.cols), or (n, w.trained.n_cols) when x_sliced; NULL when d_w is not wanted */
    vt_matrix w;
    const float *dy;         /* (n, w.rows) */
    float *d_x;              /* (n, w.cols), apart from dy; NULL when not wanted */
    vt_sink d_w, d_b;
    int32_t x_sliced;        /* 1: x holds only the trained columns */
    int32_t n;
} vt_linear_grad_args;
void vt_linear_grad(const vt_linear_grad_args *a, const vt_step *s);
#endif
