/* api_sealed - reasoning as an opaque string that a client keeps and sends back.
 *
 * "pleiades1." and base64 of an 8-byte XXH3 and the text: the Responses API's encrypted_content,
 * the Messages API's signature of redacted thinking. It finds damage and other servers' strings;
 * it hides nothing, the reasoning went to the same client in clear. Pure functions. */
#ifndef COORDINATOR_API_SEALED_H
#define COORDINATOR_API_SEALED_H

#include "common/base/buf.h"
#include "common/model/chat_json.h"

void api_sealed_put(struct buf *out, struct chat_text text);
/* Appends the text. ERR_INVALID: not ours, or damaged; *out is as before then. */
int api_sealed_read(struct buf *out, struct chat_text sealed);

#endif
