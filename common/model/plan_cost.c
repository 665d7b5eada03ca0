/* The cost model: what a layer weighs, what a batch touches in it, how long that takes. */
#include "common/model/plan_parts.h"

#include "common/model/shard.h"

#include <math.h>
#include <stdio.h>

/* ---- what a layer weighs ---- */

static bool ends_with(struct gguf_str s, const char *with) {
    size_t n = strlen(with);
    return s.len >= n && memcmp(s.data + s.len - n, with, n) == 0;
}

static bool begins_with(struct gguf_str s, const char *with) {
    size_t n = strlen(with);
    return s.len >= n && memcmp(s.data, with, n) == 0;
}

/* One matrix product per token: 2 per weight. Vectors and the position table of a compressor are read,
 * not multiplied. */
static void add_matrix(double *int8, double *f32, uint32_t type, double n) {
    if (dtype_block(type) > 1) *int8 += 2 * n;
    else *f32 += 2 * n;
}

static void add_tensor(struct plan_layer *l, const struct hparams *hp, struct gguf_str rest,
                       uint32_t type, uint32_t n_dims, double values, uint64_t bytes) {
    if (ends_with(rest, "_exps.weight")) {
        l->expert_bytes += bytes / hp->n_expert;
        add_matrix(&l->expert_int8, &l->expert_f32, type, values / hp->n_expert);
    } else if (ends_with(rest, "tid2eid.weight")) {
        l->table_bytes += bytes;
    } else {
        l->dense_bytes += bytes;
        if (n_dims > 1 && !ends_with(rest, "_ape.weight"))
            add_matrix(&l->dense_int8, &l->dense_f32, type, values);
    }
}

int plan_model_read(struct plan_model *out, const struct gguf *g, struct err *e) {
    memset(out, 0, sizeof *out);
    int rc = hparams_read(&out->hp, g, e);
    if (rc < 0) return rc;
    for (uint64_t i = 0; i < gguf_n_tensors(g); i++) {
        const struct gguf_tensor *t = gguf_tensor_at(g, i);
        uint32_t layer;
        struct gguf_str rest;
        double values = (double)t->ne[0] * (double)t->ne[1] * (double)t->ne[2] * (double)t->ne[3];
        if (shard_layer_of(t->name, &layer, &rest)) {
            if (layer < out->hp.n_layer)
                add_tensor(&out->layer[layer], &out->hp, rest, t->type, t->n_dims, values, t->size);
        } else if (begins_with(t->name, "token_embd.")) {
            out->embed_bytes += t->size;
        } else if (begins_with(t->name, "output")) {
            out->head_bytes += t->size;
            if (t->n_dims > 1) add_matrix(&out->head_int8, &out->head_f32, t->type, values);
        }
    }
    for (uint32_t l = 0; l < out->hp.n_layer; l++)
        if (out->layer[l].dense_bytes == 0 || out->layer[l].expert_bytes == 0)
            return err_set(e, ERR_NOTFOUND,
                           "%s: holds no tensors of layer %u: a plan needs the whole model",
                           gguf_path(g, 0), l);
    return 0;
}

static void add_shape(struct plan_layer *l, const struct hparams *hp, const char *rest,
                      enum dtype type, uint64_t ne0, uint64_t ne1, uint64_t ne2) {
    uint64_t bytes = dtype_row_bytes(type, ne0) * ne1 * ne2;
    add_tensor(l, hp, (struct gguf_str){ rest, strlen(rest) }, type, ne1 * ne2 > 1 ? 2 : 1,
               (double)ne0 * (double)ne1 * (double)ne2, bytes);
}

