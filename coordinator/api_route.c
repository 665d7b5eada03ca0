/* api_route - see the header. */
#include "coordinator/api_route.h"

#include <string.h>

static const struct route {
    const char *path;
    enum api_endpoint endpoint;
    bool post;
} routes[] = {
    { "/chat/completions", API_CHAT, true },
    { "/completions", API_COMPLETIONS, true },
    { "/responses", API_RESPONSES, true },
    { "/messages", API_MESSAGES, true },
    { "/messages/count_tokens", API_COUNT, true },
    { "/tokenize", API_TOKENIZE, true },
    { "/detokenize", API_DETOKENIZE, true },
    { "/models", API_MODELS, false },
    { "/health", API_HEALTH, false },
    { "/metrics", API_METRICS, false },
    { "/status", API_STATUS, false },
};

/* Longest first: what is left of the path is looked up. */
static const char *const prefixes[] = { "/anthropic/v1", "/anthropic", "/beta", "/v1", "" };

const char *api_endpoint_name(enum api_endpoint endpoint) {
    static const char *const names[API_ENDPOINTS] = {
        "chat",   "completions", "responses", "messages", "count_tokens", "tokenize", "detokenize",
        "models", "model",       "health",    "metrics",  "status",       "page",     "unknown",
    };
    return names[endpoint];
}

static bool is(const char *a, size_t n, const char *b) {
    return strlen(b) == n && memcmp(a, b, n) == 0;
}

static void find(struct api_route *r, const char *path, size_t n) {
    static const char models[] = "/models/";
    for (size_t i = 0; i < COUNT_OF(routes); i++) {
        if (!is(path, n, routes[i].path)) continue;
        r->endpoint = routes[i].endpoint;
        r->allow = routes[i].post ? "POST" : "GET, HEAD";
        return;
    }
    if (n < sizeof models || memcmp(path, models, sizeof models - 1) != 0) return;
    r->endpoint = API_MODEL;
    r->allow = "GET, HEAD";
    r->rest = path + sizeof models - 1;
    r->rest_len = n - (sizeof models - 1);
}

static bool is_page(const char *path, size_t n) {
    return n == 0 || is(path, n, "/page.css") || is(path, n, "/page.js");
}

static bool method_fits(const struct api_route *r, const char *method) {
    bool get = strcmp(method, "GET") == 0 || strcmp(method, "HEAD") == 0;
    return r->allow && (strcmp(r->allow, "POST") == 0 ? strcmp(method, "POST") == 0 : get);
}

struct api_route api_route_find(const char *method, const char *path) {
    struct api_route r = { .endpoint = API_UNKNOWN, .rest = path };
    size_t n = strcspn(path, "?");
    if (n && path[n - 1] == '/') n--;
    bool anthropic = strncmp(path, "/anthropic", 10) == 0;
    if (is_page(path, n)) {
        r = (struct api_route){ .endpoint = API_PAGE, .allow = "GET, HEAD", .rest = n ? path : "/" };
        r.rest_len = n ? n : 1;
    }
    for (size_t i = 0; i < COUNT_OF(prefixes) && r.endpoint == API_UNKNOWN; i++) {
        size_t skip = strlen(prefixes[i]);
        if (n > skip && strncmp(path, prefixes[i], skip) == 0) find(&r, path + skip, n - skip);
    }
    if (anthropic || r.endpoint == API_MESSAGES || r.endpoint == API_COUNT) r.shape = API_SHAPE_ANTHROPIC;
    r.preflight = strcmp(method, "OPTIONS") == 0;
    r.fits = method_fits(&r, method);
    return r;
}
