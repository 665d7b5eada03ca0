/* The real model behind the stage seam: opens its share of a GGUF, keeps the sequences' state, and runs
 * batches.
 *
 *   segments ──► rows (token, pos, seg) ──► rope tables ──► x: embeddings or x_in ──► layers ──►
 *     x_out, logits
 *
 * Lengths advance only when the whole batch has finished without an error. */
#include "node/stage.h"

#include "common/base/check.h"
#include "node/experts.h"
#include "node/experts_lead.h"
#include "node/model_deepseek4.h"

#include <stdlib.h>

enum { STAGE_SLOTS_DEFAULT = 8, STAGE_ROWS_MIN = 16, STAGE_ROWS_MAX = 1 << 16 };

struct stage_model {
    struct stage base;                             /* must be first */
    struct gguf *gguf, *mtp_gguf;
    struct kernels *k;
    struct weights *w;
    struct kv_cache *kv, *kv_mtp;
    struct experts_lead *lead;                     /* NULL: no helpers */
    struct model model;
    int32_t *token, *pos, *seg;                    /* [n_rows_max] the batch as rows */
    struct kseg *segs;
};

static struct stage_model *model_of(struct stage *s) {
    return (struct stage_model *)s;
}

static const struct stage_model *model_view(const struct stage *s) {
    return (const struct stage_model *)s;
}

/* ---- sequences: the MTP block's state has the same slots and is simply empty after a fork or restore
 *   ---- */

static int open_mtp_slot(struct stage_model *s, uint32_t slot, struct err *e) {
    uint32_t same = slot;
    int rc = s->kv_mtp ? kv_slot_open(s->kv_mtp, &same, e) : 0;
    if (rc < 0) kv_slot_close(s->kv, slot);
    CHECK(rc < 0 || same == slot);
    return rc;
}

static int sm_seq_open(struct stage *base, uint32_t *slot, struct err *e) {
    struct stage_model *s = model_of(base);
    int rc = kv_slot_open(s->kv, slot, e);
    return rc < 0 ? rc : open_mtp_slot(s, *slot, e);
}

static void sm_seq_close(struct stage *base, uint32_t slot) {
    kv_slot_close(model_of(base)->kv, slot);
    if (model_of(base)->kv_mtp) kv_slot_close(model_of(base)->kv_mtp, slot);
}

static uint32_t sm_seq_len(const struct stage *base, uint32_t slot) {
    return kv_slot_len(model_view(base)->kv, slot);
}

static int sm_seq_rollback(struct stage *base, uint32_t slot, uint32_t n_tokens, struct err *e) {
    struct stage_model *s = model_of(base);
    int rc = kv_slot_rollback(s->kv, slot, n_tokens, e);
    if (rc < 0 || !s->kv_mtp || kv_slot_len(s->kv_mtp, slot) <= n_tokens) return rc;
    if (kv_slot_rollback(s->kv_mtp, slot, n_tokens, NULL) < 0) return kv_slot_rollback(s->kv_mtp, slot, 0, e);
    return 0;
}

static int sm_seq_fork(struct stage *base, uint32_t from, uint32_t n_tokens, uint32_t *slot, struct err *e) {
    struct stage_model *s = model_of(base);
    int rc = kv_slot_fork(s->kv, from, n_tokens, slot, e);
    return rc < 0 ? rc : open_mtp_slot(s, *slot, e);
}

static int sm_seq_save(struct stage *base, uint32_t slot, struct buf *out, struct err *e) {
    return kv_slot_save(model_of(base)->kv, slot, out, e);
}

static int sm_seq_restore(struct stage *base, const void *data, size_t size, uint32_t *slot, struct err *e) {
    struct stage_model *s = model_of(base);
    int rc = kv_slot_restore(s->kv, data, size, slot, e);
    return rc < 0 ? rc : open_mtp_slot(s, *slot, e);
}

/* ---- running ---- */

