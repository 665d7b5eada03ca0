/* Embedding, hyper-connections, norms, element-wise rows; a step that is captured and replayed. */
#include "tests/cuda/ops.h"

void test_embed(void) {
    for (size_t i = 0; i < COUNT_OF(decodable); i++) {
        struct batch_memory b = { 0 };
        batch_add(&b, 0, 0, 5);
        batch_add(&b, 1, 3, 2);
        int streams = i % 2 ? 4 : 1;
        struct pair *table = weights(decodable[i], 768, 64, 1, 1), *out = output(DTYPE_F32, 768, 7 * streams);
        name_case("embed %s", dtype_name(decodable[i]));
        BOTH(kernels_embed(
            k, &(struct embed_args){
                   .out = &out->t[s], .table = &table->t[s], .batch = &b.b, .n_streams = streams }))
        compare(out, 0, 1e-6, "out");
        drop_all();
        batch_free(&b);
    }
}

struct hc_tensors {
    struct pair *x, *y, *y2, *post, *comb, *fn, *scale, *base, *norm, *out;
};

static struct hc_tensors hc_new(int64_t n_embd, int n, enum dtype type) {
    struct hc_tensors h = {
        .x = values(n_embd, 4 * n, 3, 0),
        .y = values(n_embd, n, 1, 0),
        .y2 = values(n_embd, n, 1, 0),
        .post = values(4, n, 1, 1),
        .comb = values(16, n, 0.3f, 0.25f),
        .fn = weights(type, 4 * n_embd, HC_MIX, 1, 0.02f),
        .scale = values(3, 1, 0.3f, 1),
        .base = values(HC_MIX, 1, 0.5f, 0),
        .norm = values(n_embd, 1, 0.2f, 1),
        .out = output(DTYPE_F32, n_embd, n),
    };
    return h;
}

static void hc_pre_run(struct hc_tensors *h, struct pair *post, struct pair *comb, int n) {
    BOTH(kernels_hc_pre(k, &(struct hc_pre_args){ .out = &h->out->t[s],
                                                  .post = &post->t[s],
                                                  .comb = &comb->t[s],
                                                  .x = &h->x->t[s],
                                                  .fn = &h->fn->t[s],
                                                  .scale = &h->scale->t[s],
                                                  .base = &h->base->t[s],
                                                  .norm = &h->norm->t[s],
                                                  .rms_eps = 1e-6f,
                                                  .hc_eps = 1e-6f,
                                                  .n_sinkhorn = 20,
                                                  .n = n }))
}

/* Mixes the sublayer's output in, then prepares the next one: rows row0 .. row0+n. */
static void hc_rows_run(struct hc_tensors *h, struct pair *post, struct pair *comb, int row0, int n) {
    BOTH({
        struct tensor x = view_rows(h->x, s, 4 * row0, 4 * n), y = view_rows(h->y, s, row0, n),
                      y2 = view_rows(h->y2, s, row0, n), post_in = view_rows(h->post, s, row0, n),
                      comb_in = view_rows(h->comb, s, row0, n), out = view_rows(h->out, s, row0, n),
                      post_out = view_rows(post, s, row0, n), comb_out = view_rows(comb, s, row0, n);
        kernels_hc_post(k, &(struct hc_post_args){
                               .x = &x, .y = &y, .y2 = &y2, .post = &post_in, .comb = &comb_in, .n = n });
        kernels_hc_pre(k, &(struct hc_pre_args){ .out = &out,
                                                 .post = &post_out,
                                                 .comb = &comb_out,
                                                 .x = &x,
                                                 .fn = &h->fn->t[s],
                                                 .scale = &h->scale->t[s],
                                                 .base = &h->base->t[s],
                                                 .norm = &h->norm->t[s],
                                                 .rms_eps = 1e-6f,
                                                 .hc_eps = 1e-6f,
                                                 .n_sinkhorn = 20,
                                                 .n = n });
    })
}

/* Many rows at once and in two parts, the first few or many: the same bits. */
static void hc_parts(int64_t n_embd, int n) {
    static const char *const names[] = { "x", "out", "post", "comb" };
    struct hc_tensors h = hc_new(n_embd, n, DTYPE_F16);
    struct pair *post = output(DTYPE_F32, 4, n), *comb = output(DTYPE_F32, 16, n),
                *all[] = { h.x, h.out, post, comb };
    uint32_t *whole[COUNT_OF(all)];
    name_case("hyper-connection of %lld x %d in parts", (long long)n_embd, n);
    for (int cut = 0; cut < n; cut = cut * 5 + 1) {
        upload(h.x, h.x->host);
        for (size_t i = 1; i < COUNT_OF(all); i++) poison(all[i]);
        if (cut) hc_rows_run(&h, post, comb, 0, cut);
        hc_rows_run(&h, post, comb, cut, n - cut);
        for (size_t i = 0; i < COUNT_OF(all); i++) {
            uint32_t *bits = keep_bits(all[i]);
            if (cut) same_bits(whole[i], bits, all[i]->bytes / 4, names[i]), free(bits);
            else whole[i] = bits;
        }
    }
    for (size_t i = 0; i < COUNT_OF(all); i++) {
        compare(all[i], 0, 5e-6, names[i]);
        free(whole[i]);
    }
    drop_all();
}

