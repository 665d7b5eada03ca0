/* The MTP block against a second implementation: section 6 of the model's description (and of section 2
 * what it uses), written down once more in double precision, one token at a time, with plain lists
 * instead of rings and no thought of speed. There are no golden vectors for this block; the layer
 * inside it is the one that the vectors test, so what counts here is how it is put together: norms,
 * projections, pairing, its own head, its own state. */
#include "tests/harness/scratch.h"
#include "tests/harness/tiny_model.h"

#include "node/stage.h"

#include <math.h>

enum { N_TOKENS = 60, N_STREAMS = 4 };

/* ---- the second implementation ---- */

struct matrix {                                       /* decoded */
    double *v;
    uint64_t n_in, n_out;
};

struct named {
    char name[96];
    struct matrix m;
};

enum { NAMED_MAX = 64 };

struct block {
    const struct gguf *model, *mtp;
    struct hparams hp;
    double *rows;                                 /* [N_TOKENS][head_dim]: K and V of every token so far */
    int n;
    struct named named[NAMED_MAX];                /* what was decoded so far */
    int n_named;
};

static struct matrix matrix(const struct gguf *g, const char *name) {
    const struct gguf_tensor *t = gguf_find_tensor(g, name);
    if (!t) fail_msg("no tensor %s", name);
    struct matrix m = { .n_in = t->ne[0], .n_out = t->ne[1] * t->ne[2] };
    uint64_t n = m.n_in * m.n_out;
    float *x = xcalloc(n, sizeof *x);
    m.v = xcalloc(n, sizeof *m.v);
    dtype_decode((enum dtype)t->type, t->data, x, n);
    for (uint64_t i = 0; i < n; i++) m.v[i] = (double)x[i];
    free(x);
    return m;
}

/* Each is decoded once; the block keeps it. */
static const struct matrix *kept(struct block *b, const struct gguf *g, const char *name) {
    for (int i = 0; i < b->n_named; i++)
        if (strcmp(b->named[i].name, name) == 0) return &b->named[i].m;
    CHECK(b->n_named < NAMED_MAX);
    struct named *n = &b->named[b->n_named++];
    snprintf(n->name, sizeof n->name, "%s", name);
    n->m = matrix(g, name);
    return &n->m;
}

static const struct matrix *own(struct block *b, const char *name) {
    char full[96];
    snprintf(full, sizeof full, "mtp.0.%s", name);
    return kept(b, b->mtp, full);
}

static void block_free(struct block *b) {
    for (int i = 0; i < b->n_named; i++) free(b->named[i].m.v);
    free(b->rows);
}

/* out[o] = sum over i of m[row0 + o][i] * x[i] */
static void product(const struct matrix *m, uint64_t row0, uint64_t n_rows, const double *x, double *out) {
    for (uint64_t o = 0; o < n_rows; o++) {
        double sum = 0;
        for (uint64_t i = 0; i < m->n_in; i++) sum += m->v[(row0 + o) * m->n_in + i] * x[i];
        out[o] = sum;
    }
}

static void product_of(struct block *b, const char *name, const double *x, double *out) {
    const struct matrix *m = own(b, name);
    product(m, 0, m->n_out, x, out);
}

static double mean_square(const double *x, uint64_t n) {
    double sum = 0;
    for (uint64_t i = 0; i < n; i++) sum += x[i] * x[i];
    return sum / (double)n;
}

static void norm(struct block *b, const char *weight, const double *x, double *out, uint64_t n) {
    double r = 1 / sqrt(mean_square(x, n) + (double)b->hp.rms_eps);
    const struct matrix *w = weight ? own(b, weight) : NULL;
    for (uint64_t i = 0; i < n; i++) out[i] = x[i] * r * (w ? w->v[i] : 1);
}

static double sigmoid(double x) {
    return 1 / (1 + exp(-x));
}

