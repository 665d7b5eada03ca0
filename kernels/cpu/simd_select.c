/* Which tables this machine runs: asked of the processor, never guessed from the build. Best first in
 * the list. */
#include "kernels/cpu/simd.h"

#include "common/base/check.h"

#include <stdlib.h>

#if defined(__x86_64__)

#include <cpuid.h>

static uint64_t xgetbv0(void) {
    uint32_t low, high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return (uint64_t)high << 32 | low;
}

#define BIT(n) (1u << (n))
#define HAS(word, bits) (((word) & (bits)) == (bits))

/* The flags that the Makefile compiles each file with, and that the system saves the registers. */
static bool has_avx2(void) {
    uint32_t a, b, c, d;
    if (!__get_cpuid(1, &a, &b, &c, &d) || !HAS(c, BIT(12) | BIT(27) | BIT(28) | BIT(29)))
        return false; /* FMA OSXSAVE AVX F16C */
    if (!HAS(xgetbv0(), 6u)) return false;
    return __get_cpuid_count(7, 0, &a, &b, &c, &d) && HAS(b, BIT(5));
}

static bool has_avx512(void) {
    uint32_t a, b, c, d;
    if (!has_avx2() || !HAS(xgetbv0(), 0xe6u) || !__get_cpuid_count(7, 0, &a, &b, &c, &d)) return false;
    return HAS(b, BIT(16) | BIT(17) | BIT(30) | BIT(31)) &&            /* F DQ BW VL */
           HAS(c, BIT(1) | BIT(6) | BIT(11) | BIT(12));                /* VBMI VBMI2 VNNI BITALG */
}

#elif defined(__aarch64__) && defined(__linux__)

#include <sys/auxv.h>

static bool has_neon(void) {                       /* FPHP ASIMDHP ASIMDDP */
    return (getauxval(AT_HWCAP) & (1u << 9 | 1u << 10 | 1u << 20)) == (1u << 9 | 1u << 10 | 1u << 20);
}

static bool has_i8mm(void) {
    return has_neon() && (getauxval(AT_HWCAP2) & 1u << 13);
}

#elif defined(__aarch64__) && defined(__APPLE__)

#include <sys/sysctl.h>

static bool has_feature(const char *name) {
    int value = 0;
    size_t size = sizeof value;
    return sysctlbyname(name, &value, &size, NULL, 0) == 0 && value;
}

static bool has_neon(void) {
    return has_feature("hw.optional.arm.FEAT_DotProd") && has_feature("hw.optional.arm.FEAT_FP16");
}

static bool has_i8mm(void) {
    return has_neon() && has_feature("hw.optional.arm.FEAT_I8MM");
}

#endif

static bool has_generic(void) {
    return true;
}

static const struct {
    const struct cpu_simd *simd;
    bool (*supported)(void);
} tables[] = {
#if defined(__x86_64__)
    { &cpu_simd_avx512, has_avx512 },
    { &cpu_simd_avx2, has_avx2 },
#elif defined(__aarch64__) && (defined(__linux__) || defined(__APPLE__))
    { &cpu_simd_i8mm, has_i8mm },
    { &cpu_simd_neon, has_neon },
#endif
    { &cpu_simd_generic, has_generic },
};

int cpu_simd_list(const struct cpu_simd **out, int max) {
    int n = 0;
    for (size_t i = 0; i < COUNT_OF(tables) && n < max; i++)
        if (tables[i].supported()) out[n++] = tables[i].simd;
    return n;
}

const struct cpu_simd *cpu_simd_find(const char *name) {
    const struct cpu_simd *list[COUNT_OF(tables)];
    int n = cpu_simd_list(list, (int)COUNT_OF(tables));
    for (int i = 0; i < n; i++)
        if (strcmp(list[i]->name, name) == 0) return list[i];
    return NULL;
}

const struct cpu_simd *cpu_simd_select(void) {
    const char *name = getenv("PLEIADES_SIMD");
    const struct cpu_simd *named = name ? cpu_simd_find(name) : NULL, *best;
    CHECK(cpu_simd_list(&best, 1) == 1);
    return named ? named : best;
}

enum act_kind act_kind_for(enum dtype type) {
    switch (type) {
    case DTYPE_Q8_0:
    case DTYPE_Q4_0:
    case DTYPE_MXFP4: return ACT_Q8_0;
    case DTYPE_Q2_K:
    case DTYPE_Q3_K:
    case DTYPE_Q4_K:
    case DTYPE_Q5_K:
    case DTYPE_Q6_K:
    case DTYPE_IQ2_XXS: return ACT_Q8_K;
    default: return ACT_F32;
    }
}
