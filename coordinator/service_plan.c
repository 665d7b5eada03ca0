/* service_plan - which node takes which layers: what the nodes told of themselves becomes a description of
 * machines for common/model/plan. Run by the core, on the loop's thread. */
#include "coordinator/service_private.h"

#include "common/base/check.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

/* Where nothing was measured: an ordinary machine and an ordinary network. */
static const struct { double bytes, int8, f32; } guess[MSG_BACKENDS] = {      /* per second */
    [MSG_BACKEND_CPU] = { 20e9, 400e9, 100e9 },
    [MSG_BACKEND_CUDA] = { 1e12, 100e12, 40e12 },
    [MSG_BACKEND_METAL] = { 300e9, 20e12, 10e12 },
};
static const double GUESS_LINK_BYTES_PER_S = 110e6, GUESS_LATENCY_S = 0.3e-3, LAYER_S = 20e-6;

static const char *backend_name(enum msg_backend backend) {
    static const char *const names[MSG_BACKENDS] = { "cpu", "cuda", "metal" };
    return names[backend];
}

static double or_guess(uint64_t measured, double otherwise) {
    return measured ? (double)measured : otherwise;
}

static void machine_of(struct plan_machine *m, const struct msg_hello *h) {
    *m = (struct plan_machine){ .memory = h->memory_bytes,
                                .bytes_per_s = or_guess(h->read_bytes_per_s, guess[h->backend].bytes),
                                .int8_per_s = or_guess(h->int8_per_s, guess[h->backend].int8),
                                .f32_per_s = or_guess(h->f32_per_s, guess[h->backend].f32),
                                .layer_s = LAYER_S };
    snprintf(m->name, sizeof m->name, "%s", h->name);
    snprintf(m->backend, sizeof m->backend, "%s", backend_name(h->backend));
}

static double latency_of(uint32_t rtt_us) {
    return rtt_us ? (double)rtt_us / 2e6 : GUESS_LATENCY_S;
}

static const struct msg_link *measured(const struct coord_node_info *from, const char *to) {
    static const struct msg_link nothing;
    for (uint32_t i = 0; i < from->n_link; i++)
        if (strcmp(from->link[i].name, to) == 0) return &from->link[i];
    return &nothing;
}

static uint64_t best_bytes(const struct coord_node_info *node) {
    uint64_t best = 0;
    for (uint32_t i = 0; i < node->n_link; i++) best = MAX(best, node->link[i].bytes_per_s);
    return best;
}

/* As measured by `from`, or the other way by `to`; else as far as both are away from us, and as fast as the
 * slower one has been seen. */
static struct plan_link link_between(const struct coord_node_info *from, const struct coord_node_info *to) {
    const struct msg_link *there = measured(from, to->hello->name), *back = measured(to, from->hello->name);
    uint32_t rtt_us = there->rtt_us ? there->rtt_us : back->rtt_us;
    uint64_t bytes = there->bytes_per_s ? there->bytes_per_s : back->bytes_per_s;
    if (!bytes) bytes = MIN(best_bytes(from), best_bytes(to));
    double far = MAX(latency_of(from->rtt_us), latency_of(to->rtt_us));
    return (struct plan_link){ rtt_us ? latency_of(rtt_us) : far, or_guess(bytes, GUESS_LINK_BYTES_PER_S) };
}

static struct plan_link link_to_us(const struct coord_node_info *node) {
    const struct msg_link *l = measured(node, MSG_COORDINATOR);
    return (struct plan_link){ latency_of(l->rtt_us ? l->rtt_us : node->rtt_us),
                               or_guess(l->bytes_per_s, GUESS_LINK_BYTES_PER_S) };
}

/* Something of the model that is served; what it lacks may come from others. */
static bool has_file(const struct service *s, const struct msg_hello *h) {
    for (uint32_t i = 0; i < h->n_file; i++)
        if (h->file[i].model_lo == s->model.lo && h->file[i].model_hi == s->model.hi) return true;
    return false;
}

static bool covers(const struct msg_file *f, uint32_t layer) {
    return f->layers[layer / 8] >> (layer % 8) & 1;
}

static double fetch_seconds(uint64_t bytes, double bytes_per_s) {
    return bytes ? (double)bytes / bytes_per_s : 0;
}

