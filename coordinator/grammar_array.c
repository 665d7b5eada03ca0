/* grammar_array - arrays of a schema: a prefix, then items; those that must contain something; those whose
 * items differ. */
#include "coordinator/schema_parts.h"

#include "common/base/buf.h"
#include "coordinator/grammar_text.h"

enum { UNIQUE_MAX = 10 };                         /* values of a set; its subsets are the states */

static uint32_t then_ws(struct grammar *g, uint32_t from) {
    return grammar_then_call(g, from, grammar_rule_ws(g), 1, 1);
}

static uint32_t then_open(struct grammar *g, uint32_t from) {
    return then_ws(g, grammar_then_word(g, from, "["));
}

static void put_close(struct grammar *g, uint32_t from, uint32_t to) {
    grammar_empty(g, grammar_then_word(g, then_ws(g, from), "]"), to);
}

/* ", item" as a rule. */
static int next_item_rule(struct schema *s, const struct conj *item, uint32_t *rule) {
    uint32_t end = grammar_node(s->g);
    *rule = grammar_node(s->g);
    grammar_end(s->g, end);
    return schema_put_conj(s, then_ws(s->g, grammar_then_word(s->g, *rule, ",")), item, MODE_JSON, end);
}

static int put_plain(struct schema *s, uint32_t from, const struct facts *f, uint32_t to) {
    struct grammar *g = s->g;
    int32_t min = f->items_min, max = f->items_max, n = 0;
    uint32_t at = then_open(g, from), before_close = grammar_node(g), rule;
    int rc = 0;
    if (max < min) return 0;
    if (min == 0) grammar_empty(g, grammar_then_word(g, at, "]"), to);
    for (; n < (int32_t)f->n_prefix && n < max && rc == 0; n++) {
        uint32_t next = grammar_node(g);
        if (n > 0 && n >= min) grammar_empty(g, at, before_close);
        if (n > 0) at = then_ws(g, grammar_then_word(g, at, ","));
        rc = schema_put_conj(s, at, &f->prefix[n], MODE_JSON, next);
        at = next;
    }
    if (rc == 0 && n == 0 && max > 0) {           /* the first one has no comma */
        uint32_t next = grammar_node(g);
        rc = schema_put_conj(s, at, &f->items, MODE_JSON, next);
        at = next;
        n = 1;
    }
    if (rc == 0 && n > 0) {
        rc = next_item_rule(s, &f->items, &rule);
        int32_t more = max == GRAMMAR_MANY ? GRAMMAR_MANY : max - n;
        grammar_call(g, at, rule, MAX(min - n, 0), more, before_close);
    }
    put_close(g, before_close, to);
    return rc;
}

/* ---- contains ---- */

/* item* what-is-contained+ item*: where the length is limited, without the first part. */
static int put_containing(struct schema *s, uint32_t from, const struct facts *f, uint32_t to) {
    struct grammar *g = s->g;
    int32_t n = f->contains_min, max = f->items_max;
    struct conj both = f->items;
    uint32_t at = then_open(g, from), item, wanted, end = grammar_node(g), before_close = grammar_node(g);
    int rc = 0;
    for (uint32_t i = 0; i < f->contains.n && rc == 0; i++)
        rc = conj_add(s, &both, f->contains.part[i].value);
    if (rc < 0 || max < MAX(n, f->items_min)) return rc;
    uint32_t before = grammar_node(g), before_end = grammar_node(g), first = grammar_node(g);
    rc = schema_put_conj(s, before, &f->items, MODE_JSON, before_end);
    grammar_end(g, then_ws(g, grammar_then_word(g, before_end, ",")));
    if (max == GRAMMAR_MANY) at = grammar_then_call(g, at, before, 0, GRAMMAR_MANY);
    grammar_empty(g, at, first);
    if (rc == 0) rc = schema_put_conj(s, first, &both, MODE_JSON, end);
    if (rc == 0) rc = next_item_rule(s, &both, &wanted);
    if (rc == 0) rc = next_item_rule(s, &f->items, &item);
    if (rc < 0) return rc;
    at = grammar_then_call(g, end, wanted, n - 1, n - 1);
    grammar_call(g, at, item, MAX(f->items_min - n, 0), max == GRAMMAR_MANY ? max : max - n, before_close);
    put_close(g, before_close, to);
    return 0;
}

