/* hparams - the dimensions of a deepseek4 model, read from GGUF metadata and validated once.
 *
 * Nothing about a model's shape is known anywhere else: Flash, Pro and tiny test models differ only in
 * these values. After hparams_read succeeds every field is inside its limit and the divisions between
 * them come out even, so the engine may size buffers from them without further checks. Plain data; copy
 * freely. */
#ifndef MODEL_HPARAMS_H
#define MODEL_HPARAMS_H

#include "common/base/err.h"
#include "common/base/types.h"
#include "common/model/gguf.h"

enum {
    HP_LAYERS_MAX = 256, HP_HC = 4, HP_EXPERTS_MAX = 4096, HP_EXPERTS_USED_MAX = 16,
    HP_VOCAB_MAX = 1 << 21, HP_RATIO_MAX = 1024,
    HP_ROLLBACK = 16                                     /* tokens that can be taken back without replay */
};

/* window only; ratio with indexer (4); heavy ratio without (128) */
enum attn_kind { ATTN_SWA, ATTN_CSA, ATTN_HCA };

struct hparams {
    uint32_t n_layer, n_embd, n_vocab, n_ctx_train;
    uint32_t n_head, head_dim, n_rot;                    /* head_dim = nope part + n_rot (last) */
    uint32_t n_q_lora, n_out_lora, n_out_group;          /* n_out_lora: rank of ONE group */
    uint32_t n_swa;                                      /* window, own token included */
    uint32_t ratio[HP_LAYERS_MAX];          /* compress ratio per layer: 0, 4 or another (see hparams_kind) */
    uint32_t n_idx_head, idx_dim, idx_top_k;
    uint32_t n_expert, n_expert_used, n_expert_shared, n_ff_exp;
    uint32_t n_hash_layer;
    float expert_scale, swiglu_clamp_exp[HP_LAYERS_MAX], swiglu_clamp_shexp[HP_LAYERS_MAX];
    uint32_t n_sinkhorn;
    float rms_eps, hc_eps;
    float rope_base, rope_base_compress, yarn_factor, yarn_beta_fast, yarn_beta_slow;
    uint32_t yarn_ctx;
    bool has_mtp;                                        /* the file holds the MTP tensors */
    int32_t bos_id, eos_id;                              /* -1: the file does not say */
    char name[64];
};

/* Ratio 4 is CSA, 0 is SWA, any other supported ratio is HCA. */
static inline enum attn_kind hparams_kind(const struct hparams *hp, uint32_t layer) {
    return hp->ratio[layer] == 0 ? ATTN_SWA : hp->ratio[layer] == 4 ? ATTN_CSA : ATTN_HCA;
}

int hparams_read(struct hparams *out, const struct gguf *g, struct err *e);

/* Presets for synth and for cost estimates without a file. */
void hparams_flash(struct hparams *out);
void hparams_pro(struct hparams *out);

/* State of one layer for one sequence of n_ctx tokens in the packed format: window ring, compressed
 * entries, indexer keys and compressor history. An entry is one E4M3 byte per unrotated dimension, one
 * exponent per 64 of them, two bytes per rotated one; an indexer key is one FP4 code per dimension and
 * one exponent per 32. */
uint64_t hparams_entry_bytes(const struct hparams *hp);
uint64_t hparams_index_key_bytes(const struct hparams *hp);
uint64_t hparams_state_bytes(const struct hparams *hp, uint32_t layer, uint64_t n_ctx);

#endif
