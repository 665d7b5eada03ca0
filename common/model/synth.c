/* synth - see the header. Plans the tensors, writes the header, then streams the data:
 *
 *     workers: chunk i of the file -> slot i mod n, in any order        writer: slot 0, 1, 2 ... to the
 * file, in order
 *
 * A worker takes the next chunk only when its slot is empty, so memory is bounded by the ring, and the
 * file's bytes do not depend on who was fast. */
#include "common/model/synth_parts.h"

#include "common/base/check.h"
#include "common/model/synth_vocab.h"
#include "common/sys/file.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>

enum { THREADS_MAX = 64, TINY_VOCAB = 1024, HEADER_RESERVE = 16 << 20 };

struct synth {
    struct synth_options options;
    struct hparams hp;
    enum synth_mix mix;
    struct synth_vocab own;                           /* empty when a vocabulary was given */
    const struct tokenizer_vocab *vocab;
    struct synth_noise noise;
    struct synth_list model, mtp;
    uint8_t *weak;                                    /* per token: its row of the head is weak */
};

/* ---- shapes ---- */

static void repeat_ratios(struct hparams *hp, uint32_t n_layer) {
    for (uint32_t i = 0; i < n_layer; i++) hp->ratio[i] = i == 0 ? 0 : i % 2 ? 4 : 128;
}

/* K quants need rows of 256, the fast kernels heads of 512 and indexer keys of 128; all else is as small
 * as it goes. */
static void tiny(struct hparams *hp) {
    hparams_flash(hp);
    hp->n_layer = 5;
    hp->n_embd = 256;
    hp->n_vocab = TINY_VOCAB;
    hp->n_ctx_train = 65536;
    hp->n_head = 8;
    hp->n_q_lora = 64;
    hp->n_out_group = 4;
    hp->n_out_lora = 64;
    hp->n_idx_head = 16;
    hp->idx_top_k = 16;
    hp->n_expert = 16;
    hp->n_expert_used = 4;
    hp->n_ff_exp = 256;
    repeat_ratios(hp, HP_LAYERS_MAX);
}

/* The layer pattern of Pro on tiny's dimensions: hash routing and heavy compression in the same layers. */
static void tiny_pro(struct hparams *hp) {
    struct hparams pro;
    hparams_pro(&pro);
    tiny(hp);
    memcpy(hp->ratio, pro.ratio, sizeof hp->ratio);
    hp->expert_scale = pro.expert_scale;
}

static void mid(struct hparams *hp) {
    hparams_flash(hp);
    hp->n_layer = 4;
    repeat_ratios(hp, HP_LAYERS_MAX);
}

static const struct {
    const char *name;
    void (*hparams)(struct hparams *hp);
    enum synth_mix mix;
} presets[] = {
    { "tiny", tiny, SYNTH_MIX_Q2 },
    { "tiny-pro", tiny_pro, SYNTH_MIX_Q2 },
    { "mid", mid, SYNTH_MIX_Q2 },
    { "flash-q2", hparams_flash, SYNTH_MIX_Q2 },
    { "flash-q4", hparams_flash, SYNTH_MIX_Q4 },
    { "pro-q2", hparams_pro, SYNTH_MIX_Q2 },
};

static const char *const mix_names[] = {
#define SYNTH_MIX_NAME(name, text) text,
    SYNTH_MIX_MAP(SYNTH_MIX_NAME)
#undef SYNTH_MIX_NAME
};

/* The published patterns go on alternating; at least the last layer has a learned router. */
static void set_layers(struct hparams *hp, uint32_t n_layer) {
    uint32_t n_given = hp->n_layer;
    if (n_layer > 0) hp->n_layer = n_layer;
    for (uint32_t i = 0; i < HP_LAYERS_MAX; i++) {
        bool used = i < hp->n_layer;
        if (used && i >= n_given && hp->ratio[i] == 0) hp->ratio[i] = hp->ratio[i - 2];
        if (!used) hp->ratio[i] = 0;
        hp->swiglu_clamp_exp[i] = hp->swiglu_clamp_shexp[i] = used ? 10 : 0;
    }
    hp->n_hash_layer = MIN(3, hp->n_layer - 1);
}

