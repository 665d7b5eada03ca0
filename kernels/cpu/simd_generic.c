/* The portable table: the shared element-wise source for the base instruction set, and the plain matrix
 * product. Where the base has no fused multiply-add (x86-64 before AVX2), fmaf is a library call: slow,
 * and equal. */
#define VEC(name) name##_generic
#include "kernels/cpu/vec_body.inc"

#include "kernels/cpu/mm_generic.h"

const struct cpu_simd cpu_simd_generic = {
    .name = "generic",
    .matmul = mm_generic,
#include "kernels/cpu/vec_table.inc"
};
