/* Routing, and the routed experts. */
#include "tests/cuda/ops.h"

void test_route(void) {
    static const int sizes[][3] = { { 256, 6, 1 }, { 256, 6, 300 }, { 384, 6, 5 },
                                    { 16, 4, 33 }, { 8, 3, 2 },     { 7, 7, 2 } };
    for (size_t i = 0; i < COUNT_OF(sizes); i++)
        for (int kind = 0; kind < 3; kind++) {     /* bias, none, table */
            int n_expert = sizes[i][0], n_used = sizes[i][1], n = sizes[i][2];
            name_case("moe_route %d of %d x %d, kind %d", n_used, n_expert, n, kind);
            struct batch_memory b = { 0 };
            batch_add(&b, 0, 0, n);
            int32_t *table = xcalloc((size_t)(64 * n_used), 4);
            for (int t = 0; t < 64; t++)
                for (int u = 0; u < n_used; u++) table[t * n_used + u] = (t * 5 + u * 3) % n_expert;
            struct pair *logits = values(n_expert, n, 2, 0), *bias = values(n_expert, 1, 0.2f, 0),
                        *tid = numbers(n_used, 64, table);
            struct pair *ids = output(DTYPE_I32, n_used, n), *w = output(DTYPE_F32, n_used, n);
            BOTH(kernels_moe_route(k, &(struct moe_route_args){ .ids = &ids->t[s],
                                                                .weights = &w->t[s],
                                                                .logits = &logits->t[s],
                                                                .bias = kind == 0 ? &bias->t[s] : NULL,
                                                                .tid2eid = kind == 2 ? &tid->t[s] : NULL,
                                                                .batch = &b.b,
                                                                .scale = 1.5f,
                                                                .n_used = n_used }))
            compare_bytes(ids, 0, "ids");
            compare(w, 0, 1e-6, "weights");
            free(table);
            drop_all();
            batch_free(&b);
        }
}

struct experts_case {
    enum dtype gate, down;
    int n_embd, n_ff, n_expert, n_used, n, e_begin, e_end;
};

static void experts_run(const struct experts_case *e, struct pair *out, struct pair *x,
                        struct pair *ids, struct pair *w, struct pair *const m[3], int row0,
                        int n) {
    BOTH({
        struct tensor o = out->t[s], in = x->t[s], i = ids->t[s], v = w->t[s];
        o.data = (float *)o.data + row0 * o.ne[0], in.data = (float *)in.data + row0 * in.ne[0];
        i.data = (int32_t *)i.data + row0 * i.ne[0], v.data = (float *)v.data + row0 * v.ne[0];
        o.ne[1] = in.ne[1] = i.ne[1] = v.ne[1] = n;
        kernels_moe_experts(k, &(struct moe_experts_args){ .out = &o,
                                                           .x = &in,
                                                           .ids = &i,
                                                           .weights = &v,
                                                           .gate = &m[0]->t[s],
                                                           .up = &m[1]->t[s],
                                                           .down = &m[2]->t[s],
                                                           .clamp = 10,
                                                           .n = n,
                                                           .n_used = e->n_used,
                                                           .e_begin = e->e_begin,
                                                           .e_end = e->e_end });
    })
}

/* The card leaves the sum over experts to the hyper-connections that follow, if they follow at once: the same
 * bits in the streams, and in the sum itself. */
static void experts_then_post(const struct experts_case *e, struct pair *out, struct pair *x,
                              struct pair *ids, struct pair *w, struct pair *const m[3]) {
    struct pair *streams = values(e->n_embd, 4 * e->n, 3, 0), *y2 = values(e->n_embd, e->n, 1, 0);
    struct pair *post = values(4, e->n, 1, 1), *comb = values(16, e->n, 0.3f, 0.25f);
    uint32_t *sums[2], *mixed[2];
    for (int together = 0; together < 2; together++) {
        upload(streams, streams->host);
        poison(out);
        experts_run(e, out, x, ids, w, m, 0, e->n);
        if (!together) free(keep_bits(out));       /* a download: the card has run everything */
        BOTH(kernels_hc_post(k, &(struct hc_post_args){ .x = &streams->t[s],
                                                        .y = &out->t[s],
                                                        .y2 = &y2->t[s],
                                                        .post = &post->t[s],
                                                        .comb = &comb->t[s],
                                                        .n = e->n }))
        mixed[together] = keep_bits(streams), sums[together] = keep_bits(out);
    }
    same_bits(sums[0], sums[1], out->bytes / 4, "the sum, with hyper-connections in the same run");
    same_bits(mixed[0], mixed[1], streams->bytes / 4, "streams after experts in the same run");
    for (int i = 0; i < 2; i++) free(sums[i]), free(mixed[i]);
}

