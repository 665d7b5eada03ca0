/* tiles - products of 16 weight rows in tiles (pack.cu) with groups of 8 prepared activation rows, on
 * tensor cores.
 *
 * Each struct below is one weight type: load() takes a step's weights into registers, multiply() adds
 * the step's products to sums.acc[group][4], of which a lane (g, t) holds (row g, columns 2t, 2t+1),
 * (row g+8, the same). A step is STEP values of k and STEP_BYTES of a tile; LUT is the size of the
 * type's table in shared memory; AHEAD: steps that few columns leave room to load early, AHEAD_ONE:
 * that one row does.
 *
 * What a product is, whoever computes it and however many columns there are: k is cut into segments of
 * 512. Within a segment the sum is one chain over ascending blocks, where isum is the exact integer sum
 * over the block: acc = fma(isum * dw, dx, acc) for Q8_0; Q2_K takes fma(-msum, dmin, isum * dw) for
 * isum * dw; the others acc = fma(isum, dw * dx, acc), and Q4_K then fma(-msum, dmin * dx, acc). F16
 * chains the tensor cores' own f32 sums, hi before lo, and multiplies by the segment's power of two. The
 * segments' sums are added in order, starting from 0. Neither splitting k over warps nor the number of
 * columns changes a bit.
 *
 * Integer sums become floats without a conversion, which would take as long as two other instructions: the
 * tensor cores start from the bits of 1.5 * 2^23, so that what they leave is that float plus the sum,
 * exactly, while the sum stays below 2^22. fma(sum, dw, -1.5 * 2^23 * dw) is then isum * dw, rounded once. */
#ifndef KERNELS_CUDA_TILES_CUH
#define KERNELS_CUDA_TILES_CUH

#include "kernels/cuda/cuda.h"
#include "kernels/cuda/device.cuh"

enum { TILE_ROWS = 16, SEGMENT = 512 };

struct lane_pos {
    int lane, g, t;
    bool once;                                     /* weights are read once: a constant where it matters */
    uint64_t policy;                               /* then: the L2 cache lets go of them first */
    __device__ lane_pos(bool once_ = false)
        : lane(lane_id()), g(lane / 4), t(lane % 4), once(once_), policy(0) {
        if (once) asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
    }
};

template <int N> struct sums {
    float acc[N][4];
    int inner[N][4];                               /* integer sums of a block in progress */
    __device__ void clear() {
#pragma unroll
        for (int j = 0; j < N; j++)
#pragma unroll
            for (int i = 0; i < 4; i++) acc[j][i] = 0, inner[j][i] = 0;
    }
};

static __device__ __forceinline__ void mma_s8(int *c, uint32_t a0, uint32_t a1, uint32_t a2,
                                              uint32_t a3, uint2 b) {
    asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
        "{%0,%1,%2,%3};"
        : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b.x), "r"(b.y));
}

/* The same from other numbers: c = start + products. */
static __device__ __forceinline__ void mma_s8_from(int *c, uint32_t a0, uint32_t a1, uint32_t a2,
                                                   uint32_t a3, uint2 b, const int *start) {
    asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
        "{%10,%11,%12,%13};"
        : "=r"(c[0]), "=r"(c[1]), "=r"(c[2]), "=r"(c[3])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b.x), "r"(b.y), "r"(start[0]), "r"(start[1]),
          "r"(start[2]), "r"(start[3]));
}

/* Four times the bits of 1.5 * 2^23, in registers of their own: as constants they would be moved into
 * place before each product. */
static const float FLOAT_START = 12582912.0f;

struct float_start {
    int bits[4];
    __device__ __forceinline__ float_start() {
#pragma unroll
        for (int i = 0; i < 4; i++) asm volatile("mov.b32 %0, 0x4b400000;" : "=r"(bits[i]));
    }
};

static __device__ __forceinline__ void mma_f16(float *c, uint32_t a0, uint32_t a1, uint32_t a2,
                                               uint32_t a3, uint2 b) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
        "{%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b.x), "r"(b.y));
}

