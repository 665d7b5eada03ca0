/* cmd_shard - plans a division of a model over machines, cuts the model into files, checks and joins them.
 *
 * `pleiades shard COMMAND`; the work is shard_tool's, here are words, options and the progress bar. How
 * machines are described is in machines.h. */
#include "cli/cmd.h"

#include "cli/http_client.h"
#include "cli/machines.h"
#include "cli/opts.h"
#include "cli/status_view.h"
#include "cli/subcommands.h"
#include "common/base/check.h"
#include "common/sys/clock.h"
#include "common/sys/term.h"
#include "shard_tool/shard_tool.h"

#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

enum { OUTPUT_MAX = 64 << 20, FILES_MAX = 1 << 20, BAR = 30 };

/* ---- options that plan and split share ---- */

struct plan_words {
    const char *model, *preset, *machines, *machine[PLAN_MACHINES_MAX], *link[PLAN_MACHINES_MAX],
        *stages, *objective;
    struct status_source service;
    int n_streams, chunk, depth;
    uint64_t ctx;
    bool ordered, no_helpers;
};

#define PLAN_OPTS(w)                                                                               \
    OPT_GROUP("Machines and links"),                                                               \
        OPT_STRING(0, "machines", &(w).machines, "FILE", "JSON that describes them"),              \
        OPT_STRING(0, "url", &(w).service.url, "URL", "the nodes of this running service"),        \
        OPT_STRING(0, "api-key-file", &(w).service.api_key_file, "FILE", "holds its key"),         \
        OPT_STRING(0, "ca-file", &(w).service.ca_file, "FILE", "certificates to trust"),           \
        OPT_LIST(0, "machine", (w).machine, PLAN_MACHINES_MAX, "NAME,mem=128G,bw=400G",            \
                 "a machine; also int8=20T f32=10T (operations/s), layer_us=20 (fixed cost of a "  \
                 "layer), backend=cpu"),                                                           \
        OPT_LIST(0, "link", (w).link, PLAN_MACHINES_MAX, "[A-B,]ms=0.3,bw=1.25G",                  \
                 "all links, or the one between two (or A-coordinator)"),                          \
        OPT_GROUP("The plan"),                                                                     \
        OPT_STRING(0, "stages", &(w).stages, "A=0-20,B=21-42",                                     \
                   "this plan, instead of a search; A=0-20+C: C holds experts of A's layers"),     \
        OPT_CHOICE(0, "objective", &(w).objective, "latency|throughput",                           \
                   "least time per token of one stream, or most tokens of all"),                   \
        OPT_U64('c', "ctx", &(w).ctx, 1, 1 << 30, "N",                                             \
                "context of one stream, in tokens, that must find room"),                          \
        OPT_INT(0, "streams", &(w).n_streams, 1, 1 << 16, "N", "streams at the same time"),        \
        OPT_INT(0, "depth", &(w).depth, -1, 1 << 30, "N",                                          \
                "tokens in the cache for predictions; -1: 4096, or the context"),                  \
        OPT_INT(0, "chunk", &(w).chunk, 1, 1 << 16, "N", "rows of a prefill batch"),               \
        OPT_FLAG(0, "ordered", &(w).ordered, "stages only in the order of the machines"),          \
        OPT_FLAG(0, "no-helpers", &(w).no_helpers, "never divide the experts of a layer")

static void words_init(struct plan_words *w) {
    struct plan_options o;
    plan_options_init(&o);
    *w = (struct plan_words){ .objective = "latency",
                              .ctx = o.n_ctx,
                              .depth = -1,
                              .n_streams = (int)o.n_streams,
                              .chunk = (int)o.chunk };
}

