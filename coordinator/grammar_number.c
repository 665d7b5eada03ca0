/* grammar_number - see the header.
 *
 * The digits are read from the left. As long as all were those of a bound we are "at" it, and the next
 * digit is limited by the bound's; once one differs, that bound holds whatever follows. The number may
 * be over where it is not below the lower bound: not at it, or only zeros are left of it. Negative
 * numbers are the same with the bounds exchanged behind a minus sign. Digits that lead nowhere cost
 * nothing: grammar_finish finds them. */
#include "coordinator/grammar_number.h"

#include <stdlib.h>

enum {
    WHOLE_FREE = 15,
    DOUBLE_DIGITS = 15,
    FRACTION_MORE = 6,
    FRACTION_ROOM = NUMBER_FRACTION_MAX + FRACTION_MORE + 2
};

/* ---- reading a bound ---- */

struct decimal { char digits[2 * CHAT_JSON_NUMBER_MAX]; int n, point; };

/* Digits and where the point is, the exponent worked in. */
static bool read_decimal(struct decimal *d, struct chat_text text) {
    size_t i = 0;
    bool behind = false;
    d->n = d->point = 0;
    for (; i < text.len && text.data[i] != 'e' && text.data[i] != 'E'; i++) {
        if (text.data[i] == '.') behind = true;
        else if (d->n || text.data[i] != '0') {
            d->digits[d->n++] = text.data[i];
            d->point += !behind;
        } else d->point -= behind;
    }
    if (i < text.len) {
        char number[16];
        size_t n = text.len - i - 1;
        if (n >= sizeof number) return false;
        memcpy(number, text.data + i + 1, n);
        number[n] = '\0';
        long exponent = strtol(number, NULL, 10);
        if (exponent > 400 || exponent < -400) return d->n == 0;
        d->point += (int)exponent;
    }
    while (d->n > 0 && d->digits[d->n - 1] == '0') d->n--;
    return true;
}

int number_bound_read(struct number_bound *b, struct chat_text text, bool exclusive, struct err *e) {
    struct decimal d;
    struct chat_text all = text;
    *b = (struct number_bound){ .set = true, .exclusive = exclusive };
    bool negative = text.len && text.data[0] == '-';
    if (negative) text.data++, text.len--;
    bool fits = text.len <= CHAT_JSON_NUMBER_MAX && read_decimal(&d, text);
    int behind = fits ? d.n - d.point : 0;        /* digits behind the point */
    /* A number beside an excluded bound must differ from it as a double, too: 15 digits always do. */
    if (fits && exclusive) fits = d.n <= DOUBLE_DIGITS;
    if (!fits || (d.n && (d.point > NUMBER_WHOLE_MAX || behind > NUMBER_FRACTION_MAX)))
        return err_set(e, ERR_INVALID, "%.*s has too many digits", (int)MIN(all.len, 60), all.data);
    b->whole[0] = '0';
    if (d.n == 0) return 0;
    b->negative = negative;
    for (int i = 0; i < d.point; i++) b->whole[i] = i < d.n ? d.digits[i] : '0';
    if (d.point > 0) b->whole[d.point] = '\0';
    for (int i = 0; i < behind; i++) b->fraction[i] = d.point + i < 0 ? '0' : d.digits[d.point + i];
    return 0;
}

static int compare_sizes(const struct number_bound *a, const struct number_bound *b) {
    size_t n = strlen(a->whole), m = strlen(b->whole);
    if (n != m) return n < m ? -1 : 1;
    int order = strcmp(a->whole, b->whole);
    return order ? order : strcmp(a->fraction, b->fraction);
}

int number_bound_compare(const struct number_bound *a, const struct number_bound *b) {
    if (a->negative != b->negative) return a->negative ? -1 : 1;
    return a->negative ? compare_sizes(b, a) : compare_sizes(a, b);
}

/* ---- one sign ---- */

struct range {
    struct grammar *g;
    const struct number_bound *lo, *hi;           /* lo is always set, both not negative */
    uint32_t end;
    uint32_t fraction[FRACTION_ROOM][2][2];       /* nodes by digits read, at lo, at hi; 0: not built */
    int n_fraction;
};

static char fraction_digit(const struct number_bound *b, int i) {
    return i < (int)strlen(b->fraction) ? b->fraction[i] : '0';
}

static bool rest_is_zero(const struct number_bound *b, int i) {
    return i >= (int)strlen(b->fraction);
}

