/* guide_world - a model of chance: it says anything at all, and is held to what a guide allows.
 *
 * One world per program has a small vocabulary and is opened and closed around its tests; a test may open
 * another of any size. Header only; one thread. */
#ifndef HARNESS_GUIDE_WORLD_H
#define HARNESS_GUIDE_WORLD_H

#include "tests/harness/test.h"

#include "coordinator/guide.h"

#include <math.h>
#include <time.h>

#include "cli/tokenizer_json.h"
#include "common/base/buf.h"
#include "common/base/rng.h"
#include "common/model/chat_format.h"
#include "common/model/dsml.h"
#include "common/model/synth_vocab.h"
#include "common/model/vocab_trie.h"
#include "coordinator/grammar_match.h"
#include "coordinator/grammar_schema.h"

#include "tests/harness/schema_check.h"

enum { N_VOCAB = 2048, STEPS = 1500 };

/* ---- a model of chance ---- */

struct world {
    struct synth_vocab sv;
    struct tokenizer *t;
    struct guide_vocab *v;
    struct vocab_trie *trie;
    struct sampler sampler;
    float *row;
    uint8_t *closes;                              /* tokens that bring an answer to its end */
    uint32_t n;
};

static struct world small;

/* The published vocabulary for the full one where it is there, else ours of the same size. */
static inline void world_tokenizer(struct world *w) {
    struct tokenizer_json tj;
    struct err e;
    const char *path = w->n == SYNTH_VOCAB_FULL ? vectors_folder("tokenizer/tokenizer.json") : NULL;
    if (path) {
        assert_fine(tokenizer_json_open(&tj, path, &e), &e);
        assert_fine(tokenizer_new_vocab(&w->t, &tj.vocab, &e), &e);
        tokenizer_json_close(&tj);
        return;
    }
    assert_fine(synth_vocab_init(&w->sv, w->n, &e), &e);
    assert_fine(tokenizer_new_vocab(&w->t, &w->sv.vocab, &e), &e);
}

static inline void world_open(struct world *w, uint32_t n) {
    struct err e;
    w->n = n;
    world_tokenizer(w);
    assert_int_equal(tokenizer_n_vocab(w->t), n);
    assert_fine(guide_vocab_new(&w->v, w->t, &e), &e);
    assert_fine(vocab_trie_new(&w->trie, w->t, &e), &e);
    assert_fine(sampler_init(&w->sampler, (int)n, &e), &e);
    w->row = calloc(n, sizeof *w->row);
    w->closes = calloc(n, 1);
    for (uint32_t id = 0; id < n; id++) {
        size_t len;
        const char *bytes = tokenizer_token_bytes(w->t, (int32_t)id, &len);
        for (size_t i = 0; i < len; i++)
            if (len <= 3 && strchr("\"}]<>/n", bytes[i]) && bytes[i]) w->closes[id] = 1;
    }
    w->closes[tokenizer_eos(w->t)] = w->closes[tokenizer_find_added(w->t, CHAT_DSML)] = 1;
    w->closes[tokenizer_find_added(w->t, CHAT_THINK_END)] = 1;
}

static inline void world_close(struct world *w) {
    sampler_deinit(&w->sampler);
    vocab_trie_free(w->trie);
    guide_vocab_free(w->v);
    tokenizer_free(w->t);
    synth_vocab_deinit(&w->sv);
    free(w->row);
    free(w->closes);
}

static inline int open_worlds(void **state) {
    (void)state;
    world_open(&small, N_VOCAB);
    return 0;
}

static inline int close_worlds(void **state) {
    (void)state;
    world_close(&small);
    return 0;
}

struct answer {
    struct buf text;
    bool complete, ended;                         /* ended: by the end token */
    int n_tokens;
};

/* What the sampler would choose of a row of chance, and a hurry to come to an end. */
static inline int32_t choose_by_sampler(struct world *w, const struct service_steer *steer, struct rng *r,
                                 float hurry, uint64_t seed, const struct answer *a) {
    struct sampler_params p;
    struct sampler_result out;
    struct err e;
    sampler_params_init(&p);
    p.seed = seed;
    p.allowed = steer->allowed;
    p.temperature = steer->greedy ? 0 : 1;
    for (uint32_t id = 0; id < w->n; id++) w->row[id] = 2 * rng_normal(r) + (w->closes[id] ? hurry : 0);
    if (sampler_pick(&w->sampler, w->row, &p, NULL, (uint64_t)a->n_tokens, &out, &e) < 0)
        fail_msg("behind %s: %s", a->text.data, e.text);
    return out.id;
}

