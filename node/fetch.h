/* fetch - which bytes of a model to ask whom for next, what is on its way, what has to be asked again.
 *
 * The pure half of getting weights over links; fetch_store.h is the half with files, fetch_run.h joins
 * both with links. A list of pieces goes through: each is asked of one of the sources that have it, at most
 * FETCH_WINDOW_MAX are on their way, each is answered by one WEIGHTS, then stored and done. A source has a
 * window of its own, which grows while its answers come quickly and shrinks when they take longer than
 * FETCH_SLOW_MS, so that the heartbeats on the same link get through; the next question goes to the source
 * that is expected to answer it first, so all work at once and the fast ones do more. What a lost source
 * was asked goes to the others at once; what one is late with is asked of another as well, and the first
 * answer counts.
 * A list may be told to come from one source only (a header: two files may write it differently). No clock,
 * no file; belongs to the loop's thread.
 *
 *   piece: waiting --asked--> on its way --answer--> storing --stored--> done
 *             ^                   |                     |
 *             +-- lost, silent, --+---- hash differs ---+
 *                 busy, not there
 *   source: given up when FETCH_DAMAGED_MAX pieces in a row were damaged, when it was silent
 *           FETCH_SILENT_MAX times in a row, or when it answers what was not asked; a new link to it is a
 *           new beginning. The fetch fails when all that might have a piece are given up or say that they
 *           do not have it, or nobody is there for FETCH_ALONE_MS. */
#ifndef NODE_FETCH_H
#define NODE_FETCH_H

#include "common/base/err.h"
#include "common/wire/msg.h"

enum {
    FETCH_PIECE_BYTES = 1 << 20,                   /* fits the smallest slot of a process */
    FETCH_WINDOW_MAX = 12,                         /* slots that it may take */
    FETCH_SLOW_MS = 500,                           /* of one answer; heartbeats wait behind it */
    FETCH_LATE_MS = 1500,                          /* then another source is asked as well */
    FETCH_SILENT_MS = 10000, FETCH_SILENT_MAX = 6, /* then what is on its way is lost; so often in a row */
    FETCH_ALONE_MS = 60000,                        /* without any source for what is missing */
    FETCH_BUSY_MS = 100,
    FETCH_DAMAGED_MAX = 4                          /* times in a row of one source */
};

/* What a piece belongs to, and a source has or has not: a layer, or one of these. */
enum {
    FETCH_PART_EMBED = MSG_LAYERS_MAX, FETCH_PART_HEAD, FETCH_PART_REST, FETCH_PART_HEADER, FETCH_PARTS
};

struct fetch_piece {
    uint32_t tensor, bytes;                        /* as in msg_weights_get */
    uint64_t name, offset;                         /* likewise */
    uint64_t at;                                   /* in our file */
    uint32_t item, number;                         /* of the layout, and which piece of it */
    uint32_t part;
};

/* one place of the window */
struct fetch_way { bool used, storing; uint8_t source; uint32_t id, piece; uint64_t asked_ns; };

struct fetch_source {
    bool known, up, given_up;
    bool has[FETCH_PARTS], lacks[FETCH_PARTS];     /* as announced; as it said itself */
    uint32_t next;                                 /* no piece before it waits */
    uint32_t n_way, window, n_paced;
    uint64_t heard_ns, wait_until_ns;              /* last sign of life; after ERR_BUSY */
    uint64_t each_ns;                              /* of one piece, smoothed; 0: not known */
    uint32_t n_silent, n_damaged;
    uint64_t bytes;                                /* stored, of all lists */
};

struct fetch {
    uint64_t model_lo, model_hi;
    const struct fetch_piece *piece;               /* borrowed; ascending in the file */
    uint8_t *state;                                /* of each piece, see fetch.c; ours */
    uint32_t n, n_done;
    struct fetch_source source[MSG_SOURCES_MAX];
    struct fetch_way way[FETCH_WINDOW_MAX];
    uint32_t n_way, id_next, id_first;
    uint64_t now_ns, alone_ns;                     /* alone: since when nobody has what is missing; 0: not */
    bool single, torn;                             /* all from `pinned`; torn: it was lost, begin anew */
    int pinned;                                    /* -1: nobody yet */
    uint64_t bytes_done;
    struct { uint32_t busy, late, damaged, silent, twice; } odds;    /* how often what is rare happened */
    int code;                                      /* < 0: failed; text says why */
    char text[MSG_TEXT_MAX];
};

/* A list; sources stay as they were. `piece` lives until the next list or fetch_end. */
enum fetch_from { FETCH_FROM_ANY, FETCH_FROM_ONE, FETCH_FROM_SAME };   /* SAME: as the list before */
void fetch_begin(struct fetch *f, uint64_t model_lo, uint64_t model_hi,
                 const struct fetch_piece *piece, uint32_t n, enum fetch_from from, uint64_t now_ns);
void fetch_end(struct fetch *f);                   /* frees; a zeroed struct is fine */

/* Who gives what. NULL: nobody is at this place any more. Another one than before is down at first. */
void fetch_source_set(struct fetch *f, uint32_t source, const struct msg_source *what, uint64_t now_ns);
/* Its link came up: a new beginning. It was lost: what it was asked is asked of others. */
void fetch_source_up(struct fetch *f, uint32_t source, bool up, uint64_t now_ns);

/* Call until it says false, and send what it gives to whom it says. */
bool fetch_next(struct fetch *f, uint32_t *source, struct msg_weights_get *out, uint64_t now_ns);

/* True: the payload is that of piece *piece, and goes to be checked and stored; fetch_stored comes after. */
bool fetch_on_answer(struct fetch *f, uint32_t source, const struct msg_weights *w, uint32_t *piece,
                     uint64_t now_ns);
/* code < 0: it was damaged (ERR_CORRUPT) and is asked again, or cannot be stored. */
void fetch_stored(struct fetch *f, uint32_t piece, int code, const char *text);

void fetch_on_tick(struct fetch *f, uint64_t now_ns);
uint64_t fetch_deadline_ns(const struct fetch *f); /* for the next tick */

static inline bool fetch_is_done(const struct fetch *f) { return f->code == 0 && f->n_done == f->n; }

#endif
