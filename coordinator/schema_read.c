/* schema_read - the keywords of a set of schemas, put together. */
#include "coordinator/schema_parts.h"

#include <stdlib.h>

#include "common/base/buf.h"
#include "common/base/check.h"
#include "common/base/utf8.h"

enum { REF_HOPS_MAX = 32, DISJOINT_DEPTH_MAX = 4, PROPERTIES_MAX = 4096 };

/* ---- looking into the JSON ---- */

const struct chat_json_value *schema_value(const struct schema *s, uint32_t v) {
    return &s->json.values[v];
}

static bool is_a(const struct schema *s, uint32_t v, enum chat_json_type type) {
    return s->json.values[v].type == type;
}

uint32_t schema_member(const struct schema *s, uint32_t v, const char *key) {
    struct chat_text wanted = chat_text_of(key);
    if (!is_a(s, v, CHAT_JSON_OBJECT)) return 0;
    for (uint32_t m = chat_json_first(&s->json, v); m; m = chat_json_next(&s->json, m))
        if (chat_text_equal(s->json.values[m].key, wanted)) return m;
    return 0;
}

static uint32_t member_named(const struct schema *s, uint32_t v, struct chat_text name) {
    for (uint32_t m = chat_json_first(&s->json, v); m; m = chat_json_next(&s->json, m))
        if (chat_text_equal(s->json.values[m].key, name)) return m;
    return 0;
}

struct chat_text schema_where(const struct schema *s, uint32_t v) {
    struct chat_text key = s->json.values[v].key;
    if (!key.len) key = chat_text_of(v ? "an element" : "the schema");
    key.len = MIN(key.len, 60);
    return key;
}

int schema_fail(const struct schema *s, uint32_t v, const char *what) {
    struct chat_text where = schema_where(s, v);
    return err_set(s->e, ERR_INVALID, "schema: %.*s: %s", (int)where.len, where.data, what);
}

static struct chat_text string_of(struct schema *s, uint32_t v) {
    struct buf text;
    buf_init(&text, SCHEMA_BYTES_MAX);
    chat_json_put_string(&s->json, v, &text);
    char *copy = arena_text(&s->arena, text.data, text.size);
    struct chat_text out = { copy, copy ? text.size : 0 };
    buf_deinit(&text);
    return out;
}

/* ---- sets of schemas ---- */

int conj_add(const struct schema *s, struct conj *c, uint32_t value) {
    uint32_t i = 0;
    while (i < c->n && c->part[i].value < value) i++;
    if (i < c->n && c->part[i].value == value) return 0;
    if (c->n == SCHEMA_PARTS_MAX) return schema_fail(s, value, "too many schemas hold for one value");
    memmove(&c->part[i + 1], &c->part[i], (c->n - i) * sizeof *c->part);
    c->part[i] = (struct part){ value, 0 };
    c->n++;
    return 0;
}

/* One step of a JSON pointer, ~0 ~1 and %XX resolved. */
static bool next_step(struct chat_text *pointer, char *out, size_t room, size_t *len) {
    *len = 0;
    if (!pointer->len || pointer->data[0] != '/') return false;
    pointer->data++, pointer->len--;
    while (pointer->len && pointer->data[0] != '/') {
        char c = pointer->data[0];
        size_t used = 1;
        if (c == '~' && pointer->len > 1) c = pointer->data[1] == '1' ? '/' : '~', used = 2;
        if (c == '%' && pointer->len > 2) {
            char hex[3] = { pointer->data[1], pointer->data[2], 0 };
            c = (char)strtol(hex, NULL, 16), used = 3;
        }
        if (*len == room) return false;
        out[(*len)++] = c;
        pointer->data += used, pointer->len -= used;
    }
    return true;
}

static uint32_t element(const struct schema *s, uint32_t v, const char *step) {
    char *end;
    long i = strtol(step, &end, 10);
    uint32_t m = chat_json_first(&s->json, v);
    for (; *step && !*end && m && i > 0; i--) m = chat_json_next(&s->json, m);
    return *step && !*end ? m : 0;
}

