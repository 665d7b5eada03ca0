/* attention_mma - pieces of attention on tensor cores: packed rows of 448 + 64 values as f16, softmax
 * by tiles, fragments.
 *
 * What the result is, whichever kernel makes it: the token's rows in tiles of ROWS. Scores of a tile
 * are one f16 chain over the 512 values (rows are exact in f16, queries are rounded to it). Per head
 * the running maximum moves tile by tile; the tile's weights are rounded to f16, and outputs are scaled
 * by the maximum's move and then extended by the tile's chain. Tiles go in order. So scores may be
 * computed apart from the rest and outputs cut by values: the bits stay the same. */
#ifndef KERNELS_CUDA_ATTENTION_MMA_CUH
#define KERNELS_CUDA_ATTENTION_MMA_CUH

#include "kernels/cuda/attention.cuh"

enum { DIM = 512, ROT = 64, NOPE = DIM - ROT, ROW_BYTES = 592 };

/* f16 matrices in shared memory, in chunks of 8 values; the chunk's place depends on the row, so that
 * eight rows of a column lie in different banks. */
template <int CHUNKS> static __device__ __forceinline__ int swizzled(int row, int chunk) {
    return (row * CHUNKS + (chunk ^ (row & 7))) * 8;
}

static __device__ __forceinline__ void load_matrices(uint32_t *r, const __half *p) {
    uint32_t at = (uint32_t)__cvta_generic_to_shared(p);
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(at)
                 : "memory");
}

static __device__ __forceinline__ void load_matrices_transposed(uint32_t *r, const __half *p) {
    uint32_t at = (uint32_t)__cvta_generic_to_shared(p);
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(at)
                 : "memory");
}

