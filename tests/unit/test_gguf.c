/* The reader on images in memory: everything a file can say, and everything that it must not get away
 * with. */
#include "tests/harness/test.h"
#include "tests/harness/gguf_image.h"

static struct gguf *open_image(const struct image *m, uint8_t **bytes) {
    struct err e;
    struct gguf *g;
    size_t size;
    *bytes = image_bytes(m, &size);
    assert_fine(gguf_open_memory(&g, *bytes, size, "image", &e), &e);
    return g;
}

/* The image must be refused with a text that holds `word`. Frees the image. */
static void refused(struct image *m, int code, const char *word) {
    struct err e = { 0 };
    struct gguf *g;
    size_t size;
    uint8_t *bytes = image_bytes(m, &size);
    int rc = gguf_open_memory(&g, bytes, size, "image", &e);
    if (rc != code || !strstr(e.text, word) || strncmp(e.text, "image: ", 7) != 0)
        fail_msg("%d '%s', want %d with '%s'", rc, e.text, code, word);
    assert_null(g);
    free(bytes);
    image_free(m);
}

/* ---- what a good file says ---- */

static void reads_every_value_type(void **state) {
    (void)state;
    struct image m;
    uint8_t *bytes;
    struct err e;
    image_sample(&m);
    struct gguf *g = open_image(&m, &bytes);
    uint64_t u;
    int64_t i;
    float f;
    bool b;
    struct gguf_str s;
    assert_int_equal(gguf_n_kv(g), 14);
    assert_fine(gguf_get_u64(g, "u8", &u, &e), &e);
    assert_int_equal(u, 200);
    assert_fine(gguf_get_u64(g, "u16", &u, &e), &e);
    assert_int_equal(u, 65535);
    assert_fine(gguf_get_u64(g, "u32", &u, &e), &e);
    assert_int_equal(u, 4000000000u);
    assert_fine(gguf_get_u64(g, "bool", &u, &e), &e);
    assert_int_equal(u, 1);
    assert_fine(gguf_get_bool(g, "bool", &b, &e), &e);
    assert_true(b);
    assert_int_equal(gguf_kv_int(gguf_find(g, "i8"), 0, &i), 0);
    assert_int_equal(i, -3);
    assert_int_equal(gguf_kv_int(gguf_find(g, "i16"), 0, &i), 0);
    assert_int_equal(i, -300);
    assert_int_equal(gguf_kv_int(gguf_find(g, "i64"), 0, &i), 0);
    assert_int_equal(i, -5);
    assert_int_equal(gguf_kv_int(gguf_find(g, "ratios"), 2, &i), 0);
    assert_int_equal(i, -7);
    assert_int_equal(gguf_kv_int(gguf_find(g, "ratios"), 3, &i), ERR_CORRUPT);
    assert_int_equal(gguf_kv_int(gguf_find(g, "u64"), 0, &i), ERR_CORRUPT);
    assert_fine(gguf_get_f32(g, "f32", &f, &e), &e);
    assert_true(f == 0.5f);
    assert_fine(gguf_get_f32(g, "f64", &f, &e), &e);
    assert_true(f == 2.5f);
    assert_fine(gguf_get_f32(g, "i32", &f, &e), &e);
    assert_true(f == 77);
    assert_fine(gguf_get_str(g, "general.architecture", &s, &e), &e);
    assert_int_equal(s.len, 9);
    assert_memory_equal(s.data, "deepseek4", 9);
    gguf_close(g);
    free(bytes);
    image_free(&m);
}

static void says_which_key_has_the_wrong_type(void **state) {
    (void)state;
    struct image m;
    uint8_t *bytes;
    struct err e;
    image_sample(&m);
    struct gguf *g = open_image(&m, &bytes);
    uint64_t u;
    uint32_t small;
    float f;
    bool b;
    struct gguf_str s;
    assert_int_equal(gguf_get_u64(g, "nothing", &u, &e), ERR_NOTFOUND);
    assert_non_null(strstr(e.text, "nothing"));
    assert_int_equal(gguf_get_u64(g, "i8", &u, &e), ERR_CORRUPT);
    assert_non_null(strstr(e.text, "i8: -3 is negative"));
    assert_int_equal(gguf_get_u64(g, "u64", &u, &e), ERR_CORRUPT);
    assert_int_equal(gguf_get_u64(g, "words", &u, &e), ERR_CORRUPT);
    assert_int_equal(gguf_get_u64(g, "f32", &u, &e), ERR_CORRUPT);
    assert_int_equal(gguf_get_u32(g, "u32", &small, &e), 0);
    assert_int_equal(gguf_get_bool(g, "u8", &b, &e), ERR_CORRUPT);
    assert_int_equal(gguf_get_f32(g, "bool", &f, &e), ERR_CORRUPT);
    assert_int_equal(gguf_get_f32(g, "general.architecture", &f, &e), ERR_CORRUPT);
    assert_int_equal(gguf_get_str(g, "u32", &s, &e), ERR_CORRUPT);
    assert_int_equal(gguf_get_str(g, "words", &s, &e), ERR_CORRUPT);
    assert_int_equal(gguf_get_u64(g, "u32", &u, NULL), 0);
    gguf_close(g);
    free(bytes);
    image_free(&m);
}