static int choose(struct synth *s, struct err *e) {
    const struct synth_options *o = &s->options;
    size_t preset = 0, mix = 0;
    while (preset < COUNT_OF(presets) && strcmp(presets[preset].name, o->preset) != 0) preset++;
    if (preset == COUNT_OF(presets))
        return err_set(e, ERR_INVALID, "no preset '%s'; there are " SYNTH_PRESETS, o->preset);
    if (o->n_layer > HP_LAYERS_MAX)
        return err_set(e, ERR_LIMIT, "%u layers, at most %d", o->n_layer, HP_LAYERS_MAX);
    if (o->n_expert > HP_EXPERTS_MAX)
        return err_set(e, ERR_LIMIT, "%u experts, at most %d", o->n_expert, HP_EXPERTS_MAX);
    s->mix = presets[preset].mix;
    if (o->mix) {
        while (mix < COUNT_OF(mix_names) && strcmp(mix_names[mix], o->mix) != 0) mix++;
        if (mix == COUNT_OF(mix_names))
            return err_set(e, ERR_INVALID, "no mix '%s'; there are " SYNTH_MIXES, o->mix);
        s->mix = (enum synth_mix)mix;
    }
    presets[preset].hparams(&s->hp);
    set_layers(&s->hp, o->n_layer);
    if (o->n_expert) s->hp.n_expert = o->n_expert;
    if (s->hp.n_expert < s->hp.n_expert_used)
        return err_set(e, ERR_INVALID, "%u experts, of which each token uses %u", s->hp.n_expert,
                       s->hp.n_expert_used);
    snprintf(s->hp.name, sizeof s->hp.name, "Synthetic %s %s, %u layers", o->preset, mix_names[s->mix],
             s->hp.n_layer);
    return 0;
}

/* ---- vocabulary ---- */

static bool is_weak(const struct tokenizer_vocab *v, uint32_t id) {
    const char *end_of_thinking = "</think>";
    bool normal = v->kinds ? v->kinds[id] == TOKEN_NORMAL : id >= 3 && id < 128000;
    if (normal || (int32_t)id == v->eos_id) return false;
    return v->tokens[id].len != strlen(end_of_thinking) ||
           memcmp(v->tokens[id].data, end_of_thinking, 8) != 0;
}

/* A given vocabulary decides the size of a tiny model, and must have that of the others. */
static int take_vocab(struct synth *s, struct err *e) {
    s->vocab = s->options.vocab;
    if (s->vocab && s->hp.n_vocab == TINY_VOCAB) s->hp.n_vocab = s->vocab->n_tokens;
    if (s->vocab && s->vocab->n_tokens != s->hp.n_vocab)
        return err_set(e, ERR_INVALID, "the tokenizer has %u tokens, the model %u", s->vocab->n_tokens,
                       s->hp.n_vocab);
    if (!s->vocab) {
        int rc = synth_vocab_init(&s->own, s->hp.n_vocab, e);
        if (rc < 0) return rc;
        s->vocab = &s->own.vocab;
    }
    s->hp.bos_id = s->vocab->bos_id;
    s->hp.eos_id = s->vocab->eos_id;
    s->weak = xcalloc(s->hp.n_vocab, 1);
    for (uint32_t id = 0; id < s->hp.n_vocab; id++) s->weak[id] = is_weak(s->vocab, id);
    return 0;
}

/* ---- the plan ---- */

int synth_new(struct synth **out, const struct synth_options *o, struct err *e) {
    *out = NULL;
    struct synth *s = xcalloc(1, sizeof *s);
    s->options = *o;
    int rc = choose(s, e);
    if (rc == 0) rc = take_vocab(s, e);
    if (rc < 0) {
        synth_free(s);
        return rc;
    }
    synth_noise_init(&s->noise);
    synth_list_model(&s->model, &s->hp, s->mix);
    synth_list_mtp(&s->mtp, &s->hp);
    *out = s;
    return 0;
}

void synth_free(struct synth *s) {
    if (!s) return;
    synth_vocab_deinit(&s->own);
    synth_list_free(&s->model);
    synth_list_free(&s->mtp);
    free(s->weak);
    free(s);
}

const struct hparams *synth_hparams(const struct synth *s) {
    return &s->hp;
}

static uint64_t bytes_of(const struct synth_list *list) {
    uint64_t total = 0;
    for (uint32_t i = 0; i < list->n; i++)
        total += ALIGN_UP(synth_tensor_bytes(&list->tensor[i]), (uint64_t)GGUF_ALIGNMENT);
    return total;
}

