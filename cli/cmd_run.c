/* cmd_run - talk to the model in the terminal: one prompt, or a conversation with line editing and
 * history.
 *
 * Every turn the whole conversation is rendered and tokenized again; what the sequence already holds of
 * it is not computed twice. Ctrl-C stops the answer and not the program; at the prompt it clears the
 * line. The answer goes to stdout, everything else (progress, timings, the prompt sign) to stderr. */
#include "cli/cmd.h"

#include "cli/engine.h"
#include "common/base/buf.h"
#include "common/base/utf8.h"
#include "common/model/chat.h"
#include "common/model/sampler.h"
#include "common/sys/clock.h"
#include "common/sys/term.h"

#include <histedit.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

enum { RUN_MESSAGES_MAX = 4096, RUN_TEXT_MAX = 16 << 20, RUN_HISTORY = 1000, RUN_BAR = 30 };

static volatile sig_atomic_t interrupted;

static void on_interrupt(int signal_number) {
    (void)signal_number;
    interrupted = 1;
}

struct run {
    struct engine g;
    struct sampler sampler;
    struct sampler_params params;
    bool raw, thinking, quiet, interactive;
    enum chat_encoding encoding;
    int n_max;
    char *system;                                  /* NULL: none */
    struct chat_message message[RUN_MESSAGES_MAX];
    char *text[RUN_MESSAGES_MAX];                  /* what the messages borrow */
    int n_messages;
    struct token_buf cached;                       /* tokens the sequence holds */
    float *logits;
    uint64_t n_prefill, n_decode;
    double prefill_seconds, decode_seconds;
};

/* ---- progress ---- */

static void draw_bar(const char *what, uint64_t done, uint64_t total, double seconds, double in_unit,
                     const char *unit) {
    if (!term_is_terminal(stderr) || total == 0) return;
    int full = (int)(done * RUN_BAR / total);
    fprintf(stderr, "\r%-8s [%.*s%*s] %3d%%  %.1f %s/s", what, full,
            "==============================", RUN_BAR - full, "", (int)(done * 100 / total),
            seconds > 0 ? (double)done / in_unit / seconds : 0.0, unit);
    if (done >= total) fprintf(stderr, "\r\033[K");
    fflush(stderr);
}

struct prefill_bar {
    uint64_t start_ns;
};

static bool prefill_progress(void *ctx, uint32_t done, uint32_t total) {
    const struct prefill_bar *bar = ctx;
    draw_bar("prompt", done, total, clock_seconds_since(bar->start_ns), 1, "tokens");
    return !interrupted;
}

static int keep_row(void *ctx, uint32_t i, const float *logits, struct err *e) {
    (void)i, (void)e;
    struct run *r = ctx;
    memcpy(r->logits, logits, (uint64_t)engine_hparams(&r->g)->n_vocab * sizeof *logits);
    return 0;
}

/* ---- from the conversation to tokens ---- */

/* The rendered conversation; what people wrote cannot forge control tokens. */
static int encode_chat(struct run *r, struct token_buf *out, struct err *e) {
    struct chat_prompt prompt;
    struct chat_options o = { .encoding = r->encoding, .thinking = r->thinking, .open_turn = true };
    chat_prompt_init(&prompt);
    int rc = chat_render(&prompt, r->message, (size_t)r->n_messages, &o, e);
    for (size_t i = 0; rc == 0 && i < prompt.n_segments; i++) {
        const struct chat_segment *s = &prompt.segments[i];
        rc = tokenizer_encode(r->g.tokenizer, prompt.text.data + s->at, s->len, s->control, out, e);
    }
    chat_prompt_deinit(&prompt);
    return rc;
}

static int encode_raw(struct run *r, struct token_buf *out, struct err *e) {
    int32_t bos = tokenizer_bos(r->g.tokenizer);
    int rc = bos >= 0 ? token_buf_push(out, bos, e) : 0;
    for (int i = 0; rc == 0 && i < r->n_messages; i++)
        rc = tokenizer_encode(r->g.tokenizer, r->message[i].content.data, r->message[i].content.len, true,
                              out, e);
    return rc;
}

/* Brings the sequence to exactly these tokens, computing only what it does not hold. The last token is
 * always computed: its logits are needed. */
