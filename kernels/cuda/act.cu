/* Activations, prepared for the matrices: quantised or split once, then read by every tile of weights.
 *
 * A warp takes one stretch of one row: 128 values (Q8_0), 256 (Q8_K) or 512 (F16X2). The rounding is the
 * CPU backend's; the split into two f16 keeps 22 bits below the stretch's largest value, so that F16
 * weights meet what is as good as f32. */
#include "kernels/cuda/cuda.h"
#include "kernels/cuda/device.cuh"

enum { ACT_WARPS = 4 };

struct prepare_args {
    struct act act;
    const float *x;
    const int32_t *from;                           /* NULL: row r */
    const int32_t *n_dev;                          /* NULL: n */
    int64_t n_in;
};

/* The row of x that this block prepares, or NULL when there is none. */
static __device__ __forceinline__ const float *prepare_row(const struct prepare_args &a) {
    int r = (int)blockIdx.x;
    if (a.n_dev && r >= *a.n_dev) return NULL;
    int row = a.from ? a.from[r] : r;
    return row < 0 ? NULL : a.x + (int64_t)row * a.n_in;
}

static __device__ __forceinline__ int quantise(float v, int low) {
    return max(low, min(127, __float2int_rn(v)));
}

static __device__ __forceinline__ uint32_t four_bytes(int a, int b, int c, int d) {
    return (uint32_t)(a & 255) | (uint32_t)(b & 255) << 8 | (uint32_t)(c & 255) << 16 | (uint32_t)d << 24;
}

static __device__ __forceinline__ float abs_max(float4 v) {
    return fmaxf(fmaxf(fabsf(v.x), fabsf(v.y)), fmaxf(fabsf(v.z), fabsf(v.w)));
}

/* Four values per lane, a block of 32 in eight lanes. */
static __global__ void __launch_bounds__(ACT_WARPS * 32) act_q8_0_kernel(struct prepare_args a) {
    device_wait();
    const float *x = prepare_row(a);
    int64_t i = (((int64_t)blockIdx.y * ACT_WARPS + threadIdx.x / 32) * 32 + lane_id()) * 4;
    if (!x) return;
    float4 v = i < a.n_in ? *(const float4 *)(x + i) : make_float4(0, 0, 0, 0);
    float amax = abs_max(v);
    for (int step = 1; step < 8; step *= 2) amax = fmaxf(amax, __shfl_xor_sync(0xffffffffu, amax, step));
    if (i >= a.n_in) return;
    float d = amax / 127.0f, divisor = amax > 0 ? d : 1.0f;
    int64_t at = i / 32 * a.act.n_pad + blockIdx.x;
    *(uint32_t *)(a.act.q + at * 32 + i % 32) =
        four_bytes(quantise(v.x / divisor, -127), quantise(v.y / divisor, -127),
                   quantise(v.z / divisor, -127), quantise(v.w / divisor, -127));
    if (i % 32 == 0) a.act.d[at] = d;
}

/* Eight values per lane. The value of largest magnitude, the first on ties, becomes -127. */
static __global__ void __launch_bounds__(ACT_WARPS * 32) act_q8_k_kernel(struct prepare_args a) {
    device_wait();
    const float *x = prepare_row(a);
    int64_t block = (int64_t)blockIdx.y * ACT_WARPS + threadIdx.x / 32;
    if (!x || block * 256 >= a.n_in) return;
    float v[8];
    *(float4 *)v = *(const float4 *)(x + block * 256 + lane_id() * 8);
    *(float4 *)(v + 4) = *(const float4 *)(x + block * 256 + lane_id() * 8 + 4);
    float own = fmaxf(abs_max(*(float4 *)v), abs_max(*(float4 *)(v + 4))), amax = warp_max(own), first = 0;
    for (int j = 7; j >= 0; j--) first = fabsf(v[j]) == amax ? v[j] : first;
    unsigned lanes = __ballot_sync(0xffffffffu, own == amax);
    first = __shfl_sync(0xffffffffu, first, lanes ? __ffs((int)lanes) - 1 : 0);
    float inverse = amax > 0 ? -127.0f / first : 0.0f;
    int q[8], sum = 0;
    for (int j = 0; j < 8; j++) sum += q[j] = quantise(inverse * v[j], -128);
    sum += __shfl_xor_sync(0xffffffffu, sum, 1);
    int64_t kb = block * 8 + lane_id() / 4;
    uint2 bytes = make_uint2(four_bytes(q[0], q[1], q[2], q[3]), four_bytes(q[4], q[5], q[6], q[7]));
    *(uint2 *)(a.act.q + (kb * a.act.n_pad + blockIdx.x) * 32 + lane_id() % 4 * 8) = bytes;
    int64_t at = block * a.act.n_pad + blockIdx.x;
    if (lane_id() % 2 == 0) a.act.sum[at * 16 + lane_id() / 2] = __half_as_ushort(__int2half_rn(sum));
    if (lane_id() == 0) a.act.d[at] = amax > 0 ? 1.0f / inverse : 0.0f;
}