/* What a node has not yet: the seconds it takes to fetch it from whoever has it, or never. */
static void absent_of(const struct service *s, const struct msg_hello *h, double bytes_per_s,
                      const struct msg_source *given, struct plan_absent *out) {
    const struct plan_model *m = s->plan_model;
    double speed = given->has_header && h->fetches ? bytes_per_s : 0;
    out->embed = fetch_seconds(m->embed_bytes, given->has_embed ? speed : 0);
    out->head = fetch_seconds(m->head_bytes, given->has_head ? speed : 0);
    for (uint32_t l = 0; l < m->hp.n_layer; l++)
        out->layer[l] =
            fetch_seconds(plan_layer_bytes(m, l), given->layers[l / 8] >> (l % 8) & 1 ? speed : 0);
    for (uint32_t i = 0; i < h->n_file; i++) {
        const struct msg_file *f = &h->file[i];
        if (f->model_lo != s->model.lo || f->model_hi != s->model.hi) continue;
        if (f->has_embed) out->embed = 0;
        if (f->has_head) out->head = 0;
        for (uint32_t l = 0; l < m->hp.n_layer; l++)
            if (covers(f, l)) out->layer[l] = 0;
    }
}

static struct plan_options options_of(const struct service *s, uint32_t n_streams) {
    struct plan_options o;
    const char *objective = s->config.objective;
    plan_options_init(&o);
    o.objective = objective && strcmp(objective, "throughput") == 0 ? PLAN_THROUGHPUT : PLAN_LATENCY;
    o.helpers = PLAN_HELPERS_AUTO;
    o.n_ctx = s->config.n_ctx;
    o.n_streams = n_streams;
    o.depth = MIN(o.depth, o.n_ctx);
    o.chunk = s->config.n_rows_max;
    return o;
}

/* ---- which plan ---- */

/* Memory for all streams at once, each with a full context, if it can be had; else for one: requests that
 * do not fit beside each other wait (msg_ready.state_tokens_max). */
static int by_hand(const struct service *s, struct plan *p, struct err *e) {
    struct plan_options o = options_of(s, s->config.n_slot);
    int rc = plan_parse(s->plan_model, s->plan_cluster, s->config.stages, p, e);
    if (rc == 0) rc = plan_evaluate(s->plan_model, s->plan_cluster, &o, p, e);
    o.n_streams = 1;
    return rc == ERR_NOMEM ? plan_evaluate(s->plan_model, s->plan_cluster, &o, p, e) : rc;
}

/* Helpers that are there because no machine could hold a layer with all that is wanted beside it. */
static bool helpers_for_room(const struct plan *p) {
    for (uint32_t i = 0; i < p->n_stage; i++)
        if (p->stage[i].n_helper) return p->plain_tokens_per_s == 0;
    return false;
}

static int by_search(const struct service *s, struct plan *p, struct err *e) {
    struct plan_options o = options_of(s, s->config.n_slot);
    int rc = plan_search(s->plan_model, s->plan_cluster, &o, p, e);
    if (rc == 0 ? !helpers_for_room(p) : rc != ERR_NOMEM) return rc;
    o.n_streams = 1;
    return plan_search(s->plan_model, s->plan_cluster, &o, p, e);
}

/* As told by hand, as long as those machines are there. What served once goes on with whoever is left. */
static int choose(const struct service *s, struct plan *p, bool *substitute, struct err *e) {
    *substitute = false;
    if (s->config.stages) {
        int rc = by_hand(s, p, e);
        if (rc == 0 || s->n_plan == 0) return rc;
        *substitute = true;
    }
    return by_search(s, p, e);
}

static uint32_t us_of(double seconds) {
    double us = seconds * 1e6;
    return us < 1 ? 1 : us < 4e9 ? (uint32_t)us : UINT32_MAX;
}

static void helpers_tell(const struct plan_stage *s, const uint32_t *place, struct coord_plan_stage *out) {
    if (!s->n_helper) return;
    out->expert_begin = s->expert_begin;
    out->expert_end = s->expert_end;
    out->n_helper = s->n_helper;
    for (uint32_t i = 0; i < s->n_helper; i++)
        out->helper[i] = (struct coord_plan_helper){ place[s->helper[i].machine], s->helper[i].expert_begin,
                                                     s->helper[i].expert_end };
}

