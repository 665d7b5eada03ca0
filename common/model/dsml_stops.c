/* dsml_stops - see the header. */
#include "common/model/dsml_stops.h"

#include <stdlib.h>

#include "common/base/check.h"

/* How much of the string is matched once c follows `matched` bytes of it. */
static size_t advance(const struct dsml_stop *stop, size_t matched, char c) {
    while (matched && (matched == stop->len || stop->text[matched] != c))
        matched = stop->back[matched];
    return matched + (stop->text[matched] == c);
}

static void link_back(struct dsml_stop *stop) {
    size_t matched = 0;
    for (size_t i = 1; i < stop->len; i++) {
        stop->back[i] = (uint16_t)matched;
        matched = advance(stop, matched, stop->text[i]);
    }
    stop->back[stop->len] = (uint16_t)matched;
}

int dsml_stops_init(struct dsml_stops *st, const struct chat_text *stops, size_t n, struct err *e) {
    *st = (struct dsml_stops){ .n = 0 };
    buf_init(&st->held, INT32_MAX);
    if (n > DSML_STOPS_MAX)
        return err_set(e, ERR_LIMIT, "%zu stop strings (limit %d)", n, DSML_STOPS_MAX);
    st->stops = xcalloc(n, sizeof *st->stops);
    for (; st->n < n; st->n++) {
        struct dsml_stop *stop = &st->stops[st->n];
        size_t len = stops[st->n].len;
        if (len == 0) return err_set(e, ERR_INVALID, "a stop string is empty");
        if (len > DSML_STOP_BYTES_MAX)
            return err_set(e, ERR_LIMIT, "a stop string of %zu bytes (limit %d)", len,
                           DSML_STOP_BYTES_MAX);
        *stop = (struct dsml_stop){ xcalloc(len, 1), xcalloc(len + 1, sizeof *stop->back), len, 0 };
        memcpy(stop->text, stops[st->n].data, len);
        link_back(stop);
    }
    return 0;
}

void dsml_stops_deinit(struct dsml_stops *st) {
    for (size_t i = 0; i < st->n; i++) {
        free(st->stops[i].text);
        free(st->stops[i].back);
    }
    free(st->stops);
    buf_deinit(&st->held);
    *st = (struct dsml_stops){ .n = 0 };
}

/* Follows one byte in all strings; the longest that it completes, or -1. */
static int follow(struct dsml_stops *st, char c) {
    int complete = -1;
    for (size_t i = 0; i < st->n; i++) {
        struct dsml_stop *stop = &st->stops[i];
        stop->matched = advance(stop, stop->matched, c);
        if (stop->matched < stop->len) continue;
        if (complete < 0 || stop->len > st->stops[complete].len) complete = (int)i;
    }
    return complete;
}

int dsml_stops_push(struct dsml_stops *st, const char *bytes, size_t n,
                    struct chat_text *free_now) {
    size_t before = st->held.size, longest = 0;
    st->rc = buf_add(&st->held, bytes, n);
    *free_now = (struct chat_text){ st->held.data, 0 };
    if (st->rc < 0) return -1;
    for (size_t i = before; i < st->held.size && st->n; i++) {
        int complete = follow(st, st->held.data[i]);
        if (complete < 0) continue;
        free_now->len = i + 1 - st->stops[complete].len;
        return complete;
    }
    for (size_t i = 0; i < st->n; i++) longest = MAX(longest, st->stops[i].matched);
    free_now->len = st->held.size - longest;
    return -1;
}

struct chat_text dsml_stops_held(const struct dsml_stops *st) {
    return (struct chat_text){ st->held.data, st->held.size };
}

void dsml_stops_drop(struct dsml_stops *st, size_t n) {
    buf_drop(&st->held, n);
}
