/* grammar_text - see the header. Text up to a tag is the usual automaton for finding a word: node k means
 * that the last k bytes were the first k of the tag. Since the tag has its first byte only once, a byte
 * that does not go on leads to node 1 (if it is that byte) or to node 0, as if nothing had been. */
#include "coordinator/grammar_text.h"

#include "common/base/check.h"
#include "common/base/utf8.h"
#include "common/model/chat_format.h"

enum { BAR = 0xff5c, UNICODE_LAST = 0x10ffff, DIGITS_MAX = 15, INDENT_MAX = 32, TAG_MAX = 64 };

/* ---- characters ---- */

/* Both ends have the same number of bytes, and all bytes but the first that differs are full ranges. */
static void add_sequence(struct grammar *g, uint32_t from, uint32_t lo, uint32_t hi, uint32_t to) {
    char a[UTF8_MAX], b[UTF8_MAX];
    unsigned n = utf8_encode(lo, a);
    utf8_encode(hi, b);
    for (unsigned i = 0; i < n; i++) {
        uint32_t next = i + 1 == n ? to : grammar_node(g);
        grammar_bytes(g, from, (uint8_t)a[i], (uint8_t)b[i], next);
        from = next;
    }
}

void grammar_chars(struct grammar *g, uint32_t from, uint32_t lo, uint32_t hi, uint32_t to) {
    static const uint32_t last[] = { 0x7f, 0x7ff, 0xd7ff, 0xdfff, 0xffff };
    if (lo > hi || g->rc < 0) return;
    for (size_t i = 0; i < COUNT_OF(last); i++) {
        if (lo > last[i] || hi <= last[i]) continue;
        grammar_chars(g, from, lo, last[i], to);
        grammar_chars(g, from, last[i] + 1, hi, to);
        return;
    }
    if (lo >= 0xd800 && hi <= 0xdfff) return;
    for (int bits = 6; bits <= 18 && hi >= 0x80; bits += 6) {
        uint32_t low = (1u << bits) - 1, cut = UINT32_MAX;
        if ((lo & ~low) == (hi & ~low)) continue;
        if (lo & low) cut = lo | low;
        else if ((hi & low) != low) cut = (hi & ~low) - 1;
        if (cut == UINT32_MAX) continue;
        grammar_chars(g, from, lo, cut, to);
        grammar_chars(g, from, cut + 1, hi, to);
        return;
    }
    add_sequence(g, from, lo, hi, to);
}

/* lo..hi without one character. */
static void chars_but(struct grammar *g, uint32_t from, uint32_t lo, uint32_t hi, uint32_t out, uint32_t to) {
    if (out < lo || out > hi) {
        grammar_chars(g, from, lo, hi, to);
        return;
    }
    if (out > lo) grammar_chars(g, from, lo, out - 1, to);
    grammar_chars(g, from, out + 1, hi, to);
}

static void spell_escaped(struct grammar *g, uint32_t from, uint32_t c, uint32_t to) {
    static const char escapes[] = "\"\"\\\\\bb\ff\nn\rr\tt";
    char text[8];
    snprintf(text, sizeof text, "\\u%04x", c);
    for (size_t i = 0; escapes[i]; i += 2)
        if ((uint8_t)escapes[i] == c) snprintf(text, sizeof text, "\\%c", escapes[i + 1]);
    grammar_empty(g, grammar_then_word(g, from, text), to);
}

void grammar_spelled(struct grammar *g, uint32_t from, uint32_t lo, uint32_t hi,
                     enum grammar_spelling spelling, uint32_t to) {
    lo = MAX(lo, 1u);                             /* U+0000: many readers refuse it */
    if (spelling == GRAMMAR_RAW) {
        chars_but(g, from, lo, hi, BAR, to);
        return;
    }
    while (lo <= hi && lo <= '\\') {              /* in pieces between what has to be escaped */
        uint32_t last = lo < 0x20 || lo == '"' || lo == '\\' ? lo : lo < '"' ? '"' - 1u : '\\' - 1u;
        last = MIN(last, hi);
        if (lo < 0x20 || lo == '"' || lo == '\\') spell_escaped(g, from, lo, to);
        else grammar_chars(g, from, lo, last, to);
        lo = last + 1;
    }
    if (lo <= hi) chars_but(g, from, lo, hi, g->no_bar ? BAR : UINT32_MAX, to);
}

