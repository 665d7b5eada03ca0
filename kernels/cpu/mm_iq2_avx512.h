/* mm_iq2_avx512 - IQ2_XXS in registers: 64 grid indices or sign indices are one lookup, and a value is
 * 64 + (+-magnitude) from a table of 64 bytes whose index mixes the value's two code bits with its sign
 * bit.
 *
 * Values of a group of 32 leave in this order: dword e holds value e of each of the four runs. So
 * neither codes nor signs have to be spread: byte `run` of a code vector has the codes of four values,
 * and each output picks its own by where it looks. Activations are put into the same order (iq2_order). */
#ifndef KERNELS_CPU_MM_IQ2_AVX512_H
#define KERNELS_CPU_MM_IQ2_AVX512_H

#include "common/model/dtype.h"
#include "kernels/cpu/mm_columns_avx512.h"
#include "kernels/cpu/mm_iq2.h"

enum { IQ2_ZERO = 64 };

/* By the places of the code and the sign in the index: bits 0, 1 and bit 4; 2, 3 and 5; 4, 5 and 2; 0,
 * 1 and 3. */
static const uint8_t iq2_value_tables[4][64] __attribute__((aligned(64))) = {
    {
        72, 89, 107, 64, 72, 89, 107, 64, 72, 89, 107, 64, 72, 89, 107, 64,
        56, 39, 21, 64, 56, 39, 21, 64, 56, 39, 21, 64, 56, 39, 21, 64,
        72, 89, 107, 64, 72, 89, 107, 64, 72, 89, 107, 64, 72, 89, 107, 64,
        56, 39, 21, 64, 56, 39, 21, 64, 56, 39, 21, 64, 56, 39, 21, 64,
    },
    {
        72, 72, 72, 72, 89, 89, 89, 89, 107, 107, 107, 107, 64, 64, 64, 64,
        72, 72, 72, 72, 89, 89, 89, 89, 107, 107, 107, 107, 64, 64, 64, 64,
        56, 56, 56, 56, 39, 39, 39, 39, 21, 21, 21, 21, 64, 64, 64, 64,
        56, 56, 56, 56, 39, 39, 39, 39, 21, 21, 21, 21, 64, 64, 64, 64,
    },
    {
        72, 72, 72, 72, 56, 56, 56, 56, 72, 72, 72, 72, 56, 56, 56, 56,
        89, 89, 89, 89, 39, 39, 39, 39, 89, 89, 89, 89, 39, 39, 39, 39,
        107, 107, 107, 107, 21, 21, 21, 21, 107, 107, 107, 107, 21, 21, 21, 21,
        64, 64, 64, 64, 64, 64, 64, 64, 64, 64, 64, 64, 64, 64, 64, 64,
    },
    {
        72, 89, 107, 64, 72, 89, 107, 64, 56, 39, 21, 64, 56, 39, 21, 64,
        72, 89, 107, 64, 72, 89, 107, 64, 56, 39, 21, 64, 56, 39, 21, 64,
        72, 89, 107, 64, 72, 89, 107, 64, 56, 39, 21, 64, 56, 39, 21, 64,
        72, 89, 107, 64, 72, 89, 107, 64, 56, 39, 21, 64, 56, 39, 21, 64,
    },
};

/* What is looked up for four runs per dword: codes of values 0..3 and 4..7, signs, and the dword's scale. */
struct iq2_codes {
    __m512i code[2], sign, scale;
};

INLINE __m512i iq2_grid(__m512i index, const uint8_t *table) {
    __m512i first =
        _mm512_permutex2var_epi8(_mm512_loadu_si512(table), index, _mm512_loadu_si512(table + 64));
    __m512i second = _mm512_permutex2var_epi8(_mm512_loadu_si512(table + 128), index,
                                              _mm512_loadu_si512(table + 192));
    return _mm512_mask_blend_epi8(_mm512_movepi8_mask(index), first, second);
}

/* index: four grid indices per dword; word: four sign indices of 7 bits (the lookup of 128 ignores the
 * eighth) under the scale. */
INLINE struct iq2_codes iq2_lookup(__m512i index, __m512i word) {
    __m512i sign_index = _mm512_multishift_epi64_epi8(_mm512_set1_epi64(0x352e2720150e0700), word);
    return (struct iq2_codes){
        .code = { iq2_grid(index, iq2_code_low), iq2_grid(index, iq2_code_high) },
        .sign = _mm512_permutex2var_epi8(_mm512_loadu_si512(iq2xxs_signs), sign_index,
                                         _mm512_loadu_si512(iq2xxs_signs + 64)),
        .scale = _mm512_ternarylogic_epi32(_mm512_srli_epi32(word, 27), _mm512_set1_epi32(30),
                                           _mm512_set1_epi32(1), 0xea),
    };
}

INLINE __m512i iq2_value(__m512i code, __m512i sign, int sign_bit, int table) {
    /* mask ? sign : code */
    __m512i index = _mm512_ternarylogic_epi32(_mm512_set1_epi8((char)(1 << sign_bit)), sign, code, 0xca);
    return _mm512_permutexvar_epi8(index, _mm512_load_si512(iq2_value_tables[table]));
}

/* v[e]: value e of every run. */
INLINE void iq2_values(const struct iq2_codes *c, __m512i v[8]) {
    __m512i up = _mm512_slli_epi16(c->sign, 4), down = _mm512_srli_epi16(c->sign, 4);
    v[0] = iq2_value(c->code[0], up, 4, 0);
    v[1] = iq2_value(c->code[0], up, 5, 1);
    v[2] = iq2_value(c->code[0], c->sign, 2, 2);
    v[3] = iq2_value(_mm512_srli_epi16(c->code[0], 6), c->sign, 3, 3);
    v[4] = iq2_value(c->code[1], c->sign, 4, 0);
    v[5] = iq2_value(c->code[1], c->sign, 5, 1);
    v[6] = iq2_value(c->code[1], down, 2, 2);
    v[7] = iq2_value(_mm512_srli_epi16(c->code[1], 6), down, 3, 3);
}

/* Two groups of activations in the order of the values: byte 4e + run from 8 run + e. */
INLINE __m512i iq2_order(__m512i q) {
    const __m512i from =
        _mm512_set_epi32(0x3f372f27, 0x3e362e26, 0x3d352d25, 0x3c342c24, 0x3b332b23, 0x3a322a22,
                         0x39312921, 0x38302820, 0x1f170f07, 0x1e160e06, 0x1d150d05, 0x1c140c04,
                         0x1b130b03, 0x1a120a02, 0x19110901, 0x18100800);
    return _mm512_permutexvar_epi8(from, q);
}

#endif
