#include "coordinator/pipeline.h"

#include "coordinator/core_private.h"
#include "coordinator/launch.h"

#include "common/base/check.h"
#include "common/base/mark.h"
#include "common/base/plant.h"
#include "common/base/sm.h"

#include <stdio.h>

#include "common/base/banned.h"

enum { ESTIMATE_FACTOR = 4, LATE_SCALE_MAX = 64, WEDGED_AFTER = 3 };

static const struct sm_state states[FL_STATES] = {
    [FL_OVER]   = { "over",   SM_BIT(FL_FLYING) },
    [FL_FLYING] = { "flying", SM_BIT(FL_ROWS) | SM_BIT(FL_OVER) },
    [FL_ROWS]   = { "rows",   SM_BIT(FL_OVER) },
};
static const struct sm_table flight_table = { "batch", states, FL_STATES };

static void set_state(struct coord *c, struct flight *f, enum flight_state to) {
    sm_move(&flight_table, &f->state, (int)to, f->id, &c->config.trace);
}

void pipeline_init(struct coord *c) {
    struct pipeline *p = &c->pipeline;
    CHECK(c->config.n_window_max > 0 && c->config.n_window_max <= MSG_BATCHES_MAX / 2);
    pool_init(&p->pool, c->config.n_window_max);
    p->flight = xcalloc(c->config.n_window_max, sizeof *p->flight);
    p->sync_seq = xcalloc(MSG_SEQS_MAX, sizeof *p->sync_seq);
    p->batch_next = 1;
    p->late_scale = 1;
}

void pipeline_deinit(struct coord *c) {
    struct pipeline *p = &c->pipeline;
    for (uint32_t i = 0; i < c->config.n_window_max; i++) {
        struct flight *f = &p->flight[i];
        free(f->seg);
        free(f->msg_seg);
        free(f->token);
        free(f->want);
        free(f->bias);
    }
    free(p->flight);
    free(p->sync_seq);
    pool_deinit(&p->pool);
}

void pipeline_start(struct coord *c) {
    struct pipeline *p = &c->pipeline;
    p->n_dead = p->n_dead_row = 0;
    p->result_ns = c->now_ns;
    p->sync_dirty = false;
}

void pipeline_drop_all(struct coord *c, struct coord_outs *outs) {
    struct pipeline *p = &c->pipeline;
    (void)outs;
    for (int64_t i = -1; (i = pool_next(&p->pool, i)) >= 0;) {
        set_state(c, &p->flight[i], FL_OVER);
        pool_give(&p->pool, (uint32_t)i);
        c->totals.n_batch_dead++;
    }
}

uint32_t pipeline_window(const struct coord *c) {
    return MIN(c->cluster.plan.n_stage + c->config.n_extra, c->config.n_window_max);
}

/* ---- what is over ---- */

static uint64_t batch_done(const struct coord *c) {
    uint64_t done = c->pipeline.batch_next;
    for (int64_t i = -1; (i = pool_next(&c->pipeline.pool, i)) >= 0;)
        done = MIN(done, c->pipeline.flight[i].id);
    return done;
}

static void dead_add(struct coord *c, uint64_t id) {
    struct pipeline *p = &c->pipeline;
    uint64_t done = batch_done(c);
    uint32_t keep = 0;
    for (uint32_t i = 0; i < p->n_dead; i++)
        if (p->dead[i] >= done) p->dead[keep++] = p->dead[i];
    p->n_dead = keep;
    p->sync_dirty = true;
    if (id < done) return;
    CHECK(p->n_dead < MSG_BATCHES_MAX);
    uint32_t i = p->n_dead++;
    for (; i > 0 && p->dead[i - 1] > id; i--) p->dead[i] = p->dead[i - 1];
    p->dead[i] = id;
}

static void flight_end(struct coord *c, struct flight *f) {
    set_state(c, f, FL_OVER);
    pool_give(&c->pipeline.pool, (uint32_t)(f - c->pipeline.flight));
}

