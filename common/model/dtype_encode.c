/* Encoders: plain nearest rounding, no search and no importance matrix. All follow one plan: find the
 * scale of every sub-block from its range, find the block's scale from the largest of those, round the
 * sub-scales to their few bits, and round the values with what a decoder will see. Deterministic; input
 * that is not finite lands on the nearest limit. */
#include "common/model/dtype.h"
#include "common/base/check.h"

#include <math.h>
#include <pthread.h>

/* Nearest integer in [lo, hi], halves away from zero; NaN gives lo. The clamp comes first: casts stay
 * defined. */
static int round_to(float x, int lo, int hi) {
    if (!(x > (float)lo)) return lo;
    if (!(x < (float)hi)) return hi;
    return (int)(x + (x < 0 ? -0.5f : 0.5f));
}

/* For scaling by multiplication; scales that are 0, or so small that 1/scale is not finite, count as 0. */
static float inverse(float scale) {
    return fabsf(scale) > 1e-37f ? 1 / scale : 0;
}

static void put_u16(uint8_t *b, uint16_t value) {
    b[0] = (uint8_t)value;
    b[1] = (uint8_t)(value >> 8);
}

static void put_u32(uint8_t *b, uint32_t value) {
    for (int i = 0; i < 4; i++) b[i] = (uint8_t)(value >> 8 * i);
}

/* Stores a scale as f16, never as infinity, and gives back what a decoder reads. */
static float put_scale(uint8_t *b, float scale) {
    float limited = scale > 65504 ? 65504 : scale < -65504 ? -65504 : scale == scale ? scale : 0;
    uint16_t h = f16_from_f32(limited);
    put_u16(b, h);
    return f16_to_f32(h);
}

static float abs_max(const float *x, int n) {
    float amax = 0;
    for (int i = 0; i < n; i++)
        if (fabsf(x[i]) > amax) amax = fabsf(x[i]);
    return amax;
}

/* The value of largest magnitude, with its sign. */
static float signed_max(const float *x, int n) {
    float best = 0;
    for (int i = 0; i < n; i++)
        if (fabsf(x[i]) > fabsf(best)) best = x[i];
    return best;
}

/* ---- one block each: x = its values, b = its bytes ---- */

static void encode_f32(const float *x, uint8_t *b) {
    put_u32(b, f32_bits(*x));
}

static void encode_f16(const float *x, uint8_t *b) {
    put_u16(b, f16_from_f32(*x));
}

static void encode_bf16(const float *x, uint8_t *b) {
    put_u16(b, bf16_from_f32(*x));
}

static void encode_q8_0(const float *x, uint8_t *b) {
    float d = abs_max(x, 32) / 127;
    put_scale(b, d);
    if (d == 0) d = 1;
    for (int i = 0; i < 32; i++) b[2 + i] = (uint8_t)(int8_t)round_to(x[i] / d, -127, 127);
}

/* The extreme value takes code 0 (= -8), so the scale carries its sign. */
static void encode_q4_0(const float *x, uint8_t *b) {
    float inv = inverse(put_scale(b, signed_max(x, 32) / -8));
    for (int i = 0; i < 16; i++) {
        int low = round_to(x[i] * inv, -8, 7) + 8;
        int high = round_to(x[i + 16] * inv, -8, 7) + 8;
        b[2 + i] = (uint8_t)(low | high << 4);
    }
}

/* Affine sub-blocks of Q2_K, Q4_K, Q5_K: value = scale * q - min, q = 0..q_max. The range always
 * includes 0. */
static void affine_fit(const float *x, int n, int q_max, float *scale, float *min) {
    float lo = 0, hi = 0;
    for (int i = 0; i < n; i++) {
        if (x[i] < lo) lo = x[i];
        if (x[i] > hi) hi = x[i];
    }
    *min = -lo;
    *scale = (hi - lo) / (float)q_max;
}

static void encode_q2_k(const float *x, uint8_t *b) {
    float scale[16], min[16];
    for (int k = 0; k < 16; k++) affine_fit(x + 16 * k, 16, 3, &scale[k], &min[k]);
    float d = put_scale(b + 80, abs_max(scale, 16) / 15);
    float dmin = put_scale(b + 82, abs_max(min, 16) / 15);
    float inv_d = inverse(d), inv_dmin = inverse(dmin);
    memset(b + 16, 0, 64);
    for (int k = 0; k < 16; k++) {
        int s = round_to(scale[k] * inv_d, 0, 15), m = round_to(min[k] * inv_dmin, 0, 15);
        float inv = inverse(d * (float)s), offset = dmin * (float)m;
        b[k] = (uint8_t)(s | m << 4);
        for (int i = 16 * k; i < 16 * k + 16; i++) {
            int q = round_to((x[i] + offset) * inv, 0, 3);
            b[16 + 32 * (i / 128) + i % 32] |= (uint8_t)(q << 2 * (i % 128 / 32));
        }
    }
}

static void put_q3_k_scale(uint8_t *s, int k, int value) {
    int low = value & 15, high = value >> 4;
    s[k % 8] |= (uint8_t)(k < 8 ? low : low << 4);
    s[8 + k % 4] |= (uint8_t)(high << 2 * (k / 4));
}

