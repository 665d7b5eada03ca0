/* plan - which machine takes which layers: a cost model of machines and links, and an exact search over
 * contiguous splits.
 *
 * Everything here is a pure function of its arguments: no files, no clock, equal input gives an equal
 * plan. The numbers of the cost model are those of the tensors themselves (plan_model_*), of the
 * machines as measured, and of the links between them. What is predicted is what the formulas say, so a
 * test can hold it against a measurement. Limits: PLAN_MACHINES_MAX machines, of which each set is
 * tried when there are at most PLAN_SETS_MAX different ones; beyond that the order given is kept.
 *
 * One layer on one machine, `rows` tokens at once, n tokens already in each cache:
 *
 *   bytes   = dense weights + expert bytes * distinct(rows) + state read for n tokens (once per stream)
 *   distinct(rows) = E (1 - (1 - used/E)^rows)                      experts that somebody picks
 *   seconds = max(bytes / bandwidth, quantised FLOP / int8 rate + other FLOP / f32 rate) + launch
 *
 * One token of one stream is the sum over stages and links. With many streams, G = min(stages, streams)
 * groups of rows = streams / G circulate: tokens/s = rows / max(slowest stage or link, round trip / G).
 *
 * An expert helper holds some experts of all layers of a stage; the lead sends it the rows of each
 * layer and adds what comes back. Helpers of one stage may be of different kinds and hold equally many:
 *
 *   seconds = dense part of the lead + max(experts of the lead, slowest of (round trip + helper))
 *
 * Weights that a machine would have to fetch first count as if their way took part in each of the next
 * PLAN_FETCH_TOKENS tokens: a machine that is a little faster is not worth moving a model. They weigh in
 * the objective, never in the speeds that are reported. */
#ifndef MODEL_PLAN_H
#define MODEL_PLAN_H

#include "common/model/hparams.h"

enum {
    PLAN_MACHINES_MAX = 64, PLAN_NAME_MAX = 64, PLAN_SETS_MAX = 256,
    PLAN_HELPERS_MAX = 3,                              /* of one stage */
    PLAN_FETCH_TOKENS = 20000,                         /* an hour or two of one conversation */
    PLAN_RESULT_BYTES = 4096                  /* what the last stage sends per token: candidates and scores */
};

/* ---- the model, as the planner sees it ---- */

struct plan_layer {
    uint64_t table_bytes;                              /* resident, hardly read: hash routing */
    uint64_t dense_bytes, expert_bytes;                /* read by every batch; of ONE routed expert */
    double dense_int8, dense_f32, expert_int8,
        expert_f32; /* FLOP per token: of quantised matrices, of others */
};

struct plan_model {
    struct hparams hp;
    struct plan_layer layer[HP_LAYERS_MAX];
    uint64_t embed_bytes, head_bytes;
    double head_int8, head_f32;
};

/* From the tensors of a file; every layer needs some. */
int plan_model_read(struct plan_model *out, const struct gguf *g, struct err *e);
/* Without a file: the published types of everything but the routed experts. */
void plan_model_shape(struct plan_model *out, const struct hparams *hp, enum dtype gate_up, enum dtype down);

uint64_t plan_layer_bytes(const struct plan_model *m, uint32_t layer);                  /* resident weights */

/* ---- machines and links ---- */

/* Seconds until these weights are where they would be used: 0 here already, INFINITY never. */
struct plan_absent { double layer[HP_LAYERS_MAX], embed, head; };

struct plan_machine {
    char name[PLAN_NAME_MAX], backend[16];
    uint64_t memory;                                   /* bytes that weights, state and buffers may take */
    double bytes_per_s;                                /* reading memory */
    double int8_per_s,
        f32_per_s; /* operations on quantised matrices (tensor cores where they do it), others */
    double layer_s;                                    /* fixed cost of a layer: launches, synchronisation */
    const struct plan_absent *absent;                  /* NULL: everything is here */
};

struct plan_link { double latency_s, bytes_per_s; };   /* one way */

struct plan_cluster {
    uint32_t n;
    struct plan_machine machine[PLAN_MACHINES_MAX];
    struct plan_link link[PLAN_MACHINES_MAX][PLAN_MACHINES_MAX];
    struct plan_link coordinator[PLAN_MACHINES_MAX];
};

/* All links alike. */
void plan_cluster_links(struct plan_cluster *c, struct plan_link link);

/* ---- what is asked ---- */

enum plan_objective { PLAN_LATENCY, PLAN_THROUGHPUT };
enum plan_helpers { PLAN_HELPERS_AUTO, PLAN_HELPERS_NEVER };

