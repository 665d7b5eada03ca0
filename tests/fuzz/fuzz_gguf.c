/* A GGUF image from anywhere: opening gives an error or a file whose every promise can be relied on. */
#include "common/base/check.h"
#include "common/model/gguf.h"
#include "common/model/hparams.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static volatile uint8_t sink;                     /* what is read must not be optimised away */

static void read_kv(const struct gguf *g, const struct gguf_kv *kv) {
    char key[64];
    uint64_t u64;
    uint32_t u32;
    float f32;
    bool yes;
    struct gguf_str text;
    int64_t whole;
    CHECK(kv->data <= kv->end);
    snprintf(key, sizeof key, "%.*s", (int)MIN(kv->key.len, sizeof key - 1), kv->key.data);
    gguf_get_u64(g, key, &u64, NULL);
    gguf_get_u32(g, key, &u32, NULL);
    gguf_get_f32(g, key, &f32, NULL);
    gguf_get_bool(g, key, &yes, NULL);
    if (gguf_get_str(g, key, &text, NULL) == 0 && text.len) sink = (uint8_t)text.data[text.len - 1];
    if (kv->n) {
        gguf_kv_int(kv, kv->n - 1, &whole);
        gguf_kv_float(kv, kv->n - 1, &f32);
    }
    if (kv->type != GGUF_ARRAY || kv->array_type != GGUF_STRING) return;
    const uint8_t *cursor = kv->data;
    uint64_t n = 0;
    for (; gguf_kv_next_str(kv, &cursor, &text); n++) {
        if (text.len) sink = (uint8_t)text.data[text.len - 1];
    }
    CHECK(n == kv->n);
}

static void read_tensor(const struct gguf_tensor *t, const uint8_t *data, size_t size) {
    if (!t->data || !t->size) return;
    CHECK(t->data >= data && t->size <= size && t->data - data <= (ptrdiff_t)(size - t->size));
    sink = t->data[0];
    sink = t->data[t->size - 1];
    if (!dtype_decodes(t->type)) return;
    float last[256];                             /* the last block: the one that could reach behind the end */
    uint32_t bytes = dtype_block_bytes(t->type);
    dtype_decode((enum dtype)t->type, t->data + t->size - bytes, last, dtype_block(t->type));
    sink = (uint8_t)(f32_bits(last[0]) & 255);
}

/* Either a reason, or a shape whose state can be summed up without running over. */
static void read_hparams(const struct gguf *g) {
    struct hparams hp;
    struct err e;
    e.text[0] = 0;
    if (hparams_read(&hp, g, &e) < 0) {
        CHECK(e.text[0]);
        return;
    }
    CHECK(hp.n_layer >= 1 && hp.n_layer <= HP_LAYERS_MAX && hp.n_head % hp.n_out_group == 0);
    for (uint32_t i = 0; i < hp.n_layer; i++)
        CHECK(hparams_state_bytes(&hp, i, hp.n_ctx_train) < UINT64_C(1) << 48);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    struct gguf *g;
    struct err e;
    int rc = gguf_open_memory(&g, data, size, "input", &e);
    CHECK(rc <= 0 && (rc == 0 || e.text[0]));
    if (rc == 0) {
        for (uint64_t i = 0; i < gguf_n_kv(g); i++) read_kv(g, gguf_kv_at(g, i));
        for (uint64_t i = 0; i < gguf_n_tensors(g); i++) read_tensor(gguf_tensor_at(g, i), data, size);
        read_hparams(g);
        gguf_close(g);
    }
    rc = gguf_open_header(&g, data, size, UINT64_C(1) << 40, "header", &e);
    CHECK(rc <= 0);
    if (rc == 0) gguf_close(g);
    return 0;
}
