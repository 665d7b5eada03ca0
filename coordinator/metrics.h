/* metrics - what the endpoint counts, and how Prometheus reads it.
 *
 * Counters only grow; histograms have fixed bounds. Belongs to the HTTP thread; the totals of the service
 * are handed in when the text is made. */
#ifndef COORDINATOR_METRICS_H
#define COORDINATOR_METRICS_H

#include "coordinator/api_route.h"
#include "coordinator/replay.h"
#include "coordinator/service.h"

enum metrics_outcome { METRICS_OK, METRICS_CLIENT_ERROR, METRICS_CANCELLED, METRICS_REJECTED, METRICS_FAILED,
                       METRICS_OUTCOMES };

enum { METRICS_BOUNDS = 16 };

struct metrics_histogram {
    uint64_t bucket[METRICS_BOUNDS + 1], n;       /* the last bucket: beyond all bounds */
    double sum;                                   /* seconds */
};

struct metrics {
    uint64_t requests[API_ENDPOINTS][METRICS_OUTCOMES];
    uint64_t n_prompt, n_cached, n_output;
    uint64_t n_hit, n_miss;                       /* sequences with and without a cached beginning */
    double prefill_s, decode_s;
    struct metrics_histogram first_token, between_tokens, request, queue;
    uint64_t bytes_in, bytes_out;
};

struct metrics_now {                              /* what is true at this moment */
    struct service_info info;
    struct service_totals totals;
    uint32_t connections, jobs;
    uint64_t kv_tokens;                           /* of sequences that are computed */
    struct replay_stats memory;                   /* of tool calls */
    const char *version;                          /* of the build */
    const char *model;
};

void metrics_add(struct metrics_histogram *h, double seconds);
enum metrics_outcome metrics_outcome_of(int status);
/* Seconds that somebody who is turned away should wait: 1 to 60. */
int metrics_retry_s(const struct metrics *m, const struct service_info *info);
void metrics_put(const struct metrics *m, const struct metrics_now *now, struct buf *out);

#endif
