/* world - a whole cluster in one process, in virtual time: real cores, simulated links, compute,
 * clients and faults.
 *
 * One seed decides everything. Actor 0 is the coordinator, actors 1..n are nodes. A link is a
 * connection that one actor opened; it keeps the order, delays, clogs, and on a reset loses what is in
 * flight. The stage is a hash chain: what comes out of a row depends on every token before it at every
 * layer, so a lost, repeated, reordered or stale piece of work shows as a wrong token. Payloads live in
 * one store and know their owner, so a leak is a number that is not zero. */
#ifndef SIM_WORLD_H
#define SIM_WORLD_H

#include "common/base/plant.h"
#include "common/base/rng.h"
#include "coordinator/core.h"
#include "node/core.h"

enum {
    ACTORS_MAX = 8,
    CONNS_MAX = 64,
    CLIENTS_MAX = 40,
    LAYERS_MAX = 8,
    SLOTS_MAX = 24,
    CTX_MAX = 4352,
    JOBS_MAX = 64,
    CTX_DRAWN = 128, /* most that a seed draws; scenarios take more */
    COORDINATOR = 0,
    VOCAB = 1000,
    NOBODY = 255
};

#define MS UINT64_C(1000000)

enum fault {
    FAULT_JITTER,
    FAULT_CLOG,
    FAULT_RESET,
    FAULT_DUPLICATE,
    FAULT_CRASH,
    FAULT_SLOW,
    FAULT_PAUSE,
    FAULT_COMPUTE,
    FAULT_LOAD,
    FAULT_LOAD_SILENT,
    FAULT_COORDINATOR,
    FAULT_STRAY,
    FAULT_LEAVE,
    FAULT_DAMAGE,
    FAULTS
};

struct payload_slot {
    uint32_t generation;                          /* odd: in use */
    uint8_t owner;                                /* actor; NOBODY: in a message on its way */
    uint32_t n;
    uint64_t *data;
    uint32_t room;
};

struct parcel {                                   /* a message on its way, with copies of all it points to */
    struct msg msg;
    struct payload payload;
    uint8_t conn, to;
    uint32_t conn_generation;
    char arrays[];
};

enum ev_kind { EV_PARCEL, EV_JOB, EV_FAULT, EV_RESTART, EV_CRASH, EV_CLIENT, EV_CANCEL, EV_HEAL };

struct ev {
    uint64_t t, order;
    uint8_t kind, actor;
    uint32_t generation;                          /* of the actor; EV_PARCEL: of nobody */
    uint32_t arg;
    struct parcel *parcel;
};

struct conn {
    bool used;
    uint8_t a, b;                                 /* who opened it, and to whom */
    uint32_t a_link, b_link, a_generation, b_generation, generation;
    uint64_t free_at[2], clogged_until;           /* direction 0: a to b */
};

struct sim_job {
    enum node_out_kind kind;                      /* LOAD, RUN, SEQ_CLOSE */
    const struct node_job *job;
    struct handle handle;
    uint32_t slot;
    uint64_t epoch;
    uint32_t layer_begin, layer_end, n_slot;
    bool has_head, given_up;                      /* LOAD: a newer one waits */
};

struct sim_slot { bool open; uint32_t len; };

struct actor {
    bool up;
    uint32_t generation;                          /* rises with every crash */
    uint64_t incarnation, deadline_ns, paused_until, slow_until;
    struct node *node;
    struct node_outs node_outs;
    struct sim_job jobs[JOBS_MAX];
    uint32_t job_first, n_job;
    bool job_runs;
    uint32_t layer_begin, layer_end;
    bool has_head;
    uint64_t ran_epoch, ran_batch;                /* the last batch it computed */
    uint64_t busy_ns;                             /* batches */
    struct sim_slot slot[SLOTS_MAX];
    uint64_t (*state)[LAYERS_MAX][CTX_MAX + 1];   /* per slot: hash after so many tokens */
    uint32_t next_link;                           /* for connections that it accepts */
    uint32_t link_of[ACTORS_MAX][2];              /* what it called their connections */
    char name[16];
};

struct reference {                                /* one sequence in one process */
    uint64_t state[LAYERS_MAX], x;
    uint32_t n;
};

enum client_state { CLIENT_IDLE, CLIENT_WAITS, CLIENT_DONE };

struct client {
    enum client_state state;
    uint64_t tag;
    int32_t prompt[CTX_MAX], expected[CTX_MAX];
    uint32_t n_prompt, n_new, n_expected, n_got;
    uint64_t score[CTX_MAX];               /* what has to be told of each token of the prompt but the first */
    uint32_t n_scored;                            /* how many of them were told */
    uint64_t seed, retry_at;
    struct handle handle;
    bool cancels, cancelled, strict;              /* strict: submitted after the faults, has to succeed */
    bool scores;                                  /* asks how likely the tokens of its prompt are */
    bool long_one;                                /* asks for more than there is */
    uint32_t deadline_ms;
    uint64_t submitted_at, first_at, last_at, gap_max;        /* of its tokens */
    int code;
};

