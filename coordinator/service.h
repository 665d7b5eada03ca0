/* service - the coordinator as endpoints see it: tokens in, tokens out, from any thread.
 *
 * One loop thread owns the core and the links; the calls below hand work to it and never wait for it
 * (service_status alone may wait, a tenth of a second at most). What comes back is told to a listener on
 * that loop thread, which must not block: it copies into a ring of its own and wakes its owner. After
 * on_done nothing more is told, and every accepted request gets exactly one on_done, also when the
 * service stops. Replays after a lost machine are invisible here: no token is told twice.
 *
 * The stage in this process runs on threads of its own and is reached over inproc:// like any other. The
 * coordinator knows nothing of its code, so whoever starts a service with local_stage says how a stage is
 * started: `.local = &local_stage` (cli/local.h). */
#ifndef COORDINATOR_SERVICE_H
#define COORDINATOR_SERVICE_H

#include "common/base/buf.h"
#include "common/base/pool.h"
#include "common/model/hparams.h"
#include "common/model/sampler.h"
#include "common/model/tokenizer.h"
#include "common/wire/msg.h"

struct service;

enum service_state { SERVICE_LOADING, SERVICE_SERVING, SERVICE_DRAINING, SERVICE_STATES };

/* ---- a request ---- */

struct service_token {
    int32_t id;
    uint32_t index;                               /* 0 for the first new one; of_prompt: in the prompt */
    bool of_prompt;                               /* with score_prompt: told before the first new one */
    double logprob;                               /* with sampling.logprobs, else 0 */
    int n_top;
    struct sampler_logprob top[SAMPLER_TOP_MAX];
};

enum service_end {
    SERVICE_END_STOP,                             /* an end id (told as a token first), or the guide's word */
    SERVICE_END_LENGTH,                           /* n_new_max, or the context is full */
    SERVICE_END_CANCELLED,
    SERVICE_END_ERROR                             /* code and text say why */
};

struct service_done {
    enum service_end end;
    int code;
    char text[128];
    uint32_t n_prompt, n_cached, n_output;        /* n_cached: of the prompt, not computed again */
    uint64_t queue_us, prefill_us, decode_us;
};

struct service_listener {
    void (*on_token)(void *ctx, const struct service_token *t);
    void (*on_progress)(void *ctx, uint32_t n_done, uint32_t n_prompt);          /* prefill; may be NULL */
    void (*on_done)(void *ctx, const struct service_done *d);
    void *ctx;
};

/* Steers what is chosen: a grammar, a forced syntax. Used on the loop thread only, by one request. */
struct service_steer {
    bool greedy;                                  /* this token without chance */
    const uint64_t *allowed;                      /* one bit per token id; NULL: all; valid until accept */
};
struct service_guide {                            /* first member of the real thing */
    void (*next)(struct service_guide *g, struct service_steer *out);
    bool (*accept)(struct service_guide *g, int32_t id);  /* true: the answer is complete */
    void (*free)(struct service_guide *g);
};

struct service_request {
    const int32_t *token;                         /* the prompt, copied */
    uint32_t n_token, n_new_max;                  /* n_new_max 0: as many as the context holds */
    struct sampler_params sampling;               /* its bias is copied */
    const int32_t *end_id;                        /* tokens that end the answer, copied */
    uint32_t n_end_id;
    struct service_guide *take_guide;             /* ours also when the call fails; may be NULL */
    bool score_prompt;                            /* tokens of the prompt but the first are told, too, with
                                                   * their log-probability and sampling.n_top alternatives */
    uint32_t deadline_ms;                         /* from now to the last token; 0: none */
    struct service_listener listener;
};

/* ERR_BUSY: queue full. ERR_LIMIT: longer than the context. ERR_STALE: loading or draining. ERR_INVALID. */
int service_submit(struct service *s, const struct service_request *r, uint64_t *ticket, struct err *e);
void service_cancel(struct service *s, uint64_t ticket);       /* on_done still comes; late is fine */

/* ---- what it is ---- */

