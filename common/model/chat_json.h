/* chat_json - JSON text in, JSON text out, spelt the way the model was trained to read it.
 *
 * Tool schemas and arguments are shown to the model as one line each: ", " and ": " between
 * things, keys in the order they came in, integers of any length, doubles as their shortest
 * digits, text as UTF-8 with the fewest escapes. A JSON library keeps none of the integers
 * beyond 64 bits, so this reads the text itself: strict RFC 8259, no NaN, no lone surrogates, no
 * raw control characters, valid UTF-8.
 *
 * A struct chat_json points into the text it was parsed from, which must outlive it. One thread
 * at a time. Time is linear in the text (n log n in the keys of one object). Limits: the enum
 * below; beyond them ERR_LIMIT. */
#ifndef MODEL_CHAT_JSON_H
#define MODEL_CHAT_JSON_H

#include "common/base/arena.h"
#include "common/base/buf.h"
#include "common/base/types.h"

enum {
    CHAT_JSON_DEPTH_MAX = 512,                        /* arrays and objects inside one another */
    CHAT_JSON_VALUES_MAX = 1 << 18,        /* values in one text: about 16 MiB while it is parsed */
    CHAT_JSON_NUMBER_MAX = 4096,                      /* characters of one number */
};

struct chat_text {              /* borrowed bytes, not terminated; data may be NULL when len is 0 */
    const char *data;
    size_t len;
};

struct chat_text chat_text_of(const char *terminated);
bool chat_text_equal(struct chat_text a, struct chat_text b);
int chat_text_compare(struct chat_text a, struct chat_text b);    /* by bytes, shorter ones first */

enum chat_json_type {
    CHAT_JSON_NULL, CHAT_JSON_FALSE, CHAT_JSON_TRUE, CHAT_JSON_INTEGER, CHAT_JSON_REAL,
    CHAT_JSON_STRING, CHAT_JSON_ARRAY, CHAT_JSON_OBJECT
};

struct chat_json_value {
    enum chat_json_type type;
    bool replaced;                             /* a later member had the same key: not to be seen */
    uint32_t first, next;                /* value numbers, 0 for none: the root is nobody's child */
    struct chat_text key;                             /* of an object's member, escapes resolved */
    struct chat_text text;               /* the spelling; of a string, what is between the quotes */
};

struct chat_json {
    struct chat_json_value *values;                   /* [0] is the whole text */
    uint32_t n, room;
    struct arena keys;                                /* resolved keys that had escapes */
};

/* Exactly one value with white space around it: 0, ERR_INVALID (the text is not JSON), ERR_LIMIT
 * or ERR_NOMEM. The struct needs chat_json_deinit only after success. */
int chat_json_parse(struct chat_json *j, struct chat_text text, struct err *e);
void chat_json_deinit(struct chat_json *j);

/* Children of value i in order, 0 at the end. A key that came twice is one member: first
 * position, last value. */
uint32_t chat_json_first(const struct chat_json *j, uint32_t i);
uint32_t chat_json_next(const struct chat_json *j, uint32_t i);

/* Value i as one line; the characters of value i, a string, as they are. */
void chat_json_put_line(const struct chat_json *j, uint32_t i, struct buf *out);
void chat_json_put_string(const struct chat_json *j, uint32_t i, struct buf *out);

/* Both steps at once: the text as one line. */
int chat_json_reprint(struct chat_text text, struct buf *out, struct err *e);

/* A number's text as the shortest digits of its double: 1.50 is 1.5, 1e3 is 1000.0, 1e16 is
 * 1e+16. */
void chat_json_put_real(struct chat_text number, struct buf *out);

/* Raw characters as the inside of a JSON string (no quotes around): only ", \ and controls are
 * escaped. */
void chat_json_put_escaped(struct buf *out, const char *bytes, size_t n);
void chat_json_put_quoted(struct buf *out, struct chat_text text);

/* Spelling of parts of a text that some JSON parser has already accepted. The value of the last
 * member called `key` of an object; the element behind *at of an array (start with 0). False
 * when there is none. */
bool chat_json_member(struct chat_text object, const char *key, struct chat_text *value);
bool chat_json_element(struct chat_text array, size_t *at, struct chat_text *value);

struct chat_text chat_json_trim(struct chat_text text);          /* without white space around it */

#endif