static int prefill(struct run *r, const struct token_buf *tokens, struct err *e) {
    size_t same = 0;
    while (same < r->cached.n && same < tokens->n && r->cached.ids[same] == tokens->ids[same]) same++;
    if (same == tokens->n) same--;
    if (engine_rollback(&r->g, (uint32_t)same, NULL) < 0) same = 0;
    int rc = engine_rollback(&r->g, (uint32_t)same, e);
    struct prefill_bar bar = { clock_now_ns() };
    r->cached.n = same;
    if (rc == 0)
        rc = engine_eval(&r->g, tokens->ids + same, (uint32_t)(tokens->n - same), 1, keep_row, r,
                         prefill_progress, &bar, e);
    if (term_is_terminal(stderr)) fprintf(stderr, "\r\033[K");
    r->n_prefill += tokens->n - same;
    r->prefill_seconds += clock_seconds_since(bar.start_ns);
    size_t held = engine_len(&r->g);
    for (size_t i = same; rc >= 0 && i < held; i++) rc = token_buf_push(&r->cached, tokens->ids[i], e);
    return rc;
}

/* ---- the answer ---- */

static int show(struct utf8_stream *utf8, const char *bytes, size_t len, struct buf *answer) {
    char stack[UTF8_STREAM_ROOM(1024)];
    for (size_t at = 0; at < len; at += 1024) {
        size_t part = MIN(len - at, (size_t)1024), n = utf8_stream_push(utf8, bytes + at, part, stack);
        fwrite(stack, 1, n, stdout);
        buf_add(answer, stack, n);
    }
    fflush(stdout);
    return answer->rc;
}

static int generate(struct run *r, struct buf *answer, struct err *e) {
    struct utf8_stream utf8 = { 0 };
    struct sampler_history history = { 0 };
    uint64_t start = clock_now_ns();
    int rc = 0;
    for (size_t i = 0; rc == 0 && i < r->cached.n; i++)
        rc = sampler_history_add(&history, r->cached.ids[i], false);
    for (int i = 0; rc == 0 && i < r->n_max && !interrupted; i++) {
        struct sampler_result pick;
        rc = sampler_pick(&r->sampler, r->logits, &r->params, &history, r->cached.n, &pick, e);
        if (rc < 0 || pick.id == tokenizer_eos(r->g.tokenizer)) break;
        size_t len;
        const char *bytes = tokenizer_token_bytes(r->g.tokenizer, pick.id, &len);
        rc = show(&utf8, bytes, len, answer);
        if (rc == 0) rc = sampler_history_add(&history, pick.id, true);
        if (rc == 0) rc = engine_eval(&r->g, &pick.id, 1, 1, keep_row, r, NULL, NULL, e);
        if (rc == 0) rc = token_buf_push(&r->cached, pick.id, e);
        r->n_decode++;
    }
    char rest[UTF8_STREAM_ROOM(0)];
    size_t n = utf8_stream_flush(&utf8, rest);
    fwrite(rest, 1, n, stdout);
    buf_add(answer, rest, n);
    putchar('\n');
    fflush(stdout);
    r->decode_seconds += clock_seconds_since(start);
    sampler_history_deinit(&history);
    return rc;
}

static int add_message(struct run *r, enum chat_role role, const char *text, size_t len, struct err *e) {
    if (r->n_messages == RUN_MESSAGES_MAX)
        return err_set(e, ERR_LIMIT, "the conversation has %d messages; /reset starts anew",
                       RUN_MESSAGES_MAX);
    char *copy = malloc(len + 1);
    if (!copy) return err_set(e, ERR_NOMEM, "no memory for a message");
    memcpy(copy, text, len);
    copy[len] = 0;
    r->text[r->n_messages] = copy;
    r->message[r->n_messages++] = (struct chat_message){ .role = role, .content = { copy, len } };
    return 0;
}

static void reset(struct run *r) {
    while (r->n_messages > 0) free(r->text[--r->n_messages]);
    if (r->system) add_message(r, CHAT_ROLE_SYSTEM, r->system, strlen(r->system), NULL);
}

static void print_timings(const struct run *r) {
    if (r->quiet) return;
    const char *dim = term_style(stderr, TERM_DIM), *plain = term_style(stderr, TERM_PLAIN);
    fprintf(stderr,
            "%s%llu prompt tokens in %.2f s (%.1f/s), %llu new tokens in %.2f s (%.1f/s), context %u%s\n",
            dim, (unsigned long long)r->n_prefill, r->prefill_seconds,
            r->prefill_seconds > 0 ? (double)r->n_prefill / r->prefill_seconds : 0.0,
            (unsigned long long)r->n_decode, r->decode_seconds,
            r->decode_seconds > 0 ? (double)r->n_decode / r->decode_seconds : 0.0, engine_len(&r->g),
            plain);
}

/* What the answer says after "</think>": that is what later turns remember. */
static const char *without_reasoning(const struct run *r, const struct buf *answer, size_t *len) {
    const char *end = r->thinking && !r->raw && answer->data ? strstr(answer->data, "</think>") : NULL;
    const char *from = end ? end + strlen("</think>") : answer->data ? answer->data : "";
    *len = answer->data ? answer->size - (size_t)(from - answer->data) : 0;
    return from;
}