static struct plan_options options_of(const struct plan_words *w) {
    return (struct plan_options){
        .objective = strcmp(w->objective, "latency") == 0 ? PLAN_LATENCY : PLAN_THROUGHPUT,
        .helpers = w->no_helpers ? PLAN_HELPERS_NEVER : PLAN_HELPERS_AUTO,
        .n_ctx = w->ctx,
        .n_streams = (uint32_t)w->n_streams,
        .chunk = (uint32_t)w->chunk,
        .ordered = w->ordered,
        .depth = w->depth < 0 ? MIN(w->ctx, 4096) : (uint64_t)w->depth,
    };
}

static int ask_service(const struct plan_words *w, struct plan_cluster *c, struct err *e) {
    struct http_client *client;
    struct buf document;
    int rc = status_connect(&client, &w->service, NULL, e);
    if (rc < 0) return rc;
    buf_init(&document, OUTPUT_MAX);
    rc = status_fetch(client, &document, e);
    if (rc == 0) rc = machines_read_status(c, document.data, document.size, e);
    buf_deinit(&document);
    http_client_free(client);
    return rc;
}

static int words_cluster(const struct plan_words *w, struct plan_cluster *c, struct err *e) {
    int rc = 0;
    plan_cluster_links(c, (struct plan_link){ 0.3e-3, 1.25e9 });
    if (w->machines) rc = machines_read_file(c, w->machines, e);
    if (rc == 0 && w->service.url) rc = ask_service(w, c, e);
    for (int i = 0; i < PLAN_MACHINES_MAX && w->machine[i] && rc == 0; i++)
        rc = machines_add(c, w->machine[i], e);
    for (int i = 0; i < PLAN_MACHINES_MAX && w->link[i] && rc == 0; i++)
        rc = machines_link(c, w->link[i], false, e);
    for (int i = 0; i < PLAN_MACHINES_MAX && w->link[i] && rc == 0; i++)
        rc = machines_link(c, w->link[i], true, e);
    if (rc == 0 && c->n == 0)
        rc = err_set(e, ERR_INVALID, "--machines FILE, --machine NAME,mem=..,bw=.. or --url is required");
    return rc;
}

static int preset_model(const char *preset, struct plan_model *m) {
    struct hparams hp;
    bool pro = strcmp(preset, "pro-q2") == 0, q4 = strcmp(preset, "flash-q4") == 0;
    if (pro) hparams_pro(&hp);
    else hparams_flash(&hp);
    plan_model_shape(m, &hp, q4 ? DTYPE_Q4_K : DTYPE_IQ2_XXS, q4 ? DTYPE_Q4_K : DTYPE_Q2_K);
    return 0;
}

static int words_model(const struct plan_words *w, struct plan_model *m, struct err *e) {
    struct gguf *g;
    if (!w->model) return preset_model(w->preset, m);
    int rc = gguf_open(&g, w->model, e);
    if (rc < 0) return rc;
    rc = plan_model_read(m, g, e);
    gguf_close(g);
    return rc;
}

static int make_plan(const struct plan_words *w, const struct plan_model *m,
                     const struct plan_cluster *c, struct plan *p, struct err *e) {
    struct plan_options o = options_of(w);
    if (!w->stages) return plan_search(m, c, &o, p, e);
    int rc = plan_parse(m, c, w->stages, p, e);
    return rc < 0 ? rc : plan_evaluate(m, c, &o, p, e);
}

/* ---- plan ---- */

static json_t *stage_json(const struct plan_cluster *c, const struct plan_stage *s) {
    json_t *helpers = json_array();
    for (uint32_t i = 0; i < s->n_helper; i++)
        json_array_append_new(helpers, json_pack("{s:s, s:[i,i]}", "machine",
                                                 c->machine[s->helper[i].machine].name, "experts",
                                                 (int)s->helper[i].expert_begin,
                                                 (int)s->helper[i].expert_end - 1));
    return json_pack("{s:s, s:[i,i], s:[i,i], s:I, s:I, s:I, s:f, s:f, s:f, s:f, s:s, s:o}",
                     "machine", c->machine[s->machine].name, "layers", (int)s->layer_begin,
                     (int)s->layer_end - 1, "experts", (int)s->expert_begin, (int)s->expert_end - 1,
                     "weights_bytes", (json_int_t)s->weights, "state_bytes", (json_int_t)s->state,
                     "work_bytes", (json_int_t)s->work, "token_s", s->token_s, "batch_s",
                     s->batch_s, "chunk_s", s->chunk_s, "send_s", s->send_s, "bound",
                     s->bound == PLAN_BY_MEMORY ? "memory" : "compute", "helpers", helpers);
}

