/* Two tables say which key fills which field and what values a sane model may have; a few functions
 * check what ties fields together. The limits are generous, yet small enough that no product of
 * dimensions that the engine forms can pass 2^62: the largest is n_ctx * n_head * head_dim <= 2^30 *
 * 2^10 * 2^10. */
#include "common/model/hparams.h"

#include <math.h>
#include <stdio.h>

#define PREFIX "deepseek4."

struct dim_rule {
    const char *key;
    size_t field;
    uint32_t lo, hi;
};

#define DIM(key, field, lo, hi) { PREFIX key, offsetof(struct hparams, field), lo, hi }

static const struct dim_rule dim_rules[] = {
    DIM("context_length", n_ctx_train, 1, 1u << 30),
    DIM("embedding_length", n_embd, 1, 1u << 16),
    DIM("attention.head_count", n_head, 1, 1u << 10),
    DIM("attention.key_length", head_dim, 2, 1u << 10),
    DIM("rope.dimension_count", n_rot, 2, 1u << 10),
    DIM("attention.q_lora_rank", n_q_lora, 1, 1u << 16),
    DIM("attention.output_lora_rank", n_out_lora, 1, 1u << 16),
    DIM("attention.output_group_count", n_out_group, 1, 1u << 10),
    DIM("attention.sliding_window", n_swa, 1, 1u << 16),
    DIM("attention.indexer.head_count", n_idx_head, 1, 1u << 8),
    DIM("attention.indexer.key_length", idx_dim, 32, 1u << 8),
    DIM("attention.indexer.top_k", idx_top_k, 1, 1u << 16),
    DIM("expert_count", n_expert, 1, HP_EXPERTS_MAX),
    DIM("expert_used_count", n_expert_used, 1, HP_EXPERTS_USED_MAX),
    DIM("expert_shared_count", n_expert_shared, 1, 1),
    DIM("expert_feed_forward_length", n_ff_exp, 1, 1u << 16),
    DIM("hash_layer_count", n_hash_layer, 0, HP_LAYERS_MAX),
    DIM("hyper_connection.sinkhorn_iterations", n_sinkhorn, 1, 1000),
};

/* Keys with an optional value have their default in `otherwise`; 0 means that the key must be there. */
struct real_rule {
    const char *key;
    size_t field;
    float lo, hi, otherwise;
};

#define REAL(key, field, lo, hi, otherwise) { PREFIX key, offsetof(struct hparams, field), lo, hi, otherwise }

static const struct real_rule real_rules[] = {
    REAL("expert_weights_scale", expert_scale, 1e-6f, 1e6f, 0),
    REAL("attention.layer_norm_rms_epsilon", rms_eps, 1e-12f, 0.1f, 0),
    REAL("hyper_connection.epsilon", hc_eps, 1e-12f, 0.1f, 0),
    REAL("rope.freq_base", rope_base, 1.001f, 1e12f, 0),
    REAL("attention.compress_rope_freq_base", rope_base_compress, 1.001f, 1e12f, 0),
    REAL("rope.scaling.factor", yarn_factor, 1, 1e6f, 16),
    REAL("rope.scaling.yarn_beta_fast", yarn_beta_fast, 1e-3f, 1e6f, 32),
    REAL("rope.scaling.yarn_beta_slow", yarn_beta_slow, 1e-3f, 1e6f, 1),
};

static bool text_is(struct gguf_str s, const char *text) {
    return s.len == strlen(text) && memcmp(s.data, text, (size_t)s.len) == 0;
}

static int read_u32(const struct gguf *g, const char *key, uint32_t lo, uint32_t hi, uint32_t *out,
                    struct err *e) {
    int rc = gguf_get_u32(g, key, out, e);
    if (rc < 0) return rc;
    if (*out >= lo && *out <= hi) return 0;
    return err_set(e, ERR_UNSUPPORTED, "key %s: %u is outside %u to %u", key, *out, lo, hi);
}

static int read_dims(struct hparams *hp, const struct gguf *g, struct err *e) {
    int rc = 0;
    for (size_t i = 0; i < COUNT_OF(dim_rules) && rc == 0; i++) {
        const struct dim_rule *rule = &dim_rules[i];
        rc = read_u32(g, rule->key, rule->lo, rule->hi, (uint32_t *)((char *)hp + rule->field), e);
    }
    return rc;
}

