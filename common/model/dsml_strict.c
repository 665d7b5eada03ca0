/* dsml_strict - the reference's parser: one fixed layout, everything else is an error.
 *
 * A cursor walks the text; take() is the whole grammar's only primitive. It exists to say
 * whether an answer is exactly what the model was trained to write; the server uses the tolerant
 * stream. */
#include <stdlib.h>

#include "common/model/chat_format.h"
#include "common/model/dsml.h"

struct cursor {
    struct chat_text rest;
    size_t size;                                  /* of the whole text */
    struct err *e;
};

static int refuse(const struct cursor *c, const char *what) {
    return err_set(c->e, ERR_INVALID, "%s at byte %zu", what, c->size - c->rest.len);
}

static bool take(struct cursor *c, const char *word) {
    size_t n = strlen(word);
    if (c->rest.len < n || memcmp(c->rest.data, word, n)) return false;
    c->rest = (struct chat_text){ c->rest.data + n, c->rest.len - n };
    return true;
}

/* Position of the word in the text, or its length. */
static size_t position(struct chat_text text, const char *word) {
    size_t n = strlen(word);
    const char *end = text.data + text.len;
    for (const char *p = text.data; (size_t)(end - p) >= n; p++) {
        p = memchr(p, word[0], (size_t)(end - p) - n + 1);
        if (!p) break;
        if (memcmp(p, word, n) == 0) return (size_t)(p - text.data);
    }
    return text.len;
}

/* Everything up to the word, which is taken too. False: the word does not come. */
static bool take_until(struct cursor *c, const char *word, struct chat_text *before) {
    size_t n = position(c->rest, word);
    if (n == c->rest.len) return false;
    *before = (struct chat_text){ c->rest.data, n };
    c->rest = (struct chat_text){ c->rest.data + n, c->rest.len - n };
    return take(c, word);
}

static int check_plain(const struct cursor *c, struct chat_text text) {
    static const char *const words[] = { CHAT_BOS, CHAT_EOS, CHAT_THINK, CHAT_THINK_END,
                                         CHAT_DSML };
    for (size_t i = 0; i < COUNT_OF(words); i++)
        if (position(text, words[i]) < text.len)
            return err_set(c->e, ERR_INVALID, "%s in the text of the answer", words[i]);
    return 0;
}

static int take_reasoning(struct cursor *c, struct dsml_message *m) {
    struct chat_text text;
    if (!take_until(c, CHAT_THINK_END, &text)) return refuse(c, "reasoning without end");
    int rc = check_plain(c, text);
    return rc < 0 ? rc : buf_add(&m->reasoning, text.data, text.len);
}

/* KEY: VALUE behind the opening of a parameter; *keys are those that were there before. */
static int take_parameter(struct cursor *c, struct buf *arguments, struct chat_text *keys,
                          size_t *n_keys) {
    struct chat_text key, value;
    if (!take_until(c, "\" string=\"", &key)) return refuse(c, "a parameter without type");
    bool string = take(c, "true\">");
    if (!string && !take(c, "false\">")) return refuse(c, "a parameter of unknown type");
    if (!take_until(c, CHAT_PARAMETER_CLOSE, &value)) return refuse(c, "a value without end");
    if (*n_keys == DSML_PARAMETERS_MAX) return refuse(c, "too many parameters");
    for (size_t i = 0; i < *n_keys; i++)
        if (chat_text_equal(keys[i], key)) return refuse(c, "a parameter that came twice");
    if (*n_keys) buf_add_text(arguments, ", ");
    keys[(*n_keys)++] = key;
    chat_json_put_quoted(arguments, key);
    buf_add_text(arguments, ": ");
    if (string) chat_json_put_quoted(arguments, value);
    else buf_add(arguments, value.data, value.len);
    return take(c, "\n") ? 0 : refuse(c, "no newline behind a parameter");
}

static int take_parameters(struct cursor *c, struct buf *arguments) {
    struct chat_text *keys = calloc(DSML_PARAMETERS_MAX, sizeof *keys);
    size_t n_keys = 0;
    int rc = keys ? 0 : ERR_NOMEM;
    buf_add_text(arguments, "{");
    while (rc == 0 && take(c, CHAT_PARAMETER_OPEN))
        rc = take_parameter(c, arguments, keys, &n_keys);
    buf_add_text(arguments, "}");
    free(keys);
    return rc;
}

static int take_invoke(struct cursor *c, struct dsml_message *m) {
    struct chat_text name;
    if (!take_until(c, "\">\n", &name)) return refuse(c, "a call without name");
    struct dsml_delta call = { DSML_CALL, m->n_calls, name };
    int rc = dsml_message_add(m, &call);
    if (rc < 0) return refuse(c, "too many calls");
    take(c, "\n");                                /* the empty line of a call without parameters */
    rc = take_parameters(c, &m->calls[m->n_calls - 1].arguments);
    if (rc < 0) return rc;
    return take(c, CHAT_INVOKE_CLOSE "\n") ? 0 : refuse(c, "a call without end");
}

static int take_block(struct cursor *c, struct dsml_message *m) {
    if (!take(c, ">\n")) return refuse(c, "no newline behind the opening tag");
    while (take(c, CHAT_INVOKE_OPEN)) {
        int rc = take_invoke(c, m);
        if (rc < 0) return rc;
    }
    if (!take(c, CHAT_CALLS_CLOSE)) return refuse(c, "a block without end");
    take(c, CHAT_EOS);
    return c->rest.len ? refuse(c, "text behind the block") : 0;
}

int dsml_parse_strict(struct dsml_message *m, struct chat_text text, bool thinking,
                      struct err *e) {
    static const char block[] = "\n\n<" CHAT_DSML "tool_calls";
    struct cursor c = { text, text.len, e };
    int rc = thinking ? take_reasoning(&c, m) : 0;
    if (rc < 0) return rc;
    size_t n = MIN(position(c.rest, block), position(c.rest, CHAT_EOS));
    struct chat_text content = { c.rest.data, n };
    if (n == c.rest.len) return refuse(&c, "an answer without end");
    rc = check_plain(&c, content);
    if (rc == 0) rc = buf_add(&m->content, content.data, content.len);
    if (rc < 0) return rc;
    c.rest = (struct chat_text){ c.rest.data + n, c.rest.len - n };
    if (take(&c, block)) rc = take_block(&c, m);
    else if (take(&c, CHAT_EOS) && c.rest.len) rc = refuse(&c, "text behind the end");
    m->finish = m->n_calls ? DSML_FINISH_CALLS : DSML_FINISH_STOP;
    return rc;
}
