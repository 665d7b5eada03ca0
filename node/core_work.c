/* core_work - the node core's sequences and batches, see core.h for the drawing of a batch's life.
 *
 * Batches arrive in rising order and are computed in that order, so "the queue" is: of those in a state,
 * the one with the lowest number. A sequence's length is the one after all posted jobs; the compute
 * thread checks it again. Whatever a batch holds (payloads, a credit of the previous stage, a place at
 * the next one) belongs to the batch and goes back in batch_end(). */
#include "node/core_private.h"

#include "common/base/check.h"
#include "common/base/mark.h"
#include "common/base/plant.h"
#include "common/base/sm.h"

#include <stdio.h>

#include "common/base/banned.h"

static const struct sm_state states[NB_STATES] = {
    [NB_QUEUED]    = { "queued",    SM_BIT(NB_COMPUTING) | SM_BIT(NB_OVER) },
    [NB_COMPUTING] = { "computing", SM_BIT(NB_HELD) | SM_BIT(NB_KEPT) | SM_BIT(NB_OVER) },
    [NB_HELD]      = { "held",      SM_BIT(NB_SENT) | SM_BIT(NB_OVER) },
    [NB_SENT]      = { "sent",      SM_BIT(NB_OVER) },
    [NB_KEPT]      = { "kept",      SM_BIT(NB_OVER) },
    [NB_OVER]      = { "over",      SM_BIT(NB_QUEUED) },
};
static const struct sm_table batch_table = { "batch", states, NB_STATES };

static void move(struct node *n, struct node_batch *b, enum node_batch_state to) {
    sm_move(&batch_table, &b->state, (int)to, b->id, &n->config.trace);
}

void work_init(struct node *n) {
    pool_init(&n->slots, n->config.n_slot_max);
    pool_init(&n->batches, n->config.n_batch_max);
    n->seq = xcalloc(n->config.n_slot_max, sizeof *n->seq);
    n->batch = xcalloc(n->config.n_batch_max, sizeof *n->batch);
    n->alive = xcalloc(MSG_SEQS_MAX, sizeof *n->alive);
    for (uint32_t i = 0; i < n->config.n_batch_max; i++) n->batch[i].state = NB_OVER;
}

void work_deinit(struct node *n) {
    for (uint32_t i = 0; i < n->config.n_batch_max; i++) free(n->batch[i].block);
    free(n->batch);
    free(n->seq);
    free(n->alive);
    pool_deinit(&n->slots);
    pool_deinit(&n->batches);
}

/* ---- sequences ---- */

static bool listed(const uint64_t *ids, uint32_t count, uint64_t id) {
    uint32_t lo = 0, hi = count;
    while (lo < hi) {
        uint32_t mid = lo + (hi - lo) / 2;
        if (ids[mid] < id) lo = mid + 1;
        else hi = mid;
    }
    return lo < count && ids[lo] == id;
}

/* Where it is, or where it would have to be inserted. */
static uint32_t seq_place(const struct node *n, uint64_t id) {
    uint32_t lo = 0, hi = n->n_seq;
    while (lo < hi) {
        uint32_t mid = lo + (hi - lo) / 2;
        if (n->seq[mid].id < id) lo = mid + 1;
        else hi = mid;
    }
    return lo;
}

static struct node_seq *seq_find(struct node *n, uint64_t id) {
    uint32_t i = seq_place(n, id);
    return i < n->n_seq && n->seq[i].id == id ? &n->seq[i] : NULL;
}

static struct node_seq *seq_open(struct node *n, uint64_t id) {
    int64_t slot = n->n_seq < n->assign.n_slot ? pool_take(&n->slots) : -1;
    CHECK(slot >= 0);                             /* counted in positions_fit() */
    uint32_t i = seq_place(n, id);
    memmove(&n->seq[i + 1], &n->seq[i], (n->n_seq - i) * sizeof n->seq[0]);
    n->seq[i] = (struct node_seq){ .id = id, .slot = (uint32_t)slot };
    n->n_seq++;
    return &n->seq[i];
}

static void seq_close(struct node *n, uint32_t i, struct node_outs *outs) {
    node_out(outs, NODE_OUT_SEQ_CLOSE)->slot = n->seq[i].slot;
    pool_give(&n->slots, n->seq[i].slot);
    n->n_seq--;
    memmove(&n->seq[i], &n->seq[i + 1], (n->n_seq - i) * sizeof n->seq[0]);
}

