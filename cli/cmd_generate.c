/* cmd_generate - continues a sequence of token ids; prints the new ids, or JSON with log-probabilities
 * and timings. */
#include "cli/cmd.h"

#include "cli/engine.h"
#include "cli/generate_remote.h"
#include "cli/ids.h"
#include "common/base/buf.h"
#include "common/model/sampler.h"
#include "common/sys/clock.h"

#include <stdio.h>
#include <stdlib.h>

enum { JSON_MAX = 256 << 20 };

struct generate {
    struct engine g;
    struct sampler sampler;
    struct sampler_params params;
    struct sampler_history history;
    struct token_buf ids;
    float *logits;                                 /* of the last position */
    int n_new;
    bool json, stop_at_eos;
    struct buf tokens;                             /* JSON array elements */
    double prefill_seconds, decode_seconds;
};

static int keep_row(void *ctx, uint32_t i, const float *logits, struct err *e) {
    (void)i, (void)e;
    struct generate *s = ctx;
    memcpy(s->logits, logits, (uint64_t)engine_hparams(&s->g)->n_vocab * sizeof(float));
    return 0;
}

static void json_token(struct generate *s, const struct sampler_result *r) {
    buf_printf(&s->tokens, "%s\n    {\"id\": %d, \"logprob\": %.9g, \"top\": [",
               s->tokens.size ? "," : "", r->id, r->logprob);
    for (int i = 0; i < r->n_top; i++)
        buf_printf(&s->tokens, "%s{\"id\": %d, \"logprob\": %.9g}", i ? ", " : "", r->top[i].id,
                   r->top[i].logprob);
    buf_printf(&s->tokens, "]}");
}

static int generate_token(struct generate *s, bool *done, struct err *e) {
    struct sampler_result r;
    int rc = sampler_pick(&s->sampler, s->logits, &s->params, &s->history, s->ids.n, &r, e);
    if (rc == 0) rc = token_buf_push(&s->ids, r.id, e);
    if (rc == 0) rc = sampler_history_add(&s->history, r.id, true);
    if (rc < 0) return rc;
    if (s->json) json_token(s, &r);
    else printf(s->n_new ? " %d" : "%d", r.id);
    fflush(stdout);
    s->n_new++;
    *done = s->stop_at_eos && r.id == engine_hparams(&s->g)->eos_id;
    return 0;
}

static int generate_all(struct generate *s, int n, struct err *e) {
    uint64_t start = clock_now_ns();
    int rc = engine_eval(&s->g, s->ids.ids, (uint32_t)s->ids.n, 1, keep_row, s, NULL, NULL, e);
    s->prefill_seconds = clock_seconds_since(start);
    for (size_t i = 0; rc == 0 && i < s->ids.n; i++)
        rc = sampler_history_add(&s->history, s->ids.ids[i], false);
    start = clock_now_ns();
    bool done = false;
    for (int i = 0; rc == 0 && i < n && !done; i++) {
        if (i) rc = engine_eval(&s->g, &s->ids.ids[s->ids.n - 1], 1, 1, keep_row, s, NULL, NULL, e);
        if (rc == 0) rc = generate_token(s, &done, e);
    }
    s->decode_seconds = clock_seconds_since(start);
    return rc;
}

static void print_json(const struct generate *s, size_t n_prompt) {
    struct stage_memory memory = stage_model_memory(s->g.stage[0]);
    printf("{\n  \"prompt_tokens\": %zu,\n  \"tokens\": [%s\n  ],\n", n_prompt,
           s->tokens.data ? s->tokens.data : "");
    printf("  \"timings\": {\"load_s\": %.6f, \"prefill_s\": %.6f, \"prefill_tokens_per_s\": %.3f, "
           "\"decode_s\": %.6f, "
           "\"decode_tokens_per_s\": %.3f},\n",
           s->g.load_seconds, s->prefill_seconds, (double)n_prompt / s->prefill_seconds,
           s->decode_seconds, s->n_new > 1 ? (s->n_new - 1) / s->decode_seconds : 0.0);
    printf("  \"memory\": {\"weights\": %llu, \"state\": %llu, \"work\": %llu}\n}\n",
           (unsigned long long)memory.weights, (unsigned long long)memory.state,
           (unsigned long long)memory.work);
}

/* Said before the first id is printed; a prompt that is too long by itself is engine_eval's to refuse. */
static int check_room(const struct generate *s, const char *ids_path, int n, struct err *e) {
    uint64_t n_fed = (uint64_t)s->ids.n + (uint64_t)n - 1;             /* the last new token is not fed */
    if (s->ids.n > s->g.n_ctx || n_fed <= s->g.n_ctx) return 0;
    return err_set(e, ERR_LIMIT,
                   "%s: %zu tokens and %d new ones are past the context limit of %u tokens (see --ctx and "
                   "--predict)",
                   ids_path, s->ids.n, n, s->g.n_ctx);
}

