#ifndef VT_ELEMENTWISE_H
#define VT_ELEMENTWISE_H
#include "vt_kernels.h"

/* Every y and d_x here may be in place on x, a, b or dy. size: number of elements. */
typedef struct { const float *x; float *y; int32_t tanh, size; } vt_gelu_args;
typedef struct { const float *x, *dy; float *d_x; int32_t tanh, size; } vt_gelu_grad_args;
typedef struct { const float *x; float *y; int32_t size; } vt_relu_args;
typedef struct { const float *x, *dy; float *d_x; int32_t size; } vt_relu_grad_args;
typedef struct { const float *a, *b; float *y; int32_t size; } vt_add_args;
typedef struct { const float *x; float *y; float value; int32_t size; } vt_mul_const_args;

/* y (n, d) = x * s, s (d,). */
typedef struct { const float *x, *s; float *y; int32_t n, d; } vt_scale_args;
typedef struct {
    const float *x;          /* (n, d); NULL when d_s is not wanted */
    const float *s, *dy;     /* (d,), (n, d) */
    float *d_x;              /* (n, d), may be dy; NULL when not wanted */
    vt_sink d_s;
    int32_t n, d;
} vt_scale_grad_args;

/* The parameter and its velocity stand in the sink p: v = momentum * v + g (v = g without a velocity), p -= lr * v. */
typedef struct { vt_sink p; const float *g; int32_t size; } vt_sgd_args;

void vt_gelu(const vt_gelu_args *a, const vt_step *s);
void vt_gelu_grad(const vt_gelu_grad_args *a, const vt_step *s);
void vt_relu(const vt_relu_args *a, const vt_step *s);
void vt_relu_grad(const vt_relu_grad_args *a, const vt_step *s);
void vt_add(const vt_add_args *a, const vt_step *s);
void vt_mul_const(const vt_mul_const_args *a, const vt_step *s);
void vt_scale(const vt_scale_args *a, const vt_step *s);
void vt_scale_grad(const vt_scale_grad_args *a, const vt_step *s);
void vt_sgd(const vt_sgd_args *a, const vt_step *s);
#endif
