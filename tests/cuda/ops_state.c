/* State and attention: a whole history on both sides. */
#include "tests/cuda/ops.h"

struct world {
    struct kv_layer layer[SIDES];
    struct kv_slice slice[SIDES][4];
    struct pair *raw[4], *hist[4], *idx_hist[4], *entries[4], *keys[4];
    struct pair *slices;
    int n_slots, n_entries_max;
};

static void page_table(int s, const struct pair *memory, int64_t page_bytes, int n_pages, uint8_t ***out) {
    struct tensor table;
    struct err e;
    void **host = xcalloc((size_t)n_pages, sizeof *host);
    /* any order */
    for (int i = 0; i < n_pages; i++)
        host[i] = (uint8_t *)memory->t[s].data + (int64_t)(n_pages - 1 - i) * page_bytes;
    allocate(side[s], (uint64_t)n_pages * sizeof *host, &table);
    CHECK(kernels_upload(side[s], table.data, host, (uint64_t)n_pages * sizeof *host, &e) == 0);
    struct pair *keep = pair_new(DTYPE_I8, 1, 1);
    keep->t[s].mem = table.mem;
    keep->bytes = 0;
    *out = table.data;
    free(host);
}

static void world_new(struct world *w, enum numerics numerics, int head_dim, int n_rot, int ratio,
                      int n_swa, int n_slots, int n_tokens) {
    *w = (struct world){ .n_slots = n_slots };
    struct kv_layer layer = {
        .numerics = numerics,
        .head_dim = head_dim,
        .n_rot = n_rot,
        .idx_dim = 128,
        .ratio = ratio,
        .overlap = ratio == 4,
        .n_swa = n_swa,
        .raw_cap = n_swa + KV_ROLLBACK,
        .hist_cap = ratio ? ratio * (ratio == 4 ? 2 : 1) + KV_ROLLBACK : 0,
        .row_bytes = kv_row_bytes(numerics, head_dim, n_rot),
        .key_bytes = kv_key_bytes(numerics, 128),
    };
    int c = layer.overlap + 1, n_pages = ratio ? (n_tokens / ratio + KV_PAGE) / KV_PAGE : 1;
    w->n_entries_max = n_pages * KV_PAGE;
    for (int slot = 0; slot < n_slots; slot++) {
        w->raw[slot] = output(DTYPE_I8, layer.row_bytes, layer.raw_cap);
        w->hist[slot] = output(DTYPE_F32, 2 * c * head_dim, MAX(layer.hist_cap, 1));
        w->idx_hist[slot] = output(DTYPE_F32, 2 * c * 128, MAX(layer.hist_cap, 1));
        w->entries[slot] = output(DTYPE_I8, layer.row_bytes, w->n_entries_max);
        w->keys[slot] = output(DTYPE_I8, layer.key_bytes, w->n_entries_max);
        for (int s = 0; s < SIDES; s++) {
            struct kv_slice *slice = &w->slice[s][slot];
            slice->raw = w->raw[slot]->t[s].data;
            slice->hist = w->hist[slot]->t[s].data;
            slice->idx_hist = w->idx_hist[slot]->t[s].data;
            page_table(s, w->entries[slot], (int64_t)layer.row_bytes * KV_PAGE, n_pages, &slice->pages);
            page_table(s, w->keys[slot], (int64_t)layer.key_bytes * KV_PAGE, n_pages, &slice->idx_pages);
        }
    }
    w->slices = output(DTYPE_I8, (int64_t)sizeof(struct kv_slice), n_slots);
    for (int s = 0; s < SIDES; s++) {
        struct err e;
        CHECK(kernels_upload(side[s], w->slices->t[s].data, w->slice[s],
                             (uint64_t)n_slots * sizeof(struct kv_slice), &e) == 0);
        w->layer[s] = layer;
        w->layer[s].slices = w->slices->t[s].data;
    }
}

struct step {                                      /* one batch through the state of a layer */
    struct pair *kv, *norm, *rope, *rows, *comp_kv, *comp_score, *ape, *comp_norm, *rope_win;
    struct pair *idx_kv, *idx_score, *idx_ape, *idx_norm, *idx_q, *idx_w, *sel, *n_sel, *q, *sinks;
};

