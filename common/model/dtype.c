/* Decoders: one function per format, written as the format's formula reads, in the order of operations
 * that makes the result bit-exact everywhere (no fused multiply-add: the build says -ffp-contract=off). */
#include "common/model/dtype.h"
#include "common/base/check.h"

static const struct dtype_info {
    const char *name;
    uint32_t block, bytes;
    bool decodes;
} dtype_infos[DTYPE_IDS] = {
#define DTYPE_INFO(name, id, block, bytes, decodes) [id] = { #name, block, bytes, decodes },
    DTYPE_MAP(DTYPE_INFO)
#undef DTYPE_INFO
};

bool dtype_known(uint32_t id) {
    return id < DTYPE_IDS && dtype_infos[id].block != 0;
}

bool dtype_decodes(uint32_t id) {
    return dtype_known(id) && dtype_infos[id].decodes;
}

const char *dtype_name(uint32_t id) {
    return dtype_known(id) ? dtype_infos[id].name : "?";
}

uint32_t dtype_block(uint32_t id) {
    return dtype_known(id) ? dtype_infos[id].block : 0;
}

uint32_t dtype_block_bytes(uint32_t id) {
    return dtype_known(id) ? dtype_infos[id].bytes : 0;
}

uint64_t dtype_row_bytes(uint32_t id, uint64_t n) {
    CHECK(dtype_known(id) && n % dtype_infos[id].block == 0);
    return n / dtype_infos[id].block * dtype_infos[id].bytes;
}

static uint16_t u16_at(const uint8_t *b) {
    return (uint16_t)(b[0] | b[1] << 8);
}

static uint32_t u32_at(const uint8_t *b) {
    return b[0] | (uint32_t)b[1] << 8 | (uint32_t)b[2] << 16 | (uint32_t)b[3] << 24;
}

static float f16_at(const uint8_t *b) {
    return f16_to_f32(u16_at(b));
}

/* ---- one block each: b = its bytes, y = its values ---- */

static void decode_f32(const uint8_t *b, float *y) {
    *y = f32_from_bits(u32_at(b));
}

static void decode_f16(const uint8_t *b, float *y) {
    *y = f16_at(b);
}

static void decode_bf16(const uint8_t *b, float *y) {
    *y = bf16_to_f32(u16_at(b));
}

/* f16 d, i8 q[32] */
static void decode_q8_0(const uint8_t *b, float *y) {
    float d = f16_at(b);
    for (int i = 0; i < 32; i++) y[i] = d * (float)(int8_t)b[2 + i];
}

/* f16 d, 16 bytes: low nibbles are values 0..15, high nibbles 16..31 */
static void decode_q4_0(const uint8_t *b, float *y) {
    float d = f16_at(b);
    for (int i = 0; i < 16; i++) {
        y[i] = d * (float)((b[2 + i] & 15) - 8);
        y[i + 16] = d * (float)((b[2 + i] >> 4) - 8);
    }
}

/* u8 scales[16] (low nibble scale, high nibble minimum), u8 qs[64], f16 d, f16 dmin */
static void decode_q2_k(const uint8_t *b, float *y) {
    const uint8_t *scales = b, *qs = b + 16;
    float d = f16_at(b + 80), dmin = f16_at(b + 82);
    for (int i = 0; i < 256; i++) {
        int q = qs[32 * (i / 128) + i % 32] >> 2 * (i % 128 / 32) & 3, s = scales[i / 16];
        y[i] = d * (float)(s & 15) * (float)q - dmin * (float)(s >> 4);
    }
}

/* Scale k of the 12 packed bytes: four low bits each in bytes 0..7, two high bits each in bytes 8..11. */
static int q3_k_scale(const uint8_t *s, int k) {
    int low = k < 8 ? s[k] & 15 : s[k - 8] >> 4;
    int high = s[8 + k % 4] >> 2 * (k / 4) & 3;
    return (low | high << 4) - 32;
}

/* u8 hmask[32], u8 qs[64], u8 scales[12], f16 d; a clear bit in hmask subtracts 4 */
static void decode_q3_k(const uint8_t *b, float *y) {
    const uint8_t *hmask = b, *qs = b + 32, *scales = b + 96;
    float d = f16_at(b + 108);
    for (int i = 0; i < 256; i++) {
        int q = qs[32 * (i / 128) + i % 32] >> 2 * (i % 128 / 32) & 3;
        if (!(hmask[i % 32] >> i / 32 & 1)) q -= 4;
        y[i] = d * (float)q3_k_scale(scales, i / 16) * (float)q;
    }
}

/* Scale and minimum of sub-block j (32 values) from the 12 packed bytes of Q4_K and Q5_K. */
static void k_scale_min(const uint8_t *s, int j, int *scale, int *min) {
    if (j < 4) {
        *scale = s[j] & 63;
        *min = s[j + 4] & 63;
    } else {
        *scale = (s[j + 4] & 15) | s[j - 4] >> 6 << 4;
        *min = s[j + 4] >> 4 | s[j] >> 6 << 4;
    }
}

