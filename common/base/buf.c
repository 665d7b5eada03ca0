/* buf - see the header. Room doubles, so n appends copy each byte at most twice. */
#include "common/base/buf.h"

#include "common/base/check.h"

enum { BUF_ROOM_FIRST = 64 };

static char empty[1];                             /* what an empty buffer points to; nobody ever writes it */

void buf_init(struct buf *b, size_t limit) {
    *b = (struct buf){ .data = empty, .limit = MIN(limit, SIZE_MAX / 4) };
}

void buf_deinit(struct buf *b) {
    if (b->room) free(b->data);
    *b = (struct buf){ .data = empty };
}

void buf_clear(struct buf *b) {
    b->size = 0;
    b->rc = 0;
    if (b->room) b->data[0] = 0;
}

static int make_room(struct buf *b, size_t n) {
    if (b->rc < 0) return b->rc;
    if (n > b->limit - b->size) return b->rc = ERR_LIMIT;
    size_t needed = b->size + n + 1;
    if (needed <= b->room) return 0;
    size_t room = MAX(MAX(needed, (size_t)BUF_ROOM_FIRST), b->room * 2);
    char *data = realloc(b->room ? b->data : NULL, room);
    if (!data) return b->rc = ERR_NOMEM;
    b->data = data;
    b->room = room;
    return 0;
}

char *buf_grow(struct buf *b, size_t n) {
    if (make_room(b, n) < 0) return NULL;
    char *at = b->data + b->size;
    b->size += n;
    b->data[b->size] = 0;
    return at;
}

int buf_add(struct buf *b, const void *bytes, size_t n) {
    char *at = buf_grow(b, n);
    if (at && n) memcpy(at, bytes, n);
    return b->rc;
}

int buf_add_text(struct buf *b, const char *text) {
    return buf_add(b, text, strlen(text));
}

int buf_add_char(struct buf *b, char c) {
    return buf_add(b, &c, 1);
}

int buf_printf(struct buf *b, const char *format, ...) {
    va_list args, again;
    va_start(args, format);
    va_copy(again, args);
    int n = vsnprintf(NULL, 0, format, args);
    va_end(args);
    CHECK(n >= 0);
    if (make_room(b, (size_t)n) == 0) {
        vsnprintf(b->data + b->size, (size_t)n + 1, format, again);
        b->size += (size_t)n;
    }
    va_end(again);
    return b->rc;
}

void buf_cut(struct buf *b, size_t size) {
    CHECK(size <= b->size);
    b->size = size;
    if (b->room) b->data[size] = 0;
}

void buf_drop(struct buf *b, size_t n) {
    CHECK(n <= b->size);
    if (!n) return;
    memmove(b->data, b->data + n, b->size - n + 1);
    b->size -= n;
}

char *buf_detach(struct buf *b) {
    if (make_room(b, 0) < 0) return NULL;
    char *text = b->data;
    text[b->size] = 0;
    buf_init(b, b->limit);
    return text;
}
