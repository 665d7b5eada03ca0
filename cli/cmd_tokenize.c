/* cmd_tokenize - `tokenize`: text from stdin to ids; `detokenize`: ids from stdin to bytes. Output
 * formats are stable: ids in decimal with one space between and a line break at the end; bytes as they
 * are. */
#include "cli/cmd.h"

#include "cli/opts.h"
#include "common/base/buf.h"
#include "common/model/tokenizer.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

enum { READ_STEP = 1 << 16, IDS_TEXT_MAX = 1 << 30 };

static int read_stdin(struct buf *b, struct err *e) {
    for (;;) {
        char *to = buf_grow(b, READ_STEP);
        if (!to) return err_set(e, b->rc, "the input is longer than %zu bytes", b->limit);
        size_t n = fread(to, 1, READ_STEP, stdin);
        buf_cut(b, b->size - (READ_STEP - n));
        if (n == 0) break;
    }
    return ferror(stdin) ? err_errno(e, ERR_IO, "reading the input") : 0;
}

static int open_tokenizer(struct tokenizer **out, const char *path, struct err *e) {
    struct gguf *g;
    int rc = gguf_open(&g, path, e);
    if (rc < 0) return rc;
    rc = tokenizer_new(out, g, e);
    gguf_close(g);
    return rc < 0 ? err_wrap(e, rc, "%s", path) : 0;
}

static int finish_output(struct err *e) {
    return fflush(stdout) || ferror(stdout) ? err_errno(e, ERR_IO, "writing the output") : 0;
}

/* ---- tokenize ---- */

static int print_ids(const struct token_buf *ids, struct err *e) {
    for (size_t i = 0; i < ids->n; i++) printf(i ? " %d" : "%d", ids->ids[i]);
    putchar('\n');
    return finish_output(e);
}

static int tokenize(const char *model, bool parse_special, struct err *e) {
    struct tokenizer *t;
    int rc = open_tokenizer(&t, model, e);
    if (rc < 0) return rc;
    struct buf text;
    struct token_buf ids = { 0 };
    buf_init(&text, TOKENIZER_TEXT_MAX + READ_STEP);
    rc = read_stdin(&text, e);
    if (rc == 0) rc = tokenizer_encode(t, text.data, text.size, parse_special, &ids, e);
    if (rc == 0) rc = print_ids(&ids, e);
    token_buf_free(&ids);
    buf_deinit(&text);
    tokenizer_free(t);
    return rc;
}

int cmd_tokenize(int argc, char **argv) {
    const char *model = NULL;
    bool special = true;
    const struct opt table[] = {
        OPT_STRING('m', "model", &model, "FILE", "GGUF file with the vocabulary (required)"),
        OPT_FLAG(0, "special", &special, "text of control tokens becomes control tokens"),
    };
    const struct opts spec = { "tokenize", "", "Prints the token ids of the text on stdin.",
                               table, COUNT_OF(table), 0, 0 };
    int n_args = opts_parse(&spec, argc, argv);
    if (n_args < 0) return opts_exit_status(n_args);
    if (!model) return opts_usage_error(&spec, "--model FILE is required");
    struct err e;
    return tokenize(model, special, &e) < 0 ? opts_failure(&spec, &e) : 0;
}

/* ---- detokenize ---- */

/* Writes the bytes of each id in the text: numbers between blanks. */
static int print_bytes(const struct tokenizer *t, const char *text, struct err *e) {
    for (size_t i = 1;; i++) {
        text += strspn(text, " \t\r\n");
        if (!*text) return finish_output(e);
        char *end;
        errno = 0;
        long id = strtol(text, &end, 10);
        if (end == text || errno || (*end && !strchr(" \t\r\n", *end)))
            return err_set(e, ERR_INVALID, "number %zu of the input is not a token id", i);
        if (id < 0 || id >= (long)tokenizer_n_vocab(t))
            return err_set(e, ERR_INVALID, "number %zu of the input, %ld, is no id of the %u tokens", i, id,
                           tokenizer_n_vocab(t));
        size_t len;
        const char *bytes = tokenizer_token_bytes(t, (int32_t)id, &len);
        fwrite(bytes, 1, len, stdout);
        text = end;
    }
}

static int detokenize(const char *model, struct err *e) {
    struct tokenizer *t;
    int rc = open_tokenizer(&t, model, e);
    if (rc < 0) return rc;
    struct buf text;
    buf_init(&text, IDS_TEXT_MAX);
    rc = read_stdin(&text, e);
    if (rc == 0 && memchr(text.data, 0, text.size))
        rc = err_set(e, ERR_INVALID, "the input holds a NUL byte");
    if (rc == 0) rc = print_bytes(t, text.data, e);
    buf_deinit(&text);
    tokenizer_free(t);
    return rc;
}

int cmd_detokenize(int argc, char **argv) {
    const char *model = NULL;
    const struct opt table[] = {
        OPT_STRING('m', "model", &model, "FILE", "GGUF file with the vocabulary (required)"),
    };
    const struct opts spec = { "detokenize", "", "Prints the bytes of the token ids on stdin.",
                               table, COUNT_OF(table), 0, 0 };
    int n_args = opts_parse(&spec, argc, argv);
    if (n_args < 0) return opts_exit_status(n_args);
    if (!model) return opts_usage_error(&spec, "--model FILE is required");
    struct err e;
    return detokenize(model, &e) < 0 ? opts_failure(&spec, &e) : 0;
}
