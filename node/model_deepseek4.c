#include "node/model_deepseek4.h"

#include "common/base/check.h"
#include "node/experts_lead.h"

#include <stdlib.h>

/* ---- work tensors ---- */

#define MODEL_DIMENSIONS(hp)                                                                             \
    int64_t D = (hp)->n_embd, H = (hp)->n_head, HD = (hp)->head_dim, QL = (hp)->n_q_lora,                \
            OL = (hp)->n_out_lora, OG = (hp)->n_out_group, E = (hp)->n_expert, EU = (hp)->n_expert_used, \
            ES = (hp)->n_expert_shared, FF = (hp)->n_ff_exp, V = (hp)->n_vocab, IH = (hp)->n_idx_head,   \
            ID = (hp)->idx_dim, ROT = (hp)->n_rot

/* Lays tensors out one behind the other; with base NULL it only adds up. */
struct layout {
    uint8_t *base;
    struct kmem *mem;
    uint64_t size;
};

static struct tensor layout_tensor(struct layout *at, enum dtype type, int64_t row, int64_t rows) {
    struct tensor t = { .data = at->base ? at->base + at->size : NULL,
                        .mem = at->mem,
                        .type = type,
                        .ne = { row, rows, 1 } };
    at->size += ALIGN_UP((uint64_t)(row * rows) * dtype_block_bytes(type), (uint64_t)256);
    return t;
}

static void model_layout(struct model *m, struct layout *at, int32_t row_bytes) {
    MODEL_DIMENSIONS(m->hp);
    int64_t R = m->n_rows_max, B = MIN(R, m->block), L = MIN(R, MODEL_HEAD_ROWS);
#define MODEL_LAY(name, row, n) m->name = layout_tensor(at, DTYPE_F32, row, n);
    MODEL_TENSORS(MODEL_LAY)
#undef MODEL_LAY
    m->rows = layout_tensor(at, DTYPE_I8, row_bytes, R);
    m->ids = layout_tensor(at, DTYPE_I32, EU, R);
    m->sel = layout_tensor(at, DTYPE_I32, m->hp->idx_top_k, B);
    m->n_sel = layout_tensor(at, DTYPE_I32, 1, B);
    for (uint32_t i = 0; i < m->n_ratios; i++) m->rope_win[i] = layout_tensor(at, DTYPE_F32, ROT, R);
}

static int find_ratios(struct model *m, struct err *e) {
    for (uint32_t l = m->w->layer_begin; l < m->w->layer_end; l++) {
        uint32_t i = 0, ratio = m->hp->ratio[l];
        while (i < m->n_ratios && m->ratio[i] != ratio) i++;
        if (ratio == 0 || i < m->n_ratios) continue;
        if (i == MODEL_RATIOS_MAX)
            return err_set(e, ERR_UNSUPPORTED, "more than %d different compress ratios",
                           MODEL_RATIOS_MAX);
        m->ratio[m->n_ratios++] = ratio;
    }
    return 0;
}

int model_init(struct model *m, struct kernels *k, const struct hparams *hp, const struct weights *w,
               struct kv_cache *kv, struct kv_cache *kv_mtp, uint32_t n_rows_max, enum numerics numerics,
               struct err *e) {
    *m = (struct model){ .k = k, .hp = hp, .w = w, .kv = kv, .kv_mtp = kv_mtp, .n_rows_max = n_rows_max };
    m->block = MAX(k->block_rows, MODEL_BLOCK);
    int rc = find_ratios(m, e);
    if (rc < 0) return rc;
    int32_t row_bytes = kv_row_bytes(numerics, (int32_t)hp->head_dim, (int32_t)hp->n_rot);
    struct layout sum = { 0 };
    model_layout(m, &sum, row_bytes);
    void *data;
    m->mem_bytes = sum.size;
    m->mem = kernels_alloc(k, sum.size, &data, e);
    if (!m->mem) return err_wrap(e, ERR_NOMEM, "work space for batches of %u rows", n_rows_max);
    struct layout at = { .base = data, .mem = m->mem };
    model_layout(m, &at, row_bytes);
    m->rope_host = malloc((uint64_t)n_rows_max * hp->n_rot * sizeof(float));
    if (!m->rope_host) return err_set(e, ERR_NOMEM, "no memory for rope tables");
    rope_freqs_init(&m->freqs_base, hp, false);
    rope_freqs_init(&m->freqs_comp, hp, true);
    return 0;
}

