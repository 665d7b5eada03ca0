/* weights - the tensors of a range of layers, found in a GGUF, checked against the hyper-parameters and
 * put on the device.
 *
 * Only the tensors of the range are touched: a stage's share. Matrices are used where they lie in the
 * mapping when the device can read host memory (CPU, Metal); short vectors that a file keeps in another
 * type become f32. The gguf must stay open as long as the weights. Immutable after open. */
#ifndef NODE_WEIGHTS_H
#define NODE_WEIGHTS_H

#include "common/model/gguf.h"
#include "common/model/hparams.h"
#include "kernels/kernels.h"

/* The dimensions by the names that the lists below use. R (ratio), C (columns of the compressor), CSA,
 * HASH, EMBED and HEAD are defined where the lists are used. */
#define WEIGHTS_DIMENSIONS(hp)                                                                           \
    uint64_t D = (hp)->n_embd, H = (hp)->n_head, HD = (hp)->head_dim, QL = (hp)->n_q_lora,               \
             OL = (hp)->n_out_lora, OG = (hp)->n_out_group, E = (hp)->n_expert,                          \
             EU = (hp)->n_expert_used, ES = (hp)->n_expert_shared, FF = (hp)->n_ff_exp,                  \
             V = (hp)->n_vocab, IH = (hp)->n_idx_head, ID = (hp)->idx_dim;                               \
    (void)D, (void)H, (void)HD, (void)QL, (void)OL, (void)OG, (void)E, (void)EU, (void)ES, (void)FF,     \
        (void)V, (void)IH, (void)ID

/* field, GGUF suffix, present when, kind, ne0, ne1, ne2 */
#define WEIGHTS_LAYER(X)                                                                          \
    X(hc_attn_fn, "hc_attn_fn.weight", true, MATRIX, 4 * D, HC_MIX, 1)                            \
    X(hc_attn_scale, "hc_attn_scale.weight", true, VECTOR, 3, 1, 1)                               \
    X(hc_attn_base, "hc_attn_base.weight", true, VECTOR, HC_MIX, 1, 1)                            \
    X(attn_norm, "attn_norm.weight", true, VECTOR, D, 1, 1)                                       \
    X(attn_q_a, "attn_q_a.weight", true, MATRIX, D, QL, 1)                                        \
    X(attn_q_a_norm, "attn_q_a_norm.weight", true, VECTOR, QL, 1, 1)                              \
    X(attn_q_b, "attn_q_b.weight", true, MATRIX, QL, HD * H, 1)                                   \
    X(attn_kv, "attn_kv.weight", true, MATRIX, D, HD, 1)                                          \
    X(attn_kv_a_norm, "attn_kv_a_norm.weight", true, VECTOR, HD, 1, 1)                            \
    X(attn_sinks, "attn_sinks.weight", true, VECTOR, H, 1, 1)                                     \
    X(attn_output_a, "attn_output_a.weight", true, MATRIX, HD * H / OG, OL * OG, 1)               \
    X(attn_output_b, "attn_output_b.weight", true, MATRIX, OL * OG, D, 1)                         \
    X(comp_ape, "attn_compressor_ape.weight", R > 0, MATRIX, HD * C, R, 1)                        \
    X(comp_kv, "attn_compressor_kv.weight", R > 0, MATRIX, D, HD * C, 1)                          \
    X(comp_gate, "attn_compressor_gate.weight", R > 0, MATRIX, D, HD * C, 1)                      \
    X(comp_norm, "attn_compressor_norm.weight", R > 0, VECTOR, HD, 1, 1)                          \
    X(idx_q_b, "indexer.attn_q_b.weight", CSA, MATRIX, QL, ID * IH, 1)                            \
    X(idx_proj, "indexer.proj.weight", CSA, MATRIX, D, IH, 1)                                     \
    X(idx_comp_ape, "indexer_compressor_ape.weight", CSA, MATRIX, ID * C, R, 1)                   \
    X(idx_comp_kv, "indexer_compressor_kv.weight", CSA, MATRIX, D, ID * C, 1)                     \
    X(idx_comp_gate, "indexer_compressor_gate.weight", CSA, MATRIX, D, ID * C, 1)                 \
    X(idx_comp_norm, "indexer_compressor_norm.weight", CSA, VECTOR, ID, 1, 1)                     \
    X(hc_ffn_fn, "hc_ffn_fn.weight", true, MATRIX, 4 * D, HC_MIX, 1)                              \
    X(hc_ffn_scale, "hc_ffn_scale.weight", true, VECTOR, 3, 1, 1)                                 \
    X(hc_ffn_base, "hc_ffn_base.weight", true, VECTOR, HC_MIX, 1, 1)                              \
    X(ffn_norm, "ffn_norm.weight", true, VECTOR, D, 1, 1)                                         \
    X(ffn_gate_inp, "ffn_gate_inp.weight", true, MATRIX, D, E, 1)                                 \
    X(exp_probs_b, "exp_probs_b.bias", !HASH, VECTOR, E, 1, 1)                                    \
    X(ffn_gate_tid2eid, "ffn_gate_tid2eid.weight", HASH, TABLE, EU, V, 1)                         \
    X(ffn_gate_exps, "ffn_gate_exps.weight", true, STACK, D, FF, E)                               \
    X(ffn_up_exps, "ffn_up_exps.weight", true, STACK, D, FF, E)                                   \
    X(ffn_down_exps, "ffn_down_exps.weight", true, STACK, FF, D, E)                               \
    X(ffn_gate_shexp, "ffn_gate_shexp.weight", true, MATRIX, D, FF * ES, 1)                       \
    X(ffn_up_shexp, "ffn_up_shexp.weight", true, MATRIX, D, FF * ES, 1)                           \
    X(ffn_down_shexp, "ffn_down_shexp.weight", true, MATRIX, FF * ES, D, 1)

