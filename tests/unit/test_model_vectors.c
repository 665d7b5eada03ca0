/* The golden vectors, in this process: roundings bit by bit through every table of inner loops, single
 * sub-layers through the real schedule with given inputs, and whole prompts. The rules are those of the
 * vectors' README. The command line's way to the same numbers, the greedy continuations and the long
 * prompts are in tests/integration/vectors.sh. */
#include "tests/harness/effort.h"
#include "tests/harness/vectors.h"

#include "cli/engine.h"
#include "kernels/cpu/simd.h"
#include "node/model_deepseek4.h"

#include <math.h>

static const struct cpu_simd *tables[8];
static int n_tables, table_i; /* the table of the group that runs; the first is this machine's own */
static const char *const models[] = { "tiny-f32", "tiny-q8", "tiny-q2" };

static const char *part_name(const char *format, const char *a, const char *b) {
    static char name[2][256];
    static int next;
    char *out = name[next++ % 2];
    snprintf(out, sizeof name[0], format, a, b);
    return out;
}

static const struct vector *need(const struct vectors *v, const char *name, bool is_int) {
    const struct vector *a = vectors_at(v, name);
    if (!a || a->is_int != is_int) fail_msg("the vectors have no array %s of that type", name);
    return a;
}

static const float *floats(const struct vectors *v, const char *name) {
    return need(v, name, false)->data;
}

static const int32_t *ints(const struct vectors *v, const char *name) {
    return need(v, name, true)->data;
}

/* ---- roundings ---- */

static void same_bits(const char *what, const char *table, const float *got, const float *want, uint64_t n) {
    for (uint64_t i = 0; i < n; i++)                  /* -0 and 0 are one value of the formats' sums */
        if (f32_bits(got[i] + 0.0f) != f32_bits(want[i] + 0.0f))
            fail_msg("%s, %s: value %llu is %.9g, expected %.9g", table, what,
                     (unsigned long long)i, (double)got[i], (double)want[i]);
}

/* Single values through blocks whose scale their largest value fixes at 1. */
static void check_scalars(const struct cpu_simd *simd, const struct vectors *v) {
    const struct vector *e4m3 = need(v, "e4m3.in", false), *e2m1 = need(v, "e2m1.in", false);
    uint32_t n_e4m3 = 0, n_e2m1 = 0;
    for (uint64_t i = 0; i < e4m3->n; i++) {
        float x[64] = { ((const float *)e4m3->data)[i], 448 }, out[64];
        uint8_t row[80] = { 0 };
        if (!(fabsf(x[0]) <= 448)) continue;          /* above it the scale is not 1 */
        simd->kv_pack(row, x, 64, 0);
        simd->kv_unpack(out, row, 64, 0);
        same_bits("e4m3", simd->name, out, floats(v, "e4m3.out") + i, 1);
        n_e4m3++;
    }
    for (uint64_t i = 0; i < e2m1->n; i++) {
        float x[32] = { ((const float *)e2m1->data)[i], 6 }, value;
        int8_t code[32], exponent;
        if (!(fabsf(x[0]) <= 6)) continue;
        simd->fp4_codes(code, &exponent, x, 32);
        value = ldexpf((float)code[0], exponent - 1);
        same_bits("e2m1", simd->name, &value, floats(v, "e2m1.out") + i, 1);
        n_e2m1++;
    }
    assert_true(n_e4m3 > 400 && n_e2m1 > 100);
}

static void check_kv_rows(const struct cpu_simd *simd, const struct vectors *v) {
    const struct vector *in = need(v, "kv_fp8.in", false);
    int n = (int)in->dims[1];
    for (uint64_t i = 0; i < in->dims[0]; i++) {
        float out[448];
        uint8_t row[448 + 7] = { 0 };
        assert_int_equal(n, 448);
        simd->kv_pack(row, (const float *)in->data + i * 448, 448, 0);
        simd->kv_unpack(out, row, 448, 0);
        same_bits("KV row", simd->name, out, floats(v, "kv_fp8.out") + i * 448, 448);
    }
}

