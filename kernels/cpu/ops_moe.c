/* Mixture of experts: routing, and the routed experts themselves.
 *
 *   rows ──lists──► (expert, its rows)            one list entry per (row, expert) pair, experts ascending
 *   gate, up        tasks (expert, tile of n_ff)  → hidden[pair][n_ff], weighted
 *   down            tasks tile of n_embd          → parts[pair][tile] for all experts, then the tree
 *     sum per row
 *
 * Each expert's weights are read once per batch however many rows chose it. */
#include "kernels/cpu/cpu.h"

#include "common/base/check.h"

#include <math.h>

enum { DOWN_TILE = 64, GATE_TILE = 64 };

/* ---- routing ---- */

struct route_job {
    const struct cpu *c;
    const struct moe_route_args *a;
    uint64_t stride;
    uint8_t *scores;                               /* per thread: [n_expert] */
};

static void sort_ids(int32_t *ids, int32_t n) {
    for (int32_t i = 1; i < n; i++)
        for (int32_t j = i; j > 0 && ids[j] < ids[j - 1]; j--) {
            int32_t swap = ids[j];
            ids[j] = ids[j - 1];
            ids[j - 1] = swap;
        }
}

/* The n_used largest of score + bias; of equals the lower number. Insertion into a short sorted list. */
static void route_top(const float *score, const float *bias, int32_t n_expert, int32_t n_used, int32_t *ids) {
    float best[MOE_USED_MAX];
    int32_t n = 0;
    for (int32_t e = 0; e < n_expert; e++) {
        float value = bias ? score[e] + bias[e] : score[e];
        if (n == n_used && !(value > best[n - 1])) continue;
        int32_t at = n < n_used ? n++ : n - 1;
        for (; at > 0 && value > best[at - 1]; at--) {
            best[at] = best[at - 1];
            ids[at] = ids[at - 1];
        }
        best[at] = value;
        ids[at] = e;
    }
}

static void route_task(void *ctx, int row, int thread) {
    const struct route_job *job = ctx;
    const struct moe_route_args *a = job->a;
    int32_t n_expert = (int32_t)a->logits->ne[0], n_used = a->n_used;
    float *score = (float *)(void *)(job->scores + job->stride * (uint64_t)thread);
    int32_t *ids = (int32_t *)a->ids->data + (int64_t)row * n_used;
    float *weights = f32_row(a->weights, row), sum = 0;
    job->c->simd->router_score(score, f32_row(a->logits, row), n_expert);
    if (a->tid2eid) {
        const int32_t *from = (const int32_t *)a->tid2eid->data + (int64_t)a->batch->token[row] * n_used;
        /* checked at load as well */
        for (int32_t i = 0; i < n_used; i++) ids[i] = MIN(MAX(from[i], 0), n_expert - 1);
    } else {
        route_top(score, a->bias ? a->bias->data : NULL, n_expert, n_used, ids);
    }
    sort_ids(ids, n_used);
    for (int32_t i = 0; i < n_used; i++) sum += weights[i] = score[ids[i]];
    sum = MAX(sum, 6.103515625e-5f);               /* no real router comes near: a guard against 0/0 */
    for (int32_t i = 0; i < n_used; i++) weights[i] = weights[i] / sum * a->scale;
}

void cpu_moe_route(struct kernels *k, const struct moe_route_args *a) {
    struct cpu *c = cpu_of(k);
    struct route_job job = { .c = c, .a = a };
    job.scores = cpu_scratch_threads(c, (uint64_t)a->logits->ne[0] * sizeof(float), &job.stride);
    if (job.scores) cpu_each(c, a->batch->n_rows, route_task, &job);
}

/* ---- experts ---- */

struct expert_list {                               /* an expert that some row chose */
    int32_t expert, first, n;                      /* its pairs: first .. first+n */
};

struct experts_job {
    struct cpu *c;
    const struct moe_experts_args *a;
    int32_t n_lists, n_pairs;
    struct expert_list *lists;                     /* [experts of the range] */
    int32_t *pair_row;                             /* [pairs] row of the batch, grouped by expert */
    float *pair_weight;
    int32_t *slot_pair;                  /* [n][n_used] pair of each of the row's experts, -1 when not ours */
    struct act x, hidden_act;
    float *hidden;                                 /* [pairs][n_ff] */
    int32_t n_tiles, tile;
    uint64_t stride;
    uint8_t *threads;
};

