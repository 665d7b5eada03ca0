/* Unpacking of each block format into a panel (mm_panel_avx512.h): 16 rows at a time.
 *
 * The packed bytes are transposed first (a dword of every row into one vector) and widened afterwards,
 * because the packed form is 2 to 8 times smaller than the bytes. */
#include "kernels/cpu/simd.h"

#if defined(__x86_64__)
#include "kernels/cpu/mm_columns_avx512.h"
#include "kernels/cpu/mm_iq2_avx512.h"
#include "kernels/cpu/mm_panel_avx512.h"

INLINE void put(struct panel *p, int c, int k, __m512i v) {
    _mm512_store_si512(p->q[k][c], v);
}

/* ---- scales ---- */

INLINE __m128i halves_8(const uint8_t *const *row, int at) {
    uint16_t h[8];
    for (int i = 0; i < 8; i++) memcpy(&h[i], row[i] + at, 2);
    __m128i v = _mm_cvtsi32_si128(h[0]);
    v = _mm_insert_epi16(v, h[1], 1);
    v = _mm_insert_epi16(v, h[2], 2);
    v = _mm_insert_epi16(v, h[3], 3);
    v = _mm_insert_epi16(v, h[4], 4);
    v = _mm_insert_epi16(v, h[5], 5);
    v = _mm_insert_epi16(v, h[6], 6);
    return _mm_insert_epi16(v, h[7], 7);
}

/* The f16 at row[r] + at, as f32 in lane r. */
INLINE __m512 halves(const uint8_t *const row[16], int at) {
    return _mm512_cvtph_ps(_mm256_set_m128i(halves_8(row + 8, at), halves_8(row, at)));
}

/* Two neighbouring f16 that were fetched as dwords. */
INLINE void put_d_dmin(struct panel *p, int c, __m512i d_dmin) {
    _mm512_store_ps(p->d[0] + 16 * c, _mm512_cvtph_ps(_mm512_cvtepi32_epi16(d_dmin)));
    _mm512_store_ps(p->dmin + 16 * c, _mm512_cvtph_ps(_mm512_cvtepi32_epi16(_mm512_srli_epi32(d_dmin, 16))));
}

INLINE __m512i dwords(const uint8_t *const row[16], int at) {
    int32_t w[16];
    for (int i = 0; i < 16; i++) memcpy(&w[i], row[i] + at, 4);
    return _mm512_loadu_si512(w);
}

/* Byte i of every dword, as int32; or twice as int16; or bytes i and i + 1 as a pair of int16. */
INLINE __m512i byte_wide(__m512i v, int i) {
    return _mm512_shuffle_epi8(
        v, _mm512_set4_epi32(0x8080800c + i, 0x80808008 + i, 0x80808004 + i, (int)0x80808000 + i));
}

INLINE __m512i byte_twice(__m512i v, int i) {
    return _mm512_shuffle_epi8(v,
                               _mm512_add_epi8(_mm512_set4_epi32((int)0x800c800c, (int)0x80088008,
                                                                 (int)0x80048004, (int)0x80008000),
                                               _mm512_set1_epi32(i * 0x10001)));
}

INLINE __m512i byte_pair(__m512i v, int i) {
    return _mm512_shuffle_epi8(v,
                               _mm512_add_epi8(_mm512_set4_epi32((int)0x800d800c, (int)0x80098008,
                                                                 (int)0x80058004, (int)0x80018000),
                                               _mm512_set1_epi32(i * 0x10001)));
}

INLINE void put_scale(struct panel *p, int c, int s, __m512i v) {
    _mm512_store_si512(p->scale[s] + 16 * c, v);
}

INLINE void put_min(struct panel *p, int c, int pair, __m512i v) {
    _mm512_store_si512(p->min[pair] + 16 * c, v);
}

/* ---- blocks of 32 ---- */

static void unpack_q8_0(struct panel *p, int c, const uint8_t *const row[16], int n_k) {
    const __m512i flip = _mm512_set1_epi8(-128);
    for (int b = 0; b < n_k / 32; b++) {
        __m512i v[8];
        columns_32(v, row, 34 * b + 2);
        for (int j = 0; j < 8; j++) put(p, c, 8 * b + j, _mm512_xor_si512(v[j], flip));
        _mm512_store_ps(p->d[b] + 16 * c, halves(row, 34 * b));
    }
}

