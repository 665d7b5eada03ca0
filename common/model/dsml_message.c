/* dsml_message - deltas put together to a message, and the tolerant parser in one call. */
#include <stdlib.h>

#include "common/model/chat.h"
#include "common/model/dsml.h"

enum { PART_BYTES_MAX = 1 << 30 };

void dsml_message_init(struct dsml_message *m) {
    *m = (struct dsml_message){ .calls = NULL };
    buf_init(&m->reasoning, PART_BYTES_MAX);
    buf_init(&m->content, PART_BYTES_MAX);
}

void dsml_message_deinit(struct dsml_message *m) {
    for (size_t i = 0; i < m->n_calls; i++) {
        buf_deinit(&m->calls[i].name);
        buf_deinit(&m->calls[i].arguments);
    }
    free(m->calls);
    buf_deinit(&m->reasoning);
    buf_deinit(&m->content);
    *m = (struct dsml_message){ .calls = NULL };
}

static int add_call(struct dsml_message *m, struct chat_text name) {
    if (m->n_calls == DSML_CALLS_MAX) return ERR_LIMIT;
    if (!m->calls) m->calls = calloc(DSML_CALLS_MAX, sizeof *m->calls);
    if (!m->calls) return ERR_NOMEM;
    struct dsml_call *call = &m->calls[m->n_calls++];
    buf_init(&call->name, PART_BYTES_MAX);
    buf_init(&call->arguments, PART_BYTES_MAX);
    return buf_add(&call->name, name.data, name.len);
}

int dsml_message_add(struct dsml_message *m, const struct dsml_delta *d) {
    switch (d->kind) {
    case DSML_REASONING: return buf_add(&m->reasoning, d->text.data, d->text.len);
    case DSML_CONTENT: return buf_add(&m->content, d->text.data, d->text.len);
    case DSML_CALL: return add_call(m, d->text);
    case DSML_ARGUMENTS:
        return buf_add(&m->calls[d->call_i].arguments, d->text.data, d->text.len);
    case DSML_CALL_END: break;
    }
    return 0;
}

static int take_deltas(struct dsml_message *m, struct dsml_stream *s) {
    struct dsml_delta d;
    int rc = 0;
    while (rc == 0 && dsml_stream_next(s, &d)) rc = dsml_message_add(m, &d);
    return rc;
}

int dsml_parse(struct dsml_message *m, struct chat_text text, const struct dsml_options *o,
               bool cut, struct err *e) {
    struct dsml_stream *s;
    int rc = dsml_stream_new(&s, o, e);
    if (rc < 0) return rc;
    rc = dsml_stream_feed(s, text.data, text.len);
    if (rc == 0) rc = take_deltas(m, s);
    if (rc == 0) rc = dsml_stream_end(s, cut);
    if (rc == 0) rc = take_deltas(m, s);
    m->finish = dsml_stream_finish(s);
    dsml_stream_free(s);
    return rc < 0 ? err_set(e, rc, "an answer of %zu bytes", text.len) : 0;
}

/* Whether two texts are the same JSON, however it is spelt. Nothing is the empty object. */
static bool same_json(struct chat_text a, struct chat_text b) {
    struct buf lines[2];
    struct chat_text texts[2] = { chat_json_trim(a), chat_json_trim(b) };
    bool same = true;
    for (int i = 0; i < 2; i++) {
        if (!texts[i].len) texts[i] = chat_text_of("{}");
        buf_init(&lines[i], PART_BYTES_MAX);
        same &= chat_json_reprint(texts[i], &lines[i], NULL) == 0;
    }
    same = same && lines[0].size == lines[1].size &&
           memcmp(lines[0].data, lines[1].data, lines[0].size) == 0;
    for (int i = 0; i < 2; i++) buf_deinit(&lines[i]);
    return same;
}

static bool same_call(const struct dsml_call *a, const struct chat_call *b) {
    struct chat_text name = { a->name.data, a->name.size };
    struct chat_text arguments = { a->arguments.data, a->arguments.size };
    return chat_text_equal(name, b->name) && same_json(arguments, b->arguments);
}

bool dsml_block_says(struct chat_text block, const struct chat_call *calls, size_t n_calls) {
    const struct dsml_options o = { .tools = true, .loose = true };
    struct dsml_message m;
    dsml_message_init(&m);
    bool same = dsml_parse(&m, block, &o, false, NULL) == 0 && m.content.size == 0 &&
                m.n_calls == n_calls;
    for (size_t i = 0; i < m.n_calls && same; i++) same = same_call(&m.calls[i], &calls[i]);
    dsml_message_deinit(&m);
    return same;
}
