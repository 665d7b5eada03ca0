/* Mixture of experts: routing, and the routed experts themselves.
 *
 *   route    one warp per row
 *   lists    one block: the pairs (row, expert) in the order of experts, each expert's from a multiple of
 * 8; entries of up to 8 or 64 pairs of one expert gate, up -> hidden[pair], weighted        products over
 * entries (tiles), or pair by pair (anything else) down     -> parts[pair] sum      the tree over expert
 * numbers, per row
 *
 * A pair's result does not depend on where it stands, so the order within an expert may be any. */
#include "kernels/cuda/decode.cuh"
#include "kernels/cuda/products.cuh"

enum { ROUTE_WARPS = 4, EXPERTS_MAX = 1024, LIST_THREADS = 1024, SUM_THREADS = 256 };

/* ---- routing ---- */

struct route_run {
    int32_t *ids;
    float *weights;
    const float *logits, *bias;
    const int32_t *tid2eid;
    struct dbatch batch;
    float scale;
    int n_expert, n_used;
};

/* Lane e % 32 keeps expert e's score; the best of all lanes is taken n_used times; of equals the lower
 * number. */
static __device__ int take_best(float *value, int n_expert) {
    float best = -INFINITY;
    int id = n_expert;
#pragma unroll
    for (int i = 0; i < EXPERTS_MAX / 32; i++)
        if (32 * i < n_expert && value[i] > best) best = value[i], id = 32 * i + lane_id();
    for (int step = 16; step > 0; step /= 2) {
        float other = __shfl_xor_sync(0xffffffffu, best, step);
        int other_id = __shfl_xor_sync(0xffffffffu, id, step);
        if (other > best || (other == best && other_id < id)) best = other, id = other_id;
    }
#pragma unroll
    for (int i = 0; i < EXPERTS_MAX / 32; i++)
        if (32 * i + lane_id() == id) value[i] = -INFINITY;
    return id < n_expert ? id : 0;
}

static __device__ void route_row(const struct route_run &a, int row, int32_t *ids) {
    const float *logits = a.logits + (int64_t)row * a.n_expert;
    if (a.tid2eid) {
        const int32_t *from = a.tid2eid + (int64_t)a.batch.token[row] * a.n_used;
        if (lane_id() < a.n_used) ids[lane_id()] = max(0, min(from[lane_id()], a.n_expert - 1));
        return;
    }
    float value[EXPERTS_MAX / 32];
#pragma unroll
    for (int i = 0; i < EXPERTS_MAX / 32; i++) {
        int e = 32 * i + lane_id();
        value[i] = -INFINITY;
        if (e < a.n_expert) value[i] = sqrtf(f32_softplus(logits[e])) + (a.bias ? a.bias[e] : 0);
    }
    for (int u = 0; u < a.n_used; u++) {
        int id = take_best(value, a.n_expert);
        if (lane_id() == 0) ids[u] = id;
    }
}

static __global__ void __launch_bounds__(ROUTE_WARPS * 32) route_kernel(struct route_run a) {
    __shared__ int32_t all_ids[ROUTE_WARPS][MOE_USED_MAX];
    device_wait();
    int row = (int)blockIdx.x * ROUTE_WARPS + (int)threadIdx.x / 32;
    if (row >= a.batch.n_rows) return;
    int32_t *ids = all_ids[threadIdx.x / 32];
    route_row(a, row, ids);
    __syncwarp();
    if (lane_id() != 0) return;
    float score[MOE_USED_MAX], sum = 0;
    for (int i = 1; i < a.n_used; i++)
        for (int j = i; j > 0 && ids[j] < ids[j - 1]; j--) {
            int32_t swap = ids[j];
            ids[j] = ids[j - 1];
            ids[j - 1] = swap;
        }
    for (int i = 0; i < a.n_used; i++) {
        score[i] = sqrtf(f32_softplus(a.logits[(int64_t)row * a.n_expert + ids[i]]));
        sum += score[i];
    }
    sum = fmaxf(sum, 6.103515625e-5f);             /* no real router comes near: a guard against 0/0 */
    for (int i = 0; i < a.n_used; i++) {
        a.ids[row * a.n_used + i] = ids[i];
        a.weights[row * a.n_used + i] = score[i] / sum * a.scale;
    }
}

