/* grammar_regex - recursive descent over the pattern; what is repeated becomes a rule that is called. */
#include "coordinator/grammar_regex.h"

#include <stdlib.h>

#include "common/base/utf8.h"

enum { GROUPS_MAX = 32, RANGES_MAX = 256, COUNT_MAX = 10000, UNICODE_LAST = 0x10ffff };

struct range { uint32_t lo, hi; };
struct class { struct range range[RANGES_MAX]; int n; };

struct parse {
    struct grammar *g;
    enum grammar_spelling spelling;
    const uint8_t *at, *end;
    int depth;
    struct err *e;
    int rc;
};

static bool refuse(struct parse *p, const char *what) {
    if (p->rc == 0) p->rc = err_set(p->e, ERR_INVALID, "%s", what);
    p->at = p->end;
    return false;
}

static bool next_is(const struct parse *p, const char *word) {
    size_t n = strlen(word);
    return (size_t)(p->end - p->at) >= n && memcmp(p->at, word, n) == 0;
}

static bool take(struct parse *p, const char *word) {
    if (!next_is(p, word)) return false;
    p->at += strlen(word);
    return true;
}

static uint32_t take_char(struct parse *p) {
    uint32_t c;
    unsigned n = utf8_decode(p->at, p->end, &c);
    if (n == 0) {
        refuse(p, "ends too early or is not UTF-8");
        return 0;
    }
    p->at += n;
    return c;
}

/* ---- sets of characters ---- */

static void class_add(struct parse *p, struct class *c, uint32_t lo, uint32_t hi) {
    if (c->n == RANGES_MAX) refuse(p, "has a class of too many ranges");
    else c->range[c->n++] = (struct range){ lo, hi };
}

static int range_order(const void *a, const void *b) {
    const struct range *x = a, *y = b;
    return x->lo < y->lo ? -1 : x->lo > y->lo;
}

/* Sorted, without overlaps. */
static void class_tidy(struct class *c) {
    int n = 0;
    qsort(c->range, (size_t)c->n, sizeof *c->range, range_order);
    for (int i = 0; i < c->n; i++) {
        if (n && c->range[i].lo <= c->range[n - 1].hi + 1)
            c->range[n - 1].hi = MAX(c->range[n - 1].hi, c->range[i].hi);
        else c->range[n++] = c->range[i];
    }
    c->n = n;
}

static void class_invert(struct parse *p, struct class *c) {
    struct class out = { .n = 0 };
    uint32_t from = 0;
    class_tidy(c);
    for (int i = 0; i < c->n; i++) {
        if (c->range[i].lo > from) class_add(p, &out, from, c->range[i].lo - 1);
        from = c->range[i].hi + 1;
    }
    if (from <= UNICODE_LAST) class_add(p, &out, from, UNICODE_LAST);
    *c = out;
}

static void class_join(struct parse *p, struct class *c, const struct class *other) {
    for (int i = 0; i < other->n; i++) class_add(p, c, other->range[i].lo, other->range[i].hi);
}

/* \d \w \s \D \W \S. */
static bool named_class(struct parse *p, uint32_t letter, struct class *c) {
    static const struct range digits[] = { { '0', '9' } },
        words[] = { { '0', '9' }, { 'A', 'Z' }, { '_', '_' }, { 'a', 'z' } },
        spaces[] = { { 9, 13 }, { 32, 32 }, { 160, 160 }, { 0x1680, 0x1680 }, { 0x2000, 0x200a },
                     { 0x2028, 0x2029 }, { 0x202f, 0x202f }, { 0x205f, 0x205f }, { 0x3000, 0x3000 },
                     { 0xfeff, 0xfeff } };
    const struct range *range = NULL;
    size_t n = 0;
    if ((letter | 32) == 'd') range = digits, n = COUNT_OF(digits);
    if ((letter | 32) == 'w') range = words, n = COUNT_OF(words);
    if ((letter | 32) == 's') range = spaces, n = COUNT_OF(spaces);
    c->n = 0;
    for (size_t i = 0; i < n; i++) class_add(p, c, range[i].lo, range[i].hi);
    if (n && letter < 'a') class_invert(p, c);
    return n > 0;
}

