/* Metadata of a shard from anywhere: an error with a reason, or values that can be relied on. */
#include "common/base/check.h"
#include "common/model/plan.h"
#include "common/model/shard.h"

#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void read_shard(const struct gguf *g) {
    struct shard_info s;
    struct hash128 model;
    struct err e;
    e.text[0] = 0;
    if (shard_info_read(&s, g, &e) < 0) {
        CHECK(e.text[0]);
        CHECK(!shard_is(g) || shard_fingerprint(g, &model, NULL) < 0);
        return;
    }
    uint32_t held = 0, at = 0;
    CHECK(s.part.layer_begin < s.part.layer_end && s.part.layer_end <= HP_LAYERS_MAX &&
          s.part.index < s.part.count);
    for (uint32_t i = 0; i < s.part.n_range; i++) {
        CHECK(s.part.expert[i].begin >= at && s.part.expert[i].begin < s.part.expert[i].end);
        at = s.part.expert[i].end;
        held += at - s.part.expert[i].begin;
    }
    for (uint64_t i = 0; i < gguf_n_tensors(g); i++) {
        const struct gguf_tensor *t = gguf_tensor_at(g, i);
        CHECK(shard_info_order(&s, i) < s.n_model_tensors && t->size > 0);
        CHECK(!shard_is_stack(&s.part, t->name) || t->ne[2] == held);
        (void)hash_equal(shard_info_hash(&s, i), hash_128(t->data, (size_t)t->size));
    }
    CHECK(shard_fingerprint(g, &model, &e) == 0 && hash_equal(model, s.model));
}

/* A model that can be read can be laid out, or there is a reason. */
static void lay_out(const struct gguf *g) {
    struct shard_part part = { .count = 1,
                               .layer_end = 1,
                               .dense = true,
                               .embed = true,
                               .expert = { { 0, 1 } },
                               .n_range = 1 };
    struct shard_layout *l;
    struct shard_cover cover;
    struct hparams hp;
    struct err e;
    struct plan_model *m = xcalloc(1, sizeof *m);
    if (hparams_read(&hp, g, NULL) == 0) {
        shard_coverage(&cover, g, &hp, NULL);
        plan_model_read(m, g, NULL);
    }
    if (shard_layout_new(&l, g, &part, SHARD_ALIGNMENT, &e) == 0) {
        for (uint64_t i = 0; i < l->n; i++) CHECK(l->item[i].offset + l->item[i].size <= l->file_bytes);
        shard_layout_free(l);
    }
    free(m);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    struct gguf *g;
    if (gguf_open_memory(&g, data, size, "input", NULL) < 0) return 0;
    read_shard(g);
    lay_out(g);
    gguf_close(g);
    return 0;
}
