/* grammar_schema - see the header.
 *
 * A rule stands for a set of schemas that hold for one value, in one of three modes (whole JSON values,
 * all but strings, strings without quotes up to the closing tag). Rules are numbered when they are first
 * asked for and built from a list, so recursion in the schema is recursion in the grammar and none here.
 * A branch of anyOf is the set with that schema added and the anyOf marked as done. */
#include "coordinator/grammar_schema.h"

#include <stdlib.h>

#include "common/base/buf.h"
#include "common/base/check.h"
#include "common/model/chat_format.h"
#include "coordinator/grammar_regex.h"
#include "coordinator/grammar_text.h"
#include "coordinator/schema_parts.h"

/* ---- rules ---- */

/* The start of the rule of a set; it may be built later. 0: *rc. */
static uint32_t rule_of(struct schema *s, const struct conj *c, enum schema_mode mode, int *rc) {
    uint32_t number, key_words = 2 * c->n + 1;
    uint32_t *key = arena_array(&s->arena, key_words, sizeof *key);
    if (!key || s->n_rule == SCHEMA_RULES_MAX) {
        *rc = err_set(s->e, ERR_LIMIT, "schema: too large");
        return 0;
    }
    key[0] = mode;
    memcpy(key + 1, c->part, c->n * sizeof *c->part);
    if (map_add(&s->rules, (const char *)key, key_words * sizeof *key, &number)) {
        s->rule[s->n_rule++] = (struct rule){ *c, grammar_node(s->g), mode };
        CHECK(number + 1 == s->n_rule);
    }
    return s->rule[number].start;
}

int schema_put_conj(struct schema *s, uint32_t from, const struct conj *c, enum schema_mode mode,
                    uint32_t to) {
    int rc = 0;
    struct conj complete = *c;
    rc = conj_complete(s, &complete);
    if (rc < 0) return rc;
    uint32_t rule = rule_of(s, &complete, mode, &rc);
    if (rc == 0) grammar_call(s->g, from, rule, 1, 1, to);
    return rc;
}

/* ---- strings ---- */

static uint32_t then_close(struct schema *s, uint32_t from) {
    return grammar_then_markup(s->g, from, CHAT_PARAMETER_CLOSE);
}

static int put_string(struct schema *s, uint32_t from, const struct facts *f, enum schema_mode mode,
                      uint32_t to) {
    struct grammar *g = s->g;
    bool raw = mode == MODE_RAW, limited = f->length_min > 0 || f->length_max != GRAMMAR_MANY;
    if (raw && !limited && !f->has_pattern) {
        grammar_empty(g, grammar_then_until(g, from, CHAT_PARAMETER_CLOSE, false, false), to);
        return 0;
    }
    if (f->has_pattern && limited && !s->lenient)
        return schema_fail(s, 0, "pattern together with minLength or maxLength is not supported");
    if (f->length_max < f->length_min) return 0;
    if (!raw) from = grammar_then_word(g, from, "\"");
    if (f->has_pattern) {
        struct err why;
        uint32_t at = grammar_then_pattern(g, from, f->pattern, raw ? GRAMMAR_RAW : GRAMMAR_IN_JSON, &why);
        if (!at && !s->lenient)
            return err_set(s->e, ERR_INVALID, "schema: pattern: \"%.*s\" %s", (int)MIN(f->pattern.len, 80),
                           f->pattern.data, why.text);
        if (!at) at = grammar_then_call(g, from, grammar_rule_char(g, raw ? GRAMMAR_RAW : GRAMMAR_IN_JSON), 0,
                                        GRAMMAR_MANY);
        from = at;
    } else {
        uint32_t rule = grammar_rule_char(g, raw ? GRAMMAR_RAW : GRAMMAR_IN_JSON);
        from = grammar_then_call(g, from, rule, f->length_min, f->length_max);
    }
    grammar_empty(g, raw ? then_close(s, from) : grammar_then_word(g, from, "\""), to);
    return 0;
}

/* ---- listed values ---- */

static bool within(const struct schema *s, uint32_t v, const struct facts *f) {
    struct number_bound b;
    if (number_bound_read(&b, s->json.values[v].text, false, NULL) < 0) return false;
    if (f->step.m && !number_is_multiple(&b, &f->step)) return false;
    int lo = f->lo.set ? number_bound_compare(&b, &f->lo) : 1,
        hi = f->hi.set ? number_bound_compare(&b, &f->hi) : -1;
    return (lo > 0 || (lo == 0 && !f->lo.exclusive)) && (hi < 0 || (hi == 0 && !f->hi.exclusive));
}

