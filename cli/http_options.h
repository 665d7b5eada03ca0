/* http_options - the endpoint's options for any command that opens one.
 *
 *     struct http_options h;
 *     http_options_init(&h);
 *     const struct opt table[] = { ..., HTTP_OPTIONS(&h) };
 *     ... opts_parse ...
 *     rc = http_start(&http, http_options_config(&h), service, &e);
 *
 * Main thread. The struct borrows from argv. */
#ifndef CLI_HTTP_OPTIONS_H
#define CLI_HTTP_OPTIONS_H

#include "cli/opts.h"
#include "coordinator/http.h"

struct http_options {
    struct http_config config;
    uint64_t body_bytes, bodies_bytes, write_bytes;
    bool no_thinking;
};

static inline void http_options_init(struct http_options *o) {
    http_config_init(&o->config);
    o->body_bytes = o->config.limit.body_bytes;
    o->bodies_bytes = o->config.limit.bodies_bytes;
    o->write_bytes = o->config.limit.write_bytes;
    o->no_thinking = !o->config.thinking;
}

static inline const struct http_config *http_options_config(struct http_options *o) {
    o->config.limit.body_bytes = o->body_bytes;
    o->config.limit.bodies_bytes = o->bodies_bytes;
    o->config.limit.write_bytes = o->write_bytes;
    o->config.thinking = !o->no_thinking;
    return &o->config;
}

