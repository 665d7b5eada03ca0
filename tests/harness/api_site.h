/* api_site - a site without a model, and answers by script: for tests of what the endpoints say.
 *
 * The vocabulary has the 256 bytes, the chat format's control tokens and some whole words, so that a text
 * takes many tokens and a character often more than one. Header only. */
#ifndef HARNESS_API_SITE_H
#define HARNESS_API_SITE_H

#include "common/base/check.h"
#include "common/model/chat_format.h"
#include "coordinator/api_job.h"
#include "tests/harness/small_vocab.h"

struct scripted_site {
    struct small_vocab vocab;
    struct tokenizer *tokenizer;
    struct api_site *site;
};

/* Control tokens behind BOS and EOS, which small_vocab calls by other names: both spellings end an answer. */
static inline void scripted_vocab(struct small_vocab *v) {
    static const char *const control[] = {
#define SCRIPTED_NAME(name) name,
        CHAT_CONTROLS(SCRIPTED_NAME)
#undef SCRIPTED_NAME
    };
    small_init(v);
    for (size_t i = 0; i < COUNT_OF(control); i++) {
        bool shown = strcmp(control[i], CHAT_THINK) == 0 || strcmp(control[i], CHAT_THINK_END) == 0 ||
                     strcmp(control[i], CHAT_DSML) == 0;
        int32_t id = small_added(v, control[i], shown ? TOKEN_USER : TOKEN_CONTROL);
        if (strcmp(control[i], CHAT_BOS) == 0) v->v.bos_id = id;
        if (strcmp(control[i], CHAT_EOS) == 0) v->v.eos_id = id;
    }
    static const char *const pairs[][2] = { { "H", "i" }, { "t", "h" }, { "th", "e" },
                                            { "w", "e" }, { "a", "t" }, { "h", "e" } };
    for (size_t i = 0; i < COUNT_OF(pairs); i++) small_merge_texts(v, pairs[i][0], pairs[i][1]);
}

static inline struct api_site_config scripted_config(const struct tokenizer *t) {
    struct api_site_config c = {
        .tokenizer = t, .temperature = 1, .top_p = 1, .model_id = "deepseek-v4-flash"
    };
    snprintf(c.info.model, sizeof c.info.model, "DeepSeek V4 Flash");
    c.info.n_ctx = 1 << 16;
    c.info.n_vocab = tokenizer_n_vocab(t);
    c.info.created_s = 1795166400;
    c.info.state = SERVICE_SERVING;
    c.defaults = (struct api_defaults){ .encoding = CHAT_V4_0731, .thinking = true };
    return c;
}

static inline void scripted_open(struct scripted_site *s) {
    struct err e;
    scripted_vocab(&s->vocab);
    CHECK(tokenizer_new_vocab(&s->tokenizer, &s->vocab.v, &e) == 0);
    struct api_site_config c = scripted_config(s->tokenizer);
    CHECK(api_site_new(&s->site, &c, &e) == 0);
}

static inline void scripted_close(struct scripted_site *s) {
    api_site_free(s->site);
    tokenizer_free(s->tokenizer);
    small_free(&s->vocab);
}

/* The tokens of a text, special ones recognised. The caller frees them. */
static inline struct token_buf scripted_tokens(const struct tokenizer *t, const char *text) {
    struct token_buf ids = { 0 };
    CHECK(tokenizer_encode(t, text, strlen(text), true, &ids, NULL) == 0);
    return ids;
}

#endif
