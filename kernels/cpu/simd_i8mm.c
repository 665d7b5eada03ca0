/* The i8mm table: the same with int8 matrix multiply. */
#include "kernels/cpu/simd.h"

#if defined(__aarch64__)
#define VEC(name) name##_i8mm
#include "kernels/cpu/vec_body.inc"

#define MM(name) mm_##name##_i8mm
#define MM_PAIRS 1
#include "kernels/cpu/mm_arm.inc"

const struct cpu_simd cpu_simd_i8mm = {
    .name = "i8mm",
    .matmul = MM(matmul),
#include "kernels/cpu/vec_table.inc"
};
#endif
