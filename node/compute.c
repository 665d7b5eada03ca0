#include "node/compute.h"

#include "common/base/check.h"
#include "common/model/sampler.h"
#include "common/sys/clock.h"
#include "common/sys/host.h"
#include "node/experts.h"

#include <math.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>

enum { PART_ALIGN = 8, SLOT_NONE = -1 };

struct compute {
    struct compute_config config;
    struct stage *stage;                          /* NULL: none */
    struct experts *experts;                      /* instead of a stage: the share of a helper */
    struct stage_range helper[STAGE_HELPERS_MAX];  /* of the lead, as `held` */
    struct msg_assign held;                       /* what it was opened with */
    struct msg_ready ready;
    int64_t *slot;                                /* of the stage, by the core's number */
    struct sampler sampler;
    struct sampler_bias *bias;
    struct stage_seg *seg;
    int32_t *logit_row;
    uint32_t seg_room, row_room;
    float *x[2];                                  /* streams in and out, where they travel in 16 bits */
    uint64_t x_room[2];
    uint64_t epoch;                               /* that is being loaded */
    atomic_uint_fast64_t wanted_epoch;
};

struct compute *compute_new(const struct compute_config *config) {
    struct compute *c = xcalloc(1, sizeof *c);
    c->config = *config;
    c->slot = xcalloc(config->n_slot_max, sizeof *c->slot);
    for (uint32_t i = 0; i < config->n_slot_max; i++) c->slot[i] = SLOT_NONE;
    c->bias = xcalloc(MSG_BIAS_MAX, sizeof *c->bias);
    atomic_init(&c->wanted_epoch, 0);
    return c;
}

void compute_free(struct compute *c) {
    if (!c) return;
    experts_close(c->experts);
    stage_close(c->stage);
    sampler_deinit(&c->sampler);
    free(c->slot);
    free(c->bias);
    free(c->seg);
    free(c->logit_row);
    free(c->x[0]);
    free(c->x[1]);
    free(c);
}

void compute_give_up(struct compute *c, uint64_t before_epoch) {
    atomic_store(&c->wanted_epoch, before_epoch);
}

/* ---- loading ---- */

static bool on_progress(void *ctx, uint64_t done, uint64_t total) {
    struct compute *c = ctx;
    if (c->config.progress) c->config.progress(c->config.ctx, c->epoch, done, total);
    return atomic_load(&c->wanted_epoch) <= c->epoch;
}

static void close_all(struct compute *c) {
    for (uint32_t i = 0; i < c->config.n_slot_max; i++) {
        if (c->slot[i] != SLOT_NONE && c->stage) stage_seq_close(c->stage, (uint32_t)c->slot[i]);
        c->slot[i] = SLOT_NONE;
    }
}

static void drop_stage(struct compute *c) {
    close_all(c);
    experts_close(c->experts);
    c->experts = NULL;
    stage_close(c->stage);
    c->stage = NULL;
}

/* The stage that is open does for the new plan, too: the same layers with the same limits. */
static bool is_held(const struct compute *c, const struct compute_job *job) {
    const struct msg_assign *h = &c->held, *a = &job->assign;
    bool same_experts = h->is_helper == a->is_helper && h->expert_begin == a->expert_begin &&
                        h->expert_end == a->expert_end && h->n_helper == a->n_helper &&
                        memcmp(c->helper, job->helper, a->n_helper * sizeof c->helper[0]) == 0;
    return same_experts && (c->stage || c->experts) && h->model_lo == a->model_lo &&
           h->model_hi == a->model_hi && h->layer_begin == a->layer_begin &&
           h->layer_end == a->layer_end && h->numerics == a->numerics &&
           h->precision == a->precision && h->n_slot == a->n_slot && h->n_ctx_max == a->n_ctx_max &&
           h->n_rows_max == a->n_rows_max;
}

/* With fewer, another process of this host may want the same cores. */
static bool all_cores(const struct compute *c) {
    return (uint32_t)c->config.n_threads >= host_cores();
}