/* Whether scores that it carries were not told yet. */
static bool is_unscored(const struct request *r, const struct flight_seg *s) {
    return s->n_score && r->n_scored <= s->score0 + s->n_score;
}

/* What it carried goes back. A segment is lost unless a later one of its sequence has come through.
 * `culprit`: the sequence that a stage refused; it has to be computed again, its mates only go on. */
static void flight_lost(struct coord *c, struct flight *f, uint64_t culprit, int code,
                        struct coord_outs *outs) {
    struct pipeline *p = &c->pipeline;
    c->totals.n_batch_dead++;
    p->n_dead_row++;
    TRACE(&c->config.trace, "batch %llu of epoch %llu is lost: %s", (unsigned long long)f->id,
          (unsigned long long)c->epoch, err_text(code));
    for (uint32_t i = 0; i < f->n_seg; i++) {
        struct flight_seg *s = &f->seg[i];
        if (s->over) continue;
        struct request *r = request_of_seq(c, s->seq);
        if (culprit && s->seq != culprit) MARK(seq_mate_refused);
        bool held = r && s->pos0 + s->n <= r->n_held, unscored = r && is_unscored(r, s);
        uint32_t back = held ? r->n_token - 1 : s->pos0;
        if (unscored) back = MIN(back, r->n_scored - 1);
        if (r && (s->want_i != FLIGHT_NO_WANT || unscored || !held))
            request_lost(c, r, back, s->seq == culprit, code, outs);
        request_flight_over(c, s->seq, outs);
    }
    uint64_t id = f->id;
    flight_end(c, f);
    dead_add(c, id);
}

static struct flight *flight_find(struct coord *c, uint64_t id) {
    for (int64_t i = -1; (i = pool_next(&c->pipeline.pool, i)) >= 0;)
        if (c->pipeline.flight[i].id == id) return &c->pipeline.flight[i];
    MARK(batch_unknown);
    return NULL;
}

/* ---- results ---- */

static uint32_t us_between(uint64_t from_ns, uint64_t to_ns) {
    uint64_t us = to_ns > from_ns ? (to_ns - from_ns) / 1000 : 0;
    return us < UINT32_MAX ? (uint32_t)us : UINT32_MAX;
}

static bool result_is_sound(const struct coord *c, const struct flight *f, const struct coord_event *ev) {
    const struct msg_result *r = &ev->msg->u.result;
    if (r->n_row != f->n_want || r->n_timing > MSG_STAGES_MAX) return false;
    for (uint32_t i = 0; i < r->n_row; i++) {
        const struct msg_row_result *row = &r->row[i];
        if (row->row != f->want[i].row || row->offset > ev->take_payload.bytes ||
            row->bytes > ev->take_payload.bytes - row->offset)
            return false;
    }
    for (uint32_t i = 0; i < r->n_timing; i++)
        if (r->timing[i].stage_i >= c->cluster.plan.n_stage) return false;
    return true;
}

/* Before the launch: waiting for a place in a batch, and before that for the sampler to be through with
 * the batch before. */
static uint32_t wait_us(const struct flight *f, uint64_t ready_ns) {
    uint32_t us = us_between(ready_ns, f->launched_ns);
    return us - MIN(us, f->spent_us);
}

