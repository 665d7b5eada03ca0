/* idx_avx512 - the indexer's scores by hand for AVX-512; bit-equal to vec_body.inc's. */
#ifndef KERNELS_CPU_IDX_AVX512_H
#define KERNELS_CPU_IDX_AVX512_H

#include "common/base/types.h"

void idx_scores_avx512(float *score, const int8_t *q, const int8_t *q_exp, const float *w,
                       int n_head, int dim, const uint8_t *keys, int64_t key_bytes, int n_keys);

#endif