/* Inputs for n rows. Weights of the layer (norms, ape, sinks) are given by `same` when not NULL. */
static struct step step_new(const struct world *w, int n, int n_head, int n_idx_head, int top_k,
                            const struct step *same) {
    const struct kv_layer *l = &w->layer[CPU];
    int c = l->overlap + 1, dim = l->head_dim;
    struct step t = { .kv = values(dim, n, 1, 0),
                      .rope = values(l->n_rot, n, 0.7f, 0),
                      .rope_win = values(l->n_rot, n, 0.7f, 0),
                      .rows = output(DTYPE_I8, l->row_bytes, n),
                      .q = values(n_head * dim, n, 1, 0) };
    t.comp_kv = values(c * dim, n, 1, 0), t.comp_score = values(c * dim, n, 1, 0);
    t.idx_kv = values(c * 128, n, 1, 0), t.idx_score = values(c * 128, n, 1, 0);
    t.idx_q = values(n_idx_head * 128, n, 1, 0), t.idx_w = values(n_idx_head, n, 1, 0.3f);
    t.sel = output(DTYPE_I32, top_k, n), t.n_sel = output(DTYPE_I32, 1, n);
    if (same) {
        t.norm = same->norm, t.ape = same->ape, t.comp_norm = same->comp_norm,
        t.idx_ape = same->idx_ape, t.idx_norm = same->idx_norm;
        t.sinks = same->sinks;
        return t;
    }
    t.norm = values(dim, 1, 0.2f, 1), t.comp_norm = values(dim, 1, 0.2f, 1),
    t.idx_norm = values(128, 1, 0.2f, 1), t.sinks = values(n_head, 1, 1, 0);
    t.ape = weights(DTYPE_F16, c * dim, MAX(l->ratio, 1), 1, 1),
    t.idx_ape = weights(DTYPE_F16, c * 128, MAX(l->ratio, 1), 1, 1);
    return t;
}

static void step_state(const struct world *w, struct step *t, const struct kbatch *b, int row0) {
    BOTH({
        const struct kv_layer *l = &w->layer[s];
        struct tensor rows = view_rows(t->rows, s, row0, b->n_rows),
                      kv = view_rows(t->kv, s, row0, b->n_rows),
                      rope = view_rows(t->rope, s, row0, b->n_rows);
        struct tensor win = view_rows(t->rope_win, s, row0, b->n_rows),
                      ckv = view_rows(t->comp_kv, s, row0, b->n_rows);
        struct tensor cs = view_rows(t->comp_score, s, row0, b->n_rows),
                      ikv = view_rows(t->idx_kv, s, row0, b->n_rows);
        struct tensor is = view_rows(t->idx_score, s, row0, b->n_rows);
        kernels_kv_rows(k, &(struct kv_rows_args){ .rows = &rows,
                                                   .kv = &kv,
                                                   .norm = &t->norm->t[s],
                                                   .rope = &rope,
                                                   .layer = l,
                                                   .eps = 1e-6f,
                                                   .n = b->n_rows });
        if (l->ratio)
            kernels_compress(k, &(struct compress_args){ .kv = &ckv,
                                                         .score = &cs,
                                                         .ape = &t->ape->t[s],
                                                         .norm = &t->comp_norm->t[s],
                                                         .rope = &win,
                                                         .layer = l,
                                                         .batch = b,
                                                         .eps = 1e-6f,
                                                         .is_index = false });
        if (l->overlap)
            kernels_compress(k, &(struct compress_args){ .kv = &ikv,
                                                         .score = &is,
                                                         .ape = &t->idx_ape->t[s],
                                                         .norm = &t->idx_norm->t[s],
                                                         .rope = &win,
                                                         .layer = l,
                                                         .batch = b,
                                                         .eps = 1e-6f,
                                                         .is_index = true });
    })
}