/* Segments become rows; every sequence gets room for its new tokens. */
static int batch_rows(struct stage_model *s, struct kv_cache *kv, const struct stage_seg *segs,
                      uint32_t n_seg, struct kbatch *out, struct err *e) {
    int32_t row = 0;
    for (uint32_t i = 0; i < n_seg; i++) {
        if (!kv_slot_is_open(kv, segs[i].slot))
            return err_set(e, ERR_INVALID, "sequence %u is not open", segs[i].slot);
        if (!kv_slot_is_whole(kv, segs[i].slot))
            return err_set(e, ERR_INVALID, "sequence %u lost its state in a batch that failed", segs[i].slot);
        uint32_t len = kv_slot_len(kv, segs[i].slot);
        /* both fit 31 bits: n_ctx_max and a batch do */
        int rc = kv_slot_reserve(kv, segs[i].slot, len + segs[i].n, e);
        if (rc < 0) return rc;
        s->segs[i] = (struct kseg){
            .row0 = row, .n = (int32_t)segs[i].n, .pos0 = (int32_t)len, .slot = (int32_t)segs[i].slot
        };
        for (uint32_t t = 0; t < segs[i].n; t++, row++) {
            s->token[row] = segs[i].token[t];
            s->pos[row] = (int32_t)(len + t);
            s->seg[row] = (int32_t)i;
        }
    }
    *out = (struct kbatch){ .n_rows = row,
                            .n_seg = (int32_t)n_seg,
                            .token = s->token,
                            .pos = s->pos,
                            .seg = s->seg,
                            .segs = s->segs };
    return 0;
}

typedef void head_fn(struct model *m, const int32_t *row_i, int32_t n);

static int run_logits(struct stage_model *s, head_fn *head, const int32_t *rows, uint32_t n,
                      float *logits, struct err *e) {
    uint64_t row_floats = s->base.hp.n_vocab;
    uint32_t at_once = MIN(s->base.n_rows_max, MODEL_HEAD_ROWS);
    for (uint32_t i = 0; i < n; i += at_once) {
        uint32_t part = MIN(at_once, n - i);
        head(&s->model, rows + i, (int32_t)part);
        int rc = kernels_download(s->k, logits + i * row_floats, s->model.logits.data,
                                  part * row_floats * sizeof(float), e);
        if (rc < 0) return rc;
    }
    return 0;
}

static void begin(struct kv_cache *kv, const struct stage_seg *segs, uint32_t n_seg) {
    for (uint32_t i = 0; i < n_seg; i++) kv_slot_begin(kv, segs[i].slot, segs[i].n);
}

static void advance(struct kv_cache *kv, const struct stage_seg *segs, uint32_t n_seg) {
    for (uint32_t i = 0; i < n_seg; i++) kv_slot_advance(kv, segs[i].slot, segs[i].n);
}

static int streams_in(struct stage_model *s, const float *x, uint32_t n_rows, struct err *e) {
    return kernels_upload(s->k, s->model.x.data, x,
                          (uint64_t)n_rows * HC_STREAMS * s->base.hp.n_embd * sizeof(float), e);
}

static int streams_out(struct stage_model *s, float *x, uint32_t n_rows, struct err *e) {
    return kernels_download(s->k, x, s->model.x.data,
                            (uint64_t)n_rows * HC_STREAMS * s->base.hp.n_embd * sizeof(float), e);
}

static int sm_run(struct stage *base, const struct stage_batch *b, struct err *e) {
    struct stage_model *s = model_of(base);
    struct kbatch batch;
    int rc = batch_rows(s, s->kv, b->segs, b->n_seg, &batch, e);
    if (rc == 0) rc = model_begin(&s->model, &batch, e);
    if (rc == 0 && b->x_in) rc = streams_in(s, b->x_in, b->n_rows, e);
    if (rc < 0) return rc;
    begin(s->kv, b->segs, b->n_seg);
    experts_lead_begin(s->lead);
    if (!b->x_in) model_embed(&s->model, &batch);
    for (uint32_t l = base->layer_begin; l < base->layer_end; l++) {
        bool last = l + 1 == base->layer_end && !b->x_out;  /* only the rows with logits are still needed */
        model_layer(&s->model, &batch, l, !last ? 0 : b->n_logits ? b->logit_rows[0] : batch.n_rows);
    }
    if (b->x_out) rc = streams_out(s, b->x_out, b->n_rows, e);
    if (rc == 0) rc = run_logits(s, model_head, b->logit_rows, b->n_logits, b->logits, e);
    int rc_finish = kernels_finish(s->k, rc < 0 ? NULL : e);
    if (rc < 0 || rc_finish < 0) return rc < 0 ? rc : rc_finish;
    rc = experts_lead_result(s->lead, e);
    if (rc < 0) return rc;
    advance(s->kv, b->segs, b->n_seg);
    return 0;
}

