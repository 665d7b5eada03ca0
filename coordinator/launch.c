#include "coordinator/launch.h"

#include "coordinator/core_private.h"

#include "common/base/check.h"
#include "common/base/mark.h"

#include "common/base/banned.h"

/* Rows of one batch that score a prompt: each costs the last stage a row of logits, of which it keeps
 * n_seg_max at most. */
enum { SCORES_MAX = 64 };

/* ---- segments ---- */

/* Arrays grow to the largest batch seen and are used again. */
static void *grown(void *memory, uint32_t *room, uint32_t need, size_t size) {
    if (need <= *room) return memory;
    *room = MAX(need, *room * 2);
    return xrealloc(memory, *room * size);
}

static void segs_grow(struct flight *f) {
    uint32_t room = f->seg_room;
    f->seg = grown(f->seg, &f->seg_room, f->n_seg + 1, sizeof *f->seg);
    if (f->seg_room != room) f->msg_seg = xrealloc(f->msg_seg, f->seg_room * sizeof *f->msg_seg);
}

/* Of the next n rows: those whose token is followed by one of the prompt that has to be scored. */
static uint32_t scores_of(const struct request *r, uint32_t n, uint32_t *first) {
    uint32_t end = MIN(r->n_sent + n, r->n_prompt - 1);
    *first = MAX(r->n_sent, r->n_scored - 1);
    return end > *first ? end - *first : 0;
}

/* Segments first in the order of choice; flight_fill() sorts them and writes what the message points to. */
static void seg_add(struct coord *c, struct flight *f, struct request *r, uint32_t n) {
    segs_grow(f);
    bool wanted = r->n_sent + n == r->n_token;
    struct flight_seg *s = &f->seg[f->n_seg++];
    *s = (struct flight_seg){
        .seq = r->seq, .pos0 = r->n_sent, .n = n, .want_i = wanted ? 0 : FLIGHT_NO_WANT
    };
    s->n_score = scores_of(r, n, &s->score0);
    f->n_row += n;
    f->n_score += s->n_score;
    f->n_want += wanted + s->n_score;
    f->n_bias += (wanted ? r->want.n_bias : 0) + s->n_score;
    if (wanted && n == 1) {
        if (f->n_decode++ == 0 || r->ready_ns < f->ready_ns) f->ready_ns = r->ready_ns;
    }
    request_sent(c, r, n);
}

/* ---- choosing ---- */

static bool bias_fits(const struct flight *f, const struct request *r) {
    return f->n_bias + r->want.n_bias <= MSG_BIAS_MAX;
}

/* Of n rows of a prompt: as many as may go into this batch. */
static uint32_t rows_that_fit(const struct coord *c, const struct flight *f, const struct request *r,
                              uint32_t n) {
    if (r->n_scored < r->n_prompt) {
        uint32_t places = c->config.n_seg_max - MIN(f->n_want, c->config.n_seg_max);
        n = MIN(n, MIN(places, (uint32_t)SCORES_MAX - MIN(f->n_score, (uint32_t)SCORES_MAX)));
    }
    return f->n_bias + r->want.n_bias + (r->n_scored < r->n_prompt ? n : 0) <= MSG_BIAS_MAX ? n : 0;
}

static void choose_decode(struct coord *c, struct flight *f, uint32_t n_most) {
    for (struct request *r = request_first(c, RL_READY), *next; r && f->n_seg < n_most; r = next) {
        next = request_next(c, r);
        if (bias_fits(f, r)) seg_add(c, f, r, 1);
    }
}

/* With what is done already: chunks of a prompt stay as they are to its end. */
static uint32_t longest_prompt(struct coord *c) {
    uint32_t most = 0;
    for (const struct request *r = request_first(c, RL_PREFILL); r; r = request_next(c, r))
        most = MAX(most, r->n_token - MIN(r->n_cached, r->n_sent));
    return most;
}

static uint32_t groups_flying(const struct coord *c) {
    uint32_t n = 0;
    for (int64_t i = -1; (i = pool_next(&c->pipeline.pool, i)) >= 0;)
        n += c->pipeline.flight[i].state == FL_FLYING && c->pipeline.flight[i].n_decode > 0;
    return n;
}

/* Batches in flight with rows of prompts, and the fewest in one of them. */
static uint32_t prefills_flying(const struct coord *c, uint32_t *n_least) {
    uint32_t n = 0;
    *n_least = UINT32_MAX;
    for (int64_t i = -1; (i = pool_next(&c->pipeline.pool, i)) >= 0;) {
        const struct flight *f = &c->pipeline.flight[i];
        if (f->state != FL_FLYING || f->n_row == f->n_decode) continue;
        n++;
        *n_least = MIN(*n_least, f->n_row - f->n_decode);
    }
    return n;
}

/* Each prefilling request in turn gets what it can use of the chunk; who got something goes to the end of
 * the row. */