static void walks_an_array_of_strings(void **state) {
    (void)state;
    struct image m;
    uint8_t *bytes;
    image_sample(&m);
    struct gguf *g = open_image(&m, &bytes);
    const struct gguf_kv *kv = gguf_find(g, "words");
    const uint8_t *cursor = kv->data;
    struct gguf_str s;
    assert_true(gguf_kv_next_str(kv, &cursor, &s) && s.len == 1);
    assert_true(gguf_kv_next_str(kv, &cursor, &s) && s.len == 0);
    assert_true(gguf_kv_next_str(kv, &cursor, &s) && s.len == 9);
    assert_memory_equal(s.data, "long word", 9);
    assert_false(gguf_kv_next_str(kv, &cursor, &s));
    cursor = gguf_find(g, "ratios")->data;
    assert_false(gguf_kv_next_str(gguf_find(g, "ratios"), &cursor, &s));
    gguf_close(g);
    free(bytes);
    image_free(&m);
}

static void finds_tensors_and_their_data(void **state) {
    (void)state;
    struct image m;
    uint8_t *bytes;
    image_sample(&m);
    struct gguf *g = open_image(&m, &bytes);
    assert_int_equal(gguf_n_tensors(g), 2);
    const struct gguf_tensor *one = gguf_find_tensor(g, "one"), *two = gguf_find_tensor(g, "two");
    assert_ptr_equal(gguf_tensor_at(g, 0), one);
    assert_null(gguf_tensor_at(g, 2));
    assert_null(gguf_find_tensor(g, "three"));
    assert_null(gguf_find_tensor(g, "on"));
    assert_int_equal(one->size, 12);
    assert_int_equal(one->ne[1], 1);
    assert_int_equal(two->size, 64 / 32 * 34 * 6);
    assert_int_equal(two->ne[2], 3);
    assert_int_equal(one->data[0], 1);
    assert_int_equal(two->data[5], 6);
    assert_int_equal(two->file_offset % GGUF_ALIGNMENT, 0);
    assert_ptr_equal(two->data, bytes + two->file_offset);
    gguf_close(g);
    free(bytes);
    image_free(&m);
}

static void obeys_the_alignment_of_the_file(void **state) {
    (void)state;
    struct image m;
    uint8_t *bytes;
    image_init(&m);
    m.alignment = 4096;
    image_u32(&m, "general.alignment", 4096);
    image_tensor(&m, "a", DTYPE_F32, 1, (uint64_t[]){ 5 });
    image_tensor(&m, "b", DTYPE_F32, 1, (uint64_t[]){ 5 });
    struct gguf *g = open_image(&m, &bytes);
    assert_int_equal(gguf_find_tensor(g, "b")->file_offset, 8192);
    gguf_close(g);
    free(bytes);
    image_free(&m);
}

static void accepts_version_2_and_a_file_without_tensors(void **state) {
    (void)state;
    struct image m;
    uint8_t *bytes;
    image_sample(&m);
    m.version = 2;
    gguf_close(open_image(&m, &bytes));
    free(bytes);
    image_free(&m);
    image_init(&m);
    image_u32(&m, "split.count", 1);
    gguf_close(open_image(&m, &bytes));
    free(bytes);
    image_free(&m);
}

/* The last tensor's padding may be missing: not all writers put it there. */
static void does_not_need_padding_at_the_end(void **state) {
    (void)state;
    struct image m;
    struct gguf *g;
    struct err e;
    size_t size;
    image_init(&m);
    image_tensor(&m, "a", DTYPE_F32, 1, (uint64_t[]){ 5 });
    uint8_t *bytes = image_bytes(&m, &size);
    assert_fine(gguf_open_memory(&g, bytes, size - 12, "image", &e), &e);
    gguf_close(g);
    assert_int_equal(gguf_open_memory(&g, bytes, size - 13, "image", &e), ERR_CORRUPT);
    free(bytes);
    image_free(&m);
}