/* What "#/..." names, or ERR_INVALID. */
static int64_t resolve(const struct schema *s, uint32_t ref) {
    struct buf text;
    char step[256];
    size_t len;
    uint32_t v = 0;
    bool found = is_a(s, ref, CHAT_JSON_STRING);
    buf_init(&text, SCHEMA_BYTES_MAX);
    if (found) chat_json_put_string(&s->json, ref, &text);
    struct chat_text pointer = { text.data, text.size };
    found = found && pointer.len && pointer.data[0] == '#';
    if (found) pointer.data++, pointer.len--;
    while (found && pointer.len) {
        found = next_step(&pointer, step, sizeof step - 1, &len);
        step[len] = '\0';
        if (!found) break;
        v = is_a(s, v, CHAT_JSON_ARRAY) ? element(s, v, step)
                                        : member_named(s, v, (struct chat_text){ step, len });
        found = v != 0;
    }
    int rc = 0;
    if (!found)
        rc = err_set(s->e, ERR_INVALID,
                     "schema: $ref: \"%.80s\" is not in the schema (only #/... is)", text.data);
    buf_deinit(&text);
    return rc < 0 ? rc : (int64_t)v;
}

/* A $ref may lead to another one; in the end there must be something else. */
static int64_t follow(const struct schema *s, uint32_t ref) {
    int64_t target = resolve(s, ref), at = target;
    for (int hops = 0; at >= 0; hops++) {
        uint32_t next = schema_member(s, (uint32_t)at, "$ref");
        if (!next) return target;
        if (hops == REF_HOPS_MAX) return schema_fail(s, ref, "refers to itself without an end");
        at = resolve(s, next);
    }
    return at;
}

static int add_parts_of(const struct schema *s, struct conj *c, uint32_t value) {
    uint32_t ref = schema_member(s, value, "$ref"), all = schema_member(s, value, "allOf");
    int rc = 0;
    if (ref) {
        int64_t target = follow(s, ref);
        rc = target < 0 ? (int)target : conj_add(s, c, (uint32_t)target);
    }
    if (rc == 0 && all && !is_a(s, all, CHAT_JSON_ARRAY)) rc = schema_fail(s, all, "is not an array");
    for (uint32_t m = rc == 0 && all ? chat_json_first(&s->json, all) : 0; m && rc == 0;
         m = chat_json_next(&s->json, m))
        rc = conj_add(s, c, m);
    return rc;
}

int conj_complete(const struct schema *s, struct conj *c) {
    uint32_t seen[SCHEMA_PARTS_MAX], n_seen = 0;
    for (bool more = true; more;) {
        more = false;
        for (uint32_t i = 0; i < c->n; i++) {
            uint32_t value = c->part[i].value, k = 0;
            while (k < n_seen && seen[k] != value) k++;
            if (k < n_seen) continue;
            seen[n_seen++] = value;
            int rc = add_parts_of(s, c, value);
            if (rc < 0) return rc;
            more = true;
            break;                                /* the parts have moved */
        }
    }
    return 0;
}

int conj_branching(const struct schema *s, const struct conj *c, uint32_t *branches, uint32_t *done) {
    for (uint32_t i = 0; i < c->n; i++) {
        uint32_t any = schema_member(s, c->part[i].value, "anyOf");
        uint32_t one = schema_member(s, c->part[i].value, "oneOf");
        *done = any && !(c->part[i].done & DONE_ANY) ? DONE_ANY : DONE_ONE;
        *branches = *done == DONE_ANY ? any : one;
        if (*branches && !(c->part[i].done & *done)) return (int)i;
    }
    return -1;
}

/* ---- single keywords ---- */

unsigned schema_type_of(const struct schema *s, uint32_t v) {
    switch (s->json.values[v].type) {
    case CHAT_JSON_NULL: return IS_NULL;
    case CHAT_JSON_FALSE:
    case CHAT_JSON_TRUE: return IS_BOOL;
    case CHAT_JSON_INTEGER: return IS_INTEGER;
    case CHAT_JSON_REAL: return IS_REAL;
    case CHAT_JSON_STRING: return IS_STRING;
    case CHAT_JSON_ARRAY: return IS_ARRAY;
    case CHAT_JSON_OBJECT: return IS_OBJECT;
    }
    return 0;
}

/* 1 and 1.0 are one number, however they are spelled. */
static bool same_number(const struct schema *s, uint32_t a, uint32_t b) {
    struct number_bound x, y;
    return number_bound_read(&x, s->json.values[a].text, false, NULL) == 0 &&
           number_bound_read(&y, s->json.values[b].text, false, NULL) == 0 &&
           number_bound_compare(&x, &y) == 0;
}

