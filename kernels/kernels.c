#include "kernels/kernels.h"

#include "common/base/check.h"

#include <string.h>
#include <time.h>

int32_t kv_row_bytes(enum numerics numerics, int32_t head_dim, int32_t n_rot) {
    int32_t n_nope = head_dim - n_rot;
    if (numerics == NUMERICS_EXACT) return head_dim * 4;
    return ALIGN_UP(n_nope + n_nope / 64 + n_rot * (numerics == NUMERICS_WIDE ? 4 : 2), 16);
}

int32_t kv_key_bytes(enum numerics numerics, int32_t idx_dim) {
    return numerics == NUMERICS_EXACT ? idx_dim * 4 : idx_dim / 2 + idx_dim / 32;
}

/* ---- opening ---- */

int kernels_open(struct kernels **out, const struct kernels_config *config, struct err *e) {
    const char *name = config->backend;
    if (name && strcmp(name, "cpu") == 0) return kernels_cpu_open(out, config, e);
    if (name && strcmp(name, "cuda") == 0) return kernels_cuda_open(out, config, e);
    if (name && strcmp(name, "metal") == 0) return kernels_metal_open(out, config, e);
    if (name) return err_set(e, ERR_INVALID, "unknown backend '%s' (cpu, cuda or metal)", name);
    if (kernels_metal_open(out, config, NULL) == 0 || kernels_cuda_open(out, config, NULL) == 0) return 0;
    return kernels_cpu_open(out, config, e);
}

void kernels_close(struct kernels *k) {
    if (k) k->ops->close(k);
}

#ifndef PLEIADES_CUDA
int kernels_cuda_open(struct kernels **out, const struct kernels_config *config, struct err *e) {
    (void)config;
    *out = NULL;
    return err_set(e, ERR_UNSUPPORTED, "this build has no CUDA backend");
}
#endif

#ifndef PLEIADES_METAL
int kernels_metal_open(struct kernels **out, const struct kernels_config *config, struct err *e) {
    (void)config;
    *out = NULL;
    return err_set(e, ERR_UNSUPPORTED, "this build has no Metal backend");
}
#endif

const char *kernels_op_name(enum kernel_op op) {
#define KERNEL_NAME(name) #name,
    static const char *const names[] = { KERNEL_OPS(KERNEL_NAME) };
#undef KERNEL_NAME
    return op < KERNEL_COUNT ? names[op] : "?";
}

/* ---- memory ---- */

struct kmem *kernels_alloc(struct kernels *k, uint64_t size, void **data, struct err *e) {
    return k->ops->alloc(k, size, data, e);
}

struct kmem *kernels_map(struct kernels *k, const void *host, uint64_t size, void **data, struct err *e) {
    return k->ops->map(k, host, size, data, e);
}

void kernels_release(struct kernels *k, struct kmem *mem) {
    if (mem) k->ops->release(k, mem);
}

int kernels_upload(struct kernels *k, void *to, const void *from_host, uint64_t size, struct err *e) {
    return k->ops->upload(k, to, from_host, size, e);
}

int kernels_download(struct kernels *k, void *to_host, const void *from, uint64_t size, struct err *e) {
    return k->ops->download(k, to_host, from, size, e);
}

int kernels_finish(struct kernels *k, struct err *e) {
    return k->ops->finish(k, e);
}

/* ---- argument checks: shapes against each other, once for every backend ---- */

static int64_t rows_of(const struct tensor *t) {
    return t->ne[1] * t->ne[2];
}

static bool is_f32(const struct tensor *t, int64_t row, int64_t n) {
    return t && t->data && t->type == DTYPE_F32 && t->ne[0] == row && rows_of(t) >= n;
}

static bool is_weight(const struct tensor *t, int64_t n_in, int64_t n_out) {
    return t && t->data && dtype_decodes(t->type) && t->ne[0] == n_in && rows_of(t) == n_out;
}

static bool is_i32(const struct tensor *t, int64_t row, int64_t n) {
    return t && t->data && t->type == DTYPE_I32 && t->ne[0] == row && rows_of(t) >= n;
}

