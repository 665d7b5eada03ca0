/* api_route - which endpoint a method and a path mean.
 *
 * Query strings are ignored, a slash at the end is accepted, and so are the prefixes that clients of
 * other services are configured with. Pure; the answer points into the path. */
#ifndef COORDINATOR_API_ROUTE_H
#define COORDINATOR_API_ROUTE_H

#include "coordinator/api_error.h"

enum api_endpoint {
    API_CHAT, API_COMPLETIONS, API_RESPONSES, API_MESSAGES,          /* these generate */
    API_COUNT, API_TOKENIZE, API_DETOKENIZE,                         /* these answer a body */
    API_MODELS, API_MODEL, API_HEALTH, API_METRICS, API_STATUS, API_PAGE,
    API_UNKNOWN,
    API_ENDPOINTS
};

const char *api_endpoint_name(enum api_endpoint endpoint);           /* "chat", for metrics and logs */

static inline bool api_generates(enum api_endpoint endpoint) {
    return endpoint <= API_MESSAGES;
}

struct api_route {
    enum api_endpoint endpoint;
    enum api_shape shape;
    const char *allow;                            /* the methods that this path knows */
    bool fits;                                    /* the method is one of them */
    bool preflight;                               /* OPTIONS */
    const char *rest;                             /* API_MODEL: the id, API_PAGE: the path */
    size_t rest_len;
};

struct api_route api_route_find(const char *method, const char *path);

#endif
