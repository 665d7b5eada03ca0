/* A plan whose stages are given: is it possible, and how fast is it? The search reports what this file
 * says about its result, and tests use it to try every plan there is. */
#include "common/model/plan_parts.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

struct context {
    const struct plan_model *m;
    const struct plan_cluster *c;
    const struct plan_options *o;
};

/* ---- checks ---- */

static int use_machine(const struct plan_cluster *c, bool *used, uint32_t machine, struct err *e) {
    if (machine >= c->n) return err_set(e, ERR_INVALID, "machine %u of %u", machine, c->n);
    if (used[machine]) return err_set(e, ERR_INVALID, "machine %s is used twice", c->machine[machine].name);
    used[machine] = true;
    return 0;
}

static int check_stage(const struct context *x, const struct plan_stage *s, uint32_t begin,
                       bool *used, struct err *e) {
    uint32_t next = s->expert_end;
    if (s->layer_begin != begin || s->layer_end <= begin || s->layer_end > x->m->hp.n_layer)
        return err_set(e, ERR_INVALID, "layers %u to %u do not continue at layer %u of %u",
                       s->layer_begin, s->layer_end - 1, begin, x->m->hp.n_layer);
    int rc = use_machine(x->c, used, s->machine, e);
    if (rc == 0 && (s->n_helper > PLAN_HELPERS_MAX || s->expert_begin != 0))
        rc = err_set(e, ERR_INVALID, "helpers of stage are damaged");
    for (uint32_t i = 0; rc == 0 && i < s->n_helper; i++) {
        const struct plan_helper *h = &s->helper[i];
        rc = use_machine(x->c, used, h->machine, e);
        if (rc == 0 && (h->expert_begin != next || h->expert_end <= next))
            rc = err_set(e, ERR_INVALID, "experts of helpers have gaps");
        next = h->expert_end;
    }
    if (rc == 0 && next != x->m->hp.n_expert)
        rc = err_set(e, ERR_INVALID, "experts of a stage are not complete");
    return rc;
}

static int check_stages(const struct context *x, const struct plan *p, struct err *e) {
    bool used[PLAN_MACHINES_MAX] = { false };
    uint32_t begin = 0;
    if (p->n_stage < 1 || p->n_stage > x->c->n)
        return err_set(e, ERR_INVALID, "%u stages on %u machines", p->n_stage, x->c->n);
    for (uint32_t i = 0; i < p->n_stage; i++) {
        int rc = check_stage(x, &p->stage[i], begin, used, e);
        if (rc < 0) return rc;
        begin = p->stage[i].layer_end;
    }
    if (begin != x->m->hp.n_layer)
        return err_set(e, ERR_INVALID, "layers %u to %u are on no machine", begin,
                       x->m->hp.n_layer - 1);
    return 0;
}

static int check_room(const struct plan_machine *p, uint64_t need, struct err *e) {
    if (need <= p->memory) return 0;
    return err_set(e, ERR_NOMEM, "machine %s needs %llu bytes and has %llu: %llu are missing",
                   p->name, (unsigned long long)need, (unsigned long long)p->memory,
                   (unsigned long long)(need - p->memory));
}

static int stage_memory(const struct context *x, struct plan_stage *s, struct err *e) {
    uint64_t experts = 0, rest = 0, held = s->expert_end - s->expert_begin;
    for (uint32_t l = s->layer_begin; l < s->layer_end; l++) {
        experts += x->m->layer[l].expert_bytes;
        rest += x->m->layer[l].table_bytes + x->m->layer[l].dense_bytes;
    }
    s->weights = rest + experts * held + (s->embed ? x->m->embed_bytes : 0) +
                 (s->head ? x->m->head_bytes : 0);
    s->state = plan_state_bytes(x->m, x->o, s->layer_begin, s->layer_end);
    s->work = plan_work_bytes(x->m, x->o);
    int rc = check_room(&x->c->machine[s->machine], s->weights + s->state + s->work, e);
    for (uint32_t i = 0; i < s->n_helper && rc == 0; i++) {
        struct plan_helper *h = &s->helper[i];
        h->memory = experts * (h->expert_end - h->expert_begin) + s->work;
        rc = check_room(&x->c->machine[h->machine], h->memory, e);
    }
    return rc;
}

/* ---- time ---- */