static void shape_attention(struct plan_layer *l, const struct hparams *hp, uint32_t ratio) {
    uint64_t d = hp->n_embd, hd = hp->head_dim, q = hp->n_q_lora, heads = hd * hp->n_head,
             low = (uint64_t)hp->n_out_lora * hp->n_out_group;
    uint64_t c = ratio == 4 ? 2 : 1, id = hp->idx_dim;
    add_shape(l, hp, "attn_q_a.weight", DTYPE_Q8_0, d, q, 1);
    add_shape(l, hp, "attn_q_b.weight", DTYPE_Q8_0, q, heads, 1);
    add_shape(l, hp, "attn_kv.weight", DTYPE_Q8_0, d, hd, 1);
    add_shape(l, hp, "attn_output_a.weight", DTYPE_Q8_0, heads / hp->n_out_group, low, 1);
    add_shape(l, hp, "attn_output_b.weight", DTYPE_Q8_0, low, d, 1);
    add_shape(l, hp, "norms and sinks", DTYPE_F32, 2 * d + q + hd + hp->n_head, 1, 1);
    if (ratio == 0) return;
    add_shape(l, hp, "attn_compressor_kv and _gate", DTYPE_F16, d, 2 * hd * c, 1);
    add_shape(l, hp, "attn_compressor_ape.weight", DTYPE_F16, hd * c, ratio, 1);
    add_shape(l, hp, "attn_compressor_norm.weight", DTYPE_F32, hd, 1, 1);
    if (ratio != 4) return;
    add_shape(l, hp, "indexer.attn_q_b.weight", DTYPE_F16, q, id * hp->n_idx_head, 1);
    add_shape(l, hp, "indexer.proj.weight", DTYPE_F16, d, hp->n_idx_head, 1);
    add_shape(l, hp, "indexer_compressor_kv and _gate", DTYPE_F16, d, 2 * id * c, 1);
    add_shape(l, hp, "indexer_compressor_ape.weight", DTYPE_F16, id * c, ratio, 1);
    add_shape(l, hp, "indexer_compressor_norm.weight", DTYPE_F32, id, 1, 1);
}

static void shape_ffn(struct plan_layer *l, const struct hparams *hp, bool hash, enum dtype gate_up,
                      enum dtype down) {
    uint64_t d = hp->n_embd, ff = hp->n_ff_exp, e = hp->n_expert, s = hp->n_expert_shared;
    add_shape(l, hp, "hc_attn_fn and hc_ffn_fn", DTYPE_F16, 4 * d, 2 * (HP_HC * HP_HC + 2 * HP_HC), 1);
    add_shape(l, hp, "scales and bases", DTYPE_F32, 2 * (3 + HP_HC * HP_HC + 2 * HP_HC), 1, 1);
    add_shape(l, hp, "ffn_gate_inp.weight", DTYPE_F16, d, e, 1);
    if (hash) add_shape(l, hp, "ffn_gate_tid2eid.weight", DTYPE_I32, hp->n_expert_used, hp->n_vocab, 1);
    else add_shape(l, hp, "exp_probs_b.bias", DTYPE_F32, e, 1, 1);
    add_shape(l, hp, "shared gate and up", DTYPE_Q8_0, d, 2 * ff * s, 1);
    add_shape(l, hp, "ffn_down_shexp.weight", DTYPE_Q8_0, ff * s, d, 1);
    add_shape(l, hp, "ffn_gate_exps.weight", gate_up, d, ff, e);
    add_shape(l, hp, "ffn_up_exps.weight", gate_up, d, ff, e);
    add_shape(l, hp, "ffn_down_exps.weight", down, ff, d, e);
}

void plan_model_shape(struct plan_model *out, const struct hparams *hp, enum dtype gate_up, enum dtype down) {
    memset(out, 0, sizeof *out);
    out->hp = *hp;
    for (uint32_t l = 0; l < hp->n_layer; l++) {
        shape_attention(&out->layer[l], hp, hp->ratio[l]);
        shape_ffn(&out->layer[l], hp, l < hp->n_hash_layer, gate_up, down);
    }
    uint64_t d = hp->n_embd, v = hp->n_vocab;
    out->embed_bytes = dtype_row_bytes(DTYPE_F16, d) * v;
    out->head_bytes = dtype_row_bytes(DTYPE_Q8_0, d) * v + 4 * d + 2 * 4 * d * HP_HC + 4 * (HP_HC + 1);
    out->head_int8 = 2 * (double)d * (double)v;
    out->head_f32 = 2 * 4 * (double)d * HP_HC;
}

uint64_t plan_layer_bytes(const struct plan_model *m, uint32_t layer) {
    const struct plan_layer *l = &m->layer[layer];
    return l->table_bytes + l->dense_bytes + l->expert_bytes * m->hp.n_expert;
}

/* ---- what a batch touches ---- */

struct plan_work plan_work_add(struct plan_work a, struct plan_work b, double times_b) {
    return (struct plan_work){ a.bytes + times_b * b.bytes, a.int8 + times_b * b.int8,
                               a.f32 + times_b * b.f32 };
}

