/* grammar_regex - the patterns of JSON Schema that describe regular languages, as part of a grammar.
 *
 * Characters, ., classes, \d \w \s and their opposites, \xHH \uHHHH, groups, |, * + ? {n,m} (lazy or not:
 * the texts are the same), ^ and $ at the ends of a whole alternative. What looks around, refers back or
 * asks for word boundaries is ERR_INVALID. A pattern without ^ or $ may be surrounded by any text, as
 * the standard says. Limits: groups 32 deep, 256 ranges in a class, counts up to 10000. */
#ifndef COORDINATOR_GRAMMAR_REGEX_H
#define COORDINATOR_GRAMMAR_REGEX_H

#include "coordinator/grammar_text.h"

/* The node behind a text that the pattern fits, in the given spelling and without quotes. 0: *e says why. */
uint32_t grammar_then_pattern(struct grammar *g, uint32_t from, struct chat_text pattern,
                              enum grammar_spelling spelling, struct err *e);

#endif