static int turn(struct run *r, const char *text, struct err *e) {
    struct token_buf tokens = { 0 };
    struct buf answer;
    buf_init(&answer, RUN_TEXT_MAX);
    interrupted = 0;
    r->n_prefill = r->n_decode = 0;
    r->prefill_seconds = r->decode_seconds = 0;
    int before = r->n_messages, rc = add_message(r, CHAT_ROLE_USER, text, strlen(text), e);
    if (rc == 0) rc = r->raw ? encode_raw(r, &tokens, e) : encode_chat(r, &tokens, e);
    if (rc == 0 && tokens.n == 0) rc = err_set(e, ERR_INVALID, "the prompt is empty");
    if (rc == 0) rc = prefill(r, &tokens, e);
    if (rc == 0) rc = generate(r, &answer, e);
    if (rc == 0) {
        size_t len;
        const char *said = without_reasoning(r, &answer, &len);
        rc = add_message(r, CHAT_ROLE_ASSISTANT, said, len, e);
        print_timings(r);
    }
    while (rc < 0 && r->n_messages > before) free(r->text[--r->n_messages]);
    if (rc == ERR_CANCELLED && interrupted) {
        fprintf(stderr, "stopped\n");
        rc = 0;
    }
    token_buf_free(&tokens);
    buf_deinit(&answer);
    return rc;
}

/* ---- the conversation ---- */

static const char run_help[] =
    "  /help            this list\n"
    "  /system TEXT     a new system prompt; starts anew\n"
    "  /think /nothink  let the model reason before it answers, or not\n"
    "  /reset           forget the conversation\n"
    "  /quit            end (so does Ctrl-D)\n"
    "Ctrl-C stops an answer.\n";

/* true: go on */
static bool command(struct run *r, const char *line) {
    if (strcmp(line, "/quit") == 0 || strcmp(line, "/exit") == 0) return false;
    if (strcmp(line, "/think") == 0) r->thinking = true;
    else if (strcmp(line, "/nothink") == 0) r->thinking = false;
    else if (strcmp(line, "/reset") == 0) reset(r);
    else if (strncmp(line, "/system ", 8) == 0) {
        free(r->system);
        r->system = strdup(line + 8);
        reset(r);
    } else {
        if (strcmp(line, "/help") != 0) fprintf(stderr, "unknown command %s\n", line);
        fputs(run_help, stderr);
    }
    return true;
}

static char *prompt_sign(EditLine *edit) {
    (void)edit;
    static char sign[] = "> ";
    return sign;
}

static void history_file(char *out, size_t size) {
    const char *home = getenv("HOME");
    snprintf(out, size, "%s/.pleiades_history", home ? home : ".");
}

static int converse(struct run *r, struct err *e) {
    char path[4096];
    history_file(path, sizeof path);
    History *past = history_init();
    EditLine *edit = el_init("pleiades", stdin, stderr, stderr);
    HistEvent event;
    if (!past || !edit) return err_set(e, ERR_INTERNAL, "the line editor does not start");
    history(past, &event, H_SETSIZE, RUN_HISTORY);
    history(past, &event, H_LOAD, path);
    el_set(edit, EL_PROMPT, prompt_sign);
    el_set(edit, EL_EDITOR, "emacs");
    el_set(edit, EL_HIST, history, past);
    el_set(edit, EL_SIGNAL, 0);
    fprintf(stderr, "%s - /help lists the commands\n", engine_hparams(&r->g)->name);
    int rc = 0, n;
    bool go_on = true;
    while (rc == 0 && go_on) {
        const char *line = el_gets(edit, &n);
        if (!line && interrupted) {                /* Ctrl-C at the prompt */
            interrupted = 0;
            fputc('\n', stderr);
            el_reset(edit);
            continue;
        }
        if (!line || n <= 0) break;
        char *text = strdup(line);
        if (!text) break;
        text[strcspn(text, "\r\n")] = 0;
        if (text[0]) history(past, &event, H_ENTER, line);
        if (text[0] == '/') go_on = command(r, text);
        else if (text[0]) rc = turn(r, text, e);
        if (rc == ERR_LIMIT || rc == ERR_INVALID) { /* the conversation can go on after those */
            fprintf(stderr, "%s\n", e->text);
            rc = 0;
        }
        free(text);
    }
    history(past, &event, H_SAVE, path);
    el_end(edit);
    history_end(past);
    return rc;
}

