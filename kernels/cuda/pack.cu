/* Weights in tiles: the blocks of 16 rows rearranged in place, once, so that a warp's loads are whole
 * lines and land in the registers that the tensor cores read. Nothing is rounded and nothing grows: a
 * tile takes exactly the bytes of its 16 rows.
 *
 * A lane of the tensor cores' A operand is (g, t) = (lane / 4, lane % 4): it holds rows g and g + 8, and of a
 * block of 32 values the eight from 8 t: its run. The layouts (n = values of a row; all pieces follow one
 * another within the tile):
 *   F16      [n/16][lane][row g: 4t, 4t+1 | row g+8: 4t, 4t+1 | row g: 4t+2, 4t+3 | row g+8: 4t+2, 4t+3]
 *   Q8_0     [n/32][lane][row g: 4 bytes from 8t | row g+8 | row g: 4 bytes from 8t+4 | row g+8], then scales
 *            [n/128][g][4 blocks][row g, row g+8]
 *   MXFP4    per 128 values: [row half][lane][4 blocks]: 8 codes from 8t, low nibble first; then exponents
 *            [row][4 blocks]
 *   Q2_K     per 256: [row half][lane][4 words]: word w, bits 8b + 2i: value 32 (2w + i/2) + 8t + 4 (i%2)
 *            + b; then scales [row][16]; then [row] d, dmin
 *   Q4_K     per 256: [row half][4 blocks' half][lane][4 blocks]: byte b: low nibble value 8t + b, high
 *            8t + 4 + b; then [row] d, dmin, 12 scale bytes
 *   IQ2_XXS  per 256: [row half][lane][4 words]: the grid indices of the lane's runs in groups 0..3, in
 *            groups 4..7; the signs of the same runs, bits 4j + u: the XOR of sign bits 0..j in group u
 *            (4 + u in the last word), and above them the scale of group 2t (2t + 1); at the end of the
 *            tile [n/256][g][row g, row g+8] d */
#include "kernels/cuda/cuda.h"
#include "kernels/cuda/decode.cuh"

enum { PACK_THREADS = 256, PACK_CHUNK = 256 << 20 };

/* One word of the packed tile from the tile's rows as they are in the file. */
struct source {
    const uint8_t *rows;
    uint32_t row_bytes;
    __device__ const uint8_t *row(int r) const {
        return rows + (uint32_t)r * row_bytes;
    }
};

static __device__ uint32_t halves(const uint8_t *low, const uint8_t *high) {
    return (uint32_t)low[0] | (uint32_t)low[1] << 8 | (uint32_t)high[0] << 16 | (uint32_t)high[1] << 24;
}

static __device__ uint32_t pack_f16(struct source s, uint32_t w) {
    int lane = (int)(w % 128 / 4), reg = (int)(w % 4), row = lane / 4 + 8 * (reg & 1);
    return word_at(s.row(row) + (w / 128 * 16 + (uint32_t)(lane % 4 * 4 + reg / 2 * 2)) * 2);
}

static __device__ uint32_t pack_q8_0(struct source s, uint32_t w, uint32_t n_in) {
    uint32_t n_blocks = n_in / 32;
    if (w < n_blocks * 128) {
        int lane = (int)(w % 128 / 4), reg = (int)(w % 4), row = lane / 4 + 8 * (reg & 1);
        return word_at(s.row(row) + w / 128 * 34 + 2 + lane % 4 * 8 + reg / 2 * 4);
    }
    w -= n_blocks * 128;
    int g = (int)(w % 32 / 4);
    uint32_t block = w / 32 * 4 + w % 4;
    return halves(s.row(g) + block * 34, s.row(g + 8) + block * 34);
}

