/* The search. Machines that are alike in every figure and every link form a kind; what is tried is how
 * many of each kind are used and in which order. A state is (layers done, stages so far, how many of
 * each kind are taken, kind of the last stage's lead), its value the least time of one round so far; a
 * step adds one stage of any length:
 *
 *     layers   0 ........ l ............ l' ..... L
 *     stages   [ a ][ b ] [ next: kind k ]
 *     best[l'][s+1][taken + k][k] = min(best[l][s][taken][b] + link + time of k on l..l')
 *
 * With `ordered` nothing is alike, and the next kind must come later. A stage may also be a lead with
 * 1-3 helpers of one kind, each with as many experts as makes the stage fastest.
 *
 * Latency: the least sum. Throughput: for each number of stages, tokens/s = rows / max(slowest part,
 * round / groups). The sums that a limit on the slowest part allows fall as the limit rises, so the
 * best limit lies where the two sides cross: found by halving over the times of all possible stages and
 * links. Both are exact. */
#include "common/model/plan_parts.h"

#include "common/base/check.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

enum { KIND_NONE = 255, WORK_MAX = 40 * 1000 * 1000 };  /* steps of one run with helpers: a second or so */

struct kind {
    uint32_t n, member[PLAN_MACHINES_MAX];
};

struct group {                                               /* what a stage may consist of */
    uint8_t lead, helper, n_helper;                          /* kinds; helper KIND_NONE when n_helper is 0 */
};

struct cell {
    double value;
    uint16_t group;                                          /* of the last stage */
    uint16_t begin;                                          /* its first layer */
    uint8_t last;                                            /* kind of the lead before it */
};

struct search {
    const struct plan_model *m;
    const struct plan_cluster *c;
    struct plan_options o;
    uint64_t extra;                            /* added to every machine's memory, to learn what is missing */
    struct kind kind[PLAN_MACHINES_MAX];
    uint32_t n_kind, n_set, n_layer;
    uint32_t radix[PLAN_MACHINES_MAX];                       /* of a kind in the number of a set */
    struct group *group;
    uint32_t n_group;
    double rows;
    double *time;                         /* [n_group][n_layer][n_layer + 1]: of a stage; INFINITY: no room */
    struct cell *cell;                                       /* [n_layer + 1][n_stage + 1][n_set][n_kind] */
    uint32_t n_stage_max;
};

/* ---- kinds ---- */

static bool same_link(struct plan_link a, struct plan_link b) {
    return a.latency_s == b.latency_s && a.bytes_per_s == b.bytes_per_s;
}

static bool same_absent(const struct plan_absent *a, const struct plan_absent *b) {
    return a == b || (a && b && memcmp(a, b, sizeof *a) == 0);
}

/* Could a and b change places without anybody noticing? */
static bool alike(const struct plan_cluster *c, uint32_t a, uint32_t b) {
    const struct plan_machine *x = &c->machine[a], *y = &c->machine[b];
    if (x->memory != y->memory || x->bytes_per_s != y->bytes_per_s ||
        x->int8_per_s != y->int8_per_s || x->f32_per_s != y->f32_per_s ||
        x->layer_s != y->layer_s || !same_absent(x->absent, y->absent) ||
        !same_link(c->coordinator[a], c->coordinator[b]) ||
        !same_link(c->link[a][b], c->link[b][a]))
        return false;
    for (uint32_t i = 0; i < c->n; i++)
        if (i != a && i != b &&
            (!same_link(c->link[a][i], c->link[b][i]) || !same_link(c->link[i][a], c->link[i][b])))
            return false;
    return true;
}

static void find_kinds(struct search *s) {
    uint64_t sets = 1;
    s->n_kind = 0;
    for (uint32_t i = 0; i < s->c->n; i++) {
        uint32_t k = 0;
        while (k < s->n_kind && (s->o.ordered || !alike(s->c, s->kind[k].member[0], i))) k++;
        if (k == s->n_kind) s->kind[s->n_kind++].n = 0;
        s->kind[k].member[s->kind[k].n++] = i;
    }
    for (uint32_t k = 0; k < s->n_kind && !s->o.ordered; k++) {
        s->radix[k] = (uint32_t)sets;
        sets *= s->kind[k].n + 1;
        if (sets > PLAN_SETS_MAX) {                          /* too many to try: keep the order given */
            s->o.ordered = true;
            find_kinds(s);
            return;
        }
    }
    s->n_set = s->o.ordered ? 1 : (uint32_t)sets;
}

