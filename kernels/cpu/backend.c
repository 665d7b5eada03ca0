#include "kernels/cpu/cpu.h"

#include "common/base/check.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/mman.h>

/* ---- memory: host memory, so a mapping is used where it lies ---- */

struct kmem {
    void *data;
    uint64_t size;
    bool owned;
};

static struct kmem *cpu_alloc(struct kernels *k, uint64_t size, void **data, struct err *e) {
    (void)k;
    *data = NULL;
    void *memory = mmap(NULL, size ? size : 1, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANON, -1, 0);
    if (memory == MAP_FAILED) {
        err_set(e, ERR_NOMEM, "cannot allocate %llu bytes", (unsigned long long)size);
        return NULL;
    }
    struct kmem *mem = xcalloc(1, sizeof *mem);
    *mem = (struct kmem){ .data = memory, .size = size ? size : 1, .owned = true };
    *data = memory;
    return mem;
}

static struct kmem *cpu_map(struct kernels *k, const void *host, uint64_t size, void **data, struct err *e) {
    (void)k, (void)e;
    struct kmem *mem = xcalloc(1, sizeof *mem);
    *mem = (struct kmem){ .data = (void *)(uintptr_t)host, .size = size, .owned = false };
    *data = mem->data;
    return mem;
}

static void cpu_release(struct kernels *k, struct kmem *mem) {
    (void)k;
    if (mem->owned) munmap(mem->data, mem->size);
    free(mem);
}

static int cpu_upload(struct kernels *k, void *to, const void *from_host, uint64_t size, struct err *e) {
    (void)k, (void)e;
    memcpy(to, from_host, size);
    return 0;
}

static int cpu_download(struct kernels *k, void *to_host, const void *from, uint64_t size, struct err *e) {
    memcpy(to_host, from, size);
    return kernels_finish(k, e);
}

static int cpu_finish(struct kernels *k, struct err *e) {
    int code = k->failed.code;
    if (code == 0) return 0;
    if (e) *e = k->failed;
    k->failed = (struct err){ 0 };
    return code;
}

/* ---- scratch ---- */

void *cpu_scratch(struct cpu *c, enum cpu_scratch slot, uint64_t size) {
    struct cpu_scratch_mem *mem = &c->scratch[slot];
    if (mem->size >= size) return mem->data;
    if (mem->data) munmap(mem->data, mem->size);
    *mem = (struct cpu_scratch_mem){ 0 };
    uint64_t rounded = ALIGN_UP(size, (uint64_t)1 << 16);
    void *data = mmap(NULL, rounded, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANON, -1, 0);
    if (data == MAP_FAILED) {
        err_set(&c->base.failed, ERR_NOMEM, "cannot allocate %llu bytes of work space",
                (unsigned long long)rounded);
        return NULL;
    }
#ifdef MADV_HUGEPAGE
    if (rounded >= (uint64_t)4 << 20)
        madvise(data, rounded, MADV_HUGEPAGE); /* a hint: failure costs speed only */
#endif
    *mem = (struct cpu_scratch_mem){ .data = data, .size = rounded };
    return data;
}

void *cpu_scratch_threads(struct cpu *c, uint64_t size_each, uint64_t *stride) {
    *stride =
        ALIGN_UP(size_each, (uint64_t)4096) + 256; /* +256: threads off each other's cache sets */
    return cpu_scratch(c, SCRATCH_THREADS, *stride * (uint64_t)pool_threads(c->pool));
}

void *cpu_mm_scratch(struct cpu *c, int thread) {
    return (uint8_t *)c->mm_scratch + (uint64_t)thread * SIMD_SCRATCH;
}

/* ---- open and close ---- */

static void cpu_close(struct kernels *k) {
    struct cpu *c = cpu_of(k);
    pool_free(c->pool);
    for (int i = 0; i < SCRATCH_SLOTS; i++)
        if (c->scratch[i].data) munmap(c->scratch[i].data, c->scratch[i].size);
    free(c->mm_scratch);
    free(c);
}

#define CPU_ENTRY(name) .name = cpu_##name,
static const struct kernels_ops cpu_ops = {
    .name = "cpu",
    .close = cpu_close,
    .alloc = cpu_alloc,
    .map = cpu_map,
    .release = cpu_release,
    .upload = cpu_upload,
    .download = cpu_download,
    .finish = cpu_finish,
    KERNEL_OPS(CPU_ENTRY)
};
#undef CPU_ENTRY

int kernels_cpu_open(struct kernels **out, const struct kernels_config *config, struct err *e) {
    *out = NULL;
    struct cpu *c = xcalloc(1, sizeof *c);
    c->base.ops = &cpu_ops;
    c->base.config = *config;
    c->simd = cpu_simd_select();
    int rc = pool_new(&c->pool, config->n_threads, config->pin_threads, e);
    if (rc < 0) goto fail;
    if (posix_memalign(&c->mm_scratch, 4096, (size_t)SIMD_SCRATCH * (size_t)pool_threads(c->pool)) != 0) {
        c->mm_scratch = NULL;
        rc = err_set(e, ERR_NOMEM, "cannot allocate work space for %d threads", pool_threads(c->pool));
        goto fail;
    }
    *out = &c->base;
    return 0;
fail:
    cpu_close(&c->base);
    return rc;
}

const char *kernels_cpu_simd_name(void) {
    return cpu_simd_select()->name;
}
