/* Routing of the experts, and the lists that the experts' products work through.
 *
 * Many rows: a warp per row, then one block for the lists. Few rows: one block does both, and beside it
 * one block per row computes the shared expert's activation, which depends on neither. */
#include "kernels/cuda/act.cuh"
#include "kernels/cuda/moe.cuh"

enum { ROUTE_WARPS = 4, LIST_THREADS = 1024, FEW_THREADS = 512, SWIGLU_MAX = 8192 };

struct router {
    int32_t *ids;
    float *weights;
    const float *logits, *bias;
    const int32_t *tid2eid;
    struct dbatch batch;
    float scale;
    int n_expert, n_used;
};

/* Lane e % 32 keeps expert e's score; the best of all lanes is taken; of equals the lower number. */
template <int PER_LANE> static __device__ __forceinline__ int take_best(float *value) {
    float best = -INFINITY;
    int id = EXPERTS_MAX;
#pragma unroll
    for (int i = 0; i < PER_LANE; i++)
        if (value[i] > best) best = value[i], id = 32 * i + lane_id();
#pragma unroll
    for (int step = 16; step > 0; step /= 2) {
        float other = __shfl_xor_sync(0xffffffffu, best, step);
        int other_id = __shfl_xor_sync(0xffffffffu, id, step);
        if (other > best || (other == best && other_id < id)) best = other, id = other_id;
    }
#pragma unroll
    for (int i = 0; i < PER_LANE; i++)
        if (32 * i + lane_id() == id) value[i] = -INFINITY;
    return id < EXPERTS_MAX ? id : 0;
}

/* Lane u < n_used gets the row's u-th best expert. */
template <int PER_LANE> static __device__ __forceinline__ int choose(const struct router &a, int row) {
    const float *logits = a.logits + (int64_t)row * a.n_expert;
    float value[PER_LANE], logit[PER_LANE], bias[PER_LANE];
#pragma unroll
    for (int i = 0; i < PER_LANE; i++) {
        int e = min(32 * i + lane_id(), a.n_expert - 1);
        logit[i] = logits[e];
        bias[i] = a.bias ? a.bias[e] : 0;
    }
#pragma unroll
    for (int i = 0; i < PER_LANE; i++)
        value[i] = 32 * i + lane_id() < a.n_expert ? sqrtf(f32_softplus(logit[i])) + bias[i] : -INFINITY;
    int own = 0;
    for (int u = 0; u < a.n_used; u++) {
        int id = take_best<PER_LANE>(value);
        if (lane_id() == u) own = id;
    }
    return own;
}

/* Lane u < n_used gets the u-th expert that the token's table names. */
static __device__ int look_up(const struct router &a, int row) {
    const int32_t *from = a.tid2eid + (int64_t)a.batch.token[row] * a.n_used;
    return lane_id() < a.n_used ? max(0, min(from[lane_id()], a.n_expert - 1)) : 0;
}

static __device__ int choose_any(const struct router &a, int row) {
    return a.n_expert <= 256   ? choose<8>(a, row)
           : a.n_expert <= 384 ? choose<12>(a, row)
                               : choose<EXPERTS_MAX / 32>(a, row);
}

/* By one warp, which holds the row's experts and their scores: ids ascending, and their weights. Lane u gets
 * the u-th of them back. */
struct routed {
    int id;
    float weight;
};

static __device__ __forceinline__ struct routed write_scores(const struct router &a, int row, int id,
                                                             float score) {
    float sum = 0;
    int rank = 0, own = 0;              /* how many ids are smaller; ids are distinct but in a broken table */
    for (int u = 0; u < a.n_used; u++) {
        int other = __shfl_sync(0xffffffffu, id, u);
        rank += other < id || (other == id && u < lane_id());
    }
    for (int i = 0; i < a.n_used; i++) {         /* sum in the order of ids */
        unsigned lanes = __ballot_sync(0xffffffffu, rank == i && lane_id() < a.n_used);
        int at = __ffs((int)lanes) - 1;
        sum += __shfl_sync(0xffffffffu, score, at);
        own = lane_id() == i ? at : own;
    }
    sum = fmaxf(sum, 6.103515625e-5f);           /* no real router comes near: a guard against 0/0 */
    struct routed r = { __shfl_sync(0xffffffffu, id, own),
                        __shfl_sync(0xffffffffu, score / sum * a.scale, own) };
    if (lane_id() < a.n_used) {
        a.ids[row * a.n_used + lane_id()] = r.id;
        a.weights[row * a.n_used + lane_id()] = r.weight;
    }
    return r;
}

