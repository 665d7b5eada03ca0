#include "node/weights.h"

#include "common/base/check.h"
#include "common/model/shard.h"

#include <stdio.h>

enum weight_kind {
    MATRIX,
    VECTOR,
    TABLE,
    STACK
}; /* any type we decode; f32 (converted if need be); i32 expert numbers; matrices of experts */

struct weights_mem {                               /* one device allocation, in a list */
    struct kmem *mem;
    struct weights_mem *next;
};

struct binder {                                    /* what binding one tensor needs */
    struct weights *w;
    struct kernels *k;                             /* NULL: nothing is bound, only checked */
    const struct gguf *g;
    const struct hparams *hp;
    const char *prefix;                            /* "blk.3." */
    uint32_t expert_begin, expert_end;             /* of stacks */
    bool experts_only;
    const struct shard_info *shard;                /* NULL: not a shard */
    weights_progress *progress;
    void *ctx;
    uint64_t total;
};

static int bind_memory(struct binder *b, struct tensor *out, struct kmem *mem) {
    if (!mem) return ERR_NOMEM;
    struct weights_mem *node = xcalloc(1, sizeof *node);
    *node = (struct weights_mem){ mem, b->w->mem };
    b->w->mem = node;
    out->mem = mem;
    return 0;
}

/* A short vector in another type than f32: decoded once. */
static int bind_converted(struct binder *b, struct tensor *out, const struct gguf_tensor *t, struct err *e) {
    uint64_t n = t->ne[0] * t->ne[1];
    int rc = bind_memory(b, out, kernels_alloc(b->k, n * sizeof(float), &out->data, e));
    if (rc < 0) return rc;
    float *values = xcalloc(n, sizeof *values);
    dtype_decode((enum dtype)t->type, t->data, values, n);
    out->type = DTYPE_F32;
    rc = kernels_upload(b->k, out->data, values, n * sizeof(float), e);
    free(values);
    return rc;
}

static int check_expert_numbers(const struct binder *b, const struct gguf_tensor *t, struct err *e) {
    uint64_t n = t->ne[0] * t->ne[1];
    for (uint64_t i = 0; i < n; i++) {
        int32_t id;
        memcpy(&id, t->data + i * sizeof id, sizeof id);
        if (id < 0 || (uint32_t)id >= b->hp->n_expert)
            return err_set(e, ERR_CORRUPT, "entry %llu names expert %d of %u", (unsigned long long)i, id,
                           b->hp->n_expert);
    }
    return 0;
}

static int check_shape(const struct gguf_tensor *t, enum weight_kind kind, const uint64_t ne[3],
                       struct err *e) {
    for (int i = 0; i < GGUF_DIMS_MAX; i++) {
        uint64_t want = i < 3 ? ne[i] : 1;
        if (t->ne[i] != want)
            return err_set(
                e, ERR_CORRUPT, "has dimensions [%llu, %llu, %llu, %llu], expected [%llu, %llu, %llu]",
                (unsigned long long)t->ne[0], (unsigned long long)t->ne[1], (unsigned long long)t->ne[2],
                (unsigned long long)t->ne[3], (unsigned long long)ne[0], (unsigned long long)ne[1],
                (unsigned long long)ne[2]);
    }
    if (kind == TABLE ? t->type != DTYPE_I32 : !dtype_decodes(t->type))
        return err_set(e, ERR_UNSUPPORTED, "has type %s (%u), which cannot be used here",
                       dtype_name(t->type), t->type);
    return 0;
}

static int bind_data(struct binder *b, struct tensor *out, const struct gguf_tensor *t,
                     enum weight_kind kind, struct err *e) {
    *out = (struct tensor){ .type = (enum dtype)t->type,
                            .ne = { (int64_t)t->ne[0], (int64_t)t->ne[1], (int64_t)t->ne[2] } };
    if (kind == TABLE) {
        int rc = check_expert_numbers(b, t, e);
        if (rc < 0) return rc;
    }
    /* f32 and i32 are read as such, so they must lie on their natural border; the GGUF alignment gives
     * that in every sane file */
    bool aligned = (uintptr_t)t->data % 4 == 0;
    if (kind == VECTOR && (t->type != DTYPE_F32 || !aligned)) return b->k ? bind_converted(b, out, t, e) : 0;
    if (!aligned && (kind == TABLE || t->type == DTYPE_F32))
        return err_set(e, ERR_CORRUPT, "starts at an odd address (file offset %llu)",
                       (unsigned long long)t->file_offset);
    return b->k ? bind_memory(b, out, kernels_map(b->k, t->data, t->size, &out->data, e)) : 0;
}