static void print_plan_json(const struct plan_cluster *c, const struct plan *p) {
    json_t *stages = json_array(), *others = json_array();
    for (uint32_t i = 0; i < p->n_stage; i++) json_array_append_new(stages, stage_json(c, &p->stage[i]));
    for (uint32_t i = 0; i < p->n_alternative; i++)
        json_array_append_new(others,
                              json_pack("{s:i, s:b, s:f}", "stages", (int)p->alternative[i].n_stage,
                                        "fits", (int)p->alternative[i].fits, "tokens_per_s",
                                        p->alternative[i].tokens_per_s));
    json_t *root = json_pack("{s:o, s:f, s:f, s:f, s:b, s:b, s:f, s:o}", "stages", stages,
                             "prefill_tokens_per_s", p->prefill_tokens_per_s, "stream_tokens_per_s",
                             p->stream_tokens_per_s, "all_tokens_per_s", p->all_tokens_per_s,
                             "exact", (int)p->exact, "helpers_tried", (int)p->helpers_tried,
                             "plain_tokens_per_s", p->plain_tokens_per_s, "alternatives", others);
    json_dumpf(root, stdout, JSON_INDENT(2));
    printf("\n");
    json_decref(root);
}

static int run_plan(const struct plan_words *w, bool explain, bool json, struct err *e) {
    struct plan_model *m = xcalloc(1, sizeof *m);
    struct plan_cluster *c = xcalloc(1, sizeof *c);
    struct plan *p = xcalloc(1, sizeof *p);
    struct buf text;
    buf_init(&text, OUTPUT_MAX);
    int rc = words_cluster(w, c, e);
    if (rc == 0) rc = words_model(w, m, e);
    if (rc == 0) rc = make_plan(w, m, c, p, e);
    if (rc == 0 && json) {
        print_plan_json(c, p);
    } else if (rc == 0) {
        struct plan_options o = options_of(w);
        shard_plan_print(m, c, &o, p, explain, &text);
        fputs(text.data, stdout);
    }
    buf_deinit(&text);
    free(p);
    free(c);
    free(m);
    return rc;
}

static int cmd_plan(int argc, char **argv) {
    struct plan_words w;
    bool explain = false, json = false;
    words_init(&w);
    w.preset = "flash-q2";
    const struct opt table[] = {
        OPT_STRING('m', "model", &w.model, "FILE", "the GGUF file; only its header is read"),
        OPT_CHOICE('p', "preset", &w.preset, "flash-q2|flash-q4|pro-q2",
                   "a published shape, when there is no file"),
        OPT_FLAG('e', "explain", &explain, "all numbers that were used, and why other plans lose"),
        OPT_FLAG('j', "json", &json, "print JSON"),
        PLAN_OPTS(w),
    };
    const struct opts spec = { "shard plan",
                               "",
                               "Finds which machine should take which layers, and predicts the "
                               "speed. Every division of the "
                               "layers over every choice and order of machines is considered.",
                               table,
                               COUNT_OF(table),
                               0,
                               0 };
    struct err e;
    int n = opts_parse(&spec, argc, argv);
    if (n < 0) return opts_exit_status(n);
    return run_plan(&w, explain, json, &e) < 0 ? opts_failure(&spec, &e) : 0;
}

/* ---- progress ---- */

struct bar {
    uint64_t start_ns, shown_ns;
    bool on;
};