static bool experts_reserve(struct experts_job *job) {
    const struct moe_experts_args *a = job->a;
    uint64_t n_e = (uint64_t)(a->e_end - a->e_begin), slots = (uint64_t)a->n * (uint64_t)a->n_used;
    uint8_t *memory = cpu_scratch(job->c, SCRATCH_LISTS, n_e * sizeof *job->lists + slots * 12);
    if (!memory) return false;
    job->lists = (struct expert_list *)(void *)memory;
    job->pair_row = (int32_t *)(void *)(memory + n_e * sizeof *job->lists);
    job->pair_weight = (float *)(void *)(job->pair_row + slots);
    job->slot_pair = (int32_t *)(void *)(job->pair_weight + slots);
    return true;
}

/* Counting sort of (row, slot) by expert. */
static void experts_sort(struct experts_job *job) {
    const struct moe_experts_args *a = job->a;
    const int32_t *ids = a->ids->data;
    int32_t n_e = a->e_end - a->e_begin, n_slots = a->n * a->n_used, first = 0;
    for (int32_t e = 0; e < n_e; e++) job->lists[e] = (struct expert_list){ .expert = e };
    for (int32_t s = 0; s < n_slots; s++)
        if (ids[s] >= a->e_begin && ids[s] < a->e_end) job->lists[ids[s] - a->e_begin].n++;
    for (int32_t e = 0; e < n_e; e++) {
        job->lists[e].first = first;
        first += job->lists[e].n;
        job->lists[e].n = 0;
    }
    for (int32_t s = 0; s < n_slots; s++) {
        job->slot_pair[s] = -1;
        if (ids[s] < a->e_begin || ids[s] >= a->e_end) continue;
        struct expert_list *list = &job->lists[ids[s] - a->e_begin];
        int32_t pair = list->first + list->n++;
        job->pair_row[pair] = s / a->n_used;
        job->pair_weight[pair] = ((const float *)a->weights->data)[s];
        job->slot_pair[s] = pair;
    }
    job->n_pairs = first;
    for (int32_t e = 0; e < n_e; e++)
        if (job->lists[e].n) job->lists[job->n_lists++] = job->lists[e];
}

static struct mm_tile expert_tile(const struct experts_job *job, const struct tensor *w,
                                  const struct act *act, const struct expert_list *list,
                                  int64_t row0, int64_t n_w, int thread) {
    uint64_t row_bytes = dtype_row_bytes(w->type, (uint64_t)w->ne[0]);
    return (struct mm_tile){
        .type = w->type,
        .kind = act->kind,
        .row_bytes = (int64_t)row_bytes,
        .n_in = w->ne[0],
        .n_w = (int)n_w,
        .n_x = list->n,
        .w = (const uint8_t *)w->data + (uint64_t)(list->expert * w->ne[1] + row0) * row_bytes,
        .x = act,
        .scratch = cpu_mm_scratch(job->c, thread),
    };
}

static void gate_up_task(void *ctx, int task, int thread) {
    const struct experts_job *job = ctx;
    const struct moe_experts_args *a = job->a;
    const struct expert_list *list = &job->lists[task / job->n_tiles];
    int64_t n_ff = a->gate->ne[1], row0 = (int64_t)(task % job->n_tiles) * job->tile,
            n_w = MIN(job->tile, n_ff - row0);
    float *gate = (float *)(void *)(job->threads + job->stride * (uint64_t)thread),
          *up = gate + (int64_t)list->n * n_w;
    struct mm_tile tile = expert_tile(job, a->gate, &job->x, list, row0, n_w, thread);
    tile.x_row = job->pair_row + list->first;
    tile.out = gate;
    tile.out_stride = n_w;
    job->c->simd->matmul(&tile);
    tile = expert_tile(job, a->up, &job->x, list, row0, n_w, thread);
    tile.x_row = job->pair_row + list->first;
    tile.out = up;
    tile.out_stride = n_w;
    job->c->simd->matmul(&tile);
    for (int32_t i = 0; i < list->n; i++)
        job->c->simd->swiglu(job->hidden + (int64_t)(list->first + i) * n_ff + row0, gate + i * n_w,
                             up + i * n_w, a->clamp, job->pair_weight[list->first + i], n_w);
}

/* Tree sum over expert numbers: of neighbouring partial sums, those that share the most high bits are
 * added first. */
