/* GGUF files on disk: the writer, models in several files, and the golden models tensor by tensor. */
#include "tests/harness/gguf_image.h"
#include "tests/harness/scratch.h"
#include "tests/harness/sha256.h"
#include "tests/harness/vectors.h"

#include <jansson.h>

/* ---- writer ---- */

static void put_everything(struct gguf_writer *w) {
    static const int32_t ratios[] = { 0, 4, 128 };
    static const struct gguf_str words[] = { { "one", 3 }, { "", 0 }, { "three", 5 } };
    gguf_put_str(w, "general.architecture", "deepseek4", 9);
    gguf_put_u32(w, "u32", 7);
    gguf_put_u64(w, "u64", (uint64_t)1 << 40);
    gguf_put_u16(w, "u16", 65535);
    gguf_put_i32(w, "i32", -1);
    gguf_put_f32(w, "f32", 1.5f);
    gguf_put_bool(w, "yes", true);
    gguf_put_array(w, "ratios", GGUF_I32, ratios, 3);
    gguf_put_strs(w, "words", words, 3);
    gguf_put_tensor(w, "odd", DTYPE_F32, 1, (uint64_t[]){ 3 });
    gguf_put_tensor(w, "quant", DTYPE_Q8_0, 2, (uint64_t[]){ 32, 5 });
    gguf_put_tensor(w, "last", DTYPE_F16, 3, (uint64_t[]){ 2, 3, 4 });
}

enum { DATA_BYTES = 12 + 170 + 48 };

static void write_sample(const char *path, uint32_t alignment, size_t piece) {
    struct gguf_writer *w;
    struct err e;
    uint8_t data[DATA_BYTES];
    for (size_t i = 0; i < DATA_BYTES; i++) data[i] = (uint8_t)(i + 1);
    assert_fine(gguf_writer_new(&w, path, alignment, &e), &e);
    put_everything(w);
    assert_fine(gguf_writer_begin_data(w, &e), &e);
    assert_int_equal(gguf_writer_tensor_offset(w, 1) - gguf_writer_tensor_offset(w, 0),
                     alignment < 32 ? 16 : alignment);
    for (size_t at = 0; at < DATA_BYTES; at += piece)
        assert_fine(gguf_writer_data(w, data + at, MIN(piece, DATA_BYTES - at), &e), &e);
    assert_fine(gguf_writer_finish(w, &e), &e);
}

static void check_sample(const char *path, uint32_t alignment) {
    struct gguf *g;
    struct err e;
    uint64_t u;
    int64_t i;
    assert_fine(gguf_open(&g, path, &e), &e);
    assert_int_equal(gguf_n_kv(g), alignment == GGUF_ALIGNMENT ? 9 : 10);
    assert_fine(gguf_get_u64(g, "u64", &u, &e), &e);
    assert_true(u == (uint64_t)1 << 40);
    assert_int_equal(gguf_kv_int(gguf_find(g, "i32"), 0, &i), 0);
    assert_int_equal(i, -1);
    assert_int_equal(gguf_kv_int(gguf_find(g, "ratios"), 2, &i), 0);
    assert_int_equal(i, 128);
    assert_int_equal(gguf_find(g, "words")->n, 3);
    static const char *const names[] = { "odd", "quant", "last" };
    uint8_t next = 1;
    for (int t = 0; t < 3; t++) {
        const struct gguf_tensor *tensor = gguf_find_tensor(g, names[t]);
        assert_int_equal(tensor->file_offset % alignment, 0);
        for (uint64_t k = 0; k < tensor->size; k++) assert_int_equal(tensor->data[k], next++);
        gguf_prefetch(g, tensor);
        gguf_release(g, tensor);
    }
    assert_int_equal(next, (uint8_t)(DATA_BYTES + 1));
    gguf_close(g);
}

static void writes_what_the_reader_reads_in_any_pieces(void **state) {
    (void)state;
    static const size_t pieces[] = { 1, 7, 12, 64, DATA_BYTES };
    static const uint32_t alignments[] = { 32, 8, 64, 4096 };
    struct scratch s;
    scratch_open(&s);
    for (size_t p = 0; p < COUNT_OF(pieces); p++)
        for (size_t a = 0; a < COUNT_OF(alignments); a++) {
            const char *path = scratch_path(&s, "a.gguf");
            write_sample(path, alignments[a], pieces[p]);
            check_sample(path, alignments[a]);
        }
    scratch_close(&s);
}

