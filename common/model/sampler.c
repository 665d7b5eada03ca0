/* sampler - see the header. Both entries end in decide(), which works on tokens in order with running
 * sums of their weights and never asks whether it sees all of them: what it cannot settle from the
 * beginning of the order it leaves undecided.
 *
 *     row         -> largest -> [adjust a copy] -> first 64, 2048 ... in order -> decide      (at the
 *       latest with all)
 *     candidates  -> adjust -> sort -> cut behind what is certain             -> decide or SAMPLER_NEED_MORE
 *
 * Where the total weight of the vocabulary matters (neither min_p nor top_k), candidates give an
 * interval for it. decide() compares at both ends; every choice is monotonous in the total, so equal at
 * both ends means equal inside, where the row's own sum lies: the interval is wider (1e-9) than all
 * rounding in sums of at most 2^24 weights (2e-10). */
#include "common/model/sampler.h"

#include "common/base/check.h"
#include "common/base/rng.h"
#include "common/model/logits.h"
#include "common/model/sampler_adjust.h"

#include <float.h>
#include <math.h>
#include <stdlib.h>

enum { UNDECIDED = -1, FIRST_LOOK = 64, GROWTH = 32, KEEP_BLOCK = 512 };

static const double SUM_ERROR = 1e-10, TOTAL_ERROR = 1e-9;            /* relative */

/* ---- scratch, parameters, history ---- */

int sampler_init(struct sampler *s, int n_vocab, struct err *e) {
    memset(s, 0, sizeof *s);
    if (n_vocab < 1 || n_vocab > LOGITS_MAX) return err_set(e, ERR_LIMIT, "vocabulary of %d tokens", n_vocab);
    size_t n = (size_t)n_vocab;
    s->n_vocab = n_vocab;
    s->row = malloc(n * sizeof *s->row);
    s->key = malloc(n * sizeof *s->key);
    s->sum = malloc(n * sizeof *s->sum);
    s->mark = calloc(n / 8 + 1, 1);
    s->item = malloc(n * sizeof *s->item);
    if (s->row && s->key && s->sum && s->mark && s->item) return 0;
    sampler_deinit(s);
    return err_set(e, ERR_NOMEM, "sampler for %d tokens", n_vocab);
}

void sampler_deinit(struct sampler *s) {
    free(s->row);
    free(s->key);
    free(s->sum);
    free(s->mark);
    free(s->item);
    memset(s, 0, sizeof *s);
}

void sampler_params_init(struct sampler_params *p) {
    *p = (struct sampler_params){ .temperature = 1, .top_p = 1, .repetition = 1 };
}

static bool within(float x, float lo, float hi) {
    return x >= lo && x <= hi;                                        /* false for NaN */
}

static int check_bias(const struct sampler_params *p, int n_vocab, struct err *e) {
    for (int i = 0; i < p->n_bias; i++) {
        const struct sampler_bias *b = &p->bias[i];
        if (b->id < 0 || b->id >= n_vocab) return err_set(e, ERR_INVALID, "logit bias: no token %d", b->id);
        if (i > 0 && b->id <= b[-1].id)
            return err_set(e, ERR_INVALID, "logit bias: token %d out of order", b->id);
        if (b->bias != -INFINITY && !within(b->bias, -1e6f, 1e6f))
            return err_set(e, ERR_INVALID, "logit bias of token %d is %g", b->id, (double)b->bias);
    }
    return 0;
}