void model_deinit(struct model *m) {
    kernels_release(m->k, m->mem);
    free(m->rope_host);
    *m = (struct model){ 0 };
}

/* n rows from row0 of a work tensor, seen as rows of `row` values (a prefix of the tensor's memory when
 * row is shorter). */
static struct tensor view(const struct tensor *t, int64_t row, int64_t row0, int64_t n) {
    struct tensor v = *t;
    CHECK(row <= t->ne[0] && row0 + n <= t->ne[1]);
    v.data = (uint8_t *)t->data + (uint64_t)(row0 * row) * dtype_block_bytes(t->type);
    v.ne[0] = row;
    v.ne[1] = n;
    return v;
}

/* ---- batch ---- */

static int upload_rope(struct model *m, const struct tensor *to, const struct rope_freqs *freqs,
                       const struct kbatch *batch, uint32_t window, struct err *e) {
    for (int32_t i = 0; i < batch->n_rows; i++) {
        int32_t pos = batch->pos[i],
                first = pos + 1 - (int32_t)window; /* window: position of its first token */
        if (window && (pos + 1) % (int32_t)window != 0) continue; /* no window ends here: never read */
        rope_fill(m->rope_host + (uint64_t)i * m->hp->n_rot, freqs, window ? first : pos);
    }
    return kernels_upload(m->k, to->data, m->rope_host,
                          (uint64_t)batch->n_rows * m->hp->n_rot * sizeof(float), e);
}

int model_begin(struct model *m, const struct kbatch *batch, struct err *e) {
    int rc = upload_rope(m, &m->rope_base, &m->freqs_base, batch, 0, e);
    if (rc == 0 && m->n_ratios) rc = upload_rope(m, &m->rope_comp, &m->freqs_comp, batch, 0, e);
    for (uint32_t i = 0; rc == 0 && i < m->n_ratios; i++)
        rc = upload_rope(m, &m->rope_win[i], &m->freqs_comp, batch, m->ratio[i], e);
    return rc;
}

void model_embed(struct model *m, const struct kbatch *batch) {
    kernels_embed(
        m->k, &(struct embed_args){
                  .out = &m->x, .table = &m->w->token_embd, .batch = batch, .n_streams = HC_STREAMS });
}

/* ---- one layer ---- */

struct layer_run {                                 /* what the parts of a layer share */
    struct model *m;
    struct experts_lead *lead;                     /* NULL: the layer's experts are all here */
    uint32_t layer;
    const struct layer_weights *w;
    const struct kv_layer *kv;
    const struct kbatch *batch;
    const struct tensor *rope, *rope_win;          /* rope_win NULL: no compressor */
    float clamp_exp, clamp_shexp;
    int32_t n;
    int32_t first; /* rows before it only feed the state: nobody reads their streams */
};

static void matmul(const struct layer_run *r, struct tensor *out, const struct tensor *in,
                   const struct tensor *weight, int64_t n) {
    kernels_matmul(r->m->k, &(struct matmul_args){
                                .out = out, .in = in, .weight = weight, .n = (int32_t)n, .n_group = 1 });
}

/* Router and compressor projections keep f32 activations whatever the weight's type (spec 2.12, 8.4). */
static void matmul_f32(const struct layer_run *r, struct tensor *out, const struct tensor *in,
                       const struct tensor *weight, int64_t n) {
    kernels_matmul(
        r->m->k,
        &(struct matmul_args){
            .out = out, .in = in, .weight = weight, .n = (int32_t)n, .n_group = 1, .f32_act = true });
}

/* The part of a work tensor from row `first` on, whole rows. */
static struct tensor from_row(const struct layer_run *r, const struct tensor *t, int32_t first) {
    return view(t, t->ne[0], first, r->n - first);
}

