/* mm_stream - weight rows read from memory side by side, for the products of one activation row. The
 * includer says how many: `enum { ROWS = ... }` comes before the include.
 *
 * Pages are 4 KiB, so the hardware's own prefetch stops often: every line is asked for, once, AHEAD
 * bytes before its use, into the L2 (asking for the L1 holds up the loads). Eight streams run at the
 * full speed of the memory, 32 do not. */
#ifndef KERNELS_CPU_MM_STREAM_H
#define KERNELS_CPU_MM_STREAM_H

#include "kernels/cpu/inline.h"
#include "kernels/cpu/simd.h"

enum { AHEAD = 1024 };

/* A row that does not exist repeats the last. */
struct rows {
    const uint8_t *p[ROWS];
    int64_t at, bytes;                             /* where in the row the next block starts; of the row */
    int64_t fetched;                               /* asked for up to here */
    int64_t jump;                                  /* added to what is past the row's end: the next rows */
    int n;
};

/* Rows j .. j + ROWS. */
INLINE struct rows rows_at(const struct mm_tile *t, int j) {
    struct rows rows = { .bytes = t->row_bytes, .n = MIN(ROWS, t->n_w - j) };
    for (int r = 0; r < ROWS; r++) rows.p[r] = t->w + (int64_t)MIN(j + r, t->n_w - 1) * t->row_bytes;
    rows.jump = j + ROWS < t->n_w ? (ROWS - 1) * t->row_bytes : -t->row_bytes;  /* at the end nothing new */
    rows.fetched = j == 0 ? 0 : AHEAD;
    return rows;
}

/* Goes on by n bytes. */
INLINE void rows_next(struct rows *rows, int n) {
    rows->at += n;
    for (; rows->fetched < rows->at + AHEAD; rows->fetched += 64) {
        int64_t at = rows->fetched < rows->bytes ? rows->fetched : rows->fetched + rows->jump;
        UNROLL
        for (int r = 0; r < ROWS; r++) __builtin_prefetch(rows->p[r] + at, 0, 2);
    }
}

INLINE const uint8_t *row_at(const struct rows *rows, int r) {
    return rows->p[r] + rows->at;
}

#endif