int sampler_params_check(const struct sampler_params *p, int n_vocab, struct err *e) {
    if (!within(p->temperature, 0, 1e6f))
        return err_set(e, ERR_INVALID, "temperature %g", (double)p->temperature);
    if (!within(p->top_p, 0, 1)) return err_set(e, ERR_INVALID, "top_p %g", (double)p->top_p);
    if (!within(p->min_p, 0, 1)) return err_set(e, ERR_INVALID, "min_p %g", (double)p->min_p);
    if (!within(p->repetition, 1e-3f, 1e3f))
        return err_set(e, ERR_INVALID, "repetition penalty %g", (double)p->repetition);
    if (!within(p->frequency, -1e3f, 1e3f))
        return err_set(e, ERR_INVALID, "frequency penalty %g", (double)p->frequency);
    if (!within(p->presence, -1e3f, 1e3f))
        return err_set(e, ERR_INVALID, "presence penalty %g", (double)p->presence);
    if (p->n_top < 0 || p->n_top > SAMPLER_TOP_MAX)
        return err_set(e, ERR_INVALID, "%d alternatives, at most %d", p->n_top, SAMPLER_TOP_MAX);
    if (p->n_bias < 0 || p->n_bias > n_vocab) return err_set(e, ERR_INVALID, "%d logit biases", p->n_bias);
    return check_bias(p, n_vocab, e);
}

/* Where id is, or would have to be. */
static int history_place(const struct sampler_history *h, int32_t id) {
    int lo = 0, hi = h->n;
    while (lo < hi) {
        int mid = lo + (hi - lo) / 2;
        if (h->seen[mid].id < id) lo = mid + 1;
        else hi = mid;
    }
    return lo;
}

int sampler_history_add(struct sampler_history *h, int32_t id, bool is_output) {
    int i = history_place(h, id);
    if (i == h->n || h->seen[i].id != id) {
        if (h->n >= SAMPLER_SEEN_MAX) return ERR_LIMIT;
        if (h->n == h->room) {
            int room = MAX(64, 2 * h->room);
            void *grown = realloc(h->seen, (size_t)room * sizeof *h->seen);
            if (!grown) return ERR_NOMEM;
            h->seen = grown;
            h->room = room;
        }
        memmove(&h->seen[i + 1], &h->seen[i], (size_t)(h->n - i) * sizeof *h->seen);
        h->seen[i] = (struct sampler_seen){ .id = id };
        h->n++;
    }
    if (is_output) h->seen[i].n_output++;
    else h->seen[i].n_prompt++;
    return 0;
}

void sampler_history_remove(struct sampler_history *h, int32_t id, bool is_output) {
    int i = history_place(h, id);
    CHECK(i < h->n && h->seen[i].id == id);
    uint32_t *count = is_output ? &h->seen[i].n_output : &h->seen[i].n_prompt;
    CHECK(*count > 0);
    --*count;
    if (h->seen[i].n_output + h->seen[i].n_prompt > 0) return;
    h->n--;
    memmove(&h->seen[i], &h->seen[i + 1], (size_t)(h->n - i) * sizeof *h->seen);
}

void sampler_history_deinit(struct sampler_history *h) {
    free(h->seen);
    memset(h, 0, sizeof *h);
}

/* ---- the decision ---- */

/* The beginning of the order. `all`: it is the whole vocabulary. total: bounds of the weight of the
 * vocabulary. */
struct order {
    const uint64_t *key;
    int n;
    bool all;
    double total_lo, total_hi;
};

/* First i with sum[i] >= target, and > target; n when there is none. */
static int first_reaching(const double *sum, int n, double target) {
    int lo = 0, hi = n;
    while (lo < hi) {
        int mid = lo + (hi - lo) / 2;
        if (sum[mid] < target) lo = mid + 1;
        else hi = mid;
    }
    return lo;
}

static int first_above(const double *sum, int n, double target) {
    int lo = 0, hi = n;
    while (lo < hi) {
        int mid = lo + (hi - lo) / 2;
        if (sum[mid] <= target) lo = mid + 1;
        else hi = mid;
    }
    return lo;
}

/* Steps 4 to 6: running sums of the kept weights, until they exceed `enough`; how many, and whether
 * these are all that the vocabulary keeps. */
