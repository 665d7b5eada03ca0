/* compute - the stage of the simulation: a hash chain per layer, a job queue with service times, and
 * the reference. */
#include "tests/sim/world.h"

#include "common/base/check.h"

#include "common/base/banned.h"

static uint64_t mix(uint64_t a, uint64_t b) {
    uint64_t x = a * UINT64_C(0x9e3779b97f4a7c15) ^ (b + UINT64_C(0x7f4a7c15f39cc060));
    x = (x ^ x >> 29) * UINT64_C(0xbf58476d1ce4e5b9);
    return x ^ x >> 32;
}

static uint64_t embed(int32_t token) {
    return mix(0x656d6264, (uint64_t)token);
}

/* What a layer does to one row: its state takes the row in, and the row takes the state on. */
static uint64_t layer(uint64_t x, uint32_t l, uint64_t before, uint64_t *after) {
    *after = mix(mix(before, x), l);
    return mix(x, *after);
}

/* Takes in token[ref->n .. n) and gives what comes out of the last one. */
uint64_t reference_next(const struct world *w, struct reference *ref, const int32_t *token, uint32_t n) {
    for (; ref->n < n; ref->n++) {
        ref->x = embed(token[ref->n]);
        for (uint32_t l = 0; l < w->n_layer; l++) ref->x = layer(ref->x, l, ref->state[l], &ref->state[l]);
    }
    return ref->x;
}

uint64_t compute_score(uint64_t hash, int32_t token) {
    return mix(hash, (uint64_t)token);
}

int32_t compute_pick(const struct world *w, uint64_t hash, uint64_t seed, uint32_t position, bool *end) {
    uint64_t x = mix(hash, rng_at(seed, position));
    *end = x % 41 == 0 && !w->endless;
    return (int32_t)((x >> 8) % VOCAB);
}

static uint64_t duration(struct world *w, const struct actor *a, const struct sim_job *j) {
    uint64_t slow = w->now < a->slow_until ? 30 : 1;
    if (j->kind == NODE_OUT_SEQ_CLOSE || j->given_up) return 0;
    if (j->kind == NODE_OUT_LOAD) return world_between(w, w->load_ns / 2, w->load_ns) * slow;
    return (w->batch_ns + w->row_ns * j->job->n_row) * (j->layer_end - j->layer_begin) * slow;
}

static void job_start(struct world *w, uint8_t a) {
    struct actor *actor = &w->actor[a];
    if (actor->job_runs || actor->n_job == 0) return;
    actor->job_runs = true;
    const struct sim_job *j = &actor->jobs[actor->job_first];
    uint64_t t = w->now + duration(w, actor, j);
    if (j->kind == NODE_OUT_LOAD && !j->given_up && fault_hits(w, FAULT_LOAD_SILENT, 4)) t += 40000 * MS;
    world_post(w, (struct ev){ .t = t, .kind = EV_JOB, .actor = a, .generation = actor->generation });
}

/* Within a plan every batch is computed once, in the order in which they were made. */
static void check_order(struct world *w, uint8_t a, const struct node_job *job) {
    struct actor *actor = &w->actor[a];
    uint64_t epoch = node_view(actor->node).epoch;
    if (actor->ran_epoch == epoch && job->batch <= actor->ran_batch)
        world_fail(w, "%s computes batch %llu after %llu", actor->name, (unsigned long long)job->batch,
                   (unsigned long long)actor->ran_batch);
    actor->ran_epoch = epoch;
    actor->ran_batch = job->batch;
}

void compute_push(struct world *w, uint8_t a, const struct node_out *o) {
    struct actor *actor = &w->actor[a];
    CHECK(actor->n_job < JOBS_MAX);
    for (uint32_t i = 0; o->kind == NODE_OUT_LOAD && i < actor->n_job; i++) {
        struct sim_job *older = &actor->jobs[(actor->job_first + i) % JOBS_MAX];
        older->given_up = older->kind == NODE_OUT_LOAD;
    }
    struct sim_job *j = &actor->jobs[(actor->job_first + actor->n_job++) % JOBS_MAX];
    *j = (struct sim_job){ .kind = o->kind,
                           .slot = o->slot,
                           .epoch = o->epoch,
                           .layer_begin = actor->layer_begin,
                           .layer_end = actor->layer_end,
                           .has_head = actor->has_head };
    if (o->kind == NODE_OUT_RUN) {
        check_order(w, a, o->job);
        j->job = o->job;
        j->handle = o->job->handle;
    }
    if (o->kind == NODE_OUT_LOAD) {
        actor->layer_begin = j->layer_begin = o->assign->layer_begin;
        actor->layer_end = j->layer_end = o->assign->layer_end;
        actor->has_head = j->has_head = o->assign->has_head;
        j->n_slot = o->assign->n_slot;
    }
    job_start(w, a);
}

