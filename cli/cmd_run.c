/* cmd_run - talk to the model in the terminal: one prompt, or a conversation with line editing and history.
 *
 * The model is in this process (--model) or behind an endpoint (--url). The answer goes to stdout,
 * everything else (reasoning, progress, figures, the prompt sign) to stderr. Ctrl-C stops the answer
 * and not the program; at the prompt it clears the line. */
#include "cli/cmd.h"

#include "cli/chat_commands.h"
#include "cli/chat_input.h"
#include "common/base/utf8.h"
#include "common/sys/clock.h"
#include "common/sys/file.h"
#include "common/sys/term.h"

#include <stdlib.h>
#include <unistd.h>

enum { PROMPT_BYTES_MAX = 32 << 20, STDIN_STEP = 1 << 16 };

static volatile sig_atomic_t interrupted;

static void on_interrupt(int signal_number) {
    (void)signal_number;
    interrupted = 1;
}

struct run_options {
    struct chat_source_options source;
    const char *prompt, *system, *system_file;
    bool thinking, max, fold, quiet;
};

/* ---- what is asked ---- */

static int add_stdin(struct buf *b, struct err *e) {
    for (;;) {
        char *to = buf_grow(b, STDIN_STEP);
        if (!to) return err_set(e, b->rc, "stdin has more than %d MiB", PROMPT_BYTES_MAX >> 20);
        size_t n = fread(to, 1, STDIN_STEP, stdin);
        buf_cut(b, b->size - (STDIN_STEP - n));
        if (n == 0) break;
    }
    return ferror(stdin) ? err_errno(e, ERR_IO, "reading stdin") : 0;
}

/* --prompt and the arguments, one below the other; "-" is what stdin holds. */
static int read_prompt(struct buf *b, const char *prompt, char **args, int n_args, struct err *e) {
    int rc = 0;
    if (prompt) buf_add_text(b, prompt);
    for (int i = 0; rc == 0 && i < n_args; i++) {
        if (b->size) buf_add_char(b, '\n');
        if (strcmp(args[i], "-") == 0) rc = add_stdin(b, e);
        else buf_add_text(b, args[i]);
    }
    if (rc == 0 && b->rc < 0) rc = err_set(e, b->rc, "a prompt of more than %d MiB", PROMPT_BYTES_MAX >> 20);
    if (rc == 0 && !utf8_valid(b->data ? b->data : "", b->size))
        rc = err_set(e, ERR_INVALID, "the prompt is not UTF-8 text");
    return rc;
}

static int set_system(struct chat_session *s, const struct run_options *o, struct err *e) {
    void *data = NULL;
    size_t size = 0;
    if (!o->system_file) return chat_talk_restart(&s->talk, o->system ? o->system : "", e);
    int rc = file_read_all(o->system_file, PROMPT_BYTES_MAX, &data, &size, e);
    if (rc == 0 && !utf8_valid(data, size))
        rc = err_set(e, ERR_INVALID, "%s is not UTF-8 text", o->system_file);
    while (rc == 0 && size && ((char *)data)[size - 1] == '\n') ((char *)data)[--size] = 0;
    if (rc == 0) rc = chat_talk_restart(&s->talk, data, e);
    free(data);
    return rc;
}

/* ---- the conversation ---- */

/* Errors may carry a server's words: no terminal sees them raw. */
static void print_problem(const struct err *e) {
    struct buf line;
    buf_init(&line, 4 * ERR_TEXT_MAX);
    fprintf(stderr, "%s\n", chat_screen_line(&line, e->text[0] ? e->text : err_text(e->code), ERR_TEXT_MAX));
    buf_deinit(&line);
}

static int converse(struct chat_session *s, struct err *e) {
    struct chat_input *in;
    struct buf line, name;
    bool terminal = isatty(STDIN_FILENO) == 1;
    int rc = chat_input_open(&in, &interrupted, e);
    if (rc < 0) return rc;
    buf_init(&line, CHAT_INPUT_BYTES_MAX);
    buf_init(&name, 4096);
    if (terminal)
        fprintf(stderr, "%s - /help lists the commands\n",
                chat_screen_line(&name, s->source->name, 128));
    for (;;) {
        rc = chat_input_next(in, &line, e);
        if (rc <= 0) break;
        rc = chat_session_line(s, (struct chat_text){ line.data, line.size }, e);
        if (rc < 0 && terminal) print_problem(e); /* people can go on; scripts shall notice */
        else if (rc <= 0) break;
    }
    buf_deinit(&name);
    buf_deinit(&line);
    chat_input_close(in);
    return rc;
}

static int run(struct chat_session *s, const struct run_options *o, char **args, int n_args, struct err *e) {
    struct buf prompt;
    buf_init(&prompt, PROMPT_BYTES_MAX);
    bool once = o->prompt || n_args > 0;
    int rc = set_system(s, o, e);
    if (rc == 0 && once) rc = read_prompt(&prompt, o->prompt, args, n_args, e);
    if (rc == 0) rc = o->source.url ? chat_remote_open(&s->source, &o->source, e)
                                    : chat_local_open(&s->source, &o->source, e);
    if (rc == 0 && once) rc = chat_session_ask(s, (struct chat_text){ prompt.data, prompt.size }, e);
    else if (rc == 0) rc = converse(s, e);
    if (s->source) s->source->close(s->source);
    buf_deinit(&prompt);
    return rc;
}