static int keep(double *sum, const struct order *o, const struct sampler_params *p, double enough,
                bool *closed) {
    double first = (double)logits_key_logit(o->key[0]), inv_t = 1.0 / (double)p->temperature, running = 0;
    bool limited = p->top_k > 0 && p->top_k <= o->n;
    int n = limited ? p->top_k : o->n, end;
    for (int begin = 0; begin < n; begin = end) {
        end = MIN(begin + KEEP_BLOCK, n);
        logits_weights(o->key + begin, end - begin, first, inv_t, sum + begin);
        for (int i = begin; i < end; i++) {
            *closed = sum[i] < (double)p->min_p;
            if (*closed) return i;
            sum[i] = running += sum[i];
        }
        if (running > enough && end < n) return end;
    }
    *closed = limited || o->all;
    return n;
}

/* Index of the chosen token in the order, or UNDECIDED; decided whenever the order is the whole row's. */
static int decide(double *sum, const struct order *o, const struct sampler_params *p, int n_vocab, double u) {
    bool closed, few = sampler_keeps_few(p, n_vocab);
    double lo = o->total_lo, hi = o->total_hi;
    int n = keep(sum, o, p, few ? INFINITY : hi * (p->top_p < 1 ? (double)p->top_p : u), &closed);
    if (few) {
        if (!closed) return UNDECIDED;
        lo = hi = sum[n - 1];
    }
    if (p->top_p < 1) {
        int a = first_reaching(sum, n, (double)p->top_p * lo),
            b = first_reaching(sum, n, (double)p->top_p * hi);
        if (closed) a = MIN(a, n - 1), b = MIN(b, n - 1);
        if (a != b || a == n) return UNDECIDED;
        n = a + 1;
        lo = hi = sum[a];
        closed = true;
    }
    int a = first_above(sum, n, u * lo), b = first_above(sum, n, u * hi);
    if (closed) {                                 /* rounding may leave u * total at the very end */
        int last = first_reaching(sum, n, sum[n - 1]);
        a = MIN(a, last), b = MIN(b, last);
    }
    return a == b && a < n ? a : UNDECIDED;
}

static double chance(const struct sampler_params *p, uint64_t position) {
    return rng_unit(rng_at(p->seed, position));
}

/* ---- from a row ---- */

static bool allows(const struct sampler_params *p, int32_t id) {
    return !p->allowed || (p->allowed[id >> 6] >> (id & 63) & 1);
}

/* A copy of the row with every token banned that is not allowed. */
static void copy_allowed(float *to, const float *row, int n, const uint64_t *allowed) {
    for (int begin = 0; begin < n; begin += 64) {
        uint64_t word = allowed[begin >> 6];
        int end = MIN(begin + 64, n);
        for (int i = begin; i < end; i++, word >>= 1) to[i] = word & 1 ? row[i] : -INFINITY;
    }
}

/* The row itself when nothing applies, else an adjusted copy. */
static const float *adjusted_row(struct sampler *s, const float *row, const struct sampler_params *p,
                                 const struct sampler_history *h) {
    struct adjust_walk walk = adjust_walk_begin(p, h);
    struct adjust a;
    bool adjusts = adjust_walk_next(&walk, &a);
    if (!adjusts && !p->allowed) return row;
    if (p->allowed) copy_allowed(s->row, row, s->n_vocab, p->allowed);
    else memcpy(s->row, row, (size_t)s->n_vocab * sizeof *row);
    for (; adjusts; adjusts = adjust_walk_next(&walk, &a))
        if (a.id < s->n_vocab && allows(p, a.id)) s->row[a.id] = adjust_apply(p, &a, row[a.id]);
    return s->row;
}

/* How many to look at first: enough for the usual peaked row, more where the total says that it is flat. */
static int first_look(const struct sampler_params *p, int n_vocab, double total) {
    double look = p->top_k > 0 ? p->top_k : MAX((double)FIRST_LOOK, 4 * total);
    return (int)MIN(look, (double)n_vocab);
}

static int32_t draw_from_row(struct sampler *s, const float *row, uint64_t first,
                             const struct sampler_params *p, uint64_t position) {
    double total = 0, top = (double)logits_key_logit(first), u = chance(p, position);
    if (!sampler_keeps_few(p, s->n_vocab))
        total = logits_exp_sum(row, s->n_vocab, top, 1.0 / (double)p->temperature);
    for (int n = first_look(p, s->n_vocab, total);; n = n > s->n_vocab / GROWTH ? s->n_vocab : n * GROWTH) {
        logits_first(row, s->n_vocab, n, s->key);
        struct order order = { s->key, n, n == s->n_vocab, total, total };
        int i = decide(s->sum, &order, p, s->n_vocab, u);
        if (i != UNDECIDED) return logits_key_id(s->key[i]);
        CHECK(!order.all);
    }
}

