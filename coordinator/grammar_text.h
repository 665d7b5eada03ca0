/* grammar_text - characters, strings and JSON without a schema, as parts of a grammar.
 *
 * Functions named rule_ build a shared rule on first use and give its start; then_ builds from a node and
 * gives the node behind. Text is valid UTF-8 always. JSON comes without white space, with single blanks,
 * or with line breaks and up to 32 blanks of indentation: enough for any style, not enough to go on for
 * ever. Numbers have at most 15 digits on each side of the point and two in the exponent, so that every
 * reader finds a finite double. */
#ifndef COORDINATOR_GRAMMAR_TEXT_H
#define COORDINATOR_GRAMMAR_TEXT_H

#include "coordinator/grammar.h"

enum grammar_spelling {
    GRAMMAR_IN_JSON,                              /* inside a JSON string: escapes where it needs them */
    GRAMMAR_RAW                                   /* as it is, between the tags of a parameter */
};

/* All characters lo..hi (code points; surrogates are none) as UTF-8. */
void grammar_chars(struct grammar *g, uint32_t from, uint32_t lo, uint32_t hi, uint32_t to);
/* The same in a spelling: what it cannot hold as it is gets its escape, or no way at all. */
void grammar_spelled(struct grammar *g, uint32_t from, uint32_t lo, uint32_t hi,
                     enum grammar_spelling spelling, uint32_t to);

uint32_t grammar_rule_char(struct grammar *g, enum grammar_spelling spelling);        /* any one */
uint32_t grammar_rule_ws(struct grammar *g);
uint32_t grammar_rule_value(struct grammar *g);   /* any JSON value */
uint32_t grammar_rule_object(struct grammar *g);
uint32_t grammar_rule_digit(struct grammar *g);

uint32_t grammar_then_string(struct grammar *g, uint32_t from, int32_t min, int32_t max); /* with quotes */
uint32_t grammar_then_number(struct grammar *g, uint32_t from, bool integer);
uint32_t grammar_then_array(struct grammar *g, uint32_t from);        /* of any values */

/* Text up to the first time `tag` comes, and the tag. The tag has '<' as its first character only; a
 * symbol of the grammar may stand for the mark in it, or (when the tag is </think>) for all of it.
 * loose: any bytes, not just characters. free: nodes before the mark are GRAMMAR_FREE. */
uint32_t grammar_then_until(struct grammar *g, uint32_t from, const char *tag, bool loose, bool free);

#endif