static void rotate(const struct block *b, double *x, int pos, double direction) {
    uint32_t n_rot = b->hp.n_rot;
    for (uint32_t i = 0; i < n_rot / 2; i++) {
        double angle = direction * pos * pow((double)b->hp.rope_base, -2.0 * i / n_rot),
               u = x[2 * i], v = x[2 * i + 1];
        x[2 * i] = u * cos(angle) - v * sin(angle);
        x[2 * i + 1] = u * sin(angle) + v * cos(angle);
    }
}

static void balance(const struct block *b, double m[4][4]) {
    double eps = (double)b->hp.hc_eps;
    for (int j = 0; j < 4; j++) {
        double top = fmax(fmax(m[j][0], m[j][1]), fmax(m[j][2], m[j][3])), sum = 0;
        for (int k = 0; k < 4; k++) sum += m[j][k] = exp(m[j][k] - top);
        for (int k = 0; k < 4; k++) m[j][k] = m[j][k] / sum + eps;
    }
    for (uint32_t pass = 0; pass < 2 * b->hp.n_sinkhorn - 1; pass++)  /* columns, rows, columns ... columns */
        for (int i = 0; i < 4; i++) {
            double sum = eps;
            for (int k = 0; k < 4; k++) sum += pass % 2 ? m[i][k] : m[k][i];
            for (int k = 0; k < 4; k++) *(pass % 2 ? &m[i][k] : &m[k][i]) /= sum;
        }
}

struct mixing {
    double post[4], m[4][4];
};

/* Streams x[4][D] become one vector in out. kind: "attn" or "ffn". */
static void connect(struct block *b, const char *kind, const double *x, double *out,
                    struct mixing *mixing) {
    uint64_t d = b->hp.n_embd;
    char name[64];
    double mix[24], r = 1 / sqrt(mean_square(x, 4 * d) + (double)b->hp.rms_eps);
    snprintf(name, sizeof name, "hc_%s_fn.weight", kind);
    product_of(b, name, x, mix);
    snprintf(name, sizeof name, "hc_%s_scale.weight", kind);
    const struct matrix *scale = own(b, name);
    snprintf(name, sizeof name, "hc_%s_base.weight", kind);
    const struct matrix *base = own(b, name);
    memset(out, 0, d * sizeof *out);
    for (int i = 0; i < 4; i++) {
        double pre = sigmoid(mix[i] * r * scale->v[0] + base->v[i]) + (double)b->hp.hc_eps;
        for (uint64_t k = 0; k < d; k++) out[k] += pre * x[(uint64_t)i * d + k];
        mixing->post[i] = 2 * sigmoid(mix[4 + i] * r * scale->v[1] + base->v[4 + i]);
        for (int k = 0; k < 4; k++)
            mixing->m[i][k] = mix[8 + 4 * i + k] * r * scale->v[2] + base->v[8 + 4 * i + k];
    }
    balance(b, mixing->m);
}

static void spread(const struct block *b, const struct mixing *mixing, const double *y, double *x) {
    uint64_t d = b->hp.n_embd;
    for (uint64_t i = 0; i < d; i++) {
        double before[4] = { x[i], x[d + i], x[2 * d + i], x[3 * d + i] };
        for (uint64_t k = 0; k < 4; k++) {
            x[k * d + i] = mixing->post[k] * y[i];
            for (int j = 0; j < 4; j++) x[k * d + i] += mixing->m[j][k] * before[j];
        }
    }
}

/* One head over the last n_swa rows. */
static void attend(struct block *b, double sink, double *q, int pos) {
    uint64_t hd = b->hp.head_dim;
    int first = pos + 1 > (int)b->hp.n_swa ? pos + 1 - (int)b->hp.n_swa : 0;
    double z[N_TOKENS], top = sink, den, *out = xcalloc(hd, sizeof *out);
    norm(b, NULL, q, q, hd);
    rotate(b, q + hd - b->hp.n_rot, pos, 1);
    for (int r = first; r <= pos; r++) {
        z[r] = 0;
        for (uint64_t i = 0; i < hd; i++) z[r] += q[i] * b->rows[(uint64_t)r * hd + i] / sqrt((double)hd);
        top = fmax(top, z[r]);
    }
    den = exp(sink - top);
    for (int r = first; r <= pos; r++) den += exp(z[r] - top);
    for (int r = first; r <= pos; r++)
        for (uint64_t i = 0; i < hd; i++) out[i] += exp(z[r] - top) / den * b->rows[(uint64_t)r * hd + i];
    rotate(b, out + hd - b->hp.n_rot, pos, -1);
    memcpy(q, out, hd * sizeof *q);
    free(out);
}

