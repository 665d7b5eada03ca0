/* grammar_calls - tool calls in the model's markup, as part of a grammar.
 *
 * A block is written just as the model was trained to write it. Arguments come in the order of the tool's
 * schema, strings as they are between the tags, everything else as JSON. The markup's own words are
 * GRAMMAR_SYNTAX; names and values are not. */
#ifndef COORDINATOR_GRAMMAR_CALLS_H
#define COORDINATOR_GRAMMAR_CALLS_H

#include "coordinator/grammar.h"
#include "coordinator/guide.h"

/* A block of calls of these tools, from its opening tag to its closing tag. 0: *e says why (the schema of
 * a strict tool). */
uint32_t grammar_then_calls(struct grammar *g, uint32_t from, const struct guide_tool *tools, size_t n_tools,
                            bool one_call, struct err *e);

/* What follows the opening tag, for all names and arguments: to know what is being written, not to hold
 * anybody to it. */
uint32_t grammar_then_any_calls(struct grammar *g, uint32_t from);

/* What follows the opening tag, for these tools. */
uint32_t grammar_then_calls_of(struct grammar *g, uint32_t from, const struct guide_tool *tools,
                               size_t n_tools, bool one_call, struct err *e);

#endif