static int check_real(const char *key, float value, float lo, float hi, struct err *e) {
    if (value >= lo && value <= hi) return 0;         /* NaN is outside */
    return err_set(e, ERR_UNSUPPORTED, "key %s: %g is outside %g to %g", key, (double)value,
                   (double)lo, (double)hi);
}

static int read_real(const struct gguf *g, const struct real_rule *rule, float *out, struct err *e) {
    if (rule->otherwise != 0 && !gguf_find(g, rule->key)) {
        *out = rule->otherwise;
        return 0;
    }
    int rc = gguf_get_f32(g, rule->key, out, e);
    return rc < 0 ? rc : check_real(rule->key, *out, rule->lo, rule->hi, e);
}

static int read_reals(struct hparams *hp, const struct gguf *g, struct err *e) {
    int rc = 0;
    for (size_t i = 0; i < COUNT_OF(real_rules) && rc == 0; i++)
        rc = read_real(g, &real_rules[i], (float *)((char *)hp + real_rules[i].field), e);
    return rc;
}

/* ---- what is fixed for this family ---- */

static int check_architecture(const struct gguf *g, struct err *e) {
    struct gguf_str name;
    int rc = gguf_get_str(g, "general.architecture", &name, e);
    if (rc < 0) return rc;
    if (text_is(name, "deepseek4")) return 0;
    return err_set(e, ERR_UNSUPPORTED, "architecture is '%.*s'; only deepseek4 is supported",
                   (int)MIN(name.len, 40), name.data);
}

/* The engine computes only one variant of these; a file that asks for another must not run with it
 * silently. */
static int require(const struct gguf *g, const char *key, uint32_t only, bool needed, struct err *e) {
    uint32_t value;
    if (!needed && !gguf_find(g, key)) return 0;
    int rc = gguf_get_u32(g, key, &value, e);
    if (rc < 0 || value == only) return rc;
    return err_set(e, ERR_UNSUPPORTED, "key %s: %u; only %u is supported", key, value, only);
}

static int check_fixed(const struct gguf *g, const struct hparams *hp, struct err *e) {
    struct gguf_str scaling;
    int rc = require(g, PREFIX "attention.head_count_kv", 1, true, e);
    if (rc == 0) rc = require(g, PREFIX "attention.value_length", hp->head_dim, true, e);
    if (rc == 0) rc = require(g, PREFIX "hyper_connection.count", HP_HC, true, e);
    if (rc == 0) rc = require(g, PREFIX "expert_weights_norm", 1, false, e);
    if (rc == 0) rc = require(g, PREFIX "expert_group_count", 0, false, e);
    if (rc == 0) rc = require(g, PREFIX "expert_gating_func", 4, false, e);
    if (rc < 0 || !gguf_find(g, PREFIX "rope.scaling.type")) return rc;
    rc = gguf_get_str(g, PREFIX "rope.scaling.type", &scaling, e);
    if (rc < 0 || text_is(scaling, "yarn")) return rc;
    return err_set(e, ERR_UNSUPPORTED, "key " PREFIX "rope.scaling.type: '%.*s'; only yarn is supported",
                   (int)MIN(scaling.len, 40), scaling.data);
}

/* ---- layers ---- */

static bool has_tensor(const struct gguf *g, const char *format, uint32_t layer) {
    char name[64];
    snprintf(name, sizeof name, format, layer);
    return gguf_find_tensor(g, name) != NULL;
}

/* Some converters count the MTP block among the layers and put it into the file as blk.<last>; the
 * published files have nextn_predict_layers = 1 without any such tensors. So the tensor decides, not
 * the key. */
