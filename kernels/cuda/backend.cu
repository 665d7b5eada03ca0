/* The device: opening it with reasons when that fails, its memory, and the ways in and out.
 *
 *   upload, small    host ──► staging (pinned) ─┐  one copy and one kernel that puts every piece in
 *     its place,
 *   upload, large    host ──► bounce (pinned) ──┤  before the next operations run
 *   map              host ──► several threads, each with its own stream and two pinned buffers; large
 *                    weights that the card has no room for go to pinned host memory and are read there
 *   download         runs the queue, then device ──► bounce ──► host
 *
 * Nothing here uses managed memory. */
#include "kernels/cuda/cuda.h"
#include "kernels/cuda/device.cuh"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

enum {
    BOUNCE_BYTES = 16 << 20,
    DOWNLOAD_PART = 1 << 20,                       /* small, so that the first copy out starts soon */
    LOAD_THREADS = 8,
    LOAD_CHUNK = 4 << 20,                 /* two of these per thread: 64 MiB of pinned memory while loading */
    LOAD_ALONE_MAX = 16 << 20,                     /* smaller weights are not worth the threads */
    DRIVER_MIN = 12000,
    BLOCK_ROWS = 2048,                             /* 256 MiB of queries; fewer leave multiprocessors idle */
    HOST_WEIGHT_MIN = 64 << 20,                    /* smaller ones are read at every token: stay here */
};

static int error_code(cudaError_t rc) {
    return rc == cudaErrorMemoryAllocation ? ERR_NOMEM : ERR_DEVICE;
}

bool cuda_ok(struct cuda *c, cudaError_t rc, const char *what) {
    if (rc == cudaSuccess) return true;
    cudaGetLastError();        /* the error of a call is ours now; that of a dead card comes back by itself */
    if (!cuda_failed(c))
        err_set(&c->base.failed, error_code(rc), "CUDA device %d: %s: %s", c->device, what,
                cudaGetErrorString(rc));
    return false;
}

static int failed_into(struct cuda *c, struct err *e) {
    int code = c->base.failed.code;
    if (e && code != 0) *e = c->base.failed;
    return code;
}

/* ---- memory ---- */

static int no_memory(struct err *e, uint64_t size) {
    size_t free_bytes = 0, total = 0;
    cudaGetLastError();
    cudaMemGetInfo(&free_bytes, &total);
    return err_set(e, ERR_NOMEM, "CUDA: %.1f MiB wanted, %.1f of %.1f GiB free on the card",
                   (double)size / (1 << 20), (double)free_bytes / (1 << 30),
                   (double)total / (1 << 30));
}

static struct kmem *device_memory(uint64_t size, void **data, struct err *e) {
    *data = NULL;
    uint64_t rounded = ALIGN_UP(size ? size : 1, (uint64_t)256);
    cudaError_t rc = cudaMalloc(data, rounded);
    if (rc != cudaSuccess) {
        if (rc == cudaErrorMemoryAllocation) no_memory(e, rounded);
        else err_set(e, ERR_DEVICE, "CUDA: cannot allocate memory: %s", cudaGetErrorString(rc));
        *data = NULL;
        return NULL;
    }
    struct kmem *mem = (struct kmem *)xcalloc(1, sizeof *mem);
    mem->data = (uint8_t *)*data;
    mem->size = size;
    return mem;
}

/* The device is a property of the calling thread, which may be another one than last time. */
static struct cuda *enter(struct kernels *k) {
    struct cuda *c = cuda_of(k);
    cudaSetDevice(c->device);
    return c;
}

static struct kmem *cuda_alloc(struct kernels *k, uint64_t size, void **data, struct err *e) {
    struct cuda *c = enter(k);
    struct kmem *mem = device_memory(size, data, e);
    if (!mem) return NULL;
    if (cudaMemsetAsync(mem->data, 0, ALIGN_UP(size, (uint64_t)256), c->stream) == cudaSuccess) return mem;
    err_set(e, ERR_DEVICE, "CUDA: cannot clear memory: %s", cudaGetErrorString(cudaGetLastError()));
    cudaFree(mem->data);
    free(mem);
    *data = NULL;
    return NULL;
}