/* The account of a batch: what the stages tell of themselves, and the rest of the round trip is wire. */
static void account(struct coord *c, const struct flight *f, const struct msg_result *r) {
    struct coord_totals *t = &c->totals;
    struct coord_batch_trace *b = &c->trace[c->n_trace++ % COORD_TRACES];
    *b = (struct coord_batch_trace){ .batch = f->id,
                                     .launched_ns = f->launched_ns,
                                     .n_row = f->n_row,
                                     .n_decode = f->n_decode,
                                     .n_stage = r->n_timing,
                                     .total_us = us_between(f->launched_ns, c->now_ns),
                                     .wait_us = f->n_decode ? wait_us(f, f->ready_ns) : 0,
                                     .sample_us = f->spent_us };
    for (uint32_t i = 0; i < r->n_timing; i++) {
        const struct msg_timing *m = &r->timing[i];
        sched_measured(&c->sched, m->stage_i, f->n_row, m->compute_us);
        b->queue_us += m->queue_us;
        b->compute_us += m->compute_us;
        b->hold_us += m->hold_us;
        t->stage_compute_us[m->stage_i] += m->compute_us;
        t->stage_queue_us[m->stage_i] += m->queue_us;
        t->stage_hold_us[m->stage_i] += m->hold_us;
        t->stage_row[m->stage_i] += f->n_row;
    }
    uint64_t inside = (uint64_t)b->queue_us + b->compute_us + b->hold_us;
    b->wire_us = b->total_us - (uint32_t)MIN(inside, b->total_us);
    sched_between(&c->sched, b->wire_us);
    t->n_batch++;
    t->n_prefill_row += f->n_row - f->n_decode;
}

/* A token came out of a decode row: its time since the one before it. */
static void account_token(struct coord *c, const struct flight *f, uint64_t ready_ns) {
    struct coord_totals *t = &c->totals;
    const struct coord_batch_trace *b = &c->trace[(c->n_trace - 1) % COORD_TRACES];
    t->n_token++;
    if (b->batch != f->id) return;                /* it needed another row, and batches have come since */
    t->wall_us += us_between(ready_ns, c->now_ns);
    t->wait_us += wait_us(f, ready_ns);
    t->sample_us += f->spent_us;
    t->queue_us += b->queue_us;
    t->compute_us += b->compute_us;
    t->hold_us += b->hold_us;
    t->wire_us += b->wire_us + us_between(f->launched_ns + b->total_us * UINT64_C(1000),
                                          c->now_ns); /* and of a fetched row */
}

/* How likely the prompt's own tokens were. false: the request is over, or has to go back because rows
 * before these are missing; so is the segment. */
static bool score(struct coord *c, struct flight_seg *s, const struct msg_row_result *row,
                  struct payload payload, struct coord_outs *outs) {
    struct request *r = request_of_seq(c, s->seq);
    bool wanted = s->want_i != FLIGHT_NO_WANT;
    if (!r || (!s->n_score && !wanted)) return true;
    request_held(c, s->seq, s->pos0 + s->n);
    uint32_t before = s->n_score ? s->score0 + 1 : r->n_prompt;
    int rc = 0;
    if (r->n_scored < before && !PLANT(score_gap)) {
        MARK(score_out_of_turn);
        request_lost(c, r, r->n_scored - 1, false, ERR_PEER, outs);
        rc = ERR_PEER;
    }
    for (uint32_t i = 0; i < s->n_score && rc == 0; i++) {
        uint32_t position = s->score0 + i + 1;
        if (position < r->n_scored) continue;     /* told before it was lost */
        struct coord_sample in = { .tag = r->tag, .position = position, .row = &row[s->score_i + i],
                                   .payload = payload, .known = true, .token = r->token[position] };
        struct coord_sampled out = { 0 };
        rc = c->config.sample(c->config.ctx, &in, &out);
        c->pipeline.spent_us += out.spent_us;
        if (rc == 0) r->n_scored++;
        else request_end(c, r, rc < 0 ? rc : ERR_CORRUPT, "a token of the prompt cannot be scored", outs);
    }
    if (rc == 0) return true;
    s->over = true;
    request_flight_over(c, s->seq, outs);
    return false;
}

