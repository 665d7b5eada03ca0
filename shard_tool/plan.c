/* A plan as text: a table for everybody, and with `explain` every number behind it. */
#include "shard_tool/shard_tool.h"

#include <stdio.h>

static double gib(uint64_t bytes) {
    return (double)bytes / (1 << 30);
}

static double ms(double seconds) {
    return seconds * 1e3;
}

static uint64_t used(const struct plan_stage *s) {
    return s->weights + s->state + s->work;
}

static void print_stage(struct buf *b, const struct plan_cluster *c, const struct plan_stage *s) {
    const struct plan_machine *p = &c->machine[s->machine];
    char layers[32];
    snprintf(layers, sizeof layers, "%u-%u%s%s", s->layer_begin, s->layer_end - 1,
             s->embed ? " +embed" : "", s->head ? " +head" : "");
    buf_printf(b, "%-16s %-20s %8.2f %8.2f %8.2f %8.2f %9.3f %9.3f\n", p->name, layers,
               gib(s->weights), gib(s->state), gib(used(s)), gib(p->memory), ms(s->token_s),
               ms(s->send_s));
    for (uint32_t i = 0; i < s->n_helper; i++) {
        const struct plan_helper *h = &s->helper[i];
        snprintf(layers, sizeof layers, "experts %u-%u", h->expert_begin, h->expert_end - 1);
        buf_printf(b, "  + %-12s %-20s %8s %8s %8.2f %8.2f\n", c->machine[h->machine].name, layers,
                   "", "", gib(h->memory), gib(c->machine[h->machine].memory));
    }
}

static void print_prediction(struct buf *b, const struct plan_options *o, const struct plan *p) {
    buf_printf(b, "\nPredicted with %llu tokens in each cache:\n", (unsigned long long)o->depth);
    buf_printf(b,
               "  prefill          %10.1f tokens/s   (one prompt of that length, chunks of %u)\n",
               p->prefill_tokens_per_s, o->chunk);
    buf_printf(b, "  decode           %10.2f tokens/s   (one stream: %.3f ms for a token)\n",
               p->stream_tokens_per_s, ms(p->token_s));
    if (o->n_streams > 1)
        buf_printf(b,
                   "  decode, all      %10.2f tokens/s   (%u streams; %.1f rows at a time, slowest "
                   "part %.3f ms)\n",
                   p->all_tokens_per_s, o->n_streams, p->rows, ms(p->batch_s));
}

/* ---- why ---- */

static void explain_stage(struct buf *b, const struct plan_cluster *c, const struct plan *p, uint32_t i) {
    const struct plan_stage *s = &p->stage[i];
    const struct plan_machine *m = &c->machine[s->machine];
    bool last = i + 1 == p->n_stage;
    const struct plan_link *link =
        last ? &c->coordinator[s->machine] : &c->link[s->machine][p->stage[i + 1].machine];
    buf_printf(b,
               "  %s (%s): %.1f GB/s, %.2f T int8/s, %.2f T f32/s, %.1f us per layer, %.2f GiB\n",
               m->name, *m->backend ? m->backend : "?", m->bytes_per_s / 1e9, m->int8_per_s / 1e12,
               m->f32_per_s / 1e12, m->layer_s * 1e6, gib(m->memory));
    buf_printf(b,
               "    one token reads %.3f GB and takes %.2f GFLOP in %u layers: %.3f ms, mostly "
               "bound by %s\n",
               s->token_bytes / 1e9, s->token_flop / 1e9, s->layer_end - s->layer_begin,
               ms(s->token_s), s->bound == PLAN_BY_MEMORY ? "memory bandwidth" : "computing");
    buf_printf(b, "    %.1f rows: %.3f ms; a prefill chunk: %.1f ms\n", p->rows, ms(s->batch_s),
               ms(s->chunk_s));
    buf_printf(b, "    to %s: %.3f ms latency, %.2f GB/s: %.3f ms for one row\n",
               last ? "the coordinator" : c->machine[p->stage[i + 1].machine].name,
               ms(link->latency_s), link->bytes_per_s / 1e9, ms(s->send_s));
    buf_printf(
        b, "    memory: weights %llu + state %llu + buffers %llu = %llu of %llu bytes, %llu left\n",
        (unsigned long long)s->weights, (unsigned long long)s->state, (unsigned long long)s->work,
        (unsigned long long)used(s), (unsigned long long)m->memory,
        (unsigned long long)(m->memory - used(s)));
}

static double rows_of(const struct plan_options *o, const struct plan *p) {
    return o->objective == PLAN_LATENCY ? 1 : p->rows;
}

static void explain_helpers(const struct plan_model *m, const struct plan_cluster *c,
                            const struct plan_options *o, const struct plan *p, uint32_t i, struct buf *b) {
    const struct plan_stage *s = &p->stage[i];
    struct plan_exchange x = plan_exchange(m, c, o, s, rows_of(o, p));
    for (uint32_t k = 0; k < s->n_helper; k++) {
        uint32_t h = s->helper[k].machine;
        const struct plan_link *link = &c->link[s->machine][h];
        buf_printf(b, "    helper %s (%s): %.1f GB/s, %.2f T int8/s; to it %.3f ms latency, %.2f GB/s\n",
                   c->machine[h].name, *c->machine[h].backend ? c->machine[h].backend : "?",
                   c->machine[h].bytes_per_s / 1e9, c->machine[h].int8_per_s / 1e12, ms(link->latency_s),
                   link->bytes_per_s / 1e9);
    }
    if (s->n_helper)
        buf_printf(b,
                   "    experts for %.1f rows: %.3f ms here, besides %.3f ms of round trips and %.3f ms "
                   "there; %.3f ms if all were here\n",
                   rows_of(o, p), ms(x.here_s), ms(x.way_s), ms(x.there_s), ms(x.alone_s));
}

