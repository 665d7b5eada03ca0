/* tokenizer_split - cuts text into the pieces that byte-pair encoding works on, after the
 * DeepSeek V3/V4 rule ("joyai-llm", "deepseek-v3").
 *
 * The rule is published as three regular expressions, applied one after the other. This is a
 * hand-written matcher of all three in one pass, not PCRE2: the reference's Unicode version is part
 * of the rule (a regex library brings its own), and this one is linear, whatever the input.
 * Private to the tokenizer and its tests. Pure after tokenizer_split_init, which any thread may
 * call any number of times. */
#ifndef MODEL_TOKENIZER_SPLIT_H
#define MODEL_TOKENIZER_SPLIT_H

#include "common/base/types.h"

/* What the rule asks of a code point, one bit each; no bit: controls, format characters, private
 * use, unassigned, and every byte that belongs to no well-formed UTF-8 sequence. */
enum char_class {
    CHAR_L = 1,                                       /* letters */
    CHAR_M = 2,                                       /* marks */
    CHAR_N = 4,                                       /* numbers */
    CHAR_P = 8,                                       /* punctuation */
    CHAR_S = 16,                                      /* symbols */
    CHAR_W = 32,                                      /* white space, line breaks included */
    CHAR_NL = 64,                                     /* carriage return and line feed, also W */
    CHAR_K = 128,                                     /* kana and CJK of pass 2, besides their class */
};

enum { TOKENIZER_UNICODE_CLASSES = 6 };

struct unicode_range { uint32_t first, last; };
struct unicode_class {
    enum char_class bit;
    uint32_t n;
    const struct unicode_range *range;
};
extern const struct unicode_class tokenizer_unicode[TOKENIZER_UNICODE_CLASSES];

void tokenizer_split_init(void);

/* End of the piece that starts at p; p < end, and p is the start of the text or the end of a piece.
 * `end` counts as the end of the text for every rule that looks ahead. */
const uint8_t *tokenizer_split_next(const uint8_t *p, const uint8_t *end);

#endif