/* The codes of rotated rows, as queries and as keys keep them. */
static void check_codes(const struct cpu_simd *simd, const float *rotated, const float *want) {
    static const float value[8] = { 0, 0.5f, 1, 1.5f, 2, 3, 4, 6 };
    float key[128], query[128];
    uint8_t packed[68];
    int8_t code[128], exponent[4];
    simd->fp4_codes(code, exponent, rotated, 128);
    simd->fp4_pack(packed, rotated, 128);
    for (int k = 0; k < 128; k++) {
        int b = k / 32, nibble = packed[16 * b + k % 16] >> (k % 32 >= 16 ? 4 : 0) & 15;
        query[k] = ldexpf((float)code[k], exponent[b] - 1);
        key[k] = ldexpf(nibble & 8 ? -value[nibble & 7] : value[nibble & 7], (int8_t)packed[64 + b]);
    }
    same_bits("FP4 key", simd->name, key, want, 128);
    same_bits("FP4 query", simd->name, query, want, 128);
}

/* The recorded rotation was summed in double: ours may differ in the last bits, its codes may not. */
static void check_index_rows(const struct cpu_simd *simd, const struct vectors *v) {
    const struct vector *in = need(v, "index_fp4.in", false);
    for (uint64_t i = 0; i < in->dims[0]; i++) {
        const float *rotated = floats(v, "index_fp4.hadamard") + i * 128,
                    *want = floats(v, "index_fp4.out") + i * 128;
        float x[128], largest = 0;
        memcpy(x, (const float *)in->data + i * 128, sizeof x);
        simd->hadamard(x, 128);
        for (int k = 0; k < 128; k++) largest = fmaxf(largest, fabsf(rotated[k]));
        for (int k = 0; k < 128; k++)
            if (!(fabsf(x[k] - rotated[k]) <= 5e-7f * largest))
                fail_msg("%s, Hadamard: value %d is %.9g, expected %.9g", simd->name, k, (double)x[k],
                         (double)rotated[k]);
        check_codes(simd, rotated, want);
        check_codes(simd, x, want);
    }
}

static void roundings_are_those_of_the_vectors_bit_by_bit(void **state) {
    struct vectors v;
    (void)state;
    vectors_read(&v, vectors_need("model/rounding.vec"));
    check_scalars(tables[table_i], &v);
    check_kv_rows(tables[table_i], &v);
    check_index_rows(tables[table_i], &v);
    vectors_free(&v);
}

/* ---- sub-layers ---- */

enum { SUB_ROWS = 136 };

struct sub {                                          /* a model without a stage around it */
    struct gguf *g;
    struct hparams hp;
    struct kernels *k;
    struct weights *w;
    struct kv_cache *kv;
    struct model m;
    uint32_t slot;
    int32_t token[SUB_ROWS], pos[SUB_ROWS], seg[SUB_ROWS];
    struct kseg segs;
};

static void sub_open(struct sub *s, const char *model, enum numerics numerics) {
    struct kernels_config config = { .backend = "cpu", .precision = PRECISION_F32, .n_threads = 2 };
    struct err e;
    *s = (struct sub){ 0 };
    assert_fine(gguf_open(&s->g, vectors_need(part_name("model/%s.gguf%s", model, "")), &e), &e);
    assert_fine(hparams_read(&s->hp, s->g, &e), &e);
    assert_fine(kernels_open(&s->k, &config, &e), &e);
    struct weights_range range = { .layer_end = s->hp.n_layer, .embed = true, .head = true };
    assert_fine(weights_open(&s->w, s->k, s->g, &s->hp, &range, NULL, NULL, &e), &e);
    struct kv_config kv = {
        .hp = &s->hp, .numerics = numerics, .layer_end = s->hp.n_layer, .n_slots = 1, .n_ctx_max = SUB_ROWS
    };
    assert_fine(kv_cache_new(&s->kv, s->k, &kv, &e), &e);
    assert_fine(model_init(&s->m, s->k, &s->hp, s->w, s->kv, NULL, SUB_ROWS, numerics, &e), &e);
}

static void sub_close(struct sub *s) {
    model_deinit(&s->m);
    kv_cache_free(s->kv);
    weights_close(s->w, s->k);
    kernels_close(s->k);
    gguf_close(s->g);
}