static __device__ __forceinline__ uint4 load16(const uint8_t *p) {     /* weights: not kept in L1 */
    uint4 v;
    asm("ld.global.nc.L1::no_allocate.v4.u32 {%0,%1,%2,%3}, [%4];"
        : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
        : "l"(p));
    return v;
}

/* Weights that few rows read once leave the L2 cache before what every step reads again - activations, state,
 * small weights, the kernels themselves. */
static __device__ __forceinline__ uint4 load16(const uint8_t *at, const lane_pos &p) {
    if (!p.once) return load16(at);
    uint4 v;
    asm("ld.global.nc.L1::no_allocate.L2::cache_hint.v4.u32 {%0,%1,%2,%3}, [%4], %5;"
        : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
        : "l"(at), "l"(p.policy));
    return v;
}

static __device__ __forceinline__ uint32_t load4(const uint8_t *p) {
    return __ldg((const uint32_t *)p);
}

static __device__ __forceinline__ float2 half_pair(uint32_t h) {
    return make_float2(f16_value((uint16_t)(h & 0xffff)), f16_value((uint16_t)(h >> 16)));
}

/* Word i (a constant after unrolling) of a vector. */
static __device__ __forceinline__ uint32_t word(const uint4 &v, int i) {
    return i == 0 ? v.x : i == 1 ? v.y : i == 2 ? v.z : v.w;
}

/* Bytes of the pair (a, b) by the selector's nibbles, of which no bit 3 may be set: __byte_perm would
 * clear them first. */
static __device__ __forceinline__ uint32_t select_bytes(uint32_t a, uint32_t b, uint32_t selector) {
    uint32_t out;
    asm("prmt.b32 %0, %1, %2, %3;" : "=r"(out) : "r"(a), "r"(b), "r"(selector));
    return out;
}

/* acc += sum * (weight scale * activation scale), per row and column; negative: minus. */
static __device__ __forceinline__ void add_scaled(float *acc, const float *sum, float2 dw, float2 dx) {
    acc[0] = fmaf(sum[0], dw.x * dx.x, acc[0]);
    acc[1] = fmaf(sum[1], dw.x * dx.y, acc[1]);
    acc[2] = fmaf(sum[2], dw.y * dx.x, acc[2]);
    acc[3] = fmaf(sum[3], dw.y * dx.y, acc[3]);
}

static __device__ __forceinline__ void add_scaled_int(float *acc, const int *sum, float2 dw, float2 dx) {
    const float f[4] = { (float)sum[0], (float)sum[1], (float)sum[2], (float)sum[3] };
    add_scaled(acc, f, dw, dx);
}

/* What mma_s8_from left, without its start. */
static __device__ __forceinline__ float started(int sum) {
    return __int_as_float(sum) - FLOAT_START;
}

/* acc += sum * weight scale * activation scale; sum: what mma_s8_from left, shift: -FLOAT_START * dw. */
static __device__ __forceinline__ void add_started(float *acc, const int *sum, float2 dw, float2 shift,
                                                   float2 dx) {
    acc[0] = fmaf(fmaf(__int_as_float(sum[0]), dw.x, shift.x), dx.x, acc[0]);
    acc[1] = fmaf(fmaf(__int_as_float(sum[1]), dw.x, shift.x), dx.y, acc[1]);
    acc[2] = fmaf(fmaf(__int_as_float(sum[2]), dw.y, shift.y), dx.x, acc[2]);
    acc[3] = fmaf(fmaf(__int_as_float(sum[3]), dw.y, shift.y), dx.y, acc[3]);
}

static __device__ __forceinline__ float2 shift_for(float2 dw) {
    return make_float2(-FLOAT_START * dw.x, -FLOAT_START * dw.y);
}

/* Four small integers in bytes become f16: 1024 + m has m in its low bits. */
static __device__ __forceinline__ uint32_t bytes_to_halves(uint32_t bytes, uint32_t selector) {
    uint32_t h = __byte_perm(bytes, 0x64646464u, selector);
    __half2 v = __hsub2(*(const __half2 *)&h, __half2half2(__ushort_as_half(0x6400)));
    return *(const uint32_t *)&v;
}