/* Ended by a SYNC that came before its last batch. */
static bool seq_is_over(const struct node *n, uint64_t id) {
    return id < n->seq_next && !listed(n->alive, n->n_alive, id);
}

/* ---- batches ---- */

static void credit_return(struct node *n, struct node_batch *b, struct node_outs *outs) {
    if (b->from) node_send(n, outs, b->from, MSG_CREDIT)->u.credit.batch = b->id;
    b->from = 0;
}

/* The only way out. While the device works on it the place stays taken, marked dead, until the result is
 * here. */
static void batch_end(struct node *n, struct node_batch *b, struct node_outs *outs) {
    if (b->state == NB_COMPUTING) {
        if (!b->dead) MARK(node_dead_while_computing);
        b->dead = true;
        return;
    }
    credit_return(n, b, outs);
    node_give(outs, &b->in);
    node_give(outs, &b->out);
    node_give(outs, &b->kept);
    if (b->state == NB_SENT) n->n_sent--;
    move(n, b, NB_OVER);
    pool_give(&n->batches, (uint32_t)(b - n->batch));
}

static struct node_batch *lowest(struct node *n, enum node_batch_state state) {
    struct node_batch *best = NULL;
    for (int64_t i = -1; (i = pool_next(&n->batches, i)) >= 0;) {
        struct node_batch *b = &n->batch[i];
        if (b->state == state && (!best || b->id < best->id)) best = b;
    }
    return best;
}

static bool batch_is_dead(const struct node *n, uint64_t id) {
    return id < n->batch_done || listed(n->dead, n->n_dead, id);
}

static void end_what_is_dead(struct node *n, struct node_outs *outs) {
    for (int64_t i = -1; (i = pool_next(&n->batches, i)) >= 0;) {
        struct node_batch *b = &n->batch[i];
        if (!batch_is_dead(n, b->id) || b->dead) continue;
        if (b->state == NB_QUEUED) MARK(node_dead_in_queue);
        if (b->state == NB_SENT) {
            if (PLANT(credit_lost)) continue;
            MARK(node_credit_healed);
        }
        batch_end(n, b, outs);
    }
}

void work_drop_all(struct node *n, struct node_outs *outs) {
    for (int64_t i = -1; (i = pool_next(&n->batches, i)) >= 0;) {
        n->batch[i].from = 0;                     /* credits of the old epoch mean nothing to anybody */
        if (!n->batch[i].dead) batch_end(n, &n->batch[i], outs);
    }
    while (n->n_seq) seq_close(n, n->n_seq - 1, outs);
    n->last_batch = n->batch_done = n->seq_next = 0;
    n->n_dead = n->n_alive = 0;
}

bool work_is_empty(const struct node *n) {
    for (int64_t i = -1; (i = pool_next(&n->batches, i)) >= 0;)
        if (n->batch[i].state != NB_KEPT) return false;
    return true;
}

/* ---- a batch arrives ---- */

static bool work_is_sound(const struct node *n, const struct msg_work *w, const struct payload *payload) {
    uint64_t rows = 0;
    if (w->n_seg == 0 || w->n_seg > MSG_SEGS_MAX || w->n_row > n->assign.n_rows_max ||
        w->n_want > MSG_WANTS_MAX || w->n_bias > MSG_BIAS_MAX || w->n_timing > MSG_STAGES_MAX)
        return false;
    for (uint32_t i = 0; i < w->n_seg; i++) {
        const struct msg_seg *s = &w->seg[i];
        if (s->n == 0 || s->pos0 > n->assign.n_ctx_max || s->n > n->assign.n_ctx_max - s->pos0) return false;
        if (i > 0 && s->seq <= w->seg[i - 1].seq) return false;       /* ascending: each sequence once */
        rows += s->n;
    }
    for (uint32_t i = 0; i < w->n_want; i++) {
        const struct msg_want *want = &w->want[i];
        if (want->row >= w->n_row || (i > 0 && want->row <= w->want[i - 1].row)) return false;
        if (want->bias_begin > w->n_bias || want->n_bias > w->n_bias - want->bias_begin) return false;
    }
    return rows == w->n_row && (payload->generation != 0) == (n->assign.stage_i > 0);
}

