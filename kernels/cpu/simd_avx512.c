/* The AVX512 table: the shared element-wise source compiled for it. */
#include "kernels/cpu/simd.h"

#if defined(__x86_64__)
#include "kernels/cpu/attn_avx512.h"
#include "kernels/cpu/idx_avx512.h"
#include "kernels/cpu/vec_avx512.h"
#define VEC(name) name##_avx512
#define VEC_OWN_kv_unpack
#define VEC_OWN_attn
#define VEC_OWN_idx_scores
#define VEC_OWN_dot
#define VEC_OWN_hadamard
#include "kernels/cpu/vec_body.inc"

#include "kernels/cpu/mm_avx512.h"

const struct cpu_simd cpu_simd_avx512 = {
    .name = "avx512",
    .matmul = mm_avx512,
#include "kernels/cpu/vec_table.inc"
};
#endif
