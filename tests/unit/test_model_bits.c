/* The first promise: logits are a function of the model and the tokens, bit for bit - not of chunks,
 * batch mates, threads, cuts, saving, taking back, forking or the instruction set. Each group below is
 * one model in one precision and one numerics; its reference is one token at a time, alone, on one
 * thread. PLEIADES_TEST_EFFORT=full runs every combination. */
#include "tests/harness/effort.h"
#include "tests/harness/rig.h"
#include "tests/harness/scratch.h"
#include "tests/harness/tiny_model.h"

#include "kernels/cpu/simd.h"

static struct subject *now;                           /* of the group that runs */

/* ---- chunks, batch mates, threads ---- */

static void logits_do_not_depend_on_the_chunk_size(void **state) {
    static const int chunks[] = { 7, 64, 128, 4096 };
    (void)state;
    for (size_t i = 0; i < COUNT_OF(chunks); i++) {
        struct rig r;
        rig_open(&r, now, &(struct rig_options){ .chunk = chunks[i] });
        struct rig_seq seq = rig_seq_open(&r, 0);
        rig_feed(&r, &seq, now->text[0].n, (uint32_t)chunks[i]);
        rig_close(&r);
    }
}

/* Segments of 1 to 24 tokens in any order: decode and prefill side by side. */
static void run_mates(struct rig *r, uint32_t n_seq, uint64_t seed) {
    struct rig_seq seqs[RIG_SEQS_MAX];
    struct rng rng;
    rng_init(&rng, seed, n_seq);
    for (uint32_t i = 0; i < n_seq; i++) seqs[i] = rig_seq_open(r, i % now->n_text);
    for (;;) {
        struct rig_seq *batch[RIG_SEQS_MAX];
        uint32_t n[RIG_SEQS_MAX], n_batch = 0, room = r->n_rows_max, n_open = 0;
        uint32_t first = (uint32_t)rng_below(&rng, n_seq);
        for (uint32_t k = 0; k < n_seq; k++) {
            struct rig_seq *seq = &seqs[(first + k * 3) % n_seq];
            uint32_t left = now->text[seq->text].n - seq->len,
                     want = rng_below(&rng, 3) ? 1 + (uint32_t)rng_below(&rng, 24) : 1;
            n_open += left > 0;
            if (left == 0 || room == 0 || rng_below(&rng, 4) == 0) continue;
            batch[n_batch] = seq;
            n[n_batch] = MIN(MIN(want, left), room);
            room -= n[n_batch++];
        }
        if (n_open == 0) break;
        if (n_batch) rig_run(r, batch, n, n_batch);
    }
    for (uint32_t i = 0; i < n_seq; i++) rig_seq_close(r, &seqs[i]);
}

static void logits_do_not_depend_on_who_else_is_in_the_batch(void **state) {
    struct rig r;
    (void)state;
    rig_open(&r, now, &(struct rig_options){ .chunk = 40 });
    run_mates(&r, 2, 1);                              /* (first + 3k) % n visits all of 2, 5 and 8 */
    run_mates(&r, 8, 2);
    rig_close(&r);
}

static void logits_do_not_depend_on_threads(void **state) {
    static const int threads[] = { 2, 5 };
    (void)state;
    for (size_t i = 0; i < COUNT_OF(threads); i++) {
        struct rig r;
        rig_open(&r, now, &(struct rig_options){ .threads = threads[i], .chunk = 33 });
        struct rig_seq seq = rig_seq_open(&r, 0);
        rig_feed(&r, &seq, 35, 33);
        rig_feed(&r, &seq, 39, 1);
        rig_feed(&r, &seq, 72, 33);
        rig_close(&r);
    }
}

static void logits_do_not_depend_on_the_instruction_set(void **state) {
    const struct cpu_simd *tables[8];
    int n = cpu_simd_list(tables, (int)COUNT_OF(tables));
    (void)state;
    for (int i = 0; i < n; i++) {
        struct rig r;
        if (strcmp(tables[i]->name, kernels_cpu_simd_name()) == 0) continue; /* that is the reference */
        rig_open(&r, now, &(struct rig_options){ .simd = tables[i]->name });
        struct rig_seq seq = rig_seq_open(&r, 0);
        rig_feed(&r, &seq, 3, 1);
        rig_feed(&r, &seq, MIN(now->text[0].n, 150u), 30);
        rig_close(&r);
    }
}

