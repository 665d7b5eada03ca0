/* Synthetic models: names, shapes and types against the published counts and sizes, statistics,
 * determinism, vocabulary. */
#include "common/model/synth.h"
#include "common/model/synth_parts.h"
#include "common/model/synth_vocab.h"

#include "common/base/hash.h"
#include "tests/harness/effort.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

static char folder[64];

static const char *path_of(const char *name) {
    static char path[4][160];
    static int i;
    i = (i + 1) % 4;
    snprintf(path[i], sizeof path[i], "%s/%s", folder, name);
    return path[i];
}

static int make_folder(void **state) {
    (void)state;
    snprintf(folder, sizeof folder, "/tmp/test_synth.XXXXXX");
    return mkdtemp(folder) ? 0 : -1;
}

static int remove_folder(void **state) {
    (void)state;
    const char *names[] = { "a.gguf", "b.gguf", "mtp.gguf" };
    for (size_t i = 0; i < COUNT_OF(names); i++) unlink(path_of(names[i]));
    return rmdir(folder);
}

static struct synth *plan(struct synth_options o) {
    struct synth *s;
    struct err e = { 0 };
    if (synth_new(&s, &o, &e) < 0) fail_msg("%s", e.text);
    return s;
}

static struct gguf *write_and_open(struct synth_options o, const char *name) {
    struct gguf *g;
    struct err e = { 0 };
    struct synth *s = plan(o);
    if (synth_write(s, path_of(name), &e) < 0) fail_msg("%s", e.text);
    synth_free(s);
    if (gguf_open(&g, path_of(name), &e) < 0) fail_msg("%s", e.text);
    return g;
}

/* ---- shapes: spec/model.md 4.3 to 4.5 and 6.1 ---- */

static void count_types(const struct synth_list *list, int count[DTYPE_IDS]) {
    memset(count, 0, DTYPE_IDS * sizeof *count);
    for (uint32_t i = 0; i < list->n; i++) count[list->tensor[i].type]++;
}

static void flash_and_pro_have_the_published_tensors(void **state) {
    (void)state;
    const struct {
        const char *preset, *mix;
        uint32_t n;
        int f32, f16, q8, i32, iq2, q2k, q4k, mxfp4;
        uint64_t bytes;
    } cases[] = {
        { "flash-q2", NULL, 1328, 492, 359, 345, 3, 86, 43, 0, 0, 86714777664 },
        { "flash-q4", NULL, 1328, 492, 359, 345, 3, 0, 0, 129, 0, 164628168768 },
        { "flash-q2", "q2q4", 1328, 492, 359, 345, 3, 74, 37, 18, 0, 97586413632 },
        { "flash-q4", "mxfp4", 1328, 492, 359, 345, 3, 0, 0, 0, 129, 155971125312 },
        { "pro-q2", NULL, 1894, 701, 518, 489, 3, 122, 61, 0, 0, 464621969216 },
    };
    for (size_t i = 0; i < COUNT_OF(cases); i++) {
        struct hparams hp;
        struct synth_list list;
        int count[DTYPE_IDS];
        enum synth_mix mix = cases[i].mix ? cases[i].mxfp4 ? SYNTH_MIX_MXFP4 : SYNTH_MIX_Q2Q4
                             : cases[i].q4k ? SYNTH_MIX_Q4 : SYNTH_MIX_Q2;
        struct synth *s = plan((struct synth_options){ .preset = cases[i].preset, .mix = cases[i].mix });
        assert_int_equal(synth_bytes(s), cases[i].bytes);
        hp = *synth_hparams(s);
        synth_free(s);
        synth_list_model(&list, &hp, mix);
        count_types(&list, count);
        assert_int_equal(list.n, cases[i].n);
        assert_int_equal(count[DTYPE_F32], cases[i].f32);
        assert_int_equal(count[DTYPE_F16], cases[i].f16);
        assert_int_equal(count[DTYPE_Q8_0], cases[i].q8);
        assert_int_equal(count[DTYPE_I32], cases[i].i32);
        assert_int_equal(count[DTYPE_IQ2_XXS], cases[i].iq2);
        assert_int_equal(count[DTYPE_Q2_K], cases[i].q2k);
        assert_int_equal(count[DTYPE_Q4_K], cases[i].q4k);
        assert_int_equal(count[DTYPE_MXFP4], cases[i].mxfp4);
        synth_list_free(&list);
    }
}

