/* http_client - talks to an OpenAI-style endpoint: JSON answers, and streams of events.
 *
 * Calls block until the answer is there, the stream ended, or *stop has become non-zero (looked at ten times
 * a second). Redirects are not followed, so a key goes nowhere but to the address that was named; plain
 * addresses of this machine are never asked by way of a proxy. One thread; the caller owns the client.
 * Limits: the enum below. */
#ifndef CLI_HTTP_CLIENT_H
#define CLI_HTTP_CLIENT_H

#include "cli/http_client_sse.h"

#include <signal.h>

enum {
    HTTP_CLIENT_BODY_MAX = 16 << 20,              /* of an answer that is no stream */
    HTTP_CLIENT_CONNECT_S = 10,
    HTTP_CLIENT_SILENCE_S = 120,                  /* without a byte; servers send signs of life every 15 s */
};

struct http_client;

struct http_client_options {
    const char *url;                              /* "http://HOST:PORT", with or without "/v1" */
    const char *api_key_file, *ca_file;           /* NULL: no key; the system's certificates */
    const volatile sig_atomic_t *stop;            /* may be NULL */
};

int http_client_new(struct http_client **out, const struct http_client_options *o, struct err *e);
void http_client_free(struct http_client *c);     /* NULL is fine */

/* `path` continues ".../v1". Errors carry the server's own words: ERR_DENIED (401, 403), ERR_NOTFOUND,
 * ERR_INVALID (other 4xx), ERR_BUSY (429), ERR_STALE (503), ERR_PEER (else, or the connection failed),
 * ERR_CANCELLED. */
int http_client_get(struct http_client *c, const char *path, struct buf *body, struct err *e);
int http_client_stream(struct http_client *c, const char *path, const struct buf *request,
                       http_sse_event *event, void *ctx, struct err *e);

/* Comments of streams from now on go here as well, with the ctx of the stream. */
void http_client_on_comment(struct http_client *c, http_sse_comment *comment);

/* Of the last error: how long the server asks to wait, in seconds, or -1. */
int http_client_retry_after(const struct http_client *c);

#endif