static void check_embed(const struct embed_args *a) {
    CHECK(a->table && dtype_decodes(a->table->type) && a->batch->token);
    CHECK(is_f32(a->out, a->table->ne[0], (int64_t)a->batch->n_rows * a->n_streams));
}

static void check_hc_pre(const struct hc_pre_args *a) {
    int64_t n_embd = a->x->ne[0];
    CHECK(is_f32(a->x, n_embd, (int64_t)a->n * HC_STREAMS) && is_f32(a->out, n_embd, a->n));
    CHECK(is_f32(a->post, HC_STREAMS, a->n) && is_f32(a->comb, HC_STREAMS * HC_STREAMS, a->n));
    CHECK(is_weight(a->fn, n_embd * HC_STREAMS, HC_MIX) && is_f32(a->scale, 3, 1));
    CHECK(is_f32(a->base, HC_MIX, 1) && is_f32(a->norm, n_embd, 1) && a->n_sinkhorn >= 1);
}

static void check_hc_post(const struct hc_post_args *a) {
    int64_t n_embd = a->x->ne[0];
    CHECK(is_f32(a->x, n_embd, (int64_t)a->n * HC_STREAMS) && is_f32(a->y, n_embd, a->n));
    CHECK(!a->y2 || is_f32(a->y2, n_embd, a->n));
    CHECK(is_f32(a->post, HC_STREAMS, a->n) && is_f32(a->comb, HC_STREAMS * HC_STREAMS, a->n));
}

static void check_hc_head(const struct hc_head_args *a) {
    int64_t n_embd = a->x->ne[0];
    CHECK(is_f32(a->out, n_embd, a->n) && is_weight(a->fn, n_embd * HC_STREAMS, HC_STREAMS));
    CHECK(is_f32(a->scale, 1, 1) && is_f32(a->base, HC_STREAMS, 1) && is_f32(a->norm, n_embd, 1));
    for (int32_t i = 0; a->row_i && i < a->n; i++)
        CHECK(a->row_i[i] >= 0 && (a->row_i[i] + 1) * (int64_t)HC_STREAMS <= rows_of(a->x));
}

static void check_matmul(const struct matmul_args *a) {
    const struct tensor *w = a->weight;
    CHECK(a->n_group >= 1 && w && rows_of(w) % a->n_group == 0 && is_weight(w, w->ne[0], rows_of(w)));
    CHECK(is_f32(a->in, w->ne[0] * a->n_group, a->n) && is_f32(a->out, rows_of(w), a->n));
}

static void check_rms_norm(const struct rms_norm_args *a) {
    CHECK(is_f32(a->weight, a->in->ne[0], 1) && is_f32(a->in, a->in->ne[0], a->n));
    CHECK(is_f32(a->out, a->in->ne[0], a->n));
}

static void check_add_streams(const struct add_streams_args *a) {
    CHECK(is_f32(a->x, a->e->ne[0], (int64_t)a->n * HC_STREAMS) && is_f32(a->e, a->e->ne[0], a->n));
}

static void check_q_rope(const struct q_rope_args *a) {
    CHECK(is_f32(a->q, (int64_t)a->n_head * a->head_dim, a->n) && is_f32(a->rope, a->n_rot, a->n));
}

static void check_kv_rows(const struct kv_rows_args *a) {
    CHECK(a->rows->type == DTYPE_I8 && a->rows->ne[0] == a->layer->row_bytes && rows_of(a->rows) >= a->n);
    CHECK(is_f32(a->kv, a->layer->head_dim, a->n) && is_f32(a->norm, a->layer->head_dim, 1));
    CHECK(is_f32(a->rope, a->layer->n_rot, a->n));
}

static void check_kv_commit(const struct kv_commit_args *a) {
    CHECK(a->rows->ne[0] == a->layer->row_bytes && rows_of(a->rows) >= a->batch->n_rows);
}