static int open_stage(struct compute *c, const struct compute_job *job, struct err *e) {
    const struct msg_assign *a = &job->assign;
    struct stage_config config = {
        .model_path = job->model_path,
        .layer_begin = a->layer_begin,
        .layer_end = a->layer_end,
        .numerics = (enum numerics)a->numerics,
        .kernels = { .backend = c->config.backend,
                     .precision = (enum precision)a->precision,
                     .n_threads = c->config.n_threads,
                     .pin_threads = all_cores(c) },
        .n_rows_max = a->n_rows_max,
        .n_slots = a->n_slot,
        .n_ctx_max = a->n_ctx_max,
        .progress = on_progress,
        .progress_ctx = c,
    };
    struct stage_experts x = { .own = { a->expert_begin, a->expert_end },
                               .n_helper = a->n_helper,
                               .ask = c->config.experts_ask,
                               .wait = c->config.experts_wait,
                               .ctx = c->config.ctx };
    memcpy(x.helper, job->helper, sizeof x.helper);
    if (a->n_helper && !x.ask) return err_set(e, ERR_UNSUPPORTED, "expert helpers cannot be asked here");
    if (a->expert_end) config.experts = &x;
    const struct stage_factory *f = c->config.factory;
    return f ? f->open(f, &c->stage, &config, e) : stage_model_open(&c->stage, &config, e);
}

static int open_experts(struct compute *c, const struct compute_job *job, struct err *e) {
    const struct msg_assign *a = &job->assign;
    struct experts_config config = {
        .model_path = job->model_path,
        .layer_begin = a->layer_begin,
        .layer_end = a->layer_end,
        .expert_begin = a->expert_begin,
        .expert_end = a->expert_end,
        .n_rows_max = a->n_rows_max,
        .kernels = { .backend = c->config.backend,
                     .precision = (enum precision)a->precision,
                     .n_threads = c->config.n_threads,
                     .pin_threads = all_cores(c) },
        .progress = on_progress,
        .progress_ctx = c,
    };
    if (c->config.factory) return err_set(e, ERR_UNSUPPORTED, "a stand-in has no experts");
    int rc = experts_open(&c->experts, &config, e);
    if (rc < 0) return rc;
    struct stage_memory m = experts_memory(c->experts);
    c->ready = (struct msg_ready){ .weights_bytes = m.weights,
                                   .work_bytes = m.work,
                                   .n_slot = a->n_slot,
                                   .n_ctx_max = a->n_ctx_max,
                                   .n_rows_max = a->n_rows_max };
    return 0;
}

/* What of the state fits beside weights and buffers. The first sequences cost their rings, all of them
 * their tokens. */
static void measure(struct compute *c, const struct msg_assign *a) {
    c->ready = (struct msg_ready){ .n_slot = a->n_slot,
                                   .n_ctx_max = a->n_ctx_max,
                                   .n_rows_max = MIN(a->n_rows_max, c->stage->n_rows_max) };
    if (c->config.factory) return;
    struct stage_memory m = stage_model_memory(c->stage);
    uint64_t empty = stage_model_state_bytes_for(c->stage, 1);
    uint64_t full = stage_model_state_bytes_for(c->stage, a->n_ctx_max);
    c->ready.weights_bytes = m.weights;
    c->ready.state_bytes = m.state;
    c->ready.work_bytes = m.work;
    if (!c->config.memory_bytes) return;
    uint64_t used = m.weights + m.work + a->n_slot * empty;
    uint64_t room = c->config.memory_bytes - MIN(used, c->config.memory_bytes);
    double per_token = (double)(full - MIN(empty, full)) / (double)a->n_ctx_max;
    double tokens = per_token > 0 ? (double)room / per_token : 1e15;
    if (tokens < (double)a->n_slot * a->n_ctx_max) c->ready.state_tokens_max = MAX((uint64_t)tokens, 1);
}