/* ---- cuts ---- */

static void cut_and_run(const char *cuts) {
    struct rig r;
    rig_open(&r, now, &(struct rig_options){ .chunk = 50, .cuts = cuts });
    struct rig_seq a = rig_seq_open(&r, 0), b = rig_seq_open(&r, 1 % now->n_text);
    rig_feed(&r, &a, 60, 50);
    while (a.len < 90)
        rig_run(&r, (struct rig_seq *[]){ &b, &a },
                (uint32_t[]){ MIN(5u, now->text[b.text].n - b.len), 6 }, 2);
    rig_close(&r);
}

static void logits_do_not_depend_on_where_layers_are_cut(void **state) {
    char all[64] = "", one[16];
    struct rig r;
    (void)state;
    rig_open(&r, now, &(struct rig_options){ 0 });
    uint32_t n_layer = engine_hparams(&r.g)->n_layer;
    rig_close(&r);
    for (uint32_t l = 1; l < n_layer; l++) {
        snprintf(one, sizeof one, "%u", l);
        snprintf(all + strlen(all), sizeof all - strlen(all), "%s%u", l > 1 ? "," : "", l);
        cut_and_run(one);
    }
    cut_and_run(all);
}

/* ---- state: saving, taking back, forking ---- */

/* Lengths around windows, the ring's end, and pages of 64 entries of ratio 4 (256 tokens) and 8 (512). */
static const uint32_t lengths[] = { 1,   3,   16,  20,  21,  22,  32,  37,  38,  48,  64,  127, 128,
                                    129, 143, 144, 255, 256, 257, 259, 260, 511, 512, 513, 515 };

static void a_restored_sequence_goes_on_as_if_it_had_never_stopped(void **state) {
    struct rig from, to;
    (void)state;
    rig_open(&from, now, &(struct rig_options){ .chunk = 32, .cuts = "2" });
    rig_open(&to, now, &(struct rig_options){ .chunk = 16, .cuts = "2", .threads = 2 });
    struct rig_seq seq = rig_seq_open(&from, 0);
    for (size_t i = 0; i < COUNT_OF(lengths) && lengths[i] + 20 < now->text[0].n; i++) {
        struct rig_saved saved;
        rig_feed(&from, &seq, lengths[i], 32);
        rig_save(&from, &seq, &saved);
        struct rig_seq other = rig_restore(&to, &saved), same = rig_restore(&from, &saved);
        rig_feed(&to, &other, lengths[i] + 20, 16);
        rig_feed(&from, &same, lengths[i] + 2, 1);
        rig_seq_close(&to, &other);
        rig_seq_close(&from, &same);
        rig_saved_free(&saved);
    }
    rig_close(&from);
    rig_close(&to);
}

/* A snapshot knows how far the rings reach back: what a rollback overwrote must not come back as if it
 * were there. */
static void a_snapshot_taken_after_a_rollback_is_as_good(void **state) {
    struct rig r;
    (void)state;
    rig_open(&r, now, &(struct rig_options){ 0 });
    for (uint32_t back = 1; back <= KV_ROLLBACK; back += 5) {
        struct rig_seq seq = rig_seq_open(&r, 0);
        struct rig_saved saved;
        rig_feed(&r, &seq, 100, 64);
        rig_seq_rollback(&r, &seq, 100 - back);
        rig_save(&r, &seq, &saved);
        struct rig_seq again = rig_restore(&r, &saved);
        for (uint32_t len = again.len; len-- > 100 - KV_ROLLBACK;) {
            rig_seq_rollback(&r, &again, len);
            rig_feed(&r, &again, len + 1, 1);
        }
        for (uint32_t len = 100 - KV_ROLLBACK; len-- > 70;) { /* further than that: refused, or right */
            if (stage_seq_rollback(r.g.stage[0], again.slot, len, NULL) < 0) break;
            again.len = len;
            rig_feed(&r, &again, len + 1, 1);
        }
        rig_saved_free(&saved);
        rig_seq_close(&r, &again);
        rig_seq_close(&r, &seq);
    }
    rig_close(&r);
}

