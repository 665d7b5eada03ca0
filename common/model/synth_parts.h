/* synth_parts - what the parts of synth share: the list of tensors (synth_plan.c), the making of bytes
 * (synth_fill.c), the writing of files (synth.c).
 *
 * A tensor's bytes are cut into chunks of about SYNTH_CHUNK_BYTES that can be made in any order by any
 * thread: chance starts anew for each from (seed, tensor name, chunk). Private to synth*.c and its
 * test. */
#ifndef MODEL_SYNTH_PARTS_H
#define MODEL_SYNTH_PARTS_H

#include "common/model/synth.h"

enum { SYNTH_CHUNK_BYTES = 4 << 20, SYNTH_NAME_MAX = 64 };

enum synth_fill {
    FILL_RANDOM,                                      /* mean (F32 only) and deviation */
    FILL_HEAD,                                        /* random, some rows 4 times weaker */
    FILL_HC_BASE,                                     /* 24 values: 4 read, 4 write, 4 x 4 mixing */
    FILL_EXPERT_IDS,                                  /* rows of different numbers below `below` */
};

struct synth_tensor {
    char name[SYNTH_NAME_MAX];
    enum dtype type;
    uint32_t n_dims;
    uint64_t ne[3];
    enum synth_fill fill;
    float mean, deviation;
    uint32_t below;
};

struct synth_list {
    struct synth_tensor *tensor;
    uint32_t n, n_room;
};

enum synth_mix {
#define SYNTH_MIX_MAP(X) X(Q2, "q2") X(Q4, "q4") X(Q2Q4, "q2q4") X(Q8, "q8") X(F16, "f16") X(MXFP4, "mxfp4")
#define SYNTH_MIX_ENUM(name, text) SYNTH_MIX_##name,
    SYNTH_MIX_MAP(SYNTH_MIX_ENUM)
#undef SYNTH_MIX_ENUM
    SYNTH_MIXES_N
};

void synth_list_model(struct synth_list *list, const struct hparams *hp, enum synth_mix mix);
void synth_list_mtp(struct synth_list *list, const struct hparams *hp);
void synth_list_free(struct synth_list *list);
uint64_t synth_tensor_bytes(const struct synth_tensor *t);

struct synth_chunks {                                 /* how a tensor is cut */
    uint64_t n, bytes, bytes_last;
};
struct synth_chunks synth_chunks_of(const struct synth_tensor *t);

/* Tables every chunk needs; immutable after init. */
struct synth_noise {
    float normal[4096];                               /* mean 0, mean square 1 */
    float unit[DTYPE_IDS];                            /* deviation of random blocks with scale 1 */
};
void synth_noise_init(struct synth_noise *n);

/* Bytes of chunk chunk_i of the tensor to out (at least SYNTH_CHUNK_BYTES). weak: for FILL_HEAD, 1 for
 * each weak row. */
void synth_fill_chunk(const struct synth_noise *n, const struct synth_tensor *t, uint64_t seed,
                      uint64_t chunk_i, const uint8_t *weak, uint8_t *out);

#endif
