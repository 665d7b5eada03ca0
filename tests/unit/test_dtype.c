/* The block formats: tables and sizes, decoders against published values bit by bit, encoders against
 * error bounds. */
#include "tests/harness/vectors.h"

#include "common/model/dtype.h"

#include <math.h>

static void sizes_are_those_of_the_format(void **state) {
    (void)state;
    static const uint32_t want[][3] = {
        /* id, values, bytes */
        { 0, 1, 4 },      { 1, 1, 2 },      { 2, 32, 18 },    { 3, 32, 20 },    { 6, 32, 22 },
        { 7, 32, 24 },    { 8, 32, 34 },    { 9, 32, 36 },    { 10, 256, 84 },  { 11, 256, 110 },
        { 12, 256, 144 }, { 13, 256, 176 }, { 14, 256, 210 }, { 15, 256, 292 }, { 16, 256, 66 },
        { 17, 256, 74 },  { 18, 256, 98 },  { 19, 256, 50 },  { 20, 32, 18 },   { 21, 256, 110 },
        { 22, 256, 82 },  { 23, 256, 136 }, { 24, 1, 1 },     { 25, 1, 2 },     { 26, 1, 4 },
        { 27, 1, 8 },     { 28, 1, 8 },     { 29, 256, 56 },  { 30, 1, 2 },     { 34, 256, 54 },
        { 35, 256, 66 },  { 39, 32, 17 },
    };
    uint32_t n_known = 0;
    for (uint32_t id = 0; id < 100; id++) n_known += dtype_known(id);
    assert_int_equal(n_known, COUNT_OF(want));
    for (size_t i = 0; i < COUNT_OF(want); i++) {
        assert_true(dtype_known(want[i][0]));
        assert_int_equal(dtype_block(want[i][0]), want[i][1]);
        assert_int_equal(dtype_block_bytes(want[i][0]), want[i][2]);
        assert_int_equal(dtype_row_bytes(want[i][0], 512), 512 / want[i][1] * want[i][2]);
    }
    assert_string_equal(dtype_name(16), "IQ2_XXS");
    assert_string_equal(dtype_name(40), "?");
    assert_false(dtype_decodes(17));
    assert_int_equal(dtype_block(4), 0);
}

static void grid_and_signs_follow_their_rules(void **state) {
    (void)state;
    for (int i = 0; i < 256; i++) {
        for (int j = 0; j < 8; j++) {
            int magnitude = (int)(iq2xxs_grid[i] >> 8 * j & 255);
            assert_true(magnitude == 8 || magnitude == 25 || magnitude == 43);
        }
        if (i > 0) assert_true(iq2xxs_grid[i] != iq2xxs_grid[i - 1]);
    }
    for (int i = 0; i < 128; i++) {
        assert_int_equal(iq2xxs_signs[i] & 127, i);
        assert_int_equal(__builtin_popcount(iq2xxs_signs[i]) % 2, 0);
    }
}

/* ---- decoders ---- */

struct published {
    enum dtype type;
    int d_at, dmin_at;                                /* where the f16 fields lie; -1: none */
    double first[6];
    int at;
    double there, last, sum, weighted;
};

static const struct published published[] = {
    { DTYPE_Q8_0,
      0,
      -1,
      { 5.3125, 7.625, -6.0625, -3.75, -1.4375, 0.875 },
      20,
      3.5625,
      -3,
      -11,
      -494 },
    { DTYPE_Q4_0,
      0,
      -1,
      { -0.1875, 0.125, 0.4375, -0.25, 0.0625, 0.375 },
      20,
      0.375,
      0,
      -1.3125,
      -31.0625 },
    { DTYPE_Q2_K,
      80,
      82,
      { 2.0625, 0, 0.6875, 1.375, 2.0625, 0 },
      100,
      1.25,
      0.28125,
      128.6875,
      15066.9375 },
    { DTYPE_Q3_K,
      108,
      -1,
      { 5.0625, -6.75, 1.6875, -3.375, 5.0625, -6.75 },
      100,
      0,
      2.625,
      59.875,
      11011.6875 },
    { DTYPE_Q4_K,
      0,
      2,
      { 19.71875, -1.59375, 8.09375, 17.78125, 27.46875, 6.15625 },
      100,
      5.9375,
      3.03125,
      3402.5,
      469900 },
    { DTYPE_Q5_K,
      0,
      2,
      { 50.71875, -1.59375, 39.09375, 17.78125, 58.46875, 6.15625 },
      100,
      14.6875,
      6.78125,
      7263.5,
      994452 },
    { DTYPE_Q6_K,
      208,
      -1,
      { -89.4375, 106, 36.4375, -33.125, -102.6875, 92.75 },
      100,
      157.6875,
      -3.75,
      288.25,
      48738 },
    { DTYPE_IQ2_XXS,
      0,
      -1,
      { -3.6953125, 3.6953125, 2.1484375, -2.1484375, 2.1484375, -0.6875 },
      100,
      1.6875,
      -5.0390625,
      47.734375,
      2251.828125 },
    { DTYPE_MXFP4, -1, -1, { 0, 3, -1, -6, 2, -0.5 }, 20, -2, 3, 12.5, 306.5 },
};

