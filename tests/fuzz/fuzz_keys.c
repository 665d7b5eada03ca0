/* Join tokens and key files: what comes from a clipboard or a damaged disk. Whatever is taken must come out
 * the same when it is written again; whatever is not must leave no secret behind. */
#include "common/base/check.h"
#include "common/sys/keyring_private.h"

#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static char *text_of(const uint8_t *data, size_t size) {
    char *text = xcalloc(1, size + 1);
    if (size) memcpy(text, data, size);
    return text;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    struct err e;
    struct token t;
    struct node_file f;
    if (size > 4096) return 0;
    char *text = text_of(data, size);
    if (token_decode(text, &t, &e) == 0) {
        char again[KEYRING_TOKEN_MAX];
        struct token same;
        CHECK(token_encode(&t, again, &e) == 0 && token_decode(again, &same, &e) == 0);
        CHECK(memcmp(&t, &same, sizeof t) == 0);
    } else {
        CHECK(t.secret_key[0] == 0);
    }
    if (node_file_parse(text, "fuzz", &f, &e) < 0) CHECK(f.own.secret_key[0] == 0);
    free(text);
    text = text_of(data, size);
    struct key_list list;
    if (key_list_parse(text, &list)) CHECK(list.n <= KEYRING_CLIENTS_MAX);
    key_list_free(&list);
    free(text);
    return 0;
}
