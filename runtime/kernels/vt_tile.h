/* How wide the kernels work on a core, in one place. Results, scratch and the work planned are the same with any width;
 * only speed, code size and a few hundred bytes of stack differ. -DVT_LANES=n (4, 8 or 16) chooses.
 *
 *   VT_LANES  values side by side in a tile that has rows enough: 4 on a Cortex-M, whose 32 scalar float registers hold
 *             4 x 4 sums and what they are made of; 16 elsewhere, one or two vector registers a row.
 *   VT_SUMS   sums kept in registers at a time. A tile of few rows is wider and one of few lanes is taller, for a chain
 *             of multiply-adds waits for itself and only other chains fill the wait.
 *   VT_ROWS   rows of the usual tile; VT_TALL the most rows and VT_WIDE the most lanes of any. */
#ifndef VT_TILE_H
#define VT_TILE_H

#ifndef VT_LANES
#if defined(__ARM_ARCH_PROFILE) && __ARM_ARCH_PROFILE == 'M'
#define VT_LANES 4
#else
#define VT_LANES 16
#endif
#endif
#if VT_LANES != 4 && VT_LANES != 8 && VT_LANES != 16
#error "VT_LANES is 4, 8 or 16"
#endif
#define VT_SUMS (VT_LANES * (VT_LANES == 16 ? 8 : 4))
#define VT_ROWS (VT_SUMS / VT_LANES)
#define VT_TALL 8
#define VT_WIDE (4 * VT_LANES)

/* The loop below is unrolled whole: its count is a constant. */
#if defined(__GNUC__)
#define VT_UNROLL _Pragma("GCC unroll 64")
#else
#define VT_UNROLL
#endif

/* The loop below stays a loop of whole vectors: clang would gather lanes from several of its turns. */
#if defined(__clang__)
#define VT_BY_VECTORS _Pragma("clang loop vectorize(disable)")
#else
#define VT_BY_VECTORS
#endif
#endif
