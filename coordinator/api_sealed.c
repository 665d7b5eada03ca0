/* api_sealed - see the header. */
#include "coordinator/api_sealed.h"

#include "common/base/hash.h"
#include "common/base/utf8.h"

static const char prefix[] = "pleiades1.";
static const char letters[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

enum { PREFIX_LEN = sizeof prefix - 1, CHECK_LEN = 8 };

/* Up to three bytes as four letters. */
static void put_group(struct buf *out, const unsigned char *bytes, size_t n) {
    uint32_t bits = (uint32_t)bytes[0] << 16;
    if (n > 1) bits |= (uint32_t)bytes[1] << 8;
    if (n > 2) bits |= bytes[2];
    char group[4] = { letters[bits >> 18], letters[bits >> 12 & 63],
                      n > 1 ? letters[bits >> 6 & 63] : '=', n > 2 ? letters[bits & 63] : '=' };
    buf_add(out, group, sizeof group);
}

void api_sealed_put(struct buf *out, struct chat_text text) {
    struct buf plain;
    uint64_t check = hash_64(text.data, text.len, 0);
    unsigned char bytes[CHECK_LEN];
    for (int i = 0; i < CHECK_LEN; i++) bytes[i] = (unsigned char)(check >> 8 * i);
    buf_init(&plain, SIZE_MAX);
    buf_add(&plain, bytes, sizeof bytes);
    buf_add(&plain, text.data, text.len);
    buf_add(out, prefix, PREFIX_LEN);
    for (size_t i = 0; i < plain.size; i += 3)
        put_group(out, (const unsigned char *)plain.data + i, MIN(plain.size - i, 3));
    if (plain.rc < 0) out->rc = plain.rc;
    buf_deinit(&plain);
}

static int letter_value(char c) {
    const char *at = c ? strchr(letters, c) : NULL;
    return at ? (int)(at - letters) : -1;
}

/* Four letters as up to three bytes; the number of bytes, 0 for nonsense. */
static size_t read_group(const char *group, bool last, unsigned char bytes[3]) {
    size_t n = last && group[3] == '=' ? (group[2] == '=' ? 1 : 2) : 3;
    uint32_t bits = 0;
    for (size_t i = 0; i < 4; i++) {
        int value = i <= n ? letter_value(group[i]) : 0;
        if (value < 0) return 0;
        bits = bits << 6 | (uint32_t)value;
    }
    for (int i = 0; i < 3; i++) bytes[i] = (unsigned char)(bits >> (16 - 8 * i));
    return n;
}

static int read_groups(struct buf *plain, struct chat_text text) {
    if (text.len % 4) return ERR_INVALID;
    for (size_t i = 0; i < text.len; i += 4) {
        unsigned char bytes[3];
        size_t n = read_group(text.data + i, i + 4 == text.len, bytes);
        if (n == 0) return ERR_INVALID;
        buf_add(plain, bytes, n);
    }
    return plain->rc;
}

static int read_checked(struct buf *out, const struct buf *plain) {
    uint64_t check = 0;
    if (plain->size < CHECK_LEN) return ERR_INVALID;
    for (int i = 0; i < CHECK_LEN; i++) check |= (uint64_t)(unsigned char)plain->data[i] << 8 * i;
    struct chat_text text = { plain->data + CHECK_LEN, plain->size - CHECK_LEN };
    if (check != hash_64(text.data, text.len, 0)) return ERR_INVALID;
    if (!utf8_valid(text.data, text.len)) return ERR_INVALID;
    return buf_add(out, text.data, text.len);
}

int api_sealed_read(struct buf *out, struct chat_text sealed) {
    struct buf plain;
    if (sealed.len < PREFIX_LEN || memcmp(sealed.data, prefix, PREFIX_LEN)) return ERR_INVALID;
    buf_init(&plain, SIZE_MAX);
    int rc = read_groups(&plain, (struct chat_text){ sealed.data + PREFIX_LEN,
                                                     sealed.len - PREFIX_LEN });
    if (rc == 0) rc = read_checked(out, &plain);
    buf_deinit(&plain);
    return rc;
}