static void cuda_release(struct kernels *k, struct kmem *mem) {
    struct cuda *c = enter(k);
    queue_run(c);                        /* what is recorded may still use it; cudaFree waits for what runs */
    cuda_patches_run(c);
    if (mem->is_weight) queue_forget_graphs(c);    /* the same address may come back with another layout */
    cudaStreamSynchronize(c->stream);
    if (mem->on_host) cudaFreeHost(mem->data);
    else cudaFree(mem->data);
    free(mem);
}

void *cuda_scratch(struct cuda *c, enum scratch_slot slot, uint64_t size) {
    if (c->scratch[slot].size >= size) return c->scratch[slot].data;
    if (cuda_failed(c)) return NULL;
    queue_forget_graphs(c);
    cudaStreamSynchronize(c->stream);
    cudaFree(c->scratch[slot].data);
    c->scratch[slot].data = NULL;
    c->scratch[slot].size = 0;
    uint64_t rounded = ALIGN_UP(size, (uint64_t)1 << 20);
    void *data = NULL;
    if (cudaMalloc(&data, rounded) != cudaSuccess) {
        no_memory(&c->base.failed, rounded);
        return NULL;
    }
    if (!cuda_ok(c, cudaMemsetAsync(data, 0, rounded, c->stream), "clear work space")) return NULL;
    c->scratch[slot].data = data;
    c->scratch[slot].size = rounded;
    return data;
}

/* ---- small uploads: collected, then put in place by one kernel ---- */

struct patch {                                     /* at the start of staging: one for each piece */
    uint64_t to;
    uint32_t offset, size;
};

enum { PATCH_DATA = PATCHES_MAX * (int)sizeof(struct patch) };

static __global__ void patch_kernel(const uint8_t *staging) {
    device_wait();
    struct patch p = ((const struct patch *)staging)[blockIdx.x];
    uint8_t *to = (uint8_t *)p.to;
    const uint8_t *from = staging + p.offset;      /* 16-byte aligned */
    if ((p.to | p.size) % 4 == 0) {
        for (uint32_t i = threadIdx.x; i < p.size / 4; i += blockDim.x)
            ((uint32_t *)to)[i] = ((const uint32_t *)from)[i];
    } else {
        for (uint32_t i = threadIdx.x; i < p.size; i += blockDim.x) to[i] = from[i];
    }
}

static uint8_t *staging_host(struct cuda *c) {
    return c->staging.host + (uint64_t)c->staging.current * STAGING_BYTES;
}

/* Pieces are put in place in no particular order, so two of the same bytes may not wait together.
 * order: by address. */
static bool patch_meets_another(const struct cuda *c, const struct patch *all, uint64_t to,
                                uint64_t size, uint32_t *place) {
    uint32_t low = 0, high = c->staging.n_patches;
    while (low < high) {
        uint32_t middle = (low + high) / 2;
        if (all[c->staging.order[middle]].to < to) low = middle + 1;
        else high = middle;
    }
    *place = low;
    if (low < c->staging.n_patches && all[c->staging.order[low]].to < to + size) return true;
    if (low == 0) return false;
    const struct patch *before = &all[c->staging.order[low - 1]];
    return before->to + before->size > to;
}

static bool patch_add(struct cuda *c, void *to, const void *from, uint64_t size) {
    uint32_t place = 0;
    if (c->staging.n_patches == PATCHES_MAX ||
        PATCH_DATA + c->staging.used + ALIGN_UP(size, (uint64_t)16) > STAGING_BYTES ||
        patch_meets_another(c, (const struct patch *)staging_host(c), (uint64_t)to, size, &place)) {
        cuda_patches_run(c);
        place = 0;
    }
    if (c->staging.n_patches == 0 &&
        !cuda_ok(c, cudaEventSynchronize(c->staging.done[c->staging.current]),
                 "wait for an upload"))
        return false;
    uint16_t *order = c->staging.order;
    memmove(order + place + 1, order + place, (c->staging.n_patches - place) * sizeof *order);
    order[place] = (uint16_t)c->staging.n_patches;
    struct patch *p = (struct patch *)staging_host(c) + c->staging.n_patches++;
    p->to = (uint64_t)to;
    p->offset = (uint32_t)(PATCH_DATA + c->staging.used);
    p->size = (uint32_t)size;
    memcpy(staging_host(c) + p->offset, from, size);
    c->staging.used += ALIGN_UP(size, (uint64_t)16);
    return true;
}