static __device__ uint32_t pack_mxfp4(struct source s, uint32_t w) {
    uint32_t group = w / 272, out = 0;
    w %= 272;
    if (w >= 256) {
        for (int i = 0; i < 4; i++)
            out |= (uint32_t)s.row((int)w - 256)[(group * 4 + (uint32_t)i) * 17] << 8 * i;
        return out;
    }
    int lane = (int)(w % 128 / 4), row = lane / 4 + 8 * (int)(w / 128);
    const uint8_t *block = s.row(row) + (group * 4 + w % 4) * 17 + 1;
    for (int i = 0; i < 8; i++) {
        int k = lane % 4 * 8 + i;
        out |= (uint32_t)(block[k % 16] >> 4 * (k / 16) & 15) << 4 * i;
    }
    return out;
}

static __device__ uint32_t pack_q2_k(struct source s, uint32_t w) {
    uint32_t block = w / 336, out = 0;
    w %= 336;
    if (w >= 320) return word_at(s.row((int)w - 320) + block * 84 + 80);
    if (w >= 256) return word_at(s.row((int)(w - 256) / 4) + block * 84 + w % 4 * 4);
    int lane = (int)(w % 128 / 4), row = lane / 4 + 8 * (int)(w / 128);
    const uint8_t *qs = s.row(row) + block * 84 + 16;
    for (int i = 0; i < 4; i++)
        for (int b = 0; b < 4; b++) {
            int k = 32 * (2 * (int)(w % 4) + i / 2) + lane % 4 * 8 + i % 2 * 4 + b;
            out |= (uint32_t)(qs[32 * (k / 128) + k % 32] >> 2 * (k % 128 / 32) & 3) << (8 * b + 2 * i);
        }
    return out;
}

static __device__ uint32_t pack_q4_k(struct source s, uint32_t w) {
    uint32_t block = w / 576, out = 0;
    w %= 576;
    if (w >= 512) return word_at(s.row((int)(w - 512) / 4) + block * 144 + w % 4 * 4);
    int lane = (int)(w % 128 / 4), row = lane / 4 + 8 * (int)(w / 256);
    const uint8_t *qs = s.row(row) + block * 144 + 16;
    for (int i = 0; i < 8; i++) {
        int k = 32 * (int)(w % 256 / 128 * 4 + w % 4) + lane % 4 * 8 + i;
        out |= (uint32_t)(qs[32 * (k / 64) + k % 32] >> 4 * (k % 64 / 32) & 15)
               << (8 * (i % 4) + 4 * (i / 4));
    }
    return out;
}

static __device__ uint32_t pack_iq2_xxs(struct source s, uint32_t w, uint32_t n_in) {
    uint32_t n_blocks = n_in / 256;
    if (w >= n_blocks * 256) {
        w -= n_blocks * 256;
        return halves(s.row((int)(w % 8)) + w / 8 * 66, s.row((int)(w % 8) + 8) + w / 8 * 66);
    }
    int lane = (int)(w % 128 / 4), t = lane % 4, part = (int)(w % 4), first = part % 2 * 4;
    const uint8_t *groups = s.row(lane / 4 + 8 * (int)(w % 256 / 128)) + w / 256 * 66 + 2;
    uint32_t out = 0;
    for (int u = 0; u < 4; u++) {                  /* groups first .. first + 3: this lane's run of each */
        const uint8_t *group = groups + (first + u) * 8;
        uint32_t signs = word_at(group + 4) >> 7 * t & 127;
        signs ^= signs << 1, signs ^= signs << 2, signs ^= signs << 4;         /* bit j: of bits 0..j */
        if (part < 2) out |= (uint32_t)group[t] << 8 * u;
        else
            for (int j = 0; j < 7; j++) out |= (signs >> j & 1) << (4 * j + u);
    }
    return part < 2 ? out : out | word_at(groups + (2 * t + part - 2) * 8 + 4) >> 28 << 28;
}

