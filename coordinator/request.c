#include "coordinator/request.h"

#include "coordinator/core_private.h"

#include "common/base/check.h"
#include "common/base/mark.h"
#include "common/base/plant.h"
#include "common/base/sm.h"

#include <stdio.h>

#include "common/base/banned.h"

enum { PROMPT_MAX = 1 << 24, BACKOFF_MS = 10, BACKOFF_MS_MAX = 1000 };

static const struct sm_state states[RQ_STATES] = {
    [RQ_QUEUED] = { "queued", SM_BIT(RQ_PREFILL) | SM_BIT(RQ_DONE) },
    [RQ_PREFILL] = { "prefill", SM_BIT(RQ_DECODE) | SM_BIT(RQ_QUEUED) | SM_BIT(RQ_DRAIN) |
                                    SM_BIT(RQ_DONE) }, /* QUEUED: lost */
    [RQ_DECODE] = { "decode", SM_BIT(RQ_QUEUED) | SM_BIT(RQ_PREFILL) | SM_BIT(RQ_DRAIN) |
                                  SM_BIT(RQ_DONE) }, /* a few again */
    [RQ_DRAIN] = { "drain", SM_BIT(RQ_DONE) },       /* a batch of ours is still on some device */
    [RQ_DONE] = { "done", SM_BIT(RQ_QUEUED) },       /* the place is free */
};
static const struct sm_table request_table = { "request", states, RQ_STATES };

void requests_init(struct coord *c) {
    struct requests *q = &c->requests;
    pool_init(&q->pool, c->config.n_request_max);
    q->request = xcalloc(c->config.n_request_max, sizeof *q->request);
    for (uint32_t i = 0; i < c->config.n_request_max; i++) q->request[i].state = RQ_DONE;
    for (int i = 0; i < RL_LISTS; i++) q->list[i] = (struct request_list_ends){ -1, -1, 0 };
    q->check_ns = UINT64_MAX;
}

static void release(struct request *r) {
    free(r->token);
    free(r->bias);
    r->token = NULL;
    r->bias = NULL;
}

void requests_deinit(struct coord *c) {
    for (uint32_t i = 0; i < c->config.n_request_max; i++) release(&c->requests.request[i]);
    free(c->requests.request);
    pool_deinit(&c->requests.pool);
}

static uint32_t number_of(const struct coord *c, const struct request *r) {
    return (uint32_t)(r - c->requests.request);
}

static void set_state(struct coord *c, struct request *r, enum request_state to) {
    c->requests.n_decode -= r->state == RQ_DECODE;
    sm_move(&request_table, &r->state, (int)to, r->tag, &c->config.trace);
    c->requests.n_decode += r->state == RQ_DECODE;
}

static void check_at(struct coord *c, uint64_t ns) {
    c->requests.check_ns = MIN(c->requests.check_ns, ns);
}

/* ---- lists ---- */

static struct request *at(struct coord *c, int32_t i) {
    return i < 0 ? NULL : &c->requests.request[i];
}

struct request *request_first(struct coord *c, enum request_list list) {
    return at(c, c->requests.list[list].first);
}

struct request *request_next(struct coord *c, const struct request *r) {
    return at(c, r->next);
}

static void list_remove(struct coord *c, struct request *r) {
    if (r->list == RL_NONE) return;
    struct request_list_ends *l = &c->requests.list[r->list];
    if (r->prev < 0) l->first = r->next;
    else at(c, r->prev)->next = r->next;
    if (r->next < 0) l->last = r->prev;
    else at(c, r->next)->prev = r->prev;
    l->n--;
    r->list = RL_NONE;
}

static uint64_t key_of(const struct request *r, enum request_list list) {
    return list == RL_READY ? r->turn : r->order;
}

/* At the end, or behind the last one that came earlier. Those that are ready keep the order in which they
 * were chosen: results come in the order of sequence numbers, which would favour the low ones. */
