#include "toy.h"

/* Only takes stack: 12 kB of it. */
void vt_toy_deep(const vt_toy_deep_args *a, const vt_step *s) {
    volatile uint8_t deep[12000];
    (void)s;
    for (int32_t i = 0; i < 12000; i++) deep[i] = a->image[0];
    deep[0] = deep[a->image[1]];
}