static void *block_part(char **at, const void *from, size_t bytes) {
    void *to = *at;
    if (bytes) memcpy(to, from, bytes);
    *at += ALIGN_UP(bytes, 8);
    return to;
}

/* One block per place holds all arrays; it grows to the largest batch seen and is used again. */
static void batch_copy(struct node_batch *b, const struct msg_work *w) {
    size_t seg = w->n_seg * sizeof *w->seg, token = w->n_row * sizeof *w->token,
           want = w->n_want * sizeof *w->want;
    size_t bias = w->n_bias * sizeof *w->bias, timing = (w->n_timing + 1) * sizeof *w->timing,
           job = w->n_seg * sizeof *b->job_seg;
    size_t bytes = ALIGN_UP(seg, 8) + ALIGN_UP(token, 8) + ALIGN_UP(want, 8) + ALIGN_UP(bias, 8) +
                   ALIGN_UP(timing, 8) + job;
    if (bytes > b->block_bytes) b->block = xrealloc(b->block, b->block_bytes = bytes);
    char *at = b->block;
    b->work = *w;
    b->work.seg = block_part(&at, w->seg, seg);
    b->work.token = block_part(&at, w->token, token);
    b->work.want = block_part(&at, w->want, want);
    b->work.bias = block_part(&at, w->bias, bias);
    b->work.timing = block_part(&at, w->timing, w->n_timing * sizeof *w->timing);
    at = (char *)(void *)b->work.timing + ALIGN_UP(timing, 8);        /* room for our own entry */
    b->job_seg = (struct node_job_seg *)(void *)at;
}

static void refuse(struct node *n, uint64_t batch, uint64_t seq, enum msg_refusal reason, uint32_t have,
                   struct node_outs *outs) {
    n->counters.n_refused++;
    struct msg *m = node_send(n, outs, NODE_LINK_COORDINATOR, MSG_WORK_REFUSED);
    m->u.work_refused = (struct msg_work_refused){ .batch = batch, .seq = seq, .reason = reason,
                                                   .stage_i = n->assign.stage_i, .have = have };
    m->trace = batch;
    TRACE(&n->config.trace, "refuse batch %llu: reason %d, sequence %llu, have %u",
          (unsigned long long)batch, (int)reason, (unsigned long long)seq, have);
}

static void credit_at_once(struct node *n, uint32_t link, uint64_t batch, struct node_outs *outs) {
    if (link >= NODE_LINK_ACCEPTED) node_send(n, outs, link, MSG_CREDIT)->u.credit.batch = batch;
}

static void advance_done(struct node *n, uint64_t batch_done, struct node_outs *outs) {
    if (batch_done <= n->batch_done) return;
    n->batch_done = batch_done;
    end_what_is_dead(n, outs);
}

void work_on_work(struct node *n, const struct node_event *ev, struct payload *payload,
                  struct node_outs *outs) {
    const struct msg_work *w = &ev->msg->u.work;
    if (n->state != NODE_READY && n->state != NODE_SERVING) {
        MARK(node_state_refused);
        credit_at_once(n, ev->link, w->batch, outs);
        refuse(n, w->batch, 0, MSG_REFUSED_STATE, 0, outs);
        return;
    }
    if (w->batch <= n->last_batch && !PLANT(batch_twice)) {
        MARK(node_batch_not_rising);
        return;
    }
    n->last_batch = w->batch;
    advance_done(n, w->batch_done, outs);
    if (batch_is_dead(n, w->batch)) {
        MARK(node_batch_dead);
        credit_at_once(n, ev->link, w->batch, outs);
        return;
    }
    int64_t i = work_is_sound(n, w, payload) ? pool_take(&n->batches) : -1;
    if (i < 0) {
        MARK(node_state_refused);
        credit_at_once(n, ev->link, w->batch, outs);
        refuse(n, w->batch, 0, MSG_REFUSED_STATE, 0, outs);
        return;
    }
    if (n->state == NODE_READY) node_set_state(n, NODE_SERVING);
    struct node_batch *b = &n->batch[i];
    batch_copy(b, w);
    b->id = w->batch;
    b->dead = false;
    b->from = ev->link >= NODE_LINK_ACCEPTED ? ev->link : 0;
    b->arrived_ns = n->now_ns;
    b->in = *payload;
    b->out = b->kept = *payload = (struct payload){ 0 };
    move(n, b, NB_QUEUED);
}

/* ---- compute ---- */