void run_moe_route(struct cuda *c, const struct moe_route_args *a) {
    struct route_run r = {};
    r.ids = (int32_t *)a->ids->data, r.weights = f32_of(a->weights), r.logits = f32_of(a->logits);
    r.bias = a->bias ? f32_of(a->bias) : NULL,
    r.tid2eid = a->tid2eid ? (const int32_t *)a->tid2eid->data : NULL;
    r.batch = c->batch.d, r.scale = a->scale, r.n_expert = (int)a->logits->ne[0], r.n_used = a->n_used;
    CHECK(r.n_expert <= EXPERTS_MAX);
    launch(c, route_kernel, dim3(blocks_for(a->batch->n_rows, ROUTE_WARPS)), dim3(ROUTE_WARPS * 32), 0, r);
}

/* ---- who computes what ---- */

struct entry {
    int expert, first, n;                          /* pairs first .. first+n, of the range's expert */
};

struct lists {
    int32_t *row;                                  /* [slots] of a pair, -1 for gaps */
    float *weight;                                 /* [slots] */
    int32_t *slot;                                 /* [n * n_used] where each pair is, -1 when not ours */
    struct entry *entries;
    int32_t *n_entries, *n_slots;                  /* device counters */
    int n_slots_max, n_entries_max;
};

struct lists_run {
    struct lists l;
    const int32_t *ids;
    const float *weights;
    int n_pairs, n_used, e_begin, n_e, entry_pairs;
};

static __global__ void __launch_bounds__(LIST_THREADS) lists_kernel(struct lists_run a) {
    __shared__ int count[EXPERTS_MAX], first[EXPERTS_MAX], n_entries, n_slots;
    device_wait();
    for (int e = (int)threadIdx.x; e < a.n_e; e += LIST_THREADS) count[e] = 0;
    for (int s = (int)threadIdx.x; s < a.l.n_slots_max; s += LIST_THREADS) a.l.row[s] = -1;
    __syncthreads();
    for (int i = (int)threadIdx.x; i < a.n_pairs; i += LIST_THREADS) {
        int e = a.ids[i] - a.e_begin;
        if (e >= 0 && e < a.n_e) atomicAdd(&count[e], 1);
    }
    __syncthreads();
    if (threadIdx.x < 32) { /* places and entries: 32 experts at a time, prefix sums over lanes */
        int slots = 0, entries = 0;
        for (int e0 = 0; e0 < a.n_e; e0 += 32) {
            int e = e0 + lane_id(), n = e < a.n_e ? count[e] : 0, room = (n + 7) / 8 * 8,
                parts = (n + a.entry_pairs - 1) / a.entry_pairs;
            int room_sum = room, parts_sum = parts;
            for (int step = 1; step < 32; step *= 2) {
                int r = __shfl_up_sync(0xffffffffu, room_sum, step),
                    p = __shfl_up_sync(0xffffffffu, parts_sum, step);
                if (lane_id() >= step) room_sum += r, parts_sum += p;
            }
            int at = slots + room_sum - room, entry = entries + parts_sum - parts;
            if (e < a.n_e) first[e] = at, count[e] = 0;
            for (int done = 0; done < n; done += a.entry_pairs)
                a.l.entries[entry++] = { e, at + done, min(a.entry_pairs, n - done) };
            slots += __shfl_sync(0xffffffffu, room_sum, 31);
            entries += __shfl_sync(0xffffffffu, parts_sum, 31);
        }
        if (lane_id() == 0) n_entries = entries, n_slots = slots;
    }
    __syncthreads();
    for (int i = (int)threadIdx.x; i < a.n_pairs; i += LIST_THREADS) {
        int e = a.ids[i] - a.e_begin, slot = -1;
        if (e >= 0 && e < a.n_e) {
            slot = first[e] + atomicAdd(&count[e], 1);
            a.l.row[slot] = i / a.n_used;
            a.l.weight[slot] = a.weights[i];
        }
        a.l.slot[i] = slot;
    }
    if (threadIdx.x == 0) *a.l.n_entries = n_entries, *a.l.n_slots = n_slots;
}

