/* dsml - the streaming parser; see the header.
 *
 *     START -> REASONING -> CONTENT -> BLOCK <-> CALL <-> VALUE          text waits in s->text:
 *                              |         |         \<-> BODY
 *                              |         v                     [ given back if the block breaks |
 *                              '-----> REST (plain content)      consumed  s->at  waiting ... ]
 *                                        DONE
 *
 * Each state has a function that looks at the waiting text and either consumes some of it (true: go
 * round again) or needs more (false). Nothing is searched twice: s->scanned remembers how far the
 * state has looked. Whether more text can come at all (s->ending) decides what an unfinished tag
 * means, so all ways of cutting a text end in the same place. */
#include "common/model/dsml.h"

#include <stdlib.h>

#include "common/base/check.h"
#include "common/model/chat_format.h"
#include "common/model/dsml_out.h"
#include "common/model/dsml_stops.h"
#include "common/model/dsml_tags.h"

enum state { START, REASONING, CONTENT, BLOCK, CALL, VALUE, BODY, REST, DONE };

enum { COMPACT_BYTES = 4096, STREAM_BYTES_MAX = 1 << 30 };

struct parameter {
    uint32_t hash;
    size_t key_at, key_len, value_at, value_len;              /* in s->pieces; the value is JSON */
};

struct dsml_stream {
    enum state state;
    bool tools, live, loose, ending, cut;
    size_t calls_max;

    struct buf text;
    size_t at, scanned;                           /* at <= scanned <= text.size */
    size_t forgotten;                             /* bytes that were in front of text */
    size_t block_from, block_to;               /* in all that was fed; to is 0 until it is closed */
    bool in_quotes;                               /* of the tag that is being scanned */
    bool can_give_back;                           /* text[0..at) may become content again */
    const struct dsml_tags *tags;                 /* of the block */

    size_t n_calls;                               /* completed */
    bool announced, broken;                    /* live: a call was begun and not ended; broke off */
    bool string_open;                             /* live: its opening quote was sent */
    struct buf name, key, pieces;
    bool value_is_string;
    struct parameter *parameters;                 /* room for DSML_PARAMETERS_MAX; NULL when live */
    size_t n_parameters;

    struct dsml_stops stops;
    int stop_i;

    struct dsml_out out;
    int rc;
};

static struct chat_text text_of(const struct buf *b) {
    return (struct chat_text){ b->data, b->size };
}

/* ---- content and its stop strings ---- */

static void send_content(struct dsml_stream *s, const char *bytes, size_t n) {
    struct chat_text free_now;
    if (s->stop_i >= 0) return;
    s->stop_i = dsml_stops_push(&s->stops, bytes, n, &free_now);
    dsml_out_add(&s->out, DSML_CONTENT, free_now);
    dsml_stops_drop(&s->stops, free_now.len);
    if (s->stops.rc < 0) s->rc = s->stops.rc;
    if (s->stop_i >= 0) s->state = DONE;
}

/* No content can follow, so half a stop string is content. */
static void flush_content(struct dsml_stream *s) {
    struct chat_text rest = dsml_stops_held(&s->stops);
    if (s->stop_i < 0) dsml_out_add(&s->out, DSML_CONTENT, rest);
    dsml_stops_drop(&s->stops, rest.len);
}

/* ---- the waiting text ---- */

static struct chat_text waiting(const struct dsml_stream *s) {
    return (struct chat_text){ s->text.data + s->at, s->text.size - s->at };
}

static void consume(struct dsml_stream *s, size_t n) {
    s->at += n;
    s->scanned = s->at;
    s->in_quotes = false;
}

/* Forgets consumed text. */
static void forget(struct dsml_stream *s) {
    buf_drop(&s->text, s->at);
    s->forgotten += s->at;
    s->scanned -= s->at;
    s->at = 0;
}

/* The same, but not for every few bytes, so that each byte is moved about once. */
static void compact(struct dsml_stream *s) {
    if (s->can_give_back || s->at == 0) return;
    if (s->at < s->text.size && (s->at < COMPACT_BYTES || s->at < s->text.size / 2)) return;
    forget(s);
}

/* How many bytes at the end are the beginning of a character. */
static size_t half_character(const char *bytes, size_t n) {
    for (size_t back = 1; back <= 3 && back <= n; back++) {
        unsigned char c = (unsigned char)bytes[n - back];
        if (c < 0x80) return 0;
        if (c < 0xc0) continue;
        size_t needed = c >= 0xf0 ? 4 : c >= 0xe0 ? 3 : 2;
        return needed > back ? back : 0;
    }
    return 0;
}