static bool position_fits(const struct node_seq *s, uint32_t pos0) {
    if (PLANT(position_unchecked)) return true;
    if (pos0 == 0) return true;                   /* from the beginning is always possible */
    if (!s || s->len < pos0) return false;
    return s->len == pos0 || s->len_max - pos0 <= MSG_ROLLBACK;
}

static bool seg_fits(struct node *n, const struct msg_seg *seg) {
    struct node_seq *s = seq_find(n, seg->seq);
    if (seq_is_over(n, seg->seq)) return false;
    if (!s && seg->from && seg->pos0) s = seq_find(n, seg->from);
    return position_fits(s, seg->pos0);
}

/* All or nothing: the first segment that does not fit refuses the batch, before anything has changed. */
static bool positions_fit(struct node *n, struct node_batch *b, struct node_outs *outs) {
    uint32_t n_new = 0;
    for (uint32_t i = 0; i < b->work.n_seg; i++) {
        const struct msg_seg *seg = &b->work.seg[i];
        struct node_seq *s = seq_find(n, seg->seq);
        n_new += !s;
        if (!seg_fits(n, seg)) {
            MARK(node_position_refused);
            refuse(n, b->id, seg->seq, MSG_REFUSED_POSITION, s ? s->len : 0, outs);
            return false;
        }
    }
    if (n_new <= n->assign.n_slot) return true;
    MARK(node_slots_refused);
    refuse(n, b->id, b->work.seg[0].seq, MSG_REFUSED_SLOTS, n->n_seq, outs);
    return false;
}

/* The coordinator never has more sequences alive than there are slots, so the SYNC that ends some of ours
 * is on its way. */
static bool slots_suffice(struct node *n, const struct node_batch *b) {
    uint32_t n_new = 0;
    for (uint32_t i = 0; i < b->work.n_seg; i++) n_new += !seq_find(n, b->work.seg[i].seq);
    if (n_new <= n->assign.n_slot - n->n_seq) return true;
    MARK(node_waits_for_slot);
    return false;
}

static void positions_take(struct node *n, struct node_batch *b) {
    for (uint32_t i = 0; i < b->work.n_seg; i++) {
        const struct msg_seg *seg = &b->work.seg[i];
        struct node_seq *s = seq_find(n, seg->seq), from = { 0 };
        bool open = !s, fork = open && seg->from && seg->pos0;
        if (fork) from = *seq_find(n, seg->from);
        if (open) s = seq_open(n, seg->seq);
        if (fork) {
            MARK(node_forked);
            s->len = seg->pos0;
            s->len_max = from.len_max;
        }
        if (s->len > seg->pos0) MARK(node_rolled_back);
        b->job_seg[i] = (struct node_job_seg){ .slot = s->slot, .pos0 = seg->pos0, .n = seg->n,
                                               .have = s->len, .from = from.slot,
                                               .open = open, .fork = fork };
        if (seg->pos0 == 0) *s = (struct node_seq){ .id = s->id, .slot = s->slot };
        s->len = seg->pos0 + seg->n;
        s->len_max = MAX(s->len_max, s->len);
    }
}

static void batch_start(struct node *n, struct node_batch *b, struct node_outs *outs) {
    positions_take(n, b);
    credit_return(n, b, outs);
    b->started_ns = n->now_ns;
    b->job = (struct node_job){ .handle = pool_handle(&n->batches, (uint32_t)(b - n->batch)),
                                .batch = b->id,
                                .seg = b->job_seg,
                                .token = b->work.token,
                                .want = b->work.want,
                                .bias = b->work.bias,
                                .n_seg = b->work.n_seg,
                                .n_row = b->work.n_row,
                                .n_want = b->work.n_want,
                                .n_bias = b->work.n_bias,
                                .take_in = b->in };
    b->in = (struct payload){ 0 };
    n->n_computing++;
    move(n, b, NB_COMPUTING);
    node_out(outs, NODE_OUT_RUN)->job = &b->job;
}

static void start_what_can(struct node *n, struct node_outs *outs) {
    while (n->n_computing < NODE_COMPUTING_MAX) {
        struct node_batch *b = lowest(n, NB_QUEUED);
        if (!b) return;
        if (!positions_fit(n, b, outs)) {
            batch_end(n, b, outs);
            continue;
        }
        if (!slots_suffice(n, b)) return;
        batch_start(n, b, outs);
    }
}

