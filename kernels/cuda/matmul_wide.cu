/* Products of Q8_0 weights with many rows, the bulk of a prompt's dense work.
 *
 * A block is 128 weight rows x 64 columns of the batch; a warp owns two tiles of 16 rows, so that what it
 * reads of the activations serves two products: with one tile the reads of shared memory, 6 per product
 * and multiprocessor, are the limit. Weights come straight into registers, each piece replaced by the next
 * step's once it is used up. Activations go through shared memory, two stages ahead. Sums are tiles.cuh's,
 * to the same bits. */
#include "kernels/cuda/matmul_wide.cuh"
#include "kernels/cuda/products.cuh"

enum {
    WIDE_WARPS = 4, WIDE_THREADS = WIDE_WARPS * 32, WIDE_TILES = 2, WIDE_BLOCKS = 4,
    WIDE_STEP = 128,                               /* values of k in a stage: four blocks */
    WIDE_Q_BYTES = WIDE_STEP * COLUMNS, WIDE_BYTES = WIDE_Q_BYTES + WIDE_BLOCKS * COLUMNS * 4,
    WIDE_SUMS = WIDE_TILES * GROUPS * 4,           /* of a thread */
    WIDE_SHARED = WIDE_SUMS * WIDE_THREADS * 4 + STAGES * WIDE_BYTES,
};

/* Four blocks of 32 of 64 columns, then their scales. */
static __device__ __forceinline__ void wide_copy(uint8_t *to, const struct act &act, int column, int stage) {
    int64_t n = act.n_pad, block0 = (int64_t)stage * WIDE_BLOCKS;
#pragma unroll
    for (int i = 0; i < WIDE_Q_BYTES / 16 / WIDE_THREADS; i++) {
        int at = ((int)threadIdx.x + i * WIDE_THREADS) * 16, block = at / (COLUMNS * 32);
        copy16_async(to + at, act.q + ((block0 + block) * n + column) * 32 + at % (COLUMNS * 32));
    }
    int at = (int)threadIdx.x * 4, block = at / COLUMNS;
    if (block < WIDE_BLOCKS)
        copy16_async(to + WIDE_Q_BYTES + at * 4, act.d + (block0 + block) * n + column + at % COLUMNS);
    copies_end_stage();
}

struct wide_weights {
    const uint8_t *q, *d;                          /* this lane's part of the tile */
    __device__ __forceinline__ wide_weights(const uint8_t *tile, int n_in, const lane_pos &p)
        : q(tile + p.lane * 16), d(tile + (int64_t)n_in * 16 + p.g * 16) {}
    __device__ __forceinline__ uint4 codes(int step, int block) const {
        return load16(q + (int64_t)step * 2048 + block * 512);
    }
    __device__ __forceinline__ uint4 scales(int step) const {
        return __ldg((const uint4 *)(d + (int64_t)step * 128));
    }
};