bool cuda_patch(struct cuda *c, void *to, const void *from, uint64_t size) {
    for (uint64_t at = 0; at < size; at += PATCH_BYTES_MAX)
        if (!patch_add(c, (uint8_t *)to + at, (const uint8_t *)from + at,
                       MIN((uint64_t)PATCH_BYTES_MAX, size - at)))
            return false;
    return true;
}

void cuda_patches_run(struct cuda *c) {
    uint32_t n = c->staging.n_patches;
    if (n == 0) return;
    uint8_t *host = staging_host(c), *device = c->staging.device;
    uint64_t used = c->staging.used;
    c->staging.n_patches = 0;
    c->staging.used = 0;
    if (cuda_failed(c)) return;
    cuda_ok(
        c,
        cudaMemcpyAsync(device, host, n * sizeof(struct patch), cudaMemcpyHostToDevice, c->stream),
        "upload");
    cuda_ok(c,
            cudaMemcpyAsync(device + PATCH_DATA, host + PATCH_DATA, used, cudaMemcpyHostToDevice,
                            c->stream),
            "upload");
    launch(c, patch_kernel, dim3(n), dim3(128), 0, (const uint8_t *)device);
    c->wait_fully = true;
    cuda_ok(c, cudaEventRecord(c->staging.done[c->staging.current], c->stream), "mark an upload");
    c->staging.current = (c->staging.current + 1) % STAGING_BUFFERS;
}

/* ---- large copies, through pinned memory ---- */

/* Two halves of the bounce buffer, used in turn. */
static int copy_up(struct cuda *c, uint8_t *to, const uint8_t *from, uint64_t size, struct err *e) {
    const uint64_t half = BOUNCE_BYTES / 2;
    for (uint64_t at = 0, i = 0; at < size && !cuda_failed(c); at += half, i++) {
        uint64_t part = MIN(half, size - at);
        uint8_t *pinned = c->bounce + i % 2 * half;
        cudaEvent_t done = c->staging.done[i % 2]; /* staging is idle: patches ran before */
        cuda_ok(c, cudaEventSynchronize(done), "wait for an upload");
        memcpy(pinned, from + at, part);
        cuda_ok(c, cudaMemcpyAsync(to + at, pinned, part, cudaMemcpyHostToDevice, c->stream), "upload");
        cuda_ok(c, cudaEventRecord(done, c->stream), "mark an upload");
    }
    return failed_into(c, e);
}

static int cuda_upload(struct kernels *k, void *to, const void *from_host, uint64_t size, struct err *e) {
    struct cuda *c = enter(k);
    queue_run(c);                        /* in program order: what was recorded reads what was there before */
    if (size <= PATCH_BYTES_MAX) {
        cuda_patch(c, to, from_host, size);
        return failed_into(c, e);
    }
    cuda_patches_run(c);
    return copy_up(c, (uint8_t *)to, (const uint8_t *)from_host, size, e);
}

static int cuda_download(struct kernels *k, void *to_host, const void *from, uint64_t size, struct err *e) {
    struct cuda *c = enter(k);
    queue_run(c);
    cuda_patches_run(c);
    const uint64_t most = DOWNLOAD_PART;
    uint64_t n = (size + most - 1) / most;       /* part i is copied out of pinned memory while i+1 arrives */
    for (uint64_t i = 0; i <= n && !cuda_failed(c); i++) {
        if (i < n) {
            uint64_t part = MIN(most, size - i * most);
            cuda_ok(c,
                    cudaMemcpyAsync(c->bounce + i % 2 * most, (const uint8_t *)from + i * most,
                                    part, cudaMemcpyDeviceToHost, c->stream),
                    "download");
            cuda_ok(c, cudaEventRecord(c->staging.done[i % 2], c->stream), "mark a download");
        }
        if (i == 0) continue;
        if (!cuda_ok(c, cudaEventSynchronize(c->staging.done[(i - 1) % 2]), "wait for a download")) break;
        memcpy((uint8_t *)to_host + (i - 1) * most, c->bounce + (i - 1) % 2 * most,
               MIN(most, size - (i - 1) * most));
    }
    return kernels_finish(k, e);
}

