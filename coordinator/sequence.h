/* sequence - what the stages hold of token sequences: which numbers live, whose they are, what is kept.
 *
 *              its request is over           last batch over, or none was flying
 *   owned* -----------------------> closing -----------------------------------> gone
 *     ^                                |                                          ^
 *     |                                | ended well: all that was sent came through
 *     |   a prompt begins with it      v                                          |
 *     +---------------------------- parked* --- room is needed, the plan is over -+            (* waits)
 *
 * A sequence has a number of its own, never used twice, and is listed in SYNC until it is gone. Parked, it
 * is nobody's: the stages keep its state, we keep its tokens, and a request whose prompt begins with them
 * takes it over and sends only the rest. Parked ones never keep a request waiting: they are given up, the
 * longest unused first, when a slot or the memory is needed. Limits: as many as slots; of these n_park_max
 * parked. Part of the coordinator core.
 *
 * Copies. An answer is written behind a copy of its prompt: so the prompt alone stays, too, for the next
 * one that begins with it and goes on differently (the same again; a history without what was thought),
 * and for several of them at once. While a copy is made, its source can neither go nor change.
 *
 * Going back. Stages go back by MSG_ROLLBACK tokens at most, counted from the most that they ever held. A
 * stage that missed a batch may still hold what was there before, so after a takeover that goes back the
 * first segment travels alone until it has come through everywhere. */
#ifndef COORDINATOR_SEQUENCE_H
#define COORDINATOR_SEQUENCE_H

#include "common/base/types.h"

enum seq_state { SQ_GONE, SQ_OWNED, SQ_CLOSING, SQ_PARKED, SQ_STATES };

struct seq {
    uint8_t state;
    uint64_t id;
    uint32_t request, n_flying;                   /* owned: whose; segments in batches that are not over */
    uint32_t n_reserved;                          /* tokens: its worst case, or what it holds */
    /* Closing and parked. */
    int32_t *token;                               /* NULL: it will not be parked */
    uint32_t n_sent, n_held, n_sent_max;          /* on their way or in; known to be in; the most ever */
    uint64_t used;                                /* order of parking */
    uint32_t n_copying;                           /* requests that begin as copies and do not exist yet */
    bool is_prompt;                               /* others may want it, too: copied, not taken over */
};

struct sequences {
    struct seq *seq;                              /* alive, by number */
    uint32_t n, n_parked;                         /* n_parked: may be given up, so not while being copied */
    uint64_t next, used_next;
    uint64_t tokens_reserved, tokens_parked;      /* of all; of the parked ones among them */
    uint64_t n_given_up;                          /* parked ones that had to make room, ever */
};

struct seq_rest {                                 /* what a request leaves behind */
    int32_t *take_token;
    uint32_t n_sent, n_held, n_sent_max;
};

struct seq_match {
    uint64_t id;                                  /* 0: none */
    uint32_t pos0;                                /* goes on from here */
};

struct coord;

void sequences_init(struct coord *c);
void sequences_deinit(struct coord *c);

struct seq *seq_find(struct coord *c, uint64_t id);           /* valid until one is opened or gone */
uint64_t seq_open(struct coord *c, uint32_t request, uint32_t n_reserved);

/* Whether a slot and n_reserved tokens are free, or would be without the parked ones. */
bool sequences_have_room(const struct coord *c, uint32_t n_reserved, bool *slot_missing);
/* Gives up parked ones until they are; `match` is the last to go. */
void sequences_make_room(struct coord *c, struct seq_match match, uint32_t n_reserved);
/* The parked one that spares most of these tokens. The last token is always fed again: its row is wanted. */
struct seq_match seq_match(struct coord *c, const int32_t *token, uint32_t n_token);
/* Parked becomes owned. */
void seq_take(struct coord *c, uint64_t id, uint32_t request, uint32_t n_reserved);

/* Its request does not need it any more. rest NULL: nobody will. */
void seq_leave(struct coord *c, struct seq *s, const struct seq_rest *rest);
void seq_flight_over(struct coord *c, struct seq *s);         /* closing: one batch less to wait for */
/* The request goes on in a copy, whose number is the result; s, a prompt, is parked when the copy exists
 * everywhere. 0: no room for both. */
uint64_t seq_fork(struct coord *c, struct seq *s, const struct seq_rest *rest);
/* A copy of a parked one for a request; 0: take it over instead, there is no room for both, or it is no
 * prompt. */
uint64_t seq_copy(struct coord *c, uint64_t source, uint32_t request, uint32_t n_reserved);
void seq_copied(struct coord *c, uint64_t source);            /* it exists everywhere, or is not needed */
void sequences_drop_all(struct coord *c);                     /* the plan is over */
void sequences_check(const struct coord *c);

#endif
