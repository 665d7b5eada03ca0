/* rope - cos, sin tables for rows of positions, computed on the host once per batch.
 *
 * The angle is p * f_i in f32 with f_i rounded once from double (spec 2.4); cos and sin of that f32
 * angle are computed in double and rounded once, so every backend rotates by the same numbers. Pure
 * functions. */
#ifndef NODE_ROPE_H
#define NODE_ROPE_H

#include "common/model/hparams.h"

enum { ROPE_PAIRS_MAX = 512 };

struct rope_freqs {
    float f[ROPE_PAIRS_MAX];
    uint32_t n;                                    /* pairs */
};

/* ratio 0: plain base; else the compressed layers' base with YaRN. */
void rope_freqs_init(struct rope_freqs *out, const struct hparams *hp, bool compressed);

/* cs[2i], cs[2i+1] = cos, sin of pos * f[i] */
void rope_fill(float *cs, const struct rope_freqs *freqs, int32_t pos);

#endif
