/* dsml_stops - finds the first of several stop strings in text that comes in pieces.
 *
 * Text goes in, and comes out again as soon as it cannot be part of a match any more. A match is
 * the one that is complete first; of those that end at the same byte, the longest. Every string
 * is followed by its own automaton (failure links), so time is linear in the text for each
 * string. Belongs to its stream. Limits: DSML_STOPS_MAX, DSML_STOP_BYTES_MAX. */
#ifndef MODEL_DSML_STOPS_H
#define MODEL_DSML_STOPS_H

#include "common/model/dsml.h"

struct dsml_stop {
    char *text;
    uint16_t *back;                   /* [i]: matched bytes that remain matched when byte i fails */
    size_t len, matched;
};

struct dsml_stops {
    struct dsml_stop *stops;
    size_t n;
    struct buf held;
    int rc;
};

int dsml_stops_init(struct dsml_stops *st, const struct chat_text *stops, size_t n, struct err *e);
void dsml_stops_deinit(struct dsml_stops *st);    /* a zeroed struct is fine too */

/* Takes a piece. *free_now (a view) is text that is safe to deliver, to be dropped afterwards. The
 * number of the stop string that is complete, or -1; free_now ends before it then. */
int dsml_stops_push(struct dsml_stops *st, const char *bytes, size_t n, struct chat_text *free_now);
struct chat_text dsml_stops_held(const struct dsml_stops *st);
void dsml_stops_drop(struct dsml_stops *st, size_t n);

#endif