static void unpack_q4_0(struct panel *p, int c, const uint8_t *const row[16], int n_k) {
    const __m512i low = _mm512_set1_epi8(15);
    for (int b = 0; b < n_k / 32; b++) {
        __m512i v[4];
        columns_16(v, row, 18 * b + 2);
        for (int j = 0; j < 4; j++) {
            put(p, c, 8 * b + j, _mm512_and_si512(v[j], low));
            put(p, c, 8 * b + 4 + j, _mm512_and_si512(_mm512_srli_epi16(v[j], 4), low));
        }
        _mm512_store_ps(p->d[b] + 16 * c, halves(row, 18 * b));
    }
}

/* 2^(e-128) as bits: (e-1) << 23, and the two subnormal ones. */
INLINE __m512 mxfp4_scales(const uint8_t *const row[16], int at) {
    uint8_t bytes[16];
    for (int i = 0; i < 16; i++) bytes[i] = row[i][at];
    __m512i e = _mm512_cvtepu8_epi32(_mm_loadu_si128((const void *)bytes)), one = _mm512_set1_epi32(1);
    __m512i bits = _mm512_slli_epi32(_mm512_sub_epi32(e, one), 23);
    __mmask16 small = _mm512_cmple_epu32_mask(e, one);
    return _mm512_castsi512_ps(_mm512_mask_sllv_epi32(bits, small, _mm512_set1_epi32(0x00200000), e));
}

static void unpack_mxfp4(struct panel *p, int c, const uint8_t *const row[16], int n_k) {
    /* 12 + doubled value; vpermb looks at six bits of a byte, so the nibble's neighbours must not matter */
    const __m512i table = _mm512_broadcast_i32x4(
        _mm_setr_epi8(12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0));
    for (int b = 0; b < n_k / 32; b++) {
        __m512i v[4];
        columns_16(v, row, 17 * b + 1);
        for (int j = 0; j < 4; j++) {
            put(p, c, 8 * b + j, _mm512_permutexvar_epi8(v[j], table));
            put(p, c, 8 * b + 4 + j, _mm512_permutexvar_epi8(_mm512_srli_epi16(v[j], 4), table));
        }
        _mm512_store_ps(p->d[b] + 16 * c, mxfp4_scales(row, 17 * b));
    }
}

/* ---- blocks of 256 ---- */

/* q * scale is at most 45: done here on bytes, two at a time. */
static void unpack_q2_k(struct panel *p, int c, const uint8_t *const row[16], int n_k) {
    const __m512i low4 = _mm512_set1_epi8(15), low2 = _mm512_set1_epi8(3);
    __m512i head[4];
    (void)n_k;
    columns_16(head, row, 0);
    for (int j = 0; j < 4; j++) {
        __m512i min = _mm512_and_si512(_mm512_srli_epi16(head[j], 4), low4);
        put_min(p, c, 2 * j, byte_pair(min, 0));
        put_min(p, c, 2 * j + 1, byte_pair(min, 2));
        head[j] = _mm512_and_si512(head[j], low4);
    }
    put_d_dmin(p, c, dwords(row, 80));
    for (int half = 0; half < 4; half++) {  /* 16 bytes: bits 2t are sub-block 8 (half / 2) + 2t + half % 2 */
        __m512i v[4], scale[4];
        columns_16(v, row, 16 + 16 * half);
        for (int t = 0; t < 4; t++) {
            int s = 8 * (half / 2) + 2 * t + half % 2;
            scale[t] = byte_twice(head[s / 4], s % 4);
        }
        for (int j = 0; j < 4; j++)
            for (int t = 0; t < 4; t++) {
                __m512i q = _mm512_and_si512(_mm512_srli_epi16(v[j], 2 * t), low2);
                put(p, c, 32 * (half / 2) + 8 * t + 4 * (half % 2) + j, _mm512_mullo_epi16(q, scale[t]));
            }
    }
}