struct service_info {
    enum service_state state;
    char why[96];                                 /* not serving: what it waits for */
    char model[64];                               /* file's name for people: general.name, or the file's */
    uint32_t n_ctx, n_vocab, n_slot, n_queued, n_active, n_node;
    int64_t created_s;                            /* when the service started, Unix time */
};
void service_info(struct service *s, struct service_info *out);
const struct tokenizer *service_tokenizer(const struct service *s);
/* metadata of the model; for the encoding's guess */
const struct gguf *service_gguf(const struct service *s);

/* Appends the status document (nodes, stages, links, memory, tokens/s, where time goes) as one JSON object;
 * its members are written down at the top of service_status.c. */
int service_status(struct service *s, struct buf *out, struct err *e);

struct service_totals {                           /* since the start */
    uint64_t n_request, n_done, n_failed, n_cancelled;
    uint64_t n_prompt_token, n_cached_token, n_output_token;
    uint64_t wall_us, wait_us, queue_us, compute_us, hold_us, wire_us, sample_us;      /* of decode tokens */
    uint64_t stage_compute_us[MSG_STAGES_MAX];    /* of all batches; zero from the number of stages on */
    /* Sequences that are kept for prompts that begin like them: now, and how many had to make room. */
    uint64_t n_kept, kept_tokens, kept_bytes, n_given_up;
};
void service_totals(struct service *s, struct service_totals *out);

/* ---- its life ---- */

struct net;
struct stage_factory;

struct service_local_config {                     /* all borrowed for the call, but net and stage */
    struct net *net;
    const char *join;                             /* inproc:// address of the coordinator's door */
    const char *bind;                             /* for other stages; NULL: there are none */
    const char *key_path;                         /* of that door; NULL: not encrypted */
    const char *name, *model_path, *backend;
    uint64_t memory_bytes;                        /* 0: measured */
    uint32_t n_threads;
    const struct stage_factory *stage;
};
struct service_local {
    int (*start)(void **node, const struct service_local_config *config, struct err *e);
    void (*stop)(void *node);
};

struct service_header {                           /* of a model that is on nodes only */
    struct buf bytes;
    uint64_t file_bytes;                          /* of the whole model as one file */
    char name[64], bind[300];                     /* the model's; where the door was, with its port */
};

struct service_config {
    const char *model_path;                       /* for its tokenizer, dimensions and sizes of layers */
    const struct service_header *header;          /* or from here; outlives the service */
    bool local_stage;                             /* this process computes too */
    const struct service_local *local;            /* how, see above */
    const char *local_name;                       /* of that stage in plans; NULL: "local" */
    uint64_t local_memory_bytes;                  /* 0: measured */
    const char *bind;                             /* tcp://HOST:PORT for nodes; NULL: no cluster */
    const char *key_path;                         /* cluster key file; NULL with a bind needs `insecure` */
    bool insecure;
    bool keeps_weights;                           /* nodes get none from here, only from one another */
    const char *stages;                           /* "a=0-20,b=21-42"; NULL: the planner */
    uint32_t n_node_expected;                     /* 0: settle time */
    uint32_t n_slot, n_ctx, n_queue_max, n_rows_max;           /* 0: defaults */
    uint32_t bound_ms;
    int numerics;                                 /* enum numerics */
    const char *backend, *precision;              /* of the local stage; NULL: defaults */
    uint32_t n_threads;
    const char *wire;                             /* "f32" or "f16s" */
    const char *objective;                        /* "latency" or "throughput"; NULL: latency */
    const struct stage_factory *stage;            /* tests: another stage; NULL: the real model */
};

/* For a coordinator without the model: waits at config->bind for a node that has it and takes the header from
 * there. Blocks, for ever if nobody comes; before service_start, which then gets the header and its bind. */
int service_header_fetch(struct service_header *out, const struct service_config *config, struct err *e);

/* Comes back at once; serving begins when the stages are ready (service_info). */
int service_start(struct service **out, const struct service_config *config, struct err *e);
const char *service_node_address(const struct service *s);  /* where nodes join, with the port; "" without */
void service_drain(struct service *s);            /* no new requests; those that run go on */
bool service_idle(struct service *s);             /* nothing runs or waits */
void service_stop(struct service *s);      /* ends what is left with a typed error, frees all; NULL is fine */

#endif
