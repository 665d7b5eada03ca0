/* Experts of a stage on several machines: the bits of one. */
#include "tests/harness/test.h"

#include "common/base/rng.h"
#include "common/sys/file.h"
#include "node/experts.h"
#include "shard_tool/shard_tool.h"
#include "tests/harness/scratch.h"
#include "tests/harness/tiny_model.h"

enum { ROWS = 24, STEPS = 5 };

/* ---- helpers in this process ---- */

struct helpers {
    struct experts *x[STAGE_HELPERS_MAX];
    uint32_t n_embd, n_used, n_row, layer, n_ask, n_wait;
    const float *rows, *weights;
    const int32_t *ids;
    int fails_at;                                  /* question of which a helper fails; 0: none */
};

static int ask(void *ctx, uint32_t layer, uint32_t n_row, const float *rows, const float *weights,
               const int32_t *ids, struct err *e) {
    struct helpers *h = ctx;
    (void)e;
    h->layer = layer, h->n_row = n_row, h->rows = rows, h->weights = weights, h->ids = ids;
    h->n_ask++;
    return 0;
}

static int wait_one(void *ctx, uint32_t i, float *sums, struct err *e) {
    struct helpers *h = ctx;
    if (++h->n_wait == (uint32_t)h->fails_at) return err_set(e, ERR_PEER, "the helper is gone");
    return experts_run(h->x[i], h->layer, h->n_row, h->n_used, h->rows, h->weights, h->ids, sums, e);
}

static struct kernels_config one_thread(void) {
    return (struct kernels_config){ .backend = "cpu", .n_threads = 1 };
}

static struct stage *open_stage(const char *path, uint32_t begin, uint32_t end,
                                const struct stage_experts *x) {
    struct stage_config c = { .model_path = path,
                              .layer_begin = begin,
                              .layer_end = end,
                              .kernels = one_thread(),
                              .n_rows_max = 64,
                              .n_slots = 2,
                              .n_ctx_max = 256,
                              .experts = x };
    struct stage *s;
    struct err e;
    assert_fine(stage_model_open(&s, &c, &e), &e);
    return s;
}

/* `cuts`: the first range is the lead's. Files of helpers: the same, or one shard each. */
static struct stage_experts divide(struct helpers *h, const char *const *path, const struct hparams *hp,
                                   uint32_t begin, uint32_t end, const struct stage_range *cut, uint32_t n) {
    struct stage_experts x = { .own = cut[0], .n_helper = n - 1, .ask = ask, .wait = wait_one, .ctx = h };
    struct err e;
    *h = (struct helpers){ .n_embd = hp->n_embd, .n_used = hp->n_expert_used };
    for (uint32_t i = 1; i < n; i++) {
        struct experts_config c = { .model_path = path[i], .layer_begin = begin, .layer_end = end,
                                    .expert_begin = cut[i].begin, .expert_end = cut[i].end, .n_rows_max = 64,
                                    .kernels = one_thread() };
        x.helper[i - 1] = cut[i];
        assert_fine(experts_open(&h->x[i - 1], &c, &e), &e);
    }
    return x;
}

static void close_helpers(struct helpers *h) {
    for (int i = 0; i < STAGE_HELPERS_MAX; i++) experts_close(h->x[i]);
}

/* ---- models ---- */

/* A model in a folder that goes away. */
struct home {
    struct scratch scratch;
    struct tiny_model tiny;
    char path[FILE_PATH_MAX];
};

static void home_open(struct home *h, char shape, const char *mix, uint64_t seed) {
    scratch_open(&h->scratch);
    tiny_model_init(&h->tiny, shape, mix, seed);
    snprintf(h->path, sizeof h->path, "%s", scratch_path(&h->scratch, "model.gguf"));
    tiny_write(&h->tiny, h->path);
}

/* ---- running ---- */

static int run(struct stage *s, uint32_t slot, const int32_t *token, uint32_t n, float *logits,
               struct err *e) {
    int32_t last = (int32_t)n - 1;
    struct stage_seg seg = { .slot = slot, .n = n, .token = token };
    struct stage_batch b = { .segs = &seg, .n_seg = 1, .n_rows = n, .logit_rows = &last, .n_logits = 1,
                             .logits = logits };
    return stage_run(s, &b, e);
}

