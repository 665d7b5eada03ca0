/* http_guard - who may ask: API keys, the names that we answer to, and the pages that may call us.
 *
 * A key is compared with all keys in a time that depends on neither. Without keys only this machine can
 * reach us, and then a web page could too: so the Host header must be one of ours (a page cannot choose
 * it) and the Origin, if there is one, must be our own page's or allowed. Immutable after opening. */
#ifndef COORDINATOR_HTTP_GUARD_H
#define COORDINATOR_HTTP_GUARD_H

#include "coordinator/http.h"

enum { HTTP_KEY_MAX = 256, HTTP_HOST_MAX = 256 };

struct http_guard {
    char keys[HTTP_KEYS_MAX][HTTP_KEY_MAX];       /* the rest of each is zeros */
    size_t key_len[HTTP_KEYS_MAX];
    int n_keys;
    char hosts[HTTP_NAMES_MAX + 1][HTTP_HOST_MAX];
    int n_hosts;
    bool any_host;                                /* keys protect us, or we are on no TCP port */
    char cors[HTTP_HOST_MAX];                     /* "" none, "*", or one origin */
};

/* ERR_DENIED: a key file that others can read. */
int http_guard_init(struct http_guard *g, const struct http_config *c, struct err *e);

/* Any of them may be NULL. True also when no key is configured. */
bool http_guard_key(const struct http_guard *g, const char *authorization, const char *x_api_key);
bool http_guard_host(const struct http_guard *g, const char *host);
bool http_guard_origin(const struct http_guard *g, const char *origin, const char *host);

/* ERR_DENIED unless the file is its owner's alone. */
int http_guard_file(const char *path, struct err *e);

#endif
