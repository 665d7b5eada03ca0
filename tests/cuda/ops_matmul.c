/* Products: every type, odd sizes, rows in parts; several products of one input. */
#include "tests/cuda/ops.h"

void matmul_run(struct pair *out, struct pair *in, struct pair *w, int row0, int n, int n_group,
                       bool f32_act) {
    BOTH({
        struct tensor o = out->t[s], x = in->t[s];
        o.data = (float *)o.data + row0 * o.ne[0], x.data = (float *)x.data + row0 * x.ne[0];
        o.ne[1] = x.ne[1] = n;
        kernels_matmul(k, &(struct matmul_args){ .out = &o,
                                                 .in = &x,
                                                 .weight = &w->t[s],
                                                 .n = n,
                                                 .n_group = n_group,
                                                 .f32_act = f32_act });
    })
}

static void matmul_case(enum dtype type, int64_t n_in, int64_t n_out, int n_group, int n, bool f32_act) {
    bool f32 = side[GPU]->config.precision == PRECISION_F32;
    if (small && n_in * n_out * n > 40 << 20) return;
    name_case("matmul %s %lld -> %lld in %d groups x %d%s, %s", dtype_name(type), (long long)n_in,
              (long long)n_out, n_group, n, f32_act ? ", f32 input" : "", f32 ? "f32" : "fast");
    struct pair *w = weights(type, n_in, n_out, 1, 1 / sqrtf((float)n_in)),
                *in = values(n_in * n_group, n, 1, 0), *out = output(DTYPE_F32, n_out, n);
    matmul_run(out, in, w, 0, n, n_group, f32_act);
    bool exact_type = type == DTYPE_F32 || type == DTYPE_F16 || type == DTYPE_BF16;
    bool tiles = (type == DTYPE_Q8_0 || type == DTYPE_MXFP4 || type == DTYPE_Q2_K ||
                  type == DTYPE_Q4_K || type == DTYPE_IQ2_XXS) &&
                 n_out % 16 == 0 && n_in % 128 == 0 &&
                 (n_group == 1 || (n_out / n_group % 128 == 0 && n_in % 512 == 0));
    /* Where the card has no integer product it is the more exact of the two. */
    compare(out, 0, f32 || exact_type || f32_act || tiles ? 5e-6 : 2e-2, "out");
    uint32_t *whole = keep_bits(out);
    /* rows in two parts: 1 + rest, 4 + rest, 13 + rest ... */
    for (int cut = 1; cut < n; cut = cut * 3 + 1) {
        poison(out);
        matmul_run(out, in, w, 0, cut, n_group, f32_act);
        matmul_run(out, in, w, cut, n - cut, n_group, f32_act);
        uint32_t *parts = keep_bits(out);
        same_bits(whole, parts, out->bytes / 4, "rows in two parts");
        free(parts);
    }
    free(whole);
    drop_all();
}

void test_matmul(void) {
    static const int shapes[][4] = {
        /* in, out, groups, rows */
        { 1024, 96, 1, 1 },    { 4096, 256, 1, 3 },  { 256, 16, 1, 9 },   { 2048, 48, 1, 17 },
        { 512, 1024, 8, 5 },   { 1024, 512, 2, 70 }, { 768, 400, 1, 64 }, { 1536, 272, 1, 65 },
        { 4096, 128, 1, 200 }, { 256, 40, 1, 3 },    { 512, 48, 3, 66 },
    };
    for (size_t t = 0; t < COUNT_OF(decodable); t++)
        for (size_t i = 0; i < COUNT_OF(shapes); i++)
            matmul_case(decodable[t], shapes[i][0], shapes[i][1], shapes[i][2], shapes[i][3],
                        false);
    matmul_case(DTYPE_F32, 33, 7, 1, 5, false);
    matmul_case(DTYPE_F16, 80, 5, 1, 2, false);
    matmul_case(DTYPE_Q8_0, 96, 192, 1, 130, false);
    matmul_case(DTYPE_Q8_0, 1408, 144, 1, 131, false);
    matmul_case(DTYPE_Q8_0, 128, 528, 1, 72, false);
    matmul_case(DTYPE_Q8_0, 640, 384, 3, 129, false);
    matmul_case(DTYPE_Q8_0, 4096, 64, 1, 3, true);
    matmul_case(DTYPE_F16, 4096, 64, 1, 70, true);
    matmul_case(DTYPE_Q8_0, 8192, 64, 1, 2, false);
    matmul_case(DTYPE_Q4_0, 4096, 64, 1, 3, false);
}

/* Products of one input, with something else between them: one launch on a card. */
void test_matmul_group(void) {
    for (int n = 1; n <= 80; n = n * 3 + 1) {
        name_case("products of one input x %d", n);
        struct pair *in = values(1024, n, 1, 0), *norm = values(256, 1, 1, 0);
        struct pair *w[4], *out[4];
        static const enum dtype types[4] = { DTYPE_Q8_0, DTYPE_F16, DTYPE_Q8_0, DTYPE_Q4_K };
        for (int i = 0; i < 4; i++)
            w[i] = weights(types[i], 1024, 256, 1, 0.03f), out[i] = output(DTYPE_F32, 256, n);
        struct pair *normed = output(DTYPE_F32, 256, n), *second = output(DTYPE_F32, 1024, n),
                    *w2 = weights(DTYPE_Q8_0, 256, 1024, 1, 0.06f);
        BOTH({
            for (int i = 0; i < 4; i++) {
                kernels_matmul(k, &(struct matmul_args){ .out = &out[i]->t[s],
                                                         .in = &in->t[s],
                                                         .weight = &w[i]->t[s],
                                                         .n = n,
                                                         .n_group = 1 });
                if (i == 0)
                    kernels_rms_norm(k, &(struct rms_norm_args){ .out = &normed->t[s],
                                                                 .in = &out[0]->t[s],
                                                                 .weight = &norm->t[s],
                                                                 .eps = 1e-6f,
                                                                 .n = n });
                if (i == 1)
                    kernels_matmul(k, &(struct matmul_args){ .out = &second->t[s],
                                                             .in = &normed->t[s],
                                                             .weight = &w2->t[s],
                                                             .n = n,
                                                             .n_group = 1 });
            }
        })
        for (int i = 0; i < 4; i++) compare(out[i], 0, 5e-6, dtype_name(types[i]));
        /* int8 roundings of slightly different inputs */
        compare(second, 0, 3e-3, "product of the normed rows");
        drop_all();
    }
}