/* How much of the first n waiting bytes may go out: all, but not the half character at the very
 * end. */
static size_t sendable(const struct dsml_stream *s, size_t n) {
    struct chat_text w = waiting(s);
    return n == w.len && !s->ending ? n - half_character(w.data, n) : n;
}

static struct chat_text skip_space(struct dsml_stream *s) {
    struct chat_text w = waiting(s);
    size_t n = 0;
    while (n < w.len && dsml_is_space(w.data[n])) n++;
    if (n) consume(s, n);
    return waiting(s);
}

/* ---- reasoning ---- */

static bool step_start(struct dsml_stream *s) {
    enum dsml_match m = dsml_match(waiting(s), CHAT_THINK);
    if (m == DSML_MATCH_PART && !s->ending) return false;
    if (m == DSML_MATCH_FULL) consume(s, strlen(CHAT_THINK));
    s->state = REASONING;
    return true;
}

static bool step_reasoning(struct dsml_stream *s) {
    bool found;
    struct chat_text w = waiting(s);
    size_t n = dsml_find(w, 0, CHAT_THINK_END, &found);
    if (!found && s->ending) n = w.len;
    n = sendable(s, n);
    dsml_out_add(&s->out, DSML_REASONING, (struct chat_text){ w.data, n });
    consume(s, n);
    if (!found) return false;
    consume(s, strlen(CHAT_THINK_END));
    s->state = s->tools ? CONTENT : REST;
    return true;
}

/* ---- content, and where a block begins ---- */

/* From here on the text may have to be given back, the newlines before the block included. */
static void open_block(struct dsml_stream *s, size_t n_newlines) {
    forget(s);
    s->block_from = s->forgotten;
    consume(s, n_newlines);
    s->can_give_back = true;
    s->state = BLOCK;
    if (dsml_match(waiting(s), s->tags->calls) != DSML_MATCH_FULL) return;    /* a bare invoke */
    consume(s, strlen(s->tags->calls));
}

static bool step_content(struct dsml_stream *s) {
    bool found;
    struct chat_text w = waiting(s);
    size_t n = dsml_find_block(w, s->loose, &s->tags, &found), n_newlines = 0;
    while (n_newlines < 2 && n_newlines < n && w.data[n - n_newlines - 1] == '\n') n_newlines++;
    size_t free_now = !found && s->ending ? w.len : sendable(s, n - n_newlines);
    send_content(s, w.data, free_now);
    consume(s, free_now);
    if (s->state != CONTENT || !found) return false;
    open_block(s, n_newlines);
    return true;
}

static bool step_rest(struct dsml_stream *s) {
    struct chat_text w = waiting(s);
    size_t n = sendable(s, w.len);
    send_content(s, w.data, n);
    consume(s, n);
    return false;
}

/* ---- tags ---- */

/* The waiting text begins with `opening`: finds the tag's '>', not counting those in quotes. */
static enum dsml_match find_tag_end(struct dsml_stream *s, size_t *end) {
    for (; s->scanned < s->text.size; s->scanned++) {
        char c = s->text.data[s->scanned];
        if (s->scanned - s->at >= DSML_TAG_BYTES_MAX) return DSML_MATCH_NO;
        if (c == '"') s->in_quotes = !s->in_quotes;
        if (c != '>' || s->in_quotes) continue;
        *end = s->scanned - s->at;
        return DSML_MATCH_FULL;
    }
    return DSML_MATCH_PART;
}

/* Takes the tag that the waiting text begins with. DSML_MATCH_NO: it is none. */
static enum dsml_match take_tag(struct dsml_stream *s, const char *opening,
                                struct dsml_attributes *a) {
    size_t end = 0, n = strlen(opening);
    enum dsml_match m = find_tag_end(s, &end);
    if (m != DSML_MATCH_FULL) return m;
    struct chat_text inside = { waiting(s).data + n, end - n };
    if (!dsml_read_attributes(inside, a)) return DSML_MATCH_NO;
    consume(s, end + 1);
    return DSML_MATCH_FULL;
}

static void set(struct buf *to, struct chat_text text) {
    buf_clear(to);
    buf_add(to, text.data, text.len);
}

/* ---- calls ---- */

static uint32_t hash_of(struct chat_text key) {
    uint32_t hash = 2166136261u;
    for (size_t i = 0; i < key.len; i++) hash = (hash ^ (unsigned char)key.data[i]) * 16777619u;
    return hash;
}

