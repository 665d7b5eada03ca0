/* Plain files, and the two small helpers of the reader: hash and map. */
#include "tests/harness/scratch.h"

#include "common/base/hash.h"
#include "common/base/map.h"

#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>

static bool exists(const char *path) {
    return access(path, F_OK) == 0;
}

static void check_content(const char *path, const char *want) {
    struct err e;
    void *data;
    size_t size;
    assert_fine(file_read_all(path, 1 << 24, &data, &size, &e), &e);
    assert_int_equal(size, strlen(want));
    assert_string_equal(data, want);
    free(data);
}

static void a_file_exists_only_when_it_is_complete(void **state) {
    (void)state;
    struct scratch s;
    struct file_writer *w;
    struct err e;
    scratch_open(&s);
    const char *path = scratch_path(&s, "a"), *tmp = scratch_path(&s, "a.tmp");
    assert_fine(file_write_all(path, "old", 3, &e), &e);
    assert_fine(file_writer_new(&w, path, &e), &e);
    assert_fine(file_writer_write(w, "new!", 4, &e), &e);
    assert_true(exists(tmp));
    check_content(path, "old");
    file_writer_abort(w);
    assert_false(exists(tmp));
    check_content(path, "old");
    assert_fine(file_write_all(path, "new!", 4, &e), &e);
    assert_false(exists(tmp));
    check_content(path, "new!");
    scratch_close(&s);
}

static void takes_over_what_a_crash_left(void **state) {
    (void)state;
    struct scratch s;
    struct err e;
    scratch_open(&s);
    const char *path = scratch_path(&s, "a"), *tmp = scratch_path(&s, "a.tmp");
    FILE *f = fopen(tmp, "w");
    assert_non_null(f);
    fputs("half of something longer", f);
    fclose(f);
    assert_fine(file_write_all(path, "whole", 5, &e), &e);
    check_content(path, "whole");
    scratch_close(&s);
}

static void two_writers_do_not_mix(void **state) {
    (void)state;
    struct scratch s;
    struct file_writer *first, *second;
    struct err e;
    scratch_open(&s);
    const char *path = scratch_path(&s, "a");
    assert_fine(file_writer_new(&first, path, &e), &e);
    assert_fine(file_writer_write(first, "first", 5, &e), &e);
    assert_int_equal(file_writer_new(&second, path, &e), ERR_BUSY);
    assert_null(second);
    assert_fine(file_writer_finish(first, &e), &e);
    check_content(path, "first");
    scratch_close(&s);
}

static void large_and_small_writes_keep_their_order(void **state) {
    (void)state;
    enum { BIG = 9 << 20 };
    struct scratch s;
    struct file_writer *w;
    struct file_map map;
    struct err e;
    uint8_t *big = malloc(BIG);
    CHECK(big);
    for (size_t i = 0; i < BIG; i++) big[i] = (uint8_t)(i * 7 + i / 251);
    scratch_open(&s);
    const char *path = scratch_path(&s, "a");
    assert_fine(file_writer_new(&w, path, &e), &e);
    assert_fine(file_writer_write(w, "xyz", 3, &e), &e);
    assert_fine(file_writer_write(w, big, BIG, &e), &e);
    assert_fine(file_writer_zeros(w, 5000, &e), &e);
    assert_fine(file_writer_write(w, big, BIG, &e), &e);
    assert_int_equal(file_writer_size(w), 3 + 2 * BIG + 5000);
    assert_fine(file_writer_finish(w, &e), &e);
    assert_fine(file_map(&map, path, &e), &e);
    assert_int_equal(map.size, 3 + 2 * BIG + 5000);
    assert_memory_equal(map.data, "xyz", 3);
    assert_memory_equal(map.data + 3, big, BIG);
    for (int i = 0; i < 5000; i++) assert_int_equal(map.data[3 + BIG + i], 0);
    assert_memory_equal(map.data + 3 + BIG + 5000, big, BIG);
    for (int advice = FILE_SEQUENTIAL; advice <= FILE_DONTNEED; advice++) {
        file_map_advise(&map, 5001, UINT64_MAX, (enum file_advice)advice);
        file_map_advise(&map, UINT64_MAX, 1, (enum file_advice)advice);
    }
    assert_memory_equal(map.data, "xyz", 3);
    file_unmap(&map);
    file_unmap(&map);
    free(big);
    scratch_close(&s);
}