/* ---- the types ---- */

struct tile_q8_0 {
    static const enum act_kind KIND = ACT_Q8_0;
    static const enum dtype TYPE = DTYPE_Q8_0;
    static const int STEP = 128, STEP_BYTES = 2176, LUT = 1, AHEAD = 2, AHEAD_ONE = 4;
    struct regs {
        uint4 q[4], d;                             /* d: word i: scales of rows g, g+8 in block i */
    };
    static __device__ __forceinline__ void load(regs &w, const uint8_t *tile, int n_in, int step,
                                                const lane_pos &p) {
        const uint8_t *q = tile + (int64_t)step * 2048 + p.lane * 16;
#pragma unroll
        for (int i = 0; i < 4; i++) w.q[i] = load16(q + i * 512, p);
        w.d = __ldg((const uint4 *)(tile + (int64_t)n_in * 16 + (int64_t)step * 128 + p.g * 16));
    }
    template <int N, class X>
    static __device__ __forceinline__ void multiply(sums<N> &s, const regs &w, const X &x, int step,
                                                    int n_groups, const lane_pos &,
                                                    const uint32_t *) {
        float_start start;
#pragma unroll
        for (int i = 0; i < 4; i++) {
            float2 dw = half_pair(word(w.d, i)), shift = shift_for(dw);
#pragma unroll
            for (int j = 0; j < N; j++) {
                if (j >= n_groups) break;
                int c[4];
                mma_s8_from(c, w.q[i].x, w.q[i].y, w.q[i].z, w.q[i].w, x.q(step * 4 + i, j), start.bits);
                add_started(s.acc[j], c, dw, shift, x.d(step * 4 + i, j));
            }
        }
    }
};

struct tile_mxfp4 {
    static const enum act_kind KIND = ACT_Q8_0;
    static const enum dtype TYPE = DTYPE_MXFP4;
    static const int STEP = 128, STEP_BYTES = 1088, LUT = 1, AHEAD = 2, AHEAD_ONE = 4;
    struct regs {
        uint4 q[2];                                /* rows g, g+8: word i: eight codes of block i */
        uint32_t e[2];
    };
    static __device__ __forceinline__ void load(regs &w, const uint8_t *tile, int, int step,
                                                const lane_pos &p) {
        const uint8_t *at = tile + (int64_t)step * 1088;
        for (int r = 0; r < 2; r++) {
            w.q[r] = load16(at + r * 512 + p.lane * 16, p);
            w.e[r] = load4(at + 1024 + (p.g + 8 * r) * 4);
        }
    }
    /* Doubled values of four codes: 0 1 2 3 4 6 8 12 and their negatives; bit 3 chooses. */
    static __device__ __forceinline__ uint32_t values(uint32_t codes) {
        uint32_t index = codes & 0x7777, sign = 0x3210 | (codes >> 1 & 0x4444);
        return select_bytes(select_bytes(0x03020100u, 0x0c080604u, index),
                            select_bytes(0xfdfeff00u, 0xf4f8fafcu, index), sign);
    }
    static __device__ __forceinline__ float scale(uint32_t e) {
        return __uint_as_float(e < 2 ? 0x00200000u << e : (e - 1) << 23);
    }
    template <int N, class X>
    static __device__ __forceinline__ void multiply(sums<N> &s, const regs &w, const X &x, int step,
                                                    int n_groups, const lane_pos &,
                                                    const uint32_t *) {
        float_start start;
#pragma unroll
        for (int i = 0; i < 4; i++) {
            float2 dw = make_float2(scale(w.e[0] >> 8 * i & 255), scale(w.e[1] >> 8 * i & 255));
            uint32_t q0 = word(w.q[0], i), q1 = word(w.q[1], i);
            uint32_t a0 = values(q0), a1 = values(q1), a2 = values(q0 >> 16), a3 = values(q1 >> 16);
#pragma unroll
            for (int j = 0; j < N; j++) {
                if (j >= n_groups) break;
                int c[4];
                mma_s8_from(c, a0, a1, a2, a3, x.q(step * 4 + i, j), start.bits);
                const float sum[4] = { started(c[0]), started(c[1]), started(c[2]), started(c[3]) };
                add_scaled(s.acc[j], sum, dw, x.d(step * 4 + i, j));
            }
        }
    }
};