static void experts_case(const struct experts_case *e) {
    bool f32 = side[GPU]->config.precision == PRECISION_F32;
    if (small && (e->n_embd > 512 || e->n > 100)) return;
    name_case("moe_experts %s %s %d x %d, %d of %d..%d x %d, %s", dtype_name(e->gate),
              dtype_name(e->down), e->n_embd, e->n_ff, e->n_used, e->e_begin, e->e_end, e->n,
              f32 ? "f32" : "fast");
    int n_e = e->e_end - e->e_begin;
    float scale = 1 / sqrtf((float)e->n_embd);
    struct pair *m[3] = { weights(e->gate, e->n_embd, e->n_ff, n_e, scale),
                          weights(e->gate, e->n_embd, e->n_ff, n_e, scale),
                          weights(e->down, e->n_ff, e->n_embd, n_e, 1 / sqrtf((float)e->n_ff)) };
    int32_t *ids_host = xcalloc((size_t)(e->n * e->n_used), 4);
    for (int r = 0; r < e->n; r++)
        for (int u = 0, id = 0; u < e->n_used; u++) {                  /* ascending, distinct */
            int left = e->n_used - u - 1;
            id += (int)rng_below(&chance, (uint64_t)MAX(1, (e->n_expert - left - id) / (left + 1)));
            ids_host[r * e->n_used + u] = id++;
        }
    struct pair *x = values(e->n_embd, e->n, 1, 0), *ids = numbers(e->n_used, e->n, ids_host),
                *w = values(e->n_used, e->n, 0.1f, 0.3f);
    struct pair *out = output(DTYPE_F32, e->n_embd, e->n);
    experts_run(e, out, x, ids, w, m, 0, e->n);
    /* fast: hidden rows are rounded to int8, a flip is 1/127; types without an integer product on the
     * card differ by all roundings */
    compare(out, 0, f32 ? 1e-5 : e->gate == DTYPE_Q6_K ? 3e-2 : 1e-3, "out");
    uint32_t *whole = keep_bits(out);
    for (int cut = 1; cut < e->n; cut = cut * 5 + 2) {
        poison(out);
        experts_run(e, out, x, ids, w, m, 0, cut);
        experts_run(e, out, x, ids, w, m, cut, e->n - cut);
        uint32_t *parts = keep_bits(out);
        same_bits(whole, parts, out->bytes / 4, "rows in two parts");
        free(parts);
    }
    if (e->n <= 16) experts_then_post(e, out, x, ids, w, m);
    free(whole);
    free(ids_host);
    drop_all();
}

void test_experts(void) {
    static const struct experts_case cases[] = {
        { DTYPE_IQ2_XXS, DTYPE_Q2_K, 512, 256, 16, 6, 1, 0, 16 },
        { DTYPE_IQ2_XXS, DTYPE_Q2_K, 4096, 2048, 8, 6, 1, 0, 8 },
        { DTYPE_IQ2_XXS, DTYPE_Q2_K, 1024, 768, 32, 6, 9, 0, 32 },
        { DTYPE_IQ2_XXS, DTYPE_Q2_K, 512, 256, 16, 6, 300, 0, 16 },
        { DTYPE_IQ2_XXS, DTYPE_Q2_K, 4096, 256, 16, 6, 70, 8, 16 },
        { DTYPE_Q4_K, DTYPE_Q4_K, 256, 512, 16, 4, 3, 0, 16 },
        { DTYPE_Q4_K, DTYPE_Q4_K, 512, 256, 8, 3, 200, 0, 8 },
        { DTYPE_MXFP4, DTYPE_MXFP4, 512, 384, 16, 6, 5, 4, 8 },
        { DTYPE_MXFP4, DTYPE_MXFP4, 256, 256, 8, 2, 100, 0, 8 },
        { DTYPE_Q8_0, DTYPE_Q8_0, 256, 128, 8, 2, 11, 0, 8 },
        { DTYPE_Q8_0, DTYPE_Q8_0, 256, 128, 8, 2, 90, 0, 8 },
        { DTYPE_F16, DTYPE_F16, 96, 32, 16, 4, 20, 0, 16 },
        { DTYPE_Q6_K, DTYPE_Q5_K, 256, 256, 4, 2, 6, 0, 4 },
        { DTYPE_Q2_K, DTYPE_Q2_K, 256, 256, 1, 1, 150, 0, 1 },
        { DTYPE_IQ2_XXS, DTYPE_Q2_K, 512, 256, 300, 6, 64, 0, 300 },
    };
    for (size_t i = 0; i < COUNT_OF(cases); i++) experts_case(&cases[i]);
}
