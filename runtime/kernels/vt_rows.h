#ifndef VT_ROWS_H
#define VT_ROWS_H
#include "vt_kernels.h"

typedef struct {
    const float *x;          /* (n, d) */
    float *y;                /* (1, d), apart from x */
    int32_t row, d;
} vt_take_row_args;
void vt_take_row(const vt_take_row_args *a, const vt_step *s);

typedef struct {
    const float *dy;         /* (1, d) */
    float *d_x;              /* (n, d) */
    int32_t row, n, d;
} vt_take_row_grad_args;
void vt_take_row_grad(const vt_take_row_grad_args *a, const vt_step *s);

typedef struct {
    const float *x;          /* (tokens, d) */
    float *y;                /* (1, d) */
    int32_t start, tokens, d;
} vt_mean_rows_args;
void vt_mean_rows(const vt_mean_rows_args *a, const vt_step *s);

typedef struct {
    const float *dy;         /* (1, d) */
    float *d_x;              /* (n, d) */
    int32_t start, n, d;
} vt_mean_rows_grad_args;
void vt_mean_rows_grad(const vt_mean_rows_grad_args *a, const vt_step *s);

typedef struct {
    const float *x;          /* (n, d) */
    const uint16_t *index;   /* (k,) columns, ascending */
    float *y;                /* (n, k) */
    int32_t n, d, k;
} vt_take_cols_args;
void vt_take_cols(const vt_take_cols_args *a, const vt_step *s);
#endif
