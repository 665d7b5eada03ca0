/* chat_local - answers with the model in this process.
 *
 * Every turn the whole conversation is rendered and tokenized again; what the sequence already holds of it
 * is not computed twice. What people wrote cannot forge control tokens, and control tokens that the model
 * makes end its answer. */
#include "cli/chat_source.h"

#include "common/base/utf8.h"
#include "common/model/chat_format.h"
#include "common/model/dsml.h"
#include "common/sys/clock.h"
#include "common/sys/term.h"

#include <stdlib.h>

enum { BAR = 30, END_IDS_MAX = 8, FEED_BYTES = 1024, CTX_LEAST = 16 };

struct local {
    struct chat_source base;                      /* first: a source is one of us */
    struct engine g;
    struct sampler sampler;
    struct sampler_params params;
    enum chat_encoding encoding;
    bool raw;
    int n_new_max;
    int32_t end_id[END_IDS_MAX];
    int n_end_ids;
    struct token_buf cached;                      /* tokens the sequence holds */
    float *logits;                                /* after the last of them */
    const volatile sig_atomic_t *stop;
    struct engine_options engine;                 /* it was opened with these; texts of argv */
    uint32_t n_room;                              /* tokens that the open stages can hold */
};

/* ---- progress ---- */

struct bar {
    uint64_t start_ns, shown_ns;                  /* shown: drawn last */
    const volatile sig_atomic_t *stop;
};

static void draw_bar(struct bar *bar, const char *what, uint64_t done, uint64_t total, double in_unit,
                     const char *unit) {
    double seconds = clock_seconds_since(bar->start_ns);
    if (!term_is_terminal(stderr) || total == 0) return;
    if (done < total && clock_seconds_since(bar->shown_ns) < 0.05) return;
    bar->shown_ns = clock_now_ns();
    int full = (int)(done * BAR / total);
    fprintf(stderr, "\r%-8s [%.*s%*s] %3d%%  %.1f %s/s", what, full,
            "==============================", BAR - full, "", (int)(done * 100 / total),
            seconds > 0 ? (double)done / in_unit / seconds : 0.0, unit);
    if (done >= total) fprintf(stderr, "\r\033[K");
    fflush(stderr);
}

static bool load_progress(void *ctx, uint64_t done, uint64_t total) {
    struct bar *bar = ctx;
    draw_bar(bar, "loading", done, total, 1e9, "GB");
    return !*bar->stop;
}

static bool prefill_progress(void *ctx, uint32_t done, uint32_t total) {
    struct bar *bar = ctx;
    draw_bar(bar, "prompt", done, total, 1, "tokens");
    return !*bar->stop;
}

/* ---- from the conversation to tokens ---- */

static int encode_chat(struct local *l, const struct chat_message *messages, int n,
                       enum chat_thinking thinking, struct token_buf *out, struct err *e) {
    struct chat_prompt prompt;
    struct chat_options o = { .encoding = l->encoding,
                              .thinking = thinking != CHAT_THINKING_OFF,
                              .effort = thinking == CHAT_THINKING_MAX ? CHAT_EFFORT_MAX : CHAT_EFFORT_UNSET,
                              .open_turn = true };
    chat_prompt_init(&prompt);
    int rc = chat_render(&prompt, messages, (size_t)n, &o, e);
    for (size_t i = 0; rc == 0 && i < prompt.n_segments; i++) {
        const struct chat_segment *s = &prompt.segments[i];
        rc = tokenizer_encode(l->g.tokenizer, prompt.text.data + s->at, s->len, s->control, out, e);
    }
    chat_prompt_deinit(&prompt);
    return rc;
}

static int encode_raw(struct local *l, const struct chat_message *messages, int n, struct token_buf *out,
                      struct err *e) {
    int32_t bos = tokenizer_bos(l->g.tokenizer);
    int rc = bos >= 0 ? token_buf_push(out, bos, e) : 0;
    for (int i = 0; rc == 0 && i < n; i++)
        rc = tokenizer_encode(l->g.tokenizer, messages[i].content.data, messages[i].content.len,
                              true, out, e);
    return rc;
}

