#include "vt_loss.h"
#include "vt_math.h"

static float vt_max(const float *x, int32_t n) {
    float m = x[0];
    int32_t i;
    for (i = 1; i < n; i++) m = x[i] > m ? x[i] : m;
    return m;
}

/* loss = log sum exp(logits) - logits[label]. A label outside 0..k-1 reads nothing and gives NaN. No scratch. */
void vt_cross_entropy(const vt_cross_entropy_args *a, const vt_step *s) {
    const float m = vt_max(a->logits, a->k);
    const int32_t label = a->label[0];
    float sum = 0.0f;
    int32_t i;
    (void)s;
    for (i = 0; i < a->k; i++) sum += vt_expf(a->logits[i] - m);
    a->loss[0] = label >= 0 && label < a->k ? vt_logf(sum) + (m - a->logits[label]) : vt_from_bits(0x7fc00000u);
}

/* d_logits = softmax(logits) - onehot(label). In place on logits allowed. A label outside 0..k-1 gives zeros: such a
 * step trains nothing. No scratch. */
void vt_cross_entropy_grad(const vt_cross_entropy_grad_args *a, const vt_step *s) {
    const float m = vt_max(a->logits, a->k);
    const int32_t label = a->label[0];
    float sum = 0.0f;
    int32_t i;
    (void)s;
    for (i = 0; i < a->k; i++) {
        const float e = vt_expf(a->logits[i] - m);
        a->d_logits[i] = e;
        sum += e;
    }
    for (i = 0; i < a->k; i++) {
        const float g = a->d_logits[i] / sum - (i == label ? 1.0f : 0.0f);
        a->d_logits[i] = label >= 0 && label < a->k ? g : 0.0f;
    }
}
