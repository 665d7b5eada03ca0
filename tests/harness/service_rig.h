/* service_rig - clients of a service in one process, and the engine's answer to hold theirs against.
 *
 * A client's listener copies what it is told; client_wait blocks until it is over. check_equal asks the
 * engine for the same tokens, log-probabilities and alternatives. Header only; service and engine are
 * globals of the test. */
#ifndef HARNESS_SERVICE_RIG_H
#define HARNESS_SERVICE_RIG_H

#include "tests/harness/scratch.h"

#include "cli/engine.h"
#include "cli/local.h"
#include "common/base/log.h"
#include "common/base/rng.h"
#include "common/model/synth.h"
#include "common/sys/clock.h"

#include <math.h>
#include <pthread.h>

enum { TOKENS_MAX = 256, PROMPT = 40, WAIT_MS = 30000 };

static struct scratch folder;
static char path[FILE_PATH_MAX];
static struct engine engine;
static struct service *service;

/* ---- somebody who waits ---- */

struct client {
    pthread_mutex_t lock;
    pthread_cond_t over;
    struct service_token token[TOKENS_MAX];
    uint32_t n_token, n_done, n_progress;
    struct service_done done;
    uint64_t ticket;
    uint32_t cancel_at;                               /* cancels itself after so many tokens; 0: never */
};

static inline void on_token(void *ctx, const struct service_token *t) {
    struct client *c = ctx;
    pthread_mutex_lock(&c->lock);
    assert_int_equal(t->index, c->n_token);
    assert_int_equal(c->n_done, 0);
    c->token[c->n_token++] = *t;
    bool enough = c->n_token == c->cancel_at;
    pthread_mutex_unlock(&c->lock);
    if (enough) service_cancel(service, c->ticket);
}

static inline void on_progress(void *ctx, uint32_t n_done, uint32_t n_prompt) {
    struct client *c = ctx;
    assert_true(n_done <= n_prompt);
    c->n_progress++;
}

static inline void on_done(void *ctx, const struct service_done *d) {
    struct client *c = ctx;
    pthread_mutex_lock(&c->lock);
    c->done = *d;
    c->n_done++;
    pthread_cond_broadcast(&c->over);
    pthread_mutex_unlock(&c->lock);
}

static inline void client_init(struct client *c) {
    memset(c, 0, sizeof *c);
    pthread_mutex_init(&c->lock, NULL);
    pthread_cond_init(&c->over, NULL);
}

static inline uint32_t client_count(struct client *c) {
    pthread_mutex_lock(&c->lock);
    uint32_t n = c->n_token;
    pthread_mutex_unlock(&c->lock);
    return n;
}

static inline void client_wait(struct client *c) {
    pthread_mutex_lock(&c->lock);
    while (!c->n_done) pthread_cond_wait(&c->over, &c->lock);
    pthread_mutex_unlock(&c->lock);
    assert_int_equal(c->n_done, 1);
}

static inline void prompt_of(int32_t *token, uint32_t n, uint64_t seed) {
    for (uint32_t i = 0; i < n; i++) token[i] = (int32_t)(rng_at(seed, i) % engine_hparams(&engine)->n_vocab);
}

static inline struct service_request request_of(const int32_t *token, uint32_t n, uint32_t n_new,
                                                struct client *c) {
    struct service_request r = { .token = token, .n_token = n, .n_new_max = n_new };
    sampler_params_init(&r.sampling);
    r.sampling.temperature = 0;
    r.listener = (struct service_listener){ on_token, on_progress, on_done, c };
    return r;
}

static inline void submit(const struct service_request *r, struct client *c) {
    struct err e;
    assert_fine(service_submit(service, r, &c->ticket, &e), &e);
}

/* ---- the engine's answer ---- */

static float *row_kept;

static inline int keep_row(void *ctx, uint32_t i, const float *logits, struct err *e) {
    (void)ctx, (void)i, (void)e;
    memcpy(row_kept, logits, engine_hparams(&engine)->n_vocab * sizeof *logits);
    return 0;
}