static void plan_tell(const struct service *s, const struct plan *p, const uint32_t *place,
                      struct coord_plan *out) {
    bool f16s = s->config.wire && strcmp(s->config.wire, "f16s") == 0;
    out->model_lo = s->model.lo;
    out->model_hi = s->model.hi;
    snprintf(out->model, sizeof out->model, "%s", s->model_name);
    out->n_stage = p->n_stage;
    out->n_slot = s->config.n_slot;
    out->n_ctx_max = s->config.n_ctx;
    out->n_rows_max = s->config.n_rows_max;
    out->n_credit = 2;
    out->numerics = (uint32_t)s->config.numerics;
    out->precision = s->config.precision && strcmp(s->config.precision, "f32") == 0;
    for (uint32_t i = 0; i < p->n_stage; i++) {
        out->stage[i] = (struct coord_plan_stage){ .node = place[p->stage[i].machine],
                                                   .layer_begin = p->stage[i].layer_begin,
                                                   .layer_end = p->stage[i].layer_end,
                                                   .wire = f16s ? MSG_WIRE_F16S : MSG_WIRE_F32,
                                                   .us_row_1 = us_of(p->stage[i].token_s),
                                                   .us_row_n = us_of(p->stage[i].chunk_s) };
        helpers_tell(&p->stage[i], place, &out->stage[i]);
    }
}

/* A guess may be wrong by much, and deadlines would follow from it: better to know that nothing is known. */
static void forget_guesses(struct coord_plan *out, const struct coord_node_info *node) {
    for (uint32_t i = 0; i < out->n_stage; i++) {
        struct coord_plan_stage *s = &out->stage[i];
        if (!node[s->node].hello->int8_per_s || !node[s->node].hello->read_bytes_per_s)
            s->us_row_1 = s->us_row_n = 0;
    }
}

/* The machines that hold the model or can fetch it; what they lack is in absent[], which is the caller's. */
static int describe(struct service *s, const struct coord_node_info *node, uint32_t n_node, uint32_t *place,
                    struct plan_absent **absent, struct err *e) {
    struct plan_cluster *c = s->plan_cluster;
    struct msg_source given;
    *absent = NULL;
    service_given(s, node, n_node, &given);
    c->n = 0;
    for (uint32_t i = 0; i < n_node && c->n < PLAN_MACHINES_MAX; i++) {
        if (!has_file(s, node[i].hello) && !(given.has_header && node[i].hello->fetches)) continue;
        machine_of(&c->machine[c->n], node[i].hello);
        place[c->n++] = i;
    }
    if (c->n == 0) return err_set(e, ERR_NOTFOUND, "no node has this model");
    *absent = xcalloc(c->n, sizeof **absent);
    for (uint32_t i = 0; i < c->n; i++) {
        c->coordinator[i] = link_to_us(&node[place[i]]);
        absent_of(s, node[place[i]].hello, c->coordinator[i].bytes_per_s, &given, &(*absent)[i]);
        c->machine[i].absent = &(*absent)[i];
        for (uint32_t k = 0; k < c->n; k++) c->link[i][k] = link_between(&node[place[i]], &node[place[k]]);
    }
    return 0;
}

int service_plan(void *ctx, const struct coord_node_info *node, uint32_t n_node, struct coord_plan *out,
                 struct err *e) {
    struct service *s = ctx;
    uint32_t place[PLAN_MACHINES_MAX];
    struct plan_absent *absent;
    struct plan p = { 0 };
    *out = (struct coord_plan){ 0 };
    service_gives(s, &out->source);
    int rc = describe(s, node, n_node, place, &absent, e);
    if (rc == 0) rc = choose(s, &p, &out->substitute, e);
    free(absent);
    if (rc < 0) return rc;
    plan_tell(s, &p, place, out);
    forget_guesses(out, node);
    s->n_plan++;
    return 0;
}

bool service_wanted(void *ctx, const struct coord_node_info *node, uint32_t n_node) {
    struct service *s = ctx;
    uint32_t place[PLAN_MACHINES_MAX];
    struct plan_absent *absent;
    struct plan p = { 0 };
    int rc = s->config.stages ? describe(s, node, n_node, place, &absent, NULL) : ERR_NOTFOUND;
    if (rc == 0) rc = by_hand(s, &p, NULL);
    if (s->config.stages) free(absent);
    return rc == 0;
}