static void q2q4_makes_the_last_third_of_few_layers_fine(void **state) {
    (void)state;
    struct synth_list list;
    struct synth *s = plan((struct synth_options){ .preset = "tiny" });
    synth_list_model(&list, synth_hparams(s), SYNTH_MIX_Q2Q4);
    for (uint32_t i = 0; i < list.n; i++) {
        unsigned layer_i;
        if (!strstr(list.tensor[i].name, "ffn_down_exps") ||
            sscanf(list.tensor[i].name, "blk.%u.", &layer_i) != 1)
            continue;
        assert_int_equal(list.tensor[i].type, layer_i < 3 ? DTYPE_Q2_K : DTYPE_Q4_K);
    }
    synth_list_free(&list);
    synth_free(s);
}

static void the_mtp_block_has_the_published_tensors(void **state) {
    (void)state;
    struct hparams hp;
    struct synth_list list;
    int count[DTYPE_IDS];
    struct synth *s = plan((struct synth_options){ .preset = "flash-q2" });
    assert_int_equal(synth_mtp_bytes(s), 3807600192);
    synth_free(s);
    hparams_flash(&hp);
    synth_list_mtp(&list, &hp);
    count_types(&list, count);
    assert_int_equal(list.n, 32);
    assert_int_equal(count[DTYPE_F32], 19);
    assert_int_equal(count[DTYPE_Q8_0], 10);
    assert_int_equal(count[DTYPE_Q4_K], 3);
    synth_list_free(&list);
}

static void mid_has_the_true_layers_of_flash(void **state) {
    (void)state;
    struct hparams flash;
    struct synth *s = plan((struct synth_options){ .preset = "mid" });
    const struct hparams *hp = synth_hparams(s);
    const enum attn_kind kinds[] = { ATTN_SWA, ATTN_CSA, ATTN_HCA, ATTN_CSA };
    hparams_flash(&flash);
    assert_int_equal(hp->n_layer, 4);
    assert_int_equal(hp->n_hash_layer, 3);
    for (uint32_t i = 0; i < 4; i++) assert_int_equal(hparams_kind(hp, i), kinds[i]);
    assert_int_equal(hp->n_embd, flash.n_embd);
    assert_int_equal(hp->n_vocab, 129280);
    assert_int_equal(hp->n_expert, flash.n_expert);
    synth_free(s);
    s = plan((struct synth_options){ .preset = "mid", .n_layer = 2 });
    assert_int_equal(synth_hparams(s)->n_hash_layer, 1);  /* the last layer is routed by learning */
    synth_free(s);
    s = plan((struct synth_options){ .preset = "mid", .n_expert = 32 });
    assert_int_equal(synth_hparams(s)->n_expert, 32);
    synth_free(s);
    s = plan((struct synth_options){ .preset = "flash-q2", .n_layer = 46 });
    assert_int_equal(synth_hparams(s)->ratio[42], 4);
    assert_int_equal(synth_hparams(s)->ratio[43], 128);
    assert_int_equal(synth_hparams(s)->ratio[45], 128);
    synth_free(s);
}

static void tiny_pro_has_the_pattern_of_pro(void **state) {
    (void)state;
    struct hparams pro;
    struct synth *s = plan((struct synth_options){ .preset = "tiny-pro" });
    const struct hparams *hp = synth_hparams(s);
    hparams_pro(&pro);
    assert_int_equal(hp->ratio[0], 128);
    for (uint32_t i = 0; i < hp->n_layer; i++) {
        assert_int_equal(hp->ratio[i], pro.ratio[i]);
        assert_int_equal(i < hp->n_hash_layer, i < pro.n_hash_layer);
    }
    assert_int_equal(hp->ratio[hp->n_layer], 0);
    synth_free(s);
}

static void unknown_presets_and_mixes_are_refused(void **state) {
    (void)state;
    struct synth *s;
    struct err e;
    struct tokenizer_vocab small = { .n_tokens = 600 };
    assert_int_equal(synth_new(&s, &(struct synth_options){ .preset = "large" }, &e), ERR_INVALID);
    assert_int_equal(synth_new(&s, &(struct synth_options){ .preset = "tiny", .mix = "q3" }, &e),
                     ERR_INVALID);
    assert_int_equal(synth_new(&s, &(struct synth_options){ .preset = "tiny", .n_layer = 257 }, &e),
                     ERR_LIMIT);
    assert_int_equal(synth_new(&s, &(struct synth_options){ .preset = "tiny", .n_expert = 4097 }, &e),
                     ERR_LIMIT);
    assert_int_equal(synth_new(&s, &(struct synth_options){ .preset = "mid", .n_expert = 5 }, &e),
                     ERR_INVALID);
    assert_int_equal(synth_new(&s, &(struct synth_options){ .preset = "mid", .vocab = &small }, &e),
                     ERR_INVALID);
    assert_null(s);
}

