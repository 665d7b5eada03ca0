#include "coordinator/scheduler.h"

#include "common/base/banned.h"

enum {
    CHUNKS_PER_STAGE = 16, /* unmeasured: 16 (S-1) chunks fill a pipeline of S stages to 16 / 17 */
    CHUNK_LEAST = 64,      /* fewer rows are never worth a batch of their own */
    CHUNK_EFFICIENT = 128, /* unmeasured: not below this, an expert then sees three rows */
    CHUNK_STEP = 16,       /* whole tiles of the kernels */
    BOUND_PERCENT = 75     /* the estimate is of the mean; rows that touch many experts take longer */
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
    t->row[k] = t->row[k] ? smooth(t->row[k], n_row * SCHED_FINE) : n_row * SCHED_FINE;
    s->n_sample++;
}

void sched_between(struct sched *s, uint32_t us) {
    s->between_us = s->between_us ? smooth(s->between_us, us) : us;
}

/* The straight line through two points, at n_row. Never falling: a dip is noise. */
static uint64_t on_line(const struct sched_stage *t, int32_t a, int32_t b, uint32_t n_row) {
    int64_t rise = MAX((int64_t)t->us[b] - t->us[a], 0), run = MAX((int64_t)t->row[b] - t->row[a], 1);
    return (uint64_t)((int64_t)t->us[a] + rise * ((int64_t)n_row * SCHED_FINE - t->row[a]) / run);
}

/* More rows than ever seen: the line of the last two points goes on; with one point, in proportion. */
static uint64_t beyond(const struct sched_stage *t, int32_t last, uint32_t n_row) {
    for (int32_t k = last - 1; k >= 0; k--)
        if (t->row[k]) return MAX(on_line(t, k, last, n_row), t->us[last]);
    return (uint64_t)t->us[last] * n_row * SCHED_FINE / t->row[last];
}

