/* world - the event queue, the payload store, one run from a seed to a verdict. */
#include "tests/sim/world.h"

#include "common/base/check.h"

#include <stdarg.h>
#include <stdio.h>

#include "common/base/banned.h"

/* ---- talk ---- */

void world_say(struct world *w, uint32_t actor, const char *format, ...) {
    if (!w->trace) return;
    char text[TRACE_LINE_MAX];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    printf("[%10.3f] %-12s > %s\n", (double)w->now / 1e6,
           actor < ACTORS_MAX ? w->actor[actor].name : "world", text);
}

void world_fail(struct world *w, const char *format, ...) {
    if (w->failed) return;
    va_list args;
    va_start(args, format);
    vsnprintf(w->why, sizeof w->why, format, args);
    va_end(args);
    w->failed = true;
    world_say(w, NOBODY, "FAILED: %s", w->why);
}

uint64_t world_between(struct world *w, uint64_t lo, uint64_t hi) {
    return lo + rng_below(&w->rng, hi - lo + 1);
}

bool world_chance(struct world *w, uint32_t one_in) {
    return rng_below(&w->rng, one_in) == 0;
}

/* ---- events ---- */

static bool before(const struct ev *a, const struct ev *b) {
    return a->t != b->t ? a->t < b->t : a->order < b->order;
}

static void post_as_is(struct world *w, struct ev ev) {
    if (w->n_heap == w->heap_room) {
        w->heap_room = MAX(256, w->heap_room * 2);
        w->heap = xrealloc(w->heap, w->heap_room * sizeof *w->heap);
    }
    uint32_t i = w->n_heap++;
    for (; i > 0 && before(&ev, &w->heap[(i - 1) / 2]); i = (i - 1) / 2) w->heap[i] = w->heap[(i - 1) / 2];
    w->heap[i] = ev;
}

void world_post(struct world *w, struct ev ev) {
    ev.order = ++w->order;
    post_as_is(w, ev);
}

static struct ev heap_pop(struct world *w) {
    struct ev first = w->heap[0], last = w->heap[--w->n_heap];
    uint32_t i = 0;
    for (uint32_t child; (child = 2 * i + 1) < w->n_heap; i = child) {
        if (child + 1 < w->n_heap && before(&w->heap[child + 1], &w->heap[child])) child++;
        if (before(&last, &w->heap[child])) break;
        w->heap[i] = w->heap[child];
    }
    w->heap[i] = last;
    return first;
}

/* ---- payloads ---- */

struct payload payload_new(struct world *w, uint8_t owner, uint32_t n) {
    uint32_t i;
    if (w->n_payload_free) {
        i = w->payload_free[--w->n_payload_free];
    } else {
        if (w->n_payload == w->payload_room) {
            uint32_t room = MAX(64, w->payload_room * 2);
            w->payload = xrealloc(w->payload, room * sizeof *w->payload);
            w->payload_free = xrealloc(w->payload_free, room * sizeof *w->payload_free);
            memset(w->payload + w->payload_room, 0, (room - w->payload_room) * sizeof *w->payload);
            w->payload_room = room;
        }
        i = w->n_payload++;
    }
    struct payload_slot *s = &w->payload[i];
    if (n > s->room) s->data = xrealloc(s->data, (s->room = n) * sizeof *s->data);
    s->generation++;
    s->owner = owner;
    s->n = n;
    w->n_payload_used++;
    world_say(w, owner, "(payload %u.%u is made)", i, s->generation);
    return (struct payload){ .slot = i, .generation = s->generation, .bytes = n * 8 };
}

static struct payload_slot *payload_slot(struct world *w, struct payload p) {
    CHECK(p.slot < w->n_payload);
    struct payload_slot *s = &w->payload[p.slot];
    CHECK(s->generation == p.generation && (s->generation & 1));
    return s;
}

uint64_t *payload_data(struct world *w, struct payload p) {
    return payload_slot(w, p)->data;
}

void payload_free_one(struct world *w, uint8_t owner, struct payload p) {
    struct payload_slot *s = payload_slot(w, p);
    if (s->owner != owner)
        world_fail(w, "payload %u belongs to %u, and %u gives it back", p.slot, s->owner, owner);
    world_say(w, owner, "(payload %u.%u is freed)", p.slot, p.generation);
    s->generation++;
    w->payload_free[w->n_payload_free++] = p.slot;
    w->n_payload_used--;
}

