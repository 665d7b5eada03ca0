/* zpump - hands the messages of one zmq socket to its owner, inside a loop; never use a bare uv_poll.
 *
 * zmq's descriptor signals edges, libuv polls levels, and every call on a socket may eat the signal. So
 * the pump asks the socket itself (ZMQ_EVENTS) whenever the descriptor stirs, and once more in every round
 * right before the loop would wait: by then whatever ran in the round has made its calls. What is handed
 * out only there causes calls, too, so another round follows it. It takes ZPUMP_BUDGET messages at most,
 * then lets others run and comes round again. Belongs to the loop's thread. The socket stays the owner's. */
#ifndef SYS_ZPUMP_H
#define SYS_ZPUMP_H

#include "common/base/err.h"
#include "common/base/types.h"

struct loop;
struct zpump;

enum { ZPUMP_BUDGET = 64 };

/* receive takes one whole message from the socket; false: there was none. It may free the pump. */
int zpump_new(struct zpump **out, struct loop *l, void *socket, bool (*receive)(void *ctx), void *ctx,
              struct err *e);
/* After this the socket may be closed. NULL is fine. */
void zpump_free(struct zpump *z);

#endif
