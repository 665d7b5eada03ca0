/* What the compute thread does with jobs whose numbers come from other machines. */
#include "tests/harness/scratch.h"

#include "common/model/synth.h"
#include "node/compute.h"

#include <stdlib.h>

static struct scratch folder;
static char path[512];

static int write_model(void **state) {
    struct synth_options options = { .preset = "tiny", .seed = 3 };
    struct synth *synth;
    struct err e;
    (void)state;
    scratch_open(&folder);
    snprintf(path, sizeof path, "%s", scratch_path(&folder, "tiny.gguf"));
    assert_fine(synth_new(&synth, &options, &e), &e);
    assert_fine(synth_write(synth, path, &e), &e);
    synth_free(synth);
    return 0;
}

static int remove_model(void **state) {
    (void)state;
    scratch_close(&folder);
    return 0;
}

static struct compute *new_compute(void) {
    struct compute_config c = { .backend = "cpu", .n_threads = 1, .n_slot_max = 2 };
    return compute_new(&c);
}

static void load(struct compute *c, struct compute_job *job, struct msg_assign a) {
    a.n_slot = 2;
    a.n_ctx_max = 64;
    a.n_rows_max = 16;
    *job = (struct compute_job){ .kind = COMPUTE_LOAD, .epoch = 1, .assign = a };
    snprintf(job->model_path, sizeof job->model_path, "%s", path);
    compute_do(c, job);
}

static void layers_that_are_not_what_the_plan_takes_them_for_are_not_loaded(void **state) {
    static const struct msg_assign wrong[] = {
        { .layer_end = 5, .has_embed = true },
        { .layer_end = 5, .has_head = true },
        { .layer_begin = 1, .layer_end = 5, .has_embed = true, .has_head = true },
        { .layer_end = 4, .has_embed = true, .has_head = true },
    };
    struct compute *c = new_compute();
    struct compute_job job;
    (void)state;
    for (size_t i = 0; i < COUNT_OF(wrong); i++) {
        load(c, &job, wrong[i]);
        assert_int_equal(ERR_INVALID, job.code);
    }
    load(c, &job, (struct msg_assign){ .layer_end = 5, .has_embed = true, .has_head = true });
    assert_int_equal(0, job.code);
    compute_free(c);
}

static void more_candidates_than_tokens_are_all_of_them(void **state) {
    static const int32_t token[] = { 1, 2, 3 };
    struct compute *c = new_compute();
    struct compute_job job;
    (void)state;
    load(c, &job, (struct msg_assign){ .layer_end = 5, .has_embed = true, .has_head = true });
    assert_int_equal(0, job.code);
    uint32_t n_vocab = job.n_vocab;
    for (int i = 0; i < 2; i++) {
        struct node_job_seg seg = { .slot = (uint32_t)i, .n = COUNT_OF(token), .open = true };
        struct msg_want want = { .row = 2, .temperature = 1, .top_p = 1, .adjusts = true,
                                 .n_item_max = i ? UINT32_MAX : 1u << 29 };     /* 4 GiB: 0 in 32 bits */
        struct node_job run = { .seg = &seg, .token = token, .want = &want,
                                .n_seg = 1, .n_row = COUNT_OF(token), .n_want = 1 };
        uint64_t bytes = compute_parts_bytes(n_vocab, &want, 1);
        assert_in_range(bytes, n_vocab * 8, n_vocab * 8 + 8);
        job = (struct compute_job){ .kind = COMPUTE_RUN, .run = &run, .parts_bytes = (uint32_t)bytes };
        job.parts = malloc(bytes);
        job.logits = malloc(compute_logits_bytes(n_vocab, 1));
        compute_do(c, &job);
        assert_int_equal(0, job.code);
        assert_true(job.parts_bytes <= bytes && job.row[0].n_vocab == n_vocab);
        free(job.parts);
        free(job.logits);
        free(job.row);
    }
    compute_free(c);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        TEST(layers_that_are_not_what_the_plan_takes_them_for_are_not_loaded),
        TEST(more_candidates_than_tokens_are_all_of_them),
    };
    return cmocka_run_group_tests(tests, write_model, remove_model);
}
