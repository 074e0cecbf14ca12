/* Shifts and flips of the image before a training step, in place: no memory of its own, no libc. For the firmware to
 * include; a training step does not need it. algorithm/training/augment.py does the same, to the bit.
 *
 *     camera_or_flash_read(vt_input());
 *     vt_augment(vt_input(), height, width, channels, pixels, flips, seed, variant, number);
 *     loss = vt_train_step(label, lr);
 *
 * pixels: the largest shift, 0 for none. flips: 0 or 1. variant: 0 leaves the image as it is, odd ones mirror it where
 * flips is 1; the n-th pass over the images, counted from 0, takes variant n, or n modulo a few. number: the image's. */
#ifndef VT_AUGMENT_H
#define VT_AUGMENT_H
#include <stdint.h>

/* A hash of 32 bits (Wellons' lowbias32). */
static inline uint32_t vt_mix(uint32_t h) {
    h = (h ^ h >> 16) * 0x7feb352du;
    h = (h ^ h >> 15) * 0x846ca68bu;
    return h ^ h >> 16;
}

/* Left to right. image: (height, width, channels). */
static inline void vt_flip_image(uint8_t *image, int32_t height, int32_t width, int32_t channels) {
    for (int32_t y = 0; y < height; y++)
        for (int32_t a = 0, b = width - 1; a < b; a++, b--)
            for (int32_t c = 0; c < channels; c++) {
                uint8_t *left = image + (y * width + a) * channels + c, *right = image + (y * width + b) * channels + c;
                const uint8_t kept = *left;
                *left = *right;
                *right = kept;
            }
}

/* By dx to the right and dy downwards, or the other way where negative; what comes in at an edge repeats it. Walks from
 * the side that the image moves to, so that every pixel is read before it is written over. */
static inline void vt_shift_image(uint8_t *image, int32_t height, int32_t width, int32_t channels, int32_t dx, int32_t dy) {
    for (int32_t j = 0; j < height; j++) {
        const int32_t y = dy > 0 ? height - 1 - j : j;
        const int32_t from_y = y - dy < 0 ? 0 : y - dy >= height ? height - 1 : y - dy;
        for (int32_t i = 0; i < width; i++) {
            const int32_t x = dx > 0 ? width - 1 - i : i;
            const int32_t from_x = x - dx < 0 ? 0 : x - dx >= width ? width - 1 : x - dx;
            for (int32_t c = 0; c < channels; c++)
                image[(y * width + x) * channels + c] = image[(from_y * width + from_x) * channels + c];
        }
    }
}

static inline void vt_augment(uint8_t *image, int32_t height, int32_t width, int32_t channels, int32_t pixels, int32_t flips,
                              uint32_t seed, uint32_t variant, uint32_t number) {
    const uint32_t state = vt_mix(vt_mix(vt_mix(seed) + variant) + number), span = 2u * (uint32_t)pixels + 1u;
    if (variant == 0) return;
    if (flips && (variant & 1u)) vt_flip_image(image, height, width, channels);
    vt_shift_image(image, height, width, channels, (int32_t)(vt_mix(state + 1u) % span) - pixels,
                   (int32_t)(vt_mix(state + 2u) % span) - pixels);
}
#endif