static void encode_q3_k(const float *x, uint8_t *b) {
    float scale[16];
    for (int k = 0; k < 16; k++) scale[k] = signed_max(x + 16 * k, 16) / -4;
    memset(b, 0, 108);
    float d = put_scale(b + 108, signed_max(scale, 16) / -32), inv_d = inverse(d);
    for (int k = 0; k < 16; k++) {
        int s = round_to(scale[k] * inv_d, -32, 31);
        float inv = inverse(d * (float)s);
        put_q3_k_scale(b + 96, k, s + 32);
        for (int i = 16 * k; i < 16 * k + 16; i++) {
            int q = round_to(x[i] * inv, -4, 3) + 4;
            b[32 + 32 * (i / 128) + i % 32] |= (uint8_t)((q & 3) << 2 * (i % 128 / 32));
            b[i % 32] |= (uint8_t)(q >> 2 << i / 32);
        }
    }
}

static void put_k_scale_min(uint8_t *s, int j, int scale, int min) {
    if (j < 4) {
        s[j] |= (uint8_t)scale;
        s[j + 4] |= (uint8_t)min;
    } else {
        s[j + 4] = (uint8_t)((scale & 15) | (min & 15) << 4);
        s[j - 4] |= (uint8_t)(scale >> 4 << 6);
        s[j] |= (uint8_t)(min >> 4 << 6);
    }
}

/* Q4_K and Q5_K share all but the number of codes: writes d, dmin and the 12 scale bytes, gives the codes. */
static void encode_k_affine(const float *x, uint8_t *b, int q_max, uint8_t *codes) {
    float scale[8], min[8];
    for (int j = 0; j < 8; j++) affine_fit(x + 32 * j, 32, q_max, &scale[j], &min[j]);
    float d = put_scale(b, abs_max(scale, 8) / 63), dmin = put_scale(b + 2, abs_max(min, 8) / 63);
    float inv_d = inverse(d), inv_dmin = inverse(dmin);
    memset(b + 4, 0, 12);
    for (int j = 0; j < 8; j++) {
        int s = round_to(scale[j] * inv_d, 0, 63), m = round_to(min[j] * inv_dmin, 0, 63);
        float inv = inverse(d * (float)s), offset = dmin * (float)m;
        put_k_scale_min(b + 4, j, s, m);
        for (int i = 32 * j; i < 32 * j + 32; i++)
            codes[i] = (uint8_t)round_to((x[i] + offset) * inv, 0, q_max);
    }
}

static void encode_q4_k(const float *x, uint8_t *b) {
    uint8_t codes[256];
    encode_k_affine(x, b, 15, codes);
    for (int i = 0; i < 128; i++) {
        const uint8_t *pair = codes + 64 * (i / 32) + i % 32;
        b[16 + i] = (uint8_t)(pair[0] | pair[32] << 4);
    }
}

static void encode_q5_k(const float *x, uint8_t *b) {
    uint8_t codes[256];
    encode_k_affine(x, b, 31, codes);
    memset(b + 16, 0, 32);
    for (int i = 0; i < 128; i++) {
        const uint8_t *pair = codes + 64 * (i / 32) + i % 32;
        b[48 + i] = (uint8_t)((pair[0] & 15) | (pair[32] & 15) << 4);
    }
    for (int i = 0; i < 256; i++) b[16 + i % 32] |= (uint8_t)(codes[i] >> 4 << i / 32);
}

static void encode_q6_k(const float *x, uint8_t *b) {
    float scale[16];
    for (int k = 0; k < 16; k++) scale[k] = signed_max(x + 16 * k, 16) / -32;
    memset(b, 0, 192);
    float d = put_scale(b + 208, signed_max(scale, 16) / -128), inv_d = inverse(d);
    for (int k = 0; k < 16; k++) {
        int s = round_to(scale[k] * inv_d, -128, 127);
        float inv = inverse(d * (float)s);
        b[192 + k] = (uint8_t)(int8_t)s;
        for (int i = 16 * k; i < 16 * k + 16; i++) {
            int n = i / 128, r = i % 128, q = round_to(x[i] * inv, -32, 31) + 32;
            b[64 * n + r % 64] |= (uint8_t)((q & 15) << 4 * (r / 64));
            b[128 + 32 * n + r % 32] |= (uint8_t)(q >> 4 << 2 * (r / 32));
        }
    }
}

/* ---- IQ2_XXS ---- */

enum { GRID_POINTS = 6561 };                          /* 3^8: every run of 8 values at the levels 8, 25, 43 */

static uint8_t grid_nearest[GRID_POINTS];             /* index of the grid word closest to each point */
static pthread_once_t grid_once = PTHREAD_ONCE_INIT;

static int grid_distance(uint64_t word, const int *level) {
    int sum = 0;
    for (int j = 0; j < 8; j++) {
        int off = (int)(word >> 8 * j & 255) - level[j];
        sum += off * off;
    }
    return sum;
}

