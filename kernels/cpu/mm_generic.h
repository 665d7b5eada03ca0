/* mm_generic - the plain C matrix product: reference for the others, and what they fall back to for a
 * type they do not have. */
#ifndef KERNELS_CPU_MM_GENERIC_H
#define KERNELS_CPU_MM_GENERIC_H

#include "kernels/cpu/simd.h"

void mm_generic(const struct mm_tile *t);

/* 2^(e - 128), the scale of doubled MXFP4 values; subnormal for e < 2. */
float mm_mxfp4_scale(uint8_t e);

#endif