static bool may_stop(const struct range *r, int i, bool at_lo, bool at_hi) {
    if (at_lo && (!rest_is_zero(r->lo, i) || r->lo->exclusive)) return false;
    return !at_hi || !rest_is_zero(r->hi, i) || !r->hi->exclusive;
}

/* The node behind i digits of the fraction (0: before the point). */
static uint32_t fraction_node(struct range *r, int i, bool at_lo, bool at_hi) {
    uint32_t *known = &r->fraction[i][at_lo][at_hi];
    if (*known) return *known;
    uint32_t node = *known = grammar_node(r->g), from = node;
    if (may_stop(r, i, at_lo, at_hi)) grammar_empty(r->g, node, r->end);
    if (i == r->n_fraction || r->g->rc < 0) return node;
    if (i == 0) from = grammar_then_word(r->g, node, ".");
    for (char d = '0'; d <= '9'; d++) {
        char lo = fraction_digit(r->lo, i), hi = at_hi ? fraction_digit(r->hi, i) : '9';
        if ((at_lo && d < lo) || d > hi) continue;
        grammar_bytes(r->g, from, d, d, fraction_node(r, i + 1, at_lo && d == lo, at_hi && d == hi));
    }
    return node;
}

/* Whole parts of n digits: nodes by digits read and where we are. */
static void whole_of_length(struct range *r, uint32_t from, int n, bool at_lo, bool at_hi) {
    uint32_t node[NUMBER_WHOLE_MAX + 1][2][2] = { { { 0 } } };
    node[0][at_lo][at_hi] = from;
    for (int i = 0; i < n; i++) {
        for (int at = 0; at < 4; at++) {
            bool lo_here = at & 1, hi_here = at & 2;
            if (!node[i][lo_here][hi_here]) continue;
            char lo = lo_here ? r->lo->whole[i] : '0', hi = hi_here ? r->hi->whole[i] : '9';
            for (char d = i == 0 && n > 1 ? MAX(lo, '1') : lo; d <= hi; d++) {
                bool to_lo = lo_here && d == lo, to_hi = hi_here && d == hi;
                uint32_t *to = &node[i + 1][to_lo][to_hi];
                if (!*to) *to = i + 1 == n ? fraction_node(r, 0, to_lo, to_hi) : grammar_node(r->g);
                grammar_bytes(r->g, node[i][lo_here][hi_here], d, d, *to);
            }
        }
    }
}

static void add_sizes(struct grammar *g, uint32_t from, const struct number_bound *lo,
                      const struct number_bound *hi, const struct number_step *step, bool integer,
                      uint32_t end) {
    if (step->m) {
        grammar_add_multiples(g, from, lo, hi, integer, step, end);
        return;
    }
    struct range r = { .g = g, .lo = lo, .hi = hi, .end = end };
    int shortest = (int)strlen(lo->whole), most = (int)strlen(lo->fraction);
    int longest = hi->set ? (int)strlen(hi->whole) : MAX(shortest, WHOLE_FREE);
    if (hi->set) most = MAX(most, (int)strlen(hi->fraction));
    r.n_fraction = integer ? 0 : MAX(most, MIN(most + FRACTION_MORE, DOUBLE_DIGITS - longest));
    for (int n = shortest; n <= longest; n++) {
        uint32_t start = grammar_node(g);
        grammar_empty(g, from, start);
        whole_of_length(&r, start, n, n == shortest, hi->set && n == longest);
    }
}

/* ---- both signs ---- */

static const struct number_bound nothing = { .whole = "0" };

static struct number_bound turned(const struct number_bound *b) {
    struct number_bound t = *b;
    t.negative = false;
    return t;
}

uint32_t grammar_then_range(struct grammar *g, uint32_t from, const struct number_bound *lo,
                            const struct number_bound *hi, const struct number_step *step, bool integer) {
    uint32_t end = grammar_node(g);
    struct number_bound zero = { .set = true, .whole = "0" }, above_zero = zero;
    above_zero.exclusive = true;
    if (!hi->set || !hi->negative)
        add_sizes(g, from, lo->set && !lo->negative ? lo : &zero, hi->set ? hi : &nothing, step,
                  integer, end);
    if (!lo->set || lo->negative) {               /* -hi .. -lo behind the sign, without -0 */
        struct number_bound least = hi->set && hi->negative ? turned(hi) : above_zero;
        struct number_bound most = lo->set ? turned(lo) : nothing;
        add_sizes(g, grammar_then_word(g, from, "-"), &least, &most, step, integer, end);
    }
    return end;
}