static int cuda_finish(struct kernels *k, struct err *e) {
    struct cuda *c = enter(k);
    queue_run(c);
    cuda_patches_run(c);
    cuda_ok(c, cudaStreamSynchronize(c->stream), "run");
    int code = failed_into(c, e);
    c->base.failed.code = 0;
    return code;
}

/* ---- weights: several threads, because one core reads a mapping slower than the bus takes it ---- */

struct loader {
    int device, index, n_loaders;
    const uint8_t *from;
    uint8_t *to;
    uint64_t size;
    cudaError_t rc;
};

static cudaError_t load_chunks(struct loader *l, uint8_t *pinned, cudaStream_t stream, cudaEvent_t *done) {
    uint64_t step = (uint64_t)l->n_loaders * LOAD_CHUNK;
    cudaError_t rc = cudaSuccess;
    for (uint64_t at = (uint64_t)l->index * LOAD_CHUNK, i = 0; at < l->size && rc == cudaSuccess;
         at += step, i++) {
        uint64_t part = MIN((uint64_t)LOAD_CHUNK, l->size - at);
        rc = cudaEventSynchronize(done[i % 2]);
        memcpy(pinned + i % 2 * LOAD_CHUNK, l->from + at, part);
        if (rc == cudaSuccess)
            rc = cudaMemcpyAsync(l->to + at, pinned + i % 2 * LOAD_CHUNK, part,
                                 cudaMemcpyHostToDevice, stream);
        if (rc == cudaSuccess) rc = cudaEventRecord(done[i % 2], stream);
    }
    cudaError_t last = cudaStreamSynchronize(stream);
    return rc != cudaSuccess ? rc : last;
}

static void *load_thread(void *arg) {
    struct loader *l = (struct loader *)arg;
    uint8_t *pinned = NULL;
    cudaStream_t stream = NULL;
    cudaEvent_t done[2] = { NULL, NULL };
    l->rc = cudaSetDevice(l->device);
    if (l->rc == cudaSuccess) l->rc = cudaMallocHost((void **)&pinned, 2 * (size_t)LOAD_CHUNK);
    if (l->rc == cudaSuccess) l->rc = cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking);
    for (int i = 0; i < 2 && l->rc == cudaSuccess; i++)
        l->rc = cudaEventCreateWithFlags(&done[i], cudaEventDisableTiming);
    if (l->rc == cudaSuccess) l->rc = load_chunks(l, pinned, stream, done);
    for (int i = 0; i < 2; i++)
        if (done[i]) cudaEventDestroy(done[i]);
    if (stream) cudaStreamDestroy(stream);
    cudaFreeHost(pinned);
    return NULL;
}

static cudaError_t load(struct cuda *c, uint8_t *to, const uint8_t *from, uint64_t size) {
    struct loader loaders[LOAD_THREADS];
    pthread_t threads[LOAD_THREADS];
    int n = size < LOAD_ALONE_MAX ? 1 : LOAD_THREADS, n_started = 1;
    for (int i = 0; i < n; i++) loaders[i] = loader{ c->device, i, n, from, to, size, cudaErrorUnknown };
    for (int i = 1; i < n; i++, n_started++)
        if (pthread_create(&threads[i], NULL, load_thread, &loaders[i]) != 0) break;
    load_thread(&loaders[0]);
    for (int i = 1; i < n_started; i++) pthread_join(threads[i], NULL);
    for (int i = n_started; i < n; i++) load_thread(&loaders[i]);          /* threads that could not start */
    for (int i = 0; i < n; i++)
        if (loaders[i].rc != cudaSuccess) return loaders[i].rc;
    return cudaSuccess;
}

/* What must stay free beside the weights: state, work space, the driver's own. */
static bool fits_on_card(uint64_t size) {
    size_t free_bytes = 0, total = 0;
    if (cudaMemGetInfo(&free_bytes, &total) != cudaSuccess) return true;               /* malloc will say */
    uint64_t limit = total, used = total - free_bytes, reserve = total / 16 + ((uint64_t)1 << 30);
    const char *mib = getenv("PLEIADES_CUDA_MEMORY");                  /* MiB: as if the card were smaller */
    if (mib) limit = MIN(limit, (uint64_t)strtoull(mib, NULL, 10) << 20), reserve = 0;
    return used + size + reserve <= limit;
}

