/* peak - what this machine's cores and memory can do at best, measured, so that a speed can be put
 * beside its limit.
 *
 * Bandwidth: all threads read one large buffer (huge pages where given). Peaks: chains of independent
 * multiply-adds in registers, the instruction that the matrix kernels use. Each figure takes some tens
 * of milliseconds. */
#ifndef KERNELS_CPU_PEAK_H
#define KERNELS_CPU_PEAK_H

/* Operations (2 per multiply-add) done by n rounds; the loops live with their instruction set. */
struct peak_loops {
    double (*int8)(long rounds);
    double (*f32)(long rounds);
};

extern const struct peak_loops peak_loops_avx2, peak_loops_avx512, peak_loops_neon;

#endif
