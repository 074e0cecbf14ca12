#ifndef VT_ROWS_H
#define VT_ROWS_H
#include "vt_kernels.h"

/* Windows of any strides; what is written is apart from what is read. n: rows of the whole matrix, c: columns of the
 * window. */
typedef struct {
    vt_in x;                 /* (n, c) */
    vt_out y;                /* (1, c) */
    int32_t row, n, c;
} vt_take_row_args;
void vt_take_row(const vt_take_row_args *a, const vt_step *s);

typedef struct {
    vt_in dy;                /* (1, c) */
    vt_out d_x;              /* (n, c) */
    int32_t row, n, c;
} vt_take_row_grad_args;
void vt_take_row_grad(const vt_take_row_grad_args *a, const vt_step *s);

typedef struct {
    vt_in x;                 /* (n, c) */
    vt_out y;                /* (1, c) */
    int32_t start, n, c;
} vt_mean_rows_args;
void vt_mean_rows(const vt_mean_rows_args *a, const vt_step *s);

typedef struct {
    vt_in dy;                /* (1, c) */
    vt_out d_x;              /* (n, c) */
    int32_t start, n, c;
} vt_mean_rows_grad_args;
void vt_mean_rows_grad(const vt_mean_rows_grad_args *a, const vt_step *s);

typedef struct {
    vt_in x;                 /* (n, c), all columns */
    const uint16_t *index;   /* (k,) columns of x, ascending */
    vt_out y;                /* (n, k) */
    int32_t n, c, k;
} vt_take_cols_args;
void vt_take_cols(const vt_take_cols_args *a, const vt_step *s);
#endif