static int encode(struct local *l, const struct chat_talk *talk, enum chat_thinking thinking,
                  struct token_buf *out, struct err *e) {
    struct chat_message *messages = calloc((size_t)MAX(talk->n, 1), sizeof *messages);
    if (!messages) return err_set(e, ERR_NOMEM, "no memory for %d messages", talk->n);
    chat_talk_messages(talk, messages);
    int rc = l->raw ? encode_raw(l, messages, talk->n, out, e)
                    : encode_chat(l, messages, talk->n, thinking, out, e);
    free(messages);
    if (rc == 0 && out->n == 0) rc = err_set(e, ERR_INVALID, "the prompt is empty");
    if (rc == 0 && out->n >= l->g.n_ctx)
        rc = err_set(e, ERR_LIMIT, "the conversation has %zu tokens, the context ends at %u",
                     out->n, l->g.n_ctx);
    return rc;
}

/* ---- computing ---- */

static int keep_row(void *ctx, uint32_t i, const float *logits, struct err *e) {
    (void)i, (void)e;
    struct local *l = ctx;
    memcpy(l->logits, logits, (uint64_t)engine_hparams(&l->g)->n_vocab * sizeof *logits);
    return 0;
}

/* Brings the sequence to exactly these tokens, computing only what it does not hold. The last token is
 * always computed: its logits are needed. */
static int prefill(struct local *l, const struct token_buf *tokens, struct chat_answer *a, struct err *e) {
    size_t same = 0;
    while (same < l->cached.n && same < tokens->n && l->cached.ids[same] == tokens->ids[same]) same++;
    if (same == tokens->n) same--;
    if (engine_rollback(&l->g, (uint32_t)same, NULL) < 0) same = 0;
    int rc = engine_rollback(&l->g, (uint32_t)same, e);
    struct bar bar = { .start_ns = clock_now_ns(), .stop = l->stop };
    l->cached.n = same;
    if (rc == 0)
        rc = engine_eval(&l->g, tokens->ids + same, (uint32_t)(tokens->n - same), 1, keep_row, l,
                         prefill_progress, &bar, e);
    if (term_is_terminal(stderr)) fprintf(stderr, "\r\033[K");
    a->n_prompt = tokens->n;
    a->n_cached = same;
    a->prompt_seconds = clock_seconds_since(bar.start_ns);
    int push = 0;                                 /* also after a stop: the next question may share it */
    for (size_t i = same, held = engine_len(&l->g); push == 0 && i < held && i < tokens->n; i++)
        push = token_buf_push(&l->cached, tokens->ids[i], e);
    return rc < 0 ? rc : push;
}

static bool is_end(const struct local *l, int32_t id) {
    for (int i = 0; i < l->n_end_ids; i++)
        if (l->end_id[i] == id) return true;
    return false;
}

static int next_token(struct local *l, struct sampler_history *history, int32_t *id, struct err *e) {
    struct sampler_result pick;
    int rc = sampler_pick(&l->sampler, l->logits, &l->params, history, l->cached.n, &pick, e);
    *id = pick.id;
    return rc;
}

/* ---- the answer ---- */

static int take_deltas(struct dsml_stream *parser, struct chat_answer *a) {
    struct dsml_delta d;
    int rc = 0;
    while (rc == 0 && dsml_stream_next(parser, &d)) {
        enum chat_part part = d.kind == DSML_REASONING ? CHAT_PART_REASONING : CHAT_PART_CONTENT;
        rc = chat_answer_add(a, part, d.text.data, d.text.len);
    }
    return rc;
}

/* The bytes of one token as text to the parser; without one (raw) straight to the answer. */
static int take_bytes(struct dsml_stream *parser, struct utf8_stream *utf8, const char *bytes, size_t len,
                      struct chat_answer *a) {
    char text[UTF8_STREAM_ROOM(FEED_BYTES)];
    int rc = 0;
    for (size_t at = 0; rc == 0 && at < len; at += FEED_BYTES) {
        size_t n = utf8_stream_push(utf8, bytes + at, MIN(len - at, (size_t)FEED_BYTES), text);
        if (!parser) {
            rc = chat_answer_add(a, CHAT_PART_CONTENT, text, n);
            continue;
        }
        rc = dsml_stream_feed(parser, text, n);
        if (rc == 0) rc = take_deltas(parser, a);
    }
    return rc;
}