static void keeps_a_tensor_of_unknown_type_without_data(void **state) {
    (void)state;
    struct image m;
    uint8_t *bytes;
    image_init(&m);
    image_info(&m, "odd", 40, 2, (uint64_t[]){ 7, 9 }, 0);
    image_tensor(&m, "good", DTYPE_F32, 1, (uint64_t[]){ 5 });
    struct gguf *g = open_image(&m, &bytes);
    const struct gguf_tensor *odd = gguf_find_tensor(g, "odd");
    assert_int_equal(odd->type, 40);
    assert_int_equal(odd->size, 0);
    assert_null(odd->data);
    assert_non_null(gguf_find_tensor(g, "good")->data);
    gguf_close(g);
    free(bytes);
    image_free(&m);
}

/* ---- headers without data ---- */

static void a_header_alone_is_enough_to_plan_with(void **state) {
    (void)state;
    struct image m;
    struct gguf *g;
    struct err e;
    size_t size;
    image_sample(&m);
    uint8_t *bytes = image_bytes(&m, &size);
    size_t header = size - m.data.size, infos_end = 24 + m.kvs.size + m.infos.size;
    for (size_t have = 0; have < infos_end; have++) {
        assert_int_equal(gguf_open_header(&g, bytes, have, size, "image", &e), ERR_LIMIT);
        assert_null(g);
    }
    assert_fine(gguf_open_header(&g, bytes, header, size, "image", &e), &e);
    assert_null(gguf_find_tensor(g, "two")->data);
    assert_int_equal(gguf_find_tensor(g, "two")->size, 408);
    assert_int_equal(gguf_file_size(g, 0), size);
    gguf_close(g);
    assert_int_equal(gguf_open_header(&g, bytes, header, size - 300, "image", &e), ERR_CORRUPT);
    free(bytes);
    image_free(&m);
}

/* ---- damage ---- */

static void every_shorter_file_is_refused(void **state) {
    (void)state;
    struct image m;
    struct gguf *g;
    struct err e;
    size_t size;
    image_sample(&m);
    uint8_t *bytes = image_bytes(&m, &size);
    size_t needed = size - (m.data.size - 32 - 408);  /* without the last padding */
    for (size_t n = 0; n < needed; n++) {
        uint8_t *cut = malloc(n ? n : 1);
        CHECK(cut);
        memcpy(cut, bytes, n);
        e.text[0] = 0;
        assert_int_equal(gguf_open_memory(&g, cut, n, "cut", &e), ERR_CORRUPT);
        assert_memory_equal(e.text, "cut: ", 5);
        free(cut);
    }
    assert_fine(gguf_open_memory(&g, bytes, needed, "whole", &e), &e);
    gguf_close(g);
    free(bytes);
    image_free(&m);
}

/* Sets every byte of the header to some wrong values: whatever the reader says, it must not touch
 * foreign memory. */
static void no_changed_byte_does_harm(void **state) {
    (void)state;
    static const uint8_t masks[] = { 0x01, 0x80, 0xff, 0x40, 0x0f };
    struct image m;
    struct gguf *g;
    struct err e;
    size_t size;
    int n_refused = 0, n_opened = 0;
    image_sample(&m);
    uint8_t *bytes = image_bytes(&m, &size);
    for (size_t i = 0; i < size - m.data.size; i++)
        for (size_t k = 0; k < COUNT_OF(masks); k++) {
            bytes[i] ^= masks[k];
            if (gguf_open_memory(&g, bytes, size, "bent", &e) == 0) {
                n_opened++;
                for (uint64_t t = 0; t < gguf_n_tensors(g); t++) {
                    const struct gguf_tensor *tensor = gguf_tensor_at(g, t);
                    if (tensor->data) assert_true(tensor->data + tensor->size <= bytes + size);
                }
                gguf_close(g);
            } else {
                n_refused++;
            }
            bytes[i] ^= masks[k];
        }
    assert_true(n_refused > 500 && n_opened > 100);
    free(bytes);
    image_free(&m);
}