static void hex(struct grammar *g, uint32_t from, int lo, int hi, uint32_t to) {
    grammar_bytes(g, from, '0' + lo, MIN('0' + hi, '9'), to);
    if (hi < 10) return;
    grammar_bytes(g, from, 'a' + MAX(lo - 10, 0), 'a' + hi - 10, to);
    grammar_bytes(g, from, 'A' + MAX(lo - 10, 0), 'A' + hi - 10, to);
}

static void hexes(struct grammar *g, uint32_t from, int n, uint32_t to) {
    for (; n > 0; n--) {
        uint32_t next = n == 1 ? to : grammar_node(g);
        hex(g, from, 0, 15, next);
        from = next;
    }
}

/* Behind "\u": anything but U+0000 and half a pair. */
static void add_unicode_escape(struct grammar *g, uint32_t from, uint32_t to) {
    uint32_t zero = grammar_node(g), zero2 = grammar_node(g), zero3 = grammar_node(g),
             rest3 = grammar_node(g), rest2 = grammar_node(g), d = grammar_node(g),
             first = grammar_node(g), second = grammar_node(g);
    hex(g, from, 0, 0, zero);
    hex(g, zero, 0, 0, zero2);
    hex(g, zero, 1, 15, rest2);
    hex(g, zero2, 0, 0, zero3);
    uint32_t last = grammar_node(g);
    hex(g, zero2, 1, 15, last);
    hexes(g, last, 1, to);
    hex(g, zero3, 1, 15, to);
    hexes(g, rest2, 2, to);
    hex(g, from, 1, 12, rest3);
    hex(g, from, 14, 15, rest3);
    hexes(g, rest3, 3, to);
    hex(g, from, 13, 13, d);
    hex(g, d, 0, 7, rest2);
    hex(g, d, 8, 11, first);                      /* the first half: the second must follow */
    hexes(g, first, 2, second);
    second = grammar_then_word(g, second, "\\u");
    uint32_t low = grammar_node(g), low2 = grammar_node(g);
    hex(g, second, 13, 13, low);
    hex(g, low, 12, 15, low2);
    hexes(g, low2, 2, to);
}

static uint32_t new_rule(struct grammar *g, uint32_t *end) {
    uint32_t start = grammar_node(g);
    *end = grammar_node(g);
    grammar_end(g, *end);
    return start;
}

uint32_t grammar_rule_char(struct grammar *g, enum grammar_spelling spelling) {
    uint32_t *rule = spelling == GRAMMAR_RAW ? &g->rule_raw_char : &g->rule_char, end;
    if (*rule) return *rule;
    *rule = new_rule(g, &end);
    grammar_mark(g, *rule, GRAMMAR_CHAR);
    if (spelling == GRAMMAR_RAW) {
        grammar_spelled(g, *rule, 0, UNICODE_LAST, GRAMMAR_RAW, end);
        return *rule;
    }
    grammar_chars(g, *rule, 0x20, '"' - 1, end);
    grammar_chars(g, *rule, '"' + 1, '\\' - 1, end);
    chars_but(g, *rule, '\\' + 1, UNICODE_LAST, g->no_bar ? BAR : UINT32_MAX, end);
    uint32_t escape = grammar_then_word(g, *rule, "\\"), unicode = grammar_then_word(g, escape, "u");
    for (const char *c = "\"\\/bfnrt"; *c; c++) grammar_bytes(g, escape, *c, *c, end);
    add_unicode_escape(g, unicode, end);
    return *rule;
}

/* ---- JSON ---- */

uint32_t grammar_rule_ws(struct grammar *g) {
    uint32_t end, blank_end;
    if (g->rule_ws) return g->rule_ws;
    g->rule_ws = new_rule(g, &end);
    grammar_end(g, g->rule_ws);
    uint32_t blank = new_rule(g, &blank_end), line = grammar_then_word(g, g->rule_ws, "\n");
    grammar_bytes(g, blank, ' ', ' ', blank_end);
    grammar_bytes(g, blank, '\t', '\t', blank_end);
    grammar_bytes(g, g->rule_ws, ' ', ' ', end);
    grammar_call(g, line, blank, 0, INDENT_MAX, end);
    return g->rule_ws;
}