static void grid_fill(void) {
    static const int levels[3] = { 8, 25, 43 };
    for (int p = 0; p < GRID_POINTS; p++) {
        int level[8], best = 0, least = INT32_MAX;
        for (int j = 0, rest = p; j < 8; j++, rest /= 3) level[j] = levels[rest % 3];
        for (int g = 0; g < 256; g++) {
            int distance = grid_distance(iq2xxs_grid[g], level);
            if (distance >= least) continue;
            least = distance;
            best = g;
        }
        grid_nearest[p] = (uint8_t)best;
    }
}

/* Signs of a run: an odd number of minus signs cannot be stored, so the smallest value gives up its own. */
static int run_signs(const float *x) {
    int signs = 0, smallest = 0, odd = 0;
    for (int j = 0; j < 8; j++) {
        int negative = x[j] < 0;
        signs |= negative << j;
        odd ^= negative;
        if (fabsf(x[j]) < fabsf(x[smallest])) smallest = j;
    }
    return (odd ? signs ^ 1 << smallest : signs) & 127;
}

static int run_grid(const float *x, float scale) {
    float low = 16.5f * scale, high = 34 * scale;     /* midway between the levels */
    int p = 0;
    for (int j = 7; j >= 0; j--) {
        float m = fabsf(x[j]);
        p = 3 * p + (m >= low) + (m >= high);
    }
    return grid_nearest[p];
}

static void encode_iq2_xxs(const float *x, uint8_t *b) {
    /* The grid has few points with many large magnitudes, so the largest value is allowed to be cut. */
    const float reach = 0.8f / 43;
    pthread_once(&grid_once, grid_fill);
    float d = put_scale(b, abs_max(x, 256) * reach / (15.5f * 0.25f)), inv = inverse(d * 0.25f);
    for (int g = 0; g < 8; g++, x += 32) {
        uint8_t *group = b + 2 + 8 * g;
        int s = round_to(abs_max(x, 32) * reach * inv - 0.5f, 0, 15);
        uint32_t word = (uint32_t)s << 28;
        for (int run = 0; run < 4; run++) {
            group[run] = (uint8_t)run_grid(x + 8 * run, d * (0.5f + (float)s) * 0.25f);
            word |= (uint32_t)run_signs(x + 8 * run) << 7 * run;
        }
        put_u32(group + 4, word);
    }
}

/* ---- MXFP4 ---- */

/* E2M1 code of a magnitude, ties to the even code: the borders are exact in f32. */
static int e2m1_code(float m) {
    return m <= 0.25f ? 0 : m < 0.75f ? 1 : m <= 1.25f ? 2 : m < 1.75f ? 3
         : m <= 2.5f ? 4 : m < 3.5f ? 5 : m <= 5 ? 6 : 7;
}

/* Exponent byte of the smallest power of two with amax <= 6 * 2^k; at most 125, where 6 * 2^k is still
 * finite. */
static int mxfp4_exponent(float amax) {
    int k;
    if (amax == 0) return 0;
    float fraction = frexpf(MIN(amax, 2.5e38f), &k);  /* amax = fraction * 2^k, fraction in [0.5, 1) */
    return MAX(0, (fraction > 0.75f ? k - 2 : k - 3) + 127);
}

static void encode_mxfp4(const float *x, uint8_t *b) {
    int e = mxfp4_exponent(abs_max(x, 32));
    float inv = ldexpf(1, 127 - e);                   /* a power of two: scaling is exact */
    b[0] = (uint8_t)e;
    for (int i = 0; i < 16; i++) {
        int low = e2m1_code(fabsf(x[i]) * inv) | (x[i] < 0 ? 8 : 0);
        int high = e2m1_code(fabsf(x[i + 16]) * inv) | (x[i + 16] < 0 ? 8 : 0);
        b[1 + i] = (uint8_t)(low | high << 4);
    }
}

typedef void (*encode_fn)(const float *x, uint8_t *b);

static encode_fn encoder_of(enum dtype id) {
    switch (id) {
    case DTYPE_F32: return encode_f32;
    case DTYPE_F16: return encode_f16;
    case DTYPE_BF16: return encode_bf16;
    case DTYPE_Q8_0: return encode_q8_0;
    case DTYPE_Q4_0: return encode_q4_0;
    case DTYPE_Q2_K: return encode_q2_k;
    case DTYPE_Q3_K: return encode_q3_k;
    case DTYPE_Q4_K: return encode_q4_k;
    case DTYPE_Q5_K: return encode_q5_k;
    case DTYPE_Q6_K: return encode_q6_k;
    case DTYPE_IQ2_XXS: return encode_iq2_xxs;
    case DTYPE_MXFP4: return encode_mxfp4;
    default: return NULL;
    }
}

void dtype_encode(enum dtype id, const float *in, void *out, uint64_t n) {
    encode_fn encode = encoder_of(id);
    CHECK(encode && n % dtype_block(id) == 0);
    uint8_t *b = out;
    uint32_t block = dtype_block(id), bytes = dtype_block_bytes(id);
    for (uint64_t i = 0; i < n; i += block, b += bytes) encode(in + i, b);
}
