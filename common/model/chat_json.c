/* chat_json - see the header. One descent over the text makes a flat array of values, each
 * knowing its first child and its next sibling; writing walks it again. Nesting is bounded, so
 * both may recurse. Keys are compared after their escapes are resolved, by sorting: a hash could
 * be attacked with keys made to collide. */
#include "common/model/chat_json.h"

#include <stdio.h>
#include <stdlib.h>

#include "common/base/utf8.h"

struct chat_text chat_text_of(const char *terminated) {
    return (struct chat_text){ terminated, strlen(terminated) };
}

bool chat_text_equal(struct chat_text a, struct chat_text b) {
    return a.len == b.len && (a.len == 0 || memcmp(a.data, b.data, a.len) == 0);
}

int chat_text_compare(struct chat_text a, struct chat_text b) {
    size_t n = MIN(a.len, b.len);
    int order = n ? memcmp(a.data, b.data, n) : 0;
    if (order) return order;
    return (a.len > b.len) - (a.len < b.len);
}

/* ---- strings ---- */

static int hex_digit(char c) {
    if (c >= '0' && c <= '9') return c - '0';
    if (c >= 'a' && c <= 'f') return c - 'a' + 10;
    if (c >= 'A' && c <= 'F') return c - 'A' + 10;
    return -1;
}

/* The four digits at p, or -1; p < end is all that is known. */
static int32_t hex4(const char *p, const char *end) {
    if (end - p < 4) return -1;
    int32_t code = 0;
    for (int i = 0; i < 4; i++) {
        int digit = hex_digit(p[i]);
        if (digit < 0) return -1;
        code = code << 4 | digit;
    }
    return code;
}

/* The escape at p (behind the backslash): its bytes in out, *n of them; gives what follows, or
 * NULL when it is none. */
static const char *unescape(const char *p, const char *end, char out[UTF8_MAX], unsigned *n) {
    static const char letters[] = "\"\\/bfnrt", meanings[] = "\"\\/\b\f\n\r\t";
    if (p == end) return NULL;
    const char *letter = *p ? strchr(letters, *p) : NULL;
    if (letter) {
        out[0] = meanings[letter - letters];
        *n = 1;
        return p + 1;
    }
    if (*p++ != 'u') return NULL;
    int32_t code = hex4(p, end);
    if (code < 0) return NULL;
    p += 4;
    if (code >= 0xd800 && code <= 0xdfff) {     /* a high surrogate and a low one are a character */
        if (code > 0xdbff || end - p < 6 || p[0] != '\\' || p[1] != 'u') return NULL;
        int32_t low = hex4(p + 2, end);
        if (low < 0xdc00 || low > 0xdfff) return NULL;
        code = 0x10000 + ((code - 0xd800) << 10) + (low - 0xdc00);
        p += 6;
    }
    *n = utf8_encode((uint32_t)code, out);
    return p;
}

/* The characters of a string, or (escape_again) their fewest escapes. */
static void put_unescaped(struct buf *out, struct chat_text raw, bool escape_again) {
    const char *p = raw.data, *end = p + raw.len;
    while (p < end) {
        const char *slash = memchr(p, '\\', (size_t)(end - p));
        buf_add(out, p, (size_t)((slash ? slash : end) - p));     /* needs no escapes either way */
        if (!slash) return;
        char bytes[UTF8_MAX];
        unsigned n = 0;
        p = unescape(slash + 1, end, bytes, &n);
        if (!p) return;                           /* only in text that nobody has checked */
        if (escape_again) chat_json_put_escaped(out, bytes, n);
        else buf_add(out, bytes, n);
    }
}

void chat_json_put_escaped(struct buf *out, const char *bytes, size_t n) {
    static const char letters[32] = {
        ['\b'] = 'b', ['\t'] = 't', ['\n'] = 'n', ['\f'] = 'f', ['\r'] = 'r'
    };
    size_t run = 0;
    for (size_t i = 0; i < n; i++) {
        unsigned char c = (unsigned char)bytes[i];
        if (c >= 0x20 && c != '"' && c != '\\') continue;
        buf_add(out, bytes + run, i - run);
        run = i + 1;
        if (c >= 0x20) buf_printf(out, "\\%c", c);
        else if (letters[c]) buf_printf(out, "\\%c", letters[c]);
        else buf_printf(out, "\\u%04x", c);
    }
    if (n > run) buf_add(out, bytes + run, n - run);
}

