/* cmd_bench - how fast the model runs here, beside what the machine could do at best.
 *
 * Prefill: N new prompt tokens behind `depth` tokens of context. Decode: G steps, each one row per
 * sequence. Tokens are pseudo-random (the speed of a mixture of experts depends on how its experts are
 * hit, not on meaning). Bytes per token are those of the weights a step must read: everything but the
 * embedding once, and as many experts as its rows are expected to touch; GB/s is that over the time,
 * and the share of the measured read bandwidth stands beside it. */
#include "cli/cmd.h"

#include "cli/engine.h"
#include "common/base/buf.h"
#include "common/base/rng.h"
#include "common/sys/clock.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

enum { BENCH_LIST_MAX = 16, BENCH_JSON_MAX = 1 << 22, BENCH_SEQS_MAX = 256 };

struct bench {
    struct engine g;
    struct kernels_peaks peaks;
    uint64_t prompt[BENCH_LIST_MAX], depth[BENCH_LIST_MAX], seqs[BENCH_LIST_MAX];
    int n_prompt, n_depth, n_seqs, gen;
    bool json, ops;
    struct buf rows;                               /* JSON rows */
    uint64_t dense_bytes, expert_bytes;            /* touched by every step; all experts of all layers */
    uint64_t state;                                /* of the token generator */
};

static int parse_list(const char *text, uint64_t *out, int *n, struct err *e) {
    *n = 0;
    for (const char *at = text; *at; at += *at == ',') {
        char item[32];
        size_t len = strcspn(at, ",");
        if (len == 0 || len >= sizeof item || *n == BENCH_LIST_MAX)
            return err_set(e, ERR_INVALID, "'%s' is not a list of numbers", text);
        memcpy(item, at, len);
        item[len] = 0;
        if (opts_read_u64(item, &out[*n]) < 0 || out[*n] > 1 << 24)
            return err_set(e, ERR_INVALID, "'%s' is not a number here", item);
        (*n)++;
        at += len;
    }
    return *n ? 0 : err_set(e, ERR_INVALID, "an empty list");
}

/* ---- what a step reads ---- */

static void count_bytes(struct bench *b) {
    const struct gguf *g = stage_model_gguf(b->g.stage[0]);
    for (uint64_t i = 0; i < gguf_n_tensors(g); i++) {
        const struct gguf_tensor *t = gguf_tensor_at(g, i);
        char name[96] = { 0 };
        memcpy(name, t->name.data, MIN(t->name.len, sizeof name - 1));
        if (strstr(name, "token_embd") || strstr(name, "tid2eid")) continue;
        if (strstr(name, "_exps.")) b->expert_bytes += t->size;
        else b->dense_bytes += t->size;
    }
}

/* Expected distinct experts of n rows, as a share of all (spec 7.4). */
static double expert_share(const struct bench *b, uint64_t n) {
    const struct hparams *hp = engine_hparams(&b->g);
    return 1 - pow(1 - (double)hp->n_expert_used / hp->n_expert, (double)n);
}

static double step_bytes(const struct bench *b, uint64_t n) {
    return (double)b->dense_bytes + (double)b->expert_bytes * expert_share(b, n);
}

/* ---- tokens ---- */

static int32_t next_token(struct bench *b) {
    const struct hparams *hp = engine_hparams(&b->g);
    uint64_t r = rng_at(42, b->state++);
    return (int32_t)(r % hp->n_vocab);
}

static int keep_nothing(void *ctx, uint32_t i, const float *logits, struct err *e) {
    (void)ctx, (void)i, (void)logits, (void)e;
    return 0;
}

static int eval_random(struct bench *b, uint64_t n, struct err *e) {
    int32_t *token = malloc((n ? n : 1) * sizeof *token);
    if (!token) return err_set(e, ERR_NOMEM, "no memory for %llu tokens", (unsigned long long)n);
    for (uint64_t i = 0; i < n; i++) token[i] = next_token(b);
    int rc = n ? engine_eval(&b->g, token, (uint32_t)n, 1, keep_nothing, NULL, NULL, NULL, e) : 0;
    free(token);
    return rc;
}

/* ---- rows of the table ---- */

static void print_row(struct bench *b, const char *what, uint64_t n, uint64_t depth, uint64_t seqs,
                      uint64_t tokens, double seconds, double bytes) {
    double tokens_s = (double)tokens / seconds, bytes_s = bytes / seconds;
    double share = b->peaks.read_bytes_s > 0 ? 100 * bytes_s / b->peaks.read_bytes_s : 0;
    if (!b->json) {
        printf("%-8s %7llu %8llu %5llu %10.2f %12.1f %10.2f %7.1f%%\n", what, (unsigned long long)n,
               (unsigned long long)depth, (unsigned long long)seqs, tokens_s,
               bytes / (double)tokens / 1e6, bytes_s / 1e9, share);
        fflush(stdout);
        return;
    }
    buf_printf(&b->rows,
               "%s\n    {\"test\": \"%s\", \"n\": %llu, \"depth\": %llu, \"seqs\": %llu, "
               "\"tokens_per_s\": %.4f, "
               "\"bytes_per_token\": %.0f, \"bytes_per_s\": %.0f, \"bandwidth_share\": %.4f}",
               b->rows.size ? "," : "", what, (unsigned long long)n, (unsigned long long)depth,
               (unsigned long long)seqs, tokens_s, bytes / (double)tokens, bytes_s, share / 100);
}

