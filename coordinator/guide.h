/* guide - holds the model to what was asked for: a JSON value, a tool call, a tidy protocol.
 *
 * A guide follows the answer token by token and says before each one which tokens may come (service.h,
 * struct service_guide). Whatever it lets through can be completed to a whole answer, so an answer that
 * ends by itself parses and validates; one that is cut by a length limit may be unfinished. Reasoning is
 * left alone: the constraint begins behind </think>, and until then only the end of the answer is
 * forbidden. Where only tools are offered nothing is forbidden; the tags between the values of a call
 * are then chosen without chance, the values themselves with the request's sampling. Reasoning that has
 * used up its tokens is ended, where the vocabulary has a token for that.
 *
 * struct guide_vocab is immutable, made once per tokenizer (which must outlive it) and shared. guide_new
 * may run on any thread; afterwards the guide is used by one thread at a time and owns its memory, at
 * most GUIDE_BYTES_MAX. Limits: the enum below and those of grammar.h. */
#ifndef COORDINATOR_GUIDE_H
#define COORDINATOR_GUIDE_H

#include "common/model/chat_json.h"
#include "coordinator/service.h"

enum { GUIDE_BYTES_MAX = 32 << 20, GUIDE_TOOLS_MAX = 512 };

struct guide_vocab;

int guide_vocab_new(struct guide_vocab **out, const struct tokenizer *t, struct err *e);
void guide_vocab_free(struct guide_vocab *v);     /* NULL is fine; no guide may use it any more */

enum guide_format { GUIDE_TEXT, GUIDE_JSON_OBJECT, GUIDE_JSON_SCHEMA };

enum guide_calls {
    GUIDE_CALLS_NONE,                             /* no tools: markup would be plain text */
    GUIDE_CALLS_FREE,                             /* the model decides whether it calls */
    GUIDE_CALLS_REQUIRED                          /* at least one, and nothing before it */
};

struct guide_tool {
    struct chat_text name;                        /* as the model sees it */
    struct chat_text parameters;                  /* JSON schema of its arguments; empty: anything */
    bool strict;       /* every keyword must be one that can be kept; otherwise as well as it goes */
};

struct guide_options {
    bool in_reasoning;                            /* the prompt ends in <think> */
    enum guide_format format;
    struct chat_text schema;                      /* of GUIDE_JSON_SCHEMA; empty: any value */
    enum guide_calls calls;
    const struct guide_tool *tools;               /* those that may be called: a named one is alone here */
    size_t n_tools;
    bool one_call;
    uint32_t reasoning_max;                       /* after so many tokens </think> comes; 0: when it comes */
};

/* *out is NULL (and 0 returned) when there is nothing to steer. Nothing is borrowed beyond the call but
 * the vocabulary. ERR_INVALID: a schema says what cannot be kept (the text names the keyword and where),
 * contradicts itself or is none; ERR_LIMIT: it is too large; ERR_NOMEM. */
int guide_new(struct service_guide **out, const struct guide_vocab *v, const struct guide_options *o,
              struct err *e);

#endif
