/* dsml_out - the deltas of one feed, waiting to be fetched in order.
 *
 * Text of one kind that follows text of the same kind makes one delta. Errors stick in rc.
 * Belongs to its stream; everything is gone with the next clear. Private to dsml.c. */
#ifndef MODEL_DSML_OUT_H
#define MODEL_DSML_OUT_H

#include "common/model/dsml.h"

struct dsml_slot {
    enum dsml_kind kind;
    size_t call_i, at, len;                       /* its text in the buffer */
};

struct dsml_out {
    struct dsml_slot *slots;
    size_t n, room, next;
    size_t call_i;                                /* of the deltas to come */
    struct buf text;
    int rc;
};

void dsml_out_init(struct dsml_out *o, size_t limit);
void dsml_out_deinit(struct dsml_out *o);         /* a zeroed struct is fine too */
void dsml_out_clear(struct dsml_out *o);

/* Text; nothing happens if it is empty. */
void dsml_out_add(struct dsml_out *o, enum dsml_kind kind, struct chat_text text);
/* Text that the caller writes (at least a byte) to the buffer between begin and end. */
struct buf *dsml_out_begin(struct dsml_out *o, enum dsml_kind kind);
void dsml_out_end(struct dsml_out *o);
/* A beginning or an end: a delta of its own, even if it is empty. */
void dsml_out_mark(struct dsml_out *o, enum dsml_kind kind, struct chat_text text);

bool dsml_out_next(struct dsml_out *o, struct dsml_delta *d);

#endif