/* The loop's thread goes by the plan when it takes places for rows in and out, this one by the model. */
static int check_ends(const struct stage *s, const struct msg_assign *a, struct err *e) {
    if (s->has_embed == a->has_embed && s->has_head == a->has_head) return 0;
    return err_set(e, ERR_INVALID, "layers %u to %u of %u are not the %s that the plan takes them for",
                   s->layer_begin, s->layer_end - 1, s->hp.n_layer,
                   s->has_embed != a->has_embed ? "beginning" : "end");
}

static int open_layers(struct compute *c, const struct compute_job *job, struct err *e) {
    int rc = open_stage(c, job, e);
    if (rc == 0) rc = check_ends(c->stage, &job->assign, e);
    if (rc == 0 && c->sampler.n_vocab != (int)c->stage->hp.n_vocab) {
        sampler_deinit(&c->sampler);
        rc = sampler_init(&c->sampler, (int)c->stage->hp.n_vocab, e);
    }
    if (rc == 0) measure(c, &job->assign);
    return rc;
}

static int load(struct compute *c, struct compute_job *job, struct err *e) {
    const struct msg_assign *a = &job->assign;
    if (atomic_load(&c->wanted_epoch) > job->epoch) return err_set(e, ERR_CANCELLED, "a newer plan came");
    c->epoch = job->epoch;
    int rc = 0;
    if (is_held(c, job)) {
        close_all(c);
    } else {
        drop_stage(c);
        rc = a->is_helper ? open_experts(c, job, e) : open_layers(c, job, e);
        if (rc < 0) drop_stage(c);
        if (rc < 0) return rc;
        c->held = *a;
        memcpy(c->helper, job->helper, sizeof c->helper);
    }
    job->ready = c->ready;
    const struct hparams *hp = c->stage ? &c->stage->hp : experts_hparams(c->experts);
    job->n_embd = hp->n_embd;
    job->n_vocab = hp->n_vocab;
    job->n_expert_used = hp->n_expert_used;
    return 0;
}

/* ---- a batch ---- */

static int seq_copy(struct compute *c, const struct node_job_seg *s, uint32_t *slot, struct err *e) {
    if (s->from >= c->config.n_slot_max || c->slot[s->from] == SLOT_NONE)
        return err_set(e, ERR_INTERNAL, "the sequence to be copied is not there");
    return stage_seq_fork(c->stage, (uint32_t)c->slot[s->from], s->pos0, slot, e);
}

static int seq_prepare(struct compute *c, const struct node_job_seg *s, struct err *e) {
    if (s->slot >= c->config.n_slot_max) return err_set(e, ERR_INTERNAL, "slot %u", s->slot);
    if (s->open) {
        uint32_t slot;
        if (c->slot[s->slot] != SLOT_NONE) return err_set(e, ERR_INTERNAL, "slot %u is taken", s->slot);
        int rc = s->fork ? seq_copy(c, s, &slot, e) : stage_seq_open(c->stage, &slot, e);
        if (rc < 0) return rc;
        c->slot[s->slot] = slot;
    }
    if (c->slot[s->slot] == SLOT_NONE)
        return err_set(e, ERR_INTERNAL, "the batch that opened this sequence failed");
    uint32_t slot = (uint32_t)c->slot[s->slot], len = stage_seq_len(c->stage, slot);
    if (len != s->have)
        return err_set(e, ERR_INTERNAL, "a sequence holds %u tokens instead of %u", len, s->have);
    return len > s->pos0 ? stage_seq_rollback(c->stage, slot, s->pos0, e) : 0;
}

static void grow(struct compute *c, const struct node_job *j) {
    if (j->n_seg > c->seg_room) c->seg = xrealloc(c->seg, (c->seg_room = j->n_seg) * sizeof *c->seg);
    if (j->n_want > c->row_room)
        c->logit_row = xrealloc(c->logit_row, (c->row_room = j->n_want) * sizeof *c->logit_row);
}

/* Room for the streams of a batch in f32; it grows to the largest batch seen. */
static int streams_room(struct compute *c, int i, uint32_t n_row, struct err *e) {
    uint64_t bytes = compute_streams_bytes(c->stage->hp.n_embd, n_row, MSG_WIRE_F32);
    if (bytes <= c->x_room[i]) return 0;
    free(c->x[i]);
    c->x[i] = malloc(bytes);
    c->x_room[i] = c->x[i] ? bytes : 0;
    return c->x[i] ? 0 : err_set(e, ERR_NOMEM, "no memory for the streams of %u rows", n_row);
}