/* ---- files ---- */

static void what_is_written_reads_back_as_planned(void **state) {
    (void)state;
    struct hparams hp;
    struct err e = { 0 };
    struct synth *s = plan((struct synth_options){ .preset = "tiny" });
    struct gguf *g = write_and_open((struct synth_options){ .preset = "tiny", .n_threads = 2 }, "a.gguf");
    if (hparams_read(&hp, g, &e) < 0) fail_msg("%s", e.text);
    assert_memory_equal(&hp, synth_hparams(s), sizeof hp);
    synth_free(s);
    for (uint64_t i = 0; i < gguf_n_tensors(g); i++) {
        const struct gguf_tensor *t = gguf_tensor_at(g, i);
        if (!dtype_decodes(t->type)) continue;
        uint64_t n = t->ne[0] * t->ne[1] * t->ne[2];
        float *x = malloc(n * sizeof *x);
        dtype_decode((enum dtype)t->type, t->data, x, n);
        for (uint64_t k = 0; k < n; k++) assert_true(fabsf(x[k]) < 100);
        free(x);
    }
    gguf_close(g);
}

static struct hash128 hash_of(struct synth_options o, const char *name) {
    struct gguf *g = write_and_open(o, name);
    struct hash128 h = hash_128(gguf_file_data(g, 0), gguf_file_size(g, 0));
    gguf_close(g);
    return h;
}

static void same_options_give_the_same_bytes_whatever_the_threads(void **state) {
    (void)state;
    struct synth_options o = { .preset = "tiny", .n_layer = 2, .mix = "q8", .seed = 5, .n_threads = 1 };
    struct hash128 one = hash_of(o, "a.gguf");
    o.n_threads = 7;
    assert_true(hash_equal(one, hash_of(o, "b.gguf")));
    o.seed = 6;
    assert_false(hash_equal(one, hash_of(o, "b.gguf")));
}

/* So a file made on one machine stands for that made on another; a change of the generator must be meant. */
static void the_bytes_are_those_of_every_other_machine(void **state) {
    (void)state;
    char hex[HASH_HEX];
    hash_to_hex(hash_of((struct synth_options){ .preset = "tiny", .n_threads = 2 }, "a.gguf"), hex);
    assert_string_equal(hex, "4ebebfda7ee828820195a8a95318af23");
}

static void hash_tables_name_different_experts(void **state) {
    (void)state;
    struct gguf *g = write_and_open((struct synth_options){ .preset = "tiny" }, "a.gguf");
    const struct gguf_tensor *t = gguf_find_tensor(g, "blk.1.ffn_gate_tid2eid.weight");
    int used[16] = { 0 };
    assert_non_null(t);
    assert_int_equal(t->ne[0], 4);
    for (uint64_t row = 0; row < t->ne[1]; row++) {
        int32_t id[4];
        memcpy(id, t->data + row * sizeof id, sizeof id);
        for (int i = 0; i < 4; i++) {
            assert_in_range(id[i], 0, 15);
            used[id[i]]++;
            for (int k = 0; k < i; k++) assert_int_not_equal(id[i], id[k]);
        }
    }
    for (int i = 0; i < 16; i++) assert_in_range(used[i], 180, 340);  /* 256 expected */
    assert_null(gguf_find_tensor(g, "blk.3.ffn_gate_tid2eid.weight"));
    assert_non_null(gguf_find_tensor(g, "blk.3.exp_probs_b.bias"));
    gguf_close(g);
}

static bool cancel_half_way(void *ctx, uint64_t done, uint64_t total) {
    (void)ctx;
    return done < total / 2;
}

static void a_cancelled_write_leaves_nothing(void **state) {
    (void)state;
    struct err e;
    struct stat st;
    struct synth *s = plan(
        (struct synth_options){ .preset = "tiny", .n_threads = 2, .progress = cancel_half_way });
    unlink(path_of("b.gguf"));
    assert_int_equal(synth_write(s, path_of("b.gguf"), &e), ERR_CANCELLED);
    assert_int_equal(stat(path_of("b.gguf"), &st), -1);
    assert_int_equal(stat(path_of("b.gguf.tmp"), &st), -1);
    synth_free(s);
}

