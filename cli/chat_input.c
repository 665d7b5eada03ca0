/* chat_input - see the header. */
#include "cli/chat_input.h"

#include "common/sys/term.h"

#include <errno.h>
#include <histedit.h>
#include <locale.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

enum { HISTORY_MAX = 1000, HISTORY_PATH_MAX = 4096 };

struct chat_input {
    EditLine *edit;                               /* NULL: a pipe */
    History *past;
    char path[HISTORY_PATH_MAX];                  /* of the history; "": none */
    bool goes_on;                                 /* the prompt of a second line */
    volatile sig_atomic_t *stop;
    char *line;                                   /* getline's */
    size_t room;
};

/* ---- messages out of lines ---- */

static bool has_quotes(const char *text, size_t len) {
    return len >= 3 && memcmp(text, "\"\"\"", 3) == 0;
}

/* CHAT_INPUT_END as `open` means that nothing is open: this is a first line. */
enum chat_input_more chat_input_join(struct buf *out, enum chat_input_more open, const char *line,
                                     size_t len) {
    if (open == CHAT_INPUT_END && has_quotes(line, len)) {
        line += 3;
        len -= 3;
        open = CHAT_INPUT_QUOTE;
        if (len == 0) return open;                /* the text begins in the next line */
    } else if (open != CHAT_INPUT_END && out->size) {
        buf_add_char(out, '\n');
    }
    if (open == CHAT_INPUT_QUOTE) {
        bool closed = len >= 3 && has_quotes(line + len - 3, 3);
        buf_add(out, line, closed ? len - 3 : len);
        if (closed && len == 3 && out->size) buf_cut(out, out->size - 1);     /* quotes alone in their line */
        return closed ? CHAT_INPUT_END : CHAT_INPUT_QUOTE;
    }
    bool more = len && line[len - 1] == '\\';
    buf_add(out, line, more ? len - 1 : len);
    return more ? CHAT_INPUT_LINE : CHAT_INPUT_END;
}

/* ---- where lines come from ---- */

static char *prompt_sign(EditLine *edit) {
    static char first[] = "> ", next[] = ". ";
    struct chat_input *in = NULL;
    el_get(edit, EL_CLIENTDATA, &in);
    return in && in->goes_on ? next : first;
}

/* NULL with *n 0 at the end, with *n < 0 after Ctrl-C. */
static const char *read_line(struct chat_input *in, int *n) {
    if (in->edit) {
        const char *line = el_gets(in->edit, n);
        if (line && *n > 0) return line;
        *n = 0;
    } else {
        ssize_t got = getline(&in->line, &in->room, stdin);
        if (got > 0) {
            *n = (int)MIN(got, (ssize_t)CHAT_INPUT_BYTES_MAX + 1);
            return in->line;
        }
        *n = 0;
    }
    if (*in->stop) *n = -1;
    return NULL;
}

static void clear_after_stop(struct chat_input *in) {
    *in->stop = 0;
    clearerr(stdin);
    if (!in->edit) return;
    fputc('\n', stderr);
    el_reset(in->edit);
}

int chat_input_next(struct chat_input *in, struct buf *out, struct err *e) {
    enum chat_input_more more = CHAT_INPUT_END;
    buf_clear(out);
    for (;;) {
        int n = 0;
        in->goes_on = more != CHAT_INPUT_END;
        const char *line = read_line(in, &n);
        if (!line && n < 0) {
            clear_after_stop(in);
            if (!in->edit) return 0;              /* a pipe has no second thoughts */
            buf_clear(out);
            more = CHAT_INPUT_END;
            continue;
        }
        if (!line) return out->size ? 1 : 0;
        size_t len = (size_t)n;
        while (len && (line[len - 1] == '\n' || line[len - 1] == '\r')) len--;
        HistEvent event;
        if (in->past && len) history(in->past, &event, H_ENTER, line);
        more = chat_input_join(out, more, line, len);
        if (out->rc < 0)
            return err_set(e, out->rc, "a message of more than %d MiB", CHAT_INPUT_BYTES_MAX >> 20);
        if (more == CHAT_INPUT_END) return 1;
    }
}

/* ---- open and close ---- */

/* Characters beyond ASCII can be edited only in a UTF-8 locale. Numbers are printed as ever. */
static void use_utf8(void) {
    static const char *const names[] = { "", "C.UTF-8", "en_US.UTF-8", "UTF-8" };
    for (size_t i = 0; i < COUNT_OF(names); i++)
        if (setlocale(LC_CTYPE, names[i]) && MB_CUR_MAX > 1) return;
}

static int open_editor(struct chat_input *in, struct err *e) {
    HistEvent event;
    const char *home = getenv("HOME");
    use_utf8();
    in->past = history_init();
    in->edit = el_init("pleiades", stdin, stderr, stderr);
    if (!in->past || !in->edit) return err_set(e, ERR_INTERNAL, "the line editor does not start");
    if (home && *home) snprintf(in->path, sizeof in->path, "%s/.pleiades_history", home);
    history(in->past, &event, H_SETSIZE, HISTORY_MAX);
    history(in->past, &event, H_SETUNIQUE, 1);
    if (in->path[0]) history(in->past, &event, H_LOAD, in->path);
    el_set(in->edit, EL_CLIENTDATA, in);
    el_set(in->edit, EL_PROMPT, prompt_sign);
    el_set(in->edit, EL_EDITOR, "emacs");
    el_set(in->edit, EL_HIST, history, in->past);
    el_set(in->edit, EL_BIND, "^R", "em-inc-search-prev", NULL);
    el_set(in->edit, EL_SIGNAL, 0);
    return 0;
}

int chat_input_open(struct chat_input **out, volatile sig_atomic_t *stop, struct err *e) {
    struct chat_input *in = calloc(1, sizeof *in);
    if (!in) return err_set(e, ERR_NOMEM, "no memory for the input");
    in->stop = stop;
    int rc = isatty(STDIN_FILENO) && term_is_terminal(stderr) ? open_editor(in, e) : 0;
    if (rc < 0) chat_input_close(in);
    else *out = in;
    return rc;
}

void chat_input_close(struct chat_input *in) {
    if (!in) return;
    HistEvent event;
    if (in->past && in->path[0]) history(in->past, &event, H_SAVE, in->path);
    if (in->edit) el_end(in->edit);
    if (in->past) history_end(in->past);
    free(in->line);
    free(in);
}