static int generate(struct generate *s, const struct engine_options *o, const char *ids_path, int n,
                    struct err *e) {
    int rc = ids_read_file(ids_path, &s->ids, e);
    size_t n_prompt = s->ids.n;
    if (rc == 0) rc = engine_open(&s->g, o, e);
    if (rc == 0) rc = ids_check(ids_path, &s->ids, engine_hparams(&s->g)->n_vocab, e);
    if (rc == 0) rc = check_room(s, ids_path, n, e);
    if (rc < 0) return rc;
    int n_vocab = (int)engine_hparams(&s->g)->n_vocab;
    rc = sampler_params_check(&s->params, n_vocab, e);
    if (rc == 0) rc = sampler_init(&s->sampler, n_vocab, e);
    s->logits = malloc((size_t)n_vocab * sizeof(float));
    if (rc == 0 && !s->logits) rc = err_set(e, ERR_NOMEM, "no memory for logits");
    if (rc == 0) rc = generate_all(s, n, e);
    if (rc == 0 && s->json) print_json(s, n_prompt);
    if (rc == 0 && !s->json) putchar('\n');
    return rc;
}

static int generate_at(struct generate *s, struct generate_remote *r, const char *ids_path, int n,
                       struct err *e) {
    int rc = ids_read_file(ids_path, &s->ids, e);
    if (rc == 0) rc = ids_check(ids_path, &s->ids, HP_VOCAB_MAX, e);
    if (rc < 0) return rc;
    r->prompt = &s->ids;
    r->params = &s->params;
    r->n_new = n;
    r->json = s->json;
    r->stop_at_eos = s->stop_at_eos;
    return generate_remote(r, e);
}

int cmd_generate(int argc, char **argv) {
    struct engine_options o;
    struct generate s = { 0 };
    engine_options_init(&o);
    sampler_params_init(&s.params);
    buf_init(&s.tokens, JSON_MAX);
    const char *ids = NULL;
    struct generate_remote remote = { .cluster = NULL };
    int n = 16, top_k = 0, n_top = 0;
    double temp = 0, top_p = 1, min_p = 0, repetition = 1, frequency = 0, presence = 0;
    const struct opt table[] = {
        ENGINE_OPTS_OR(o, "the GGUF file (required, or --cluster)"),
        OPT_STRING(0, "ids", &ids, "FILE",
                   "the prompt: token ids as decimal text, - for the input (required)"),
        OPT_INT('n', "predict", &n, 1, 1 << 24, "N", "how many tokens to make"),
        OPT_FLAG(0, "stop-at-eos", &s.stop_at_eos, "end after the end-of-sentence token"),
        OPT_FLAG('j', "json", &s.json, "print JSON with log-probabilities and timings"),
        OPT_GROUP("Computed elsewhere"),
        OPT_STRING(0, "cluster", &remote.cluster, "HOST:PORT",
                   "by the `pleiades serve` there, instead of --model in this process"),
        OPT_STRING(0, "api-key-file", &remote.api_key_file, "FILE", "holds the endpoint's key"),
        OPT_STRING(0, "ca-file", &remote.ca_file, "FILE", "certificates to trust instead of the system's"),
        OPT_GROUP("Sampling"),
        OPT_NUMBER(0, "temp", &temp, 0, 100, "X", "temperature; 0 takes the likeliest token"),
        OPT_NUMBER(0, "top-p", &top_p, 0, 1, "X", "likeliest tokens that hold this share"),
        OPT_NUMBER(0, "min-p", &min_p, 0, 1, "X",
                   "tokens at least this likely, relative to the likeliest"),
        OPT_INT(0, "top-k", &top_k, 0, 1 << 24, "N", "the N likeliest tokens; 0: all"),
        OPT_NUMBER(0, "repetition-penalty", &repetition, 0.01, 100, "X",
                   "divides the logits of tokens already seen"),
        OPT_NUMBER(0, "frequency-penalty", &frequency, -100, 100, "X", "per occurrence in the answer"),
        OPT_NUMBER(0, "presence-penalty", &presence, -100, 100, "X", "once per token in the answer"),
        OPT_U64(0, "seed", &s.params.seed, 0, UINT64_MAX, "N",
                "chance is a function of seed and position"),
        OPT_INT(0, "top-logprobs", &n_top, 0, SAMPLER_TOP_MAX, "N", "alternatives per token in the JSON"),
    };
    const struct opts spec = { "generate",
                               "",
                               "Continues a sequence of token ids and prints the new ids.",
                               table,
                               COUNT_OF(table),
                               0,
                               0 };
    int n_args = opts_parse(&spec, argc, argv);
    if (n_args < 0) return opts_exit_status(n_args);
    if ((!o.model && !remote.cluster) || !ids)
        return opts_usage_error(&spec, "--model (or --cluster) and --ids are required");
    if (o.model && remote.cluster) return opts_usage_error(&spec, "--model or --cluster, not both");
    s.params.temperature = (float)temp, s.params.top_p = (float)top_p, s.params.min_p = (float)min_p,
    s.params.top_k = top_k;
    s.params.repetition = (float)repetition, s.params.frequency = (float)frequency,
    s.params.presence = (float)presence;
    s.params.logprobs = s.json, s.params.n_top = n_top;
    struct err e = { 0 };
    int rc = remote.cluster ? generate_at(&s, &remote, ids, n, &e) : generate(&s, &o, ids, n, &e);
    sampler_deinit(&s.sampler);
    sampler_history_deinit(&s.history);
    token_buf_free(&s.ids);
    buf_deinit(&s.tokens);
    free(s.logits);
    engine_close(&s.g);
    return rc < 0 ? opts_failure(&spec, &e) : 0;
}