/* Sixteen values per lane: one group of the layout. */
static __global__ void __launch_bounds__(ACT_WARPS * 32) act_f16x2_kernel(struct prepare_args a) {
    device_wait();
    const float *x = prepare_row(a);
    int64_t segment = (int64_t)blockIdx.y * ACT_WARPS + threadIdx.x / 32, i = segment * 512 + lane_id() * 16;
    if (!x || segment * 512 >= a.n_in) return;
    float4 v[4];
    float amax = 0;
    for (int j = 0; j < 4; j++) {
        v[j] = i < a.n_in ? *(const float4 *)(x + i + 4 * j) : make_float4(0, 0, 0, 0);
        amax = fmaxf(amax, abs_max(v[j]));
    }
    amax = warp_max(amax);
    int e = max((int)(__float_as_uint(amax) >> 23) - 127 - 14, -100);  /* amax * 2^-e lies in [2^14, 2^15) */
    float down = pow2(-e);
    if (lane_id() == 0) a.act.d[segment * a.act.n_pad + blockIdx.x] = pow2(e);
    if (i >= a.n_in) return;
    __half hi[16], lo[16];
    for (int j = 0; j < 16; j++) {
        float value = ((const float *)v)[j] * down;
        hi[j] = __float2half_rn(value);
        lo[j] = __float2half_rn(value - __half2float(hi[j]));
    }
    int64_t at = (i / 16 * a.act.n_pad + blockIdx.x) * 16;
    for (int j = 0; j < 2; j++) {
        ((uint4 *)((uint16_t *)a.act.q + at))[j] = ((const uint4 *)hi)[j];
        ((uint4 *)(a.act.sum + at))[j] = ((const uint4 *)lo)[j];
    }
}

/* ---- memory ---- */

struct act_sizes {
    uint64_t q, d, sum;
};

static struct act_sizes act_sizes(enum act_kind kind, int64_t n_in, int64_t n_pad) {
    uint64_t values = (uint64_t)(n_in * n_pad), rows = (uint64_t)n_pad;
    struct act_sizes s = { values, values / 32 * 4, 0 };
    if (kind == ACT_Q8_K) s.d = values / 256 * 4, s.sum = values / 16 * 2;
    if (kind == ACT_F16X2) s.q = s.sum = values * 2, s.d = (uint64_t)(n_in + 511) / 512 * rows * 4;
    s.q = ALIGN_UP(s.q, (uint64_t)256), s.d = ALIGN_UP(s.d, (uint64_t)256),
    s.sum = ALIGN_UP(s.sum, (uint64_t)256);
    return s;
}

/* Tiles of up to 64 rows are read whole, also the last one: a tile's worth of room behind the end. */
uint64_t act_bytes(enum act_kind kind, int64_t n_in, int64_t n_pad) {
    struct act_sizes s = act_sizes(kind, n_in, n_pad);
    return s.q + s.d + s.sum + 64 * 64;
}

struct act act_at(void *memory, enum act_kind kind, int64_t n_in, int64_t n_pad) {
    struct act_sizes s = act_sizes(kind, n_in, n_pad);
    uint8_t *at = (uint8_t *)memory;
    struct act act = { (int8_t *)at, (float *)(at + s.q), (uint16_t *)(at + s.q + s.d), (int32_t)n_pad };
    if (kind == ACT_F16X2) {                       /* lo before d, so that a tile past its end stays inside */
        act.sum = (uint16_t *)(at + s.q);
        act.d = (float *)(at + s.q + s.sum);
    }
    return act;
}

void act_prepare(struct cuda *c, const struct act *act, enum act_kind kind, const float *x, int64_t n_in,
                 int32_t n, const int32_t *from, const int32_t *n_dev) {
    struct prepare_args a = { *act, x, from, n_dev, n_in };
    dim3 block(ACT_WARPS * 32);
    switch (kind) {
    case ACT_Q8_0:
        launch(c, act_q8_0_kernel, dim3((unsigned)n, blocks_for(n_in, ACT_WARPS * 128)), block, 0, a);
        break;
    case ACT_Q8_K:
        launch(c, act_q8_k_kernel, dim3((unsigned)n, blocks_for(n_in, ACT_WARPS * 256)), block, 0, a);
        break;
    case ACT_F16X2:
        launch(c, act_f16x2_kernel, dim3((unsigned)n, blocks_for(n_in, ACT_WARPS * 512)), block, 0, a);
        break;
    case ACT_KINDS: break;
    }
}

const struct act *act_of(struct cuda *c, enum act_kind kind, const float *x, int64_t n_in, int32_t n) {
    struct act_entry *entry = &c->act[kind];
    if (entry->x == x && entry->n_in == n_in && entry->n >= n) return &entry->act;
    int64_t n_pad = ALIGN_UP(n, 8);
    void *memory = cuda_scratch(c, (enum scratch_slot)(SCRATCH_ACT + kind), act_bytes(kind, n_in, n_pad));
    if (!memory) return NULL;
    *entry = act_entry{ x, n_in, n, act_at(memory, kind, n_in, n_pad) };
    act_prepare(c, &entry->act, kind, x, n_in, n, NULL, NULL);
    return &entry->act;
}

void act_forget(struct cuda *c, const void *begin, const void *end) {
    for (int kind = 0; kind < ACT_KINDS; kind++) {
        struct act_entry *entry = &c->act[kind];
        const uint8_t *first = (const uint8_t *)entry->x, *last = first + entry->n_in * entry->n * 4;
        if (entry->x && first < (const uint8_t *)end && (const uint8_t *)begin < last) *entry = act_entry{};
    }
}
