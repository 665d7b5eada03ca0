/* pipeline - the batches in flight: which rows they carry, until when they must be back, what their
 * results mean.
 *
 *      launch                RESULT, all rows clear
 *   ----------> flying* ---------------------------------> over
 *                 |  \--- RESULT, a row needs more --> rows* --ROW--> over
 *                 +--- late, overtaken, refused, failed --> over, and its number is listed as dead     (*
 * waits, with a deadline)
 *
 * Links and stages keep the order, so when a batch is back every older one that still flies was lost on
 * the way. What a lost batch carried goes back to its requests. At most stages + n_extra in flight;
 * deadlines follow the measured times and widen when batches turn out to be late, because slow is not
 * dead. Part of the coordinator core. */
#ifndef COORDINATOR_PIPELINE_H
#define COORDINATOR_PIPELINE_H

#include "coordinator/core.h"

enum flight_state { FL_OVER, FL_FLYING, FL_ROWS, FL_STATES };
#define FLIGHT_NO_WANT UINT32_MAX

struct flight_seg {
    uint64_t seq;
    uint32_t pos0, n, row,
        want_i; /* row: of its last token; want_i: FLIGHT_NO_WANT when it is no result */
    uint32_t score0, n_score, score_i;            /* rows that say how likely the next token was: positions
                                                   * from score0 on, wants from score_i on */
    bool over;                                    /* its request knows */
};

struct flight {
    uint8_t state;
    uint64_t id, launched_ns, deadline_ns;
    uint32_t n_seg, n_row, n_want, n_bias, n_score, n_decode, n_more;
    uint32_t spent_us; /* sampling in the step that launched it: it had to wait for that */
    uint64_t ready_ns;                            /* earliest of its decode rows: since when they waited */
    struct flight_seg *seg;
    struct msg_seg *msg_seg;                      /* what the WORK message points to */
    int32_t *token;
    struct msg_want *want;
    struct msg_bias *bias;
    uint32_t seg_room, row_room, want_room, bias_room;
};

struct pipeline {
    struct pool pool;
    struct flight *flight;                        /* n_window_max */
    uint64_t batch_next;
    uint64_t dead[MSG_BATCHES_MAX];               /* ascending, all >= batch_done() */
    uint32_t n_dead;
    bool sync_dirty;
    uint64_t *sync_seq;                           /* what this step's SYNC points to */
    uint32_t late_scale;                          /* 1, 2, 4, ...: how much wider deadlines have become */
    uint32_t n_dead_row;                          /* batches lost since the last result */
    uint64_t result_ns;                           /* last result, or begin of serving */
    uint32_t chunk;                               /* last choice, for display */
    uint64_t spent_us;                            /* sampling in this step */
};

struct coord;
struct coord_node;

void pipeline_init(struct coord *c);
void pipeline_deinit(struct coord *c);
void pipeline_start(struct coord *c);                                  /* serving begins */
void pipeline_drop_all(struct coord *c, struct coord_outs *outs);      /* the epoch is over */

void pipeline_on_result(struct coord *c, const struct coord_event *ev, struct coord_outs *outs);
void pipeline_on_row(struct coord *c, const struct coord_event *ev, struct coord_outs *outs);
void pipeline_on_refused(struct coord *c, const struct msg_work_refused *refused, struct coord_outs *outs);
void pipeline_on_failed(struct coord *c, const struct msg_failed *failed, struct coord_outs *outs);

void pipeline_timers(struct coord *c, struct coord_outs *outs);
void pipeline_launch(struct coord *c,
                     struct coord_outs *outs); /* as many batches as there is room and work for */
void pipeline_send_syncs(struct coord *c, struct coord_outs *outs);    /* before new work is sent */
uint64_t pipeline_deadline_ns(const struct coord *c);
uint32_t pipeline_window(const struct coord *c);
void pipeline_check(const struct coord *c);

#endif
