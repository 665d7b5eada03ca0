/* The routed experts.
 *
 *   gate, up -> hidden[pair], weighted        products over entries (tiles), or pair by pair (anything else)
 *   down     -> parts[pair]
 *   sum      the tree over expert numbers, per row
 *
 * Few rows: activations are read through the pairs' row numbers, and the hidden rows are quantised by
 * the blocks that read them; many rows: both are prepared in the order of pairs. */
#include "kernels/cuda/act.cuh"
#include "kernels/cuda/decode.cuh"
#include "kernels/cuda/moe.cuh"
#include "kernels/cuda/products.cuh"

enum { SUM_THREADS = 256 };

struct experts_run {
    struct lists l;
    const uint8_t *gate, *up, *down;
    struct act x, hidden_act;                    /* x: rows (few) or pairs (many); hidden_act: many */
    float *hidden, *parts;                       /* [slots][n_ff], [slots][n_embd] */
    int n_ff, n_embd;
    int gate_tiles, down_tiles;                  /* few: of a block */
    int64_t down_bytes;                          /* of one expert, to be fetched early; 0: not */
    float clamp;
    const uint32_t *lut;
};

/* ---- few rows: entries of up to 8 pairs ---- */

/* Activations in the order of rows, read through an entry's row numbers. */
template <enum act_kind KIND> struct x_pairs : x_segment<KIND, 0> {
    bool here;                                   /* column g has a row */
    int first, second;                           /* rows of columns 2t, 2t+1 */
    __device__ x_pairs(const struct act &a, const struct entry &e, int segment, const lane_pos &p)
        : x_segment<KIND, 0>(a, p.g < e.n ? e.row[p.g] : 0, segment, p), here(p.g < e.n),
          first(2 * p.t < e.n ? e.row[2 * p.t] : 0), second(2 * p.t + 1 < e.n ? e.row[2 * p.t + 1] : 0) {}
    __device__ __forceinline__ uint2 q(int block, int) const {
        return here ? this->q_at(block, 0) : make_uint2(0, 0);
    }
    __device__ __forceinline__ uint2 sum(int block, int) const {
        return here ? this->sum_at(block, 0) : make_uint2(0, 0);
    }
    __device__ __forceinline__ uint2 hi(int block, int j) const { return q(block, j); }
    __device__ __forceinline__ uint2 lo(int block, int j) const { return sum(block, j); }
    __device__ __forceinline__ float2 d(int block, int) const {
        const float *d = this->d_ + block * this->n();
        return make_float2(d[first], d[second]);
    }
};

/* One segment of up to 8 hidden rows, quantised by the block that multiplies it. Blocks count from the
 * segment's first. */
struct hidden_segment {
    __align__(16) int8_t q[ENTRY_PAIRS_FEW][SEGMENT];
    __align__(16) uint16_t sum[ENTRY_PAIRS_FEW][SEGMENT / 16];
    float d[ENTRY_PAIRS_FEW][SEGMENT / 32];      /* per 256 or per 32 */
};

template <enum act_kind KIND> struct x_hidden {
    const struct hidden_segment *s;
    int n, g, t;
    __device__ __forceinline__ uint2 q(int block, int) const {
        return g < n ? *(const uint2 *)(s->q[g] + block * 32 + t * 8) : make_uint2(0, 0);
    }
    __device__ __forceinline__ uint2 sum(int block, int) const {
        return g < n ? *(const uint2 *)(s->sum[g] + block * 16 + t * 4) : make_uint2(0, 0);
    }
    __device__ __forceinline__ float2 d(int block, int) const {
        return make_float2(s->d[2 * t][block], s->d[2 * t + 1][block]);
    }
};