static double log_sum_exp(const float *row, int n, uint64_t largest) {
    double top = (double)logits_key_logit(largest);
    return top + logits_log(logits_exp_sum(row, n, top, 1.0));
}

static void report_row(struct sampler *s, const float *row, uint64_t largest, const struct sampler_params *p,
                       struct sampler_result *out) {
    double lse = log_sum_exp(row, s->n_vocab, largest);
    out->logprob = (double)(row[out->id] + 0.0f) - lse;               /* + 0: the items know no -0 */
    out->n_top = MIN(p->n_top, s->n_vocab);
    if (out->n_top > 0) logits_first(row, s->n_vocab, out->n_top, s->key);
    for (int i = 0; i < out->n_top; i++)
        out->top[i] = (struct sampler_logprob){ logits_key_id(s->key[i]),
                                                (double)logits_key_logit(s->key[i]) - lse };
}

static int all_banned(const struct sampler_params *p, struct err *e) {
    return err_set(e, ERR_INVALID, p->allowed ? "every token that is allowed here is banned by the logit bias"
                                              : "logit bias: every token is banned");
}

int sampler_pick(struct sampler *s, const float *row, const struct sampler_params *p,
                 const struct sampler_history *history, uint64_t position,
                 struct sampler_result *out, struct err *e) {
    uint64_t largest, first;
    memset(out, 0, sizeof *out);
    int rc = sampler_params_check(p, s->n_vocab, e);
    if (rc < 0) return rc;
    rc = logits_largest(row, s->n_vocab, &largest, e);
    if (rc < 0) return rc;
    const float *adjusted = adjusted_row(s, row, p, history);
    first = largest;
    if (adjusted != row) {
        logits_first(adjusted, s->n_vocab, 1, s->key);
        first = s->key[0];
    }
    if (logits_key_logit(first) == -INFINITY) return all_banned(p, e);
    out->id = p->temperature > 0 ? draw_from_row(s, adjusted, first, p, position) : logits_key_id(first);
    if (p->logprobs) report_row(s, row, largest, p, out);
    return 0;
}

/* ---- from candidates ---- */

static bool marked(const struct sampler *s, int32_t id) {
    return s->mark[id >> 3] >> (id & 7) & 1;
}

static void flip_marks(struct sampler *s, const struct sampler_item *item, int n) {
    for (int i = 0; i < n; i++) s->mark[item[i].id >> 3] ^= (uint8_t)(1 << (item[i].id & 7));
}

/* Marks the items; on error none stays marked. */
static int mark_items(struct sampler *s, const struct sampler_candidates *c, struct err *e) {
    const char *wrong = NULL;
    int i = 0;
    for (; i < c->n_item && !wrong; i++) {
        const struct sampler_item *item = &c->item[i];
        if (item->id < 0 || item->id >= s->n_vocab) wrong = "is not in the vocabulary";
        else if (!isfinite(item->logit)) wrong = "has no finite logit";
        else if (i > 0 && logits_key(item->logit, item->id) >= logits_key(item[-1].logit, item[-1].id))
            wrong = "is out of order";
        else if (marked(s, item->id)) wrong = "comes twice";
        else flip_marks(s, item, 1);
    }
    if (!wrong) return 0;
    flip_marks(s, c->item, i - 1);
    return err_set(e, ERR_CORRUPT, "candidates: token %d %s", c->item[i - 1].id, wrong);
}