/* Streams of the rows from `first` on: four rows of x each. */
static struct tensor streams_from(const struct layer_run *r, int32_t first) {
    return view(&r->m->x, r->m->x.ne[0], (int64_t)first * HC_STREAMS, (int64_t)(r->n - first) * HC_STREAMS);
}

static void hc_pre(const struct layer_run *r, int32_t first, const struct tensor *fn,
                   const struct tensor *scale, const struct tensor *base, const struct tensor *norm) {
    struct model *m = r->m;
    struct tensor x = streams_from(r, first), xn = from_row(r, &m->xn, first);
    struct tensor post = from_row(r, &m->post, first), comb = from_row(r, &m->comb, first);
    kernels_hc_pre(m->k, &(struct hc_pre_args){ .out = &xn,
                                                .post = &post,
                                                .comb = &comb,
                                                .x = &x,
                                                .fn = fn,
                                                .scale = scale,
                                                .base = base,
                                                .norm = norm,
                                                .rms_eps = m->hp->rms_eps,
                                                .hc_eps = m->hp->hc_eps,
                                                .n_sinkhorn = (int32_t)m->hp->n_sinkhorn,
                                                .n = r->n - first });
}

static void hc_post(const struct layer_run *r, const struct tensor *y2) {
    struct model *m = r->m;
    struct tensor x = streams_from(r, r->first), y = from_row(r, &m->y, r->first);
    struct tensor post = from_row(r, &m->post, r->first), comb = from_row(r, &m->comb, r->first);
    kernels_hc_post(m->k,
                    &(struct hc_post_args){
                        .x = &x, .y = &y, .y2 = y2, .post = &post, .comb = &comb, .n = r->n - r->first });
}

/* Window rows, compressed entries, indexer keys of all rows of the batch. They come before attention,
 * because an entry that a token completes is visible to that token. */
static void layer_state(const struct layer_run *r) {
    struct model *m = r->m;
    const struct layer_weights *w = r->w;
    float eps = m->hp->rms_eps;
    matmul(r, &m->kv_row, &m->xn, &w->attn_kv, r->n);
    kernels_kv_rows(m->k, &(struct kv_rows_args){ .rows = &m->rows,
                                                  .kv = &m->kv_row,
                                                  .norm = &w->attn_kv_a_norm,
                                                  .rope = r->rope,
                                                  .layer = r->kv,
                                                  .eps = eps,
                                                  .n = r->n });
    if (!r->kv->ratio) return;
    int64_t width = r->kv->head_dim * (r->kv->overlap + 1);
    struct tensor kv = view(&m->comp_kv, width, 0, r->n), score = view(&m->comp_score, width, 0, r->n);
    matmul_f32(r, &kv, &m->xn, &w->comp_kv, r->n);
    matmul_f32(r, &score, &m->xn, &w->comp_gate, r->n);
    kernels_compress(m->k, &(struct compress_args){ .kv = &kv,
                                                    .score = &score,
                                                    .ape = &w->comp_ape,
                                                    .norm = &w->comp_norm,
                                                    .rope = r->rope_win,
                                                    .layer = r->kv,
                                                    .batch = r->batch,
                                                    .eps = eps,
                                                    .is_index = false });
    if (!r->kv->overlap) return;
    matmul_f32(r, &m->idx_kv, &m->xn, &w->idx_comp_kv, r->n);
    matmul_f32(r, &m->idx_score, &m->xn, &w->idx_comp_gate, r->n);
    kernels_compress(m->k, &(struct compress_args){ .kv = &m->idx_kv,
                                                    .score = &m->idx_score,
                                                    .ape = &w->idx_comp_ape,
                                                    .norm = &w->idx_comp_norm,
                                                    .rope = r->rope_win,
                                                    .layer = r->kv,
                                                    .batch = r->batch,
                                                    .eps = eps,
                                                    .is_index = true });
}

/* Is there a row among these that sees more entries than the indexer picks? Otherwise it picks all and
 * needs no scores. */