uint64_t synth_bytes(const struct synth *s) { return bytes_of(&s->model); }
uint64_t synth_mtp_bytes(const struct synth *s) { return bytes_of(&s->mtp); }

/* ---- metadata ---- */

#define PREFIX "deepseek4."

static void put_text(struct gguf_writer *w, const char *key, const char *text) {
    gguf_put_str(w, key, text, strlen(text));
}

static void put_general(struct gguf_writer *w, const struct synth *s) {
    put_text(w, "general.architecture", "deepseek4");
    put_text(w, "general.type", "model");
    put_text(w, "general.name", s->hp.name);
    gguf_put_u32(w, "general.quantization_version", 2);
    put_text(w, "pleiades.synth.preset", s->options.preset);
    put_text(w, "pleiades.synth.mix", mix_names[s->mix]);
    gguf_put_u64(w, "pleiades.synth.seed", s->options.seed);
}

static void put_dims(struct gguf_writer *w, const struct hparams *hp) {
    const struct { const char *key; uint32_t value; } dims[] = {
        { PREFIX "block_count", hp->n_layer },
        { PREFIX "context_length", hp->n_ctx_train },
        { PREFIX "embedding_length", hp->n_embd },
        { PREFIX "vocab_size", hp->n_vocab },
        { PREFIX "attention.head_count", hp->n_head },
        { PREFIX "attention.head_count_kv", 1 },
        { PREFIX "attention.key_length", hp->head_dim },
        { PREFIX "attention.value_length", hp->head_dim },
        { PREFIX "attention.q_lora_rank", hp->n_q_lora },
        { PREFIX "attention.output_lora_rank", hp->n_out_lora },
        { PREFIX "attention.output_group_count", hp->n_out_group },
        { PREFIX "attention.sliding_window", hp->n_swa },
        { PREFIX "attention.indexer.head_count", hp->n_idx_head },
        { PREFIX "attention.indexer.key_length", hp->idx_dim },
        { PREFIX "attention.indexer.top_k", hp->idx_top_k },
        { PREFIX "rope.dimension_count", hp->n_rot },
        { PREFIX "rope.scaling.original_context_length", hp->yarn_ctx },
        { PREFIX "expert_count", hp->n_expert },
        { PREFIX "expert_used_count", hp->n_expert_used },
        { PREFIX "expert_shared_count", hp->n_expert_shared },
        { PREFIX "expert_feed_forward_length", hp->n_ff_exp },
        { PREFIX "expert_gating_func", 4 },
        { PREFIX "hash_layer_count", hp->n_hash_layer },
        { PREFIX "hyper_connection.count", HP_HC },
        { PREFIX "hyper_connection.sinkhorn_iterations", hp->n_sinkhorn },
        { PREFIX "nextn_predict_layers", 1 },
    };
    for (size_t i = 0; i < COUNT_OF(dims); i++) gguf_put_u32(w, dims[i].key, dims[i].value);
}

static void put_reals(struct gguf_writer *w, const struct hparams *hp) {
    const struct { const char *key; float value; } reals[] = {
        { PREFIX "attention.layer_norm_rms_epsilon", hp->rms_eps },
        { PREFIX "attention.compress_rope_freq_base", hp->rope_base_compress },
        { PREFIX "rope.freq_base", hp->rope_base },
        { PREFIX "rope.scaling.factor", hp->yarn_factor },
        { PREFIX "rope.scaling.yarn_beta_fast", hp->yarn_beta_fast },
        { PREFIX "rope.scaling.yarn_beta_slow", hp->yarn_beta_slow },
        { PREFIX "expert_weights_scale", hp->expert_scale },
        { PREFIX "hyper_connection.epsilon", hp->hc_eps },
    };
    for (size_t i = 0; i < COUNT_OF(reals); i++) gguf_put_f32(w, reals[i].key, reals[i].value);
}

/* One ratio more than there are layers: the MTP block's, as in the published files. */
static void put_hparams(struct gguf_writer *w, const struct hparams *hp) {
    int32_t ratio[HP_LAYERS_MAX + 1] = { 0 };
    for (uint32_t i = 0; i < hp->n_layer; i++) ratio[i] = (int32_t)hp->ratio[i];
    put_dims(w, hp);
    put_reals(w, hp);
    gguf_put_bool(w, PREFIX "expert_weights_norm", true);
    put_text(w, PREFIX "rope.scaling.type", "yarn");
    gguf_put_array(w, PREFIX "attention.compress_ratios", GGUF_I32, ratio, hp->n_layer + 1);
    gguf_put_array(w, PREFIX "swiglu_clamp_exp", GGUF_F32, hp->swiglu_clamp_exp, hp->n_layer);
}

