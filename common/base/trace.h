/* trace - one readable line per decision of a core; debug log, documentation and test expectation at once.
 *
 * A core holds a struct trace that its shell filled in; without a function nothing is formatted. The
 * line is borrowed for the call and cut at TRACE_LINE_MAX. */
#ifndef BASE_TRACE_H
#define BASE_TRACE_H

#include "common/base/err.h"

enum { TRACE_LINE_MAX = 256 };

struct trace {
    void (*line)(void *ctx, const char *text);
    void *ctx;
};

void trace_line(const struct trace *t, const char *format, ...) PRINTF_LIKE(2, 3);

#define TRACE(t, ...)                                   \
    do {                                                \
        if ((t)->line) trace_line((t), __VA_ARGS__);    \
    } while (0)

#endif
