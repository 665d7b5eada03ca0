/* The queue: operations are recorded with copies of their arguments, and run later, in an order that
 * keeps every dependency.
 *
 *   kernels_matmul(...) ──► record ──► queue_run: same bytes as an earlier run? ── yes ──► launch its graph
 *                                                   │ no, but seen once before ──► capture, keep, launch
 *                                                   └ never seen ──► run
 *
 * Recording copies field by field into zeroed memory at a fixed address, so two runs of the same step
 * are equal bytes. Running looks ahead: products of one input become one launch even when something
 * unrelated stands between them. A graph is only made on the second occurrence, when all work space has
 * its final size. */
#include "kernels/cuda/cuda.h"

#include <stdlib.h>

enum {
    QUEUE_OPS = 256,              /* a step is several runs: the device starts while the host still records */
    QUEUE_BYTES = 512 << 10,
    QUEUE_OP_BYTES_MAX = 4096,
    GRAPHS_MAX = 256,
    LOOK_AHEAD = 20,
    TENSORS_MAX = 10,                              /* of one operation */
};

/* ---- what the arguments consist of ---- */

enum field_kind { FIELD_END, FIELD_READ, FIELD_WRITE, FIELD_CHANGE, FIELD_LAYER, FIELD_BATCH, FIELD_SCALARS };

struct field {
    uint8_t kind;
    uint16_t offset, size;
};

