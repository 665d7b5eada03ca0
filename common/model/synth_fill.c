/* synth_fill - random valid blocks, made directly.
 *
 * Payload bits are noise; which bits are sub-scales, and what they may be, is decided per type so that
 * the values have mean 0: where a type has minimums, minimum = middle of the code range * scale, in
 * exact f16 arithmetic. The block's scale comes from a table of 64 around the wanted one. The deviation
 * of such blocks at scale 1 is measured once, not derived. */
#include "common/model/synth_parts.h"

#include "common/base/check.h"
#include "common/base/hash.h"
#include "common/base/rng.h"

#include <math.h>

/* ---- noise: eight xorshift128+ generators side by side; the compiler makes vectors of what the
 *   machine has ---- */

typedef uint64_t u64x4 __attribute__((vector_size(32)));
enum { NOISE_BYTES = 4096, MEASURED_BLOCKS = 512, SCALES = 64 };

struct noise {
    u64x4 a[2], b[2];
    uint8_t bytes[NOISE_BYTES];
    size_t used;
};

static void noise_init(struct noise *n, uint64_t key) {
    for (int i = 0; i < 2; i++) {
        for (int l = 0; l < 4; l++) {
            n->a[i][l] = rng_at(key, (uint64_t)(8 * i + 2 * l)) | 1;  /* never all zero */
            n->b[i][l] = rng_at(key, (uint64_t)(8 * i + 2 * l + 1));
        }
    }
    n->used = NOISE_BYTES;
}

static void noise_refill(struct noise *n) {
    for (size_t at = 0; at < NOISE_BYTES; at += 2 * sizeof(u64x4)) {
        for (size_t i = 0; i < 2; i++) {
            u64x4 x = n->a[i], y = n->b[i];
            n->a[i] = y;
            x ^= x << 23;
            n->b[i] = x ^ y ^ (x >> 17) ^ (y >> 26);
            u64x4 out = n->b[i] + y;
            memcpy(n->bytes + at + i * sizeof out, &out, sizeof out);
        }
    }
    n->used = 0;
}

/* The next size bytes, at most NOISE_BYTES; a rest too small for them is thrown away. */
static inline const uint8_t *noise_take(struct noise *n, size_t size) {
    if (n->used + size > NOISE_BYTES) noise_refill(n);
    n->used += size;
    return n->bytes + n->used - size;
}

/* ---- blocks ---- */

struct scale {
    uint16_t d, dmin;
    uint8_t e;
};

static void put_u16(uint8_t *to, uint16_t value) {
    to[0] = (uint8_t)value;
    to[1] = (uint8_t)(value >> 8);
}

/* Middle of the codes: the minimum in units of the scale, where sub-scale and sub-minimum are equal. */
static float middle_of(enum dtype type) {
    return type == DTYPE_Q2_K ? 1.5f : type == DTYPE_Q4_K ? 7.5f : 0;
}

/* Rounded to seven significant bits, so that 1.5 and 7.5 times it are exact in f16. */
static struct scale scale_of(enum dtype type, float d) {
    d = f32_from_bits((f32_bits(d) + 0x10000) & 0xfffe0000u);
    return (struct scale){ f16_from_f32(d), f16_from_f32(middle_of(type) * d),
                           (uint8_t)((f32_bits(d) >> 23) & 0xff) };
}

/* Odd numbers from -127 to 127: as many below zero as above. */
static void make_q8_0(struct noise *n, const struct scale *s, uint8_t *b) {
    uint64_t r[4];
    memcpy(r, noise_take(n, sizeof r), sizeof r);
    for (int i = 0; i < 4; i++) r[i] |= UINT64_C(0x0101010101010101);
    put_u16(b, s->d);
    memcpy(b + 2, r, sizeof r);
}

/* Sub-scales 8..15, equal to the sub-minimums. */
static void make_q2_k(struct noise *n, const struct scale *s, uint8_t *b) {
    const uint8_t *r = noise_take(n, 16);
    for (int i = 0; i < 16; i++) b[i] = (uint8_t)((r[i] & 7) * 0x11 | 0x88);
    memcpy(b + 16, noise_take(n, 64), 64);
    put_u16(b + 80, s->d);
    put_u16(b + 82, s->dmin);
}

/* Sub-scales 32..63, equal to the sub-minimums: bytes 0..3 repeat in 4..7, both halves of a byte of
 * 8..11 are equal. */
