/* tokenizer_split - see the header. The published rule cuts
 *
 *   1. \p{N}{1,3}                                                    numbers, in groups of three
 *   2. [U+4E00-9FA5 U+3040-309F U+30A0-30FF]+                        CJK and kana
 *   3. A apunct [A-Za-z]+         B [^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+   C  ?[\p{P}\p{S}]+[\r\n]*
 *      D \s*[\r\n]+               E \s+(?!\S)                              F \s+
 *
 * and every output of one pass, match or gap, is a whole text for the next. Passes 1 and 2 only cut
 * out runs, and pass 3 leaves numbers alone, so one walk does all three: whoever looks ahead sees the
 * end of the text at a number, and where kana and CJK begin or end. In pass 3 the first alternative
 * that matches wins; what none matches piles up in a gap. No alternative looks further than one code
 * point past what it takes, except that white space may give back the last or all after a line
 * break; so a text costs a few looks at each of its bytes. */
#include "common/model/tokenizer_split.h"

#include "common/base/utf8.h"

#include <pthread.h>

static uint8_t classes[UTF8_CODE_POINT_MAX + 1];      /* pages without any class are never touched */
static pthread_once_t classes_once = PTHREAD_ONCE_INIT;

static void mark_range(uint32_t first, uint32_t last, unsigned class) {
    for (uint32_t cp = first; cp <= last; cp++) classes[cp] |= (uint8_t)class;
}

static void classes_fill(void) {
    for (size_t i = 0; i < COUNT_OF(tokenizer_unicode); i++) {
        const struct unicode_class *c = &tokenizer_unicode[i];
        for (uint32_t k = 0; k < c->n; k++) mark_range(c->range[k].first, c->range[k].last, c->bit);
    }
    mark_range('\n', '\n', CHAR_NL);
    mark_range('\r', '\r', CHAR_NL);
    mark_range(0x4e00, 0x9fa5, CHAR_K);
    mark_range(0x3040, 0x30ff, CHAR_K);
}

void tokenizer_split_init(void) {
    pthread_once(&classes_once, classes_fill);
}

/* ---- walking ---- */

/* What a rule may look at: from wherever it is up to `end`, inside or outside of kana and CJK. */
struct stretch {
    const uint8_t *end;
    unsigned k;                                       /* CHAR_K or 0 */
};

static inline unsigned class_of(const uint8_t *p, const uint8_t *end, unsigned *n) {
    if (*p < 0x80) return *n = 1, classes[*p];
    uint32_t cp;
    *n = utf8_decode(p, end, &cp);
    if (*n) return classes[cp];
    return *n = 1, 0;                                 /* a stray byte */
}

/* Class (without CHAR_K) and length of the code point at p. Where the stretch ends: no class, length 0. */
static inline unsigned class_at(const uint8_t *p, struct stretch s, unsigned *n) {
    if (p == s.end) return *n = 0, 0;
    unsigned class = class_of(p, s.end, n) ^ s.k;
    if (class & (CHAR_N | CHAR_K)) return *n = 0, 0;
    return class;
}

/* End of the run of code points that have one of the classes in `mask`. */
static inline const uint8_t *run_end(const uint8_t *p, struct stretch s, unsigned mask) {
    for (;;) {
        while (!s.k && p < s.end && *p < 0x80 && (classes[*p] & mask)) p++;
        unsigned n;
        if (!(class_at(p, s, &n) & mask)) return p;
        p += n;
    }
}

static inline bool ascii_letter(const uint8_t *p, const uint8_t *end) {
    return p < end && *p < 0x80 && (classes[*p] & CHAR_L);
}

/* ---- the rules ---- */

static const uint8_t *match_number(const uint8_t *p, const uint8_t *end) {
    unsigned n;
    for (int i = 0; i < 3 && p < end && (class_of(p, end, &n) & CHAR_N); i++) p += n;
    return p;
}

static const uint8_t *match_punctuation(const uint8_t *p, struct stretch s) {
    return run_end(run_end(p, s, CHAR_P | CHAR_S), s, CHAR_NL);
}

/* D, E, F: to the last line break; else all at the end of the stretch, or if it is one; else all but one. */
static const uint8_t *match_white(const uint8_t *p, struct stretch s) {
    const uint8_t *start = p, *last = p, *after_break = NULL;
    unsigned n, class;
    while ((class = class_at(p, s, &n)) & CHAR_W) {
        last = p;
        p += n;
        if (class & CHAR_NL) after_break = p;
    }
    if (after_break) return after_break;
    return n == 0 || last == start ? p : last;
}

/* Where no alternative matches: up to where one does, at any class, or in front of a letter or mark. */
static const uint8_t *match_gap(const uint8_t *p, struct stretch s) {
    unsigned n, n_next, class = class_at(p, s, &n);
    while (n > 0 && class == 0) {
        unsigned next = class_at(p + n, s, &n_next);
        if (next & (CHAR_L | CHAR_M)) break;
        p += n;
        n = n_next;
        class = next;
    }
    return p;
}

static const uint8_t *match_main(const uint8_t *p, struct stretch s) {
    unsigned n, n_next, class = class_at(p, s, &n);
    const uint8_t *next = p + n;
    if (class & (CHAR_L | CHAR_M)) return run_end(next, s, CHAR_L | CHAR_M);               /* B */
    if (class & (CHAR_P | CHAR_S)) {
        if (*p >= 0x80 || !ascii_letter(next, s.end)) return match_punctuation(next, s);   /* C */
        while (ascii_letter(next, s.end)) next++;                                          /* A */
        return next;
    }
    unsigned after = class_at(next, s, &n_next);
    if (!(class & CHAR_NL) && (after & (CHAR_L | CHAR_M)))
        return run_end(next + n_next, s, CHAR_L | CHAR_M);                                 /* B */
    if (*p == ' ' && (after & (CHAR_P | CHAR_S))) return match_punctuation(next, s);       /* C */
    if (class & CHAR_W) return match_white(p, s);                                          /* D-F */
    return match_gap(next, s);
}

const uint8_t *tokenizer_split_next(const uint8_t *p, const uint8_t *end) {
    unsigned n, class = class_of(p, end, &n);
    if (class & CHAR_N) return match_number(p, end);
    return match_main(p, (struct stretch){ end, class & CHAR_K });
}