/* A prompt and some single tokens; the logits of each. */
static void run_all(struct stage *s, float *logits) {
    int32_t token[ROWS + STEPS];
    struct err e;
    uint32_t slot;
    for (uint32_t i = 0; i < ROWS + STEPS; i++) token[i] = (int32_t)(rng_at(9, i) % s->hp.n_vocab);
    assert_fine(stage_seq_open(s, &slot, &e), &e);
    assert_fine(run(s, slot, token, ROWS, logits, &e), &e);
    for (uint32_t i = 0; i < STEPS; i++)
        assert_fine(run(s, slot, token + ROWS + i, 1, logits + (i + 1) * s->hp.n_vocab, &e), &e);
    stage_seq_close(s, slot);
}

static float *new_logits(const struct stage *s) {
    float *logits = malloc((STEPS + 1) * s->hp.n_vocab * sizeof *logits);
    assert_non_null(logits);
    return logits;
}

static void assert_same_as_one(const char *path, const char *const *paths,
                               const struct stage_range *cut, uint32_t n) {
    struct helpers h;
    struct stage *one = open_stage(path, 0, 0, NULL);
    struct stage_experts x = divide(&h, paths, &one->hp, 0, one->hp.n_layer, cut, n);
    struct stage *lead = open_stage(paths[0], 0, 0, &x);
    float *want = new_logits(one), *have = new_logits(one);
    run_all(one, want);
    run_all(lead, have);
    assert_memory_equal(want, have, (STEPS + 1) * one->hp.n_vocab * sizeof *want);
    assert_int_equal(h.n_wait, h.n_ask * (n - 1));
    assert_int_equal(h.n_ask, (STEPS + 1) * one->hp.n_layer);
    assert_true(stage_model_memory(lead).weights < stage_model_memory(one).weights);
    stage_close(lead);
    stage_close(one);
    close_helpers(&h);
    free(want);
    free(have);
}

static const struct stage_range halves[] = { { 0, 4 }, { 4, 8 } }, behind[] = { { 4, 8 }, { 0, 4 } },
                                quarters[] = { { 2, 4 }, { 6, 8 }, { 0, 2 }, { 4, 6 } },
                                uneven[] = { { 0, 4 }, { 4, 6 }, { 6, 7 }, { 7, 8 } };

static void experts_on_helpers_give_the_bits_of_one_machine(void **state) {
    (void)state;
    static const struct {
        char shape;
        const char *mix;
    } models[] = { { 'a', "q2" }, { 'a', "q4" }, { 'a', "f32" }, { 'p', "mxfp4" } };
    for (size_t i = 0; i < COUNT_OF(models); i++) {
        struct home h;
        home_open(&h, models[i].shape, models[i].mix, 21);
        const char *const paths[] = { h.path, h.path, h.path, h.path };
        assert_same_as_one(h.path, paths, halves, 2);
        if (i == 0 || effort() > EFFORT_QUICK) {
            assert_same_as_one(h.path, paths, behind, 2);
            assert_same_as_one(h.path, paths, quarters, 4);
            assert_same_as_one(h.path, paths, uneven, 4);
        }
        scratch_close(&h.scratch);
    }
}

static void sixteen_experts_eight_per_token(void **state) {
    (void)state;
    static const struct stage_range cut[] = { { 8, 12 }, { 0, 8 }, { 12, 16 } };
    struct home h;
    home_open(&h, 'b', "q8", 4);
    const char *const paths[] = { h.path, h.path, h.path };
    assert_same_as_one(h.path, paths, cut, 3);
    scratch_close(&h.scratch);
}

/* The files that `shard split --experts` writes: nobody has more than its own. */
static void helpers_and_lead_work_from_their_own_shards(void **state) {
    (void)state;
    struct home h;
    struct scratch out;
    struct gguf *g;
    struct hparams hp;
    struct err e;
    struct shard_split_result result;
    char lead[FILE_PATH_MAX], helper[FILE_PATH_MAX];
    home_open(&h, 'a', "q2q4", 8);
    scratch_open(&out);
    assert_fine(gguf_open(&g, h.path, &e), &e);
    assert_fine(hparams_read(&hp, g, &e), &e);
    struct shard_split split = { .g = g, .folder = out.folder };
    assert_fine(shard_pieces_of_cuts(&split.pieces, &hp, NULL, "0-3,4-7", &e), &e);
    assert_fine(shard_split(&split, &result, &e), &e);
    snprintf(lead, sizeof lead, "%s", scratch_path(&out, "stage-00.gguf"));
    snprintf(helper, sizeof helper, "%s", scratch_path(&out, "stage-00-experts-4-7.gguf"));
    const char *const paths[] = { lead, helper };
    assert_same_as_one(h.path, paths, halves, 2);
    struct experts *x;
    struct experts_config c = { .model_path = helper,
                                .layer_end = hp.n_layer,
                                .expert_end = 4,
                                .n_rows_max = 8,
                                .kernels = one_thread() };
    assert_int_equal(experts_open(&x, &c, &e), ERR_NOTFOUND);
    shard_pieces_free(&split.pieces);
    gguf_close(g);
    scratch_close(&h.scratch);
    scratch_close(&out);
}

