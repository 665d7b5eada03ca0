/* cmd_synth - writes synthetic models: tiny ones for tests, true shapes for benchmarks. */
#include "cli/cmd.h"

#include "cli/opts.h"
#include "cli/tokenizer_json.h"
#include "common/model/synth.h"
#include "common/sys/clock.h"
#include "common/sys/term.h"

#include <stdio.h>
#include <unistd.h>

enum { PROGRESS_MS = 100 };

struct synth_command {
    const char *preset, *mix, *tokenizer, *out, *mtp;
    int n_layers, n_experts, n_threads;
    uint64_t seed;
};

struct progress {
    const char *path;
    uint64_t start_ns, shown_ns;
};

/* One line that is drawn over itself, on a terminal only. */
static bool show_progress(void *ctx, uint64_t done, uint64_t total) {
    struct progress *p = ctx;
    uint64_t now = clock_now_ns();
    if (!term_is_terminal(stderr) ||
        (now - p->shown_ns < PROGRESS_MS * UINT64_C(1000000) && done < total))
        return true;
    p->shown_ns = now;
    double seconds = (double)(now - p->start_ns) / 1e9;
    fprintf(stderr, "\r%s: %5.1f of %.1f GB, %3.0f %%, %.2f GB/s ", p->path, (double)done / 1e9,
            (double)total / 1e9, 100 * (double)done / (double)total,
            (double)done / 1e9 / (seconds > 0 ? seconds : 1));
    if (done == total) fprintf(stderr, "\n");
    return true;
}

static void print_written(const struct progress *p, uint64_t bytes) {
    double seconds = clock_seconds_since(p->start_ns);
    printf("%s: %.3f GB of tensors in %.1f s, %.2f GB/s\n", p->path, (double)bytes / 1e9, seconds,
           (double)bytes / 1e9 / seconds);
}

static int write_files(const struct synth_command *c, const struct tokenizer_vocab *vocab, struct err *e) {
    struct progress progress = { .path = c->out };
    struct synth_options o = {
        .preset = c->preset, .mix = c->mix, .n_layer = (uint32_t)c->n_layers,
        .n_expert = (uint32_t)c->n_experts, .seed = c->seed, .vocab = vocab,
        .n_threads = c->n_threads ? c->n_threads : (int)sysconf(_SC_NPROCESSORS_ONLN),
        .progress = show_progress, .progress_ctx = &progress,
    };
    struct synth *s;
    int rc = synth_new(&s, &o, e);
    if (rc < 0) return rc;
    if (c->out) {
        progress.start_ns = clock_now_ns();
        rc = synth_write(s, c->out, e);
        if (rc == 0) print_written(&progress, synth_bytes(s));
    }
    if (rc == 0 && c->mtp) {
        progress = (struct progress){ .path = c->mtp, .start_ns = clock_now_ns() };
        rc = synth_write_mtp(s, c->mtp, e);
        if (rc == 0) print_written(&progress, synth_mtp_bytes(s));
    }
    synth_free(s);
    return rc;
}

static int run(const struct synth_command *c, struct err *e) {
    if (!c->tokenizer) return write_files(c, NULL, e);
    struct tokenizer_json tj;
    int rc = tokenizer_json_open(&tj, c->tokenizer, e);
    if (rc < 0) return rc;
    rc = write_files(c, &tj.vocab, e);
    tokenizer_json_close(&tj);
    return rc;
}

int cmd_synth(int argc, char **argv) {
    struct synth_command c = { .preset = "tiny" };
    const struct opt table[] = {
        OPT_STRING('o', "output", &c.out, "FILE", "the GGUF file to write"),
        OPT_STRING(0, "mtp", &c.mtp, "FILE",
                   "also (or only) write the MTP block, as a file of its own"),
        OPT_GROUP("The model"),
        OPT_CHOICE('p', "preset", &c.preset, SYNTH_PRESETS,
                   "tiny: 15 MB for tests; tiny-pro: the same with Pro's pattern of layers; mid: Flash's "
                   "true layers and vocabulary, 4 layers; "
                   "others: the published shapes"),
        OPT_INT('l', "layers", &c.n_layers, 0, HP_LAYERS_MAX, "N",
                "number of layers; 0: the preset's"),
        OPT_INT('e', "experts", &c.n_experts, 0, HP_EXPERTS_MAX, "N",
                "routed experts per layer; 0: the preset's"),
        OPT_CHOICE('x', "mix", &c.mix, SYNTH_MIXES,
                   "types of the routed experts; default: the preset's, or q2"),
        OPT_STRING(0, "tokenizer", &c.tokenizer, "FILE",
                   "a tokenizer.json to put in; default: an invented vocabulary"),
        OPT_U64('s', "seed", &c.seed, 0, UINT64_MAX, "N", "another seed, another model"),
        OPT_GROUP("Running"),
        OPT_INT('t', "threads", &c.n_threads, 0, 64, "N",
                "0: all cores; the bytes do not depend on it"),
    };
    const struct opts spec = {
        "synth",
        "",
        "Writes a model with random weights: the shapes, names and types of the published files, "
        "numbers that stay "
        "finite and lively through all layers, and a vocabulary, so that it can be loaded, run and "
        "measured like a real "
        "one. It says nothing sensible. Same options, same bytes.",
        table,
        COUNT_OF(table),
        0,
        0,
    };
    int n_args = opts_parse(&spec, argc, argv);
    if (n_args < 0) return opts_exit_status(n_args);
    if (!c.out && !c.mtp) return opts_usage_error(&spec, "--output FILE is required");
    struct err e = { 0 };
    return run(&c, &e) < 0 ? opts_failure(&spec, &e) : 0;
}