/* Sub-blocks of 16 with scales of 4 bits: scale times code is at most 45, so the scales go into the
 * integers and a block is one chain of products. The minima meet the activations' sums of 16 in one f16
 * product, exact in f32. */
struct tile_q2_k {
    static const enum act_kind KIND = ACT_Q8_K;
    static const enum dtype TYPE = DTYPE_Q2_K;
    static const int STEP = 256, STEP_BYTES = 1344, LUT = 1, AHEAD = 2, AHEAD_ONE = 2;
    struct regs {
        uint4 q[2], s[2];
        uint32_t d[2];
    };
    static __device__ __forceinline__ void load(regs &w, const uint8_t *tile, int, int step,
                                                const lane_pos &p) {
        const uint8_t *at = tile + (int64_t)step * 1344;
        for (int r = 0; r < 2; r++) {
            w.q[r] = load16(at + r * 512 + p.lane * 16, p);
            w.s[r] = __ldg((const uint4 *)(at + 1024 + (p.g + 8 * r) * 16));
            w.d[r] = load4(at + 1280 + (p.g + 8 * r) * 4);
        }
    }
    template <int N, class X>
    static __device__ __forceinline__ void multiply(sums<N> &s, const regs &w, const X &x, int step,
                                                    int n_groups, const lane_pos &p,
                                                    const uint32_t *) {
        uint32_t sc[2][4], m[2];
#pragma unroll
        for (int r = 0; r < 2; r++) { /* bytes 0 and 2 of word i: this lane's sub-blocks of blocks 2i, 2i+1 */
            for (int i = 0; i < 4; i++) sc[r][i] = word(w.s[r], i) >> 8 * (p.t >> 1) & 0x000f000f;
            m[r] =
                (p.t < 2 ? (p.t == 0 ? w.s[r].x : w.s[r].y) : (p.t == 2 ? w.s[r].z : w.s[r].w)) >>
                    4 &
                0x0f0f0f0f;
        }
        float_start start;
#pragma unroll
        for (int i = 0; i < 8; i++) {
            uint32_t q0 = word(w.q[0], i / 2) >> 4 * (i % 2), q1 = word(w.q[1], i / 2) >> 4 * (i % 2);
            uint32_t s0 = sc[0][i / 2] >> 16 * (i % 2) & 15, s1 = sc[1][i / 2] >> 16 * (i % 2) & 15;
            uint32_t a0 = (q0 & 0x03030303) * s0, a2 = (q0 >> 2 & 0x03030303) * s0;
            uint32_t a1 = (q1 & 0x03030303) * s1, a3 = (q1 >> 2 & 0x03030303) * s1;
#pragma unroll
            for (int j = 0; j < N; j++) {
                if (j >= n_groups) break;
                mma_s8_from(s.inner[j], a0, a1, a2, a3, x.q(step * 8 + i, j), i ? s.inner[j] : start.bits);
            }
        }
        float2 d0 = half_pair(w.d[0]), d1 = half_pair(w.d[1]), d = make_float2(d0.x, d1.x),
               shift = shift_for(d), dmin = make_float2(-d0.y, -d1.y);
        uint32_t m0 = bytes_to_halves(m[0], 0x4140), m1 = bytes_to_halves(m[1], 0x4140);
        uint32_t m2 = bytes_to_halves(m[0], 0x4342), m3 = bytes_to_halves(m[1], 0x4342);
#pragma unroll
        for (int j = 0; j < N; j++) {
            if (j >= n_groups) break;
            float2 dx = x.d(step, j);
            float msum[4] = { 0, 0, 0, 0 };
            mma_f16(msum, m0, m1, m2, m3, x.sum(step, j));
#pragma unroll
            for (int i = 0; i < 4; i++) {
                float dot = fmaf(__int_as_float(s.inner[j][i]), i < 2 ? d.x : d.y, i < 2 ? shift.x : shift.y);
                dot = fmaf(msum[i], i < 2 ? dmin.x : dmin.y, dot);
                s.acc[j][i] = fmaf(dot, i % 2 ? dx.y : dx.x, s.acc[j][i]);
            }
        }
    }
};