static void print_ops(struct bench *b, double seconds) {
    struct kernels *k = stage_model_kernels(b->g.stage[0]);
    if (!b->ops || b->json) return;
    for (int i = 0; i < KERNEL_COUNT; i++)
        if (k->op_ns[i])
            printf("    %-14s %8llu calls %10.3f ms %6.1f%%\n", kernels_op_name((enum kernel_op)i),
                   (unsigned long long)k->op_calls[i], (double)k->op_ns[i] * 1e-6,
                   (double)k->op_ns[i] * 1e-7 / seconds);
}

static void reset_ops(struct bench *b) {
    struct kernels *k = stage_model_kernels(b->g.stage[0]);
    k->timing = b->ops;
    memset(k->op_ns, 0, sizeof k->op_ns);
    memset(k->op_calls, 0, sizeof k->op_calls);
}

static int bench_prefill(struct bench *b, uint64_t n, uint64_t depth, struct err *e) {
    int rc = engine_rollback(&b->g, 0, e);
    if (rc == 0) rc = eval_random(b, depth, e);
    if (rc < 0) return rc;
    reset_ops(b);
    uint64_t start = clock_now_ns(), chunks = (n + b->g.chunk - 1) / b->g.chunk;
    rc = eval_random(b, n, e);
    double seconds = clock_seconds_since(start);
    if (rc == 0)
        print_row(b, "prefill", n, depth, 1, n, seconds,
                  (double)chunks * step_bytes(b, MIN(n, b->g.chunk)));
    print_ops(b, seconds);
    return rc;
}

/* Opens n - 1 more sequences beside the engine's own, each `depth` tokens long. */
static int fill_sequences(struct bench *b, uint64_t n, uint64_t depth, uint32_t *slot, struct err *e) {
    int rc = engine_rollback(&b->g, 0, e);
    if (rc == 0) rc = eval_random(b, depth, e);
    slot[0] = b->g.slot[0];
    for (uint64_t i = 1; rc == 0 && i < n; i++)
        for (int s = 0; rc == 0 && s < b->g.n_stages; s++)
            rc = stage_seq_fork(b->g.stage[s], b->g.slot[s], (uint32_t)depth, &slot[i], e);
    return rc;
}

static int decode_steps(struct bench *b, uint64_t n, const uint32_t *slot, int steps, float *logits,
                        struct err *e) {
    struct stage_seg segs[BENCH_SEQS_MAX];
    int32_t token[BENCH_SEQS_MAX], rows[BENCH_SEQS_MAX];
    int rc = 0;
    for (int step = 0; rc == 0 && step < steps; step++) {
        for (uint64_t i = 0; i < n; i++) {
            token[i] = next_token(b);
            rows[i] = (int32_t)i;
            segs[i] = (struct stage_seg){ .slot = slot[i], .n = 1, .token = &token[i] };
        }
        rc = engine_run(&b->g, segs, (uint32_t)n, rows, (uint32_t)n, logits, e);
    }
    return rc;
}

static int bench_decode(struct bench *b, uint64_t n, uint64_t depth, struct err *e) {
    uint32_t slot[BENCH_SEQS_MAX];
    float *logits = malloc(n * engine_hparams(&b->g)->n_vocab * sizeof *logits);
    if (!logits) return err_set(e, ERR_NOMEM, "no memory for logits");
    int rc = fill_sequences(b, n, depth, slot, e);
    if (rc == 0) rc = decode_steps(b, n, slot, 1, logits, e);          /* first touch of everything */
    reset_ops(b);
    uint64_t start = clock_now_ns();
    if (rc == 0) rc = decode_steps(b, n, slot, b->gen, logits, e);
    double seconds = clock_seconds_since(start);
    uint64_t tokens = n * (uint64_t)b->gen;
    if (rc == 0)
        print_row(b, "decode", (uint64_t)b->gen, depth, n, tokens, seconds,
                  b->gen * step_bytes(b, n));
    if (rc == 0) print_ops(b, seconds);
    for (uint64_t i = 1; rc == 0 && i < n; i++)
        for (int s = 0; s < b->g.n_stages; s++) stage_seq_close(b->g.stage[s], slot[i]);
    free(logits);
    return rc;
}