static uint32_t taken(const struct search *s, uint32_t set, uint32_t kind) {
    return set / s->radix[kind] % (s->kind[kind].n + 1);
}

/* The set after adding a group to it; false: not enough machines, or out of order. */
static bool set_add(const struct search *s, uint32_t set, uint32_t last, const struct group *g,
                    uint32_t *out) {
    if (s->o.ordered) return *out = 0, last == KIND_NONE || g->lead > last;
    uint32_t lead = 1 + (g->helper == g->lead ? g->n_helper : 0);
    if (taken(s, set, g->lead) + lead > s->kind[g->lead].n) return false;
    if (g->n_helper && g->helper != g->lead &&
        taken(s, set, g->helper) + g->n_helper > s->kind[g->helper].n)
        return false;
    *out = set + s->radix[g->lead] + g->n_helper * (g->n_helper ? s->radix[g->helper] : 0);
    return true;
}

static void find_groups(struct search *s, bool helpers) {
    uint32_t room = s->n_kind * (1 + (helpers ? s->n_kind * PLAN_HELPERS_MAX : 0));
    s->group = xcalloc(room, sizeof *s->group);
    s->n_group = 0;
    for (uint32_t k = 0; k < s->n_kind; k++)
        s->group[s->n_group++] = (struct group){ (uint8_t)k, KIND_NONE, 0 };
    for (uint32_t k = 0; k < s->n_kind && helpers; k++)
        for (uint32_t h = 0; h < s->n_kind; h++)
            for (uint32_t n = 1; n <= PLAN_HELPERS_MAX && n + (h == k) <= s->kind[h].n; n++)
                s->group[s->n_group++] = (struct group){ (uint8_t)k, (uint8_t)h, (uint8_t)n };
}

/* ---- the time of a stage ---- */

struct span {                                                /* a stage to be: sums over its layers */
    uint32_t begin, end;
    uint64_t rest, experts, state, work;                     /* bytes; experts: of one expert in all layers */
    bool head;
};

static double head_seconds(const struct search *s, const struct plan_machine *p, const struct span *x) {
    return x->head ? plan_seconds(p, plan_work_head(s->m, s->rows)) : 0;
}

static double helped_time(const struct search *s, const struct group *g, const struct span *x,
                          uint32_t n_each) {
    uint32_t lead = s->kind[g->lead].member[0], helper = s->kind[g->helper].member[g->helper == g->lead];
    double t = head_seconds(s, &s->c->machine[lead], x);
    for (uint32_t l = x->begin; l < x->end; l++)
        t += plan_helped_seconds(s->m, &s->c->machine[lead], &s->c->machine[helper],
                                 &s->c->link[lead][helper], g->n_helper, n_each, l, PLAN_DECODE,
                                 s->rows, s->o.depth);
    return t;
}

/* How many experts each helper may hold; false: no number makes it fit. */
static bool helped_range(const struct search *s, const struct group *g, const struct span *x,
                         uint32_t *lo, uint32_t *hi) {
    const struct plan_machine *lead = &s->c->machine[s->kind[g->lead].member[0]];
    const struct plan_machine *helper = &s->c->machine[s->kind[g->helper].member[0]];
    uint64_t e = s->m->hp.n_expert, n = g->n_helper, need = x->rest + x->state + x->work,
             room = helper->memory + s->extra;
    uint64_t most = room > x->work ? (room - x->work) / x->experts : 0, fewest = 1;
    if (need > lead->memory + s->extra) return false;
    uint64_t kept = (lead->memory + s->extra - need) / x->experts;  /* experts that the lead has room for */
    if (kept < e) fewest = MAX(1, (e - kept + n - 1) / n);
    *lo = (uint32_t)MIN(fewest, e);
    *hi = (uint32_t)MIN(most, e / n);
    return fewest <= *hi;
}

/* The best number of experts per helper, of those that nodes can compute with. */
static double helped_best(const struct search *s, const struct group *g, const struct span *x,
                          uint32_t *n_each) {
    uint32_t lo, hi;
    double best = INFINITY;
    if (!helped_range(s, g, x, &lo, &hi)) return INFINITY;
    for (uint32_t each = 1; each <= hi; each *= 2) {
        if (each < lo || !plan_experts_divide(s->m->hp.n_expert, g->n_helper, each)) continue;
        double t = helped_time(s, g, x, each);
        if (t < best) best = t, *n_each = each;
    }
    return best;
}

