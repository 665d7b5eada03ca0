/* streams - residual streams on their way from stage to stage in 16 bits (wire format f16s).
 *
 * A row is four streams; of each travel its largest magnitude as f32 and the values divided by it as IEEE
 * half floats: an error of at most 2^-11 of a value, or 2^-25 of the largest. Little-endian like
 * everything on the wire. Pure; the caller's memory. */
#ifndef NODE_STREAMS_H
#define NODE_STREAMS_H

#include "common/base/types.h"

uint64_t streams_f16s_bytes(uint32_t n_embd, uint32_t n_row);
void streams_to_f16s(uint8_t *out, const float *x, uint32_t n_embd, uint32_t n_row);
void streams_from_f16s(float *out, const uint8_t *in, uint32_t n_embd, uint32_t n_row);

#endif
