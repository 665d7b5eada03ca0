/* mm_iq2 - the tables of IQ2_XXS in shapes that instruction sets want.
 *
 * iq2_code_*: the grid with two bits a value (0: 8, 1: 25, 2: 43), 512 bytes, which fit in vector
 * registers: values 0..3 of entry n in low[n], values 4..7 in high[n]. iq2_sign_bytes: for each sign
 * index eight bytes 1 or -1. */
#ifndef KERNELS_CPU_MM_IQ2_H
#define KERNELS_CPU_MM_IQ2_H

#include "common/base/types.h"

extern const uint8_t iq2_code_low[256], iq2_code_high[256];
extern const uint64_t iq2_sign_bytes[128];

#endif