static void put_tokenizer(struct gguf_writer *w, const struct tokenizer_vocab *v) {
    put_text(w, "tokenizer.ggml.model", "gpt2");
    gguf_put_str(w, "tokenizer.ggml.pre", v->pre.data, (size_t)v->pre.len);
    gguf_put_strs(w, "tokenizer.ggml.tokens", v->tokens, v->n_tokens);
    if (v->kinds) gguf_put_array(w, "tokenizer.ggml.token_type", GGUF_I32, v->kinds, v->n_tokens);
    gguf_put_strs(w, "tokenizer.ggml.merges", v->merges, v->n_merges);
    if (v->bos_id >= 0) gguf_put_u32(w, "tokenizer.ggml.bos_token_id", (uint32_t)v->bos_id);
    if (v->eos_id >= 0) gguf_put_u32(w, "tokenizer.ggml.eos_token_id", (uint32_t)v->eos_id);
    if (v->pad_id >= 0) gguf_put_u32(w, "tokenizer.ggml.padding_token_id", (uint32_t)v->pad_id);
    gguf_put_bool(w, "tokenizer.ggml.add_bos_token", false);
    gguf_put_bool(w, "tokenizer.ggml.add_eos_token", false);
}

/* ---- the data: workers fill a ring of slots, the caller empties it in order ---- */

struct slot {
    uint8_t *bytes;
    size_t n;                                         /* 0: empty */
};

struct ring {
    const struct synth *s;
    const struct synth_list *list;
    pthread_mutex_t lock;
    pthread_cond_t filled, emptied;
    struct slot *slot;
    int n_slots;
    uint64_t taken, written;                          /* chunks of the file */
    uint32_t tensor_i;                                /* where the next chunk to be taken lies */
    uint64_t chunk_i;
    bool stop;
};

/* The next chunk, when its slot is empty; false when there are no more. */
static bool take_chunk(struct ring *r, const struct synth_tensor **t, uint64_t *chunk_i, struct slot **slot) {
    pthread_mutex_lock(&r->lock);
    while (!r->stop && r->taken - r->written >= (uint64_t)r->n_slots)
        pthread_cond_wait(&r->emptied, &r->lock);
    bool more = !r->stop && r->tensor_i < r->list->n;
    if (more) {
        *t = &r->list->tensor[r->tensor_i];
        *chunk_i = r->chunk_i++;
        *slot = &r->slot[r->taken++ % (uint64_t)r->n_slots];
        if (r->chunk_i == synth_chunks_of(*t).n) {
            r->tensor_i++;
            r->chunk_i = 0;
        }
    }
    pthread_mutex_unlock(&r->lock);
    return more;
}

static void *work(void *arg) {
    struct ring *r = arg;
    const struct synth_tensor *t;
    struct slot *slot;
    uint64_t i;
    while (take_chunk(r, &t, &i, &slot)) {
        struct synth_chunks chunks = synth_chunks_of(t);
        synth_fill_chunk(&r->s->noise, t, r->s->options.seed, i, r->s->weak, slot->bytes);
        pthread_mutex_lock(&r->lock);
        slot->n = (size_t)(i + 1 == chunks.n ? chunks.bytes_last : chunks.bytes);
        pthread_cond_signal(&r->filled);
        pthread_mutex_unlock(&r->lock);
    }
    return NULL;
}

static struct slot *wait_filled(struct ring *r) {
    struct slot *slot = &r->slot[r->written % (uint64_t)r->n_slots];
    pthread_mutex_lock(&r->lock);
    while (slot->n == 0) pthread_cond_wait(&r->filled, &r->lock);
    pthread_mutex_unlock(&r->lock);
    return slot;
}

static void give_back(struct ring *r, struct slot *slot) {
    pthread_mutex_lock(&r->lock);
    slot->n = 0;
    r->written++;
    pthread_cond_broadcast(&r->emptied);
    pthread_mutex_unlock(&r->lock);
}

