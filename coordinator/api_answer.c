/* api_answer - see the header. */
#include "coordinator/api_answer.h"

#include <math.h>
#include <stdlib.h>

#include "common/base/check.h"

enum { PIECE_BYTES = UTF8_STREAM_ROOM(TOKENIZER_TOKEN_BYTES_MAX) };

/* ---- life ---- */

int api_answer_open(struct api_answer *a, const struct api_site *site, const struct api_answer_options *o,
                    struct err *e) {
    *a = (struct api_answer){ .site = site };
    a->raw = o->raw;
    a->keep_text = o->keep_text;
    a->logprobs = o->logprobs;
    a->in_reasoning = o->dsml.in_reasoning;
    buf_init(&a->text, API_ANSWER_BYTES_MAX);
    return dsml_stream_new(&a->dsml, &o->dsml, e);
}

void api_answer_close(struct api_answer *a) {
    dsml_stream_free(a->dsml);
    buf_deinit(&a->text);
    free(a->logprob);
    *a = (struct api_answer){ .site = NULL };
}

/* ---- tokens ---- */

static void keep_logprob(struct api_answer *a, const struct service_token *t) {
    if (a->first_logprob == a->n_logprob) a->first_logprob = a->n_logprob = 0;
    if (a->n_logprob == a->room_logprob) {
        a->room_logprob = a->room_logprob ? a->room_logprob * 2 : 16;
        a->logprob = xrealloc(a->logprob, a->room_logprob * sizeof *a->logprob);
    }
    a->logprob[a->n_logprob++] = (struct api_logprob){ *t, a->content_in };
}

static int feed(struct api_answer *a, const char *text, size_t n) {
    if (a->keep_text) buf_add(&a->text, text, n);
    return n ? dsml_stream_feed(a->dsml, text, n) : 0;
}

/* Tokens that end an answer are no text; in chats, neither are others that are not for people. */
static bool is_text(const struct api_answer *a, int32_t id) {
    const struct api_site *s = a->site;
    if (api_site_ends(s, id)) return false;
    if (a->raw || id == s->think || id == s->think_end || id == s->dsml) return true;
    enum token_kind kind = tokenizer_token_kind(s->tokenizer, id);
    return kind != TOKEN_CONTROL && kind != TOKEN_UNUSED;
}

int api_answer_token(struct api_answer *a, const struct service_token *t) {
    char piece[PIECE_BYTES];
    size_t len = 0;
    const char *bytes = tokenizer_token_bytes(a->site->tokenizer, t->id, &len);
    bool reasoning = a->in_reasoning, text = is_text(a, t->id) && len;
    a->n_tokens++;
    if (reasoning) {
        a->n_reasoning++;
        if (t->id == a->site->think_end) a->in_reasoning = false;
    }
    if (!text) return 0;
    if (!reasoning) {
        a->content_in += len;
        if (a->logprobs) keep_logprob(a, t);
    }
    return feed(a, piece, utf8_stream_push(&a->utf8, bytes, len, piece));
}

int api_answer_end(struct api_answer *a, bool cut) {
    char piece[UTF8_STREAM_ROOM(0)];
    if (a->ending) return 0;
    a->ending = a->flush = true;
    a->cut = cut;
    return feed(a, piece, utf8_stream_flush(&a->utf8, piece));
}

/* The parser forgets the deltas of one call with the next, so it is ended when those of the last bytes are
 * taken. */
bool api_answer_next(struct api_answer *a, struct dsml_delta *d) {
    while (!dsml_stream_next(a->dsml, d)) {
        if (!a->ending || a->ended) return false;
        a->ended = true;
        if (!dsml_stream_done(a->dsml) && dsml_stream_end(a->dsml, a->cut) < 0) return false;
    }
    if (d->kind == DSML_CONTENT) a->content_out += d->text.len;
    if (d->kind != DSML_REASONING) a->in_reasoning = false;
    return true;
}

bool api_answer_complete(const struct api_answer *a) {
    return dsml_stream_done(a->dsml);
}

const struct service_token *api_answer_logprob(struct api_answer *a, size_t *at) {
    if (a->first_logprob == a->n_logprob) return NULL;
    const struct api_logprob *l = &a->logprob[a->first_logprob];
    size_t len = 0;
    tokenizer_token_bytes(a->site->tokenizer, l->token.id, &len);
    *at = l->end - MIN(len, l->end);
    bool out = l->end <= a->content_out || (a->flush && *at < a->content_out);
    if (!out) return NULL;
    a->first_logprob++;
    return &l->token;
}

struct chat_text api_answer_block(const struct api_answer *a) {
    size_t from, to;
    struct chat_text none = { NULL, 0 };
    if (!a->keep_text || a->text.rc < 0 || !dsml_stream_block(a->dsml, &from, &to)) return none;
    return to > a->text.size ? none : (struct chat_text){ a->text.data + from, to - from };
}

/* ---- tokens as text ---- */

void api_token_put_text(const struct api_site *site, int32_t id, struct buf *out) {
    char text[PIECE_BYTES];
    struct utf8_stream utf8 = { .n_held = 0 };
    size_t len = 0;
    const char *bytes = tokenizer_token_bytes(site->tokenizer, id, &len);
    size_t n = bytes ? utf8_stream_push(&utf8, bytes, len, text) : 0;
    n += utf8_stream_flush(&utf8, text + n);
    chat_json_put_quoted(out, (struct chat_text){ text, n });
}

static void put_one(const struct api_site *site, int32_t id, double logprob, struct buf *out) {
    size_t len = 0;
    const char *bytes = tokenizer_token_bytes(site->tokenizer, id, &len);
    buf_add_text(out, "\"token\":");
    api_token_put_text(site, id, out);
    buf_printf(out, ",\"logprob\":%.6g,\"bytes\":[", isfinite(logprob) ? logprob : -9999.0);
    for (size_t i = 0; i < len; i++) buf_printf(out, i ? ",%d" : "%d", (unsigned char)bytes[i]);
    buf_add_char(out, ']');
}

void api_token_put_logprob(const struct api_site *site, const struct service_token *t, struct buf *out) {
    buf_add_char(out, '{');
    put_one(site, t->id, t->logprob, out);
    buf_add_text(out, ",\"top_logprobs\":[");
    for (int i = 0; i < t->n_top; i++) {
        buf_add_text(out, i ? ",{" : "{");
        put_one(site, t->top[i].id, t->top[i].logprob, out);
        buf_add_char(out, '}');
    }
    buf_add_text(out, "]}");
}
