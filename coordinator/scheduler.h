/* scheduler - how many rows the next batch gets, from measured stage times. Pure arithmetic on small
 * tables; no requests in here.
 *
 * Per stage we remember how long batches of 1, 2-3, 4-7, ... rows took, smoothed; between two such
 * points time is a straight line. Decode: the streams are spread over as many groups as give the most
 * tokens per second: more groups keep more stages busy and hide the way between them, fewer read the
 * weights less often. Prefill: chunks that take a prompt through soonest, as far as the bound on other
 * streams' delay allows. */
#ifndef COORDINATOR_SCHEDULER_H
#define COORDINATOR_SCHEDULER_H

#include "coordinator/core.h"

enum { SCHED_POINTS = 13, SCHED_FINE = 64 };      /* 2^12 = MSG_ROWS_MAX */

struct sched_stage {
    uint32_t us[SCHED_POINTS], row[SCHED_POINTS]; /* row: in parts of 1 / SCHED_FINE; 0: never seen */
};

struct sched {
    struct sched_stage stage[MSG_STAGES_MAX];
    uint32_t n_stage;
    uint32_t between_us;                          /* of a batch: not queued, not computed: wires, sampling */
    uint32_t n_sample;                            /* batches seen in this epoch */
};

/* a new epoch: start from the plan's figures */
void sched_plan(struct sched *s, const struct coord_plan *plan);
void sched_measured(struct sched *s, uint32_t stage_i, uint32_t n_row, uint32_t us);
void sched_between(struct sched *s, uint32_t us);

uint32_t sched_stage_us(const struct sched *s, uint32_t stage_i, uint32_t n_row);    /* 0: nothing known */
uint64_t sched_sum_us(const struct sched *s, uint32_t n_row);  /* through all stages, alone; 0: not known */
uint32_t sched_slowest_us(const struct sched *s, uint32_t n_row);

/* In how many batches n_stream decoding streams travel; at most n_stage + n_extra. */
uint32_t sched_groups(const struct sched *s, uint32_t n_stream, uint32_t n_extra);

struct sched_wish {
    /* batches in flight, those with decode rows, and rows of such a one */
    uint32_t n_window, n_group, n_decode_row;
    uint32_t n_prefill, n_least;                  /* batches in flight with rows of prompts; least of one */
    bool others_wait;                             /* streams other than those prefilled are decoding */
    uint32_t bound_us, n_first, n_min, n_max;     /* rows: unmeasured, never fewer, never more */
    uint32_t n_prompt;                            /* tokens of the longest prompt in work, done ones too */
};

/* How a chunk came about. Joined: even the least in every batch would delay others too much, so it may only
 * go into a batch that carries decode rows anyway, and only one at a time. */
enum sched_cut { SCHED_FREE, SCHED_BOUNDED, SCHED_JOINED };

/* Rows for prefill in the next batch. */
uint32_t sched_chunk(const struct sched *s, const struct sched_wish *w, enum sched_cut *cut);

#endif
