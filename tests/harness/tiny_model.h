/* tiny_model - writes small models of the real architecture with random weights, for tests that need a
 * model of known shape.
 *
 * Shapes with awkward dimensions (nothing is a published value; 'a' has rows of 256 for the K quants, 'b'
 * is smaller and has wider heads and more experts in use, 'p' is 'a' with the layer pattern of Pro), any
 * mix of types, and an MTP block as a file of its own. A file is a function of (shape, mix, seed). The
 * tensor list is the engine's own (weights.h): names and dimensions are tested elsewhere. Header only. */
#ifndef HARNESS_TINY_MODEL_H
#define HARNESS_TINY_MODEL_H

#include "common/base/check.h"
#include "common/base/hash.h"
#include "common/base/rng.h"
#include "node/weights.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

enum { TINY_TENSORS_MAX = 512, TINY_BLOCK_MAX = 256 };

struct tiny_types {
    enum dtype gate, down, dense;
};

struct tiny_model {
    struct hparams hp;
    struct tiny_types types[HP_LAYERS_MAX];           /* per layer; the head takes the first layer's */
    uint64_t seed;
};

/* ---- shapes and mixes ---- */

static inline void tiny_layers(struct hparams *hp, const uint32_t *ratio, uint32_t n, float clamp) {
    hp->n_layer = n;
    for (uint32_t i = 0; i < n; i++) {
        hp->ratio[i] = ratio[i];
        hp->swiglu_clamp_exp[i] = clamp + (float)i;
        hp->swiglu_clamp_shexp[i] = clamp / 2 + (float)i;
    }
}

static inline void tiny_shape(struct hparams *hp, char shape) {
    *hp = (struct hparams){
        .n_embd = 256,
        .n_vocab = 333,
        .n_ctx_train = 4096,
        .n_head = 4,
        .head_dim = 80,
        .n_rot = 16,
        .n_q_lora = 96,
        .n_out_lora = 32,
        .n_out_group = 2,
        .n_swa = 21,
        .n_idx_head = 4,
        .idx_dim = 64,
        .idx_top_k = 8,
        .n_expert = 8,
        .n_expert_used = 3,
        .n_expert_shared = 1,
        .n_ff_exp = 256,
        .n_hash_layer = 1,
        .expert_scale = 1.5f,
        .n_sinkhorn = 7,
        .rms_eps = 1e-5f,
        .hc_eps = 1e-4f,
        .rope_base = 5000,
        .rope_base_compress = 40000,
        .yarn_factor = 4,
        .yarn_beta_fast = 16,
        .yarn_beta_slow = 1,
        .yarn_ctx = 1024,
        .bos_id = -1,
        .eos_id = -1,
        .name = "tiny a",
    };
    tiny_layers(hp, (const uint32_t[]){ 0, 4, 8, 4, 32 }, 5, 3);
    if (shape == 'a') return;
    if (shape == 'p') {
        hp->n_hash_layer = 2;
        snprintf(hp->name, sizeof hp->name, "tiny p");
        tiny_layers(hp, (const uint32_t[]){ 128, 128, 4, 128, 4 }, 5, 3);
        return;
    }
    CHECK(shape == 'b');
    hp->n_embd = 96, hp->n_vocab = 130, hp->n_head = 6, hp->head_dim = 192, hp->n_rot = 64, hp->n_q_lora = 64;
    hp->n_out_group = 3, hp->n_swa = 32, hp->n_idx_head = 8, hp->idx_dim = 128, hp->idx_top_k = 12,
    hp->n_expert = 16;
    hp->n_expert_used = 8, hp->n_ff_exp = 64, hp->n_hash_layer = 2, hp->n_sinkhorn = 20,
    hp->rms_eps = hp->hc_eps = 1e-6f;
    snprintf(hp->name, sizeof hp->name, "tiny b");
    tiny_layers(hp, (const uint32_t[]){ 4, 128, 0, 4 }, 4, 2);
}

/* q2 q4 q2q4 need rows of 256: shape a. */
static inline struct tiny_types tiny_mix(const char *mix, bool late) {
    if (strcmp(mix, "q2") == 0 || (strcmp(mix, "q2q4") == 0 && !late))
        return (struct tiny_types){ DTYPE_IQ2_XXS, DTYPE_Q2_K, DTYPE_Q8_0 };
    if (strcmp(mix, "q4") == 0 || strcmp(mix, "q2q4") == 0)
        return (struct tiny_types){ DTYPE_Q4_K, DTYPE_Q4_K, DTYPE_Q8_0 };
    if (strcmp(mix, "q8") == 0) return (struct tiny_types){ DTYPE_Q8_0, DTYPE_Q8_0, DTYPE_Q8_0 };
    if (strcmp(mix, "mxfp4") == 0) return (struct tiny_types){ DTYPE_MXFP4, DTYPE_MXFP4, DTYPE_Q8_0 };
    if (strcmp(mix, "f16") == 0) return (struct tiny_types){ DTYPE_F16, DTYPE_F16, DTYPE_F16 };
    CHECK(strcmp(mix, "f32") == 0);
    return (struct tiny_types){ DTYPE_F32, DTYPE_F32, DTYPE_F32 };
}

