/* synth_vocab - a vocabulary of our own for synthetic models: laid out and merged like the published
 * one, free to publish.
 *
 * Ids 0..2 begin, end and pad; then the 256 bytes; then one token per merge (rank k makes id 259 + k);
 * then added tokens. With SYNTH_VOCAB_FULL tokens the added ones have their published ids
 * (128000..129279), with fewer they are the last ones. The merges are learned from a small text; what
 * that leaves free is filled with invented words of two or three syllables. All but about ten tokens
 * encode to themselves. So every id is in use, and what a synthetic model says is text. Always the
 * same; memory of the caller's struct, one thread. */
#ifndef MODEL_SYNTH_VOCAB_H
#define MODEL_SYNTH_VOCAB_H

#include "common/base/arena.h"
#include "common/model/tokenizer.h"

enum { SYNTH_VOCAB_FULL = 129280, SYNTH_VOCAB_MIN = 512 };  /* any number from MIN to FULL / 2, or FULL */

struct synth_vocab {
    struct tokenizer_vocab vocab;                                     /* views into what follows */
    struct arena text;
    struct gguf_str *tokens, *merges;
    int32_t *kinds;
};

int synth_vocab_init(struct synth_vocab *sv, uint32_t n_tokens, struct err *e);
void synth_vocab_deinit(struct synth_vocab *sv);                      /* a zeroed struct is fine */

#endif