static struct kmem *host_memory(uint64_t size, void **data, struct err *e) {
    void *host = NULL;
    *data = NULL;
    if (cudaHostAlloc(&host, size, cudaHostAllocMapped | cudaHostAllocPortable) != cudaSuccess) {
        cudaGetLastError();
        err_set(e, ERR_NOMEM, "CUDA: no room on the card, and no %.1f MiB of pinned host memory",
                (double)size / (1 << 20));
        return NULL;
    }
    struct kmem *mem = (struct kmem *)xcalloc(1, sizeof *mem);
    mem->data = (uint8_t *)host, mem->size = size, mem->on_host = true;
    *data = host;                                  /* one address space: the card knows it by the same one */
    return mem;
}

static struct kmem *cuda_map(struct kernels *k, const void *host, uint64_t size, void **data, struct err *e) {
    struct cuda *c = enter(k);
    bool on_host = size >= HOST_WEIGHT_MIN && !fits_on_card(size);
    struct kmem *mem = on_host ? host_memory(size, data, e) : device_memory(size, data, e);
    if (!mem) return NULL;
    mem->is_weight = true;
    cudaError_t rc = cudaSuccess;
    if (on_host) memcpy(mem->data, host, size);
    else if (size <= PATCH_BYTES_MAX) rc = cudaMemcpy(mem->data, host, size, cudaMemcpyHostToDevice);
    else rc = load(c, mem->data, (const uint8_t *)host, size);
    if (rc == cudaSuccess) return mem;
    err_set(e, error_code(rc), "CUDA device %d: cannot upload %llu bytes of weights: %s", c->device,
            (unsigned long long)size, cudaGetErrorString(rc));
    cudaGetLastError();
    cudaFree(mem->data);
    free(mem);
    *data = NULL;
    return NULL;
}

/* ---- open and close ---- */

static void cuda_close(struct kernels *k) {
    struct cuda *c = cuda_of(k);
    cudaSetDevice(c->device);
    if (c->stream) cudaStreamSynchronize(c->stream);
    queue_free(c);
    for (int i = 0; i < SCRATCH_SLOTS; i++) cudaFree(c->scratch[i].data);
    for (int i = 0; i < STAGING_BUFFERS; i++)
        if (c->staging.done[i]) cudaEventDestroy(c->staging.done[i]);
    cudaFreeHost(c->staging.host);
    cudaFreeHost(c->bounce);
    cudaFree(c->staging.device);
    cudaFree((void *)c->batch.d.token);
    cudaFree(c->iq2_grid);
    free(c->batch.host);
    if (c->stream) cudaStreamDestroy(c->stream);
    free(c);
}

extern const struct kernels_ops cuda_ops;          /* below */

/* One allocation: token, pos, seg, segs and the rows of the head, each at its fixed place. */
static bool batch_open(struct cuda *c) {
    const uint64_t n = BATCH_ROWS_MAX;
    int32_t *memory = NULL;
    if (!cuda_ok(c, cudaMalloc((void **)&memory, n * 8 * sizeof(int32_t)), "allocate the batch"))
        return false;
    c->batch.d.token = memory;
    c->batch.d.pos = memory + n;
    c->batch.d.seg = memory + 2 * n;
    c->batch.d.segs = (const struct kseg *)(memory + 3 * n);
    c->batch.row_i = memory + 7 * n;
    c->batch.host = (int32_t *)xcalloc(7 * n, sizeof(int32_t));
    return cuda_ok(c, cudaMemset(memory, 0, n * 8 * sizeof(int32_t)), "clear the batch");
}

static bool tables_open(struct cuda *c) {
    uint32_t selectors[256];
    for (int i = 0; i < 256; i++) {
        selectors[i] = 0;
        /* 8 25 43: 0 1 2 */
        for (int j = 0; j < 8; j++) selectors[i] |= (uint32_t)((iq2xxs_grid[i] >> 8 * j & 255) / 17) << 4 * j;
    }
    if (!cuda_ok(c, cudaMalloc((void **)&c->iq2_grid, sizeof iq2xxs_grid + sizeof selectors),
                 "allocate tables"))
        return false;
    c->iq2_selectors = (uint32_t *)(c->iq2_grid + 256);
    return cuda_ok(c,
                   cudaMemcpy(c->iq2_grid, iq2xxs_grid, sizeof iq2xxs_grid, cudaMemcpyHostToDevice),
                   "upload tables") &&
           cuda_ok(
               c, cudaMemcpy(c->iq2_selectors, selectors, sizeof selectors, cudaMemcpyHostToDevice),
               "upload tables");
}

