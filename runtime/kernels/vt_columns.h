#ifndef VT_COLUMNS_H
#define VT_COLUMNS_H
#include "vt_kernels.h"

typedef struct {
    vt_in x;                 /* (n, w), any strides */
    vt_out y;                /* (n, c), any strides, apart from x */
    int32_t start;           /* start + c is at most w */
    int32_t n, w, c;
} vt_columns_args;
void vt_columns(const vt_columns_args *a, const vt_step *s);

typedef struct {
    vt_in dy;                /* (n, c), any strides */
    vt_out d_x;              /* (n, w), any strides, apart from dy */
    int32_t start;           /* start + c is at most w */
    int32_t n, w, c;
} vt_columns_grad_args;
void vt_columns_grad(const vt_columns_grad_args *a, const vt_step *s);
#endif