static int bench_all(struct bench *b, struct err *e) {
    int rc = 0;
    for (int d = 0; rc == 0 && d < b->n_depth; d++) {
        for (int p = 0; rc == 0 && p < b->n_prompt; p++)
            if (b->prompt[p]) rc = bench_prefill(b, b->prompt[p], b->depth[d], e);
        for (int s = 0; rc == 0 && s < b->n_seqs && b->gen; s++)
            rc = bench_decode(b, MAX(b->seqs[s], 1), b->depth[d], e);
    }
    return rc;
}

static void print_head(const struct bench *b, const char *model) {
    struct stage_memory memory = stage_model_memory(b->g.stage[0]);
    printf("%s\n", model);
    printf("machine  %d threads (%s): read %.1f GB/s, int8 %.0f Gop/s, f32 %.0f GFLOP/s\n",
           b->peaks.n_threads, kernels_cpu_simd_name(), b->peaks.read_bytes_s / 1e9,
           b->peaks.int8_ops_s / 1e9, b->peaks.f32_ops_s / 1e9);
    printf("weights  %.3f GB, work %.1f MB, loaded in %.2f s; one token reads %.1f MB\n\n",
           (double)memory.weights / 1e9, (double)memory.work / 1e6, b->g.load_seconds,
           step_bytes(b, 1) / 1e6);
    printf("%-8s %7s %8s %5s %10s %12s %10s %8s\n", "test", "n", "depth", "seqs", "tokens/s",
           "MB/token", "GB/s", "of read");
}

static void print_json(const struct bench *b, const char *model) {
    struct stage_memory memory = stage_model_memory(b->g.stage[0]);
    printf("{\n  \"model\": \"%s\",\n  \"machine\": {\"threads\": %d, \"simd\": \"%s\", "
           "\"read_bytes_per_s\": %.0f, "
           "\"int8_ops_per_s\": %.0f, \"f32_ops_per_s\": %.0f},\n",
           model, b->peaks.n_threads, kernels_cpu_simd_name(), b->peaks.read_bytes_s,
           b->peaks.int8_ops_s, b->peaks.f32_ops_s);
    printf("  \"memory\": {\"weights\": %llu, \"state\": %llu, \"work\": %llu},\n  \"load_s\": "
           "%.4f,\n  \"rows\": [%s\n  ]\n}\n",
           (unsigned long long)memory.weights, (unsigned long long)memory.state,
           (unsigned long long)memory.work, b->g.load_seconds, b->rows.data ? b->rows.data : "");
}

static int bench(struct bench *b, struct engine_options *o, struct err *e) {
    uint64_t most = 1;
    for (int i = 0; i < b->n_seqs; i++) most = MAX(most, b->seqs[i]);
    if (most > BENCH_SEQS_MAX) return err_set(e, ERR_INVALID, "at most %d sequences", BENCH_SEQS_MAX);
    o->n_seqs = (int)most;
    int rc = kernels_cpu_measure(&b->peaks, o->n_threads, e);
    if (rc == 0) rc = engine_open(&b->g, o, e);
    if (rc < 0) return rc;
    count_bytes(b);
    if (!b->json) print_head(b, o->model);
    rc = bench_all(b, e);
    if (rc == 0 && b->json) print_json(b, o->model);
    return rc;
}

int cmd_bench(int argc, char **argv) {
    struct engine_options o;
    struct bench *b = calloc(1, sizeof *b);
    if (!b) return OPTS_EXIT_FAILURE;
    engine_options_init(&o);
    buf_init(&b->rows, BENCH_JSON_MAX);
    b->gen = 32;
    const char *prompt = "512", *depth = "0", *seqs = "1";
    const struct opt table[] = {
        ENGINE_OPTS(o),
        OPT_STRING('p', "prompt", &prompt, "N,N,..", "prompt lengths to measure; 0: none"),
        OPT_INT('n', "gen", &b->gen, 0, 1 << 20, "N", "decode steps to measure; 0: none"),
        OPT_STRING('d', "depth", &depth, "N,N,..", "tokens of context before each test"),
        OPT_STRING('s', "seqs", &seqs, "N,N,..", "sequences decoded together"),
        OPT_FLAG(0, "ops", &b->ops, "also print the time of each kind of operation"),
        OPT_FLAG('j', "json", &b->json, "print JSON"),
    };
    const struct opts spec = { "bench",
                               "",
                               "Measures prefill and decode, beside this machine's own limits.",
                               table,
                               COUNT_OF(table),
                               0,
                               0 };
    int n_args = opts_parse(&spec, argc, argv), status = 0;
    struct err e = { 0 };
    if (n_args < 0) status = opts_exit_status(n_args);
    else if (!o.model) status = opts_usage_error(&spec, "--model FILE is required");
    else if (parse_list(prompt, b->prompt, &b->n_prompt, &e) < 0 ||
             parse_list(depth, b->depth, &b->n_depth, &e) < 0 ||
             parse_list(seqs, b->seqs, &b->n_seqs, &e) < 0 || bench(b, &o, &e) < 0)
        status = opts_failure(&spec, &e);
    engine_close(&b->g);
    buf_deinit(&b->rows);
    free(b);
    return status;
}