static struct span span_of(const struct search *s, uint32_t begin, uint32_t end) {
    struct span x = { begin,
                      end,
                      0,
                      0,
                      plan_state_bytes(s->m, &s->o, begin, end),
                      plan_work_bytes(s->m, &s->o),
                      end == s->n_layer };
    for (uint32_t l = begin; l < end; l++) {
        x.rest += s->m->layer[l].table_bytes + s->m->layer[l].dense_bytes;
        x.experts += s->m->layer[l].expert_bytes;
    }
    x.rest += (begin == 0 ? s->m->embed_bytes : 0) + (x.head ? s->m->head_bytes : 0);
    return x;
}

static double *time_at(const struct search *s, uint32_t group, uint32_t begin, uint32_t end) {
    return &s->time[((uint64_t)group * s->n_layer + begin) * (s->n_layer + 1) + end];
}

static void fill_times(struct search *s, double rows) {
    s->rows = rows;
    for (uint32_t begin = 0; begin < s->n_layer; begin++)
        for (uint32_t end = begin + 1; end <= s->n_layer; end++) {
            struct span x = span_of(s, begin, end);
            uint64_t need = x.rest + x.experts * s->m->hp.n_expert + x.state + x.work;
            for (uint32_t i = 0; i < s->n_group; i++) {
                const struct group *g = &s->group[i];
                const struct plan_machine *p = &s->c->machine[s->kind[g->lead].member[0]];
                uint32_t n_each;
                double *t = time_at(s, i, begin, end);
                *t = g->n_helper                    ? helped_best(s, g, &x, &n_each)
                     : need <= p->memory + s->extra ? 0
                                                    : INFINITY;
                *t += plan_fetch_seconds(p, begin, end, x.head);
            }
        }
    for (uint32_t k = 0; k < s->n_kind; k++)      /* stages without helpers: sums that grow layer by layer */
        for (uint32_t begin = 0; begin < s->n_layer; begin++) {
            const struct plan_machine *p = &s->c->machine[s->kind[k].member[0]];
            double t = 0;
            for (uint32_t end = begin + 1; end <= s->n_layer; end++) {
                t += plan_layer_seconds(s->m, p, end - 1, PLAN_DECODE, rows, s->o.depth);
                double head = end == s->n_layer ? plan_seconds(p, plan_work_head(s->m, rows)) : 0;
                *time_at(s, k, begin, end) += t + head;
            }
        }
}

/* ---- one run: the least sum for every number of stages, no part slower than `cap` ---- */

static struct cell *cell_at(const struct search *s, uint32_t layer, uint32_t n_stage, uint32_t set,
                            uint32_t last) {
    return &s->cell[((((uint64_t)layer * (s->n_stage_max + 1)) + n_stage) * s->n_set + set) *
                        s->n_kind +
                    last];
}

static const struct plan_link *link_between(const struct search *s, uint32_t from, uint32_t to) {
    return &s->c->link[s->kind[from].member[0]][s->kind[to].member[from == to]];
}

/* Time of the way into a stage; INFINITY: over the cap. */
static double enter(const struct search *s, uint32_t last, uint32_t kind, double cap) {
    if (last == KIND_NONE) return s->c->coordinator[s->kind[kind].member[0]].latency_s;
    const struct plan_link *link = link_between(s, last, kind);
    double send = plan_send_seconds(s->m, link, s->rows);
    return send <= cap ? link->latency_s + send : INFINITY;
}

static double leave(const struct search *s, uint32_t kind, double cap) {
    const struct plan_link *link = &s->c->coordinator[s->kind[kind].member[0]];
    double send = plan_result_seconds(link, s->rows);
    return send <= cap ? link->latency_s + send : INFINITY;
}