static int32_t count_chars(const char *bytes, size_t n) {
    int32_t count = 0;
    for (size_t i = 0; i < n; i++) count += ((uint8_t)bytes[i] & 0xc0) != 0x80;
    return count;
}

static bool is_excluded(const struct schema *s, uint32_t v, const struct facts *f) {
    for (uint32_t i = 0; i < f->n_excluded; i++)
        if (schema_same(s, v, f->excluded[i])) return true;
    return false;
}

bool schema_string_fits(struct schema *s, const struct facts *f, struct chat_text text, bool *known) {
    int32_t n = count_chars(text.data, text.len);
    bool listed = !f->listed;
    *known = !f->has_pattern;
    for (uint32_t i = 0; i < f->n_list && !listed; i++) {
        struct buf one;
        buf_init(&one, SCHEMA_BYTES_MAX);
        if (schema_type_of(s, f->list[i]) == IS_STRING) {
            chat_json_put_string(&s->json, f->list[i], &one);
            listed = chat_text_equal(text, (struct chat_text){ one.data, one.size });
        }
        buf_deinit(&one);
    }
    return (f->types & IS_STRING) && listed && n >= f->length_min && n <= f->length_max;
}

int schema_listed_fits(struct schema *s, uint32_t v, const struct facts *f, bool *yes) {
    unsigned type = schema_type_of(s, v);
    *yes = (type & f->types) != 0 && !is_excluded(s, v, f);
    if (!*yes) return 0;
    if ((type & IS_NUMBER) && (f->lo.set || f->hi.set || f->step.m)) *yes = within(s, v, f);
    if (type == IS_STRING) {
        struct buf text;
        buf_init(&text, SCHEMA_BYTES_MAX);
        chat_json_put_string(&s->json, v, &text);
        int32_t n = count_chars(text.data, text.size);
        *yes = n >= f->length_min && n <= f->length_max;
        buf_deinit(&text);
    }
    bool hard = (type == IS_STRING && f->has_pattern) || (type == IS_ARRAY && f->has_arrays) ||
                (type == IS_OBJECT && f->has_objects);
    if (hard && !s->lenient)
        return schema_fail(s, v, "listed values together with keywords about their inside are not supported");
    return 0;
}

static bool is_json(const struct buf *text) {
    struct chat_json j;
    if (chat_json_parse(&j, (struct chat_text){ text->data, text->size }, NULL) < 0) return false;
    chat_json_deinit(&j);
    return true;
}

static int put_listed(struct schema *s, uint32_t from, const struct facts *f, enum schema_mode mode,
                      uint32_t to) {
    uint32_t tree = grammar_node(s->g);
    struct buf text;
    int rc = 0;
    grammar_empty(s->g, from, tree);
    buf_init(&text, SCHEMA_BYTES_MAX);
    for (uint32_t i = 0; i < f->n_list && rc == 0; i++) {
        uint32_t v = f->list[i];
        bool yes, string = schema_type_of(s, v) == IS_STRING;
        buf_clear(&text);
        if (string) chat_json_put_string(&s->json, v, &text);
        rc = schema_listed_fits(s, v, f, &yes);
        if (rc < 0 || !yes) continue;
        if (mode != MODE_RAW) {
            buf_clear(&text);
            chat_json_put_line(&s->json, v, &text);
            if (!is_json(&text)) continue;        /* 1e999 has no spelling that comes back */
        } else if (strstr(text.data, CHAT_DSML)) continue;            /* it would end in the middle */
        uint32_t at = grammar_tree_add(s->g, tree, (struct chat_text){ text.data, text.size });
        if (mode == MODE_RAW) {
            uint32_t behind = grammar_node(s->g);
            grammar_empty(s->g, at, behind);      /* the tree must keep to its words */
            at = then_close(s, behind);
        }
        grammar_empty(s->g, at, to);
        if (text.rc < 0) rc = err_set(s->e, text.rc, "schema: too large");
    }
    buf_deinit(&text);
    return rc;
}

/* ---- a set of schemas ---- */

