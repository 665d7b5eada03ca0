/* shell_experts - questions about experts on other machines, between the compute threads and the cores.
 *
 *   lead    compute thread: ask, one per helper ==> loop: slot, EV_EXPERTS -> core -> helper
 *           compute thread: wait <== mail <== loop: OUT_EXPERTS_DONE (answer, error or deadline, always)
 *   helper  OUT_EXPERTS -> job ==> compute thread: COMPUTE_EXPERTS ==> EV_EXPERTS_COMPUTED
 *
 * A question (struct node_ask) has one place per helper and belongs to the compute thread, except from
 * its worker_answer to its mail, when it is the loop's. The slot of an answer stays until the next
 * question to that helper. */
#include "node/main_private.h"

#include "common/base/check.h"

#include <stdio.h>

/* ---- the lead, on the compute thread ---- */

int shell_experts_ask(void *ctx, uint32_t layer, uint32_t n_row, const float *rows, const float *weights,
                      const int32_t *ids, struct err *e) {
    struct node_process *p = ctx;
    (void)e;
    for (uint32_t i = 0; i < p->n_ask; i++) {
        struct node_ask *a = &p->ask[i];
        a->box.is_question = true;
        a->helper = i;
        a->arrived = false;
        a->question = (struct msg_experts){ .batch = p->running_batch, .layer = layer, .n_row = n_row };
        a->rows = rows;
        a->weights = weights;
        a->ids = ids;
        worker_answer(p->worker, &a->box);
    }
    return 0;
}

int shell_experts_wait(void *ctx, uint32_t i, float *sums, struct err *e) {
    struct node_process *p = ctx;
    struct node_ask *a = &p->ask[i];
    while (!a->arrived) {
        struct node_ask *came = worker_wait_mail(p->worker);
        if (!came) return err_set(e, ERR_CANCELLED, "the node is stopping");
        came->arrived = true;
    }
    if (a->code < 0) return err_set(e, a->code, "expert helper %u: %s", i, err_text(a->code));
    memcpy(sums, slots_data(p->slots, a->answer), a->answer.bytes);
    return 0;
}

/* ---- the lead, on the loop ---- */

static void mail(struct node_process *p, struct node_ask *a, int code) {
    a->open = false;
    a->code = code;
    bool taken = worker_mail(p->worker, a);
    CHECK(taken);                                  /* one per helper, and the ring holds them all */
}

static uint8_t *put(uint8_t *to, const void *from, size_t n) {
    memcpy(to, from, n);
    return to + n;
}

void shell_experts_question(struct node_process *p, struct node_job_box *b) {
    struct node_ask *a = (struct node_ask *)b;
    uint64_t n_rows = (uint64_t)a->question.n_row * p->n_embd * 4,
             n_ids = (uint64_t)a->question.n_row * p->n_used * 4;
    uint64_t bytes = n_rows + 2 * n_ids;
    slots_give(p->slots, a->answer);
    a->answer = (struct payload){ 0 };
    struct payload payload = { 0 };
    if (!p->stopping && bytes <= UINT32_MAX) payload = slots_take(p->slots, (size_t)bytes);
    if (!payload.generation) {
        mail(p, a, p->stopping ? ERR_CANCELLED : ERR_NOMEM);
        return;
    }
    uint8_t *to = put(slots_data(p->slots, payload), a->rows, n_rows);
    put(put(to, a->weights, n_ids), a->ids, n_ids);
    a->open = true;
    a->question.n_used = p->n_used;
    shell_step(p, &(struct node_event){ .kind = NODE_EV_EXPERTS,
                                        .link = NODE_LINK_HELPER + a->helper,
                                        .experts = a->question,
                                        .take_payload = payload });
}

void shell_experts_done(struct node_process *p, const struct node_out *o) {
    uint32_t i = o->link - NODE_LINK_HELPER;
    struct node_ask *a = i < STAGE_HELPERS_MAX ? &p->ask[i] : NULL;
    int code = o->experts_done.code;
    if (!a || !a->open) {
        slots_give(p->slots, o->payload);
        return;
    }
    a->answer = o->payload;
    if (code >= 0 && o->payload.bytes != (uint64_t)a->question.n_row * p->n_embd * 4) code = ERR_PEER;
    mail(p, a, MIN(code, 0));
}

/* ---- the helper ---- */

void shell_experts_compute(struct node_process *p, const struct node_out *o) {
    struct node_job_box *b = shell_box_take(p, COMPUTE_EXPERTS);
    struct compute_job *j = &b->job;
    uint64_t rows = (uint64_t)o->experts.n_row * p->n_embd * 4,
             ids = (uint64_t)o->experts.n_row * o->experts.n_used * 4;
    j->epoch = o->epoch;
    j->link = o->link;
    j->question = o->experts;
    j->in = o->payload;
    j->out = rows <= UINT32_MAX ? slots_take(p->slots, (size_t)rows) : (struct payload){ 0 };
    j->code = j->out.generation ? 0 : ERR_NOMEM;
    if (o->payload.bytes != rows + 2 * ids) j->code = ERR_INVALID;
    snprintf(j->text, sizeof j->text, "%s", err_text(j->code));
    j->question_data = slots_data(p->slots, j->in);
    j->sums = j->out.generation ? slots_data(p->slots, j->out) : NULL;
    shell_push(p, b);
}

void shell_experts_computed(struct node_process *p, struct node_job_box *b) {
    struct compute_job *j = &b->job;
    struct node_event ev = { .kind = NODE_EV_EXPERTS_COMPUTED, .link = j->link, .epoch = j->epoch };
    slots_give(p->slots, j->in);
    if (j->code < 0) slots_give(p->slots, j->out);
    else ev.take_payload = j->out;
    ev.experts_done = (struct msg_experts_done){ .batch = j->question.batch,
                                                 .layer = j->question.layer,
                                                 .n_row = j->question.n_row,
                                                 .compute_us = j->compute_us,
                                                 .code = j->code };
    shell_step(p, &ev);
}
