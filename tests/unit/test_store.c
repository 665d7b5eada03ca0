/* Which of the shares of earlier plans stay on a node's disk. */
#include "tests/harness/test.h"

#include "common/sys/file.h"
#include "node/store.h"
#include "tests/harness/scratch.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#define MODEL "0123456789abcdef"

static void only_names_that_a_node_makes_are_shares(void **state) {
    (void)state;
    static const char *const yes[] = {
        MODEL "-stage-00-20-embed.gguf",    MODEL "-stage-21-42-head.gguf",
        MODEL "-stage-00-42-embed-head.gguf", MODEL "-stage-02-04.gguf.tmp",
        MODEL "-helper-00-20-experts-128-255.gguf", MODEL "-stage-00-20-embed-experts-0-127.gguf.tmp",
    };
    static const char *const no[] = {
        "model.gguf", "stage-00.gguf", "node.key", MODEL ".gguf", MODEL "-stage-00.gguf",
        MODEL "-stage-00-20.gguf.tmp.bak", MODEL "-stage-00-20.GGUF", "x" MODEL "-stage-00-20.gguf",
        MODEL "0-stage-00-20.gguf", MODEL "-stage-00-20-mine.gguf", MODEL "-stage--.gguf",
        MODEL "-stage-00-20-experts-1.gguf", "", "../" MODEL "-stage-00-20.gguf",
    };
    bool unfinished;
    for (size_t i = 0; i < COUNT_OF(yes); i++) {
        if (!store_is_share(yes[i], &unfinished)) fail_msg("%s is one", yes[i]);
        assert_int_equal(unfinished, strstr(yes[i], ".tmp") != NULL);
    }
    for (size_t i = 0; i < COUNT_OF(no); i++)
        if (store_is_share(no[i], &unfinished)) fail_msg("%s is none", no[i]);
}

/* Letters of those that go; each file is one letter, '+' behind it: unfinished. */
static void chosen(const char *files, const char *current, uint32_t n_keep, const char *want) {
    struct store_file file[16] = { { .name = NULL } };
    char name[16][16], got[32] = "";
    uint32_t n = 0;
    for (const char *f = files; *f; f++, n++) {
        bool unfinished = f[1] == '+';
        snprintf(name[n], sizeof name[n], "%c%s", *f, unfinished ? ".tmp" : "");
        file[n] = (struct store_file){ .name = name[n], .unfinished = unfinished, .used_s = 100 - (int)n };
        f += unfinished;
    }
    store_choose(file, n, current, n_keep);
    for (uint32_t i = 0; i < n; i++)
        if (file[i].goes) snprintf(got + strlen(got), sizeof got - strlen(got), "%s", file[i].name);
    assert_string_equal(got, want);
}

static void the_current_share_and_the_last_used_stay(void **state) {
    (void)state;
    chosen("abcde", "a", 2, "de");                 /* the first was used last */
    chosen("abcde", "d", 2, "ce");
    chosen("abcde", "e", 0, "abcd");
    chosen("abcde", NULL, 3, "de");
    chosen("abcde", "x", 9, "");
    chosen("ab+cd+e", "a", 2, "d.tmpe");           /* unfinished ones count like others */
    chosen("ab+a+c", "a", 5, "a.tmp");             /* but not beside what they became */
    chosen("a+bc", "a", 1, "c");                   /* what is being fetched stays */
}

static void write_file(struct scratch *s, const char *name, int age_s) {
    struct timespec t[2] = { { .tv_sec = 1700000000 - age_s } };
    char path[FILE_PATH_MAX];
    struct err e;
    t[1] = t[0];
    snprintf(path, sizeof path, "%s", scratch_path(s, name));
    assert_fine(file_write_all(path, "gguf", 4, &e), &e);
    assert_int_equal(utimensat(AT_FDCWD, path, t, 0), 0);
}

static bool is_there(struct scratch *s, const char *name) {
    return access(scratch_path(s, name), F_OK) == 0;
}

static void what_is_not_ours_or_in_use_is_never_removed(void **state) {
    (void)state;
    struct scratch s;
    struct file_hold hold;
    struct file_pieces *growing;
    struct err e;
    bool fresh;
    scratch_open(&s);
    write_file(&s, "model.gguf", 1000);
    write_file(&s, "notes.tmp", 1000);
    write_file(&s, MODEL "-stage-00-10-embed.gguf", 1);
    write_file(&s, MODEL "-stage-00-11-embed.gguf", 2);
    write_file(&s, MODEL "-stage-00-12-embed.gguf", 3);
    write_file(&s, MODEL "-stage-00-13-embed.gguf.tmp", 4);
    assert_int_equal(mkdir(scratch_path(&s, MODEL "-stage-00-14-embed.gguf"), 0755), 0);
    assert_fine(file_hold(&hold, scratch_path(&s, MODEL "-stage-00-12-embed.gguf"), &e), &e);
    write_file(&s, MODEL "-stage-00-12-embed.gguf.not", 3);
    const char *path = scratch_path(&s, MODEL "-stage-00-15-embed.gguf");
    assert_fine(file_pieces_open(&growing, path, 9, &fresh, &e), &e);
    assert_int_equal(store_tidy(s.folder, MODEL "-stage-00-10-embed.gguf", 0), 2);
    assert_true(is_there(&s, "model.gguf") && is_there(&s, "notes.tmp"));
    assert_true(is_there(&s, MODEL "-stage-00-10-embed.gguf"));
    assert_false(is_there(&s, MODEL "-stage-00-11-embed.gguf"));
    assert_true(is_there(&s, MODEL "-stage-00-12-embed.gguf"));
    assert_false(is_there(&s, MODEL "-stage-00-13-embed.gguf.tmp"));
    assert_true(is_there(&s, MODEL "-stage-00-15-embed.gguf.tmp"));
    file_release(&hold);
    file_pieces_close(growing);
    assert_int_equal(store_tidy(s.folder, MODEL "-stage-00-10-embed.gguf", 1), 1);
    assert_false(is_there(&s, MODEL "-stage-00-12-embed.gguf"));           /* the other is younger */
    assert_true(is_there(&s, MODEL "-stage-00-15-embed.gguf.tmp"));
    rmdir(scratch_path(&s, MODEL "-stage-00-14-embed.gguf"));
    scratch_close(&s);
}

static void using_a_share_makes_it_the_last_used(void **state) {
    (void)state;
    struct scratch s;
    struct file_hold hold;
    struct err e;
    scratch_open(&s);
    write_file(&s, MODEL "-stage-00-10-embed.gguf", 500);
    write_file(&s, MODEL "-stage-00-11-embed.gguf", 5);
    assert_fine(file_hold(&hold, scratch_path(&s, MODEL "-stage-00-10-embed.gguf"), &e), &e);
    file_release(&hold);
    file_release(&hold);
    assert_int_equal(store_tidy(s.folder, NULL, 1), 1);
    assert_true(is_there(&s, MODEL "-stage-00-10-embed.gguf"));
    assert_int_equal(file_hold(&hold, scratch_path(&s, "none"), &e), ERR_NOTFOUND);
    assert_int_equal(hold.fd, -1);
    assert_int_equal(store_tidy("/nowhere/at/all", NULL, 1), 0);
    scratch_close(&s);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        TEST(only_names_that_a_node_makes_are_shares),
        TEST(the_current_share_and_the_last_used_stay),
        TEST(what_is_not_ours_or_in_use_is_never_removed),
        TEST(using_a_share_makes_it_the_last_used),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