static inline void tiny_model_init(struct tiny_model *t, char shape, const char *mix, uint64_t seed) {
    *t = (struct tiny_model){ .seed = seed };
    tiny_shape(&t->hp, shape);
    for (uint32_t i = 0; i < t->hp.n_layer; i++) t->types[i] = tiny_mix(mix, 2 * i >= t->hp.n_layer);
}

/* ---- the list of tensors ---- */

enum tiny_kind { TINY_MATRIX, TINY_VECTOR, TINY_TABLE, TINY_STACK = TINY_MATRIX };

struct tiny_tensor {
    char name[96];
    enum dtype type;
    uint32_t n_dims;
    uint64_t ne[3];
};

struct tiny_list {
    struct tiny_tensor item[TINY_TENSORS_MAX];
    uint32_t n;
};

static inline bool tiny_ends(const char *name, const char *with) {
    size_t n = strlen(name), m = strlen(with);
    return n >= m && strcmp(name + n - m, with) == 0;
}

static inline enum dtype tiny_type(const char *name, enum tiny_kind kind, struct tiny_types types) {
    static const char *const half[] = { "_fn.weight",           "_ape.weight",
                                        "compressor_kv.weight", "compressor_gate.weight",
                                        "indexer.proj.weight",  "indexer.attn_q_b.weight",
                                        "ffn_gate_inp.weight",  "token_embd.weight" };
    if (kind == TINY_TABLE) return DTYPE_I32;
    if (kind == TINY_VECTOR) return DTYPE_F32;
    for (size_t i = 0; i < COUNT_OF(half); i++)
        if (tiny_ends(name, half[i])) return DTYPE_F16;
    if (strstr(name, "down_exps")) return types.down;
    return strstr(name, "_exps") ? types.gate : types.dense;
}

static inline void tiny_add(struct tiny_list *list, const char *prefix, const char *name, enum tiny_kind kind,
                            struct tiny_types types, uint64_t ne0, uint64_t ne1, uint64_t ne2) {
    CHECK(list->n < TINY_TENSORS_MAX);
    struct tiny_tensor *t = &list->item[list->n++];
    *t = (struct tiny_tensor){ .n_dims = ne2 > 1 ? 3 : ne1 > 1 ? 2 : 1, .ne = { ne0, ne1, ne2 } };
    snprintf(t->name, sizeof t->name, "%s%s", prefix, name);
    t->type = tiny_type(t->name, kind, types);
}

#define TINY_ADD(field, name, when, kind, ne0, ne1, ne2)                                                 \
    if (when)                                                                                            \
        tiny_add(list, prefix, name, TINY_##kind, types, (uint64_t)(ne0), (uint64_t)(ne1),               \
                 (uint64_t)(ne2));

static inline void tiny_list_layer(struct tiny_list *list, const struct hparams *hp, const char *prefix,
                                   uint64_t R, bool HASH, struct tiny_types types) {
    WEIGHTS_DIMENSIONS(hp);
    bool CSA = R == 4;
    uint64_t C = CSA ? 2 : 1;
    WEIGHTS_LAYER(TINY_ADD)
}

static inline void tiny_list_model(struct tiny_list *list, const struct tiny_model *t) {
    const struct hparams *hp = &t->hp;
    const char *prefix = "";
    struct tiny_types types = t->types[0];
    bool EMBED = true, HEAD = true;
    WEIGHTS_DIMENSIONS(hp);
    list->n = 0;
    WEIGHTS_GLOBAL(TINY_ADD)
    for (uint32_t l = 0; l < hp->n_layer; l++) {
        char name[32];
        snprintf(name, sizeof name, "blk.%u.", l);
        tiny_list_layer(list, hp, name, hp->ratio[l], l < hp->n_hash_layer, t->types[l]);
    }
}

static inline void tiny_list_mtp(struct tiny_list *list, const struct tiny_model *t) {
    const struct hparams *hp = &t->hp;
    const char *prefix = "mtp.0.";
    struct tiny_types types = t->types[0];
    WEIGHTS_DIMENSIONS(hp);
    list->n = 0;
    WEIGHTS_MTP(TINY_ADD)
    tiny_list_layer(list, hp, prefix, 0, false, types);
}

/* ---- values ---- */