static void too_little_room_is_said_before_anything_is_written(void **state) {
    (void)state;
    struct err e;
    struct stat st;
    struct synth *s = plan((struct synth_options){ .preset = "pro-q2", .mix = "f16", .n_layer = 250 });
    assert_int_equal(synth_write(s, path_of("b.gguf"), &e), ERR_LIMIT);      /* 13 terabytes */
    assert_non_null(strstr(e.text, "GB are free there"));
    assert_int_equal(stat(path_of("b.gguf.tmp"), &st), -1);
    synth_free(s);
}

static void the_mtp_file_opens(void **state) {
    (void)state;
    struct gguf *g;
    struct err e = { 0 };
    struct synth *s = plan((struct synth_options){ .preset = "tiny" });
    if (synth_write_mtp(s, path_of("mtp.gguf"), &e) < 0) fail_msg("%s", e.text);
    synth_free(s);
    assert_int_equal(gguf_open(&g, path_of("mtp.gguf"), &e), 0);
    assert_int_equal(gguf_n_tensors(g), 32);
    assert_non_null(gguf_find_tensor(g, "mtp.0.ffn_down_exps.weight"));
    assert_non_null(gguf_find_tensor(g, "mtp.0.hc_head_base.weight"));
    gguf_close(g);
}

/* ---- numbers ---- */

static void blocks_have_the_wanted_deviation_and_no_mean(void **state) {
    (void)state;
    static struct synth_noise noise;
    const enum dtype types[] = { DTYPE_IQ2_XXS, DTYPE_Q2_K, DTYPE_Q4_K, DTYPE_Q8_0,
                                 DTYPE_MXFP4,   DTYPE_F16,  DTYPE_F32 };
    const float deviations[] = { 1, 1.0f / 64, 1.0f / 85, 0.004f };
    uint8_t *bytes = malloc(SYNTH_CHUNK_BYTES);
    enum { N = 1 << 20 };
    float *x = malloc(N * sizeof *x);
    synth_noise_init(&noise);
    for (size_t i = 0; i < COUNT_OF(types) * COUNT_OF(deviations); i++) {
        float want = deviations[i / COUNT_OF(types)];
        struct synth_tensor t = { .name = "blk.0.x",
                                  .type = types[i % COUNT_OF(types)],
                                  .n_dims = 2,
                                  .ne = { 1024, 4096 },
                                  .deviation = want };
        double sum = 0, square = 0;
        synth_fill_chunk(&noise, &t, 3, 0, NULL, bytes);
        dtype_decode(t.type, bytes, x, N);
        for (int k = 0; k < N; k++) {
            sum += (double)x[k];
            square += (double)x[k] * (double)x[k];
        }
        double mean = sum / N / (double)want, deviation = sqrt(square / N) / (double)want;
        if (fabs(mean) > 0.004 || fabs(deviation - 1) > 0.02)
            fail_msg("%s for %g: mean %.4f, deviation %.4f times the wanted one",
                     dtype_name(t.type), (double)want, mean, deviation);
    }
    free(x);
    free(bytes);
}

static void chunks_differ_and_are_cut_at_whole_blocks(void **state) {
    (void)state;
    static struct synth_noise noise;
    struct synth_tensor t = {
        .name = "a", .type = DTYPE_IQ2_XXS, .n_dims = 2, .ne = { 4096, 8192 }, .deviation = 1
    };
    struct synth_chunks c = synth_chunks_of(&t);
    uint8_t *one = malloc(SYNTH_CHUNK_BYTES), *two = malloc(SYNTH_CHUNK_BYTES);
    assert_int_equal(c.bytes % 66, 0);
    assert_int_equal((c.n - 1) * c.bytes + c.bytes_last, synth_tensor_bytes(&t));
    assert_in_range(c.bytes_last, 1, c.bytes);
    synth_noise_init(&noise);
    synth_fill_chunk(&noise, &t, 0, 0, NULL, one);
    synth_fill_chunk(&noise, &t, 0, 1, NULL, two);
    assert_memory_not_equal(one, two, 4096);
    t.name[0] = 'b';
    synth_fill_chunk(&noise, &t, 0, 0, NULL, two);
    assert_memory_not_equal(one, two, 4096);
    synth_fill_chunk(&noise, &t, 1, 0, NULL, two);
    assert_memory_not_equal(one, two, 4096);
    free(one);
    free(two);
}