/* Copying every entry with gguf_put_kv gives the same bytes. */
static void copies_metadata_without_loss(void **state) {
    (void)state;
    struct scratch s;
    struct gguf *g;
    struct gguf_writer *w;
    struct err e;
    void *first, *second;
    size_t n_first, n_second;
    scratch_open(&s);
    const char *from = scratch_path(&s, "from.gguf"), *to = scratch_path(&s, "to.gguf");
    write_sample(from, 32, DATA_BYTES);
    assert_fine(gguf_open(&g, from, &e), &e);
    assert_fine(gguf_writer_new(&w, to, 32, &e), &e);
    for (uint64_t i = 0; i < gguf_n_kv(g); i++) gguf_put_kv(w, gguf_kv_at(g, i));
    for (uint64_t i = 0; i < gguf_n_tensors(g); i++) {
        const struct gguf_tensor *t = gguf_tensor_at(g, i);
        char name[64];
        snprintf(name, sizeof name, "%.*s", (int)t->name.len, t->name.data);
        gguf_put_tensor(w, name, (enum dtype)t->type, t->n_dims, t->ne);
    }
    assert_fine(gguf_writer_begin_data(w, &e), &e);
    for (uint64_t i = 0; i < gguf_n_tensors(g); i++)
        assert_fine(gguf_writer_data(w, gguf_tensor_at(g, i)->data, gguf_tensor_at(g, i)->size, &e), &e);
    assert_fine(gguf_writer_finish(w, &e), &e);
    gguf_close(g);
    assert_fine(file_read_all(from, 1 << 20, &first, &n_first, &e), &e);
    assert_fine(file_read_all(to, 1 << 20, &second, &n_second, &e), &e);
    assert_int_equal(n_first, n_second);
    assert_memory_equal(first, second, n_first);
    free(first);
    free(second);
    scratch_close(&s);
}

static void refuses_to_write_nonsense(void **state) {
    (void)state;
    struct scratch s;
    struct gguf_writer *w;
    struct err e;
    scratch_open(&s);
    const char *path = scratch_path(&s, "a.gguf");
    assert_int_equal(gguf_writer_new(&w, path, 48, &e), ERR_INVALID);
    assert_fine(gguf_writer_new(&w, path, 32, &e), &e);
    gguf_put_tensor(w, "ragged", DTYPE_Q8_0, 1, (uint64_t[]){ 33 });
    assert_int_equal(gguf_writer_begin_data(w, &e), ERR_INVALID);
    assert_non_null(strstr(e.text, "ragged"));
    gguf_writer_abort(w);
    assert_fine(gguf_writer_new(&w, path, 32, &e), &e);
    gguf_put_tensor(w, "a", DTYPE_F32, 1, (uint64_t[]){ 2 });
    assert_fine(gguf_writer_begin_data(w, &e), &e);
    assert_fine(gguf_writer_data(w, "1234567", 7, &e), &e);
    assert_int_equal(gguf_writer_finish(w, &e), ERR_INVALID);
    assert_non_null(strstr(e.text, "fewer bytes"));
    assert_fine(gguf_writer_new(&w, path, 32, &e), &e);
    gguf_put_tensor(w, "a", DTYPE_F32, 1, (uint64_t[]){ 2 });
    assert_fine(gguf_writer_begin_data(w, &e), &e);
    assert_int_equal(gguf_writer_data(w, "123456789", 9, &e), ERR_INVALID);
    assert_non_null(strstr(e.text, "more bytes"));
    assert_int_equal(gguf_writer_finish(w, NULL), ERR_INVALID);
    gguf_writer_abort(NULL);
    struct file_names names;
    assert_fine(file_list(&names, s.folder, &e), &e);
    assert_int_equal(names.n, 0);
    file_names_free(&names);
    scratch_close(&s);
}

/* ---- models in several files ---- */

struct part {
    const char *name, *tensor;
    int split_no, split_count, total;                 /* -1: no such key */
    int block_count;
};

static void write_part(struct scratch *s, const struct part *p) {
    struct image m;
    struct err e;
    size_t size;
    image_init(&m);
    image_str(&m, "general.architecture", "deepseek4");
    image_u32(&m, "deepseek4.block_count", (uint32_t)p->block_count);
    if (p->split_no >= 0) image_kv(&m, "split.no", GGUF_U16, &(uint16_t){ (uint16_t)p->split_no }, 2);
    if (p->split_count >= 0)
        image_kv(&m, "split.count", GGUF_U16, &(uint16_t){ (uint16_t)p->split_count }, 2);
    if (p->total >= 0) image_kv(&m, "split.tensors.count", GGUF_I32, &p->total, 4);
    image_tensor(&m, p->tensor, DTYPE_F32, 1, (uint64_t[]){ 8 });
    uint8_t *bytes = image_bytes(&m, &size);
    assert_fine(file_write_all(scratch_path(s, p->name), bytes, size, &e), &e);
    free(bytes);
    image_free(&m);
}

