/* Matrix products in plain C: the definition in simd.h, read aloud. A weight block is unpacked to
 * integers once and used for all activation rows; the running sums live in the output itself, because
 * each is a chain over the blocks in order. */
#include "kernels/cpu/mm_generic.h"

#include "common/base/check.h"

enum { SUB = 16 };                                 /* every sub-block scale covers 16 values or a multiple */

/* A block as integers: value = scale[s] * q, and minimum min[s], of sub-block s. */
struct block {
    int16_t q[256];
    int16_t scale[16], min[16];
    float d, dmin;
};

static float f16_at(const uint8_t *p) {
    uint16_t h;
    memcpy(&h, p, 2);
    return f16_to_f32(h);
}

static void unpack_q8_0(const uint8_t *p, struct block *b) {
    for (int i = 0; i < 32; i++) b->q[i] = (int8_t)p[2 + i];
    b->scale[0] = b->scale[1] = 1;
    b->d = f16_at(p);
}

static void unpack_q4_0(const uint8_t *p, struct block *b) {
    for (int i = 0; i < 32; i++) b->q[i] = (int16_t)((p[2 + i % 16] >> 4 * (i / 16) & 15) - 8);
    b->scale[0] = b->scale[1] = 1;
    b->d = f16_at(p);
}

float mm_mxfp4_scale(uint8_t e) {
    return f32_from_bits(e < 2 ? 0x00200000u << e : (uint32_t)(e - 1) << 23);
}

static void unpack_mxfp4(const uint8_t *p, struct block *b) {
    static const int8_t doubled[16] = { 0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12 };
    for (int i = 0; i < 32; i++) b->q[i] = doubled[p[1 + i % 16] >> 4 * (i / 16) & 15];
    b->scale[0] = b->scale[1] = 1;
    b->d = mm_mxfp4_scale(p[0]);
}

static void unpack_q2_k(const uint8_t *p, struct block *b) {
    for (int i = 0; i < 256; i++) b->q[i] = p[16 + 32 * (i / 128) + i % 32] >> 2 * (i % 128 / 32) & 3;
    for (int s = 0; s < 16; s++) {
        b->scale[s] = p[s] & 15;
        b->min[s] = p[s] >> 4;
    }
    b->d = f16_at(p + 80);
    b->dmin = f16_at(p + 82);
}

static void unpack_q3_k(const uint8_t *p, struct block *b) {
    const uint8_t *s = p + 96;
    for (int i = 0; i < 256; i++) {
        int q = p[32 + 32 * (i / 128) + i % 32] >> 2 * (i % 128 / 32) & 3;
        b->q[i] = (int16_t)(q - (p[i % 32] >> i / 32 & 1 ? 0 : 4));
    }
    for (int k = 0; k < 16; k++) {
        int low = k < 8 ? s[k] & 15 : s[k - 8] >> 4, high = s[8 + k % 4] >> 2 * (k / 4) & 3;
        b->scale[k] = (int16_t)((low | high << 4) - 32);
    }
    b->d = f16_at(p + 108);
}

/* Eight scales and minima of 6 bits in 12 bytes, each for 32 values. */
static void unpack_scales_6bit(const uint8_t *s, struct block *b) {
    for (int j = 0; j < 8; j++) {
        int scale = j < 4 ? s[j] & 63 : (s[j + 4] & 15) | s[j - 4] >> 6 << 4;
        int min = j < 4 ? s[j + 4] & 63 : s[j + 4] >> 4 | s[j] >> 6 << 4;
        b->scale[2 * j] = b->scale[2 * j + 1] = (int16_t)scale;
        b->min[2 * j] = b->min[2 * j + 1] = (int16_t)min;
    }
}

static void unpack_q4_k(const uint8_t *p, struct block *b) {
    for (int i = 0; i < 256; i++) b->q[i] = p[16 + 32 * (i / 64) + i % 32] >> 4 * (i % 64 / 32) & 15;
    unpack_scales_6bit(p + 4, b);
    b->d = f16_at(p);
    b->dmin = f16_at(p + 2);
}

static void unpack_q5_k(const uint8_t *p, struct block *b) {
    for (int i = 0; i < 256; i++) {
        int low = p[48 + 32 * (i / 64) + i % 32] >> 4 * (i % 64 / 32) & 15,
            high = p[16 + i % 32] >> i / 32 & 1;
        b->q[i] = (int16_t)(low | high << 4);
    }
    unpack_scales_6bit(p + 4, b);
    b->d = f16_at(p);
    b->dmin = f16_at(p + 2);
}

static void unpack_q6_k(const uint8_t *p, struct block *b) {
    for (int i = 0; i < 256; i++) {
        int n = i / 128, r = i % 128;
        int low = p[64 * n + r % 64] >> 4 * (r / 64) & 15,
            high = p[128 + 32 * n + r % 32] >> 2 * (r / 32) & 3;
        b->q[i] = (int16_t)((low | high << 4) - 32);
    }
    for (int s = 0; s < 16; s++) b->scale[s] = (int8_t)p[192 + s];
    b->d = f16_at(p + 208);
}

