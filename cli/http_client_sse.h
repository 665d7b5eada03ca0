/* http_client_sse - reads a stream of server-sent events out of bytes that come in any pieces.
 *
 * Lines "data: ..." are collected until the blank line that ends them; comments (": ...") are told as
 * they come to who wants them; all other fields are skipped. Lines may end in LF, CR or CRLF. One
 * thread; the struct owns its memory. An event may have HTTP_SSE_BYTES_MAX bytes. */
#ifndef CLI_HTTP_CLIENT_SSE_H
#define CLI_HTTP_CLIENT_SSE_H

#include "common/base/buf.h"

enum { HTTP_SSE_BYTES_MAX = 16 << 20, HTTP_SSE_LAST = 1 };

/* The data of one event, with a NUL behind it. 0: go on; HTTP_SSE_LAST: no more events are wanted; negative
 * stops as well. */
typedef int http_sse_event(void *ctx, const char *data, size_t len, struct err *e);

/* The text of a comment, without the colon and a blank behind it. */
typedef void http_sse_comment(void *ctx, const char *text);

struct http_sse {
    struct buf line, data;
    http_sse_comment *comment;                    /* may be set after init */
    bool after_cr, has_data;
};

void http_sse_init(struct http_sse *s);
void http_sse_deinit(struct http_sse *s);

/* 0, what `event` returned when not 0, or ERR_LIMIT, ERR_NOMEM. An event that the end of the stream cut off
 * never comes. */
int http_sse_feed(struct http_sse *s, const char *bytes, size_t n, http_sse_event *event, void *ctx,
                  struct err *e);

#endif