static uint32_t us_between(uint64_t from_ns, uint64_t to_ns) {
    uint64_t us = to_ns > from_ns ? (to_ns - from_ns) / 1000 : 0;
    return us < UINT32_MAX ? (uint32_t)us : UINT32_MAX;
}

/* Appends our own entry. What is neither queue nor compute is hold: the way to and from the thread,
 * credit, the link. */
static void timing_add(struct node *n, struct node_batch *b) {
    struct msg_timing *t = (struct msg_timing *)(void *)b->work.timing + b->work.n_timing;
    uint32_t here = us_between(b->arrived_ns, n->now_ns),
             busy = MIN(b->compute_us, us_between(b->started_ns, b->computed_ns));
    uint32_t after = us_between(b->computed_ns, n->now_ns);
    *t = (struct msg_timing){ .stage_i = n->assign.stage_i, .compute_us = busy, .hold_us = after,
                              .queue_us = here - MIN(here, busy + after), .n_row = b->work.n_row };
    b->work.n_timing++;
}

static void send_result(struct node *n, struct node_batch *b, const struct node_done *done,
                        struct payload *payload, struct node_outs *outs) {
    timing_add(n, b);
    struct msg *m = node_send_payload(n, outs, NODE_LINK_COORDINATOR, MSG_RESULT, *payload);
    m->trace = b->id;
    m->u.result = (struct msg_result){ .batch = b->id,
                                       .row = done->row,
                                       .n_row = done->n_row,
                                       .timing = b->work.timing,
                                       .n_timing = b->work.n_timing };
    *payload = (struct payload){ 0 };
}

static void compute_failed(struct node *n, struct node_batch *b, const struct node_done *done,
                           struct node_outs *outs) {
    MARK(node_compute_failed);
    /* Jobs posted after this one build on what it did not do, and will fail too; what comes later is
     * refused by position. */
    for (uint32_t i = 0; i < b->work.n_seg; i++) {
        uint32_t at = seq_place(n, b->work.seg[i].seq);
        if (at < n->n_seq && n->seq[at].id == b->work.seg[i].seq) seq_close(n, at, outs);
    }
    struct msg *m = node_send(n, outs, NODE_LINK_COORDINATOR, MSG_FAILED);
    m->trace = b->id;
    m->u.failed = (struct msg_failed){ .batch = b->id, .code = done->code };
    snprintf(m->u.failed.text, sizeof m->u.failed.text, "%s", done->text ? done->text : "");
}

void work_on_computed(struct node *n, const struct node_event *ev, struct payload *payload,
                      struct node_outs *outs) {
    const struct node_done *done = &ev->done;
    struct payload kept = done->take_kept;
    /* Jobs come back once each, and a batch keeps its place until then. */
    CHECK(pool_resolves(&n->batches, done->job) && n->batch[done->job.index].state == NB_COMPUTING);
    struct node_batch *b = &n->batch[done->job.index];
    n->n_computing--;
    n->counters.n_batch++;
    n->counters.n_row += b->work.n_row;
    n->counters.busy_us += done->compute_us;
    b->compute_us = done->compute_us;
    b->computed_ns = n->now_ns;
    bool last = n->assign.has_head;
    if (b->dead || done->code < 0) {
        if (!b->dead) compute_failed(n, b, done, outs);
        node_give(outs, &kept);
        move(n, b, NB_HELD);                      /* off the device: it may end */
        b->dead = false;
        batch_end(n, b, outs);
    } else if (last) {
        send_result(n, b, done, payload, outs);
        move(n, b, NB_KEPT);
        b->kept = kept;
        if (!b->work.n_want) batch_end(n, b, outs);
    } else {
        node_give(outs, &kept);
        b->out = *payload;
        *payload = (struct payload){ 0 };
        move(n, b, NB_HELD);
    }
}

/* ---- onwards ---- */

static void send_what_can(struct node *n, struct node_outs *outs) {
    for (struct node_batch *b; n->next.up && (b = lowest(n, NB_HELD));) {
        if (n->n_sent >= n->assign.n_credit) {
            MARK(node_waits_for_credit);
            return;
        }
        timing_add(n, b);
        struct msg *m = node_send_payload(n, outs, NODE_LINK_NEXT, MSG_WORK, b->out);
        m->trace = b->id;
        m->u.work = b->work;
        m->u.work.batch_done = n->batch_done;
        b->out = (struct payload){ 0 };
        n->n_sent++;
        move(n, b, NB_SENT);
    }
}

