/* The neon table: ARMv8.2 with dot products. */
#include "kernels/cpu/simd.h"

#if defined(__aarch64__)
#define VEC(name) name##_neon
#include "kernels/cpu/vec_body.inc"

#define MM(name) mm_##name##_neon
#define MM_PAIRS 0
#include "kernels/cpu/mm_arm.inc"

const struct cpu_simd cpu_simd_neon = {
    .name = "neon",
    .matmul = MM(matmul),
#include "kernels/cpu/vec_table.inc"
};
#endif