static struct plan_helped helped_layer(const struct context *x, const struct plan_stage *s, uint32_t i,
                                       uint32_t layer, enum plan_kind kind, double rows, uint64_t depth) {
    const struct plan_helper *h = &s->helper[i];
    return plan_helped(x->m, &x->c->machine[s->machine], &x->c->machine[h->machine],
                       &x->c->link[s->machine][h->machine], s->n_helper,
                       h->expert_end - h->expert_begin, layer, kind, rows, depth);
}

/* The slowest helper decides. */
static double layer_seconds(const struct context *x, const struct plan_stage *s, uint32_t layer,
                            enum plan_kind kind, double rows, uint64_t depth) {
    double slowest = 0;
    if (s->n_helper == 0)
        return plan_layer_seconds(x->m, &x->c->machine[s->machine], layer, kind, rows, depth);
    for (uint32_t i = 0; i < s->n_helper; i++)
        slowest = fmax(slowest, plan_helped_seconds(helped_layer(x, s, i, layer, kind, rows, depth)));
    return slowest;
}

static double stage_seconds(const struct context *x, const struct plan_stage *s,
                            enum plan_kind kind, double rows, uint64_t depth, double head_rows) {
    double t = 0;
    for (uint32_t l = s->layer_begin; l < s->layer_end; l++) t += layer_seconds(x, s, l, kind, rows, depth);
    if (s->head && head_rows > 0)
        t += plan_seconds(&x->c->machine[s->machine], plan_work_head(x->m, head_rows));
    return t;
}

/* Lead and helpers together: one port of one source gives to all of them. */
static double fetch_seconds(const struct context *x, const struct plan_stage *s) {
    const struct plan_machine *lead = &x->c->machine[s->machine];
    double n = x->m->hp.n_expert, t = plan_fetch_ends(lead, s->embed, s->head);
    for (uint32_t l = s->layer_begin; l < s->layer_end; l++) {
        t += plan_fetch_layer(x->m, lead, l, (s->expert_end - s->expert_begin) / n, true);
        for (uint32_t i = 0; i < s->n_helper; i++)
            t += plan_fetch_layer(x->m, &x->c->machine[s->helper[i].machine], l,
                                  (s->helper[i].expert_end - s->helper[i].expert_begin) / n, false);
    }
    return t;
}

static void stage_touched(const struct context *x, struct plan_stage *s) {
    const struct plan_machine *p = &x->c->machine[s->machine];
    struct plan_work w = { 0 };
    for (uint32_t l = s->layer_begin; l < s->layer_end; l++) {
        w = plan_work_add(w, plan_work_dense(x->m, l, PLAN_DECODE, 1, x->o->depth), 1);
        w = plan_work_add(w, plan_work_experts(x->m, l, 1), 1);
    }
    if (s->head) w = plan_work_add(w, plan_work_head(x->m, 1), 1);
    s->token_bytes = w.bytes;
    s->token_flop = w.int8 + w.f32;
    s->bound = w.bytes / p->bytes_per_s >= w.int8 / p->int8_per_s + w.f32 / p->f32_per_s
                   ? PLAN_BY_MEMORY
                   : PLAN_BY_COMPUTE;
}

static const struct plan_link *link_after(const struct context *x, const struct plan *p, uint32_t i) {
    bool last = i + 1 == p->n_stage;
    return last ? &x->c->coordinator[p->stage[i].machine]
                : &x->c->link[p->stage[i].machine][p->stage[i + 1].machine];
}

/* On the wire, without the latency. */
static double send_seconds(const struct context *x, const struct plan *p, uint32_t i, double rows) {
    const struct plan_link *link = link_after(x, p, i);
    return i + 1 == p->n_stage ? plan_result_seconds(link, rows) : plan_send_seconds(x->m, link, rows);
}

