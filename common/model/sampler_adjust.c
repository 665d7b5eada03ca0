/* sampler_adjust - see the header. */
#include "common/model/sampler_adjust.h"

#include <float.h>
#include <math.h>

static bool penalises(const struct sampler_params *p) {
    return p->repetition != 1 || p->frequency != 0 || p->presence != 0;
}

struct adjust_walk adjust_walk_begin(const struct sampler_params *p, const struct sampler_history *h) {
    struct adjust_walk w = { 0 };
    if (p->n_bias > 0) {
        w.bias = p->bias;
        w.bias_end = p->bias + p->n_bias;
    }
    if (h && h->n > 0 && penalises(p)) {
        w.seen = h->seen;
        w.seen_end = h->seen + h->n;
    }
    return w;
}

bool adjust_walk_next(struct adjust_walk *w, struct adjust *out) {
    bool more_seen = w->seen != w->seen_end, more_bias = w->bias != w->bias_end;
    if (!more_seen && !more_bias) return false;
    int32_t id = more_seen ? w->seen->id : w->bias->id;
    if (more_bias) id = MIN(id, w->bias->id);
    *out = (struct adjust){ .id = id };
    if (more_seen && w->seen->id == id) out->seen = w->seen++;
    if (more_bias && w->bias->id == id) out->bias = w->bias++->bias;
    return true;
}

/* What is added to the logit, after the repetition penalty. */
static double shift_of(const struct sampler_params *p, const struct adjust *a) {
    double shift = (double)a->bias;
    if (!a->seen || a->seen->n_output == 0) return shift;
    return shift - (double)p->frequency * a->seen->n_output - (double)p->presence;
}

float adjust_apply(const struct sampler_params *p, const struct adjust *a, float logit) {
    double x = (double)logit;
    if (a->seen) x = x > 0 ? x / (double)p->repetition : x * (double)p->repetition;
    x += shift_of(p, a);
    if (x == -INFINITY) return -INFINITY;
    return (float)MAX(MIN(x, (double)FLT_MAX), -(double)FLT_MAX);
}

bool adjust_lowers(const struct sampler_params *p, const struct adjust *a) {
    return (!a->seen || p->repetition >= 1) && shift_of(p, a) <= 0;
}

static const struct sampler_seen *find_seen(const struct sampler_history *h, int32_t id) {
    int lo = 0, hi = h->n;
    while (lo < hi) {
        int mid = lo + (hi - lo) / 2;
        if (h->seen[mid].id < id) lo = mid + 1;
        else hi = mid;
    }
    return lo < h->n && h->seen[lo].id == id ? &h->seen[lo] : NULL;
}

static float find_bias(const struct sampler_params *p, int32_t id) {
    int lo = 0, hi = p->n_bias;
    while (lo < hi) {
        int mid = lo + (hi - lo) / 2;
        if (p->bias[mid].id < id) lo = mid + 1;
        else hi = mid;
    }
    return lo < p->n_bias && p->bias[lo].id == id ? p->bias[lo].bias : 0;
}

float adjust_token(const struct sampler_params *p, const struct sampler_history *h, int32_t id, float logit) {
    struct adjust a = { .id = id, .bias = find_bias(p, id) };
    if (h && penalises(p)) a.seen = find_seen(h, id);
    if (!a.seen && a.bias == 0) return logit;
    return adjust_apply(p, &a, logit);
}
