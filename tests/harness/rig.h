/* rig - a model in this process whose every row of logits is compared with what one reference run gave,
 * bit for bit.
 *
 * A subject is a model file with a precision, numerics and a few texts that share beginnings;
 * subject_open runs each text from its first token, alone, on one thread, and keeps all logits. A rig is
 * an engine with any chunk, threads, cuts and instruction set; its sequences are prefixes of those texts,
 * so whatever was done to a sequence, the next row must be the reference's. Which rows of a batch are
 * asked for changes from batch to batch: all, the last ones, some, none. Header only; one thread. */
#ifndef HARNESS_RIG_H
#define HARNESS_RIG_H

#include "tests/harness/test.h"

#include "cli/engine.h"
#include "common/base/check.h"
#include "common/base/rng.h"

enum { RIG_TEXTS_MAX = 12, RIG_SEQS_MAX = 8, RIG_TAIL = 40, RIG_REFERENCE_CHUNK = 48 };

struct rig_text {
    uint32_t n, shared;                               /* tokens; how many of them are text 0's */
    int32_t *token;
    float *logits;                                    /* [n][n_vocab] */
};

struct subject {
    const char *path, *mtp, *precision, *numerics;
    const char *name;
    uint32_t n_vocab, n_text;
    struct rig_text text[RIG_TEXTS_MAX];
};

struct rig_options {
    int threads, chunk, n_seqs;
    const char *cuts, *simd;
};

struct rig {
    struct engine g;
    const struct subject *subject;
    float *logits;
    int32_t *rows;
    uint32_t n_rows_max, n_runs;
};

struct rig_seq {                                      /* the first len tokens of a text */
    uint32_t slot, text, len, high;
};

/* ---- open and close ---- */

static inline void rig_open(struct rig *r, const struct subject *s, const struct rig_options *o) {
    struct engine_options options;
    struct err e;
    engine_options_init(&options);
    options.model = s->path, options.mtp = s->mtp, options.precision = s->precision,
    options.numerics = s->numerics;
    options.n_threads = o->threads ? o->threads : 1, options.chunk = o->chunk ? o->chunk : 64;
    options.cuts = o->cuts, options.backend = getenv("PLEIADES_TEST_BACKEND");
    options.n_seqs = o->n_seqs ? o->n_seqs : RIG_SEQS_MAX;
    if (!options.backend) options.backend = "cpu";
    if (o->simd) setenv("PLEIADES_SIMD", o->simd, 1);
    assert_fine(engine_open(&r->g, &options, &e), &e);
    if (o->simd) unsetenv("PLEIADES_SIMD");
    for (int i = 0; i < r->g.n_stages; i++) stage_seq_close(r->g.stage[i], r->g.slot[i]);
    r->subject = s;
    r->n_rows_max = r->g.stage[0]->n_rows_max;
    r->logits = xcalloc((size_t)r->n_rows_max * engine_hparams(&r->g)->n_vocab, sizeof(float));
    r->rows = xcalloc(r->n_rows_max, sizeof *r->rows);
}

static inline void rig_close(struct rig *r) {
    engine_close(&r->g);
    free(r->logits);
    free(r->rows);
    *r = (struct rig){ 0 };
}

/* ---- sequences, the same in all stages ---- */

static inline struct rig_seq rig_seq_open(struct rig *r, uint32_t text) {
    struct rig_seq seq = { .text = text };
    struct err e;
    for (int i = 0; i < r->g.n_stages; i++) {
        uint32_t slot;
        assert_fine(stage_seq_open(r->g.stage[i], &slot, &e), &e);
        assert_true(i == 0 || slot == seq.slot);
        seq.slot = slot;
    }
    return seq;
}

static inline void rig_seq_close(struct rig *r, struct rig_seq *seq) {
    for (int i = 0; i < r->g.n_stages; i++) stage_seq_close(r->g.stage[i], seq->slot);
}

static inline void rig_seq_rollback(struct rig *r, struct rig_seq *seq, uint32_t n_tokens) {
    struct err e;
    for (int i = 0; i < r->g.n_stages; i++)
        assert_fine(stage_seq_rollback(r->g.stage[i], seq->slot, n_tokens, &e), &e);
    seq->len = n_tokens;
    if (n_tokens == 0) seq->high = 0;
}

