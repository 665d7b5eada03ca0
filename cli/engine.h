/* engine - the model in this process, for the commands that need no cluster: one stage, or several that
 * pass streams on.
 *
 * Cutting the layers into stages gives the same bits; it exists so that tests can prove that. Prompts run
 * in chunks. One thread. Everything is freed by engine_close. */
#ifndef CLI_ENGINE_H
#define CLI_ENGINE_H

#include "cli/opts.h"
#include "common/model/tokenizer.h"
#include "node/stage.h"

enum { ENGINE_STAGES_MAX = HP_LAYERS_MAX };

typedef bool weights_progress_fn(void *ctx, uint64_t done, uint64_t total);

struct engine_options {                            /* what the commands' options fill in */
    const char *model, *mtp, *numerics, *precision, *backend, *cuts;
    int n_threads, chunk, ctx, n_seqs;
    weights_progress_fn *progress;                 /* NULL: silent */
    void *progress_ctx;
};

struct engine {
    struct stage *stage[ENGINE_STAGES_MAX];
    int n_stages;
    float *x[2];                                   /* streams between stages */
    struct tokenizer *tokenizer;                   /* NULL until engine_tokenizer */
    uint32_t chunk, n_ctx;
    uint32_t slot[ENGINE_STAGES_MAX];              /* of the one sequence that engine_eval works on */
    double load_seconds;
};

void engine_options_init(struct engine_options *o);
/* The options every such command has; `n` entries of a table. */
#define ENGINE_OPTS(o) ENGINE_OPTS_OR(o, "the GGUF file (required)")
#define ENGINE_OPTS_OR(o, model_help)                                                                    \
    OPT_STRING('m', "model", &(o).model, "FILE", model_help),                                            \
        OPT_INT('t', "threads", &(o).n_threads, 0, 256, "N", "compute threads; 0: all cores"),           \
        OPT_INT(0, "chunk", &(o).chunk, 0, 65536, "N",                                                   \
                "prompt tokens computed at once; 0: a good default"),                                    \
        OPT_INT('c', "ctx", &(o).ctx, 0, 1 << 30, "N", "context limit in tokens; 0: the model's"),       \
        OPT_CHOICE(0, "numerics", &(o).numerics, "official|official-f16|exact",                          \
                   "state rounded as the model was trained (with f32 precision: rope values in f32; "    \
                   "-f16: in f16), or not at all"),                                                      \
        OPT_CHOICE(0, "precision", &(o).precision, "fast|f32",                                           \
                   "int8 activations for quantised weights, or f32 everywhere"),                         \
        OPT_STRING(0, "backend", &(o).backend, "NAME",                                                   \
                   "cpu, cuda or metal; default: the best one here"),                                    \
        OPT_STRING(0, "cuts", &(o).cuts, "L1,L2,..",                                                     \
                   "run the layers as separate slices, cut before these layers")

int engine_open(struct engine *g, const struct engine_options *o, struct err *e);
void engine_close(struct engine *g);               /* a zeroed struct is fine */
int engine_tokenizer(struct engine *g, struct err *e);

static inline const struct hparams *engine_hparams(const struct engine *g) {
    return &g->stage[0]->hp;
}

/* Called between chunks with the tokens done; false stops with ERR_CANCELLED (done tokens stay). */
typedef bool engine_progress(void *ctx, uint32_t done, uint32_t total);
/* Called with the logits of each wanted position, in order; negative stops. */
typedef int engine_row(void *ctx, uint32_t i, const float *logits, struct err *e);

/* Continues the sequence by n tokens; logits are wanted for the last n_last of them. */
int engine_eval(struct engine *g, const int32_t *token, uint32_t n, uint32_t n_last, engine_row *row,
                void *row_ctx, engine_progress *progress, void *progress_ctx, struct err *e);
uint32_t engine_len(const struct engine *g);
int engine_rollback(struct engine *g, uint32_t n_tokens, struct err *e);

/* One batch over the stages: seg[i].slot must be open in all of them. */
int engine_run(struct engine *g, const struct stage_seg *segs, uint32_t n_seg, const int32_t *logit_rows,
               uint32_t n_logits, float *logits, struct err *e);

#endif
