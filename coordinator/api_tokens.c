/* api_tokens - POST /tokenize and /detokenize, in the forms of several servers at once. */
#include "coordinator/api_job.h"

static bool flag(const json_t *root, const char *key, bool otherwise) {
    const json_t *v = api_json_get(root, key);
    return v ? json_is_true(v) : otherwise;
}

/* A token that is no text by itself is shown as its bytes. */
static void put_piece(struct api_job *j, int32_t id) {
    size_t len = 0;
    const char *bytes = tokenizer_token_bytes(j->site->tokenizer, id, &len);
    if (utf8_valid(bytes, len)) {
        chat_json_put_quoted(&j->out, (struct chat_text){ bytes, len });
        return;
    }
    buf_add_char(&j->out, '[');
    for (size_t i = 0; i < len; i++) buf_printf(&j->out, i ? ",%d" : "%d", (unsigned char)bytes[i]);
    buf_add_char(&j->out, ']');
}

static void put_tokens(struct api_job *j, const struct token_buf *t, bool pieces, bool strings) {
    buf_add_text(&j->out, "{\"tokens\":[");
    for (size_t i = 0; i < t->n; i++) {
        if (i) buf_add_char(&j->out, ',');
        if (!pieces) {
            buf_printf(&j->out, "%d", t->ids[i]);
            continue;
        }
        buf_printf(&j->out, "{\"id\":%d,\"piece\":", t->ids[i]);
        put_piece(j, t->ids[i]);
        buf_add_char(&j->out, '}');
    }
    buf_printf(&j->out, "],\"count\":%zu,\"max_model_len\":%u", t->n, j->site->n_ctx);
    if (strings) {
        buf_add_text(&j->out, ",\"token_strs\":[");
        for (size_t i = 0; i < t->n; i++) {
            if (i) buf_add_char(&j->out, ',');
            api_token_put_text(j->site, t->ids[i], &j->out);
        }
        buf_add_char(&j->out, ']');
    }
    buf_add_char(&j->out, '}');
}

/* {content} never adds what a text begins with unless asked, {prompt} does. */
static int encode_text(struct api_job *j, const json_t *root, struct token_buf *out, struct err *e) {
    const json_t *content = api_json_get(root, "content"),
                 *text = content ? content : api_json_get(root, "prompt");
    int32_t bos = tokenizer_bos(j->site->tokenizer);
    if (!json_is_string(text))
        return err_set(e, ERR_INVALID, "content, prompt or messages is needed, as text");
    bool special = content ? flag(root, "add_special", false) : flag(root, "add_special_tokens", true);
    struct chat_text t = api_json_text(text);
    int rc = special && bos >= 0 ? token_buf_push(out, bos, e) : 0;
    return rc < 0 ? rc
                  : tokenizer_encode(j->site->tokenizer, t.data, t.len,
                                     flag(root, "parse_special", true), out, e);
}

static int encode_chat(struct api_job *j, json_t *root, struct chat_text body,
                       struct token_buf *out, struct err *e) {
    struct api_prompt p = { .in_reasoning = false };
    struct api_request r;
    int rc = api_request_chat(&r, root, body, &j->site->defaults, e);
    if (rc < 0) return rc;
    rc = api_prompt_make(&p, j->site, &r, e);
    api_request_deinit(&r);
    *out = p.tokens;
    return rc;
}

static int tokenize(struct api_job *j, json_t *root, struct chat_text body, struct err *e) {
    struct token_buf tokens = { 0 };
    int rc = api_json_get(root, "messages") ? encode_chat(j, root, body, &tokens, e)
                                            : encode_text(j, root, &tokens, e);
    if (rc == 0)
        put_tokens(j, &tokens, flag(root, "with_pieces", false),
                   flag(root, "return_token_strs", false));
    token_buf_free(&tokens);
    return rc;
}

static int detokenize(struct api_job *j, const json_t *root, struct err *e) {
    static const char *const names[] = { "{\"content\":", ",\"prompt\":", ",\"text\":" };
    const json_t *list = api_json_get(root, "tokens");
    struct utf8_stream utf8 = { .n_held = 0 };
    struct buf text;
    if (!json_is_array(list)) return err_set(e, ERR_INVALID, "tokens must be an array of token ids");
    buf_init(&text, API_OUT_BYTES_MAX / 8);
    int rc = 0;
    for (size_t i = 0; i < json_array_size(list) && rc == 0; i++) {
        double x = json_number_value(json_array_get(list, i));
        size_t len = 0, n = text.size;
        if (!json_is_number(json_array_get(list, i)) || !(x >= 0 && x < j->site->n_vocab) ||
            x != (double)(int32_t)x) {
            rc = err_set(e, ERR_INVALID, "tokens: element %zu is no token id of this model", i);
            break;
        }
        const char *bytes = tokenizer_token_bytes(j->site->tokenizer, (int32_t)x, &len);
        char *to = buf_grow(&text, UTF8_STREAM_ROOM(len));
        if (to) buf_cut(&text, n + utf8_stream_push(&utf8, bytes, len, to));
    }
    char *to = buf_grow(&text, UTF8_STREAM_ROOM(0));
    if (to) buf_cut(&text, text.size - UTF8_STREAM_ROOM(0) + utf8_stream_flush(&utf8, to));
    if (rc == 0 && text.rc < 0) rc = err_set(e, ERR_LIMIT, "tokens: too many");
    for (size_t i = 0; i < COUNT_OF(names) && rc == 0; i++) {
        buf_add_text(&j->out, names[i]);
        chat_json_put_quoted(&j->out, (struct chat_text){ text.data, text.size });
    }
    buf_add_char(&j->out, '}');
    buf_deinit(&text);
    return rc;
}

int api_tokens_answer(struct api_job *j, json_t *root, struct chat_text body, struct api_error *fault) {
    struct err e = { .code = ERR_INTERNAL };
    int rc = j->endpoint == API_TOKENIZE ? tokenize(j, root, body, &e) : detokenize(j, root, &e);
    return rc < 0 ? api_error_from(fault, &e) : 0;
}
