/* mm_codes_avx2 - the blocks of 256 as AVX2 vectors: codes of 32 values at a time in natural order,
 * unsigned bytes (the value plus a zero point per type), and sub-block scales as 16-bit words. */
#ifndef KERNELS_CPU_MM_CODES_AVX2_H
#define KERNELS_CPU_MM_CODES_AVX2_H

#include "common/model/dtype.h"
#include "kernels/cpu/inline.h"
#include "kernels/cpu/mm_iq2.h"

#include <immintrin.h>

/* What a block has besides its codes: words of the scales of sub-blocks 0..7 and 8..15 (in both lanes;
 * with eight sub-blocks of 32 values only `low`), and of the minima. d and dmin are the caller's. */
struct scales {
    __m256i low, high;
    __m128i min[2];
};

INLINE uint32_t u32_at(const uint8_t *p) {
    uint32_t w;
    memcpy(&w, p, 4);
    return w;
}

INLINE __m256i both_lanes(__m128i v) {
    return _mm256_broadcastsi128_si256(v);
}

/* ---- scales ---- */

INLINE void scales_q2_k(const uint8_t *p, struct scales *s) {
    __m128i head = _mm_loadu_si128((const void *)p), low4 = _mm_set1_epi8(15);
    __m128i scale = _mm_and_si128(head, low4), min = _mm_and_si128(_mm_srli_epi16(head, 4), low4);
    s->low = both_lanes(_mm_cvtepu8_epi16(scale));
    s->high = both_lanes(_mm_cvtepu8_epi16(_mm_srli_si128(scale, 8)));
    s->min[0] = _mm_cvtepu8_epi16(min);
    s->min[1] = _mm_cvtepu8_epi16(_mm_srli_si128(min, 8));
}

/* Low four bits of scale k: byte k % 8, half k / 8; high two bits: byte 8 + k % 4, place k / 4. */
INLINE void scales_q3_k(const uint8_t *p, struct scales *s) {
    /* bytes 94..109: two of the codes, then the scales, then d: 16 bytes that stay inside the block */
    __m128i packed = _mm_srli_si128(_mm_loadu_si128((const void *)(p + 94)), 2), bias = _mm_set1_epi16(32);
    __m128i low = _mm_srlv_epi64(_mm_unpacklo_epi64(packed, packed), _mm_set_epi64x(4, 0));
    __m128i top = _mm_srlv_epi32(_mm_shuffle_epi32(packed, 0xaa), _mm_setr_epi32(0, 2, 4, 6));
    low = _mm_and_si128(low, _mm_set1_epi8(15));
    top = _mm_slli_epi16(_mm_and_si128(top, _mm_set1_epi8(3)), 4);
    __m128i scale = _mm_or_si128(low, top);
    s->low = both_lanes(_mm_sub_epi16(_mm_cvtepu8_epi16(scale), bias));
    s->high = both_lanes(_mm_sub_epi16(_mm_cvtepu8_epi16(_mm_srli_si128(scale, 8)), bias));
}

/* Eight scales and minima of 6 bits in 12 bytes (Q4_K, Q5_K). */
INLINE void scales_6bit(const uint8_t *p, struct scales *s) {
    uint32_t a = u32_at(p + 4), b = u32_at(p + 8), c = u32_at(p + 12);
    uint32_t scale = (c & 0x0f0f0f0f) | (a >> 2 & 0x30303030),
             min = (c >> 4 & 0x0f0f0f0f) | (b >> 2 & 0x30303030);
    __m128i scales = _mm_cvtsi64_si128((long long)((uint64_t)scale << 32 | (a & 0x3f3f3f3f)));
    s->low = both_lanes(_mm_cvtepu8_epi16(scales));
    s->min[0] = _mm_cvtepu8_epi16(_mm_cvtsi64_si128((long long)((uint64_t)min << 32 | (b & 0x3f3f3f3f))));
}

INLINE void scales_q6_k(const uint8_t *p, struct scales *s) {
    __m128i scale = _mm_loadu_si128((const void *)(p + 192));
    s->low = both_lanes(_mm_cvtepi8_epi16(scale));
    s->high = both_lanes(_mm_cvtepi8_epi16(_mm_srli_si128(scale, 8)));
}

