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
 * 1-3 helpers of any kinds, each with as many experts as makes the stage fastest; then a group of kinds
 * takes the place of one kind in the sets. That multiplies the steps, so helpers are left out where the
 * steps, which are counted beforehand, would be too many (plan.helpers_tried).
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

enum {
    KIND_NONE = 255,
    STEPS_MAX = 40 * 1000 * 1000,                            /* with helpers: half a second at most */
    TIMES_MAX = 1000 * 1000,                                 /* of stages with helpers; sorted once per run */
};

struct kind {
    uint32_t n, member[PLAN_MACHINES_MAX];
};

struct group {                                               /* what a stage may consist of: kinds */
    uint8_t lead, n_helper, helper[PLAN_HELPERS_MAX];        /* helpers ascend */
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
    struct group *group;                                     /* first every kind alone, then with helpers */
    uint32_t n_group;
    double rows;
    double *time;                         /* [n_group][n_layer][n_layer + 1]: of a stage; INFINITY: no room */
    uint16_t *each;                       /* the same: experts of each helper */
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

/* ---- groups ---- */

static uint32_t count_of(const struct group *g, uint32_t kind) {
    uint32_t n = g->lead == kind;
    for (uint32_t i = 0; i < g->n_helper; i++) n += g->helper[i] == kind;
    return n;
}

static uint32_t radix_of(const struct search *s, const struct group *g) {
    uint32_t sum = s->radix[g->lead];
    for (uint32_t i = 0; i < g->n_helper; i++) sum += s->radix[g->helper[i]];
    return sum;
}

/* The set after adding a group to it; false: not enough machines, or out of order. */
static bool set_add(const struct search *s, uint32_t set, uint32_t last, const struct group *g,
                    uint32_t *out) {
    if (s->o.ordered) return *out = 0, last == KIND_NONE || g->lead > last;
    if (taken(s, set, g->lead) + count_of(g, g->lead) > s->kind[g->lead].n) return false;
    for (uint32_t i = 0; i < g->n_helper; i++)
        if (taken(s, set, g->helper[i]) + count_of(g, g->helper[i]) > s->kind[g->helper[i]].n) return false;
    *out = set + radix_of(s, g);
    return true;
}

/* g with one helper more, of kind `from` or later, and those with more yet. */
static void add_helped(struct search *s, const struct group *g, uint32_t from) {
    for (uint32_t k = from; k < s->n_kind; k++) {
        struct group more = *g;
        more.helper[more.n_helper++] = (uint8_t)k;
        if (count_of(&more, k) > s->kind[k].n) continue;
        if (plan_experts_each(s->m->hp.n_expert, more.n_helper)) s->group[s->n_group++] = more;
        if (more.n_helper < PLAN_HELPERS_MAX) add_helped(s, &more, k);
    }
}

static void find_groups(struct search *s, bool helpers) {
    uint32_t k = s->n_kind, sets = 1 + k + k * (k + 1) / 2 + k * (k + 1) * (k + 2) / 6;
    s->group = xcalloc(k * (helpers ? sets : 1), sizeof *s->group);
    s->n_group = 0;
    for (uint32_t i = 0; i < k; i++) s->group[s->n_group++] = (struct group){ .lead = (uint8_t)i };
    for (uint32_t i = 0; i < k && helpers; i++) add_helped(s, &(struct group){ .lead = (uint8_t)i }, 0);
}

/* ---- the time of a stage ---- */

struct span {                                                /* a stage to be: sums over its layers */
    uint32_t end;
    uint64_t rest, experts, state, work;                     /* bytes; experts: of one expert in all layers */
    double layers_s, fetch_s;
};

static const struct plan_machine *lead_of(const struct search *s, const struct group *g) {
    return &s->c->machine[s->kind[g->lead].member[0]];
}

/* A machine like the helper, on a link like its own. */
static uint32_t helper_of(const struct search *s, const struct group *g, uint32_t i) {
    return s->kind[g->helper[i]].member[g->helper[i] == g->lead];
}

static double group_layer(const struct search *s, const struct group *g, uint32_t each, uint32_t layer) {
    uint32_t lead = s->kind[g->lead].member[0];
    double slowest = 0;
    if (g->n_helper == 0)
        return plan_layer_seconds(s->m, lead_of(s, g), layer, PLAN_DECODE, s->rows, s->o.depth);
    for (uint32_t i = 0; i < g->n_helper; i++) {
        uint32_t helper = helper_of(s, g, i);
        struct plan_helped h = plan_helped(s->m, lead_of(s, g), &s->c->machine[helper],
                                           &s->c->link[lead][helper], g->n_helper, each, layer,
                                           PLAN_DECODE, s->rows, s->o.depth);
        slowest = fmax(slowest, plan_helped_seconds(h));
    }
    return slowest;
}

static double group_fetch(const struct search *s, const struct group *g, uint32_t each, uint32_t layer) {
    double share = (double)each / s->m->hp.n_expert;
    double t = plan_fetch_layer(s->m, lead_of(s, g), layer, 1 - share * g->n_helper, true);
    for (uint32_t i = 0; i < g->n_helper; i++)
        t += plan_fetch_layer(s->m, &s->c->machine[helper_of(s, g, i)], layer, share, false);
    return t;
}

static bool group_has_room(const struct search *s, const struct group *g, uint32_t each,
                           const struct span *x) {
    uint64_t kept = s->m->hp.n_expert - (uint64_t)each * g->n_helper;
    if (x->rest + x->experts * kept + x->state + x->work > lead_of(s, g)->memory + s->extra) return false;
    for (uint32_t i = 0; i < g->n_helper; i++)
        if (x->experts * each + x->work > s->c->machine[helper_of(s, g, i)].memory + s->extra) return false;
    return true;
}

static uint64_t time_i(const struct search *s, uint32_t group, uint32_t begin, uint32_t end) {
    return ((uint64_t)group * s->n_layer + begin) * (s->n_layer + 1) + end;
}

static double *time_at(const struct search *s, uint32_t group, uint32_t begin, uint32_t end) {
    return &s->time[time_i(s, group, begin, end)];
}

static void span_add(const struct search *s, struct span *x, const double *layer_s, const double *fetch_s) {
    const struct plan_layer *l = &s->m->layer[x->end];
    x->rest += l->table_bytes + l->dense_bytes;
    x->experts += l->expert_bytes;
    x->layers_s += layer_s[x->end];
    x->fetch_s += fetch_s[x->end];
    x->state += plan_state_bytes(s->m, &s->o, x->end, x->end + 1);
    x->end++;
}

/* All stages of a group whose helpers hold `each` experts, where that is faster than what is known. */
static void fill_share(struct search *s, uint32_t group, uint32_t each) {
    const struct group *g = &s->group[group];
    const struct plan_machine *lead = lead_of(s, g);
    double layer_s[HP_LAYERS_MAX], fetch_s[HP_LAYERS_MAX];
    double head_s = plan_seconds(lead, plan_work_head(s->m, s->rows)) + plan_fetch_ends(lead, false, true);
    for (uint32_t l = 0; l < s->n_layer; l++) {
        layer_s[l] = group_layer(s, g, each, l);
        fetch_s[l] = group_fetch(s, g, each, l);
    }
    for (uint32_t begin = 0; begin < s->n_layer; begin++) {
        struct span x = { .end = begin, .work = plan_work_bytes(s->m, &s->o) };
        if (begin == 0) x.rest = s->m->embed_bytes, x.fetch_s = plan_fetch_ends(lead, true, false);
        while (x.end < s->n_layer) {
            span_add(s, &x, layer_s, fetch_s);
            bool head = x.end == s->n_layer;
            if (head) x.rest += s->m->head_bytes;
            double t = x.layers_s + x.fetch_s + (head ? head_s : 0);
            uint64_t i = time_i(s, group, begin, x.end);
            if (t >= s->time[i] || !group_has_room(s, g, each, &x)) continue;
            s->time[i] = t;
            s->each[i] = (uint16_t)each;
        }
    }
}

static void fill_times(struct search *s, double rows) {
    uint64_t n = (uint64_t)s->n_group * s->n_layer * (s->n_layer + 1);
    uint32_t n_expert = s->m->hp.n_expert;
    s->rows = rows;
    for (uint64_t i = 0; i < n; i++) s->time[i] = INFINITY;
    for (uint32_t i = 0; i < s->n_group; i++) {
        uint32_t n_helper = s->group[i].n_helper;
        if (n_helper == 0) fill_share(s, i, 0);
        for (uint32_t each = 1; n_helper && each < n_expert; each *= 2)
            if (plan_experts_divide(n_expert, n_helper, each)) fill_share(s, i, each);
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

static void give_machines(const struct search *s, struct plan_stage *stage, uint32_t group,
                          uint32_t *used) {
    const struct group *g = &s->group[group];
    uint32_t each = s->each[time_i(s, group, stage->layer_begin, stage->layer_end)];
    stage->machine = s->kind[g->lead].member[used[g->lead]++];
    stage->n_helper = g->n_helper;
    stage->expert_end = s->m->hp.n_expert - each * g->n_helper;
    for (uint32_t i = 0, at = stage->expert_end; i < g->n_helper; i++, at += each)
        stage->helper[i] = (struct plan_helper){ s->kind[g->helper[i]].member[used[g->helper[i]]++], at,
                                                 at + each, 0 };
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
        if (!s->o.ordered) set -= radix_of(s, g);
        last = cell->last;
    }
    for (uint32_t i = 0; i < n_stage; i++) give_machines(s, &out->stage[i], group[i], used);
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

static void search_open(struct search *s) {
    uint64_t n_time = (uint64_t)s->n_group * s->n_layer * (s->n_layer + 1);
    s->time = xcalloc(n_time, sizeof *s->time);
    s->each = xcalloc(n_time, sizeof *s->each);
    s->cell = xcalloc((uint64_t)(s->n_layer + 1) * (s->n_stage_max + 1) * s->n_set * s->n_kind,
                      sizeof *s->cell);
}

static void search_close(struct search *s) {
    free(s->group);
    free(s->time);
    free(s->each);
    free(s->cell);
    s->group = NULL;
    s->time = NULL;
    s->each = NULL;
    s->cell = NULL;
}

static void search_all(struct search *s, struct found *best, struct plan_alternative *list) {
    best->fits = false;
    best->objective = INFINITY;
    if (s->o.objective == PLAN_LATENCY) search_latency(s, best, list);
    else search_throughput(s, best, list);
}

/* Of one run, at most: every group that can follow every cell. */
static double count_steps(const struct search *s) {
    double n = 0, layers = s->n_layer;
    for (uint32_t set = 0; set < s->n_set; set++) {
        uint32_t n_taken = 0, next;
        for (uint32_t k = 0; k < s->n_kind; k++) n_taken += taken(s, set, k);
        for (uint32_t last = 0; last < s->n_kind; last++)
            for (uint32_t i = 0; i < s->n_group && taken(s, set, last); i++)
                n += set_add(s, set, last, &s->group[i], &next) ? MIN(n_taken, s->n_stage_max) : 0;
    }
    return n * layers * layers / 2;
}

static bool helpers_affordable(const struct search *s) {
    double times = (double)s->n_group * s->n_layer * (s->n_layer + 1);
    double runs = s->o.objective == PLAN_LATENCY ? 1 : (log2(times) + 2) * s->n_stage_max;
    return times <= TIMES_MAX && count_steps(s) * runs <= STEPS_MAX;
}

/* Helpers replace a plan without them only if they win, or nothing else fits. False: not tried. */
static bool try_helpers(struct search *s, struct found *best) {
    struct plan_alternative list[PLAN_MACHINES_MAX] = { { 0 } };
    if (s->c->n < 2 || s->o.ordered) return false;
    search_close(s);
    find_groups(s, true);
    if (!helpers_affordable(s)) return false;
    struct found *other = xcalloc(1, sizeof *other);
    search_open(s);
    search_all(s, other, list);
    if (other->fits && (!best->fits || other->objective < best->objective * (1 - 1e-9))) *best = *other;
    free(other);
    return true;
}

static bool has_helpers(const struct plan *p) {
    for (uint32_t i = 0; i < p->n_stage; i++)
        if (p->stage[i].n_helper) return true;
    return false;
}

int plan_search(const struct plan_model *m, const struct plan_cluster *c,
                const struct plan_options *o, struct plan *out, struct err *e) {
    int rc = plan_check_input(m, c, o, e);
    if (rc < 0) return rc;
    struct search *s = xcalloc(1, sizeof *s);
    struct found *best = xcalloc(1, sizeof *best);
    struct plan_alternative list[PLAN_MACHINES_MAX] = { { 0 } };
    *s = (struct search){ .m = m, .c = c, .o = *o, .n_layer = m->hp.n_layer };
    s->n_stage_max = MIN(c->n, s->n_layer);
    find_kinds(s);
    find_groups(s, false);
    search_open(s);
    search_all(s, best, list);
    double plain = best->fits ? 1 / best->objective : 0;
    bool tried = o->helpers == PLAN_HELPERS_AUTO && try_helpers(s, best);
    if (best->fits) {
        *out = best->plan;
        rc = plan_evaluate(m, c, o, out, e);
        out->exact = s->o.ordered == o->ordered;
        out->helpers_tried = tried;
        out->plain_tokens_per_s = has_helpers(out) ? plain : 0;
        out->n_alternative = s->n_stage_max;
        memcpy(out->alternative, list, sizeof list);
    } else {
        search_close(s);
        find_groups(s, false);
        search_open(s);
        rc = nothing_fits(s, e);
    }
    search_close(s);
    free(best);
    free(s);
    return rc;
}