static void decodes_the_published_check_blocks(void **state) {
    (void)state;
    for (size_t k = 0; k < COUNT_OF(published); k++) {
        const struct published *p = &published[k];
        uint8_t block[256];
        float y[256];
        int n = (int)dtype_block(p->type);
        for (int i = 0; i < 256; i++) block[i] = (uint8_t)(37 * i + 11);
        if (p->d_at >= 0) memcpy(block + p->d_at, &(uint16_t){ 0x2c00 }, 2);
        if (p->dmin_at >= 0) memcpy(block + p->dmin_at, &(uint16_t){ 0x2800 }, 2);
        if (p->type == DTYPE_MXFP4) block[0] = 127;
        dtype_decode(p->type, block, y, (uint64_t)n);
        double sum = 0, weighted = 0;
        for (int i = 0; i < n; i++) sum += (double)y[i], weighted += (double)i * (double)y[i];
        for (int i = 0; i < 6; i++) assert_true((double)y[i] == p->first[i]);
        assert_true((double)y[p->at] == p->there);
        assert_true((double)y[n - 1] == p->last);
        assert_true(sum == p->sum);
        assert_true(weighted == p->weighted);
    }
}

static void from_hex(const char *hex, uint8_t *out) {
    for (; *hex; hex += 2) {
        unsigned byte;
        assert_int_equal(sscanf(hex, "%2x", &byte), 1);
        *out++ = (uint8_t)byte;
    }
}

static void check_real_block(enum dtype type, const char *hex, float first, float second,
                             float last, double sum, double weighted) {
    uint8_t block[256];
    float y[256];
    double got_sum = 0, got_weighted = 0;
    from_hex(hex, block);
    dtype_decode(type, block, y, 256);
    for (int i = 0; i < 256; i++) got_sum += (double)y[i], got_weighted += (double)i * (double)y[i];
    assert_true(fabsf(y[0] - first) < 1e-7f && fabsf(y[1] - second) < 1e-7f && fabsf(y[255] - last) < 1e-7f);
    assert_true(fabs(got_sum - sum) < 1e-6 && fabs(got_weighted - weighted) < 1e-4);
}

static void decodes_blocks_of_published_files(void **state) {
    (void)state;
    check_real_block(DTYPE_IQ2_XXS,
                     "56100189d725215c13f1380acbac2828a9938f006934c4f67dd744640e85952a8cd3e51314df9"
                     "edeadb2c5bf30da2460"
                     "dbd6dd38fdf1ce5745b56e2a2218501936f7",
                     -0.08819282f, 0.01640797f, 0.01640797f, 0.7488781, 64.50144);
    check_real_block(DTYPE_Q2_K,
                     "ff5889aa5ae96a56bbaa8bdb9aacffab14aa06721ed54a2a4ede1f8915d91144d8dbe0f85f164"
                     "cab82ed7a04219eea29"
                     "aad9819454a21ebb58479ec87509a26198a9805b5de66a452d8ad59a325bae8c401b801d",
                     -0.08056641f, 0.02563477f, 0.02416992f, 0.3876953, 28.53369);
}