static void tokens_can_be_taken_back_and_given_again(void **state) {
    struct rig r;
    (void)state;
    rig_open(&r, now, &(struct rig_options){ 0 });
    struct rig_seq seq = rig_seq_open(&r, 0);
    for (size_t i = 0; i < COUNT_OF(lengths) && lengths[i] < now->text[0].n; i++) {
        rig_feed(&r, &seq, lengths[i], 64);
        const uint32_t backs[] = { 1 + (uint32_t)i % 3, 7, KV_ROLLBACK };
        for (size_t k = 0; k < COUNT_OF(backs) && backs[k] <= seq.len; k++) {
            rig_seq_rollback(&r, &seq, lengths[i] - backs[k]);
            rig_feed(&r, &seq, lengths[i], i % 2 ? 64 : 3);
        }
    }
    rig_seq_rollback(&r, &seq, 0);
    rig_feed(&r, &seq, 40, 40);
    rig_close(&r);
}

static void other_tokens_may_follow_what_was_taken_back(void **state) {
    struct rig r;
    (void)state;
    rig_open(&r, now, &(struct rig_options){ 0 });
    for (uint32_t text = 1; text < now->n_text; text++) {
        uint32_t shared = now->text[text].shared, back = 1 + text * 5 % KV_ROLLBACK;
        struct rig_seq seq = rig_seq_open(&r, 0);
        rig_feed(&r, &seq, MIN(shared + back, now->text[0].n), 64);
        rig_seq_rollback(&r, &seq, shared);
        seq.text = text;
        rig_feed(&r, &seq, now->text[text].n, 9);
        rig_seq_close(&r, &seq);
    }
    rig_close(&r);
}

/* One sequence runs along text 0 and leaves a fork at each branch; all of them then go on side by side. */
static void forks_share_a_beginning_and_nothing_else(void **state) {
    struct rig r;
    struct rig_seq trunk, fork[RIG_SEQS_MAX], *batch[RIG_SEQS_MAX];
    (void)state;
    rig_open(&r, now, &(struct rig_options){ 0 });
    trunk = rig_seq_open(&r, 0);
    for (uint32_t text = 1; text < now->n_text;) {
        uint32_t n_fork = 0, n[RIG_SEQS_MAX];
        for (; n_fork < 5 && text < now->n_text; text++, n_fork++) {
            uint32_t shared = now->text[text].shared, over = n_fork % 2 ? 5 : 0;
            rig_feed(&r, &trunk, MIN(shared + over, now->text[0].n), 64);
            fork[n_fork] = rig_seq_fork(&r, &trunk, shared);
            fork[n_fork].text = text;
        }
        for (int turn = 0; turn < 6; turn++) { /* the trunk writes into pages that forks share */
            for (uint32_t i = 0; i < n_fork; i++) {
                batch[i] = &fork[i];
                n[i] = MIN(1 + (i + (uint32_t)turn) % 5, now->text[fork[i].text].n - fork[i].len);
            }
            batch[n_fork] = &trunk;
            n[n_fork] = MIN(2u, now->text[0].n - trunk.len);
            rig_run(&r, batch, n, n_fork + (n[n_fork] > 0));
        }
        for (uint32_t i = 0; i < n_fork; i++) rig_seq_close(&r, &fork[i]);
    }
    rig_feed(&r, &trunk, now->text[0].n, 64);
    rig_close(&r);
}

/* ---- everything at once, drawn from a seed ---- */

struct walk {
    struct rig r;
    struct rig_seq seq[RIG_SEQS_MAX];
    bool open[RIG_SEQS_MAX];
    struct rng rng;
};

static uint32_t draw(struct walk *w, uint32_t n) {
    return (uint32_t)rng_below(&w->rng, n);
}

static struct rig_seq *walk_room(struct walk *w) {
    for (int i = 0; i < RIG_SEQS_MAX; i++)
        if (!w->open[i]) {
            w->open[i] = true;
            return &w->seq[i];
        }
    return NULL;
}