static __device__ struct routed write_route(const struct router &a, int row, int id) {
    return write_scores(a, row, id, sqrtf(f32_softplus(a.logits[(int64_t)row * a.n_expert + id])));
}

/* Grid: rows / ROUTE_WARPS. */
static __global__ void __launch_bounds__(ROUTE_WARPS * 32)
    route_kernel(const __grid_constant__ struct router a) {
    device_wait();
    int row = (int)blockIdx.x * ROUTE_WARPS + (int)threadIdx.x / 32;
    if (row < a.batch.n_rows) write_route(a, row, a.tid2eid ? look_up(a, row) : choose_any(a, row));
}

/* ---- lists, by one block ---- */

struct list_shared {
    __align__(16) int count[EXPERTS_MAX], first[EXPERTS_MAX], entry0[EXPERTS_MAX], n_entries, n_slots;
};

/* Places and entries of all experts, by one warp: 32 at a time, prefix sums over lanes. */
static __device__ void place_experts(const struct lists_run &a, struct list_shared *s) {
    int slots = 0, entries = 0;
    for (int e0 = 0; e0 < a.n_e; e0 += 32) {
        int e = e0 + lane_id(), n = e < a.n_e ? s->count[e] : 0, room = (n + 7) / 8 * 8;
        int parts = (n + a.entry_pairs - 1) / a.entry_pairs, room_sum = room, parts_sum = parts;
        for (int step = 1; step < 32; step *= 2) {
            int r = __shfl_up_sync(0xffffffffu, room_sum, step),
                p = __shfl_up_sync(0xffffffffu, parts_sum, step);
            if (lane_id() >= step) room_sum += r, parts_sum += p;
        }
        int at = slots + room_sum - room, entry = entries + parts_sum - parts;
        if (e < a.n_e) s->first[e] = at, s->entry0[e] = entry, s->count[e] = 0;
        for (int done = 0; done < n; done += a.entry_pairs, entry++) {
            a.l.entries[entry].expert = e;
            a.l.entries[entry].first = at + done;
            a.l.entries[entry].n = min(a.entry_pairs, n - done);
        }
        slots += __shfl_sync(0xffffffffu, room_sum, 31);
        entries += __shfl_sync(0xffffffffu, parts_sum, 31);
    }
    if (lane_id() == 0) s->n_entries = entries, s->n_slots = slots;
}

static __device__ void make_lists(const struct lists_run &a, struct list_shared *s) {
    int step = (int)blockDim.x;
    for (int e = (int)threadIdx.x; e < a.n_e; e += step) s->count[e] = 0;
    for (int i = (int)threadIdx.x; i < a.l.n_slots_max; i += step) a.l.row[i] = -1;
    __syncthreads();
    for (int i = (int)threadIdx.x; i < a.n_pairs; i += step) {
        int e = a.ids[i] - a.e_begin;
        if (e >= 0 && e < a.n_e) atomicAdd(&s->count[e], 1);
    }
    __syncthreads();
    if (threadIdx.x < 32) place_experts(a, s);
    __syncthreads();
    for (int i = (int)threadIdx.x; i < a.n_pairs; i += step) {
        int e = a.ids[i] - a.e_begin, slot = -1;
        if (e >= 0 && e < a.n_e) {
            int rank = atomicAdd(&s->count[e], 1);
            slot = s->first[e] + rank;
            a.l.row[slot] = i / a.n_used;
            a.l.weight[slot] = a.weights[i];
            if (a.entry_pairs == ENTRY_PAIRS_FEW) {
                struct entry *entry = &a.l.entries[s->entry0[e] + rank / ENTRY_PAIRS_FEW];
                entry->row[rank % ENTRY_PAIRS_FEW] = i / a.n_used;
                entry->weight[rank % ENTRY_PAIRS_FEW] = a.weights[i];
            }
        }
        a.l.slot[i] = slot;
    }
    if (threadIdx.x == 0) *a.l.n_entries = s->n_entries, *a.l.n_slots = s->n_slots;
}

