/* Toy operations for the tests of code generation and of the simulator: tiny, and some of them broken on purpose. */
#ifndef TOY_H
#define TOY_H
#include "vt_kernels.h"

typedef struct {
    const uint8_t *image;   /* (K) */
    vt_matrix w;            /* (O, K) */
    const float *b;         /* (O) or NULL */
    float *y;               /* (O) */
    void *scratch;          /* 4 bytes: the sum */
    float gain;
    int32_t fault;          /* 0 none, 1 writes past y, 2 reads scratch before writing it, 3 NaN, 4 reads
                               stack before writing it, 5 leaves a result unwritten, 6 writes before the results */
} vt_toy_dense_args;
void vt_toy_dense(const vt_toy_dense_args *a, const vt_step *s);

typedef struct {
    const uint8_t *image;
    vt_matrix w;
    const float *b;
    const float *dy;
    vt_sink d_w, d_b;
    float gain;
} vt_toy_dense_grad_args;
void vt_toy_dense_grad(const vt_toy_dense_grad_args *a, const vt_step *s);

typedef struct {
    const uint8_t *image;
    int32_t k;
} vt_toy_deep_args;
void vt_toy_deep(const vt_toy_deep_args *a, const vt_step *s);

typedef struct {
    const float *logits;    /* (K) */
    const int32_t *label;
    float *loss, *d_logits;
    int32_t k;
} vt_toy_square_args;
void vt_toy_square(const vt_toy_square_args *a, const vt_step *s);
#endif
