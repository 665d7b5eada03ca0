/* The published vocabulary against the expected ids, pieces and bytes in vectors/tokenizer, and the
 * small vocabularies of the tiny models against theirs. Everything is skipped, loudly, where the
 * vectors are absent. */
#include "tests/harness/test.h"

#include "cli/tokenizer_json.h"
#include "common/base/buf.h"
#include "common/base/utf8.h"
#include "common/model/tokenizer_private.h"
#include "common/model/tokenizer_split.h"
#include "tests/harness/scratch.h"
#include "tests/harness/vectors.h"

#include <jansson.h>

enum { TEXT_MAX = 1 << 20, CASES_ENCODE = 793, CASES_DECODE = 155, CASES_TINY = 19 };

static struct tokenizer *real;                        /* loaded once; NULL without vectors */

static struct tokenizer *need_real(void) {
    struct tokenizer_json tj;
    struct err e;
    const char *path = vectors_need("tokenizer/tokenizer.json");
    if (real) return real;
    assert_fine(tokenizer_json_open(&tj, path, &e), &e);
    assert_fine(tokenizer_new_vocab(&real, &tj.vocab, &e), &e);
    tokenizer_json_close(&tj);
    return real;
}

static int free_real(void **state) {
    (void)state;
    tokenizer_free(real);
    return 0;
}

/* ---- files of one JSON value per line ---- */

struct lines {
    char *text, *at;
};

static void lines_open(struct lines *l, const char *name) {
    size_t size;
    void *text;
    struct err e;
    assert_fine(file_read_all(vectors_need(name), 1 << 26, &text, &size, &e), &e);
    l->text = l->at = text;
}

static json_t *lines_next(struct lines *l) {
    if (!*l->at) return NULL;
    size_t n = strcspn(l->at, "\n");
    json_error_t where;
    json_t *value = json_loadb(l->at, n, JSON_ALLOW_NUL, &where);
    if (!value) fail_msg("%s: %.60s", where.text, l->at);
    l->at += n + (l->at[n] == '\n');
    return value;
}

static const char *field(const json_t *c, const char *key, size_t *len) {
    const json_t *value = json_object_get(c, key);
    assert_true(json_is_string(value));
    *len = json_string_length(value);
    return json_string_value(value);
}

static void expect_ids(const char *name, const struct token_buf *got, const json_t *expected) {
    bool same = got->n == json_array_size(expected);
    for (size_t i = 0; i < got->n && same; i++)
        same = got->ids[i] == json_integer_value(json_array_get(expected, i));
    if (same) return;
    char *text = json_dumps(expected, 0);
    fprintf(stderr, "%s: expected %s\n got", name, text);
    for (size_t i = 0; i < got->n; i++) fprintf(stderr, " %d", got->ids[i]);
    free(text);
    fail_msg("%s: other ids", name);
}

static void check_encode(const struct tokenizer *t, const json_t *c, bool parse_special,
                         const json_t *expected) {
    struct token_buf ids = { 0 };
    struct err e;
    size_t len, n_name;
    const char *text = field(c, "text", &len);
    assert_fine(tokenizer_encode(t, text, len, parse_special, &ids, &e), &e);
    const char *name = json_object_get(c, "id") ? field(c, "id", &n_name) : text;
    expect_ids(name, &ids, expected);
    token_buf_free(&ids);
}

/* ---- encoding ---- */

static void ids_are_the_published_ones_with_and_without_control_tokens(void **state) {
    (void)state;
    struct tokenizer *t = need_real();
    struct lines l;
    int n = 0;
    lines_open(&l, "tokenizer/vectors.jsonl");
    for (json_t *c; (c = lines_next(&l)); n++) {
        const json_t *ids = json_object_get(c, "ids"), *plain = json_object_get(c, "plain_ids");
        check_encode(t, c, true, ids);
        check_encode(t, c, false, plain ? plain : ids);
        json_decref(c);
    }
    free(l.text);
    assert_int_equal(n, CASES_ENCODE);
}

