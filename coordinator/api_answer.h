/* api_answer - one choice while it is generated: tokens in, deltas and log-probabilities out.
 *
 * Bytes of tokens go through a UTF-8 stream into the tolerant parser (dsml.h), which gives reasoning,
 * content and calls that are never taken back. A token's log-probability is ready when the text that it
 * completes has come out as content. Belongs to one thread at a time; owns its memory. */
#ifndef COORDINATOR_API_ANSWER_H
#define COORDINATOR_API_ANSWER_H

#include "common/base/utf8.h"
#include "common/model/dsml.h"
#include "coordinator/api_site.h"

enum { API_ANSWER_BYTES_MAX = 64 << 20 };         /* of text that is remembered for calls */

struct api_logprob {
    struct service_token token;
    size_t end;                                   /* in all content, behind its text */
};

struct api_answer {
    const struct api_site *site;
    struct dsml_stream *dsml;
    struct utf8_stream utf8;
    struct buf text;                              /* all that was fed, if calls are to be remembered */
    bool keep_text, in_reasoning, raw, ending, ended, cut;
    uint32_t n_tokens, n_reasoning;
    struct api_logprob *logprob;                  /* [first..n) wait for their text */
    size_t n_logprob, first_logprob, room_logprob;
    bool logprobs, flush;
    size_t content_in, content_out;               /* bytes */
};

struct api_answer_options {
    struct dsml_options dsml;
    bool raw;                                   /* a completion: special tokens are text, nothing is parsed */
    bool logprobs, keep_text;
};

int api_answer_open(struct api_answer *a, const struct api_site *site, const struct api_answer_options *o,
                    struct err *e);
void api_answer_close(struct api_answer *a);      /* a zeroed struct is fine */

/* 0 or an error that sticks; then take the deltas. `cut`: a limit ended it, not the model. */
int api_answer_token(struct api_answer *a, const struct service_token *t);
int api_answer_end(struct api_answer *a, bool cut);
bool api_answer_next(struct api_answer *a, struct dsml_delta *d);
bool api_answer_complete(const struct api_answer *a);                /* nothing more will come of it */

/* The next token whose text is out, with where its text begins; NULL: none. Good until the next token. */
const struct service_token *api_answer_logprob(struct api_answer *a, size_t *at);

/* The block of calls as it was written; empty without. */
struct chat_text api_answer_block(const struct api_answer *a);

/* A token as text of people: bytes that are no characters are replaced. */
void api_token_put_text(const struct api_site *site, int32_t id, struct buf *out);
/* {"token","logprob","bytes","top_logprobs":[...]} of the chat and responses APIs. */
void api_token_put_logprob(const struct api_site *site, const struct service_token *t, struct buf *out);

#endif
