/* synth_plan - which tensors a model has, with their published names, shapes and types, and how their
 * numbers are drawn.
 *
 * The order is that of the published files: hash tables, experts by layer (gate, down, up), embedding,
 * then the rest by layer; so a layer's bytes are not together, and whoever reads such files had better
 * not expect it. */
#include "common/model/synth_parts.h"

#include "common/base/check.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

/* Deviations: of silu(g) * u for independent normal g and u; of an attention output (rows of KV_NORM, a
 * few of which share the weight); of the logits. */
static const float SWIGLU_OUT = 0.6f, ATTENTION_OUT = 1.0f, KV_NORM = 1.5f, LOGITS = 2.5f;

/* Variance that all layers together add to the streams, which begin with 1. Measured with 43 layers:
 * twice this and a sharper attention, and the rounding of KV rows alone changes every other greedy
 * token; much less, and greedy text loops. Routed experts add least, because a near-tie of two experts
 * that falls the other way moves the whole layer. */
static const float ADD_ATTENTION = 0.2f, ADD_ROUTED = 0.1f, ADD_SHARED = 0.7f;

struct planner {
    struct synth_list *list;
    const struct hparams *hp;
    char prefix[16];                                  /* "blk.7." */
    bool mtp;                                         /* small matrices as F32 */
};

static struct synth_tensor *add(struct planner *p, const char *suffix, enum dtype type,
                                uint64_t ne0, uint64_t ne1, uint64_t ne2) {
    struct synth_list *l = p->list;
    if (l->n == l->n_room) {
        l->n_room = MAX(64, 2 * l->n_room);
        l->tensor = xrealloc(l->tensor, l->n_room * sizeof *l->tensor);
    }
    struct synth_tensor *t = &l->tensor[l->n++];
    *t = (struct synth_tensor){ .type = type, .n_dims = ne2 ? 3 : ne1 ? 2 : 1, .ne = { ne0, ne1, ne2 } };
    snprintf(t->name, sizeof t->name, "%s%s", p->prefix, suffix);
    return t;
}

static float per_fan_in(uint64_t n, float gain) {
    return gain / sqrtf((float)n);
}

static void matrix(struct planner *p, const char *suffix, enum dtype type, uint64_t n_in,
                   uint64_t n_out, float gain) {
    add(p, suffix, type, n_in, n_out, 0)->deviation = per_fan_in(n_in, gain);
}

static void vector(struct planner *p, const char *suffix, uint64_t n, float mean, float deviation) {
    struct synth_tensor *t = add(p, suffix, DTYPE_F32, n, 0, 0);
    t->mean = mean;
    t->deviation = deviation;
}

/* Weights that published files keep in F16 and the MTP file in F32. */
static enum dtype fine(const struct planner *p) {
    return p->mtp ? DTYPE_F32 : DTYPE_F16;
}

/* Deviation of one layer's share. */
static float adds(const struct planner *p, float variance) {
    return sqrtf(variance / (float)p->hp->n_layer);
}

static void connection(struct planner *p, const char *which) {
    char name[SYNTH_NAME_MAX];
    snprintf(name, sizeof name, "hc_%s_fn.weight", which);
    matrix(p, name, fine(p), HP_HC * (uint64_t)p->hp->n_embd, 24, 1);
    snprintf(name, sizeof name, "hc_%s_scale.weight", which);
    vector(p, name, 3, 0.5f, 0.05f);
    snprintf(name, sizeof name, "hc_%s_base.weight", which);
    add(p, name, DTYPE_F32, 24, 0, 0)->fill = FILL_HC_BASE;
}

static void stream_reader(struct planner *p, const char *fn, const char *scale, const char *base) {
    matrix(p, fn, fine(p), HP_HC * (uint64_t)p->hp->n_embd, HP_HC, 1);
    vector(p, scale, 1, 0.5f, 0.05f);
    vector(p, base, HP_HC, 0, 0.5f);
}