void payload_pass(struct world *w, struct payload p, uint8_t from, uint8_t to) {
    struct payload_slot *s = payload_slot(w, p);
    if (s->owner != from)
        world_fail(w, "payload %u belongs to %u, and %u passes it on", p.slot, s->owner, from);
    s->owner = to;
    world_say(w, from, "(payload %u.%u goes to %u)", p.slot, p.generation, to);
}

void payload_free_all_of(struct world *w, uint8_t owner) {
    for (uint32_t i = 0; i < w->n_payload; i++) {
        struct payload_slot *s = &w->payload[i];
        if ((s->generation & 1) && s->owner == owner)
            payload_free_one(w, owner, (struct payload){ i, s->generation, 0, 0 });
    }
}

/* ---- a run ---- */

static void parcel_free(struct world *w, struct parcel *p) {
    if (p->payload.generation) payload_free_one(w, NOBODY, p->payload);
    free(p);
}

/* Events of a process that has crashed since are dropped; those of a paused one wait, in their order. */
static void happen(struct world *w, const struct ev *ev) {
    uint8_t a = ev->kind == EV_PARCEL ? ev->parcel->to : ev->actor;
    struct actor *actor = &w->actor[a];
    bool to_actor = ev->kind == EV_PARCEL || ev->kind == EV_JOB;
    if (to_actor && actor->paused_until > w->now) {
        struct ev later = *ev;
        later.t = actor->paused_until;
        post_as_is(w, later);
        return;
    }
    switch (ev->kind) {
    case EV_PARCEL:
        actor_deliver(w, ev->parcel);
        parcel_free(w, ev->parcel);
        break;
    case EV_JOB: if (actor->up && actor->generation == ev->generation) actor_job_done(w, a); break;
    case EV_FAULT: faults_happen(w); break;
    case EV_RESTART: if (!actor->up) actor_start(w, a); break;
    case EV_CRASH: if (actor->up && actor->generation == ev->generation) actor_crash(w, a); break;
    case EV_CLIENT: coordinator_submit(w, &w->client[ev->arg]); break;
    case EV_CANCEL: coordinator_cancel(w, &w->client[ev->arg]); break;
    case EV_HEAL: faults_end(w); break;
    default: break;
    }
}

/* The actor whose deadline comes first, or -1. */
static int first_deadline(const struct world *w, uint64_t *t) {
    int first = -1;
    *t = UINT64_MAX;
    for (uint32_t a = 0; a <= w->n_node; a++) {
        const struct actor *actor = &w->actor[a];
        uint64_t d = MAX(actor->deadline_ns, actor->paused_until);
        if (actor->up && d < *t) *t = d, first = (int)a;
    }
    return first;
}

void world_step(struct world *w) {
    uint64_t tick;
    int a = first_deadline(w, &tick);
    if (w->n_heap && w->heap[0].t <= tick) {
        struct ev ev = heap_pop(w);
        w->now = MAX(w->now, ev.t);
        happen(w, &ev);
    } else {
        CHECK(a >= 0);
        if (tick < w->now && w->actor[a].deadline_ns == tick) w->actor[a].deadline_ns = w->now;
        w->now = MAX(w->now, tick);
        actor_tick(w, (uint8_t)a);
    }
    if (++w->n_step > 3000000) world_fail(w, "three million steps and no end");
}

static bool all_done(const struct world *w) {
    return w->calm && w->n_done == w->n_client;
}