static bool show_bar(void *ctx, const char *what, uint64_t done, uint64_t total) {
    struct bar *b = ctx;
    uint64_t now = clock_now_ns();
    if (!b->on || (now - b->shown_ns < 100000000 && done < total)) return true;
    b->shown_ns = now;
    double part = total ? (double)done / (double)total : 1, seconds = clock_seconds_since(b->start_ns);
    const char *slash = strrchr(what, '/');
    fprintf(stderr, "\r%-24.24s [", slash ? slash + 1 : what);
    for (int i = 0; i < BAR; i++) fputc(i < part * BAR ? '#' : '.', stderr);
    fprintf(stderr, "] %3.0f %%  %.2f GB/s  %.0f s left   ", 100 * part,
            (double)done / 1e9 / fmax(seconds, 1e-3), part > 0 ? seconds / part * (1 - part) : 0);
    return true;
}

static struct shard_progress bar_start(struct bar *b) {
    *b = (struct bar){ .start_ns = clock_now_ns(), .on = term_is_terminal(stderr) };
    return (struct shard_progress){ show_bar, b };
}

static double bar_end(struct bar *b) {
    if (b->on) fprintf(stderr, "\r%79s\r", "");
    return clock_seconds_since(b->start_ns);
}

/* ---- split ---- */

/* --stages without machines: the names are all that is needed, so each is given machines' worth of
 *   everything. */
static int name_machines(const char *stages, struct plan_cluster *c, struct err *e) {
    for (const char *at = stages; *at;) {
        size_t n = strcspn(at, "=");
        struct plan_machine *p = machines_new(c, e);
        if (!p) return ERR_LIMIT;
        if (n == 0 || n >= sizeof p->name)
            return err_set(e, ERR_INVALID, "'%.64s': stages are written NAME=FIRST-LAST,...",
                           stages);
        memcpy(p->name, at, n);
        p->memory = UINT64_C(1) << 59;
        p->bytes_per_s = p->int8_per_s = p->f32_per_s = 1e12;
        at += strcspn(at, ",");
        at += *at == ',';
    }
    return 0;
}

static int planned_pieces(const struct plan_words *w, const struct gguf *g,
                          struct shard_pieces *out, struct err *e) {
    struct plan_model *m = xcalloc(1, sizeof *m);
    struct plan_cluster *c = xcalloc(1, sizeof *c);
    struct plan *p = xcalloc(1, sizeof *p);
    bool described = w->machines || w->machine[0] || w->service.url;
    int rc = plan_model_read(m, g, e);
    if (rc == 0 && (described || !w->stages)) rc = words_cluster(w, c, e);
    else if (rc == 0)
        plan_cluster_links(c, (struct plan_link){ 0, 1e12 }), rc = name_machines(w->stages, c, e);
    if (rc == 0) rc = make_plan(w, m, c, p, e);
    if (rc == 0) {
        shard_pieces_of_plan(out, p);
        for (uint32_t i = 0, n = 0; i < p->n_stage; i++) {
            snprintf(out->item[n++].machine, PLAN_NAME_MAX, "%s", c->machine[p->stage[i].machine].name);
            for (uint32_t h = 0; h < p->stage[i].n_helper; h++)
                snprintf(out->item[n++].machine, PLAN_NAME_MAX, "%s",
                         c->machine[p->stage[i].helper[h].machine].name);
        }
    }
    free(p);
    free(c);
    free(m);
    return rc;
}

static int cut_pieces(const struct gguf *g, const char *cuts, const char *experts,
                      struct shard_pieces *out, struct err *e) {
    struct hparams hp;
    int rc = hparams_read(&hp, g, e);
    return rc < 0 ? rc : shard_pieces_of_cuts(out, &hp, cuts, experts, e);
}

struct split_words {
    struct plan_words plan;
    const char *folder, *cuts, *experts;
    int alignment;
    bool force;
};

