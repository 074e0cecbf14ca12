#ifndef VT_ATTENTION_H
#define VT_ATTENTION_H
#include "vt_kernels.h"

/* Softmax attention of n queries (at most 16) over m keys, for h heads side by side: of head i, the columns i * d .. of
 * q and k, i * e .. of v, y and dy. S = min(16, m) below. scale: of the
 * scores; 0 for 1 / sqrt(d).
 * Keys may come in several calls, first to last, with the same queries: then high and total (n, h) carry each query's
 * maximum and sum of exponentials from one to the next. */

/* y = softmax(scale q k^T) v. */
typedef struct {
    vt_in q, k, v;               /* (n, h d) any; (m, h d) rows; (m, h e) rows */
    vt_out y;                    /* (n, h e) rows, apart from the inputs; never added to */
    vt_out high, total;          /* (n, h) any; absent where first and last are 1 */
    void *scratch;               /* (d + S) * n floats */
    float scale;
    int32_t n, m, h, d, e;
    int32_t first, last;         /* 1: y, high, total start afresh; 1: y is finished */
} vt_attention_args;
void vt_attention(const vt_attention_args *a, const vt_step *s);

/* What attention_grad asks for, over all keys: high, the maximum of scale q k^T; total, the sum of e^(score - high);
 * delta, the sum of e^(score - high) times the value's product with dy. */
typedef struct {
    vt_in q, k, v, dy;           /* (n, h d) any; (m, h d) rows; (m, h e) rows; (n, h e) panel */
    vt_out high, total, delta;   /* (n, h) any */
    void *scratch;               /* (d + 2 * S) * n floats */
    float scale;
    int32_t n, m, h, d, e;
    int32_t first, last;         /* 1: they start afresh; last is not looked at */
} vt_attention_statistics_args;
void vt_attention_statistics(const vt_attention_statistics_args *a, const vt_step *s);

/* Gradients of attention, and its result y once more; the probabilities are computed again. Each output is written, or
 * added to where its `add` is 1, and absent where it is not wanted. v and dy may be absent where nothing needs them: v with
 * d_v alone, dy with y alone; delta where neither d_q nor d_k is wanted. */
typedef struct {
    vt_in q, k, v, dy;           /* (n, h d) any; (m, h d), (m, h e), (n, h e) rows */
    vt_in high, total, delta;    /* (n, h) any: of attention_statistics over all keys */
    vt_out d_q, d_k, d_v, y;     /* (n, h d), (m, h d), (m, h e), (n, h e) rows, apart from the inputs and each other; but
                                    d_v may be d_k, or y d_q, with one add: then both are added up there */
    void *scratch;               /* (D * d + E * e + 2 * S) * n floats; n = 1: D = 1, E = 0; else D = 2 where d_k is wanted
                                    or 1, E = 1 where d_q or d_k is wanted or 0. Without d_q and d_k, S instead of 2 S */
    float scale;
    int32_t n, m, h, d, e;
} vt_attention_grad_args;
void vt_attention_grad(const vt_attention_grad_args *a, const vt_step *s);
#endif