static int streams_begin(struct compute *c, const struct compute_job *job, struct stage_batch *b,
                         struct err *e) {
    int rc = 0;
    b->x_in = job->x_in;
    if (job->x_in && job->wire_in == MSG_WIRE_F16S) {
        rc = streams_room(c, 0, b->n_rows, e);
        if (rc == 0) streams_from_f16s(c->x[0], job->x_in, c->stage->hp.n_embd, b->n_rows);
        b->x_in = c->x[0];
    }
    if (c->stage->has_head) return rc;
    b->x_out = job->x_out;
    if (rc == 0 && job->wire_out == MSG_WIRE_F16S) {
        rc = streams_room(c, 1, b->n_rows, e);
        b->x_out = c->x[1];
    }
    return rc;
}

static int run_layers(struct compute *c, const struct compute_job *job, struct err *e) {
    const struct node_job *j = job->run;
    uint32_t row = 0;
    grow(c, j);
    for (uint32_t i = 0; i < j->n_seg; i++) {
        int rc = seq_prepare(c, &j->seg[i], e);
        if (rc < 0) return rc;
        c->seg[i] = (struct stage_seg){
            .slot = (uint32_t)c->slot[j->seg[i].slot], .n = j->seg[i].n, .token = j->token + row
        };
        row += j->seg[i].n;
    }
    for (uint32_t i = 0; i < j->n_want; i++) c->logit_row[i] = (int32_t)j->want[i].row;
    struct stage_batch batch = { .segs = c->seg, .n_seg = j->n_seg, .n_rows = j->n_row };
    if (c->stage->has_head) {
        batch.logit_rows = c->logit_row;
        batch.n_logits = j->n_want;
        batch.logits = job->logits;
    }
    int rc = streams_begin(c, job, &batch, e);
    if (rc == 0) rc = stage_run(c->stage, &batch, e);
    if (rc == 0 && batch.x_out && job->wire_out == MSG_WIRE_F16S)
        streams_to_f16s(job->x_out, batch.x_out, c->stage->hp.n_embd, j->n_row);
    return rc;
}

/* ---- what is shipped of a row ---- */

/* n_item_max comes from another machine: there are no more candidates than tokens. */
static uint32_t items_max(uint32_t n_vocab, const struct msg_want *want) {
    return MIN(want->n_item_max, n_vocab);
}

static uint64_t part_bytes_max(uint32_t n_vocab, const struct msg_want *want) {
    uint64_t items = (uint64_t)items_max(n_vocab, want) * sizeof(struct msg_item);
    return ALIGN_UP(MAX(items, n_vocab * UINT64_C(4)), (uint64_t)PART_ALIGN);
}

uint64_t compute_parts_bytes(uint32_t n_vocab, const struct msg_want *want, uint32_t n_want) {
    uint64_t sum = 0;
    for (uint32_t i = 0; i < n_want; i++) sum += part_bytes_max(n_vocab, &want[i]);
    return sum;
}

/* `adjusts` is all that is known here of penalties: any of them makes sampler_extract ship a reserve. */
static struct sampler_params params_of(struct compute *c, const struct node_job *j,
                                       const struct msg_want *w) {
    for (uint32_t i = 0; i < w->n_bias; i++) {
        const struct msg_bias *b = &j->bias[w->bias_begin + i];
        c->bias[i] = (struct sampler_bias){ b->id, b->bias };
    }
    return (struct sampler_params){ .temperature = w->temperature,
                                    .top_p = w->top_p,
                                    .min_p = w->min_p,
                                    .top_k = w->top_k,
                                    .repetition = 1,
                                    .presence = w->adjusts ? 1 : 0,
                                    .logprobs = w->logprobs,
                                    .n_top = (int)w->n_top,
                                    .bias = c->bias,
                                    .n_bias = (int)w->n_bias };
}