static int run_split(const struct split_words *w, struct err *e) {
    struct shard_split_result r;
    struct bar bar;
    struct gguf *g;
    int rc = gguf_open(&g, w->plan.model, e);
    if (rc < 0) return rc;
    struct shard_split s = { .g = g,
                             .folder = w->folder,
                             .alignment = (uint32_t)w->alignment,
                             .force = w->force,
                             .progress = bar_start(&bar) };
    bool by_cuts = w->cuts || w->experts;
    rc = by_cuts ? cut_pieces(g, w->cuts, w->experts, &s.pieces, e)
                 : planned_pieces(&w->plan, g, &s.pieces, e);
    if (rc == 0) rc = shard_split(&s, &r, e);
    double seconds = bar_end(&bar);
    if (rc == 0)
        printf("%u files in %s, %.3f GB: %.3f GB written, %.3f GB were there; %.1f s, %.2f GB/s\n",
               r.n_files, w->folder, (double)r.file_bytes / 1e9, (double)r.written_bytes / 1e9,
               (double)r.kept_bytes / 1e9, seconds,
               (double)(r.written_bytes + r.kept_bytes) / 1e9 / fmax(seconds, 1e-9));
    shard_pieces_free(&s.pieces);
    gguf_close(g);
    return rc;
}

static int cmd_split(int argc, char **argv) {
    struct split_words w = { .alignment = SHARD_ALIGNMENT };
    words_init(&w.plan);
    const struct opt table[] = {
        OPT_STRING('m', "model", &w.plan.model, "FILE", "the GGUF file (required)"),
        OPT_STRING('o', "output", &w.folder, "FOLDER", "where the files go (required)"),
        OPT_STRING(0, "cuts", &w.cuts, "L1,L2,..", "stages that begin at these layers"),
        OPT_STRING(
            0, "experts", &w.experts, "0-127,128-255",
            "divide the experts of each stage: the first range stays, the others are for helpers"),
        OPT_INT(0, "align", &w.alignment, SHARD_ALIGNMENT_MIN, GGUF_ALIGNMENT_MAX, "N",
                "where tensors begin: a power of two, a page at least"),
        OPT_FLAG('f', "force", &w.force, "replace files that are there and are something else"),
        PLAN_OPTS(w.plan),
    };
    const struct opts spec = { "shard split",
                               "",
                               "Cuts a model into one file per stage. Say how with --cuts, with "
                               "--stages, or describe the machines. "
                               "A split that was stopped goes on when it is started again.",
                               table,
                               COUNT_OF(table),
                               0,
                               0 };
    struct err e;
    int n = opts_parse(&spec, argc, argv);
    if (n < 0) return opts_exit_status(n);
    if (!w.plan.model || !w.folder)
        return opts_usage_error(&spec, "--model FILE and --output FOLDER are required");
    bool planned = w.plan.stages || w.plan.machines || w.plan.machine[0];
    if (planned && (w.cuts || w.experts))
        return opts_usage_error(
            &spec, "--cuts and --experts say everything: no --stages or machines with them");
    if (!planned && !w.cuts && !w.experts)
        return opts_usage_error(&spec, "--cuts, --stages or machines are required");
    return run_split(&w, &e) < 0 ? opts_failure(&spec, &e) : 0;
}

/* ---- verify, inspect, join ---- */

static void print_damage(void *ctx, const char *path, const char *what) {
    bool *on = ctx;
    if (*on) fprintf(stderr, "\r%79s\r", "");
    printf("%s: %s\n", path, what);
    fflush(stdout);
}