static void send_arguments(struct dsml_stream *s, const char *text) {
    dsml_out_add(&s->out, DSML_ARGUMENTS, chat_text_of(text));
}

static void send_quoted(struct dsml_stream *s, struct chat_text text) {
    chat_json_put_quoted(dsml_out_begin(&s->out, DSML_ARGUMENTS), text);
    dsml_out_end(&s->out);
}

static void begin_call(struct dsml_stream *s, struct chat_text name) {
    set(&s->name, name);
    buf_clear(&s->pieces);
    s->n_parameters = 0;
    s->state = CALL;
    if (!s->live) return;
    flush_content(s);
    dsml_out_mark(&s->out, DSML_CALL, name);
    s->announced = true;
    s->can_give_back = false;
}

static bool value_is_json(struct chat_text value) {
    struct chat_json j;
    if (chat_json_parse(&j, value, NULL) < 0) return false;
    chat_json_deinit(&j);
    return true;
}

/* The value as JSON behind what is in *out: as it stands if it is JSON and meant to be. */
static void put_value(const struct dsml_stream *s, struct chat_text value, struct buf *out) {
    struct chat_text trimmed = chat_json_trim(value);
    if (!s->value_is_string && value_is_json(trimmed)) buf_add(out, trimmed.data, trimmed.len);
    else chat_json_put_quoted(out, value);
}

/* Live: what comes before a value. */
static void send_key(struct dsml_stream *s) {
    send_arguments(s, s->n_parameters++ ? ", " : "{");
    send_quoted(s, text_of(&s->key));
    send_arguments(s, ": ");
}

static struct chat_text piece(const struct dsml_stream *s, size_t at, size_t len) {
    return (struct chat_text){ s->pieces.data + at, len };
}

static struct parameter *find_parameter(const struct dsml_stream *s, struct chat_text key,
                                        uint32_t hash) {
    for (size_t i = 0; i < s->n_parameters; i++) {
        struct parameter *p = &s->parameters[i];
        if (p->hash == hash && chat_text_equal(key, piece(s, p->key_at, p->key_len))) return p;
    }
    return NULL;
}

/* Whole: keeps the parameter until the call is complete. The last value of a key counts. */
static void keep_parameter(struct dsml_stream *s, struct chat_text value) {
    uint32_t hash = hash_of(text_of(&s->key));
    struct parameter *p = find_parameter(s, text_of(&s->key), hash);
    if (!p) {
        p = &s->parameters[s->n_parameters++];
        *p = (struct parameter){ .hash = hash, .key_at = s->pieces.size, .key_len = s->key.size };
        buf_add(&s->pieces, s->key.data, s->key.size);
    }
    p->value_at = s->pieces.size;
    put_value(s, value, &s->pieces);
    p->value_len = s->pieces.size - p->value_at;
    if (s->pieces.rc < 0) s->rc = s->pieces.rc;
}

static void send_parameters(struct dsml_stream *s) {
    send_arguments(s, "{");
    for (size_t i = 0; i < s->n_parameters; i++) {
        const struct parameter *p = &s->parameters[i];
        if (i) send_arguments(s, ", ");
        send_quoted(s, piece(s, p->key_at, p->key_len));
        send_arguments(s, ": ");
        dsml_out_add(&s->out, DSML_ARGUMENTS, piece(s, p->value_at, p->value_len));
    }
    send_arguments(s, "}");
}

/* Closes the arguments of an announced call. */
static void close_arguments(struct dsml_stream *s) {
    if (s->string_open) send_arguments(s, "\"");
    send_arguments(s, s->n_parameters ? "}" : "{}");
    s->string_open = false;
}

/* The call is complete; body holds its arguments if they came as one JSON object. */
static void end_call(struct dsml_stream *s, struct chat_text body) {
    if (!s->live) {
        flush_content(s);
        dsml_out_mark(&s->out, DSML_CALL, text_of(&s->name));
    }
    if (body.len) dsml_out_add(&s->out, DSML_ARGUMENTS, body);
    else if (s->live) close_arguments(s);
    else send_parameters(s);
    dsml_out_mark(&s->out, DSML_CALL_END, (struct chat_text){ NULL, 0 });
    s->announced = false;
    s->can_give_back = false;
    s->out.call_i = ++s->n_calls;
    s->state = s->n_calls == s->calls_max ? DONE : BLOCK;
}

