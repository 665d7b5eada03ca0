/* sse - see the header. */
#include "coordinator/sse.h"

#include <stdio.h>

void sse_begin(struct buf *out, const char *event) {
    if (event) {
        buf_add_text(out, "event: ");
        buf_add_text(out, event);
        buf_add_char(out, '\n');
    }
    buf_add_text(out, "data: ");
}

void sse_end(struct buf *out) {
    buf_add_text(out, "\n\n");
}

void sse_comment(struct buf *out, const char *format, ...) {
    char text[128];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    buf_add_text(out, ": ");
    buf_add_text(out, text);
    buf_add_text(out, "\n\n");
}
