/* The neon table: the shared element-wise source compiled for it. */
#include "kernels/cpu/simd.h"

#if defined(__aarch64__)
#define VEC(name) name##_neon
#include "kernels/cpu/vec_body.inc"

#include "kernels/cpu/mm_generic.h"

const struct cpu_simd cpu_simd_neon = {
    .name = "neon",
    .matmul = mm_generic,
#include "kernels/cpu/vec_table.inc"
};
#endif
