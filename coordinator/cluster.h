/* cluster - who belongs to it, and the plan that holds: membership, epochs, assignments, heartbeats.
 *
 *                 enough nodes, plan found              all READY
 *      waiting* -------------------------> loading* ----------------> serving*
 *         ^                                   |                          |
 *         +------- a node of the plan is lost, fails or leaves ----------+     (the epoch rises with
 *         +------- a substitute plan, and the wanted one is possible ----+      the next plan)
 *
 *   a node:  gone --HELLO--> joined* --ASSIGN--> loading* --READY--> ready* --plan over--> joined
 *                              ^                    +-- FAILED, or silent for too long --> failed* --a
 *                                while--> joined
 *            (* waits.) LEAVE, silence or a new incarnation: gone, from any state.
 *
 * Part of the coordinator core; a node's place in the table is its number in the plan. ASSIGN is
 * repeated until READY arrives, so either may be lost. At most n_node_max nodes; two live processes
 * with one name are a mistake that the second is told of. */
#ifndef COORDINATOR_CLUSTER_H
#define COORDINATOR_CLUSTER_H

#include "coordinator/core.h"
#include "coordinator/survey.h"

struct coord_node {
    struct peer peer;
    uint8_t state;
    struct msg_hello hello;
    struct msg_file file[MSG_FILES_MAX];
    struct msg_link measured[MSG_PEERS_MAX];
    uint32_t n_measured;
    struct msg_ready ready;
    struct msg_progress progress;
    /* last ASSIGN sent; last sign of progress; when it failed */
    uint64_t assigned_ns, progress_ns, failed_ns;
    int32_t stage_i;                                          /* in the plan; -1: spare */
    bool is_helper, sync_due, peers_due;
    bool surveyed;                                            /* its links were measured, or tried */
    struct msg_helper helper[MSG_HELPERS_MAX];                /* as told in its ASSIGN */
    struct msg_source source[MSG_SOURCES_MAX];                /* likewise */
};

struct cluster {
    uint8_t state;
    struct coord_node *node;                                  /* n_node_max */
    struct msg_key *key;                          /* MSG_NODES_MAX: of all nodes, for ASSIGN */
    uint32_t n_node, n_node_before;               /* neither gone nor failed; when the last plan was made */
    struct coord_plan plan;                                   /* its node numbers are places in `node` */
    bool had_plan;
    uint64_t epoch_seen;                          /* highest that any node spoke of in its HELLO */
    uint64_t since_ns, changed_ns;                            /* of the state; of the membership */
    uint64_t unserved_ns;                                     /* when serving ended last */
    uint64_t plan_at_ns;                     /* waiting: try then; UINT64_MAX: not before something changes */
    uint64_t restore_at_ns;                       /* serving: look then whether the wanted plan is possible */
    uint32_t restore_wait_ms;                     /* how long a newcomer has to have been there for that */
    uint32_t n_slot, n_ctx_max, n_rows_max;                   /* serving: the least of all stages */
    uint64_t state_tokens_max;
    uint32_t first_link, first_node, last_node;               /* stage 0 and the last stage */
    char why[96];
};

struct coord;

void cluster_init(struct coord *c);
void cluster_deinit(struct coord *c);

void cluster_on_hello(struct coord *c, uint32_t link, const struct msg *m, struct coord_outs *outs);
struct coord_node *cluster_find(struct coord *c, uint32_t link);
void cluster_on_ready(struct coord *c, struct coord_node *n, const struct msg_ready *ready,
                      struct coord_outs *outs);
void cluster_on_progress(struct coord *c, struct coord_node *n, const struct msg_progress *progress);
void cluster_on_failed(struct coord *c, struct coord_node *n, const struct msg_failed *failed,
                       struct coord_outs *outs);
void cluster_on_links(struct coord *c, struct coord_node *n, const struct msg_links *links);
void cluster_on_files(struct coord_node *n, const struct msg_files *files);
/* Who gives node n weights for what it is assigned: at most MSG_SOURCES_MAX, written to n->source. */
uint32_t cluster_sources(struct coord *c, struct coord_node *n, const struct msg_assign *a);
void cluster_lose(struct coord *c, struct coord_node *n, const char *why, struct coord_outs *outs);
void cluster_fail_plan(struct coord *c, const char *why, struct coord_outs *outs);
void cluster_refuse(struct coord *c, uint32_t link, int code, const char *text, struct coord_outs *outs);

void cluster_timers(struct coord *c, struct coord_outs *outs);
uint64_t cluster_deadline_ns(const struct coord *c);
void cluster_check(const struct coord *c);

static inline bool cluster_node_in_plan(const struct coord_node *n) {
    return n->state == ND_LOADING || n->state == ND_READY;
}

#endif