void chat_json_put_quoted(struct buf *out, struct chat_text text) {
    buf_add_char(out, '"');
    chat_json_put_escaped(out, text.data, text.len);
    buf_add_char(out, '"');
}

/* ---- parsing ---- */

struct parser {
    struct chat_json *j;
    const char *start, *p, *end;
    struct err *e;
};

static int bad(struct parser *p, const char *what) {
    return err_set(p->e, ERR_INVALID, "JSON: %s at byte %zu", what, (size_t)(p->p - p->start));
}

static bool is_space(char c) {
    return c == ' ' || c == '\t' || c == '\n' || c == '\r';
}

static void skip_space(struct parser *p) {
    while (p->p < p->end && is_space(*p->p)) p->p++;
}

static bool take(struct parser *p, char c) {
    if (p->p == p->end || *p->p != c) return false;
    p->p++;
    return true;
}

/* A new value; its number in *i. */
static int value_new(struct parser *p, enum chat_json_type type, uint32_t *i) {
    struct chat_json *j = p->j;
    if (j->n == CHAT_JSON_VALUES_MAX)
        return err_set(p->e, ERR_LIMIT, "JSON: more than %d values", CHAT_JSON_VALUES_MAX);
    if (j->n == j->room) {
        uint32_t room = j->room ? j->room * 2 : 16;
        struct chat_json_value *values = realloc(j->values, room * sizeof *values);
        if (!values) return err_set(p->e, ERR_NOMEM, "JSON of %u values", (unsigned)room);
        j->values = values;
        j->room = room;
    }
    *i = j->n++;
    j->values[*i] = (struct chat_json_value){ .type = type };
    return 0;
}

static bool is_plain(char c) {
    return c != '"' && c != '\\' && (unsigned char)c >= 0x20;
}

/* At the opening quote; *raw is what lies between the quotes, every escape checked. */
static int parse_string(struct parser *p, struct chat_text *raw) {
    const char *start = ++p->p;
    for (;;) {
        while (p->p < p->end && is_plain(*p->p)) p->p++;
        if (p->p == p->end) return bad(p, "a string without end");
        if (*p->p == '"') break;
        if (*p->p != '\\') return bad(p, "a control character in a string");
        char bytes[UTF8_MAX];
        unsigned n;
        const char *next = unescape(p->p + 1, p->end, bytes, &n);
        if (!next) return bad(p, "a bad escape");
        p->p = next;
    }
    *raw = (struct chat_text){ start, (size_t)(p->p++ - start) };
    return 0;
}

static bool take_digits(struct parser *p) {
    const char *start = p->p;
    while (p->p < p->end && *p->p >= '0' && *p->p <= '9') p->p++;
    return p->p > start;
}

static int parse_number(struct parser *p, uint32_t *i) {
    const char *start = p->p;
    enum chat_json_type type = CHAT_JSON_INTEGER;
    take(p, '-');
    if (!take(p, '0') && !take_digits(p)) return bad(p, "not a value");
    if (take(p, '.')) {
        type = CHAT_JSON_REAL;
        if (!take_digits(p)) return bad(p, "a number without digits behind the point");
    }
    if (take(p, 'e') || take(p, 'E')) {
        type = CHAT_JSON_REAL;
        if (!take(p, '+')) take(p, '-');
        if (!take_digits(p)) return bad(p, "a number without digits in the exponent");
    }
    size_t len = (size_t)(p->p - start);
    if (len > CHAT_JSON_NUMBER_MAX)
        return err_set(p->e, ERR_LIMIT, "JSON: a number of %zu characters", len);
    int rc = value_new(p, type, i);
    if (rc < 0) return rc;
    p->j->values[*i].text = (struct chat_text){ start, len };
    return 0;
}

static int parse_word(struct parser *p, const char *word, enum chat_json_type type, uint32_t *i) {
    size_t n = strlen(word);
    if ((size_t)(p->end - p->p) < n || memcmp(p->p, word, n)) return bad(p, "not a value");
    int rc = value_new(p, type, i);
    if (rc < 0) return rc;
    p->j->values[*i].text = (struct chat_text){ p->p, n };
    p->p += n;
    return 0;
}

