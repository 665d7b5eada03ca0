/* Keys on disk and tokens: what is refused, what survives a restart, who is let in. Connections are in
 * test_links. */
#include "tests/harness/test.h"

#include "common/sys/curve.h"
#include "common/sys/file.h"
#include "common/sys/keyring.h"
#include "common/sys/keyring_private.h"
#include "tests/harness/scratch.h"

#include <sys/stat.h>
#include <unistd.h>

static struct scratch scratch;

static int open_scratch(void **state) {
    struct err e;
    (void)state;
    scratch_open(&scratch);
    return keyring_init_cluster(scratch.folder, &e);
}

static int close_scratch(void **state) {
    (void)state;
    scratch_close(&scratch);
    return 0;
}

static unsigned mode_of(const char *path) {
    struct stat st;
    assert_int_equal(0, stat(path, &st));
    return (unsigned)st.st_mode & 0777;
}

static void write_file(const char *path, const char *text, unsigned mode) {
    FILE *f = fopen(path, "w");
    assert_non_null(f);
    fputs(text, f);
    fclose(f);
    assert_int_equal(0, chmod(path, mode));
}

static void invite(const char *name, bool once, char token[KEYRING_TOKEN_MAX]) {
    struct err e;
    assert_fine(keyring_invite(scratch.folder, name, once, "10.0.0.1:7700", token, &e), &e);
}

/* A node with the token in a file. */
static struct keyring *node_with(const char *path, const char *token) {
    struct keyring *k;
    struct err e;
    if (token) write_file(path, token, 0600);
    assert_fine(keyring_open_node(&k, path, NULL, &e), &e);
    return k;
}

static struct keyring *cluster(void) {
    struct keyring *k;
    struct err e;
    assert_fine(keyring_open_cluster(&k, scratch.folder, &e), &e);
    return k;
}

/* ---- files ---- */

static void key_files_are_private_and_others_are_refused(void **state) {
    char path[FILE_PATH_MAX];
    struct keyring *k;
    struct err e;
    (void)state;
    snprintf(path, sizeof path, "%s/cluster.key", scratch.folder);
    assert_int_equal(0600, mode_of(path));
    assert_int_equal(0600, mode_of(scratch_path(&scratch, "cluster.clients")));
    assert_int_equal(ERR_INVALID, keyring_init_cluster(scratch.folder, &e));
    assert_int_equal(0, chmod(path, 0640));
    assert_int_equal(ERR_DENIED, keyring_open_cluster(&k, scratch.folder, &e));
    assert_non_null(strstr(e.text, "chmod 600"));
    assert_int_equal(0, chmod(path, 0600));
}

static void the_path_of_the_key_file_names_its_folder_too(void **state) {
    struct keyring *k;
    struct err e;
    (void)state;
    assert_fine(keyring_open_cluster(&k, scratch_path(&scratch, "cluster.key"), &e), &e);
    keyring_free(k);
    assert_int_equal(ERR_NOTFOUND, keyring_open_cluster(&k, "/nonexistent", &e));
    assert_non_null(strstr(e.text, "keys init"));
}

static void damaged_files_are_named_not_believed(void **state) {
    char path[FILE_PATH_MAX], text[512];
    struct keyring *k;
    struct err e;
    (void)state;
    snprintf(path, sizeof path, "%s/cluster.clients", scratch.folder);
    static const char *const wrong[] = {
        "",
        "pleiades-clients 2\n",
        "pleiades-clients 1\nnode a b c\n",
        "pleiades-clients 1\nnode box 0000000000000000000000000000000000000000\n",
        "pleiades-clients 1\nnode ../x 0000000000000000000000000000000000000000 1\n",
        "pleiades-clients 1\na b c d e f g h\n"
    };
    for (size_t i = 0; i < COUNT_OF(wrong); i++) {
        write_file(path, wrong[i], 0600);
        assert_int_equal(ERR_CORRUPT, keyring_open_cluster(&k, scratch.folder, &e));
    }
    write_file(path, "pleiades-clients 1\n# nobody\n", 0600);
    snprintf(path, sizeof path, "%s/node.key", scratch.folder);
    snprintf(text, sizeof text, "pleiades-node 1\npublic %040d\nsecret %040d\nserver a:1 %040d\n", 0, 0, 0);
    write_file(path, text, 0600);                 /* a pair whose halves do not belong together */
    assert_int_equal(ERR_CORRUPT, keyring_open_node(&k, path, NULL, &e));
    write_file(path, "pleiades-node 1\n", 0600);
    assert_int_equal(ERR_CORRUPT, keyring_open_node(&k, path, NULL, &e));
    write_file(path, "hello\n", 0644);
    assert_int_equal(ERR_DENIED, keyring_open_node(&k, path, NULL, &e));
}