/* Rows pos0 .. pos0+n of the one sequence, ready to be run. */
static struct kbatch sub_batch(struct sub *s, int32_t pos0, int32_t n, const int32_t *token) {
    struct err e;
    for (int32_t i = 0; i < n; i++) {
        s->pos[i] = pos0 + i;
        s->seg[i] = 0;
        s->token[i] = token ? token[i] : 0;
    }
    s->segs = (struct kseg){ .n = n, .pos0 = pos0, .slot = (int32_t)s->slot };
    struct kbatch batch = {
        .n_rows = n, .n_seg = 1, .token = s->token, .pos = s->pos, .seg = s->seg, .segs = &s->segs
    };
    assert_fine(kv_slot_reserve(s->kv, s->slot, (uint32_t)(pos0 + n), &e), &e);
    assert_fine(model_begin(&s->m, &batch, &e), &e);
    return batch;
}

/* 1e-5 for all rows; with roundings for 95 % of them, because one value may fall on the other side. */
static void close_rows(const char *model, const char *what, enum numerics numerics,
                       const float *got, const float *want, uint64_t n, uint64_t row) {
    uint64_t n_near = 0;
    float largest = 0;
    for (uint64_t i = 0; i < n; i++) {
        float d = 0;
        for (uint64_t k = 0; k < row; k++) d = fmaxf(d, fabsf(got[i * row + k] - want[i * row + k]));
        n_near += d <= 1e-5f;
        largest = fmaxf(largest, d);
    }
    uint64_t n_must = numerics == NUMERICS_EXACT ? n : (95 * n + 99) / 100;
    if (n_near < n_must)
        fail_msg("%s %s: %llu of %llu rows are within 1e-5, the farthest at %g", model, what,
                 (unsigned long long)n_near, (unsigned long long)n, (double)largest);
}

static void check_attention(struct sub *s, const char *model, const struct vectors *v,
                            const struct vector *in, enum numerics numerics, int32_t chunk) {
    char base[64];
    unsigned layer;
    struct err e;
    uint64_t d = s->hp.n_embd;
    snprintf(base, sizeof base, "%.*s", (int)(strlen(in->name) - 3), in->name);
    assert_int_equal(sscanf(strrchr(base, '.'), ".L%u", &layer), 1);
    assert_int_equal(in->dims[0], SUB_ROWS);
    float *out = xcalloc(SUB_ROWS * d, sizeof *out);
    assert_fine(kv_slot_open(s->kv, &s->slot, &e), &e);
    for (int32_t done = 0; done < SUB_ROWS; done += chunk) {
        int32_t n = MIN(chunk, SUB_ROWS - done);
        struct kbatch batch = sub_batch(s, done, n, NULL);
        assert_fine(kernels_upload(s->k, s->m.xn.data, (const float *)in->data + (uint64_t)done * d,
                                   (uint64_t)n * d * 4, &e),
                    &e);
        model_attention(&s->m, &batch, layer);
        assert_fine(
            kernels_download(s->k, out + (uint64_t)done * d, s->m.y.data, (uint64_t)n * d * 4, &e),
            &e);
        kv_slot_begin(s->kv, s->slot, (uint32_t)n);
        kv_slot_advance(s->kv, s->slot, (uint32_t)n);
    }
    kv_slot_close(s->kv, s->slot);
    close_rows(model, base, numerics, out, floats(v, part_name("%s%s", base, ".out")), SUB_ROWS, d);
    free(out);
}

/* Experts are recorded in any order; ours are ascending. */
static void check_choice(const char *model, const char *base, const int32_t *ids, const float *weights,
                         const int32_t *want_ids, const float *want_weights, uint64_t n, uint32_t n_used) {
    for (uint64_t i = 0; i < n * n_used; i++) {
        const int32_t *row = want_ids + i / n_used * n_used;
        uint32_t k = 0;
        while (k < n_used && row[k] != ids[i]) k++;
        if (k == n_used)
            fail_msg("%s %s: row %llu uses expert %d", model, base, (unsigned long long)(i / n_used), ids[i]);
        assert_true(fabsf(weights[i] - want_weights[i / n_used * n_used + k]) <= 2e-6f);
        assert_true(i % n_used == 0 || ids[i] > ids[i - 1]);
    }
}