static void decode_figures(const struct context *x, struct plan *p) {
    double groups = plan_groups(x->o, p->n_stage), round = x->c->coordinator[p->stage[0].machine].latency_s;
    p->rows = x->o->n_streams / groups;
    double token = round, slowest = 0;               /* with the fetching; the others are what is reported */
    double whole_round = round;
    p->token_s = round;
    p->batch_s = 0;
    for (uint32_t i = 0; i < p->n_stage; i++) {
        struct plan_stage *s = &p->stage[i];
        double latency = link_after(x, p, i)->latency_s, send = send_seconds(x, p, i, p->rows);
        s->token_s = stage_seconds(x, s, PLAN_DECODE, 1, x->o->depth, 1);
        s->batch_s = stage_seconds(x, s, PLAN_DECODE, p->rows, x->o->depth, p->rows);
        s->send_s = latency + send_seconds(x, p, i, 1);
        p->token_s += s->token_s + s->send_s;
        round += s->batch_s + latency + send;
        p->batch_s = fmax(p->batch_s, fmax(s->batch_s, send));
        double fetch = fetch_seconds(x, s);
        token += s->token_s + s->send_s + fetch;
        whole_round += s->batch_s + latency + send + fetch;
        slowest = fmax(slowest, fmax(s->batch_s + fetch, send));
    }
    p->stream_tokens_per_s = 1 / p->token_s;
    p->all_tokens_per_s = p->rows / fmax(p->batch_s, round / groups);
    p->objective = x->o->objective == PLAN_LATENCY ? token : fmax(slowest, whole_round / groups) / p->rows;
}

struct plan_exchange plan_exchange(const struct plan_model *m, const struct plan_cluster *c,
                                   const struct plan_options *o, const struct plan_stage *s, double rows) {
    struct context x = { m, c, o };
    struct plan_exchange sum = { 0 };
    for (uint32_t l = s->layer_begin; l < s->layer_end && s->n_helper; l++) {
        struct plan_helped slowest = { 0 };
        for (uint32_t i = 0; i < s->n_helper; i++) {
            struct plan_helped h = helped_layer(&x, s, i, l, PLAN_DECODE, rows, o->depth);
            if (i == 0 || h.way + h.there > slowest.way + slowest.there) slowest = h;
        }
        sum.alone_s += plan_seconds(&c->machine[s->machine], plan_work_experts(m, l, rows));
        sum.here_s += slowest.here;
        sum.way_s += slowest.way;
        sum.there_s += slowest.there;
    }
    return sum;
}

/* Chunk k enters a stage when the stage before has sent it and the stage itself is done with chunk k - 1. */
static void prefill_figures(const struct context *x, struct plan *p) {
    uint64_t n = MAX(x->o->depth, 1), done = 0;
    double free_at[PLAN_MACHINES_MAX] = { 0 }, at = 0;
    while (done < n) {
        uint64_t rows = MIN(n - done, x->o->chunk);
        done += rows;
        at = x->c->coordinator[p->stage[0].machine].latency_s;
        for (uint32_t i = 0; i < p->n_stage; i++) {
            struct plan_stage *s = &p->stage[i];
            s->chunk_s = stage_seconds(x, s, PLAN_PREFILL, (double)rows, done - rows / 2, done == n);
            at = free_at[i] = fmax(at, free_at[i]) + s->chunk_s;
            at += link_after(x, p, i)->latency_s;
            if (i + 1 < p->n_stage) at += send_seconds(x, p, i, (double)rows);
        }
    }
    p->prefill_tokens_per_s = (double)n / at;
}

int plan_evaluate(const struct plan_model *m, const struct plan_cluster *c,
                  const struct plan_options *o, struct plan *p, struct err *e) {
    struct context x = { m, c, o };
    int rc = plan_check_input(m, c, o, e);
    if (rc == 0) rc = check_stages(&x, p, e);
    for (uint32_t i = 0; i < p->n_stage && rc == 0; i++) {
        p->stage[i].embed = i == 0;
        p->stage[i].head = i + 1 == p->n_stage;
        rc = stage_memory(&x, &p->stage[i], e);
        if (rc == 0) stage_touched(&x, &p->stage[i]);
    }
    if (rc < 0) return rc;
    decode_figures(&x, p);
    if (isinf(p->objective))
        return err_set(e, ERR_NOTFOUND, "a machine of this plan neither has its layers nor can fetch them");
    prefill_figures(&x, p);
    return 0;
}

/* ---- plans by hand ---- */

static int find_machine(const struct plan_cluster *c, const char *name, size_t len, uint32_t *out) {
    for (uint32_t i = 0; i < c->n; i++)
        if (strlen(c->machine[i].name) == len && memcmp(c->machine[i].name, name, len) == 0)
            return *out = i, 0;
    return ERR_NOTFOUND;
}

