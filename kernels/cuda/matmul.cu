/* Matrix products: which kernel multiplies what.
 *
 *   weight in tiles, up to 64 rows    few_rows_kernel, up to eight matrices of one input at once
 *   weight in tiles, more rows        many_rows_kernel
 *   anything else                     plain_kernel: decodes value by value, f32 throughout
 *
 * The first two agree bit for bit (tiles.cuh); the third has its own order of sums, the same for any
 * number of rows. */
#include "kernels/cuda/decode.cuh"
#include "kernels/cuda/products.cuh"

enum { PLAIN_COLUMNS = 4 };

/* ---- anything: one warp per weight row and four rows of input ---- */

static __global__ void __launch_bounds__(THREADS)
    plain_kernel(float *out, const float *in, const uint8_t *weight, enum dtype type, uint64_t row_bytes,
                 int64_t n_in, int64_t n_out, int64_t group_rows, int n_group, int n,
                 const uint64_t *grid) {
    device_wait();
    int64_t row = (int64_t)blockIdx.x * WARPS + threadIdx.x / 32;
    int column0 = (int)blockIdx.y * PLAIN_COLUMNS, n_columns = min(PLAIN_COLUMNS, n - column0);
    if (row >= n_out) return;
    const float *x = in + column0 * n_in * n_group + row / group_rows * n_in;
    float sum[PLAIN_COLUMNS] = { 0 };
    for (int64_t i = lane_id(); i < n_in; i += 32) {
        float w = decode(type, weight + (uint64_t)row * row_bytes, i, grid);
        for (int j = 0; j < n_columns; j++) sum[j] = fmaf(w, x[j * n_in * n_group + i], sum[j]);
    }
    for (int j = 0; j < PLAIN_COLUMNS; j++) {
        float total = warp_sum(sum[j]);
        if (j < n_columns && lane_id() == 0) out[(column0 + j) * n_out + row] = total;
    }
}

static void run_plain(struct cuda *c, const struct matmul_args *a) {
    const struct tensor *w = a->weight;
    int64_t n_out = rows_of(w), n_in = w->ne[0];
    CHECK(!w->mem || w->mem->layout == LAYOUT_FILE);
    launch(c, plain_kernel, dim3(blocks_for(n_out, WARPS), blocks_for(a->n, PLAIN_COLUMNS)),
           dim3(THREADS), 0, f32_of(a->out), (const float *)f32_of(a->in), (const uint8_t *)w->data,
           w->type, dtype_row_bytes(w->type, (uint64_t)n_in), n_in, n_out, n_out / a->n_group, a->n_group,
           (int)a->n, (const uint64_t *)c->iq2_grid);
}

/* ---- tiles ---- */

struct product {
    const uint8_t *weight;
    float *out;
    struct act act;
    int n_in, n_out;
    int group_tiles; /* tiles of a group: the next ones read the next part of the input */
    int first_block;
    bool second_type;
};

struct product_list {
    struct product p[MATMUL_GROUP_MAX];
    int n_products, n;
    const uint32_t *lut;
};

template <class T, int N>
static __device__ __forceinline__ void few_rows(const struct product &m, int n, const uint32_t *lut,
                                                float *shared) {
    lane_pos p;
    struct split split(m.n_in);
    int warp = (int)threadIdx.x / 32, slot = warp / split.warps_per_tile, n_tiles = m.n_out / TILE_ROWS;
    int tile0 = ((int)blockIdx.x - m.first_block) * split.tiles_per_block, tile = tile0 + slot;
    const uint8_t *weight = m.weight + (int64_t)tile * (m.n_in / T::STEP) * T::STEP_BYTES;
    bool works = slot < split.tiles_per_block && tile < n_tiles;
    typename T::regs first;
    if (works) T::load(first, weight, m.n_in, warp % split.warps_per_tile * (SEGMENT / T::STEP), p);
    device_wait();
    const int columns = N * 8, sums_per_tile = split.n_segments * columns * COLUMN_STRIDE;
    if (works) {
        struct act act = act_from(m.act, T::KIND, tile / m.group_tiles * m.n_in);
        segments_multiply<T, N>(shared + slot * sums_per_tile, weight, m.n_in, split,
                                warp % split.warps_per_tile, first, x_global<N>(act, 0, n, p), p, lut);
    }
    __syncthreads();
    for (int i = (int)threadIdx.x; i < split.tiles_per_block * columns * TILE_ROWS; i += THREADS) {
        int row = i % TILE_ROWS, column = i / TILE_ROWS % columns, s = i / (TILE_ROWS * columns);
        if (tile0 + s >= n_tiles || column >= n) continue;
        m.out[(int64_t)column * m.n_out + (tile0 + s) * TILE_ROWS + row] =
            segments_sum(shared + s * sums_per_tile, split.n_segments, columns, column, row);
    }
}

