/* synth - writes models with random weights: published shapes, names and types, a vocabulary, and
 * activations that behave.
 *
 * A model is a function of (preset, layers, experts, mix, seed, vocabulary): the same bytes on every machine,
 * however many threads. Quantised tensors are random valid blocks of the right variance, made directly,
 * so writing runs at the speed of the disk. One thread uses a struct synth; a write has worker threads
 * of its own. Limits: HP_LAYERS_MAX layers.
 *
 * How the numbers are chosen (u = unit variance):
 *   matrices              variance 1 / fan-in, so outputs are u for normalised inputs; norms 1 +- 0.1
 *   KV and compressed     norm 1.5: scores have that deviation, so a head looks at some rows, not at
 *     all of them alike
 *   streams               begin with the embedding (u), end with deviation 1.4: all layers together
 *     add variance 1
 *   connections           streams read with weight about 1/2, written with about 1, mixed with 0.9 on
 *     the diagonal
 *   head                  logits of deviation 2.5; those of control tokens 4 times smaller, except the
 *                         ends of text and of thinking, which come as often as any word */
#ifndef MODEL_SYNTH_H
#define MODEL_SYNTH_H

#include "common/model/hparams.h"
#include "common/model/tokenizer.h"

/* tiny      15 MB: every kind of layer and routing at the least dimensions the fast kernels take;
 *   vocabulary 1024
 * tiny-pro  the same with the layer pattern of Pro: the first two layers compress by 128
 * mid       the true layers of Flash, few of them (4: SWA CSA HCA CSA); true embedding and head
 * others    the published shapes */
#define SYNTH_PRESETS "tiny|tiny-pro|mid|flash-q2|flash-q4|pro-q2"
/* Types of the routed experts: gate and up, down. q2: IQ2_XXS, Q2_K. q4: Q4_K. q2q4: q2, the last six
 * layers (or the last third of fewer than eighteen) q4. q8, f16, mxfp4: all three. All other tensors
 * have the published types. */
#define SYNTH_MIXES "q2|q4|q2q4|q8|f16|mxfp4"

struct synth_options {
    const char *preset, *mix;              /* one of the above; mix NULL: the preset's, q2 for tiny and mid */
    uint32_t n_layer, n_expert;                       /* 0: the preset's */
    uint64_t seed;
    const struct tokenizer_vocab *vocab;              /* NULL: synth_vocab. Borrowed until synth_free */
    int n_threads;                                    /* 0: one */
    bool (*progress)(void *ctx, uint64_t done, uint64_t total);  /* bytes; false cancels. Calling thread */
    void *progress_ctx;
};

struct synth;

int synth_new(struct synth **out, const struct synth_options *o, struct err *e);
void synth_free(struct synth *s);                     /* NULL is fine */
const struct hparams *synth_hparams(const struct synth *s);

/* Bytes of tensor data; the header comes on top (5.3 MB with the full vocabulary). */
uint64_t synth_bytes(const struct synth *s);
uint64_t synth_mtp_bytes(const struct synth *s);

/* The model, and its MTP block as a file of its own. ERR_LIMIT when the disk has no room, before
 * anything is written. */
int synth_write(struct synth *s, const char *path, struct err *e);
int synth_write_mtp(struct synth *s, const char *path, struct err *e);

#endif