static void list_insert(struct coord *c, struct request *r, enum request_list list, bool by_order) {
    struct request_list_ends *l = &c->requests.list[list];
    CHECK(r->list == RL_NONE);
    int32_t prev = l->last;
    while (by_order && prev >= 0 && key_of(at(c, prev), list) > key_of(r, list)) prev = at(c, prev)->prev;
    r->prev = prev;
    r->next = prev < 0 ? l->first : at(c, prev)->next;
    if (r->prev < 0) l->first = (int32_t)number_of(c, r);
    else at(c, r->prev)->next = (int32_t)number_of(c, r);
    if (r->next < 0) l->last = (int32_t)number_of(c, r);
    else at(c, r->next)->prev = (int32_t)number_of(c, r);
    l->n++;
    r->list = (uint8_t)list;
}

void request_rotate(struct coord *c, struct request *r) {
    enum request_list list = (enum request_list)r->list;
    list_remove(c, r);
    list_insert(c, r, list, false);
}

struct request *request_of_seq(struct coord *c, uint64_t seq) {
    struct seq *s = seq_find(c, seq);
    return s && s->state == SQ_OWNED ? &c->requests.request[s->request] : NULL;
}

/* ---- beginning ---- */

static struct coord_out *tell_done(struct coord *c, uint64_t tag, struct handle h, int code, const char *text,
                                   struct coord_outs *outs) {
    struct coord_out *o = coord_out(outs, COORD_OUT_DONE);
    o->tag = tag;
    o->request = h;
    o->code = code;
    snprintf(o->text, sizeof o->text, "%s", code < 0 && !*text ? err_text(code) : text);
    if (code < 0) c->requests.n_failed++;
    else c->requests.n_done++;
    return o;
}

/* What this plan can never hold: NULL, or why. Shortens a request that is only too generous. */
static const char *does_not_fit(struct coord *c, struct request *r) {
    const struct cluster *cl = &c->cluster;
    if (cl->state != CL_SERVING) return NULL;
    if (r->n_token >= cl->n_ctx_max) return "more tokens than the context of this cluster";
    r->n_total_max = MIN(r->n_total_max, cl->n_ctx_max);
    return r->n_total_max > cl->state_tokens_max ? "more tokens than the memory of this cluster holds" : NULL;
}

static bool submit_is_sound(const struct coord_submit *s) {
    if (s->n_token == 0 || s->n_new_max == 0 || s->n_token > PROMPT_MAX || s->n_new_max > PROMPT_MAX)
        return false;
    for (uint32_t i = 0; i < s->n_token; i++)
        if (s->token[i] < 0) return false;
    return s->want.n_bias <= MSG_BIAS_MAX;
}

static int request_fill(struct coord *c, struct request *r, const struct coord_submit *s) {
    r->token = malloc(((size_t)s->n_token + s->n_new_max) * sizeof *r->token);
    r->bias = s->want.n_bias ? malloc(s->want.n_bias * sizeof *r->bias) : NULL;
    if (!r->token || (s->want.n_bias && !r->bias)) return ERR_NOMEM;
    memcpy(r->token, s->token, s->n_token * sizeof *r->token);
    if (r->bias) memcpy(r->bias, s->bias, s->want.n_bias * sizeof *r->bias);
    r->want = s->want;
    r->want.n_item_max = MIN(r->want.n_item_max ? r->want.n_item_max : UINT32_MAX, c->config.n_item_max);
    r->tag = s->tag;
    r->order = c->requests.order_next++;
    r->n_prompt = r->n_token = s->n_token;
    r->n_scored = s->scores ? 1 : s->n_token;
    r->n_total_max = s->n_token + s->n_new_max;
    r->arrived_ns = c->now_ns;
    r->deadline_ns = s->deadline_ms ? c->now_ns + ms_to_ns(s->deadline_ms) : 0;
    return 0;
}

