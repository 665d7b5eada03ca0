/* products - kernels over tiles (tiles.cuh), for few rows and for many.
 *
 * Few rows: memory is the limit, so k is cut over the warps of a block, each streaming one segment of
 * 16 weight rows; the sums meet in shared memory. The first weights are on their way before the kernel
 * waits for its predecessor. Many rows: arithmetic is the limit. A block is 128 weight rows x 64
 * columns: each warp owns 16 rows and reads its weights straight into registers, once for all columns;
 * activations come through shared memory, three stages ahead. */
#ifndef KERNELS_CUDA_PRODUCTS_CUH
#define KERNELS_CUDA_PRODUCTS_CUH

#include "kernels/cuda/tiles.cuh"

enum {
    WARPS = 8,
    THREADS = WARPS * 32, /* of a block with many rows */
    COLUMN_STRIDE = 20,   /* floats per column of a 16-row sum: lanes meet different banks */
    COLUMNS = 64,         /* of a block with many rows */
    GROUPS = COLUMNS / 8,
    STAGES = 3,
};

/* ---- few rows ---- */

/* A block takes a few tiles of 16 rows; an item is one segment of one tile. Warp w has the items w, w +
 * 8, ..., and its loads run AHEAD steps before its products, also from one item into the next. */
struct split {
    int n_segments, tiles, n_items;              /* of a block */
    /* items: about so many; 0: as suits the columns */
    __host__ __device__ split(int n_in, int columns, int items = 0) {
        n_segments = (n_in + SEGMENT - 1) / SEGMENT;
        if (!items) items = 2 * WARPS;
        tiles = n_segments >= items ? 1 : items / n_segments;
        if (columns > 16) tiles = n_segments >= WARPS ? 1 : WARPS / n_segments;      /* sums must fit */
        else tiles = tiles < 2 ? 2 : tiles / 2 * 2;  /* pairs are blocks of Q8_0 */
        n_items = tiles * n_segments;
    }
    /* tiles: of a block, as given */
    static __host__ __device__ struct split of_tiles(int n_in, int tiles) {
        struct split s(n_in, 8);
        s.tiles = tiles, s.n_items = tiles * s.n_segments;
        return s;
    }
    __host__ __device__ int shared_floats(int columns) const {
        return n_items * columns * COLUMN_STRIDE;
    }
};

/* One row alone: every column of the tensor cores gets it, and there is room for more loads. */
template <class T, int N, bool ONE> static __host__ __device__ constexpr int few_ahead() {
    return ONE ? T::AHEAD_ONE : N > 2 ? 2 : T::AHEAD;
}

/* An item of a warp: which tile of the block and which of its segments. */
struct place {
    int tile, segment;
    __device__ place(int item, int n_segments) : tile(item / n_segments), segment(item % n_segments) {}
    /* the same, `by` items on */
    __device__ __forceinline__ void move(const place &by, int n_segments) {
        tile += by.tile, segment += by.segment;
        if (segment >= n_segments) segment -= n_segments, tile++;
    }
};

/* Weights on their way: the next AHEAD steps. */
template <class T, int AHEAD> struct ahead {
    typename T::regs w[AHEAD];
    __device__ __forceinline__ void load(int i, const uint8_t *tile, int n_in, int segment,
                                         const lane_pos &p) {
        int step = segment * (SEGMENT / T::STEP) + i;
        if (tile && step < n_in / T::STEP) T::load(w[i % AHEAD], tile, n_in, step, p);
    }
    __device__ __forceinline__ void start(const uint8_t *tile, int n_in, int segment, const lane_pos &p) {
#pragma unroll
        for (int i = 0; i < AHEAD; i++) load(i, tile, n_in, segment, p);
    }
};

/* The warp's items. work.tile(t): weights of the block's tile t, or NULL; work.x(t, segment): the
 * activations. ONE: of one row. Sums to shared[item][column][row]. a: the first item's start. */