static void attention(struct block *b, const double *x, double *y, int pos) {
    const struct hparams *hp = &b->hp;
    uint64_t hd = hp->head_dim, group = hd * hp->n_head / hp->n_out_group;
    double *low = xcalloc(hp->n_q_lora + (uint64_t)hp->n_out_lora * hp->n_out_group, sizeof *low),
           *q = xcalloc(hd * hp->n_head, sizeof *q);
    double *row = b->rows + (uint64_t)pos * hd;
    product_of(b, "attn_kv.weight", x, row);
    norm(b, "attn_kv_a_norm.weight", row, row, hd);
    rotate(b, row + hd - hp->n_rot, pos, 1);
    product_of(b, "attn_q_a.weight", x, low);
    norm(b, "attn_q_a_norm.weight", low, low, hp->n_q_lora);
    product_of(b, "attn_q_b.weight", low, q);
    const struct matrix *sinks = own(b, "attn_sinks.weight"), *out_a = own(b, "attn_output_a.weight");
    for (uint32_t h = 0; h < hp->n_head; h++) attend(b, sinks->v[h], q + h * hd, pos);
    for (uint32_t g = 0; g < hp->n_out_group; g++)
        product(out_a, (uint64_t)g * hp->n_out_lora, hp->n_out_lora, q + g * group,
                low + (uint64_t)g * hp->n_out_lora);
    product_of(b, "attn_output_b.weight", low, y);
    free(low);
    free(q);
}

/* y += weight * W2 (silu(min(W1 x, c)) * clamp(W3 x, c)) for expert e of a stack */
static void expert(struct block *b, const char *suffix, uint64_t e, double weight,
                   double clamp, const double *x, double *y) {
    static const char *const parts[] = { "ffn_gate_%s.weight", "ffn_up_%s.weight", "ffn_down_%s.weight" };
    uint64_t ff = b->hp.n_ff_exp, d = b->hp.n_embd;
    double *h = xcalloc(2 * ff + d, sizeof *h), *out = h + 2 * ff;
    for (int p = 0; p < 3; p++) {
        char name[64];
        snprintf(name, sizeof name, parts[p], suffix);
        const struct matrix *m = own(b, name);
        if (p < 2) product(m, e * ff, ff, x, h + (uint64_t)p * ff);
        else product(m, e * d, d, h, out);
        for (uint64_t i = 0; i < ff && p == 1; i++) {
            double g = fmin(h[i], clamp), u = fmax(-clamp, fmin(h[ff + i], clamp));
            h[i] = g * sigmoid(g) * u;
        }
    }
    for (uint64_t i = 0; i < d; i++) y[i] += weight * out[i];
    free(h);
}

static void experts(struct block *b, const double *x, double *y) {
    const struct hparams *hp = &b->hp;
    double score[64], sum = 0;
    bool used[64] = { false };
    CHECK(hp->n_expert <= 64);
    product_of(b, "ffn_gate_inp.weight", x, score);
    const struct matrix *bias = own(b, "exp_probs_b.bias");
    for (uint32_t e = 0; e < hp->n_expert; e++) score[e] = sqrt(log1p(exp(score[e])));
    for (uint32_t u = 0; u < hp->n_expert_used; u++) {
        uint32_t best = UINT32_MAX;
        for (uint32_t e = 0; e < hp->n_expert; e++)
            if (!used[e] &&
                (best == UINT32_MAX || score[e] + bias->v[e] > score[best] + bias->v[best]))
                best = e;
        used[best] = true;
        sum += score[best];
    }
    memset(y, 0, hp->n_embd * sizeof *y);
    for (uint32_t e = 0; e < hp->n_expert; e++)
        if (used[e])
            expert(b, "exps", e, score[e] / sum * (double)hp->expert_scale,
                   (double)hp->swiglu_clamp_exp[hp->n_layer - 1], x, y);
    expert(b, "shexp", 0, 1, (double)hp->swiglu_clamp_shexp[hp->n_layer - 1], x, y);
}

