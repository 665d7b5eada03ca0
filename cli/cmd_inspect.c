/* inspect - what a model file holds: hyper-parameters, bytes by class and by layer, and what a context costs.
 *
 * Headers and small tables are read, so a file of any size answers at once. The figures are collected into
 * one struct first; plain text and JSON are two ways to print it. A file that could not be loaded still
 * shows what it has; then the reason follows, as for any command that fails. */
#include "cli/cmd.h"

#include "cli/opts.h"
#include "common/base/check.h"
#include "common/model/hparams.h"
#include "common/model/shard.h"
#include "node/weights.h"

#include <jansson.h>
#include <stdio.h>

/* Classes in the order of use; the first prefix that fits decides ("attn_q_a_norm" comes before "attn_q"). */
#define CLASSES(X)                                      \
    X(EMBED, "token embedding")                         \
    X(HC, "hyper-connections")                          \
    X(NORMS, "norms and sinks")                         \
    X(ATTN_Q, "attention q")                            \
    X(ATTN_KV, "attention kv")                          \
    X(ATTN_OUT, "attention output")                     \
    X(COMPRESSOR, "attention compressor")               \
    X(INDEXER, "indexer")                               \
    X(IDX_COMPRESSOR, "indexer compressor")             \
    X(ROUTER, "router")                                 \
    X(HASH, "hash routing tables")                      \
    X(EXPERTS_GATE, "routed experts gate")              \
    X(EXPERTS_UP, "routed experts up")                  \
    X(EXPERTS_DOWN, "routed experts down")              \
    X(SHARED, "shared expert")                          \
    X(HEAD_HC, "output hyper-connection, norm")         \
    X(HEAD, "output")                                   \
    X(MTP, "MTP block")                                 \
    X(OTHER, "other")

enum class {
#define CLASS_ENUM(name, text) CLASS_##name,
    CLASSES(CLASS_ENUM) N_CLASSES
#undef CLASS_ENUM
};

static const char *const class_names[N_CLASSES] = {
#define CLASS_NAME(name, text) text,
    CLASSES(CLASS_NAME)
#undef CLASS_NAME
};

static const struct rule {
    const char *prefix;
    enum class class;
} global_rules[] = {
    { "token_embd.", CLASS_EMBED }, { "output.", CLASS_HEAD }, { "output_", CLASS_HEAD_HC },
    { "mtp.", CLASS_MTP },
    { "", CLASS_OTHER },
}, layer_rules[] = {
    { "nextn.", CLASS_MTP },
    { "hc_attn_", CLASS_HC }, { "hc_ffn_", CLASS_HC },
    { "attn_norm.", CLASS_NORMS }, { "ffn_norm.", CLASS_NORMS }, { "attn_sinks.", CLASS_NORMS },
    { "attn_q_a_norm.", CLASS_NORMS }, { "attn_kv_a_norm.", CLASS_NORMS },
    { "attn_q_", CLASS_ATTN_Q }, { "attn_kv.", CLASS_ATTN_KV }, { "attn_output_", CLASS_ATTN_OUT },
    { "attn_compressor_", CLASS_COMPRESSOR },
    { "indexer_compressor_", CLASS_IDX_COMPRESSOR }, { "indexer.", CLASS_INDEXER },
    { "ffn_gate_inp.", CLASS_ROUTER }, { "exp_probs_b.", CLASS_ROUTER }, { "ffn_gate_tid2eid.", CLASS_HASH },
    { "ffn_gate_exps.", CLASS_EXPERTS_GATE }, { "ffn_up_exps.", CLASS_EXPERTS_UP },
    { "ffn_down_exps.", CLASS_EXPERTS_DOWN },
    { "ffn_gate_shexp.", CLASS_SHARED }, { "ffn_up_shexp.", CLASS_SHARED },
    { "ffn_down_shexp.", CLASS_SHARED },
    { "", CLASS_OTHER },
};

enum { CONTEXT_MIN = 8192, CONTEXT_MAX = 1 << 20, FACTS_MAX = 40 };

struct sum {
    uint64_t n_tensors, bytes, types;                 /* types: one bit per dtype id */
};

struct layer {
    struct sum dense, experts;
};

struct fact {
    const char *name;
    double value;
};