uint32_t grammar_rule_digit(struct grammar *g) {
    if (g->rule_digit) return g->rule_digit;
    uint32_t end;
    g->rule_digit = new_rule(g, &end);
    grammar_bytes(g, g->rule_digit, '0', '9', end);
    return g->rule_digit;
}

uint32_t grammar_then_string(struct grammar *g, uint32_t from, int32_t min, int32_t max) {
    from = grammar_then_word(g, from, "\"");
    from = grammar_then_call(g, from, grammar_rule_char(g, GRAMMAR_IN_JSON), min, max);
    return grammar_then_word(g, from, "\"");
}

uint32_t grammar_then_number(struct grammar *g, uint32_t from, bool integer) {
    uint32_t digit = grammar_rule_digit(g), sign = grammar_then_word(g, from, "-"), whole = grammar_node(g),
             more = grammar_node(g), end = grammar_node(g);
    grammar_empty(g, from, whole);
    grammar_empty(g, sign, whole);
    uint32_t behind = grammar_then_word(g, whole, "0");
    grammar_bytes(g, whole, '1', '9', more);
    grammar_call(g, more, digit, 0, DIGITS_MAX - 1, behind);
    grammar_empty(g, behind, end);
    if (integer) return end;
    uint32_t fraction = grammar_then_word(g, behind, "."), exponent = grammar_node(g),
             power = grammar_node(g);
    fraction = grammar_then_call(g, fraction, digit, 1, DIGITS_MAX);
    grammar_empty(g, fraction, end);
    grammar_empty(g, fraction, exponent);
    grammar_empty(g, behind, exponent);
    uint32_t e = grammar_node(g);
    grammar_bytes(g, exponent, 'e', 'e', e);
    grammar_bytes(g, exponent, 'E', 'E', e);
    grammar_empty(g, e, power);
    grammar_bytes(g, e, '+', '+', power);
    grammar_bytes(g, e, '-', '-', power);
    grammar_call(g, power, digit, 1, 2, end);
    return end;
}

/* from, then items of a rule with commas between them, then to. */
static uint32_t then_list(struct grammar *g, uint32_t from, const char *open, uint32_t item,
                          const char *close) {
    uint32_t next_end, next = new_rule(g, &next_end), behind = grammar_node(g);
    uint32_t comma = grammar_then_call(g, grammar_then_word(g, next, ","), grammar_rule_ws(g), 1, 1);
    grammar_call(g, comma, item, 1, 1, next_end);
    from = grammar_then_call(g, grammar_then_word(g, from, open), grammar_rule_ws(g), 1, 1);
    grammar_empty(g, grammar_then_word(g, from, close), behind);
    uint32_t items = grammar_then_call(g, from, item, 1, 1);
    items = grammar_then_call(g, items, next, 0, GRAMMAR_MANY);
    items = grammar_then_call(g, items, grammar_rule_ws(g), 1, 1);
    grammar_empty(g, grammar_then_word(g, items, close), behind);
    return behind;
}

uint32_t grammar_rule_object(struct grammar *g) {
    uint32_t end, pair_end;
    if (g->rule_object) return g->rule_object;
    g->rule_object = new_rule(g, &end);
    uint32_t pair = new_rule(g, &pair_end), at = grammar_then_string(g, pair, 0, GRAMMAR_MANY);
    at = grammar_then_call(g, grammar_then_word(g, at, ":"), grammar_rule_ws(g), 1, 1);
    grammar_call(g, at, grammar_rule_value(g), 1, 1, pair_end);
    grammar_empty(g, then_list(g, g->rule_object, "{", pair, "}"), end);
    return g->rule_object;
}

uint32_t grammar_then_array(struct grammar *g, uint32_t from) {
    return then_list(g, from, "[", grammar_rule_value(g), "]");
}

