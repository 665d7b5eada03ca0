/* scheduler - how many rows the next batch gets, from measured stage times. Pure arithmetic on small tables; no requests in here.
 *
 * Per stage we remember how long batches of 1, 2-3, 4-7, ... rows took, smoothed; between two such points time is a straight line.
 * Decode: the streams are spread over as many groups as the pipeline needs to keep every stage busy, so that a group returns
 * just when its turn comes. Prefill: a chunk as large as the bound on other streams' delay allows. */
#ifndef COORDINATOR_SCHEDULER_H
#define COORDINATOR_SCHEDULER_H

#include "coordinator/core.h"

enum { SCHED_POINTS = 13 };                       /* 2^12 = MSG_ROWS_MAX */

struct sched_stage {
    uint32_t us[SCHED_POINTS], row[SCHED_POINTS]; /* row 0: never seen */
};

struct sched {
    struct sched_stage stage[MSG_STAGES_MAX];
    uint32_t n_stage;
    uint32_t between_us;                          /* of a batch: not queued, not computed: wires, sampling */
    uint32_t n_sample;                            /* batches seen in this epoch */
};

void sched_plan(struct sched *s, const struct coord_plan *plan);                 /* a new epoch: start from the plan's figures */
void sched_measured(struct sched *s, uint32_t stage_i, uint32_t n_row, uint32_t us);
void sched_between(struct sched *s, uint32_t us);

uint32_t sched_stage_us(const struct sched *s, uint32_t stage_i, uint32_t n_row);    /* 0: nothing known */
uint64_t sched_sum_us(const struct sched *s, uint32_t n_row);                    /* through all stages, alone; 0: not known */
uint32_t sched_slowest_us(const struct sched *s, uint32_t n_row);

/* In how many batches the decoding streams travel: n_stage, or some more where the way between the stages takes long. */
uint32_t sched_groups(const struct sched *s, uint32_t n_extra);

struct sched_wish {
    uint32_t n_group, n_decode_row;               /* groups on the way, decode rows of this batch */
    bool others_wait;                             /* streams other than those prefilled are decoding */
    uint32_t bound_us, n_first, n_min, n_max;     /* rows: unmeasured, never fewer, never more */
    uint32_t n_left;                              /* prompt tokens of the longest waiting prefill */
};

/* Rows for prefill in the next batch. *bounded: fewer than possible, because others wait. */
uint32_t sched_chunk(const struct sched *s, const struct sched_wish *w, bool *bounded);

#endif
