/* inline - what the hand-written inner loops need of a compiler: functions that vanish into their
 * callers, and loops over registers that unroll whole (a loop that stays makes its array live in memory).
 */
#ifndef KERNELS_CPU_INLINE_H
#define KERNELS_CPU_INLINE_H

#define INLINE static inline __attribute__((always_inline))

#if defined(__clang__)
#define UNROLL _Pragma("clang loop unroll(full)")
#else
#define UNROLL _Pragma("GCC unroll 16")
#endif

#endif