static void check_compress(const struct compress_args *a) {
    int64_t dim = a->is_index ? a->layer->idx_dim : a->layer->head_dim, width = dim * (a->layer->overlap + 1);
    CHECK(a->layer->ratio > 0 && is_f32(a->kv, width, a->batch->n_rows));
    CHECK(is_f32(a->score, width, a->batch->n_rows) && is_weight(a->ape, width, a->layer->ratio));
    CHECK(is_f32(a->norm, dim, 1) && is_f32(a->rope, a->layer->n_rot, a->batch->n_rows));
}

static void check_index_select(const struct index_select_args *a) {
    int64_t n = a->n;
    CHECK(a->row0 >= 0 && a->row0 + a->n <= a->batch->n_rows);
    CHECK(a->layer->ratio > 0 && is_i32(a->sel, a->top_k, n) && is_i32(a->n_sel, 1, n));
    CHECK(!a->q || (is_f32(a->q, (int64_t)a->n_head * a->layer->idx_dim, n) &&
                    is_f32(a->weight, a->n_head, n)));
    CHECK(!a->q || is_f32(a->rope, a->layer->n_rot, n));
}

static void check_attention(const struct attention_args *a) {
    CHECK(is_f32(a->q, (int64_t)a->n_head * a->layer->head_dim, a->n) && is_f32(a->sinks, a->n_head, 1));
    CHECK(a->row0 >= 0 && a->row0 + a->n <= a->batch->n_rows && is_f32(a->rope, a->layer->n_rot, a->n));
    CHECK(a->rows->ne[0] == a->layer->row_bytes && rows_of(a->rows) >= a->batch->n_rows);
    CHECK(!a->sel || (is_i32(a->sel, a->sel->ne[0], a->n) && is_i32(a->n_sel, 1, a->n)));
}

static void check_swiglu(const struct swiglu_args *a) {
    CHECK(is_f32(a->gate, a->gate->ne[0], a->n) && is_f32(a->up, a->gate->ne[0], a->n));
    CHECK(is_f32(a->out, a->gate->ne[0], a->n));
}

static void check_moe_route(const struct moe_route_args *a) {
    int64_t n = a->batch->n_rows, n_expert = a->logits->ne[0];
    CHECK(a->n_used >= 1 && a->n_used <= MOE_USED_MAX && a->n_used <= n_expert);
    CHECK(is_f32(a->logits, n_expert, n) && (!a->bias || is_f32(a->bias, n_expert, 1)));
    CHECK(!a->tid2eid ||
          (a->tid2eid->type == DTYPE_I32 && a->tid2eid->ne[0] == a->n_used && a->batch->token));
    CHECK(is_i32(a->ids, a->n_used, n) && is_f32(a->weights, a->n_used, n));
}

static void check_moe_experts(const struct moe_experts_args *a) {
    int64_t n_embd = a->x->ne[0], n_ff = a->gate->ne[1], n_e = a->e_end - a->e_begin;
    CHECK(n_e >= 1 && a->gate->ne[2] == n_e && a->up->ne[2] == n_e && a->down->ne[2] == n_e);
    CHECK(is_weight(a->gate, n_embd, n_ff * n_e) && is_weight(a->up, n_embd, n_ff * n_e));
    CHECK(is_weight(a->down, n_ff, n_embd * n_e) && a->down->ne[1] == n_embd && a->up->ne[1] == n_ff);
    CHECK(is_f32(a->x, n_embd, a->n) && is_f32(a->out, n_embd, a->n) && a->n_used <= MOE_USED_MAX);
    CHECK(is_i32(a->ids, a->n_used, a->n) && is_f32(a->weights, a->n_used, a->n));
}

/* ---- calls ---- */

static uint64_t kernels_now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

#define KERNEL_DEFINE(name)                                                   \
    void kernels_##name(struct kernels *k, const struct name##_args *a) {     \
        check_##name(a);                                                      \
        uint64_t start = k->timing ? kernels_now_ns() : 0;                    \
        k->ops->name(k, a);                                                   \
        if (!k->timing) return;                                               \
        k->op_ns[KERNEL_##name] += kernels_now_ns() - start;                  \
        k->op_calls[KERNEL_##name]++;                                         \
    }
KERNEL_OPS(KERNEL_DEFINE)
