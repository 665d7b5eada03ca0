/* http_client_sse - see the header. */
#include "cli/http_client_sse.h"

void http_sse_init(struct http_sse *s) {
    *s = (struct http_sse){ 0 };
    buf_init(&s->line, HTTP_SSE_BYTES_MAX);
    buf_init(&s->data, HTTP_SSE_BYTES_MAX);
}

void http_sse_deinit(struct http_sse *s) {
    buf_deinit(&s->line);
    buf_deinit(&s->data);
}

static int end_line(struct http_sse *s, http_sse_event *event, void *ctx, struct err *e) {
    const char *line = s->line.data;
    int rc = 0;
    if (s->line.size == 0) {
        if (s->has_data) rc = event(ctx, s->data.data ? s->data.data : "", s->data.size, e);
        buf_clear(&s->data);
        s->has_data = false;
    } else if (s->line.size >= 5 && memcmp(line, "data:", 5) == 0) {
        size_t skip = s->line.size > 5 && line[5] == ' ' ? 6 : 5;
        if (s->has_data) buf_add_char(&s->data, '\n');
        buf_add(&s->data, line + skip, s->line.size - skip);
        s->has_data = true;
    } else if (line[0] == ':' && s->comment) {
        s->comment(ctx, line + (line[1] == ' ' ? 2 : 1));
    }
    buf_clear(&s->line);
    return rc;
}

int http_sse_feed(struct http_sse *s, const char *bytes, size_t n, http_sse_event *event, void *ctx,
                  struct err *e) {
    for (size_t at = 0; at < n;) {
        if (s->after_cr && bytes[at] == '\n') at++;
        s->after_cr = false;
        size_t end = at;
        while (end < n && bytes[end] != '\n' && bytes[end] != '\r') end++;
        buf_add(&s->line, bytes + at, end - at);
        at = end;
        if (end < n) {
            s->after_cr = bytes[end] == '\r';
            at++;
            int rc = end_line(s, event, ctx, e);
            if (rc != 0) return rc;
        }
        int rc = s->line.rc < 0 ? s->line.rc : s->data.rc;
        if (rc < 0) return err_set(e, rc, "an event of more than %d MiB", HTTP_SSE_BYTES_MAX >> 20);
    }
    return 0;
}
