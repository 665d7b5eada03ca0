#include "node/streams.h"

#include "kernels/kernels.h"

#include <math.h>

static uint64_t stream_bytes(uint32_t n_embd) {
    return sizeof(float) + (uint64_t)n_embd * sizeof(uint16_t);
}

uint64_t streams_f16s_bytes(uint32_t n_embd, uint32_t n_row) {
    return (uint64_t)n_row * HC_STREAMS * stream_bytes(n_embd);
}

void streams_to_f16s(uint8_t *out, const float *x, uint32_t n_embd, uint32_t n_row) {
    for (uint64_t s = 0; s < (uint64_t)n_row * HC_STREAMS; s++, x += n_embd, out += stream_bytes(n_embd)) {
        float largest = 0;
        for (uint32_t i = 0; i < n_embd; i++) largest = fmaxf(largest, fabsf(x[i]));
        float factor = largest > 0 ? 1 / largest : 0;
        if (!isfinite(factor)) factor = 0;            /* smaller than any normal number: nothing */
        memcpy(out, &largest, sizeof largest);
        for (uint32_t i = 0; i < n_embd; i++) {
            uint16_t h = f16_from_f32(x[i] * factor);
            memcpy(out + sizeof largest + i * sizeof h, &h, sizeof h);
        }
    }
}

void streams_from_f16s(float *out, const uint8_t *in, uint32_t n_embd, uint32_t n_row) {
    for (uint64_t s = 0; s < (uint64_t)n_row * HC_STREAMS; s++, out += n_embd, in += stream_bytes(n_embd)) {
        float largest;
        memcpy(&largest, in, sizeof largest);
        for (uint32_t i = 0; i < n_embd; i++) {
            uint16_t h;
            memcpy(&h, in + sizeof largest + i * sizeof h, sizeof h);
            out[i] = f16_to_f32(h) * largest;
        }
    }
}