static int drain(struct ring *r, struct gguf_writer *w, struct err *e) {
    const struct synth_options *o = &r->s->options;
    uint64_t n_chunks = 0, done = 0, total = bytes_of(r->list);
    for (uint32_t i = 0; i < r->list->n; i++) n_chunks += synth_chunks_of(&r->list->tensor[i]).n;
    int rc = 0;
    while (rc == 0 && r->written < n_chunks) {
        struct slot *slot = wait_filled(r);
        rc = gguf_writer_data(w, slot->bytes, slot->n, e);
        done += slot->n;
        give_back(r, slot);
        if (rc == 0 && o->progress && !o->progress(o->progress_ctx, done, total))
            rc = err_set(e, ERR_CANCELLED, "writing was cancelled");
    }
    return rc;
}

static int run_ring(struct ring *r, int n_threads, struct gguf_writer *w, struct err *e) {
    pthread_t thread[THREADS_MAX];
    int n = 0, rc = 0;
    pthread_mutex_init(&r->lock, NULL);
    pthread_cond_init(&r->filled, NULL);
    pthread_cond_init(&r->emptied, NULL);
    while (n < n_threads && pthread_create(&thread[n], NULL, work, r) == 0) n++;
    if (n > 0) rc = drain(r, w, e);
    else rc = err_set(e, ERR_NOMEM, "no thread could be started");
    pthread_mutex_lock(&r->lock);
    r->stop = true;
    pthread_cond_broadcast(&r->emptied);
    pthread_mutex_unlock(&r->lock);
    while (n > 0) pthread_join(thread[--n], NULL);
    pthread_cond_destroy(&r->emptied);
    pthread_cond_destroy(&r->filled);
    pthread_mutex_destroy(&r->lock);
    return rc;
}

static int write_data(const struct synth *s, const struct synth_list *list, struct gguf_writer *w,
                      struct err *e) {
    int n_threads = MAX(1, MIN(s->options.n_threads, THREADS_MAX)), rc = 0;
    struct ring r = { .s = s, .list = list, .n_slots = 2 * n_threads + 2 };
    r.slot = xcalloc((size_t)r.n_slots, sizeof *r.slot);
    for (int i = 0; i < r.n_slots && rc == 0; i++) {
        r.slot[i].bytes = malloc(SYNTH_CHUNK_BYTES);
        if (!r.slot[i].bytes) rc = err_set(e, ERR_NOMEM, "%d buffers of 4 MiB", r.n_slots);
    }
    if (rc == 0) rc = run_ring(&r, n_threads, w, e);
    for (int i = 0; i < r.n_slots; i++) free(r.slot[i].bytes);
    free(r.slot);
    return rc;
}

/* ---- files ---- */

static int check_room(const char *path, uint64_t bytes, struct err *e) {
    uint64_t room;
    int rc = file_free_bytes(path, &room, e);
    if (rc < 0 || room >= bytes + HEADER_RESERVE) return rc;
    return err_set(e, ERR_LIMIT, "%s: %.3f GB are needed, %.3f GB are free there", path,
                   (double)(bytes + HEADER_RESERVE) / 1e9, (double)room / 1e9);
}

static int write_file(const struct synth *s, const struct synth_list *list, bool with_model_keys,
                      const char *path, struct err *e) {
    struct gguf_writer *w;
    int rc = check_room(path, bytes_of(list), e);
    if (rc == 0) rc = gguf_writer_new(&w, path, GGUF_ALIGNMENT, e);
    if (rc < 0) return rc;
    put_general(w, s);
    if (with_model_keys) {
        put_hparams(w, &s->hp);
        put_tokenizer(w, s->vocab);
    }
    for (uint32_t i = 0; i < list->n; i++)
        gguf_put_tensor(w, list->tensor[i].name, list->tensor[i].type, list->tensor[i].n_dims,
                        list->tensor[i].ne);
    rc = gguf_writer_begin_data(w, e);
    if (rc == 0) rc = write_data(s, list, w, e);
    if (rc == 0) return gguf_writer_finish(w, e);
    gguf_writer_abort(w);
    return rc;
}

int synth_write(struct synth *s, const char *path, struct err *e) {
    return write_file(s, &s->model, true, path, e);
}

int synth_write_mtp(struct synth *s, const char *path, struct err *e) {
    return write_file(s, &s->mtp, false, path, e);
}