static void refuses_what_is_not_gguf_3_or_2(void **state) {
    (void)state;
    static const uint32_t versions[] = { 0, 1, 4, 0x03000000 };
    static const char *const words[] = { "version 0", "version 1", "version 4", "big-endian" };
    struct image m;
    struct gguf *g;
    struct err e;
    for (int i = 0; i < 4; i++) {
        image_sample(&m);
        m.version = versions[i];
        refused(&m, ERR_UNSUPPORTED, words[i]);
    }
    assert_int_equal(gguf_open_memory(&g, "GGML\3\0\0\0", 8, "x", &e), ERR_CORRUPT);
    assert_non_null(strstr(e.text, "not a GGUF file"));
    assert_int_equal(gguf_open_memory(&g, NULL, 0, "x", &e), ERR_CORRUPT);
    assert_non_null(strstr(e.text, "empty"));
}

static void believes_no_count_that_the_file_cannot_hold(void **state) {
    (void)state;
    static const uint64_t counts[] = {
        1000, 1u << 20, UINT64_MAX, (uint64_t)1 << 60, (uint64_t)1 << 61, INT64_MAX
    };
    for (size_t i = 0; i < COUNT_OF(counts); i++) {
        struct image m;
        image_sample(&m);
        m.n_kv = counts[i];
        refused(&m, ERR_CORRUPT, "metadata entries");
        image_sample(&m);
        m.n_tensors = counts[i];
        refused(&m, ERR_CORRUPT, "tensors");
        image_init(&m);
        image_array(&m, "a", GGUF_U64, NULL, counts[i], 0);
        refused(&m, ERR_CORRUPT, "key a: the file ends inside an array");
        image_init(&m);
        image_array(&m, "a", GGUF_STRING, NULL, counts[i], 0);
        refused(&m, ERR_CORRUPT, "key a: the file ends inside an array");
        image_init(&m);
        image_kv(&m, "a", GGUF_STRING, &counts[i], 8);
        refused(&m, ERR_CORRUPT, "key a: the file ends");
    }
}

static void refuses_bad_metadata(void **state) {
    (void)state;
    struct image m;
    char name[GGUF_NAME_MAX + 2];
    image_init(&m);
    image_u32(&m, "same", 1);
    image_f32(&m, "same", 1);
    refused(&m, ERR_CORRUPT, "key same: twice");
    image_init(&m);
    image_kv(&m, "k", 13, "x", 1);
    refused(&m, ERR_CORRUPT, "key k: value type 13");
    image_init(&m);
    image_array(&m, "k", GGUF_ARRAY, NULL, 0, 0);
    refused(&m, ERR_UNSUPPORTED, "key k: array of arrays");
    image_init(&m);
    image_u32(&m, "", 1);
    refused(&m, ERR_CORRUPT, "metadata entry 0: a key has 0 bytes");
    image_init(&m);
    image_u32(&m, "red\033[31m", 1);
    refused(&m, ERR_CORRUPT, "control characters");
    image_init(&m);
    image_u32(&m, "delete\177", 1);
    refused(&m, ERR_CORRUPT, "control characters");
    image_init(&m);
    memset(name, 'n', sizeof name);
    name[GGUF_NAME_MAX + 1] = 0;
    image_u32(&m, name, 1);
    refused(&m, ERR_CORRUPT, "1025 bytes");
    static const uint32_t alignments[] = { 0, 3, 48, 1 << 21, 0x80000000 };
    for (size_t i = 0; i < COUNT_OF(alignments); i++) {
        image_init(&m);
        image_u32(&m, "general.alignment", alignments[i]);
        refused(&m, ERR_CORRUPT, "key general.alignment");
    }
}

static void refuse_info(uint32_t type, uint32_t n_dims, const uint64_t *ne, uint64_t offset,
                        const char *word) {
    struct image m;
    image_init(&m);
    image_tensor(&m, "good", DTYPE_F32, 1, (uint64_t[]){ 64 });
    image_info(&m, "bad", type, n_dims, ne, offset);
    refused(&m, ERR_CORRUPT, word);
}