/* Attention and indexer of one token with n in the cache (spec 7.3), in the packed format of the state. */
static struct plan_work work_state(const struct hparams *hp, uint32_t layer, double n) {
    double rows = fmin(n, hp->n_swa), keys = 0, ratio = hp->ratio[layer];
    if (hparams_kind(hp, layer) == ATTN_HCA) rows += floor(n / ratio);
    if (hparams_kind(hp, layer) == ATTN_CSA) {
        keys = floor(n / ratio);
        rows += fmin(hp->idx_top_k, keys);
        if (keys <= hp->idx_top_k) keys = 0;
    }
    return (struct plan_work){
        rows * (double)hparams_entry_bytes(hp) + keys * (double)hparams_index_key_bytes(hp), 0,
        rows * 4 * hp->head_dim * hp->n_head + keys * 2 * hp->idx_dim * hp->n_idx_head,
    };
}

struct plan_work plan_work_dense(const struct plan_model *m, uint32_t layer, enum plan_kind kind,
                                 double rows, uint64_t depth) {
    const struct plan_layer *l = &m->layer[layer];
    struct plan_work w = { (double)l->dense_bytes, rows * l->dense_int8, rows * l->dense_f32 };
    struct plan_work state = work_state(&m->hp, layer, (double)depth);
    w.bytes += state.bytes * (kind == PLAN_DECODE ? rows : 1);
    w.f32 += state.f32 * rows;
    return w;
}

struct plan_work plan_work_experts(const struct plan_model *m, uint32_t layer, double rows) {
    const struct plan_layer *l = &m->layer[layer];
    double e = m->hp.n_expert, used = m->hp.n_expert_used;
    double distinct = rows <= 1 ? used * rows : e * (1 - pow(1 - used / e, rows));
    return (struct plan_work){ distinct * (double)l->expert_bytes, rows * used * l->expert_int8,
                               rows * used * l->expert_f32 };
}

struct plan_work plan_work_head(const struct plan_model *m, double rows) {
    return (struct plan_work){ (double)m->head_bytes, rows * m->head_int8, rows * m->head_f32 };
}

/* ---- how long it takes ---- */

double plan_seconds(const struct plan_machine *p, struct plan_work w) {
    return fmax(w.bytes / p->bytes_per_s, w.int8 / p->int8_per_s + w.f32 / p->f32_per_s);
}

double plan_layer_seconds(const struct plan_model *m, const struct plan_machine *p, uint32_t layer,
                          enum plan_kind kind, double rows, uint64_t depth) {
    struct plan_work w = plan_work_add(plan_work_dense(m, layer, kind, rows, depth),
                                       plan_work_experts(m, layer, rows), 1);
    return plan_seconds(p, w) + p->layer_s;
}

struct plan_helped plan_helped(const struct plan_model *m, const struct plan_machine *lead,
                               const struct plan_machine *helper, const struct plan_link *link,
                               uint32_t n_helper, uint32_t n_each, uint32_t layer, enum plan_kind kind,
                               double rows, uint64_t depth) {
    double share = (double)n_each / m->hp.n_expert;
    struct plan_work none = { 0 }, experts = plan_work_experts(m, layer, rows);
    /* all through the lead's own port */
    double wire = 2 * rows * 4 * m->hp.n_embd * n_helper / link->bytes_per_s;
    return (struct plan_helped){
        .dense = plan_seconds(lead, plan_work_dense(m, layer, kind, rows, depth)) + lead->layer_s,
        .here = plan_seconds(lead, plan_work_add(none, experts, 1 - share * n_helper)),
        .way = 2 * link->latency_s + wire,
        .there = plan_seconds(helper, plan_work_add(none, experts, share)) + helper->layer_s,
    };
}

double plan_send_seconds(const struct plan_model *m, const struct plan_link *link, double rows) {
    return rows * 4 * HP_HC * m->hp.n_embd / link->bytes_per_s;
}

double plan_result_seconds(const struct plan_link *link, double rows) {
    return rows * PLAN_RESULT_BYTES / link->bytes_per_s;
}

double plan_fetch_layer(const struct plan_model *m, const struct plan_machine *p, uint32_t layer,
                        double share, bool rest) {
    const struct plan_layer *l = &m->layer[layer];
    double experts = (double)l->expert_bytes * m->hp.n_expert, whole = (double)plan_layer_bytes(m, layer);
    if (!p->absent || p->absent->layer[layer] == 0) return 0;
    double part = (share * experts + (rest ? whole - experts : 0)) / whole;
    return p->absent->layer[layer] * part / PLAN_FETCH_TOKENS;
}

