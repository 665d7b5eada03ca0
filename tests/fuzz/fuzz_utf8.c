/* Bytes from a model or a client: the stream's text is valid, and the same however the bytes were cut. */
#include "common/base/check.h"
#include "common/base/utf8.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* Pushes data in pieces of `step`; the length of the text. */
static size_t stream(const uint8_t *data, size_t size, size_t step, char *out) {
    struct utf8_stream s = { { 0 }, 0 };
    size_t n = 0;
    for (size_t at = 0; at < size; at += step)
        n += utf8_stream_push(&s, data + at, MIN(step, size - at), out + n);
    return n + utf8_stream_flush(&s, out + n);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    size_t room = UTF8_STREAM_ROOM(size) + 16;
    char *whole = xcalloc(room, 1), *pieces = xcalloc(room, 1);
    size_t n = stream(data, size, size + 1, whole);
    CHECK(utf8_valid(whole, n));
    for (size_t step = 1; step <= 5; step++) {
        CHECK(stream(data, size, step, pieces) == n && memcmp(whole, pieces, n) == 0);
    }
    size_t valid = utf8_valid_prefix((const char *)data, size);
    CHECK(valid <= size && n >= valid && memcmp(whole, data, valid) == 0);
    free(whole);
    free(pieces);
    return 0;
}