static void a_helper_that_fails_ends_the_batch_and_nothing_else(void **state) {
    (void)state;
    struct home home;
    struct err e;
    home_open(&home, 'a', "q4", 2);
    const char *const paths[] = { home.path, home.path };
    struct helpers h;
    struct stage_experts x = divide(&h, paths, &home.tiny.hp, 0, home.tiny.hp.n_layer, halves, 2);
    struct stage *one = open_stage(home.path, 0, 0, NULL), *lead = open_stage(home.path, 0, 0, &x);
    float *want = new_logits(one), *have = new_logits(one);
    uint32_t slot, same;
    int32_t token[9] = { 1, 5, 9, 2, 8, 3, 3, 7, 30 };
    assert_fine(stage_seq_open(one, &slot, &e), &e);
    assert_fine(stage_seq_open(lead, &same, &e), &e);
    assert_fine(run(one, slot, token, 8, want, &e), &e);
    h.fails_at = 3;
    assert_int_equal(run(lead, same, token, 8, have, &e), ERR_PEER);
    assert_string_equal(e.text, "the helper is gone");
    assert_int_equal(h.n_ask, 3);                 /* nobody is asked after that */
    assert_int_equal(stage_seq_len(lead, same), 0);
    h.fails_at = 0;
    assert_fine(run(lead, same, token, 8, have, &e), &e);
    assert_memory_equal(want, have, one->hp.n_vocab * sizeof *want);
    assert_fine(run(one, slot, token + 8, 1, want, &e), &e);
    assert_fine(run(lead, same, token + 8, 1, have, &e), &e);
    assert_memory_equal(want, have, one->hp.n_vocab * sizeof *want);
    stage_close(one);
    stage_close(lead);
    close_helpers(&h);
    scratch_close(&home.scratch);
    free(want);
    free(have);
}

static void only_branches_of_the_tree_can_be_divided(void **state) {
    (void)state;
    static const struct { struct stage_range own, helper; int code;
    } cases[] = {
        { { 0, 4 }, { 4, 8 }, 0 },           { { 0, 3 }, { 3, 8 }, ERR_INVALID },
        { { 0, 4 }, { 5, 8 }, ERR_INVALID }, { { 0, 4 }, { 2, 8 }, ERR_INVALID },
        { { 0, 8 }, { 8, 16 }, 0 },          { { 2, 4 }, { 4, 8 }, ERR_INVALID },
    };
    struct err e;
    for (size_t i = 0; i < COUNT_OF(cases); i++) {
        struct stage_experts x = { .own = cases[i].own, .n_helper = 1, .helper = { cases[i].helper } };
        assert_int_equal(experts_check(&x, cases[i].helper.end, &e), cases[i].code);
    }
    assert_true(experts_range_is_branch(128, 192) && experts_range_is_branch(7, 8));
    assert_false(experts_range_is_branch(64, 192) || experts_range_is_branch(0, 0));
}

static void expected_models_have_the_same_bits_with_helpers(void **state) {
    (void)state;
    static const char *const names[] = { "tiny-f32", "tiny-q2", "tiny-q8" };
    const char *folder = vectors_folder("model");
    if (!folder) skip();
    char base[FILE_PATH_MAX], path[FILE_PATH_MAX + 32];
    snprintf(base, sizeof base, "%s", folder);
    for (size_t i = 0; i < COUNT_OF(names); i++) {
        struct gguf *g;
        struct hparams hp;
        struct err e;
        snprintf(path, sizeof path, "%s/%s.gguf", base, names[i]);
        assert_fine(gguf_open(&g, path, &e), &e);
        assert_fine(hparams_read(&hp, g, &e), &e);
        gguf_close(g);
        struct stage_range cut[] = { { hp.n_expert / 2, hp.n_expert }, { 0, hp.n_expert / 2 } };
        const char *const paths[] = { path, path };
        assert_same_as_one(path, paths, cut, 2);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        TEST(experts_on_helpers_give_the_bits_of_one_machine),
        TEST(sixteen_experts_eight_per_token),
        TEST(helpers_and_lead_work_from_their_own_shards),
        TEST(a_helper_that_fails_ends_the_batch_and_nothing_else),
        TEST(only_branches_of_the_tree_can_be_divided),
        TEST(expected_models_have_the_same_bits_with_helpers),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