static int take_rest(struct dsml_stream *parser, struct utf8_stream *utf8, struct chat_answer *a) {
    char text[UTF8_STREAM_ROOM(0)];
    size_t n = utf8_stream_flush(utf8, text);
    if (!parser) return chat_answer_add(a, CHAT_PART_CONTENT, text, n);
    int rc = dsml_stream_feed(parser, text, n);
    if (rc == 0) rc = dsml_stream_end(parser, a->stopped || a->cut);
    return rc == 0 ? take_deltas(parser, a) : rc;
}

/* Token by token until the model ends, a limit is reached or *stop is set. */
static int generate(struct local *l, struct dsml_stream *parser, struct chat_answer *a, struct err *e) {
    struct utf8_stream utf8 = { 0 };
    struct sampler_history history = { 0 };
    int rc = 0;
    for (size_t i = 0; rc == 0 && i < l->cached.n; i++)
        rc = sampler_history_add(&history, l->cached.ids[i], false);
    while (rc == 0) {
        int32_t id;
        if (*l->stop) a->stopped = true;
        else if (l->n_new_max && a->n_new >= (uint64_t)l->n_new_max) a->cut = true;
        if (a->stopped || a->cut) break;
        rc = next_token(l, &history, &id, e);
        if (rc < 0 || is_end(l, id)) break;
        a->n_new++;
        size_t len;
        const char *bytes = tokenizer_token_bytes(l->g.tokenizer, id, &len);
        rc = take_bytes(parser, &utf8, bytes, len, a);
        if (rc == 0 && engine_len(&l->g) >= l->g.n_ctx) {
            a->cut = true;
            break;
        }
        if (rc == 0) rc = sampler_history_add(&history, id, true);
        if (rc == 0) rc = engine_eval(&l->g, &id, 1, 1, keep_row, l, NULL, NULL, e);
        if (rc == 0) rc = token_buf_push(&l->cached, id, e);
    }
    int end = take_rest(parser, &utf8, a);
    sampler_history_deinit(&history);
    return rc < 0 ? rc : end;
}

static int local_answer(struct chat_source *s, const struct chat_talk *talk, enum chat_thinking thinking,
                        struct chat_answer *a, struct err *e) {
    struct local *l = (struct local *)s;
    struct token_buf tokens = { 0 };
    struct dsml_stream *parser = NULL;
    struct dsml_options o = { .in_reasoning = thinking != CHAT_THINKING_OFF };
    if (e) *e = (struct err){ 0 };
    int rc = l->g.n_stages ? encode(l, talk, thinking, &tokens, e)
                           : err_set(e, ERR_STALE, "the model is closed; /quit");
    if (rc == 0 && !l->raw) rc = dsml_stream_new(&parser, &o, e);
    if (rc == 0) rc = prefill(l, &tokens, a, e);
    if (rc == 0) {
        uint64_t start = clock_now_ns();
        rc = generate(l, parser, a, e);
        a->new_seconds = clock_seconds_since(start);
    }
    if (rc == ERR_CANCELLED && *l->stop) {
        a->stopped = true;
        rc = 0;
    }
    if (rc < 0 && e && !e->text[0]) err_set(e, rc, "the answer is longer than %d MiB, or there is no memory",
                                            CHAT_ANSWER_BYTES_MAX >> 20);
    s->n_context = l->g.n_stages ? engine_len(&l->g) : 0;
    dsml_stream_free(parser);
    token_buf_free(&tokens);
    return rc;
}

/* ---- open and close ---- */

static void local_close(struct chat_source *s) {
    struct local *l = (struct local *)s;
    engine_close(&l->g);
    sampler_deinit(&l->sampler);
    token_buf_free(&l->cached);
    free(l->logits);
    free(l);
}