static void choose_prefill(struct coord *c, struct flight *f, uint32_t n_group) {
    uint32_t room = c->cluster.n_rows_max - f->n_row, n_prefill = c->requests.list[RL_PREFILL].n;
    uint32_t n_row = (c->requests.n_decode + n_group - 1) / n_group;
    struct sched_wish wish = { .n_window = pipeline_window(c), .n_group = n_group, .n_decode_row = n_row,
                               .others_wait = c->requests.n_decode > 0, .bound_us = c->config.bound_ms * 1000,
                               .n_first = c->config.chunk_first, .n_min = c->config.chunk_min, .n_max = room,
                               .n_prompt = longest_prompt(c) };
    enum sched_cut cut;
    wish.n_prefill = prefills_flying(c, &wish.n_least);
    uint32_t left = sched_chunk(&c->sched, &wish, &cut);
    if (cut == SCHED_BOUNDED) MARK(chunk_cut_for_bound);
    if (cut == SCHED_JOINED) {
        MARK(chunk_joined);
        if (wish.n_prefill || (f->n_decode == 0 && groups_flying(c) > 0)) return;
    }
    c->pipeline.chunk = left;
    for (struct request *r = request_first(c, RL_PREFILL), *next; r && n_prefill-- > 0 && left > 0;
         r = next) {
        next = request_next(c, r);
        if (f->n_seg == c->config.n_seg_max || f->n_want >= c->config.n_seg_max) return;
        uint32_t n = rows_that_fit(c, f, r, MIN(left, r->n_token - r->n_sent));
        if (n == 0) continue;
        seg_add(c, f, r, n);
        left -= n;
        if (r->list == RL_PREFILL) request_rotate(c, r);
    }
}

/* ---- as a message ---- */

static int by_seq(const void *a, const void *b) {
    uint64_t x = ((const struct flight_seg *)a)->seq, y = ((const struct flight_seg *)b)->seq;
    return x < y ? -1 : x > y;
}

/* The token that follows is named as one with a bias: so it is shipped wherever in the order it stands. */
static void scores_add(struct flight *f, struct flight_seg *s, const struct request *r, uint32_t *n_bias) {
    uint32_t row0 = s->row + 1 - s->n + (s->score0 - s->pos0);
    s->score_i = f->n_want;
    for (uint32_t i = 0; i < s->n_score; i++) {
        f->bias[*n_bias] = (struct msg_bias){ r->token[s->score0 + i + 1], 1 };
        f->want[f->n_want++] = (struct msg_want){ .row = row0 + i, .top_p = 1, .n_top = r->want.n_top,
                                                  .logprobs = true, .n_item_max = r->want.n_item_max,
                                                  .bias_begin = (*n_bias)++, .n_bias = 1 };
    }
}

static void want_add(struct flight *f, struct flight_seg *s, const struct request *r, uint32_t *n_bias) {
    s->want_i = f->n_want++;
    f->want[s->want_i] = r->want;
    f->want[s->want_i].row = s->row;
    f->want[s->want_i].bias_begin = *n_bias;
    if (r->want.n_bias) memcpy(f->bias + *n_bias, r->bias, r->want.n_bias * sizeof *r->bias);
    *n_bias += r->want.n_bias;
}

static void flight_fill(struct coord *c, struct flight *f) {
    uint32_t row = 0, n_bias = 0;
    f->token = grown(f->token, &f->row_room, f->n_row, sizeof *f->token);
    f->bias = grown(f->bias, &f->bias_room, f->n_bias, sizeof *f->bias);
    f->want = grown(f->want, &f->want_room, f->n_want, sizeof *f->want);
    qsort(f->seg, f->n_seg, sizeof *f->seg, by_seq);
    f->n_want = 0;
    for (uint32_t i = 0; i < f->n_seg; i++) {
        struct flight_seg *s = &f->seg[i];
        const struct request *r = request_of_seq(c, s->seq);
        memcpy(f->token + row, r->token + s->pos0, s->n * sizeof *f->token);
        f->msg_seg[i] = (struct msg_seg){ .seq = s->seq, .pos0 = s->pos0, .n = s->n, .from = r->from };
        row += s->n;
        s->row = row - 1;
        scores_add(f, s, r, &n_bias);
        if (s->want_i != FLIGHT_NO_WANT) want_add(f, s, r, &n_bias);
    }
    CHECK(row == f->n_row && n_bias == f->n_bias);
}

/* ---- all of it ---- */

/* Decode never fills a batch to the last place while prompts wait; if there is only one, they alternate. */
static uint32_t decode_room(const struct coord *c, bool prefill) {
    uint32_t n = MIN(c->config.n_seg_max, c->cluster.n_rows_max);
    if (!prefill) return n;
    return n > 1 ? n - 1 : (uint32_t)(c->pipeline.batch_next % 2);
}

bool launch_choose(struct coord *c, struct flight *f) {
    struct requests *q = &c->requests;
    uint32_t n_group = sched_groups(&c->sched, q->n_decode, c->config.n_extra);
    uint32_t share = (q->n_decode + n_group - 1) / n_group, n_most = UINT32_MAX;
    bool prefill = q->list[RL_PREFILL].n > 0, last = c->pipeline.pool.n_used == pipeline_window(c);
    f->n_seg = f->n_row = f->n_want = f->n_bias = f->n_score = f->n_decode = f->n_more = 0;
    /* With all groups on the way, more rows wait for the next one to return instead of becoming a small
     * group of their own. But where prompts make batches long, a row that stays behind loses a round, and
     * costs little in a batch that travels anyway. */
    if (!prefill || !last) n_most = MIN(MAX(share, 1), n_most);
    n_most = MIN(n_most, decode_room(c, prefill));
    if (prefill || groups_flying(c) < n_group) choose_decode(c, f, n_most);
    if (prefill && f->n_row < c->cluster.n_rows_max) choose_prefill(c, f, n_group);
    if (f->n_seg == 0) return false;
    flight_fill(c, f);
    return true;
}