template <class T, int N, bool ONE, class WORK, int AHEAD>
static __device__ __forceinline__ void
items_multiply(float *shared, const WORK &work, int n_in, const struct split &split, int n_items,
               ahead<T, AHEAD> &a, const lane_pos &p, const uint32_t *lut) {
    const int STEPS = SEGMENT / T::STEP;
    struct sums<N> s;
    int item = (int)threadIdx.x / 32;
    if (item >= n_items) return;
    place at(item, split.n_segments), next = at, by(WARPS, split.n_segments);
    const uint8_t *tile = work.tile(at.tile);
    for (; item < n_items; item += WARPS) {
        next.move(by, split.n_segments);
        const uint8_t *next_tile = item + WARPS < n_items ? work.tile(next.tile) : NULL;
        int n = tile ? min(STEPS, n_in / T::STEP - at.segment * STEPS) : 0;
        auto x = work.x(at.tile, at.segment);
        s.clear();
#pragma unroll
        for (int i = 0; i < STEPS; i++) {
            if (i < n) T::template multiply<N>(s, a.w[i % AHEAD], x, i, N, p, lut);
            if (i + AHEAD < STEPS) a.load(i + AHEAD, tile, n_in, at.segment, p);
            else a.load(i + AHEAD - STEPS, next_tile, n_in, next.segment, p);
        }
        if (ONE) {
            float *to = shared + item * COLUMN_STRIDE + p.g;
            if (T::KIND == ACT_F16X2 && tile) scale_segment(s.acc[0], x.d(0, 0));
            if (p.t == 0) to[0] = s.acc[0][0], to[8] = s.acc[0][2];
        } else {
            float *to = shared + item * N * 8 * COLUMN_STRIDE;
#pragma unroll
            for (int j = 0; j < N; j++) {
                if (T::KIND == ACT_F16X2 && tile) scale_segment(s.acc[j], x.d(0, j));
                float *column = to + (8 * j + 2 * p.t) * COLUMN_STRIDE + p.g;
                column[0] = s.acc[j][0], column[COLUMN_STRIDE] = s.acc[j][1];
                column[8] = s.acc[j][2], column[COLUMN_STRIDE + 8] = s.acc[j][3];
            }
        }
        at = next, tile = next_tile;
    }
}

/* ---- IQ2_XXS, one row ---- */

/* With one row the tensor cores would compute seven columns for nothing. So column g takes the
 * activations of group g instead, and eight products in one chain leave the sums of all groups of a block,
 * each in its column, for which a group's products get zeros in the other columns. Integer sums are exact,
 * so the bits are those of items_multiply. */
struct one_row {
    const int8_t *x;                               /* the row's first group, this lane's part */
    const float *d;
    int n_pad;
    uint32_t column[8];                            /* 1 for this lane's own column, else 0 */
    __device__ one_row(const struct act &act, int row, const lane_pos &p)
        : x(act.q + (int64_t)row * 32 + p.t * 8), d(act.d + row), n_pad(act.n_pad) {
#pragma unroll
        for (int i = 0; i < 8; i++) column[i] = p.g == i;
    }
};

/* A segment on its way: two blocks. Lane t of a quad needs the scales of row g + 8 (t % 2), block t / 2. */
struct one_item {
    uint4 q[2][2];                                 /* blocks; rows g, g+8 */
    uint2 x[2];                                    /* this lane's part of group g */
    uint32_t d;
    float dx;
    bool there;
};

/* Multiplied, not selected: the pipe of selections is the busy one. */
static __device__ __forceinline__ uint32_t times(uint32_t x, uint32_t one_or_zero) {
    uint32_t out;
    asm("mul.lo.u32 %0, %1, %2;" : "=r"(out) : "r"(x), "r"(one_or_zero));
    return out;
}

template <class T>
static __device__ __forceinline__ void one_load(struct one_item *item, const uint8_t *tile, int n_in,
                                                int segment, const one_row &x, const lane_pos &p) {
    item->there = tile;
    if (!tile) return;
#pragma unroll
    for (int i = 0; i < 2; i++) {
        T::load_codes(item->q[i], tile, segment * 2 + i, p);
        item->x[i] = *(const uint2 *)(x.x + ((segment * 2 + i) * 8 + p.g) * x.n_pad * 32);
    }
    int block = segment * 2 + p.t / 2;
    item->d = load4(T::scales_at(tile, n_in, block, p));
    item->dx = x.d[block * x.n_pad];
}