static int read_n_layer(struct hparams *hp, const struct gguf *g, struct err *e) {
    uint32_t n_nextn = 0, n_block;
    int rc = read_u32(g, PREFIX "block_count", 1, HP_LAYERS_MAX, &n_block, e);
    if (rc < 0) return rc;
    if (gguf_find(g, PREFIX "nextn_predict_layers")) {
        rc = read_u32(g, PREFIX "nextn_predict_layers", 0, HP_LAYERS_MAX, &n_nextn, e);
        if (rc < 0) return rc;
    }
    bool inside = n_nextn > 0 && has_tensor(g, "blk.%u.nextn.eh_proj.weight", n_block - 1);
    if (inside && n_nextn >= n_block)
        return err_set(e, ERR_CORRUPT, "key " PREFIX "nextn_predict_layers: %u of %u layers",
                       n_nextn, n_block);
    hp->n_layer = inside ? n_block - n_nextn : n_block;
    hp->has_mtp = inside || has_tensor(g, "mtp.%u.e_proj.weight", 0);
    return 0;
}

/* An array with at least one entry per layer; entries behind the last layer belong to the MTP block. */
static const struct gguf_kv *layer_array(const struct gguf *g, const char *key, uint32_t n_layer, int *rc,
                                         struct err *e) {
    const struct gguf_kv *kv = gguf_find(g, key);
    *rc = 0;
    if (!kv)
        *rc = err_set(e, ERR_NOTFOUND, "key %s is missing", key);
    else if (kv->type != GGUF_ARRAY || kv->n < n_layer)
        *rc = err_set(e, ERR_CORRUPT, "key %s: not an array with one entry for each of %u layers",
                      key, n_layer);
    return *rc < 0 ? NULL : kv;
}

static int read_ratios(struct hparams *hp, const struct gguf *g, struct err *e) {
    const char *key = PREFIX "attention.compress_ratios";
    int rc;
    const struct gguf_kv *kv = layer_array(g, key, hp->n_layer, &rc, e);
    for (uint32_t i = 0; i < hp->n_layer && rc == 0; i++) {
        int64_t ratio;
        if (gguf_kv_int(kv, i, &ratio) < 0)
            rc = err_set(e, ERR_CORRUPT, "key %s: not integers", key);
        else if (ratio != 0 && (ratio < 2 || ratio > HP_RATIO_MAX))
            rc = err_set(e, ERR_UNSUPPORTED, "key %s: layer %u has %lld; 0 and 2 to %d are possible", key, i,
                         (long long)ratio, HP_RATIO_MAX);
        else
            hp->ratio[i] = (uint32_t)ratio;
    }
    return rc;
}

static int read_clamps(const struct gguf *g, const char *key, uint32_t n_layer, float *out, struct err *e) {
    int rc;
    const struct gguf_kv *kv = layer_array(g, key, n_layer, &rc, e);
    for (uint32_t i = 0; i < n_layer && rc == 0; i++) {
        if (gguf_kv_float(kv, i, &out[i]) < 0)
            rc = err_set(e, ERR_CORRUPT, "key %s: not numbers", key);
        else
            rc = check_real(key, out[i], 1e-6f, 3e38f, e);
    }
    return rc;
}

static int read_layers(struct hparams *hp, const struct gguf *g, struct err *e) {
    const char *shared = PREFIX "swiglu_clamp_shexp";
    int rc = read_n_layer(hp, g, e);
    if (rc == 0) rc = read_ratios(hp, g, e);
    if (rc == 0) rc = read_clamps(g, PREFIX "swiglu_clamp_exp", hp->n_layer, hp->swiglu_clamp_exp, e);
    if (rc < 0) return rc;
    if (gguf_find(g, shared)) return read_clamps(g, shared, hp->n_layer, hp->swiglu_clamp_shexp, e);
    memcpy(hp->swiglu_clamp_shexp, hp->swiglu_clamp_exp, sizeof hp->swiglu_clamp_shexp);
    return 0;
}

/* ---- vocabulary, names, the context that YaRN stretches ---- */

static int read_special(const struct gguf *g, const char *key, uint32_t n_vocab, int32_t *out,
                        struct err *e) {
    uint32_t id;
    *out = -1;
    if (!gguf_find(g, key)) return 0;
    int rc = read_u32(g, key, 0, n_vocab - 1, &id, e);
    if (rc == 0) *out = (int32_t)id;
    return rc;
}

