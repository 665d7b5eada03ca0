/* chat_talk - the conversation of `pleiades run`: who said what, and how it lies in a file.
 *
 * A saved conversation is the body of a chat request ({"messages": [...]}), so `pleiades render`, curl and
 * other programs take it as it is. The struct owns every text; views from chat_talk_messages live until it
 * changes. One thread. Limits: the enum below. */
#ifndef CLI_CHAT_TALK_H
#define CLI_CHAT_TALK_H

#include "common/model/chat.h"

enum { CHAT_TALK_TURNS_MAX = 4096, CHAT_TALK_BYTES_MAX = 64 << 20 };

struct chat_turn {
    enum chat_role role;                          /* system, user or assistant */
    char *content, *reasoning;                    /* NUL behind each; reasoning may be NULL */
    size_t content_len, reasoning_len;
};

struct chat_talk {                                /* start with { 0 } */
    struct chat_turn *turn;
    int n, room;
    size_t bytes;                                 /* of all texts */
};

void chat_talk_deinit(struct chat_talk *t);

/* Texts are copied. ERR_LIMIT, ERR_NOMEM; then nothing changed. */
int chat_talk_add(struct chat_talk *t, enum chat_role role, struct chat_text content,
                  struct chat_text reasoning, struct err *e);
void chat_talk_cut(struct chat_talk *t, int n);   /* keeps the first n turns */

/* A new beginning: nothing but this system prompt; NULL: the one it has. "" is none. */
int chat_talk_restart(struct chat_talk *t, const char *system_prompt, struct err *e);

/* As the renderer takes them: t->n messages. */
void chat_talk_messages(const struct chat_talk *t, struct chat_message *out);

/* The JSON array of messages. */
void chat_talk_put_json(const struct chat_talk *t, struct buf *out);

/* Load replaces the conversation only if all of the file is good. ERR_INVALID says what is not. */
int chat_talk_save(const struct chat_talk *t, const char *path, struct err *e);
int chat_talk_load(struct chat_talk *t, const char *path, struct err *e);

#endif