static void refuses_bad_tensors(void **state) {
    (void)state;
    uint64_t big = (uint64_t)1 << 40;
    refuse_info(DTYPE_F32, 0, NULL, 0, "tensor bad: 0 dimensions");
    refuse_info(DTYPE_F32, 5, (uint64_t[]){ 1, 1, 1, 1, 1 }, 0, "tensor bad: 5 dimensions");
    refuse_info(DTYPE_F32, 1, (uint64_t[]){ 0 }, 0, "tensor bad: dimensions 0 x");
    refuse_info(DTYPE_F32, 2, (uint64_t[]){ 4, 0 }, 0, "tensor bad: dimensions 4 x 0");
    refuse_info(DTYPE_Q8_0, 1, (uint64_t[]){ 33 }, 0, "tensor bad: dimensions 33 x");
    refuse_info(DTYPE_F32, 4, (uint64_t[]){ big, big, big, big }, 0, "impossible for F32");
    refuse_info(DTYPE_F32, 2, (uint64_t[]){ (uint64_t)1 << 62, 2 }, 0, "impossible for F32");
    refuse_info(DTYPE_F32, 1, (uint64_t[]){ UINT64_MAX }, 0, "impossible for F32");
    refuse_info(DTYPE_F32, 1, (uint64_t[]){ 4 }, 16, "offset 16 is not a multiple of 32");
    refuse_info(DTYPE_F32, 1, (uint64_t[]){ 4 }, 256, "tensor bad: needs 16 bytes at data offset 256");
    refuse_info(DTYPE_F32, 1, (uint64_t[]){ 65 }, 0, "tensor bad: needs 260 bytes");
    refuse_info(DTYPE_F32, 1, (uint64_t[]){ 4 }, UINT64_MAX - 31, "tensor bad: needs");
    refuse_info(DTYPE_F32, 1, (uint64_t[]){ (uint64_t)1 << 59 }, 64, "tensor bad: needs");
    refuse_info(99, 1, (uint64_t[]){ 4 }, 1024, "tensor bad: needs");
    refuse_info(DTYPE_F32, 1, (uint64_t[]){ 4 }, 0, "overlap");
    refuse_info(DTYPE_F32, 1, (uint64_t[]){ 8 }, 224, "tensors good and bad overlap");
}

/* Files need not list their tensors in the order of the data. */
static void finds_an_overlap_in_any_order(void **state) {
    (void)state;
    static const uint64_t offsets[] = { 128, 0, 192, 64 };
    static const char *const names[] = { "c", "a", "d", "b" };
    for (int wide = -1; wide < 3; wide++) {
        struct image m;
        image_init(&m);
        for (int i = 0; i < 4; i++)
            image_info(&m, names[i], DTYPE_F32, 1, (uint64_t[]){ i == wide ? 17 : 16 }, offsets[i]);
        for (int i = 0; i < 256 + 64; i++) buf_add_char(&m.data, 1);
        if (wide >= 0 && wide != 2) {
            refused(&m, ERR_CORRUPT, wide == 0 ? "tensors c and d overlap" : "tensors a and b overlap");
            continue;
        }
        uint8_t *bytes;
        gguf_close(open_image(&m, &bytes));
        free(bytes);
        image_free(&m);
    }
}

static void refuses_a_name_that_comes_twice(void **state) {
    (void)state;
    struct image m;
    image_init(&m);
    for (int i = 0; i < 2; i++) image_tensor(&m, "same", DTYPE_F32, 1, (uint64_t[]){ 4 });
    refused(&m, ERR_CORRUPT, "tensor same: there is another one");
}

static void finds_each_of_many(void **state) {
    (void)state;
    struct image m;
    uint8_t *bytes;
    char name[32];
    image_init(&m);
    for (int i = 0; i < 5000; i++) {
        snprintf(name, sizeof name, "blk.%d.weight", i);
        image_tensor(&m, name, DTYPE_F32, 1, (uint64_t[]){ 8 });
    }
    struct gguf *g = open_image(&m, &bytes);
    for (uint64_t i = 0; i < 5000; i++) {
        snprintf(name, sizeof name, "blk.%d.weight", (int)i);
        assert_ptr_equal(gguf_find_tensor(g, name), gguf_tensor_at(g, i));
    }
    gguf_close(g);
    free(bytes);
    image_free(&m);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        TEST(reads_every_value_type),
        TEST(says_which_key_has_the_wrong_type),
        TEST(walks_an_array_of_strings),
        TEST(finds_tensors_and_their_data),
        TEST(obeys_the_alignment_of_the_file),
        TEST(accepts_version_2_and_a_file_without_tensors),
        TEST(does_not_need_padding_at_the_end),
        TEST(keeps_a_tensor_of_unknown_type_without_data),
        TEST(a_header_alone_is_enough_to_plan_with),
        TEST(every_shorter_file_is_refused),
        TEST(no_changed_byte_does_harm),
        TEST(refuses_what_is_not_gguf_3_or_2),
        TEST(believes_no_count_that_the_file_cannot_hold),
        TEST(refuses_bad_metadata),
        TEST(refuses_bad_tensors),
        TEST(finds_an_overlap_in_any_order),
        TEST(refuses_a_name_that_comes_twice),
        TEST(finds_each_of_many),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