static __device__ __forceinline__ void mma_16(float *c, const uint32_t *a, uint32_t b0, uint32_t b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
        "{%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

/* A: 16 rows x 16 values from (row0, chunk0 * 8). */
template <int CHUNKS>
static __device__ __forceinline__ void load_a(uint32_t *r, const __half *m, int row0, int chunk0) {
    load_matrices(r, m + swizzled<CHUNKS>(row0 + lane_id() % 16, chunk0 + lane_id() / 16));
}

/* B from rows of keys: 16 rows (two groups of columns) x 16 values; r[0], r[1]: the first group. */
template <int CHUNKS>
static __device__ __forceinline__ void load_b_rows(uint32_t *r, const __half *m, int row0,
                                                   int chunk0) {
    load_matrices(r, m + swizzled<CHUNKS>(row0 + lane_id() / 16 * 8 + lane_id() % 8,
                                          chunk0 + lane_id() / 8 % 2));
}

/* B from the same rows as values: 16 rows (k) x 16 values (two groups of columns). */
template <int CHUNKS>
static __device__ __forceinline__ void load_b_values(uint32_t *r, const __half *m, int row0,
                                                     int chunk0) {
    load_matrices_transposed(r, m + swizzled<CHUNKS>(row0 + lane_id() % 16, chunk0 + lane_id() / 16));
}

/* Four E4M3 codes times a power of two, exactly: the bits moved into f16 are the value times 2^-8. */
static __device__ __forceinline__ uint2 codes_to_halves(uint32_t codes, __half2 scale) {
    uint2 out;
    /* bytes to the halves' upper bytes */
    uint32_t low = __byte_perm(codes, 0, 0x1404), high = __byte_perm(codes, 0, 0x3424);
    low = (low & 0x80008000u) | (low >> 1 & 0x3f803f80u);
    high = (high & 0x80008000u) | (high >> 1 & 0x3f803f80u);
    __half2 a = __hmul2(*(__half2 *)&low, scale), b = __hmul2(*(__half2 *)&high, scale);
    out.x = *(uint32_t *)&a, out.y = *(uint32_t *)&b;
    return out;
}

/* 2^(e + 8) as a pair; e as stored. Rows are normed, so e stays far below 7. */
static __device__ __forceinline__ __half2 row_scale(uint8_t exponent) {
    int e = max(-14, min(15, (int)(int8_t)exponent + 8));
    return __half2half2(__ushort_as_half((unsigned short)((e + 15) << 10)));
}

/* A row's packed bytes (aligned to 16) to f16, by one warp: 16 codes per lane, then a pair of rope
 * values per lane. */
template <int CHUNKS>
static __device__ __forceinline__ void unpack_row(__half *m, int row, const uint8_t *packed) {
    int lane = lane_id();
    if (lane < NOPE / 16) {
        uint4 codes = *(const uint4 *)(packed + lane * 16);
        __half2 scale = row_scale(packed[NOPE + lane / 4]);
        uint2 a = codes_to_halves(codes.x, scale), b = codes_to_halves(codes.y, scale);
        uint2 c = codes_to_halves(codes.z, scale), d = codes_to_halves(codes.w, scale);
        *(uint4 *)(m + swizzled<CHUNKS>(row, 2 * lane)) = make_uint4(a.x, a.y, b.x, b.y);
        *(uint4 *)(m + swizzled<CHUNKS>(row, 2 * lane + 1)) = make_uint4(c.x, c.y, d.x, d.y);
    }
    const uint32_t *words = (const uint32_t *)(packed + NOPE) + 1 + lane;  /* rope starts 7 bytes in */
    *(uint32_t *)(m + swizzled<CHUNKS>(row, NOPE / 8 + lane / 4) + lane % 4 * 2) =
        __funnelshift_r(words[0], words[1], 24);
}

template <int CHUNKS> static __device__ __forceinline__ void clear_row(__half *m, int row) {
    for (int chunk = lane_id(); chunk < CHUNKS; chunk += 32)
        *(uint4 *)(m + swizzled<CHUNKS>(row, chunk)) = make_uint4(0, 0, 0, 0);
}

/* Queries of `heads` heads from head0 as f16; heads past the end are zero. */
template <int THREADS_>
static __device__ __forceinline__ void load_queries(__half *m, const float *q, int head0, int heads,
                                                    int n_head) {
    for (int i = (int)threadIdx.x; i < heads * (DIM / 8); i += THREADS_) {
        int head = i / (DIM / 8), chunk = i % (DIM / 8);
        __half2 h[4];
        for (int j = 0; j < 4; j++) h[j] = __half2half2(__ushort_as_half(0));
        if (head0 + head < n_head) {
            const float4 *from = (const float4 *)(q + (int64_t)(head0 + head) * DIM + chunk * 8);
            float4 a = from[0], b = from[1];
            h[0] = __floats2half2_rn(a.x, a.y), h[1] = __floats2half2_rn(a.z, a.w);
            h[2] = __floats2half2_rn(b.x, b.y), h[3] = __floats2half2_rn(b.z, b.w);
        }
        *(uint4 *)(m + swizzled<DIM / 8>(head, chunk)) = *(uint4 *)h;
    }
}

/* One head and one tile, by one warp: lane l has the scores of rows l and l + 32 (-inf: no such row).
 * Gives the weights as f16; m: running maximum, l: running sum, *scale: what outputs so far are
 * multiplied by. All lanes the same. */
static __device__ __forceinline__ void softmax_tile(float z0, float z1, float *m, float *l,
                                                    float *scale, __half *p0, __half *p1) {
    float top = fmaxf(*m, warp_max(fmaxf(z0, z1)));
    *scale = f32_exp(*m - top);
    *p0 = __float2half_rn(z0 == -INFINITY ? 0.0f : f32_exp(z0 - top));
    *p1 = __float2half_rn(z1 == -INFINITY ? 0.0f : f32_exp(z1 - top));
    *l = fmaf(*l, *scale, warp_sum(__half2float(*p0) + __half2float(*p1)));
    *m = top;
}

#endif
