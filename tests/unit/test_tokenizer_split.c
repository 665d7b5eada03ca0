/* Splitting into pieces: worked examples, and every short text against the published rule written out
 * pass by pass. */
#include "tests/harness/test.h"

#include "common/base/rng.h"
#include "common/model/tokenizer_split.h"

/* ---- examples ---- */

static void expect_pieces(const char *text, size_t len, const char *joined) {
    const uint8_t *p = (const uint8_t *)text, *end = p + len;
    char got[1024];
    size_t n = 0;
    while (p < end) {
        const uint8_t *next = tokenizer_split_next(p, end);
        assert_true(next > p && next <= end);
        if (n) got[n++] = '|';
        memcpy(got + n, p, (size_t)(next - p));
        n += (size_t)(next - p);
        p = next;
    }
    assert_int_equal(n, strlen(joined));
    assert_memory_equal(got, joined, n);
}

static void pieces_are_those_of_the_worked_examples(void **state) {
    (void)state;
    static const char *const cases[][2] = {
        { "Hello, world!", "Hello|,| world|!" },
        { "    int x = 12345;\n", "   | int| x| =| |123|45|;\n" },
        { "abc\xe4\xbd\xa0\xe5\xa5\xbd" "123", "abc|\xe4\xbd\xa0\xe5\xa5\xbd|123" },
        { "a   7", "a|   |7" },
        { "x \n\n y", "x| \n\n| y" },
        { "a \n\n  b", "a| \n\n| | b" },
        { "don't", "don|'t" },
        { "(foo)", "(foo|)" },
        { ".\xc3\xa9" "a", ".|\xc3\xa9" "a" },
        { "\tword", "\tword" },
        { "\xe2\x80\x8dword", "\xe2\x80\x8dword" },
        { "\t(", "\t|(" },
        { " (", " (" },
        { ";\n\nx", ";\n\n|x" },
        { "1234567", "123|456|7" },
        { "12\xc2\xbd\xe2\x85\xa7" "3", "12\xc2\xbd|\xe2\x85\xa7" "3" },
        { "\xe3\x80\x80\xe5\xad\x97", "\xe3\x80\x80|\xe5\xad\x97" },
        { "\xe3\x83\xa9\xe3\x83\xbb\xe3\x81\x86", "\xe3\x83\xa9|\xe3\x83\xbb|\xe3\x81\x86" },
        { "x  ", "x|  " },
        { "\r\n\r\na", "\r\n\r\n|a" },
    };
    tokenizer_split_init();
    for (size_t i = 0; i < COUNT_OF(cases); i++) expect_pieces(cases[i][0], strlen(cases[i][0]), cases[i][1]);
    expect_pieces("\1\2a", 3, "\1|\2a");
}

/* ---- the rule as published, one pass after the other, each on strings of characters ---- */

struct character { unsigned class; uint8_t n_bytes; uint8_t ascii; };

static unsigned class_of(uint32_t cp) {
    unsigned class = (cp >= 0x4e00 && cp <= 0x9fa5) || (cp >= 0x3040 && cp <= 0x30ff) ? CHAR_K : 0;
    for (size_t i = 0; i < COUNT_OF(tokenizer_unicode); i++) {
        const struct unicode_class *c = &tokenizer_unicode[i];
        for (uint32_t k = 0; k < c->n; k++)
            if (cp >= c->range[k].first && cp <= c->range[k].last) class |= c->bit;
    }
    return class | (cp == '\n' || cp == '\r' ? CHAR_NL : 0);
}

static size_t run_of(const struct character *s, size_t i, size_t n, unsigned mask) {
    size_t start = i;
    while (i < n && (s[i].class & mask)) i++;
    return i - start;
}

static size_t letters_ascii(const struct character *s, size_t i, size_t n) {
    size_t start = i;
    while (i < n && s[i].ascii && (s[i].class & CHAR_L)) i++;
    return i - start;
}

/* Characters that the main rule matches at i of s[0..n); 0: no match. */
static size_t main_rule(const struct character *s, size_t i, size_t n) {
    const unsigned lm = CHAR_L | CHAR_M, ps = CHAR_P | CHAR_S;
    size_t k;
    if (s[i].ascii && (s[i].class & ps) && (k = letters_ascii(s, i + 1, n)) > 0) return 1 + k;
    if (!(s[i].class & (CHAR_NL | CHAR_L | ps)) && (k = run_of(s, i + 1, n, lm)) > 0) return 1 + k;
    if ((k = run_of(s, i, n, lm)) > 0) return k;
    size_t blank = s[i].ascii == ' ';
    if ((k = run_of(s, i + blank, n, ps)) > 0) return blank + k + run_of(s, i + blank + k, n, CHAR_NL);
    size_t white = run_of(s, i, n, CHAR_W);
    for (k = white; k > 0; k--)
        if (s[i + k - 1].class & CHAR_NL) return k;
    return white < 2 || i + white == n ? white : white - 1;
}

