#include "coordinator/scheduler.h"

#include "common/base/banned.h"

enum {
    CHUNKS_PER_STAGE = 16,                        /* a long prompt fills a pipeline of S stages to 16 / 17 with 16 (S-1) chunks */
    CHUNK_EFFICIENT = 64,                         /* rows below which it is not cut for that */
    CHUNK_STEP = 16                               /* whole tiles of the kernels */
};

void sched_plan(struct sched *s, const struct coord_plan *plan) {
    *s = (struct sched){ .n_stage = plan->n_stage };
    for (uint32_t i = 0; i < plan->n_stage; i++) {
        const struct coord_plan_stage *p = &plan->stage[i];
        if (p->us_row_1) sched_measured(s, i, 1, p->us_row_1);
        if (p->us_row_n) sched_measured(s, i, plan->n_rows_max, p->us_row_n);
    }
    s->n_sample = 0;
}

static uint32_t point_of(uint32_t n_row) {
    uint32_t k = 0;
    while (k + 1 < SCHED_POINTS && n_row >> (k + 1)) k++;
    return k;
}

/* A quarter of the way to the new value: three batches forget a hiccup, ten follow a change of clock. */
static uint32_t smooth(uint32_t old, uint32_t new) {
    return (uint32_t)(((uint64_t)old * 3 + new + 2) / 4);
}

void sched_measured(struct sched *s, uint32_t stage_i, uint32_t n_row, uint32_t us) {
    if (stage_i >= s->n_stage || n_row == 0) return;
    struct sched_stage *t = &s->stage[stage_i];
    uint32_t k = point_of(n_row);
    t->us[k] = t->row[k] ? smooth(t->us[k], MAX(us, 1)) : MAX(us, 1);
    t->row[k] = t->row[k] ? MAX(1, smooth(t->row[k], n_row)) : n_row;
    s->n_sample++;
}

void sched_between(struct sched *s, uint32_t us) {
    s->between_us = s->between_us ? smooth(s->between_us, us) : us;
}

uint32_t sched_stage_us(const struct sched *s, uint32_t stage_i, uint32_t n_row) {
    const struct sched_stage *t = &s->stage[stage_i];
    int32_t below = -1, above = -1;
    for (int32_t k = 0; k < SCHED_POINTS; k++) {
        if (!t->row[k]) continue;
        if (t->row[k] <= n_row) below = k;
        else if (above < 0) above = k;
    }
    if (below < 0 && above < 0) return 0;
    if (below < 0) return t->us[above];           /* fewer rows never take longer; how much less we cannot know */
    uint64_t us;
    if (above < 0) {
        us = (uint64_t)t->us[below] * n_row / t->row[below];
    } else {
        int64_t rise = (int64_t)t->us[above] - t->us[below];
        int64_t more = rise * (int64_t)(n_row - t->row[below]) / (int64_t)(t->row[above] - t->row[below]);
        us = (uint64_t)((int64_t)t->us[below] + MAX(more, 0));
    }
    return us < UINT32_MAX ? MAX(1, (uint32_t)us) : UINT32_MAX;
}

uint64_t sched_sum_us(const struct sched *s, uint32_t n_row) {
    uint64_t sum = 0;
    for (uint32_t i = 0; i < s->n_stage; i++) {
        uint32_t us = sched_stage_us(s, i, n_row);
        if (!us) return 0;
        sum += us;
    }
    return sum;
}

uint32_t sched_slowest_us(const struct sched *s, uint32_t n_row) {
    uint32_t slowest = 0;
    for (uint32_t i = 0; i < s->n_stage; i++) slowest = MAX(slowest, sched_stage_us(s, i, n_row));
    return slowest;
}

/* Splitting decode rows further than the stages need costs weight traffic, so an extra group has to buy something: it hides
 * the time that a batch is in no stage at all. One tenth of the slowest stage is not worth hiding. */
uint32_t sched_groups(const struct sched *s, uint32_t n_extra) {
    uint32_t slowest = sched_slowest_us(s, 1);
    if (slowest && s->between_us < slowest / 10) return s->n_stage;
    if (slowest) n_extra = MIN(n_extra, 1 + s->between_us / slowest);
    return s->n_stage + n_extra;
}

/* How much later the next token of a stream comes when every batch carries n more rows: it meets n_group batches at the
 * slowest stage, and has to go through all stages itself. */
static uint64_t delay_us(const struct sched *s, const struct sched_wish *w, uint32_t n) {
    uint32_t d = MAX(w->n_decode_row, 1);
    uint64_t sum = sched_sum_us(s, d + n), cycle = (uint64_t)sched_slowest_us(s, d + n) * w->n_group;
    uint64_t sum_0 = sched_sum_us(s, d), cycle_0 = (uint64_t)sched_slowest_us(s, d) * w->n_group;
    uint64_t with = MAX(sum, cycle), without = MAX(sum_0, cycle_0);
    return with > without ? with - without : 0;
}

uint32_t sched_chunk(const struct sched *s, const struct sched_wish *w, bool *bounded) {
    uint32_t most = w->n_max;
    *bounded = false;
    if (s->n_stage > 1) {
        uint32_t fill = w->n_left / (CHUNKS_PER_STAGE * (s->n_stage - 1));
        most = MIN(most, MAX(fill, (uint32_t)CHUNK_EFFICIENT));
    }
    if (!w->others_wait) return most;
    if (!sched_sum_us(s, 1)) {
        *bounded = w->n_first < most;
        return MIN(most, w->n_first);
    }
    uint32_t lo = MIN(w->n_min, most), hi = most;     /* lo always goes */
    while (lo < hi) {
        uint32_t mid = hi - (hi - lo) / 2;
        if (delay_us(s, w, mid) <= w->bound_us) lo = mid;
        else hi = mid - 1;
    }
    *bounded = lo < most;
    if (lo < most && lo > CHUNK_STEP) lo -= lo % CHUNK_STEP;
    return MAX(lo, MIN(w->n_min, most));
}