static void weak_rows_are_counted_from_the_tensors_beginning(void **state) {
    (void)state;
    static struct synth_noise noise;
    enum { ROWS = 8192, WEAK = 6000, ROW_BYTES = 1024 / 32 * 34 };
    struct synth_tensor t = { .name = "h", .type = DTYPE_Q8_0, .n_dims = 2, .ne = { 1024, ROWS },
                              .fill = FILL_HEAD, .deviation = 1 };
    struct synth_chunks c = synth_chunks_of(&t);
    uint8_t *weak = calloc(ROWS, 1), *bytes = malloc((size_t)c.n * SYNTH_CHUNK_BYTES);
    synth_noise_init(&noise);
    weak[WEAK] = 1;
    for (uint64_t i = 0; i < c.n; i++) synth_fill_chunk(&noise, &t, 0, i, weak, bytes + i * c.bytes);
    assert_in_range(c.n, 2, 4);
    for (int row = WEAK - 1; row <= WEAK + 1; row++) {
        float x[1024];
        double square = 0;
        dtype_decode(DTYPE_Q8_0, bytes + (size_t)row * ROW_BYTES, x, 1024);
        for (int i = 0; i < 1024; i++) square += (double)x[i] * (double)x[i] / 1024;
        assert_true(fabs(sqrt(square) / (row == WEAK ? 0.25 : 1) - 1) < 0.1);
    }
    free(weak);
    free(bytes);
}

static double row_deviation(const struct gguf_tensor *t, uint64_t row) {
    float x[256];
    double square = 0;
    dtype_decode((enum dtype)t->type, t->data + row * dtype_row_bytes(t->type, 256), x, 256);
    for (int i = 0; i < 256; i++) square += (double)x[i] * (double)x[i];
    return sqrt(square / 256);
}

static void control_tokens_are_unlikely_but_the_end_is_not(void **state) {
    (void)state;
    struct gguf *g = write_and_open((struct synth_options){ .preset = "tiny" }, "a.gguf");
    const struct gguf_tensor *t = gguf_find_tensor(g, "output.weight");
    struct tokenizer *tok;
    struct err e = { 0 };
    assert_int_equal(tokenizer_new(&tok, g, &e), 0);
    double word = 2.5 / 16;
    assert_true(fabs(row_deviation(t, 500) - word) < 0.2 * word);
    assert_true(fabs(row_deviation(t, 1) - word) < 0.2 * word);
    assert_true(fabs(row_deviation(t, (uint64_t)tokenizer_find_added(tok, "</think>")) - word) < 0.2 * word);
    assert_true(fabs(row_deviation(t, 0) - word / 4) < 0.2 * word);
    assert_true(fabs(row_deviation(t, (uint64_t)tokenizer_find_added(tok, "<think>")) - word / 4) <
                0.2 * word);
    tokenizer_free(tok);
    gguf_close(g);
}

/* ---- vocabulary ---- */

static void count_round_trips(uint32_t n_tokens, uint32_t n_exceptions_max) {
    struct synth_vocab sv;
    struct tokenizer *t;
    struct err e = { 0 };
    struct token_buf ids = { 0 };
    uint32_t n_exceptions = 0;
    if (synth_vocab_init(&sv, n_tokens, &e) < 0 || tokenizer_new_vocab(&t, &sv.vocab, &e) < 0)
        fail_msg("%s", e.text);
    assert_int_equal(sv.vocab.n_tokens, n_tokens);
    for (uint32_t id = 0; id < n_tokens; id++) {
        size_t len;
        const char *bytes = tokenizer_token_bytes(t, (int32_t)id, &len);
        assert_int_equal(tokenizer_encode(t, bytes, len, true, &ids, &e), 0);
        n_exceptions += ids.n != 1 || ids.ids[0] != (int32_t)id;
        ids.n = 0;
    }
    assert_in_range(n_exceptions, 0, n_exceptions_max);
    for (uint32_t k = 0; k < sv.vocab.n_merges; k++) {                /* merge k makes token 259 + k */
        const char *merge = sv.merges[k].data, *space = memchr(merge, ' ', sv.merges[k].len);
        struct gguf_str token = sv.tokens[259 + k];
        assert_non_null(space);
        size_t left = (size_t)(space - merge);
        assert_int_equal(token.len, sv.merges[k].len - 1);
        assert_memory_equal(token.data, merge, left);
        assert_memory_equal(token.data + left, space + 1, token.len - left);
    }
    token_buf_free(&ids);
    tokenizer_free(t);
    synth_vocab_deinit(&sv);
}

