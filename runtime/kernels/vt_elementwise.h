#ifndef VT_ELEMENTWISE_H
#define VT_ELEMENTWISE_H
#include "vt_kernels.h"

/* Every operand here is a window (n, c) of any strides; a y or d_x may be the very window of x, a, b or dy.
 * vt_copy adds to y where y.add is 1. */
typedef struct { vt_in x; vt_out y; int32_t n, c; } vt_relu_args, vt_sigmoid_args, vt_silu_args, vt_tanh_args, vt_copy_args;
typedef struct {
    vt_in x, dy;
    vt_out d_x;
    int32_t n, c;
} vt_relu_grad_args, vt_sigmoid_grad_args, vt_silu_grad_args, vt_tanh_grad_args;
typedef struct { vt_in x; vt_out y; int32_t tanh, n, c; } vt_gelu_args;
typedef struct { vt_in x, dy; vt_out d_x; int32_t tanh, n, c; } vt_gelu_grad_args;
typedef struct { vt_in a, b; vt_out y; int32_t n, c; } vt_add_args, vt_mul_args;
typedef struct { vt_in x; vt_out y; float value; int32_t n, c; } vt_mul_const_args;

typedef struct {
    vt_in a, b;              /* a is NULL when d_b is not wanted, b when d_a is not */
    vt_in dy;
    vt_out d_a, d_b;         /* d_a may be dy, d_b only where d_a is not wanted */
    int32_t n, c;
} vt_mul_grad_args;

/* y = x * s, s (c,). */
typedef struct { vt_in x; const float *s; vt_out y; int32_t n, c; } vt_scale_args;
typedef struct {
    vt_in x;                 /* NULL when d_s is not wanted */
    const float *s;          /* (c,); NULL when d_x is not wanted */
    vt_in dy;
    vt_out d_x;              /* may be dy; NULL when not wanted */
    vt_sink d_s;
    int32_t n, c;
} vt_scale_grad_args;

/* The parameter (n, c), from row to row ld, and its velocity stand in the sink p: v = momentum * v + g (v = g without
 * a velocity), p -= lr * v. g: any strides. */
typedef struct { vt_sink p; vt_in g; int32_t n, c, ld; } vt_sgd_args;

void vt_gelu(const vt_gelu_args *k, const vt_step *s);
void vt_gelu_grad(const vt_gelu_grad_args *k, const vt_step *s);
void vt_relu(const vt_relu_args *k, const vt_step *s);
void vt_relu_grad(const vt_relu_grad_args *k, const vt_step *s);
void vt_sigmoid(const vt_sigmoid_args *k, const vt_step *s);
void vt_sigmoid_grad(const vt_sigmoid_grad_args *k, const vt_step *s);
void vt_silu(const vt_silu_args *k, const vt_step *s);
void vt_silu_grad(const vt_silu_grad_args *k, const vt_step *s);
void vt_tanh(const vt_tanh_args *k, const vt_step *s);
void vt_tanh_grad(const vt_tanh_grad_args *k, const vt_step *s);
void vt_copy(const vt_copy_args *k, const vt_step *s);
void vt_add(const vt_add_args *k, const vt_step *s);
void vt_mul(const vt_mul_args *k, const vt_step *s);
void vt_mul_grad(const vt_mul_grad_args *k, const vt_step *s);
void vt_mul_const(const vt_mul_const_args *k, const vt_step *s);
void vt_scale(const vt_scale_args *k, const vt_step *s);
void vt_scale_grad(const vt_scale_grad_args *k, const vt_step *s);
void vt_sgd(const vt_sgd_args *k, const vt_step *s);
#endif