/* 0: the segment is over. COORD_NEED_MORE: the row has to be fetched. */
static int sample(struct coord *c, struct flight *f, struct flight_seg *s,
                  const struct msg_row_result *row, struct payload payload, struct coord_outs *outs) {
    struct request *r = request_of_seq(c, s->seq);
    request_held(c, s->seq, s->pos0 + s->n);
    if (r && s->want_i != FLIGHT_NO_WANT && s->pos0 + s->n == r->n_token) {
        struct coord_sample in = { .tag = r->tag, .position = r->n_token, .row = row, .payload = payload };
        struct coord_sampled out = { 0 };
        uint64_t ready_ns = r->ready_ns;
        bool decode = s->n == 1;
        int rc = c->config.sample(c->config.ctx, &in, &out);
        c->pipeline.spent_us += out.spent_us;
        if (rc == COORD_NEED_MORE) return rc;
        if (rc < 0) {
            request_end(c, r, rc, "no token can be chosen", outs);
        } else {
            if (decode) account_token(c, f, ready_ns);
            request_token(c, r, &out, outs);
        }
    }
    s->over = true;
    request_flight_over(c, s->seq, outs);
    return 0;
}

static void ask_for_row(struct coord *c, struct flight *f, const struct flight_seg *s,
                        struct coord_outs *outs) {
    MARK(row_wanted);
    f->n_more++;
    c->totals.n_row_more++;
    struct msg *m = coord_send(c, outs, c->cluster.node[c->cluster.last_node].peer.link, MSG_ROW_GET);
    m->trace = f->id;
    m->u.row_get = (struct msg_row_get){ .batch = f->id, .row = s->row };
}

/* Stages and links keep the order, so whatever is older and has not come will not come. */
static void end_overtaken(struct coord *c, uint64_t id, struct coord_outs *outs) {
    for (int64_t i = -1; (i = pool_next(&c->pipeline.pool, i)) >= 0;) {
        struct flight *f = &c->pipeline.flight[i];
        if (f->state != FL_FLYING || f->id >= id) continue;
        MARK(batch_overtaken);
        flight_lost(c, f, 0, ERR_PEER, outs);
    }
}

static uint64_t batch_deadline_ns(const struct coord *c, uint32_t n_row) {
    uint64_t us = sched_sum_us(&c->sched, n_row), wait_ms = c->config.batch_floor_ms;
    if (!us) wait_ms += c->config.batch_unknown_ms;
    for (int64_t i = -1; (i = pool_next(&c->pipeline.pool, i)) >= 0;)
        us += sched_slowest_us(&c->sched, c->pipeline.flight[i].n_row);
    us += c->sched.between_us;
    return c->now_ns + (us * 1000 * ESTIMATE_FACTOR + ms_to_ns(wait_ms)) * c->pipeline.late_scale;
}

/* Too late to be of use, but it shows how long things take here. */
static void learn_from_late(struct coord *c, const struct msg_result *r) {
    for (uint32_t i = 0; i < MIN(r->n_timing, (uint32_t)MSG_STAGES_MAX); i++)
        sched_measured(&c->sched, r->timing[i].stage_i, MIN(r->timing[i].n_row, (uint32_t)MSG_ROWS_MAX),
                       r->timing[i].compute_us);
}

void pipeline_on_result(struct coord *c, const struct coord_event *ev, struct coord_outs *outs) {
    const struct msg_result *result = &ev->msg->u.result;
    struct pipeline *p = &c->pipeline;
    struct flight *f = flight_find(c, result->batch);
    if (PLANT(old_result_taken) && !f && p->pool.n_used) f = &p->flight[pool_next(&p->pool, -1)];
    if (!f) {
        learn_from_late(c, result);
        return;
    }
    if (f->state != FL_FLYING) {
        MARK(batch_unknown);
        return;
    }
    if (!result_is_sound(c, f, ev)) {
        MARK(result_corrupt);
        flight_lost(c, f, 0, ERR_CORRUPT, outs);
        return;
    }
    p->n_dead_row = 0;
    p->result_ns = c->now_ns;
    if (p->late_scale > 1) p->late_scale /= 2;
    account(c, f, result);
    for (uint32_t i = 0; i < f->n_seg; i++) {
        struct flight_seg *s = &f->seg[i];
        const struct msg_row_result *row = s->want_i == FLIGHT_NO_WANT ? NULL : &result->row[s->want_i];
        if (!score(c, s, result->row, ev->take_payload, outs)) continue;
        if (sample(c, f, s, row, ev->take_payload, outs) == COORD_NEED_MORE) ask_for_row(c, f, s, outs);
    }
    uint64_t id = f->id;
    if (f->n_more) {
        f->deadline_ns = batch_deadline_ns(c, f->n_row);
        set_state(c, f, FL_ROWS);
    } else {
        flight_end(c, f);
    }
    end_overtaken(c, id, outs);
}