static void check_ffn(struct sub *s, const char *model, const struct vectors *v, const struct vector *in,
                      enum numerics numerics) {
    char base[64];
    unsigned layer;
    struct err e;
    uint64_t d = s->hp.n_embd, n = in->dims[0];
    uint32_t n_used = s->hp.n_expert_used;
    snprintf(base, sizeof base, "%.*s", (int)(strlen(in->name) - 3), in->name);
    assert_int_equal(sscanf(strrchr(base, '.'), ".L%u", &layer), 1);
    float *y = xcalloc(n * d, sizeof *y), *y2 = xcalloc(n * d, sizeof *y2),
          *weights = xcalloc(n * n_used, sizeof *weights);
    int32_t *ids = xcalloc(n * n_used, sizeof *ids);
    assert_fine(kv_slot_open(s->kv, &s->slot, &e), &e);
    struct kbatch batch = sub_batch(s, 0, (int32_t)n, ints(v, part_name("%s%s", base, ".tokens")));
    assert_fine(kernels_upload(s->k, s->m.xn.data, in->data, n * d * 4, &e), &e);
    model_ffn(&s->m, &batch, layer);
    assert_fine(kernels_download(s->k, y, s->m.y.data, n * d * 4, &e), &e);
    assert_fine(kernels_download(s->k, y2, s->m.y2.data, n * d * 4, &e), &e);
    assert_fine(kernels_download(s->k, ids, s->m.ids.data, n * n_used * 4, &e), &e);
    assert_fine(kernels_download(s->k, weights, s->m.route_w.data, n * n_used * 4, &e), &e);
    kv_slot_close(s->kv, s->slot);
    for (uint64_t i = 0; i < n * d; i++) y[i] += y2[i];
    close_rows(model, base, numerics, y, floats(v, part_name("%s%s", base, ".out")), n, d);
    check_choice(model, base, ids, weights, ints(v, part_name("%s%s", base, ".experts")),
                 floats(v, part_name("%s%s", base, ".weights")), n, n_used);
    free(y);
    free(y2);
    free(ids);
    free(weights);
}

/* The operation ends with the norm; the recorded sum of streams gets it here, in double. */
static void check_connection(struct sub *s, const char *model, const struct vectors *v,
                             const struct vector *in, enum numerics numerics) {
    unsigned layer;
    struct err e;
    uint64_t d = s->hp.n_embd, n = in->dims[0];
    assert_int_equal(sscanf(in->name, "hc.attn.L%u", &layer), 1);
    const struct layer_weights *w = &s->w->layer[layer];
    float *out = xcalloc(n * d, sizeof *out), *want = xcalloc(n * d, sizeof *want), post[SUB_ROWS * 4],
          comb[SUB_ROWS * 16];
    const float *norm = w->attn_norm.data, *collapsed;
    char name[64];
    assert_fine(kernels_upload(s->k, s->m.x.data, in->data, n * 4 * d * 4, &e), &e);
    kernels_hc_pre(s->k, &(struct hc_pre_args){ .out = &s->m.xn,
                                                .post = &s->m.post,
                                                .comb = &s->m.comb,
                                                .x = &s->m.x,
                                                .fn = &w->hc_attn_fn,
                                                .scale = &w->hc_attn_scale,
                                                .base = &w->hc_attn_base,
                                                .norm = &w->attn_norm,
                                                .rms_eps = s->hp.rms_eps,
                                                .hc_eps = s->hp.hc_eps,
                                                .n_sinkhorn = (int32_t)s->hp.n_sinkhorn,
                                                .n = (int32_t)n });
    assert_fine(kernels_download(s->k, out, s->m.xn.data, n * d * 4, &e), &e);
    assert_fine(kernels_download(s->k, post, s->m.post.data, n * 16, &e), &e);
    assert_fine(kernels_download(s->k, comb, s->m.comb.data, n * 64, &e), &e);
    snprintf(name, sizeof name, "hc.attn.L%u.collapsed", layer);
    collapsed = floats(v, name);
    for (uint64_t i = 0; i < n; i++) {
        double sum = 0;
        for (uint64_t k = 0; k < d; k++) sum += (double)collapsed[i * d + k] * (double)collapsed[i * d + k];
        double r = 1 / sqrt(sum / (double)d + (double)s->hp.rms_eps);
        for (uint64_t k = 0; k < d; k++)
            want[i * d + k] = (float)((double)collapsed[i * d + k] * r * (double)norm[k]);
    }
    close_rows(model, "connection: streams in", numerics, out, want, n, d);
    snprintf(name, sizeof name, "hc.attn.L%u.post", layer);
    close_rows(model, "connection: post", numerics, post, floats(v, name), n, 4);
    snprintf(name, sizeof name, "hc.attn.L%u.comb", layer);
    close_rows(model, "connection: comb", numerics, comb, floats(v, name), n, 16);
    free(out);
    free(want);
}