/* ---- unique ---- */

/* Values that items may be, each once; ERR_UNSUPPORTED: they are not listed, too many, or no plain ones. */
static int list_values(struct schema *s, const struct facts *f, uint32_t value[UNIQUE_MAX], int *n) {
    *n = 0;
    if (!f->listed) return ERR_UNSUPPORTED;
    for (uint32_t i = 0; i < f->n_list; i++) {
        bool yes = false;
        int rc = schema_listed_fits(s, f->list[i], f, &yes);
        if (rc < 0) return rc;
        for (int k = 0; k < *n && yes; k++) yes = !schema_same(s, f->list[i], value[k]);
        if (!yes) continue;
        if (*n == UNIQUE_MAX || (schema_type_of(s, f->list[i]) & (IS_ARRAY | IS_OBJECT)))
            return ERR_UNSUPPORTED;
        value[(*n)++] = f->list[i];
    }
    return 0;
}

static int value_rules(struct schema *s, const struct conj *items, uint32_t rule[UNIQUE_MAX], int *n) {
    struct facts f;
    struct buf text;
    uint32_t value[UNIQUE_MAX];
    int rc = schema_read_plain(s, items, &f);
    if (rc == 0) rc = list_values(s, &f, value, n);
    buf_init(&text, SCHEMA_BYTES_MAX);
    for (int i = 0; rc == 0 && i < *n; i++) {
        buf_clear(&text);
        chat_json_put_line(&s->json, value[i], &text);
        rule[i] = grammar_node(s->g);
        grammar_end(s->g, grammar_then_text(s->g, rule[i], (struct chat_text){ text.data, text.size }));
    }
    buf_deinit(&text);
    return rc;
}

/* A node for every subset that was written. */
static void put_subsets(struct schema *s, uint32_t from, const uint32_t *rule, int n, const struct facts *f,
                        uint32_t to) {
    struct grammar *g = s->g;
    uint32_t open = then_open(g, from), before_close = grammar_node(g), all = 1u << n;
    uint32_t node[1 << UNIQUE_MAX], comma[1 << UNIQUE_MAX];
    for (uint32_t set = 0; set < all; set++) node[set] = grammar_node(g);
    grammar_empty(g, open, node[0]);
    for (uint32_t set = 0; set < all; set++) {
        int32_t size = __builtin_popcount(set);
        if (size > f->items_max) continue;
        if (size > 0 && size >= f->items_min) grammar_empty(g, node[set], before_close);
        if (size == f->items_max || size == n) continue;
        comma[set] = set ? then_ws(g, grammar_then_word(g, node[set], ",")) : node[set];
        for (int i = 0; i < n; i++)
            if (!(set >> i & 1)) grammar_call(g, comma[set], rule[i], 1, 1, node[set | 1u << i]);
    }
    if (f->items_min == 0) grammar_empty(g, grammar_then_word(g, open, "]"), to);
    put_close(g, before_close, to);
}

static int put_unique(struct schema *s, uint32_t from, const struct facts *f, uint32_t to) {
    uint32_t rule[UNIQUE_MAX];
    int n = 0, rc = f->n_prefix || f->contains.n ? ERR_UNSUPPORTED : value_rules(s, &f->items, rule, &n);
    if (rc == ERR_UNSUPPORTED && s->lenient) return put_plain(s, from, f, to);
    if (rc == ERR_UNSUPPORTED)
        return schema_fail(s, 0, "uniqueItems is supported where items are one of at most 10 listed values");
    if (rc == 0) put_subsets(s, from, rule, n, f, to);
    return rc;
}

int schema_put_array(struct schema *s, uint32_t from, const struct facts *f, uint32_t to) {
    if (f->unique && f->items_max > 1) return put_unique(s, from, f, to);
    if (!f->contains.n) return put_plain(s, from, f, to);
    if (f->n_prefix && s->lenient) return put_plain(s, from, f, to);
    if (f->n_prefix)
        return schema_fail(s, f->contains_in, "contains together with a prefix is not supported");
    return put_containing(s, from, f, to);
}