/* By the block, a stretch per warp at a time. x: the first row, rows n_ff apart. */
template <enum act_kind KIND>
static __device__ __forceinline__ void quantise_hidden(struct hidden_segment *to, const float *x, int n,
                                                       int n_ff) {
    const int STRETCH = KIND == ACT_Q8_0 ? ACT_STRETCH_Q8_0 : 256, PARTS = SEGMENT / STRETCH;
    for (int s = (int)threadIdx.x / 32; s * STRETCH < n_ff; s += WARPS)
        for (int j = 0; j < n; j++) {
            struct hidden_segment *h = to + s / PARTS;
            struct act act = { h->q[j], h->d[j], h->sum[j], 1 };         /* as a row with no rows beside it */
            const float *from = x + (int64_t)j * n_ff + s / PARTS * SEGMENT;
            if (KIND == ACT_Q8_0) act_q8_0(act, 0, from, n_ff - s / PARTS * SEGMENT, s % PARTS);
            else act_q8_k(act, 0, from, s % PARTS);
        }
}

/* The gate's tiles, then the up matrix's of the same rows. */
template <class T> struct gate_up_work {
    const struct experts_run &a;
    const struct entry &entry;
    int tile0, n_tiles;
    const lane_pos &p;
    __device__ __forceinline__ const uint8_t *tile(int i) const {
        int tile = tile0 + (i < a.gate_tiles ? i : i - a.gate_tiles);
        if (tile >= n_tiles) return NULL;
        int64_t at = ((int64_t)entry.expert * n_tiles + tile) * (a.n_embd / T::STEP) * T::STEP_BYTES;
        return (i < a.gate_tiles ? a.gate : a.up) + at;
    }
    __device__ __forceinline__ x_pairs<T::KIND> x(int, int segment) const {
        return x_pairs<T::KIND>(a.x, entry, segment, p);
    }
};

template <class T> struct gate_up_one : gate_up_work<T> {
    __device__ gate_up_one(const gate_up_work<T> &work) : gate_up_work<T>(work) {}
    __device__ __forceinline__ x_one<T::KIND, 0> x(int, int segment) const {
        return x_one<T::KIND, 0>(this->a.x, this->entry.row[0], segment, this->p);
    }
};

/* An entry of one row. */
template <class T>
static __device__ __forceinline__ void gate_up_multiply_one(float *shared, const gate_up_work<T> &work,
                                                            const struct split &split, int n_items,
                                                            const uint32_t *lut) {
    const struct experts_run &a = work.a;
    if constexpr (T::TYPE == DTYPE_IQ2_XXS) {
        one_row x(a.x, work.entry.row[0], work.p);
        items_multiply_one<T>(shared, work, a.n_embd, split, n_items, x, work.p, lut);
    } else {
        place start((int)threadIdx.x / 32, split.n_segments);
        ahead<T, few_ahead<T, 1, true>()> first;
        first.start(work.tile(start.tile), a.n_embd, start.segment, work.p);
        items_multiply<T, 1, true>(shared, gate_up_one<T>(work), a.n_embd, split, n_items, first, work.p,
                                   lut);
    }
}

