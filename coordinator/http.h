/* http - the endpoint: OpenAI's and Anthropic's APIs over HTTP in front of a service.
 *
 * One thread of its own runs libmicrohttpd, the listening sockets and every connection; a connection
 * that waits for tokens is suspended and resumed by events, its socket is watched for a client that
 * leaves. Reading, rendering and tokenizing a request happens on worker threads, and the service's loop
 * only pushes into a ring. http_start and the calls below belong to one thread (main); each of them may
 * block for a moment. All texts of the configuration are copied. Limits: struct http_limits. */
#ifndef COORDINATOR_HTTP_H
#define COORDINATOR_HTTP_H

#include "common/base/err.h"
#include "common/base/types.h"

struct http;
struct service;

enum { HTTP_KEYS_MAX = 64, HTTP_NAMES_MAX = 32 };

struct http_limits {                              /* http_config_init gives the defaults */
    int connections;                              /* open at once; more wait in the listen queue */
    int jobs;                                     /* requests that are being read, computed or written */
    int head_bytes;                               /* request line and headers; beyond: 431 */
    uint64_t body_bytes;                          /* of one request; beyond: 413 */
    uint64_t bodies_bytes;                        /* of all requests that are not parsed yet; beyond: 503 */
    int head_ms;                                  /* a connection without a whole request head */
    int body_ms;                                  /* from the head to the last byte of the body */
    int write_ms;                                 /* a reader that takes nothing */
    uint64_t write_bytes;                         /* waiting for one reader; beyond: cancelled */
    int queue_ms;                                 /* waiting before it is begun; 0 is no limit */
    int request_ms;                               /* from its submission to the last token; 0 is no limit */
    int keep_alive_ms;                            /* between signs of life in a stream */
    int workers;                                  /* threads that render and tokenize */
    int state_ms;                                 /* between two writings of what a restart shall not lose */
};

/* Use http_config_init, then change what differs. Unset texts are NULL. */
struct http_config {
    const char *host;                             /* name or address; loopback by default */
    int port;                                     /* 0: any free one, see http_port; -1: no TCP at all */
    const char *unix_path;                        /* a Unix socket, beside TCP or instead of it */
    const char *tls_cert, *tls_key;               /* PEM files, both or none; not for the Unix socket */
    const char *keys[HTTP_KEYS_MAX];              /* accepted API keys, from the front */
    const char *key_file;                         /* more of them, one a line; only its owner may read it */
    bool insecure;                                /* without keys beyond loopback, on purpose */
    bool metrics_open;                            /* /metrics needs no key */
    const char *cors_origin;                  /* "*" or one origin; NULL: browsers of other origins may not */
    const char *allow_hosts[HTTP_NAMES_MAX];      /* Host headers beside our own, for proxies */
    const char *model_id;                        /* how clients name the model; NULL: from the model's name */
    const char *aliases[HTTP_NAMES_MAX];          /* other names of it */
    bool strict_model;                            /* unknown names are 404 */
    const char *encoding;                         /* "v4-2604", "v4-0731"; NULL: what the weights need */
    const char *effort;                          /* reasoning effort when the client names none; NULL: none */
    bool thinking;                                /* when the client says nothing */
    bool inline_thinking;                         /* <think>...</think> inside the content */
    bool early_headers;                           /* answers that do not stream: 200 at once, then blanks */
    bool loose_markup;                            /* also tool markup as weights of few bits misspell it */
    bool thinking_budget;                         /* thinking.budget_tokens ends the reasoning */
    const char *state;                            /* folder of what a restart shall not lose; NULL: none */
    int max_tokens;                               /* when the client says nothing; 0: up to the context */
    double temperature, top_p, min_p;             /* likewise */
    int top_k;
    struct http_limits limit;
};

void http_config_init(struct http_config *c);

/* The service must outlive it. ERR_INVALID, ERR_DENIED (no key, but reachable from other machines),
 * ERR_IO (address in use, files), ERR_NOMEM. */
int http_start(struct http **out, const struct http_config *config, struct service *s, struct err *e);
int http_port(const struct http *h);              /* of TCP; 0 without */
const char *http_url(const struct http *h);       /* for people: "http://127.0.0.1:8080" */
bool http_key_required(const struct http *h);

/* No new connections and requests (503); those that run are finished. */
void http_drain(struct http *h);
bool http_idle(struct http *h);                   /* nothing runs, everything is written */
void http_stop(struct http *h);                   /* cancels what still runs, frees all; NULL is fine */

#endif