static void a_failed_reread_keeps_the_list_before(void **state) {
    char token[KEYRING_TOKEN_MAX], path[FILE_PATH_MAX];
    struct err e;
    (void)state;
    invite("first", false, token);
    struct keyring *k = cluster();
    snprintf(path, sizeof path, "%s/cluster.clients", scratch.folder);
    write_file(path, "rubbish", 0600);
    assert_int_equal(ERR_CORRUPT, keyring_refresh(k, &e));
    assert_true(keyring_knows(k, "invite:first"));
    write_file(path, "pleiades-clients 1\n", 0600);
    assert_fine(keyring_refresh(k, &e), &e);
    assert_false(keyring_knows(k, "invite:first"));
    keyring_free(k);
}

/* ---- tokens ---- */

static void a_token_survives_as_it_is_and_not_with_one_letter_changed(void **state) {
    char text[KEYRING_TOKEN_MAX];
    struct token t;
    struct err e;
    (void)state;
    invite(NULL, true, text);
    assert_fine(token_decode(text, &t, &e), &e);
    assert_string_equal("10.0.0.1:7700", t.address);
    for (size_t i = 0; text[i]; i++) {
        char was = text[i];
        text[i] = was == 'A' ? 'B' : 'A';
        assert_int_equal(ERR_INVALID, token_decode(text, &t, &e));
        assert_int_equal(0, t.secret_key[0]);
        text[i] = 0;
        assert_int_equal(ERR_INVALID, token_decode(text, &t, &e));
        text[i] = was;
    }
    char longer[2 * KEYRING_TOKEN_MAX];
    snprintf(longer, sizeof longer, "%s%s", text, text + 10);
    assert_int_equal(ERR_INVALID, token_decode(longer, &t, &e));
}

static void addresses_and_names_are_checked(void **state) {
    static const char *const wrong[] = { "",           "host",    "host:", ":1",       "host:0",
                                         "host:65536", "host:1x", "a b:1", "tcp://h:1" };
    char token[KEYRING_TOKEN_MAX], name[KEYRING_NAME_MAX + 1];
    struct err e;
    (void)state;
    for (size_t i = 0; i < COUNT_OF(wrong); i++)
        assert_int_equal(ERR_INVALID, keyring_invite(scratch.folder, NULL, false, wrong[i], token, &e));
    assert_fine(keyring_invite(scratch.folder, "v6", false, "[::1]:7700", token, &e), &e);
    assert_int_equal(ERR_INVALID, keyring_invite(scratch.folder, "v6", false, "[::1]:7700", token, &e));
    memset(name, 'a', sizeof name);
    name[KEYRING_NAME_MAX] = 0;
    assert_int_equal(ERR_INVALID, keyring_invite(scratch.folder, name, false, "h:1", token, &e));
    assert_int_equal(ERR_INVALID, keyring_revoke(scratch.folder, "../x", &e));
    assert_int_equal(ERR_NOTFOUND, keyring_revoke(scratch.folder, "nobody", &e));
}

/* ---- joining ---- */

