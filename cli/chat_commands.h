/* chat_commands - the state of a conversation in `pleiades run` and what a line of it does.
 *
 * A line that begins with "/" is a command (two slashes: a message that begins with one), all else is said
 * to the model. Remarks go to stderr. Main thread. */
#ifndef CLI_CHAT_COMMANDS_H
#define CLI_CHAT_COMMANDS_H

#include "cli/chat_source.h"

struct chat_session {
    struct chat_source *source;
    struct chat_screen screen;
    struct chat_talk talk;
    enum chat_thinking thinking;
    bool quiet;                                   /* no figures after an answer */
    volatile sig_atomic_t *stop;
};

/* One question and its answer, both kept; after an error or a stop before the first word neither is. */
int chat_session_ask(struct chat_session *s, struct chat_text question, struct err *e);

/* One message of the user. 1: go on, 0: the user wants to end, negative: it failed, the session can go on. */
int chat_session_line(struct chat_session *s, struct chat_text line, struct err *e);

#endif