/* Each pass sets cut[i] where a piece ends before character i; a pass treats what lies between cuts as
 * whole strings. */
static void pass_numbers(const struct character *s, size_t from, size_t to, bool *cut) {
    for (size_t i = from; i < to;) {
        size_t n = MIN(run_of(s, i, to, CHAR_N), (size_t)3);
        if (n) cut[i] = cut[i + n] = true;
        i += MAX(n, (size_t)1);
    }
}

static void pass_cjk(const struct character *s, size_t from, size_t to, bool *cut) {
    for (size_t i = from; i < to;) {
        size_t n = run_of(s, i, to, CHAR_K);
        if (n) cut[i] = cut[i + n] = true;
        i += MAX(n, (size_t)1);
    }
}

static void pass_main(const struct character *s, size_t from, size_t to, bool *cut) {
    for (size_t i = from; i < to;) {
        size_t n = main_rule(s, i, to);
        if (n) cut[i] = cut[i + n] = true;
        i += MAX(n, (size_t)1);
    }
}

static void run_pass(void (*pass)(const struct character *, size_t, size_t, bool *),
                     const struct character *s, size_t n, bool *cut) {
    for (size_t from = 0, to; from < n; from = to) {
        for (to = from + 1; to < n && !cut[to]; to++) continue;
        pass(s, from, to, cut);
    }
}

/* One or more of everything the rule tells apart, inside and outside of kana and CJK. */
static const struct symbol { const char *text; uint32_t cp;
} symbols[] = {
    { "a", 'a' },
    { "Z", 'Z' },
    { "\xc3\xa9", 0xe9 },
    { "\xcc\x81", 0x301 },
    { "1", '1' },
    { "\xc2\xbd", 0xbd },
    { "\xe4\xb8\xad", 0x4e2d },
    { "\xe3\x81\xae", 0x306e },
    { "\xe3\x83\xbb", 0x30fb },
    { "\xe3\x81\x80", 0x3040 },
    { "\xe3\x82\x99", 0x3099 },
    { "\xe3\x82\x9b", 0x309b },
    { "\xe9\xbe\xa6", 0x9fa6 },
    { " ", ' ' },
    { "\n", '\n' },
    { "\r", '\r' },
    { "\t", '\t' },
    { "\xe3\x80\x80", 0x3000 },
    { "!", '!' },
    { "\xe2\x80\x94", 0x2014 },
    { "$", '$' },
    { "\xe2\x80\x8d", 0x200d },
    { "\x01", 1 },
    { "\xff", 0xe000 /* a stray byte: no class either */ },
};

static void check_split(const size_t *symbol, size_t n) {
    struct character s[16] = { { 0 } };
    bool cut[17] = { false };
    uint8_t text[64];
    size_t len = 0, at = 0;
    static struct character known[COUNT_OF(symbols)];
    for (size_t i = 0; i < n; i++) {
        struct character *c = &known[symbol[i]];
        const struct symbol *sym = &symbols[symbol[i]];
        uint8_t ascii = sym->cp < 128 ? (uint8_t)sym->cp : 0;
        if (!c->n_bytes) *c = (struct character){ class_of(sym->cp), (uint8_t)strlen(sym->text), ascii };
        s[i] = *c;
        memcpy(text + len, sym->text, c->n_bytes);
        len += c->n_bytes;
    }
    run_pass(pass_numbers, s, n, cut);
    run_pass(pass_cjk, s, n, cut);
    run_pass(pass_main, s, n, cut);
    const uint8_t *p = text;
    while (p < text + len) {
        const uint8_t *next = tokenizer_split_next(p, text + len);
        size_t piece = 0;
        do piece += s[at++].n_bytes;
        while (at < n && !cut[at]);
        if ((size_t)(next - p) != piece)
            fail_msg("'%.*s': piece of %td bytes, not %zu", (int)len, (char *)text, next - p,
                     piece);
        p = next;
    }
    assert_int_equal(at, n);
}

static void every_short_text_splits_as_the_three_passes_do(void **state) {
    (void)state;
    tokenizer_split_init();
    for (size_t n = 1; n <= 4; n++) {
        size_t symbol[4] = { 0 }, i = 0;
        while (i < n) {
            check_split(symbol, n);
            for (i = 0; i < n && ++symbol[i] == COUNT_OF(symbols); i++) symbol[i] = 0;
        }
    }
}

static void random_texts_split_as_the_three_passes_do(void **state) {
    (void)state;
    struct rng r;
    rng_init(&r, 7, 0);
    tokenizer_split_init();
    for (int run = 0; run < 200000; run++) {
        size_t symbol[16], n = 5 + rng_below(&r, 12);
        for (size_t i = 0; i < n; i++) symbol[i] = rng_below(&r, COUNT_OF(symbols));
        check_split(symbol, n);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        TEST(pieces_are_those_of_the_worked_examples),
        TEST(every_short_text_splits_as_the_three_passes_do),
        TEST(random_texts_split_as_the_three_passes_do),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