static void step_attention(const struct world *w, struct step *t, const struct kbatch *b, int row0,
                           int n, int n_head, int n_idx_head, int top_k) {
    BOTH({
        const struct kv_layer *l = &w->layer[s];
        struct tensor q = view_rows(t->q, s, row0, n), rope = view_rows(t->rope, s, row0, n),
                      sel = view_rows(t->sel, s, row0, n), n_sel = view_rows(t->n_sel, s, row0, n);
        struct tensor iq = view_rows(t->idx_q, s, row0, n), iw = view_rows(t->idx_w, s, row0, n);
        if (l->overlap)
            kernels_index_select(k, &(struct index_select_args){ .sel = &sel,
                                                                 .n_sel = &n_sel,
                                                                 .q = &iq,
                                                                 .weight = &iw,
                                                                 .rope = &rope,
                                                                 .layer = l,
                                                                 .batch = b,
                                                                 .row0 = row0,
                                                                 .n = n,
                                                                 .n_head = n_idx_head,
                                                                 .top_k = top_k });
        kernels_attention(k, &(struct attention_args){ .q = &q,
                                                       .rows = &t->rows->t[s],
                                                       .sinks = &t->sinks->t[s],
                                                       .rope = &rope,
                                                       .sel = l->overlap ? &sel : NULL,
                                                       .n_sel = l->overlap ? &n_sel : NULL,
                                                       .layer = l,
                                                       .batch = b,
                                                       .row0 = row0,
                                                       .n = n,
                                                       .n_head = n_head });
    })
}

static void step_commit(const struct world *w, struct step *t, const struct kbatch *b) {
    BOTH(kernels_kv_commit(
        k, &(struct kv_commit_args){ .rows = &t->rows->t[s], .layer = &w->layer[s], .batch = b }))
}

/* The card gets the CPU's state, so that one flipped rounding does not make everything after it differ. */
static void share(struct pair *p) {
    struct err e;
    void *host = fetch(p, CPU);
    CHECK(kernels_upload(side[GPU], p->t[GPU].data, host, p->bytes, &e) == 0);
    free(host);
}

/* Without the padding of stored rows, which only the card clears. */
static void compare_stored(const struct world *w, const struct pair *p, const char *what) {
    const struct kv_layer *l = &w->layer[CPU];
    int32_t n_nope = l->head_dim - l->n_rot, rot = l->numerics == NUMERICS_WIDE ? 4 : 2;
    if (l->numerics == NUMERICS_EXACT) return;
    /* f32: last bits may differ */
    compare_used(p, (uint64_t)(n_nope + n_nope / 64 + rot * l->n_rot), rot == 4 ? 0.05 : 0.01, what);
}

static void compare_state(const struct world *w, const char *what) {
    char name[128];
    bool exact = w->layer[CPU].numerics == NUMERICS_EXACT;
    for (int slot = 0; slot < w->n_slots; slot++) {
        struct pair *all[] = { w->raw[slot], w->entries[slot], w->keys[slot], w->hist[slot],
                               w->idx_hist[slot] };
        for (size_t i = 0; i < COUNT_OF(all); i++) {
            snprintf(name, sizeof name, "%s of slot %d, part %d", what, slot, (int)i);
            if (i < 2) compare_stored(w, all[i], name);
            else if (!exact) compare_bytes(all[i], 0.01, name);
            share(all[i]);
        }
    }
}

/* How many of the chosen entries are the same; near ties may differ. */
static void compare_choice(const struct step *t, int n, int top_k) {
    int32_t *gpu = fetch(t->sel, GPU), *cpu = fetch(t->sel, CPU), *n_gpu = fetch(t->n_sel, GPU),
            *n_cpu = fetch(t->n_sel, CPU);
    int differ = 0, total = 0, wrong = 0;
    for (int r = 0; r < n; r++) {
        wrong += n_gpu[r] != n_cpu[r];
        for (int i = 0; i < MIN(n_cpu[r], n_gpu[r]); i++, total++) {
            wrong += i > 0 && gpu[r * top_k + i] <= gpu[r * top_k + i - 1];
            bool found = false;
            for (int j = 0; j < n_cpu[r] && !found; j++) found = cpu[r * top_k + j] == gpu[r * top_k + i];
            differ += !found;
        }
    }
    verdict(wrong == 0 && differ * 500 <= total,
            "%d of %d chosen entries differ, %d wrong counts or orders", differ, total, wrong);
    free(gpu), free(cpu), free(n_gpu), free(n_cpu);
}

