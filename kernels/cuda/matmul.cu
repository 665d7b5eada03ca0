/* Matrix products: which kernel multiplies what.
 *
 *   weight in tiles, up to 64 rows    few_rows_kernel, up to eight matrices of one input at once
 *   weight in tiles, more rows        many_rows_kernel; Q8_0: matmul_wide.cu
 *   anything else                     plain_kernel: decodes value by value, f32 throughout
 *
 * All but the last agree bit for bit (tiles.cuh); that one has its own order of sums, the same for
 * any number of rows. */
#include "kernels/cuda/act.cuh"
#include "kernels/cuda/decode.cuh"
#include "kernels/cuda/matmul_wide.cuh"
#include "kernels/cuda/products.cuh"

enum { PLAIN_COLUMNS = 4 };

/* ---- anything: one warp per weight row and four rows of input ---- */

static __global__ void __launch_bounds__(THREADS)
    plain_kernel(float *out, const float *in, const uint8_t *weight, enum dtype type,
                 uint64_t row_bytes, int64_t n_in, int64_t n_out, int64_t group_rows, int n_group,
                 int n, const uint64_t *grid) {
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
    launch(c, plain_kernel, dim3(blocks_for(n_out, WARPS), blocks_for(a->n, PLAIN_COLUMNS)), dim3(THREADS), 0,
           f32_of(a->out), (const float *)f32_of(a->in), (const uint8_t *)w->data, w->type,
           dtype_row_bytes(w->type, (uint64_t)n_in), n_in, n_out, n_out / a->n_group, a->n_group, (int)a->n,
           (const uint64_t *)c->iq2_grid);
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
    bool emits;                                    /* the output's Q8_0 form, too */
    struct act emitted;
};

struct product_list {
    struct product p[MATMUL_GROUP_MAX];
    int n_products, n, items;                      /* items: of a block, see split */
    bool emits;                                    /* one of them: there is one place for the form */
    const uint32_t *lut;
};

/* Sums of segments to the output: a warp takes one column of two neighbouring tiles, which is a block
 * of Q8_0. */
static __device__ __forceinline__ void write_tiles(const struct product &m, const struct split &split,
                                                   const float *shared, int tile0, int n, int columns) {
    int pairs = (split.tiles + 1) / 2;
    for (int item = (int)threadIdx.x / 32; item < pairs * n; item += WARPS) {
        int column = item / pairs, tile = item % pairs * 2 + lane_id() / TILE_ROWS;
        int row = (tile0 + tile) * TILE_ROWS + lane_id() % TILE_ROWS;
        bool there = tile < split.tiles && row < m.n_out;
        float value = 0;
        if (there)
            value = segments_sum(shared, split.n_segments, columns, tile, column,
                                 lane_id() % TILE_ROWS);
        if (there) m.out[(int64_t)column * m.n_out + row] = value;
        if (!m.emits) continue;
        float amax = warp_max(fabsf(value)), d = amax / 127.0f, divisor = amax > 0 ? d : 1.0f;
        int64_t at = (int64_t)(row / 32) * m.emitted.n_pad + column;
        if (there) m.emitted.q[at * 32 + lane_id()] = (int8_t)quantise_by(value, divisor, 1.0f / divisor);
        if (there && lane_id() == 0) m.emitted.d[at] = d;
    }
}

/* What a block multiplies. */
template <class T> struct dense_work {
    const struct product &m;
    int tile0, n_tiles;
    const lane_pos &p;
    __device__ __forceinline__ const uint8_t *tile(int i) const {
        return tile0 + i < n_tiles ? m.weight + (int64_t)(tile0 + i) * (m.n_in / T::STEP) * T::STEP_BYTES
                                   : NULL;
    }
    __device__ __forceinline__ struct act act_of(int i) const {
        return m.group_tiles == n_tiles ? m.act
                                        : act_from(m.act, T::KIND, (tile0 + i) / m.group_tiles * m.n_in);
    }
};

template <class T, int N> struct few_work : dense_work<T> {
    __device__ few_work(const dense_work<T> &work) : dense_work<T>(work) {}
    __device__ __forceinline__ x_few<T::KIND, N> x(int i, int segment) const {
        return x_few<T::KIND, N>(this->act_of(i), segment, this->p);
    }
};