/* Bytes are q + 4: two bits, and the bit of hmask as the third. */
static void unpack_q3_k(struct panel *p, int c, const uint8_t *const row[16], int n_k) {
    const __m512i low2 = _mm512_set1_epi8(3), bit2 = _mm512_set1_epi8(4), low4 = _mm512_set1_epi8(15);
    __m512i high[8];
    (void)n_k;
    columns_32(high, row, 0);
    for (int n = 0; n < 2; n++) {
        __m512i v[8];
        columns_32(v, row, 32 + 32 * n);
        for (int j = 0; j < 8; j++)
            for (int t = 0; t < 4; t++) {
                __m512i q = _mm512_and_si512(_mm512_srli_epi16(v[j], 2 * t), low2);
                int bit = 4 * n + t;
                __m512i h = bit < 2 ? _mm512_slli_epi16(high[j], 2 - bit)
                                    : _mm512_srli_epi16(high[j], bit - 2);
                put(p, c, 32 * n + 8 * t + j, _mm512_or_si512(q, _mm512_and_si512(h, bit2)));
            }
    }
    __m512i s[3] = { dwords(row, 96), dwords(row, 100), dwords(row, 104) };
    for (int k = 0; k < 16; k += 4) {                                  /* scales k..k+3 */
        __m512i low = _mm512_and_si512(k < 8 ? s[k / 4] : _mm512_srli_epi16(s[k / 4 - 2], 4), low4);
        __m512i top = _mm512_and_si512(_mm512_srli_epi16(s[2], 2 * (k / 4)), low2);
        __m512i scale = _mm512_or_si512(low, _mm512_slli_epi16(top, 4));
        for (int i = 0; i < 4; i++)
            put_scale(p, c, k + i, _mm512_sub_epi32(byte_wide(scale, i), _mm512_set1_epi32(32)));
    }
    _mm512_store_ps(p->d[0] + 16 * c, halves(row, 108));
}

/* The 16 bytes that start a Q4_K or Q5_K block, as dwords: d and dmin, then 12 bytes of 6-bit scales
 * and minima. */
INLINE void put_head_6bit(struct panel *p, int c, const uint8_t *const row[16]) {
    const __m512i low6 = _mm512_set1_epi8(63), low4 = _mm512_set1_epi8(15), top2 = _mm512_set1_epi8(48);
    __m512i h[4];
    columns_16(h, row, 0);
    __m512i scale[2] = {
        _mm512_and_si512(h[1], low6),
        _mm512_or_si512(_mm512_and_si512(h[3], low4), _mm512_and_si512(_mm512_srli_epi16(h[1], 2), top2)),
    };
    __m512i min[2] = {
        _mm512_and_si512(h[2], low6),
        _mm512_or_si512(_mm512_and_si512(_mm512_srli_epi16(h[3], 4), low4),
                        _mm512_and_si512(_mm512_srli_epi16(h[2], 2), top2)),
    };
    put_d_dmin(p, c, h[0]);
    for (int s = 0; s < 8; s++) put_scale(p, c, s, byte_wide(scale[s / 4], s % 4));
    for (int pair = 0; pair < 4; pair++) put_min(p, c, pair, byte_pair(min[pair / 2], pair % 2 * 2));
}

static void unpack_q4_k(struct panel *p, int c, const uint8_t *const row[16], int n_k) {
    const __m512i low = _mm512_set1_epi8(15);
    (void)n_k;
    put_head_6bit(p, c, row);
    for (int g = 0; g < 4; g++) {
        __m512i v[8];
        columns_32(v, row, 16 + 32 * g);
        for (int j = 0; j < 8; j++) {
            put(p, c, 16 * g + j, _mm512_and_si512(v[j], low));
            put(p, c, 16 * g + 8 + j, _mm512_and_si512(_mm512_srli_epi16(v[j], 4), low));
        }
    }
}