/* One row, by one warp: every pair is an entry of its own. r: lane u's pair. */
static __device__ void make_lists_of_row(const struct lists_run &a, const struct routed &r) {
    int u = lane_id(), e = r.id - a.e_begin;
    bool ours = u < a.n_pairs && e >= 0 && e < a.n_e;
    unsigned all = __ballot_sync(0xffffffffu, ours);
    int at = __popc(all & ((1u << u) - 1)), n = __popc(all);
    for (int i = u; i < 8 * n; i += 32)
        if (i % 8) a.l.row[i] = -1;
    if (ours) {
        a.l.row[8 * at] = 0;
        a.l.weight[8 * at] = r.weight;
        a.l.entries[at] = entry{ e, 8 * at, 1, { 0 }, { r.weight } };
    }
    if (u < a.n_pairs) a.l.slot[u] = ours ? 8 * at : -1;
    if (u == 0) *a.l.n_entries = n, *a.l.n_slots = 8 * n;
}

/* The first row's experts, to every warp's lanes: a thread per expert counts how many are better. Leaves the
 * scores in s->entry0. */
static __device__ int choose_by_block(const struct router &a, struct list_shared *s) {
    float *value = (float *)s->count;
    int e = (int)threadIdx.x, better = 0;
    float own = -INFINITY, score = 0;
    if (e < a.n_expert) score = sqrtf(f32_softplus(a.logits[e])), own = score + (a.bias ? a.bias[e] : 0);
    value[e] = own;
    ((float *)s->entry0)[e] = score;
    if (e < MOE_USED_MAX) s->first[e] = 0;         /* stays so where scores are no numbers */
    __syncthreads();
    for (int i = 0; i < a.n_expert; i += 4) {
        float4 v = *(const float4 *)(value + i);
        better += (v.x > own || (v.x == own && i < e)) + (v.y > own || (v.y == own && i + 1 < e)) +
                  (v.z > own || (v.z == own && i + 2 < e)) + (v.w > own || (v.w == own && i + 3 < e));
    }
    if (e < a.n_expert && better < a.n_used) s->first[better] = e;
    __syncthreads();
    return lane_id() < a.n_used ? s->first[lane_id()] : 0;
}

static __global__ void __launch_bounds__(LIST_THREADS)
    lists_kernel(const __grid_constant__ struct lists_run a) {
    __shared__ struct list_shared s;
    device_wait();
    make_lists(a, &s);
}

/* ---- few rows: all of it ---- */

struct activation {
    float *out;
    const float *gate, *up;
    struct act_out act;
    float clamp;
    int n;                                       /* values of a row */
};

/* Grid: 1 + rows of the activation. The first block routes and makes the lists. */
static __global__ void __launch_bounds__(FEW_THREADS)
    few_kernel(const __grid_constant__ struct router a, const __grid_constant__ struct lists_run l,
               const __grid_constant__ struct activation s, bool lists) {
    extern __shared__ __align__(16) float row[];
    __shared__ struct list_shared shared;
    if (blockIdx.x == 0 && a.bias && (int)threadIdx.x * 32 < a.n_expert)
        fetch_early(a.bias + threadIdx.x * 32);
    device_wait();
    int warp = (int)threadIdx.x / 32, warps = FEW_THREADS / 32;
    if (blockIdx.x == 0) {
        bool by_block = a.batch.n_rows == 1 && !a.tid2eid && a.n_expert <= FEW_THREADS;
        int own = by_block ? choose_by_block(a, &shared) : 0;
        struct routed routed = {};
        if (by_block && warp == 0)
            routed = write_scores(a, 0, own, ((const float *)shared.entry0)[own]);
        for (int r = warp; r < a.batch.n_rows && !by_block; r += warps)
            routed = write_route(a, r, a.tid2eid ? look_up(a, r) : choose_any(a, r));
        if (lists && l.n_pairs <= l.n_used) {
            if (warp == 0) make_lists_of_row(l, routed);
        } else if (lists) {
            __syncthreads();                     /* the block reads the ids that it wrote */
            make_lists(l, &shared);
        }
        return;
    }
    int64_t at = (int64_t)(blockIdx.x - 1) * s.n;
    for (int i = (int)threadIdx.x; i < s.n; i += FEW_THREADS)
        s.out[at + i] = row[i] = swiglu(s.gate[at + i], s.up[at + i], s.clamp);
    __syncthreads();
    act_emit(s.act, (int)blockIdx.x - 1, row, s.n, warp, warps);
}