struct tile_q4_k {
    static const enum act_kind KIND = ACT_Q8_K;
    static const enum dtype TYPE = DTYPE_Q4_K;
    static const int STEP = 256, STEP_BYTES = 2304, LUT = 1, AHEAD = 2, AHEAD_ONE = 2;
    struct regs {
        uint4 q[2][2], h[2];                       /* h: d | dmin, then 12 bytes of scales */
    };
    static __device__ __forceinline__ void load(regs &w, const uint8_t *tile, int, int step,
                                                const lane_pos &p) {
        const uint8_t *at = tile + (int64_t)step * 2304;
        for (int r = 0; r < 2; r++) {
            for (int i = 0; i < 2; i++) w.q[r][i] = load16(at + r * 1024 + i * 512 + p.lane * 16, p);
            w.h[r] = __ldg((const uint4 *)(at + 2048 + (p.g + 8 * r) * 16));
        }
    }
    template <int N, class X>
    static __device__ __forceinline__ void multiply(sums<N> &s, const regs &w, const X &x, int step,
                                                    int n_groups, const lane_pos &p,
                                                    const uint32_t *) {
        uint32_t sc[2][2], m[2];
#pragma unroll
        for (int r = 0; r < 2; r++) {              /* eight 6-bit scales and minima */
            uint32_t b0 = w.h[r].y, b1 = w.h[r].z, b2 = w.h[r].w;
            sc[r][0] = b0 & 0x3f3f3f3f;
            sc[r][1] = (b2 & 0x0f0f0f0f) | (b0 >> 2 & 0x30303030);
            uint32_t low = b1 & 0x3f3f3f3f, high = (b2 >> 4 & 0x0f0f0f0f) | (b1 >> 2 & 0x30303030);
            m[r] = (p.t < 2 ? low : high) >> 16 * (p.t & 1);
        }
#pragma unroll
        for (int j = 0; j < N; j++)
            for (int i = 0; i < 4; i++) s.inner[j][i] = 0;
#pragma unroll
        for (int i = 0; i < 8; i++) {
            uint32_t q0 = word(w.q[0][i / 4], i % 4), q1 = word(w.q[1][i / 4], i % 4);
            uint32_t a0 = q0 & 0x0f0f0f0f, a2 = q0 >> 4 & 0x0f0f0f0f, a1 = q1 & 0x0f0f0f0f,
                     a3 = q1 >> 4 & 0x0f0f0f0f;
            int s0 = (int)(sc[0][i / 4] >> 8 * (i % 4) & 255), s1 = (int)(sc[1][i / 4] >> 8 * (i % 4) & 255);
#pragma unroll
            for (int j = 0; j < N; j++) {
                if (j >= n_groups) break;
                int c[4] = { 0, 0, 0, 0 };
                mma_s8(c, a0, a1, a2, a3, x.q(step * 8 + i, j));
                s.inner[j][0] += s0 * c[0], s.inner[j][1] += s0 * c[1];
                s.inner[j][2] += s1 * c[2], s.inner[j][3] += s1 * c[3];
            }
        }
        float2 d0 = half_pair(w.h[0].x), d1 = half_pair(w.h[1].x), d = make_float2(d0.x, d1.x),
               dmin = make_float2(-d0.y, -d1.y);
        uint32_t m0 = bytes_to_halves(m[0], 0x4040), m1 = bytes_to_halves(m[1], 0x4040);
        uint32_t m2 = bytes_to_halves(m[0], 0x4141), m3 = bytes_to_halves(m[1], 0x4141);
#pragma unroll
        for (int j = 0; j < N; j++) {
            if (j >= n_groups) break;
            float2 dx = x.d(step, j);
            float msum[4] = { 0, 0, 0, 0 };
            mma_f16(msum, m0, m1, m2, m3, x.sum(step, j));
            add_scaled_int(s.acc[j], s.inner[j], d, dx);
            add_scaled(s.acc[j], msum, dmin, dx);
        }
    }
};