static inline struct rig_seq rig_seq_fork(struct rig *r, const struct rig_seq *from, uint32_t n_tokens) {
    struct rig_seq seq = *from;
    struct err e;
    for (int i = 0; i < r->g.n_stages; i++)
        assert_fine(stage_seq_fork(r->g.stage[i], from->slot, n_tokens, &seq.slot, &e), &e);
    seq.len = n_tokens;
    if (n_tokens == 0) seq.high = 0;
    return seq;
}

struct rig_saved {                                    /* one snapshot per stage */
    struct buf stage[ENGINE_STAGES_MAX];
    struct rig_seq seq;
};

static inline void rig_save(struct rig *r, const struct rig_seq *seq, struct rig_saved *out) {
    struct err e;
    *out = (struct rig_saved){ .seq = *seq };
    for (int i = 0; i < r->g.n_stages; i++) {
        buf_init(&out->stage[i], (size_t)1 << 30);
        assert_fine(stage_seq_save(r->g.stage[i], seq->slot, &out->stage[i], &e), &e);
    }
}

static inline void rig_saved_free(struct rig_saved *saved) {
    for (int i = 0; i < ENGINE_STAGES_MAX; i++) buf_deinit(&saved->stage[i]);
}

/* Into any rig with the same cuts. */
static inline struct rig_seq rig_restore(struct rig *r, const struct rig_saved *saved) {
    struct rig_seq seq = saved->seq;
    struct err e;
    for (int i = 0; i < r->g.n_stages; i++) {
        assert_fine(
            stage_seq_restore(r->g.stage[i], saved->stage[i].data, saved->stage[i].size, &seq.slot, &e),
            &e);
        assert_int_equal(stage_seq_len(r->g.stage[i], seq.slot), seq.len);
    }
    return seq;
}

/* ---- running ---- */

static inline void rig_row_check(const struct rig *r, const struct rig_seq *seq, uint32_t pos,
                                 const float *row) {
    uint32_t n_vocab = r->subject->n_vocab, n_differ = 0;
    const float *want = r->subject->text[seq->text].logits + (size_t)pos * n_vocab;
    double largest = 0;
    if (memcmp(row, want, n_vocab * sizeof *row) == 0) return;
    for (uint32_t i = 0; i < n_vocab; i++) {
        double d = (double)row[i] - (double)want[i];
        n_differ += f32_bits(row[i]) != f32_bits(want[i]);
        if (d > largest || -d > largest) largest = d < 0 ? -d : d;
    }
    fail_msg("%s: text %u, position %u: %u of %u logits differ, by up to %g", r->subject->name, seq->text,
             pos, n_differ, n_vocab, largest);
}

/* Which rows are asked for: half of the time all, else from a drawn row on, every second or third one, or
 * none. */
static inline uint32_t rig_rows(struct rig *r, uint32_t n_rows) {
    uint64_t draw = rng_at(12345, r->n_runs++);
    uint32_t first = (uint32_t)(draw >> 8) % n_rows, step = 1 + (uint32_t)(draw >> 40) % 3, n = 0;
    if (draw & 1) first = 0, step = 1;
    else if ((draw & 15) == 0) return 0;
    for (uint32_t i = first; i < n_rows; i += step) r->rows[n++] = (int32_t)i;
    return n;
}

/* One batch: n[i] more tokens of the text of seqs[i]; the rows that were asked for are compared. */
static inline void rig_run(struct rig *r, struct rig_seq *const *seqs, const uint32_t *n, uint32_t n_seq) {
    struct stage_seg segs[RIG_SEQS_MAX] = { { 0 } };
    struct err e;
    uint32_t n_rows = 0, n_wanted, at = 0, done = 0;
    CHECK(n_seq >= 1 && n_seq <= RIG_SEQS_MAX);
    for (uint32_t i = 0; i < n_seq; i++) {
        const struct rig_text *text = &r->subject->text[seqs[i]->text];
        CHECK(seqs[i]->len + n[i] <= text->n);
        segs[i] = (struct stage_seg){ .slot = seqs[i]->slot, .n = n[i], .token = text->token + seqs[i]->len };
        n_rows += n[i];
    }
    CHECK(n_rows >= 1 && n_rows <= r->n_rows_max);
    n_wanted = rig_rows(r, n_rows);
    assert_fine(engine_run(&r->g, segs, n_seq, r->rows, n_wanted, r->logits, &e), &e);
    for (uint32_t i = 0; i < n_seq; i++) {
        for (uint32_t t = 0; t < n[i]; t++, at++)
            if (done < n_wanted && r->rows[done] == (int32_t)at)
                rig_row_check(r, seqs[i], seqs[i]->len + t, r->logits + (size_t)done++ * r->subject->n_vocab);
        seqs[i]->len += n[i];
        if (seqs[i]->high < seqs[i]->len) seqs[i]->high = seqs[i]->len;
    }
    assert_int_equal(done, n_wanted);
}