/* The markup does not go on as it should: calls so far count; without any it was content. */
static bool break_off(struct dsml_stream *s) {
    if (s->can_give_back) {
        s->can_give_back = false;
        s->at = s->scanned = 0;
        s->state = REST;
        return true;
    }
    s->state = DONE;
    s->broken = s->announced;
    if (!s->announced || (s->ending && s->cut)) return false;
    close_arguments(s);
    dsml_out_mark(&s->out, DSML_CALL_END, (struct chat_text){ NULL, 0 });
    return false;
}

/* The text could still go on, so wait, unless it has ended. */
static bool wait_for_more(struct dsml_stream *s) {
    return s->ending ? break_off(s) : false;
}

/* At the closing tag: the regular end, unless there was no call. */
static bool close_block(struct dsml_stream *s) {
    if (s->n_calls == 0) return break_off(s);
    consume(s, strlen(s->tags->calls_close));
    s->block_to = s->forgotten + s->at;
    s->state = DONE;
    return false;
}

/* Between calls: another one, or the end. */
static bool step_block(struct dsml_stream *s) {
    struct dsml_attributes a;
    struct chat_text w = skip_space(s);
    enum dsml_match close = dsml_match(w, s->tags->calls_close);
    enum dsml_match invoke = dsml_match(w, s->tags->invoke);
    if (close == DSML_MATCH_FULL) return close_block(s);
    if (invoke == DSML_MATCH_FULL) invoke = take_tag(s, s->tags->invoke, &a);
    if (invoke == DSML_MATCH_NO && close == DSML_MATCH_NO) return break_off(s);
    if (invoke != DSML_MATCH_FULL) return wait_for_more(s);
    if (!a.name.len) return break_off(s);
    begin_call(s, a.name);
    return true;
}

static void begin_value(struct dsml_stream *s, const struct dsml_attributes *a) {
    set(&s->key, a->name);
    s->value_is_string = !chat_text_equal(a->string, chat_text_of("false"));
    s->string_open = s->live && s->value_is_string;
    s->state = VALUE;
    if (!s->string_open) return;
    send_key(s);
    send_arguments(s, "\"");
}

/* Inside a call: another parameter, a JSON object instead of any, or its end. */
static bool step_call(struct dsml_stream *s) {
    struct dsml_attributes a;
    struct chat_text w = skip_space(s);
    enum dsml_match close = dsml_match(w, s->tags->invoke_close);
    enum dsml_match parameter = dsml_match(w, s->tags->parameter);
    if (close == DSML_MATCH_FULL) {
        consume(s, strlen(s->tags->invoke_close));
        end_call(s, (struct chat_text){ NULL, 0 });
        return true;
    }
    if (w.len && w.data[0] == '{' && s->n_parameters == 0) {
        s->state = BODY;
        return true;
    }
    if (parameter == DSML_MATCH_FULL) parameter = take_tag(s, s->tags->parameter, &a);
    if (parameter == DSML_MATCH_NO && close == DSML_MATCH_NO) return break_off(s);
    if (parameter != DSML_MATCH_FULL) return wait_for_more(s);
    if (s->n_parameters == DSML_PARAMETERS_MAX) return break_off(s);
    begin_value(s, &a);
    return true;
}

/* Live: the next n bytes belong to the string. */
static void send_value_piece(struct dsml_stream *s, size_t n) {
    n = sendable(s, n);
    if (n == 0) return;
    chat_json_put_escaped(dsml_out_begin(&s->out, DSML_ARGUMENTS), s->text.data + s->at, n);
    dsml_out_end(&s->out);
    consume(s, n);
}

/* A value that was waited for. */
static void end_value(struct dsml_stream *s, struct chat_text value) {
    if (!s->live) {
        keep_parameter(s, value);
        return;
    }
    send_key(s);
    put_value(s, value, dsml_out_begin(&s->out, DSML_ARGUMENTS));
    dsml_out_end(&s->out);
}

static bool step_value(struct dsml_stream *s) {
    bool found;
    struct chat_text w = waiting(s);
    size_t n = dsml_find(w, s->scanned - s->at, s->tags->parameter_close, &found);
    if (s->string_open) send_value_piece(s, !found && s->ending ? w.len : n);
    else s->scanned = s->at + n;
    if (!s->string_open && n > DSML_HELD_BYTES_MAX) return break_off(s);
    if (!found) return wait_for_more(s);
    if (!s->string_open) end_value(s, (struct chat_text){ w.data, n });
    else send_arguments(s, "\"");
    if (!s->string_open) consume(s, n);
    consume(s, strlen(s->tags->parameter_close));
    s->string_open = false;
    s->state = CALL;
    return true;
}