static void names_the_file_that_cannot_be_created(void **state) {
    (void)state;
    struct file_writer *w;
    struct err e;
    assert_int_equal(file_writer_new(&w, "/nonexistent-folder/a", &e), ERR_IO);
    assert_non_null(strstr(e.text, "/nonexistent-folder/a.tmp"));
    assert_int_equal(file_writer_new(&w, "", &e), ERR_INVALID);
}

/* A rename over /dev/stdout, /dev/full or a pipe would replace it for everybody on the machine. */
static void writes_into_what_is_not_a_regular_file(void **state) {
    (void)state;
    struct scratch s;
    struct stat st;
    struct err e;
    scratch_open(&s);
    const char *alias = scratch_path(&s, "alias"), *target = scratch_path(&s, "target"),
               *full = scratch_path(&s, "full");
    assert_fine(file_write_all(target, "something long", 14, &e), &e);
    assert_int_equal(symlink(target, alias), 0);
    assert_fine(file_write_all(alias, "short", 5, &e), &e);
    assert_int_equal(lstat(alias, &st), 0);
    assert_true(S_ISLNK(st.st_mode));
    check_content(target, "short");
    if (exists("/dev/full")) {
        assert_int_equal(symlink("/dev/full", full), 0);
        assert_int_equal(file_write_all(full, "x", 1, &e), ERR_IO);
        assert_non_null(strstr(e.text, "full: write"));
        assert_true(exists(full));
    }
    scratch_close(&s);
}

/* The disk fills up (here: a limit on file sizes) in the middle of a large write. */
static void a_failed_write_leaves_the_old_file(void **state) {
    (void)state;
    enum { BIG = 6 << 20 };
    struct scratch s;
    struct file_writer *w;
    struct err e;
    struct rlimit before, small;
    char *big = xcalloc(1, BIG);
    scratch_open(&s);
    const char *path = scratch_path(&s, "a"), *tmp = scratch_path(&s, "a.tmp");
    assert_fine(file_write_all(path, "old", 3, &e), &e);
    signal(SIGXFSZ, SIG_IGN);
    getrlimit(RLIMIT_FSIZE, &before);
    small = (struct rlimit){ 1 << 20, before.rlim_max };
    setrlimit(RLIMIT_FSIZE, &small);
    assert_fine(file_writer_new(&w, path, &e), &e);
    assert_int_equal(file_writer_write(w, big, BIG, &e), ERR_IO);
    assert_non_null(strstr(e.text, "a.tmp: write"));
    assert_int_equal(file_writer_write(w, big, 1, &e), ERR_IO);
    assert_int_equal(file_writer_finish(w, &e), ERR_IO);
    setrlimit(RLIMIT_FSIZE, &before);
    assert_false(exists(tmp));
    check_content(path, "old");
    free(big);
    scratch_close(&s);
}

static void reads_pieces_and_refuses_to_read_past_the_end(void **state) {
    (void)state;
    struct scratch s;
    struct file f;
    struct err e;
    char piece[8] = { 0 };
    scratch_open(&s);
    const char *path = scratch_path(&s, "a");
    assert_fine(file_write_all(path, "0123456789", 10, &e), &e);
    assert_fine(file_open(&f, path, &e), &e);
    assert_int_equal(f.size, 10);
    assert_fine(file_read_at(&f, 4, piece, 3, &e), &e);
    assert_string_equal(piece, "456");
    assert_int_equal(file_read_at(&f, 8, piece, 3, &e), ERR_CORRUPT);
    assert_int_equal(file_read_at(&f, 100, piece, 1, &e), ERR_CORRUPT);
    file_close(&f);
    file_close(&f);
    void *all;
    size_t size;
    assert_int_equal(file_read_all(path, 9, &all, &size, &e), ERR_LIMIT);
    assert_int_equal(file_read_all(scratch_path(&s, "none"), 9, &all, &size, &e), ERR_NOTFOUND);
    assert_int_equal(file_open(&f, s.folder, &e), ERR_INVALID);
    scratch_close(&s);
}

static void maps_an_empty_file_as_nothing(void **state) {
    (void)state;
    struct scratch s;
    struct file_map map;
    struct err e;
    scratch_open(&s);
    const char *path = scratch_path(&s, "a");
    assert_fine(file_write_all(path, "", 0, &e), &e);
    assert_fine(file_map(&map, path, &e), &e);
    assert_null(map.data);
    file_unmap(&map);
    scratch_close(&s);
}