/* A step is a block of 256. lut: the grid as nibbles, COPIES of each entry in different banks. A nibble of
 * 4 + i selects the negative of value i. A lane has its own runs of eight values in its own words, so
 * every shift is a constant: see pack.cu. */
struct tile_iq2_xxs {
    static const enum act_kind KIND = ACT_Q8_K;
    static const enum dtype TYPE = DTYPE_IQ2_XXS;
    static const int STEP = 256, STEP_BYTES = 1056, COPIES = 8, LUT = 256 * COPIES, AHEAD = 2, AHEAD_ONE = 2;
    struct regs {
        uint4 q[2];                                /* rows g, g+8: indices, indices, signs, signs */
        uint32_t d;
    };
    static __device__ __forceinline__ void load_codes(uint4 *q, const uint8_t *tile, int block,
                                                      const lane_pos &p) {
        const uint8_t *at = tile + (int64_t)block * 1024 + p.lane * 16;
        q[0] = load16(at, p);
        q[1] = load16(at + 512, p);
    }
    static __device__ __forceinline__ const uint8_t *scales_at(const uint8_t *tile, int n_in, int block,
                                                               const lane_pos &p) {
        return tile + (int64_t)n_in * 4 + (int64_t)block * 32 + p.g * 4;
    }
    static __device__ __forceinline__ void load(regs &w, const uint8_t *tile, int n_in, int step,
                                                const lane_pos &p) {
        load_codes(w.q, tile, step, p);
        w.d = load4(scales_at(tile, n_in, step, p));
    }
    /* The lane's run of group i: eight nibbles for values(). Bits 4j + u of the signs' word are the signs of
     * values 0..j multiplied, so a shift by a nibble and two XORs give all eight. */
    static __device__ __forceinline__ uint32_t selectors(const uint4 &q, int i, const uint32_t *copy) {
        uint32_t indices = i < 4 ? q.x : q.y, signs = i < 4 ? q.z : q.w;
        int u = i % 4;
        uint32_t low = u < 3 ? signs << (2 - u) : signs >> 1, high = u < 3 ? signs << (6 - u) : signs << 3;
        return copy[select_bytes(indices, 0, 0x4440 + u) * COPIES] ^ (low & 0x04444444u) ^
               (high & 0x44444440u);
    }
    static __device__ __forceinline__ uint32_t values(uint32_t selector) {
        return select_bytes(0x002b1908u, 0x00d5e7f8u, selector);
    }
    /* This lane's copy of the table. */
    static __device__ __forceinline__ const uint32_t *table(const uint32_t *lut, const lane_pos &p) {
        return lut + p.lane % COPIES;
    }
    /* Of the group that the lane's word of signs names: 2t, or 2t + 1. */
    static __device__ __forceinline__ int own_scale(uint32_t signs) {
        return (int)(signs >> 27) | 1;
    }
    template <int N, class X>
    static __device__ __forceinline__ void multiply(sums<N> &s, const regs &w, const X &x, int step,
                                                    int n_groups, const lane_pos &p,
                                                    const uint32_t *lut) {
        /* bytes t, t: rows g, g+8, each the scales of groups 2t, 2t + 1; then those of all lanes */
        uint32_t own = (w.q[0].z >> 28 | w.q[0].w >> 28 << 4) | (w.q[1].z >> 28 | w.q[1].w >> 28 << 4) << 8;
        uint32_t other = __shfl_xor_sync(0xffffffffu, own, 1);
        own = p.t & 1 ? other | own << 16 : own | other << 16;
        other = __shfl_xor_sync(0xffffffffu, own, 2);
        const uint32_t scales[2] = { p.t & 2 ? other : own, p.t & 2 ? own : other };
        const uint32_t *copy = table(lut, p);
#pragma unroll
        for (int j = 0; j < N; j++)
            for (int i = 0; i < 4; i++) s.inner[j][i] = 0;
#pragma unroll
        for (int i = 0; i < 8; i++) {
            uint32_t v0 = selectors(w.q[0], i, copy), v1 = selectors(w.q[1], i, copy);
            uint32_t a0 = values(v0), a1 = values(v1), a2 = values(v0 >> 16), a3 = values(v1 >> 16);
            int at = i / 2 % 2 * 16 + i % 2 * 4;   /* of row g's scale in its word */
            int s0 = (int)((at ? scales[i / 4] >> (at - 1) : scales[i / 4] << 1) & 30) | 1;
            int s1 = (int)(scales[i / 4] >> (at + 7) & 30) | 1;
#pragma unroll
            for (int j = 0; j < N; j++) {
                if (j >= n_groups) break;
                int c[4] = { 0, 0, 0, 0 };
                mma_s8(c, a0, a1, a2, a3, x.q(step * 8 + i, j));
                s.inner[j][0] += s0 * c[0], s.inner[j][1] += s0 * c[1];
                s.inner[j][2] += s1 * c[2], s.inner[j][3] += s1 * c[3];
            }
        }
        float2 d = half_pair(w.d);
        d.x *= 0.125f, d.y *= 0.125f;
#pragma unroll
        for (int j = 0; j < N; j++) {
            if (j >= n_groups) break;
            add_scaled_int(s.acc[j], s.inner[j], d, x.d(step, j));
        }
    }
};

