/* sampler_adjust - step 1 of the sampler: what penalties and bias do to the logit of one token.
 *
 * Only tokens in the history (when a penalty is on) or in the bias list are touched; a walk visits them
 * in order of id, each once. For fixed history and bias the adjusted logit never falls when the logit
 * rises: that makes a bound on a logit into a bound on the adjusted one. Private to sampler*.c; pure. */
#ifndef MODEL_SAMPLER_ADJUST_H
#define MODEL_SAMPLER_ADJUST_H

#include "common/model/sampler.h"

struct adjust {
    int32_t id;
    const struct sampler_seen *seen;                                  /* NULL: not in the history */
    float bias;
};

struct adjust_walk {
    const struct sampler_seen *seen, *seen_end;
    const struct sampler_bias *bias, *bias_end;
};

struct adjust_walk adjust_walk_begin(const struct sampler_params *p, const struct sampler_history *h);
bool adjust_walk_next(struct adjust_walk *w, struct adjust *out);

float adjust_apply(const struct sampler_params *p, const struct adjust *a, float logit);
bool adjust_lowers(const struct sampler_params *p, const struct adjust *a);    /* no logit can rise by it */
float adjust_token(const struct sampler_params *p, const struct sampler_history *h, int32_t id, float logit);

/* Whether min_p or top_k leaves a set whose weight needs no knowledge of the others. */
static inline bool sampler_keeps_few(const struct sampler_params *p, int n_vocab) {
    return p->min_p > 0 || (p->top_k > 0 && p->top_k < n_vocab);
}

#endif
