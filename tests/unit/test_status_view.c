/* The status document as a table: what other machines and model files call themselves is only text. */
#include "tests/harness/test.h"

#include "cli/status_view.h"

static const char document[] =
    "{\"state\": \"serving\", \"model\": \"evil\\u001b[2J\\u0007\\u007f\", "
    "\"address\": \"tcp://[2001:db8::1234]:65535\", "
    "\"security\": \"none\", \"requests\": {\"active\": 3}, \"nodes\": [{\"name\": \"a\\nb\", "
    "\"state\": \"ready\", \"stage\": 0, \"layers\": [0, 4], \"sequences\": 12345}]}";

static void names_cannot_steer_the_terminal(void **state) {
    struct buf table;
    struct err e;
    (void)state;
    buf_init(&table, 1 << 16);
    assert_fine(status_table(document, strlen(document), "\n", &table, &e), &e);
    assert_non_null(strstr(table.data, "evil?[2J??: serving"));
    assert_non_null(strstr(table.data, "\na?b "));
    for (const unsigned char *c = (const unsigned char *)table.data; *c; c++)
        assert_true(*c == 0x0a || (*c >= 0x20 && *c != 0x7f));
    buf_deinit(&table);
}

static void open_links_and_requests_are_shown(void **state) {
    struct buf table;
    struct err e;
    (void)state;
    buf_init(&table, 1 << 16);
    assert_fine(status_table(document, strlen(document), "\n", &table, &e), &e);
    assert_non_null(strstr(table.data, "NOT ENCRYPTED (--insecure)"));
    assert_non_null(strstr(table.data, "nodes join at tcp://[2001:db8::1234]:65535\n"));
    assert_non_null(strstr(table.data, "requests: 3 active"));
    assert_non_null(strstr(table.data, " 12345\n"));          /* the last column is within 80 */
    buf_clear(&table);
    assert_int_equal(ERR_CORRUPT, status_table("[]", 2, "\n", &table, &e));
    buf_deinit(&table);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        TEST(names_cannot_steer_the_terminal),
        TEST(open_links_and_requests_are_shown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
