/* Activations, prepared for the matrices: quantised or split once, then read by every tile of weights.
 *
 * The rounding is the CPU backend's; the split into two f16 keeps 22 bits below the stretch's largest
 * value, so that F16 weights meet what is as good as f32. SCRATCH_ACT remembers what it holds, because
 * consecutive operations often read the same rows. */
#include "kernels/cuda/act.cuh"

enum { ACT_WARPS = 4 };

struct prepare_args {
    struct act act;
    const float *x;
    const int32_t *from;                           /* NULL: row r */
    const int32_t *n_dev;                          /* NULL: n */
    int n_in;
};

/* Grid: rows x groups of stretches. */
template <enum act_kind KIND>
static __global__ void __launch_bounds__(ACT_WARPS * 32) act_kernel(struct prepare_args a) {
    device_wait();
    int r = (int)blockIdx.x, stretch = (int)blockIdx.y * ACT_WARPS + (int)threadIdx.x / 32;
    if (a.n_dev && r >= *a.n_dev) return;
    int row = a.from ? a.from[r] : r;
    const float *x = a.x + (int64_t)row * a.n_in;
    if (row < 0) return;
    if (KIND == ACT_Q8_0 && stretch * ACT_STRETCH_Q8_0 < a.n_in) act_q8_0(a.act, r, x, a.n_in, stretch);
    if (KIND == ACT_Q8_K && stretch * ACT_STRETCH_Q8_K < a.n_in) act_q8_k(a.act, r, x, stretch);
    if (KIND == ACT_F16X2 && stretch * ACT_STRETCH_F16X2 < a.n_in) act_f16x2(a.act, r, x, a.n_in, stretch);
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

void act_prepare(struct cuda *c, const struct act *act, enum act_kind kind, const float *x,
                 int64_t n_in, int32_t n, const int32_t *from, const int32_t *n_dev) {
    struct prepare_args a = { *act, x, from, n_dev, (int)n_in };
    dim3 block(ACT_WARPS * 32);
    switch (kind) {
    case ACT_Q8_0:
        launch(c, act_kernel<ACT_Q8_0>,
               dim3((unsigned)n, blocks_for(n_in, ACT_WARPS * ACT_STRETCH_Q8_0)), block, 0, a);
        break;
    case ACT_Q8_K:
        launch(c, act_kernel<ACT_Q8_K>,
               dim3((unsigned)n, blocks_for(n_in, ACT_WARPS * ACT_STRETCH_Q8_K)), block, 0, a);
        break;
    case ACT_F16X2:
        launch(c, act_kernel<ACT_F16X2>,
               dim3((unsigned)n, blocks_for(n_in, ACT_WARPS * ACT_STRETCH_F16X2)), block, 0, a);
        break;
    case ACT_KINDS: break;
    }
}

/* ---- what is prepared ---- */

/* Products of few rows know how many lie side by side: 8, 16, 32, 64. */
static int32_t act_pad(int32_t n) {
    return n <= 16 || n > GRAPH_ROWS_MAX ? ALIGN_UP(n, 8) : n <= 32 ? 32 : 64;
}

static struct act_entry *act_reserve(struct cuda *c, enum act_kind kind, const float *x,
                                     int64_t n_in, int32_t n) {
    int turn = c->act_turn[kind];
    struct act_entry *entry = &c->act[kind][turn];
    int64_t n_pad = act_pad(n);
    void *memory = cuda_scratch(c, (enum scratch_slot)(SCRATCH_ACT + 2 * kind + turn),
                                act_bytes(kind, n_in, n_pad));
    *entry = act_entry{};
    if (!memory) return NULL;
    *entry = act_entry{ x, n_in, n, act_at(memory, kind, n_in, n_pad) };
    c->act_turn[kind] = !turn;
    return entry;
}

const struct act *act_of(struct cuda *c, enum act_kind kind, const float *x, int64_t n_in, int32_t n) {
    for (int i = 0; i < 2; i++) {
        struct act_entry *entry = &c->act[kind][i];
        if (entry->x != x || entry->n_in != n_in || entry->n < n) continue;
        if (n <= GRAPH_ROWS_MAX && entry->act.n_pad != act_pad(n)) continue;
        c->act_turn[kind] = !i;                    /* about to be read: the other one goes next */
        return &entry->act;
    }
    struct act_entry *entry = act_reserve(c, kind, x, n_in, n);
    if (!entry) return NULL;
    act_prepare(c, &entry->act, kind, x, n_in, n, NULL, NULL);
    return &entry->act;
}

struct act_out act_out(struct cuda *c, uint32_t kinds, const float *x, int64_t n_in, int32_t n) {
    struct act_out out = {};
    for (int kind = 0; kind < ACT_KINDS; kind++) {
        int64_t unit = kind == ACT_Q8_0 ? 32 : kind == ACT_Q8_K ? 256 : 16;
        if (!(kinds & 1 << kind) || n_in % unit != 0) continue;
        struct act_entry *entry = act_reserve(c, (enum act_kind)kind, x, n_in, n);
        if (!entry) continue;
        out.kinds |= 1 << kind;
        out.act[kind] = entry->act;
    }
    return out;
}

void act_forget(struct cuda *c, const void *begin, const void *end) {
    for (int i = 0; i < ACT_KINDS * 2; i++) {
        struct act_entry *entry = &c->act[i / 2][i % 2];
        const uint8_t *first = (const uint8_t *)entry->x, *last = first + entry->n_in * entry->n * 4;
        if (entry->x && first < (const uint8_t *)end && (const uint8_t *)begin < last) *entry = act_entry{};
    }
}
