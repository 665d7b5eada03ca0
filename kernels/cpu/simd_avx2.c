/* The AVX2 table: the shared element-wise source compiled for it, and by hand what matters most. */
#include "kernels/cpu/simd.h"

#if defined(__x86_64__)
#include "kernels/cpu/mm_avx2.h"
#include "kernels/cpu/vec_avx2.h"

#define VEC(name) name##_avx2
#define VEC_OWN_attn
#define VEC_OWN_idx_scores
#define VEC_OWN_dot
#define VEC_OWN_hadamard
#include "kernels/cpu/vec_body.inc"

const struct cpu_simd cpu_simd_avx2 = {
    .name = "avx2",
    .matmul = mm_avx2,
#include "kernels/cpu/vec_table.inc"
};
#endif