static int read_vocab(struct hparams *hp, const struct gguf *g, struct err *e) {
    const char *key = PREFIX "vocab_size";
    const struct gguf_kv *tokens = gguf_find(g, "tokenizer.ggml.tokens");
    uint64_t n_tokens = tokens && tokens->type == GGUF_ARRAY ? tokens->n : 0;
    if (gguf_find(g, key)) {
        int rc = read_u32(g, key, 1, HP_VOCAB_MAX, &hp->n_vocab, e);
        if (rc < 0) return rc;
    } else if (n_tokens >= 1 && n_tokens <= HP_VOCAB_MAX) {
        hp->n_vocab = (uint32_t)n_tokens;
    } else {
        return err_set(e, ERR_NOTFOUND, "key %s is missing, and no usable token list tells it", key);
    }
    if (n_tokens > hp->n_vocab)
        return err_set(e, ERR_CORRUPT, "%llu tokens, but key %s is %u",
                       (unsigned long long)n_tokens, key, hp->n_vocab);
    int rc = read_special(g, "tokenizer.ggml.bos_token_id", hp->n_vocab, &hp->bos_id, e);
    return rc < 0 ? rc : read_special(g, "tokenizer.ggml.eos_token_id", hp->n_vocab, &hp->eos_id, e);
}

static int read_yarn_ctx(struct hparams *hp, const struct gguf *g, struct err *e) {
    const char *key = PREFIX "rope.scaling.original_context_length";
    hp->yarn_ctx = 65536;
    return gguf_find(g, key) ? read_u32(g, key, 1, 1u << 30, &hp->yarn_ctx, e) : 0;
}

static void read_name(struct hparams *hp, const struct gguf *g) {
    struct gguf_str s;
    if (gguf_get_str(g, "general.name", &s, NULL) < 0) s = (struct gguf_str){ "unnamed", 7 };
    size_t n = (size_t)MIN(s.len, sizeof hp->name - 1);
    while (n > 0 && n < s.len && ((uint8_t)s.data[n] & 0xc0) == 0x80) n--;    /* cut between characters */
    memcpy(hp->name, s.data, n);
    for (size_t i = 0; i < n; i++)
        if ((uint8_t)hp->name[i] < 0x20 || hp->name[i] == 0x7f) hp->name[i] = '?';
    hp->name[n] = 0;
}

/* ---- what ties the fields together ---- */

static int check_shape(const struct hparams *hp, struct err *e) {
    if (hp->n_rot % 2 || hp->n_rot >= hp->head_dim || (hp->head_dim - hp->n_rot) % 64)
        return err_set(e, ERR_UNSUPPORTED,
                       "head of %u with %u rotated: the rest must be a multiple of 64",
                       hp->head_dim, hp->n_rot);
    if (hp->idx_dim & (hp->idx_dim - 1))
        return err_set(e, ERR_UNSUPPORTED, "indexer keys of %u: not a power of two", hp->idx_dim);
    if (hp->n_rot > hp->idx_dim)
        return err_set(e, ERR_UNSUPPORTED, "indexer keys of %u with %u rotated", hp->idx_dim, hp->n_rot);
    if (hp->n_head % hp->n_out_group)
        return err_set(e, ERR_UNSUPPORTED, "%u heads in %u output groups", hp->n_head, hp->n_out_group);
    if (hp->n_expert_used > hp->n_expert)
        return err_set(e, ERR_CORRUPT, "%u experts used of %u", hp->n_expert_used, hp->n_expert);
    if (hp->n_hash_layer > hp->n_layer)
        return err_set(e, ERR_CORRUPT, "%u hash-routed layers of %u", hp->n_hash_layer, hp->n_layer);
    if (hp->yarn_beta_fast <= hp->yarn_beta_slow)
        return err_set(e, ERR_UNSUPPORTED, "YaRN betas %g and %g are not in order",
                       (double)hp->yarn_beta_fast, (double)hp->yarn_beta_slow);
    return 0;
}

