/* dtype - the element types a GGUF can hold: ids, block sizes, decoding to f32 and (for synth and
 * tests) encoding.
 *
 * Formats are those of the GGUF world, little-endian; a row is `n` values, n a multiple of the block.
 * The decoders here are the plain reference that every SIMD kernel is tested against. Pure functions,
 * no state. */
#ifndef MODEL_DTYPE_H
#define MODEL_DTYPE_H

#include "common/base/types.h"

/* name, GGUF id, values per block, bytes per block, decodes to f32 here */
#define DTYPE_MAP(X)                     \
    X(F32, 0, 1, 4, 1)                   \
    X(F16, 1, 1, 2, 1)                   \
    X(Q4_0, 2, 32, 18, 1)                \
    X(Q4_1, 3, 32, 20, 0)                \
    X(Q5_0, 6, 32, 22, 0)                \
    X(Q5_1, 7, 32, 24, 0)                \
    X(Q8_0, 8, 32, 34, 1)                \
    X(Q8_1, 9, 32, 36, 0)                \
    X(Q2_K, 10, 256, 84, 1)              \
    X(Q3_K, 11, 256, 110, 1)             \
    X(Q4_K, 12, 256, 144, 1)             \
    X(Q5_K, 13, 256, 176, 1)             \
    X(Q6_K, 14, 256, 210, 1)             \
    X(Q8_K, 15, 256, 292, 0)             \
    X(IQ2_XXS, 16, 256, 66, 1)           \
    X(IQ2_XS, 17, 256, 74, 0)            \
    X(IQ3_XXS, 18, 256, 98, 0)           \
    X(IQ1_S, 19, 256, 50, 0)             \
    X(IQ4_NL, 20, 32, 18, 0)             \
    X(IQ3_S, 21, 256, 110, 0)            \
    X(IQ2_S, 22, 256, 82, 0)             \
    X(IQ4_XS, 23, 256, 136, 0)           \
    X(I8, 24, 1, 1, 0)                   \
    X(I16, 25, 1, 2, 0)                  \
    X(I32, 26, 1, 4, 0)                  \
    X(I64, 27, 1, 8, 0)                  \
    X(F64, 28, 1, 8, 0)                  \
    X(IQ1_M, 29, 256, 56, 0)             \
    X(BF16, 30, 1, 2, 1)                 \
    X(TQ1_0, 34, 256, 54, 0)             \
    X(TQ2_0, 35, 256, 66, 0)             \
    X(MXFP4, 39, 32, 17, 1)

enum dtype {
#define DTYPE_ENUM(name, id, block, bytes, decodes) DTYPE_##name = (id),
    DTYPE_MAP(DTYPE_ENUM)
#undef DTYPE_ENUM
    DTYPE_IDS = 40                                 /* one more than the largest id */
};

bool dtype_known(uint32_t id);                     /* has a block size */
bool dtype_decodes(uint32_t id);                   /* dtype_decode works */
const char *dtype_name(uint32_t id);               /* "Q8_0"; "?" when unknown */
uint32_t dtype_block(uint32_t id);                 /* values per block; 0 when unknown */
uint32_t dtype_block_bytes(uint32_t id);           /* bytes per block; 0 when unknown */
uint64_t dtype_row_bytes(uint32_t id, uint64_t n); /* n must be a multiple of the block; known id */

/* out[n] = the values of n/block blocks at `in`. dtype_decodes(id) must hold. */
void dtype_decode(enum dtype id, const void *in, float *out, uint64_t n);

/* Nearest representable blocks for F32 F16 BF16 Q8_0 Q4_0 Q2_K Q3_K Q4_K Q5_K Q6_K IQ2_XXS MXFP4. Good
 * enough for synthetic models and tests, no importance matrix. Every value that a block can hold
 * exactly at its own scale stays finite. */
void dtype_encode(enum dtype id, const float *in, void *out, uint64_t n);

extern const uint64_t iq2xxs_grid[256];            /* 8 magnitudes a word, least significant byte first */
extern const uint8_t iq2xxs_signs[128];            /* sign byte for each 7-bit index: even parity */

#endif