static uint32_t take_hex(struct parse *p, int n) {
    uint32_t value = 0;
    for (; n > 0 && p->at < p->end; n--, p->at++) {
        uint8_t c = *p->at, letter = c | 32;
        if (c >= '0' && c <= '9') value = value * 16 + c - '0';
        else if (letter >= 'a' && letter <= 'f') value = value * 16 + letter - 'a' + 10;
        else break;
    }
    if (n > 0) refuse(p, "has an escape without its digits");
    return value;
}

/* Behind a backslash, one character. */
static uint32_t take_escaped(struct parse *p) {
    uint32_t c = take_char(p);
    switch (c) {
    case 'n': return '\n';
    case 'r': return '\r';
    case 't': return '\t';
    case 'f': return '\f';
    case 'v': return '\v';
    case 'x': return take_hex(p, 2);
    case 'u': {
        uint32_t value = take_hex(p, 4);
        if (value >= 0xd800 && value <= 0xdfff) refuse(p, "names half a surrogate pair");
        return value;
    }
    default: break;
    }
    bool letter = (c | 32) >= 'a' && (c | 32) <= 'z';
    if (letter || (c >= '0' && c <= '9')) refuse(p, "has an escape that is not supported");
    return c;
}

/* One member of a class: a named class (true) or a character in *c. */
static bool take_member(struct parse *p, struct class *named, uint32_t *c) {
    *c = take_char(p);
    if (*c != '\\' || p->rc < 0) return false;
    if (p->at < p->end && named_class(p, *p->at, named)) {
        p->at++;
        return true;
    }
    if (take(p, "b")) *c = '\b';                  /* in a class it is a character */
    else *c = take_escaped(p);
    return false;
}

static void take_class(struct parse *p, struct class *c) {
    bool inverted = take(p, "^");
    c->n = 0;
    while (p->rc == 0 && !take(p, "]")) {
        struct class named;
        uint32_t lo, hi;
        if (take_member(p, &named, &lo)) {
            class_join(p, c, &named);
            continue;
        }
        hi = lo;
        if (next_is(p, "-") && p->end - p->at >= 2 && p->at[1] != ']') {
            p->at++;
            if (take_member(p, &named, &hi)) refuse(p, "has a range that ends in a class");
            if (hi < lo) refuse(p, "has a range that goes down");
        }
        class_add(p, c, lo, hi);
    }
    if (inverted) class_invert(p, c);
    else class_tidy(c);
}

/* ---- the pattern ---- */

static uint32_t put_class(struct parse *p, uint32_t from, const struct class *c) {
    uint32_t to = grammar_node(p->g);
    for (int i = 0; i < c->n; i++)
        grammar_spelled(p->g, from, c->range[i].lo, c->range[i].hi, p->spelling, to);
    return to;
}

static uint32_t put_choice(struct parse *p, uint32_t from, bool anchors);

static uint32_t put_group(struct parse *p, uint32_t from) {
    if (take(p, "?")) {
        if (take(p, "<") && !next_is(p, "=") && !next_is(p, "!")) {   /* a name: of no use here */
            while (p->at < p->end && *p->at != '>') p->at++;
            take(p, ">");
        } else if (!take(p, ":")) {
            refuse(p, "looks around, which is not supported");
            return from;
        }
    }
    if (++p->depth > GROUPS_MAX) refuse(p, "has groups too deep inside one another");
    uint32_t to = put_choice(p, from, false);
    p->depth--;
    if (!take(p, ")")) refuse(p, "has a group without its end");
    return to;
}