static int ship_row(struct compute *c, struct compute_job *job, uint32_t i, uint32_t *used, struct err *e) {
    const struct msg_want *w = &job->run->want[i];
    uint32_t n_vocab = c->stage->hp.n_vocab, room = job->parts_bytes - *used;
    const float *row = job->logits + (uint64_t)i * n_vocab;
    struct sampler_params p = params_of(c, job->run, w);
    struct sampler_candidates k;
    bool whole;
    int rc = sampler_extract(&c->sampler, row, &p, NULL, (int)items_max(n_vocab, w), &k, &whole, e);
    if (rc < 0) return rc;
    uint32_t bytes = whole ? n_vocab * (uint32_t)sizeof(float)
                           : (uint32_t)k.n_item * (uint32_t)sizeof(struct msg_item);
    CHECK(bytes <= room);
    job->row[i] = (struct msg_row_result){
        .row = w->row, .whole = whole, .offset = *used, .bytes = bytes, .n_vocab = n_vocab, .lse = NAN
    };
    if (!whole) {
        job->row[i].n_item = (uint32_t)k.n_item;
        job->row[i].left_id = k.left.id;
        job->row[i].left_logit = k.left.logit;
        job->row[i].temperature = k.temperature;
        job->row[i].sum = k.sum;
        job->row[i].lse = k.lse;
    }
    memcpy(job->parts + *used, whole ? (const void *)row : (const void *)k.item, bytes);
    *used += (uint32_t)ALIGN_UP(bytes, PART_ALIGN);
    return 0;
}

static int ship_rows(struct compute *c, struct compute_job *job, struct err *e) {
    uint32_t n = job->run->n_want, used = 0;
    if (n > job->row_room) job->row = xrealloc(job->row, (job->row_room = n) * sizeof *job->row);
    for (uint32_t i = 0; i < n; i++) {
        int rc = ship_row(c, job, i, &used, e);
        if (rc < 0) return rc;
    }
    job->parts_bytes = used;
    return 0;
}

static int run(struct compute *c, struct compute_job *job, struct err *e) {
    if (!c->stage) return err_set(e, ERR_INTERNAL, "no layers are loaded");
    int rc = run_layers(c, job, e);
    return rc == 0 && c->stage->has_head ? ship_rows(c, job, e) : rc;
}

/* ---- a question of a lead ---- */

static int run_experts(struct compute *c, const struct compute_job *job, struct err *e) {
    const struct msg_experts *q = &job->question;
    if (!c->experts) return err_set(e, ERR_STALE, "no experts are loaded");
    const float *rows = job->question_data,
                *weights = rows + (uint64_t)q->n_row * experts_hparams(c->experts)->n_embd;
    const int32_t *ids = (const int32_t *)(const void *)(weights + (uint64_t)q->n_row * q->n_used);
    return experts_run(c->experts, q->layer, q->n_row, q->n_used, rows, weights, ids, job->sums, e);
}

static void seq_close(struct compute *c, uint32_t slot) {
    if (slot >= c->config.n_slot_max || c->slot[slot] == SLOT_NONE) return;
    if (c->stage) stage_seq_close(c->stage, (uint32_t)c->slot[slot]);
    c->slot[slot] = SLOT_NONE;
}

void compute_do(struct compute *c, struct compute_job *job) {
    struct err e = { 0 };
    uint64_t start = clock_now_ns();
    job->code = 0;
    switch (job->kind) {
    case COMPUTE_LOAD: job->code = load(c, job, &e); break;
    case COMPUTE_RUN: job->code = run(c, job, &e); break;
    case COMPUTE_SEQ_CLOSE: seq_close(c, job->slot); break;
    case COMPUTE_EXPERTS: job->code = run_experts(c, job, &e); break;
    }
    snprintf(job->text, sizeof job->text, "%.200s", job->code < 0 ? e.text : "");
    job->compute_us = (uint32_t)MIN((clock_now_ns() - start) / 1000, (uint64_t)UINT32_MAX);
}
