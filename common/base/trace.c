#include "common/base/trace.h"

#include <stdio.h>

void trace_line(const struct trace *t, const char *format, ...) {
    char text[TRACE_LINE_MAX];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    t->line(t->ctx, text);
}