/* The engine believes what it is told, except that a sequence has the length that the core thinks it has. */
static int run(struct world *w, uint8_t a, const struct sim_job *j, uint64_t *x) {
    struct actor *actor = &w->actor[a];
    const struct node_job *job = j->job;
    uint32_t row = 0;
    for (uint32_t i = 0; i < job->n_seg; i++) {
        const struct node_job_seg *s = &job->seg[i];
        struct sim_slot *slot = &actor->slot[s->slot], *from = &actor->slot[s->from];
        bool source = !s->fork || (from->open && from->len >= s->pos0);
        if (source && s->open == !slot->open && (!slot->open || slot->len == s->have)) continue;
        /* Only a job that was posted behind one that failed may meet another length than the core thought. */
        if (!w->fault[FAULT_COMPUTE])
            world_fail(w, "%s: a job meets a sequence of another length", actor->name);
        return ERR_INTERNAL;
    }
    for (uint32_t i = 0; i < job->n_seg; i++) {
        const struct node_job_seg *s = &job->seg[i];
        CHECK(s->pos0 + s->n <= CTX_MAX);
        for (uint32_t l = j->layer_begin; s->fork && l < j->layer_end; l++)
            memcpy(actor->state[s->slot][l], actor->state[s->from][l], (s->pos0 + 1) * sizeof(uint64_t));
        for (uint32_t k = 0; k < s->n; k++, row++)
            for (uint32_t l = j->layer_begin; l < j->layer_end; l++) {
                uint64_t *h = actor->state[s->slot][l];
                if (s->pos0 + k == 0) h[0] = 0;
                x[row] = layer(x[row], l, h[s->pos0 + k], &h[s->pos0 + k + 1]);
            }
        actor->slot[s->slot] = (struct sim_slot){ .open = true, .len = s->pos0 + s->n };
    }
    return 0;
}

/* The last stage: its wanted rows, as candidates that suffice or do not, and the rows themselves kept. */
static void ship_rows(struct world *w, uint8_t a, const struct node_job *job, const uint64_t *x,
                      struct node_event *ev, struct msg_row_result *rows) {
    ev->take_payload = job->n_want ? payload_new(w, a, job->n_want) : (struct payload){ 0 };
    ev->done.take_kept = job->n_want ? payload_new(w, a, job->n_want) : (struct payload){ 0 };
    for (uint32_t i = 0; i < job->n_want; i++) {
        const struct msg_want *want = &job->want[i];
        bool score = want->logprobs, enough = score || !w->more_every || x[want->row] % w->more_every;
        uint64_t hash = score ? compute_score(x[want->row], job->bias[want->bias_begin].id) : x[want->row];
        payload_data(w, ev->take_payload)[i] = enough ? hash : ~hash;
        payload_data(w, ev->done.take_kept)[i] = hash;
        rows[i] = (struct msg_row_result){
            .row = want->row, .offset = i * 8, .bytes = 8, .n_item = enough, .n_vocab = VOCAB
        };
    }
    ev->done.row = rows;
    ev->done.n_row = job->n_want;
}

static void finish_run(struct world *w, uint8_t a, const struct sim_job *j, struct node_event *ev,
                       struct msg_row_result *rows) {
    const struct node_job *job = j->job;
    struct payload in = job->take_in;
    uint64_t x[MSG_SEGS_MAX];
    CHECK(job->n_row <= COUNT_OF(x));
    *ev = (struct node_event){ .kind = NODE_EV_COMPUTED, .done = { .job = j->handle } };
    ev->done.compute_us = (uint32_t)(duration(w, &w->actor[a], j) / 1000);
    w->actor[a].busy_ns += duration(w, &w->actor[a], j);
    for (uint32_t i = 0; i < job->n_row; i++)
        x[i] = in.generation ? payload_data(w, in)[i] : embed(job->token[i]);
    if (in.generation) payload_free_one(w, a, in);
    ev->done.code = fault_hits(w, FAULT_COMPUTE, w->compute_fails_in) ? ERR_DEVICE : run(w, a, j, x);
    if (ev->done.code < 0) {
        ev->done.text = "the simulated device says no";
    } else if (j->has_head) {
        ship_rows(w, a, job, x, ev, rows);
    } else {
        ev->take_payload = payload_new(w, a, job->n_row);
        memcpy(payload_data(w, ev->take_payload), x, job->n_row * sizeof x[0]);
    }
}

static void finish_load(struct world *w, const struct sim_job *j, struct node_event *ev) {
    bool fails = fault_hits(w, FAULT_LOAD, 3);
    *ev = (struct node_event){ .kind = NODE_EV_LOADED };
    ev->load = (struct node_load){ .epoch = j->epoch,
                                   .code = fails ? ERR_IO : 0,
                                   .text = fails ? "the simulated disk is bad" : "",
                                   .ready = { .n_slot = j->n_slot,
                                              .n_ctx_max = w->n_ctx,
                                              .n_rows_max = w->n_rows,
                                              .state_tokens_max = w->state_tokens } };
}

/* The job at the front is over. ev->kind stays NODE_EV_TICK when the core has nothing to hear of it. */
void compute_done(struct world *w, uint8_t a, struct node_event *ev, struct msg_row_result *rows) {
    struct actor *actor = &w->actor[a];
    struct sim_job j = actor->jobs[actor->job_first];
    actor->job_first = (actor->job_first + 1) % JOBS_MAX;
    actor->n_job--;
    actor->job_runs = false;
    *ev = (struct node_event){ .kind = NODE_EV_TICK };
    if (j.kind == NODE_OUT_SEQ_CLOSE) actor->slot[j.slot] = (struct sim_slot){ 0 };
    else if (j.kind == NODE_OUT_LOAD) finish_load(w, &j, ev);
    else finish_run(w, a, &j, ev, rows);
    job_start(w, a);
}