static bool must_score(const struct layer_run *r, int32_t row0, int32_t n) {
    for (int32_t i = row0; i < row0 + n; i++)
        if ((r->batch->pos[i] + 1) / r->kv->ratio > (int32_t)r->m->hp->idx_top_k) return true;
    return false;
}

static void block_index(const struct layer_run *r, int32_t row0, int32_t n, const struct tensor *rope) {
    struct model *m = r->m;
    struct tensor q = view(&m->q, (int64_t)m->hp->n_idx_head * m->hp->idx_dim, 0, n),
                  qr = view(&m->qr, m->hp->n_q_lora, row0, n);
    struct tensor xn = view(&m->xn, m->hp->n_embd, row0, n),
                  weight = view(&m->idx_w, m->hp->n_idx_head, 0, n);
    bool scored = must_score(r, row0, n);
    if (scored) {
        matmul(r, &q, &qr, &r->w->idx_q_b, n);
        matmul_f32(r, &weight, &xn, &r->w->idx_proj, n);
    }
    kernels_index_select(m->k, &(struct index_select_args){ .sel = &m->sel,
                                                            .n_sel = &m->n_sel,
                                                            .q = scored ? &q : NULL,
                                                            .weight = &weight,
                                                            .rope = rope,
                                                            .layer = r->kv,
                                                            .batch = r->batch,
                                                            .row0 = row0,
                                                            .n = n,
                                                            .n_head = (int32_t)m->hp->n_idx_head,
                                                            .top_k = (int32_t)m->hp->idx_top_k });
}

/* Queries, attention and output projection of rows row0 .. row0+n into m->y. */
static void block_attention(const struct layer_run *r, int32_t row0, int32_t n) {
    struct model *m = r->m;
    const struct hparams *hp = m->hp;
    struct tensor rope = view(r->rope, hp->n_rot, row0, n), qr = view(&m->qr, hp->n_q_lora, row0, n);
    struct tensor q = view(&m->q, (int64_t)hp->n_head * hp->head_dim, 0, n),
                  low = view(&m->low, m->low.ne[0], 0, n);
    struct tensor y = view(&m->y, hp->n_embd, row0, n);
    if (r->kv->overlap) block_index(r, row0, n, &rope);
    matmul(r, &q, &qr, &r->w->attn_q_b, n);
    kernels_q_rope(m->k, &(struct q_rope_args){ .q = &q,
                                                .rope = &rope,
                                                .eps = hp->rms_eps,
                                                .n = n,
                                                .n_head = (int32_t)hp->n_head,
                                                .head_dim = (int32_t)hp->head_dim,
                                                .n_rot = (int32_t)hp->n_rot });
    kernels_attention(m->k, &(struct attention_args){ .q = &q,
                                                      .rows = &m->rows,
                                                      .sinks = &r->w->attn_sinks,
                                                      .rope = &rope,
                                                      .sel = r->kv->overlap ? &m->sel : NULL,
                                                      .n_sel = &m->n_sel,
                                                      .layer = r->kv,
                                                      .batch = r->batch,
                                                      .row0 = row0,
                                                      .n = n,
                                                      .n_head = (int32_t)hp->n_head });
    kernels_matmul(m->k, &(struct matmul_args){
        .out = &low, .in = &q, .weight = &r->w->attn_output_a, .n = n, .n_group = (int32_t)hp->n_out_group });
    matmul(r, &y, &low, &r->w->attn_output_b, n);
}

/* From m->xn to m->y, and the state of all rows. */
static void attention(const struct layer_run *r) {
    struct model *m = r->m;
    matmul(r, &m->qr, &m->xn, &r->w->attn_q_a, r->n);
    kernels_rms_norm(m->k, &(struct rms_norm_args){
        .out = &m->qr, .in = &m->qr, .weight = &r->w->attn_q_a_norm, .eps = m->hp->rms_eps, .n = r->n });
    layer_state(r);
    for (int32_t row0 = r->first; row0 < r->n; row0 += r->m->block)
        block_attention(r, row0, MIN(r->m->block, r->n - row0));
    kernels_kv_commit(m->k, &(struct kv_commit_args){ .rows = &m->rows, .layer = r->kv, .batch = r->batch });
}