template <class T> struct one_work : dense_work<T> {
    __device__ one_work(const dense_work<T> &work) : dense_work<T>(work) {}
    __device__ __forceinline__ x_one<T::KIND, 8> x(int i, int segment) const {
        return x_one<T::KIND, 8>(this->act_of(i), 0, segment, this->p);
    }
};

template <class T, int N, bool ONE>
static __device__ __forceinline__ void few_rows(const struct product &m, const struct product_list &list,
                                                const uint32_t *lut, float *shared) {
    lane_pos p(true);
    struct split split(m.n_in, N * 8, list.items);
    int tile0 = ((int)blockIdx.x - m.first_block) * split.tiles, warp = (int)threadIdx.x / 32;
    dense_work<T> work = { m, tile0, m.n_out / TILE_ROWS, p };
    ahead<T, few_ahead<T, N, ONE>()> first;
    place start(warp, split.n_segments);
    if (warp < split.n_items) first.start(work.tile(start.tile), m.n_in, start.segment, p);
    device_wait();
    if constexpr (ONE)
        items_multiply<T, 1, true>(shared, one_work<T>(work), m.n_in, split, split.n_items, first, p, lut);
    else
        items_multiply<T, N, false>(shared, few_work<T, N>(work), m.n_in, split, split.n_items, first, p,
                                    lut);
    __syncthreads();
    write_tiles(m, split, shared, tile0, list.n, ONE ? 1 : N * 8);
}

/* Grid: the matrices one after another, each (16 rows x tiles_per_block) per block. Matrices are of
 * type A or B. */
template <class A, class B, int N, bool ONE>
static __global__ void __launch_bounds__(THREADS, N <= 2 ? 2 : 1)
    few_rows_kernel(const __grid_constant__ struct product_list list) {
    extern __shared__ float shared[];
    __shared__ __align__(16) uint32_t lut[A::LUT];
    int i = 0;
    while (i + 1 < list.n_products && (int)blockIdx.x >= list.p[i + 1].first_block) i++;
    if (A::LUT > 1) {
        load_table<A>(lut, list.lut);
        __syncthreads();
    }
    if (A::TYPE == B::TYPE || !list.p[i].second_type) few_rows<A, N, ONE>(list.p[i], list, lut, shared);
    else few_rows<B, N, ONE>(list.p[i], list, lut, shared);
}