void requests_submit(struct coord *c, const struct coord_submit *s, struct coord_outs *outs) {
    struct requests *q = &c->requests;
    q->n_submitted++;
    int64_t i = submit_is_sound(s) ? pool_take(&q->pool) : -2;
    if (i < 0) {
        if (i == -1) MARK(request_busy);
        tell_done(c, s->tag, (struct handle){ 0 }, i == -1 ? ERR_BUSY : ERR_INVALID, "", outs);
        return;
    }
    struct request *r = &q->request[i];
    *r = (struct request){ .state = RQ_DONE, .prev = -1, .next = -1 };
    int rc = request_fill(c, r, s);
    const char *why = rc < 0 ? "" : does_not_fit(c, r);
    if (why) {
        if (rc == 0) MARK(request_too_long);
        tell_done(c, s->tag, (struct handle){ 0 }, rc < 0 ? rc : ERR_LIMIT, why, outs);
        release(r);
        pool_give(&q->pool, (uint32_t)i);
        return;
    }
    struct coord_out *o = coord_out(outs, COORD_OUT_ACCEPTED);
    o->request = pool_handle(&q->pool, (uint32_t)i);
    o->tag = s->tag;
    set_state(c, r, RQ_QUEUED);
    list_insert(c, r, RL_QUEUE, true);
    if (r->deadline_ns) check_at(c, r->deadline_ns);
    check_at(c, c->now_ns + ms_to_ns(c->config.stall_ms));
}

/* A sequence for r. There is room: for a new one, or one that was left behind and begins like it; often
 * also for a copy of that. */
static struct seq_match seq_give(struct coord *c, struct request *r) {
    bool scores = r->n_scored < r->n_prompt;      /* rows that are taken over bring no result */
    struct seq_match match = seq_match(c, r->token, scores ? r->n_scored : r->n_token);
    r->n_sent_max = match.id ? seq_find(c, match.id)->n_sent_max : 0;
    r->seq = match.id ? seq_copy(c, match.id, number_of(c, r), r->n_total_max) : 0;
    r->from = r->seq ? match.id : 0;
    if (r->seq) return match;
    if (match.id && seq_find(c, match.id)->n_copying) match = (struct seq_match){ 0 };  /* not now */
    sequences_make_room(c, match, r->n_total_max);
    if (match.id) seq_take(c, match.id, number_of(c, r), r->n_total_max);
    else r->n_sent_max = 0;
    r->seq = match.id ? match.id : seq_open(c, number_of(c, r), r->n_total_max);
    return match;
}

static void begin(struct coord *c, struct request *r) {
    struct seq_match match = seq_give(c, r);
    r->n_sent = r->n_held = match.pos0;
    r->copied = r->from != 0;
    r->alone = match.pos0 < r->n_sent_max && !PLANT(back_together);
    if (r->alone) MARK(seq_goes_back);
    if (!r->admitted) r->n_cached = match.pos0;
    r->admitted = true;
    c->totals.n_cached_row += match.pos0;
    if (r->from && PLANT(source_unpinned)) seq_copied(c, r->from);
}

void requests_admit(struct coord *c) {
    const struct cluster *cl = &c->cluster;
    if (cl->state != CL_SERVING) return;
    for (struct request *r = request_first(c, RL_QUEUE), *next; r; r = next) {
        next = request_next(c, r);
        if (r->not_before_ns > c->now_ns) continue;
        bool slot_missing;
        if (!sequences_have_room(c, r->n_total_max, &slot_missing)) {
            if (slot_missing) MARK(request_waits_for_slot);
            else MARK(request_waits_for_memory);  /* and nobody overtakes it: large ones must not starve */
            return;
        }
        list_remove(c, r);
        set_state(c, r, RQ_PREFILL);
        begin(c, r);
        r->ready_ns = c->now_ns;
        list_insert(c, r, RL_PREFILL, false);
    }
}

/* ---- ending ---- */

static void give_place(struct coord *c, struct request *r) {
    list_remove(c, r);
    set_state(c, r, RQ_DONE);
    release(r);
    pool_give(&c->requests.pool, number_of(c, r));
}