/* x[4][D] in and out; logits[V]. */
static void draft(struct block *b, int32_t token, double *x, double *logits) {
    uint64_t d = b->hp.n_embd;
    int pos = b->n++;
    double *e = xcalloc(4 * d, sizeof *e), *h = e + d, *in = e + 2 * d, *y = e + 3 * d, mix[4];
    struct mixing mixing;
    const struct matrix *embd = kept(b, b->model, "token_embd.weight"),
                        *output = kept(b, b->model, "output.weight");
    norm(b, "enorm.weight", embd->v + (uint64_t)token * d, in, d);
    product_of(b, "e_proj.weight", in, e);
    for (int s = 0; s < N_STREAMS; s++) {
        norm(b, "hnorm.weight", x + (uint64_t)s * d, in, d);
        product_of(b, "h_proj.weight", in, h);
        for (uint64_t i = 0; i < d; i++) x[(uint64_t)s * d + i] = e[i] + h[i];
    }
    connect(b, "attn", x, in, &mixing);
    norm(b, "attn_norm.weight", in, in, d);
    attention(b, in, y, pos);
    spread(b, &mixing, y, x);
    connect(b, "ffn", x, in, &mixing);
    norm(b, "ffn_norm.weight", in, in, d);
    experts(b, in, y);
    spread(b, &mixing, y, x);
    double r = 1 / sqrt(mean_square(x, 4 * d) + (double)b->hp.rms_eps);
    const struct matrix *scale = own(b, "hc_head_scale.weight"), *base = own(b, "hc_head_base.weight");
    product_of(b, "hc_head_fn.weight", x, mix);
    memset(h, 0, d * sizeof *h);
    for (int s = 0; s < N_STREAMS; s++)
        for (uint64_t i = 0; i < d; i++)
            h[i] += (sigmoid(mix[s] * r * scale->v[0] + base->v[s]) + (double)b->hp.hc_eps) *
                    x[(uint64_t)s * d + i];
    norm(b, "norm.weight", h, h, d);
    product(output, 0, output->n_out, h, logits);
    free(e);
}

/* ---- both on the same file ---- */

struct setup {
    struct scratch folder;
    struct tiny_model model;
    char path[FILE_PATH_MAX], mtp_path[FILE_PATH_MAX];
    struct gguf *g, *mtp;
    int32_t token[N_TOKENS];
    float *x;                                         /* [N_TOKENS][4][D] streams to draft from */
    float *x_want, *logits_want;                      /* by the second implementation */
};

static void setup_open(struct setup *s, char shape, const char *mix) {
    struct err e;
    struct rng r;
    scratch_open(&s->folder);
    tiny_model_init(&s->model, shape, mix, 5);
    snprintf(s->path, sizeof s->path, "%s", scratch_path(&s->folder, "model.gguf"));
    snprintf(s->mtp_path, sizeof s->mtp_path, "%s", scratch_path(&s->folder, "mtp.gguf"));
    tiny_write(&s->model, s->path);
    tiny_write_mtp(&s->model, s->mtp_path);
    assert_fine(gguf_open(&s->g, s->path, &e), &e);
    assert_fine(gguf_open(&s->mtp, s->mtp_path, &e), &e);
    uint64_t d = s->model.hp.n_embd, n_vocab = s->model.hp.n_vocab;
    s->x = xcalloc(N_TOKENS * 4 * d, sizeof *s->x);
    s->x_want = xcalloc(N_TOKENS * 4 * d, sizeof *s->x_want);
    s->logits_want = xcalloc(N_TOKENS * n_vocab, sizeof *s->logits_want);
    rng_init(&r, 6, 0);
    for (int i = 0; i < N_TOKENS; i++) s->token[i] = (int32_t)rng_below(&r, n_vocab);
    for (uint64_t i = 0; i < N_TOKENS * 4 * d; i++) s->x[i] = 0.7f * rng_normal(&r);
}

