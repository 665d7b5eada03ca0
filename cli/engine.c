#include "cli/engine.h"

#include "common/base/check.h"
#include "common/sys/clock.h"

#include <stdio.h>
#include <stdlib.h>

enum { EVAL_ROWS = 16 };                           /* rows of logits held at once */

void engine_options_init(struct engine_options *o) {
    *o = (struct engine_options){ .numerics = "official", .precision = "fast", .n_seqs = 1 };
}

/* "2,5" becomes {0, 2, 5}; gives the number of stages. */
static int parse_cuts(const char *text, uint32_t n_layer, uint32_t begin[ENGINE_STAGES_MAX], struct err *e) {
    int n = 1;
    begin[0] = 0;
    while (text && *text) {
        char *end;
        unsigned long layer = strtoul(text, &end, 10);
        if (end == text || (*end && *end != ',') || layer <= begin[n - 1] || layer >= n_layer ||
            n == ENGINE_STAGES_MAX)
            return err_set(e, ERR_INVALID,
                           "--cuts: '%s' (ascending layers between 1 and %u, separated by commas)", text,
                           n_layer - 1);
        begin[n++] = (uint32_t)layer;
        text = *end ? end + 1 : end;
    }
    return n;
}

/* official at f32 precision keeps the rope values of the state in f32 too: nothing but the model's own
 * roundings. */
static enum numerics engine_numerics(const struct engine_options *o) {
    if (strcmp(o->numerics, "exact") == 0) return NUMERICS_EXACT;
    bool wide = strcmp(o->numerics, "official") == 0 && strcmp(o->precision, "f32") == 0;
    return wide ? NUMERICS_WIDE : NUMERICS_OFFICIAL;
}

static int open_stages(struct engine *g, const struct engine_options *o, struct err *e) {
    struct stage_config config = {
        .model_path = o->model,
        .mtp_path = o->mtp,
        .numerics = engine_numerics(o),
        .kernels = { .backend = o->backend,
                     .precision = strcmp(o->precision, "f32") == 0 ? PRECISION_F32 : PRECISION_FAST,
                     .n_threads = o->n_threads },
        .n_rows_max = (uint32_t)o->chunk,
        .n_slots = (uint32_t)o->n_seqs,
        .n_ctx_max = (uint32_t)o->ctx,
        .progress = o->progress,
        .progress_ctx = o->progress_ctx,
    };
    uint32_t begin[ENGINE_STAGES_MAX];
    struct gguf *file = NULL;
    struct hparams hp;
    int rc = gguf_open(&file, o->model, e), n = 1;
    if (rc == 0) rc = hparams_read(&hp, file, e);
    gguf_close(file);
    if (rc == 0) rc = n = parse_cuts(o->cuts, hp.n_layer, begin, e);
    for (int i = 0; rc >= 0 && i < n; i++) {
        config.layer_begin = begin[i];
        config.layer_end = i + 1 < n ? begin[i + 1] : hp.n_layer;
        rc = stage_model_open(&g->stage[i], &config, e);
        if (rc == 0) g->n_stages = i + 1;
    }
    return rc;
}

int engine_open(struct engine *g, const struct engine_options *o, struct err *e) {
    *g = (struct engine){ 0 };
    uint64_t start = clock_now_ns();
    int rc = open_stages(g, o, e);
    for (int i = 0; rc == 0 && i < g->n_stages; i++) rc = stage_seq_open(g->stage[i], &g->slot[i], e);
    if (rc == 0) {
        g->chunk = g->stage[0]->n_rows_max;
        g->n_ctx = o->ctx ? (uint32_t)o->ctx : engine_hparams(g)->n_ctx_train;
        if (o->chunk) g->chunk = MIN(g->chunk, (uint32_t)o->chunk);
        uint64_t floats = (uint64_t)g->stage[0]->n_rows_max * HC_STREAMS * engine_hparams(g)->n_embd;
        for (int i = 0; i < 2 && g->n_stages > 1; i++)
            if (!(g->x[i] = malloc(floats * sizeof(float))))
                rc = err_set(e, ERR_NOMEM, "no memory for the streams between stages");
    }
    if (rc < 0) engine_close(g);
    g->load_seconds = clock_seconds_since(start);
    return rc;
}

int engine_tokenizer(struct engine *g, struct err *e) {
    return g->tokenizer ? 0 : tokenizer_new(&g->tokenizer, stage_model_gguf(g->stage[0]), e);
}

void engine_close(struct engine *g) {
    for (int i = 0; i < g->n_stages; i++) stage_close(g->stage[i]);
    free(g->x[0]);
    free(g->x[1]);
    tokenizer_free(g->tokenizer);
    *g = (struct engine){ 0 };
}