/* The experts that are wanted, of those that the file has. */
static int cut_stack(const struct binder *b, struct gguf_tensor *t, struct err *e) {
    uint64_t held = t->ne[2], begin = 0, n = b->expert_end - b->expert_begin;
    if (b->shard && b->shard->part.n_range == 1) begin = b->shard->part.expert[0].begin;
    else if (held != b->hp->n_expert)
        return err_set(e, ERR_CORRUPT, "holds %llu experts of %u", (unsigned long long)held, b->hp->n_expert);
    if (held == 0 || b->expert_begin < begin || b->expert_end > begin + held)
        return err_set(e, ERR_NOTFOUND, "holds experts %llu to %llu, wanted are %u to %u",
                       (unsigned long long)begin, (unsigned long long)(begin + held - 1),
                       b->expert_begin, b->expert_end - 1);
    t->data += t->size / held * (b->expert_begin - begin);
    t->size = t->size / held * n;
    t->ne[2] = n;
    return 0;
}

static int bind(struct binder *b, struct tensor *out, const char *suffix, enum weight_kind kind,
                uint64_t ne0, uint64_t ne1, uint64_t ne2, struct err *e) {
    char name[96];
    snprintf(name, sizeof name, "%s%s", b->prefix, suffix);
    const struct gguf_tensor *t = gguf_find_tensor(b->g, name);
    if (!t) return err_set(e, ERR_NOTFOUND, "%s: tensor %s is missing", gguf_path(b->g, 0), name);
    if (!dtype_known(t->type))
        return err_set(e, ERR_UNSUPPORTED, "%s: tensor %s has the unknown type %u",
                       gguf_path(b->g, t->file_i), name, t->type);
    if (!t->data)
        return err_set(e, ERR_NOTFOUND, "%s: tensor %s has no data", gguf_path(b->g, t->file_i), name);
    struct gguf_tensor part = *t;
    int rc = kind == STACK ? cut_stack(b, &part, e) : 0;
    if (kind == STACK) ne2 = b->expert_end - b->expert_begin;
    if (rc == 0) rc = check_shape(&part, kind, (uint64_t[3]){ ne0, ne1, ne2 }, e);
    if (rc == 0) rc = bind_data(b, out, &part, kind, e);
    if (rc < 0) return err_wrap(e, rc, "%s: tensor %s", gguf_path(b->g, t->file_i), name);
    b->w->bytes += part.size;
    if (b->progress && !b->progress(b->ctx, b->w->bytes, b->total))
        return err_set(e, ERR_CANCELLED, "loading was cancelled");
    return 0;
}

#define BIND(field, name, when, kind, ne0, ne1, ne2)                                                \
    if ((when) && (kind == STACK || !b->experts_only)) {                                            \
        int rc = bind(b, &to->field, name, kind, (uint64_t)(ne0), (uint64_t)(ne1), (uint64_t)(ne2), e); \
        if (rc < 0) return rc;                                                                      \
    }

static int bind_layer(struct binder *b, struct layer_weights *to, uint64_t R, bool HASH, struct err *e) {
    WEIGHTS_DIMENSIONS(b->hp);
    bool CSA = R == 4;
    uint64_t C = CSA ? 2 : 1;
    WEIGHTS_LAYER(BIND)
    if (to->ffn_gate_exps.type != to->ffn_up_exps.type)
        return err_set(e, ERR_UNSUPPORTED, "%s: %sffn_gate_exps and ffn_up_exps have different types",
                       gguf_path(b->g, 0), b->prefix);
    return 0;
}

static int bind_global(struct binder *b, struct weights *to, bool EMBED, bool HEAD, struct err *e) {
    WEIGHTS_DIMENSIONS(b->hp);
    WEIGHTS_GLOBAL(BIND)
    return 0;
}

static int bind_mtp(struct binder *b, struct mtp_weights *to, struct err *e) {
    WEIGHTS_DIMENSIONS(b->hp);
    WEIGHTS_MTP(BIND)
    return 0;
}