struct report {
    const struct gguf *g;
    struct sum all, class[N_CLASSES];
    struct layer layer[HP_LAYERS_MAX];
    uint32_t n_layer;                                 /* one more than the largest that a tensor names */
    uint64_t n_unknown;                         /* tensors of unknown type: their bytes are not in the sums */
    bool has_hparams, loads;
    struct hparams hp;
    struct err why_not;                               /* why it cannot be loaded */
    struct fact fact[FACTS_MAX];
    int n_facts;
};

/* ---- collecting ---- */

static enum class match(const struct rule *rule, const char *name, uint64_t len) {
    for (;; rule++) {
        size_t n = strlen(rule->prefix);
        if (n <= len && memcmp(rule->prefix, name, n) == 0) return rule->class;
    }
}

/* The layer number of "blk.N.rest", with the rest in *name; or -1. */
static int take_layer(const char **name, uint64_t *len) {
    const char *p = *name, *end = p + *len;
    int layer = 0, digits = 0;
    if (*len < 6 || memcmp(p, "blk.", 4) != 0) return -1;
    for (p += 4; p < end && *p >= '0' && *p <= '9' && digits < 3; p++, digits++)
        layer = layer * 10 + (*p - '0');
    if (digits == 0 || p == end || *p != '.' || layer >= HP_LAYERS_MAX) return -1;
    *name = p + 1;
    *len = (uint64_t)(end - *name);
    return layer;
}

static void add(struct sum *s, const struct gguf_tensor *t) {
    s->n_tensors++;
    s->bytes += t->size;
    if (dtype_known(t->type)) s->types |= UINT64_C(1) << t->type;
}

static bool is_routed(enum class class) {
    return class == CLASS_EXPERTS_GATE || class == CLASS_EXPERTS_UP || class == CLASS_EXPERTS_DOWN;
}

static void add_tensor(struct report *r, const struct gguf_tensor *t) {
    const char *name = t->name.data;
    uint64_t len = t->name.len;
    int layer = take_layer(&name, &len);
    enum class class = match(layer < 0 ? global_rules : layer_rules, name, len);
    add(&r->all, t);
    add(&r->class[class], t);
    r->n_unknown += !dtype_known(t->type);
    if (layer < 0) return;
    add(is_routed(class) ? &r->layer[layer].experts : &r->layer[layer].dense, t);
    r->n_layer = MAX(r->n_layer, (uint32_t)layer + 1);
}

static void add_fact(struct report *r, const char *name, double value) {
    CHECK(r->n_facts < FACTS_MAX);
    r->fact[r->n_facts++] = (struct fact){ name, value };
}

#define FACT(field) add_fact(r, #field, (double)hp->field)

static void add_facts(struct report *r) {
    const struct hparams *hp = &r->hp;
    FACT(n_layer), FACT(n_embd), FACT(n_vocab), FACT(n_ctx_train);
    FACT(n_head), FACT(head_dim), FACT(n_rot), FACT(n_q_lora), FACT(n_out_lora), FACT(n_out_group),
        FACT(n_swa);
    FACT(n_idx_head), FACT(idx_dim), FACT(idx_top_k);
    FACT(n_expert), FACT(n_expert_used), FACT(n_expert_shared), FACT(n_ff_exp), FACT(n_hash_layer),
        FACT(expert_scale);
    FACT(n_sinkhorn), FACT(rms_eps), FACT(hc_eps);
    FACT(rope_base), FACT(rope_base_compress);
    FACT(yarn_factor), FACT(yarn_beta_fast), FACT(yarn_beta_slow), FACT(yarn_ctx);
    FACT(bos_id), FACT(eos_id), FACT(has_mtp);
    add_fact(r, "swiglu_clamp_exp", (double)hp->swiglu_clamp_exp[0]);
    add_fact(r, "swiglu_clamp_shexp", (double)hp->swiglu_clamp_shexp[0]);
}

/* What this file says it holds: all layers, a stage's, or some experts of them. Experts in several ranges
 * nobody takes; `shard verify` checks them. */
