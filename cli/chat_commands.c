/* chat_commands - see the header. Each command is one function and one line of the table, which is also what
 * /help prints. */
#include "cli/chat_commands.h"

#include "common/base/utf8.h"
#include "common/sys/file.h"
#include "common/sys/term.h"

#include <stdlib.h>

enum { READ_BYTES_MAX = 16 << 20, NAME_BYTES_MAX = 200 };

/* ---- a question ---- */

static double rate(uint64_t n, double seconds) {
    return seconds > 0 ? (double)n / seconds : 0;
}

static void print_figures(const struct chat_session *s, const struct chat_answer *a) {
    const char *dim = term_style(stderr, TERM_DIM), *plain = term_style(stderr, TERM_PLAIN);
    if (s->quiet) return;
    fprintf(stderr, "%s%sprompt %llu tokens", dim,
            a->stopped ? "stopped; "
            : a->cut   ? "cut at a limit; "
                       : "",
            (unsigned long long)a->n_prompt);
    if (a->n_cached) fprintf(stderr, " (%llu known)", (unsigned long long)a->n_cached);
    fprintf(stderr, " in %.2f s (%.1f/s), answer %llu tokens in %.2f s (%.1f/s)", a->prompt_seconds,
            rate(a->n_prompt - a->n_cached, a->prompt_seconds), (unsigned long long)a->n_new, a->new_seconds,
            rate(a->n_new, a->new_seconds));
    if (s->source->n_context_max)
        fprintf(stderr, ", context %llu of %llu", (unsigned long long)s->source->n_context,
                (unsigned long long)s->source->n_context_max);
    fprintf(stderr, "%s\n", plain);
}

int chat_session_ask(struct chat_session *s, struct chat_text question, struct err *e) {
    struct chat_answer answer;
    int before = s->talk.n;
    int rc = chat_talk_add(&s->talk, CHAT_ROLE_USER, question, (struct chat_text){ 0 }, e);
    if (rc < 0) return rc;
    *s->stop = 0;
    chat_answer_init(&answer, &s->screen);
    rc = s->source->answer(s->source, &s->talk, s->thinking, &answer, e);
    chat_screen_end(&s->screen);
    bool said = answer.content.size || answer.reasoning.size;
    if (said)                                     /* also the beginning of an answer that broke off */
        if (chat_talk_add(&s->talk, CHAT_ROLE_ASSISTANT,
                          (struct chat_text){ answer.content.data, answer.content.size },
                          (struct chat_text){ answer.reasoning.data, answer.reasoning.size },
                          rc < 0 ? NULL : e) < 0 && rc == 0)
            rc = ERR_LIMIT;
    if (!said && (rc < 0 || answer.stopped)) chat_talk_cut(&s->talk, before);
    if (rc == 0) print_figures(s, &answer);
    *s->stop = 0;
    chat_answer_deinit(&answer);
    return rc;
}

/* ---- commands; `rest` is what stands behind the name, without blanks around ---- */

static int do_system(struct chat_session *s, const char *rest, struct err *e) {
    int rc = chat_talk_restart(&s->talk, rest, e);
    if (rc == 0) fprintf(stderr, *rest ? "a new conversation with this system prompt\n"
                                       : "a new conversation without a system prompt\n");
    return rc;
}

static int do_think(struct chat_session *s, const char *rest, struct err *e) {
    (void)rest, (void)e;
    s->thinking = CHAT_THINKING_ON;
    fprintf(stderr, "the model thinks before it answers\n");
    return 0;
}

static int do_nothink(struct chat_session *s, const char *rest, struct err *e) {
    (void)rest, (void)e;
    s->thinking = CHAT_THINKING_OFF;
    fprintf(stderr, "the model answers at once\n");
    return 0;
}

static int do_max(struct chat_session *s, const char *rest, struct err *e) {
    (void)rest, (void)e;
    s->thinking = CHAT_THINKING_MAX;
    fprintf(stderr, "the model thinks with the most effort\n");
    return 0;
}