/* A type's table in shared memory, several copies in different banks. */
template <class T> static __device__ __forceinline__ void load_table(uint32_t *lut, const uint32_t *table) {
    if constexpr (T::TYPE == DTYPE_IQ2_XXS)
        for (int i = (int)threadIdx.x; i < T::LUT / 4; i += (int)blockDim.x) {
            uint32_t v = table[i * 4 / T::COPIES];
            ((uint4 *)lut)[i] = make_uint4(v, v, v, v);
        }
}

struct tile_f16 {
    static const enum act_kind KIND = ACT_F16X2;
    static const enum dtype TYPE = DTYPE_F16;
    static const int STEP = 64, STEP_BYTES = 2048, LUT = 1, AHEAD = 2, AHEAD_ONE = 4;
    struct regs {
        uint4 q[4];
    };
    static __device__ __forceinline__ void load(regs &w, const uint8_t *tile, int, int step,
                                                const lane_pos &p) {
#pragma unroll
        for (int i = 0; i < 4; i++) w.q[i] = load16(tile + (int64_t)step * 2048 + i * 512 + p.lane * 16, p);
    }
    template <int N, class X>
    static __device__ __forceinline__ void multiply(sums<N> &s, const regs &w, const X &x, int step,
                                                    int n_groups, const lane_pos &,
                                                    const uint32_t *) {
#pragma unroll
        for (int i = 0; i < 4; i++)
#pragma unroll
            for (int j = 0; j < N; j++) {
                if (j >= n_groups) break;
                mma_f16(s.acc[j], w.q[i].x, w.q[i].y, w.q[i].z, w.q[i].w, x.hi(step * 4 + i, j));
                mma_f16(s.acc[j], w.q[i].x, w.q[i].y, w.q[i].z, w.q[i].w, x.lo(step * 4 + i, j));
            }
    }
};

/* At the end of a segment of F16: the power of two. dx: of the segment's columns. */
static __device__ __forceinline__ void scale_segment(float *acc, float2 dx) {
    acc[0] *= dx.x, acc[1] *= dx.y, acc[2] *= dx.x, acc[3] *= dx.y;
}