#define WEIGHTS_GLOBAL(X)                                                                         \
    X(token_embd, "token_embd.weight", EMBED, MATRIX, D, V, 1)                                    \
    X(output_hc_fn, "output_hc_fn.weight", HEAD, MATRIX, 4 * D, HC_STREAMS, 1)                    \
    X(output_hc_scale, "output_hc_scale.weight", HEAD, VECTOR, 1, 1, 1)                           \
    X(output_hc_base, "output_hc_base.weight", HEAD, VECTOR, HC_STREAMS, 1, 1)                    \
    X(output_norm, "output_norm.weight", HEAD, VECTOR, D, 1, 1)                                   \
    X(output, "output.weight", HEAD, MATRIX, D, V, 1)

/* The MTP block's own tensors (spec 6.1), besides one ordinary layer. */
#define WEIGHTS_MTP(X)                                                                            \
    X(e_proj, "e_proj.weight", true, MATRIX, D, D, 1)                                             \
    X(h_proj, "h_proj.weight", true, MATRIX, D, D, 1)                                             \
    X(enorm, "enorm.weight", true, VECTOR, D, 1, 1)                                               \
    X(hnorm, "hnorm.weight", true, VECTOR, D, 1, 1)                                               \
    X(norm, "norm.weight", true, VECTOR, D, 1, 1)                                                 \
    X(hc_head_fn, "hc_head_fn.weight", true, MATRIX, 4 * D, HC_STREAMS, 1)                        \
    X(hc_head_scale, "hc_head_scale.weight", true, VECTOR, 1, 1, 1)                               \
    X(hc_head_base, "hc_head_base.weight", true, VECTOR, HC_STREAMS, 1, 1)

#define WEIGHT_FIELD(field, name, when, kind, ne0, ne1, ne2) struct tensor field;
struct layer_weights { WEIGHTS_LAYER(WEIGHT_FIELD) };
struct mtp_weights { WEIGHTS_MTP(WEIGHT_FIELD) struct layer_weights layer; };

struct weights {
    WEIGHTS_GLOBAL(WEIGHT_FIELD)
    struct layer_weights *layer;                   /* [n_layer]; only layer_begin .. layer_end are filled */
    struct mtp_weights *mtp;                       /* NULL unless asked for */
    uint32_t layer_begin, layer_end;
    uint32_t expert_begin, expert_end;             /* that the stacks of experts hold */
    bool has_embed, has_head;
    uint64_t bytes;                                /* of all tensors */
    struct weights_mem *mem;
};
#undef WEIGHT_FIELD

struct weights_range {
    uint32_t layer_begin, layer_end;
    bool embed, head;
    /* Of each layer's routed experts only these; 0, 0: all. From a file with more of them a part is used. */
    uint32_t expert_begin, expert_end;
    bool experts_only;                             /* nothing else: a helper of a stage */
};

/* Called between tensors while loading: bytes done so far of `total`; false cancels. */
typedef bool weights_progress(void *ctx, uint64_t done, uint64_t total);

int weights_open(struct weights **out, struct kernels *k, const struct gguf *g, const struct hparams *hp,
                 const struct weights_range *range, weights_progress *progress, void *ctx, struct err *e);
/* Whether weights_open would take these tensors: names, shapes, types, tables; touches no device. */
int weights_check(const struct gguf *g, const struct hparams *hp, const struct weights_range *range,
                  struct err *e);
/* Adds the MTP block from its own file (mtp.0.* names). */
int weights_open_mtp(struct weights *w, struct kernels *k, const struct gguf *mtp_file,
                     const struct hparams *hp, struct err *e);
void weights_close(struct weights *w, struct kernels *k);              /* NULL is fine */

#endif