static void a_one_time_token_enrols_one_key_and_is_gone(void **state) {
    char token[KEYRING_TOKEN_MAX];
    struct err e;
    (void)state;
    invite("t", true, token);
    struct keyring *k = cluster(), *a = node_with(scratch_path(&scratch, "a"), token),
                   *b = node_with(scratch_path(&scratch, "b"), token);
    assert_int_equal(ERR_DENIED, keyring_admit(k, "invite:t", "bad name", keyring_public(a), &e));
    assert_int_equal(ERR_DENIED, keyring_admit(k, "invite:t", "a", "short", &e));
    assert_fine(keyring_admit(k, "invite:t", "a", keyring_public(a), &e), &e);
    assert_int_equal(ERR_DENIED, keyring_admit(k, "invite:t", "b", keyring_public(b), &e));
    assert_fine(keyring_admit(k, "node:a", "a", keyring_public(a), &e), &e);
    assert_int_equal(ERR_DENIED, keyring_admit(k, "node:a", "b", keyring_public(a), &e));
    assert_int_equal(ERR_DENIED, keyring_admit(k, "node:a", "a", keyring_public(b), &e));
    assert_int_equal(ERR_DENIED, keyring_admit(k, "", "a", keyring_public(a), &e));
    keyring_free(k);
    k = cluster();                                /* it was written down */
    assert_true(keyring_knows(k, "node:a"));
    assert_false(keyring_knows(k, "invite:t"));
    keyring_free(k);
    keyring_free(a);
    keyring_free(b);
}

static void a_name_belongs_to_its_first_key_until_revoked(void **state) {
    char token[KEYRING_TOKEN_MAX];
    struct err e;
    (void)state;
    invite("many", false, token);
    struct keyring *k = cluster(), *a = node_with(scratch_path(&scratch, "a"), token),
                   *b = node_with(scratch_path(&scratch, "b"), token);
    assert_fine(keyring_admit(k, "invite:many", "box", keyring_public(a), &e), &e);
    assert_fine(keyring_admit(k, "invite:many", "box", keyring_public(a), &e), &e);
    assert_int_equal(ERR_DENIED, keyring_admit(k, "invite:many", "box", keyring_public(b), &e));
    assert_non_null(strstr(e.text, "keys revoke"));
    assert_fine(keyring_admit(k, "invite:many", "other", keyring_public(b), &e), &e);
    assert_fine(keyring_revoke(scratch.folder, "box", &e), &e);
    assert_int_equal(ERR_DENIED, keyring_admit(k, "node:box", "box", keyring_public(a), &e));
    assert_fine(keyring_admit(k, "invite:many", "box", keyring_public(b), &e), &e);
    keyring_free(k);
    keyring_free(a);
    keyring_free(b);
}

static void a_machine_keeps_its_own_key_and_forgets_the_token(void **state) {
    char token[KEYRING_TOKEN_MAX], own[KEY_TEXT], path[FILE_PATH_MAX];
    struct err e;
    (void)state;
    invite("t", true, token);
    snprintf(path, sizeof path, "%s/node", scratch.folder);
    struct keyring *n = node_with(path, token);
    assert_int_equal(0600, mode_of(path));
    assert_string_equal("tcp://10.0.0.1:7700", keyring_server_address(n));
    snprintf(own, sizeof own, "%s", keyring_public(n));
    const char *server = keyring_server_key(n);
    assert_string_not_equal(own, keyring_pair_for(n, server).public_key);        /* the token's */
    assert_string_equal(own, keyring_pair_for(n, NULL).public_key);
    assert_string_equal(own, keyring_pair_for(n, own).public_key);
    keyring_refused(n, own);                      /* another door: says nothing about the token */
    assert_string_not_equal(own, keyring_pair_for(n, server).public_key);
    keyring_refused(n, server);                   /* used up? then we are known by our own key */
    assert_string_equal(own, keyring_pair_for(n, server).public_key);
    keyring_refused(n, server);
    assert_string_not_equal(own, keyring_pair_for(n, server).public_key);
    keyring_free(n);

    n = node_with(path, NULL);              /* crashed before it was welcome: the same key, the token still */
    assert_string_equal(own, keyring_public(n));
    assert_string_not_equal(own, keyring_pair_for(n, keyring_server_key(n)).public_key);
    assert_fine(keyring_enrolled(n, &e), &e);
    keyring_free(n);
    struct file_facts before, after;
    assert_fine(file_facts(&before, path, &e), &e);
    n = node_with(path, NULL);
    assert_string_equal(own, keyring_pair_for(n, keyring_server_key(n)).public_key);
    keyring_free(n);
    assert_fine(file_facts(&after, path, &e), &e);
    assert_memory_equal(&before, &after, sizeof before);      /* nothing new, so nothing was written */
    char *text;
    assert_fine(private_read(path, &text, &e), &e);
    assert_null(strstr(text, "\ntoken"));
    private_free(text);
}