/* One work: a group of row tiles of an entry. */
template <class T>
static __device__ __forceinline__ void gate_up_work_run(const struct experts_run &a, int work_i, int groups,
                                                        const struct split &split, float *shared,
                                                        struct entry *entry, const lane_pos &p,
                                                        const uint32_t *lut) {
    if (threadIdx.x < sizeof *entry / 4)
        ((int32_t *)entry)[threadIdx.x] = ((const int32_t *)&a.l.entries[work_i / groups])[threadIdx.x];
    __syncthreads();
    int tile0 = work_i % groups * split.tiles, n_tiles = a.n_ff / TILE_ROWS, n_items = 2 * split.n_items;
    gate_up_work<T> work = { a, *entry, tile0, n_tiles, p };
    bool one = entry->n == 1 && a.n_embd % SEGMENT == 0;
    if (a.down_bytes)                              /* for few_down_kernel: this work's share */
        fetch_to_l2(a.down + (int64_t)entry->expert * a.down_bytes, (uint64_t)a.down_bytes,
                    (uint32_t)(work_i % groups), (uint32_t)groups);
    if (one) gate_up_multiply_one<T>(shared, work, split, n_items, lut);
    else {
        place start((int)threadIdx.x / 32, split.n_segments);
        ahead<T, few_ahead<T, 1, false>()> first;
        first.start(work.tile(start.tile), a.n_embd, start.segment, p);
        items_multiply<T, 1, false>(shared, work, a.n_embd, split, n_items, first, p, lut);
    }
    int columns = one ? 1 : 8;
    __syncthreads();
    for (int i = (int)threadIdx.x; i < split.tiles * entry->n * TILE_ROWS; i += THREADS) {
        int row = i % TILE_ROWS, column = i / TILE_ROWS % entry->n, tile = i / (TILE_ROWS * entry->n);
        if (tile0 + tile >= n_tiles) continue;
        float gate = segments_sum(shared, split.n_segments, columns, tile, column, row);
        float up = segments_sum(shared, split.n_segments, columns, split.tiles + tile, column, row);
        a.hidden[(int64_t)(entry->first + column) * a.n_ff + (tile0 + tile) * TILE_ROWS + row] =
            entry->weight[column] * swiglu(gate, up, a.clamp);
    }
}

/* A table is filled once for many works. Types without one have no registers left for a loop: a block
 * each. */
template <class T> static __host__ __device__ constexpr bool gate_up_loops() {
    return T::TYPE == DTYPE_IQ2_XXS;
}

/* Grid: as many blocks as fit at once, each of which takes every so many-th work; or a block for each. */
template <class T>
static __global__ void __launch_bounds__(THREADS, 2)
    few_gate_up_kernel(const __grid_constant__ struct experts_run a) {
    extern __shared__ __align__(16) float shared[];
    __shared__ __align__(16) uint32_t lut[T::LUT];
    __shared__ struct entry entry;
    load_table<T>(lut, a.lut);
    device_wait();
    lane_pos p(true);
    struct split split = split::of_tiles(a.n_embd, a.gate_tiles);
    int groups = (a.n_ff / TILE_ROWS + split.tiles - 1) / split.tiles, n_works = groups * *a.l.n_entries;
    int work_i = (int)blockIdx.x;
    if constexpr (gate_up_loops<T>()) {
        for (; work_i < n_works; work_i += (int)gridDim.x) {
            gate_up_work_run<T>(a, work_i, groups, split, shared, &entry, p, lut);
            __syncthreads();                       /* sums and entry are used up */
        }
    } else if (work_i < n_works)
        gate_up_work_run<T>(a, work_i, groups, split, shared, &entry, p, lut);
}

/* One hidden row, the same for every column. */
template <enum act_kind KIND> struct x_hidden_one {
    const struct hidden_segment *s;
    int t;
    __device__ __forceinline__ uint2 q(int block, int) const {
        return *(const uint2 *)(s->q[0] + block * 32 + t * 8);
    }
    __device__ __forceinline__ uint2 sum(int block, int) const {
        return *(const uint2 *)(s->sum[0] + block * 16 + t * 4);
    }
    __device__ __forceinline__ float2 d(int block, int) const {
        return make_float2(s->d[0][block], s->d[0][block]);
    }
};

template <class T> struct down_work {
    const struct experts_run &a;
    const struct hidden_segment *hidden;
    int expert, tile0, n_tiles, n;
    const lane_pos &p;
    __device__ __forceinline__ const uint8_t *tile(int i) const {
        if (tile0 + i >= n_tiles) return NULL;
        return a.down + ((int64_t)expert * n_tiles + tile0 + i) * (a.n_ff / T::STEP) * T::STEP_BYTES;
    }
    __device__ __forceinline__ x_hidden<T::KIND> x(int, int segment) const {
        return x_hidden<T::KIND>{ hidden + segment, n, p.g, p.t };
    }
};