/* Tokens that only the prompt may contain; from the model each of them ends the answer. */
static void find_end_ids(struct local *l) {
    static const char *const names[] = { CHAT_USER, CHAT_ASSISTANT, CHAT_REMINDER };
    int32_t ids[END_IDS_MAX] = { tokenizer_eos(l->g.tokenizer), tokenizer_bos(l->g.tokenizer) };
    for (size_t i = 0; i < COUNT_OF(names); i++) ids[2 + i] = tokenizer_find_added(l->g.tokenizer, names[i]);
    int n = l->raw ? 1 : 2 + (int)COUNT_OF(names);
    for (int i = 0; i < n; i++)
        if (ids[i] >= 0) l->end_id[l->n_end_ids++] = ids[i];
}

static void read_names(struct local *l) {
    const struct gguf *file = stage_model_gguf(l->g.stage[0]);
    struct gguf_str name = { 0 }, jinja = { 0 };
    gguf_get_str(file, "general.name", &name, NULL);
    gguf_get_str(file, "tokenizer.chat_template", &jinja, NULL);
    l->encoding = chat_encoding_guess((struct chat_text){ name.data, name.len },
                                      (struct chat_text){ jinja.data, jinja.len });
    snprintf(l->base.name, sizeof l->base.name, "%s", engine_hparams(&l->g)->name);
}

static int open_engine(struct local *l, uint32_t n_ctx, struct err *e) {
    struct engine_options engine = l->engine;
    struct bar bar = { .start_ns = clock_now_ns(), .stop = l->stop };
    engine.ctx = (int)n_ctx;
    engine.progress = load_progress;
    engine.progress_ctx = &bar;
    int rc = engine_open(&l->g, &engine, e);
    if (rc == 0) rc = engine_tokenizer(&l->g, e);
    l->cached.n = 0;
    l->base.n_context_max = l->n_room = l->g.n_ctx;
    return rc;
}

/* More than the stages have room for: they are opened anew, and the conversation is computed again with
 * the next question. */
static int local_set_context(struct chat_source *s, uint64_t n, struct err *e) {
    struct local *l = (struct local *)s;
    if (!l->g.n_stages) return err_set(e, ERR_STALE, "the model is closed; /quit");
    uint32_t most = engine_hparams(&l->g)->n_ctx_train, before = l->n_room;
    if (n == 0) n = most;
    if (n < CTX_LEAST || n > most)
        return err_set(e, ERR_INVALID, "a context of %d to %u tokens, as the model allows", CTX_LEAST, most);
    int rc = 0;
    if (n > l->n_room) {
        engine_close(&l->g);
        rc = open_engine(l, (uint32_t)n, e);
        if (rc < 0 && open_engine(l, before, NULL) < 0)
            return err_wrap(e, rc, "the model is closed");
        if (rc < 0) return rc;
    } else if (n < engine_len(&l->g)) {
        rc = engine_rollback(&l->g, 0, e);
        l->cached.n = 0;
    }
    l->g.n_ctx = (uint32_t)n;
    l->base.n_context_max = n;
    l->base.n_context = engine_len(&l->g);
    return rc;
}

static int open_model(struct local *l, struct err *e) {
    int rc = open_engine(l, (uint32_t)l->engine.ctx, e);
    if (rc < 0) return rc;
    int n_vocab = (int)engine_hparams(&l->g)->n_vocab;
    rc = sampler_params_check(&l->params, n_vocab, e);
    if (rc == 0) rc = sampler_init(&l->sampler, n_vocab, e);
    if (rc < 0) return rc;
    l->logits = malloc((size_t)n_vocab * sizeof *l->logits);
    if (!l->logits) return err_set(e, ERR_NOMEM, "no memory for logits");
    read_names(l);
    find_end_ids(l);
    return 0;
}

int chat_local_open(struct chat_source **out, const struct chat_source_options *o, struct err *e) {
    struct local *l = calloc(1, sizeof *l);
    if (!l) return err_set(e, ERR_NOMEM, "no memory for the model's state");
    l->base.answer = local_answer;
    l->base.close = local_close;
    l->base.set_context = local_set_context;
    l->engine = o->engine;
    l->params = o->sampling;
    l->raw = o->raw;
    l->n_new_max = o->n_new_max;
    l->stop = o->stop;
    int rc = open_model(l, e);
    if (rc < 0) local_close(&l->base);
    else *out = &l->base;
    return rc;
}