bool schema_same(const struct schema *s, uint32_t a, uint32_t b) {
    struct buf x, y;
    if ((schema_type_of(s, a) & IS_NUMBER) && (schema_type_of(s, b) & IS_NUMBER) &&
        same_number(s, a, b))
        return true;
    buf_init(&x, SCHEMA_BYTES_MAX);
    buf_init(&y, SCHEMA_BYTES_MAX);
    chat_json_put_line(&s->json, a, &x);
    chat_json_put_line(&s->json, b, &y);
    bool same = x.size == y.size && memcmp(x.data, y.data, x.size) == 0;
    buf_deinit(&x);
    buf_deinit(&y);
    return same;
}

static unsigned type_named(const struct schema *s, uint32_t v) {
    static const struct { const char *name; unsigned type; } types[] = {
        { "null", IS_NULL }, { "boolean", IS_BOOL }, { "integer", IS_INTEGER }, { "number", IS_NUMBER },
        { "string", IS_STRING }, { "array", IS_ARRAY }, { "object", IS_OBJECT }
    };
    for (size_t i = 0; is_a(s, v, CHAT_JSON_STRING) && i < COUNT_OF(types); i++)
        if (chat_text_equal(s->json.values[v].text, chat_text_of(types[i].name))) return types[i].type;
    return 0;
}

static int read_type(struct schema *s, uint32_t v, struct facts *f) {
    unsigned types = type_named(s, v);
    bool array = is_a(s, v, CHAT_JSON_ARRAY);
    for (uint32_t m = array ? chat_json_first(&s->json, v) : 0; m; m = chat_json_next(&s->json, m)) {
        unsigned type = type_named(s, m);
        if (!type) return schema_fail(s, v, "names a type that is none");
        types |= type;
    }
    if (!types) return schema_fail(s, v, "names a type that is none");
    f->types &= types;
    return 0;
}

/* Keeps of the list what is in the new one, or begins it. */
static int read_list(struct schema *s, uint32_t v, bool single, struct facts *f) {
    uint32_t n = 0, *list;
    if (!single && !is_a(s, v, CHAT_JSON_ARRAY)) return schema_fail(s, v, "is not an array");
    for (uint32_t m = single ? v : chat_json_first(&s->json, v); m; m = chat_json_next(&s->json, m)) {
        n++;
        if (single) break;
    }
    list = arena_array(&s->arena, n + 1, sizeof *list);
    if (!list) return err_set(s->e, ERR_LIMIT, "schema: too large");
    n = 0;
    for (uint32_t m = single ? v : chat_json_first(&s->json, v); m; m = chat_json_next(&s->json, m)) {
        bool keep = !f->listed;
        for (uint32_t i = 0; i < f->n_list && !keep; i++) keep = schema_same(s, m, f->list[i]);
        if (keep) list[n++] = m;
        if (single) break;
    }
    f->listed = true;
    f->list = list;
    f->n_list = n;
    return 0;
}

static int read_bound(struct schema *s, uint32_t v, bool low, bool exclusive, struct facts *f) {
    struct number_bound b, *have = low ? &f->lo : &f->hi;
    struct err why;
    if (!is_a(s, v, CHAT_JSON_INTEGER) && !is_a(s, v, CHAT_JSON_REAL))
        return schema_fail(s, v, "is not a number");
    if (number_bound_read(&b, s->json.values[v].text, exclusive, &why) < 0)
        return schema_fail(s, v, why.text);
    f->has_numbers = true;
    int order = have->set ? number_bound_compare(&b, have) : low ? 1 : -1;
    if (!low) order = -order;
    if (order > 0) *have = b;
    if (order == 0) have->exclusive |= exclusive;
    return 0;
}

/* Draft 4 says exclusiveMinimum: true beside the minimum. */
static bool old_exclusive(const struct schema *s, uint32_t schema, const char *key) {
    uint32_t m = schema_member(s, schema, key);
    return m && is_a(s, m, CHAT_JSON_TRUE);
}

static int read_count(struct schema *s, uint32_t v, bool low, int32_t *have) {
    struct chat_text text = s->json.values[v].text;
    char *end, digits[32] = "";
    if (text.len < sizeof digits) memcpy(digits, text.data, text.len);
    double n = strtod(digits, &end);
    bool fits = (is_a(s, v, CHAT_JSON_INTEGER) || is_a(s, v, CHAT_JSON_REAL)) && n >= 0;
    if (!fits || n != (double)(int64_t)MIN(n, 1e15)) return schema_fail(s, v, "is not a count");
    int32_t count = n > 1e9 ? GRAMMAR_MANY : (int32_t)n;
    if (low && count > 1000000) return schema_fail(s, v, "asks for too many");
    *have = low ? MAX(*have, count) : MIN(*have, count);
    return 0;
}