template <class T> struct down_one : down_work<T> {
    __device__ down_one(const down_work<T> &work) : down_work<T>(work) {}
    __device__ __forceinline__ x_hidden_one<T::KIND> x(int, int segment) const {
        return x_hidden_one<T::KIND>{ this->hidden + segment, this->p.t };
    }
};

/* Grid: groups of row tiles x entries. The lists are older than the kernel before, so the first weights
 * are on their way before the wait. */
template <class T>
static __global__ void __launch_bounds__(THREADS, 2)
    few_down_kernel(const __grid_constant__ struct experts_run a) {
    extern __shared__ __align__(16) float shared[];
    __shared__ __align__(16) uint32_t lut[T::LUT];
    load_table<T>(lut, a.lut);
    if ((int)blockIdx.y >= *a.l.n_entries) return;
    const struct entry *entry = &a.l.entries[blockIdx.y];
    int expert = entry->expert, n = entry->n, first_pair = entry->first;
    lane_pos p(true);
    struct split split = split::of_tiles(a.n_ff, a.down_tiles);
    int tile0 = (int)blockIdx.x * split.tiles, n_tiles = a.n_embd / TILE_ROWS, warp = (int)threadIdx.x / 32;
    struct hidden_segment *hidden = (struct hidden_segment *)(shared + split.shared_floats(8));
    down_work<T> work = { a, hidden, expert, tile0, n_tiles, n, p };
    bool one = n == 1 && a.n_ff % SEGMENT == 0;
    ahead<T, few_ahead<T, 1, false>()> first;
    place start(warp, split.n_segments);
    if (warp < split.n_items) first.start(work.tile(start.tile), a.n_ff, start.segment, p);
    device_wait();
    quantise_hidden<T::KIND>(hidden, a.hidden + (int64_t)first_pair * a.n_ff, n, a.n_ff);
    __syncthreads();
    if (one)
        items_multiply<T, 1, true>(shared, down_one<T>(work), a.n_ff, split, split.n_items, first, p, lut);
    else items_multiply<T, 1, false>(shared, work, a.n_ff, split, split.n_items, first, p, lut);
    __syncthreads();
    for (int i = (int)threadIdx.x; i < split.tiles * n * TILE_ROWS; i += THREADS) {
        int row = i % TILE_ROWS, column = i / TILE_ROWS % n, tile = i / (TILE_ROWS * n);
        if (tile0 + tile >= n_tiles) continue;
        a.parts[(int64_t)(first_pair + column) * a.n_embd + (tile0 + tile) * TILE_ROWS + row] =
            segments_sum(shared, split.n_segments, one ? 1 : 8, tile, column, row);
    }
}

/* ---- many rows: entries of up to 64 pairs ---- */

/* The entry's columns, to 16: as many groups as it needs, two at a time. */
template <class T>
static __device__ __forceinline__ void entry_multiply(uint8_t *memory, const uint8_t *tile, int n_in,
                                                      const struct act &act, int first, int n,
                                                      const lane_pos &p, const uint32_t *lut) {
    if (n > 48) columns_multiply<T, 8>(memory, tile, n_in, act, first, p, lut);
    else if (n > 32) columns_multiply<T, 6>(memory, tile, n_in, act, first, p, lut);
    else if (n > 16) columns_multiply<T, 4>(memory, tile, n_in, act, first, p, lut);
    else columns_multiply<T, 2>(memory, tile, n_in, act, first, p, lut);
}

