/* api_params - how a request wants its answer: limits, sampling, stop strings, number of choices.
 *
 * The fields are the same in all dialects but for a few names, so one reader serves them. Every value is
 * checked against its range, null means absent, 1 and 1.0 are the same number. Texts are copied into the
 * given arena. Pure. */
#ifndef COORDINATOR_API_PARAMS_H
#define COORDINATOR_API_PARAMS_H

#include "coordinator/api_route.h"
#include "coordinator/api_site.h"

enum { API_STOPS_MAX = 64, API_CHOICES_MAX = 8, API_BIAS_MAX = 4096 };

struct api_params {
    struct sampler_params sampling;               /* its bias is in the arena */
    uint32_t max_tokens;                          /* 0: as many as fit */
    uint32_t n;
    struct chat_text stops[API_STOPS_MAX];
    size_t n_stops;
    bool stream, include_usage, echo, ignore_end;
    bool token_ids;                               /* completions: the tokens themselves beside the text */
    bool scores, nothing_new;                   /* completions: log-probabilities of the prompt, too; alone */
    bool summary, sealed;                         /* responses: of the reasoning */
};

/* random: the seed when the request has none. 0, or ERR_INVALID and *fault with the field. */
int api_params_read(struct api_params *p, json_t *root, enum api_endpoint endpoint,
                    const struct api_site *site, uint64_t random, struct arena *arena,
                    struct api_error *fault);

#endif