void test_hc(void) {
    static const struct { int64_t n_embd; int n; enum dtype type;
    } cases[] = {
        { 4096, 1, DTYPE_F16 }, { 4096, 70, DTYPE_F16 }, { 7168, 2, DTYPE_F16 },
        { 256, 9, DTYPE_F32 },  { 100, 3, DTYPE_F32 },   { 96, 130, DTYPE_BF16 },
    };
    for (size_t i = 0; i < COUNT_OF(cases); i++) {
        int64_t n_embd = cases[i].n_embd;
        int n = cases[i].n;
        struct hc_tensors h = hc_new(n_embd, n, cases[i].type);
        struct pair *post = output(DTYPE_F32, 4, n), *comb = output(DTYPE_F32, 16, n);
        name_case("hc_pre %lld x %d %s", (long long)n_embd, n, dtype_name(cases[i].type));
        hc_pre_run(&h, post, comb, n);
        compare(h.out, 0, 2e-6, "out");
        compare(post, 0, 2e-6, "post");
        compare(comb, 0, 5e-6, "comb");
        name_case("hc_post %lld x %d", (long long)n_embd, n);
        for (int part = 0; part < 2; part++) {     /* alone, and right before the hc_pre that reads it */
            upload(h.x, h.x->host);
            BOTH(kernels_hc_post(k, &(struct hc_post_args){ .x = &h.x->t[s],
                                                            .y = &h.y->t[s],
                                                            .y2 = part ? &h.y2->t[s] : NULL,
                                                            .post = &h.post->t[s],
                                                            .comb = &h.comb->t[s],
                                                            .n = n }))
            if (part) hc_pre_run(&h, post, comb, n);
            compare(h.x, 0, 1e-6, "x");
            if (part) compare(h.out, 0, 2e-6, "out of the next hc_pre");
        }
        int32_t rows[3] = { n - 1, 0, n / 2 };
        struct pair *fn = weights(cases[i].type, 4 * n_embd, 4, 1, 0.02f),
                    *base = values(4, 1, 1, 0), *scale = values(1, 1, 0.1f, 1);
        struct pair *head = output(DTYPE_F32, n_embd, 3);
        name_case("hc_head %lld x %d", (long long)n_embd, n);
        BOTH(kernels_hc_head(k, &(struct hc_head_args){ .out = &head->t[s],
                                                        .x = &h.x->t[s],
                                                        .fn = &fn->t[s],
                                                        .scale = &scale->t[s],
                                                        .base = &base->t[s],
                                                        .norm = &h.norm->t[s],
                                                        .row_i = rows,
                                                        .rms_eps = 1e-6f,
                                                        .hc_eps = 1e-6f,
                                                        .n = 3 }))
        compare(head, 0, 2e-6, "out");
        drop_all();
    }
    hc_parts(4096, 163);
    hc_parts(256, 70);
    hc_parts(96, 70);
}

void test_rows(void) {
    static const int sizes[][2] = { { 4096, 3 }, { 1024, 130 }, { 7, 5 }, { 257, 1 } };
    for (size_t i = 0; i < COUNT_OF(sizes); i++) {
        int64_t row = sizes[i][0];
        int n = sizes[i][1];
        name_case("rows of %lld x %d", (long long)row, n);
        struct pair *in = values(row, n, 2, 0), *up = values(row, n, 8, 0),
                    *weight = values(row, 1, 1, 0), *out = output(DTYPE_F32, row, n);
        BOTH(kernels_rms_norm(k, &(struct rms_norm_args){ .out = &out->t[s],
                                                          .in = &in->t[s],
                                                          .weight = &weight->t[s],
                                                          .eps = 1e-6f,
                                                          .n = n }))
        compare(out, 0, 1e-6, "rms_norm");
        poison(out);
        BOTH(kernels_swiglu(
            k, &(struct swiglu_args){
                   .out = &out->t[s], .gate = &up->t[s], .up = &in->t[s], .clamp = 7, .n = n }))
        compare(out, 0, 1e-6, "swiglu");
        struct pair *x = values(row, 4 * n, 1, 0);
        BOTH(kernels_add_streams(k, &(struct add_streams_args){ .x = &x->t[s], .e = &in->t[s], .n = n }))
        compare(x, 0, 1e-7, "add_streams");
        drop_all();
    }
    static const int heads[][4] = { { 64, 512, 64, 3 }, { 8, 80, 16, 5 }, { 4, 192, 64, 33 } };
    for (size_t i = 0; i < COUNT_OF(heads); i++) {
        int n_head = heads[i][0], dim = heads[i][1], n_rot = heads[i][2], n = heads[i][3];
        name_case("q_rope %d x %d, %d rotated", n_head, dim, n_rot);
        struct pair *q = values(n_head * dim, n, 2, 0), *rope = values(n_rot, n, 0.7f, 0);
        BOTH(kernels_q_rope(k, &(struct q_rope_args){ .q = &q->t[s],
                                                      .rope = &rope->t[s],
                                                      .eps = 1e-6f,
                                                      .n = n,
                                                      .n_head = n_head,
                                                      .head_dim = dim,
                                                      .n_rot = n_rot }))
        compare(q, 0, 1e-6, "q");
        drop_all();
    }
}

/* The same step again and again with other inputs: run, captured, replayed. */
void test_replay(void) {
    struct hc_tensors h = hc_new(1024, 2, DTYPE_F16);
    struct pair *post = output(DTYPE_F32, 4, 2), *comb = output(DTYPE_F32, 16, 2),
                *w = weights(DTYPE_Q8_0, 1024, 512, 1, 0.03f);
    struct pair *out = output(DTYPE_F32, 512, 2);
    for (int i = 0; i < 5; i++) {
        name_case("the same step, time %d", i + 1);
        for (int64_t j = 0; j < 1024 * 8; j++) h.x->host[j] = rng_normal(&chance);
        upload(h.x, h.x->host);
        poison(out);
        hc_pre_run(&h, post, comb, 2);
        matmul_run(out, h.out, w, 0, 2, 1, false);
        compare(h.out, 0, 2e-6, "hc_pre");
        compare(out, 0, 3e-3, "matmul");
    }
    drop_all();
}