/* Grid: entries x row blocks of 64. Four warps multiply gate tiles, four the up tiles of the same rows. */
template <class T>
static __global__ void __launch_bounds__(THREADS, 2)
    many_gate_up_kernel(const __grid_constant__ struct experts_run a) {
    extern __shared__ __align__(16) uint8_t memory[];
    __shared__ __align__(16) uint32_t lut[T::LUT];
    load_table<T>(lut, a.lut);
    device_wait();
    if ((int)blockIdx.x >= *a.l.n_entries) return;
    const struct entry *entry = &a.l.entries[blockIdx.x];
    lane_pos p;
    int warp = (int)threadIdx.x / 32, n_tiles = a.n_ff / TILE_ROWS,
        tile = (int)blockIdx.y * (WARPS / 2) + warp % (WARPS / 2);
    int64_t at = ((int64_t)entry->expert * n_tiles + min(tile, n_tiles - 1)) *
                 (a.n_embd / T::STEP) * T::STEP_BYTES;
    int n = entry->n, first = entry->first;
    entry_multiply<T>(memory, (warp < WARPS / 2 ? a.gate : a.up) + at, a.n_embd, a.x, first, n, p, lut);
    __syncthreads();
    if (tile >= n_tiles) return;
    const float *gate = (const float *)memory + threadIdx.x % (THREADS / 2), *up = gate + THREADS / 2;
    /* half of the columns each */
    for (int j = warp / (WARPS / 2) * (GROUPS / 2), end = j + GROUPS / 2; j < end; j++)
        for (int i = 0; i < 4; i++) {
            int column = fragment_column(j, i, p);
            if (column >= n) continue;
            float g = gate[(j * 4 + i) * THREADS], u = up[(j * 4 + i) * THREADS];
            a.hidden[(int64_t)(first + column) * a.n_ff + tile * TILE_ROWS + fragment_row(i, p)] =
                a.l.weight[first + column] * swiglu(g, u, a.clamp);
        }
}

/* Grid: entries x row blocks of 128. */
template <class T>
static __global__ void __launch_bounds__(THREADS, 2)
    many_down_kernel(const __grid_constant__ struct experts_run a) {
    extern __shared__ __align__(16) uint8_t memory[];
    __shared__ __align__(16) uint32_t lut[T::LUT];
    load_table<T>(lut, a.lut);
    device_wait();
    if ((int)blockIdx.x >= *a.l.n_entries) return;
    const struct entry *entry = &a.l.entries[blockIdx.x];
    lane_pos p;
    int n_tiles = a.n_embd / TILE_ROWS, tile = (int)blockIdx.y * WARPS + (int)threadIdx.x / 32;
    int64_t at = ((int64_t)entry->expert * n_tiles + min(tile, n_tiles - 1)) * (a.n_ff / T::STEP) *
                 T::STEP_BYTES;
    int n = entry->n, first = entry->first;
    entry_multiply<T>(memory, a.down + at, a.n_ff, a.hidden_act, first, n, p, lut);
    if (tile >= n_tiles) return;
    const float *total = (const float *)memory + threadIdx.x;
    for (int j = 0; j < GROUPS; j++)
        for (int i = 0; i < 4; i++) {
            int column = fragment_column(j, i, p);
            int64_t to = (int64_t)(first + column) * a.n_embd + tile * TILE_ROWS + fragment_row(i, p);
            if (column < n) a.parts[to] = total[(j * 4 + i) * THREADS];
        }
}

/* ---- anything: one warp per weight row and pair; a pair's slot is its own number ---- */

struct plain_run {
    const float *x;
    const uint8_t *gate, *up, *down;
    enum dtype type;
    uint64_t row_bytes;
    const int32_t *ids;
    const float *weights;
    float *out;
    int n_in, n_out, n_used, e_begin, n_e;
    float clamp;
    const uint64_t *grid;
};

/* Grid: pairs x weight rows / 8. gate and up: hidden rows; else down: parts. */
static __global__ void __launch_bounds__(THREADS)
    plain_experts_kernel(const __grid_constant__ struct plain_run a) {
    device_wait();
    int row = (int)blockIdx.y * WARPS + (int)threadIdx.x / 32, pair = (int)blockIdx.x,
        e = a.ids[pair] - a.e_begin;
    if (row >= a.n_out || e < 0 || e >= a.n_e) return;
    uint64_t at = ((uint64_t)e * (uint64_t)a.n_out + (uint64_t)row) * a.row_bytes;
    const float *x = a.x + (int64_t)(a.gate ? pair / a.n_used : pair) * a.n_in;
    float first = 0, second = 0;
    for (int i = lane_id(); i < a.n_in; i += 32) {
        first = fmaf(decode(a.type, (a.gate ? a.gate : a.down) + at, i, a.grid), x[i], first);
        if (a.gate) second = fmaf(decode(a.type, a.up + at, i, a.grid), x[i], second);
    }
    first = warp_sum(first);
    second = warp_sum(second);
    float value = a.gate ? a.weights[pair] * swiglu(first, second, a.clamp) : first;
    if (lane_id() == 0) a.out[(int64_t)pair * a.n_out + row] = value;
}