static int sm_run_mtp(struct stage *base, const struct stage_mtp_batch *b, struct err *e) {
    struct stage_model *s = model_of(base);
    struct kbatch batch;
    int rc = batch_rows(s, s->kv_mtp, b->segs, b->n_seg, &batch, e);
    if (rc == 0) rc = model_begin(&s->model, &batch, e);
    if (rc == 0) rc = streams_in(s, b->x_in, b->n_rows, e);
    if (rc < 0) return rc;
    begin(s->kv_mtp, b->segs, b->n_seg);
    model_mtp(&s->model, &batch);
    if (b->x_out) rc = streams_out(s, b->x_out, b->n_rows, e);
    int32_t *all = malloc(b->n_rows * sizeof *all);
    if (!all) return err_set(e, ERR_NOMEM, "no memory for a batch of %u rows", b->n_rows);
    for (uint32_t i = 0; i < b->n_rows; i++) all[i] = (int32_t)i;
    if (rc == 0) rc = run_logits(s, model_mtp_head, all, b->n_rows, b->logits, e);
    free(all);
    int rc_finish = kernels_finish(s->k, rc < 0 ? NULL : e);
    if (rc < 0 || rc_finish < 0) return rc < 0 ? rc : rc_finish;
    advance(s->kv_mtp, b->segs, b->n_seg);
    return 0;
}

/* ---- open and close ---- */

static void sm_close(struct stage *base) {
    struct stage_model *s = model_of(base);
    if (s->k) {
        model_deinit(&s->model);
        experts_lead_free(s->lead);
        kv_cache_free(s->kv);
        kv_cache_free(s->kv_mtp);
        weights_close(s->w, s->k);
        kernels_close(s->k);
    }
    gguf_close(s->mtp_gguf);
    gguf_close(s->gguf);
    free(s->token);
    free(s->pos);
    free(s->seg);
    free(s->segs);
    free(s);
}

static const struct stage_ops stage_model_ops = {
    .close = sm_close,
    .seq_open = sm_seq_open,
    .seq_close = sm_seq_close,
    .seq_len = sm_seq_len,
    .seq_rollback = sm_seq_rollback,
    .seq_fork = sm_seq_fork,
    .seq_save = sm_seq_save,
    .seq_restore = sm_seq_restore,
    .run = sm_run,
    .run_mtp = sm_run_mtp,
};

static int open_files(struct stage_model *s, const struct stage_config *config, struct err *e) {
    int rc = gguf_open(&s->gguf, config->model_path, e);
    if (rc == 0) rc = hparams_read(&s->base.hp, s->gguf, e);
    if (rc == 0 && config->mtp_path) rc = gguf_open(&s->mtp_gguf, config->mtp_path, e);
    return rc;
}

static int open_range(struct stage_model *s, const struct stage_config *config, struct err *e) {
    struct stage *base = &s->base;
    base->layer_begin = config->layer_begin;
    base->layer_end = config->layer_end ? config->layer_end : base->hp.n_layer;
    if (base->layer_begin >= base->layer_end || base->layer_end > base->hp.n_layer)
        return err_set(e, ERR_INVALID, "layers %u to %u of a model with %u", base->layer_begin,
                       base->layer_end, base->hp.n_layer);
    base->has_embed = base->layer_begin == 0;
    base->has_head = base->layer_end == base->hp.n_layer;
    base->has_mtp = config->mtp_path != NULL && base->has_head;
    base->n_rows_max = config->n_rows_max ? config->n_rows_max : STAGE_ROWS_DEFAULT;
    base->n_rows_max = MIN(MAX(base->n_rows_max, STAGE_ROWS_MIN), STAGE_ROWS_MAX);
    return 0;
}

