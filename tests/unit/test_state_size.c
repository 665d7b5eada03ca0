/* What a million tokens of state take at the full Flash shape: one layer of each kind is allocated for
 * real, up to the last token, and multiplied by how many of them the model has. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "node/kv_cache.h"

#include <stdio.h>

enum { TOKENS = 1 << 20 };

/* Bytes of layer `layer` for `tokens` tokens, reserved chunk by chunk as a prompt would do it. */
static uint64_t layer_bytes(struct kernels *k, const struct hparams *hp, uint32_t layer, uint32_t tokens) {
    struct kv_config config = {
        .hp = hp,
        .numerics = NUMERICS_OFFICIAL,
        .layer_begin = layer,
        .layer_end = layer + 1,
        .n_slots = 1,
        .n_ctx_max = TOKENS,
    };
    struct kv_cache *kv;
    struct err e = { 0 };
    uint32_t slot;
    assert_int_equal(kv_cache_new(&kv, k, &config, &e), 0);
    assert_int_equal(kv_slot_open(kv, &slot, &e), 0);
    for (uint32_t n = 4096; n <= tokens; n += 4096) {
        assert_int_equal(kv_slot_reserve(kv, slot, n, &e), 0);
        kv_slot_begin(kv, slot, 4096);
        kv_slot_advance(kv, slot, 4096);
    }
    assert_int_equal(kv_slot_len(kv, slot), tokens);
    assert_int_equal(kv_slot_reserve(kv, slot, TOKENS + 1, &e), ERR_LIMIT);
    uint64_t bytes = kv_cache_bytes(kv);
    assert_true(kv_cache_bytes_for(kv, tokens) >= bytes); /* the promise before covers what was taken */
    kv_slot_close(kv, slot);
    assert_int_equal(kv_cache_bytes(kv), 0);
    kv_cache_free(kv);
    return bytes;
}

static void a_million_tokens_of_flash_take_less_than_4_gib(void **state) {
    (void)state;
    struct hparams hp;
    struct kernels *k;
    struct kernels_config config = { .backend = "cpu", .n_threads = 1 };
    struct err e = { 0 };
    uint64_t sum = 0, one[3];
    uint32_t example[3] = { 0, 2, 3 }, count[3] = { 0 };
    hparams_flash(&hp);
    assert_int_equal(kernels_cpu_open(&k, &config, &e), 0);
    for (uint32_t l = 0; l < hp.n_layer; l++) count[hparams_kind(&hp, l)]++;
    static const char *const names[3] = { "window only (SWA)", "ratio 4 (CSA)", "ratio 128 (HCA)" };
    for (int i = 0; i < 3; i++) {
        assert_int_equal(hparams_kind(&hp, example[i]), i);
        one[i] = layer_bytes(k, &hp, example[i], TOKENS);
        sum += one[i] * count[i];
        print_message("  %-18s %11llu bytes x %2u\n", names[i], (unsigned long long)one[i], count[i]);
    }
    print_message("  1,048,576 tokens: %.3f GiB over %u layers\n", (double)sum / (1 << 30), hp.n_layer);
    assert_int_equal(count[0] + count[1] + count[2], 43);
    assert_true(sum <= (uint64_t)4 << 30);
    assert_true(one[1] > one[2] && one[2] > one[0]);
    kernels_close(k);
}

int main(void) {
    const struct CMUnitTest tests[] = { cmocka_unit_test(a_million_tokens_of_flash_take_less_than_4_gib) };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
