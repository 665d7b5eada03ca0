/* coordinator/api_memory: what is written is what comes back, for one user of a folder at a time. */
#include "tests/harness/scratch.h"

#include <sys/stat.h>

#include "common/sys/file.h"
#include "coordinator/api_memory.h"

static struct api_memory *opened(const char *folder) {
    struct api_memory *m;
    struct err e;
    assert_fine(api_memory_new(&m, 0, &e), &e);
    assert_fine(api_memory_keep_in(m, folder, &e), &e);
    return m;
}

static void remember(struct api_memory *m, const char *id, const char *block) {
    struct chat_text text = chat_text_of(id);
    api_memory_remember(m, &text, 1, chat_text_of(block));
}

static void what_is_saved_is_there_after_a_restart(void **state) {
    (void)state;
    struct stat st;
    struct err e;
    struct scratch s;
    scratch_open(&s);
    const char *file = scratch_path(&s, "tool-calls");
    struct api_memory *m = opened(s.folder);
    assert_false(api_memory_is_due(m));
    remember(m, "call_1", "one");
    remember(m, "call_2", "two");
    assert_true(api_memory_is_due(m));
    assert_fine(api_memory_save(m, &e), &e);
    assert_false(api_memory_is_due(m));
    assert_int_equal(stat(file, &st), 0);
    assert_int_equal(st.st_mode & 0777, 0600);
    api_memory_free(m);
    m = opened(s.folder);
    assert_int_equal(api_memory_stats(m).n_blocks, 2);
    assert_false(api_memory_is_due(m));           /* nothing is new */
    api_memory_free(m);
    scratch_close(&s);
}

static void a_folder_has_one_user(void **state) {
    (void)state;
    struct err e;
    struct scratch s;
    scratch_open(&s);
    struct api_memory *m = opened(s.folder), *other;
    assert_fine(api_memory_new(&other, 0, &e), &e);
    assert_int_equal(api_memory_keep_in(other, s.folder, &e), ERR_BUSY);
    api_memory_free(m);
    assert_fine(api_memory_keep_in(other, s.folder, &e), &e);
    api_memory_free(other);
    scratch_close(&s);
}

static void what_is_damaged_or_open_to_others_is_forgotten(void **state) {
    (void)state;
    struct err e;
    struct scratch s;
    scratch_open(&s);
    const char *file = scratch_path(&s, "tool-calls");
    struct api_memory *m = opened(s.folder);
    remember(m, "call_1", "one");
    assert_fine(api_memory_save(m, &e), &e);
    api_memory_free(m);
    assert_int_equal(chmod(file, 0644), 0);
    m = opened(s.folder);
    assert_int_equal(api_memory_stats(m).n_blocks, 0);
    api_memory_free(m);
    assert_fine(file_write_all(file, "PLREPLAY and nonsense", 21, &e), &e);
    assert_int_equal(chmod(file, 0600), 0);
    m = opened(s.folder);
    assert_int_equal(api_memory_stats(m).n_blocks, 0);
    remember(m, "call_2", "two");                 /* and written over */
    assert_fine(api_memory_save(m, &e), &e);
    api_memory_free(m);
    m = opened(s.folder);
    assert_int_equal(api_memory_stats(m).n_blocks, 1);
    api_memory_free(m);
    scratch_close(&s);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        TEST(what_is_saved_is_there_after_a_restart),
        TEST(a_folder_has_one_user),
        TEST(what_is_damaged_or_open_to_others_is_forgotten),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