static void step(struct search *s, uint32_t begin, uint32_t n_stage, uint32_t set, uint32_t last,
                 double so_far, double cap) {
    for (uint32_t i = 0; i < s->n_group; i++) {
        const struct group *g = &s->group[i];
        uint32_t next;
        if (!set_add(s, set, last, g, &next)) continue;
        double base = so_far + enter(s, last, g->lead, cap);
        if (base == INFINITY) continue;
        const double *time = time_at(s, i, begin, 0);
        for (uint32_t end = begin + 1; end <= s->n_layer; end++) {
            if (time[end] > cap || time[end] == INFINITY) continue;
            double value = base + time[end] + (end == s->n_layer ? leave(s, g->lead, cap) : 0);
            struct cell *to = cell_at(s, end, n_stage + 1, next, g->lead);
            if (value < to->value) *to = (struct cell){ value, (uint16_t)i, (uint16_t)begin, (uint8_t)last };
        }
    }
}

static void run(struct search *s, uint32_t n_stage_max, double cap) {
    uint64_t n = (uint64_t)(s->n_layer + 1) * (s->n_stage_max + 1) * s->n_set * s->n_kind;
    for (uint64_t i = 0; i < n; i++) s->cell[i].value = INFINITY;
    step(s, 0, 0, 0, KIND_NONE, 0, cap);
    for (uint32_t l = 1; l < s->n_layer; l++)
        for (uint32_t k = 1; k < n_stage_max; k++)
            for (uint32_t set = 0; set < s->n_set; set++)
                for (uint32_t last = 0; last < s->n_kind; last++) {
                    double value = cell_at(s, l, k, set, last)->value;
                    if (value < INFINITY) step(s, l, k, set, last, value, cap);
                }
}

/* The best end with exactly n_stage stages; its value is INFINITY when there is none. */
static double best_end(const struct search *s, uint32_t n_stage, uint32_t *set, uint32_t *last) {
    double best = INFINITY;
    for (uint32_t i = 0; i < s->n_set; i++)
        for (uint32_t k = 0; k < s->n_kind; k++) {
            double value = cell_at(s, s->n_layer, n_stage, i, k)->value;
            if (value < best) best = value, *set = i, *last = k;
        }
    return best;
}

/* ---- from cells to a plan ---- */

static void give_machines(const struct search *s, struct plan_stage *stage, const struct group *g,
                          uint32_t *used) {
    const struct kind *lead = &s->kind[g->lead];
    stage->machine = lead->member[used[g->lead]++];
    stage->expert_end = s->m->hp.n_expert;
    if (g->n_helper == 0) return;
    struct span x = span_of(s, stage->layer_begin, stage->layer_end);
    uint32_t n_each = 0;
    helped_best(s, g, &x, &n_each);
    stage->n_helper = g->n_helper;
    stage->expert_end -= n_each * g->n_helper;
    for (uint32_t i = 0, at = stage->expert_end; i < g->n_helper; i++, at += n_each)
        stage->helper[i] = (struct plan_helper){ s->kind[g->helper].member[used[g->helper]++], at,
                                                 at + n_each, 0 };
}

/* Walks back over the cells of the last run. */
static void take_plan(const struct search *s, uint32_t n_stage, struct plan *out) {
    uint32_t set = 0, last = 0, layer = s->n_layer, used[PLAN_MACHINES_MAX] = { 0 };
    uint16_t group[PLAN_MACHINES_MAX];
    memset(out, 0, sizeof *out);
    best_end(s, n_stage, &set, &last);
    out->n_stage = n_stage;
    for (uint32_t i = n_stage; i-- > 0;) {
        const struct cell *cell = cell_at(s, layer, i + 1, set, last);
        const struct group *g = &s->group[cell->group];
        group[i] = cell->group;
        out->stage[i].layer_begin = cell->begin;
        out->stage[i].layer_end = layer;
        layer = cell->begin;
        if (!s->o.ordered) set -= s->radix[g->lead] + (g->n_helper ? g->n_helper * s->radix[g->helper] : 0);
        last = cell->last;
    }
    for (uint32_t i = 0; i < n_stage; i++) give_machines(s, &out->stage[i], &s->group[group[i]], used);
}

/* ---- objectives ---- */

struct found {
    bool fits;
    double objective;
    struct plan plan;
};

static void consider(const struct search *s, struct found *best, uint32_t n_stage, double objective) {
    if (objective >= best->objective) return;
    best->fits = true;
    best->objective = objective;
    take_plan(s, n_stage, &best->plan);
}

