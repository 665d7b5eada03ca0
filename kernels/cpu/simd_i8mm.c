/* The i8mm table: the shared element-wise source compiled for it. */
#include "kernels/cpu/simd.h"

#if defined(__aarch64__)
#define VEC(name) name##_i8mm
#include "kernels/cpu/vec_body.inc"

#include "kernels/cpu/mm_generic.h"

const struct cpu_simd cpu_simd_i8mm = {
    .name = "i8mm",
    .matmul = mm_generic,
#include "kernels/cpu/vec_table.inc"
};
#endif