static void make_q4_k(struct noise *n, const struct scale *s, uint8_t *b) {
    const uint8_t *r = noise_take(n, 8);
    put_u16(b, s->d);
    put_u16(b + 2, s->dmin);
    for (int i = 0; i < 4; i++) {
        b[4 + i] = b[8 + i] = r[i] | 0xa0;
        b[12 + i] = (uint8_t)((r[4 + i] & 15) * 0x11);
    }
    memcpy(b + 16, noise_take(n, 128), 128);
}

/* Every pattern is valid: grid rows, signs and sub-scales. */
static void make_iq2_xxs(struct noise *n, const struct scale *s, uint8_t *b) {
    put_u16(b, s->d);
    memcpy(b + 2, noise_take(n, 64), 64);
}

static void make_mxfp4(struct noise *n, const struct scale *s, uint8_t *b) {
    b[0] = s->e;
    memcpy(b + 1, noise_take(n, 16), 16);
}

static void make_block(enum dtype type, struct noise *n, const struct scale *s, uint8_t *b) {
    switch (type) {
    case DTYPE_Q8_0: make_q8_0(n, s, b); return;
    case DTYPE_Q2_K: make_q2_k(n, s, b); return;
    case DTYPE_Q4_K: make_q4_k(n, s, b); return;
    case DTYPE_IQ2_XXS: make_iq2_xxs(n, s, b); return;
    case DTYPE_MXFP4: make_mxfp4(n, s, b); return;
    default: CHECK(!"a type that blocks are made of");
    }
}

/* 64 scales around d with its mean square: from 0.8 to 1.2 times it, or of the two nearest powers of
 *   two as many as fit. */
static void make_scales(enum dtype type, float d, struct scale out[SCALES]) {
    float below = f32_from_bits(f32_bits(d) & 0x7f800000u), square = (d / below) * (d / below);
    int n_above = (int)((square - 1) / 3 * SCALES + 0.5f);
    for (int i = 0; i < SCALES; i++) {
        if (type == DTYPE_MXFP4) out[i] = scale_of(type, i < n_above ? 2 * below : below);
        else out[i] = scale_of(type, d * (0.8f + 0.4f * ((float)i + 0.5f) / SCALES) / 1.00664f);
    }
}

static float measure_unit(enum dtype type) {
    float values[256];
    uint8_t block[256];
    uint32_t n = dtype_block(type);
    double sum = 0;
    struct scale one = scale_of(type, 1);
    struct noise noise;
    noise_init(&noise, type);
    for (int i = 0; i < MEASURED_BLOCKS; i++) {
        make_block(type, &noise, &one, block);
        dtype_decode(type, block, values, n);
        for (uint32_t k = 0; k < n; k++) sum += (double)values[k] * (double)values[k];
    }
    return (float)sqrt(sum / (MEASURED_BLOCKS * (double)n));
}

void synth_noise_init(struct synth_noise *n) {
    const enum dtype types[] = { DTYPE_Q8_0, DTYPE_Q2_K, DTYPE_Q4_K, DTYPE_IQ2_XXS, DTYPE_MXFP4 };
    struct rng r;
    double sum = 0;
    size_t half = COUNT_OF(n->normal) / 2;
    memset(n, 0, sizeof *n);
    rng_init(&r, 0, 0);
    for (size_t i = 0; i < half; i++) {
        n->normal[i] = rng_normal(&r);
        sum += (double)n->normal[i] * (double)n->normal[i];
    }
    for (size_t i = 0; i < half; i++) {
        n->normal[i] *= (float)(1 / sqrt(sum / (double)half));
        n->normal[half + i] = -n->normal[i];
    }
    for (size_t i = 0; i < COUNT_OF(types); i++) n->unit[types[i]] = measure_unit(types[i]);
}

/* ---- chunks ---- */

uint64_t synth_tensor_bytes(const struct synth_tensor *t) {
    uint64_t bytes;
    CHECK(gguf_tensor_size(t->type, t->n_dims, t->ne, &bytes));
    return bytes;
}

/* What a chunk has a whole number of. */
static uint64_t atom_bytes(const struct synth_tensor *t) {
    return t->fill == FILL_EXPERT_IDS ? t->ne[0] * sizeof(int32_t) : dtype_block_bytes(t->type);
}

