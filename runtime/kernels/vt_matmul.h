#ifndef VT_MATMUL_H
#define VT_MATMUL_H
#include "vt_kernels.h"

/* Products of two matrices: activations or whole parameters. Each y is written, or added to where y.add is 1, and apart
 * from a and b. One chain of sums over k, from what stands in y (or 0): it does not matter in how many calls the terms
 * come. No scratch. */

typedef struct {
    vt_in a, b;              /* (n, k) any, (k, o) rows */
    vt_out y;                /* (n, o) rows */
    int32_t n, k, o;
} vt_matmul_args;
void vt_matmul(const vt_matmul_args *a, const vt_step *s);

typedef struct {
    vt_in a, b;              /* (k, n) any, (k, o) rows */
    vt_out y;                /* (n, o) rows */
    int32_t n, k, o;
} vt_matmul_tn_args;
void vt_matmul_tn(const vt_matmul_tn_args *a, const vt_step *s);

typedef struct {
    vt_in a, b;              /* (n, k) panel, (o, k) any */
    vt_out y;                /* (n, o) panel */
    int32_t n, k, o;
} vt_matmul_nt_args;
void vt_matmul_nt(const vt_matmul_nt_args *a, const vt_step *s);
#endif
