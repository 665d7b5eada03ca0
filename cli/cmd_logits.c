/* cmd_logits - logits of a sequence of token ids as raw float32 rows. */
#include "cli/cmd.h"

#include "cli/engine.h"
#include "cli/ids.h"
#include "common/sys/file.h"

static int write_row(void *ctx, uint32_t i, const float *logits, struct err *e) {
    (void)i;
    const void *const *pair = ctx;
    const struct engine *g = pair[0];
    struct file_writer *w = (struct file_writer *)(uintptr_t)pair[1];
    return file_writer_write(w, logits, (uint64_t)engine_hparams(g)->n_vocab * sizeof(float), e);
}

static int logits(const struct engine_options *o, const char *ids_path, uint32_t n_last,
                  const char *out_path, struct err *e) {
    struct engine g = { 0 };
    struct token_buf ids = { 0 };
    struct file_writer *w = NULL;
    int rc = ids_read_file(ids_path, &ids, e);
    if (rc == 0) rc = engine_open(&g, o, e);
    if (rc == 0) rc = ids_check(ids_path, &ids, engine_hparams(&g)->n_vocab, e);
    if (rc == 0) rc = file_writer_new(&w, out_path, e);
    const void *pair[2] = { &g, w };
    if (rc == 0)
        rc = engine_eval(&g, ids.ids, (uint32_t)ids.n, n_last ? n_last : (uint32_t)ids.n, write_row, pair,
                         NULL, NULL, e);
    if (rc == 0) rc = file_writer_finish(w, e);
    else file_writer_abort(w);
    token_buf_free(&ids);
    engine_close(&g);
    return rc;
}

int cmd_logits(int argc, char **argv) {
    struct engine_options o;
    engine_options_init(&o);
    const char *ids = NULL, *out = NULL;
    int last = 0;
    const struct opt table[] = {
        ENGINE_OPTS(o),
        OPT_STRING(0, "ids", &ids, "FILE", "token ids as decimal text, - for the input (required)"),
        OPT_INT(0, "last", &last, 0, 1 << 30, "N", "only the last N positions; 0: all"),
        OPT_STRING('o', "out", &out, "FILE", "where the rows go (required)"),
    };
    const struct opts spec = {
        "logits",
        "",
        "Writes the logits that follow each token id: one row of little-endian float32 per position, as "
        "long as the vocabulary.",
        table,
        COUNT_OF(table),
        0,
        0,
    };
    int n_args = opts_parse(&spec, argc, argv);
    if (n_args < 0) return opts_exit_status(n_args);
    if (!o.model || !ids || !out) return opts_usage_error(&spec, "--model, --ids and --out are required");
    struct err e = { 0 };
    return logits(&o, ids, (uint32_t)last, out, &e) < 0 ? opts_failure(&spec, &e) : 0;
}