/* Word i (0..7) everywhere; words i and i + 1 in the two lanes. */
INLINE __m256i word_twice(__m256i words, int i) {
    return _mm256_shuffle_epi8(words, _mm256_set1_epi16((short)(0x0100 + 0x0202 * i)));
}

INLINE __m256i word_pair(__m256i words, int i) {
    short at = (short)(0x0100 + 0x0202 * i), next = (short)(at + 0x0202);
    return _mm256_shuffle_epi8(words, _mm256_setr_epi16(at, at, at, at, at, at, at, at, next, next,
                                                        next, next, next, next, next, next));
}

/* ---- codes: values 32v .. 32v+31 ---- */

INLINE __m256i codes_q2_k(const uint8_t *p, int v) {
    __m256i q = _mm256_loadu_si256((const void *)(p + 16 + 32 * (v / 4)));
    return _mm256_and_si256(_mm256_srli_epi16(q, 2 * (v % 4)), _mm256_set1_epi8(3));
}

/* Bit `from` of every byte to bit `to`. */
INLINE __m256i bit_moved(__m256i v, int from, int to) {
    v = from < to ? _mm256_slli_epi16(v, to - from) : _mm256_srli_epi16(v, from - to);
    return _mm256_and_si256(v, _mm256_set1_epi8((char)(1 << to)));
}

/* The value plus 4. */
INLINE __m256i codes_q3_k(const uint8_t *p, int v) {
    __m256i q = _mm256_loadu_si256((const void *)(p + 32 + 32 * (v / 4))),
            mask = _mm256_loadu_si256((const void *)p);
    q = _mm256_and_si256(_mm256_srli_epi16(q, 2 * (v % 4)), _mm256_set1_epi8(3));
    return _mm256_or_si256(q, bit_moved(mask, v, 2));
}

INLINE __m256i nibbles(__m256i v, int high) {
    return _mm256_and_si256(high ? _mm256_srli_epi16(v, 4) : v, _mm256_set1_epi8(15));
}

INLINE __m256i codes_q4_k(const uint8_t *p, int v) {
    return nibbles(_mm256_loadu_si256((const void *)(p + 16 + 32 * (v / 2))), v % 2);
}

INLINE __m256i codes_q5_k(const uint8_t *p, int v) {
    __m256i q = nibbles(_mm256_loadu_si256((const void *)(p + 48 + 32 * (v / 2))), v % 2);
    return _mm256_or_si256(q, bit_moved(_mm256_loadu_si256((const void *)(p + 16)), v, 4));
}

/* The value plus 32. */
INLINE __m256i codes_q6_k(const uint8_t *p, int v) {
    int n = v / 4, t = v % 4;
    __m256i q = nibbles(_mm256_loadu_si256((const void *)(p + 64 * n + 32 * (t % 2))), t / 2);
    __m256i high = _mm256_loadu_si256((const void *)(p + 128 + 32 * n));
    high = t < 2 ? _mm256_slli_epi16(high, 4 - 2 * t) : _mm256_srli_epi16(high, 2 * t - 4);
    return _mm256_or_si256(q, _mm256_and_si256(high, _mm256_set1_epi8(48)));
}

/* IQ2_XXS: magnitudes, and 1 or -1; the group's scale. */
INLINE __m256i iq2_magnitudes(const uint8_t *group) {
    return _mm256_setr_epi64x((long long)iq2xxs_grid[group[0]], (long long)iq2xxs_grid[group[1]],
                              (long long)iq2xxs_grid[group[2]], (long long)iq2xxs_grid[group[3]]);
}

INLINE __m256i iq2_signs(const uint8_t *group) {
    uint32_t word = u32_at(group + 4);
    return _mm256_setr_epi64x(
        (long long)iq2_sign_bytes[word & 127], (long long)iq2_sign_bytes[word >> 7 & 127],
        (long long)iq2_sign_bytes[word >> 14 & 127], (long long)iq2_sign_bytes[word >> 21 & 127]);
}

INLINE __m256i iq2_scale(const uint8_t *group) {
    return _mm256_set1_epi16((short)((group[7] >> 4) * 2 + 1));
}

#endif