struct state_case {
    enum numerics numerics;
    int head_dim, n_rot, ratio, n_swa, n_head, n_idx_head, top_k;
    int n_prompt, n_more;        /* a prompt in slot 0, a shorter one in slot 1, then n_more tokens in both */
};

static void state_case(const struct state_case *c) {
    struct world w;
    bool fast = side[GPU]->config.precision == PRECISION_FAST;
    static const char *const names[] = { "official", "exact", "wide" };
    name_case("state %s %d+%d, ratio %d, %d heads, prompt %d, %s", names[c->numerics],
              c->head_dim - c->n_rot, c->n_rot, c->ratio, c->n_head, c->n_prompt, fast ? "fast" : "f32");
    world_new(&w, c->numerics, c->head_dim, c->n_rot, c->ratio, c->n_swa, 2, c->n_prompt + c->n_more + 64);
    int n_second = c->n_prompt / 3 + 1;
    struct batch_memory b = { 0 };
    batch_add(&b, 0, 0, c->n_prompt);
    batch_add(&b, 1, 0, n_second);
    int n = b.b.n_rows;
    struct step t = step_new(&w, n, c->n_head, c->n_idx_head, c->top_k, NULL);
    step_state(&w, &t, &b.b, 0);
    compare_stored(&w, t.rows, "rows");
    share(t.rows);
    compare_state(&w, "after the prompt");
    step_attention(&w, &t, &b.b, 0, n, c->n_head, c->n_idx_head, c->top_k);
    if (c->ratio == 4) compare_choice(&t, n, c->top_k);
    compare(t.q, 0, fast ? 2e-3 : 1e-5, "attention of the prompt");
    step_commit(&w, &t, &b.b);
    compare_state(&w, "after committing");
    for (int i = 0; i < c->n_more; i += 3) {       /* 3 tokens of slot 0 and 1 of slot 1 at once */
        struct batch_memory m = { 0 };
        batch_add(&m, 1, n_second + i / 3, 1);
        batch_add(&m, 0, c->n_prompt + i, 3);
        struct step u = step_new(&w, 4, c->n_head, c->n_idx_head, c->top_k, &t);
        step_state(&w, &u, &m.b, 0);
        share(u.rows);
        compare_state(&w, "after more tokens");
        step_attention(&w, &u, &m.b, 0, 4, c->n_head, c->n_idx_head, c->top_k);
        compare(u.q, 0, fast ? 2e-3 : 1e-5, "attention of more tokens");
        step_commit(&w, &u, &m.b);
        batch_free(&m);
    }
    drop_all();
    batch_free(&b);
}

