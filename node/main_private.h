/* main_private - the node's shell inside: main.c (life, what it says of itself), shell.c (core, links and
 * compute thread), shell_sources.c (where weights come from), shell_experts.c (helpers). Everything belongs
 * to the loop's thread. */
#ifndef NODE_MAIN_PRIVATE_H
#define NODE_MAIN_PRIVATE_H

#include "node/compute.h"
#include "node/fetch_run.h"
#include "node/files.h"
#include "node/give.h"
#include "node/main.h"

#include "common/sys/file.h"
#include "common/sys/keyring.h"
#include "common/sys/link.h"
#include "common/sys/loop.h"
#include "common/sys/slots.h"
#include "common/sys/worker.h"
#include "common/wire/frame.h"
#include "common/wire/probe.h"

enum { PING_MS = 500, PING_MISSES = 5 };          /* until the coordinator says otherwise */
enum { NODE_KNOWN_MAX = 64, SURVEY_OPEN_MAX = NODE_LINK_HELPER - NODE_LINK_SURVEY };

struct node_job_box {                             /* a job on its way to the compute thread and back */
    struct compute_job job;
    bool is_progress;                             /* only assign.epoch and progress count */
    bool is_question;                             /* it is the first member of a struct node_ask */
    struct msg_progress progress;
    struct node_job_box *next;                    /* in the free list */
};

struct node_ask {                                 /* a question to one helper, see shell_experts.c */
    struct node_job_box box;
    uint32_t helper;
    struct msg_experts question;
    const float *rows, *weights;                  /* the thread's, while it waits */
    const int32_t *ids;
    struct payload answer;
    int code;
    bool open, arrived;                           /* open: the loop's view; arrived: the thread's */
};

enum survey_place_state {
    PLACE_QUEUED, PLACE_DIAL, PLACE_GREET, PLACE_TRIPS, PLACE_ROW, PLACE_LAST_ROW, PLACE_OVER
};

struct survey_place {                             /* a node, or the coordinator: the way there is measured */
    struct msg_hop hop;
    enum survey_place_state state;
    uint32_t link, probe, n_trip, row_bytes;      /* probe: id of the row that is on its way */
    uint64_t sent_ns;
    uint32_t rtt_us;                              /* 0: not known, as below */
    uint64_t bytes_per_s;
};

struct survey_link { bool used, up; struct msg_hop hop; };    /* up: it was connected */

struct node_survey {                              /* see shell_survey.c */
    bool active, bulk;
    uint32_t id, n_place, probe_id;
    struct survey_place place[MSG_PEERS_MAX];
    struct survey_link open[SURVEY_OPEN_MAX];
    struct loop_timer *timer;
};

struct node_source {                              /* of weights, while some are fetched */
    bool used, up, told;                          /* told: its last refusal */
    struct msg_source of;
    struct peer peer;                             /* not the coordinator's, which is the core's */
};

struct node_process {
    struct node_process_config config;
    char name[MSG_NAME_MAX], join[LINK_ADDRESS_MAX];
    struct net *net;
    bool own_net, guarded;
    bool has_key;                                 /* a key of --key: of this node alone */
    struct keyring *keyring;
    struct loop *loop;
    struct slots *slots;
    struct links *links;
    struct loop_timer *timer, *last_timer;
    struct loop_signal *signal[2];
    int n_signal;
    struct loop_task stop_task;
    struct worker *worker;
    struct compute *compute;
    struct compute_config compute_config;
    struct fetch_run *fetch;                      /* NULL: no place for weights from elsewhere */
    struct file_hold held;                        /* the share that is loaded, if it is in the store */
    struct node_job_box *fetching;                /* a LOAD that waits for them */
    struct node_source source[MSG_SOURCES_MAX];   /* a place here is one in fetch_run */
    struct loop_timer *source_timer;
    bool redialled;                               /* the coordinator's link, and no WELCOME over it yet */
    struct give *give;                            /* NULL: weights stay here */