struct plan_options {
    enum plan_objective objective;
    enum plan_helpers helpers;
    uint64_t n_ctx;                                    /* tokens of one stream that must find room */
    uint32_t n_streams;
    uint64_t depth;                       /* tokens in the cache at which speed is predicted; at most n_ctx */
    uint32_t chunk;                                    /* rows of a prefill batch */
    bool ordered;                        /* stages only in the order of the machines (some may be left out) */
};

void plan_options_init(struct plan_options *o);

/* ---- the answer ---- */

enum plan_bound { PLAN_BY_MEMORY, PLAN_BY_COMPUTE };

struct plan_helper { uint32_t machine, expert_begin, expert_end; uint64_t memory; };

struct plan_stage {
    uint32_t machine, layer_begin, layer_end;
    bool embed, head;
    uint32_t expert_begin, expert_end;                 /* of the lead: all, unless helpers hold some */
    uint32_t n_helper;
    struct plan_helper helper[PLAN_HELPERS_MAX];
    /* filled by plan_evaluate */
    uint64_t weights, state, work;                     /* bytes on this machine */
    double token_s, batch_s, chunk_s;         /* one row; `rows` rows; a prefill chunk that ends at `depth` */
    double send_s;                           /* one row to the next stage, or its result to the coordinator */
    double token_bytes, token_flop;                    /* touched for one row */
    enum plan_bound bound;                             /* of most of token_s */
};

struct plan_alternative {                              /* the best plan with so many stages */
    uint32_t n_stage;
    bool fits;
    double tokens_per_s;                               /* in the objective's sense */
};

struct plan {
    struct plan_stage stage[PLAN_MACHINES_MAX];
    uint32_t n_stage;
    double token_s;                                    /* decode, one stream */
    double rows, batch_s;                              /* of a group; slowest stage or link */
    double stream_tokens_per_s, all_tokens_per_s;      /* decode: one stream alone; n_streams together */
    double prefill_tokens_per_s;                       /* `depth` tokens of one prompt in chunks, pipelined */
    double objective;                                  /* seconds per token, the smaller the better */
    /* how it was found; zero in a plan by hand */
    bool exact;                                        /* every order was tried, or the order was given */
    bool helpers_tried;
    struct plan_alternative alternative[PLAN_MACHINES_MAX];
    uint32_t n_alternative;
    double plain_tokens_per_s;            /* the best without helpers, when the plan has some; 0: none fits */
};

/* The sum over experts is a tree over their numbers (kernels.h), and each machine holds one branch of it:
 * may the lead hold the first ones and each of n_helper helpers so many of the rest? */
bool plan_experts_divide(uint32_t n_expert, uint32_t n_helper, uint32_t each);

/* What helpers mean for a stage that has some: seconds of its layers together, for so many rows decoded. */
struct plan_exchange {
    double alone_s;                                    /* experts, if the lead held all of them */
    double here_s;                                     /* those that it keeps */
    double way_s, there_s;                             /* round trips with their bytes; experts there */
};
struct plan_exchange plan_exchange(const struct plan_model *m, const struct plan_cluster *c,
                                   const struct plan_options *o, const struct plan_stage *s, double rows);
/* The largest share of n_helper helpers, each; 0: the experts cannot be divided so. */
uint32_t plan_experts_each(uint32_t n_expert, uint32_t n_helper);

/* The best plan. ERR_NOMEM: nothing fits, and the text says how many bytes are missing. ERR_NOTFOUND: it
 * is not a matter of memory, some weights cannot come where they fit. ERR_INVALID: nonsense was given. */
int plan_search(const struct plan_model *m, const struct plan_cluster *c,
                const struct plan_options *o, struct plan *out, struct err *e);

/* Fills the figures of a plan whose stages are given, and checks it: layers covered once and in order,
 * machines used once, memory. ERR_NOMEM says which machine lacks how many bytes. */
int plan_evaluate(const struct plan_model *m, const struct plan_cluster *c,
                  const struct plan_options *o, struct plan *p, struct err *e);

/* "host1=0-20+helper,host2=21-42": inclusive ranges, and who holds experts of a stage. Fills the stages
 * only. */
int plan_parse(const struct plan_model *m, const struct plan_cluster *c, const char *text,
               struct plan *out, struct err *e);

/* Bytes of one machine besides weights: state of n_streams sequences of n_ctx tokens in layers [begin,
 * end); buffers of a batch. */
uint64_t plan_state_bytes(const struct plan_model *m, const struct plan_options *o, uint32_t begin,
                          uint32_t end);
uint64_t plan_work_bytes(const struct plan_model *m, const struct plan_options *o);

#endif