/* Writes the parts, opens `name`: code 0 and as many files and tensors as parts, or the code and a word
 * of the text. */
static void open_written(const struct part *parts, int n, const char *name, int code, const char *word) {
    struct scratch s;
    struct gguf *g;
    struct err e = { 0 };
    scratch_open(&s);
    for (int i = 0; i < n; i++) write_part(&s, &parts[i]);
    int rc = gguf_open(&g, scratch_path(&s, name), &e);
    if (rc != code || (rc < 0 && !strstr(e.text, word)))
        fail_msg("%d '%s', want %d with '%s'", rc, e.text, code, word ? word : "");
    if (rc == 0) {
        assert_int_equal(gguf_n_files(g), n);
        assert_int_equal(gguf_n_tensors(g), n);
        for (int i = 0; i < n; i++) {
            const struct gguf_tensor *t = gguf_find_tensor(g, parts[i].tensor);
            assert_non_null(t);
            assert_int_equal(t->data[4], 5);
            assert_non_null(strstr(gguf_path(g, t->file_i), parts[i].name));
            assert_ptr_equal((const uint8_t *)gguf_file_data(g, t->file_i) + t->file_offset, t->data);
        }
        gguf_close(g);
    } else {
        assert_null(g);
    }
    scratch_close(&s);
}

static const struct part three_parts[] = {
    { "m-00001-of-00003.gguf", "a", 0, 3, 3, 2 },
    { "m-00002-of-00003.gguf", "b", 1, 3, -1, 2 },
    { "m-00003-of-00003.gguf", "c", 2, 3, -1, 2 },
};

static void any_part_opens_all_parts(void **state) {
    (void)state;
    for (int i = 0; i < 3; i++) open_written(three_parts, 3, three_parts[i].name, 0, NULL);
}

static void one_part_can_be_opened_alone(void **state) {
    (void)state;
    struct scratch s;
    struct gguf *g;
    struct err e;
    scratch_open(&s);
    write_part(&s, &three_parts[1]);
    assert_fine(gguf_open_one(&g, scratch_path(&s, three_parts[1].name), &e), &e);
    assert_int_equal(gguf_n_tensors(g), 1);
    gguf_close(g);
    scratch_close(&s);
}

static void parts_must_be_complete_and_agree(void **state) {
    (void)state;
    struct part parts[3];
    open_written(three_parts, 2, three_parts[0].name, ERR_NOTFOUND, "m-00003-of-00003.gguf");
    memcpy(parts, three_parts, sizeof parts);
    parts[1].split_no = 2;
    open_written(parts, 3, parts[0].name, ERR_CORRUPT, "split.no is 2, but the file's name says 1");
    memcpy(parts, three_parts, sizeof parts);
    parts[2].split_count = 4;
    open_written(parts, 3, parts[0].name, ERR_CORRUPT, "split.count is 4");
    memcpy(parts, three_parts, sizeof parts);
    parts[2].split_count = -1;
    open_written(parts, 3, parts[0].name, ERR_NOTFOUND, "split.count is missing");
    memcpy(parts, three_parts, sizeof parts);
    parts[0].total = 4;
    open_written(parts, 3, parts[0].name, ERR_CORRUPT, "split.tensors.count is 4");
    memcpy(parts, three_parts, sizeof parts);
    parts[2].tensor = "a";
    open_written(parts, 3, parts[0].name, ERR_CORRUPT, "tensor a: there is another one");
    open_written(three_parts, 3, "m-00004-of-00003.gguf", ERR_INVALID, "part 4 of 3");
    open_written(three_parts, 3, "m-00001-of-99999.gguf", ERR_INVALID, "part 1 of 99999");
    memcpy(parts, three_parts, sizeof parts);
    parts[0].name = "renamed.gguf";
    open_written(parts, 1, parts[0].name, ERR_INVALID, "one of 3 parts");
}

static const struct part two_slices[] = {
    { "Pro-Q4K-Layers00-30.gguf", "blk.0.x", -1, -1, -1, 61 },
    { "Pro-Q4K-Layers-31-output.gguf", "output.weight", -1, -1, -1, 61 },
};

static void any_slice_opens_all_slices(void **state) {
    (void)state;
    static const struct part more[] = {
        { "x-Layers00-9.gguf", "a", -1, -1, -1, 40 },
        { "x-Layers10-19.gguf", "b", -1, -1, -1, 40 },
        { "x-Layers-20-output.gguf", "c", -1, -1, -1, 40 },
    };
    for (int i = 0; i < 2; i++) open_written(two_slices, 2, two_slices[i].name, 0, NULL);
    for (int i = 0; i < 3; i++) open_written(more, 3, more[i].name, 0, NULL);
    static const struct part whole[] = { { "LayersOfCake.gguf", "a", -1, -1, -1, 3 } };
    open_written(whole, 1, whole[0].name, 0, NULL);
}

