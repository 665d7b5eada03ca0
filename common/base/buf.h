/* buf - bytes that grow up to a limit; the way to build text, JSON lines and messages.
 *
 * The owner of the struct owns the memory. Errors stick: after the first refused append `rc` is set,
 * later appends do nothing, and the writer checks once at the end. There is always a NUL behind the
 * last byte, so that text may be read as a string; views into `data` die with the next append. */
#ifndef BASE_BUF_H
#define BASE_BUF_H

#include "common/base/err.h"
#include "common/base/types.h"

struct buf {
    char *data;                                   /* never NULL after buf_init */
    size_t size, room, limit;
    int rc;                                       /* 0, ERR_LIMIT or ERR_NOMEM */
};

void buf_init(struct buf *b, size_t limit);       /* allocates nothing yet */
void buf_deinit(struct buf *b);                   /* a zeroed struct is fine too */
void buf_clear(struct buf *b);                    /* empty again and without error; keeps its memory */

/* Each gives rc back. The pointer of buf_grow is room for n bytes that count as appended (NULL when
 * refused). */
int buf_add(struct buf *b, const void *bytes, size_t n);
int buf_add_text(struct buf *b, const char *text);
int buf_add_char(struct buf *b, char c);
int buf_printf(struct buf *b, const char *format, ...) PRINTF_LIKE(2, 3);
char *buf_grow(struct buf *b, size_t n);

void buf_cut(struct buf *b, size_t size);         /* keeps the first `size` bytes */
void buf_drop(struct buf *b, size_t n);           /* removes the first n bytes */
char *buf_detach(struct buf *b);                  /* the string; the caller frees it. NULL when rc < 0 */

#endif
