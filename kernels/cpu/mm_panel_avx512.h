/* mm_panel_avx512 - inside the AVX-512 matrix product: 32 weight rows x 256 columns, unpacked for vpdpbusd.
 *
 * A panel holds the weights as unsigned bytes with the row as the lane: dword k of vector [k][c] is
 * columns 4k..4k+3 of row 16c + lane, so that one broadcast of four activations serves 16 rows and no
 * sum ever crosses lanes. Every type becomes one of four forms; what the bytes are too large by (their
 * zero point) is taken back by starting each integer sum at -zero * (sum of activations). */
#ifndef KERNELS_CPU_MM_PANEL_AVX512_H
#define KERNELS_CPU_MM_PANEL_AVX512_H

#include "kernels/cpu/simd.h"

#if defined(__x86_64__)
#include <immintrin.h>

enum { PANEL_ROWS = 32, PANEL_K = 256, TOKENS_MAX = 6 };

struct panel {
    uint8_t q[PANEL_K / 4][2][64];
    float d[8][PANEL_ROWS];                        /* per 32 columns, or [0] per 256 */
    float dmin[PANEL_ROWS];
    int32_t scale[16][PANEL_ROWS];                 /* per sub-block */
    int32_t min[8][PANEL_ROWS];                    /* two int16 each: minima of sub-blocks 2i, 2i + 1 */
};

/* One activation row's part of a panel, with what belongs to it. Tokens lie next to each other, because
 * rows a multiple of
 * 4 KiB apart would fall into the same lines of the L1. */
struct token {
    int8_t q[PANEL_K];
    int32_t start[16];                             /* per sub-block: -zero * (sum of q) */
    float d[8];                                    /* as in struct panel */
    int16_t sum[16];                               /* sums of q that the minima multiply */
};

/* Sums of how many columns are scaled together, and what happens to a sum. */
enum panel_form {
    FORM_32,                                       /* per 32: to f32, times d */
    FORM_256_SUB32,                             /* per 32: times an integer scale; per 256: to f32, times d */
    FORM_256_SUB32_MIN,                            /* the same, and the minima */
    FORM_256_SUB16,
    FORM_256_MIN,                                  /* scales are in the bytes already */
    PANEL_FORMS
};

/* Unpacks n_k columns (256, or fewer in the last panel of a row of 32-blocks) of 16 rows into half c. */
typedef void panel_unpack(struct panel *p, int c, const uint8_t *const row[16], int n_k);

struct panel_type {
    panel_unpack *unpack;
    enum panel_form form;
    int zero;
    int block_bytes;                               /* bytes of 256 columns */
};

/* NULL: not a quantised type. */
const struct panel_type *panel_type_of(enum dtype type);

#endif
#endif