uint32_t grammar_rule_value(struct grammar *g) {
    static const char *const words[] = { "null", "true", "false" };
    uint32_t end;
    if (g->rule_value) return g->rule_value;
    g->rule_value = new_rule(g, &end);
    uint32_t start = g->rule_value;
    for (size_t i = 0; i < COUNT_OF(words); i++) grammar_empty(g, grammar_then_word(g, start, words[i]), end);
    grammar_empty(g, grammar_then_string(g, start, 0, GRAMMAR_MANY), end);
    grammar_empty(g, grammar_then_number(g, start, false), end);
    grammar_empty(g, grammar_then_array(g, start), end);
    grammar_call(g, start, grammar_rule_object(g), 1, 1, end);
    return start;
}

/* ---- text up to a tag ---- */

static bool continues(char c) {
    return ((uint8_t)c & 0xc0) == 0x80;
}

/* Inside a character of the tag: another continuation makes it another character. */
static void until_inside(struct grammar *g, const char *tag, size_t k, const uint32_t *node) {
    uint8_t byte = (uint8_t)tag[k];
    uint32_t other = node[0];
    for (size_t i = k + 1; continues(tag[i]); i++) {
        uint32_t before = grammar_node(g);
        grammar_bytes(g, before, 0x80, 0xbf, other);
        other = before;
    }
    grammar_bytes(g, node[k], byte, byte, node[k + 1]);
    grammar_bytes(g, node[k], 0x80, byte - 1, other);
    grammar_bytes(g, node[k], byte + 1, 0xbf, other);
}

/* Between characters. The tag's bytes above ASCII are those of the mark, whose first is 0xef. */
static void until_between(struct grammar *g, const char *tag, size_t k, bool loose, const uint32_t *node) {
    uint8_t byte = (uint8_t)tag[k];
    int last = loose ? 0xff : 0x7f;
    for (int c = loose ? 0 : 1; c <= last; c++) {
        int to = c;                               /* ranges of bytes that mean nothing here */
        while (to + 1 <= last && to + 1 != '<' && to + 1 != byte && c != '<' && c != byte) to++;
        grammar_bytes(g, node[k], c, to, c == byte ? node[k + 1] : c == '<' ? node[1] : node[0]);
        c = to;
    }
    if (loose) return;
    if (byte == 0xef) {
        grammar_bytes(g, node[k], byte, byte, node[k + 1]);
        grammar_chars(g, node[k], 0x80, 0xefff, node[0]);
        grammar_chars(g, node[k], 0x10000, UNICODE_LAST, node[0]);
    } else grammar_chars(g, node[k], 0x80, UNICODE_LAST, node[0]);
}

uint32_t grammar_then_until(struct grammar *g, uint32_t from, const char *tag, bool loose, bool free) {
    uint32_t node[TAG_MAX + 1];
    size_t n = strlen(tag);
    const char *mark = strstr(tag, CHAT_DSML);
    bool thinks = strcmp(tag, CHAT_THINK_END) == 0 && g->has_think_end;
    CHECK(n >= 1 && n <= TAG_MAX && tag[0] == '<');
    for (size_t k = 0; k <= n; k++) {
        node[k] = grammar_node(g);
        if (free && k < n && (!mark || tag + k <= mark)) grammar_mark(g, node[k], GRAMMAR_FREE);
    }
    for (size_t k = 0; k < n; k++) {
        bool inside = continues(tag[k]);
        if (inside && !loose) until_inside(g, tag, k, node);
        else until_between(g, tag, k, loose, node);
        if (thinks && !inside) grammar_bytes(g, node[k], GRAMMAR_THINK_END, GRAMMAR_THINK_END, node[n]);
    }
    if (mark && g->has_mark) {
        size_t k = (size_t)(mark - tag);        /* as its token it can only be meant: no way back into text */
        uint32_t behind = loose ? node[k + strlen(CHAT_DSML)] : grammar_node(g);
        grammar_bytes(g, node[k], GRAMMAR_MARK, GRAMMAR_MARK, behind);
        if (!loose) grammar_empty(g, grammar_then_word(g, behind, mark + strlen(CHAT_DSML)), node[n]);
    }
    grammar_mark(g, node[0], GRAMMAR_TEXT);
    grammar_empty(g, from, node[0]);
    return node[n];
}