static void slices_must_be_complete_and_agree(void **state) {
    (void)state;
    struct part slices[3];
    open_written(two_slices, 1, two_slices[0].name, ERR_NOTFOUND, "layers 31 to the output is missing");
    open_written(two_slices + 1, 1, two_slices[1].name, ERR_NOTFOUND, "layers 0 to 30 is missing");
    memcpy(slices, two_slices, sizeof two_slices);
    slices[1].block_count = 60;
    open_written(slices, 2, slices[0].name, ERR_CORRUPT, "block_count differs");
    memcpy(slices, two_slices, sizeof two_slices);
    slices[1].tensor = "blk.0.x";
    open_written(slices, 2, slices[0].name, ERR_CORRUPT, "there is another one");
    memcpy(slices, two_slices, sizeof two_slices);
    slices[2] = slices[0];
    slices[2].name = "Pro-Q4K-Layers00-20.gguf";
    open_written(slices, 3, slices[0].name, ERR_INVALID, "does not continue at layer 21");
    slices[2].name = "Max-Q4K-Layers00-20.gguf";  /* another model's slice beside it does not matter */
    struct scratch s;
    struct gguf *g;
    struct err e;
    scratch_open(&s);
    for (int i = 0; i < 3; i++) write_part(&s, &slices[i]);
    assert_fine(gguf_open(&g, scratch_path(&s, slices[0].name), &e), &e);
    assert_int_equal(gguf_n_files(g), 2);
    gguf_close(g);
    scratch_close(&s);
}

/* ---- golden models ---- */

static void check_tensor(const struct gguf *g, const char *name, json_t *want) {
    char hex[65];
    const struct gguf_tensor *t = gguf_find_tensor(g, name);
    assert_non_null(t);
    assert_string_equal(t->type == DTYPE_I32 ? "I32" : dtype_name(t->type),
                        json_string_value(json_object_get(want, "type")));
    json_t *dims = json_object_get(want, "dims");
    uint64_t n = 1;
    assert_int_equal(t->n_dims, json_array_size(dims));
    for (uint32_t i = 0; i < t->n_dims; i++) {
        assert_int_equal(t->ne[i], json_integer_value(json_array_get(dims, i)));
        n *= t->ne[i];
    }
    float *values = xcalloc(n, sizeof *values);
    if (t->type == DTYPE_I32)
        memcpy(values, t->data, n * sizeof *values);
    else
        dtype_decode((enum dtype)t->type, t->data, values, n);
    sha256_hex(values, n * sizeof *values, hex);
    if (strcmp(hex, json_string_value(json_object_get(want, "sha256_values"))) != 0)
        fail_msg("%s: other values", name);
    free(values);
}

static void check_model(const char *model) {
    char name[64];
    struct gguf *g;
    struct err e;
    json_error_t je;
    const char *key;
    json_t *want;
    snprintf(name, sizeof name, "model/%s.gguf", model);
    assert_fine(gguf_open(&g, vectors_need(name), &e), &e);
    snprintf(name, sizeof name, "model/%s.tensors.json", model);
    json_t *all = json_load_file(vectors_need(name), 0, &je);
    assert_non_null(all);
    assert_int_equal(json_object_size(all), gguf_n_tensors(g));
    json_object_foreach(all, key, want) check_tensor(g, key, want);
    json_decref(all);
    gguf_close(g);
}

static void every_tensor_of_tiny_f32_has_its_values(void **state) { (void)state; check_model("tiny-f32"); }
static void every_tensor_of_tiny_q8_has_its_values(void **state) { (void)state; check_model("tiny-q8"); }
static void every_tensor_of_tiny_q2_has_its_values(void **state) { (void)state; check_model("tiny-q2"); }

int main(void) {
    const struct CMUnitTest tests[] = {
        TEST(writes_what_the_reader_reads_in_any_pieces),
        TEST(copies_metadata_without_loss),
        TEST(refuses_to_write_nonsense),
        TEST(any_part_opens_all_parts),
        TEST(one_part_can_be_opened_alone),
        TEST(parts_must_be_complete_and_agree),
        TEST(any_slice_opens_all_slices),
        TEST(slices_must_be_complete_and_agree),
        TEST(every_tensor_of_tiny_f32_has_its_values),
        TEST(every_tensor_of_tiny_q8_has_its_values),
        TEST(every_tensor_of_tiny_q2_has_its_values),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