/* Bytes of the tensors that bind() will take: for progress only, so a missing tensor counts nothing. */
static uint64_t range_bytes(const struct gguf *g, const struct weights_range *range) {
    uint64_t total = 0;
    for (uint64_t i = 0; i < gguf_n_tensors(g); i++) {
        const struct gguf_tensor *t = gguf_tensor_at(g, i);
        char name[96];
        unsigned layer;
        if (t->name.len >= sizeof name) continue;
        memcpy(name, t->name.data, t->name.len);
        name[t->name.len] = 0;
        bool ours = sscanf(name, "blk.%u.", &layer) == 1
                        ? layer >= range->layer_begin && layer < range->layer_end
                    : strncmp(name, "token_embd", 10) == 0 ? range->embed
                    : strncmp(name, "output", 6) == 0      ? range->head
                                                           : false;
        if (ours) total += t->size;
    }
    return total;
}

static struct weights *weights_new(const struct hparams *hp, const struct weights_range *range,
                                   struct err *e) {
    bool experts = range->expert_begin < range->expert_end && range->expert_end <= hp->n_expert;
    if (range->expert_end && !experts) {
        err_set(e, ERR_INVALID, "experts %u to %u of %u", range->expert_begin, range->expert_end,
                hp->n_expert);
        return NULL;
    }
    if (range->layer_begin > range->layer_end || range->layer_end > hp->n_layer) {
        err_set(e, ERR_INVALID, "layers %u to %u of a model with %u", range->layer_begin, range->layer_end,
                hp->n_layer);
        return NULL;
    }
    struct weights *w = xcalloc(1, sizeof *w);
    w->layer = xcalloc(hp->n_layer, sizeof *w->layer);
    w->layer_begin = range->layer_begin, w->layer_end = range->layer_end;
    w->has_embed = range->embed, w->has_head = range->head;
    w->expert_begin = range->expert_begin;
    w->expert_end = range->expert_end ? range->expert_end : hp->n_expert;
    return w;
}

static int bind_range(struct binder *b, const struct weights_range *range, struct err *e) {
    struct weights *w = b->w;
    struct shard_info shard;
    int rc = shard_is(b->g) ? shard_info_read(&shard, b->g, e) : 0;
    b->shard = rc == 0 && shard_is(b->g) ? &shard : NULL;
    b->expert_begin = w->expert_begin;
    b->expert_end = w->expert_end;
    b->experts_only = range->experts_only;
    if (rc == 0) rc = bind_global(b, w, w->has_embed, w->has_head, e);
    for (uint32_t l = w->layer_begin; rc == 0 && l < w->layer_end; l++) {
        char prefix[32];
        snprintf(prefix, sizeof prefix, "blk.%u.", l);
        b->prefix = prefix;
        rc = bind_layer(b, &w->layer[l], b->hp->ratio[l], l < b->hp->n_hash_layer, e);
    }
    return rc;
}

int weights_open(struct weights **out, struct kernels *k, const struct gguf *g, const struct hparams *hp,
                 const struct weights_range *range, weights_progress *progress, void *ctx, struct err *e) {
    *out = NULL;
    struct weights *w = weights_new(hp, range, e);
    if (!w) return ERR_INVALID;
    struct binder b = { .w = w, .k = k, .g = g, .hp = hp, .prefix = "", .progress = progress, .ctx = ctx };
    if (progress) b.total = range_bytes(g, range);
    int rc = bind_range(&b, range, e);
    if (rc == 0) rc = kernels_finish(k, e);
    if (rc < 0) {
        weights_close(w, k);
        return rc;
    }
    *out = w;
    return 0;
}

int weights_check(const struct gguf *g, const struct hparams *hp, const struct weights_range *range,
                  struct err *e) {
    struct weights *w = weights_new(hp, range, e);
    if (!w) return ERR_INVALID;
    int rc = bind_range(&(struct binder){ .w = w, .g = g, .hp = hp, .prefix = "" }, range, e);
    weights_close(w, NULL);
    return rc;
}

int weights_open_mtp(struct weights *w, struct kernels *k, const struct gguf *mtp_file,
                     const struct hparams *hp, struct err *e) {
    w->mtp = xcalloc(1, sizeof *w->mtp);
    struct binder b = {
        .w = w, .k = k, .g = mtp_file, .hp = hp, .prefix = "mtp.0.", .expert_end = hp->n_expert
    };
    int rc = bind_mtp(&b, w->mtp, e);
    if (rc == 0) rc = bind_layer(&b, &w->mtp->layer, 0, false, e);
    return rc == 0 ? kernels_finish(k, e) : rc;
}

void weights_close(struct weights *w, struct kernels *k) {
    if (!w) return;
    while (w->mem) {
        struct weights_mem *node = w->mem;
        w->mem = node->next;
        kernels_release(k, node->mem);
        free(node);
    }
    free(w->mtp);
    free(w->layer);
    free(w);
}
