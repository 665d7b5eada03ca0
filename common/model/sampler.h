/* sampler - from logits to the next token: penalties, bias, temperature, min-p, top-k, top-p, and the
 * log-probabilities.
 *
 * The answer is a function of the logits, the parameters, what was seen, and chance at (seed,
 * position): no hidden state, so a replayed sequence continues with the same text. It works from a
 * whole row or from candidates: what the last stage ships instead of 129 280 numbers. From candidates
 * it gives the row's answer bit for bit or says SAMPLER_NEED_MORE; it never guesses. A struct sampler
 * is scratch memory of one thread (28 bytes per token of the vocabulary) and remembers nothing.
 *
 * The steps, in this order:
 *   1 adjust     seen tokens: x > 0 ? x / repetition : x * repetition; minus frequency * n_output,
 *                minus presence if n_output > 0; then plus the bias. In double, rounded once to f32.
 *                A token that is not in `allowed` is banned, as by a bias of -INFINITY.
 *   2 order      adjusted logit descending, then id ascending. All ties below are decided by it.
 *   3 greedy     temperature 0: the first. Nothing below applies.
 *   4 weights    e^((a - first a) / temperature)
 *   5 min_p      keeps tokens with weight >= min_p (the first has weight 1)
 *   6 top_k      keeps the first top_k of them
 *   7 top_p      keeps the shortest beginning with at least top_p of the weight that 5 and 6 kept;
 *     never empty
 *   8 chance     the first token whose running sum exceeds u * (sum of what is kept), u = rng at
 *     (seed, position)
 * Log-probabilities are those of the model: natural log of the softmax of the row as it came, before
 * step 1 (logit minus log-sum-exp in double); the alternatives are the first n_top in (logit
 * descending, id ascending), chosen or not. */
#ifndef MODEL_SAMPLER_H
#define MODEL_SAMPLER_H

#include "common/base/err.h"
#include "common/base/types.h"

enum { SAMPLER_TOP_MAX = 20, SAMPLER_SEEN_MAX = 1 << 20, SAMPLER_NEED_MORE = 1 };

struct sampler_bias { int32_t id; float bias; };                      /* -INFINITY bans the token */
struct sampler_seen {
    int32_t id;
    uint32_t n_prompt, n_output;
}; /* how often in the prompt, in the answer */

struct sampler_params {
    float temperature;                                                /* 0: greedy */
    float top_p, min_p;                                               /* off: 1, 0 */
    int32_t top_k;                                                    /* off: 0 or less */
    float repetition, frequency, presence;                            /* off: 1, 0, 0 */
    uint64_t seed;
    bool logprobs;
    int n_top;                                                        /* alternatives; only with logprobs */
    const struct sampler_bias *bias;                                  /* ascending ids; borrowed */
    int n_bias;
    const uint64_t *allowed;                      /* one bit per token id; NULL: all; borrowed */
};

/* What a sequence has seen: ids ascending, each once. Kept by the owner of the sequence with the two
 * calls below. */
struct sampler_history {
    struct sampler_seen *seen;
    int n, room;
};

struct sampler_item { int32_t id; float logit; };

/* What the last stage knows of a row. Every token that is not an item comes behind `left` (or is it) in
 * the order of the row. */
struct sampler_candidates {
    const struct sampler_item *item;              /* in order: logit descending, id ascending */
    int n_item, n_vocab;
    struct sampler_item left;                     /* first of those left out; unused when none is */
    float temperature;                                                /* the one of `sum`; 0: no sum */
    double sum;                                   /* over the row: e^((x - item[0].logit) / temperature) */
    double lse;                                   /* log-sum-exp of the row; NaN: not computed */
};

struct sampler_logprob { int32_t id; double logprob; };

struct sampler_result {
    int32_t id;
    double logprob;                                                   /* with logprobs, else 0 */
    int n_top;
    struct sampler_logprob top[SAMPLER_TOP_MAX];
};

struct sampler {
    int n_vocab;
    float *row;                                                       /* adjusted logits */
    uint64_t *key;                                                    /* tokens in order (logits.h) */
    double *sum;                                  /* running sums of weights in that order */
    uint8_t *mark;                                /* one bit a token; all 0 between calls */
    struct sampler_item *item;                                        /* what sampler_extract points to */
};

int sampler_init(struct sampler *s, int n_vocab, struct err *e);
void sampler_deinit(struct sampler *s);                               /* a zeroed struct is fine */

void sampler_params_init(struct sampler_params *p);                   /* temperature 1, everything else off */
int sampler_params_check(const struct sampler_params *p, int n_vocab, struct err *e);

/* For every token of a sequence; a zeroed struct is an empty history. remove takes one add back
 * (speculation, rollback). */
int sampler_history_add(struct sampler_history *h, int32_t id, bool is_output);  /* 0, ERR_NOMEM, ERR_LIMIT */
void sampler_history_remove(struct sampler_history *h, int32_t id, bool is_output);
void sampler_history_deinit(struct sampler_history *h);

/* position: index of the token to be chosen, in the whole sequence. history NULL: nothing seen.
 * 0, or an error: ERR_CORRUPT for logits that are not finite, ERR_INVALID for parameters or when every
 *   token is banned or not allowed. */
int sampler_pick(struct sampler *s, const float *row, const struct sampler_params *p,
                 const struct sampler_history *history, uint64_t position,
                 struct sampler_result *out, struct err *e);

/* 0 with exactly what sampler_pick gives on the row; SAMPLER_NEED_MORE when that cannot be shown:
 *   fetch the row. */
int sampler_pick_from(struct sampler *s, const struct sampler_candidates *c,
                      const struct sampler_params *p, const struct sampler_history *history,
                      uint64_t position, struct sampler_result *out, struct err *e);

/* Chooses what to ship for these parameters, at most n_item_max items. *whole is set when the row
 * itself is the better parcel (then *out is not). With the history (or NULL) the choice fits better;
 * the answer is right without it. p->allowed plays no part: who extracts does not know it. out->item
 * points into s until its next use. */
int sampler_extract(struct sampler *s, const float *row, const struct sampler_params *p,
                    const struct sampler_history *history, int n_item_max,
                    struct sampler_candidates *out, bool *whole, struct err *e);

#endif