/* Lines of a pipe: each is a turn. */
static int converse_plain(struct run *r, struct err *e) {
    char *line = NULL;
    size_t room = 0;
    ssize_t n;
    int rc = 0;
    while (rc == 0 && (n = getline(&line, &room, stdin)) > 0) {
        line[strcspn(line, "\r\n")] = 0;
        if (line[0] == '/') {
            if (!command(r, line)) break;
        } else if (line[0]) rc = turn(r, line, e);
    }
    free(line);
    return rc;
}

/* ---- start ---- */

static bool load_progress(void *ctx, uint64_t done, uint64_t total) {
    draw_bar("loading", done, total, clock_seconds_since(*(const uint64_t *)ctx), 1e9, "GB");
    return !interrupted;
}

static int run(struct run *r, struct engine_options *o, const char *prompt, struct err *e) {
    uint64_t start = clock_now_ns();
    o->progress = load_progress;
    o->progress_ctx = &start;
    int rc = engine_open(&r->g, o, e);
    if (rc == 0) rc = engine_tokenizer(&r->g, e);
    if (rc < 0) return rc;
    int n_vocab = (int)engine_hparams(&r->g)->n_vocab;
    struct gguf_str name = { 0 }, jinja = { 0 };
    gguf_get_str(stage_model_gguf(r->g.stage[0]), "general.name", &name, NULL);
    gguf_get_str(stage_model_gguf(r->g.stage[0]), "tokenizer.chat_template", &jinja, NULL);
    r->encoding = chat_encoding_guess((struct chat_text){ name.data, name.len },
                                      (struct chat_text){ jinja.data, jinja.len });
    rc = sampler_params_check(&r->params, n_vocab, e);
    if (rc == 0) rc = sampler_init(&r->sampler, n_vocab, e);
    r->logits = malloc((size_t)n_vocab * sizeof *r->logits);
    if (rc == 0 && !r->logits) rc = err_set(e, ERR_NOMEM, "no memory for logits");
    if (rc < 0) return rc;
    reset(r);
    if (prompt) return turn(r, prompt, e);
    return isatty(STDIN_FILENO) ? converse(r, e) : converse_plain(r, e);
}

int cmd_run(int argc, char **argv) {
    struct engine_options o;
    struct run *r = calloc(1, sizeof *r);
    if (!r) return OPTS_EXIT_FAILURE;
    engine_options_init(&o);
    sampler_params_init(&r->params);
    r->n_max = 1 << 20;
    const char *prompt = NULL, *system_prompt = NULL;
    double temp = 0.6, top_p = 0.95, min_p = 0;
    const struct opt table[] = {
        ENGINE_OPTS(o),
        OPT_STRING('p', "prompt", &prompt, "TEXT", "answer this and end; without it: a conversation"),
        OPT_STRING(0, "system", &system_prompt, "TEXT", "the system prompt"),
        OPT_FLAG(0, "think", &r->thinking, "let the model reason before it answers"),
        OPT_FLAG(0, "raw", &r->raw, "continue the text as it is, without the chat format"),
        OPT_INT('n', "predict", &r->n_max, 1, 1 << 24, "N", "at most so many tokens per answer"),
        OPT_FLAG('q', "quiet", &r->quiet, "no timings"),
        OPT_GROUP("Sampling"),
        OPT_NUMBER(0, "temp", &temp, 0, 100, "X", "temperature; 0 takes the likeliest token"),
        OPT_NUMBER(0, "top-p", &top_p, 0, 1, "X", "likeliest tokens that hold this share"),
        OPT_NUMBER(0, "min-p", &min_p, 0, 1, "X", "tokens at least this likely, relative to the likeliest"),
        OPT_U64(0, "seed", &r->params.seed, 0, UINT64_MAX, "N", "chance is a function of seed and position"),
    };
    const struct opts spec = {
        "run",
        "",
        "Talks to the model in the terminal: one answer with --prompt, else a conversation.",
        table,
        COUNT_OF(table),
        0,
        0,
    };
    int n_args = opts_parse(&spec, argc, argv), status = 0;
    struct err e = { 0 };
    r->params.temperature = (float)temp, r->params.top_p = (float)top_p, r->params.min_p = (float)min_p;
    if (system_prompt) r->system = strdup(system_prompt);
    struct sigaction action = { .sa_handler = on_interrupt }; /* no SA_RESTART: reading a line ends */
    sigaction(SIGINT, &action, NULL);
    if (n_args < 0) status = opts_exit_status(n_args);
    else if (!o.model) status = opts_usage_error(&spec, "--model FILE is required");
    else if (run(r, &o, prompt, &e) < 0) status = opts_failure(&spec, &e);
    while (r->n_messages > 0) free(r->text[--r->n_messages]);
    engine_close(&r->g);
    sampler_deinit(&r->sampler);
    token_buf_free(&r->cached);
    free(r->system);
    free(r->logits);
    free(r);
    return status;
}