static void unpack_q5_k(struct panel *p, int c, const uint8_t *const row[16], int n_k) {
    const __m512i low = _mm512_set1_epi8(15), bit4 = _mm512_set1_epi8(16);
    __m512i high[8];
    (void)n_k;
    put_head_6bit(p, c, row);
    columns_32(high, row, 16);
    for (int g = 0; g < 4; g++) {
        __m512i v[8];
        columns_32(v, row, 48 + 32 * g);
        for (int j = 0; j < 8; j++)
            for (int h = 0; h < 2; h++) {
                int bit = 2 * g + h;
                __m512i q = _mm512_and_si512(_mm512_srli_epi16(v[j], 4 * h), low);
                __m512i top = bit < 4 ? _mm512_slli_epi16(high[j], 4 - bit)
                                      : _mm512_srli_epi16(high[j], bit - 4);
                put(p, c, 16 * g + 8 * h + j, _mm512_or_si512(q, _mm512_and_si512(top, bit4)));
            }
    }
}

static void unpack_q6_k(struct panel *p, int c, const uint8_t *const row[16], int n_k) {
    const __m512i low = _mm512_set1_epi8(15), top2 = _mm512_set1_epi8(48);
    (void)n_k;
    for (int n = 0; n < 2; n++) {
        __m512i high[8];
        columns_32(high, row, 128 + 32 * n);
        for (int half = 0; half < 2; half++) {                         /* t = 2h + half */
            __m512i v[8];
            columns_32(v, row, 64 * n + 32 * half);
            for (int j = 0; j < 8; j++)
                for (int h = 0; h < 2; h++) {
                    int bit = 2 * (2 * h + half);
                    __m512i q = _mm512_and_si512(_mm512_srli_epi16(v[j], 4 * h), low);
                    __m512i top = bit < 4 ? _mm512_slli_epi16(high[j], 4 - bit)
                                          : _mm512_srli_epi16(high[j], bit - 4);
                    put(p, c, 32 * n + 16 * h + 8 * half + j,
                        _mm512_or_si512(q, _mm512_and_si512(top, top2)));
                }
        }
    }
    __m512i s[4];
    columns_16(s, row, 192);
    for (int i = 0; i < 16; i++) {
        __m512i byte = _mm512_slli_epi32(s[i / 4], 24 - 8 * (i % 4));
        put_scale(p, c, i, _mm512_srai_epi32(byte, 24));
    }
    _mm512_store_ps(p->d[0] + 16 * c, halves(row, 208));
}

static void unpack_iq2_xxs(struct panel *p, int c, const uint8_t *const row[16], int n_k) {
    (void)n_k;
    for (int half = 0; half < 2; half++) {
        __m512i v[8];
        columns_32(v, row, 2 + 32 * half);
        UNROLL
        for (int i = 0; i < 4; i++) {
            int g = 4 * half + i;
            struct iq2_codes codes = iq2_lookup(v[2 * i], v[2 * i + 1]);
            __m512i values[8];
            iq2_values(&codes, values);
            UNROLL
            for (int e = 0; e < 8; e++) put(p, c, 8 * g + e, values[e]);
            put_scale(p, c, g, codes.scale);
        }
    }
    _mm512_store_ps(p->d[0] + 16 * c, _mm512_mul_ps(halves(row, 0), _mm512_set1_ps(0.125f)));
}

const struct panel_type *panel_type_of(enum dtype type) {
    static const struct panel_type types[DTYPE_IDS] = {
        [DTYPE_Q8_0] = { unpack_q8_0, FORM_32, 128, 272 },
        [DTYPE_Q4_0] = { unpack_q4_0, FORM_32, 8, 144 },
        [DTYPE_MXFP4] = { unpack_mxfp4, FORM_32, 12, 136 },
        [DTYPE_Q2_K] = { unpack_q2_k, FORM_256_MIN, 0, 84 },
        [DTYPE_Q3_K] = { unpack_q3_k, FORM_256_SUB16, 4, 110 },
        [DTYPE_Q4_K] = { unpack_q4_k, FORM_256_SUB32_MIN, 0, 144 },
        [DTYPE_Q5_K] = { unpack_q5_k, FORM_256_SUB32_MIN, 0, 176 },
        [DTYPE_Q6_K] = { unpack_q6_k, FORM_256_SUB16, 32, 210 },
        [DTYPE_IQ2_XXS] = { unpack_iq2_xxs, FORM_256_SUB32, IQ2_ZERO, 66 },
    };
    return types[type].unpack ? &types[type] : NULL;
}
#endif