static void setup_close(struct setup *s) {
    gguf_close(s->g);
    gguf_close(s->mtp);
    free(s->x);
    free(s->x_want);
    free(s->logits_want);
    scratch_close(&s->folder);
}

/* The first n tokens pair with the given streams; each later one with what came out of the one before
 * (recursion). */
static void second_opinion(struct setup *s, int n_paired) {
    uint64_t d = s->model.hp.n_embd, n_vocab = s->model.hp.n_vocab;
    struct block b = { .model = s->g, .mtp = s->mtp, .hp = s->model.hp };
    double *x = xcalloc(4 * d, sizeof *x), *logits = xcalloc(n_vocab, sizeof *logits);
    b.rows = xcalloc(N_TOKENS * b.hp.head_dim, sizeof *b.rows);
    for (int t = 0; t < N_TOKENS; t++) {
        for (uint64_t i = 0; i < 4 * d && t < n_paired; i++) x[i] = (double)s->x[(uint64_t)t * 4 * d + i];
        draft(&b, s->token[t], x, logits);
        for (uint64_t i = 0; i < 4 * d; i++) s->x_want[(uint64_t)t * 4 * d + i] = (float)x[i];
        for (uint64_t i = 0; i < n_vocab; i++) s->logits_want[(uint64_t)t * n_vocab + i] = (float)logits[i];
    }
    block_free(&b);
    free(x);
    free(logits);
}

static struct stage *stage_with_mtp(const struct setup *s, enum numerics numerics,
                                    enum precision precision, uint32_t layer_begin) {
    struct stage_config config = { .model_path = s->path,
                                   .mtp_path = s->mtp_path,
                                   .layer_begin = layer_begin,
                                   .numerics = numerics,
                                   .n_rows_max = 32,
                                   .n_slots = 3,
                                   .kernels = {
                                       .backend = "cpu", .precision = precision, .n_threads = 2 } };
    struct stage *stage;
    struct err e;
    assert_fine(stage_model_open(&stage, &config, &e), &e);
    return stage;
}

/* n tokens from `first` on, streams from x, streams and logits to their places. */
static void run_mtp(struct stage *stage, const struct setup *s, uint32_t slot, uint32_t first,
                    uint32_t n, const float *x, float *x_out, float *logits) {
    struct stage_seg seg = { .slot = slot, .n = n, .token = s->token + first };
    struct err e;
    assert_fine(stage_run_mtp(stage, &(struct stage_mtp_batch){
        .segs = &seg, .n_seg = 1, .n_rows = n, .x_in = x, .x_out = x_out, .logits = logits }, &e), &e);
}

static void close_to(const char *what, int token, const float *got, const float *want, uint64_t n,
                     float tolerance) {
    for (uint64_t i = 0; i < n; i++)
        if (!(fabsf(got[i] - want[i]) <= tolerance * (1 + fabsf(want[i]))))
            fail_msg("token %d: %s %llu is %.7g, expected %.7g", token, what, (unsigned long long)i,
                     (double)got[i], (double)want[i]);
}