static bool is_object(struct chat_text text) {
    struct chat_json j;
    if (chat_json_parse(&j, text, NULL) < 0) return false;
    bool object = j.values[0].type == CHAT_JSON_OBJECT;
    chat_json_deinit(&j);
    return object;
}

static bool step_body(struct dsml_stream *s) {
    bool found;
    struct chat_text w = waiting(s);
    size_t n = dsml_find(w, s->scanned - s->at, s->tags->invoke_close, &found);
    s->scanned = s->at + n;
    if (n > DSML_HELD_BYTES_MAX) return break_off(s);
    if (!found) return wait_for_more(s);
    struct chat_text body = chat_json_trim((struct chat_text){ w.data, n });
    if (!is_object(body)) return break_off(s);
    end_call(s, body);
    consume(s, n + strlen(s->tags->invoke_close));
    return true;
}

/* ---- the stream ---- */

static bool step(struct dsml_stream *s) {
    switch (s->state) {
    case START: return step_start(s);
    case REASONING: return step_reasoning(s);
    case CONTENT: return step_content(s);
    case BLOCK: return step_block(s);
    case CALL: return step_call(s);
    case VALUE: return step_value(s);
    case BODY: return step_body(s);
    case REST: return step_rest(s);
    case DONE: return false;
    }
    return false;
}

static int run(struct dsml_stream *s) {
    while (s->rc == 0 && step(s)) compact(s);
    compact(s);
    if (s->out.rc < 0) s->rc = s->out.rc;
    return s->rc;
}

int dsml_stream_feed(struct dsml_stream *s, const char *bytes, size_t n) {
    dsml_out_clear(&s->out);
    if (s->state == DONE || s->rc < 0) return s->rc;
    if (buf_add(&s->text, bytes, n) < 0) s->rc = s->text.rc;
    return run(s);
}

int dsml_stream_end(struct dsml_stream *s, bool cut) {
    dsml_out_clear(&s->out);
    s->ending = true;
    if (s->state == DONE) return s->rc;
    s->cut = cut;
    run(s);
    flush_content(s);
    return s->rc;
}

bool dsml_stream_next(struct dsml_stream *s, struct dsml_delta *d) {
    return dsml_out_next(&s->out, d);
}

bool dsml_stream_done(const struct dsml_stream *s) {
    return s->state == DONE;
}

enum dsml_finish dsml_stream_finish(const struct dsml_stream *s) {
    if (s->stop_i >= 0) return DSML_FINISH_STOP;
    if (s->cut) return DSML_FINISH_LENGTH;
    return s->n_calls && !s->broken ? DSML_FINISH_CALLS : DSML_FINISH_STOP;
}

int dsml_stream_stop_i(const struct dsml_stream *s) {
    return s->stop_i;
}

bool dsml_stream_broken(const struct dsml_stream *s) {
    return s->broken;
}

bool dsml_stream_block(const struct dsml_stream *s, size_t *from, size_t *to) {
    *from = s->block_from;
    *to = s->block_to;
    return s->block_to > 0;
}

int dsml_stream_new(struct dsml_stream **out, const struct dsml_options *o, struct err *e) {
    struct dsml_stream *s = xcalloc(1, sizeof *s);
    size_t calls_max = o->calls_max ? o->calls_max : DSML_CALLS_MAX;
    s->state = o->in_reasoning ? START : o->tools ? CONTENT : REST;
    s->tools = o->tools;
    s->live = o->live;
    s->loose = o->loose;
    s->calls_max = MIN(calls_max, (size_t)DSML_CALLS_MAX);
    s->stop_i = -1;
    if (o->tools && !o->live) s->parameters = xcalloc(DSML_PARAMETERS_MAX, sizeof *s->parameters);
    buf_init(&s->text, STREAM_BYTES_MAX);
    buf_init(&s->name, DSML_TAG_BYTES_MAX);
    buf_init(&s->key, DSML_TAG_BYTES_MAX);
    buf_init(&s->pieces, STREAM_BYTES_MAX);
    dsml_out_init(&s->out, STREAM_BYTES_MAX);
    int rc = dsml_stops_init(&s->stops, o->stops, o->n_stops, e);
    if (rc < 0) dsml_stream_free(s);
    else *out = s;
    return rc;
}

void dsml_stream_free(struct dsml_stream *s) {
    if (!s) return;
    buf_deinit(&s->text);
    buf_deinit(&s->name);
    buf_deinit(&s->key);
    buf_deinit(&s->pieces);
    dsml_out_deinit(&s->out);
    dsml_stops_deinit(&s->stops);
    free(s->parameters);
    free(s);
}