/* Much the same without sorting a vocabulary for every token: the largest of what is allowed. */
static inline int32_t choose(struct world *w, const struct service_steer *steer, struct rng *r, float hurry) {
    float best = -INFINITY;
    int32_t chosen = -1;
    for (uint32_t id = 0; id < w->n; id++) {
        if (steer->allowed && !(steer->allowed[id / 64] >> id % 64 & 1)) continue;
        float x = 2.4f * rng_normal(r) + (w->closes[id] ? hurry : 0);
        if (x > best) best = x, chosen = (int32_t)id;
    }
    if (chosen < 0) fail_msg("nothing is allowed");
    return chosen;
}

/* Chooses by chance what the guide allows, more and more in a hurry; at most `steps` tokens. One answer in
 * eight is the true sampler's. */
static inline void say(struct world *w, struct service_guide *g, uint64_t seed, int steps, struct answer *a) {
    struct rng r;
    rng_init(&r, seed, 7);
    *a = (struct answer){ .complete = false };
    buf_init(&a->text, 1 << 24);
    for (; a->n_tokens < steps && !a->complete; a->n_tokens++) {
        struct service_steer steer;
        float hurry = a->n_tokens < steps / 8 ? 0 : 12.0f * (float)a->n_tokens / (float)steps + 3;
        g->next(g, &steer);
        int32_t id = seed % 8 ? choose(w, &steer, &r, hurry)
                              : choose_by_sampler(w, &steer, &r, hurry, seed, a);
        size_t len;
        const char *bytes = tokenizer_token_bytes(w->t, id, &len);
        a->ended = id == tokenizer_eos(w->t);
        if (!a->ended) buf_add(&a->text, bytes, len);
        a->complete = g->accept(g, id);
    }
}

static inline struct service_guide *guide_of(struct world *w, const struct guide_options *o) {
    struct service_guide *g;
    struct err e;
    if (guide_new(&g, w->v, o, &e) < 0) fail_msg("%s\n%.*s", e.text, (int)o->schema.len, o->schema.data);
    assert_non_null(g);
    return g;
}

static inline json_t *parsed(const char *text) {
    json_error_t e;
    json_t *value = json_loads(text, JSON_DECODE_ANY, &e);
    if (!value) fail_msg("not JSON (%s): %s", e.text, text);
    return value;
}

/* True: it came to its end; then it was valid. */
static inline bool try_schema(struct world *w, const char *schema, uint64_t seed, int steps) {
    struct guide_options o = { .format = GUIDE_JSON_SCHEMA, .schema = chat_text_of(schema) };
    struct service_guide *g = guide_of(w, &o);
    struct answer a;
    say(w, g, seed, steps, &a);
    g->free(g);
    if (a.complete) {
        json_t *value = parsed(a.text.data), *root = parsed(schema);
        if (!check_value(root, root, value)) fail_msg("%s\ndoes not validate: %s", schema, a.text.data);
        json_decref(value);
        json_decref(root);
    }
    buf_deinit(&a.text);
    return a.complete;
}

/* Puts a text into a guide; the tokens are those of the tokenizer. */
static inline bool read_text(struct service_guide *g, const char *text) {
    struct token_buf ids = { 0 };
    struct err e;
    bool complete = false;
    assert_fine(tokenizer_encode(small.t, text, strlen(text), true, &ids, &e), &e);
    for (size_t i = 0; i < ids.n; i++) {
        struct service_steer s;
        g->next(g, &s);
        if (s.allowed && !(s.allowed[ids.ids[i] / 64] >> ids.ids[i] % 64 & 1))
            fail_msg("not allowed: token %zu of %s", i, text);
        complete = g->accept(g, ids.ids[i]);
    }
    token_buf_free(&ids);
    return complete;
}

/* A tool's parameters with one of everything. */
#define PARAMETERS                                                                                 \
    "{\"type\":\"object\",\"properties\":{\"city\":{\"type\":\"string\"},\"days\":{\"type\":"      \
    "\"integer\",\"minimum\":1,"                                                                   \
    "\"maximum\":14},\"unit\":{\"type\":\"string\",\"enum\":[\"C\",\"F\"]},\"code\":{\"type\":["   \
    "\"string\",\"null\"],"                                                                        \
    "\"maxLength\":5},\"deep\":{\"type\":\"object\",\"properties\":{\"k\":{\"type\":\"array\","    \
    "\"items\":{\"type\":"                                                                         \
    "\"string\"}}},\"required\":[\"k\"],\"additionalProperties\":false}},\"required\":[\"city\","  \
    "\"deep\"],"                                                                                   \
    "\"additionalProperties\":false}"

#endif