/* ---- the sum over experts ---- */

/* Routing is older than the kernel before. Grid: rows x parts of n_embd. */
static __global__ void __launch_bounds__(SUM_THREADS)
    sum_kernel(const __grid_constant__ struct experts_sum a) {
    __shared__ struct sum_order order;
    __shared__ float part[MOE_USED_MAX][SUM_THREADS];
    int d = (int)blockIdx.y * SUM_THREADS + (int)threadIdx.x;
    if (threadIdx.x == 0) sum_order_find(&order, a, (int)blockIdx.x);
    __syncthreads();
    device_wait();
    if (d >= a.n_embd) return;
    sum_parts_load<SUM_THREADS>(part[0] + threadIdx.x, order, a, d);
    a.out[(int64_t)blockIdx.x * a.n_embd + d] = sum_parts<SUM_THREADS>(part[0] + threadIdx.x, order);
}

/* later: the hyper-connections that read the sum will make it (stream.cu). */
static void run_sum(struct cuda *c, const struct moe_experts_args *a, const float *parts,
                    const int32_t *slot, bool later) {
    struct experts_sum s = {};
    s.out = f32_of(a->out), s.parts = parts, s.ids = (const int32_t *)a->ids->data, s.slot = slot;
    s.n_used = a->n_used, s.n_embd = (int)a->x->ne[0], s.e_begin = a->e_begin, s.n_e = a->e_end - a->e_begin;
    dim3 grid((unsigned)a->n, blocks_for(s.n_embd, SUM_THREADS));
    if (later) c->sum_waits = s;
    else launch(c, sum_kernel, grid, dim3(SUM_THREADS), 0, s);
}

/* ---- choosing ---- */

static void run_plain_experts(struct cuda *c, const struct moe_experts_args *a) {
    int64_t n_embd = a->x->ne[0], n_ff = a->gate->ne[1], n_pairs = (int64_t)a->n * a->n_used;
    float *hidden = (float *)cuda_scratch(c, SCRATCH_HIDDEN, (uint64_t)(n_pairs * n_ff) * sizeof(float));
    float *parts = (float *)cuda_scratch(c, SCRATCH_PARTS, (uint64_t)(n_pairs * n_embd) * sizeof(float));
    if (!hidden || !parts) return;
    CHECK(a->gate->type == a->up->type);
    struct plain_run r = {};
    r.x = f32_of(a->x), r.gate = (const uint8_t *)a->gate->data, r.up = (const uint8_t *)a->up->data;
    r.type = a->gate->type, r.row_bytes = dtype_row_bytes(r.type, (uint64_t)n_embd);
    r.ids = (const int32_t *)a->ids->data, r.weights = f32_of(a->weights), r.clamp = a->clamp,
    r.grid = c->iq2_grid;
    r.n_used = a->n_used, r.e_begin = a->e_begin, r.n_e = a->e_end - a->e_begin;
    r.out = hidden, r.n_in = (int)n_embd, r.n_out = (int)n_ff;
    launch(c, plain_experts_kernel, dim3((unsigned)n_pairs, blocks_for(n_ff, WARPS)), dim3(THREADS), 0, r);
    r.x = hidden, r.gate = r.up = NULL, r.down = (const uint8_t *)a->down->data;
    r.type = a->down->type, r.row_bytes = dtype_row_bytes(r.type, (uint64_t)n_ff);
    r.out = parts, r.n_in = (int)n_ff, r.n_out = (int)n_embd;
    launch(c, plain_experts_kernel, dim3((unsigned)n_pairs, blocks_for(n_embd, WARPS)), dim3(THREADS), 0, r);
    run_sum(c, a, parts, NULL, false);
}