/* When everybody has what he wanted, nothing may be left anywhere. */
static void check_nothing_left(struct world *w) {
    for (uint32_t i = 0; i < w->n_payload; i++)
        if (w->payload[i].generation & 1)
            world_fail(w, "%u payloads are never given back, one is %u.%u, with %u", w->n_payload_used, i,
                       w->payload[i].generation, w->payload[i].owner);
    struct coord_view v = coord_view(w->coord);
    if (coord_seqs_alive(w->coord) != v.n_parked)
        world_fail(w, "%u sequences are never closed", coord_seqs_alive(w->coord) - v.n_parked);
    const struct coord_totals *t = v.totals;
    uint64_t parts = t->wait_us + t->queue_us + t->compute_us + t->hold_us + t->wire_us + t->sample_us;
    if (parts > t->wall_us + t->n_token * 20 || parts + t->n_token * 20 < t->wall_us)
        world_fail(w, "of %llu us of tokens, %llu are accounted for", (unsigned long long)t->wall_us,
                   (unsigned long long)parts);
    if (v.n_flying || v.n_active || v.n_queued)
        world_fail(w, "the coordinator keeps work that nobody waits for");
    for (uint32_t a = 1; a <= w->n_node && !w->failed; a++) {
        struct node_view n = node_view(w->actor[a].node);
        if (n.epoch != v.epoch) continue;         /* a spare, with an older plan */
        if (n.n_seq != (n.state == NODE_IDLE ? 0 : v.n_parked))       /* idle: a spare */
            world_fail(w, "%s keeps %u sequences, %u are parked", w->actor[a].name, n.n_seq, v.n_parked);
        if (n.n_batch) world_fail(w, "%s keeps %u batches", w->actor[a].name, n.n_batch);
        if (node_payloads_held(w->actor[a].node)) world_fail(w, "%s keeps payloads", w->actor[a].name);
    }
}

static void settle(struct world *w) {
    uint64_t until = w->now + 8000 * MS;
    while (!w->failed && w->now < until) world_step(w);
    if (!w->failed) check_nothing_left(w);
}

/* The shape of the cluster and its times. */
static void draw(struct world *w) {
    w->n_node = (uint32_t)world_between(w, 1, 5);
    w->n_layer = (uint32_t)world_between(w, MAX(w->n_node, 2), LAYERS_MAX);
    w->n_stage_max = (uint32_t)world_between(w, 1, w->n_node);
    w->n_node_min = (uint32_t)world_between(w, 1, w->n_stage_max);
    w->n_slot = (uint32_t)world_between(w, 1, 8);
    w->n_ctx = (uint32_t)world_between(w, 64, CTX_DRAWN);
    w->n_rows = (uint32_t)world_between(w, 4, 64);
    w->n_credit = (uint32_t)world_between(w, 1, 3);
    w->state_tokens = world_chance(w, 3) ? world_between(w, w->n_ctx, 2 * w->n_ctx) : 0;
    w->delay_ns = world_chance(w, 3) ? world_between(w, 5 * MS, 40 * MS) : world_between(w, MS / 20, 2 * MS);
    w->row_ns = world_between(w, MS / 100, world_chance(w, 3) ? 8 * MS : MS);
    w->batch_ns = world_between(w, MS / 10, 5 * MS);
    w->load_ns = world_between(w, MS, 2000 * MS);
    w->sticky_links = world_chance(w, 2);
    w->compute_fails_in = world_chance(w, 4) ? 2 : 40;
    w->more_every = world_chance(w, 2) ? (uint32_t)world_between(w, 1, 12) : 0;
}

void world_close(struct world *w) {
    while (w->n_heap) {
        struct ev ev = heap_pop(w);
        if (ev.kind == EV_PARCEL) free(ev.parcel);
    }
    for (uint32_t a = 1; a <= w->n_node; a++) {
        node_free(w->actor[a].node);
        node_outs_deinit(&w->actor[a].node_outs);
        free(w->actor[a].state);
    }
    coord_free(w->coord);
    coord_outs_deinit(&w->coord_outs);
    for (uint32_t i = 0; i < w->payload_room; i++) free(w->payload[i].data);
    free(w->payload);
    free(w->payload_free);
    free(w->heap);
}

void world_open(struct world *w, uint64_t seed, bool trace) {
    memset(w, 0, sizeof *w);
    w->seed = seed;
    w->trace = trace;
    w->now = 1000 * MS;
    rng_init(&w->rng, seed, 1);
}

bool world_run(struct world *w, uint64_t seed, bool trace) {
    world_open(w, seed, trace);
    draw(w);
    faults_init(w);
    clients_init(w);
    actors_start(w);
    while (!w->failed && !all_done(w)) {
        world_step(w);
        if (w->now > w->end_by)
            world_fail(w, "after the faults ended %u of %u requests wait for ever",
                       w->n_client - w->n_done, w->n_client);
    }
    if (!w->failed) settle(w);
    world_close(w);
    return !w->failed;
}
