/* grammar_object - objects of a schema: named properties in its order, then others.
 *
 * How many properties were written is part of the state where the schema counts them, up to the number
 * that matters; the smallest case has two rows of nodes, "nothing yet" and "something". Others may repeat a
 * name, so towards a least number they count once. */
#include "coordinator/schema_parts.h"

#include <stdlib.h>

#include "common/base/buf.h"
#include "common/base/check.h"
#include "coordinator/grammar_regex.h"
#include "coordinator/grammar_text.h"

enum { ASCII_LAST = 0x7f, UNICODE_LAST = 0x10ffff, COUNTED_MAX = 255, COUNTED_NODES_MAX = 1 << 14 };

/* What other properties are called. */
enum others { OTHERS_NONE, OTHERS_ANY, OTHERS_LISTED, OTHERS_NAMED, OTHERS_PATTERN };

struct object {
    struct schema *s;
    const struct facts *f;
    struct facts names;                           /* with has_names */
    bool has_names;
    enum others others;
    int32_t counted, min, max;                    /* rows but the first; the last one: so many or more */
};

static uint32_t then_ws(struct grammar *g, uint32_t from) {
    return grammar_then_call(g, from, grammar_rule_ws(g), 1, 1);
}

bool schema_is_open(const struct facts *f) {
    return !f->closed && (f->says_open || !f->has_properties);
}

/* ---- names ---- */

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

static bool is_taken(const struct facts *f, struct chat_text name) {
    for (uint32_t i = 0; i < f->n_taken; i++)
        if (chat_text_equal(f->taken[i], name)) return true;
    return false;
}

/* One of the names that are listed. */
static uint32_t then_listed_key(struct object *o, uint32_t from) {
    struct grammar *g = o->s->g;
    uint32_t tree = grammar_node(g), end = grammar_node(g);
    struct buf name, text;
    buf_init(&name, SCHEMA_BYTES_MAX);
    buf_init(&text, SCHEMA_BYTES_MAX);
    grammar_empty(g, from, tree);
    for (uint32_t i = 0; i < o->names.n_list; i++) {
        uint32_t v = o->names.list[i];
        bool known;
        if (schema_type_of(o->s, v) != IS_STRING) continue;
        buf_clear(&name), buf_clear(&text);
        chat_json_put_string(&o->s->json, v, &name);
        struct chat_text key = { name.data, name.size };
        if (is_taken(o->f, key) || !schema_string_fits(o->s, &o->names, key, &known)) continue;
        chat_json_put_quoted(&text, key);
        grammar_empty(g, grammar_tree_add(g, tree, (struct chat_text){ text.data, text.size }), end);
    }
    buf_deinit(&name);
    buf_deinit(&text);
    return end;
}

static int then_pattern_key(struct object *o, uint32_t from, uint32_t *to) {
    struct schema *s = o->s;
    struct err why;
    struct chat_text pattern = schema_value(s, o->f->key_pattern)->key;
    from = grammar_then_word(s->g, from, "\"");
    uint32_t at = grammar_then_pattern(s->g, from, pattern, GRAMMAR_IN_JSON, &why);
    if (!at && s->lenient)
        at = grammar_then_call(s->g, from, grammar_rule_char(s->g, GRAMMAR_IN_JSON), 0, GRAMMAR_MANY);
    if (!at)
        return err_set(s->e, ERR_INVALID, "schema: patternProperties: \"%.*s\" %s", (int)MIN(pattern.len, 80),
                       pattern.data, why.text);
    *to = grammar_then_word(s->g, at, "\"");
    return 0;
}

static int then_key(struct object *o, uint32_t from, uint32_t *to) {
    *to = 0;
    switch (o->others) {
    case OTHERS_NONE: break;
    case OTHERS_ANY: *to = then_other_key(o->s->g, from, o->f); break;
    case OTHERS_LISTED: *to = then_listed_key(o, from); break;
    case OTHERS_PATTERN: return then_pattern_key(o, from, to);
    case OTHERS_NAMED:
        *to = grammar_node(o->s->g);
        return schema_put_conj(o->s, from, &o->f->names, MODE_JSON, *to);
    }
    return 0;
}