static int check_tensors(const struct report *r, struct err *e) {
    struct weights_range range = { .layer_end = r->hp.n_layer, .embed = true, .head = true };
    if (shard_is(r->g)) {
        struct shard_info s;
        int rc = shard_info_read(&s, r->g, e);
        if (rc < 0) return rc;
        const struct shard_part *part = &s.part;
        if (part->n_range != 1) return 0;
        range = (struct weights_range){ .layer_begin = part->layer_begin,
                                        .layer_end = part->layer_end,
                                        .embed = part->embed,
                                        .head = part->head,
                                        .expert_begin = part->expert[0].begin,
                                        .expert_end = part->expert[0].end,
                                        .experts_only = !part->dense };
    }
    return weights_check(r->g, &r->hp, &range, e);
}

/* alone: a part of a split file, in which tensors are missing for a good reason. The MTP block's file has
 * nothing but its tensors: the shape is in the model's. */
static void collect(struct report *r, const struct gguf *g, bool alone) {
    memset(r, 0, sizeof *r);
    r->g = g;
    for (uint64_t i = 0; i < gguf_n_tensors(g); i++) add_tensor(r, gguf_tensor_at(g, i));
    r->has_hparams = hparams_read(&r->hp, g, &r->why_not) == 0;
    if (r->has_hparams) add_facts(r);
    bool only_mtp = r->all.n_tensors && r->class[CLASS_MTP].n_tensors == r->all.n_tensors;
    r->loads = only_mtp || (r->has_hparams && (alone || check_tensors(r, &r->why_not) == 0));
}

static uint64_t state_bytes(const struct hparams *hp, uint64_t n_ctx) {
    uint64_t bytes = 0;
    for (uint32_t i = 0; i < hp->n_layer; i++) bytes += hparams_state_bytes(hp, i, n_ctx);
    return bytes;
}

static const char *kind_name(const struct report *r, uint32_t layer) {
    static const char *const names[] = { [ATTN_SWA] = "window", [ATTN_CSA] = "sparse", [ATTN_HCA] = "heavy" };
    if (!r->has_hparams) return "?";
    return layer < r->hp.n_layer ? names[hparams_kind(&r->hp, layer)] : "MTP";
}

/* "F16+F32", or "-" for no known type. */
static const char *type_names(uint64_t types, char *out, size_t size) {
    size_t used = 0;
    snprintf(out, size, "-");
    for (uint32_t id = 0; id < DTYPE_IDS && used < size; id++)
        if (types >> id & 1)
            used +=
                (size_t)snprintf(out + used, size - used, "%s%s", used ? "+" : "", dtype_name(id));
    return out;
}

/* ---- as text ---- */

static double gib(uint64_t bytes) {
    return (double)bytes / (1 << 30);
}

static void print_files(const struct report *r) {
    for (int i = 0; i < gguf_n_files(r->g); i++)
        printf("%s  %llu bytes (%.2f GiB)\n", gguf_path(r->g, i), (unsigned long long)gguf_file_size(r->g, i),
               gib(gguf_file_size(r->g, i)));
    printf("%llu metadata entries, %llu tensors, %llu bytes of data\n", (unsigned long long)gguf_n_kv(r->g),
           (unsigned long long)r->all.n_tensors, (unsigned long long)r->all.bytes);
    if (r->n_unknown) printf("%llu tensors have a type unknown here\n", (unsigned long long)r->n_unknown);
}

static void print_facts(const struct report *r) {
    if (!r->has_hparams) return;
    printf("\nHyper-parameters of %s\n", r->hp.name);
    for (int i = 0; i < r->n_facts; i++)
        printf("  %-18s %12.7g%s", r->fact[i].name, r->fact[i].value,
               i % 3 == 2 || i + 1 == r->n_facts ? "\n" : "   ");
}

static void print_classes(const struct report *r) {
    char types[96];
    printf("\n%-30s %8s %16s %10s %7s  %s\n", "Class", "tensors", "bytes", "GiB", "share", "types");
    for (int i = 0; i < N_CLASSES; i++) {
        const struct sum *s = &r->class[i];
        if (s->n_tensors == 0) continue;
        printf("%-30s %8llu %16llu %10.3f %6.2f%%  %s\n", class_names[i],
               (unsigned long long)s->n_tensors, (unsigned long long)s->bytes, gib(s->bytes),
               100 * (double)s->bytes / (double)MAX(1, r->all.bytes),
               type_names(s->types, types, sizeof types));
    }
}

