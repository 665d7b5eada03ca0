/* The AVX2 table: the shared element-wise source compiled for it. */
#include "kernels/cpu/simd.h"

#if defined(__x86_64__)
#define VEC(name) name##_avx2
#include "kernels/cpu/vec_body.inc"

#include "kernels/cpu/mm_generic.h"

const struct cpu_simd cpu_simd_avx2 = {
    .name = "avx2",
    .matmul = mm_generic,
#include "kernels/cpu/vec_table.inc"
};
#endif