static void check_sub(const char *model, const char *mode, enum numerics numerics) {
    struct vectors v;
    struct sub s;
    int n_attention = 0, n_ffn = 0, n_connection = 0;
    vectors_read(&v, vectors_need(part_name("model/%s.%s.sub.vec", model, mode)));
    sub_open(&s, model, numerics);
    for (uint32_t i = 0; i < v.n; i++) {
        const struct vector *a = &v.items[i];
        size_t len = strlen(a->name);
        if (strncmp(a->name, "hc.", 3) == 0 && strstr(a->name, ".streams")) {
            check_connection(&s, model, &v, a, numerics);
            n_connection++;
        }
        if (len < 3 || strcmp(a->name + len - 3, ".in") != 0) continue;
        if (strncmp(a->name, "attn.", 5) == 0) {
            check_attention(&s, model, &v, a, numerics, SUB_ROWS);
            if (table_i == 0 && effort() > EFFORT_QUICK) check_attention(&s, model, &v, a, numerics, 29);
            n_attention++;
        } else {
            check_ffn(&s, model, &v, a, numerics);
            n_ffn++;
        }
    }
    assert_true(n_attention == 3 && n_ffn == 2 && n_connection == 1);
    sub_close(&s);
    vectors_free(&v);
}

static void sub_layers_give_the_recorded_outputs_without_roundings(void **state) {
    (void)state;
    for (size_t i = 0; i < COUNT_OF(models); i++) check_sub(models[i], "exact", NUMERICS_EXACT);
}

static void sub_layers_give_the_recorded_outputs_with_roundings(void **state) {
    (void)state;
    for (size_t i = 0; i < COUNT_OF(models); i++) check_sub(models[i], "official", NUMERICS_WIDE);
}

/* ---- prompts ---- */

static const struct rule {
    const char *mode;
    float floor;
    uint32_t percent; /* of the positions must be near; below 10 positions all */
} rules[] = { { "exact", 1e-4f, 100 }, { "official", 5e-3f, 90 }, { "official-f16", 1e-2f, 90 } };

struct logit_rows {
    float *rows;
    uint32_t n_vocab;
};

static int keep_row(void *ctx, uint32_t i, const float *logits, struct err *e) {
    const struct logit_rows *to = ctx;
    (void)e;
    memcpy(to->rows + (uint64_t)i * to->n_vocab, logits, to->n_vocab * sizeof *logits);
    return 0;
}

/* Logits of the last n_last positions; the caller frees the rows. */
static float *run_prompt(const char *model, const char *numerics, const char *precision, const int32_t *token,
                         uint32_t n, uint32_t n_last) {
    struct engine_options o;
    struct engine g;
    struct err e;
    engine_options_init(&o);
    o.model = vectors_need(part_name("model/%s.gguf%s", model, ""));
    o.numerics = numerics, o.precision = precision, o.backend = "cpu", o.n_threads = 2;
    assert_fine(engine_open(&g, &o, &e), &e);
    struct logit_rows to = { .n_vocab = engine_hparams(&g)->n_vocab };
    to.rows = xcalloc((size_t)n_last * to.n_vocab, sizeof(float));
    assert_fine(engine_eval(&g, token, n, n_last, keep_row, &to, NULL, NULL, &e), &e);
    engine_close(&g);
    return to.rows;
}

static void score_prompt(const char *model, const struct rule *rule, const struct vectors *v, unsigned n) {
    char prefix[16];
    snprintf(prefix, sizeof prefix, "p%u", n);
    const struct vector *positions = need(v, part_name("%s.%s", prefix, "positions"), true);
    const struct vector *logits = need(v, part_name("%s.%s", prefix, "logits_f64"), false);
    const float *noise = floats(v, part_name("%s.%s", prefix, "noise")), *want = logits->data;
    uint64_t n_pos = positions->n, n_vocab = logits->dims[1], n_near = 0, n_must;
    const int32_t *token = ints(v, part_name("%s.%s", prefix, "tokens"));
    float *got = run_prompt(model, rule->mode, "f32", token, n, (uint32_t)n_pos), largest = 0;
    for (uint64_t i = 0; i < n_pos; i++) {
        float d = 0;
        for (uint64_t k = 0; k < n_vocab; k++) {
            float one = fabsf(got[i * n_vocab + k] - want[i * n_vocab + k]);
            d = one <= d ? d : one;                   /* a NaN stays */
        }
        n_near += d <= fmaxf(rule->floor, 4 * noise[((const int32_t *)positions->data)[i]]);
        largest = fmaxf(largest, d);
    }
    n_must = n_pos < 10 ? n_pos : (rule->percent * n_pos + 99) / 100;
    free(got);
    if (n_near < n_must)
        fail_msg("%s %s p%u: %llu of %llu positions are near, the farthest at %g", model, rule->mode, n,
                 (unsigned long long)n_near, (unsigned long long)n_pos, (double)largest);
}