static int put_types(struct schema *s, uint32_t from, const struct facts *f, enum schema_mode mode,
                     uint32_t to) {
    struct grammar *g = s->g;
    unsigned types = f->types;
    bool bounds = f->lo.set || f->hi.set || f->step.m;
    int rc = 0;
    if (types & IS_NULL) grammar_empty(g, grammar_then_word(g, from, "null"), to);
    if (types & IS_BOOL) {
        grammar_empty(g, grammar_then_word(g, from, "true"), to);
        grammar_empty(g, grammar_then_word(g, from, "false"), to);
    }
    if (types & IS_NUMBER) {
        bool integer = !(types & IS_REAL);
        uint32_t start = grammar_node(g);
        grammar_empty(g, from, start);
        grammar_empty(g, bounds ? grammar_then_range(g, start, &f->lo, &f->hi, &f->step, integer)
                                : grammar_then_number(g, start, integer), to);
    }
    if (types & IS_STRING) rc = put_string(s, from, f, mode, to);
    if (rc == 0 && (types & IS_ARRAY)) rc = schema_put_array(s, from, f, to);
    if (rc == 0 && (types & IS_OBJECT)) rc = schema_put_object(s, from, f, to);
    return rc;
}

/* Nothing is said: the shared rule will do. */
static bool says_nothing(const struct facts *f) {
    return f->types == IS_ANY && !f->listed && !f->has_numbers && !f->has_strings && !f->has_arrays &&
           !f->has_objects && !f->properties_min && f->properties_max == GRAMMAR_MANY && !f->n_excluded;
}

static int put_leaf(struct schema *s, const struct rule *r, uint32_t end) {
    struct facts f;
    int rc = schema_read(s, &r->conj, &f);
    if (rc < 0) return rc;
    if (says_nothing(&f) && r->mode == MODE_JSON) {
        grammar_call(s->g, r->start, grammar_rule_value(s->g), 1, 1, end);
        return 0;
    }
    f.types &= r->mode == MODE_RAW     ? (unsigned)IS_STRING
               : r->mode == MODE_OTHER ? ~(unsigned)IS_STRING
                                       : IS_ANY;
    if (f.listed) return put_listed(s, r->start, &f, (enum schema_mode)r->mode, end);
    for (uint32_t i = 0; i < f.n_excluded && !s->lenient; i++)
        if (schema_type_of(s, f.excluded[i]) & f.types)
            return schema_fail(s, f.excluded[i], "not: values are excluded from listed ones (enum) only");
    return put_types(s, r->start, &f, (enum schema_mode)r->mode, end);
}

/* oneOf is anyOf when no value fits two branches. */
static int check_one_of(struct schema *s, uint32_t branches) {
    uint32_t n = 0;
    if (s->lenient) return 0;
    for (uint32_t a = chat_json_first(&s->json, branches); a; a = chat_json_next(&s->json, a)) {
        if (++n > SCHEMA_ONE_OF_MAX) return schema_fail(s, branches, "has too many branches");
        for (uint32_t b = chat_json_next(&s->json, a); b; b = chat_json_next(&s->json, b)) {
            if (s->work > SCHEMA_WORK_MAX) return err_set(s->e, ERR_LIMIT, "schema: too complex");
            if (!schema_disjoint(s, a, b, 0))
                return schema_fail(s, branches, "a value could fit more than one branch; use anyOf");
        }
    }
    return 0;
}

static int put_branches(struct schema *s, const struct rule *r, int part, uint32_t branches, uint32_t done,
                        uint32_t end) {
    if (schema_value(s, branches)->type != CHAT_JSON_ARRAY)
        return schema_fail(s, branches, "is not an array");
    int rc = done == DONE_ONE ? check_one_of(s, branches) : 0;
    for (uint32_t m = chat_json_first(&s->json, branches); m && rc == 0; m = chat_json_next(&s->json, m)) {
        struct conj c = r->conj;
        c.part[part].done |= done;
        rc = conj_add(s, &c, m);
        if (rc == 0) rc = schema_put_conj(s, r->start, &c, (enum schema_mode)r->mode, end);
    }
    return rc;
}

static int build_rules(struct schema *s) {
    int rc = 0;
    for (uint32_t i = 0; i < s->n_rule && rc == 0; i++) {
        struct rule r = s->rule[i];
        uint32_t end = grammar_node(s->g), branches, done;
        grammar_end(s->g, end);
        int part = conj_branching(s, &r.conj, &branches, &done);
        rc = part >= 0 ? put_branches(s, &r, part, branches, done, end) : put_leaf(s, &r, end);
        if (rc == 0 && s->g->rc < 0) rc = err_set(s->e, s->g->rc, "schema: too large");
    }
    return rc;
}

/* ---- the whole ---- */

