/* cmd_tokenizer_gguf - writes a tokenizer.json as a GGUF file that holds a vocabulary and no tensors. */
#include "cli/cmd.h"

#include "cli/opts.h"
#include "cli/tokenizer_json.h"

#include <stdio.h>

/* The vocabulary must load before it is written: a file that nobody can use is worse than none. */
static int check_loads(const struct tokenizer_json *tj, struct err *e) {
    struct tokenizer *t;
    int rc = tokenizer_new_vocab(&t, &tj->vocab, e);
    if (rc == 0) tokenizer_free(t);
    return rc;
}

static int write_gguf(const struct tokenizer_json *tj, const char *path, struct err *e) {
    struct gguf_writer *w;
    int rc = gguf_writer_new(&w, path, GGUF_ALIGNMENT, e);
    if (rc < 0) return rc;
    gguf_put_str(w, "general.architecture", "deepseek4", strlen("deepseek4"));
    gguf_put_str(w, "general.type", "vocab", strlen("vocab"));
    tokenizer_json_put(tj, w);
    rc = gguf_writer_begin_data(w, e);
    if (rc == 0) return gguf_writer_finish(w, e);
    gguf_writer_abort(w);
    return rc;
}

int cmd_tokenizer_gguf(int argc, char **argv) {
    const char *out = NULL;
    const struct opt table[] = {
        OPT_STRING('o', "output", &out, "FILE", "the GGUF file to write (required)"),
    };
    const struct opts spec = { "tokenizer-gguf", "TOKENIZER_JSON",
                               "Converts a Hugging Face tokenizer.json into a GGUF file without tensors.",
                               table, COUNT_OF(table), 1, 1 };
    int n_args = opts_parse(&spec, argc, argv);
    if (n_args < 0) return opts_exit_status(n_args);
    if (!out) return opts_usage_error(&spec, "--output FILE is required");
    struct err e;
    struct tokenizer_json tj;
    if (tokenizer_json_open(&tj, argv[1], &e) < 0) return opts_failure(&spec, &e);
    int rc = check_loads(&tj, &e);
    if (rc < 0) err_wrap(&e, rc, "%s", argv[1]);
    else rc = write_gguf(&tj, out, &e);
    if (rc == 0) printf("%s: %u tokens, %u merges\n", out, tj.vocab.n_tokens, tj.vocab.n_merges);
    tokenizer_json_close(&tj);
    return rc < 0 ? opts_failure(&spec, &e) : 0;
}