static bool lists_reserve(struct cuda *c, struct lists *l, int n_pairs, int n_e, int entry_pairs) {
    int experts = MIN(n_pairs, n_e);
    l->n_slots_max = (int)ALIGN_UP(n_pairs + 7 * experts, 8);
    l->n_entries_max = n_pairs / entry_pairs + experts;
    uint64_t ints = (uint64_t)l->n_slots_max * 2 + (uint64_t)n_pairs + (uint64_t)l->n_entries_max * 3 + 2;
    int32_t *at = (int32_t *)cuda_scratch(c, SCRATCH_LISTS, ints * sizeof(int32_t));
    if (!at) return false;
    l->row = at, at += l->n_slots_max;
    l->weight = (float *)at, at += l->n_slots_max;
    l->slot = at, at += n_pairs;
    l->entries = (struct entry *)at, at += (int64_t)l->n_entries_max * 3;
    l->n_entries = at, l->n_slots = at + 1;
    return true;
}

/* ---- few rows: entries of up to 8 pairs ---- */

/* Activations in the order of rows, read through the pairs' row numbers. */
struct x_pairs {
    const struct act act;
    int own, first, second;                        /* rows of columns g, 2t, 2t+1; -1: none */
    int t;
    __device__ x_pairs(const struct act &a, const int32_t *row, int n, const lane_pos &p)
        : act(a), own(p.g < n ? row[p.g] : -1), first(2 * p.t < n ? row[2 * p.t] : 0),
          second(2 * p.t + 1 < n ? row[2 * p.t + 1] : 0), t(p.t) {
    }
    __device__ __forceinline__ uint2 at(const void *base, int block) const {
        if (own < 0) return make_uint2(0, 0);
        return *(const uint2 *)((const uint8_t *)base + ((int64_t)block * act.n_pad + own) * 32 + t * 8);
    }
    __device__ __forceinline__ uint2 q(int block, int) const { return at(act.q, block); }
    __device__ __forceinline__ uint2 sum(int block, int) const { return at(act.sum, block); }
    __device__ __forceinline__ uint2 hi(int block, int) const { return at(act.q, block); }
    __device__ __forceinline__ uint2 lo(int block, int) const { return at(act.sum, block); }
    __device__ __forceinline__ float2 d(int block, int) const {
        const float *d = act.d + (int64_t)block * act.n_pad;
        return make_float2(d[first], d[second]);
    }
};

struct experts_run {
    struct lists l;
    const uint8_t *gate, *up, *down;
    struct act x, hidden_act;                      /* x: rows (few) or pairs (many) */
    float *hidden, *parts;                         /* [slots][n_ff], [slots][n_embd] */
    int n_ff, n_embd;
    float clamp;
    const uint32_t *lut;
};

template <class T> static __device__ __forceinline__ void load_table(uint32_t *lut, const uint32_t *table) {
    if (T::LUT > 1) lut[threadIdx.x % T::LUT] = table[threadIdx.x % T::LUT];
}

/* Grid: row tiles x entries. Each warp multiplies its segments of the gate and of the up tile. */
template <class T>
static __global__ void __launch_bounds__(THREADS)
    few_gate_up_kernel(const __grid_constant__ struct experts_run a) {
    extern __shared__ float shared[];
    __shared__ uint32_t lut[T::LUT];
    load_table<T>(lut, a.lut);
    device_wait();
    if ((int)blockIdx.y >= *a.l.n_entries) return;
    struct entry entry = a.l.entries[blockIdx.y];
    lane_pos p;
    struct split split(a.n_embd);
    int warp = (int)threadIdx.x / 32, slot = warp / split.warps_per_tile,
        segment = warp % split.warps_per_tile;
    int tile0 = (int)blockIdx.x * split.tiles_per_block, tile = tile0 + slot, n_tiles = a.n_ff / TILE_ROWS;
    const int sums_per_tile = split.n_segments * 8 * COLUMN_STRIDE;
    int64_t tile_bytes = (int64_t)(a.n_embd / T::STEP) * T::STEP_BYTES,
            at = ((int64_t)entry.expert * n_tiles + tile) * tile_bytes;
    if (T::LUT > 1) __syncthreads();
    if (slot < split.tiles_per_block && tile < n_tiles) {
        x_pairs x(a.x, a.l.row + entry.first, entry.n, p);
        typename T::regs w;
        for (int m = 0; m < 2; m++) {
            const uint8_t *weight = (m ? a.up : a.gate) + at;
            T::load(w, weight, a.n_embd, segment * (SEGMENT / T::STEP), p);
            segments_multiply<T, 1>(shared + (m * split.tiles_per_block + slot) * sums_per_tile, weight,
                                    a.n_embd, split, segment, w, x, p, lut);
        }
    }
    __syncthreads();
    for (int i = (int)threadIdx.x; i < split.tiles_per_block * 8 * TILE_ROWS; i += THREADS) {
        int row = i % TILE_ROWS, column = i / TILE_ROWS % 8, s = i / (TILE_ROWS * 8);
        if (tile0 + s >= n_tiles || column >= entry.n) continue;
        float gate = segments_sum(shared + s * sums_per_tile, split.n_segments, 8, column, row);
        float up = segments_sum(shared + (split.tiles_per_block + s) * sums_per_tile, split.n_segments, 8,
                                column, row);
        a.hidden[(int64_t)(entry.first + column) * a.n_ff + (tile0 + s) * TILE_ROWS + row] =
            a.l.weight[entry.first + column] * swiglu(gate, up, a.clamp);
    }
}