/* What the best single helper would do to a stage that has none; nothing when experts cannot be halved. */
static void explain_no_helper(const struct plan_model *m, const struct plan_cluster *c,
                              const struct plan_options *o, const struct plan *p, uint32_t i, struct buf *b) {
    struct plan_exchange best = { 0 };
    uint32_t each = plan_experts_each(m->hp.n_expert, 1), helper = c->n;
    for (uint32_t k = 0; k < c->n && each; k++) {
        struct plan_stage s = p->stage[i];
        if (k == s.machine) continue;
        s.n_helper = 1;
        s.expert_end = m->hp.n_expert - each;
        s.helper[0] = (struct plan_helper){ k, s.expert_end, m->hp.n_expert, 0 };
        struct plan_exchange x = plan_exchange(m, c, o, &s, rows_of(o, p));
        if (helper < c->n && x.way_s + x.there_s >= best.way_s + best.there_s) continue;
        best = x;
        helper = k;
    }
    if (helper == c->n) return;
    buf_printf(b,
               "    %s + %s: %.3f ms of round trips and %.3f ms of experts there, beside %.3f ms here; "
               "without %.3f ms\n",
               c->machine[p->stage[i].machine].name, c->machine[helper].name, ms(best.way_s),
               ms(best.there_s), ms(best.here_s), ms(best.alone_s));
}

/* 0 and a plan, or why that machine alone does not do. */
static void explain_alone(const struct plan_model *m, const struct plan_cluster *c,
                          const struct plan_options *o, uint32_t i, struct buf *b) {
    struct plan p = { .n_stage = 1 };
    struct err e;
    p.stage[0] = (struct plan_stage){ .machine = i,
                                      .layer_end = m->hp.n_layer,
                                      .expert_end = m->hp.n_expert };
    if (plan_evaluate(m, c, o, &p, &e) < 0) buf_printf(b, "  %s alone: %s\n", c->machine[i].name, e.text);
    else buf_printf(b, "  %s alone: %.2f tokens/s\n", c->machine[i].name, 1 / p.objective);
}

static void explain_alternatives(const struct plan_model *m, const struct plan_cluster *c,
                                 const struct plan_options *o, const struct plan *p,
                                 struct buf *b) {
    double best = 1 / p->objective;
    buf_printf(b, "\nAlternatives (%s):\n",
               o->objective == PLAN_LATENCY ? "tokens/s of one stream" : "tokens/s of all streams");
    for (uint32_t i = 0; i < p->n_alternative; i++) {
        const struct plan_alternative *a = &p->alternative[i];
        if (!a->fits)
            buf_printf(b, "  best with %u stage%s: does not fit\n", a->n_stage,
                       a->n_stage > 1 ? "s" : "");
        else
            buf_printf(b, "  best with %u stage%s: %.2f tokens/s, %+.1f %%\n", a->n_stage,
                       a->n_stage > 1 ? "s" : "", a->tokens_per_s,
                       100 * (a->tokens_per_s / best - 1));
    }
    for (uint32_t i = 0; i < c->n; i++) explain_alone(m, c, o, i, b);
    bool helped = false;
    for (uint32_t i = 0; i < p->n_stage; i++) helped |= p->stage[i].n_helper > 0;
    if (helped && p->plain_tokens_per_s > 0)
        buf_printf(b, "  without expert helpers: %.2f tokens/s\n", p->plain_tokens_per_s);
    else if (helped) buf_printf(b, "  without expert helpers: does not fit\n");
    else if (p->helpers_tried)
        buf_printf(b, "  expert helpers: a round trip in every layer does not pay here\n");
    else if (o->helpers == PLAN_HELPERS_AUTO && c->n > 1)
        buf_printf(b, "  expert helpers: not tried; too many different machines\n");
    else buf_printf(b, "  expert helpers: not tried\n");
    for (uint32_t i = 0; i < p->n_stage && !helped; i++) explain_no_helper(m, c, o, p, i, b);
    if (!p->exact)
        buf_printf(b, "  other orders: not tried; there are too many different machines, the order "
                      "given was kept\n");
}

void shard_plan_print(const struct plan_model *m, const struct plan_cluster *c,
                      const struct plan_options *o, const struct plan *p, bool explain,
                      struct buf *b) {
    buf_printf(b, "%s: %u layers, %u streams of %llu tokens\n\n", m->hp.name, m->hp.n_layer,
               o->n_streams, (unsigned long long)o->n_ctx);
    buf_printf(b, "%-16s %-20s %8s %8s %8s %8s %9s %9s\n", "machine", "layers", "weights", "state",
               "used", "of GiB", "ms/token", "ms/send");
    for (uint32_t i = 0; i < p->n_stage; i++) print_stage(b, c, &p->stage[i]);
    print_prediction(b, o, p);
    if (!explain) return;
    buf_printf(b, "\nNumbers:\n");
    for (uint32_t i = 0; i < p->n_stage; i++) {
        explain_stage(b, c, p, i);
        explain_helpers(m, c, o, p, i, b);
    }
    if (p->n_alternative) explain_alternatives(m, c, o, p, b);
}
