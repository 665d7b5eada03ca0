/* sse - server-sent events: how one event lies on the wire.
 *
 * An event's data is one line of JSON that the caller appends between the two calls. Pure; the buffer is
 * the caller's. */
#ifndef COORDINATOR_SSE_H
#define COORDINATOR_SSE_H

#include "common/base/buf.h"

void sse_begin(struct buf *out, const char *event);                  /* NULL: without a name */
void sse_end(struct buf *out);
void sse_comment(struct buf *out, const char *format, ...) PRINTF_LIKE(2, 3);

#endif