/* The copy exists, or will not be made: its source is free. */
static void fork_over(struct coord *c, struct request *r) {
    uint64_t source = r->from;
    r->from = 0;
    if (source && !PLANT(source_unpinned)) seq_copied(c, source);
}

/* What it leaves behind may serve another: an answer that is complete, or that somebody stopped. */
static void leave(struct coord *c, struct request *r, struct seq *s, int code) {
    struct seq_rest rest = { r->token, r->n_sent, r->n_held, r->n_sent_max };
    if (code != 0 && code != ERR_CANCELLED) {
        seq_leave(c, s, NULL);
        return;
    }
    r->token = NULL;
    seq_leave(c, s, &rest);
}

void request_end(struct coord *c, struct request *r, int code, const char *text, struct coord_outs *outs) {
    CHECK(!r->told);
    r->told = true;
    struct handle h = pool_handle(&c->requests.pool, number_of(c, r));
    tell_done(c, r->tag, h, code, text, outs)->n_cached = r->n_cached;
    list_remove(c, r);
    struct seq *s = r->seq ? seq_find(c, r->seq) : NULL;
    bool flying = s && s->n_flying > 0;
    if (s && !(PLANT(cancel_leaks) && code == ERR_CANCELLED)) leave(c, r, s, code);
    fork_over(c, r);
    if (flying) set_state(c, r, RQ_DRAIN);
    else give_place(c, r);
}

void requests_cancel(struct coord *c, struct handle h, struct coord_outs *outs) {
    struct request *r = pool_resolves(&c->requests.pool, h) ? &c->requests.request[h.index] : NULL;
    if (!r || r->told) {
        MARK(request_handle_stale);
        return;
    }
    if (r->state == RQ_QUEUED) MARK(request_cancelled_queued);
    else if (r->list == RL_NONE) MARK(request_cancelled_flying);
    request_end(c, r, ERR_CANCELLED, "", outs);
}

void requests_end_all(struct coord *c, int code, struct coord_outs *outs) {
    for (int64_t i = -1; (i = pool_next(&c->requests.pool, i)) >= 0;)
        if (!c->requests.request[i].told) request_end(c, &c->requests.request[i], code, "", outs);
}

/* ---- through the pipeline ---- */

void request_sent(struct coord *c, struct request *r, uint32_t n) {
    seq_find(c, r->seq)->n_flying++;
    r->turn = c->requests.turn_next++;
    r->n_sent += n;
    r->n_sent_max = MAX(r->n_sent_max, r->n_sent);
    if (r->n_sent < r->n_token && !r->alone) return;
    list_remove(c, r);                            /* alone: request_settle() lists it again */
    if (r->state == RQ_PREFILL && r->n_sent == r->n_token) set_state(c, r, RQ_DECODE);
}

/* Back into the list it belongs to, once nothing of it is on the way. */
static void request_settle(struct coord *c, struct request *r) {
    if (r->list != RL_NONE || r->n_sent == r->n_token) return;
    if (r->state == RQ_DECODE && r->n_token - r->n_sent > 1) set_state(c, r, RQ_PREFILL);
    if (r->state == RQ_DECODE) list_insert(c, r, RL_READY, true);
    else list_insert(c, r, RL_PREFILL, false);
}

void request_held(struct coord *c, uint64_t seq, uint32_t n_held) {
    struct seq *s = seq_find(c, seq);
    struct request *r = request_of_seq(c, seq);
    if (r) {
        r->n_held = MAX(r->n_held, n_held);
        r->alone = false;
        fork_over(c, r);
    } else if (s) {
        s->n_held = MAX(s->n_held, n_held);
    }
}

void request_flight_over(struct coord *c, uint64_t seq, struct coord_outs *outs) {
    (void)outs;
    struct seq *s = seq_find(c, seq);
    CHECK(s && s->n_flying > 0);
    struct request *r = &c->requests.request[s->request];
    bool owned = r->seq == seq && r->state != RQ_DONE;
    if (--s->n_flying > 0) return;
    if (s->state == SQ_OWNED) {
        if (owned) request_settle(c, r);
        return;
    }
    if (owned && r->state == RQ_DRAIN) give_place(c, r);
    seq_flight_over(c, s);
}