static int do_fold(struct chat_session *s, const char *rest, struct err *e) {
    (void)rest, (void)e;
    s->screen.fold = !s->screen.fold;
    fprintf(stderr, s->screen.fold ? "reasoning is counted, not shown\n" : "reasoning is shown\n");
    return 0;
}

/* FILE [TEXT]; a name with blanks stands in double quotes. Cuts `rest`, gives the text behind. */
static char *cut_name(char *rest, char **name) {
    char *end;
    if (*rest == '"' && (end = strchr(rest + 1, '"'))) *name = rest + 1;
    else {
        *name = rest;
        end = rest + strcspn(rest, " \t");
    }
    if (!*end) return end;
    *end++ = 0;
    return end + strspn(end, " \t");
}

static int do_read(struct chat_session *s, const char *rest, struct err *e) {
    void *data = NULL;
    size_t size;
    char *line = strdup(rest), *name;
    struct buf question;
    if (!line) return err_set(e, ERR_NOMEM, "no memory for a line");
    const char *text = cut_name(line, &name);
    buf_init(&question, READ_BYTES_MAX + CHAT_ANSWER_BYTES_MAX);
    int rc = *name ? file_read_all(name, READ_BYTES_MAX, &data, &size, e)
                   : err_set(e, ERR_INVALID, "/read FILE [TEXT]");
    if (rc == 0 && !utf8_valid(data, size)) rc = err_set(e, ERR_INVALID, "%s is not UTF-8 text", name);
    if (rc == 0) {
        buf_add(&question, data, size);
        if (*text) buf_printf(&question, "%s%s", size ? "\n\n" : "", text);
        rc = question.rc < 0 ? err_set(e, question.rc, "no memory for the text of %s", name) : 0;
    }
    if (rc == 0) rc = chat_session_ask(s, (struct chat_text){ question.data, question.size }, e);
    buf_deinit(&question);
    free(data);
    free(line);
    return rc;
}

static int do_save(struct chat_session *s, const char *rest, struct err *e) {
    if (!*rest) return err_set(e, ERR_INVALID, "/save FILE");
    int rc = chat_talk_save(&s->talk, rest, e);
    if (rc == 0) fprintf(stderr, "%d messages are in %s\n", s->talk.n, rest);
    return rc;
}

static int do_load(struct chat_session *s, const char *rest, struct err *e) {
    if (!*rest) return err_set(e, ERR_INVALID, "/load FILE");
    int rc = chat_talk_load(&s->talk, rest, e);
    if (rc < 0) return rc;
    bool has_system = s->talk.n && s->talk.turn[0].role == CHAT_ROLE_SYSTEM;
    fprintf(stderr, "%d messages from %s%s\n", s->talk.n, rest,
            has_system ? ", the system prompt among them" : "");
    return 0;
}

/* N or NK; -1: no number. */
static int64_t read_tokens(const char *text) {
    char *end;
    if (*text < '0' || *text > '9') return -1;
    unsigned long n = strtoul(text, &end, 10);
    if (n > 1 << 30) return -1;
    if (*end == 'k' || *end == 'K') n *= 1024, end++;
    return *end ? -1 : (int64_t)n;
}

static int set_context(struct chat_source *source, const char *rest, struct err *e) {
    int64_t n = read_tokens(rest);
    if (n < 0)
        return err_set(e, ERR_INVALID,
                       "/ctx [TOKENS], as /ctx 32768 or /ctx 32K; 0: what the model allows");
    if (!source->set_context)
        return err_set(e, ERR_UNSUPPORTED,
                       "the context of an endpoint is set where it runs (pleiades serve --ctx)");
    return source->set_context(source, (uint64_t)n, e);
}

