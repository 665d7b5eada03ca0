/* fetch - which bytes of a model to ask for next, what is on its way, what has to be asked again.
 *
 * The pure half of getting weights over a link; fetch_store.h is the half with files, fetch_run.h joins
 * both with links. A list of pieces goes through: asked in order, at most `window` on their way, each
 * answered by one WEIGHTS, then stored and done. The window grows while answers come quickly and
 * shrinks when they take longer than FETCH_SLOW_MS, so that the heartbeats on the same link get
 * through. Silence and damaged pieces are asked again, a bounded number of times. No clock, no file;
 * belongs to the loop's thread.
 *
 *   piece: waiting --asked--> on its way --answer--> storing --stored--> done
 *             ^                   |                     |
 *             +---- silence, busy +---- hash differs ---+    (after FETCH_DAMAGED_MAX,
 *               FETCH_SILENT_MAX: failed) */
#ifndef NODE_FETCH_H
#define NODE_FETCH_H

#include "common/base/err.h"
#include "common/wire/msg.h"

enum {
    FETCH_PIECE_BYTES = 1 << 20,                   /* fits the smallest slot of a process */
    FETCH_WINDOW_MAX = 12,                         /* slots that it may take */
    FETCH_SLOW_MS = 500,                           /* of one answer; heartbeats wait behind it */
    FETCH_SILENT_MS = 10000, FETCH_SILENT_MAX = 6, /* then what is on its way is lost; so often in a row */
    FETCH_BUSY_MS = 100,
    FETCH_DAMAGED_MAX = 4                          /* times in a row over all pieces */
};

struct fetch_piece {
    uint32_t tensor, bytes;                        /* as in msg_weights_get */
    uint64_t offset;                               /* in the tensor */
    uint64_t at;                                   /* in our file */
    uint32_t item, number;                         /* of the layout, and which piece of it */
};

/* one place of the window */
struct fetch_way { bool used, storing; uint32_t id, piece; uint64_t asked_ns; };

struct fetch {
    uint64_t model_lo, model_hi;
    const struct fetch_piece *piece;               /* borrowed; ascending in the file */
    uint32_t n, next, n_done;                      /* next: not asked yet */
    uint32_t again[FETCH_WINDOW_MAX], n_again;     /* pieces to be asked again, before `next` */
    struct fetch_way way[FETCH_WINDOW_MAX];
    uint32_t n_way, window, n_paced, id_next;
    uint64_t heard_ns, wait_until_ns;              /* last sign of life; after ERR_BUSY */
    uint32_t n_silent, n_damaged;
    uint64_t bytes_done;
    struct { uint32_t busy, late, damaged, silent; } odds;     /* how often what is rare happened */
    int code;                                      /* < 0: failed; text says why */
    char text[MSG_TEXT_MAX];
};

void fetch_begin(struct fetch *f, uint64_t model_lo, uint64_t model_hi,
                 const struct fetch_piece *piece, uint32_t n, uint64_t now_ns);

/* Call until it says false, and send what it gives. */
bool fetch_next(struct fetch *f, struct msg_weights_get *out, uint64_t now_ns);

/* True: the payload is that of piece *piece, and goes to be checked and stored; fetch_stored comes after. */
bool fetch_on_answer(struct fetch *f, const struct msg_weights *w, uint32_t *piece, uint64_t now_ns);
/* code < 0: it was damaged (ERR_CORRUPT) and is asked again, or cannot be stored. */
void fetch_stored(struct fetch *f, uint32_t piece, int code, const char *text);

/* The link was lost: what is on its way is asked again at once. */
void fetch_lost(struct fetch *f, uint64_t now_ns);
void fetch_on_tick(struct fetch *f, uint64_t now_ns);
uint64_t fetch_deadline_ns(const struct fetch *f); /* for the next tick */

static inline bool fetch_is_done(const struct fetch *f) { return f->code == 0 && f->n_done == f->n; }

#endif