static const char *read_layer(const char *at, uint32_t *out) {
    uint32_t n = 0, digits = 0;
    while (*at >= '0' && *at <= '9' && digits++ < 4) n = n * 10 + (uint32_t)(*at++ - '0');
    *out = n;
    return digits > 0 && digits <= 4 ? at : NULL;
}

static bool is_power_of_two(uint32_t n) {
    return n && (n & (n - 1)) == 0;
}

bool plan_experts_divide(uint32_t n_expert, uint32_t n_helper, uint32_t each) {
    if ((uint64_t)n_helper * each >= n_expert) return false;
    uint32_t lead = n_expert - n_helper * each;
    return is_power_of_two(lead) && is_power_of_two(each) && lead % each == 0;
}

uint32_t plan_experts_each(uint32_t n_expert, uint32_t n_helper) {
    uint32_t each = 0;
    for (uint32_t n = 1; n_helper && n < n_expert && n < 1u << 30; n *= 2)
        if (plan_experts_divide(n_expert, n_helper, n)) each = n;
    return each;
}

/* "+NAME+NAME": helpers, each with as many experts as can be. */
static int read_helpers(const struct plan_model *m, const struct plan_cluster *c, const char **at,
                        struct plan_stage *s, struct err *e) {
    while (**at == '+') {
        const char *name = *at + 1;
        size_t len = strcspn(name, "+,");
        if (s->n_helper == PLAN_HELPERS_MAX)
            return err_set(e, ERR_LIMIT, "more than %d helpers of a stage", PLAN_HELPERS_MAX);
        if (find_machine(c, name, len, &s->helper[s->n_helper++].machine) < 0)
            return err_set(e, ERR_NOTFOUND, "no machine is called '%.*s'",
                           (int)MIN(len, (size_t)PLAN_NAME_MAX), name);
        *at = name + len;
    }
    uint32_t n_expert = m->hp.n_expert, each = plan_experts_each(n_expert, s->n_helper);
    if (s->n_helper && !each)
        return err_set(e, ERR_UNSUPPORTED, "%u experts cannot be divided among a lead and %u helpers",
                       m->hp.n_expert, s->n_helper);
    s->expert_end = n_expert - s->n_helper * each;
    for (uint32_t i = 0; i < s->n_helper; i++) {
        s->helper[i].expert_begin = s->expert_end + i * each;
        s->helper[i].expert_end = s->helper[i].expert_begin + each;
    }
    return 0;
}

int plan_parse(const struct plan_model *m, const struct plan_cluster *c, const char *text,
               struct plan *out, struct err *e) {
    memset(out, 0, sizeof *out);
    const char *at = text;
    while (out->n_stage == 0 || *at == ',') {
        if (out->n_stage == PLAN_MACHINES_MAX)
            return err_set(e, ERR_LIMIT, "more than %d stages", PLAN_MACHINES_MAX);
        struct plan_stage *s = &out->stage[out->n_stage];
        const char *name = out->n_stage++ ? at + 1 : at, *equals = strchr(name, '=');
        uint32_t last = 0;
        const char *rest = equals ? read_layer(equals + 1, &s->layer_begin) : NULL;
        rest = rest && *rest == '-' ? read_layer(rest + 1, &last)
               : rest               ? (last = s->layer_begin, rest)
                                    : NULL;
        if (!rest || (*rest && *rest != ',' && *rest != '+'))
            return err_set(e, ERR_INVALID,
                           "'%.64s': stages are written NAME=FIRST-LAST[+HELPER],NAME=FIRST-LAST ...", name);
        if (last < s->layer_begin || last >= m->hp.n_layer)
            return err_set(e, ERR_INVALID, "layers %u-%u: the model has layers 0-%u",
                           s->layer_begin, last, m->hp.n_layer - 1);
        if (find_machine(c, name, (size_t)(equals - name), &s->machine) < 0)
            return err_set(e, ERR_NOTFOUND, "no machine is called '%.*s'",
                           (int)MIN(equals - name, PLAN_NAME_MAX), name);
        s->layer_end = last + 1;
        int rc = read_helpers(m, c, &rest, s, e);
        if (rc < 0) return rc;
        at = rest;
    }
    return 0;
}