/* ---- launching ---- */

bool lists_reserve(struct cuda *c, struct lists_run *l, const struct moe_experts_args *a) {
    *l = lists_run{};
    l->ids = (const int32_t *)a->ids->data, l->weights = f32_of(a->weights);
    l->n_pairs = a->n * a->n_used, l->n_used = a->n_used, l->e_begin = a->e_begin,
    l->n_e = a->e_end - a->e_begin;
    l->entry_pairs = a->n > GRAPH_ROWS_MAX ? ENTRY_PAIRS_MANY : ENTRY_PAIRS_FEW;
    CHECK(l->n_e <= EXPERTS_MAX);
    int experts = MIN(l->n_pairs, l->n_e);
    l->l.n_slots_max = (int)ALIGN_UP(l->n_pairs + 7 * experts, 8);
    l->l.n_entries_max = l->n_pairs / l->entry_pairs + experts;
    uint64_t ints = (uint64_t)l->l.n_slots_max * 2 + (uint64_t)l->n_pairs + 2;
    uint64_t entries = (uint64_t)l->l.n_entries_max * sizeof(struct entry);
    uint8_t *at = (uint8_t *)cuda_scratch(c, SCRATCH_LISTS, entries + ints * sizeof(int32_t));
    if (!at) return false;
    l->l.entries = (struct entry *)at;
    l->l.row = (int32_t *)(at + entries);
    l->l.weight = (float *)(l->l.row + l->l.n_slots_max);
    l->l.slot = l->l.row + 2 * (int64_t)l->l.n_slots_max;
    l->l.n_entries = l->l.slot + l->n_pairs, l->l.n_slots = l->l.n_entries + 1;
    return true;
}

void run_lists(struct cuda *c, const struct lists_run *l) {
    launch(c, lists_kernel, dim3(1), dim3(LIST_THREADS), 0, *l);
}

static bool add_swiglu(struct cuda *c, struct activation *s, const struct swiglu_args *a, uint32_t wanted) {
    *s = activation{};
    if (!a || a->gate->ne[0] > SWIGLU_MAX) return false;
    s->out = f32_of(a->out), s->gate = f32_of(a->gate), s->up = f32_of(a->up), s->clamp = a->clamp;
    s->n = (int)a->gate->ne[0];
    s->act = act_out(c, wanted, s->out, s->n, a->n);
    return true;
}

void run_moe_route(struct cuda *c, const struct moe_route_args *a, const struct moe_experts_args *experts,
                   const struct swiglu_args *swiglu, uint32_t swiglu_wanted) {
    struct router r = {};
    r.ids = (int32_t *)a->ids->data, r.weights = f32_of(a->weights), r.logits = f32_of(a->logits);
    r.bias = a->bias ? f32_of(a->bias) : NULL;
    r.tid2eid = a->tid2eid ? (const int32_t *)a->tid2eid->data : NULL;
    r.batch = c->batch.d, r.scale = a->scale, r.n_expert = (int)a->logits->ne[0], r.n_used = a->n_used;
    CHECK(r.n_expert <= EXPERTS_MAX);
    int32_t n = a->batch->n_rows;
    if (n > GRAPH_ROWS_MAX || c->base.timing) {
        launch(c, route_kernel, dim3(blocks_for(n, ROUTE_WARPS)), dim3(ROUTE_WARPS * 32), 0, r);
        return;
    }
    struct lists_run l = {};
    struct activation s = {};
    if (experts && lists_reserve(c, &l, experts)) c->listed_ids = r.ids;
    bool with_swiglu = add_swiglu(c, &s, swiglu, swiglu_wanted);
    unsigned blocks = 1 + (with_swiglu ? (unsigned)swiglu->n : 0);
    launch(c, few_kernel, dim3(blocks), dim3(FEW_THREADS), (size_t)s.n * sizeof(float), r, l, s,
           c->listed_ids == r.ids);
    if (swiglu && !with_swiglu) run_swiglu(c, swiglu, swiglu_wanted);
}