static void compare(char shape, const char *mix, uint32_t layer_begin) {
    struct setup s;
    struct err e;
    int n_paired = 45;                                /* past the window, in both shapes */
    setup_open(&s, shape, mix);
    second_opinion(&s, n_paired);
    struct stage *stage = stage_with_mtp(&s, NUMERICS_EXACT, PRECISION_F32, layer_begin);
    uint64_t row = 4ull * s.model.hp.n_embd, n_vocab = s.model.hp.n_vocab;
    float *x = xcalloc(N_TOKENS * row, sizeof *x), *logits = xcalloc(N_TOKENS * n_vocab, sizeof *logits);
    uint32_t slot;
    assert_fine(stage_seq_open(stage, &slot, &e), &e);
    run_mtp(stage, &s, slot, 0, 32, s.x, x, logits);
    run_mtp(stage, &s, slot, 32, 13, s.x + 32 * row, x + 32 * row, logits + 32 * n_vocab);
    for (int t = n_paired; t < N_TOKENS; t++)         /* draft after draft */
        run_mtp(stage, &s, slot, (uint32_t)t, 1, x + (uint64_t)(t - 1) * row, x + (uint64_t)t * row,
                logits + (uint64_t)t * n_vocab);
    for (int t = 0; t < N_TOKENS; t++) {
        close_to("stream", t, x + (uint64_t)t * row, s.x_want + (uint64_t)t * row, row, 2e-4f);
        close_to("logit", t, logits + (uint64_t)t * n_vocab, s.logits_want + (uint64_t)t * n_vocab,
                 n_vocab, 2e-4f);
    }
    stage_close(stage);
    free(x);
    free(logits);
    setup_close(&s);
}

static void drafts_are_those_of_a_second_implementation(void **state) {
    (void)state;
    compare('a', "q4", 0);
    compare('b', "f32", 0);
}

static void the_block_needs_only_the_last_stage(void **state) {
    (void)state;
    compare('b', "q8", 3);                            /* without the first layers, with the embedding */
}

static void drafts_do_not_depend_on_chunks_or_mates(void **state) {
    struct setup s;
    struct err e;
    (void)state;
    setup_open(&s, 'a', "q2");
    uint64_t row = 4ull * s.model.hp.n_embd, n_vocab = s.model.hp.n_vocab;
    float *want = xcalloc(N_TOKENS * n_vocab, sizeof *want), *got = xcalloc(N_TOKENS * n_vocab, sizeof *got);
    float *x = xcalloc(32 * row, sizeof *x);
    for (int numerics = 0; numerics < 2; numerics++) {
        struct stage *stage = stage_with_mtp(&s, (enum numerics)numerics, PRECISION_FAST, 0);
        uint32_t one, many, other;
        assert_fine(stage_seq_open(stage, &one, &e), &e);
        assert_fine(stage_seq_open(stage, &many, &e), &e);
        assert_fine(stage_seq_open(stage, &other, &e), &e);
        for (uint32_t t = 0; t < N_TOKENS; t++)
            run_mtp(stage, &s, one, t, 1, s.x + t * row, NULL, want + t * n_vocab);
        for (uint32_t t = 0, n; t < N_TOKENS; t += n) {
            n = MIN(1 + t % 17, N_TOKENS - t);
            struct stage_seg segs[2] = { { other, 3, s.token + t % 7 }, { many, n, s.token + t } };
            float *logits = xcalloc((n + 3) * n_vocab, sizeof *logits);
            memcpy(x, s.x + t % 5 * row, 3 * row * sizeof *x);
            memcpy(x + 3 * row, s.x + t * row, n * row * sizeof *x);
            assert_fine(stage_run_mtp(stage, &(struct stage_mtp_batch){
                .segs = segs, .n_seg = 2, .n_rows = n + 3, .x_in = x, .logits = logits }, &e), &e);
            memcpy(got + t * n_vocab, logits + 3 * n_vocab, n * n_vocab * sizeof *got);
            free(logits);
        }
        assert_memory_equal(got, want, N_TOKENS * n_vocab * sizeof *got);
        stage_close(stage);
    }
    free(want);
    free(got);
    free(x);
    setup_close(&s);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        TEST(drafts_do_not_depend_on_chunks_or_mates),
        TEST(drafts_are_those_of_a_second_implementation),
        TEST(the_block_needs_only_the_last_stage),
    };
    return _cmocka_run_group_tests("tests", tests, (size_t)effort_tests(1, COUNT_OF(tests)), NULL, NULL);
}