/* Grid: row tiles x entries. */
template <class T>
static __global__ void __launch_bounds__(THREADS)
    few_down_kernel(const __grid_constant__ struct experts_run a) {
    extern __shared__ float shared[];
    __shared__ uint32_t lut[T::LUT];
    load_table<T>(lut, a.lut);
    device_wait();
    if ((int)blockIdx.y >= *a.l.n_entries) return;
    struct entry entry = a.l.entries[blockIdx.y];
    lane_pos p;
    struct split split(a.n_ff);
    int warp = (int)threadIdx.x / 32, slot = warp / split.warps_per_tile,
        segment = warp % split.warps_per_tile;
    int tile0 = (int)blockIdx.x * split.tiles_per_block, tile = tile0 + slot, n_tiles = a.n_embd / TILE_ROWS;
    const int sums_per_tile = split.n_segments * 8 * COLUMN_STRIDE;
    if (T::LUT > 1) __syncthreads();
    if (slot < split.tiles_per_block && tile < n_tiles) {
        const uint8_t *weight =
            a.down + ((int64_t)entry.expert * n_tiles + tile) * (a.n_ff / T::STEP) * T::STEP_BYTES;
        typename T::regs w;
        T::load(w, weight, a.n_ff, segment * (SEGMENT / T::STEP), p);
        segments_multiply<T, 1>(shared + slot * sums_per_tile, weight, a.n_ff, split, segment, w,
                                x_global<1>(a.hidden_act, entry.first, entry.first + entry.n, p), p, lut);
    }
    __syncthreads();
    for (int i = (int)threadIdx.x; i < split.tiles_per_block * 8 * TILE_ROWS; i += THREADS) {
        int row = i % TILE_ROWS, column = i / TILE_ROWS % 8, s = i / (TILE_ROWS * 8);
        if (tile0 + s >= n_tiles || column >= entry.n) continue;
        a.parts[(int64_t)(entry.first + column) * a.n_embd + (tile0 + s) * TILE_ROWS + row] =
            segments_sum(shared + s * sums_per_tile, split.n_segments, 8, column, row);
    }
}

/* ---- many rows: entries of up to 64 pairs ---- */

