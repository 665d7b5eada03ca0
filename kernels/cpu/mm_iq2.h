/* mm_iq2 - the grid of IQ2_XXS, packed: values 0..3 of entry n in low[n], values 4..7 in high[n], two
 * bits each, value v as v >> 4. */
#ifndef KERNELS_CPU_MM_IQ2_H
#define KERNELS_CPU_MM_IQ2_H

#include "common/base/types.h"

extern const uint8_t iq2_code_low[256], iq2_code_high[256];

#endif