static void the_environment_and_a_stored_file_go_together(void **state) {
    char token[KEYRING_TOKEN_MAX], own[KEY_TEXT], store[FILE_PATH_MAX];
    struct keyring *k;
    struct err e;
    (void)state;
    invite("t", true, token);
    snprintf(store, sizeof store, "%s/stored", scratch.folder);
    unsetenv("PLEIADES_TOKEN");
    assert_int_equal(ERR_NOTFOUND, keyring_open_node(&k, NULL, store, &e));
    setenv("PLEIADES_TOKEN", token, 1);
    assert_fine(keyring_open_node(&k, NULL, store, &e), &e);
    snprintf(own, sizeof own, "%s", keyring_public(k));
    assert_fine(keyring_enrolled(k, &e), &e);
    keyring_free(k);
    assert_fine(keyring_open_node(&k, NULL, store, &e), &e);  /* the variable is still set: joined already */
    assert_string_equal(own, keyring_pair_for(k, keyring_server_key(k)).public_key);
    keyring_refused(k, keyring_server_key(k));    /* revoked meanwhile: it is a new one */
    assert_string_not_equal(own, keyring_pair_for(k, keyring_server_key(k)).public_key);
    assert_fine(keyring_enrolled(k, &e), &e);
    keyring_free(k);
    unsetenv("PLEIADES_TOKEN");
    assert_fine(keyring_open_node(&k, NULL, store, &e), &e);  /* the stored file is enough */
    assert_string_equal(own, keyring_public(k));
    keyring_free(k);
    setenv("PLEIADES_TOKEN", "pleiades1:AAAA", 1);
    assert_int_equal(ERR_INVALID, keyring_open_node(&k, NULL, NULL, &e));
    unsetenv("PLEIADES_TOKEN");
}

static void keys_are_z85_of_the_right_length(void **state) {
    uint8_t bytes[CURVE_BYTES];
    char text[CURVE_TEXT];
    (void)state;
    assert_int_equal(ERR_INVALID, curve_decode("", bytes, NULL));
    assert_int_equal(ERR_INVALID, curve_decode("000000000000000000000000000000000000000", bytes, NULL));
    assert_int_equal(ERR_INVALID, curve_decode("00000000000000000000000000000000000000000", bytes, NULL));
    assert_int_equal(ERR_INVALID, curve_decode("000000000000000000000000000000000000000\"", bytes, NULL));
    assert_int_equal(0, curve_decode("0123456789abcdefghijABCDEFGHIJ.-:+=^!/*?", bytes, NULL));
    curve_encode(bytes, text);
    assert_string_equal("0123456789abcdefghijABCDEFGHIJ.-:+=^!/*?", text);
}

#define KEY_TEST(name) cmocka_unit_test_setup_teardown(name, open_scratch, close_scratch)

int main(void) {
    const struct CMUnitTest tests[] = {
        KEY_TEST(key_files_are_private_and_others_are_refused),
        KEY_TEST(the_path_of_the_key_file_names_its_folder_too),
        KEY_TEST(damaged_files_are_named_not_believed),
        KEY_TEST(a_failed_reread_keeps_the_list_before),
        KEY_TEST(a_token_survives_as_it_is_and_not_with_one_letter_changed),
        KEY_TEST(addresses_and_names_are_checked),
        KEY_TEST(a_one_time_token_enrols_one_key_and_is_gone),
        KEY_TEST(a_name_belongs_to_its_first_key_until_revoked),
        KEY_TEST(a_machine_keeps_its_own_key_and_forgets_the_token),
        KEY_TEST(the_environment_and_a_stored_file_go_together),
        TEST(keys_are_z85_of_the_right_length),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