static int parse_string_value(struct parser *p, uint32_t *i) {
    int rc = value_new(p, CHAT_JSON_STRING, i);
    if (rc < 0) return rc;
    struct chat_text raw;
    rc = parse_string(p, &raw);
    if (rc == 0) p->j->values[*i].text = raw;
    return rc;
}

static int parse_value(struct parser *p, int depth, uint32_t *i);

/* At the brace or bracket: the part that arrays and objects share. */
static int open_container(struct parser *p, enum chat_json_type type, int depth, uint32_t *i) {
    if (depth == CHAT_JSON_DEPTH_MAX)
        return err_set(p->e, ERR_LIMIT, "JSON: nested deeper than %d", CHAT_JSON_DEPTH_MAX);
    int rc = value_new(p, type, i);
    if (rc < 0) return rc;
    p->p++;
    skip_space(p);
    return 0;
}

/* Hangs child behind *last, or under parent when it is the first. */
static void link_child(struct chat_json *j, uint32_t parent, uint32_t *last, uint32_t child) {
    if (*last) j->values[*last].next = child;
    else j->values[parent].first = child;
    *last = child;
}

/* Behind an element: 1 when another one follows, 0 at the closing character. */
static int after_element(struct parser *p, char closing) {
    skip_space(p);
    if (take(p, closing)) return 0;
    if (!take(p, ',')) return bad(p, "neither a comma nor an end");
    skip_space(p);
    return 1;
}

static int parse_array(struct parser *p, int depth, uint32_t *i) {
    const char *start = p->p;
    int rc = open_container(p, CHAT_JSON_ARRAY, depth, i);
    if (rc < 0) return rc;
    int more = !take(p, ']');
    for (uint32_t last = 0, child; more > 0; more = after_element(p, ']')) {
        rc = parse_value(p, depth + 1, &child);
        if (rc < 0) return rc;
        link_child(p->j, *i, &last, child);
    }
    p->j->values[*i].text = (struct chat_text){ start, (size_t)(p->p - start) };
    return more;
}

static int resolve_key(struct parser *p, struct chat_text *key) {
    if (!key->len || !memchr(key->data, '\\', key->len)) return 0;
    struct buf plain;
    buf_init(&plain, key->len);                       /* no escape is shorter than what it means */
    put_unescaped(&plain, *key, false);
    char *copy = plain.rc < 0 ? NULL : arena_text(&p->j->keys, plain.data, plain.size);
    *key = (struct chat_text){ copy, plain.size };
    buf_deinit(&plain);
    return copy ? 0 : err_set(p->e, ERR_NOMEM, "JSON: a key of %zu bytes", key->len);
}

struct member {
    struct chat_text key;
    uint32_t value_i;
};

static int compare_members(const void *a, const void *b) {
    const struct member *x = a, *y = b;
    int order = chat_text_compare(x->key, y->key);
    return order ? order : (x->value_i > y->value_i) - (x->value_i < y->value_i);
}

/* The first of several members with one key gets the last one's value; the others are not to be
 * seen. */
static void replace_repeated(struct chat_json *j, const struct member *members, uint32_t n) {
    for (uint32_t i = 1, first = 0; i < n; i++) {
        if (!chat_text_equal(members[first].key, members[i].key)) {
            first = i;
            continue;
        }
        struct chat_json_value *to = &j->values[members[first].value_i];
        struct chat_json_value *from = &j->values[members[i].value_i];
        to->type = from->type;
        to->text = from->text;
        to->first = from->first;
        from->replaced = true;
    }
}

static int merge_repeated_keys(struct parser *p, uint32_t object, uint32_t n) {
    if (n < 2) return 0;
    struct member *members = malloc(n * sizeof *members);
    if (!members) return err_set(p->e, ERR_NOMEM, "JSON object of %u members", (unsigned)n);
    uint32_t at = 0;
    for (uint32_t i = p->j->values[object].first; i; i = p->j->values[i].next)
        members[at++] = (struct member){ p->j->values[i].key, i };
    qsort(members, n, sizeof *members, compare_members);
    replace_repeated(p->j, members, n);
    free(members);
    return 0;
}