void pipeline_on_row(struct coord *c, const struct coord_event *ev, struct coord_outs *outs) {
    const struct msg_row *m = &ev->msg->u.row;
    struct flight *f = flight_find(c, m->batch);
    if (!f) return;
    struct flight_seg *s = NULL;
    for (uint32_t i = 0; i < f->n_seg && f->state == FL_ROWS; i++)
        if (!f->seg[i].over && f->seg[i].want_i != FLIGHT_NO_WANT && f->seg[i].row == m->row) s = &f->seg[i];
    if (!s) {
        MARK(row_unknown);
        return;
    }
    struct msg_row_result row = {
        .row = m->row, .whole = true, .bytes = ev->take_payload.bytes, .n_vocab = m->n_vocab
    };
    /* More than everything there is none: a sampler that still wants more, or a row that is gone, costs
     * the token another try. */
    if (m->code < 0 || sample(c, f, s, &row, ev->take_payload, outs) == COORD_NEED_MORE) {
        MARK(row_gone);
        flight_lost(c, f, 0, ERR_PEER, outs);
        return;
    }
    if (--f->n_more == 0) flight_end(c, f);
}

void pipeline_on_refused(struct coord *c, const struct msg_work_refused *refused, struct coord_outs *outs) {
    struct flight *f = flight_find(c, refused->batch);
    if (!f || f->state != FL_FLYING) return;
    MARK(batch_refused);
    bool position = refused->reason == MSG_REFUSED_POSITION || refused->reason == MSG_REFUSED_SLOTS;
    flight_lost(c, f, position ? refused->seq : 0, ERR_PEER, outs);
}

void pipeline_on_failed(struct coord *c, const struct msg_failed *failed, struct coord_outs *outs) {
    struct flight *f = flight_find(c, failed->batch);
    if (!f || f->state != FL_FLYING) return;
    MARK(batch_failed);
    struct coord_out *o = coord_out(outs, COORD_OUT_NOTICE);
    o->code = failed->code;
    snprintf(o->text, sizeof o->text, "batch %llu failed: %.60s", (unsigned long long)failed->batch,
             failed->text);
    flight_lost(c, f, 0, failed->code < 0 ? failed->code : ERR_INTERNAL, outs);
}

/* ---- launching ---- */

static void flight_send(struct coord *c, struct flight *f, struct coord_outs *outs) {
    f->id = c->pipeline.batch_next++;
    f->spent_us = (uint32_t)c->pipeline.spent_us;
    f->launched_ns = c->now_ns + c->pipeline.spent_us * 1000;
    f->deadline_ns = batch_deadline_ns(c, f->n_row);
    set_state(c, f, FL_FLYING);
    struct msg *m = coord_send(c, outs, c->cluster.node[c->cluster.first_node].peer.link, MSG_WORK);
    m->trace = f->id;
    m->u.work = (struct msg_work){ .batch = f->id,
                                   .batch_done = batch_done(c),
                                   .seg = f->msg_seg,
                                   .token = f->token,
                                   .want = f->want,
                                   .bias = f->bias,
                                   .n_seg = f->n_seg,
                                   .n_row = f->n_row,
                                   .n_want = f->n_want,
                                   .n_bias = f->n_bias };
}