static void lists_names_in_order(void **state) {
    (void)state;
    struct scratch s;
    struct file_names names;
    struct err e;
    static const char *const unsorted[] = { "b", "a10", "a2", "C" }, *const sorted[] = { "C", "a10", "a2",
                                                                                         "b" };
    char folder[64];
    scratch_open(&s);
    for (int i = 0; i < 4; i++) assert_fine(file_write_all(scratch_path(&s, unsorted[i]), "", 0, &e), &e);
    assert_fine(file_list(&names, s.folder, &e), &e);
    assert_int_equal(names.n, 4);
    for (int i = 0; i < 4; i++) assert_string_equal(names.name[i], sorted[i]);
    file_names_free(&names);
    assert_int_equal(file_list(&names, "/nonexistent-folder", &e), ERR_NOTFOUND);
    scratch_close(&s);
    assert_fine(file_folder_of("a", folder, sizeof folder, &e), &e);
    assert_string_equal(folder, ".");
    assert_fine(file_folder_of("/a", folder, sizeof folder, &e), &e);
    assert_string_equal(folder, "/");
    assert_fine(file_folder_of("x/y/a", folder, sizeof folder, &e), &e);
    assert_string_equal(folder, "x/y");
    assert_int_equal(file_folder_of("x/y/a", folder, 3, &e), ERR_LIMIT);
}

/* ---- hash and map ---- */

static void hashes_are_the_published_ones(void **state) {
    (void)state;
    char hex[HASH_HEX];
    struct hash128 back;
    hash_to_hex(hash_128("", 0), hex);
    assert_string_equal(hex, "99aa06d3014798d86001c324468d497f");
    assert_true(hash_64("", 0, 0) == 0x2d06800538d394c2u);
    assert_true(hash_from_hex(hex, &back) && hash_equal(back, hash_128("", 0)));
    assert_false(hash_from_hex("99aa06d3014798d86001c324468d497", &back));
    assert_false(hash_from_hex("99aa06d3014798d86001c324468d497ff", &back));
    assert_false(hash_from_hex("g9aa06d3014798d86001c324468d497f", &back));
}

static void a_stream_hashes_like_one_piece(void **state) {
    (void)state;
    char data[3000];
    for (size_t i = 0; i < sizeof data; i++) data[i] = (char)(i * 31);
    struct hash_stream *h = hash_stream_new();
    for (size_t at = 0, n = 1; at < sizeof data; at += n, n = n * 2 + 1)
        hash_stream_add(h, data + at, MIN(n, sizeof data - at));
    assert_true(hash_equal(hash_stream_value(h), hash_128(data, sizeof data)));
    hash_stream_reset(h);
    assert_true(hash_equal(hash_stream_value(h), hash_128("", 0)));
    hash_stream_free(h);
    hash_stream_free(NULL);
}

static void a_map_numbers_keys_in_their_order(void **state) {
    (void)state;
    enum { KEYS = 10000 };
    static char keys[KEYS][8];
    struct map m;
    uint32_t number;
    map_init(&m);
    assert_false(map_find(&m, "x", 1, &number));
    for (uint32_t i = 0; i < KEYS; i++) {
        snprintf(keys[i], sizeof keys[i], "k%u", i);
        assert_true(map_add(&m, keys[i], strlen(keys[i]), &number));
        assert_int_equal(number, i);
    }
    assert_false(map_add(&m, "k77", 3, &number));
    assert_int_equal(number, 77);
    assert_int_equal(m.n, KEYS);
    for (uint32_t i = 0; i < KEYS; i++) {
        assert_true(map_find(&m, keys[i], strlen(keys[i]), &number));
        assert_int_equal(number, i);
        assert_string_equal(m.keys[i].data, keys[i]);
    }
    assert_false(map_find(&m, "k", 1, &number));
    assert_false(map_find(&m, "k10000", 6, &number));
    assert_true(map_add(&m, NULL, 0, &number));       /* the empty key is a key */
    assert_true(map_find(&m, "", 0, &number));
    map_deinit(&m);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        TEST(a_file_exists_only_when_it_is_complete),
        TEST(takes_over_what_a_crash_left),
        TEST(writes_into_what_is_not_a_regular_file),
        TEST(two_writers_do_not_mix),
        TEST(large_and_small_writes_keep_their_order),
        TEST(names_the_file_that_cannot_be_created),
        TEST(a_failed_write_leaves_the_old_file),
        TEST(reads_pieces_and_refuses_to_read_past_the_end),
        TEST(maps_an_empty_file_as_nothing),
        TEST(lists_names_in_order),
        TEST(hashes_are_the_published_ones),
        TEST(a_stream_hashes_like_one_piece),
        TEST(a_map_numbers_keys_in_their_order),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
