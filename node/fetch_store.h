/* fetch_store - the share of a model that comes over a link, as a file that grows and survives a stop.
 *
 * The header of the whole model gives the layout of this node's shard (common/model/shard.h), the
 * layout a list of pieces. While it grows the file is PATH.tmp, with a journal behind its end: a stamp
 * (which layout) and for each piece the XXH3-64 of its bytes, 0 while it is not there. A later run
 * reads back what the journal names and keeps what has that hash. The header is written last, with the
 * tensors' checksums; then the file gets its name: what lies under the name is complete, and the same
 * as `pleiades shard split` writes. Blocks; belongs to one thread at a time. */
#ifndef NODE_FETCH_STORE_H
#define NODE_FETCH_STORE_H

#include "common/base/buf.h"
#include "node/fetch.h"

enum { FETCH_HEADER_MAX = 256 << 20, FETCH_PIECES_MAX = 1 << 22 };

struct fetch_store;

/* Between pieces that are read back; false stops with ERR_CANCELLED. */
typedef bool fetch_store_progress(void *ctx, uint64_t done, uint64_t total);

/* `header` is that of the whole model (file_bytes long as one file), taken in any case. ERR_CORRUPT: it
 * is not the model of the assignment. The folder is made if it is not there. */
int fetch_store_open(struct fetch_store **out, const char *folder, const struct msg_assign *a,
                     struct buf *header, uint64_t file_bytes, fetch_store_progress *progress,
                     void *ctx, struct err *e);
void fetch_store_close(struct fetch_store *s);     /* keeps what is there for a later run; NULL is fine */

/* What is missing, ascending in the file; lives until close. */
const struct fetch_piece *fetch_store_missing(const struct fetch_store *s, uint32_t *n);
uint64_t fetch_store_bytes(const struct fetch_store *s);      /* of all pieces, there or missing */
const char *fetch_store_path(const struct fetch_store *s);

/* ERR_CORRUPT: not the bytes that `hash` is of. */
int fetch_store_write(struct fetch_store *s, const struct fetch_piece *p, const void *data,
                      uint32_t bytes, uint64_t hash, struct err *e);
/* All pieces are there: gives the file its name. Then only close is left. */
int fetch_store_finish(struct fetch_store *s, struct err *e);

#endif
