/* service_private - the service's inside, shared by service.c (life, loop, links), service_request.c (who
 * waits for tokens), service_sample.c and service_plan.c (the two seams of the core), service_give.c
 * (weights for nodes), service_status.c (what is shown). Everything belongs to the loop thread but what
 * says otherwise. */
#ifndef COORDINATOR_SERVICE_PRIVATE_H
#define COORDINATOR_SERVICE_PRIVATE_H

#include "coordinator/core.h"
#include "coordinator/service.h"

#include "common/model/plan.h"
#include "common/model/shard.h"
#include "common/sys/link.h"
#include "common/sys/loop.h"
#include "common/sys/slots.h"
#include "common/wire/frame.h"
#include "common/wire/probe.h"

#include <pthread.h>
#include <stdatomic.h>

enum {
    SERVICE_RATE_POINTS = 16,
    SERVICE_KEPT_MAX = 256,                       /* slots, at most (cli/cmd_serve.c) */
    SERVICE_KNOWN_MAX = 256,
    SERVICE_LOCAL_FIRST = 1,
    SERVICE_NODE_FIRST = 1 << 16
};

struct keyring;
struct share;
struct share_server;

/* A request that somebody listens to. Made by the caller of service_submit, from then on the loop's. */
struct entry {
    struct loop_task task;
    struct service *s;
    struct entry *prev, *next;                    /* alive, in the order of arrival */
    uint64_t ticket;
    struct handle request;                        /* of the core */
    bool accepted, ended, cancelled;              /* ended: the last token was said to be the last */
    int32_t *token;
    uint32_t n_token, n_new_max;
    struct sampler_params sampling;
    struct sampler_bias *bias;
    struct msg_bias *lifted;                      /* those of them that are positive */
    uint32_t n_lifted;
    int32_t *end_id;
    uint32_t n_end_id, deadline_ms;
    struct service_guide *guide;
    bool scores;                                  /* the tokens of the prompt */
    struct service_listener listener;
    struct sampler_history history;
    bool has_history;
    struct service_steer steer;                   /* of the token that comes next */
    bool steered;
    struct sampler_result result;                 /* of the token that the core is about to tell */
    uint32_t n_output, n_held, n_cached;
    uint64_t submitted_ns, started_ns, first_ns;
};

struct rate_point { uint64_t at_ns, n_output, n_prompt; };

struct service {
    struct service_config config;                 /* texts are ours */
    struct gguf *gguf;
    struct tokenizer *tokenizer;
    struct hparams hp;
    struct hash128 model;
    struct plan_model *plan_model;
    struct plan_cluster *plan_cluster;            /* scratch of the planner */
    uint32_t n_plan;                              /* made so far */
    char model_name[MSG_NAME_MAX];
    int64_t created_s;
    uint64_t started_ns;

    struct net *net;
    struct loop *loop;
    struct slots *slots;
    struct share *share;                          /* our file as nodes without one read it */
    struct share_server *share_server;            /* NULL: ours is a shard, or there are no nodes */
    struct links *local_links, *node_links;       /* doors: inproc, and tcp or NULL */
    struct keyring *keyring;
    char local_address[64];
    struct loop_timer *timer, *last_timer;
    pthread_t thread;
    bool running;                                 /* the thread was started */
    void *local;                                  /* the stage in this process */

    struct coord_config coord_config;
    struct coord *coord;
    struct coord_outs outs;
    struct codec *codec;
    struct buf frame;
    uint32_t known[SERVICE_KNOWN_MAX];            /* links that said HELLO */
    struct probe_rows probes;                     /* of nodes that measure their way to us */
    bool in_step, stopping, stopped;

    struct entry *first, *last;
    struct sampler sampler;
    struct sampler_item *item;                    /* candidates as the sampler wants them */
    uint64_t *only;                               /* one bit per token id; all 0 between calls */
    struct service_totals totals;
    struct rate_point rate[SERVICE_RATE_POINTS];
    uint32_t n_rate;
    uint64_t shown_ns;                            /* when the snapshot was made */

    atomic_uint n_live;                           /* accepted and not done; any thread */
    atomic_bool draining;
    atomic_uint_fast64_t ticket_next;

    pthread_mutex_t lock;                         /* what is below; held for a copy only */
    pthread_cond_t shown;
    struct service_info info;
    struct service_totals totals_view;
    struct buf status;
    uint64_t status_no, status_wanted;
};

/* service.c */
void service_step(struct service *s, struct coord_event *ev);
void service_send(struct service *s, uint32_t link, const struct msg *m);
void service_send_payload(struct service *s, uint32_t link, const struct msg *m, struct payload take_payload);

/* service_request.c */
int entry_new(struct entry **out, struct service *s, const struct service_request *r, struct err *e);
void entry_begin(struct loop_task *task);         /* on the loop's thread, from the caller's hand */
void entry_accepted(struct entry *t, struct handle request);
void entry_token(struct entry *t, int32_t id, uint32_t index);
void entry_score(struct entry *t, const struct sampler_result *result, uint32_t position);
void entry_done(struct entry *t, int code, const char *text);  /* tells, and frees */
struct entry *entry_find(struct service *s, uint64_t ticket);
void entries_progress(struct service *s);

/* service_sample.c */
int service_sample(void *ctx, const struct coord_sample *in, struct coord_sampled *out);

/* service_plan.c */
int service_plan(void *ctx, const struct coord_node_info *node, uint32_t n_node, struct coord_plan *out,
                 struct err *e);
bool service_wanted(void *ctx, const struct coord_node_info *node, uint32_t n_node);

/* service_give.c */
void service_gives(const struct service *s, struct msg_source *out);
/* All together: the union of what nodes can read and we give. */
void service_given(const struct service *s, const struct coord_node_info *node, uint32_t n_node,
                   struct msg_source *out);
void service_give_open(struct service *s, uint32_t n_slot_left);
void service_give_close(struct service *s);

/* service_status.c */
void service_show(struct service *s);             /* makes the snapshot anew if it is time or wanted */

static inline struct entry *entry_of_tag(uint64_t tag) {
    return (struct entry *)(uintptr_t)tag;
}

static inline uint64_t entry_tag(const struct entry *t) {
    return (uint64_t)(uintptr_t)t;
}

#endif