static int cmd_verify(int argc, char **argv) {
    int stage = -1;
    const struct opt table[] = {
        OPT_INT('s', "stage", &stage, -1, SHARD_COUNT_MAX, "N",
                "only the files of this stage; -1: all, and they must be complete"),
    };
    const struct opts spec = { "shard verify",
                               "FOLDER|FILE...",
                               "Reads shards and compares every tensor with its checksum.",
                               table,
                               COUNT_OF(table),
                               1,
                               FILES_MAX };
    struct file_names files;
    struct err e;
    struct bar bar;
    struct shard_verify_result r;
    int n = opts_parse(&spec, argc, argv);
    if (n < 0) return opts_exit_status(n);
    if (shard_tool_files(&files, (const char *const *)argv + 1, n, &e) < 0) return opts_failure(&spec, &e);
    struct shard_verify v = { .files = &files,
                              .stage = stage,
                              .progress = bar_start(&bar),
                              .damage = print_damage,
                              .damage_ctx = &bar.on };
    int rc = shard_verify(&v, &r, &e);
    double seconds = bar_end(&bar);
    file_names_free(&files);
    if (rc < 0) return opts_failure(&spec, &e);
    printf("%u files, %llu tensors, %.3f GB in %.1f s (%.2f GB/s): ", r.n_files,
           (unsigned long long)r.n_tensors, (double)r.bytes / 1e9, seconds,
           (double)r.bytes / 1e9 / fmax(seconds, 1e-9));
    if (r.n_damaged) printf("%llu damaged or missing\n", (unsigned long long)r.n_damaged);
    else printf("all as they should be\n");
    return r.n_damaged ? OPTS_EXIT_FAILURE : 0;
}

static int cmd_inspect_shards(int argc, char **argv) {
    bool tensors = false;
    const struct opt table[] = { OPT_FLAG('t', "tensors", &tensors,
                                          "list every tensor with its checksum, too") };
    const struct opts spec = {
        "shard inspect", "FOLDER|FILE...", "Shows what shards hold. Reads headers only.",
        table,           COUNT_OF(table),  1,
        FILES_MAX
    };
    struct file_names files;
    struct err e;
    struct buf text;
    int n = opts_parse(&spec, argc, argv), rc = 0;
    if (n < 0) return opts_exit_status(n);
    if (shard_tool_files(&files, (const char *const *)argv + 1, n, &e) < 0) return opts_failure(&spec, &e);
    buf_init(&text, OUTPUT_MAX);
    for (int i = 0; i < files.n && rc == 0; i++) rc = shard_inspect(files.name[i], tensors, &text, &e);
    fputs(text.data, stdout);
    buf_deinit(&text);
    file_names_free(&files);
    return rc < 0 ? opts_failure(&spec, &e) : 0;
}

static int cmd_join(int argc, char **argv) {
    const char *out = NULL;
    const struct opt table[] = { OPT_STRING('o', "output", &out, "FILE",
                                            "the GGUF file to write (required)") };
    const struct opts spec = { "shard join",
                               "FOLDER|FILE...",
                               "Puts all shards of a split together again, checking every tensor.",
                               table,
                               COUNT_OF(table),
                               1,
                               FILES_MAX };
    struct file_names files;
    struct err e;
    struct bar bar;
    struct shard_join_result r;
    int n = opts_parse(&spec, argc, argv);
    if (n < 0) return opts_exit_status(n);
    if (!out) return opts_usage_error(&spec, "--output FILE is required");
    if (shard_tool_files(&files, (const char *const *)argv + 1, n, &e) < 0) return opts_failure(&spec, &e);
    struct shard_progress progress = bar_start(&bar);
    int rc = shard_join(&files, out, &progress, &r, &e);
    double seconds = bar_end(&bar);
    file_names_free(&files);
    if (rc < 0) return opts_failure(&spec, &e);
    printf("%s: %llu tensors, %.3f GB; %.1f s, %.2f GB/s\n", out, (unsigned long long)r.n_tensors,
           (double)r.bytes / 1e9, seconds, (double)r.bytes / 1e9 / fmax(seconds, 1e-9));
    return 0;
}

/* ---- the command ---- */

static const struct subcommand commands[] = {
    { "plan", cmd_plan, "which machine takes which layers, and how fast that will be" },
    { "split", cmd_split, "cut a model into one file per stage" },
    { "verify", cmd_verify, "compare shards with their checksums" },
    { "inspect", cmd_inspect_shards, "what shards hold" },
    { "join", cmd_join, "shards back to one model" },
};

int cmd_shard(int argc, char **argv) {
    return subcommands_run("shard", commands, COUNT_OF(commands), argc, argv);
}