uint32_t sched_stage_us(const struct sched *s, uint32_t stage_i, uint32_t n_row) {
    const struct sched_stage *t = &s->stage[stage_i];
    int32_t below = -1, above = -1;
    for (int32_t k = 0; k < SCHED_POINTS; k++) {
        if (!t->row[k]) continue;
        if (t->row[k] <= n_row * SCHED_FINE) below = k;
        else if (above < 0) above = k;
    }
    if (below < 0 && above < 0) return 0;
    if (below < 0) return t->us[above]; /* fewer rows never take longer; how much less we cannot know */
    uint64_t us = above < 0 ? beyond(t, below, n_row) : on_line(t, below, above, n_row);
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

/* All streams get a token once per cycle: when each group has been through the slowest stage, or when one
 * group has been all the way round, whichever takes longer. Unmeasured: as many as fill the pipeline. */
uint32_t sched_groups(const struct sched *s, uint32_t n_stream, uint32_t n_extra) {
    uint32_t most = s->n_stage + n_extra, best = most;
    uint64_t least = UINT64_MAX;
    if (!sched_sum_us(s, 1) || n_stream == 0) return most;
    for (uint32_t g = most; g > 0; g--) {
        uint32_t n = (n_stream + g - 1) / g;
        uint64_t queue = (uint64_t)sched_slowest_us(s, n) * g, way = sched_sum_us(s, n) + s->between_us;
        uint64_t cycle = MAX(queue, way);
        if (cycle < least) least = cycle, best = g;
    }
    return best;
}

/* How much later a stream's next token comes with n rows of prompts in every batch in flight: they all go
 * through the slowest stage before its turn comes again. While they begin, its own batch follows behind
 * all of them and then still has the other stages before it. */
static uint64_t delay_us(const struct sched *s, const struct sched_wish *w, uint32_t n, bool begins) {
    uint32_t d = MAX(w->n_decode_row, 1);
    uint64_t sum = sched_sum_us(s, d + n), slowest = sched_slowest_us(s, d + n);
    uint64_t sum_0 = sched_sum_us(s, d), cycle_0 = (uint64_t)sched_slowest_us(s, d) * w->n_group;
    uint64_t with = begins ? slowest * (w->n_window - 1) + sum : MAX(sum, slowest * w->n_window);
    uint64_t without = MAX(sum_0, cycle_0);
    return with > without ? with - without : 0;
}

/* The same with n rows in its own batch only. */
static uint64_t joined_us(const struct sched *s, const struct sched_wish *w, uint32_t n) {
    uint32_t d = MAX(w->n_decode_row, 1);
    return sched_sum_us(s, d + n) - MIN(sched_sum_us(s, d), sched_sum_us(s, d + n));
}

enum where { STEADY, BEGINNING, JOINED };

/* The most rows that delay nobody by more than the bound, or n_min. */
static uint32_t most_within(const struct sched *s, const struct sched_wish *w, uint32_t most,
                            enum where where) {
    uint64_t bound_us = (uint64_t)w->bound_us * BOUND_PERCENT / 100;
    uint32_t lo = MIN(w->n_min, most), hi = most;
    while (lo < hi) {
        uint32_t mid = hi - (hi - lo) / 2;
        uint64_t us = where == JOINED ? joined_us(s, w, mid) : delay_us(s, w, mid, where == BEGINNING);
        if (us <= bound_us) lo = mid;
        else hi = mid - 1;
    }
    return lo;
}

/* The chunk that takes a prompt through soonest: all chunks through the slowest stage, and the last one
 * through the others. A size that was never timed looks better than it is, since experts make the true
 * curve bend over the straight lines between what was timed; so it is tried, and then known. */
static uint32_t chunk_soonest(const struct sched *s, uint32_t n_prompt, uint32_t n_max) {
    uint32_t fill = n_prompt / (CHUNKS_PER_STAGE * (s->n_stage - 1));
    uint32_t best = MIN(n_max, MAX(fill, (uint32_t)CHUNK_EFFICIENT));
    if (n_prompt <= CHUNK_LEAST || !sched_sum_us(s, 1)) return best;
    uint64_t least = UINT64_MAX;
    for (uint32_t n = CHUNK_LEAST, more = n / 2; n < n_max + more; n += more) {
        uint32_t rows = MIN(n, n_max);
        uint64_t n_turn = (n_prompt + rows - 1) / rows + s->n_stage - 1;
        uint64_t total = sched_slowest_us(s, rows) * n_turn;
        if (total < least) least = total, best = rows;
        if ((n & (n - 1)) == 0) more = n / 2;
    }
    return best;
}

/* Chunks grow from what is right at the beginning to what is right for ever, so that those behind smaller
 * ones do not wait for larger ones. */
static uint32_t most_now(const struct sched *s, const struct sched_wish *w, uint32_t most) {
    uint32_t first = most_within(s, w, most, BEGINNING);
    if (w->n_prefill + 1 < w->n_window) return first;
    uint32_t grown = w->n_least + MAX(w->n_least / 4, (uint32_t)CHUNK_STEP);
    return MIN(most_within(s, w, most, STEADY), MAX(first, grown));
}

uint32_t sched_chunk(const struct sched *s, const struct sched_wish *w, enum sched_cut *cut) {
    uint32_t most = s->n_stage > 1 ? chunk_soonest(s, w->n_prompt, w->n_max) : w->n_max;
    *cut = SCHED_FREE;
    if (!w->others_wait) return most;
    if (!sched_sum_us(s, 1)) {
        if (w->n_first < most) *cut = SCHED_BOUNDED;
        return MIN(most, w->n_first);
    }
    uint32_t n;
    if (delay_us(s, w, MIN(w->n_min, most), true) > w->bound_us) {
        *cut = SCHED_JOINED;
        n = most_within(s, w, most, JOINED);
    } else {
        n = most_now(s, w, most);
        if (n < most) *cut = SCHED_BOUNDED;
    }
    if (n < most && n > CHUNK_STEP) n -= n % CHUNK_STEP;
    return MAX(n, MIN(w->n_min, most));
}