static void replay(struct coord *c, struct request *r) {
    MARK(retry_replay);
    struct seq *s = seq_find(c, r->seq);
    if (s) seq_leave(c, s, NULL);
    fork_over(c, r);
    r->seq = 0;
    r->n_sent = r->n_sent_max = r->n_held = 0;
    r->alone = false;
    if (PLANT(replay_forgets)) r->n_token = r->n_prompt;
    list_remove(c, r);
    set_state(c, r, RQ_QUEUED);
    list_insert(c, r, RL_QUEUE, true);
}

/* The first loss of a few rows goes on in place: stages go back to pos0. Anything else computes the
 * sequence again, and waits longer each time. */
void request_lost(struct coord *c, struct request *r, uint32_t pos0, bool must_replay, int code,
                  struct coord_outs *outs) {
    if (r->n_sent <= pos0 && !must_replay) return;    /* another batch of it was lost with this one */
    if (r->n_retry++ == 0) r->retry_first_ns = c->now_ns;
    if (r->n_retry > c->config.retry_max && c->now_ns >= r->retry_first_ns + ms_to_ns(c->config.give_up_ms)) {
        MARK(retry_given_up);
        request_end(c, r, code, "the cluster failed to compute this request again and again", outs);
        return;
    }
    if (r->n_retry == 1 && !must_replay && r->n_sent_max - pos0 <= MSG_ROLLBACK) {
        MARK(retry_in_place);
        list_remove(c, r);
        r->n_sent = pos0; /* request_settle() lists it when its other batches are over */
        return;
    }
    uint32_t wait_ms = MIN((uint32_t)BACKOFF_MS << MIN(r->n_retry, 8u), (uint32_t)BACKOFF_MS_MAX);
    if (r->n_retry < 2) wait_ms = 0;
    r->not_before_ns = c->now_ns + ms_to_ns(wait_ms);
    if (wait_ms) check_at(c, r->not_before_ns);
    replay(c, r);
}

/* The prompt is in, and its answer begins: in a copy, where there is room for both and nobody waits. */
static void keep_prompt(struct coord *c, struct request *r) {
    struct seq *s = seq_find(c, r->seq);
    bool worth = c->config.n_park_max > 0 && r->n_prompt >= c->config.n_keep_min;
    bool whole = r->n_sent == r->n_prompt && r->n_held == r->n_prompt, there = r->n_cached + 1 >= r->n_prompt;
    if (!worth || !whole || (there && r->copied) || c->requests.list[RL_QUEUE].n > 0) return;
    struct seq_rest rest = { NULL, r->n_sent, r->n_held, r->n_sent_max };
    rest.take_token = xcalloc(r->n_prompt, sizeof *r->token);
    memcpy(rest.take_token, r->token, r->n_prompt * sizeof *r->token);
    uint64_t copy = seq_fork(c, s, &rest);
    if (!copy) {
        free(rest.take_token);
        return;
    }
    r->from = r->seq;
    r->seq = copy;
    if (PLANT(source_unpinned)) seq_copied(c, r->from);
    request_settle(c, r);
}

void request_token(struct coord *c, struct request *r, const struct coord_sampled *s,
                   struct coord_outs *outs) {
    CHECK(r->n_token < r->n_total_max);
    r->token[r->n_token++] = s->token;
    r->n_retry = 0;
    r->not_before_ns = 0;
    r->ready_ns = c->now_ns;
    struct coord_out *o = coord_out(outs, COORD_OUT_TOKEN);
    o->request = pool_handle(&c->requests.pool, number_of(c, r));
    o->tag = r->tag;
    o->token = s->token;
    o->index = r->n_token - r->n_prompt - 1;
    if (s->end || r->n_token == r->n_total_max) request_end(c, r, 0, "", outs);
    else if (r->n_token == r->n_prompt + 1) keep_prompt(c, r);
}