template <class T> static void launch_gate_up(struct cuda *c, const struct experts_run *r, bool many) {
    if (many) {
        dim3 grid((unsigned)r->l.n_entries_max, blocks_for(r->n_ff / TILE_ROWS, WARPS / 2));
        launch(c, many_gate_up_kernel<T>, grid, dim3(THREADS), columns_shared_bytes<T>(), *r);
        return;
    }
    struct split split = split::of_tiles(r->n_embd, r->gate_tiles);
    unsigned works = blocks_for(r->n_ff / TILE_ROWS, split.tiles) * (unsigned)r->l.n_entries_max;
    dim3 grid(gate_up_loops<T>() ? MIN(works, 2 * (unsigned)c->n_sm) : works);
    launch(c, few_gate_up_kernel<T>, grid, dim3(THREADS),
           2 * (size_t)split.shared_floats(8) * sizeof(float), *r);
}

template <class T> static void launch_down(struct cuda *c, const struct experts_run *r, bool many) {
    if (many) {
        dim3 grid((unsigned)r->l.n_entries_max, blocks_for(r->n_embd / TILE_ROWS, WARPS));
        launch(c, many_down_kernel<T>, grid, dim3(THREADS), columns_shared_bytes<T>(), *r);
        return;
    }
    struct split split = split::of_tiles(r->n_ff, r->down_tiles);
    dim3 grid(blocks_for(r->n_embd / TILE_ROWS, split.tiles), (unsigned)r->l.n_entries_max);
    size_t shared = (size_t)split.shared_floats(8) * sizeof(float);
    shared += (size_t)split.n_segments * sizeof(struct hidden_segment);
    launch(c, few_down_kernel<T>, grid, dim3(THREADS), shared, *r);
}

static bool experts_type(enum dtype type) {
    return type == DTYPE_IQ2_XXS || type == DTYPE_Q2_K || type == DTYPE_Q4_K || type == DTYPE_MXFP4 ||
           type == DTYPE_Q8_0;
}

#define EXPERTS_BY_TYPE(type, call)                             \
    switch (type) {                                             \
    case DTYPE_IQ2_XXS: call<tile_iq2_xxs>(c, &r, many); break; \
    case DTYPE_Q2_K: call<tile_q2_k>(c, &r, many); break;       \
    case DTYPE_Q4_K: call<tile_q4_k>(c, &r, many); break;       \
    case DTYPE_MXFP4: call<tile_mxfp4>(c, &r, many); break;     \
    default: call<tile_q8_0>(c, &r, many); break;               \
    }

/* The matrices' columns: rows (few, read through the lists) or pairs (many, gathered here). */
static bool prepare_x(struct cuda *c, const struct moe_experts_args *a, struct experts_run *r, bool many) {
    enum act_kind kind = act_kind_for(a->gate->type);
    if (!many) {
        const struct act *act = act_of(c, kind, f32_of(a->x), r->n_embd, a->n);
        if (act) r->x = *act;
        return act != NULL;
    }
    void *memory = cuda_scratch(c, SCRATCH_ACT_EXPERTS, act_bytes(kind, r->n_embd, r->l.n_slots_max));
    if (!memory) return false;
    r->x = act_at(memory, kind, r->n_embd, r->l.n_slots_max);
    act_prepare(c, &r->x, kind, f32_of(a->x), r->n_embd, r->l.n_slots_max, r->l.row, r->l.n_slots);
    return true;
}

