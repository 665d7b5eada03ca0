/* grammar_multiple - numbers between two bounds that are multiples of a step, as part of a grammar.
 *
 * As in grammar_number.c the digits are read from the left, at a bound or free of it; beside that the
 * remainder of what was read is kept. Free of both bounds only the digits to come and the remainder
 * matter, so numbers of all lengths share those nodes. */
#include "coordinator/grammar_number.h"

#include <stdlib.h>

#include "common/base/arena.h"
#include "common/base/check.h"
#include "common/base/map.h"

enum { FREE_DIGITS = 15 };

struct place {                                    /* what is known of the digits read */
    uint32_t length, n_read;                      /* of the whole part; n_read goes on behind the point */
    uint32_t at_lo, at_hi, rest;
};

struct steps {
    struct grammar *g;
    const struct number_bound *lo, *hi;           /* lo is always set, both not negative */
    const struct number_step *step;
    uint32_t end, n_fraction;
    struct map known;
    struct arena keys;                            /* of known; the grammar's limit on nodes is theirs */
    uint32_t *node;
    uint32_t n_node, room;
};

static char digit_of(const struct number_bound *b, const struct place *p) {
    if (p->n_read < p->length) return b->whole[p->n_read];
    uint32_t i = p->n_read - p->length;
    return i < strlen(b->fraction) ? b->fraction[i] : '0';
}

static bool may_stop(const struct steps *s, const struct place *p) {
    uint32_t behind = p->n_read - p->length;
    uint64_t rest = p->rest;
    for (uint32_t i = behind; i < s->step->n_fraction; i++) rest = rest * 10 % s->step->m;
    if (rest) return false;
    if (p->at_lo && (behind < strlen(s->lo->fraction) || s->lo->exclusive)) return false;
    return !p->at_hi || behind < strlen(s->hi->fraction) || !s->hi->exclusive;
}

static uint32_t node_of(struct steps *s, struct place p);

static void add_digits(struct steps *s, uint32_t from, const struct place *p) {
    char lo = p->at_lo ? digit_of(s->lo, p) : '0', hi = p->at_hi ? digit_of(s->hi, p) : '9';
    if (p->n_read == 0 && p->length > 1) lo = MAX(lo, '1');
    for (char d = lo; d <= hi; d++) {
        struct place next = { p->length, p->n_read + 1, p->at_lo && d == lo, p->at_hi && d == hi,
                              (p->rest * 10 + (uint32_t)(d - '0')) % s->step->m };
        grammar_bytes(s->g, from, d, d, node_of(s, next));
    }
}

/* Free of the bounds the digits to come count, not those that were. */
static struct place key_of(const struct place *p) {
    struct place key = *p;
    if (p->at_lo || p->at_hi) return key;
    bool whole = p->n_read < p->length;
    key.length = whole ? p->length - p->n_read : 0;
    key.n_read = whole ? 0 : 1 + p->n_read - p->length;
    return key;
}

static uint32_t node_of(struct steps *s, struct place p) {
    struct place key = key_of(&p);
    uint32_t number;
    if (map_find(&s->known, (const char *)&key, sizeof key, &number)) return s->node[number];
    struct place *kept = arena_alloc(&s->keys, sizeof *kept);
    CHECK(kept);
    *kept = key;
    CHECK(map_add(&s->known, (const char *)kept, sizeof *kept, &number));
    if (s->n_node == s->room) {
        s->room = MAX(64u, 2 * s->room);
        s->node = xrealloc(s->node, s->room * sizeof *s->node);
    }
    CHECK(number == s->n_node);
    uint32_t node = s->node[s->n_node++] = grammar_node(s->g), from = node;
    if (s->g->rc < 0) return node;                /* too large: it ends here */
    if (p.n_read >= p.length && may_stop(s, &p)) grammar_empty(s->g, node, s->end);
    if (p.n_read >= p.length + s->n_fraction) return node;
    if (p.n_read == p.length) from = grammar_then_word(s->g, node, ".");
    add_digits(s, from, &p);
    return node;
}

void grammar_add_multiples(struct grammar *g, uint32_t from, const struct number_bound *lo,
                           const struct number_bound *hi, bool integer, const struct number_step *step,
                           uint32_t end) {
    struct steps s = { .g = g, .lo = lo, .hi = hi, .step = step, .end = end,
                       .n_fraction = integer ? 0 : step->n_fraction };
    uint32_t shortest = (uint32_t)strlen(lo->whole);
    uint32_t longest = hi->set ? (uint32_t)strlen(hi->whole) : MAX(shortest, (uint32_t)FREE_DIGITS);
    map_init(&s.known);
    arena_init(&s.keys, SIZE_MAX);
    for (uint32_t n = shortest; n <= longest; n++) {
        struct place p = { n, 0, n == shortest, hi->set && n == longest, 0 };
        uint32_t start = grammar_node(g);
        grammar_empty(g, from, start);
        add_digits(&s, start, &p);
    }
    map_deinit(&s.known);
    arena_deinit(&s.keys);
    free(s.node);
}

/* ---- steps ---- */

static uint32_t greatest_divisor(uint32_t a, uint32_t b) {
    while (b) {
        uint32_t rest = a % b;
        a = b;
        b = rest;
    }
    return a;
}

static bool widen(struct number_step *s, uint32_t n_fraction) {
    for (; s->n_fraction < n_fraction; s->n_fraction++, s->m *= 10)
        if (s->m > NUMBER_STEP_MAX) return false;
    return true;
}

static int too_fine(struct err *e) {
    return err_set(e, ERR_INVALID, "only up to %d units of 10^-%d are supported", NUMBER_STEP_MAX,
                   NUMBER_STEP_FRACTION_MAX);
}

int number_step_read(struct number_step *s, struct chat_text text, struct err *e) {
    struct number_bound b;
    struct number_step own = { .m = 0 };
    int rc = number_bound_read(&b, text, false, e);
    if (rc < 0) return rc;
    const char *parts[] = { b.whole, b.fraction };
    for (int i = 0; i < 2; i++)
        for (const char *c = parts[i]; *c && own.m <= NUMBER_STEP_MAX; c++)
            own.m = own.m * 10 + (uint32_t)(*c - '0');
    own.n_fraction = (uint32_t)strlen(b.fraction);
    if (b.negative || own.m == 0) return err_set(e, ERR_INVALID, "is not above 0");
    if (own.m > NUMBER_STEP_MAX || own.n_fraction > NUMBER_STEP_FRACTION_MAX) return too_fine(e);
    if (s->m) {                                   /* a multiple of both */
        uint32_t n = MAX(own.n_fraction, s->n_fraction);
        if (!widen(&own, n) || !widen(s, n)) return too_fine(e);
        own.m = own.m / greatest_divisor(own.m, s->m) * s->m;
        if (own.m > NUMBER_STEP_MAX) return too_fine(e);
    }
    *s = own;
    return 0;
}

bool number_is_multiple(const struct number_bound *b, const struct number_step *s) {
    uint64_t rest = 0;
    size_t n = strlen(b->fraction);
    if (n > s->n_fraction) return false;
    for (const char *c = b->whole; *c; c++) rest = (rest * 10 + (uint64_t)(*c - '0')) % s->m;
    for (size_t i = 0; i < s->n_fraction; i++)
        rest = (rest * 10 + (uint64_t)(i < n ? b->fraction[i] - '0' : 0)) % s->m;
    return rest == 0;
}