static void print_layers(const struct report *r) {
    char types[96];
    printf("\n%-6s %-7s %6s %14s %16s %16s  %s\n", "Layer", "kind", "ratio", "dense",
           "routed experts", "bytes", "expert types");
    for (uint32_t i = 0; i < r->n_layer; i++) {
        const struct layer *l = &r->layer[i];
        printf("%-6u %-7s %6u %14llu %16llu %16llu  %s\n", i, kind_name(r, i),
               r->has_hparams ? r->hp.ratio[i] : 0, (unsigned long long)l->dense.bytes,
               (unsigned long long)l->experts.bytes,
               (unsigned long long)(l->dense.bytes + l->experts.bytes),
               type_names(l->experts.types, types, sizeof types));
    }
}

static void print_state(const struct report *r) {
    if (!r->has_hparams) return;
    printf("\n%-12s %16s %10s   (packed state of one sequence, all layers)\n", "Context", "bytes", "GiB");
    for (uint64_t n = CONTEXT_MIN; n <= CONTEXT_MAX; n *= 2) {
        uint64_t bytes = state_bytes(&r->hp, n);
        printf("%-12llu %16llu %10.3f%s\n", (unsigned long long)n, (unsigned long long)bytes, gib(bytes),
               n > r->hp.n_ctx_train ? "   longer than the model was trained for" : "");
    }
}

static void print_tensors(const struct gguf *g) {
    printf("\n");
    for (uint64_t i = 0; i < gguf_n_tensors(g); i++) {
        const struct gguf_tensor *t = gguf_tensor_at(g, i);
        printf("%-44.*s %-8s", (int)t->name.len, t->name.data, dtype_name(t->type));
        for (uint32_t d = 0; d < t->n_dims; d++)
            printf("%s%llu", d ? " x " : " ", (unsigned long long)t->ne[d]);
        printf("  %llu bytes at %llu of file %d\n", (unsigned long long)t->size,
               (unsigned long long)t->file_offset, t->file_i);
    }
}

static void print_text(const struct report *r, bool tensors) {
    print_files(r);
    print_facts(r);
    if (r->all.n_tensors) print_classes(r);
    if (r->n_layer) print_layers(r);
    print_state(r);
    if (tensors) print_tensors(r->g);
}

/* ---- as JSON ---- */

static json_t *integer(uint64_t value) {
    return json_integer((json_int_t)value);
}

static json_t *text_of(struct gguf_str s) {
    json_t *text = json_stringn(s.data, (size_t)s.len);
    return text ? text : json_string("(not UTF-8)");
}

static json_t *type_list(uint64_t types) {
    json_t *list = json_array();
    for (uint32_t id = 0; id < DTYPE_IDS; id++)
        if (types >> id & 1) json_array_append_new(list, json_string(dtype_name(id)));
    return list;
}

static json_t *files_json(const struct gguf *g) {
    json_t *list = json_array();
    for (int i = 0; i < gguf_n_files(g); i++)
        json_array_append_new(list, json_pack("{s:s, s:o}", "path", gguf_path(g, i), "bytes",
                                              integer(gguf_file_size(g, i))));
    return list;
}

/* The shortest decimal that means the same float: 1e-6 rather than 9.99999997e-07. */
static json_t *number_of(double value) {
    char text[32];
    if (value > -1e15 && value < 1e15 && value == (double)(int64_t)value)
        return json_integer((json_int_t)value);
    snprintf(text, sizeof text, "%.7g", value);
    return json_real(strtod(text, NULL));
}

static json_t *facts_json(const struct report *r) {
    json_t *facts = json_object(), *ratios = json_array();
    for (int i = 0; i < r->n_facts; i++)
        json_object_set_new(facts, r->fact[i].name, number_of(r->fact[i].value));
    for (uint32_t i = 0; i < r->hp.n_layer; i++) json_array_append_new(ratios, integer(r->hp.ratio[i]));
    json_object_set_new(facts, "ratio", ratios);
    json_object_set_new(facts, "name", text_of((struct gguf_str){ r->hp.name, strlen(r->hp.name) }));
    return facts;
}

static json_t *classes_json(const struct report *r) {
    json_t *list = json_array();
    for (int i = 0; i < N_CLASSES; i++) {
        const struct sum *s = &r->class[i];
        if (s->n_tensors == 0) continue;
        json_array_append_new(list, json_pack("{s:s, s:o, s:o, s:o}", "class", class_names[i],
                                              "tensors", integer(s->n_tensors), "bytes",
                                              integer(s->bytes), "types", type_list(s->types)));
    }
    return list;
}