/* f16 d, f16 dmin, u8 scales[12], u8 qs[128] */
static void decode_q4_k(const uint8_t *b, float *y) {
    const uint8_t *scales = b + 4, *qs = b + 16;
    float d = f16_at(b), dmin = f16_at(b + 2);
    for (int i = 0; i < 256; i++) {
        int scale, min, q = qs[32 * (i / 64) + i % 32] >> 4 * (i % 64 / 32) & 15;
        k_scale_min(scales, i / 32, &scale, &min);
        y[i] = d * (float)scale * (float)q - dmin * (float)min;
    }
}

/* f16 d, f16 dmin, u8 scales[12], u8 qh[32] (fifth bits), u8 qs[128] */
static void decode_q5_k(const uint8_t *b, float *y) {
    const uint8_t *scales = b + 4, *qh = b + 16, *qs = b + 48;
    float d = f16_at(b), dmin = f16_at(b + 2);
    for (int i = 0; i < 256; i++) {
        int scale, min, q = qs[32 * (i / 64) + i % 32] >> 4 * (i % 64 / 32) & 15;
        q += (qh[i % 32] >> i / 32 & 1) << 4;
        k_scale_min(scales, i / 32, &scale, &min);
        y[i] = d * (float)scale * (float)q - dmin * (float)min;
    }
}

/* u8 ql[128], u8 qh[64], i8 scales[16], f16 d */
static void decode_q6_k(const uint8_t *b, float *y) {
    const uint8_t *ql = b, *qh = b + 128, *scales = b + 192;
    float d = f16_at(b + 208);
    for (int i = 0; i < 256; i++) {
        int n = i / 128, r = i % 128;
        int q = (ql[64 * n + r % 64] >> 4 * (r / 64) & 15) | (qh[32 * n + r % 32] >> 2 * (r / 32) & 3) << 4;
        y[i] = d * (float)(int8_t)scales[i / 16] * (float)(q - 32);
    }
}

/* f16 d, then 8 groups of 32 values: four grid indices, and a word of four 7-bit sign indices under a
 * 4-bit scale */
static void decode_iq2_xxs(const uint8_t *b, float *y) {
    float d = f16_at(b);
    for (int g = 0; g < 8; g++) {
        const uint8_t *group = b + 2 + 8 * g;
        uint32_t word = u32_at(group + 4);
        float scale = d * (0.5f + (float)(word >> 28)) * 0.25f;
        for (int i = 0; i < 32; i++) {
            int run = i / 8, j = i % 8;
            float magnitude = (float)(iq2xxs_grid[group[run]] >> 8 * j & 255);
            bool negative = iq2xxs_signs[word >> 7 * run & 127] >> j & 1;
            y[32 * g + i] = scale * (negative ? -magnitude : magnitude);
        }
    }
}

/* u8 exponent, 16 bytes of E2M1 codes: low nibbles are values 0..15, high nibbles 16..31. Doubled
 * magnitudes and half the scale keep exponent 255 finite where the product is; code 8 is minus zero. */
static void decode_mxfp4(const uint8_t *b, float *y) {
    static const float doubled[16] = { 0, 1, 2, 3, 4, 6, 8, 12, -0.0f, -1, -2, -3, -4, -6, -8, -12 };
    float half_scale = f32_from_bits(b[0] < 2 ? 0x00200000u << b[0] : (uint32_t)(b[0] - 1) << 23);
    for (int i = 0; i < 16; i++) {
        y[i] = half_scale * doubled[b[1 + i] & 15];
        y[i + 16] = half_scale * doubled[b[1 + i] >> 4];
    }
}

typedef void (*decode_fn)(const uint8_t *b, float *y);

static decode_fn decoder_of(enum dtype id) {
    switch (id) {
    case DTYPE_F32: return decode_f32;
    case DTYPE_F16: return decode_f16;
    case DTYPE_BF16: return decode_bf16;
    case DTYPE_Q8_0: return decode_q8_0;
    case DTYPE_Q4_0: return decode_q4_0;
    case DTYPE_Q2_K: return decode_q2_k;
    case DTYPE_Q3_K: return decode_q3_k;
    case DTYPE_Q4_K: return decode_q4_k;
    case DTYPE_Q5_K: return decode_q5_k;
    case DTYPE_Q6_K: return decode_q6_k;
    case DTYPE_IQ2_XXS: return decode_iq2_xxs;
    case DTYPE_MXFP4: return decode_mxfp4;
    default: return NULL;
    }
}

void dtype_decode(enum dtype id, const void *in, float *out, uint64_t n) {
    decode_fn decode = decoder_of(id);
    CHECK(decode && n % dtype_block(id) == 0);
    const uint8_t *b = in;
    uint32_t block = dtype_block(id), bytes = dtype_block_bytes(id);
    for (uint64_t i = 0; i < n; i += block, b += bytes) decode(b, out + i);
}