#define HTTP_OPTIONS(o)                                                                            \
    OPT_GROUP("Endpoint"),                                                                         \
        OPT_STRING('H', "host", &(o)->config.host, "NAME", "name or address to listen at"),        \
        OPT_INT('P', "port", &(o)->config.port, -1, 65535, "N",                                    \
                "where it listens; 0: any free one; -1: no TCP at all"),                           \
        OPT_STRING(0, "unix", &(o)->config.unix_path, "PATH", "a Unix socket, too"),               \
        OPT_LIST(0, "api-key", (o)->config.keys, HTTP_KEYS_MAX, "KEY",                             \
                 "accepted key (other users of this machine can see it here; better a file)"),     \
        OPT_STRING(0, "api-key-file", &(o)->config.key_file, "FILE", "accepted keys, one a line"), \
        OPT_FLAG(0, "insecure-http", &(o)->config.insecure,                                        \
                 "no key needed, whoever can reach the address"),                                  \
        OPT_STRING(0, "tls-cert", &(o)->config.tls_cert, "FILE", "certificate chain (PEM)"),       \
        OPT_STRING(0, "tls-key", &(o)->config.tls_key, "FILE", "its private key (PEM)"),           \
        OPT_STRING(0, "cors", &(o)->config.cors_origin, "ORIGIN",                                  \
                   "web pages that may ask: one origin, or * for all"),                            \
        OPT_LIST(0, "allow-host", (o)->config.allow_hosts, HTTP_NAMES_MAX, "NAME",                 \
                 "further name of this server, behind a proxy"),                                   \
        OPT_FLAG(0, "metrics-open", &(o)->config.metrics_open, "/metrics needs no key"),           \
        OPT_STRING(0, "model-id", &(o)->config.model_id, "NAME", "how clients name the model"),    \
        OPT_LIST(0, "alias", (o)->config.aliases, HTTP_NAMES_MAX, "NAME", "another name of it"),   \
        OPT_FLAG(0, "strict-model", &(o)->config.strict_model, "other names are an error"),        \
        OPT_GROUP("Answers, where the request does not say"),                                      \
        OPT_CHOICE(0, "encoding", &(o)->config.encoding, "v4-2604|v4-0731",                        \
                   "chat format; default: the model's"),                                           \
        OPT_CHOICE(0, "effort", &(o)->config.effort, "low|high|max", "reasoning effort"),          \
        OPT_FLAG(0, "no-thinking", &(o)->no_thinking, "answer at once"),                           \
        OPT_FLAG(0, "inline-thinking", &(o)->config.inline_thinking,                               \
                 "<think>...</think> in the content"),                                             \
        OPT_FLAG(0, "loose-markup", &(o)->config.loose_markup, "accept misspelt tool markup"),     \
        OPT_FLAG(0, "thinking-budget", &(o)->config.thinking_budget,                               \
                 "thinking.budget_tokens of a request ends its reasoning"),                        \
        OPT_FLAG(0, "early-headers", &(o)->config.early_headers,                                   \
                 "long answers that do not stream: 200 at once, then blank lines"),                \
        OPT_INT(0, "max-tokens", &(o)->config.max_tokens, 0, 1 << 30, "N",                         \
                "0: up to the context"),                                                           \
        OPT_NUMBER(0, "temperature", &(o)->config.temperature, 0, 2, "X",                          \
                   "0 takes the likeliest token"),                                                 \
        OPT_NUMBER(0, "top-p", &(o)->config.top_p, 0, 1, "X", "share of the likeliest tokens"),    \
        OPT_NUMBER(0, "min-p", &(o)->config.min_p, 0, 1, "X",                                      \
                   "share of the likeliest token's chance"),                                       \
        OPT_INT(0, "top-k", &(o)->config.top_k, 0, 1 << 20, "N", "only so many tokens; 0: all"),   \
        OPT_GROUP("Over restarts"),                                                                \
        OPT_STRING(0, "state", &(o)->config.state, "DIR",                                          \
                   "tool calls as the model wrote them are kept here, so that histories of clients " \
                   "stay in the cache; holds pieces of conversations"),                            \
        OPT_INT(0, "state-ms", &(o)->config.limit.state_ms, 1, 1 << 30, "MS",                      \
                "between two writings of it, beside the one at the end"),                          \
        OPT_GROUP("Limits of the endpoint"),                                                       \
        OPT_INT(0, "http-connections", &(o)->config.limit.connections, 1, 60000, "N",              \
                "open at once"),                                                                   \
        OPT_INT(0, "http-jobs", &(o)->config.limit.jobs, 1, 60000, "N", "requests under way"),     \
        OPT_INT(0, "http-workers", &(o)->config.limit.workers, 1, 64, "N",                         \
                "threads that read requests"),                                                     \
        OPT_INT(0, "http-head", &(o)->config.limit.head_bytes, 4096, 1 << 24, "BYTES",             \
                "request line and headers"),                                                       \
        OPT_U64(0, "http-body", &(o)->body_bytes, 1024, 1 << 30, "BYTES", "one body"),             \
        OPT_U64(0, "http-bodies", &(o)->bodies_bytes, 1024, UINT64_MAX, "BYTES",                   \
                "all bodies together"),                                                            \
        OPT_INT(0, "http-head-ms", &(o)->config.limit.head_ms, 1, 1 << 30, "MS",                   \
                "until a head has come"),                                                          \
        OPT_INT(0, "http-body-ms", &(o)->config.limit.body_ms, 1, 1 << 30, "MS",                   \
                "until a body has come"),                                                          \
        OPT_INT(0, "http-write-ms", &(o)->config.limit.write_ms, 1, 1 << 30, "MS",                 \
                "a reader that takes nothing"),                                                    \
        OPT_U64(0, "http-write", &(o)->write_bytes, 4096, UINT64_MAX, "BYTES",                     \
                "waiting for one reader"),                                                         \
        OPT_INT(0, "queue-ms", &(o)->config.limit.queue_ms, 0, 1 << 30, "MS",                      \
                "waiting in the queue; 0: as long as it takes"),                                   \
        OPT_INT(0, "request-ms", &(o)->config.limit.request_ms, 0, 1 << 30, "MS",                  \
                "one answer; 0: no limit"),                                                        \
        OPT_INT(0, "keep-alive-ms", &(o)->config.limit.keep_alive_ms, 1, 1 << 30, "MS",            \
                "between signs of life in a stream")

#endif
