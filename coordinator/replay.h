/* replay - what the model wrote for a tool call, remembered by the id that the client was given.
 *
 * A client sends its history as JSON; written anew from that, numbers and blanks may differ from what
 * was sampled, and from there on no state in the stages fits. So the text of every block of calls is kept
 * under the ids of its calls, and stands for them in the next prompt if it still says the same. It is an
 * optimization: what was forgotten is rendered as usual.
 *
 * Belongs to one thread (the endpoint's). Memory is bounded by bytes_max, everything counted; what was
 * used least recently goes first. Entries can be written out and read back, to lie beside a snapshot of
 * the state they belong to. */
#ifndef COORDINATOR_REPLAY_H
#define COORDINATOR_REPLAY_H

#include "common/base/arena.h"
#include "common/base/buf.h"
#include "common/model/chat.h"

enum {
    REPLAY_IDS_MAX = 256,                         /* calls of one block */
    REPLAY_ID_BYTES_MAX = 256,
    REPLAY_BLOCK_BYTES_MAX = 1 << 24,
    REPLAY_BYTES_DEFAULT = 64 << 20
};

struct replay;

int replay_new(struct replay **out, size_t bytes_max, struct err *e);        /* 0: the default */
void replay_free(struct replay *r);                                          /* NULL is fine */

/* Keeps a copy of a block (dsml_stream_block says where it is: with the newlines in front, without the
 * end of the sentence) under the ids of its calls in order. An id that was known now means this block.
 * ERR_LIMIT: larger than may be kept; ERR_INVALID: an empty id; ERR_NOMEM. */
int replay_put(struct replay *r, const struct chat_text *ids, size_t n_ids, struct chat_text block,
               struct err *e);

/* Sets m->replay (a copy in the arena) for every assistant message whose calls are just those of one
 * known block and say the same. How many were set, or ERR_NOMEM, ERR_LIMIT (of the arena). */
int replay_fill(struct replay *r, struct chat_message *messages, size_t n, struct arena *a);

/* Appends what is known under these ids (n_ids 0: everything) to *out; replay_load adds what was saved,
 * oldest first, as replay_put does. ERR_CORRUPT: damaged, nothing of it is added. */
int replay_save(const struct replay *r, const struct chat_text *ids, size_t n_ids, struct buf *out);
int replay_load(struct replay *r, const void *data, size_t size, struct err *e);

struct replay_stats {
    uint64_t n_put, n_hit, n_miss, n_differ, n_evicted;       /* hit, miss, differ: of messages with calls */
    size_t n_blocks, n_ids, bytes;
};
struct replay_stats replay_stats(const struct replay *r);

#endif