static int open_device(struct stage_model *s, const struct stage_config *config, struct err *e) {
    struct weights_range range = { .layer_begin = s->base.layer_begin,
                                   .layer_end = s->base.layer_end,
                                   .embed = s->base.has_embed || s->base.has_mtp,
                                   .head = s->base.has_head };
    if (config->experts) {
        range.expert_begin = config->experts->own.begin;
        range.expert_end = config->experts->own.end;
    }
    int rc = kernels_open(&s->k, &config->kernels, e);
    if (rc == 0)
        rc = weights_open(&s->w, s->k, s->gguf, &s->base.hp, &range, config->progress,
                          config->progress_ctx, e);
    if (rc == 0 && s->base.has_mtp) rc = weights_open_mtp(s->w, s->k, s->mtp_gguf, &s->base.hp, e);
    return rc;
}

static int open_state(struct stage_model *s, const struct stage_config *config, struct err *e) {
    struct kv_config kv = {
        .hp = &s->base.hp,
        .numerics = config->numerics,
        .layer_begin = s->base.layer_begin,
        .layer_end = s->base.layer_end,
        .n_slots = config->n_slots ? config->n_slots : STAGE_SLOTS_DEFAULT,
        .n_ctx_max = config->n_ctx_max ? config->n_ctx_max : s->base.hp.n_ctx_train,
    };
    int rc = kv_cache_new(&s->kv, s->k, &kv, e);
    kv.layer_begin = kv.layer_end = s->base.hp.n_layer;
    kv.mtp = true;
    if (rc == 0 && s->base.has_mtp) rc = kv_cache_new(&s->kv_mtp, s->k, &kv, e);
    if (rc == 0)
        rc = model_init(&s->model, s->k, &s->base.hp, s->w, s->kv, s->kv_mtp, s->base.n_rows_max,
                        config->numerics, e);
    if (rc == 0 && config->experts) rc = experts_check(config->experts, s->base.hp.n_expert, e);
    if (rc == 0 && config->experts && config->experts->n_helper)
        rc = experts_lead_new(&s->lead, s->k, &s->base.hp, config->experts, s->base.n_rows_max, e);
    s->model.lead = s->lead;
    uint64_t n = s->base.n_rows_max;
    s->token = xcalloc(n, sizeof *s->token);
    s->pos = xcalloc(n, sizeof *s->pos);
    s->seg = xcalloc(n, sizeof *s->seg);
    s->segs = xcalloc(n, sizeof *s->segs);
    return rc;
}

int stage_model_open(struct stage **out, const struct stage_config *config, struct err *e) {
    *out = NULL;
    struct stage_model *s = xcalloc(1, sizeof *s);
    s->base.ops = &stage_model_ops;
    int rc = open_files(s, config, e);
    if (rc == 0) rc = open_range(s, config, e);
    if (rc == 0) rc = open_device(s, config, e);
    if (rc == 0) {
        rc = open_state(s, config, e);
        if (rc < 0) rc = err_wrap(e, rc, "%s", config->model_path);    /* the others name their file */
    }
    if (rc < 0) {
        sm_close(&s->base);
        return rc;
    }
    *out = &s->base;
    return 0;
}

struct stage_memory stage_model_memory(const struct stage *base) {
    const struct stage_model *s = model_view(base);
    return (struct stage_memory){
        .weights = s->w->bytes,
        .state = kv_cache_bytes(s->kv) + (s->kv_mtp ? kv_cache_bytes(s->kv_mtp) : 0),
        .work = s->model.mem_bytes,
    };
}

struct kernels *stage_model_kernels(struct stage *s) {
    return model_of(s)->k;
}

uint64_t stage_model_state_bytes_for(const struct stage *s, uint32_t n_tokens) {
    return kv_cache_bytes_for(model_view(s)->kv, n_tokens);
}

const struct gguf *stage_model_gguf(const struct stage *s) {
    return model_view(s)->gguf;
}