/* ---- rules ---- */

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
    return rc < 0 ? rc : schema_put_conj(s, then_ws(g, at), &p->conj, MODE_JSON, end);
}

static int other_rule(struct object *o, uint32_t *rule) {
    struct grammar *g = o->s->g;
    struct conj value = o->f->rest;
    uint32_t end = grammar_node(g), at;
    *rule = grammar_node(g);
    grammar_end(g, end);
    int rc = then_key(o, *rule, &at);
    if (rc == 0 && o->others == OTHERS_PATTERN) {
        value.n = 0;
        rc = conj_add(o->s, &value, o->f->key_pattern);
    }
    if (rc < 0) return rc;
    at = then_ws(g, grammar_then_word(g, at, ":"));
    if (value.n) return schema_put_conj(o->s, at, &value, MODE_JSON, end);
    grammar_call(g, at, grammar_rule_value(g), 1, 1, end);
    return 0;
}

static uint32_t with_comma(struct grammar *g, uint32_t rule) {
    uint32_t start = grammar_node(g), end = grammar_node(g);
    grammar_end(g, end);
    grammar_call(g, then_ws(g, grammar_then_word(g, start, ",")), rule, 1, 1, end);
    return start;
}

/* ---- what the keywords come to ---- */

/* Names: which of the properties may be there, and what others may be called. */
static int read_names(struct object *o) {
    const struct facts *f = o->f, *n = &o->names;
    if (!f->names.n) return 0;
    int rc = schema_read_plain(o->s, &f->names, &o->names);
    if (rc < 0 && !o->s->lenient) return rc;
    bool limits = n->has_pattern || n->length_min > 0 || n->length_max != GRAMMAR_MANY;
    o->has_names = rc == 0 && (n->listed || limits || !(n->types & IS_STRING));
    if (!o->has_names) return 0;
    if (n->has_pattern && (f->n_property || n->listed))
        return schema_unsupported(o->s, f->names.part[0].value);
    if (o->others == OTHERS_NONE) return 0;
    if (!(n->types & IS_STRING)) o->others = OTHERS_NONE;
    else if (n->listed) o->others = OTHERS_LISTED;
    else if (f->n_taken || n->types != IS_STRING) return schema_unsupported(o->s, f->names.part[0].value);
    else o->others = OTHERS_NAMED;
    return 0;
}

/* Patterns of names: where nothing else speaks of names, others are called like that. */
static int read_pattern(struct object *o) {
    const struct facts *f = o->f;
    bool additional = f->n_additional > 1 || (f->n_additional == 1 && f->additional_in != f->key_pattern_in);
    if (!f->key_pattern) return 0;
    if (f->n_taken || f->names.n || additional)
        return o->s->lenient
                   ? 0
                   : schema_fail(
                         o->s, f->key_pattern,
                         "patternProperties beside properties, "
                         "propertyNames or additionalProperties of others is not supported");
    o->others = OTHERS_PATTERN;
    return 0;
}

static int read_counts(struct object *o, uint32_t n_property) {
    const struct facts *f = o->f;
    int32_t more = o->others == OTHERS_NONE ? 0 : 1, most = (int32_t)n_property + more;
    o->min = f->properties_min;
    o->max = f->properties_max;
    if (o->others != OTHERS_NONE && o->min > most && o->max >= o->min) {
        if (!o->s->lenient)
            return schema_fail(o->s, 0,
                               "minProperties beyond the named ones and one more is not "
                               "supported");
        o->min = most;
    }
    if (o->others == OTHERS_NONE && o->max > (int32_t)n_property) o->max = GRAMMAR_MANY;
    o->counted = MAX(1, o->max == GRAMMAR_MANY ? o->min : o->max);
    if (o->counted <= COUNTED_MAX && (uint64_t)o->counted * (n_property + 1) <= COUNTED_NODES_MAX) return 0;
    return schema_fail(o->s, 0, "properties are counted up to 255 only");
}

