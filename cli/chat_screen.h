/* chat_screen - shows an answer while it comes: the answer on one file, reasoning and remarks on another.
 *
 * Models and servers are not trusted with a terminal: what could move its cursor, name its window or
 * reorder its letters is shown as a picture of itself instead. Files and pipes get the text as it is, and
 * reasoning is for terminals only. Texts are whole UTF-8 characters. One thread; owns nothing. */
#ifndef CLI_CHAT_SCREEN_H
#define CLI_CHAT_SCREEN_H

#include "common/base/buf.h"

#include <stdio.h>

enum chat_part { CHAT_PART_NONE, CHAT_PART_REASONING, CHAT_PART_CONTENT };

struct chat_screen {
    FILE *answer, *side;                          /* mostly stdout and stderr */
    bool fold;                                    /* of reasoning only a line that counts */
    enum chat_part part;                          /* what was written last */
    bool mid_line;                                /* of the answer */
    size_t n_folded;                              /* characters */
};

void chat_screen_begin(struct chat_screen *s);
void chat_screen_show(struct chat_screen *s, enum chat_part part, const char *text, size_t len);
void chat_screen_end(struct chat_screen *s);      /* the cursor stands at the beginning of a line then */

/* Appends the text as a terminal may see it: no control characters but line ends and tabs, nothing that
 * changes the direction of letters, no ill-formed UTF-8. */
void chat_screen_filter(struct buf *out, const char *text, size_t len);
/* The same for one line of a remark: line ends and tabs are blanks, at most `max` bytes. Returns
 * out->data. */
const char *chat_screen_line(struct buf *out, const char *text, size_t max);

#endif
