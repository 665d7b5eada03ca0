/* A request from anywhere, and messages made of arbitrary bytes: an error with a reason, or a
 * prompt whose segments lie side by side, with control tokens and nothing else in the control
 * ones, and which is the same the second time. The first byte chooses the API or, from 128 on,
 * messages made from the rest. */
#include "common/base/check.h"
#include "common/model/chat_format.h"
#include "coordinator/api_request.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* Length of the control token at the beginning of the text. */
static size_t token_length(struct chat_text text) {
#define TOKEN_TEXT(token) { token, sizeof token - 1 },
    static const struct chat_text tokens[] = { CHAT_CONTROLS(TOKEN_TEXT) };
    for (size_t i = 0; i < COUNT_OF(tokens); i++) {
        size_t n = tokens[i].len;
        if (n <= text.len && memcmp(text.data, tokens[i].data, n) == 0) return n;
    }
    return 0;
}

/* The number of control tokens. */
static size_t check_segments(const struct chat_prompt *p) {
    size_t at = 0, n_tokens = 0;
    for (size_t i = 0; i < p->n_segments; i++) {
        const struct chat_segment *s = &p->segments[i];
        CHECK(s->at == at && s->len > 0 && (i == 0 || s->control != s[-1].control));
        at += s->len;
        CHECK(at <= p->text.size);
        for (size_t used = 0; s->control && used < s->len; n_tokens++) {
            struct chat_text rest = { p->text.data + s->at + used, s->len - used };
            CHECK(token_length(rest));
            used += token_length(rest);
        }
    }
    CHECK(at == p->text.size);
    return n_tokens;
}

static void render(struct chat_prompt *p, const struct chat_message *m, size_t n,
                   const struct chat_options *o) {
    struct err e = { .text = "" };
    chat_prompt_init(p);
    int rc = chat_render(p, m, n, o, &e);
    CHECK(rc == 0 || e.text[0]);
    if (rc == 0) check_segments(p);
}

static void check_rendering(const struct chat_message *m, size_t n, const struct chat_options *o) {
    struct chat_prompt once, again;
    render(&once, m, n, o);
    render(&again, m, n, o);
    CHECK(once.text.size == again.text.size && once.n_segments == again.n_segments);
    CHECK(memcmp(once.text.data, again.text.data, once.text.size) == 0);
    chat_prompt_deinit(&once);
    chat_prompt_deinit(&again);
}

/* ---- requests ---- */

static void check_request(uint8_t how, struct chat_text body) {
    static int (*const readers[])(struct api_request *, json_t *, struct chat_text,
                                  const struct api_defaults *, struct err *) = {
        api_request_chat, api_request_messages, api_request_responses
    };
    struct api_defaults d = { .encoding = how & 4 ? CHAT_V4_0731 : CHAT_V4_2604,
                              .effort = CHAT_EFFORT_UNSET,
                              .thinking = how & 8,
                              .budget = how & 16 };
    struct api_request r;
    struct err e = { .text = "" };
    json_t *root;
    int rc = api_json_parse(&root, body, &e);
    if (rc == 0) {
        rc = readers[how % 4 % 3](&r, root, body, &d, &e);
        json_decref(root);
    }
    CHECK(rc == 0 || e.text[0]);
    if (rc < 0) return;
    r.options.open_turn = how & 16;
    check_rendering(r.messages, r.n_messages, &r.options);
    api_request_deinit(&r);
}

/* ---- messages made of bytes ---- */

enum { MESSAGES_MAX = 24, CALLS_MAX = 4 };

struct bytes {
    const uint8_t *p, *end;
};

static uint8_t next(struct bytes *b) {
    return b->p < b->end ? *b->p++ : 0;
}

static struct chat_text next_text(struct bytes *b) {
    size_t n = next(b) % 48;
    n = MIN(n, (size_t)(b->end - b->p));
    struct chat_text text = { (const char *)b->p, n };
    b->p += n;
    return text;
}

static void make_message(struct bytes *b, struct chat_message *m, struct chat_call *calls,
                         const struct chat_text *tool) {
    uint8_t kind = next(b);
    *m = (struct chat_message){ .role = (enum chat_role)(kind % 6),
                                .task = kind & 128 ? (enum chat_task)(next(b) % 7) : CHAT_TASK_NONE,
                                .prefix = kind & 64 };
    m->content = next_text(b);
    if (m->role == CHAT_ROLE_TOOL) m->call_id = next_text(b);
    if (m->role == CHAT_ROLE_SYSTEM && kind & 32) m->n_tools = 1, m->tools = tool;
    if (m->role != CHAT_ROLE_ASSISTANT) return;
    m->reasoning = next_text(b);
    m->n_calls = kind & 32 ? next(b) % (CALLS_MAX + 1) : 0;
    m->calls = calls;
    for (size_t i = 0; i < m->n_calls; i++) {
        calls[i].id = next_text(b);
        calls[i].name = next_text(b);
        calls[i].arguments = next_text(b);
    }
}

static void check_messages(uint8_t how, struct bytes b) {
    static const struct chat_text tool = { "{\"name\": \"f\"}", 13 };
    struct chat_message messages[MESSAGES_MAX];
    struct chat_call calls[MESSAGES_MAX][CALLS_MAX];
    size_t n = 0;
    for (; n < MESSAGES_MAX && b.p < b.end; n++) make_message(&b, &messages[n], calls[n], &tool);
    struct chat_options o = {
        .encoding = how & 1 ? CHAT_V4_0731 : CHAT_V4_2604,
        .effort = (enum chat_effort)(how >> 1 & 3),
        .thinking = how & 8, .open_turn = how & 16, .keep_reasoning = how & 32,
        .n_context = how & 64 ? n / 2 : 0,
    };
    check_rendering(messages, n, &o);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    if (size == 0) return 0;
    struct chat_text body = { (const char *)data + 1, size - 1 };
    if (data[0] < 128) check_request(data[0], body);
    else check_messages(data[0], (struct bytes){ data + 1, data + size });
    return 0;
}