static int read_pattern(struct schema *s, uint32_t v, struct facts *f) {
    if (!is_a(s, v, CHAT_JSON_STRING)) return schema_fail(s, v, "is not a string");
    struct chat_text text = string_of(s, v);
    if (f->has_pattern && !chat_text_equal(text, f->pattern))
        return schema_fail(s, v, "two patterns for one string are not supported");
    f->pattern = text;
    f->has_pattern = true;
    return 0;
}

int schema_unsupported(const struct schema *s, uint32_t v) {
    if (s->lenient) return 0;
    return schema_fail(s, v, "this keyword is not supported");
}

/* ---- properties and items ---- */

static struct property *property_named(struct schema *s, struct facts *f, struct chat_text name) {
    for (uint32_t i = 0; i < f->n_property; i++)
        if (chat_text_equal(f->property[i].name, name)) return &f->property[i];
    if (f->n_property == f->property_room) {
        uint32_t room = MIN(MAX(16u, 4 * f->property_room), (uint32_t)PROPERTIES_MAX);
        struct property *more = room > f->property_room ? arena_array(&s->arena, room, sizeof *more) : NULL;
        if (!more) return NULL;
        if (f->n_property) memcpy(more, f->property, f->n_property * sizeof *more);
        f->property = more;
        f->property_room = room;
    }
    f->property[f->n_property] = (struct property){ .name = name };
    return &f->property[f->n_property++];
}

static int too_large(const struct schema *s) {
    return err_set(s->e, ERR_LIMIT, "schema: too large");
}

/* Only that they are there: what holds for them is found when all schemas of the set are known. */
static int read_properties(struct schema *s, uint32_t v, struct facts *f) {
    if (!is_a(s, v, CHAT_JSON_OBJECT)) return schema_fail(s, v, "is not an object");
    f->has_properties = f->has_objects = true;
    for (uint32_t m = chat_json_first(&s->json, v); m; m = chat_json_next(&s->json, m))
        if (!property_named(s, f, s->json.values[m].key)) return too_large(s);
    return 0;
}

static int read_required(struct schema *s, uint32_t v, struct facts *f) {
    if (is_a(s, v, CHAT_JSON_TRUE) || is_a(s, v, CHAT_JSON_FALSE)) return 0;      /* draft 3 */
    if (!is_a(s, v, CHAT_JSON_ARRAY)) return schema_fail(s, v, "is not an array");
    f->has_objects = true;
    for (uint32_t m = chat_json_first(&s->json, v); m; m = chat_json_next(&s->json, m)) {
        if (!is_a(s, m, CHAT_JSON_STRING)) return schema_fail(s, v, "names something that is not a string");
        struct property *p = property_named(s, f, string_of(s, m));
        if (!p) return too_large(s);
        p->required = true;
    }
    return 0;
}

static int read_additional(struct schema *s, uint32_t schema, uint32_t v, struct facts *f) {
    f->has_objects = true;
    f->n_additional++;
    f->additional_in = schema;
    if (is_a(s, v, CHAT_JSON_FALSE)) f->closed = true;
    else if (is_a(s, v, CHAT_JSON_TRUE)) f->says_open = true;
    else if (is_a(s, v, CHAT_JSON_OBJECT)) {
        f->says_open = true;
        return conj_add(s, &f->rest, v);
    } else return schema_fail(s, v, "is neither a schema nor true nor false");
    return 0;
}