static void decodes_the_golden_blocks_bit_by_bit(void **state) {
    (void)state;
    char name[80];
    struct vectors v;
    int n_formats = 0;
    vectors_read(&v, vectors_need("model/quant-blocks.vec"));
    for (uint32_t id = 0; id < DTYPE_IDS; id++) {
        snprintf(name, sizeof name, "%s.bytes", dtype_name(id));
        const struct vector *bytes = vectors_at(&v, name);
        if (!bytes || !dtype_decodes(id)) continue;
        snprintf(name, sizeof name, "%s.values", dtype_name(id));
        const struct vector *values = vectors_at(&v, name);
        assert_non_null(values);
        float *y = xcalloc(values->n, sizeof *y);
        dtype_decode((enum dtype)id, bytes->data, y, values->n);
        for (uint64_t i = 0; i < values->n; i++) {
            uint32_t want;
            memcpy(&want, (const char *)values->data + 4 * i, 4);
            if (f32_bits(y[i]) != want)
                fail_msg("%s value %d: %08x, want %08x", dtype_name(id), (int)i, f32_bits(y[i]), want);
        }
        free(y);
        n_formats++;
    }
    assert_int_equal(n_formats, 8);                   /* all but IQ2_XS */
    vectors_free(&v);
}

static void mxfp4_covers_every_exponent(void **state) {
    (void)state;
    uint8_t block[17] = { 0 };
    float y[32];
    block[1] = 0x72;                                  /* value 0: 1, value 16: 6 */
    for (int e = 0; e < 256; e++) {
        block[0] = (uint8_t)e;
        dtype_decode(DTYPE_MXFP4, block, y, 32);
        assert_true(y[0] == ldexpf(1, e - 127));
        assert_true(y[16] == ldexpf(6, e - 127));
        assert_true(y[1] == 0);
    }
}

/* ---- encoders ---- */

static const struct bound {
    enum dtype type;
    double rms;                                       /* of the error, relative to the rms of normal values */
} bounds[] = {
    { DTYPE_F32, 0 },        { DTYPE_F16, 3e-4 },   { DTYPE_BF16, 2.5e-3 }, { DTYPE_Q8_0, 0.006 },
    { DTYPE_Q4_0, 0.10 },    { DTYPE_Q2_K, 0.36 },  { DTYPE_Q3_K, 0.20 },   { DTYPE_Q4_K, 0.09 },
    { DTYPE_Q5_K, 0.045 },   { DTYPE_Q6_K, 0.025 }, { DTYPE_IQ2_XXS, 0.47 }, { DTYPE_MXFP4, 0.125 },
};

static uint64_t chance = 1;

static float uniform(void) {
    chance = chance * 6364136223846793005u + 1442695040888963407u;
    return (float)(chance >> 40) / 16777216;
}

static float normal(void) {
    float sum = 0;
    for (int i = 0; i < 12; i++) sum += uniform();
    return sum - 6;
}

enum { N = 64 * 256 };

static double relative_error(enum dtype type, const float *x, float *y) {
    uint8_t *blocks = xcalloc(N, 4);
    dtype_encode(type, x, blocks, N);
    dtype_decode(type, blocks, y, N);
    free(blocks);
    double error = 0, power = 0;
    for (int i = 0; i < N; i++) {
        error += ((double)x[i] - (double)y[i]) * ((double)x[i] - (double)y[i]);
        power += (double)x[i] * (double)x[i];
    }
    return sqrt(error / power);
}

static void encoding_loses_no_more_than_the_format_must(void **state) {
    (void)state;
    float *x = xcalloc(N, sizeof *x), *y = xcalloc(N, sizeof *y);
    chance = 1;
    for (int i = 0; i < N; i++) x[i] = normal() * 0.02f;
    for (size_t k = 0; k < COUNT_OF(bounds); k++) {
        double error = relative_error(bounds[k].type, x, y);
        printf("  %-8s relative error %.5f (bound %.5f)\n", dtype_name(bounds[k].type), error, bounds[k].rms);
        assert_true(error <= bounds[k].rms);
        assert_true(error >= bounds[k].rms / 3);      /* else the bound says nothing */
    }
    free(x);
    free(y);
}

