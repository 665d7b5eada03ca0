/* chat_source - who answers in `pleiades run`: the model in this process, or an endpoint.
 *
 * A source is given the whole conversation each time and appends what is said to an answer, which shows it.
 * It stops soon after *stop has become non-zero; what was said until then stays. One thread. */
#ifndef CLI_CHAT_SOURCE_H
#define CLI_CHAT_SOURCE_H

#include "cli/chat_screen.h"
#include "cli/chat_talk.h"
#include "cli/engine.h"
#include "common/model/sampler.h"

#include <signal.h>

enum { CHAT_ANSWER_BYTES_MAX = 16 << 20 };

enum chat_thinking { CHAT_THINKING_OFF, CHAT_THINKING_ON, CHAT_THINKING_MAX };

struct chat_answer {
    struct buf reasoning, content;
    struct chat_screen *screen;
    bool stopped;                                 /* by *stop */
    bool cut;                                     /* by a limit of tokens */
    uint64_t n_prompt, n_cached, n_new;           /* tokens; n_cached: of the prompt, not computed again */
    double prompt_seconds, new_seconds;           /* to the first token, from it to the last */
};

void chat_answer_init(struct chat_answer *a, struct chat_screen *screen);
void chat_answer_deinit(struct chat_answer *a);
/* Appends and shows. 0, ERR_LIMIT or ERR_NOMEM. */
int chat_answer_add(struct chat_answer *a, enum chat_part part, const char *text, size_t len);

struct chat_source {
    /* 0 also when it was stopped. After an error the conversation can go on with the next question. */
    int (*answer)(struct chat_source *s, const struct chat_talk *talk, enum chat_thinking thinking,
                  struct chat_answer *out, struct err *e);
    /* The most tokens of a conversation from now on, 0: the model's own limit. NULL: not decided here. */
    int (*set_context)(struct chat_source *s, uint64_t n, struct err *e);
    void (*close)(struct chat_source *s);
    char name[128];                               /* of the model, for people */
    uint64_t n_context, n_context_max;           /* tokens after the last answer, and the limit; 0: unknown */
};

struct chat_source_options {
    struct engine_options engine;                 /* its model is a file, or the endpoint's name for one */
    const char *url, *api_key_file, *ca_file;     /* of an endpoint */
    struct sampler_params sampling;
    int n_new_max;                                /* of one answer; 0: what fits */
    bool raw;                                     /* continue the text, without the chat format */
    const volatile sig_atomic_t *stop;
};

/* Both print progress to stderr where it is a terminal. */
int chat_local_open(struct chat_source **out, const struct chat_source_options *o, struct err *e);
int chat_remote_open(struct chat_source **out, const struct chat_source_options *o, struct err *e);

#endif