/* The prefix of one schema and what follows it. */
static int read_items(struct schema *s, uint32_t schema, struct facts *f) {
    uint32_t prefix = schema_member(s, schema, "prefixItems"), items = schema_member(s, schema, "items");
    if (items && is_a(s, items, CHAT_JSON_ARRAY)) {                   /* as drafts before 2020 wrote it */
        prefix = items;
        items = schema_member(s, schema, "additionalItems");
    }
    if (!prefix && !items) return 0;
    f->has_arrays = true;
    if (prefix && !is_a(s, prefix, CHAT_JSON_ARRAY)) return schema_fail(s, prefix, "is not an array");
    uint32_t n = 0, i = 0;
    for (uint32_t m = prefix ? chat_json_first(&s->json, prefix) : 0; m; m = chat_json_next(&s->json, m)) n++;
    if (n > f->n_prefix) {                        /* the other schemas say `items` for the new places */
        struct conj *more = arena_array(&s->arena, n, sizeof *more);
        if (!more) return too_large(s);
        for (uint32_t k = 0; k < n; k++) more[k] = k < f->n_prefix ? f->prefix[k] : f->items;
        if (f->no_items) f->items_max = MIN(f->items_max, (int32_t)f->n_prefix);
        f->prefix = more;
        f->n_prefix = n;
    }
    int rc = 0;
    for (uint32_t m = n ? chat_json_first(&s->json, prefix) : 0; m && rc == 0;
         m = chat_json_next(&s->json, m))
        rc = conj_add(s, &f->prefix[i++], m);
    if (!items || is_a(s, items, CHAT_JSON_TRUE)) return rc;
    if (is_a(s, items, CHAT_JSON_FALSE)) {
        f->items_max = MIN(f->items_max, (int32_t)n);
        f->no_items = true;
        return rc;
    }
    if (!is_a(s, items, CHAT_JSON_OBJECT)) return schema_fail(s, items, "is not a schema");
    for (; i < f->n_prefix && rc == 0; i++) rc = conj_add(s, &f->prefix[i], items);
    return rc < 0 ? rc : conj_add(s, &f->items, items);
}

/* For every property: the schemas of all parts that speak of it. */
static int collect_property(struct schema *s, const struct conj *c, struct property *p, bool *forbidden) {
    int rc = 0;
    for (uint32_t i = 0; i < c->n && rc == 0; i++) {
        uint32_t v = c->part[i].value, properties = schema_member(s, v, "properties");
        uint32_t m = properties ? member_named(s, properties, p->name) : 0;
        if (!m) m = schema_member(s, v, "additionalProperties");
        if (!m || is_a(s, m, CHAT_JSON_TRUE)) continue;
        if (is_a(s, m, CHAT_JSON_FALSE)) *forbidden = true;
        else if (is_a(s, m, CHAT_JSON_OBJECT)) rc = conj_add(s, &p->conj, m);
        else rc = schema_fail(s, m, "is not a schema");
    }
    return rc;
}

static int collect_properties(struct schema *s, const struct conj *c, struct facts *f) {
    uint32_t n = 0;
    f->taken = arena_array(&s->arena, f->n_property + 1, sizeof *f->taken);
    if (!f->taken) return too_large(s);
    for (uint32_t i = 0; i < f->n_property; i++) {
        struct property *p = &f->property[i];
        bool forbidden = false;
        int rc = collect_property(s, c, p, &forbidden);
        if (rc < 0) return rc;
        f->taken[f->n_taken++] = p->name;
        if (forbidden && p->required) f->types &= ~(unsigned)IS_OBJECT;       /* no object can be right */
        if (!forbidden) f->property[n++] = *p;
    }
    f->n_property = n;
    return 0;
}

/* ---- all keywords ---- */

enum keyword {
    K_TYPE, K_ENUM, K_CONST, K_MINIMUM, K_MAXIMUM, K_ABOVE, K_BELOW, K_LENGTH_MIN, K_LENGTH_MAX,
    K_PATTERN, K_ITEMS_MIN, K_ITEMS_MAX, K_PROPERTIES, K_REQUIRED, K_ADDITIONAL, K_PROPERTIES_MIN,
    K_PROPERTIES_MAX, K_UNEVALUATED, K_MULTIPLE, K_UNIQUE, K_PATTERNS, K_NAMES, K_CONTAINS,
    K_CONTAINS_MAX, K_NOT, K_UNLESS_EMPTY, K_NOT_SUPPORTED
};