static bool buffers_open(struct cuda *c) {
    if (!cuda_ok(c, cudaStreamCreateWithFlags(&c->stream, cudaStreamNonBlocking),
                 "create a stream"))
        return false;
    if (!cuda_ok(c,
                 cudaMallocHost((void **)&c->staging.host, (size_t)STAGING_BUFFERS * STAGING_BYTES),
                 "allocate pinned memory"))
        return false;
    if (!cuda_ok(c, cudaMalloc((void **)&c->staging.device, STAGING_BYTES),
                 "allocate staging memory"))
        return false;
    if (!cuda_ok(c, cudaMallocHost((void **)&c->bounce, BOUNCE_BYTES), "allocate pinned memory"))
        return false;
    for (int i = 0; i < STAGING_BUFFERS; i++)
        if (!cuda_ok(c, cudaEventCreateWithFlags(&c->staging.done[i], cudaEventDisableTiming),
                     "create an event"))
            return false;
    return batch_open(c) && tables_open(c);
}

static int check_device(int device, struct cudaDeviceProp *prop, struct err *e) {
    int n = 0, driver = 0;
    cudaDriverGetVersion(&driver);
    if (driver == 0) return err_set(e, ERR_UNSUPPORTED, "CUDA: no NVIDIA driver on this machine");
    cudaError_t rc = cudaGetDeviceCount(&n);
    if (rc == cudaErrorInsufficientDriver || driver < DRIVER_MIN)
        return err_set(
            e, ERR_UNSUPPORTED,
            "CUDA: the driver supports CUDA %d.%d, too old for this build; update the driver",
            driver / 1000, driver % 1000 / 10);
    if (rc != cudaSuccess || n == 0)
        return err_set(e, ERR_UNSUPPORTED, "CUDA: no usable card: %s",
                       rc == cudaSuccess ? "none found" : cudaGetErrorString(rc));
    if (device < 0 || device >= n)
        return err_set(e, ERR_INVALID, "CUDA: there is no device %d, only 0 to %d", device, n - 1);
    rc = cudaGetDeviceProperties(prop, device);
    if (rc != cudaSuccess)
        return err_set(e, ERR_DEVICE, "CUDA device %d: %s", device, cudaGetErrorString(rc));
    if (prop->major < 8)
        return err_set(e, ERR_UNSUPPORTED,
                       "CUDA device %d (%s) has compute capability %d.%d; 8.0 or newer is needed",
                       device, prop->name, prop->major, prop->minor);
    return 0;
}

extern "C" int kernels_cuda_open(struct kernels **out, const struct kernels_config *config, struct err *e) {
    *out = NULL;
    struct cudaDeviceProp prop;
    int rc = check_device(config->device, &prop, e);
    if (rc < 0) {
        cudaGetLastError();
        return rc;
    }
    struct cuda *c = (struct cuda *)xcalloc(1, sizeof *c);
    c->base.ops = &cuda_ops;
    c->base.config = *config;
    c->base.block_rows = BLOCK_ROWS;
    c->device = config->device;
    c->n_sm = prop.multiProcessorCount;
    c->shared_max = (int)prop.sharedMemPerBlockOptin;
    c->overlap_launches = prop.major >= 9;
    c->queue = queue_new();
    if (!cuda_ok(c, cudaSetDevice(c->device), "select") || !buffers_open(c)) {
        rc = failed_into(c, e);
        cuda_close(&c->base);
        return rc;
    }
    *out = &c->base;
    return 0;
}

/* ---- the table ---- */

#define CUDA_DECLARE(name) void record_##name(struct kernels *k, const struct name##_args *a);
KERNEL_OPS(CUDA_DECLARE)
#undef CUDA_DECLARE

#define CUDA_ENTRY(name) record_##name,
const struct kernels_ops cuda_ops = { "cuda",        cuda_close,   cuda_alloc,
                                      cuda_map,      cuda_release, cuda_upload,
                                      cuda_download, cuda_finish,  KERNEL_OPS(CUDA_ENTRY) };
#undef CUDA_ENTRY