double plan_fetch_ends(const struct plan_machine *p, bool embed, bool head) {
    const struct plan_absent *a = p->absent;
    if (!a) return 0;
    return ((embed ? a->embed : 0) + (head ? a->head : 0)) / PLAN_FETCH_TOKENS;
}

double plan_groups(const struct plan_options *o, uint32_t n_stage) {
    return MIN(o->n_streams, n_stage);
}

/* ---- memory ---- */

uint64_t plan_state_bytes(const struct plan_model *m, const struct plan_options *o, uint32_t begin,
                          uint32_t end) {
    uint64_t bytes = 0;
    for (uint32_t l = begin; l < end; l++) bytes += hparams_state_bytes(&m->hp, l, o->n_ctx);
    return bytes * o->n_streams;
}

/* Per row: streams twice, q, heads, low-rank output, hidden rows of the experts; and rows of logits. */
uint64_t plan_work_bytes(const struct plan_model *m, const struct plan_options *o) {
    const struct hparams *hp = &m->hp;
    uint64_t row = 2 * HP_HC * (uint64_t)hp->n_embd + 2 * (uint64_t)hp->n_head * hp->head_dim +
                   (uint64_t)hp->n_out_lora * hp->n_out_group +
                   2 * (uint64_t)hp->n_expert_used * hp->n_ff_exp;
    return 4 * (row * o->chunk + (uint64_t)hp->n_vocab * MIN(o->n_streams, 64));
}

/* ---- input ---- */

void plan_options_init(struct plan_options *o) {
    *o = (struct plan_options){ .n_ctx = 32768, .n_streams = 1, .depth = 4096, .chunk = 1024 };
}

void plan_cluster_links(struct plan_cluster *c, struct plan_link link) {
    for (uint32_t i = 0; i < PLAN_MACHINES_MAX; i++) {
        c->coordinator[i] = link;
        for (uint32_t k = 0; k < PLAN_MACHINES_MAX; k++) c->link[i][k] = link;
    }
}

static bool positive(double x) {
    return x > 0 && x < 1e30;
}

static int check_link(const struct plan_link *l, const char *from, const char *to, struct err *e) {
    if (l->latency_s >= 0 && l->latency_s < 1e6 && positive(l->bytes_per_s)) return 0;
    return err_set(e, ERR_INVALID, "link %s - %s: latency %g s, %g bytes/s", from, to, l->latency_s,
                   l->bytes_per_s);
}

int plan_check_input(const struct plan_model *m, const struct plan_cluster *c,
                     const struct plan_options *o, struct err *e) {
    if (m->hp.n_layer < 1 || m->hp.n_layer > HP_LAYERS_MAX)
        return err_set(e, ERR_INVALID, "a model with %u layers", m->hp.n_layer);
    if (c->n < 1 || c->n > PLAN_MACHINES_MAX)
        return err_set(e, ERR_INVALID, "%u machines; 1 to %d are possible", c->n,
                       PLAN_MACHINES_MAX);
    if (o->n_streams < 1 || o->n_streams > 1 << 16 || o->n_ctx < 1 || o->n_ctx > 1 << 30 ||
        o->chunk < 1 || o->chunk > 1 << 16)
        return err_set(e, ERR_INVALID, "%u streams of %llu tokens in chunks of %u", o->n_streams,
                       (unsigned long long)o->n_ctx, o->chunk);
    if (o->depth > o->n_ctx) return err_set(e, ERR_INVALID, "depth of %llu tokens in a context of %llu",
                                            (unsigned long long)o->depth, (unsigned long long)o->n_ctx);
    for (uint32_t i = 0; i < c->n; i++) {
        const struct plan_machine *p = &c->machine[i];
        if (!positive(p->bytes_per_s) || !positive(p->int8_per_s) || !positive(p->f32_per_s) ||
            !(p->layer_s >= 0 && p->layer_s < 1e6) || p->memory >= UINT64_C(1) << 60)
            return err_set(e, ERR_INVALID,
                           "machine %s: bandwidth and rates must be known and positive", p->name);
        int rc = check_link(&c->coordinator[i], p->name, "coordinator", e);
        for (uint32_t k = 0; k < c->n && rc == 0; k++) {
            if (k == i) continue;
            rc = check_link(&c->link[i][k], p->name, c->machine[k].name, e);
            if (strcmp(p->name, c->machine[k].name) == 0)
                rc = err_set(e, ERR_INVALID, "two machines are called %s", p->name);
        }
        if (rc < 0) return rc;
    }
    return 0;
}
