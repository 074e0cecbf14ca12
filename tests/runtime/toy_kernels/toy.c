#include "toy.h"

static float element(const vt_part *p, int32_t row, int32_t col, int32_t *found) {
    for (int32_t i = 0; i < p->n_rows; i++)
        for (int32_t j = 0; j < p->n_cols; j++)
            if ((p->rows ? p->rows[i] : i) == row && (p->cols ? p->cols[j] : j) == col) {
                *found = 1;
                return p->w[i * p->n_cols + j];
            }
    return 0.0f;
}

/* A sum of what the stack happens to hold. */
static __attribute__((noinline)) float left_behind(void) {
    float old[256], sum = 0.0f;
    __asm__ volatile("" : "=m"(old));           /* as if it had been written */
    for (int32_t i = 0; i < 256; i++) sum += old[i];
    return sum;
}

/* y = gain * W image + b */
void vt_toy_dense(const vt_toy_dense_args *a, const vt_step *s) {
    float *sum = (float *)a->scratch;
    for (int32_t o = 0; o < a->w.rows; o++) {
        if (a->fault != 2 || o) *sum = 0.0f;
        for (int32_t k = 0; k < a->w.cols; k++) {
            int32_t found = 0;
            float w = element(&a->w.frozen, o, k, &found);
            if (!found) w = element(&a->w.trained, o, k, &found);
            *sum = __builtin_fmaf(w, a->gain * (float)a->image[k], *sum);
            VT_COUNT(s, 1);
        }
        if (a->fault != 5 || o) a->y[o] = *sum + (a->b ? a->b[o] : 0.0f);
    }
    if (a->fault == 1) a->y[a->w.rows + 10] = 1.0f;
    if (a->fault == 3) a->y[0] = __builtin_nanf("");
    if (a->fault == 4) a->y[0] += left_behind();
    if (a->fault == 6) a->y[-3] = 1.0f;
}

static void put(const vt_sink *sink, int32_t i, float g, const vt_step *s) {
    if (sink->grad) sink->grad[i] = g;
    else if (sink->param) {
        float v = g;
        if (sink->velocity) v = sink->velocity[i] = s->momentum * sink->velocity[i] + g;
        sink->param[i] -= s->lr * v;
    }
}

void vt_toy_dense_grad(const vt_toy_dense_grad_args *a, const vt_step *s) {
    const vt_part *p = &a->w.trained;
    for (int32_t i = 0; i < p->n_rows; i++)
        for (int32_t j = 0; j < p->n_cols; j++) {
            put(&a->d_w, i * p->n_cols + j,
                a->dy[p->rows ? p->rows[i] : i] * a->gain * (float)a->image[p->cols ? p->cols[j] : j], s);
            VT_COUNT(s, 1);
        }
    for (int32_t o = 0; o < a->w.rows; o++) put(&a->d_b, o, a->dy[o], s);
}

/* loss = sum (logit - onehot)^2 / 2 */
void vt_toy_square(const vt_toy_square_args *a, const vt_step *s) {
    float loss = 0.0f;
    (void)s;
    for (int32_t i = 0; i < a->k; i++) {
        const float d = a->logits[i] - (i == *a->label ? 1.0f : 0.0f);
        loss = __builtin_fmaf(0.5f * d, d, loss);
        a->d_logits[i] = d;
    }
    *a->loss = loss;
}