static int check_candidates(const struct sampler *s, const struct sampler_candidates *c, struct err *e) {
    if (c->n_vocab != s->n_vocab)
        return err_set(e, ERR_CORRUPT, "candidates of %d tokens, not %d", c->n_vocab, s->n_vocab);
    if (c->n_item < 1 || c->n_item > s->n_vocab) return err_set(e, ERR_CORRUPT, "%d candidates", c->n_item);
    if (!within(c->temperature, 0, 1e6f)) return err_set(e, ERR_CORRUPT, "candidates: temperature");
    if (c->temperature > 0 && !(c->sum >= 1 && c->sum <= 2.0 * LOGITS_MAX))
        return err_set(e, ERR_CORRUPT, "candidates: sum of weights %g", c->sum);
    if (isinf(c->lse) || c->lse < (double)c->item[0].logit)
        return err_set(e, ERR_CORRUPT, "candidates: log-sum-exp %g", c->lse);
    if (c->n_item == s->n_vocab) return 0;
    if (c->left.id < 0 || c->left.id >= s->n_vocab || !isfinite(c->left.logit))
        return err_set(e, ERR_CORRUPT, "candidates: token %d left out", c->left.id);
    return 0;
}

/* How many of the tokens left out could be chosen at all; -1: not limited. */
static int count_left(const struct sampler *s, const struct sampler_candidates *c,
                      const struct sampler_params *p) {
    int n = 0;
    if (!p->allowed) return -1;
    for (int i = 0; i < s->n_vocab / 64; i++) n += __builtin_popcountll(p->allowed[i]);
    for (int32_t id = s->n_vocab & ~63; id < s->n_vocab; id++) n += allows(p, id);
    for (int i = 0; i < c->n_item; i++) n -= allows(p, c->item[i].id);
    return n;
}

/* The key that no token left out can exceed, whatever is done to it. */
static uint64_t bound_of_left(const struct sampler *s, const struct sampler_candidates *c,
                              const struct sampler_params *p, const struct sampler_history *h) {
    uint64_t bound = logits_key(c->left.logit, c->left.id);
    struct adjust_walk walk = adjust_walk_begin(p, h);
    struct adjust a;
    while (adjust_walk_next(&walk, &a)) {
        if (a.id >= s->n_vocab || marked(s, a.id) || !allows(p, a.id)) continue;
        bound = MAX(bound, logits_key(adjust_apply(p, &a, c->left.logit), a.id));
    }
    return bound;
}

static double exp_of(double z) {
    return z > 0 ? 1 / logits_exp(-z) : logits_exp(z);                /* infinite above 700 */
}

/* Bounds of the weight of what was left out, adjusted, in units of the first token's weight. Unadjusted
 * it is the row's sum minus that of the items, and at most n times the largest; each adjusted token
 * moves it by at most its own weight. Of what is not allowed nothing is known but that it is no more. */
static void weigh_left(const struct sampler *s, const struct sampler_candidates *c, int n_left,
                       const struct sampler_params *p, const struct sampler_history *h,
                       double first, double *lo, double *hi) {
    double inv_t = 1.0 / (double)p->temperature, each = exp_of(((double)c->left.logit - first) * inv_t);
    *lo = 0;
    *hi = (n_left < 0 ? c->n_vocab - c->n_item : n_left) * each;
    if (c->temperature == p->temperature) {
        double top = (double)c->item[0].logit, rest = c->sum, unit = exp_of((top - first) * inv_t);
        for (int i = 0; i < c->n_item; i++) rest -= logits_exp(((double)c->item[i].logit - top) * inv_t);
        *hi = MIN(*hi, MAX(rest + SUM_ERROR * c->sum, 0) * unit);
        *lo = MIN(*hi, MAX(rest - SUM_ERROR * c->sum, 0) * unit);
    }
    struct adjust_walk walk = adjust_walk_begin(p, h);
    struct adjust a;
    while (adjust_walk_next(&walk, &a)) {
        if (a.id >= s->n_vocab || marked(s, a.id) || !allows(p, a.id)) continue;
        *lo -= each;
        if (!adjust_lowers(p, &a))
            *hi += exp_of(((double)adjust_apply(p, &a, c->left.logit) - first) * inv_t);
    }
    *lo = n_left < 0 ? MAX(*lo, 0) : 0;
}