struct world {
    uint64_t seed, now, order, n_step;
    struct rng rng;
    bool trace, failed;
    char why[256];
    bool fault[FAULTS];
    uint64_t fault_mean_ns, faults_end, end_by;
    bool calm;                                    /* no faults any more */
    bool stopping;                                /* the coordinator ends all requests itself */
    bool even, endless;                         /* scenarios: equal stages; a stream ends only at its limit */

    uint32_t n_node, n_layer, n_stage_max, n_node_min, n_slot, n_ctx, n_rows, n_credit;
    uint64_t state_tokens;
    uint64_t delay_ns, row_ns, batch_ns, load_ns;
    bool sticky_links;                            /* who connects again is recognised as the same link */
    uint32_t compute_fails_in;                    /* one in so many, with FAULT_COMPUTE */
    uint32_t more_every;                          /* NEED_MORE once in so many rows; 0: never */

    struct coord_config coord_config;
    struct coord *coord;
    struct coord_outs coord_outs;
    struct actor actor[ACTORS_MAX];
    struct conn conn[CONNS_MAX];
    struct client client[CLIENTS_MAX];
    uint32_t n_client, n_done;
    uint64_t tag_next;

    struct ev *heap;
    uint32_t n_heap, heap_room;
    struct payload_slot *payload;
    uint32_t n_payload, n_payload_used, payload_room;
    uint32_t *payload_free;
    uint32_t n_payload_free;
};

/* The parts of a run, for scenarios that set the shape themselves. */
void world_open(struct world *w, uint64_t seed, bool trace);
void world_step(struct world *w);
void world_close(struct world *w);

/* True: everything held. Otherwise w->why says what did not. */
bool world_run(struct world *w, uint64_t seed, bool trace);

void world_fail(struct world *w, const char *format, ...) PRINTF_LIKE(2, 3);
void world_say(struct world *w, uint32_t actor, const char *format, ...) PRINTF_LIKE(3, 4);
void world_post(struct world *w, struct ev ev);                        /* order is filled in */
uint64_t world_between(struct world *w, uint64_t lo, uint64_t hi);
bool world_chance(struct world *w, uint32_t one_in);

struct payload payload_new(struct world *w, uint8_t owner, uint32_t n);
uint64_t *payload_data(struct world *w, struct payload p);
void payload_free_one(struct world *w, uint8_t owner, struct payload p);
void payload_pass(struct world *w, struct payload p, uint8_t from, uint8_t to);
void payload_free_all_of(struct world *w, uint8_t owner);

/* net.c */
void net_open(struct world *w, uint8_t a, uint32_t a_link, uint8_t b);
void net_close(struct world *w, uint8_t a, uint32_t a_link);
void net_close_all_of(struct world *w, uint8_t a);
void net_send(struct world *w, uint8_t from, uint32_t link, const struct msg *m, struct payload p,
              bool borrows);
void net_reset(struct world *w, struct conn *c);
bool net_arrives(struct world *w, struct parcel *p, uint32_t *link);   /* false: lost on the way */
void net_inject(struct world *w, uint8_t to, uint32_t link, const struct msg *m);

/* actors.c */
void actors_start(struct world *w);
void actor_start(struct world *w, uint8_t a);
void actor_crash(struct world *w, uint8_t a);
void actor_stop(struct world *w, uint8_t a);
void actor_tick(struct world *w, uint8_t a);
void actor_deliver(struct world *w, struct parcel *p);
void actor_job_done(struct world *w, uint8_t a);
void coordinator_submit(struct world *w, struct client *c);
void coordinator_cancel(struct world *w, struct client *c);

/* compute.c */
void compute_push(struct world *w, uint8_t a, const struct node_out *o);
void compute_done(struct world *w, uint8_t a, struct node_event *ev, struct msg_row_result *rows);
uint64_t reference_next(const struct world *w, struct reference *ref, const int32_t *token, uint32_t n);
uint64_t compute_score(uint64_t hash, int32_t token);
int32_t compute_pick(const struct world *w, uint64_t hash, uint64_t seed, uint32_t position, bool *end);

/* clients.c */
void clients_init(struct world *w);
struct client *clients_add(struct world *w, uint64_t at, uint32_t n_prompt, uint32_t n_new);
struct client *clients_go_on(struct world *w, const struct client *c, uint64_t at, uint32_t back,
                             uint32_t n_more, uint32_t n_new);
void clients_add_strict(struct world *w);
struct client *client_of(struct world *w, uint64_t tag);
void client_score(struct world *w, struct client *c, uint32_t position, int32_t token, uint64_t score);
void client_token(struct world *w, uint64_t tag, int32_t token, uint32_t index);
void client_over(struct world *w, uint64_t tag, int code, uint32_t n_cached);
void clients_coordinator_gone(struct world *w);

/* faults.c */
void faults_init(struct world *w);
void faults_happen(struct world *w);
void faults_end(struct world *w);
bool fault_hits(struct world *w, enum fault fault, uint32_t one_in);

/* scenario.c: how well the pipeline is used when nothing goes wrong; gives the number of failures. */
int scenarios_run(struct world *w);
/* True: nothing wrong comes out when a prompt takes a sequence over and goes back in it, or an answer
 * begins in a copy, and a connection breaks at any moment of that. Rare under random faults, so it is
 * looked for. */
bool scenario_keeping(struct world *w);

#endif