static inline void reference(const struct service_request *r, struct sampler_result *out, uint32_t n) {
    struct sampler sampler;
    struct sampler_history history = { 0 };
    struct err e;
    int n_vocab = (int)engine_hparams(&engine)->n_vocab;
    row_kept = malloc((size_t)n_vocab * sizeof *row_kept);
    assert_fine(sampler_init(&sampler, n_vocab, &e), &e);
    assert_fine(engine_rollback(&engine, 0, &e), &e);
    for (uint32_t i = 0; i < r->n_token; i++) sampler_history_add(&history, r->token[i], false);
    assert_fine(engine_eval(&engine, r->token, r->n_token, 1, keep_row, NULL, NULL, NULL, &e), &e);
    for (uint32_t i = 0; i < n; i++) {
        if (i) assert_fine(engine_eval(&engine, &out[i - 1].id, 1, 1, keep_row, NULL, NULL, NULL, &e), &e);
        assert_fine(
            sampler_pick(&sampler, row_kept, &r->sampling, &history, r->n_token + i, &out[i], &e),
            &e);
        sampler_history_add(&history, out[i].id, true);
    }
    sampler_history_deinit(&history);
    sampler_deinit(&sampler);
    free(row_kept);
}

static inline void check_against(const struct sampler_result *expected, const struct service_request *r,
                                 const struct client *c, uint32_t n) {
    assert_int_equal(c->n_token, n);
    for (uint32_t i = 0; i < n; i++) {
        assert_int_equal(c->token[i].id, expected[i].id);
        if (!r->sampling.logprobs) continue;
        assert_true(c->token[i].logprob == expected[i].logprob);
        assert_int_equal(c->token[i].n_top, expected[i].n_top);
        for (int k = 0; k < expected[i].n_top; k++) {
            assert_int_equal(c->token[i].top[k].id, expected[i].top[k].id);
            assert_true(c->token[i].top[k].logprob == expected[i].top[k].logprob);
        }
    }
}

static inline void check_equal(const struct service_request *r, const struct client *c, uint32_t n) {
    static struct sampler_result expected[TOKENS_MAX];
    reference(r, expected, n);
    check_against(expected, r, c, n);
}

static inline void generate_and_check(struct service_request *r, struct client *c, uint32_t n) {
    submit(r, c);
    client_wait(c);
    assert_int_equal(c->done.end, SERVICE_END_LENGTH);
    check_equal(r, c, n);
}

/* ---- around the tests ---- */

/* A model of five layers in a folder of its own, and the engine on it. */
static inline void rig_open(uint32_t n_ctx) {
    struct err e;
    struct synth *synth;
    struct synth_options so = { .preset = "tiny", .seed = 3 };
    scratch_open(&folder);
    snprintf(path, sizeof path, "%s", scratch_path(&folder, "tiny.gguf"));
    assert_fine(synth_new(&synth, &so, &e), &e);
    assert_fine(synth_write(synth, path, &e), &e);
    synth_free(synth);
    if (!getenv("PLEIADES_LOG")) log_set_level(LOG_ERROR);
    struct engine_options eo;
    engine_options_init(&eo);
    eo.model = path;
    eo.ctx = (int)n_ctx;
    eo.n_threads = 1;
    assert_fine(engine_open(&engine, &eo, &e), &e);
}

static inline void rig_close(void) {
    engine_close(&engine);
    scratch_close(&folder);
}

static inline void wait_for(enum service_state state) {
    uint64_t start = clock_now_ns();
    struct service_info info;
    do {
        clock_sleep_ms(5);
        service_info(service, &info);
    } while (info.state != state && clock_seconds_since(start) * 1000 < WAIT_MS);
    if (info.state != state) fail_msg("state %d instead of %d: %s", (int)info.state, (int)state, info.why);
}

#endif