/* The card alone: a prompt at once, and the same in chunks of many sizes, must leave the same bits. */
static void chunk_case(const struct state_case *c) {
    uint32_t *q_whole = NULL, *raw_whole = NULL, *entries_whole = NULL, *keys_whole = NULL;
    struct rng before = chance;
    static const int chunks[] = { 1 << 20, 1, 7, 33, 64, 130 };
    for (size_t i = 0; i < COUNT_OF(chunks); i++) {
        struct world w;
        chance = before;
        name_case("chunks of %d, ratio %d, %d heads of %d", chunks[i], c->ratio, c->n_head, c->head_dim);
        world_new(&w, c->numerics, c->head_dim, c->n_rot, c->ratio, c->n_swa, 1, c->n_prompt + 64);
        struct step t = step_new(&w, c->n_prompt, c->n_head, c->n_idx_head, c->top_k, NULL);
        for (int at = 0; at < c->n_prompt; at += chunks[i]) {
            struct batch_memory b = { 0 };
            int n = MIN(chunks[i], c->n_prompt - at);
            batch_add(&b, 0, at, n);
            struct step u = t;
            struct pair rows = *t.rows;
            for (int s = 0; s < SIDES; s++) rows.t[s] = view_rows(t.rows, s, at, n);
            step_state(&w, &t, &b.b, at);
            /* attention's tensors start at its row0 but `rows` is the batch's: shift everything by views */
            struct pair q = *t.q, rope = *t.rope, sel = *t.sel, n_sel = *t.n_sel, iq = *t.idx_q,
                        iw = *t.idx_w;
            for (int s = 0; s < SIDES; s++) {
                q.t[s] = view_rows(t.q, s, at, n), rope.t[s] = view_rows(t.rope, s, at, n),
                sel.t[s] = view_rows(t.sel, s, at, n);
                n_sel.t[s] = view_rows(t.n_sel, s, at, n), iq.t[s] = view_rows(t.idx_q, s, at, n),
                iw.t[s] = view_rows(t.idx_w, s, at, n);
            }
            u.rows = &rows, u.q = &q, u.rope = &rope, u.sel = &sel, u.n_sel = &n_sel, u.idx_q = &iq,
            u.idx_w = &iw;
            step_attention(&w, &u, &b.b, 0, n, c->n_head, c->n_idx_head, c->top_k);
            step_commit(&w, &u, &b.b);
            struct err e;
            CHECK(kernels_finish(side[GPU], &e) == 0);
            batch_free(&b);
        }
        uint32_t *q = keep_bits(t.q), *raw = keep_bits(w.raw[0]),
                 *entries = keep_bits(w.entries[0]), *keys = keep_bits(w.keys[0]);
        if (i == 0) {
            q_whole = q, raw_whole = raw, entries_whole = entries, keys_whole = keys;
        } else {
            same_bits(q_whole, q, t.q->bytes / 4, "attention");
            same_bits(raw_whole, raw, w.raw[0]->bytes / 4, "window rows");
            same_bits(entries_whole, entries, w.entries[0]->bytes / 4, "entries");
            same_bits(keys_whole, keys, w.keys[0]->bytes / 4, "keys");
            free(q), free(raw), free(entries), free(keys);
        }
        drop_all();
    }
    free(q_whole), free(raw_whole), free(entries_whole), free(keys_whole);
}

void test_state(void) {
    static const struct state_case cases[] = {
        { NUMERICS_OFFICIAL, 512, 64, 4, 128, 64, 64, 16, 300, 6 },
        { NUMERICS_OFFICIAL, 512, 64, 128, 128, 64, 64, 16, 400, 6 },
        { NUMERICS_OFFICIAL, 512, 64, 0, 128, 8, 64, 16, 150, 3 },
        { NUMERICS_EXACT, 512, 64, 4, 128, 8, 64, 8, 100, 6 },
        { NUMERICS_WIDE, 80, 16, 4, 16, 8, 16, 8, 90, 12 },
        { NUMERICS_WIDE, 192, 64, 128, 24, 4, 16, 12, 300, 3 },
        { NUMERICS_EXACT, 192, 64, 4, 24, 4, 16, 12, 70, 3 },
        { NUMERICS_OFFICIAL, 512, 64, 4, 128, 64, 64, 512, 2500, 3 },
        { NUMERICS_OFFICIAL, 512, 64, 4, 128, 128, 64, 16, 90, 3 },
    };
    for (size_t i = 0; i < COUNT_OF(cases); i++)
        if (!small || cases[i].n_prompt <= 150) state_case(&cases[i]);
}

void test_chunks(void) {
    static const struct state_case cases[] = {
        { NUMERICS_OFFICIAL, 512, 64, 4, 128, 64, 64, 16, 330, 0 },
        { NUMERICS_OFFICIAL, 512, 64, 128, 128, 64, 64, 16, 330, 0 },
        { NUMERICS_WIDE, 80, 16, 4, 16, 8, 16, 8, 200, 0 },
    };
    for (size_t i = small ? 2 : 0; i < COUNT_OF(cases); i++) chunk_case(&cases[i]);
}