static int schema_open(struct schema *s, struct grammar *g, struct chat_text json, bool lenient,
                       struct err *e) {
    *s = (struct schema){ .g = g, .lenient = lenient, .e = e };
    if (json.len > SCHEMA_BYTES_MAX) return err_set(e, ERR_LIMIT, "schema: over %d bytes", SCHEMA_BYTES_MAX);
    int rc = chat_json_parse(&s->json, json, e);
    if (rc < 0) return err_wrap(e, rc, "schema");
    arena_init(&s->arena, SCHEMA_ARENA_MAX);
    map_init(&s->rules);
    s->rule = xcalloc(SCHEMA_RULES_MAX, sizeof *s->rule);
    return 0;
}

static void schema_close(struct schema *s) {
    chat_json_deinit(&s->json);
    map_deinit(&s->rules);
    arena_deinit(&s->arena);
    free(s->rule);
}

int grammar_schema_rule(struct grammar *g, struct chat_text json, bool lenient, uint32_t *rule,
                        struct err *e) {
    struct schema s;
    struct conj root = { .n = 0 };
    json = chat_json_trim(json);
    if (!json.len) {
        *rule = grammar_rule_value(g);
        return 0;
    }
    int rc = schema_open(&s, g, json, lenient, e);
    if (rc < 0) return rc;
    rc = conj_add(&s, &root, 0);
    if (rc == 0) rc = conj_complete(&s, &root);
    if (rc == 0) *rule = rule_of(&s, &root, MODE_JSON, &rc);
    if (rc == 0) rc = build_rules(&s);
    schema_close(&s);
    return rc;
}

static int argument(struct schema *s, const struct property *p, struct arena *a,
                    struct schema_argument *out) {
    int rc = 0;
    struct conj c = p->conj;
    char *name = arena_text(a, p->name.data, p->name.len);
    if (!name) return err_set(s->e, ERR_LIMIT, "schema: too large");
    *out = (struct schema_argument){ .name = { name, p->name.len }, .required = p->required };
    rc = conj_complete(s, &c);
    if (rc == 0) out->raw = rule_of(s, &c, MODE_RAW, &rc);
    if (rc == 0) out->json = rule_of(s, &c, MODE_OTHER, &rc);
    return rc;
}

/* Arguments come by name, in the order of the schema; what counts them, or says how others are called, is
 * not kept here. */
static int check_arguments(const struct schema *s, const struct facts *f) {
    int32_t n_required = 0, most = schema_is_open(f) ? GRAMMAR_MANY : (int32_t)f->n_property;
    for (uint32_t i = 0; i < f->n_property; i++) n_required += f->property[i].required;
    if (s->lenient) return 0;
    if (f->properties_min > n_required)
        return schema_fail(s, 0, "minProperties of arguments is not supported");
    if (f->properties_max < most) return schema_fail(s, 0, "maxProperties of arguments is not supported");
    if (f->names.n) return schema_fail(s, 0, "propertyNames of arguments is not supported");
    if (f->key_pattern) return schema_fail(s, 0, "patternProperties of arguments is not supported");
    return 0;
}

static int arguments(struct schema *s, struct arena *a, struct schema_arguments *out) {
    struct conj root = { .n = 0 };
    struct facts f;
    uint32_t branches, done;
    int rc = conj_add(s, &root, 0);
    if (rc == 0) rc = conj_complete(s, &root);
    if (rc == 0) rc = schema_read(s, &root, &f);
    if (rc < 0) return rc;
    if (conj_branching(s, &root, &branches, &done) >= 0 && !s->lenient)
        return schema_fail(s, branches, "arguments with branches are not supported");
    if (!(f.types & IS_OBJECT) && !s->lenient) return schema_fail(s, 0, "arguments must be an object");
    rc = check_arguments(s, &f);
    out->argument = arena_array(a, f.n_property + 1, sizeof *out->argument);
    if (!out->argument) return err_set(s->e, ERR_LIMIT, "schema: too large");
    out->open = !f.n_property && schema_is_open(&f);
    for (uint32_t i = 0; i < f.n_property && rc == 0; i++)
        rc = argument(s, &f.property[i], a, &out->argument[out->n++]);
    return rc < 0 ? rc : build_rules(s);
}

int grammar_schema_arguments(struct grammar *g, struct chat_text json, bool lenient, struct arena *a,
                             struct schema_arguments *out, struct err *e) {
    struct schema s;
    json = chat_json_trim(json);
    *out = (struct schema_arguments){ .open = !json.len };
    if (!json.len) return 0;
    int rc = schema_open(&s, g, json, lenient, e);
    if (rc < 0) return rc;
    rc = arguments(&s, a, out);
    schema_close(&s);
    return rc;
}
