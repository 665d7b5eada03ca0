/* JSON from a client: an error, or one line that is JSON again and does not change when it is printed
 * again. The one exception is a number too large for a double, which is spelt Infinity as the model saw
 * it in training. */
#include "common/base/check.h"
#include "common/model/chat_json.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    struct chat_text text = { (const char *)data, size };
    struct buf once, twice;
    struct err e;
    buf_init(&once, 64 << 20);
    buf_init(&twice, 64 << 20);
    if (chat_json_reprint(text, &once, &e) == 0) {
        struct chat_text line = { once.data, once.size };
        CHECK(!memchr(once.data, '\n', once.size));
        bool same = chat_json_reprint(line, &twice, &e) == 0 && once.size == twice.size &&
                    memcmp(once.data, twice.data, once.size) == 0;
        CHECK(same || strstr(once.data, "Infinity"));
    } else {
        CHECK(e.text[0]);
    }
    buf_deinit(&once);
    buf_deinit(&twice);
    return 0;
}