static void note(struct plan_alternative *list, uint32_t n_stage, double objective) {
    list[n_stage - 1] = (struct plan_alternative){ n_stage, objective < INFINITY,
                                                   objective < INFINITY ? 1 / objective : 0 };
}

static void search_latency(struct search *s, struct found *best, struct plan_alternative *list) {
    uint32_t set, last;
    fill_times(s, 1);
    run(s, s->n_stage_max, INFINITY);
    for (uint32_t k = 1; k <= s->n_stage_max; k++) {
        double value = best_end(s, k, &set, &last);
        note(list, k, value);
        consider(s, best, k, value);
    }
}

static int compare_doubles(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

/* Times of all parts that a plan may have, ascending, without repetition; the caller frees. */
static double *all_times(const struct search *s, uint64_t *n_out) {
    uint64_t room = (uint64_t)s->n_group * s->n_layer * (s->n_layer + 1) +
                    (uint64_t)s->n_kind * (s->n_kind + 1),
             n = 0, kept = 0;
    double *t = xcalloc(room, sizeof *t);
    for (uint32_t i = 0; i < s->n_group; i++)
        for (uint32_t begin = 0; begin < s->n_layer; begin++)
            for (uint32_t end = begin + 1; end <= s->n_layer; end++)
                if (*time_at(s, i, begin, end) < INFINITY) t[n++] = *time_at(s, i, begin, end);
    for (uint32_t a = 0; a < s->n_kind; a++) {
        t[n++] = plan_result_seconds(&s->c->coordinator[s->kind[a].member[0]], s->rows);
        for (uint32_t b = 0; b < s->n_kind; b++)
            if (a != b || s->kind[a].n > 1) t[n++] = plan_send_seconds(s->m, link_between(s, a, b), s->rows);
    }
    qsort(t, n, sizeof *t, compare_doubles);
    for (uint64_t i = 0; i < n; i++)
        if (kept == 0 || t[i] != t[kept - 1]) t[kept++] = t[i];
    *n_out = kept;
    return t;
}

/* Seconds per token with exactly n_stage stages under a cap; the cells are those of this run afterwards. */
static double capped(struct search *s, uint32_t n_stage, double cap, double groups, bool *crossed) {
    uint32_t set, last;
    run(s, n_stage, cap);
    double round = best_end(s, n_stage, &set, &last) / groups;
    *crossed = round <= cap;
    return fmax(cap, round) / s->rows;
}

static void search_throughput(struct search *s, struct found *best, struct plan_alternative *list) {
    for (uint32_t k = 1; k <= s->n_stage_max; k++) {
        double groups = plan_groups(&s->o, k), least = INFINITY;
        uint64_t n, lo = 0, hi;
        bool crossed;
        fill_times(s, s->o.n_streams / groups);
        double *t = all_times(s, &n);
        for (hi = n - 1; lo < hi;) {    /* the first cap under which the round is no longer the slower side */
            uint64_t mid = lo + (hi - lo) / 2;
            capped(s, k, t[mid], groups, &crossed);
            if (crossed) hi = mid;
            else lo = mid + 1;
        }
        for (uint64_t i = lo ? lo - 1 : 0; i <= lo; i++) {   /* that one, or the one before it */
            double objective = capped(s, k, t[i], groups, &crossed);
            least = fmin(least, objective);
            consider(s, best, k, objective);
        }
        free(t);
        note(list, k, least);
    }
}

/* ---- memory that is missing ---- */

static bool fits(struct search *s) {
    uint32_t set, last;
    fill_times(s, 1);
    run(s, s->n_stage_max, INFINITY);
    for (uint32_t k = 1; k <= s->n_stage_max; k++)
        if (best_end(s, k, &set, &last) < INFINITY) return true;
    return false;
}

static int nothing_fits(struct search *s, struct err *e) {
    uint64_t need = s->m->embed_bytes + s->m->head_bytes +
                    plan_state_bytes(s->m, &s->o, 0, s->n_layer),
             have = 0;
    uint64_t work = plan_work_bytes(s->m, &s->o), lo = 0;
    for (uint32_t l = 0; l < s->n_layer; l++) need += plan_layer_bytes(s->m, l);
    for (uint32_t i = 0; i < s->c->n; i++)
        have += s->c->machine[i].memory > work ? s->c->machine[i].memory - work : 0;
    uint64_t hi = need + work;                               /* then any one machine can hold everything */
    s->extra = hi;
    if (!fits(s))
        return err_set(e, ERR_NOTFOUND, "no division of the layers gives every machine weights that it has "
                                        "or can fetch");
    while (lo < hi) {                             /* the least that, given to every machine, makes it fit */
        s->extra = lo + (hi - lo) / 2;
        if (fits(s)) hi = s->extra;
        else lo = s->extra + 1;
    }
    s->extra = 0;
    return err_set(e, ERR_NOMEM,
                   "nothing fits: weights and state take %llu bytes, the machines have %llu "
                   "besides buffers of %llu each; "
                   "%llu bytes are missing%s; with %llu more on every machine it would fit",
                   (unsigned long long)need, (unsigned long long)have, (unsigned long long)work,
                   (unsigned long long)(need > have ? need - have : lo),
                   need > have ? "" : " on one of them, because layers are whole",
                   (unsigned long long)lo);
}

/* ---- the search ---- */

static void search_open(struct search *s, bool helpers) {
    find_groups(s, helpers);
    s->n_stage_max = MIN(s->c->n, s->n_layer);
    s->time = xcalloc((uint64_t)s->n_group * s->n_layer * (s->n_layer + 1), sizeof *s->time);
    s->cell = xcalloc((uint64_t)(s->n_layer + 1) * (s->n_stage_max + 1) * s->n_set * s->n_kind,
                      sizeof *s->cell);
}

static void search_close(struct search *s) {
    free(s->group);
    free(s->time);
    free(s->cell);
}

static void search_all(struct search *s, struct found *best, struct plan_alternative *list) {
    best->fits = false;
    best->objective = INFINITY;
    if (s->o.objective == PLAN_LATENCY) search_latency(s, best, list);
    else search_throughput(s, best, list);
}

/* A round trip in every layer rarely pays, and the number of groups grows fast: only where trying them
 * is a matter of a second. */
static bool helpers_affordable(const struct search *s) {
    double groups = (double)s->n_kind * (1 + s->n_kind * PLAN_HELPERS_MAX), l = s->n_layer;
    double runs = s->o.objective == PLAN_LATENCY ? 1 : 16.0 * s->c->n;
    return s->c->n > 1 && !s->o.ordered &&
           groups * l * l / 2 * s->n_set * s->n_kind * runs < WORK_MAX * 10.0 &&
           groups * l * l * l * 16 < WORK_MAX * 10.0;
}

/* Helpers replace a plan without them only if they win, or nothing else fits. */
static bool try_helpers(struct search *s, struct found *best) {
    struct plan_alternative list[PLAN_MACHINES_MAX] = { { 0 } };
    struct found *other = xcalloc(1, sizeof *other);
    search_close(s);
    search_open(s, true);
    search_all(s, other, list);
    bool better = other->fits && (!best->fits || other->objective < best->objective * (1 - 1e-9));
    if (better) *best = *other;
    free(other);
    return better;
}

int plan_search(const struct plan_model *m, const struct plan_cluster *c,
                const struct plan_options *o, struct plan *out, struct err *e) {
    int rc = plan_check_input(m, c, o, e);
    if (rc < 0) return rc;
    struct search *s = xcalloc(1, sizeof *s);
    struct found *best = xcalloc(1, sizeof *best);
    struct plan_alternative list[PLAN_MACHINES_MAX] = { { 0 } };
    *s = (struct search){ .m = m, .c = c, .o = *o, .n_layer = m->hp.n_layer };
    find_kinds(s);
    search_open(s, false);
    search_all(s, best, list);
    double plain = best->fits ? 1 / best->objective : 0;
    bool tried = o->helpers == PLAN_HELPERS_AUTO && helpers_affordable(s),
         helped = tried && try_helpers(s, best);
    if (best->fits) {
        *out = best->plan;
        rc = plan_evaluate(m, c, o, out, e);
        out->exact = s->o.ordered == o->ordered;
        out->helpers_tried = tried;
        out->plain_tokens_per_s = helped ? plain : 0;
        out->n_alternative = s->n_stage_max;
        memcpy(out->alternative, list, sizeof list);
    } else {
        search_close(s);
        search_open(s, false);
        rc = nothing_fits(s, e);
    }
    search_close(s);
    free(best);
    free(s);
    return rc;
}