/* A later stage that fails leaves the earlier ones longer than itself. They are taken back; where that is
 * too far, the sequence begins anew in all of them, so that no two stages ever hold different tokens. */
static void undo(struct engine *g, const struct stage_seg *segs, uint32_t n_seg, int n_done) {
    for (uint32_t s = 0; s < n_seg; s++) {
        bool back = true;
        for (int i = 0; i < n_done; i++)
            back &= stage_seq_rollback(g->stage[i], segs[s].slot,
                                       stage_seq_len(g->stage[i], segs[s].slot) - segs[s].n, NULL) == 0;
        for (int i = 0; i < g->n_stages && !back; i++) stage_seq_rollback(g->stage[i], segs[s].slot, 0, NULL);
    }
}

int engine_run(struct engine *g, const struct stage_seg *segs, uint32_t n_seg, const int32_t *logit_rows,
               uint32_t n_logits, float *logits, struct err *e) {
    struct stage_batch batch = { .segs = segs, .n_seg = n_seg };
    for (uint32_t i = 0; i < n_seg; i++) batch.n_rows += segs[i].n;
    for (int i = 0; i < g->n_stages; i++) {
        bool last = i + 1 == g->n_stages;
        batch.x_in = i ? g->x[(i + 1) % 2] : NULL;
        batch.x_out = last ? NULL : g->x[i % 2];
        batch.logit_rows = last ? logit_rows : NULL;
        batch.n_logits = last ? n_logits : 0;
        batch.logits = last ? logits : NULL;
        int rc = stage_run(g->stage[i], &batch, e);
        if (rc == 0) continue;
        undo(g, segs, n_seg, i);
        return rc;
    }
    return 0;
}

/* One chunk, and the logits of those of its rows that are among the last n_last of all n. */
static int eval_chunk(struct engine *g, const int32_t *token, uint32_t first, uint32_t n_chunk,
                      uint32_t n, uint32_t n_last, float *logits, engine_row *row, void *row_ctx,
                      struct err *e) {
    int32_t wanted[EVAL_ROWS];
    uint32_t first_row = n - n_last, n_wanted = 0;
    for (uint32_t i = 0; i < n_chunk; i++)
        if (first + i >= first_row) wanted[n_wanted++] = (int32_t)i;
    struct stage_seg seg = { .slot = g->slot[0], .n = n_chunk, .token = token + first };
    int rc = engine_run(g, &seg, 1, wanted, n_wanted, logits, e);
    for (uint32_t i = 0; rc >= 0 && i < n_wanted; i++)
        rc = row(row_ctx, first + (uint32_t)wanted[i] - first_row,
                 logits + (uint64_t)i * engine_hparams(g)->n_vocab, e);
    return rc;
}

int engine_eval(struct engine *g, const int32_t *token, uint32_t n, uint32_t n_last, engine_row *row,
                void *row_ctx, engine_progress *progress, void *progress_ctx, struct err *e) {
    n_last = MIN(n_last, n);
    if (n > g->n_ctx - engine_len(g)) /* said now, not after an hour of prefill */
        return err_set(e, ERR_LIMIT,
                       "%u tokens after %u are past the context limit of %u tokens (see --ctx)", n,
                       engine_len(g), g->n_ctx);
    float *logits = malloc((uint64_t)EVAL_ROWS * engine_hparams(g)->n_vocab * sizeof(float));
    if (!logits) return err_set(e, ERR_NOMEM, "no memory for logits");
    int rc = 0;
    for (uint32_t done = 0; rc >= 0 && done < n;) {
        uint32_t part = MIN(g->chunk, n - done), first_row = n - n_last;
        if (done + part > first_row) /* at most EVAL_ROWS wanted rows in a chunk */
            part = MIN(part, MAX(first_row, done) - done + EVAL_ROWS);
        rc = eval_chunk(g, token, done, part, n, n_last, logits, row, row_ctx, e);
        done += part;
        if (rc >= 0 && progress && !progress(progress_ctx, done, n))
            rc = err_set(e, ERR_CANCELLED, "stopped");
    }
    free(logits);
    return rc < 0 ? rc : 0;
}

uint32_t engine_len(const struct engine *g) {
    return stage_seq_len(g->stage[0], g->slot[0]);
}

int engine_rollback(struct engine *g, uint32_t n_tokens, struct err *e) {
    int rc = 0;
    for (int i = 0; rc == 0 && i < g->n_stages; i++)
        rc = stage_seq_rollback(g->stage[i], g->slot[i], n_tokens, e);
    return rc;
}