/* The activations from value k0 of the row on: a group's part. */
static __device__ __forceinline__ struct act act_from(struct act act, enum act_kind kind, int k0) {
    int64_t n = act.n_pad;
    int d_values = kind == ACT_Q8_0 ? 32 : kind == ACT_Q8_K ? 256 : SEGMENT;
    act.q += k0 * n * (kind == ACT_F16X2 ? 2 : 1);
    act.d += k0 / d_values * n;
    if (kind == ACT_Q8_K) act.sum += k0 / 16 * n;
    if (kind == ACT_F16X2) act.sum += k0 * n;
    return act;
}

/* ---- activations from device memory, of one segment: for few rows ---- */

/* Where a segment's activations of one row start, for this lane. PAD: the rows side by side, if known (0:
 * look in the act). */
template <enum act_kind KIND, int PAD> struct x_segment {
    static const int BLOCKS = KIND == ACT_F16X2 ? SEGMENT / 16 : SEGMENT / 32;
    static const int SCALES = KIND == ACT_Q8_0 ? SEGMENT / 32 : KIND == ACT_Q8_K ? SEGMENT / 256 : 1;
    const uint8_t *q_, *sum_;
    const float *d_;
    int pad;
    __device__ x_segment(const struct act &act, int row, int segment, const lane_pos &p) : pad(act.n_pad) {
        q_ = (const uint8_t *)act.q + ((int64_t)segment * BLOCKS * n() + row) * 32 + p.t * 8;
        sum_ = (const uint8_t *)act.sum + p.t * 8 +
               ((int64_t)segment * (KIND == ACT_F16X2 ? BLOCKS : SCALES) * n() + row) * 32;
        d_ = act.d + (int64_t)segment * SCALES * n();
    }
    __device__ __forceinline__ int n() const { return PAD ? PAD : pad; }
    __device__ __forceinline__ uint2 q_at(int block, int row) const {
        return *(const uint2 *)(q_ + (block * n() + row) * 32);
    }
    __device__ __forceinline__ uint2 sum_at(int block, int row) const {
        return *(const uint2 *)(sum_ + (block * n() + row) * 32);
    }
};

/* Up to 8 N rows, 8 N side by side. */
template <enum act_kind KIND, int N> struct x_few : x_segment<KIND, 8 * N> {
    int t;
    __device__ x_few(const struct act &act, int segment, const lane_pos &p)
        : x_segment<KIND, 8 * N>(act, p.g, segment, p), t(p.t) {}
    __device__ __forceinline__ uint2 q(int block, int j) const { return this->q_at(block, 8 * j); }
    __device__ __forceinline__ uint2 sum(int block, int j) const { return this->sum_at(block, 8 * j); }
    __device__ __forceinline__ uint2 hi(int block, int j) const { return this->q_at(block, 8 * j); }
    __device__ __forceinline__ uint2 lo(int block, int j) const { return this->sum_at(block, 8 * j); }
    __device__ __forceinline__ float2 d(int block, int j) const {
        return *(const float2 *)(this->d_ + block * 8 * N + 8 * j + 2 * t);
    }
};

/* One row, the same for every column. */
template <enum act_kind KIND, int PAD> struct x_one : x_segment<KIND, PAD> {
    __device__ x_one(const struct act &act, int row, int segment, const lane_pos &p)
        : x_segment<KIND, PAD>(act, row, segment, p) {
        this->d_ += row;
    }
    __device__ __forceinline__ uint2 q(int block, int) const { return this->q_at(block, 0); }
    __device__ __forceinline__ uint2 sum(int block, int) const { return this->sum_at(block, 0); }
    __device__ __forceinline__ uint2 hi(int block, int) const { return this->q_at(block, 0); }
    __device__ __forceinline__ uint2 lo(int block, int) const { return this->sum_at(block, 0); }
    __device__ __forceinline__ float2 d(int block, int) const {
        float d = this->d_[block * this->n()];
        return make_float2(d, d);
    }
};

#endif
