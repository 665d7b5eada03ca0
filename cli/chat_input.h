/* chat_input - what the user says in `pleiades run`: lines from an editor with history, or from a pipe.
 *
 * A message is a line. A backslash at its end goes on in the next one, and three quotes at the beginning
 * of a line open a text that goes on until three quotes end one. One thread; at most one at a time, because
 * a terminal has one editor. */
#ifndef CLI_CHAT_INPUT_H
#define CLI_CHAT_INPUT_H

#include "common/base/buf.h"

#include <signal.h>

enum { CHAT_INPUT_BYTES_MAX = 16 << 20 };

struct chat_input;

/* With an editor if stdin and stderr are terminals. *stop is what Ctrl-C sets; at the prompt it clears what
 * was typed, and is reset. */
int chat_input_open(struct chat_input **out, volatile sig_atomic_t *stop, struct err *e);
void chat_input_close(struct chat_input *in);     /* writes the history; NULL is fine */

/* 1 and a message without its line end in *out, 0 at the end of the input, or an error. */
int chat_input_next(struct chat_input *in, struct buf *out, struct err *e);

/* A line's part of a message. The first line is told by `first`. Pure; for tests. */
enum chat_input_more { CHAT_INPUT_END, CHAT_INPUT_LINE, CHAT_INPUT_QUOTE };
enum chat_input_more chat_input_join(struct buf *out, enum chat_input_more open, const char *line,
                                     size_t len);

#endif