static const struct { const char *name; enum keyword keyword; } keywords[] = {
    { "type", K_TYPE }, { "enum", K_ENUM }, { "const", K_CONST }, { "minimum", K_MINIMUM },
    { "maximum", K_MAXIMUM }, { "exclusiveMinimum", K_ABOVE }, { "exclusiveMaximum", K_BELOW },
    { "minLength", K_LENGTH_MIN }, { "maxLength", K_LENGTH_MAX }, { "pattern", K_PATTERN },
    { "minItems", K_ITEMS_MIN }, { "maxItems", K_ITEMS_MAX }, { "properties", K_PROPERTIES },
    { "required", K_REQUIRED }, { "additionalProperties", K_ADDITIONAL },
    { "minProperties", K_PROPERTIES_MIN }, { "maxProperties", K_PROPERTIES_MAX },
    { "unevaluatedProperties", K_UNEVALUATED }, { "multipleOf", K_MULTIPLE },
    { "uniqueItems", K_UNIQUE }, { "patternProperties", K_PATTERNS },
    { "dependentRequired", K_UNLESS_EMPTY }, { "dependentSchemas", K_UNLESS_EMPTY },
    { "dependencies", K_UNLESS_EMPTY }, { "not", K_NOT }, { "if", K_NOT_SUPPORTED },
    { "then", K_NOT_SUPPORTED }, { "else", K_NOT_SUPPORTED }, { "propertyNames", K_NAMES },
    { "contains", K_CONTAINS }, { "maxContains", K_CONTAINS_MAX },
    { "unevaluatedItems", K_NOT_SUPPORTED }, { "$dynamicRef", K_NOT_SUPPORTED },
    { "$recursiveRef", K_NOT_SUPPORTED }
};

static int read_multiple(struct schema *s, uint32_t v, struct facts *f) {
    struct err why;
    f->has_numbers = true;
    if (!is_a(s, v, CHAT_JSON_INTEGER) && !is_a(s, v, CHAT_JSON_REAL))
        return schema_fail(s, v, "is not a number");
    if (number_step_read(&f->step, s->json.values[v].text, &why) == 0) return 0;
    return s->lenient ? 0 : schema_fail(s, v, why.text);
}

/* At least so many items that fit; how many at most cannot be kept. */
static int read_contains(struct schema *s, uint32_t schema, uint32_t v, struct facts *f) {
    uint32_t min = schema_member(s, schema, "minContains");
    int32_t n = 0;
    int rc = min ? read_count(s, min, true, &n) : 0;
    f->has_arrays = true;
    if (rc < 0 || (min && n == 0)) return rc;
    if (f->contains.n) return schema_unsupported(s, v);
    f->contains_min = min ? n : 1;
    f->contains_in = v;
    return conj_add(s, &f->contains, v);
}

static int read_unique(struct schema *s, uint32_t v, struct facts *f) {
    if (is_a(s, v, CHAT_JSON_FALSE)) return 0;
    if (!is_a(s, v, CHAT_JSON_TRUE)) return schema_fail(s, v, "is neither true nor false");
    f->has_arrays = f->unique = true;
    return 0;
}

static int read_patterns(struct schema *s, uint32_t schema, uint32_t v, struct facts *f) {
    if (!is_a(s, v, CHAT_JSON_OBJECT)) return schema_fail(s, v, "is not an object");
    uint32_t first = chat_json_first(&s->json, v);
    if (!first) return 0;
    f->has_objects = true;
    if (f->key_pattern || chat_json_next(&s->json, first)) return schema_unsupported(s, v);
    f->key_pattern = first;
    f->key_pattern_in = schema;
    return 0;
}

static int exclude(struct schema *s, uint32_t v, struct facts *f) {
    uint32_t *more = arena_array(&s->arena, f->n_excluded + 1, sizeof *more);
    if (!more) return too_large(s);
    if (f->n_excluded) memcpy(more, f->excluded, f->n_excluded * sizeof *more);
    more[f->n_excluded++] = v;
    f->excluded = more;
    return 0;
}

/* What can be said the other way round: one type or several, one value or several. */
static int read_not(struct schema *s, uint32_t v, struct facts *f) {
    uint32_t only = is_a(s, v, CHAT_JSON_OBJECT) ? chat_json_first(&s->json, v) : 0;
    struct chat_text key = only ? s->json.values[only].key : (struct chat_text){ NULL, 0 };
    struct facts inside = { .types = IS_ANY };
    int rc = 0;
    if (is_a(s, v, CHAT_JSON_FALSE)) return 0;
    if (!only || chat_json_next(&s->json, only)) return schema_unsupported(s, v);
    if (chat_text_equal(key, chat_text_of("type"))) {
        rc = read_type(s, only, &inside);
        if (inside.types & IS_NUMBER) inside.types |= IS_NUMBER;      /* 1.0 is an integer, too */
        f->types &= ~inside.types;
    } else if (chat_text_equal(key, chat_text_of("const"))) {
        rc = exclude(s, only, f);
    } else if (chat_text_equal(key, chat_text_of("enum")) && is_a(s, only, CHAT_JSON_ARRAY)) {
        for (uint32_t m = chat_json_first(&s->json, only); m && rc == 0; m = chat_json_next(&s->json, m))
            rc = exclude(s, m, f);
    } else {
        return schema_unsupported(s, v);
    }
    return rc;
}

