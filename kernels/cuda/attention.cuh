/* attention - what the two attention kernels share: the arguments on the device, and the rows that a
 * token reads. */
#ifndef KERNELS_CUDA_ATTENTION_CUH
#define KERNELS_CUDA_ATTENTION_CUH

#include "kernels/cuda/cuda.h"
#include "kernels/cuda/decode.cuh"

struct attention_run {
    float *q;
    const uint8_t *rows;
    const float *sinks, *rope;
    const int32_t *sel, *n_sel;                    /* NULL: all visible entries */
    int sel_stride;
    struct kv_layer layer;
    struct dbatch batch;
    int row0, n, n_head;
    float scale;                                   /* of scores */
    float *z;                                 /* scores, when they go through memory: [n][n_head][z_stride] */
    int z_stride;
    bool rows_early;                 /* rows, entries and their choice are older than the launch before */
    float rope_eps;                         /* > 0: norm and rope of the queries are still to do, with this */
    struct act_out act;                          /* forms of the outputs that are wanted */
};

/* attention_mma.cu, attention_split.cu. n_rows_max: no token reads more rows. tile: rows. */
bool attention_fits_mma(const struct cuda *c, const struct kv_layer *l);
void run_attention_mma(struct cuda *c, struct attention_run *r, int n_rows_max);
void run_attention_split(struct cuda *c, struct attention_run *r, int n_rows_max, int tile);

/* Window rows by position, then entries ascending. All but the number of chosen entries comes with the
 * step, so it may be found before device_wait(); find_entries after it. */
struct token_rows {
    struct kseg seg;
    struct kv_slice slice;
    const int32_t *sel;
    int first_pos, n_window, n;
    __device__ token_rows(const struct attention_run &a, int i) {
        int row = a.row0 + i, pos = a.batch.pos[row];
        seg = a.batch.segs[a.batch.seg[row]];
        slice = a.layer.slices[seg.slot];
        sel = a.sel ? a.sel + (int64_t)i * a.sel_stride : NULL;
        first_pos = max(0, pos - a.layer.n_swa + 1);
        n_window = pos - first_pos + 1;
        n = n_window + (a.layer.ratio ? (pos + 1) / a.layer.ratio : 0);
    }
    __device__ __forceinline__ void find_entries(const struct attention_run &a, int i) {
        if (a.layer.ratio && a.sel) n = n_window + a.n_sel[i];
    }
    __device__ __forceinline__ const uint8_t *at(const struct attention_run &a, int r) const {
        if (r < n_window) return window_row(a.layer, slice, seg, a.rows, first_pos + r);
        return entry_row(a.layer, slice, sel ? sel[r - n_window] : r - n_window);
    }
};

#endif