static int parse_member(struct parser *p, int depth, uint32_t *i) {
    struct chat_text key;
    if (p->p == p->end || *p->p != '"') return bad(p, "a member without a key");
    int rc = parse_string(p, &key);
    if (rc < 0) return rc;
    rc = resolve_key(p, &key);
    if (rc < 0) return rc;
    skip_space(p);
    if (!take(p, ':')) return bad(p, "a key without a colon");
    skip_space(p);
    rc = parse_value(p, depth, i);
    if (rc == 0) p->j->values[*i].key = key;
    return rc;
}

static int parse_object(struct parser *p, int depth, uint32_t *i) {
    const char *start = p->p;
    int rc = open_container(p, CHAT_JSON_OBJECT, depth, i);
    if (rc < 0) return rc;
    uint32_t n = 0;
    int more = !take(p, '}');
    for (uint32_t last = 0, child; more > 0; more = after_element(p, '}'), n++) {
        rc = parse_member(p, depth + 1, &child);
        if (rc < 0) return rc;
        link_child(p->j, *i, &last, child);
    }
    if (more < 0) return more;
    p->j->values[*i].text = (struct chat_text){ start, (size_t)(p->p - start) };
    return merge_repeated_keys(p, *i, n);
}

static int parse_value(struct parser *p, int depth, uint32_t *i) {
    if (p->p == p->end) return bad(p, "no value");
    switch (*p->p) {
    case '{': return parse_object(p, depth, i);
    case '[': return parse_array(p, depth, i);
    case '"': return parse_string_value(p, i);
    case 'n': return parse_word(p, "null", CHAT_JSON_NULL, i);
    case 't': return parse_word(p, "true", CHAT_JSON_TRUE, i);
    case 'f': return parse_word(p, "false", CHAT_JSON_FALSE, i);
    default: return parse_number(p, i);
    }
}

int chat_json_parse(struct chat_json *j, struct chat_text text, struct err *e) {
    *j = (struct chat_json){ .values = NULL };
    size_t valid = utf8_valid_prefix(text.data, text.len);
    if (valid != text.len) return err_set(e, ERR_INVALID, "JSON: not UTF-8 at byte %zu", valid);
    arena_init(&j->keys, SIZE_MAX);         /* bounded by the text: what is resolved is no longer */
    struct parser p = { j, text.data, text.data, text.len ? text.data + text.len : text.data, e };
    uint32_t root;
    skip_space(&p);
    int rc = parse_value(&p, 0, &root);
    skip_space(&p);
    if (rc == 0 && p.p != p.end) rc = bad(&p, "more behind the value");
    if (rc < 0) chat_json_deinit(j);
    return rc;
}

void chat_json_deinit(struct chat_json *j) {
    free(j->values);
    arena_deinit(&j->keys);
    *j = (struct chat_json){ .values = NULL };
}

static uint32_t visible(const struct chat_json *j, uint32_t i) {
    while (i && j->values[i].replaced) i = j->values[i].next;
    return i;
}

uint32_t chat_json_first(const struct chat_json *j, uint32_t i) {
    return visible(j, j->values[i].first);
}

uint32_t chat_json_next(const struct chat_json *j, uint32_t i) {
    return visible(j, j->values[i].next);
}

/* ---- writing ---- */

static void put_integer(struct buf *out, struct chat_text number) {
    bool minus_zero = number.len == 2 && number.data[0] == '-' && number.data[1] == '0';
    buf_add(out, number.data + minus_zero, number.len - minus_zero);
}

static void put_children(const struct chat_json *j, uint32_t i, struct buf *out) {
    bool object = j->values[i].type == CHAT_JSON_OBJECT;
    buf_add_char(out, object ? '{' : '[');
    for (uint32_t child = chat_json_first(j, i); child;) {
        if (object) {
            chat_json_put_quoted(out, j->values[child].key);
            buf_add_text(out, ": ");
        }
        chat_json_put_line(j, child, out);
        child = chat_json_next(j, child);
        if (child) buf_add_text(out, ", ");
    }
    buf_add_char(out, object ? '}' : ']');
}

