/* dsml_tags - see the header. */
#include "common/model/dsml_tags.h"

#include "common/model/chat_format.h"

#define TAGS(mark)                                                                           \
    {                                                                                        \
        "<" mark "tool_calls>", "</" mark "tool_calls>", "<" mark "invoke",                  \
        "</" mark "invoke>", "<" mark "parameter", "</" mark "parameter>"                    \
    }

/* As trained; without its first bar; plain. The last two only where the server allows them. */
static const struct dsml_tags spellings[] = { TAGS(CHAT_DSML), TAGS("DSML｜"), TAGS("") };

enum dsml_match dsml_match(struct chat_text text, const char *tag) {
    size_t n = strlen(tag), known = MIN(n, text.len);
    if (known && memcmp(text.data, tag, known)) return DSML_MATCH_NO;
    return known == n ? DSML_MATCH_FULL : DSML_MATCH_PART;
}

size_t dsml_find(struct chat_text text, size_t from, const char *tag, bool *found) {
    *found = false;
    for (; from < text.len; from++) {
        const char *p = memchr(text.data + from, '<', text.len - from);
        if (!p) break;
        from = (size_t)(p - text.data);
        enum dsml_match m = dsml_match((struct chat_text){ p, text.len - from }, tag);
        *found = m == DSML_MATCH_FULL;
        if (m != DSML_MATCH_NO) return from;
    }
    return text.len;
}

/* Whether a block opens at text[0]. */
static enum dsml_match match_block(struct chat_text text, bool loose,
                                   const struct dsml_tags **tags) {
    enum dsml_match best = DSML_MATCH_NO;
    for (size_t i = 0; i < (loose ? COUNT_OF(spellings) : 1); i++) {
        *tags = &spellings[i];
        best = MAX(best, dsml_match(text, spellings[i].calls));
        best = MAX(best, dsml_match(text, spellings[i].invoke));
        if (best == DSML_MATCH_FULL) break;
    }
    return best;
}

size_t dsml_find_block(struct chat_text text, bool loose, const struct dsml_tags **tags,
                       bool *found) {
    *found = false;
    for (size_t from = 0; from < text.len; from++) {
        const char *p = memchr(text.data + from, '<', text.len - from);
        if (!p) break;
        from = (size_t)(p - text.data);
        enum dsml_match m = match_block((struct chat_text){ p, text.len - from }, loose, tags);
        *found = m == DSML_MATCH_FULL;
        if (m != DSML_MATCH_NO) return from;
    }
    return text.len;
}

bool dsml_is_space(char c) {
    return c == ' ' || c == '\t' || c == '\n' || c == '\r';
}

/* Reads one KEY="VALUE" off *t; of a repeated key the first one counts. */
static bool read_attribute(struct chat_text *t, struct dsml_attributes *a) {
    const char *equals = memchr(t->data, '=', t->len), *end = t->data + t->len;
    if (!equals || end - equals < 2 || equals[1] != '"') return false;
    const char *close = memchr(equals + 2, '"', (size_t)(end - equals - 2));
    if (!close) return false;
    struct chat_text key = { t->data, (size_t)(equals - t->data) };
    struct chat_text value = { equals + 2, (size_t)(close - equals - 2) };
    if (!a->name.data && chat_text_equal(key, chat_text_of("name"))) a->name = value;
    if (!a->string.data && chat_text_equal(key, chat_text_of("string"))) a->string = value;
    *t = (struct chat_text){ close + 1, (size_t)(end - close - 1) };
    return true;
}

bool dsml_read_attributes(struct chat_text text, struct dsml_attributes *a) {
    *a = (struct dsml_attributes){ .name = { NULL, 0 } };
    while (text.len) {
        if (!dsml_is_space(text.data[0])) return false;
        while (text.len && dsml_is_space(text.data[0])) text.data++, text.len--;
        if (text.len && !read_attribute(&text, a)) return false;
    }
    return a->name.data != NULL;
}