/* Grid: columns / 64 x rows / 128. */
static __global__ void __launch_bounds__(WIDE_THREADS, 2)
    wide_kernel(const __grid_constant__ struct wide_run m) {
    extern __shared__ __align__(16) uint8_t memory[];
    lane_pos p;
    device_wait();
    int n_tiles = m.n_out / TILE_ROWS, first = (int)blockIdx.y * WIDE_WARPS * WIDE_TILES,
        tile0 = first + (int)threadIdx.x / 32 * WIDE_TILES, column = (int)blockIdx.x * COLUMNS,
        n_steps = m.n_in / WIDE_STEP;
    /* A block of 128 rows lies in one group; tiles past the end repeat the last one and are not written. */
    struct act act = act_from(m.act, ACT_Q8_0, first / m.group_tiles * m.n_in);
    int64_t tile_bytes = (int64_t)n_steps * tile_q8_0::STEP_BYTES;
    wide_weights w[WIDE_TILES] = {
        wide_weights(m.weight + min(tile0, n_tiles - 1) * tile_bytes, m.n_in, p),
        wide_weights(m.weight + min(tile0 + 1, n_tiles - 1) * tile_bytes, m.n_in, p),
    };
    float *total = (float *)memory + threadIdx.x, acc[WIDE_TILES][GROUPS][4];
    uint8_t *stages = memory + WIDE_SUMS * WIDE_THREADS * sizeof(float);
    uint4 q[WIDE_TILES][WIDE_BLOCKS], d[WIDE_TILES];
    float_start start;
#pragma unroll
    for (int t = 0; t < WIDE_TILES; t++) {
        d[t] = w[t].scales(0);
#pragma unroll
        for (int i = 0; i < WIDE_BLOCKS; i++) q[t][i] = w[t].codes(0, i);
#pragma unroll
        for (int i = 0; i < GROUPS * 4; i++)
            acc[t][i / 4][i % 4] = 0, total[(t * GROUPS * 4 + i) * WIDE_THREADS] = 0;
    }
#pragma unroll
    for (int i = 0; i < STAGES - 1; i++) {
        if (i < n_steps) wide_copy(stages + i * WIDE_BYTES, act, column, i);
        else copies_end_stage();
    }
    for (int step = 0; step < n_steps; step++) {
        copies_wait<STAGES - 2>();
        __syncthreads();                           /* this stage is here, and the one before it is used up */
        if (step + STAGES - 1 < n_steps)
            wide_copy(stages + (step + STAGES - 1) % STAGES * WIDE_BYTES, act, column, step + STAGES - 1);
        else copies_end_stage();
        const uint8_t *x = stages + step % STAGES * WIDE_BYTES;
        int next = min(step + 1, n_steps - 1);
        uint4 d_next[WIDE_TILES] = { w[0].scales(next), w[1].scales(next) };
#pragma unroll
        for (int i = 0; i < WIDE_BLOCKS; i++) {
            float2 dw[WIDE_TILES], shift[WIDE_TILES];
#pragma unroll
            for (int t = 0; t < WIDE_TILES; t++) {
                dw[t] = half_pair(word(d[t], i));
                shift[t] = shift_for(dw[t]);
            }
#pragma unroll
            for (int j = 0; j < GROUPS; j++) {
                uint2 xq = *(const uint2 *)(x + i * (COLUMNS * 32) + (8 * j + p.g) * 32 + p.t * 8);
                float2 dx = *(const float2 *)(x + WIDE_Q_BYTES + (i * COLUMNS + 8 * j + 2 * p.t) * 4);
#pragma unroll
                for (int t = 0; t < WIDE_TILES; t++) {
                    int c[4];
                    mma_s8_from(c, q[t][i].x, q[t][i].y, q[t][i].z, q[t][i].w, xq, start.bits);
                    add_started(acc[t][j], c, dw[t], shift[t], dx);
                }
            }
#pragma unroll
            for (int t = 0; t < WIDE_TILES; t++) q[t][i] = w[t].codes(next, i);
        }
#pragma unroll
        for (int t = 0; t < WIDE_TILES; t++) d[t] = d_next[t];
        if ((step + 1) % (SEGMENT / WIDE_STEP) != 0 && step + 1 < n_steps) continue;
#pragma unroll
        for (int i = 0; i < WIDE_SUMS; i++) {
            float *sum = &acc[i / (GROUPS * 4)][i / 4 % GROUPS][i % 4];
            total[i * WIDE_THREADS] += *sum, *sum = 0;
        }
    }
#pragma unroll
    for (int t = 0; t < WIDE_TILES; t++) {
        if (tile0 + t >= n_tiles) break;
        float *out = m.out + (tile0 + t) * TILE_ROWS;
#pragma unroll 4
        for (int i = 0; i < GROUPS * 4; i++) {
            int to = column + fragment_column(i / 4, i % 4, p);
            if (to < m.n)
                out[(int64_t)to * m.n_out + fragment_row(i % 4, p)] =
                    total[(t * GROUPS * 4 + i) * WIDE_THREADS];
        }
    }
}

void run_matmul_wide(struct cuda *c, const struct wide_run *r) {
    dim3 grid(blocks_for(r->n, COLUMNS), blocks_for(r->n_out / TILE_ROWS, WIDE_WARPS * WIDE_TILES));
    launch(c, wide_kernel, grid, dim3(WIDE_THREADS), WIDE_SHARED, *r);
}