void chat_json_put_line(const struct chat_json *j, uint32_t i, struct buf *out) {
    const struct chat_json_value *v = &j->values[i];
    switch (v->type) {
    case CHAT_JSON_NULL:
    case CHAT_JSON_FALSE:
    case CHAT_JSON_TRUE: buf_add(out, v->text.data, v->text.len); break;
    case CHAT_JSON_INTEGER: put_integer(out, v->text); break;
    case CHAT_JSON_REAL: chat_json_put_real(v->text, out); break;
    case CHAT_JSON_STRING:
        buf_add_char(out, '"');
        put_unescaped(out, v->text, true);
        buf_add_char(out, '"');
        break;
    case CHAT_JSON_ARRAY:
    case CHAT_JSON_OBJECT: put_children(j, i, out); break;
    }
}

void chat_json_put_string(const struct chat_json *j, uint32_t i, struct buf *out) {
    put_unescaped(out, j->values[i].text, false);
}

int chat_json_reprint(struct chat_text text, struct buf *out, struct err *e) {
    struct chat_json j;
    int rc = chat_json_parse(&j, text, e);
    if (rc < 0) return rc;
    chat_json_put_line(&j, 0, out);
    chat_json_deinit(&j);
    return out->rc < 0 ? err_set(e, out->rc, "JSON line of more than %zu bytes", out->limit) : 0;
}

/* ---- spelling of parts ---- */

static size_t space_at(struct chat_text t, size_t at) {
    while (at < t.len && is_space(t.data[at])) at++;
    return at;
}

/* Behind the string whose opening quote is at `at`. */
static size_t string_end(struct chat_text t, size_t at) {
    for (at++; at < t.len && t.data[at] != '"'; at++)
        if (t.data[at] == '\\') at++;
    return MIN(at + 1, t.len);
}

/* Behind the value at `at`. Brackets need only be counted: the text is JSON, so they match. */
static size_t value_end(struct chat_text t, size_t at) {
    size_t depth = 0;
    while (at < t.len) {
        char c = t.data[at];
        if (c == '"') {
            at = string_end(t, at);
        } else if (c == '{' || c == '[') {
            depth++;
            at++;
        } else if (depth && (c == '}' || c == ']')) {
            depth--;
            at++;
        } else if (depth) {
            at++;
            continue;
        } else {                                      /* a number or a word */
            while (at < t.len && !is_space(t.data[at]) && !strchr(",}]", t.data[at])) at++;
        }
        if (!depth) return at;
    }
    return t.len;
}

static bool key_is(struct chat_text raw, const char *key) {
    struct chat_text wanted = chat_text_of(key);
    if (!raw.len || !memchr(raw.data, '\\', raw.len)) return chat_text_equal(raw, wanted);
    struct buf plain;
    buf_init(&plain, raw.len);
    put_unescaped(&plain, raw, false);
    struct chat_text resolved = { plain.data, plain.size };
    bool equal = plain.rc == 0 && chat_text_equal(resolved, wanted);
    buf_deinit(&plain);
    return equal;
}

bool chat_json_member(struct chat_text object, const char *key, struct chat_text *value) {
    bool found = false;
    size_t at = space_at(object, 0);
    if (at == object.len || object.data[at] != '{') return false;
    for (at = space_at(object, at + 1); at < object.len && object.data[at] == '"';) {
        size_t start = at + 1;
        at = string_end(object, at);
        struct chat_text raw = { object.data + start, MAX(at - 1, start) - start };
        at = space_at(object, MIN(space_at(object, at) + 1, object.len));      /* the colon */
        size_t end = value_end(object, at);
        if (key_is(raw, key)) {
            *value = (struct chat_text){ object.data + at, end - at };
            found = true;
        }
        at = space_at(object, end);
        if (at < object.len && object.data[at] == ',') at = space_at(object, at + 1);
    }
    return found;
}

bool chat_json_element(struct chat_text array, size_t *at, struct chat_text *value) {
    size_t start = space_at(array, *at);
    if (start == array.len || array.data[start] != (*at ? ',' : '[')) return false;
    start = space_at(array, start + 1);
    if (start == array.len || array.data[start] == ']') return false;
    *at = value_end(array, start);
    *value = (struct chat_text){ array.data + start, *at - start };
    return true;
}

struct chat_text chat_json_trim(struct chat_text text) {
    while (text.len && is_space(text.data[text.len - 1])) text.len--;
    while (text.len && is_space(text.data[0])) text.data++, text.len--;
    return text;
}