/* Grid: tiles. */
static __global__ void __launch_bounds__(PACK_THREADS)
    pack_kernel(uint32_t *to, const uint8_t *from, enum dtype type, uint32_t n_in, uint32_t row_bytes) {
    device_wait();
    uint32_t n_words = row_bytes * 4;              /* 16 rows of bytes */
    struct source s = { from + (uint64_t)blockIdx.x * row_bytes * 16, row_bytes };
    for (uint32_t w = threadIdx.x; w < n_words; w += PACK_THREADS) {
        uint32_t out = 0;
        switch (type) {
        case DTYPE_F16: out = pack_f16(s, w); break;
        case DTYPE_Q8_0: out = pack_q8_0(s, w, n_in); break;
        case DTYPE_MXFP4: out = pack_mxfp4(s, w); break;
        case DTYPE_Q2_K: out = pack_q2_k(s, w); break;
        case DTYPE_Q4_K: out = pack_q4_k(s, w); break;
        case DTYPE_IQ2_XXS: out = pack_iq2_xxs(s, w, n_in); break;
        default: break;
        }
        to[(uint64_t)blockIdx.x * n_words + w] = out;
    }
}

/* Values of a row must fill whole steps of the type's product. */
static int64_t tile_step(enum dtype type) {
    switch (type) {
    case DTYPE_F16: return 64;
    case DTYPE_Q8_0: case DTYPE_MXFP4: return 128;
    case DTYPE_Q2_K: case DTYPE_Q4_K: case DTYPE_IQ2_XXS: return 256;
    default: return 0;
    }
}

enum act_kind act_kind_for(enum dtype type) {
    if (type == DTYPE_F16) return ACT_F16X2;
    return type == DTYPE_Q8_0 || type == DTYPE_MXFP4 ? ACT_Q8_0 : ACT_Q8_K;
}

static bool pack(struct cuda *c, struct kmem *mem, enum dtype type, int64_t n_in) {
    uint64_t tile_bytes = dtype_row_bytes(type, (uint64_t)n_in) * 16, n_tiles = mem->size / tile_bytes;
    uint64_t at_once = MIN(n_tiles, MAX((uint64_t)PACK_CHUNK / tile_bytes, 1));
    uint8_t *source = (uint8_t *)cuda_scratch(c, SCRATCH_PACK, at_once * tile_bytes);
    for (uint64_t tile = 0; source && tile < n_tiles && !cuda_failed(c); tile += at_once) {
        uint64_t n = MIN(at_once, n_tiles - tile);
        uint8_t *to = mem->data + tile * tile_bytes;
        cuda_ok(c, cudaMemcpyAsync(source, to, n * tile_bytes, cudaMemcpyDefault, c->stream),
                "rearrange weights");
        launch(c, pack_kernel, dim3((unsigned)n), dim3(PACK_THREADS), 0, (uint32_t *)to,
               (const uint8_t *)source, type, (uint32_t)n_in, (uint32_t)(tile_bytes / 16));
    }
    mem->layout = LAYOUT_TILES;
    /* kernels read weights before they wait for others */
    cuda_ok(c, cudaStreamSynchronize(c->stream), "rearrange weights");
    return source && !cuda_failed(c);
}

bool weight_in_tiles(struct cuda *c, const struct tensor *weight, int64_t rows_per_matrix) {
    struct kmem *mem = weight->mem;
    int64_t step = tile_step(weight->type), n_in = weight->ne[0];
    if (c->base.config.precision != PRECISION_FAST || !mem || !mem->is_weight || mem->keep || !step)
        return false;
    if (mem->layout == LAYOUT_TILES) return true;
    uint64_t tile_bytes = dtype_row_bytes(weight->type, (uint64_t)n_in) * 16;
    if (n_in % step != 0 || rows_per_matrix % 16 != 0 || mem->size % tile_bytes != 0) return false;
    if ((uint64_t)((uint8_t *)weight->data - mem->data) % tile_bytes != 0) return false;
    return pack(c, mem, weight->type, n_in);
}