static void attention(struct planner *p) {
    const struct hparams *hp = p->hp;
    uint64_t all_heads = (uint64_t)hp->head_dim * hp->n_head,
             low = (uint64_t)hp->n_out_lora * hp->n_out_group;
    vector(p, "attn_norm.weight", hp->n_embd, 1, 0.1f);
    matrix(p, "attn_q_a.weight", DTYPE_Q8_0, hp->n_embd, hp->n_q_lora, 1);
    vector(p, "attn_q_a_norm.weight", hp->n_q_lora, 1, 0.1f);
    matrix(p, "attn_q_b.weight", DTYPE_Q8_0, hp->n_q_lora, all_heads, 1);
    matrix(p, "attn_kv.weight", DTYPE_Q8_0, hp->n_embd, hp->head_dim, 1);
    vector(p, "attn_kv_a_norm.weight", hp->head_dim, KV_NORM, 0.1f * KV_NORM);
    vector(p, "attn_sinks.weight", hp->n_head, 1, 1);
    matrix(p, "attn_output_a.weight", DTYPE_Q8_0, all_heads / hp->n_out_group, low, 1);
    matrix(p, "attn_output_b.weight", DTYPE_Q8_0, low, hp->n_embd, adds(p, ADD_ATTENTION) / ATTENTION_OUT);
}

/* prefix: "attn_" or "indexer_"; dim: of an entry; ratio 4 has two halves of columns. */
static void compressor(struct planner *p, const char *prefix, uint64_t dim, uint64_t ratio, float norm) {
    const struct { const char *what; float gain; } parts[] = { { "kv", 1 }, { "gate", 1.5f } };
    char name[SYNTH_NAME_MAX];
    uint64_t columns = ratio == 4 ? 2 * dim : dim;
    snprintf(name, sizeof name, "%scompressor_ape.weight", prefix);
    add(p, name, DTYPE_F16, columns, ratio, 0)->deviation = 0.5f;
    for (size_t i = 0; i < COUNT_OF(parts); i++) {
        snprintf(name, sizeof name, "%scompressor_%s.weight", prefix, parts[i].what);
        matrix(p, name, DTYPE_F16, p->hp->n_embd, columns, parts[i].gain);
    }
    snprintf(name, sizeof name, "%scompressor_norm.weight", prefix);
    vector(p, name, dim, norm, 0.1f * norm);
}

static void indexer(struct planner *p) {
    const struct hparams *hp = p->hp;
    matrix(p, "indexer.attn_q_b.weight", DTYPE_F16, hp->n_q_lora, (uint64_t)hp->idx_dim * hp->n_idx_head, 1);
    matrix(p, "indexer.proj.weight", DTYPE_F16, hp->n_embd, hp->n_idx_head, 1);
    compressor(p, "indexer_", hp->idx_dim, 4, 1);
}

/* k routed experts of weight scale / k each sum up to scale / sqrt(k). */
static float routed_gain(const struct planner *p) {
    return adds(p, ADD_ROUTED) / SWIGLU_OUT * sqrtf((float)p->hp->n_expert_used) / p->hp->expert_scale;
}

static void experts(struct planner *p, enum dtype gate_up, enum dtype down) {
    const struct hparams *hp = p->hp;
    const struct { const char *name; bool is_down; } parts[] = {
        { "ffn_gate_exps.weight", false }, { "ffn_down_exps.weight", true }, { "ffn_up_exps.weight", false },
    };
    for (size_t i = 0; i < COUNT_OF(parts); i++) {
        bool is_down = parts[i].is_down;
        uint64_t n_in = is_down ? hp->n_ff_exp : hp->n_embd, n_out = is_down ? hp->n_embd : hp->n_ff_exp;
        add(p, parts[i].name, is_down ? down : gate_up, n_in, n_out, hp->n_expert)->deviation =
            per_fan_in(n_in, is_down ? routed_gain(p) : 1);
    }
}

static void feed_forward(struct planner *p, bool hash) {
    const struct hparams *hp = p->hp;
    uint64_t ff = (uint64_t)hp->n_ff_exp * hp->n_expert_shared;
    vector(p, "ffn_norm.weight", hp->n_embd, 1, 0.1f);
    matrix(p, "ffn_gate_inp.weight", fine(p), hp->n_embd, hp->n_expert, 1.5f);
    if (!hash) vector(p, "exp_probs_b.bias", hp->n_expert, 0, 0.05f);
    matrix(p, "ffn_gate_shexp.weight", DTYPE_Q8_0, hp->n_embd, ff, 1);
    matrix(p, "ffn_up_shexp.weight", DTYPE_Q8_0, hp->n_embd, ff, 1);
    matrix(p, "ffn_down_shexp.weight", DTYPE_Q8_0, ff, hp->n_embd, adds(p, ADD_SHARED) / SWIGLU_OUT);
}