static void unpack_iq2_xxs(const uint8_t *p, struct block *b) {
    for (int g = 0; g < 8; g++) {
        const uint8_t *group = p + 2 + 8 * g;
        uint32_t word = (uint32_t)group[4] | (uint32_t)group[5] << 8 | (uint32_t)group[6] << 16 |
                        (uint32_t)group[7] << 24;
        for (int i = 0; i < 32; i++) {
            int magnitude = (int)(iq2xxs_grid[group[i / 8]] >> 8 * (i % 8) & 255);
            bool negative = iq2xxs_signs[word >> 7 * (i / 8) & 127] >> i % 8 & 1;
            b->q[32 * g + i] = (int16_t)(negative ? -magnitude : magnitude);
        }
        b->scale[2 * g] = b->scale[2 * g + 1] = (int16_t)(2 * (word >> 28) + 1);
    }
    b->d = f16_at(p) * 0.125f;
}

static const struct block_type {
    void (*unpack)(const uint8_t *p, struct block *b);
    bool has_min;
} block_types[DTYPE_IDS] = {
    [DTYPE_Q8_0] = { unpack_q8_0, false },
    [DTYPE_Q4_0] = { unpack_q4_0, false },
    [DTYPE_MXFP4] = { unpack_mxfp4, false },
    [DTYPE_Q2_K] = { unpack_q2_k, true },
    [DTYPE_Q3_K] = { unpack_q3_k, false },
    [DTYPE_Q4_K] = { unpack_q4_k, true },
    [DTYPE_Q5_K] = { unpack_q5_k, true },
    [DTYPE_Q6_K] = { unpack_q6_k, false },
    [DTYPE_IQ2_XXS] = { unpack_iq2_xxs, false },
};

static int32_t isum(const struct block *w, const int8_t *q, int n_sub) {
    int32_t sum = 0;
    for (int s = 0; s < n_sub; s++) {
        int32_t part = 0;
        for (int i = 0; i < SUB; i++) part += w->q[SUB * s + i] * q[SUB * s + i];
        sum += w->scale[s] * part;
    }
    return sum;
}

static void dotq(const struct mm_tile *t, const struct block_type *type) {
    const struct act *x = t->x;
    int64_t len = x->kind == ACT_Q8_0 ? 32 : 256, n_blocks = t->n_in / len;
    for (int j = 0; j < t->n_w; j++) {
        const uint8_t *p = t->w + j * t->row_bytes;
        for (int i = 0; i < t->n_x; i++) t->out[i * t->out_stride + j] = 0;
        for (int64_t b = 0; b < n_blocks; b++, p += t->row_bytes / n_blocks) {
            struct block w;
            type->unpack(p, &w);
            for (int i = 0; i < t->n_x; i++) {
                int64_t row = t->x_row ? t->x_row[i] : i;
                float *acc = &t->out[i * t->out_stride + j], dx = x->d[row * n_blocks + b];
                *acc = __builtin_fmaf(
                    (float)isum(&w, x->q + row * t->n_in + b * len, (int)(len / SUB)), w.d * dx,
                    *acc);
                if (!type->has_min) continue;
                const int32_t *sum = x->sum + row * (t->n_in / 16) + b * 16;
                int32_t msum = 0;
                for (int s = 0; s < 16; s++) msum += w.min[s] * sum[s];
                *acc = __builtin_fmaf(-(float)msum, w.dmin * dx, *acc);
            }
        }
    }
}

static float dot16(const float *w, const float *x, int64_t n) {
    float lane[16] = { 0 };
    for (int64_t i = 0; i < n; i++) lane[i % 16] = __builtin_fmaf(w[i], x[i], lane[i % 16]);
    for (int width = 8; width >= 1; width /= 2)
        for (int l = 0; l < width; l++) lane[l] += lane[l + width];
    return lane[0];
}

void mm_generic(const struct mm_tile *t) {
    if (t->kind != ACT_F32) {
        CHECK(block_types[t->type].unpack && act_kind_for(t->type) == t->kind);
        dotq(t, &block_types[t->type]);
        return;
    }
    float *w = t->scratch;
    CHECK(t->n_in <= SIMD_N_IN_MAX);
    for (int j = 0; j < t->n_w; j++) {
        dtype_decode(t->type, t->w + j * t->row_bytes, w, (uint64_t)t->n_in);
        for (int i = 0; i < t->n_x; i++) {
            int64_t row = t->x_row ? t->x_row[i] : i;
            t->out[i * t->out_stride + j] = dot16(w, t->x->f + row * t->n_in, t->n_in);
        }
    }
}