/* Sums of a block's groups 2t and 2t + 1 times their scales: rows g and g + 8. */
template <class T>
static __device__ __forceinline__ int2 one_multiply(const uint4 *q, uint2 x, const one_row &row,
                                                    const uint32_t *copy) {
    int c[4] = { 0, 0, 0, 0 };
#pragma unroll
    for (int i = 0; i < 8; i++) {
        uint32_t v0 = T::selectors(q[0], i, copy), v1 = T::selectors(q[1], i, copy);
        mma_s8(c, T::values(v0), T::values(v1), T::values(v0 >> 16), T::values(v1 >> 16),
               make_uint2(times(x.x, row.column[i]), times(x.y, row.column[i])));
    }
    return make_int2(c[0] * T::own_scale(q[0].z) + c[1] * T::own_scale(q[0].w),
                     c[2] * T::own_scale(q[1].z) + c[3] * T::own_scale(q[1].w));
}

/* A segment's sums to shared memory. The quad's sums of two rows and two blocks are added crosswise, so
 * that each lane ends with one of the four. */
template <class T>
static __device__ __forceinline__ void one_finish(float *to, const struct one_item &item, const one_row &row,
                                                  const lane_pos &p, const uint32_t *copy) {
    int2 first = one_multiply<T>(item.q[0], item.x[0], row, copy),
         second = one_multiply<T>(item.q[1], item.x[1], row, copy);
    bool upper = p.t & 1, later = p.t & 2;
    int keep0 = upper ? first.y : first.x, keep1 = upper ? second.y : second.x;
    keep0 += __shfl_xor_sync(0xffffffffu, upper ? first.x : first.y, 1);
    keep1 += __shfl_xor_sync(0xffffffffu, upper ? second.x : second.y, 1);
    int sum = later ? keep1 : keep0;
    sum += __shfl_xor_sync(0xffffffffu, later ? keep0 : keep1, 2);
    float d = f16_value((uint16_t)(upper ? item.d >> 16 : item.d & 0xffff)) * 0.125f, scale = d * item.dx;
    float acc = fmaf((float)sum, scale, 0.0f), before = __shfl_xor_sync(0xffffffffu, acc, 2);
    if (!later) return;
    to[p.g + 8 * upper] = item.there ? fmaf((float)sum, scale, before) : 0.0f;
}

/* What items_multiply does for ONE. Two items are on their way at any time. */
template <class T, class WORK>
static __device__ __forceinline__ void items_multiply_one(float *shared, const WORK &work, int n_in,
                                                          const struct split &split, int n_items,
                                                          const one_row &x, const lane_pos &p,
                                                          const uint32_t *lut) {
    const uint32_t *copy = T::table(lut, p);
    struct one_item ahead[2];
    int item = (int)threadIdx.x / 32;
    place next(item, split.n_segments), by(WARPS, split.n_segments);
#pragma unroll
    for (int i = 0; i < 2; i++) {
        one_load<T>(&ahead[i], item + i * WARPS < n_items ? work.tile(next.tile) : NULL, n_in,
                    next.segment, x, p);
        next.move(by, split.n_segments);
    }
    for (; item < n_items; item += 2 * WARPS)
#pragma unroll
        for (int i = 0; i < 2; i++) {
            int own = item + i * WARPS;
            if (own >= n_items) break;
            one_finish<T>(shared + own * COLUMN_STRIDE, ahead[i], x, p, copy);
            one_load<T>(&ahead[i], own + 2 * WARPS < n_items ? work.tile(next.tile) : NULL, n_in,
                        next.segment, x, p);
            next.move(by, split.n_segments);
        }
}

/* The sum of a tile's segments, in order, at (column, row). */
static __device__ __forceinline__ float segments_sum(const float *shared, int n_segments,
                                                     int columns, int tile, int column, int row) {
    float total = 0;
    for (int s = tile * n_segments; s < (tile + 1) * n_segments; s++)
        total += shared[(s * columns + column) * COLUMN_STRIDE + row];
    return total;
}