static int do_ctx(struct chat_session *s, const char *rest, struct err *e) {
    struct chat_source *source = s->source;
    int rc = *rest ? set_context(source, rest, e) : 0;
    if (rc < 0) return rc;
    fprintf(stderr, "%d messages, %zu bytes of text; %llu tokens after the last answer", s->talk.n,
            s->talk.bytes, (unsigned long long)source->n_context);
    if (source->n_context_max) fprintf(stderr, " of at most %llu", (unsigned long long)source->n_context_max);
    fputc('\n', stderr);
    return 0;
}

static int do_reset(struct chat_session *s, const char *rest, struct err *e) {
    (void)rest;
    int rc = chat_talk_restart(&s->talk, NULL, e);
    if (rc == 0) fprintf(stderr, "a new conversation\n");
    return rc;
}

static int do_help(struct chat_session *s, const char *rest, struct err *e);

static const struct command {
    const char *name, *args;
    int (*run)(struct chat_session *s, const char *rest, struct err *e);      /* NULL: the end */
    const char *help;
} commands[] = {
    { "/help", "", do_help, "this list" },
    { "/system", " TEXT", do_system, "a new conversation with this system prompt; without TEXT: with none" },
    { "/think", "", do_think, "think before answering" },
    { "/nothink", "", do_nothink, "answer at once" },
    { "/max", "", do_max, "think with the most effort" },
    { "/fold", "", do_fold, "count reasoning instead of showing it, or show it again" },
    { "/read", " FILE [TEXT]", do_read, "say what is in FILE, and TEXT behind it" },
    { "/save", " FILE", do_save, "write the conversation, as the JSON of a chat request" },
    { "/load", " FILE", do_load, "go on with a saved conversation" },
    { "/ctx", " [TOKENS]", do_ctx, "how much of the context is used; with TOKENS: sets its size" },
    { "/reset", "", do_reset, "a new conversation with the same system prompt" },
    { "/quit", "", NULL, "end; so does Ctrl-D" },
    { "/exit", "", NULL, NULL },
};

static int do_help(struct chat_session *s, const char *rest, struct err *e) {
    (void)s, (void)rest, (void)e;
    for (size_t i = 0; i < COUNT_OF(commands); i++) {
        char name[32];
        snprintf(name, sizeof name, "%s%s", commands[i].name, commands[i].args);
        if (commands[i].help) fprintf(stderr, "  %-20s %s\n", name, commands[i].help);
    }
    fprintf(stderr, "Ctrl-C stops an answer and keeps what was said. A backslash at the end of a "
                    "line goes on in\n"
                    "the next; \"\"\" begins and ends a text of many lines; // is a message that "
                    "begins with /.\n");
    return 0;
}

static int run_command(struct chat_session *s, char *line, struct err *e) {
    char *rest = line + strcspn(line, " \t\n");
    if (*rest) *rest++ = 0;
    rest += strspn(rest, " \t\n");
    for (size_t end = strlen(rest); end && strchr(" \t\n", rest[end - 1]); end--) rest[end - 1] = 0;
    for (size_t i = 0; i < COUNT_OF(commands); i++) {
        if (strcmp(line, commands[i].name) != 0) continue;
        if (!commands[i].run) return 0;
        int rc = commands[i].run(s, rest, e);
        return rc < 0 ? rc : 1;
    }
    return err_set(e, ERR_INVALID, "no command %.*s; /help lists them", NAME_BYTES_MAX, line);
}

int chat_session_line(struct chat_session *s, struct chat_text line, struct err *e) {
    if (line.len == 0) return 1;
    bool slash = line.data[0] == '/', twice = slash && line.len > 1 && line.data[1] == '/';
    if (slash && !twice) {
        char *copy = strndup(line.data, line.len);
        if (!copy) return err_set(e, ERR_NOMEM, "no memory for a line");
        int rc = run_command(s, copy, e);
        free(copy);
        return rc;
    }
    if (twice) line = (struct chat_text){ line.data + 1, line.len - 1 };
    int rc = chat_session_ask(s, line, e);
    return rc < 0 ? rc : 1;
}