struct synth_chunks synth_chunks_of(const struct synth_tensor *t) {
    uint64_t total = synth_tensor_bytes(t), atom = atom_bytes(t), bytes = SYNTH_CHUNK_BYTES / atom * atom;
    struct synth_chunks c = { .n = (total + bytes - 1) / bytes, .bytes = bytes };
    c.bytes_last = total - (c.n - 1) * bytes;
    return c;
}

struct chunk {
    const struct synth_noise *noise;
    const struct synth_tensor *t;
    uint64_t key, first;                              /* first: number of its first atom in the tensor */
    uint64_t n;                                       /* atoms */
    const uint8_t *weak;
    uint8_t *out;
};

static void fill_f16(const struct chunk *c) {
    uint16_t table[COUNT_OF(c->noise->normal)];
    struct noise n;
    for (size_t i = 0; i < COUNT_OF(table); i++)
        table[i] = f16_from_f32(c->noise->normal[i] * c->t->deviation);
    noise_init(&n, c->key);
    for (uint64_t i = 0; i < c->n;) {
        uint16_t picks[256], count = (uint16_t)MIN(COUNT_OF(picks), c->n - i);
        memcpy(picks, noise_take(&n, sizeof picks), sizeof picks);
        for (int k = 0; k < count; k++) picks[k] = table[picks[k] >> 4];
        memcpy(c->out + 2 * i, picks, 2 * (size_t)count);
        i += count;
    }
}

static void fill_f32(const struct chunk *c) {
    struct rng r;
    rng_init(&r, c->key, 0);
    for (uint64_t i = 0; i < c->n; i++) {
        float value = c->t->mean + c->t->deviation * rng_normal(&r);
        memcpy(c->out + i * sizeof value, &value, sizeof value);
    }
}

static void fill_blocks(const struct chunk *c) {
    enum dtype type = c->t->type;
    struct scale scales[2][SCALES];
    struct noise n;
    float d = c->t->deviation / c->noise->unit[type];
    uint64_t bytes = dtype_block_bytes(type), per_row = c->t->ne[0] / dtype_block(type);
    make_scales(type, d, scales[0]);
    make_scales(type, d / 4, scales[1]);
    noise_init(&n, c->key);
    for (uint64_t i = 0; i < c->n; i++) {
        bool weak = c->t->fill == FILL_HEAD && c->weak[(c->first + i) / per_row];
        make_block(type, &n, &scales[weak][*noise_take(&n, 1) % SCALES], c->out + i * bytes);
    }
}

static void fill_hc_base(const struct chunk *c) {
    struct rng r;
    rng_init(&r, c->key, 0);
    for (uint64_t i = 0; i < c->n; i++) {
        bool diagonal = i >= 8 && (i - 8) % 5 == 0;
        float value = (i < 4 || i >= 8 ? 0.5f : 0.3f) * rng_normal(&r) + (diagonal ? 4.0f : 0.0f);
        memcpy(c->out + i * sizeof value, &value, sizeof value);
    }
}

static void fill_expert_ids(const struct chunk *c) {
    struct rng r;
    uint64_t n_used = c->t->ne[0];
    rng_init(&r, c->key, 0);
    for (uint64_t row = 0; row < c->n; row++) {
        int32_t id[HP_EXPERTS_USED_MAX];
        for (uint64_t i = 0; i < n_used;) {
            uint64_t before = 0;
            id[i] = (int32_t)rng_below(&r, c->t->below);
            while (id[before] != id[i]) before++;
            i += before == i;                         /* new in this row */
        }
        memcpy(c->out + row * n_used * sizeof *id, id, n_used * sizeof *id);
    }
}

void synth_fill_chunk(const struct synth_noise *n, const struct synth_tensor *t, uint64_t seed,
                      uint64_t chunk_i, const uint8_t *weak, uint8_t *out) {
    struct synth_chunks all = synth_chunks_of(t);
    uint64_t atom = atom_bytes(t), bytes = chunk_i + 1 == all.n ? all.bytes_last : all.bytes;
    struct chunk c = { n,
                       t,
                       rng_at(hash_64(t->name, strlen(t->name), seed), chunk_i),
                       chunk_i * (all.bytes / atom),
                       bytes / atom,
                       weak,
                       out };
    if (t->fill == FILL_HC_BASE) fill_hc_base(&c);
    else if (t->fill == FILL_EXPERT_IDS) fill_expert_ids(&c);
    else if (t->type == DTYPE_F32) fill_f32(&c);
    else if (t->type == DTYPE_F16) fill_f16(&c);
    else fill_blocks(&c);
}