/* ---- start ---- */

static int check(const struct opts *spec, const struct run_options *o) {
    const struct chat_source_options *s = &o->source;
    if (!s->url && !s->engine.model)
        return opts_usage_error(spec, "--model FILE or --url ADDRESS is required");
    if (!s->url && (s->api_key_file || s->ca_file))
        return opts_usage_error(spec, "--api-key-file and --ca-file go with --url");
    if (s->url && s->raw)
        return opts_usage_error(spec, "--raw needs the model in this process (--model FILE)");
    if (o->system && o->system_file) return opts_usage_error(spec, "--system or --system-file, not both");
    return 0;
}

/* A seed that differs each time; the same one makes the same answer again. */
static uint64_t any_seed(void) {
    return (clock_now_ns() * 0x9e3779b97f4a7c15u ^ (uint64_t)getpid() << 32 ^ clock_wall_ms()) >> 1 | 1;
}

static void finish_options(struct run_options *o, struct chat_session *s, double temp, double top_p,
                           double min_p) {
    struct sampler_params *p = &o->source.sampling;
    p->temperature = (float)temp, p->top_p = (float)top_p, p->min_p = (float)min_p;
    if (!p->seed) p->seed = any_seed();
    s->thinking = o->max ? CHAT_THINKING_MAX : o->thinking ? CHAT_THINKING_ON : CHAT_THINKING_OFF;
    s->screen = (struct chat_screen){ .answer = stdout, .side = stderr, .fold = o->fold };
    s->quiet = o->quiet;
    s->stop = &interrupted;
    o->source.stop = &interrupted;
}

int cmd_run(int argc, char **argv) {
    struct run_options o = { .thinking = true };
    struct chat_session session = { 0 };
    struct chat_source_options *source = &o.source;
    double temp = 0.6, top_p = 0.95, min_p = 0;
    engine_options_init(&source->engine);
    sampler_params_init(&source->sampling);
    const struct opt table[] = {
        ENGINE_OPTS_OR(source->engine, "the GGUF file (required, or --url)"),
        OPT_GROUP("A model elsewhere"),
        OPT_STRING(0, "url", &source->url, "ADDRESS",
                   "ask this endpoint, as http://HOST:8080; --model is then a model's name there, "
                   "or left out"),
        OPT_STRING(0, "api-key-file", &source->api_key_file, "FILE", "holds the endpoint's key"),
        OPT_STRING(0, "ca-file", &source->ca_file, "FILE",
                   "certificates to trust instead of the system's"),
        OPT_GROUP("The conversation"),
        OPT_STRING('p', "prompt", &o.prompt, "TEXT",
                   "answer this and end, like TEXT as an argument"),
        OPT_STRING(0, "system", &o.system, "TEXT", "the system prompt"),
        OPT_STRING(0, "system-file", &o.system_file, "FILE", "the system prompt is in this file"),
        OPT_FLAG(0, "think", &o.thinking, "let the model think before it answers"),
        OPT_FLAG(0, "max", &o.max, "let it think with the most effort"),
        OPT_FLAG(0, "fold", &o.fold, "count reasoning instead of showing it"),
        OPT_FLAG(0, "raw", &source->raw, "continue the text as it is, without the chat format"),
        OPT_INT('n', "predict", &source->n_new_max, 0, 1 << 24, "N",
                "at most so many tokens per answer, reasoning included; 0: what fits"),
        OPT_FLAG('q', "quiet", &o.quiet, "no figures"),
        OPT_GROUP("Sampling"),
        OPT_NUMBER(0, "temp", &temp, 0, 2, "X", "temperature; 0 takes the likeliest token"),
        OPT_NUMBER(0, "top-p", &top_p, 0, 1, "X", "likeliest tokens that hold this share"),
        OPT_NUMBER(0, "min-p", &min_p, 0, 1, "X",
                   "tokens at least this likely, relative to the likeliest"),
        OPT_U64(0, "seed", &source->sampling.seed, 0, INT64_MAX, "N",
                "the same seed, the same answer; 0: another one each time"),
    };
    const struct opts spec = {
        "run",
        "[TEXT|-]...",
        "Talks to the model in the terminal: one answer to TEXT (- is what stdin holds), else a "
        "conversation.",
        table,
        COUNT_OF(table),
        0,
        OPTS_ANY,
    };
    struct err e = { 0 };
    int n_args = opts_parse(&spec, argc, argv);
    if (n_args < 0) return opts_exit_status(n_args);
    int status = check(&spec, &o);
    if (status) return status;
    finish_options(&o, &session, temp, top_p, min_p);
    struct sigaction action = { .sa_handler = on_interrupt }; /* no SA_RESTART: reading a line ends */
    sigaction(SIGINT, &action, NULL);
    int rc = run(&session, &o, argv + 1, n_args, &e);
    chat_talk_deinit(&session.talk);
    if (rc >= 0) return 0;
    struct buf safe;
    buf_init(&safe, 4 * ERR_TEXT_MAX);
    snprintf(e.text, sizeof e.text, "%.*s", ERR_TEXT_MAX - 1,
             chat_screen_line(&safe, e.text, ERR_TEXT_MAX / 4));
    buf_deinit(&safe);
    return opts_failure(&spec, &e);
}
