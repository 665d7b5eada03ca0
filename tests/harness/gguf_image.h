/* gguf_image - builds GGUF files in memory, right or wrong ones, for tests of the reader.
 *
 * Unlike the writer it believes everything: any version, type, count, offset. The caller owns the
 * struct; image_bytes gives a copy on the heap whose last byte is the file's last byte, so that reading
 * on is caught. Header only. */
#ifndef HARNESS_GGUF_IMAGE_H
#define HARNESS_GGUF_IMAGE_H

#include "common/base/buf.h"
#include "common/base/check.h"
#include "common/model/gguf.h"

struct image {
    uint32_t version, alignment;
    uint64_t n_kv, n_tensors;
    struct buf kvs, infos, data;
};

static inline void image_init(struct image *m) {
    *m = (struct image){ .version = 3, .alignment = GGUF_ALIGNMENT };
    buf_init(&m->kvs, 1 << 24);
    buf_init(&m->infos, 1 << 24);
    buf_init(&m->data, 1 << 26);
}

static inline void image_free(struct image *m) {
    buf_deinit(&m->kvs);
    buf_deinit(&m->infos);
    buf_deinit(&m->data);
}

static inline void image_u32_raw(struct buf *b, uint32_t value) { buf_add(b, &value, 4); }
static inline void image_u64_raw(struct buf *b, uint64_t value) { buf_add(b, &value, 8); }

static inline void image_text_raw(struct buf *b, const char *text) {
    image_u64_raw(b, strlen(text));
    buf_add_text(b, text);
}

static inline void image_kv(struct image *m, const char *key, uint32_t type, const void *value, size_t size) {
    image_text_raw(&m->kvs, key);
    image_u32_raw(&m->kvs, type);
    buf_add(&m->kvs, value, size);
    m->n_kv++;
}

static inline void image_u32(struct image *m, const char *key, uint32_t value) {
    image_kv(m, key, GGUF_U32, &value, 4);
}

static inline void image_f32(struct image *m, const char *key, float value) {
    image_kv(m, key, GGUF_F32, &value, 4);
}

static inline void image_bool(struct image *m, const char *key, uint8_t value) {
    image_kv(m, key, GGUF_BOOL, &value, 1);
}

static inline void image_str(struct image *m, const char *key, const char *value) {
    image_kv(m, key, GGUF_STRING, NULL, 0);
    image_text_raw(&m->kvs, value);
}

static inline void image_array(struct image *m, const char *key, uint32_t type, const void *values,
                               uint64_t n, size_t size) {
    image_kv(m, key, GGUF_ARRAY, &type, 4);
    image_u64_raw(&m->kvs, n);
    buf_add(&m->kvs, values, size);
}

static inline void image_strs(struct image *m, const char *key, const char *const *values, uint64_t n) {
    image_array(m, key, GGUF_STRING, NULL, n, 0);
    for (uint64_t i = 0; i < n; i++) image_text_raw(&m->kvs, values[i]);
}

/* An info that may say anything about data that may not be there. */
static inline void image_info(struct image *m, const char *name, uint32_t type, uint32_t n_dims,
                              const uint64_t *ne, uint64_t offset) {
    image_text_raw(&m->infos, name);
    image_u32_raw(&m->infos, n_dims);
    for (uint32_t i = 0; i < n_dims; i++) image_u64_raw(&m->infos, ne[i]);
    image_u32_raw(&m->infos, type);
    image_u64_raw(&m->infos, offset);
    m->n_tensors++;
}

static inline void image_pad(struct buf *b, size_t to) {
    while (b->size % to) buf_add_char(b, 0);
}

/* An honest tensor: info, data (bytes 1, 2, 3 ...), padding. */
static inline void image_tensor(struct image *m, const char *name, uint32_t type, uint32_t n_dims,
                                const uint64_t *ne) {
    uint64_t size;
    CHECK(gguf_tensor_size(type, n_dims, ne, &size));
    image_info(m, name, type, n_dims, ne, m->data.size);
    for (uint64_t i = 0; i < size; i++) buf_add_char(&m->data, (char)(i + 1));
    image_pad(&m->data, m->alignment);
}

static inline uint8_t *image_bytes(const struct image *m, size_t *size) {
    struct buf b;
    buf_init(&b, (size_t)1 << 28);
    buf_add_text(&b, "GGUF");
    image_u32_raw(&b, m->version);
    image_u64_raw(&b, m->n_tensors);
    image_u64_raw(&b, m->n_kv);
    buf_add(&b, m->kvs.data, m->kvs.size);
    buf_add(&b, m->infos.data, m->infos.size);
    if (m->data.size) image_pad(&b, m->alignment);
    buf_add(&b, m->data.data, m->data.size);
    CHECK(b.rc == 0);
    uint8_t *exact = malloc(b.size);
    CHECK(exact);
    memcpy(exact, b.data, b.size);
    *size = b.size;
    buf_deinit(&b);
    return exact;
}

/* Every value type and two tensors: what the tests cut, bend and break. */
static inline void image_sample(struct image *m) {
    static const int32_t ratios[] = { 0, 4, -7 };
    static const char *const words[] = { "a", "", "long word" };
    static const double d = 2.5;
    static const uint64_t big = UINT64_MAX;
    static const int64_t minus = -5;
    image_init(m);
    image_str(m, "general.architecture", "deepseek4");
    image_kv(m, "u8", GGUF_U8, &(uint8_t){ 200 }, 1);
    image_kv(m, "i8", GGUF_I8, &(int8_t){ -3 }, 1);
    image_kv(m, "u16", GGUF_U16, &(uint16_t){ 65535 }, 2);
    image_kv(m, "i16", GGUF_I16, &(int16_t){ -300 }, 2);
    image_u32(m, "u32", 4000000000u);
    image_kv(m, "i32", GGUF_I32, &(int32_t){ 77 }, 4);
    image_f32(m, "f32", 0.5f);
    image_bool(m, "bool", 1);
    image_kv(m, "u64", GGUF_U64, &big, 8);
    image_kv(m, "i64", GGUF_I64, &minus, 8);
    image_kv(m, "f64", GGUF_F64, &d, 8);
    image_array(m, "ratios", GGUF_I32, ratios, 3, sizeof ratios);
    image_strs(m, "words", words, 3);
    image_tensor(m, "one", DTYPE_F32, 1, (uint64_t[]){ 3 });
    image_tensor(m, "two", DTYPE_Q8_0, 3, (uint64_t[]){ 64, 2, 3 });
}

#endif