/* ---- the plan changes ---- */

void requests_requeue_all(struct coord *c) {
    struct requests *q = &c->requests;
    for (int64_t i = -1; (i = pool_next(&q->pool, i)) >= 0;) {
        struct request *r = &q->request[i];
        if (r->state == RQ_DRAIN) give_place(c, r);
        else if (r->state != RQ_QUEUED) replay(c, r);
        r->n_retry = 0;
        r->not_before_ns = 0;
    }
    sequences_drop_all(c);
}

void requests_recheck(struct coord *c, struct coord_outs *outs) {
    for (struct request *r = request_first(c, RL_QUEUE), *next; r; r = next) {
        next = request_next(c, r);
        const char *why = does_not_fit(c, r);
        if (!why) continue;
        MARK(request_too_long);
        request_end(c, r, ERR_LIMIT, why, outs);
    }
}

bool requests_active_or_queued(const struct coord *c) {
    return c->requests.pool.n_used > 0;
}

/* ---- time ---- */

static void request_timer(struct coord *c, struct request *r, struct coord_outs *outs) {
    uint64_t stall_ns = ms_to_ns(c->config.stall_ms);
    bool served = c->cluster.state == CL_SERVING;
    if (r->deadline_ns && c->now_ns >= r->deadline_ns) {
        MARK(request_timeout);
        request_end(c, r, ERR_TIMEOUT, "the request's own deadline", outs);
    } else if (!served && c->now_ns >= MAX(r->arrived_ns, c->cluster.unserved_ns) + stall_ns) {
        MARK(request_stalled);
        request_end(c, r, ERR_PEER, c->cluster.why, outs);
    } else {
        if (r->deadline_ns) check_at(c, r->deadline_ns);
        if (r->not_before_ns > c->now_ns) check_at(c, r->not_before_ns);
        check_at(c, served ? c->now_ns + stall_ns : MAX(r->arrived_ns, c->cluster.unserved_ns) + stall_ns);
    }
}

void requests_timers(struct coord *c, struct coord_outs *outs) {
    struct requests *q = &c->requests;
    if (c->now_ns < q->check_ns) return;
    q->check_ns = UINT64_MAX;
    for (int64_t i = -1; (i = pool_next(&q->pool, i)) >= 0;)
        if (!q->request[i].told) request_timer(c, &q->request[i], outs);
}

uint64_t requests_deadline_ns(const struct coord *c) {
    return c->requests.check_ns;
}

/* ---- for tests ---- */

void requests_check(const struct coord *c) {
    const struct requests *q = &c->requests;
    uint32_t n_decode = 0, n_list[RL_LISTS] = { 0 };
    for (int64_t i = -1; (i = pool_next(&q->pool, i)) >= 0;) {
        const struct request *r = &q->request[i];
        CHECK(r->state != RQ_DONE);
        CHECK((r->state == RQ_QUEUED) == (r->list == RL_QUEUE));
        CHECK(r->list != RL_PREFILL || r->state == RQ_PREFILL);
        CHECK(r->list != RL_READY || (r->state == RQ_DECODE && r->n_sent + 1 == r->n_token));
        CHECK(r->n_sent <= r->n_token && r->n_held <= r->n_token && r->n_token <= r->n_total_max);
        CHECK((r->state == RQ_DRAIN) == r->told);
        CHECK(r->n_scored > 0 && r->n_scored <= r->n_prompt);
        CHECK(!r->alone || r->state == RQ_PREFILL || r->state == RQ_DECODE || r->told);
        n_decode += r->state == RQ_DECODE;
        n_list[r->list]++;
    }
    for (int l = RL_QUEUE; l < RL_LISTS; l++) CHECK(n_list[l] == q->list[l].n);
    CHECK(n_decode == q->n_decode);
}