static void layer(struct planner *p, uint64_t ratio, bool hash) {
    connection(p, "attn");
    connection(p, "ffn");
    attention(p);
    if (ratio > 0) compressor(p, "attn_", p->hp->head_dim, ratio, KV_NORM);
    if (ratio == 4) indexer(p);
    feed_forward(p, hash);
}

/* ---- expert types ---- */

struct expert_types { enum dtype gate_up, down; };

static struct expert_types types_of(enum synth_mix mix, uint32_t layer_i, uint32_t n_layer) {
    uint32_t n_fine = n_layer >= 18 ? 6 : (n_layer + 2) / 3;
    if (mix == SYNTH_MIX_Q2Q4) mix = layer_i >= n_layer - n_fine ? SYNTH_MIX_Q4 : SYNTH_MIX_Q2;
    switch (mix) {
    case SYNTH_MIX_Q4: return (struct expert_types){ DTYPE_Q4_K, DTYPE_Q4_K };
    case SYNTH_MIX_Q8: return (struct expert_types){ DTYPE_Q8_0, DTYPE_Q8_0 };
    case SYNTH_MIX_F16: return (struct expert_types){ DTYPE_F16, DTYPE_F16 };
    case SYNTH_MIX_MXFP4: return (struct expert_types){ DTYPE_MXFP4, DTYPE_MXFP4 };
    default: return (struct expert_types){ DTYPE_IQ2_XXS, DTYPE_Q2_K };
    }
}

/* ---- whole files ---- */

static struct planner planner_of(struct synth_list *list, const struct hparams *hp) {
    *list = (struct synth_list){ 0 };
    return (struct planner){ .list = list, .hp = hp };
}

static void set_layer(struct planner *p, uint32_t layer_i) {
    snprintf(p->prefix, sizeof p->prefix, "blk.%u.", layer_i);
}

void synth_list_model(struct synth_list *list, const struct hparams *hp, enum synth_mix mix) {
    struct planner p = planner_of(list, hp);
    for (uint32_t i = 0; i < hp->n_hash_layer; i++) {
        set_layer(&p, i);
        struct synth_tensor *t =
            add(&p, "ffn_gate_tid2eid.weight", DTYPE_I32, hp->n_expert_used, hp->n_vocab, 0);
        t->fill = FILL_EXPERT_IDS;
        t->below = hp->n_expert;
    }
    for (uint32_t i = 0; i < hp->n_layer; i++) {
        struct expert_types types = types_of(mix, i, hp->n_layer);
        set_layer(&p, i);
        experts(&p, types.gate_up, types.down);
    }
    p.prefix[0] = 0;
    add(&p, "token_embd.weight", DTYPE_F16, hp->n_embd, hp->n_vocab, 0)->deviation = 1;
    for (uint32_t i = 0; i < hp->n_layer; i++) {
        set_layer(&p, i);
        layer(&p, hp->ratio[i], i < hp->n_hash_layer);
    }
    p.prefix[0] = 0;
    stream_reader(&p, "output_hc_fn.weight", "output_hc_scale.weight", "output_hc_base.weight");
    vector(&p, "output_norm.weight", hp->n_embd, 1, 0.1f);
    matrix(&p, "output.weight", DTYPE_Q8_0, hp->n_embd, hp->n_vocab, LOGITS);
    list->tensor[list->n - 1].fill = FILL_HEAD;
}

/* Half from the embedding of the next token, half from the streams. */
void synth_list_mtp(struct synth_list *list, const struct hparams *hp) {
    struct planner p = planner_of(list, hp);
    p.mtp = true;
    snprintf(p.prefix, sizeof p.prefix, "mtp.0.");
    matrix(&p, "e_proj.weight", DTYPE_Q8_0, hp->n_embd, hp->n_embd, 0.7f);
    matrix(&p, "h_proj.weight", DTYPE_Q8_0, hp->n_embd, hp->n_embd, 0.7f);
    vector(&p, "enorm.weight", hp->n_embd, 1, 0.1f);
    vector(&p, "hnorm.weight", hp->n_embd, 1, 0.1f);
    vector(&p, "norm.weight", hp->n_embd, 1, 0.1f);
    stream_reader(&p, "hc_head_fn.weight", "hc_head_scale.weight", "hc_head_base.weight");
    layer(&p, 0, false);
    experts(&p, DTYPE_Q4_K, DTYPE_Q4_K);
}

void synth_list_free(struct synth_list *list) {
    free(list->tensor);
    *list = (struct synth_list){ 0 };
}