/* One character, class or group. */
static uint32_t put_atom(struct parse *p, uint32_t from) {
    struct class c = { .n = 0 };
    if (take(p, "(")) return put_group(p, from);
    if (take(p, "[")) take_class(p, &c);
    else if (take(p, ".")) {
        class_add(p, &c, '\n', '\n');
        class_add(p, &c, '\r', '\r');
        class_add(p, &c, 0x2028, 0x2029);
        class_invert(p, &c);
    } else if (take(p, "\\")) {
        if (p->at < p->end && named_class(p, *p->at, &c)) p->at++;
        else {
            uint32_t one = take_escaped(p);
            class_add(p, &c, one, one);
        }
    } else if (next_is(p, "^") || next_is(p, "$")) refuse(p, "has ^ or $ in the middle");
    else if (next_is(p, "*") || next_is(p, "+") || next_is(p, "?") || next_is(p, "{"))
        refuse(p, "repeats nothing");
    else {
        uint32_t one = take_char(p);
        class_add(p, &c, one, one);
    }
    return put_class(p, from, &c);
}

static int32_t take_count(struct parse *p) {
    int32_t n = 0;
    if (p->at == p->end || *p->at < '0' || *p->at > '9') refuse(p, "has a repetition without a number");
    for (; p->at < p->end && *p->at >= '0' && *p->at <= '9' && n <= COUNT_MAX; p->at++)
        n = n * 10 + *p->at - '0';
    if (n > COUNT_MAX) refuse(p, "repeats too often");
    return n;
}

/* False: the atom comes once. */
static bool take_times(struct parse *p, int32_t *min, int32_t *max) {
    if (take(p, "*")) *min = 0, *max = GRAMMAR_MANY;
    else if (take(p, "+")) *min = 1, *max = GRAMMAR_MANY;
    else if (take(p, "?")) *min = 0, *max = 1;
    else if (take(p, "{")) {
        *min = *max = take_count(p);
        if (take(p, ",")) *max = next_is(p, "}") ? GRAMMAR_MANY : take_count(p);
        if (!take(p, "}") || *max < *min) return refuse(p, "has a repetition that makes no sense");
    } else return false;
    take(p, "?");
    return true;
}

static uint32_t put_sequence(struct parse *p, uint32_t from) {
    while (p->rc == 0 && p->g->rc == 0 && p->at < p->end && *p->at != '|' && *p->at != ')') {
        if (next_is(p, "$") && (p->end - p->at == 1 || p->at[1] == '|')) break;
        int32_t min = 1, max = 1;
        uint32_t rule = grammar_node(p->g), end = put_atom(p, rule);
        if (!take_times(p, &min, &max)) {
            grammar_empty(p->g, from, rule);      /* once: no call is needed */
            from = end;
            continue;
        }
        grammar_end(p->g, end);
        from = grammar_then_call(p->g, from, rule, min, max);
    }
    return from;
}

static uint32_t put_any(struct parse *p, uint32_t from) {
    return grammar_then_call(p->g, from, grammar_rule_char(p->g, p->spelling), 0, GRAMMAR_MANY);
}

static uint32_t put_choice(struct parse *p, uint32_t from, bool anchors) {
    uint32_t to = grammar_node(p->g);
    do {
        uint32_t at = grammar_node(p->g);
        grammar_empty(p->g, from, at);
        if (anchors && !take(p, "^")) at = put_any(p, at);
        at = put_sequence(p, at);
        if (anchors && !take(p, "$")) at = put_any(p, at);
        grammar_empty(p->g, at, to);
    } while (p->rc == 0 && take(p, "|"));
    return to;
}

uint32_t grammar_then_pattern(struct grammar *g, uint32_t from, struct chat_text pattern,
                              enum grammar_spelling spelling, struct err *e) {
    const uint8_t *text = (const uint8_t *)pattern.data;
    struct parse p = { .g = g, .spelling = spelling, .at = text, .end = text + pattern.len, .e = e };
    uint32_t to = put_choice(&p, from, true);
    if (p.rc == 0 && p.at < p.end) refuse(&p, "has a ) too many");
    return p.rc < 0 ? 0 : to;
}