#define AT(op, name)                                                                               \
    (uint16_t) offsetof(struct op##_args, name), (uint16_t)sizeof(((struct op##_args *)0)->name)
#define READ(op, name) { FIELD_READ, AT(op, name) }
#define WRITE(op, name) { FIELD_WRITE, AT(op, name) }
#define CHANGE(op, name) { FIELD_CHANGE, AT(op, name) }
#define LAYER(op) { FIELD_LAYER, AT(op, layer) }
#define BATCH(op) { FIELD_BATCH, AT(op, batch) }
#define SCALAR(op, name) { FIELD_SCALARS, AT(op, name) }
#define END { FIELD_END, 0, 0 }

static const struct field embed_fields[] = {
    WRITE(embed, out), READ(embed, table), BATCH(embed), SCALAR(embed, n_streams), END };
static const struct field hc_pre_fields[] = { WRITE(hc_pre, out),
                                              WRITE(hc_pre, post),
                                              WRITE(hc_pre, comb),
                                              READ(hc_pre, x),
                                              READ(hc_pre, fn),
                                              READ(hc_pre, scale),
                                              READ(hc_pre, base),
                                              READ(hc_pre, norm),
                                              SCALAR(hc_pre, rms_eps),
                                              SCALAR(hc_pre, hc_eps),
                                              SCALAR(hc_pre, n_sinkhorn),
                                              SCALAR(hc_pre, n),
                                              END };
static const struct field hc_post_fields[] = { CHANGE(hc_post, x),
                                               READ(hc_post, y),
                                               READ(hc_post, y2),
                                               READ(hc_post, post),
                                               READ(hc_post, comb),
                                               SCALAR(hc_post, n),
                                               END };
static const struct field hc_head_fields[] = { WRITE(hc_head, out),
                                               READ(hc_head, x),
                                               READ(hc_head, fn),
                                               READ(hc_head, scale),
                                               READ(hc_head, base),
                                               READ(hc_head, norm),
                                               SCALAR(hc_head, row_i),
                                               SCALAR(hc_head, rms_eps),
                                               SCALAR(hc_head, hc_eps),
                                               SCALAR(hc_head, n),
                                               END };
static const struct field matmul_fields[] = {
    WRITE(matmul, out), READ(matmul, in), READ(matmul, weight), SCALAR(matmul, n), SCALAR(matmul, n_group),
    SCALAR(matmul, f32_act), END };
static const struct field rms_norm_fields[] = { WRITE(rms_norm, out),   READ(rms_norm, in),
                                                READ(rms_norm, weight), SCALAR(rms_norm, eps),
                                                SCALAR(rms_norm, n),    END };
static const struct field add_streams_fields[] = {
    CHANGE(add_streams, x), READ(add_streams, e), SCALAR(add_streams, n), END };
static const struct field q_rope_fields[] = {
    CHANGE(q_rope, q), READ(q_rope, rope), SCALAR(q_rope, eps), SCALAR(q_rope, n), SCALAR(q_rope, n_head),
    SCALAR(q_rope, head_dim), SCALAR(q_rope, n_rot), END };
static const struct field kv_rows_fields[] = { WRITE(kv_rows, rows), READ(kv_rows, kv),
                                               READ(kv_rows, norm),  READ(kv_rows, rope),
                                               LAYER(kv_rows),       SCALAR(kv_rows, eps),
                                               SCALAR(kv_rows, n),   END };
static const struct field kv_commit_fields[] = { READ(kv_commit, rows), LAYER(kv_commit),
                                                 BATCH(kv_commit), END };
static const struct field compress_fields[] = { CHANGE(compress, kv),
                                                CHANGE(compress, score),
                                                READ(compress, ape),
                                                READ(compress, norm),
                                                READ(compress, rope),
                                                LAYER(compress),
                                                BATCH(compress),
                                                SCALAR(compress, eps),
                                                SCALAR(compress, is_index),
                                                END };
static const struct field index_select_fields[] = {
    WRITE(index_select, sel),     WRITE(index_select, n_sel),  CHANGE(index_select, q),
    READ(index_select, weight),   READ(index_select, rope),    LAYER(index_select),
    BATCH(index_select),          SCALAR(index_select, row0),  SCALAR(index_select, n),
    SCALAR(index_select, n_head), SCALAR(index_select, top_k), END
};
static const struct field attention_fields[] = { CHANGE(attention, q),      READ(attention, rows),
                                                 READ(attention, sinks),    READ(attention, rope),
                                                 READ(attention, sel),      READ(attention, n_sel),
                                                 LAYER(attention),          BATCH(attention),
                                                 SCALAR(attention, row0),   SCALAR(attention, n),
                                                 SCALAR(attention, n_head), END };
static const struct field swiglu_fields[] = {
    WRITE(swiglu, out), READ(swiglu, gate), READ(swiglu, up), SCALAR(swiglu, clamp), SCALAR(swiglu, n), END };
static const struct field moe_route_fields[] = {
    WRITE(moe_route, ids),    WRITE(moe_route, weights), READ(moe_route, logits),
    READ(moe_route, bias),    READ(moe_route, tid2eid),  BATCH(moe_route),
    SCALAR(moe_route, scale), SCALAR(moe_route, n_used), END
};
static const struct field moe_experts_fields[] = { WRITE(moe_experts, out),
                                                   READ(moe_experts, x),
                                                   READ(moe_experts, ids),
                                                   READ(moe_experts, weights),
                                                   READ(moe_experts, gate),
                                                   READ(moe_experts, up),
                                                   READ(moe_experts, down),
                                                   SCALAR(moe_experts, clamp),
                                                   SCALAR(moe_experts, n),
                                                   SCALAR(moe_experts, n_used),
                                                   SCALAR(moe_experts, e_begin),
                                                   SCALAR(moe_experts, e_end),
                                                   END };

#define OP_ENTRY(name) { name##_fields, sizeof(struct name##_args) },
static const struct {
    const struct field *fields;
    uint32_t size;
} op_types[KERNEL_COUNT] = { KERNEL_OPS(OP_ENTRY) };
#undef OP_ENTRY

/* ---- records ---- */

struct record {
    uint32_t op, at;                               /* arguments in queue.bytes */
};

struct step {                                      /* what makes two runs equal */
    int32_t n_ops, n_bytes, n_rows, n_seg, pos_bound;
};

struct graph {
    struct step step;
    struct record *ops;
    uint8_t *bytes;
    cudaGraphExec_t exec;                          /* NULL: seen once */
    uint64_t used_at;
};

struct queue {
    struct step step;
    uint8_t *bytes;                                /* QUEUE_BYTES, never moves */
    struct record ops[QUEUE_OPS];
    uint16_t done[QUEUE_OPS];                   /* while running: the launch that it went with, 0: none yet */
    uint16_t n_launches;
    struct graph graphs[GRAPHS_MAX];
    int n_graphs;
    uint64_t clock;
    bool running;
};

struct queue *queue_new(void) {
    struct queue *q = (struct queue *)xcalloc(1, sizeof *q);
    q->bytes = (uint8_t *)xcalloc(1, QUEUE_BYTES);
    return q;
}

static void graph_drop(struct graph *g) {
    if (g->exec) cudaGraphExecDestroy(g->exec);
    free(g->ops);
    free(g->bytes);
}

void queue_forget_graphs(struct cuda *c) {
    for (int i = 0; i < c->queue->n_graphs; i++) graph_drop(&c->queue->graphs[i]);
    c->queue->n_graphs = 0;
}

void queue_free(struct cuda *c) {
    if (!c->queue) return;
    queue_forget_graphs(c);
    free(c->queue->bytes);
    free(c->queue);
    c->queue = NULL;
}

static void *queue_room(struct queue *q, size_t size) {
    uint8_t *at = q->bytes + q->step.n_bytes;
    q->step.n_bytes += (int32_t)ALIGN_UP(size, (size_t)16);
    CHECK(q->step.n_bytes <= QUEUE_BYTES);
    return at;
}

/* Field by field: padding would differ from call to call. */
static const struct tensor *tensor_copy(struct queue *q, const struct tensor *t) {
    if (!t) return NULL;
    struct tensor *copy = (struct tensor *)queue_room(q, sizeof *copy);
    copy->data = t->data, copy->mem = t->mem, copy->type = t->type;
    for (int i = 0; i < 3; i++) copy->ne[i] = t->ne[i];
    return copy;
}

static const struct kv_layer *layer_copy(struct queue *q, const struct kv_layer *l) {
    struct kv_layer *copy = (struct kv_layer *)queue_room(q, sizeof *copy);
    copy->numerics = l->numerics;
    copy->head_dim = l->head_dim, copy->n_rot = l->n_rot, copy->idx_dim = l->idx_dim;
    copy->ratio = l->ratio, copy->overlap = l->overlap;
    copy->n_swa = l->n_swa, copy->raw_cap = l->raw_cap, copy->hist_cap = l->hist_cap;
    copy->row_bytes = l->row_bytes, copy->key_bytes = l->key_bytes;
    copy->slices = l->slices;
    return copy;
}

/* ---- the batch ---- */

static int32_t pos_bound_of(const struct kbatch *b) {
    int32_t pos = 0, bound = 1024;
    for (int32_t i = 0; i < b->n_rows; i++) pos = MAX(pos, b->pos[i]);
    if (b->n_rows > GRAPH_ROWS_MAX) return pos + 1;
    while (bound <= pos) bound *= 2;
    return bound;
}

static bool batch_is_set(const struct cuda *c, const struct kbatch *b) {
    const struct kbatch *v = &c->batch.view;
    size_t row_bytes = (size_t)b->n_rows * sizeof(int32_t);
    return v->n_rows == b->n_rows && v->n_seg == b->n_seg &&
           memcmp(v->pos, b->pos, row_bytes) == 0 &&
           (!b->token || memcmp(v->token, b->token, row_bytes) == 0) &&
           memcmp(v->seg, b->seg, row_bytes) == 0 &&
           memcmp(v->segs, b->segs, (size_t)b->n_seg * sizeof(struct kseg)) == 0;
}

/* Makes b the batch of the operations to come. */
static void batch_set(struct cuda *c, const struct kbatch *b) {
    CHECK(b->n_rows >= 0 && b->n_rows <= BATCH_ROWS_MAX && b->n_seg >= 0 && b->n_seg <= b->n_rows);
    if (batch_is_set(c, b)) return;
    queue_run(c);                                  /* what is recorded works on the batch before */
    int32_t *host = c->batch.host;
    uint64_t n = (uint64_t)b->n_rows, row_bytes = n * sizeof(int32_t),
             seg_bytes = (uint64_t)b->n_seg * sizeof(struct kseg);
    if (b->token) memcpy(host, b->token, row_bytes);
    else memset(host, 0, row_bytes);
    memcpy(host + BATCH_ROWS_MAX, b->pos, row_bytes);
    memcpy(host + 2 * BATCH_ROWS_MAX, b->seg, row_bytes);
    memcpy(host + 3 * BATCH_ROWS_MAX, b->segs, seg_bytes);
    struct kbatch *v = &c->batch.view;
    v->n_rows = c->batch.d.n_rows = b->n_rows;
    v->n_seg = c->batch.d.n_seg = b->n_seg;
    v->token = host, v->pos = host + BATCH_ROWS_MAX, v->seg = host + 2 * BATCH_ROWS_MAX;
    v->segs = (const struct kseg *)(host + 3 * BATCH_ROWS_MAX);
    c->batch.pos_bound = pos_bound_of(b);
    c->batch.seg_rows_max = 0;
    for (int32_t i = 0; i < b->n_seg; i++) c->batch.seg_rows_max = MAX(c->batch.seg_rows_max, b->segs[i].n);
    cuda_patch(c, (void *)c->batch.d.token, v->token, row_bytes);
    cuda_patch(c, (void *)c->batch.d.pos, v->pos, row_bytes);
    cuda_patch(c, (void *)c->batch.d.seg, v->seg, row_bytes);
    cuda_patch(c, (void *)c->batch.d.segs, v->segs, seg_bytes);
}

/* ---- recording ---- */

static bool queue_full(const struct queue *q) {
    return q->step.n_ops == QUEUE_OPS || q->step.n_bytes + QUEUE_OP_BYTES_MAX > QUEUE_BYTES;
}

static void record(struct cuda *c, enum kernel_op op, const void *args) {
    struct queue *q = c->queue;
    if (cuda_failed(c)) return;
    if (queue_full(q)) queue_run(c);
    const struct field *fields = op_types[op].fields;
    for (const struct field *f = fields; f->kind != FIELD_END; f++)  /* first, because it may run the queue */
        if (f->kind == FIELD_BATCH)
            batch_set(c, *(const struct kbatch *const *)((const uint8_t *)args + f->offset));
    uint8_t *copy = (uint8_t *)queue_room(q, op_types[op].size);
    q->ops[q->step.n_ops].op = op;
    q->ops[q->step.n_ops++].at = (uint32_t)(copy - q->bytes);
    for (const struct field *f = fields; f->kind != FIELD_END; f++) {
        const uint8_t *from = (const uint8_t *)args + f->offset;
        const void *pointer;
        memcpy(&pointer, from, MIN(sizeof pointer, (size_t)f->size));
        if (f->kind == FIELD_SCALARS) {
            memcpy(copy + f->offset, from, f->size);
            continue;
        }
        if (f->kind == FIELD_BATCH) pointer = &c->batch.view;
        else if (f->kind == FIELD_LAYER) pointer = layer_copy(q, (const struct kv_layer *)pointer);
        else pointer = tensor_copy(q, (const struct tensor *)pointer);
        memcpy(copy + f->offset, &pointer, sizeof pointer);
    }
    if (c->base.timing) {                     /* each operation alone, to the end: kernels.c takes the time */
        queue_run(c);
        cuda_ok(c, cudaStreamSynchronize(c->stream), "run");
    }
}

#define RECORD(name)                                                                  \
    void record_##name(struct kernels *k, const struct name##_args *a) {              \
        record(cuda_of(k), KERNEL_##name, a);                                         \
    }
RECORD(hc_pre)
RECORD(hc_post)
RECORD(matmul)
RECORD(rms_norm)
RECORD(add_streams)
RECORD(q_rope)
RECORD(kv_rows)
RECORD(kv_commit)
RECORD(compress)
RECORD(index_select)
RECORD(attention)
RECORD(swiglu)
RECORD(moe_route)
RECORD(moe_experts)

void record_embed(struct kernels *k, const struct embed_args *a) {
    for (int32_t i = 0; i < a->batch->n_rows; i++)
        CHECK(a->batch->token[i] >= 0 && a->batch->token[i] < a->table->ne[1]);
    if (a->table->mem) a->table->mem->keep = true;
    record(cuda_of(k), KERNEL_embed, a);
}

/* The host's row numbers go to device memory; the operation gets their address there. */
void record_hc_head(struct kernels *k, const struct hc_head_args *a) {
    struct cuda *c = cuda_of(k);
    struct hc_head_args copy = *a;
    if (a->row_i && a->n > 0) {
        if (c->batch.n_row_i + a->n > BATCH_ROWS_MAX || queue_full(c->queue)) queue_run(c);
        copy.row_i = c->batch.row_i + c->batch.n_row_i;
        cuda_patch(c, c->batch.row_i + c->batch.n_row_i, a->row_i, (uint64_t)a->n * sizeof(int32_t));
        c->batch.n_row_i += a->n;
    }
    record(c, KERNEL_hc_head, &copy);
}

/* ---- dependencies ---- */

struct range {
    const uint8_t *begin, *end;
};

struct access {
    struct range read[TENSORS_MAX], write[TENSORS_MAX];
    int n_read, n_write;
};

static struct range range_of(const struct tensor *t) {
    const uint8_t *begin = (const uint8_t *)t->data;
    uint64_t row = (uint64_t)t->ne[0], rows = (uint64_t)rows_of(t);
    return range{ begin, begin + rows * (t->type == DTYPE_I8 ? row : dtype_row_bytes(t->type, row)) };
}

static void *args_of(const struct queue *q, int i) {
    return q->bytes + q->ops[i].at;
}

static void access_of(const struct queue *q, int i, struct access *out) {
    out->n_read = out->n_write = 0;
    for (const struct field *f = op_types[q->ops[i].op].fields; f->kind != FIELD_END; f++) {
        if (f->kind != FIELD_READ && f->kind != FIELD_WRITE && f->kind != FIELD_CHANGE) continue;
        const struct tensor *t = *(const struct tensor **)((uint8_t *)args_of(q, i) + f->offset);
        if (!t) continue;
        if (f->kind != FIELD_WRITE) out->read[out->n_read++] = range_of(t);
        if (f->kind != FIELD_READ) out->write[out->n_write++] = range_of(t);
    }
}

static bool overlap(const struct range *a, int n_a, const struct range *b, int n_b) {
    for (int i = 0; i < n_a; i++)
        for (int j = 0; j < n_b; j++)
            if (a[i].begin < b[j].end && b[j].begin < a[i].end) return true;
    return false;
}

/* May the later operation run before the earlier one, or together with it? */
static bool independent(const struct queue *q, int earlier, int later) {
    struct access a, b;
    access_of(q, earlier, &a);
    access_of(q, later, &b);
    return !overlap(a.write, a.n_write, b.read, b.n_read) &&
           !overlap(a.write, a.n_write, b.write, b.n_write) &&
           !overlap(a.read, a.n_read, b.write, b.n_write);
}

/* ---- running ---- */

/* The forms in which the operations after i will read what i writes to `out`. */
static uint32_t wanted(struct cuda *c, int i, const struct tensor *out, int32_t n) {
    const struct queue *q = c->queue;
    struct range range = range_of(out);
    uint32_t kinds = 0;
    for (int j = i + 1; j < MIN(q->step.n_ops, i + LOOK_AHEAD); j++) {
        if (q->ops[j].op == KERNEL_matmul) {
            const struct matmul_args *a = (const struct matmul_args *)args_of(q, j);
            if (a->in->data == out->data && a->n == n) kinds |= matmul_wants(c, a);
        } else if (q->ops[j].op == KERNEL_moe_experts) {
            const struct moe_experts_args *a = (const struct moe_experts_args *)args_of(q, j);
            if (a->x->data == out->data && a->n == n) kinds |= experts_want(c, a);
        }
        struct access access;
        access_of(q, j, &access);
        if (overlap(access.write, access.n_write, &range, 1)) break;
    }
    return kinds;
}

static void forget_written(struct cuda *c, int i) {
    struct access a;
    access_of(c->queue, i, &a);
    for (int w = 0; w < a.n_write; w++) act_forget(c, a.write[w].begin, a.write[w].end);
}

/* The operation at i is being run: its place in the queue is used up, and what it writes is no longer
 * prepared. */
static void *take(struct cuda *c, int i) {
    c->queue->done[i] = c->queue->n_launches;
    forget_written(c, i);
    return args_of(c->queue, i);
}

/* Could the operation at i run now, together with the one at first? What ran in earlier launches is no
 * hindrance. */
static bool can_join(const struct queue *q, int first, int i) {
    for (int k = first; k < i; k++)
        if ((!q->done[k] || q->done[k] == q->n_launches) && !independent(q, k, i)) return false;
    return true;
}

static int window_end(const struct queue *q, int first) {
    return MIN(q->step.n_ops, first + LOOK_AHEAD);
}

/* -- products of one input -- */

static bool joins_product(const struct queue *q, int first, int i) {
    const struct matmul_args *a = (const struct matmul_args *)args_of(q, first);
    const struct matmul_args *b = (const struct matmul_args *)args_of(q, i);
    if (q->done[i] || q->ops[i].op != KERNEL_matmul) return false;
    return b->in->data == a->in->data && b->n == a->n && b->n_group == a->n_group &&
           b->weight->ne[0] == a->weight->ne[0] && can_join(q, first, i);
}

static void run_products(struct cuda *c, int first) {
    struct queue *q = c->queue;
    const struct matmul_args *group[MATMUL_GROUP_MAX];
    uint32_t kinds[MATMUL_GROUP_MAX];
    int n = 0;
    for (int i = first; i < window_end(q, first) && n < MATMUL_GROUP_MAX; i++) {
        if (i > first && !joins_product(q, first, i)) continue;
        group[n] = (const struct matmul_args *)args_of(q, i);
        kinds[n] = wanted(c, i, group[n]->out, group[n]->n);
        n++;
        take(c, i);
    }
    run_matmul(c, group, kinds, n);
}

/* -- hyper-connections: the hc_pre right after an hc_post reads the streams that it wrote -- */

static void run_hc_pre_at(struct cuda *c, int i, const struct hc_post_args *before) {
    const struct hc_pre_args *a = (const struct hc_pre_args *)take(c, i);
    run_hc_pre(c, a, before, wanted(c, i, a->out, a->n));
}

static void run_hc_post_at(struct cuda *c, int i) {
    const struct queue *q = c->queue;
    const struct hc_post_args *a = (const struct hc_post_args *)take(c, i);
    if (i + 1 < q->step.n_ops && q->ops[i + 1].op == KERNEL_hc_pre) {
        const struct hc_pre_args *b = (const struct hc_pre_args *)args_of(q, i + 1);
        if (a->x->data == b->x->data && a->n == b->n && a->x->ne[0] == b->x->ne[0]) {
            run_hc_pre_at(c, i + 1, a);
            return;
        }
    }
    run_hc_post(c, a);
}

/* -- state: few rows take one launch for everything between the first products and attention -- */

/* Rows may go to the ring before attention reads it, if none that attention wants is overwritten. */
static const struct kv_commit_args *find_commit(struct cuda *c, int i, const struct kv_rows_args *rows) {
    struct queue *q = c->queue;
    for (int j = i + 1; j < window_end(q, i); j++) {
        if (q->ops[j].op != KERNEL_kv_commit || q->done[j]) continue;
        const struct kv_commit_args *a = (const struct kv_commit_args *)args_of(q, j);
        bool same = a->rows->data == rows->rows->data && a->layer->slices == rows->layer->slices;
        if (!same || c->batch.seg_rows_max > a->layer->raw_cap - a->layer->n_swa + 1) return NULL;
        take(c, j);
        return a;
    }
    return NULL;
}

static bool joins_state(struct cuda *c, int i, struct state_ops *ops) {
    const struct queue *q = c->queue;
    const void *args = args_of(q, i);
    int32_t n = c->batch.view.n_rows;
    switch ((enum kernel_op)q->ops[i].op) {
    case KERNEL_rms_norm:
        if (ops->norm || ((const struct rms_norm_args *)args)->n != n) return false;
        ops->norm = (const struct rms_norm_args *)args;
        ops->norm_wanted = wanted(c, i, ops->norm->out, n);
        return true;
    case KERNEL_kv_rows:
        if (ops->rows || ((const struct kv_rows_args *)args)->n != n) return false;
        ops->rows = (const struct kv_rows_args *)args;
        ops->commit = find_commit(c, i, ops->rows);
        return true;
    case KERNEL_compress: {
        const struct compress_args *a = (const struct compress_args *)args;
        if (ops->compress[a->is_index]) return false;
        ops->compress[a->is_index] = a;
        return true;
    }
    case KERNEL_index_select: {
        const struct index_select_args *a = (const struct index_select_args *)args;
        if (ops->select || a->n != n || !index_selects_all(c, a)) return false;
        ops->select = a;
        return true;
    }
    default: return false;
    }
}

/* False: there is nothing to put together, or the batch is large. */
static bool run_state_at(struct cuda *c, int first) {
    struct queue *q = c->queue;
    struct state_ops ops = {};
    if (c->batch.view.n_rows > GRAPH_ROWS_MAX || c->base.timing || !joins_state(c, first, &ops)) return false;
    take(c, first);
    for (int i = first + 1; i < window_end(q, first); i++)
        if (!q->done[i] && can_join(q, first, i) && joins_state(c, i, &ops)) take(c, i);
    run_state(c, &ops);
    return true;
}

/* -- attention and experts, with what can go along -- */

static void run_attention_at(struct cuda *c, int i, const struct q_rope_args *rope) {
    const struct attention_args *a = (const struct attention_args *)take(c, i);
    run_attention(c, a, rope, wanted(c, i, a->q, a->n));
}

static void run_q_rope_at(struct cuda *c, int i) {
    const struct queue *q = c->queue;
    const struct q_rope_args *a = (const struct q_rope_args *)take(c, i);
    if (i + 1 < q->step.n_ops && q->ops[i + 1].op == KERNEL_attention) {
        const struct attention_args *b = (const struct attention_args *)args_of(q, i + 1);
        if (b->q->data == a->q->data && b->n == a->n && attention_ropes(c, b)) {
            run_attention_at(c, i + 1, a);
            return;
        }
    }
    run_q_rope(c, a);
}

static void run_swiglu_at(struct cuda *c, int i) {
    const struct swiglu_args *a = (const struct swiglu_args *)take(c, i);
    run_swiglu(c, a, wanted(c, i, a->out, a->n));
}

/* Routing, the lists of the experts that follow, and the shared expert's activation. */
static void run_moe_route_at(struct cuda *c, int i) {
    struct queue *q = c->queue;
    const struct moe_route_args *a = (const struct moe_route_args *)take(c, i);
    const struct moe_experts_args *experts = NULL;
    const struct swiglu_args *swiglu = NULL;
    uint32_t kinds = 0;
    for (int j = i + 1; j < window_end(q, i) && a->batch->n_rows <= GRAPH_ROWS_MAX && !c->base.timing; j++) {
        const void *args = args_of(q, j);
        if (q->done[j]) continue;
        if (q->ops[j].op == KERNEL_moe_experts && !experts) {
            const struct moe_experts_args *e = (const struct moe_experts_args *)args;
            if (e->ids->data == a->ids->data && e->n == a->batch->n_rows && experts_want(c, e)) experts = e;
        } else if (q->ops[j].op == KERNEL_swiglu && !swiglu && can_join(q, i, j)) {
            swiglu = (const struct swiglu_args *)take(c, j);
            kinds = wanted(c, j, swiglu->out, swiglu->n);
        }
    }
    run_moe_route(c, a, experts, swiglu, kinds);
}

/* Is an hc_post the next to read the experts' sum, with nothing in between but products that do not care? */
static bool sum_can_wait(const struct cuda *c, int i) {
    const struct queue *q = c->queue;
    const struct moe_experts_args *a = (const struct moe_experts_args *)args_of(q, i);
    for (int j = i + 1; j < window_end(q, i) && a->n <= GRAPH_ROWS_MAX && !c->base.timing; j++) {
        if (q->done[j]) continue;
        if (q->ops[j].op == KERNEL_hc_post) {
            const struct hc_post_args *b = (const struct hc_post_args *)args_of(q, j);
            return b->y->data == a->out->data && b->n == a->n && b->y->ne[0] == a->out->ne[0];
        }
        if (q->ops[j].op != KERNEL_matmul || !independent(q, i, j)) return false;
    }
    return false;
}

static void run_at(struct cuda *c, int i) {
    const struct queue *q = c->queue;
    enum kernel_op op = (enum kernel_op)q->ops[i].op;
    switch (op) {
    case KERNEL_matmul: run_products(c, i); return;
    case KERNEL_hc_pre: run_hc_pre_at(c, i, NULL); return;
    case KERNEL_hc_post: run_hc_post_at(c, i); return;
    case KERNEL_q_rope: run_q_rope_at(c, i); return;
    case KERNEL_attention: run_attention_at(c, i, NULL); return;
    case KERNEL_swiglu: run_swiglu_at(c, i); return;
    case KERNEL_moe_route: run_moe_route_at(c, i); return;
    case KERNEL_rms_norm: case KERNEL_kv_rows: case KERNEL_compress: case KERNEL_index_select:
        if (run_state_at(c, i)) return;
        break;
    default: break;
    }
    if (op == KERNEL_moe_experts) {
        bool later = sum_can_wait(c, i);
        run_moe_experts(c, (const struct moe_experts_args *)take(c, i), later);
        return;
    }
    const void *args = take(c, i);
    switch (op) {
#define RUN(name) case KERNEL_##name: run_##name(c, (const struct name##_args *)args); break;
    RUN(embed)
    RUN(rms_norm)
    RUN(add_streams)
    RUN(kv_rows)
    RUN(kv_commit)
    RUN(compress)
    RUN(index_select)
#undef RUN
    case KERNEL_hc_head: {
        const struct hc_head_args *a = (const struct hc_head_args *)args;
        run_hc_head(c, a, wanted(c, i, a->out, a->n));
        break;
    }
    default: CHECK(false);
    }
}

static void run_all(struct cuda *c) {
    struct queue *q = c->queue;
    memset(q->done, 0, sizeof q->done);
    act_forget(c, NULL, (const void *)UINTPTR_MAX);
    memset(c->act_turn, 0, sizeof c->act_turn);
    c->listed_ids = NULL;
    c->sum_waits = experts_sum{};
    q->n_launches = 0;
    for (int i = 0; i < q->step.n_ops && !cuda_failed(c); i++) {
        if (q->done[i]) continue;
        q->n_launches++;
        run_at(c, i);
    }
}

/* ---- graphs ---- */

static struct graph *graph_find(struct queue *q) {
    for (int i = 0; i < q->n_graphs; i++) {
        struct graph *g = &q->graphs[i];
        if (memcmp(&g->step, &q->step, sizeof g->step) == 0 &&
            memcmp(g->ops, q->ops, (size_t)q->step.n_ops * sizeof *g->ops) == 0 &&
            memcmp(g->bytes, q->bytes, (size_t)q->step.n_bytes) == 0)
            return g;
    }
    return NULL;
}

static void graph_remember(struct queue *q) {
    struct graph *g = &q->graphs[0];
    if (q->n_graphs < GRAPHS_MAX) {
        g = &q->graphs[q->n_graphs++];
    } else {
        for (int i = 1; i < q->n_graphs; i++)
            if (q->graphs[i].used_at < g->used_at) g = &q->graphs[i];
        graph_drop(g);
    }
    memset(g, 0, sizeof *g);
    g->step = q->step;
    g->used_at = q->clock;
    g->ops = (struct record *)xcalloc((size_t)q->step.n_ops, sizeof *g->ops);
    memcpy(g->ops, q->ops, (size_t)q->step.n_ops * sizeof *g->ops);
    g->bytes = (uint8_t *)xcalloc(1, (size_t)q->step.n_bytes);
    memcpy(g->bytes, q->bytes, (size_t)q->step.n_bytes);
}

static void graph_capture(struct cuda *c, struct graph *g) {
    cudaGraph_t graph = NULL;
    if (!cuda_ok(c, cudaStreamBeginCapture(c->stream, cudaStreamCaptureModeThreadLocal), "capture")) return;
    run_all(c);
    cudaError_t rc = cudaStreamEndCapture(c->stream, &graph);
    if (cuda_ok(c, rc, "capture"))
        cuda_ok(c, cudaGraphInstantiate(&g->exec, graph, 0), "instantiate a graph");
    if (graph) cudaGraphDestroy(graph);
}

static void run_or_replay(struct cuda *c) {
    struct queue *q = c->queue;
    struct graph *g = graph_find(q);
    q->clock++;
    if (!g) {
        run_all(c);
        graph_remember(q);
        return;
    }
    g->used_at = q->clock;
    if (!g->exec) graph_capture(c, g);
    if (g->exec) cuda_ok(c, cudaGraphLaunch(g->exec, c->stream), "launch a graph");
}

void queue_run(struct cuda *c) {
    struct queue *q = c->queue;
    if (q->step.n_ops == 0 || q->running) return;
    q->running = true;
    cuda_patches_run(c);
    q->step.n_rows = c->batch.view.n_rows;
    q->step.n_seg = c->batch.view.n_seg;
    q->step.pos_bound = c->batch.pos_bound;
    if (!cuda_failed(c)) {
        if (q->step.n_rows <= GRAPH_ROWS_MAX && q->step.n_ops > 1 && !c->base.timing) run_or_replay(c);
        else run_all(c);
    }
    memset(q->bytes, 0, (size_t)q->step.n_bytes);
    memset(&q->step, 0, sizeof q->step);
    c->batch.n_row_i = 0;
    q->running = false;
}
