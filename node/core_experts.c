/* core_experts - a stage and its helpers, see core.h: questions with deadlines on one side, jobs on the
 * other.
 *
 * The compute thread of the lead blocks until every question it asked has its OUT_EXPERTS_DONE. So
 * whatever happens to a helper, a link or the plan, each open question ends here exactly once: with the
 * answer, or with a code. */
#include "node/core_private.h"

#include "common/base/mark.h"

#include "common/base/banned.h"

static void answer(struct node *n, uint32_t i, const struct msg_experts_done *done, struct payload payload,
                   struct node_outs *outs) {
    n->question[i].open = false;
    struct node_out *o = node_out(outs, NODE_OUT_EXPERTS_DONE);
    o->link = NODE_LINK_HELPER + i;
    o->experts_done = *done;
    o->payload = payload;
}

void experts_give_up(struct node *n, uint32_t helper_i, int code, struct node_outs *outs) {
    const struct node_question *q = &n->question[helper_i];
    if (!q->open) return;
    MARK(experts_unanswered);
    struct msg_experts_done done = { .batch = q->batch, .layer = q->layer, .n_row = q->n_row, .code = code };
    answer(n, helper_i, &done, (struct payload){ 0 }, outs);
}

static bool same_helpers(const struct node *n, const struct msg_assign *a) {
    if (n->n_helper != a->n_helper) return false;
    for (uint32_t i = 0; i < n->n_helper; i++)
        if (memcmp(&n->helper[i].hop, &a->helper[i].hop, sizeof n->helper[i].hop) != 0) return false;
    return true;
}

/* With a new assignment: open questions are of an older plan; links stay where the helpers are the same. */
void experts_connect(struct node *n, const struct msg_assign *a, struct node_outs *outs) {
    for (uint32_t i = 0; i < n->n_helper; i++) experts_give_up(n, i, ERR_STALE, outs);
    bool same = a->n_helper <= MSG_HELPERS_MAX && same_helpers(n, a);
    for (uint32_t i = 0; i < n->n_helper && !same; i++)
        node_out(outs, NODE_OUT_DISCONNECT)->link = NODE_LINK_HELPER + i;
    n->n_helper = MIN(a->n_helper, (uint32_t)MSG_HELPERS_MAX);
    if (n->n_helper) memcpy(n->helper, a->helper, n->n_helper * sizeof n->helper[0]);
    for (uint32_t i = 0; i < n->n_helper && !same; i++) {
        struct node_out *o = node_out(outs, NODE_OUT_CONNECT);
        o->link = NODE_LINK_HELPER + i;
        o->hop = &n->helper[i].hop;
        node_link_lost(n, &n->helper_peer[i], NODE_LINK_HELPER + i, outs);
    }
}

/* ---- the lead ---- */

void experts_on_ask(struct node *n, const struct node_event *ev, struct payload *payload,
                    struct node_outs *outs) {
    const struct msg_experts *ask = &ev->experts;
    uint32_t i = ev->link - NODE_LINK_HELPER;
    if (i >= n->n_helper || !n->helper_peer[i].up) {
        MARK(experts_unanswered);
        struct msg_experts_done done = {
            .batch = ask->batch, .layer = ask->layer, .n_row = ask->n_row, .code = ERR_PEER
        };
        struct node_out *o = node_out(outs, NODE_OUT_EXPERTS_DONE);
        o->link = ev->link;
        o->experts_done = done;
        return;
    }
    experts_give_up(n, i, ERR_STALE,
                    outs); /* the thread asks again before it has its answer: it gave up by itself */
    n->question[i] =
        (struct node_question){ .open = true,
                                .batch = ask->batch,
                                .layer = ask->layer,
                                .n_row = ask->n_row,
                                .deadline_ns = n->now_ns + n->config.experts_ms * UINT64_C(1000000) };
    struct msg *m = node_send_payload(n, outs, ev->link, MSG_EXPERTS, *payload);
    m->trace = ask->batch;
    m->u.experts = *ask;
    *payload = (struct payload){ 0 };
}

void experts_on_answer(struct node *n, const struct node_event *ev, struct payload *payload,
                       struct node_outs *outs) {
    const struct msg_experts_done *done = &ev->msg->u.experts_done;
    uint32_t i = ev->link - NODE_LINK_HELPER;
    const struct node_question *q = &n->question[i];
    if (!q->open || q->batch != done->batch || q->layer != done->layer || q->n_row != done->n_row) {
        MARK(experts_late);
        return;
    }
    answer(n, i, done, *payload, outs);
    *payload = (struct payload){ 0 };
}

void experts_timers(struct node *n, struct node_outs *outs) {
    for (uint32_t i = 0; i < n->n_helper; i++)
        if (n->question[i].open && n->now_ns >= n->question[i].deadline_ns)
            experts_give_up(n, i, ERR_TIMEOUT, outs);
}

uint64_t experts_deadline_ns(const struct node *n) {
    uint64_t d = UINT64_MAX;
    for (uint32_t i = 0; i < n->n_helper; i++)
        if (n->question[i].open) d = MIN(d, n->question[i].deadline_ns);
    return d;
}

/* ---- the helper ---- */

static void send_done(struct node *n, uint32_t link, uint64_t epoch, const struct msg_experts_done *done,
                      struct payload payload, struct node_outs *outs) {
    struct msg *m = node_send_payload(n, outs, link, MSG_EXPERTS_DONE, payload);
    m->epoch = epoch; /* of the question: a refusal must not be taken for a stale message */
    m->trace = done->batch;
    m->u.experts_done = *done;
}

/* Not an epoch to drop silently: the other side's thread waits. */
void experts_on_question(struct node *n, const struct node_event *ev, struct payload *payload,
                         struct node_outs *outs) {
    const struct msg_experts *q = &ev->msg->u.experts;
    bool ready = n->state == NODE_READY || n->state == NODE_SERVING;
    if (ev->msg->epoch != n->epoch || !ready || !n->assign.is_helper || !payload->generation ||
        q->n_row == 0 || q->n_row > n->assign.n_rows_max || q->layer < n->assign.layer_begin ||
        q->layer >= n->assign.layer_end) {
        MARK(experts_refused);
        struct msg_experts_done done = {
            .batch = q->batch, .layer = q->layer, .n_row = q->n_row, .code = ERR_STALE
        };
        send_done(n, ev->link, ev->msg->epoch, &done, (struct payload){ 0 }, outs);
        return;
    }
    if (n->state == NODE_READY) node_set_state(n, NODE_SERVING);
    struct node_out *o = node_out(outs, NODE_OUT_EXPERTS);
    o->link = ev->link;
    o->epoch = n->epoch;
    o->experts = *q;
    o->payload = *payload;
    *payload = (struct payload){ 0 };
}

void experts_on_computed(struct node *n, const struct node_event *ev, struct payload *payload,
                         struct node_outs *outs) {
    if (ev->epoch != n->epoch) return;            /* the lead has been told by its own new plan */
    n->counters.n_batch++;
    n->counters.n_row += ev->experts_done.n_row;
    n->counters.busy_us += ev->experts_done.compute_us;
    send_done(n, ev->link, n->epoch, &ev->experts_done, *payload, outs);
    *payload = (struct payload){ 0 };
}