/* Up to position `end` of its text in batches of at most `chunk`. */
static inline void rig_feed(struct rig *r, struct rig_seq *seq, uint32_t end, uint32_t chunk) {
    while (seq->len < end) {
        uint32_t n = MIN(chunk, end - seq->len);
        rig_run(r, &seq, &n, 1);
    }
}

/* ---- the reference ---- */

static inline void subject_text(struct subject *s, uint32_t n, uint32_t shared, uint64_t seed) {
    struct rig_text *text = &s->text[s->n_text];
    struct rng rng;
    CHECK(s->n_text < RIG_TEXTS_MAX && shared <= n);
    *text = (struct rig_text){ .n = n, .shared = shared, .token = xcalloc(n, sizeof *text->token) };
    rng_init(&rng, seed, s->n_text);
    for (uint32_t i = 0; i < n; i++) text->token[i] = (int32_t)rng_below(&rng, s->n_vocab);
    if (shared) memcpy(text->token, s->text[0].token, shared * sizeof *text->token);
    if (shared && shared < n && text->token[shared] == s->text[0].token[shared])
        text->token[shared] = (text->token[shared] + 1) % (int32_t)s->n_vocab;
    s->n_text++;
}

static inline void subject_run(struct rig *r, struct rig_text *text, uint32_t n_single) {
    struct rig_seq seq = rig_seq_open(r, 0);
    struct err e;
    text->logits = xcalloc((size_t)text->n * r->subject->n_vocab, sizeof(float));
    for (uint32_t i = 0; i < r->n_rows_max; i++) r->rows[i] = (int32_t)i;
    for (uint32_t done = 0, n; done < text->n; done += n) {
        n = done < n_single ? 1 : MIN(RIG_REFERENCE_CHUNK, text->n - done);
        struct stage_seg seg = { .slot = seq.slot, .n = n, .token = text->token + done };
        assert_fine(
            engine_run(&r->g, &seg, 1, r->rows, n, text->logits + (size_t)done * r->subject->n_vocab, &e),
            &e);
    }
    rig_seq_close(r, &seq);
}

/* Texts: one of n tokens, and one for each branch that leaves it there. The first n_single tokens of text
 * 0 are computed one at a time, everything else in chunks. */
static inline void subject_open(struct subject *s, uint32_t n, const uint32_t *branch, uint32_t n_branch,
                                uint32_t n_single) {
    struct rig r;
    s->n_text = 0;
    subject_text(s, n, 0, 7);
    for (uint32_t i = 0; i < n_branch; i++)
        if (branch[i] < n) subject_text(s, branch[i] + RIG_TAIL, branch[i], 11);
    rig_open(&r, s, &(struct rig_options){ .threads = 1, .chunk = RIG_REFERENCE_CHUNK });
    for (uint32_t i = 0; i < s->n_text; i++) subject_run(&r, &s->text[i], i == 0 ? n_single : 0);
    rig_close(&r);
}

static inline void subject_close(struct subject *s) {
    for (uint32_t i = 0; i < s->n_text; i++) {
        free(s->text[i].token);
        free(s->text[i].logits);
    }
    s->n_text = 0;
}

/* A text that has at least the first n tokens of `text`, chosen by `draw`; `text` itself is one. */
static inline uint32_t subject_sibling(const struct subject *s, uint32_t text, uint32_t n, uint64_t draw) {
    for (uint32_t i = 0; i < s->n_text; i++) {
        uint32_t other = (uint32_t)((draw + i) % s->n_text);
        if (s->text[other].n > n &&
            memcmp(s->text[other].token, s->text[text].token, n * sizeof(int32_t)) == 0)
            return other;
    }
    return text;
}

#endif