static int read_keyword(struct schema *s, uint32_t schema, uint32_t v, enum keyword keyword,
                        struct facts *f) {
    switch (keyword) {
    case K_TYPE: return read_type(s, v, f);
    case K_ENUM: return read_list(s, v, false, f);
    case K_CONST: return read_list(s, v, true, f);
    case K_MINIMUM: return read_bound(s, v, true, old_exclusive(s, schema, "exclusiveMinimum"), f);
    case K_MAXIMUM: return read_bound(s, v, false, old_exclusive(s, schema, "exclusiveMaximum"), f);
    case K_ABOVE:
    case K_BELOW:
        if (is_a(s, v, CHAT_JSON_TRUE) || is_a(s, v, CHAT_JSON_FALSE)) return 0;
        return read_bound(s, v, keyword == K_ABOVE, true, f);
    case K_LENGTH_MIN: f->has_strings = true; return read_count(s, v, true, &f->length_min);
    case K_LENGTH_MAX: f->has_strings = true; return read_count(s, v, false, &f->length_max);
    case K_PATTERN: f->has_strings = true; return read_pattern(s, v, f);
    case K_ITEMS_MIN: f->has_arrays = true; return read_count(s, v, true, &f->items_min);
    case K_ITEMS_MAX: f->has_arrays = true; return read_count(s, v, false, &f->items_max);
    case K_PROPERTIES: return read_properties(s, v, f);
    case K_REQUIRED: return read_required(s, v, f);
    case K_ADDITIONAL: return read_additional(s, schema, v, f);
    case K_PROPERTIES_MIN: return read_count(s, v, true, &f->properties_min);
    case K_PROPERTIES_MAX: return read_count(s, v, false, &f->properties_max);
    case K_MULTIPLE: return read_multiple(s, v, f);
    case K_UNEVALUATED:
        if (is_a(s, v, CHAT_JSON_TRUE)) return 0;
        if (is_a(s, v, CHAT_JSON_FALSE)) return read_additional(s, schema, v, f);
        break;
    case K_UNIQUE: return read_unique(s, v, f);
    case K_PATTERNS: return read_patterns(s, schema, v, f);
    case K_NAMES: f->has_objects = true; return conj_add(s, &f->names, v);
    case K_CONTAINS: return read_contains(s, schema, v, f);
    case K_CONTAINS_MAX:
        if (!schema_member(s, schema, "contains")) return 0;
        break;
    case K_NOT: return read_not(s, v, f);
    case K_UNLESS_EMPTY:
        if (!chat_json_first(&s->json, v)) return 0;
        break;
    case K_NOT_SUPPORTED: break;
    }
    return schema_unsupported(s, v);
}

static int read_part(struct schema *s, uint32_t v, struct facts *f) {
    if (is_a(s, v, CHAT_JSON_TRUE)) return 0;
    if (is_a(s, v, CHAT_JSON_FALSE)) {
        f->types = 0;
        return 0;
    }
    if (!is_a(s, v, CHAT_JSON_OBJECT)) return schema_fail(s, v, "is not a schema");
    uint32_t properties = schema_member(s, v, "properties");          /* first: their order is the answer's */
    int rc = properties ? read_properties(s, properties, f) : 0;
    if (rc == 0) rc = read_items(s, v, f);
    for (uint32_t m = chat_json_first(&s->json, v); m && rc == 0; m = chat_json_next(&s->json, m))
        for (size_t i = 0; i < COUNT_OF(keywords) && rc == 0; i++)
            if (chat_text_equal(s->json.values[m].key, chat_text_of(keywords[i].name)))
                rc = read_keyword(s, v, m, keywords[i].keyword, f);
    return rc;
}

/* A schema that says nothing about types but speaks of lengths means strings. */
static void guess_types(struct facts *f, unsigned said) {
    unsigned types = (f->has_numbers ? (unsigned)IS_NUMBER : 0) | (f->has_strings ? (unsigned)IS_STRING : 0) |
                     (f->has_arrays ? (unsigned)IS_ARRAY : 0) | (f->has_objects ? (unsigned)IS_OBJECT : 0);
    if (said == IS_ANY && types && !f->listed) f->types &= types;
}