static void layer_attention(const struct layer_run *r) {
    hc_pre(r, 0, &r->w->hc_attn_fn, &r->w->hc_attn_scale, &r->w->hc_attn_base, &r->w->attn_norm);
    attention(r);
    if (r->first < r->n) hc_post(r, NULL);
}

/* From m->xn to m->y (routed experts) and m->y2 (the shared one, its first row for r->first). */
static void ffn(const struct layer_run *r, bool hashed) {
    struct model *m = r->m;
    const struct layer_weights *w = r->w;
    int32_t first = r->first, n = r->n - first;
    struct tensor xn = from_row(r, &m->xn, first), y = from_row(r, &m->y, first);
    struct kbatch batch =
        *r->batch; /* the rows that go on; segments keep naming rows of the whole batch */
    batch.n_rows = n, batch.token += first, batch.pos += first, batch.seg += first;
    int32_t e_begin = r->lead ? (int32_t)m->w->expert_begin : 0;
    matmul_f32(r, &m->route, &xn, &w->ffn_gate_inp, n);
    kernels_moe_route(m->k, &(struct moe_route_args){
        .ids = &m->ids, .weights = &m->route_w, .logits = &m->route, .bias = hashed ? NULL : &w->exp_probs_b,
        .tid2eid = hashed ? &w->ffn_gate_tid2eid : NULL, .batch = &batch, .scale = m->hp->expert_scale,
        .n_used = (int32_t)m->hp->n_expert_used });
    if (r->lead) experts_lead_ask(r->lead, r->layer, &xn, &m->route_w, &m->ids, n);
    kernels_moe_experts(
        m->k, &(struct moe_experts_args){ .out = &y,
                                          .x = &xn,
                                          .ids = &m->ids,
                                          .weights = &m->route_w,
                                          .gate = &w->ffn_gate_exps,
                                          .up = &w->ffn_up_exps,
                                          .down = &w->ffn_down_exps,
                                          .clamp = r->clamp_exp,
                                          .n = n,
                                          .n_used = (int32_t)m->hp->n_expert_used,
                                          .e_begin = e_begin,
                                          .e_end = e_begin + (int32_t)w->ffn_gate_exps.ne[2] });
    matmul(r, &m->gate, &xn, &w->ffn_gate_shexp, n);
    matmul(r, &m->up, &xn, &w->ffn_up_shexp, n);
    kernels_swiglu(
        m->k, &(struct swiglu_args){
                  .out = &m->gate, .gate = &m->gate, .up = &m->up, .clamp = r->clamp_shexp, .n = n });
    matmul(r, &m->y2, &m->gate, &w->ffn_down_shexp, n);
    if (r->lead) experts_lead_sum(r->lead, &y, n);
}

static void layer_ffn(const struct layer_run *r, bool hashed) {
    hc_pre(r, r->first, &r->w->hc_ffn_fn, &r->w->hc_ffn_scale, &r->w->hc_ffn_base, &r->w->ffn_norm);
    ffn(r, hashed);
    hc_post(r, &r->m->y2);
}

static const struct tensor *rope_window(const struct model *m, uint32_t ratio) {
    for (uint32_t i = 0; i < m->n_ratios; i++)
        if (m->ratio[i] == ratio) return &m->rope_win[i];
    return NULL;
}

static struct layer_run layer_run(struct model *m, const struct kbatch *batch, uint32_t layer,
                                  int32_t first) {
    uint32_t ratio = m->hp->ratio[layer];
    return (struct layer_run){
        .m = m,
        .lead = m->lead,
        .layer = layer,
        .w = &m->w->layer[layer],
        .kv = kv_layer_view(m->kv, layer),
        .batch = batch,
        .n = batch->n_rows,
        .first = first,
        .rope = ratio ? &m->rope_comp : &m->rope_base,
        .rope_win = rope_window(m, ratio),
        .clamp_exp = m->hp->swiglu_clamp_exp[layer],
        .clamp_shexp = m->hp->swiglu_clamp_shexp[layer],
    };
}

