#include "vt_image.h"
#include "vt_math.h"

/* y[c][i] = image[i][c] * scale[c] + shift[c]. No scratch. */
void vt_normalize_image(const vt_normalize_image_args *a, const vt_step *s) {
    const int32_t size = a->height * a->width;
    int32_t c, i;
    (void)s;
    for (c = 0; c < a->channels; c++)
        for (i = 0; i < size; i++)
            a->y[(ptrdiff_t)c * size + i] = VT_FMA((float)a->image[i * a->channels + c], a->scale[c], a->shift[c]);
}