/* Index in s->key of the drawn token; the first n of c->n_item keys are certain to begin the row's
 * order, n >= 1. */
static int draw_from_items(struct sampler *s, const struct sampler_candidates *c, int n, int n_left,
                           const struct sampler_params *p, const struct sampler_history *h,
                           uint64_t position) {
    double lo = 0, hi = 0, items = 0, first = (double)logits_key_logit(s->key[0]),
           inv_t = 1.0 / (double)p->temperature;
    bool all = n_left == 0;
    if (!all) weigh_left(s, c, n_left, p, h, first, &lo, &hi);
    for (int i = 0; i < c->n_item; i++)
        items += logits_exp(((double)logits_key_logit(s->key[i]) - first) * inv_t);
    struct order order = { s->key, n, all, (items + lo) * (1 - TOTAL_ERROR),
                           MIN((items + hi) * (1 + TOTAL_ERROR), 1e300) };
    return decide(s->sum, &order, p, s->n_vocab, chance(p, position));
}

/* False when the alternatives or the log-sum-exp are not there. The first items before `left` begin the
 * row's order. */
static bool report_items(const struct sampler_candidates *c, const struct sampler_params *p,
                         struct sampler_result *out) {
    if (isnan(c->lse)) return false;
    int i = 0;
    while (c->item[i].id != out->id) i++;
    out->logprob = (double)c->item[i].logit - c->lse;
    out->n_top = MIN(p->n_top, c->n_vocab);
    if (out->n_top > c->n_item) return false;
    uint64_t left = c->n_item == c->n_vocab ? 0 : logits_key(c->left.logit, c->left.id);
    for (i = 0; i < out->n_top; i++) {
        if (logits_key(c->item[i].logit, c->item[i].id) <= left) return false;
        out->top[i] = (struct sampler_logprob){ c->item[i].id, (double)c->item[i].logit - c->lse };
    }
    return true;
}

/* With the items marked. */
static int pick_marked(struct sampler *s, const struct sampler_candidates *c,
                       const struct sampler_params *p, const struct sampler_history *h,
                       uint64_t position, struct sampler_result *out, struct err *e) {
    int n_left = c->n_item == c->n_vocab ? 0 : count_left(s, c, p);
    for (int i = 0; i < c->n_item; i++) {
        const struct sampler_item *item = &c->item[i];
        float logit = allows(p, item->id) ? adjust_token(p, h, item->id, item->logit) : -INFINITY;
        s->key[i] = logits_key(logit, item->id);
    }
    logits_sort(s->key, c->n_item, c->n_item);
    if (n_left == 0 && logits_key_logit(s->key[0]) == -INFINITY) return all_banned(p, e);
    int certain = c->n_item, i = 0;
    uint64_t bound = n_left == 0 ? 0 : bound_of_left(s, c, p, h);
    while (certain > 0 && s->key[certain - 1] <= bound) certain--;
    if (certain == 0) return SAMPLER_NEED_MORE;
    if (p->temperature > 0) i = draw_from_items(s, c, certain, n_left, p, h, position);
    if (i == UNDECIDED) return SAMPLER_NEED_MORE;
    out->id = logits_key_id(s->key[i]);
    return p->logprobs && !report_items(c, p, out) ? SAMPLER_NEED_MORE : 0;
}

int sampler_pick_from(struct sampler *s, const struct sampler_candidates *c,
                      const struct sampler_params *p, const struct sampler_history *history,
                      uint64_t position, struct sampler_result *out, struct err *e) {
    memset(out, 0, sizeof *out);
    int rc = sampler_params_check(p, s->n_vocab, e);
    if (rc < 0) return rc;
    rc = check_candidates(s, c, e);
    if (rc < 0) return rc;
    rc = mark_items(s, c, e);
    if (rc < 0) return rc;
    rc = pick_marked(s, c, p, history, position, out, e);
    flip_marks(s, c->item, c->n_item);
    if (rc != 0) memset(out, 0, sizeof *out);
    return rc;
}