void model_layer(struct model *m, const struct kbatch *batch, uint32_t layer, int32_t first) {
    struct layer_run r = layer_run(m, batch, layer, first);
    layer_attention(&r);
    if (first < r.n) layer_ffn(&r, layer < m->hp->n_hash_layer);
}

void model_attention(struct model *m, const struct kbatch *batch, uint32_t layer) {
    struct layer_run r = layer_run(m, batch, layer, 0);
    attention(&r);
}

void model_ffn(struct model *m, const struct kbatch *batch, uint32_t layer) {
    struct layer_run r = layer_run(m, batch, layer, 0);
    ffn(&r, layer < m->hp->n_hash_layer);
}

/* ---- head ---- */

static void head_rows(struct model *m, const int32_t *row_i, int32_t n, const struct tensor *fn,
                      const struct tensor *scale, const struct tensor *base, const struct tensor *norm) {
    kernels_hc_head(m->k, &(struct hc_head_args){
        .out = &m->head, .x = &m->x, .fn = fn, .scale = scale, .base = base, .norm = norm, .row_i = row_i,
        .rms_eps = m->hp->rms_eps, .hc_eps = m->hp->hc_eps, .n = n });
    kernels_matmul(
        m->k, &(struct matmul_args){
                  .out = &m->logits, .in = &m->head, .weight = &m->w->output, .n = n, .n_group = 1 });
}

void model_head(struct model *m, const int32_t *row_i, int32_t n) {
    const struct weights *w = m->w;
    head_rows(m, row_i, n, &w->output_hc_fn, &w->output_hc_scale, &w->output_hc_base, &w->output_norm);
}

/* ---- MTP block (spec section 6): a sliding-window layer between the main model's streams and a second
 * prediction ---- */

void model_mtp(struct model *m, const struct kbatch *batch) {
    const struct mtp_weights *w = m->w->mtp;
    const struct hparams *hp = m->hp;
    struct layer_run r = {
        .m = m,
        .w = &w->layer,
        .kv = kv_layer_view(m->kv_mtp, hp->n_layer),
        .batch = batch,
        .n = batch->n_rows,
        .rope = &m->rope_base,
        .clamp_exp = hp->swiglu_clamp_exp[hp->n_layer - 1],
        .clamp_shexp = hp->swiglu_clamp_shexp[hp->n_layer - 1],
    };
    struct tensor streams = m->x;                  /* [4n] rows of n_embd */
    for (int32_t row0 = 0; row0 < r.n;
         row0 += (int32_t)(m->n_rows_max / HC_STREAMS)) { /* y holds n_rows_max rows: 4 streams each */
        int32_t n = MIN((int32_t)(m->n_rows_max / HC_STREAMS), r.n - row0);
        struct tensor part = view(&streams, hp->n_embd, (int64_t)row0 * HC_STREAMS, (int64_t)n * HC_STREAMS);
        kernels_rms_norm(m->k, &(struct rms_norm_args){
            .out = &m->y, .in = &part, .weight = &w->hnorm, .eps = hp->rms_eps, .n = n * HC_STREAMS });
        matmul(&r, &part, &m->y, &w->h_proj, n * HC_STREAMS);
    }
    kernels_embed(m->k, &(struct embed_args){
                            .out = &m->y, .table = &m->w->token_embd, .batch = batch, .n_streams = 1 });
    kernels_rms_norm(m->k,
                     &(struct rms_norm_args){
                         .out = &m->y, .in = &m->y, .weight = &w->enorm, .eps = hp->rms_eps, .n = r.n });
    matmul(&r, &m->y2, &m->y, &w->e_proj, r.n);
    kernels_add_streams(m->k, &(struct add_streams_args){ .x = &m->x, .e = &m->y2, .n = r.n });
    layer_attention(&r);
    layer_ffn(&r, false);
}

void model_mtp_head(struct model *m, const int32_t *row_i, int32_t n) {
    const struct mtp_weights *w = m->w->mtp;
    head_rows(m, row_i, n, &w->hc_head_fn, &w->hc_head_scale, &w->hc_head_base, &w->norm);
}