/* Grid: columns / 64 x rows / 128. */
template <class T>
static __global__ void __launch_bounds__(THREADS, 2)
    many_rows_kernel(const struct product m, int n, const uint32_t *table) {
    extern __shared__ uint8_t memory[];
    __shared__ __align__(16) uint32_t lut[T::LUT];
    lane_pos p;
    load_table<T>(lut, table);
    device_wait();
    int n_tiles = m.n_out / TILE_ROWS, tile = (int)blockIdx.y * WARPS + (int)threadIdx.x / 32,
        column = (int)blockIdx.x * COLUMNS;
    int first = (int)blockIdx.y * WARPS, row0 = tile * TILE_ROWS;
    /* A block of 128 rows lies in one group; warps past the end repeat the last tile and write nothing. */
    struct act act = act_from(m.act, T::KIND, first / m.group_tiles * m.n_in);
    const uint8_t *weight = m.weight + (int64_t)min(tile, n_tiles - 1) * (m.n_in / T::STEP) * T::STEP_BYTES;
    columns_multiply<T, GROUPS>(memory, weight, m.n_in, act, column, p, lut);
    if (tile >= n_tiles) return;
    const float *total = (const float *)memory + threadIdx.x;
    for (int j = 0; j < GROUPS; j++)
        for (int i = 0; i < 4; i++) {
            int to = column + fragment_column(j, i, p);
            if (to < n)
                m.out[(int64_t)to * m.n_out + row0 + fragment_row(i, p)] =
                    total[(j * 4 + i) * THREADS];
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

template <class A, class B, int N, bool ONE>
static void launch_few_groups(struct cuda *c, struct product_list *list) {
    int n_blocks = 0, floats = 0;
    for (int i = 0; i < list->n_products; i++) {
        struct split split(list->p[i].n_in, N * 8, list->items);
        list->p[i].first_block = n_blocks;
        n_blocks += (int)blocks_for(list->p[i].n_out / TILE_ROWS, split.tiles);
        floats = MAX(floats, split.shared_floats(ONE ? 1 : N * 8));
    }
    launch(c, few_rows_kernel<A, B, N, ONE>, dim3((unsigned)n_blocks), dim3(THREADS),
           (size_t)floats * sizeof(float), *list);
}

/* One row: small products are spread over all multiprocessors, large ones take two items per warp. (Four,
 * which leaves room for the next launch's blocks beside ours, is 4 % slower per step on an H200.) */
static int items_for_one(const struct cuda *c, const struct product_list *list) {
    int64_t total = 0, items = WARPS;
    for (int i = 0; i < list->n_products; i++)
        total += (int64_t)list->p[i].n_out / TILE_ROWS * ((list->p[i].n_in + SEGMENT - 1) / SEGMENT);
    while (items < 2 * WARPS && total > items * (c->n_sm + c->n_sm / 16)) items *= 2;
    return (int)items;
}

template <class A, class B> static void launch_few(struct cuda *c, struct product_list *list) {
    bool one = list->n == 1;
    for (int i = 0; i < list->n_products; i++) one = one && list->p[i].n_in % SEGMENT == 0;
    if (one) {
        list->items = items_for_one(c, list);
        launch_few_groups<A, B, 1, true>(c, list);
    } else if (list->n <= 8) launch_few_groups<A, B, 1, false>(c, list);
    else if (list->n <= 16) launch_few_groups<A, B, 2, false>(c, list);
    else if (list->n <= 32) launch_few_groups<A, B, 4, false>(c, list);
    else launch_few_groups<A, B, 8, false>(c, list);
}

template <class T> static void launch_many(struct cuda *c, const struct product *m, int n) {
    launch(c, many_rows_kernel<T>,
           dim3(blocks_for(n, COLUMNS), blocks_for(m->n_out / TILE_ROWS, WARPS)), dim3(THREADS),
           columns_shared_bytes<T>(), *m, n, (const uint32_t *)c->iq2_selectors);
}

static void launch_wide(struct cuda *c, const struct product *m, int n) {
    struct wide_run r = { m->weight, m->out, m->act, m->n_in, m->n_out, n, m->group_tiles };
    run_matmul_wide(c, &r);
}

static void run_many(struct cuda *c, enum dtype type, const struct product *m, int n) {
    switch (type) {
    case DTYPE_F16: launch_many<tile_f16>(c, m, n); break;
    case DTYPE_Q8_0: launch_wide(c, m, n); break;
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

uint32_t matmul_wants(struct cuda *c, const struct matmul_args *a) {
    return a->n > 0 && in_tiles(c, a) ? 1u << act_kind_for(a->weight->type) : 0;
}

/* Can the launch prepare the output's Q8_0 form? It takes whole blocks of 32 rows. */
static bool can_emit(const struct product *m, int n) {
    struct split split(m->n_in, (int)ALIGN_UP(n, 8));
    return n <= GRAPH_ROWS_MAX && m->n_out % 32 == 0 && split.tiles % 2 == 0;
}

void run_matmul(struct cuda *c, const struct matmul_args *const *a, const uint32_t *wanted, int n) {
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
            if (a[j]->n > GRAPH_ROWS_MAX) {
                run_many(c, a[j]->weight->type, m, a[j]->n);
                continue;
            }
            list.n_products++;
            if (!(wanted[j] & 1 << ACT_Q8_0) || !can_emit(m, a[j]->n) || list.emits) continue;
            struct act_out out = act_out(c, 1 << ACT_Q8_0, m->out, m->n_out, a[j]->n);
            m->emits = list.emits = out.kinds != 0;
            m->emitted = out.act[ACT_Q8_0];
        }
        run_few(c, a[i]->weight->type, &list);
    }
}