static void nearly_every_token_encodes_to_itself(void **state) {
    (void)state;
    count_round_trips(512, 5);
    count_round_trips(1024, 5);
    count_round_trips(5000, 5);
    count_round_trips(129280, 20);
}

static void special_tokens_have_their_published_ids(void **state) {
    (void)state;
    struct synth_vocab sv;
    struct tokenizer *t;
    struct err e = { 0 };
    assert_int_equal(synth_vocab_init(&sv, 129280, &e), 0);
    assert_int_equal(tokenizer_new_vocab(&t, &sv.vocab, &e), 0);
    assert_int_equal(sv.vocab.n_merges, 127741);
    assert_int_equal(tokenizer_find_added(t, "<\xef\xbd\x9c""User\xef\xbd\x9c>"), 128803);
    assert_int_equal(tokenizer_find_added(t, "<\xef\xbd\x9c""Assistant\xef\xbd\x9c>"), 128804);
    assert_int_equal(tokenizer_find_added(t, "<think>"), 128821);
    assert_int_equal(tokenizer_find_added(t, "</think>"), 128822);
    assert_int_equal(tokenizer_find_added(t, "\xef\xbd\x9c""DSML\xef\xbd\x9c"), 128825);
    assert_int_equal(tokenizer_token_kind(t, 128821), TOKEN_USER);
    assert_int_equal(tokenizer_token_kind(t, 128803), TOKEN_CONTROL);
    assert_int_equal(tokenizer_bos(t), 0);
    assert_int_equal(tokenizer_eos(t), 1);
    tokenizer_free(t);
    synth_vocab_deinit(&sv);
    assert_int_equal(synth_vocab_init(&sv, 511, &e), ERR_INVALID);
    assert_int_equal(synth_vocab_init(&sv, 100000, &e), ERR_INVALID);
}

static void english_is_shorter_in_tokens_than_in_bytes(void **state) {
    (void)state;
    const char *text = "How do the machines read the weights of a layer, and what is the answer?";
    struct synth_vocab sv;
    struct tokenizer *t;
    struct token_buf ids = { 0 };
    struct err e = { 0 };
    assert_int_equal(synth_vocab_init(&sv, 1024, &e), 0);
    assert_int_equal(tokenizer_new_vocab(&t, &sv.vocab, &e), 0);
    assert_int_equal(tokenizer_encode(t, text, strlen(text), false, &ids, &e), 0);
    assert_in_range(ids.n, 10, strlen(text) / 2);
    token_buf_free(&ids);
    tokenizer_free(t);
    synth_vocab_deinit(&sv);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_is_written_reads_back_as_planned),      /* these four have several threads */
        cmocka_unit_test(same_options_give_the_same_bytes_whatever_the_threads),
        cmocka_unit_test(the_bytes_are_those_of_every_other_machine),
        cmocka_unit_test(a_cancelled_write_leaves_nothing),
        cmocka_unit_test(flash_and_pro_have_the_published_tensors),
        cmocka_unit_test(q2q4_makes_the_last_third_of_few_layers_fine),
        cmocka_unit_test(the_mtp_block_has_the_published_tensors),
        cmocka_unit_test(mid_has_the_true_layers_of_flash),
        cmocka_unit_test(tiny_pro_has_the_pattern_of_pro),
        cmocka_unit_test(unknown_presets_and_mixes_are_refused),
        cmocka_unit_test(hash_tables_name_different_experts),
        cmocka_unit_test(too_little_room_is_said_before_anything_is_written),
        cmocka_unit_test(the_mtp_file_opens),
        cmocka_unit_test(blocks_have_the_wanted_deviation_and_no_mean),
        cmocka_unit_test(chunks_differ_and_are_cut_at_whole_blocks),
        cmocka_unit_test(weak_rows_are_counted_from_the_tensors_beginning),
        cmocka_unit_test(control_tokens_are_unlikely_but_the_end_is_not),
        cmocka_unit_test(nearly_every_token_encodes_to_itself),
        cmocka_unit_test(special_tokens_have_their_published_ids),
        cmocka_unit_test(english_is_shorter_in_tokens_than_in_bytes),
    };
    size_t n = (size_t)effort_tests(4, COUNT_OF(tests));
    return _cmocka_run_group_tests("tests", tests, n, make_folder, remove_folder);
}