static uint32_t walk_back(struct walk *w, const struct rig_seq *seq) {
    uint32_t lowest = seq->high > KV_ROLLBACK ? seq->high - KV_ROLLBACK : 1;
    return seq->len <= lowest ? seq->len : lowest + draw(w, seq->len - lowest + 1);
}

static void walk_batch(struct walk *w) {
    struct rig_seq *batch[RIG_SEQS_MAX];
    uint32_t n[RIG_SEQS_MAX], n_batch = 0, room = w->r.n_rows_max;
    for (int i = 0; i < RIG_SEQS_MAX; i++) {
        struct rig_seq *seq = &w->seq[i];
        if (!w->open[i] || draw(w, 3) == 0 || room == 0) continue;
        seq->text = subject_sibling(now, seq->text, seq->len, rng_u64(&w->rng));
        uint32_t left = now->text[seq->text].n - seq->len,
                 want = draw(w, 2) ? 1 : 1 + draw(w, w->r.n_rows_max);
        if (left == 0) continue;
        batch[n_batch] = seq;
        n[n_batch] = MIN(MIN(want, left), room);
        room -= n[n_batch++];
    }
    if (n_batch) rig_run(&w->r, batch, n, n_batch);
}

static void walk_step(struct walk *w) {
    int i = (int)draw(w, RIG_SEQS_MAX);
    struct rig_seq *seq = &w->seq[i], *to;
    struct rig_saved saved;
    uint32_t what = draw(w, 10), len;
    if (what >= 5) {
        walk_batch(w);
    } else if (!w->open[i]) {
        w->open[i] = true;
        *seq = rig_seq_open(&w->r, draw(w, now->n_text));
    } else if (what == 0) {
        rig_seq_rollback(&w->r, seq, draw(w, 8) ? walk_back(w, seq) : 0);
    } else if (what == 1) {
        len = walk_back(w, seq);
        if ((to = walk_room(w))) *to = rig_seq_fork(&w->r, seq, len);
    } else if (what == 2) {
        rig_save(&w->r, seq, &saved);
        rig_seq_close(&w->r, seq);
        *seq = rig_restore(&w->r, &saved);
        rig_saved_free(&saved);
    } else if (draw(w, 4) == 0) {
        rig_seq_close(&w->r, seq);
        w->open[i] = false;
    }
}

static void any_order_of_batches_forks_rollbacks_and_snapshots_gives_the_same_bits(void **state) {
    static const char *const cuts[] = { NULL, "1", "2,3" };
    int n_seeds = effort() == EFFORT_FULL ? 40 : effort() == EFFORT_NORMAL ? 2 : 1;
    (void)state;
    for (int seed = 0; seed < n_seeds; seed++) {
        struct walk w = { .seq = { { 0 } } };
        rng_init(&w.rng, (uint64_t)seed, 77);
        rig_open(&w.r, now,
                 &(struct rig_options){
                     .threads = 2 - seed % 2, .chunk = 16 + 9 * (seed % 4), .cuts = cuts[seed % 3] });
        for (int step = 0; step < (effort() == EFFORT_QUICK ? 60 : 150); step++) walk_step(&w);
        rig_close(&w.r);
    }
}

/* ---- groups ---- */

struct group {
    char shape;
    const char *mix, *precision, *numerics;
    enum effort from;                                 /* the least effort that runs it */
    uint32_t n;                                       /* tokens; page borders are at 256 and 512 */
};

