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

enum mode { MODE_JSON, MODE_OTHER, MODE_RAW };    /* a value; a value but no string; a string and its tag */

enum { ASCII_LAST = 0x7f, UNICODE_LAST = 0x10ffff };

/* ---- rules ---- */

/* The start of the rule of a set; it may be built later. 0: *rc. */
static uint32_t rule_of(struct schema *s, const struct conj *c, enum mode mode, int *rc) {
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

/* from -> the value -> to. */
static int put_conj(struct schema *s, uint32_t from, const struct conj *c, enum mode mode, uint32_t to) {
    int rc = 0;
    struct conj complete = *c;
    rc = conj_complete(s, &complete);
    if (rc < 0) return rc;
    uint32_t rule = rule_of(s, &complete, mode, &rc);
    if (rc == 0) grammar_call(s->g, from, rule, 1, 1, to);
    return rc;
}

static uint32_t then_ws(struct grammar *g, uint32_t from) {
    return grammar_then_call(g, from, grammar_rule_ws(g), 1, 1);
}

/* ---- strings ---- */

static uint32_t then_close(struct schema *s, uint32_t from) {
    return grammar_then_markup(s->g, from, CHAT_PARAMETER_CLOSE);
}

static int put_string(struct schema *s, uint32_t from, const struct facts *f, enum mode mode, uint32_t to) {
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

/* ---- objects ---- */

/* A string that is none of the taken names, behind its opening quote. Where it begins like one of them
 * it parts from it at a whole character, so keys that share half a character with a name do not come. */
static void part_from_names(struct grammar *g, uint32_t node, bool inside, uint32_t other) {
    bool used[256] = { false }, wide = false;
    for (uint32_t k = g->node[node].edge; k; k = g->edge[k].next) {
        used[g->edge[k].lo] = true;
        wide |= g->edge[k].lo > ASCII_LAST;
    }
    if (inside) return;
    for (int c = 0x20; c <= ASCII_LAST; c++)
        if (!used[c] && c != '"' && c != '\\') grammar_bytes(g, node, c, c, other);
    if (!wide) grammar_spelled(g, node, ASCII_LAST + 1, UNICODE_LAST, GRAMMAR_IN_JSON, other);
}

static bool needs_escape(struct chat_text name) {
    for (size_t i = 0; i < name.len; i++)
        if ((uint8_t)name.data[i] < 0x20 || name.data[i] == '"' || name.data[i] == '\\') return true;
    return false;
}

/* The nodes of the tree of names come one after the other, since nothing else is built meanwhile. */
static uint32_t then_other_key(struct grammar *g, uint32_t from, const struct facts *f) {
    uint32_t other = grammar_node(g), end = grammar_node(g), root = grammar_node(g);
    grammar_empty(g, grammar_then_word(g, from, "\""), root);
    bool *is_name = NULL;
    for (uint32_t i = 0; i < f->n_taken; i++)
        if (!needs_escape(f->taken[i])) grammar_tree_add(g, root, f->taken[i]);
    uint32_t n = g->n_node - root;
    is_name = xcalloc(n, sizeof *is_name);
    for (uint32_t i = 0; i < f->n_taken && g->rc == 0; i++)
        if (!needs_escape(f->taken[i])) is_name[grammar_tree_add(g, root, f->taken[i]) - root] = true;
    bool *inside = xcalloc(n, sizeof *inside);    /* of a character: only those with bytes above ASCII */
    for (uint32_t i = 0; i < n && g->rc == 0; i++)
        for (uint32_t k = g->node[root + i].edge; k; k = g->edge[k].next) {
            uint32_t next = 0;
            if (g->edge[k].lo <= ASCII_LAST) continue;
            for (uint32_t m = g->node[g->edge[k].to].edge; m && !next; m = g->edge[m].next)
                next = (g->edge[m].lo & 0xc0) == 0x80;
            inside[g->edge[k].to - root] = next;
        }
    for (uint32_t i = 0; i < n && g->rc == 0; i++) {
        if (!inside[i] && !is_name[i]) grammar_bytes(g, root + i, '"', '"', end);
        part_from_names(g, root + i, inside[i], other);
    }
    free(is_name);
    free(inside);
    uint32_t behind = grammar_then_call(g, other, grammar_rule_char(g, GRAMMAR_IN_JSON), 0, GRAMMAR_MANY);
    grammar_bytes(g, behind, '"', '"', end);
    return end;
}

/* A rule: "key": value */
static int property_rule(struct schema *s, const struct property *p, uint32_t *rule) {
    struct grammar *g = s->g;
    struct buf key;
    uint32_t end = grammar_node(g);
    *rule = grammar_node(g);
    grammar_end(g, end);
    buf_init(&key, SCHEMA_BYTES_MAX);
    chat_json_put_quoted(&key, p->name);
    buf_add_char(&key, ':');
    uint32_t at = grammar_then_text(g, *rule, (struct chat_text){ key.data, key.size });
    int rc = key.rc;
    buf_deinit(&key);
    return rc < 0 ? rc : put_conj(s, then_ws(g, at), &p->conj, MODE_JSON, end);
}

static int other_rule(struct schema *s, const struct facts *f, uint32_t *rule) {
    struct grammar *g = s->g;
    uint32_t end = grammar_node(g);
    *rule = grammar_node(g);
    grammar_end(g, end);
    uint32_t at = then_ws(g, grammar_then_word(g, then_other_key(g, *rule, f), ":"));
    if (f->rest.n) return put_conj(s, at, &f->rest, MODE_JSON, end);
    grammar_call(g, at, grammar_rule_value(g), 1, 1, end);
    return 0;
}

/* How many properties come at least and at most must follow from the schema's other words. */
static int check_numbers(const struct schema *s, const struct facts *f, bool open) {
    int32_t n_required = 0;
    for (uint32_t i = 0; i < f->n_property; i++) n_required += f->property[i].required;
    if (s->lenient) return 0;
    if (f->properties_min > n_required) return schema_fail(s, 0, "minProperties is not supported");
    if (f->properties_max < (open ? GRAMMAR_MANY : (int32_t)f->n_property))
        return schema_fail(s, 0, "maxProperties is not supported");
    return 0;
}

static bool is_open(const struct facts *f) {
    return !f->closed && (f->says_open || !f->has_properties);
}

/* Two rows of nodes, one for "nothing was written yet": behind each property, and past it. */
static int put_object(struct schema *s, uint32_t from, const struct facts *f, uint32_t to) {
    struct grammar *g = s->g;
    bool open = is_open(f);
    int rc = check_numbers(s, f, open);
    if (open && !f->n_taken && !f->rest.n) {
        if (rc == 0) grammar_call(g, from, grammar_rule_object(g), 1, 1, to);
        return rc;
    }
    uint32_t fresh = then_ws(g, grammar_then_word(g, from, "{")), going = grammar_node(g), rule;
    for (uint32_t i = 0; i < f->n_property && rc == 0; i++) {
        uint32_t fresh_next = grammar_node(g), going_next = grammar_node(g);
        rc = property_rule(s, &f->property[i], &rule);
        if (rc < 0) return rc;
        grammar_call(g, fresh, rule, 1, 1, going_next);
        grammar_call(g, then_ws(g, grammar_then_word(g, going, ",")), rule, 1, 1, going_next);
        if (!f->property[i].required) {
            grammar_empty(g, fresh, fresh_next);
            grammar_empty(g, going, going_next);
        }
        fresh = fresh_next, going = going_next;
    }
    if (rc == 0 && open) {
        uint32_t next = grammar_node(g), next_end = grammar_node(g), behind = grammar_node(g);
        rc = other_rule(s, f, &rule);
        grammar_end(g, next_end);
        grammar_call(g, then_ws(g, grammar_then_word(g, next, ",")), rule, 1, 1, next_end);
        grammar_call(g, fresh, rule, 1, 1, behind);
        grammar_empty(g, going, behind);
        going = grammar_then_call(g, behind, next, 0, GRAMMAR_MANY);
    }
    grammar_empty(g, grammar_then_word(g, fresh, "}"), to);
    grammar_empty(g, grammar_then_word(g, then_ws(g, going), "}"), to);
    return rc;
}

/* ---- arrays ---- */

/* ", item" as a rule. */
static int next_item_rule(struct schema *s, const struct conj *item, uint32_t *rule) {
    uint32_t end = grammar_node(s->g);
    *rule = grammar_node(s->g);
    grammar_end(s->g, end);
    return put_conj(s, then_ws(s->g, grammar_then_word(s->g, *rule, ",")), item, MODE_JSON, end);
}

static int put_array(struct schema *s, uint32_t from, const struct facts *f, uint32_t to) {
    struct grammar *g = s->g;
    int32_t min = f->items_min, max = f->items_max, n = 0;
    uint32_t at = then_ws(g, grammar_then_word(g, from, "[")), before_close = grammar_node(g), rule;
    int rc = 0;
    if (max < min) return 0;
    if (min == 0) grammar_empty(g, grammar_then_word(g, at, "]"), to);
    for (; n < (int32_t)f->n_prefix && n < max && rc == 0; n++) {
        uint32_t next = grammar_node(g);
        if (n > 0 && n >= min) grammar_empty(g, at, before_close);
        if (n > 0) at = then_ws(g, grammar_then_word(g, at, ","));
        rc = put_conj(s, at, &f->prefix[n], MODE_JSON, next);
        at = next;
    }
    if (rc == 0 && n == 0 && max > 0) {           /* the first one has no comma */
        uint32_t next = grammar_node(g);
        rc = put_conj(s, at, &f->items, MODE_JSON, next);
        at = next;
        n = 1;
    }
    if (rc == 0 && n > 0) {
        rc = next_item_rule(s, &f->items, &rule);
        int32_t more = max == GRAMMAR_MANY ? GRAMMAR_MANY : max - n;
        grammar_call(g, at, rule, MAX(min - n, 0), more, before_close);
    }
    grammar_empty(g, grammar_then_word(g, then_ws(g, before_close), "]"), to);
    return rc;
}

/* ---- listed values ---- */

static bool within(const struct schema *s, uint32_t v, const struct facts *f) {
    struct number_bound b;
    if (number_bound_read(&b, s->json.values[v].text, false, NULL) < 0) return false;
    int lo = f->lo.set ? number_bound_compare(&b, &f->lo) : 1,
        hi = f->hi.set ? number_bound_compare(&b, &f->hi) : -1;
    return (lo > 0 || (lo == 0 && !f->lo.exclusive)) && (hi < 0 || (hi == 0 && !f->hi.exclusive));
}

static int32_t count_chars(const char *bytes, size_t n) {
    int32_t count = 0;
    for (size_t i = 0; i < n; i++) count += ((uint8_t)bytes[i] & 0xc0) != 0x80;
    return count;
}

/* Whether a listed value is one by the other keywords too; where that is hard to say, an error. */
static int fits(const struct schema *s, uint32_t v, const struct facts *f, const struct buf *text,
                bool *yes) {
    unsigned type = schema_type_of(s, v);
    *yes = (type & f->types) != 0;
    if (!*yes) return 0;
    if ((type & IS_NUMBER) && (f->lo.set || f->hi.set)) *yes = within(s, v, f);
    if (type == IS_STRING) {
        int32_t n = count_chars(text->data, text->size);
        *yes = n >= f->length_min && n <= f->length_max;
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

static int put_listed(struct schema *s, uint32_t from, const struct facts *f, enum mode mode, uint32_t to) {
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
        rc = fits(s, v, f, &text, &yes);
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

static int put_types(struct schema *s, uint32_t from, const struct facts *f, enum mode mode, uint32_t to) {
    struct grammar *g = s->g;
    unsigned types = f->types;
    bool bounds = f->lo.set || f->hi.set;
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
        grammar_empty(g, bounds ? grammar_then_range(g, start, &f->lo, &f->hi, integer)
                                : grammar_then_number(g, start, integer), to);
    }
    if (types & IS_STRING) rc = put_string(s, from, f, mode, to);
    if (rc == 0 && (types & IS_ARRAY)) rc = put_array(s, from, f, to);
    if (rc == 0 && (types & IS_OBJECT)) rc = put_object(s, from, f, to);
    return rc;
}

/* Nothing is said: the shared rule will do. */
static bool says_nothing(const struct facts *f) {
    return f->types == IS_ANY && !f->listed && !f->has_numbers && !f->has_strings && !f->has_arrays &&
           !f->has_objects && !f->properties_min && f->properties_max == GRAMMAR_MANY;
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
    if (f.listed) return put_listed(s, r->start, &f, (enum mode)r->mode, end);
    return put_types(s, r->start, &f, (enum mode)r->mode, end);
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
        if (rc == 0) rc = put_conj(s, r->start, &c, (enum mode)r->mode, end);
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
    rc = check_numbers(s, &f, is_open(&f));
    out->argument = arena_array(a, f.n_property + 1, sizeof *out->argument);
    if (!out->argument) return err_set(s->e, ERR_LIMIT, "schema: too large");
    out->open = !f.n_property && is_open(&f);
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