/* Grid: the matrices one after another, each (16 rows x tiles_per_block) per block. Matrices are of type
 * A or B. */
template <class A, class B, int N>
static __global__ void __launch_bounds__(THREADS)
    few_rows_kernel(const __grid_constant__ struct product_list list) {
    extern __shared__ float shared[];
    __shared__ uint32_t lut[A::LUT];
    int i = 0;
    while (i + 1 < list.n_products && (int)blockIdx.x >= list.p[i + 1].first_block) i++;
    if (A::LUT > 1) {
        lut[threadIdx.x % A::LUT] = list.lut[threadIdx.x % A::LUT];
        __syncthreads();
    }
    if (A::TYPE == B::TYPE || !list.p[i].second_type) few_rows<A, N>(list.p[i], list.n, lut, shared);
    else few_rows<B, N>(list.p[i], list.n, lut, shared);
}

/* Grid: columns / 64 x rows / 128. */
template <class T>
static __global__ void __launch_bounds__(THREADS, 2)
    many_rows_kernel(const struct product m, int n, const uint32_t *table) {
    extern __shared__ uint8_t memory[];
    __shared__ uint32_t lut[T::LUT];
    lane_pos p;
    if (T::LUT > 1) lut[threadIdx.x % T::LUT] = table[threadIdx.x % T::LUT];
    device_wait();
    int n_tiles = m.n_out / TILE_ROWS, tile = (int)blockIdx.y * WARPS + (int)threadIdx.x / 32,
        column = (int)blockIdx.x * COLUMNS;
    int first = (int)blockIdx.y * WARPS, row0 = tile * TILE_ROWS;
    /* A block of 128 rows lies in one group; warps past the end repeat the last tile and write nothing. */
    struct act act = act_from(m.act, T::KIND, first / m.group_tiles * m.n_in);
    const uint8_t *weight = m.weight + (int64_t)min(tile, n_tiles - 1) * (m.n_in / T::STEP) * T::STEP_BYTES;
    columns_multiply<T>(memory, weight, m.n_in, act, column, min(GROUPS, (n - column + 7) / 8), p, lut);
    if (tile >= n_tiles) return;
    const float *total = (const float *)memory + threadIdx.x;
    for (int j = 0; j < GROUPS; j++)
        for (int i = 0; i < 4; i++) {
            int to = column + fragment_column(j, i, p);
            if (to < n)
                m.out[(int64_t)to * m.n_out + row0 + fragment_row(i, p)] = total[(j * 4 + i) * THREADS];
        }
}

/* ---- choosing ---- */

static bool in_tiles(struct cuda *c, const struct matmul_args *a) {
    const struct tensor *w = a->weight;
    int64_t n_in = w->ne[0], group_rows = rows_of(w) / a->n_group;
    if (a->f32_act && w->type != DTYPE_F16) return false;
    if (a->n_group > 1 && (group_rows % (TILE_ROWS * WARPS) != 0 || n_in % SEGMENT != 0)) return false;
    return weight_in_tiles(c, w, rows_of(w));
}

static bool product_of(struct cuda *c, const struct matmul_args *a, struct product *out) {
    const struct tensor *w = a->weight;
    const struct act *act = act_of(c, act_kind_for(w->type), f32_of(a->in), w->ne[0] * a->n_group, a->n);
    if (!act) return false;
    *out = product{};
    out->weight = (const uint8_t *)w->data;
    out->out = f32_of(a->out);
    out->act = *act;
    out->n_in = (int)w->ne[0];
    out->n_out = (int)rows_of(w);
    out->group_tiles = out->n_out / TILE_ROWS / a->n_group;
    return true;
}