static const struct group groups[] = {
    { 'a', "q2", "fast", "official", EFFORT_QUICK, 560 },
    { 'b', "f16", "f32", "exact", EFFORT_QUICK, 190 },
    { 'p', "q2", "fast", "official", EFFORT_NORMAL, 300 },
    { 'p', "q4", "f32", "official", EFFORT_FULL, 560 },
    { 'p', "q2", "fast", "exact", EFFORT_FULL, 300 },
    { 'a', "q2", "f32", "official", EFFORT_NORMAL, 110 },
    { 'a', "q2", "fast", "exact", EFFORT_FULL, 190 },
    { 'a', "q2", "f32", "exact", EFFORT_FULL, 190 },
    { 'a', "q2", "f32", "official-f16", EFFORT_FULL, 560 },
    { 'a', "q4", "fast", "exact", EFFORT_NORMAL, 190 },
    { 'a', "q4", "f32", "official", EFFORT_FULL, 560 },
    { 'a', "q4", "fast", "official", EFFORT_FULL, 560 },
    { 'a', "q4", "f32", "exact", EFFORT_FULL, 190 },
    { 'a', "q2q4", "fast", "official", EFFORT_NORMAL, 190 },
    { 'a', "q2q4", "f32", "exact", EFFORT_FULL, 190 },
    { 'a', "q2q4", "f32", "official", EFFORT_FULL, 190 },
    { 'a', "q2q4", "fast", "exact", EFFORT_FULL, 560 },
    { 'b', "q8", "fast", "official", EFFORT_NORMAL, 190 },
    { 'b', "q8", "f32", "official", EFFORT_FULL, 560 },
    { 'b', "q8", "fast", "exact", EFFORT_FULL, 190 },
    { 'b', "q8", "f32", "exact", EFFORT_FULL, 190 },
    { 'b', "f16", "fast", "official", EFFORT_FULL, 560 },
    { 'b', "f16", "f32", "official", EFFORT_FULL, 190 },
    { 'b', "mxfp4", "fast", "exact", EFFORT_NORMAL, 150 },
    { 'b', "mxfp4", "f32", "official-f16", EFFORT_NORMAL, 270 },
    { 'b', "mxfp4", "fast", "official", EFFORT_FULL, 560 },
    { 'b', "mxfp4", "f32", "exact", EFFORT_FULL, 190 },
    { 'b', "f32", "f32", "official", EFFORT_FULL, 190 },
    { 'b', "f32", "f32", "exact", EFFORT_FULL, 560 },
};

static struct scratch folder;
static struct subject subject;

static void group_open(const struct group *g, char *name, size_t name_size) {
    static const uint32_t branches[] = { 5, 44, 127, 128, 129, 144, 256, 258, 512, 514 };
    static char path[FILE_PATH_MAX];
    static struct tiny_model model;
    bool quick = effort() == EFFORT_QUICK;
    tiny_model_init(&model, g->shape, g->mix, 42);
    snprintf(path, sizeof path, "%s", scratch_path(&folder, "model.gguf"));
    tiny_write(&model, path);
    snprintf(name, name_size, "%c %s %s %s", g->shape, g->mix, g->precision, g->numerics);
    subject = (struct subject){ .path = path,
                                .precision = g->precision,
                                .numerics = g->numerics,
                                .name = name,
                                .n_vocab = model.hp.n_vocab };
    subject_open(&subject, quick ? 135 : g->n, branches, COUNT_OF(branches), quick ? 40 : 120);
    now = &subject;
}

static int group_close(void **state) {
    (void)state;
    subject_close(&subject);
    return 0;
}

int main(void) {
    const struct CMUnitTest tests[] = {
        TEST(logits_do_not_depend_on_threads),        /* these two have some */
        TEST(any_order_of_batches_forks_rollbacks_and_snapshots_gives_the_same_bits),
        TEST(logits_do_not_depend_on_the_chunk_size),
        TEST(logits_do_not_depend_on_who_else_is_in_the_batch),
        TEST(logits_do_not_depend_on_where_layers_are_cut),
        TEST(a_restored_sequence_goes_on_as_if_it_had_never_stopped),
        TEST(a_snapshot_taken_after_a_rollback_is_as_good),
        TEST(tokens_can_be_taken_back_and_given_again),
        TEST(other_tokens_may_follow_what_was_taken_back),
        TEST(forks_share_a_beginning_and_nothing_else),
        TEST(logits_do_not_depend_on_the_instruction_set),
    };
    size_t n_tests = (size_t)effort_tests(2, COUNT_OF(tests));
    int n_failed = 0;
    scratch_open(&folder);
    for (size_t i = 0; i < COUNT_OF(groups); i++) {
        char name[64];
        if (groups[i].from > effort()) continue;
        group_open(&groups[i], name, sizeof name);
        n_failed += _cmocka_run_group_tests(name, tests, n_tests, NULL, group_close);
    }
    scratch_close(&folder);
    return n_failed ? 1 : 0;
}