static void pieces_are_the_published_ones(void **state) {
    (void)state;
    struct lines l;
    int n = 0;
    lines_open(&l, "tokenizer/vectors.jsonl");
    tokenizer_split_init();
    for (json_t *c; (c = lines_next(&l)); n++) {
        const json_t *pieces = json_object_get(c, "pieces"), *piece;
        size_t len, i;
        const char *text = field(c, "text", &len);
        const uint8_t *p = (const uint8_t *)text, *end = p + len;
        json_array_foreach(pieces, i, piece) {
            assert_true(p < end);
            const uint8_t *next = tokenizer_split_next(p, end);
            size_t n_piece = json_string_length(piece);
            if ((size_t)(next - p) != n_piece || memcmp(p, json_string_value(piece), n_piece) != 0)
                fail_msg("%s: piece %zu has %td bytes, not %zu", field(c, "id", &len), i, next - p, n_piece);
            p = next;
        }
        assert_ptr_equal(p, end);
        json_decref(c);
    }
    free(l.text);
    assert_int_equal(n, CASES_ENCODE);
}

/* ---- decoding ---- */

static void expect_hex(const char *bytes, size_t len, const json_t *hex) {
    const char *text = json_string_value(hex);
    assert_int_equal(2 * len, json_string_length(hex));
    for (size_t i = 0; i < len; i++) {
        char two[3];
        snprintf(two, sizeof two, "%02x", (unsigned)(uint8_t)bytes[i]);
        assert_memory_equal(two, text + 2 * i, 2);
    }
}

static void expect_text(struct utf8_stream *s, struct buf *b, const json_t *expected) {
    char tail[UTF8_MAX];
    buf_add(b, tail, utf8_stream_flush(s, tail));
    assert_int_equal(b->size, json_string_length(expected));
    assert_memory_equal(b->data, json_string_value(expected), b->size);
}

static void stream_token(struct utf8_stream *s, const char *bytes, size_t len, struct buf *b) {
    char out[UTF8_STREAM_ROOM(TOKENIZER_TOKEN_BYTES_MAX)];
    buf_add(b, out, utf8_stream_push(s, bytes, len, out));
    assert_true(utf8_valid(b->data, b->size));
}

/* special[id]: flagged special in added-tokens.tsv, which is finer than what a GGUF says. */
static void check_decode(const struct tokenizer *t, const json_t *c, const bool *special) {
    struct utf8_stream s = { 0 }, s_skip = { 0 };
    struct buf raw, text, text_skip;
    const json_t *ids = json_object_get(c, "ids"), *id_value, *hex = json_object_get(c, "token_bytes_hex");
    size_t i, len;
    buf_init(&raw, TEXT_MAX);
    buf_init(&text, TEXT_MAX);
    buf_init(&text_skip, TEXT_MAX);
    json_array_foreach(ids, i, id_value) {
        int32_t id = (int32_t)json_integer_value(id_value);
        const char *bytes = tokenizer_token_bytes(t, id, &len);
        expect_hex(bytes, len, json_array_get(hex, i));
        buf_add(&raw, bytes, len);
        stream_token(&s, bytes, len, &text);
        if (!special[id]) stream_token(&s_skip, bytes, len, &text_skip);
    }
    expect_hex(raw.data, raw.size, json_object_get(c, "bytes_hex"));
    expect_text(&s, &text, json_object_get(c, "text"));
    expect_text(&s_skip, &text_skip, json_object_get(c, "text_skip_special"));
    buf_deinit(&raw);
    buf_deinit(&text);
    buf_deinit(&text_skip);
}

struct added {
    int id, special, match_pass;
    char text[64];
};

/* One line of added-tokens.tsv. */
static bool read_added(FILE *f, struct added *a) {
    return fscanf(f, "%d\t%63[^\t]\t%d\t%d\n", &a->id, a->text, &a->special, &a->match_pass) == 4;
}

static FILE *open_added(void) {
    FILE *f = fopen(vectors_need("tokenizer/added-tokens.tsv"), "r");
    char heading[128];
    assert_non_null(f);
    assert_non_null(fgets(heading, sizeof heading, f));
    return f;
}

