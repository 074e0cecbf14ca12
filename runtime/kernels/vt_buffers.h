#ifndef VT_BUFFERS_H
#define VT_BUFFERS_H
#include "vt_kernels.h"

typedef struct {
    vt_out y;                /* (n, c), any strides */
    int32_t n, c;
} vt_fill_zero_args;
void vt_fill_zero(const vt_fill_zero_args *a, const vt_step *s);

/* The window of w: output features o_at .. o_at + o, input features c_at .. c_at + c. */
typedef struct {
    vt_matrix w;
    vt_sink w_sink;          /* the trained part: param, velocity */
    vt_in d_w;               /* the trained rows and columns of the window alone, row by row (as vt_sink.window has it) */
    int32_t o, c, o_at, c_at;
} vt_apply_weight_args;
void vt_apply_weight(const vt_apply_weight_args *a, const vt_step *s);
#endif