static void logits_of_prompts_are_those_of_the_reference(void **state) {
    static const unsigned lengths[] = { 1, 5, 37, 200, 700 };
    size_t n_lengths = effort() == EFFORT_FULL                     ? 5
                       : effort() == EFFORT_NORMAL && table_i == 0 ? 4
                       : table_i == 0                              ? 3
                                                                   : 2;
    (void)state;
    for (size_t m = 0; m < COUNT_OF(models); m++)
        for (size_t r = 0; r < COUNT_OF(rules); r++) {
            struct vectors v;
            vectors_read(&v, vectors_need(part_name("model/%s.%s.vec", models[m], rules[r].mode)));
            for (size_t i = 0; i < n_lengths; i++) score_prompt(models[m], &rules[r], &v, lengths[i]);
            vectors_free(&v);
        }
}

static int compare_floats(const void *a, const void *b) {
    float x = *(const float *)a, y = *(const float *)b;
    return (x > y) - (x < y);
}

static uint32_t largest_of(const float *row, uint32_t n) {
    uint32_t best = 0;
    for (uint32_t i = 1; i < n; i++)
        if (row[i] > row[best]) best = i;
    return best;
}

/* int8 activations are an approximation: logits of deviation 2.6 move by a few hundredths. */
static void compare_precisions(const char *model) {
    struct vectors v;
    uint32_t n = effort() == EFFORT_QUICK ? 37 : 200, n_top = 0;
    vectors_read(&v, vectors_need(part_name("model/%s.exact.vec%s", model, "")));
    uint32_t n_vocab = (uint32_t)need(&v, "p37.logits", false)->dims[1];
    const int32_t *token = ints(&v, n == 37 ? "p37.tokens" : "p200.tokens");
    float *fast = run_prompt(model, "official", "fast", token, n, n),
          *slow = run_prompt(model, "official", "f32", token, n, n);
    for (uint32_t i = 0; i < n; i++)
        n_top += largest_of(fast + (size_t)i * n_vocab, n_vocab) ==
                 largest_of(slow + (size_t)i * n_vocab, n_vocab);
    for (size_t i = 0; i < (size_t)n * n_vocab; i++) fast[i] = fabsf(fast[i] - slow[i]);
    qsort(fast, (size_t)n * n_vocab, sizeof *fast, compare_floats);
    float median = fast[(size_t)n * n_vocab / 2], farthest = fast[(size_t)n * n_vocab - 1];
    print_message("%s: fast against f32: median difference %.4f, largest %.3f, same best token at "
                  "%u of %u positions\n",
                  model, (double)median, (double)farthest, n_top, n);
    free(fast);
    free(slow);
    vectors_free(&v);
    assert_true(median <= 0.1f);
    assert_true(median > 0);                          /* else both ran the same precision */
}

static void fast_precision_stays_near_f32(void **state) {
    (void)state;
    compare_precisions("tiny-q8");
    compare_precisions("tiny-q2");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        TEST(roundings_are_those_of_the_vectors_bit_by_bit),
        TEST(sub_layers_give_the_recorded_outputs_without_roundings),
        TEST(sub_layers_give_the_recorded_outputs_with_roundings),
        TEST(logits_of_prompts_are_those_of_the_reference),
        TEST(fast_precision_stays_near_f32),
    };
    int n_failed = 0;
    n_tables = cpu_simd_list(tables, (int)COUNT_OF(tables));
    for (table_i = 0; table_i < n_tables; table_i++) {
        setenv("PLEIADES_SIMD", tables[table_i]->name, 1);
        size_t n = table_i == 0 ? COUNT_OF(tests) : effort() == EFFORT_QUICK ? 1 : COUNT_OF(tests) - 1;
        n_failed += _cmocka_run_group_tests(tables[table_i]->name, tests, n, NULL, NULL);
    }
    return n_failed ? 1 : 0;
}