int schema_read(struct schema *s, const struct conj *c, struct facts *f) {
    *f = (struct facts){ .types = IS_ANY, .length_max = GRAMMAR_MANY, .items_max = GRAMMAR_MANY,
                         .properties_max = GRAMMAR_MANY };
    int rc = 0;
    for (uint32_t i = 0; i < c->n && rc == 0; i++) rc = read_part(s, c->part[i].value, f);
    if (rc == 0) {
        guess_types(f, f->types);
        rc = collect_properties(s, c, f);
    }
    s->work += 16 + (uint64_t)f->n_taken * f->n_taken / 16 + f->n_list;
    if (rc == 0 && s->work > SCHEMA_WORK_MAX) rc = err_set(s->e, ERR_LIMIT, "schema: too complex");
    return rc;
}

int schema_read_plain(struct schema *s, const struct conj *c, struct facts *f) {
    struct conj complete = *c;
    uint32_t branches, done;
    *f = (struct facts){ .types = IS_ANY, .length_max = GRAMMAR_MANY };
    int rc = conj_complete(s, &complete);
    if (rc == 0 && conj_branching(s, &complete, &branches, &done) >= 0)
        return schema_unsupported(s, branches);
    return rc < 0 ? rc : schema_read(s, &complete, f);
}

/* ---- whether two branches exclude each other ---- */

static unsigned with_overlap(unsigned types) {
    return types & IS_NUMBER ? types | IS_NUMBER : types;             /* 1 and 1.0 are the same number */
}

static bool lists_differ(struct schema *s, const struct facts *a, const struct facts *b) {
    if (!a->listed || !b->listed) return false;
    s->work += (uint64_t)a->n_list * b->n_list * 2;
    if ((uint64_t)a->n_list * b->n_list > 1 << 16) return false;
    for (uint32_t i = 0; i < a->n_list; i++)
        for (uint32_t k = 0; k < b->n_list; k++)
            if (schema_same(s, a->list[i], b->list[k])) return false;
    return true;
}

static unsigned listed_types(const struct schema *s, const struct facts *f) {
    unsigned types = 0;
    if (!f->listed) return f->types;
    for (uint32_t i = 0; i < f->n_list; i++) types |= schema_type_of(s, f->list[i]);
    return types & f->types;
}

static struct property *find_property(const struct facts *f, struct chat_text name) {
    for (uint32_t i = 0; i < f->n_property; i++)
        if (chat_text_equal(f->property[i].name, name)) return &f->property[i];
    return NULL;
}

/* Objects: a property that both must have, with values that exclude each other; or that only one may. */
static bool objects_differ(struct schema *s, const struct facts *a, const struct facts *b, int depth) {
    for (uint32_t i = 0; i < a->n_property; i++) {
        const struct property *p = &a->property[i], *q = find_property(b, p->name);
        if (!p->required) continue;
        if (!q && b->closed) return true;
        if (!q || !q->required) continue;
        for (uint32_t x = 0; x < p->conj.n; x++)
            for (uint32_t y = 0; y < q->conj.n; y++)
                if (schema_disjoint(s, p->conj.part[x].value, q->conj.part[y].value, depth + 1)) return true;
    }
    return false;
}

/* What must hold by a schema's own words; types only as far as they are said. */
static bool read_alone(struct schema *s, uint32_t v, struct facts *f) {
    struct conj c = { .n = 0 };
    struct err *e = s->e;
    s->e = NULL;
    bool fine = conj_add(s, &c, v) == 0 && conj_complete(s, &c) == 0 && schema_read(s, &c, f) == 0;
    s->e = e;
    if (!fine) return false;
    unsigned said = IS_ANY;                       /* without the guess: it is ours, not the schema's */
    for (uint32_t i = 0; i < c.n; i++) {
        uint32_t type = schema_member(s, c.part[i].value, "type");
        struct facts only = { .types = IS_ANY };
        if (type && read_type(s, type, &only) == 0) said &= only.types;
    }
    f->types = said;
    return true;
}

bool schema_disjoint(struct schema *s, uint32_t a, uint32_t b, int depth) {
    struct facts x, y;
    if (depth > DISJOINT_DEPTH_MAX || !read_alone(s, a, &x) || !read_alone(s, b, &y)) return false;
    unsigned types = with_overlap(listed_types(s, &x)) & with_overlap(listed_types(s, &y));
    if (!types || lists_differ(s, &x, &y)) return true;
    return types == IS_OBJECT && objects_differ(s, &x, &y, depth);
}