static void tree_sum(float **part, const int32_t *ids, int32_t n, int64_t width) {
    int32_t id[MOE_USED_MAX];
    memcpy(id, ids, (size_t)n * sizeof *id);
    while (n > 1) {
        int32_t best = 0;
        for (int32_t i = 1; i + 1 < n; i++)
            if ((id[i] ^ id[i + 1]) < (id[best] ^ id[best + 1])) best = i;
        for (int64_t d = 0; d < width; d++) part[best][d] += part[best + 1][d];
        for (int32_t i = best + 1; i + 1 < n; i++) {
            part[i] = part[i + 1];
            id[i] = id[i + 1];
        }
        n--;
    }
}

static void down_task(void *ctx, int task, int thread) {
    const struct experts_job *job = ctx;
    const struct moe_experts_args *a = job->a;
    int64_t n_embd = a->x->ne[0], row0 = (int64_t)task * job->tile, width = MIN(job->tile, n_embd - row0);
    float *parts = (float *)(void *)(job->threads + job->stride * (uint64_t)thread);
    for (int32_t l = 0; l < job->n_lists; l++) {
        const struct expert_list *list = &job->lists[l];
        struct act act = job->hidden_act;          /* pairs of an expert are adjacent rows */
        int64_t n_ff = act.n_in, first = list->first;
        act.f += first * n_ff;
        if (act.kind != ACT_F32) {
            act.q += first * n_ff;
            act.d += first * (n_ff / (act.kind == ACT_Q8_0 ? 32 : 256));
            act.sum += first * (n_ff / (act.kind == ACT_Q8_0 ? 32 : 16));
        }
        struct mm_tile tile = expert_tile(job, a->down, &act, list, row0, width, thread);
        tile.out = parts + first * width;
        tile.out_stride = width;
        job->c->simd->matmul(&tile);
    }
    for (int32_t row = 0; row < a->n; row++) {
        float *part[MOE_USED_MAX], *out = f32_row(a->out, row) + row0;
        int32_t ids[MOE_USED_MAX], n = 0;
        for (int32_t u = 0; u < a->n_used; u++) {
            int32_t slot = row * a->n_used + u;
            if (job->slot_pair[slot] < 0) continue;
            ids[n] = ((const int32_t *)a->ids->data)[slot];
            part[n++] = parts + (int64_t)job->slot_pair[slot] * width;
        }
        tree_sum(part, ids, n, width);
        if (n) memcpy(out, part[0], (size_t)width * sizeof *out);
        else memset(out, 0, (size_t)width * sizeof *out);
    }
}

void cpu_moe_experts(struct kernels *k, const struct moe_experts_args *a) {
    struct cpu *c = cpu_of(k);
    struct experts_job job = { .c = c, .a = a };
    int64_t n_embd = a->x->ne[0], n_ff = a->gate->ne[1];
    if (a->n == 0 || !experts_reserve(&job)) return;
    experts_sort(&job);
    int32_t longest = 0;
    for (int32_t l = 0; l < job.n_lists; l++) longest = MAX(longest, job.lists[l].n);
    enum act_kind kind = cpu_act_kind(c, a->gate->type);
    CHECK(kind == cpu_act_kind(c, a->up->type));
    job.hidden = cpu_scratch(c, SCRATCH_HIDDEN, (uint64_t)job.n_pairs * (uint64_t)n_ff * sizeof(float));
    if (!job.hidden || !cpu_act_prepare(c, &job.x, SCRATCH_ACT, kind, a->x->data, a->n, n_embd)) return;

    job.tile = (int32_t)MIN(GATE_TILE, n_ff);
    job.n_tiles = (int32_t)((n_ff + job.tile - 1) / job.tile);
    job.threads = cpu_scratch_threads(c, (uint64_t)longest * (uint64_t)job.tile * 2 * sizeof(float),
                                      &job.stride);
    if (!job.threads) return;
    pool_run(c->pool, job.n_lists * job.n_tiles, gate_up_task, &job);

    enum act_kind down_kind = cpu_act_kind(c, a->down->type);
    if (!cpu_act_prepare(c, &job.hidden_act, SCRATCH_ACT2, down_kind, job.hidden, job.n_pairs, n_ff)) return;
    job.tile = (int32_t)MIN(DOWN_TILE, n_embd);
    job.threads = cpu_scratch_threads(c, (uint64_t)job.n_pairs * (uint64_t)job.tile * sizeof(float),
                                      &job.stride);
    if (!job.threads) return;
    pool_run(c->pool, (int)((n_embd + job.tile - 1) / job.tile), down_task, &job);
}
