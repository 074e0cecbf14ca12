/* Host only: runs the generated step on a thread of its own whose stack is painted, so that the deepest call can be
 * measured, and scans memory. Built together with the generated C folder by runtime/simulator. */
#define _POSIX_C_SOURCE 200809L
#define _DEFAULT_SOURCE
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "vit_train.h"

#define STACK_BYTES (1024u * 1024u)
#define MARGIN 192u             /* below the thread function's own frame, left unpainted */

typedef struct {
    uint8_t *stack;
    int32_t predict, label, result;
    float lr, loss;
    uint64_t used;
    uint8_t paint;
} job;

int32_t vt_sim_run(int32_t predict, int32_t label, float lr, uint8_t paint, float *loss, int32_t *result,
                   uint64_t *stack_used);
int64_t vt_sim_first_difference(const uint8_t *p, uint64_t n, uint8_t value);
int64_t vt_sim_last_difference(const uint8_t *p, uint64_t n, uint8_t value);

static void *run(void *argument) {
    job *j = (job *)argument;
    uint8_t marker;
    uint8_t *top = (uint8_t *)((uintptr_t)&marker - MARGIN);
    volatile uint8_t *paint = j->stack;
    while (paint < top) *paint++ = j->paint;
    if (j->predict) j->result = vt_predict();
#ifdef VT_HAS_TRAIN_STEP
    else j->loss = vt_train_step(j->label, j->lr);
#endif
    const uint8_t *low = j->stack;
    while (low < top && *low == j->paint) low++;
    j->used = (uint64_t)((uintptr_t)&marker - (uintptr_t)low);
    return NULL;
}

/* One step or prediction on a stack full of `paint`. Returns 0, or the system's error number when no thread could be made. */
int32_t vt_sim_run(int32_t predict, int32_t label, float lr, uint8_t paint, float *loss, int32_t *result,
                   uint64_t *stack_used) {
    job j = {NULL, predict, label, 0, lr, 0.0f, 0, paint};
    void *stack = NULL;
    pthread_attr_t attributes;
    pthread_t thread;
    int error = posix_memalign(&stack, 65536, STACK_BYTES);
    if (error) return error;
    j.stack = (uint8_t *)stack;
    pthread_attr_init(&attributes);
    error = pthread_attr_setstack(&attributes, stack, STACK_BYTES);
    if (!error) error = pthread_create(&thread, &attributes, run, &j);
    if (!error) error = pthread_join(thread, NULL);
    pthread_attr_destroy(&attributes);
    free(stack);
    *loss = j.loss;
    *result = j.result;
    *stack_used = j.used;
    return error;
}

/* Index of the first (last) byte that differs from value, -1 when there is none. */
int64_t vt_sim_first_difference(const uint8_t *p, uint64_t n, uint8_t value) {
    for (uint64_t i = 0; i < n; i++)
        if (p[i] != value) return (int64_t)i;
    return -1;
}

int64_t vt_sim_last_difference(const uint8_t *p, uint64_t n, uint8_t value) {
    for (uint64_t i = n; i > 0; i--)
        if (p[i - 1] != value) return (int64_t)(i - 1);
    return -1;
}
