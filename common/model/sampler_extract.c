/* sampler_extract - what the last stage ships of a row, see sampler.h.
 *
 * The choice looks at the row as it came; what penalties will do to it is covered by a reserve of
 * items. Wanted are: the first token (greedy), what min_p or top_k keeps and one more as evidence, or
 * enough of the weight that top_p or chance almost surely ends inside. A positive bias may lift a token
 * from anywhere, so those tokens always go along. */
#include "common/model/sampler.h"

#include "common/model/logits.h"
#include "common/model/sampler_adjust.h"

#include <math.h>

enum { RESERVE = 64, FIRST_LOOK = 64, GROWTH = 8 };

/* Shares of the weight. Pure chance: one draw in 4096 ends outside and costs a second parcel; at the
 * limit of items we accept one in 16, beyond that the row is cheaper. Penalties move weight, so top_p
 * asks for a little more than it says. */
static const double SHARE_CHANCE = 1 - 1.0 / 4096, SHARE_LEAST = 1 - 1.0 / 16, TOP_P_MARGIN = 1e-6,
                    TOP_P_RESERVE = 0.01;

struct wanted {
    int n_least, n_most;                              /* never fewer; never more */
    double weight_least;                        /* up to the first token lighter than this; 0: no such rule */
    double sum;                                       /* and until the running sum reaches this */
};

static bool adjusts(const struct sampler_params *p, const struct sampler_history *h) {
    bool penalties = p->repetition != 1 || p->frequency != 0 || p->presence != 0;
    return p->n_bias > 0 || (penalties && (!h || h->n > 0));
}

static struct wanted want(const struct sampler_params *p, const struct sampler_history *h,
                          int n_vocab, double total) {
    bool reserve = adjusts(p, h);
    struct wanted w = { .n_least = (p->logprobs ? MAX(p->n_top, 1) : 1) + (reserve ? RESERVE : 0),
                        .n_most = n_vocab };
    if (p->temperature == 0) {
        w.n_most = w.n_least;
    } else if (p->top_k > 0 && p->top_k < n_vocab) {
        w.n_most = w.n_least = MAX(w.n_least, p->top_k + (reserve ? RESERVE : 0));
    } else if (p->min_p > 0) {
        w.weight_least = (double)p->min_p;
    } else if (p->top_p < 1) {
        w.sum = total * MIN((double)p->top_p + (reserve ? TOP_P_RESERVE : TOP_P_MARGIN), SHARE_CHANCE);
    } else {
        w.sum = total * SHARE_CHANCE;
    }
    w.n_least = MIN(w.n_least, n_vocab);
    w.n_most = MAX(MIN(w.n_most, n_vocab), w.n_least);
    return w;
}

/* How many of key[0..n-1] fulfil the wish, or 0 when n are not enough; *sum: their weight. */
static int count_wanted(const uint64_t *key, int n, const struct wanted *w, double inv_t, double *sum) {
    double top = (double)logits_key_logit(key[0]);
    *sum = 0;
    for (int i = 0; i < n; i++) {
        double weight = inv_t > 0 ? logits_exp(((double)logits_key_logit(key[i]) - top) * inv_t) : 0;
        *sum += weight;
        int have = i + 1;
        if (have < w->n_least) continue;
        if (have == w->n_most) return have;
        if (weight < w->weight_least) return have;
        if (w->weight_least == 0 && *sum >= w->sum) return have;
    }
    return 0;
}

/* The first keys of the row into s->key: those to ship and, unless it is all, one more that begins the
 * rest. 0: the row. */
static int choose_first(struct sampler *s, const float *row, const struct wanted *w, double inv_t,
                        int n_item_max) {
    for (int n = MIN(MAX(FIRST_LOOK, w->n_least), n_item_max);; n = MIN(n * GROWTH, n_item_max)) {
        double sum;
        logits_first(row, s->n_vocab, MIN(n + 1, s->n_vocab), s->key);
        int enough = count_wanted(s->key, n, w, inv_t, &sum);
        if (enough > 0) return enough;
        if (n == s->n_vocab) return n;
        if (n < n_item_max) continue;
        return w->sum > 0 && n >= w->n_least && sum >= w->sum * SHARE_LEAST ? n : 0;
    }
}

/* Appends tokens with a positive bias that are not among the first n; -1 when they do not fit. */
static int add_lifted(struct sampler *s, const float *row, const struct sampler_params *p, int n,
                      int n_item_max) {
    uint64_t last = s->key[n - 1];
    int have = n;
    for (int i = 0; i < p->n_bias; i++) {
        uint64_t key = logits_key(row[p->bias[i].id], p->bias[i].id);
        if (p->bias[i].bias <= 0 || key >= last) continue;
        if (have == n_item_max) return -1;
        s->key[have++] = key;
    }
    logits_sort(s->key + n, have - n, have - n);
    return have;
}

int sampler_extract(struct sampler *s, const float *row, const struct sampler_params *p,
                    const struct sampler_history *history, int n_item_max,
                    struct sampler_candidates *out, bool *whole, struct err *e) {
    uint64_t largest;
    int rc = sampler_params_check(p, s->n_vocab, e);
    if (rc < 0) return rc;
    rc = logits_largest(row, s->n_vocab, &largest, e);
    if (rc < 0) return rc;
    double top = (double)logits_key_logit(largest),
           inv_t = p->temperature > 0 ? 1.0 / (double)p->temperature : 0;
    *out = (struct sampler_candidates){ .item = s->item, .n_vocab = s->n_vocab, .lse = NAN };
    if (p->temperature > 0 && !sampler_keeps_few(p, s->n_vocab)) {
        out->temperature = p->temperature;
        out->sum = logits_exp_sum(row, s->n_vocab, top, inv_t);
    }
    n_item_max = MIN(n_item_max, s->n_vocab);
    struct wanted w = want(p, history, s->n_vocab, out->sum);
    int n = n_item_max > 0 && w.n_least <= n_item_max ? choose_first(s, row, &w, inv_t, n_item_max) : 0;
    *whole = n == 0;
    if (*whole) return 0;
    if (n < s->n_vocab)
        out->left = (struct sampler_item){ logits_key_id(s->key[n]), logits_key_logit(s->key[n]) };
    out->n_item = add_lifted(s, row, p, n, n_item_max);
    *whole = out->n_item < 0;
    if (*whole) return 0;
    for (int i = 0; i < out->n_item; i++)
        s->item[i] = (struct sampler_item){ logits_key_id(s->key[i]), logits_key_logit(s->key[i]) };
    if (p->logprobs) {
        double sum = out->temperature == 1 ? out->sum : logits_exp_sum(row, s->n_vocab, top, 1.0);
        out->lse = top + logits_log(sum);
    }
    return 0;
}