static bool launch_one(struct coord *c, struct coord_outs *outs) {
    struct pipeline *p = &c->pipeline;
    if (c->requests.list[RL_READY].n + c->requests.list[RL_PREFILL].n == 0) return false;
    if (p->pool.n_used >= pipeline_window(c) || p->n_dead + c->config.n_window_max >= MSG_BATCHES_MAX)
        return false;
    int64_t i = pool_take(&p->pool);
    CHECK(i >= 0);
    struct flight *f = &p->flight[i];
    f->id = UINT64_MAX;
    if (!launch_choose(c, f)) {
        pool_give(&p->pool, (uint32_t)i);
        return false;
    }
    flight_send(c, f, outs);
    return true;
}

void pipeline_launch(struct coord *c, struct coord_outs *outs) {
    if (c->cluster.state != CL_SERVING) return;
    while (launch_one(c, outs)) { }
}

/* ---- SYNC ---- */

static void send_sync(struct coord *c, uint32_t link, struct coord_outs *outs) {
    struct msg *m = coord_send(c, outs, link, MSG_SYNC);
    m->u.sync = (struct msg_sync){ .seq_next = c->sequences.next,
                                   .batch_done = batch_done(c),
                                   .seq = c->pipeline.sync_seq,
                                   .dead = c->pipeline.dead,
                                   .n_seq = c->sequences.n,
                                   .n_dead = c->pipeline.n_dead };
}

void pipeline_send_syncs(struct coord *c, struct coord_outs *outs) {
    struct pipeline *p = &c->pipeline;
    bool serving = c->cluster.state == CL_SERVING, filled = false;
    for (uint32_t i = 0; i < c->config.n_node_max; i++) {
        struct coord_node *n = &c->cluster.node[i];
        bool due = serving && n->state == ND_READY && (p->sync_dirty || n->sync_due);
        n->sync_due = false;
        if (!due) continue;
        for (uint32_t k = 0; !filled && k < c->sequences.n; k++) p->sync_seq[k] = c->sequences.seq[k].id;
        filled = true;
        send_sync(c, n->peer.link, outs);
    }
    if (serving) p->sync_dirty = false;
}

/* ---- time ---- */

void pipeline_timers(struct coord *c, struct coord_outs *outs) {
    struct pipeline *p = &c->pipeline;
    if (c->cluster.state != CL_SERVING || PLANT(late_ignored)) return;
    bool late = false;
    for (int64_t i = -1; (i = pool_next(&p->pool, i)) >= 0;) {
        if (c->now_ns < p->flight[i].deadline_ns) continue;
        MARK(batch_late);
        late = true;
        flight_lost(c, &p->flight[i], 0, ERR_TIMEOUT, outs);
    }
    if (late) p->late_scale = MIN(p->late_scale * 2, (uint32_t)LATE_SCALE_MAX);
    if (p->n_dead_row >= WEDGED_AFTER &&
        c->now_ns >= p->result_ns + ms_to_ns(c->config.wedge_ms) * p->late_scale) {
        MARK(pipeline_wedged);
        cluster_fail_plan(c, "no batch comes through", outs);
    }
}

uint64_t pipeline_deadline_ns(const struct coord *c) {
    uint64_t d = UINT64_MAX;
    if (PLANT(late_ignored)) return d;
    for (int64_t i = -1; (i = pool_next(&c->pipeline.pool, i)) >= 0;)
        d = MIN(d, c->pipeline.flight[i].deadline_ns);
    return d;
}

void pipeline_check(const struct coord *c) {
    const struct pipeline *p = &c->pipeline;
    CHECK(p->pool.n_used == 0 || c->cluster.state == CL_SERVING);
    CHECK(p->pool.n_used == 0 || p->pool.n_used <= pipeline_window(c));
    for (int64_t i = -1; (i = pool_next(&p->pool, i)) >= 0;) {
        const struct flight *f = &p->flight[i];
        CHECK(f->state != FL_OVER && f->id < p->batch_next && f->n_seg > 0);
        CHECK((f->state == FL_ROWS) == (f->n_more > 0));
        CHECK(f->deadline_ns != 0 && f->deadline_ns != UINT64_MAX);
    }
    for (uint32_t i = 1; i < p->n_dead; i++) CHECK(p->dead[i - 1] < p->dead[i]);
}