template <class A, class B>
static void launch_few(struct cuda *c, struct product_list *list) {
    int n_blocks = 0, floats = 0, groups = list->n <= 8 ? 1 : list->n <= 16 ? 2 : list->n <= 32 ? 4 : 8;
    for (int i = 0; i < list->n_products; i++) {
        struct split split(list->p[i].n_in);
        list->p[i].first_block = n_blocks;
        n_blocks += (int)blocks_for(list->p[i].n_out / TILE_ROWS, split.tiles_per_block);
        floats = MAX(floats, split.shared_floats(groups * 8));
    }
    void (*kernel)(struct product_list) = groups == 1   ? few_rows_kernel<A, B, 1>
                                          : groups == 2 ? few_rows_kernel<A, B, 2>
                                          : groups == 4 ? few_rows_kernel<A, B, 4>
                                                        : few_rows_kernel<A, B, 8>;
    launch(c, kernel, dim3((unsigned)n_blocks), dim3(THREADS), (size_t)floats * sizeof(float), *list);
}

template <class T> static void launch_many(struct cuda *c, const struct product *m, int n) {
    launch(c, many_rows_kernel<T>, dim3(blocks_for(n, COLUMNS), blocks_for(m->n_out / TILE_ROWS, WARPS)),
           dim3(THREADS), columns_shared_bytes<T>(), *m, n, (const uint32_t *)c->iq2_selectors);
}

static void run_many(struct cuda *c, enum dtype type, const struct product *m, int n) {
    switch (type) {
    case DTYPE_F16: launch_many<tile_f16>(c, m, n); break;
    case DTYPE_Q8_0: launch_many<tile_q8_0>(c, m, n); break;
    case DTYPE_MXFP4: launch_many<tile_mxfp4>(c, m, n); break;
    case DTYPE_Q2_K: launch_many<tile_q2_k>(c, m, n); break;
    case DTYPE_Q4_K: launch_many<tile_q4_k>(c, m, n); break;
    case DTYPE_IQ2_XXS: launch_many<tile_iq2_xxs>(c, m, n); break;
    default: CHECK(false);
    }
}

static void run_few(struct cuda *c, enum dtype type, struct product_list *list) {
    if (list->n_products == 0) return;
    switch (type) {
    case DTYPE_F16: case DTYPE_Q8_0: launch_few<tile_q8_0, tile_f16>(c, list); break;
    case DTYPE_MXFP4: launch_few<tile_mxfp4, tile_mxfp4>(c, list); break;
    case DTYPE_Q2_K: launch_few<tile_q2_k, tile_q2_k>(c, list); break;
    case DTYPE_Q4_K: launch_few<tile_q4_k, tile_q4_k>(c, list); break;
    case DTYPE_IQ2_XXS: launch_few<tile_iq2_xxs, tile_iq2_xxs>(c, list); break;
    default: CHECK(false);
    }
}

/* Q8_0 and F16 share a launch. */
static bool same_launch(enum dtype a, enum dtype b) {
    bool a_dense = a == DTYPE_Q8_0 || a == DTYPE_F16, b_dense = b == DTYPE_Q8_0 || b == DTYPE_F16;
    return a == b || (a_dense && b_dense);
}

void run_matmul(struct cuda *c, const struct matmul_args *const *a, int n) {
    bool done[MATMUL_GROUP_MAX] = { false };
    for (int i = 0; i < n; i++) {
        if (done[i] || a[i]->n == 0) continue;
        if (!in_tiles(c, a[i])) {
            run_plain(c, a[i]);
            continue;
        }
        struct product_list list = {};
        list.n = a[i]->n, list.lut = c->iq2_selectors;
        for (int j = i; j < n; j++) {
            struct product *m = &list.p[list.n_products];
            if (done[j] || !same_launch(a[i]->weight->type, a[j]->weight->type) || !in_tiles(c, a[j]) ||
                !product_of(c, a[j], m))
                continue;
            m->second_type = a[j]->weight->type == DTYPE_F16;
            done[j] = true;
            if (a[j]->n > GRAPH_ROWS_MAX) run_many(c, a[j]->weight->type, m, a[j]->n);
            else list.n_products++;
        }
        run_few(c, a[i]->weight->type, &list);
    }
}