static json_t *layers_json(const struct report *r) {
    json_t *list = json_array();
    for (uint32_t i = 0; i < r->n_layer; i++) {
        const struct layer *l = &r->layer[i];
        json_array_append_new(list,
                              json_pack("{s:o, s:s, s:o, s:o, s:o}", "layer", integer(i), "kind",
                                        kind_name(r, i), "dense_bytes", integer(l->dense.bytes),
                                        "expert_bytes", integer(l->experts.bytes), "expert_types",
                                        type_list(l->experts.types)));
    }
    return list;
}

static json_t *state_json(const struct report *r) {
    json_t *list = json_array();
    for (uint64_t n = CONTEXT_MIN; n <= CONTEXT_MAX; n *= 2)
        json_array_append_new(list, json_pack("{s:o, s:o}", "context", integer(n), "bytes",
                                              integer(state_bytes(&r->hp, n))));
    return list;
}

static json_t *tensors_json(const struct gguf *g) {
    json_t *list = json_array();
    for (uint64_t i = 0; i < gguf_n_tensors(g); i++) {
        const struct gguf_tensor *t = gguf_tensor_at(g, i);
        json_t *dims = json_array();
        for (uint32_t d = 0; d < t->n_dims; d++) json_array_append_new(dims, integer(t->ne[d]));
        json_array_append_new(list, json_pack("{s:o, s:s, s:o, s:o, s:o, s:i}", "name",
                                              text_of(t->name), "type", dtype_name(t->type), "dims",
                                              dims, "bytes", integer(t->size), "offset",
                                              integer(t->file_offset), "file", t->file_i));
    }
    return list;
}

static void print_json(const struct report *r, bool tensors) {
    json_t *root = json_object();
    json_object_set_new(root, "files", files_json(r->g));
    json_object_set_new(root, "n_metadata", integer(gguf_n_kv(r->g)));
    json_object_set_new(root, "n_tensors", integer(r->all.n_tensors));
    json_object_set_new(root, "n_unknown_type", integer(r->n_unknown));
    json_object_set_new(root, "bytes", integer(r->all.bytes));
    if (r->has_hparams) json_object_set_new(root, "hparams", facts_json(r));
    json_object_set_new(root, "classes", classes_json(r));
    json_object_set_new(root, "layers", layers_json(r));
    if (r->has_hparams) json_object_set_new(root, "state", state_json(r));
    if (tensors) json_object_set_new(root, "tensors", tensors_json(r->g));
    if (!r->loads) json_object_set_new(root, "error", json_string(r->why_not.text));
    json_dumpf(root, stdout, JSON_INDENT(2));
    printf("\n");
    json_decref(root);
}

/* ---- the command ---- */

int cmd_inspect(int argc, char **argv) {
    bool json = false, tensors = false, alone = false;
    const struct opt table[] = {
        OPT_FLAG('j', "json", &json, "print JSON"),
        OPT_FLAG('t', "tensors", &tensors, "list every tensor, too"),
        OPT_FLAG(0, "alone", &alone, "only this file, even if it is one of several"),
    };
    const struct opts spec = { "inspect",
                               "FILE",
                               "Shows what a GGUF holds: hyper-parameters, bytes by class and by "
                               "layer, and the state that "
                               "contexts of 8K to 1M tokens need. Reads headers and small tables only. "
                               "Fails when the model could not be loaded, and says why.",
                               table,
                               COUNT_OF(table),
                               1,
                               1 };
    struct gguf *g;
    struct err e;
    int n_args = opts_parse(&spec, argc, argv);
    if (n_args < 0) return opts_exit_status(n_args);
    int rc = alone ? gguf_open_one(&g, argv[1], &e) : gguf_open(&g, argv[1], &e);
    if (rc < 0) return opts_failure(&spec, &e);
    struct report *r = xcalloc(1, sizeof *r);
    collect(r, g, alone);
    if (json) print_json(r, tensors);
    else print_text(r, tensors);
    int status = r->loads ? 0 : opts_failure(&spec, &r->why_not);
    free(r);
    gguf_close(g);
    return status;
}