static void bytes_and_streamed_text_are_the_published_ones(void **state) {
    (void)state;
    struct tokenizer *t = need_real();
    static bool special[TOKENIZER_VOCAB_MAX];
    struct added a;
    FILE *f = open_added();
    while (read_added(f, &a)) special[a.id] = a.special;
    fclose(f);
    struct lines l;
    int n = 0;
    lines_open(&l, "tokenizer/decode.jsonl");
    for (json_t *c; (c = lines_next(&l)); n++) {
        check_decode(t, c, special);
        json_decref(c);
    }
    free(l.text);
    assert_int_equal(n, CASES_DECODE);
}

/* ---- the vocabulary ---- */

static void added_tokens_are_found_by_text_and_have_their_kind(void **state) {
    (void)state;
    struct tokenizer *t = need_real();
    struct added a;
    int n = 0, n_user = 0;
    FILE *f = open_added();
    for (; read_added(f, &a); n++) {
        size_t len;
        const char *bytes = tokenizer_token_bytes(t, a.id, &len);
        assert_int_equal(len, strlen(a.text));
        assert_memory_equal(bytes, a.text, len);
        assert_int_equal(tokenizer_find_added(t, a.text), a.id);
        n_user += tokenizer_token_kind(t, a.id) == TOKEN_USER;
        if (a.special) assert_int_equal(tokenizer_token_kind(t, a.id), TOKEN_CONTROL);
    }
    fclose(f);
    assert_int_equal(n, 1283);
    assert_int_equal(n_user, 6);                      /* <think> </think> DSML <dsml: </dsml: </table> */
    assert_int_equal(tokenizer_token_kind(t, 128821), TOKEN_USER);
    assert_int_equal(tokenizer_token_kind(t, 128803), TOKEN_CONTROL);
    assert_int_equal(tokenizer_token_kind(t, 129265), TOKEN_USER);
    assert_int_equal(tokenizer_n_vocab(t), 129280);
    assert_int_equal(tokenizer_bos(t), 0);
    assert_int_equal(tokenizer_eos(t), 1);
    assert_int_equal(tokenizer_pad(t), 1);
}

static void every_token_encodes_to_itself_or_to_its_own_bytes(void **state) {
    (void)state;
    struct tokenizer *t = need_real();
    struct token_buf ids = { 0 };
    struct err e;
    for (int32_t id = 0; id < (int32_t)tokenizer_n_vocab(t); id++) {
        size_t len, at = 0;
        const char *bytes = tokenizer_token_bytes(t, id, &len);
        ids.n = 0;
        assert_fine(tokenizer_encode(t, bytes, len, true, &ids, &e), &e);
        for (size_t i = 0; i < ids.n; i++) {
            size_t n;
            const char *part = tokenizer_token_bytes(t, ids.ids[i], &n);
            assert_true(at + n <= len && memcmp(bytes + at, part, n) == 0);
            at += n;
        }
        assert_int_equal(at, len);
        if (tokenizer_token_kind(t, id) != TOKEN_NORMAL) assert_int_equal(ids.ids[0], id);
    }
    token_buf_free(&ids);
}

static void character_classes_are_those_of_the_reference(void **state) {
    (void)state;
    static uint8_t expected[UTF8_CODE_POINT_MAX + 1], got[UTF8_CODE_POINT_MAX + 1];
    FILE *f = fopen(vectors_need("tokenizer/unicode-ranges.tsv"), "r");
    char line[128], class;
    unsigned first, last;
    assert_non_null(f);
    assert_non_null(fgets(line, sizeof line, f));
    while (fscanf(f, "%c\t%x\t%x\n", &class, &first, &last) == 3) {
        static const char letters[] = "LMNPSW";
        for (uint32_t cp = first; cp <= last; cp++)
            expected[cp] |= tokenizer_unicode[strchr(letters, class) - letters].bit;
    }
    fclose(f);
    for (size_t i = 0; i < COUNT_OF(tokenizer_unicode); i++) {
        const struct unicode_class *c = &tokenizer_unicode[i];
        for (uint32_t k = 0; k < c->n; k++)
            for (uint32_t cp = c->range[k].first; cp <= c->range[k].last; cp++) got[cp] |= c->bit;
    }
    assert_memory_equal(got, expected, sizeof got);
    assert_int_equal(expected['a'], CHAR_L);
}