/* Grid: entries x row blocks of 64. Four warps multiply gate tiles, four the up tiles of the same rows. */
template <class T>
static __global__ void __launch_bounds__(THREADS, 2)
    many_gate_up_kernel(const __grid_constant__ struct experts_run a) {
    extern __shared__ uint8_t memory[];
    __shared__ uint32_t lut[T::LUT];
    load_table<T>(lut, a.lut);
    device_wait();
    if ((int)blockIdx.x >= *a.l.n_entries) return;
    struct entry entry = a.l.entries[blockIdx.x];
    lane_pos p;
    int warp = (int)threadIdx.x / 32, n_tiles = a.n_ff / TILE_ROWS,
        tile = (int)blockIdx.y * (WARPS / 2) + warp % (WARPS / 2);
    int64_t at =
        ((int64_t)entry.expert * n_tiles + min(tile, n_tiles - 1)) * (a.n_embd / T::STEP) * T::STEP_BYTES;
    columns_multiply<T>(memory, (warp < WARPS / 2 ? a.gate : a.up) + at, a.n_embd, a.x, entry.first,
                        (entry.n + 7) / 8, p, lut);
    __syncthreads();
    if (tile >= n_tiles) return;
    const float *gate = (const float *)memory + threadIdx.x % (THREADS / 2), *up = gate + THREADS / 2;
    for (int j = warp / (WARPS / 2) * (GROUPS / 2), end = j + GROUPS / 2; j < end;
         j++) /* half of the columns each */
        for (int i = 0; i < 4; i++) {
            int column = fragment_column(j, i, p);
            if (column >= entry.n) continue;
            float g = gate[(j * 4 + i) * THREADS], u = up[(j * 4 + i) * THREADS];
            a.hidden[(int64_t)(entry.first + column) * a.n_ff + tile * TILE_ROWS + fragment_row(i, p)] =
                a.l.weight[entry.first + column] * swiglu(g, u, a.clamp);
        }
}