static bool may_be_named(struct object *o, const struct property *p) {
    bool known;
    return !o->has_names || schema_string_fits(o->s, &o->names, p->name, &known);
}

/* ---- the object ---- */

/* One property more, from every row; into the next one, which is the same behind the last. */
static void add_property(struct object *o, uint32_t *row, uint32_t rule, uint32_t comma_rule, bool required) {
    struct grammar *g = o->s->g;
    uint32_t next[COUNTED_MAX + 1];
    for (int32_t k = 0; k <= o->counted; k++) next[k] = grammar_node(g);
    for (int32_t k = 0; k <= o->counted; k++) {
        uint32_t *to = &next[MIN(k + 1, o->counted)];
        if (k < o->max) grammar_call(g, row[k], k ? comma_rule : rule, 1, 1, *to);
        if (!required) grammar_empty(g, row[k], next[k]);
    }
    memcpy(row, next, sizeof next[0] * (size_t)(o->counted + 1));
}

static int32_t room_of(const struct object *o, int32_t k) {
    return o->max == GRAMMAR_MANY ? GRAMMAR_MANY : o->max - k;
}

static int add_others(struct object *o, const uint32_t *row, uint32_t behind) {
    struct grammar *g = o->s->g;
    uint32_t rule;
    if (o->others == OTHERS_NONE) return 0;
    int rc = other_rule(o, &rule);
    if (rc < 0) return rc;
    uint32_t comma_rule = with_comma(g, rule);
    for (int32_t k = 0; k <= o->counted; k++) {
        int32_t room = room_of(o, k);
        if (room < 1 || k + 1 < o->min) continue;
        if (k > 0) grammar_call(g, row[k], comma_rule, 1, room, behind);
        else
            grammar_call(g, grammar_then_call(g, row[k], rule, 1, 1), comma_rule, 0,
                         room == GRAMMAR_MANY ? room : room - 1, behind);
    }
    return 0;
}

static int put_properties(struct object *o, uint32_t from, uint32_t to) {
    struct grammar *g = o->s->g;
    const struct facts *f = o->f;
    uint32_t row[COUNTED_MAX + 1], rule;
    for (int32_t k = 0; k <= o->counted; k++) row[k] = grammar_node(g);
    grammar_empty(g, then_ws(g, grammar_then_word(g, from, "{")), row[0]);
    for (uint32_t i = 0; i < f->n_property; i++) {
        if (!may_be_named(o, &f->property[i])) {
            if (f->property[i].required) return 0;        /* no object can be right */
            continue;
        }
        int rc = property_rule(o->s, &f->property[i], &rule);
        if (rc < 0) return rc;
        add_property(o, row, rule, with_comma(g, rule), f->property[i].required);
    }
    uint32_t behind = grammar_node(g);
    int rc = add_others(o, row, behind);
    if (o->min == 0) grammar_empty(g, grammar_then_word(g, row[0], "}"), to);
    for (int32_t k = MAX(o->min, 1); k <= o->counted; k++) grammar_empty(g, row[k], behind);
    grammar_empty(g, grammar_then_word(g, then_ws(g, behind), "}"), to);
    return rc;
}

int schema_put_object(struct schema *s, uint32_t from, const struct facts *f, uint32_t to) {
    struct object o = { .s = s, .f = f, .others = schema_is_open(f) ? OTHERS_ANY : OTHERS_NONE };
    int rc = read_pattern(&o);
    if (rc == 0) rc = read_names(&o);
    if (rc == 0) rc = read_counts(&o, f->n_property);
    if (rc < 0) return rc;
    bool any = o.others == OTHERS_ANY && !f->n_taken && !f->rest.n && o.min == 0 && o.max == GRAMMAR_MANY;
    if (!any) return put_properties(&o, from, to);
    grammar_call(s->g, from, grammar_rule_object(s->g), 1, 1, to);
    return 0;
}