/* ---- many rows ---- */

static __device__ __forceinline__ void copy16_async(void *shared, const void *global) {
    uint32_t to = (uint32_t)__cvta_generic_to_shared(shared);
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(global) : "memory");
}

static __device__ __forceinline__ void copies_end_stage() {
    asm volatile("cp.async.commit_group;" ::: "memory");
}

template <int LEFT> static __device__ __forceinline__ void copies_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(LEFT) : "memory");
}

/* One stage of activations in shared memory: 64 columns x STAGE_K values. */
template <enum act_kind KIND> struct x_stage {
    static const int STAGE_K = KIND == ACT_Q8_0 ? 128 : KIND == ACT_Q8_K ? 256 : 64;
    /* F16X2: hi, then lo */
    static const int Q_BYTES = KIND == ACT_F16X2 ? STAGE_K * COLUMNS * 4 : STAGE_K * COLUMNS;
    static const int D_BYTES = KIND == ACT_Q8_0   ? STAGE_K / 32 * COLUMNS * 4
                               : KIND == ACT_Q8_K ? COLUMNS * 4
                                                  : 0;
    static const int SUM_BYTES = KIND == ACT_Q8_K ? COLUMNS * 32 : 0;
    static const int BYTES = Q_BYTES + D_BYTES + SUM_BYTES;
    static const int BLOCK_BYTES = COLUMNS * 32;   /* 64 columns of a block of 32 int8 or 16 halves */

    const uint8_t *stage;
    int g, t;
    __device__ x_stage(const uint8_t *shared, const lane_pos &p) : stage(shared), g(p.g), t(p.t) {}

    /* Blocks count from the stage's first: callers multiply steps from 0. */
    __device__ __forceinline__ uint2 q(int block, int j) const {
        return *(const uint2 *)(stage + block * BLOCK_BYTES + (8 * j + g) * 32 + t * 8);
    }
    __device__ __forceinline__ float2 d(int block, int j) const {
        return *(const float2 *)(stage + Q_BYTES + (block * COLUMNS + 8 * j + 2 * t) * 4);
    }
    __device__ __forceinline__ uint2 sum(int block, int j) const {
        return *(const uint2 *)(stage + Q_BYTES + D_BYTES + block * BLOCK_BYTES + (8 * j + g) * 32 + t * 8);
    }
    __device__ __forceinline__ uint2 hi(int block, int j) const {
        return q(block, j);
    }
    __device__ __forceinline__ uint2 lo(int block, int j) const {
        return q(block + STAGE_K / 16, j);
    }

    /* PARTS pieces of PIECE bytes; in the stage they stand `stride` bytes apart. No loop is left of it. */
    template <int PIECE, int PARTS>
    static __device__ __forceinline__ void copy_part(uint8_t *to, const uint8_t *from, int stride,
                                                     int64_t from_stride) {
        const int EACH = PIECE / 16, ALL = PARTS * EACH;
#pragma unroll
        for (int i = 0; i < ALL; i += THREADS) {
            int at = i + (int)threadIdx.x, part = at / EACH;
            if (i + THREADS > ALL && at >= ALL) break;
            copy16_async(to + part * stride + at % EACH * 16, from + part * from_stride + at % EACH * 16);
        }
    }
    /* The first N groups of columns. */
    template <int N>
    static __device__ __forceinline__ void copy(uint8_t *to, const struct act &act, int column, int stage) {
        const int PIECE = N * 8 * 32, BLOCKS = KIND == ACT_F16X2 ? STAGE_K / 16 : STAGE_K / 32;
        const int SCALES = KIND == ACT_Q8_0 ? STAGE_K / 32 : 1;
        int64_t n = act.n_pad, at = ((int64_t)stage * BLOCKS * n + column) * 32;
        copy_part<PIECE, BLOCKS>(to, (const uint8_t *)act.q + at, BLOCK_BYTES, n * 32);
        if (KIND == ACT_F16X2)
            copy_part<PIECE, BLOCKS>(to + Q_BYTES / 2, (const uint8_t *)act.sum + at, BLOCK_BYTES, n * 32);
        if (KIND == ACT_Q8_0 || KIND == ACT_Q8_K)
            copy_part<N * 8 * 4, SCALES>(to + Q_BYTES,
                                         (const uint8_t *)(act.d + (int64_t)stage * SCALES * n + column),
                                         COLUMNS * 4, n * 4);
        if (KIND == ACT_Q8_K)
            copy_part<PIECE, 1>(to + Q_BYTES + D_BYTES,
                                (const uint8_t *)(act.sum + ((int64_t)stage * n + column) * 16), 0, 0);
    }
};