static bool prepare_memory(struct cuda *c, const struct moe_experts_args *a, struct experts_run *r,
                           bool many) {
    uint64_t slots = (uint64_t)r->l.n_slots_max;
    r->hidden = (float *)cuda_scratch(c, SCRATCH_HIDDEN, slots * (uint64_t)r->n_ff * sizeof(float));
    r->parts = (float *)cuda_scratch(c, SCRATCH_PARTS, slots * (uint64_t)r->n_embd * sizeof(float));
    if (!r->hidden || !r->parts) return false;
    if (!many) return true;
    enum act_kind kind = act_kind_for(a->down->type);
    void *memory = cuda_scratch(c, SCRATCH_ACT_HIDDEN, act_bytes(kind, r->n_ff, (int64_t)slots));
    if (memory) r->hidden_act = act_at(memory, kind, r->n_ff, (int64_t)slots);
    return memory != NULL;
}

/* Tiles of a block, so that two blocks per multiprocessor are all there are, if that is no more than max. */
static int tiles_of_block(const struct cuda *c, int n_tiles, int n_entries, int max) {
    int tiles = (n_tiles * n_entries + 2 * c->n_sm - 1) / (2 * c->n_sm);
    while (tiles < max && (int)blocks_for(n_tiles, tiles) * n_entries > 2 * c->n_sm) tiles++;
    return MIN(MAX(tiles, 1), max);
}

static void run_tiled_experts(struct cuda *c, const struct moe_experts_args *a, bool sum_later) {
    struct experts_run r = {};
    struct lists_run lists;
    bool many = a->n > GRAPH_ROWS_MAX;
    if (!lists_reserve(c, &lists, a)) return;
    r.l = lists.l;
    r.n_embd = (int)a->x->ne[0], r.n_ff = (int)a->gate->ne[1], r.clamp = a->clamp, r.lut = c->iq2_selectors;
    r.gate = (const uint8_t *)a->gate->data, r.up = (const uint8_t *)a->up->data;
    r.down = (const uint8_t *)a->down->data;
    r.gate_tiles = tiles_of_block(c, r.n_ff / TILE_ROWS, r.l.n_entries_max, 4);
    r.down_tiles = tiles_of_block(c, r.n_embd / TILE_ROWS, r.l.n_entries_max, 8);
    if (a->n == 1 && !a->down->mem->on_host)       /* so few experts that the L2 cache holds them */
        r.down_bytes = (int64_t)dtype_row_bytes(a->down->type, (uint64_t)r.n_ff) * r.n_embd;
    if (!prepare_memory(c, a, &r, many)) return;
    if (c->listed_ids != lists.ids) run_lists(c, &lists);
    c->listed_ids = NULL;
    if (!prepare_x(c, a, &r, many)) return;
    EXPERTS_BY_TYPE(a->gate->type, launch_gate_up)
    if (many)
        act_prepare(c, &r.hidden_act, act_kind_for(a->down->type), r.hidden, r.n_ff,
                    r.l.n_slots_max, NULL, r.l.n_slots);
    EXPERTS_BY_TYPE(a->down->type, launch_down)
    run_sum(c, a, r.parts, r.l.slot, sum_later);
}

static bool are_tiled(struct cuda *c, const struct moe_experts_args *a) {
    if (a->gate->type != a->up->type || !experts_type(a->gate->type) ||
        !experts_type(a->down->type))
        return false;
    return weight_in_tiles(c, a->gate, a->gate->ne[1]) && weight_in_tiles(c, a->up, a->up->ne[1]) &&
           weight_in_tiles(c, a->down, a->down->ne[1]);
}

uint32_t experts_want(struct cuda *c, const struct moe_experts_args *a) {
    return a->n > 0 && a->n <= GRAPH_ROWS_MAX && are_tiled(c, a) ? 1u << act_kind_for(a->gate->type) : 0;
}

void run_moe_experts(struct cuda *c, const struct moe_experts_args *a, bool sum_later) {
    if (a->n == 0) return;
    if (are_tiled(c, a)) run_tiled_experts(c, a, sum_later);
    else run_plain_experts(c, a);
}
