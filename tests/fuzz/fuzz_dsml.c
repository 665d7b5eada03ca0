/* Text of a model from anywhere: in pieces it means what it means at once, deltas are whole
 * characters, nothing is lost, arguments are JSON. The first three bytes choose the options, the
 * seed of the cutting and whether the answer was cut. */
#include "common/base/check.h"
#include "common/base/rng.h"
#include "common/base/utf8.h"
#include "common/model/chat_format.h"
#include "common/model/dsml.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static bool same(const struct buf *a, const struct buf *b) {
    return a->size == b->size && memcmp(a->data, b->data, a->size) == 0;
}

static void check_same(const struct dsml_message *a, const struct dsml_message *b) {
    CHECK(same(&a->reasoning, &b->reasoning) && same(&a->content, &b->content));
    CHECK(a->n_calls == b->n_calls && a->finish == b->finish);
    for (size_t i = 0; i < a->n_calls; i++) {
        CHECK(same(&a->calls[i].name, &b->calls[i].name));
        CHECK(same(&a->calls[i].arguments, &b->calls[i].arguments));
    }
}

static void take(struct dsml_stream *s, struct dsml_message *m, bool text_is_valid) {
    struct dsml_delta d;
    while (dsml_stream_next(s, &d)) {
        CHECK(d.text.len || d.kind == DSML_CALL_END);
        CHECK(!text_is_valid || utf8_valid(d.text.data, d.text.len));
        CHECK(dsml_message_add(m, &d) == 0);
    }
}

/* A closed block, taken out of the text, has the same calls again. */
static void check_block(const struct dsml_stream *s, struct chat_text text,
                        const struct dsml_message *m, const struct dsml_options *o) {
    struct dsml_options again = { .tools = true, .live = o->live, .loose = o->loose };
    struct dsml_message alone;
    size_t from, to;
    if (!dsml_stream_block(s, &from, &to)) return;
    CHECK(from < to && to <= text.len && m->n_calls > 0);
    dsml_message_init(&alone);
    struct chat_text block = { text.data + from, to - from };
    CHECK(dsml_parse(&alone, block, &again, false, NULL) == 0);
    CHECK(alone.content.size == 0 && alone.n_calls == m->n_calls);
    for (size_t i = 0; i < m->n_calls; i++)
        CHECK(same(&alone.calls[i].arguments, &m->calls[i].arguments));
    dsml_message_deinit(&alone);
}

static void parse_pieces(struct dsml_message *m, struct chat_text text, uint64_t seed, bool cut,
                         const struct dsml_options *o, bool text_is_valid) {
    struct dsml_stream *s;
    struct rng r;
    rng_init(&r, seed, 0);
    uint64_t most = seed % 2 ? 1 : 12;
    CHECK(dsml_stream_new(&s, o, NULL) == 0);
    for (size_t at = 0, n; at < text.len; at += n) {
        n = 1 + rng_below(&r, most);              /* MIN would draw twice */
        n = MIN(n, text.len - at);
        CHECK(dsml_stream_feed(s, text.data + at, n) == 0);
        take(s, m, text_is_valid);
    }
    CHECK(dsml_stream_end(s, cut) == 0);
    take(s, m, text_is_valid);
    m->finish = dsml_stream_finish(s);
    check_block(s, text, m, o);
    dsml_stream_free(s);
}

static bool skip(struct chat_text *t, const char *bytes, size_t n) {
    if (t->len < n || memcmp(t->data, bytes, n)) return false;
    *t = (struct chat_text){ t->data + n, t->len - n };
    return true;
}

/* Without calls and stops every byte but the two marks around the reasoning is delivered. */
static void check_nothing_lost(struct chat_text text, const struct dsml_message *m,
                               const struct dsml_options *o) {
    if (m->n_calls || o->n_stops) return;
    if (o->in_reasoning) skip(&text, CHAT_THINK, strlen(CHAT_THINK));
    CHECK(skip(&text, m->reasoning.data, m->reasoning.size));
    if (text.len > m->content.size) CHECK(skip(&text, CHAT_THINK_END, strlen(CHAT_THINK_END)));
    CHECK(skip(&text, m->content.data, m->content.size) && text.len == 0);
}

static void check_arguments(const struct dsml_message *m) {
    for (size_t i = 0; i < m->n_calls; i++) {
        struct chat_json j;
        struct chat_text text = { m->calls[i].arguments.data, m->calls[i].arguments.size };
        int rc = chat_json_parse(&j, text, NULL);
        CHECK(rc == 0 || rc == ERR_LIMIT);        /* a deep value inside the object is deeper */
        if (rc < 0) continue;
        CHECK(j.values[0].type == CHAT_JSON_OBJECT);
        chat_json_deinit(&j);
    }
}

static void check_strict(struct chat_text text, bool thinking) {
    struct dsml_message m;
    struct err e = { .text = "" };
    dsml_message_init(&m);
    CHECK(dsml_parse_strict(&m, text, thinking, &e) == 0 || e.text[0]);
    dsml_message_deinit(&m);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    if (size < 3) return 0;
    struct chat_text text = { (const char *)data + 3, size - 3 };
    struct chat_text stops[] = { { "</", 2 }, { "a\n\n", 3 }, { "aab", 3 } };
    struct dsml_options o = {
        .in_reasoning = data[0] & 1, .tools = data[0] & 2, .live = data[0] & 4,
        .loose = data[0] & 8, .calls_max = data[0] >> 4 & 3, .stops = stops,
        .n_stops = data[0] & 64 ? COUNT_OF(stops) : 0,
    };
    bool cut = data[2] & 1, valid = utf8_valid(text.data, text.len);
    struct dsml_message whole, pieces;
    struct err e;
    dsml_message_init(&whole);
    dsml_message_init(&pieces);
    CHECK(dsml_parse(&whole, text, &o, cut, &e) == 0);
    parse_pieces(&pieces, text, data[1], cut, &o, valid);
    check_same(&whole, &pieces);
    check_nothing_lost(text, &whole, &o);
    if (valid && !(o.live && cut)) check_arguments(&whole);
    check_strict(text, o.in_reasoning);
    dsml_message_deinit(&whole);
    dsml_message_deinit(&pieces);
    return 0;
}