static inline float tiny_mean(const char *name) {
    if (tiny_ends(name, "kv_a_norm.weight") || tiny_ends(name, "compressor_norm.weight"))
        return 2; /* scores that choose */
    if (tiny_ends(name, "norm.weight")) return 1;
    return tiny_ends(name, "_scale.weight") ? 0.8f : 0;
}

static inline float tiny_deviation(const struct tiny_tensor *t) {
    if (tiny_ends(t->name, "norm.weight") || tiny_ends(t->name, "_scale.weight")) return 0.1f;
    if (tiny_ends(t->name, "_b.bias")) return 0.2f;
    if (t->n_dims == 1 || tiny_ends(t->name, "_ape.weight") || tiny_ends(t->name, "embd.weight")) return 1;
    return (tiny_ends(t->name, "output.weight") ? 2.5f : 1.2f) / sqrtf((float)t->ne[0]);
}

/* Where a block keeps its scale, and its minimum's scale as a multiple of it; -1: none. */
struct tiny_block {
    int d, dmin;
    float ratio;
};

static inline struct tiny_block tiny_block(enum dtype type) {
    switch (type) {
    case DTYPE_Q2_K: return (struct tiny_block){ 80, 82, 1.5f };
    case DTYPE_Q4_K: return (struct tiny_block){ 0, 2, 7.5f };
    case DTYPE_Q8_0:
    case DTYPE_IQ2_XXS: return (struct tiny_block){ 0, -1, 0 };
    default: CHECK(type == DTYPE_MXFP4); return (struct tiny_block){ -1, -1, 0 };
    }
}

static inline void tiny_block_scale(uint8_t *block, enum dtype type, float d) {
    struct tiny_block where = tiny_block(type);
    uint16_t half = f16_from_f32(d), min = f16_from_f32(d * where.ratio);
    if (where.d >= 0) memcpy(block + where.d, &half, 2);
    else block[0] = (uint8_t)(127 + (int)lrintf(log2f(d)));
    if (where.dmin >= 0) memcpy(block + where.dmin, &min, 2);
}

/* Random bytes are valid blocks of every format once the scales are set: those that give the wanted
 * deviation. */
static inline void tiny_fill_blocks(struct rng *r, const struct tiny_tensor *t, uint8_t *out,
                                    uint64_t n_blocks) {
    uint32_t bytes = dtype_block_bytes(t->type), n = dtype_block(t->type);
    for (uint64_t i = 0; i < n_blocks * bytes; i += 8) {
        uint64_t draw = rng_u64(r);
        memcpy(out + i, &draw, (size_t)MIN(8, n_blocks * bytes - i));
    }
    double sum = 0;
    uint64_t n_sample = MIN(n_blocks, 64);
    for (uint64_t i = 0; i < n_sample; i++) {
        float x[TINY_BLOCK_MAX];
        uint8_t copy[TINY_BLOCK_MAX];
        memcpy(copy, out + i * bytes, bytes);
        tiny_block_scale(copy, t->type, 1);
        dtype_decode(t->type, copy, x, n);
        for (uint32_t k = 0; k < n; k++) sum += (double)x[k] * (double)x[k];
    }
    float unit = (float)sqrt(sum / (double)(n_sample * n));
    for (uint64_t i = 0; i < n_blocks; i++)
        tiny_block_scale(out + i * bytes, t->type,
                         tiny_deviation(t) / unit * (float)(0.75 + 0.5 * rng_double(r)));
}

static inline void tiny_fill_ids(struct rng *r, const struct tiny_tensor *t, int32_t *out,
                                 uint32_t n_expert) {
    for (uint64_t row = 0; row < t->ne[1]; row++, out += t->ne[0])
        for (uint64_t i = 0; i < t->ne[0]; i++) {
            bool again = true;
            while (again) {
                out[i] = (int32_t)rng_below(r, n_expert);
                again = false;
                for (uint64_t k = 0; k < i; k++) again |= out[k] == out[i];
            }
        }
}

static inline void tiny_fill(const struct tiny_tensor *t, const struct tiny_model *model, uint8_t *out) {
    struct rng r;
    uint64_t n = t->ne[0] * t->ne[1] * t->ne[2];
    rng_init(&r, model->seed, hash_64(t->name, strlen(t->name), 0));
    if (t->type == DTYPE_I32) {
        tiny_fill_ids(&r, t, (int32_t *)(void *)out, model->hp.n_expert);
    } else if (t->type == DTYPE_F32 || t->type == DTYPE_F16) {
        float mean = tiny_mean(t->name), deviation = tiny_deviation(t);
        for (uint64_t i = 0; i < n; i++) {
            float x = mean + deviation * rng_normal(&r);
            dtype_encode(t->type, &x, out + i * dtype_block_bytes(t->type), 1);
        }
    } else {
        tiny_fill_blocks(&r, t, out, n / dtype_block(t->type));
    }
}