    struct node_config core_config;
    struct node *core;
    struct node_outs outs;
    struct codec *codec;
    struct buf frame;
    struct node_files files;
    uint32_t known[NODE_KNOWN_MAX];               /* accepted links that said HELLO */
    struct node_job_box *boxes;                   /* free ones */
    uint32_t n_slot_left;                         /* small slots that giving weights away leaves free */
    uint32_t n_embd, n_vocab, n_used;             /* of what is loaded */
    struct node_ask ask[STAGE_HELPERS_MAX];
    uint32_t n_ask;                               /* the thread's: helpers of what is loaded */
    uint64_t running_batch;                       /* the thread's */
    uint64_t assigned_epoch;                      /* whose keys may connect */
    bool next_probed;                             /* the link to the next stage, since it came up */
    uint32_t next_probe;
    uint64_t next_sent_ns;
    struct probe_rows probes;                     /* of others, on their way to us */
    struct node_survey survey;
    bool in_step, stopping;
    char told[160];                               /* last reason why no link comes up, told once */
    uint64_t progress_ns;                         /* last progress on the compute thread */
};

/* shell.c */
void shell_say(struct node_process *p, uint32_t link, struct msg *m, struct payload payload);
void shell_step(struct node_process *p, struct node_event *ev);
void shell_on_timer(void *ctx);
void shell_on_frame(void *ctx, uint32_t link, const void *header, size_t header_bytes,
                    struct payload payload);
void shell_on_closed(void *ctx, uint32_t link);
void shell_on_up(void *ctx, uint32_t link);
void shell_on_refused(void *ctx, uint32_t link, const char *why);
void shell_on_answer(void *ctx, void *answer);
void shell_run_job(void *ctx, void *job);         /* compute thread */
void shell_drop_job(void *ctx, void *job);
void shell_progress(void *ctx, uint64_t epoch, uint64_t done, uint64_t total);   /* compute thread */
struct node_job_box *shell_box_take(struct node_process *p, enum compute_kind kind);
void shell_push(struct node_process *p, struct node_job_box *b);
void shell_say(struct node_process *p, uint32_t link, struct msg *m, struct payload take_payload);
void shell_give_send(void *ctx, uint32_t link, struct msg *m, struct payload take_payload);
void shell_fetch_progress(void *ctx, uint64_t epoch, uint64_t done, uint64_t total);
void shell_fetch_tidied(void *ctx);
void shell_fetch_done(void *ctx, uint64_t epoch, const char *path, int code, const char *text);
void shell_free_boxes(struct node_process *p);

/* shell_sources.c */
void sources_set(struct node_process *p, const struct msg_source *list, uint32_t n);
void sources_close(struct node_process *p);
void sources_look(struct node_process *p);        /* after every step: is the coordinator there? */
void sources_on_timer(void *ctx);
void sources_on_up(struct node_process *p, uint32_t link);
void sources_on_msg(struct node_process *p, uint32_t link, const struct msg *m, struct payload take_payload);
void sources_send(void *ctx, uint32_t source, const struct msg_weights_get *get);
const char *sources_name(const struct node_process *p, uint32_t i);

/* shell_survey.c */
bool survey_is_link(uint32_t link);
/* False: the message is none of a survey, and the payload still yours. */
bool survey_takes(struct node_process *p, uint32_t link, const struct msg *m, struct payload take_payload);
void survey_stop(struct node_process *p);
void survey_next(struct node_process *p);         /* measures the link to the next stage */
void survey_on_up(struct node_process *p, uint32_t link);
void survey_on_refused(struct node_process *p, uint32_t link);

/* shell_experts.c */
int shell_experts_ask(void *ctx, uint32_t layer, uint32_t n_row, const float *rows, const float *weights,
                      const int32_t *ids, struct err *e);                  /* compute thread */
int shell_experts_wait(void *ctx, uint32_t i, float *sums, struct err *e); /* compute thread */
void shell_experts_question(struct node_process *p, struct node_job_box *b);
void shell_experts_done(struct node_process *p, const struct node_out *o);
void shell_experts_compute(struct node_process *p, const struct node_out *o);
void shell_experts_computed(struct node_process *p, struct node_job_box *b);

#endif