static void encoding_stays_finite_for_any_input(void **state) {
    (void)state;
    static const float nasty[] = { 0, -0.0f, 1e-45f, -1e-40f, 1e-20f, 65504, -7e4f, 1e30f, -3.4e38f, 1 };
    float x[256], y[256];
    uint8_t block[1024];
    for (size_t k = 0; k < COUNT_OF(bounds); k++) {
        enum dtype type = bounds[k].type;
        if (type == DTYPE_F32 || type == DTYPE_F16 || type == DTYPE_BF16) continue;
        for (size_t a = 0; a < COUNT_OF(nasty); a++) {
            for (int i = 0; i < 256; i++) x[i] = i % 3 ? nasty[a] : nasty[(size_t)i % COUNT_OF(nasty)];
            dtype_encode(type, x, block, 256);
            dtype_decode(type, block, y, 256);
            for (int i = 0; i < 256; i++)
                if (!isfinite(y[i]))
                    fail_msg("%s: %g became %g", dtype_name(type), (double)x[i], (double)y[i]);
        }
        for (int i = 0; i < 256; i++) x[i] = i % 2 ? INFINITY : i % 3 ? -INFINITY : NAN;
        dtype_encode(type, x, block, 256);            /* no crash, nothing undefined */
        dtype_decode(type, block, y, 256);
        memset(x, 0, sizeof x);
        dtype_encode(type, x, block, 256);
        dtype_decode(type, block, y, 256);
        for (int i = 0; i < 256; i++) assert_true(y[i] == 0 || type == DTYPE_IQ2_XXS);
    }
}

static void q8_0_is_the_published_rule(void **state) {
    (void)state;
    float x[32];
    uint8_t block[34];
    for (int i = 0; i < 32; i++) x[i] = (float)(i - 20) * 0.37f;
    dtype_encode(DTYPE_Q8_0, x, block, 32);
    float d = 20 * 0.37f / 127;
    assert_int_equal(block[0] | block[1] << 8, f16_from_f32(d));
    for (int i = 0; i < 32; i++) assert_int_equal((int8_t)block[2 + i], (int)lroundf(x[i] / d));
}

static void mxfp4_keeps_what_it_can_hold(void **state) {
    (void)state;
    static const float values[8] = { 0, 0.5f, 1, 1.5f, 2, 3, 4, 6 };
    float x[32], y[32];
    uint8_t block[17];
    for (int e = -60; e <= 60; e++) {
        for (int i = 0; i < 32; i++) x[i] = ldexpf(i % 2 ? values[i % 8] : -values[i % 8], e);
        x[9] = ldexpf(6, e);
        dtype_encode(DTYPE_MXFP4, x, block, 32);
        dtype_decode(DTYPE_MXFP4, block, y, 32);
        for (int i = 0; i < 32; i++) assert_true(x[i] == y[i]);
    }
}

static void mxfp4_rounds_ties_to_the_even_code(void **state) {
    (void)state;
    static const float ties[][2] = { { 0.25f, 0 }, { 0.75f, 1 }, { 1.25f, 1 }, { 1.75f, 2 },
                                     { 2.5f, 2 },  { 3.5f, 4 },  { 5, 4 } };
    float x[32] = { 6 }, y[32];
    uint8_t block[17];
    for (size_t i = 0; i < COUNT_OF(ties); i++) x[i + 1] = ties[i][0], x[i + 20] = -ties[i][0];
    dtype_encode(DTYPE_MXFP4, x, block, 32);
    dtype_decode(DTYPE_MXFP4, block, y, 32);
    for (size_t i = 0; i < COUNT_OF(ties); i++)
        assert_true(y[i + 1] == ties[i][1] && y[i + 20] == -ties[i][1]);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        TEST(sizes_are_those_of_the_format),
        TEST(grid_and_signs_follow_their_rules),
        TEST(decodes_the_published_check_blocks),
        TEST(decodes_blocks_of_published_files),
        TEST(decodes_the_golden_blocks_bit_by_bit),
        TEST(mxfp4_covers_every_exponent),
        TEST(encoding_loses_no_more_than_the_format_must),
        TEST(encoding_stays_finite_for_any_input),
        TEST(q8_0_is_the_published_rule),
        TEST(mxfp4_keeps_what_it_can_hold),
        TEST(mxfp4_rounds_ties_to_the_even_code),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