static void the_vocabulary_is_the_same_after_a_trip_through_a_gguf_file(void **state) {
    (void)state;
    struct tokenizer *t = need_real(), *back;
    struct tokenizer_json tj;
    struct gguf_writer *w;
    struct gguf *g;
    struct scratch s;
    struct err e;
    scratch_open(&s);
    const char *path = scratch_path(&s, "vocab.gguf");
    assert_fine(tokenizer_json_open(&tj, vectors_need("tokenizer/tokenizer.json"), &e), &e);
    assert_fine(gguf_writer_new(&w, path, GGUF_ALIGNMENT, &e), &e);
    tokenizer_json_put(&tj, w);
    assert_fine(gguf_writer_begin_data(w, &e), &e);
    assert_fine(gguf_writer_finish(w, &e), &e);
    tokenizer_json_close(&tj);
    assert_fine(gguf_open(&g, path, &e), &e);
    assert_fine(tokenizer_new(&back, g, &e), &e);
    gguf_close(g);
    assert_int_equal(back->n_merges, t->n_merges);
    assert_int_equal(back->n_vocab, t->n_vocab);
    assert_memory_equal(back->merged_id, t->merged_id, t->n_merges * sizeof *t->merged_id);
    assert_memory_equal(back->kinds, t->kinds, t->n_vocab);
    assert_memory_equal(back->bytes_at, t->bytes_at, (t->n_vocab + 1) * sizeof *t->bytes_at);
    assert_memory_equal(back->bytes, t->bytes, t->bytes_at[t->n_vocab]);
    assert_int_equal(tokenizer_eos(back), 1);
    tokenizer_free(back);
    scratch_close(&s);
}

/* ---- tiny models ---- */

static void check_tiny(const char *name) {
    char file[64];
    struct tokenizer *t;
    struct gguf *g;
    struct err e;
    json_error_t where;
    snprintf(file, sizeof file, "model/%s.gguf", name);
    assert_fine(gguf_open(&g, vectors_need(file), &e), &e);
    assert_fine(tokenizer_new(&t, g, &e), &e);
    gguf_close(g);                                    /* a tokenizer keeps nothing of its file */
    snprintf(file, sizeof file, "model/%s.tokenizer.json", name);
    json_t *expected = json_load_file(vectors_need(file), 0, &where), *c, *id;
    const char *text;
    size_t i;
    assert_non_null(expected);
    json_object_foreach(json_object_get(expected, "special_ids"), text, id)
        assert_int_equal(tokenizer_find_added(t, text), json_integer_value(id));
    json_array_foreach(json_object_get(expected, "cases"), i, c)
        check_encode(t, c, false, json_object_get(c, "ids"));
    assert_int_equal(i, CASES_TINY);
    json_decref(expected);
    tokenizer_free(t);
}

static void tiny_models_encode_as_expected(void **state) {
    (void)state;
    check_tiny("tiny-f32");
    check_tiny("tiny-q2");
    check_tiny("tiny-q8");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        TEST(ids_are_the_published_ones_with_and_without_control_tokens),
        TEST(pieces_are_the_published_ones),
        TEST(bytes_and_streamed_text_are_the_published_ones),
        TEST(added_tokens_are_found_by_text_and_have_their_kind),
        TEST(every_token_encodes_to_itself_or_to_its_own_bytes),
        TEST(character_classes_are_those_of_the_reference),
        TEST(the_vocabulary_is_the_same_after_a_trip_through_a_gguf_file),
        TEST(tiny_models_encode_as_expected),
    };
    return cmocka_run_group_tests(tests, NULL, free_real);
}