int hparams_read(struct hparams *out, const struct gguf *g, struct err *e) {
    memset(out, 0, sizeof *out);
    int rc = check_architecture(g, e);
    if (rc == 0) rc = read_dims(out, g, e);
    if (rc == 0) rc = read_reals(out, g, e);
    if (rc == 0) rc = check_fixed(g, out, e);
    if (rc == 0) rc = read_layers(out, g, e);
    if (rc == 0) rc = read_vocab(out, g, e);
    if (rc == 0) rc = read_yarn_ctx(out, g, e);
    if (rc == 0) rc = check_shape(out, e);
    if (rc < 0) return err_wrap(e, rc, "%s", gguf_path(g, 0));
    read_name(out, g);
    return 0;
}

/* ---- presets ---- */

static void fill_layers(struct hparams *hp, uint32_t n_layer, uint32_t first_two) {
    hp->n_layer = n_layer;
    for (uint32_t i = 0; i < n_layer; i++) {
        hp->ratio[i] = i < 2 ? first_two : i % 2 ? 128 : 4;
        hp->swiglu_clamp_exp[i] = hp->swiglu_clamp_shexp[i] = 10;
    }
}

void hparams_flash(struct hparams *out) {
    *out = (struct hparams){
        .n_embd = 4096, .n_vocab = 129280, .n_ctx_train = 1048576,
        .n_head = 64, .head_dim = 512, .n_rot = 64,
        .n_q_lora = 1024, .n_out_lora = 1024, .n_out_group = 8, .n_swa = 128,
        .n_idx_head = 64, .idx_dim = 128, .idx_top_k = 512,
        .n_expert = 256, .n_expert_used = 6, .n_expert_shared = 1, .n_ff_exp = 2048, .n_hash_layer = 3,
        .expert_scale = 1.5f, .n_sinkhorn = 20, .rms_eps = 1e-6f, .hc_eps = 1e-6f,
        .rope_base = 10000, .rope_base_compress = 160000,
        .yarn_factor = 16, .yarn_beta_fast = 32, .yarn_beta_slow = 1, .yarn_ctx = 65536,
        .bos_id = 0, .eos_id = 1, .name = "DeepSeek V4 Flash",
    };
    fill_layers(out, 43, 0);
}

void hparams_pro(struct hparams *out) {
    hparams_flash(out);
    out->n_embd = 7168;
    out->n_head = 128;
    out->n_q_lora = 1536;
    out->n_out_group = 16;
    out->idx_top_k = 1024;
    out->n_expert = 384;
    out->n_ff_exp = 3072;
    out->expert_scale = 2.5f;
    snprintf(out->name, sizeof out->name, "DeepSeek V4 Pro");
    fill_layers(out, 61, 128);
}

/* ---- state ---- */

uint64_t hparams_entry_bytes(const struct hparams *hp) {
    uint64_t nope = hp->head_dim - hp->n_rot;
    return ALIGN_UP(nope + nope / 64 + 2 * (uint64_t)hp->n_rot, 16);
}

uint64_t hparams_index_key_bytes(const struct hparams *hp) {
    return hp->idx_dim / 2 + hp->idx_dim / 32;
}

/* f32 value and score of each token that a pooling may still need: ratio rows, twice that with overlap
 * (which also doubles the columns), and the rows that a rollback may bring back. */
static uint64_t history_bytes(uint64_t ratio, bool overlap, uint64_t dim) {
    uint64_t rows = (overlap ? 2 * ratio : ratio) + HP_ROLLBACK, columns = (overlap ? 2 : 1) * dim;
    return 2 * rows * columns * sizeof(float);
}

uint64_t hparams_state_bytes(const struct hparams *hp, uint32_t layer, uint64_t n_ctx) {
    uint64_t entry = hparams_entry_bytes(hp), ratio = hp->ratio[layer];
    uint64_t bytes = entry * (hp->n_swa + HP_ROLLBACK);
    switch (hparams_kind(hp, layer)) {
    case ATTN_SWA: break;
    case ATTN_HCA: bytes += n_ctx / ratio * entry + history_bytes(ratio, false, hp->head_dim); break;
    case ATTN_CSA:
        bytes += n_ctx / ratio * (entry + hparams_index_key_bytes(hp));
        bytes += history_bytes(ratio, true, hp->head_dim) + history_bytes(ratio, true, hp->idx_dim);
        break;
    }
    return bytes;
}