/* Grid: entries x row blocks of 128. */
template <class T>
static __global__ void __launch_bounds__(THREADS, 2)
    many_down_kernel(const __grid_constant__ struct experts_run a) {
    extern __shared__ uint8_t memory[];
    __shared__ uint32_t lut[T::LUT];
    load_table<T>(lut, a.lut);
    device_wait();
    if ((int)blockIdx.x >= *a.l.n_entries) return;
    struct entry entry = a.l.entries[blockIdx.x];
    lane_pos p;
    int n_tiles = a.n_embd / TILE_ROWS, tile = (int)blockIdx.y * WARPS + (int)threadIdx.x / 32;
    const uint8_t *weight = a.down + ((int64_t)entry.expert * n_tiles + min(tile, n_tiles - 1)) *
                                         (a.n_ff / T::STEP) * T::STEP_BYTES;
    columns_multiply<T>(memory, weight, a.n_ff, a.hidden_act, entry.first, (entry.n + 7) / 8, p, lut);
    if (tile >= n_tiles) return;
    const float *total = (const float *)memory + threadIdx.x;
    for (int j = 0; j < GROUPS; j++)
        for (int i = 0; i < 4; i++) {
            int column = fragment_column(j, i, p);
            if (column < entry.n)
                a.parts[(int64_t)(entry.first + column) * a.n_embd + tile * TILE_ROWS +
                        fragment_row(i, p)] = total[(j * 4 + i) * THREADS];
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
static __global__ void __launch_bounds__(THREADS) plain_experts_kernel(struct plain_run a) {
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
    if (lane_id() == 0)
        a.out[(int64_t)pair * a.n_out + row] =
            a.gate ? a.weights[pair] * swiglu(first, second, a.clamp) : first;
}

/* ---- the sum over experts ---- */

struct sum_run {
    float *out;
    const float *parts;
    const int32_t *ids, *slot; /* slot NULL: a pair's own number, when its expert is in the range */
    int n_used, n_embd, e_begin, n_e;
};

/* Of neighbouring partial sums those that share the most high bits are added first. Grid: rows x parts of
 * n_embd. */
static __global__ void __launch_bounds__(SUM_THREADS) sum_kernel(struct sum_run a) {
    __shared__ int from[MOE_USED_MAX], target[MOE_USED_MAX], source[MOE_USED_MAX], n_parts;
    __shared__ float part[MOE_USED_MAX][SUM_THREADS];
    device_wait();
    int pair0 = (int)blockIdx.x * a.n_used, d = (int)blockIdx.y * SUM_THREADS + (int)threadIdx.x;
    if (threadIdx.x == 0) {
        int id[MOE_USED_MAX], at[MOE_USED_MAX], n = 0;
        for (int u = 0; u < a.n_used; u++) {
            int e = a.ids[pair0 + u], slot = a.slot                                    ? a.slot[pair0 + u]
                                             : e >= a.e_begin && e < a.e_begin + a.n_e ? pair0 + u
                                                                                       : -1;
            if (slot < 0) continue;
            id[n] = e, at[n] = n, from[n++] = slot;
        }
        n_parts = n;
        for (int left = n; left > 1; left--) {
            int best = 0;
            for (int i = 1; i + 1 < left; i++)
                if ((id[i] ^ id[i + 1]) < (id[best] ^ id[best + 1])) best = i;
            target[n - left] = at[best], source[n - left] = at[best + 1];
            for (int i = best + 1; i + 1 < left; i++) id[i] = id[i + 1], at[i] = at[i + 1];
        }
    }
    __syncthreads();
    if (d >= a.n_embd) return;
    for (int i = 0; i < n_parts; i++) part[i][threadIdx.x] = a.parts[(int64_t)from[i] * a.n_embd + d];
    for (int i = 0; i + 1 < n_parts; i++) part[target[i]][threadIdx.x] += part[source[i]][threadIdx.x];
    a.out[(int64_t)blockIdx.x * a.n_embd + d] = n_parts ? part[0][threadIdx.x] : 0;
}

static void run_sum(struct cuda *c, const struct moe_experts_args *a, const float *parts,
                    const int32_t *slot) {
    struct sum_run s = {};
    s.out = f32_of(a->out), s.parts = parts, s.ids = (const int32_t *)a->ids->data, s.slot = slot;
    s.n_used = a->n_used, s.n_embd = (int)a->x->ne[0], s.e_begin = a->e_begin, s.n_e = a->e_end - a->e_begin;
    launch(c, sum_kernel, dim3((unsigned)a->n, blocks_for(s.n_embd, SUM_THREADS)), dim3(SUM_THREADS), 0, s);
}

/* ---- choosing ---- */

static void run_plain_experts(struct cuda *c, const struct moe_experts_args *a) {
    int64_t n_embd = a->x->ne[0], n_ff = a->gate->ne[1], n_pairs = (int64_t)a->n * a->n_used;
    float *hidden = (float *)cuda_scratch(c, SCRATCH_HIDDEN, (uint64_t)(n_pairs * n_ff) * sizeof(float));
    float *parts = (float *)cuda_scratch(c, SCRATCH_PARTS, (uint64_t)(n_pairs * n_embd) * sizeof(float));
    if (!hidden || !parts) return;
    CHECK(a->gate->type == a->up->type);
    struct plain_run r = {};
    r.x = f32_of(a->x), r.gate = (const uint8_t *)a->gate->data, r.up = (const uint8_t *)a->up->data,
    r.type = a->gate->type;
    r.row_bytes = dtype_row_bytes(r.type, (uint64_t)n_embd), r.ids = (const int32_t *)a->ids->data,
    r.weights = f32_of(a->weights);
    r.out = hidden, r.n_in = (int)n_embd, r.n_out = (int)n_ff, r.n_used = a->n_used, r.e_begin = a->e_begin;
    r.n_e = a->e_end - a->e_begin, r.clamp = a->clamp, r.grid = c->iq2_grid;
    launch(c, plain_experts_kernel, dim3((unsigned)n_pairs, blocks_for(n_ff, WARPS)), dim3(THREADS), 0, r);
    r.x = hidden, r.gate = r.up = NULL, r.down = (const uint8_t *)a->down->data, r.type = a->down->type;
    r.row_bytes = dtype_row_bytes(r.type, (uint64_t)n_ff), r.out = parts, r.n_in = (int)n_ff,
    r.n_out = (int)n_embd;
    launch(c, plain_experts_kernel, dim3((unsigned)n_pairs, blocks_for(n_embd, WARPS)), dim3(THREADS), 0, r);
    run_sum(c, a, parts, NULL);
}

template <class T> static void launch_gate_up(struct cuda *c, const struct experts_run *r, bool many) {
    if (many) {
        dim3 grid((unsigned)r->l.n_entries_max, blocks_for(r->n_ff / TILE_ROWS, WARPS / 2));
        launch(c, many_gate_up_kernel<T>, grid, dim3(THREADS), columns_shared_bytes<T>(), *r);
        return;
    }
    struct split split(r->n_embd);
    dim3 grid(blocks_for(r->n_ff / TILE_ROWS, split.tiles_per_block), (unsigned)r->l.n_entries_max);
    launch(c, few_gate_up_kernel<T>, grid, dim3(THREADS),
           2 * (size_t)split.shared_floats(8) * sizeof(float), *r);
}

template <class T> static void launch_down(struct cuda *c, const struct experts_run *r, bool many) {
    if (many) {
        dim3 grid((unsigned)r->l.n_entries_max, blocks_for(r->n_embd / TILE_ROWS, WARPS));
        launch(c, many_down_kernel<T>, grid, dim3(THREADS), columns_shared_bytes<T>(), *r);
        return;
    }
    struct split split(r->n_ff);
    dim3 grid(blocks_for(r->n_embd / TILE_ROWS, split.tiles_per_block), (unsigned)r->l.n_entries_max);
    launch(c, few_down_kernel<T>, grid, dim3(THREADS), (size_t)split.shared_floats(8) * sizeof(float), *r);
}

static bool experts_type(enum dtype type) {
    return type == DTYPE_IQ2_XXS || type == DTYPE_Q2_K || type == DTYPE_Q4_K || type == DTYPE_MXFP4 ||
           type == DTYPE_Q8_0;
}

#define EXPERTS_BY_TYPE(type, call)                          \
    switch (type) {                                          \
    case DTYPE_IQ2_XXS: call<tile_iq2_xxs>(c, &r, many); break; \
    case DTYPE_Q2_K: call<tile_q2_k>(c, &r, many); break;    \
    case DTYPE_Q4_K: call<tile_q4_k>(c, &r, many); break;    \
    case DTYPE_MXFP4: call<tile_mxfp4>(c, &r, many); break;  \
    default: call<tile_q8_0>(c, &r, many); break;            \
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

static void run_tiled_experts(struct cuda *c, const struct moe_experts_args *a) {
    struct experts_run r = {};
    bool many = a->n > GRAPH_ROWS_MAX;
    int n_pairs = a->n * a->n_used, n_e = a->e_end - a->e_begin;
    r.n_embd = (int)a->x->ne[0], r.n_ff = (int)a->gate->ne[1], r.clamp = a->clamp, r.lut = c->iq2_selectors;
    r.gate = (const uint8_t *)a->gate->data, r.up = (const uint8_t *)a->up->data,
    r.down = (const uint8_t *)a->down->data;
    if (!lists_reserve(c, &r.l, n_pairs, n_e, many ? COLUMNS : 8)) return;
    uint64_t slots = (uint64_t)r.l.n_slots_max;
    enum act_kind down_kind = act_kind_for(a->down->type);
    r.hidden = (float *)cuda_scratch(c, SCRATCH_HIDDEN, slots * (uint64_t)r.n_ff * sizeof(float));
    r.parts = (float *)cuda_scratch(c, SCRATCH_PARTS, slots * (uint64_t)r.n_embd * sizeof(float));
    void *hidden_act = cuda_scratch(c, SCRATCH_ACT_HIDDEN, act_bytes(down_kind, r.n_ff, (int64_t)slots));
    if (!r.hidden || !r.parts || !hidden_act) return;
    r.hidden_act = act_at(hidden_act, down_kind, r.n_ff, (int64_t)slots);

    struct lists_run l = { r.l,
                           (const int32_t *)a->ids->data,
                           f32_of(a->weights),
                           n_pairs,
                           a->n_used,
                           a->e_begin,
                           n_e,
                           many ? COLUMNS : 8 };
    CHECK(n_e <= EXPERTS_MAX);
    launch(c, lists_kernel, dim3(1), dim3(LIST_THREADS), 0, l);
    if (!prepare_x(c, a, &r, many)) return;
    EXPERTS_BY_TYPE(a->gate->type, launch_gate_up)
    act_prepare(c, &r.hidden_act, down_kind, r.hidden, r.n_ff, r.l.n_slots_max, NULL, r.l.n_slots);
    EXPERTS_BY_TYPE(a->down->type, launch_down)
    run_sum(c, a, r.parts, r.l.slot);
}

void run_moe_experts(struct cuda *c, const struct moe_experts_args *a) {
    if (a->n == 0) return;
    bool tiled = a->gate->type == a->up->type && experts_type(a->gate->type) && experts_type(a->down->type);
    tiled = tiled && weight_in_tiles(c, a->gate, a->gate->ne[1]);
    tiled = tiled && weight_in_tiles(c, a->up, a->up->ne[1]) && weight_in_tiles(c, a->down, a->down->ne[1]);
    if (tiled) run_tiled_experts(c, a);
    else run_plain_experts(c, a);
}