/* ---- files ---- */

static inline void tiny_metadata(struct gguf_writer *w, const struct hparams *hp) {
    gguf_put_str(w, "general.architecture", "deepseek4", 9);
    gguf_put_str(w, "general.name", hp->name, strlen(hp->name));
#define TINY_U32(key, value) gguf_put_u32(w, "deepseek4." key, value)
#define TINY_F32(key, value) gguf_put_f32(w, "deepseek4." key, value)
    TINY_U32("block_count", hp->n_layer);
    TINY_U32("context_length", hp->n_ctx_train);
    TINY_U32("embedding_length", hp->n_embd);
    TINY_U32("vocab_size", hp->n_vocab);
    TINY_U32("attention.head_count", hp->n_head);
    TINY_U32("attention.head_count_kv", 1);
    TINY_U32("attention.key_length", hp->head_dim);
    TINY_U32("attention.value_length", hp->head_dim);
    TINY_U32("rope.dimension_count", hp->n_rot);
    TINY_U32("attention.q_lora_rank", hp->n_q_lora);
    TINY_U32("attention.output_lora_rank", hp->n_out_lora);
    TINY_U32("attention.output_group_count", hp->n_out_group);
    TINY_U32("attention.sliding_window", hp->n_swa);
    TINY_U32("attention.indexer.head_count", hp->n_idx_head);
    TINY_U32("attention.indexer.key_length", hp->idx_dim);
    TINY_U32("attention.indexer.top_k", hp->idx_top_k);
    TINY_U32("expert_count", hp->n_expert);
    TINY_U32("expert_used_count", hp->n_expert_used);
    TINY_U32("expert_shared_count", hp->n_expert_shared);
    TINY_U32("expert_feed_forward_length", hp->n_ff_exp);
    TINY_U32("hash_layer_count", hp->n_hash_layer);
    TINY_U32("hyper_connection.count", HP_HC);
    TINY_U32("hyper_connection.sinkhorn_iterations", hp->n_sinkhorn);
    TINY_U32("rope.scaling.original_context_length", hp->yarn_ctx);
    TINY_F32("expert_weights_scale", hp->expert_scale);
    TINY_F32("attention.layer_norm_rms_epsilon", hp->rms_eps);
    TINY_F32("hyper_connection.epsilon", hp->hc_eps);
    TINY_F32("rope.freq_base", hp->rope_base);
    TINY_F32("attention.compress_rope_freq_base", hp->rope_base_compress);
    TINY_F32("rope.scaling.factor", hp->yarn_factor);
    TINY_F32("rope.scaling.yarn_beta_fast", hp->yarn_beta_fast);
    TINY_F32("rope.scaling.yarn_beta_slow", hp->yarn_beta_slow);
#undef TINY_U32
#undef TINY_F32
    gguf_put_array(w, "deepseek4.attention.compress_ratios", GGUF_U32, hp->ratio, hp->n_layer);
    gguf_put_array(w, "deepseek4.swiglu_clamp_exp", GGUF_F32, hp->swiglu_clamp_exp, hp->n_layer);
    gguf_put_array(w, "deepseek4.swiglu_clamp_shexp", GGUF_F32, hp->swiglu_clamp_shexp, hp->n_layer);
}

static inline void tiny_write_list(const struct tiny_model *model, const struct tiny_list *list,
                                   const char *path) {
    struct gguf_writer *w;
    struct err e;
    CHECK(gguf_writer_new(&w, path, GGUF_ALIGNMENT, &e) == 0);
    tiny_metadata(w, &model->hp);
    for (uint32_t i = 0; i < list->n; i++)
        gguf_put_tensor(w, list->item[i].name, list->item[i].type, list->item[i].n_dims, list->item[i].ne);
    CHECK(gguf_writer_begin_data(w, &e) == 0);
    for (uint32_t i = 0; i < list->n; i++) {
        const struct tiny_tensor *t = &list->item[i];
        uint64_t size = dtype_row_bytes(t->type, t->ne[0]) * t->ne[1] * t->ne[2];
        uint8_t *data = xcalloc(size, 1);
        tiny_fill(t, model, data);
        CHECK(gguf_writer_data(w, data, size, &e) == 0);
        free(data);
    }
    CHECK(gguf_writer_finish(w, &e) == 0);
}

static inline void tiny_write(const struct tiny_model *model, const char *path) {
    struct tiny_list *list = xcalloc(1, sizeof *list);
    tiny_list_model(list, model);
    tiny_write_list(model, list, path);
    free(list);
}

static inline void tiny_write_mtp(const struct tiny_model *model, const char *path) {
    struct tiny_list *list = xcalloc(1, sizeof *list);
    tiny_list_mtp(list, model);
    tiny_write_list(model, list, path);
    free(list);
}

#endif