void work_pump(struct node *n, struct node_outs *outs) {
    start_what_can(n, outs);
    send_what_can(n, outs);
}

void work_on_credit(struct node *n, const struct msg_credit *credit, struct node_outs *outs) {
    for (int64_t i = -1; (i = pool_next(&n->batches, i)) >= 0;) {
        struct node_batch *b = &n->batch[i];
        if (b->state != NB_SENT || b->id != credit->batch) continue;
        batch_end(n, b, outs);
        return;
    }
    MARK(node_credit_unknown);
}

void work_on_row_get(struct node *n, const struct msg_row_get *get, struct node_outs *outs) {
    struct msg_row row = { .batch = get->batch, .row = get->row, .code = ERR_NOTFOUND };
    struct payload part = { 0 };
    for (int64_t i = -1; (i = pool_next(&n->batches, i)) >= 0;) {
        const struct node_batch *b = &n->batch[i];
        if (b->state != NB_KEPT || b->id != get->batch || !b->kept.generation) continue;
        uint32_t bytes = b->kept.bytes / b->work.n_want;
        for (uint32_t k = 0; k < b->work.n_want; k++) {
            if (b->work.want[k].row != get->row) continue;
            part = b->kept;
            part.offset += k * bytes;
            part.bytes = bytes;
            row.code = 0;
            row.n_vocab = bytes / (uint32_t)sizeof(float);
        }
    }
    if (row.code < 0) MARK(row_gone);
    struct msg *m = node_send_payload(n, outs, NODE_LINK_COORDINATOR, MSG_ROW, part);
    m->trace = get->batch;
    m->u.row = row;
    outs->item[outs->n - 1].borrows = true;
}

void work_on_sync(struct node *n, const struct msg_sync *sync, struct node_outs *outs) {
    if (sync->seq_next < n->seq_next || sync->batch_done < n->batch_done || sync->n_seq > MSG_SEQS_MAX ||
        sync->n_dead > MSG_BATCHES_MAX) {
        MARK(node_sync_old);
        return;
    }
    n->seq_next = sync->seq_next;
    n->n_alive = sync->n_seq;
    n->n_dead = sync->n_dead;
    n->batch_done = sync->batch_done;
    if (sync->n_seq) memcpy(n->alive, sync->seq, sync->n_seq * sizeof n->alive[0]);
    if (sync->n_dead) memcpy(n->dead, sync->dead, sync->n_dead * sizeof n->dead[0]);
    for (uint32_t i = n->n_seq; i-- > 0;) {
        if (!seq_is_over(n, n->seq[i].id)) continue;
        MARK(node_seq_closed_by_sync);
        seq_close(n, i, outs);
    }
    end_what_is_dead(n, outs);
}

/* ---- for tests ---- */

uint32_t node_payloads_held(const struct node *n) {
    uint32_t held = 0;
    for (int64_t i = -1; (i = pool_next(&n->batches, i)) >= 0;) {
        const struct node_batch *b = &n->batch[i];
        held += (b->in.generation != 0) + (b->out.generation != 0) + (b->kept.generation != 0);
    }
    return held;
}

void node_check(const struct node *n) {
    uint32_t n_computing = 0, n_sent = 0;
    CHECK(n->n_seq == n->slots.n_used);
    CHECK(n->n_seq == 0 || n->n_seq <= n->assign.n_slot);
    for (uint32_t i = 0; i + 1 < n->n_seq; i++) CHECK(n->seq[i].id < n->seq[i + 1].id);
    for (int64_t i = -1; (i = pool_next(&n->batches, i)) >= 0;) {
        const struct node_batch *b = &n->batch[i];
        CHECK(b->state != NB_OVER);
        CHECK((b->state == NB_HELD) == (b->out.generation != 0));
        CHECK(b->state == NB_KEPT || !b->kept.generation);
        CHECK(!b->dead || b->state == NB_COMPUTING);
        CHECK(!b->from || b->state == NB_QUEUED);
        n_computing += b->state == NB_COMPUTING;
        n_sent += b->state == NB_SENT;
    }
    CHECK(n_computing == n->n_computing && n_computing <= NODE_COMPUTING_MAX);
    CHECK(n_sent == n->n_sent && n_sent <= n->assign.n_credit);
}
