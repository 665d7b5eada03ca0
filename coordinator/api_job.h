/* api_job - one request to an endpoint, from its body to the bytes of its answer; no socket, no clock.
 *
 *     body -> api_job_prepare -> [ ready: answered at once ]
 *                             -> choices to be generated -> open -> token* / progress* / alive* -> done
 *                                                                     each appends to job->out
 * Preparing (parsing, rendering, tokenizing) may be long and runs on any thread; afterwards the job
 * belongs to one thread. Whoever owns it submits the choices, tells what comes back and sends job->out.
 * The dialects differ in a table of functions that write; what is written never has to be taken back. */
#ifndef COORDINATOR_API_JOB_H
#define COORDINATOR_API_JOB_H

#include "common/base/rng.h"
#include "coordinator/api_answer.h"
#include "coordinator/api_params.h"

enum {
    API_ID_MAX = 48,
    API_JOB_CHOICES_MAX = 128,                    /* prompts of a completion, times n */
    API_JOB_PROMPTS_MAX = 64,
    API_OUT_BYTES_MAX = 256 << 20,
    API_JOB_BYTES_MAX = 64 << 20                  /* of the arena: names, stop strings, echoes */
};

/* What is written whole at the end, or with the next piece of a stream: JSON, without the brackets. */
enum api_list { LIST_TOKEN, LIST_LOGPROB, LIST_TOP, LIST_OFFSET, LIST_ID, LIST_DETAIL, API_LISTS };
struct api_lists { struct buf of[API_LISTS]; };

struct api_prompt {
    struct token_buf tokens;
    bool in_reasoning;
    struct chat_text echo;                        /* completions: its text */
    bool silent_first;                            /* the first token is ours, and no part of that text */
    struct api_lists lists;                       /* of its tokens, for those who want them back */
    uint32_t n_listed;                            /* tokens in there */
    size_t text_at;                               /* characters of the echo before the next one */
};

struct api_job_call {
    char id[API_ID_MAX];
    const struct api_tool *tool;                  /* as the client knows it; NULL: nobody offered it */
};

struct api_choice {
    uint32_t index, prompt_i;
    struct api_answer answer;
    struct service_guide *guide;                  /* to be taken when it is submitted */
    uint64_t seed;
    struct dsml_message whole;                    /* when the answer is not streamed */
    struct api_job_call *call;
    size_t n_calls;
    struct api_lists lists;                       /* of the tokens of the answer */
    bool begun, over;                             /* over: on_done was told */
    bool wants_end;                               /* nothing more will come of it: cancel */
    bool thinking_open;                           /* inline thinking: its tag was written */
    struct service_done done;
    enum dsml_finish finish;
    size_t text_at;                               /* completions: offset of the next token in the answer */
};

struct api_job;

struct api_dialect {
    void (*open)(struct api_job *j);              /* a stream begins; may be NULL */
    void (*alive)(struct api_job *j);             /* nothing came for a while */
    void (*delta)(struct api_job *j, struct api_choice *c, const struct dsml_delta *d);
    /* The next token of the prompt, where it was asked about; may be NULL. */
    void (*score)(struct api_job *j, struct api_choice *c, const struct service_token *t);
    void (*end_choice)(struct api_job *j, struct api_choice *c);
    void (*end)(struct api_job *j);               /* the last event, or the whole answer */
    void (*fail)(struct api_job *j);              /* j->fault, in a stream that has begun */
};

struct api_job {
    const struct api_site *site;
    enum api_endpoint endpoint;
    const struct api_dialect *dialect;
    struct api_params params;
    struct arena arena;
    struct api_prompt *prompt;
    size_t n_prompt;
    struct api_choice *choice;
    uint32_t n_choice, n_over;
    struct api_tool *tools;
    size_t n_tools;
    struct rng rng;                               /* of ids */
    char id[API_ID_MAX], request_id[API_ID_MAX];
    int64_t created_s;
    struct chat_text model;                       /* what the answer calls it */
    struct chat_text echo;                        /* responses: the members that repeat the request */
    void *own;                                    /* the dialect's, in the arena */
    struct buf own_buf[2];                        /* the dialect's */

    bool ready;                                   /* out is the whole answer, nothing is generated */
    bool opened, finished;                        /* finished: out is complete, or fault is set */
    bool failed;
    struct api_error fault;
    uint32_t n_progress, n_progress_of;           /* prompt tokens computed */
    uint32_t n_cached;
    struct buf out;
};

struct api_job_input {
    enum api_endpoint endpoint;
    struct chat_text body;                        /* borrowed for the call */
    const char *request_id;
    uint64_t random;
    int64_t now_s;
};

/* NULL and *fault when the request cannot be served. */
struct api_job *api_job_prepare(const struct api_site *site, const struct api_job_input *in,
                                struct api_error *fault);
void api_job_free(struct api_job *j);             /* NULL is fine */

/* What to submit for choice i; the listener and deadline are the caller's. take_guide changes owner. */
void api_job_request(struct api_job *j, uint32_t i, struct service_request *out);
/* Whether it may be submitted: not while it has to wait for what another one learns of their prompt. */
bool api_job_may_begin(const struct api_job *j, uint32_t i);

void api_job_open(struct api_job *j);             /* of a stream, once all is admitted */
void api_job_alive(struct api_job *j);
void api_job_progress(struct api_job *j, uint32_t n_done, uint32_t n_prompt);
void api_job_token(struct api_job *j, uint32_t i, const struct service_token *t);
void api_job_done(struct api_job *j, uint32_t i, const struct service_done *d);
void api_job_fail(struct api_job *j, const struct api_error *fault);

/* ---- for the dialects ---- */

extern const struct api_dialect api_dialect_chat, api_dialect_completions, api_dialect_messages,
    api_dialect_responses;

void api_lists_init(struct api_lists *l);
void api_lists_deinit(struct api_lists *l);       /* zeroed is fine */
/* With return_token_ids: a token that was sampled or is of the prompt; a logprob that is NaN is none. */
void api_lists_add_id(const struct api_job *j, struct api_lists *l, const struct service_token *t);
void api_job_new_id(struct api_job *j, const char *prefix, size_t n, char out[API_ID_MAX]);
struct api_usage {
    uint64_t n_prompt, n_cached, n_output, n_reasoning;
};
struct api_usage api_job_usage(const struct api_job *j);             /* so far */

/* Preparation that has a file of its own: api_tokens.c, api_responses.c. */
int api_tokens_answer(struct api_job *j, json_t *root, struct chat_text body, struct api_error *fault);
int api_responses_prepare(struct api_job *j, const struct api_request *r, struct err *e);
int api_messages_prepare(struct api_job *j, struct err *e);
/* Renders and tokenizes a conversation. */
int api_prompt_make(struct api_prompt *p, const struct api_site *site, struct api_request *r, struct err *e);

#endif