/* Totals of N groups of 8 columns for this thread's fragment, in shared memory: [group * 4 + i][thread].
 * Columns without a row are multiplied, too: with a branch around each group a product takes twice the
 * instructions, and none overlaps the next. */
template <class T, int N>
static __device__ __forceinline__ void columns_multiply(uint8_t *shared, const uint8_t *tile, int n_in,
                                                        const struct act &act, int column, const lane_pos &p,
                                                        const uint32_t *lut) {
    typedef x_stage<T::KIND> stage_t;
    const int STEPS = stage_t::STAGE_K / T::STEP, STAGES_PER_SEGMENT = SEGMENT / stage_t::STAGE_K;
    float *total = (float *)shared + threadIdx.x;
    uint8_t *stages = shared + GROUPS * 4 * THREADS * sizeof(float);
    int n_stages = n_in / stage_t::STAGE_K;
    struct sums<N> s;
    typename T::regs w;
    s.clear();
#pragma unroll
    for (int i = 0; i < N * 4; i++) total[i * THREADS] = 0;
    T::load(w, tile, n_in, 0, p);
#pragma unroll
    for (int i = 0; i < STAGES - 1; i++) {
        if (i < n_stages) stage_t::template copy<N>(stages + i * stage_t::BYTES, act, column, i);
        copies_end_stage();
    }
    for (int stage = 0; stage < n_stages; stage++) {
        copies_wait<STAGES - 2>();
        __syncthreads();                           /* this stage is here, and the one before it is used up */
        if (stage + STAGES - 1 < n_stages)
            stage_t::template copy<N>(stages + (stage + STAGES - 1) % STAGES * stage_t::BYTES, act, column,
                                      stage + STAGES - 1);
        copies_end_stage();
        stage_t x(stages + stage % STAGES * stage_t::BYTES, p);
#pragma unroll
        for (int i = 0; i < STEPS; i++) {
            typename T::regs next;
            int step = stage * STEPS + i;
            if (step + 1 < n_in / T::STEP) T::load(next, tile, n_in, step + 1, p);
            T::template multiply<N>(s, w, x, i, N, p, lut);
            w = next;
        }
        if ((stage + 1) % STAGES_PER_SEGMENT != 0 && stage + 1 < n_stages) continue;
#pragma unroll
        for (int j = 0; j < N; j++) {
            if (T::KIND == ACT_F16X2)
                scale_segment(s.acc[j],
                              *(const float2 *)(act.d +
                                                (int64_t)(stage / STAGES_PER_SEGMENT) * act.n_pad +
                                                column + 8 * j + 2 * p.t));
#pragma unroll
            for (int i = 0; i < 4; i++) total[(j * 4 + i) * THREADS] += s.acc[j][i], s.acc[j][i] = 0;
        }
    }
}

template <class T> static constexpr int columns_shared_bytes() {
    return GROUPS * 4 * THREADS * (int)sizeof(float) + STAGES * x_stage<T::KIND>::BYTES;
}

/* Row and column within the block's 128 x 64 that total[j * 4 + i] of this thread belongs to. */
static __device__ __forceinline__ int fragment_row(int i, const lane_pos &p) {
    return p.g + (i >= 2 ? 8 : 0);
}

static __device__ __forceinline__ int fragment_column(int j, int i, const lane_pos &p) {
    return 8 * j + 2 * p.t + (i & 1);
}

#endif
