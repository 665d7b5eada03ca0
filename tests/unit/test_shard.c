/* Shards: what is in them, that a pipeline over them computes the same bits, that nothing damaged
 * passes, that a stopped split goes on. */
#include "shard_tool/shard_tool.h"

#include "common/base/check.h"
#include "node/stage.h"
#include "tests/harness/scratch.h"
#include "tests/harness/tiny_model.h"

#include <unistd.h>

enum { TOKENS = 40, FILES = 16 };

struct rig {
    struct scratch model, out;
    struct tiny_model tiny;
    struct gguf *g;
    char path[FILE_PATH_MAX];
};

static void open_rig(struct rig *r, char shape, const char *mix) {
    struct err e;
    scratch_open(&r->model);
    scratch_open(&r->out);
    tiny_model_init(&r->tiny, shape, mix, 11);
    snprintf(r->path, sizeof r->path, "%s", scratch_path(&r->model, "model.gguf"));
    tiny_write(&r->tiny, r->path);
    assert_fine(gguf_open(&r->g, r->path, &e), &e);
}

static void close_rig(struct rig *r) {
    gguf_close(r->g);
    scratch_close(&r->model);
    scratch_close(&r->out);
}

static int split_with(struct rig *r, const char *cuts, const char *experts,
                      struct shard_progress progress, bool force, struct shard_split_result *result,
                      struct err *e) {
    struct hparams hp;
    struct shard_split s = { .g = r->g, .folder = r->out.folder, .progress = progress, .force = force };
    int rc = hparams_read(&hp, r->g, e);
    if (rc == 0) rc = shard_pieces_of_cuts(&s.pieces, &hp, cuts, experts, e);
    if (rc == 0) rc = shard_split(&s, result, e);
    shard_pieces_free(&s.pieces);
    return rc;
}

static struct shard_split_result split(struct rig *r, const char *cuts, const char *experts) {
    struct shard_split_result result;
    struct err e;
    assert_fine(split_with(r, cuts, experts, (struct shard_progress){ 0 }, false, &result, &e), &e);
    return result;
}

static void files_of(struct rig *r, struct file_names *files) {
    const char *folder = r->out.folder;
    struct err e;
    assert_fine(shard_tool_files(files, &folder, 1, &e), &e);
}

static int join(struct rig *r, const char *to, struct err *e) {
    struct file_names files;
    struct shard_join_result result;
    files_of(r, &files);
    int rc = shard_join(&files, to, NULL, &result, e);
    file_names_free(&files);
    return rc;
}

struct lines { int n; char last[512]; };

static void take_line(void *ctx, const char *path, const char *what) {
    struct lines *l = ctx;
    l->n++;
    snprintf(l->last, sizeof l->last, "%s: %s", path, what);
}

static struct lines verify(struct rig *r, int stage) {
    struct lines lines = { 0 };
    struct file_names files;
    struct shard_verify_result result;
    struct err e;
    files_of(r, &files);
    struct shard_verify v = { .files = &files, .stage = stage, .damage = take_line, .damage_ctx = &lines };
    assert_fine(shard_verify(&v, &result, &e), &e);
    assert_int_equal(result.n_damaged, lines.n);
    file_names_free(&files);
    return lines;
}

static void same_files(const char *a, const char *b) {
    struct file_map x, y;
    struct err e;
    assert_fine(file_map(&x, a, &e), &e);
    assert_fine(file_map(&y, b, &e), &e);
    assert_int_equal(x.size, y.size);
    assert_memory_equal(x.data, y.data, x.size);
    file_unmap(&x);
    file_unmap(&y);
}

/* ---- what is in them ---- */

static void a_stage_file_holds_its_tensors_in_the_order_of_use_on_pages(void **state) {
    (void)state;
    struct rig r;
    struct gguf *g;
    struct shard_info info;
    struct hparams hp;
    struct hash128 model, said;
    struct err e;
    static const uint32_t cut[] = { 0, 2, 3, 5 };
    open_rig(&r, 'a', "q2q4");
    split(&r, "2,3", NULL);
    assert_fine(shard_fingerprint(r.g, &model, &e), &e);
    uint64_t n = 0;
    for (uint32_t i = 0; i < 3; i++) {
        char name[32];
        snprintf(name, sizeof name, "stage-%02u.gguf", i);
        assert_fine(gguf_open_one(&g, scratch_path(&r.out, name), &e), &e);
        assert_fine(shard_info_read(&info, g, &e), &e);
        assert_fine(hparams_read(&hp, g, &e), &e);
        assert_fine(shard_fingerprint(g, &said, &e), &e);
        assert_true(hash_equal(model, said) && hp.n_layer == 5);
        assert_true(info.part.layer_begin == cut[i] && info.part.layer_end == cut[i + 1]);
        assert_true(info.part.embed == (i == 0) && info.part.head == (i == 2) &&
                    info.part.index == i && info.part.count == 3);
        n += gguf_n_tensors(g);
        uint64_t end = 0;
        for (uint64_t k = 0; k < gguf_n_tensors(g); k++) {
            const struct gguf_tensor *t = gguf_tensor_at(g, k);
            char tensor[96];
            snprintf(tensor, sizeof tensor, "%.*s", (int)t->name.len, t->name.data);
            const struct gguf_tensor *from = gguf_find_tensor(r.g, tensor);
            assert_non_null(from);
            assert_true(t->file_offset % SHARD_ALIGNMENT == 0 && t->file_offset >= end &&
                        t->size == from->size);
            assert_memory_equal(t->data, from->data, t->size);
            assert_true(hash_equal(hash_128(t->data, t->size), shard_info_hash(&info, k)));
            assert_true(gguf_tensor_at(r.g, shard_info_order(&info, k)) == from);
            end = t->file_offset + t->size;
        }
        if (i == 0) {
            assert_memory_equal(gguf_tensor_at(g, 0)->name.data, "token_embd.weight", 17);
            assert_memory_equal(gguf_tensor_at(g, 1)->name.data, "blk.0.hc_attn_fn.weight", 23);
        }
        if (i == 2)
            assert_memory_equal(gguf_tensor_at(g, gguf_n_tensors(g) - 1)->name.data,
                                "output.weight", 13);
        gguf_close(g);
    }
    assert_int_equal(n, gguf_n_tensors(r.g));
    close_rig(&r);
}

static void says_which_layers_a_file_covers(void **state) {
    (void)state;
    struct rig r;
    struct gguf *g;
    struct shard_cover cover;
    struct err e;
    open_rig(&r, 'b', "f32");
    split(&r, "1", NULL);
    assert_fine(shard_coverage(&cover, r.g, &r.tiny.hp, &e), &e);
    assert_true(cover.layers[0] == 15 && cover.embed && cover.head);
    assert_fine(gguf_open_one(&g, scratch_path(&r.out, "stage-01.gguf"), &e), &e);
    assert_fine(shard_coverage(&cover, g, &r.tiny.hp, &e), &e);
    assert_true(cover.layers[0] == 14 && !cover.embed && cover.head);
    gguf_close(g);
    close_rig(&r);
}

/* ---- same bits ---- */

static void run_stages(const struct hparams *hp, const char *const *path, const uint32_t *begin,
                       uint32_t n, float *logits) {
    struct stage *stage[FILES];
    struct err e;
    uint32_t slot[FILES];
    int32_t token[TOKENS], rows[TOKENS];
    float *x[2] = { xcalloc(TOKENS * 4 * hp->n_embd, sizeof(float)),
                    xcalloc(TOKENS * 4 * hp->n_embd, sizeof(float)) };
    for (int i = 0; i < TOKENS; i++) token[i] = (i * 37 + 5) % (int)hp->n_vocab, rows[i] = i;
    for (uint32_t i = 0; i < n; i++) {
        struct stage_config config = { .model_path = path[i],
                                       .layer_begin = begin[i],
                                       .layer_end = i + 1 < n ? begin[i + 1] : 0,
                                       .kernels = { .backend = "cpu", .n_threads = 1 },
                                       .n_slots = 1,
                                       .n_ctx_max = 256 };
        assert_fine(stage_model_open(&stage[i], &config, &e), &e);
        assert_fine(stage_seq_open(stage[i], &slot[i], &e), &e);
        struct stage_seg seg = { slot[i], TOKENS, token };
        bool last = i + 1 == n;
        struct stage_batch batch = { .segs = &seg,
                                     .n_seg = 1,
                                     .n_rows = TOKENS,
                                     .x_in = i ? x[(i + 1) % 2] : NULL,
                                     .x_out = last ? NULL : x[i % 2],
                                     .logit_rows = last ? rows : NULL,
                                     .n_logits = last ? TOKENS : 0,
                                     .logits = last ? logits : NULL };
        assert_fine(stage_run(stage[i], &batch, &e), &e);
    }
    for (uint32_t i = 0; i < n; i++) stage_close(stage[i]);
    free(x[0]);
    free(x[1]);
}

static void a_pipeline_over_shards_gives_the_same_bits(void **state) {
    (void)state;
    static const struct {
        char shape;
        const char *mix;
    } models[] = { { 'a', "q2q4" }, { 'a', "mxfp4" }, { 'b', "f32" } };
    for (size_t k = 0; k < COUNT_OF(models); k++) {
        struct rig r;
        open_rig(&r, models[k].shape, models[k].mix);
        uint64_t n = (uint64_t)TOKENS * r.tiny.hp.n_vocab;
        float *whole = xcalloc(n, sizeof *whole), *parts = xcalloc(n, sizeof *parts);
        split(&r, "1,3", NULL);
        run_stages(&r.tiny.hp, (const char *[]){ r.path }, (uint32_t[]){ 0 }, 1, whole);
        run_stages(&r.tiny.hp,
                   (const char *[]){ scratch_path(&r.out, "stage-00.gguf"),
                                     scratch_path(&r.out, "stage-01.gguf"),
                                     scratch_path(&r.out, "stage-02.gguf") },
                   (uint32_t[]){ 0, 1, 3 }, 3, parts);
        assert_memory_equal(whole, parts, n * sizeof *whole);
        free(whole);
        free(parts);
        close_rig(&r);
    }
}

/* ---- there and back ---- */

static void join_gives_the_very_file(void **state) {
    (void)state;
    static const struct { const char *cuts, *experts; uint32_t n;
    } ways[] = {
        { NULL, "0-7", 1 },    { "1", NULL, 2 },          { "1,2,3,4", NULL, 5 },
        { "2", "0-3,4-7", 4 }, { "3", "0-0,1-6,7-7", 6 },
    };
    for (size_t i = 0; i < COUNT_OF(ways); i++) {
        struct rig r;
        struct err e;
        open_rig(&r, 'a', "q2");
        assert_int_equal(split(&r, ways[i].cuts, ways[i].experts).n_files, ways[i].n);
        assert_int_equal(verify(&r, -1).n, 0);
        const char *back = scratch_path(&r.model, "back.gguf");
        assert_fine(join(&r, back, &e), &e);
        same_files(r.path, back);
        close_rig(&r);
    }
}

/* A model with its MTP block as blk.5.*: main layers only in a shard, everything as it was after joining. */
static void write_with_mtp_inside(const struct tiny_model *tiny, const char *path) {
    struct tiny_list *list = xcalloc(1, sizeof *list);
    struct gguf_writer *w;
    struct err e;
    struct hparams hp = tiny->hp;
    hp.n_layer++;
    hp.ratio[hp.n_layer - 1] = 0;
    hp.swiglu_clamp_exp[hp.n_layer - 1] = hp.swiglu_clamp_shexp[hp.n_layer - 1] = 3;
    tiny_list_model(list, tiny);
    char prefix[] = "blk.5.";
    tiny_list_layer(list, &tiny->hp, prefix, 0, false, tiny->types[0]);
    tiny_add(list, prefix, "nextn.eh_proj.weight", TINY_MATRIX, tiny->types[0], 2 * hp.n_embd, hp.n_embd, 1);
    assert_fine(gguf_writer_new(&w, path, 64, &e), &e);
    tiny_metadata(w, &hp);
    gguf_put_u32(w, "deepseek4.nextn_predict_layers", 1);
    for (uint32_t i = 0; i < list->n; i++)
        gguf_put_tensor(w, list->item[i].name, list->item[i].type, list->item[i].n_dims,
                        list->item[i].ne);
    assert_fine(gguf_writer_begin_data(w, &e), &e);
    for (uint32_t i = 0; i < list->n; i++) {
        const struct tiny_tensor *t = &list->item[i];
        uint64_t size = dtype_row_bytes(t->type, t->ne[0]) * t->ne[1] * t->ne[2];
        uint8_t *data = xcalloc(size, 1);
        tiny_fill(t, tiny, data);
        assert_fine(gguf_writer_data(w, data, size, &e), &e);
        free(data);
    }
    assert_fine(gguf_writer_finish(w, &e), &e);
    free(list);
}

static void an_mtp_block_inside_goes_to_the_last_file_and_comes_back(void **state) {
    (void)state;
    struct rig r;
    struct hparams hp;
    struct gguf *g;
    struct err e;
    open_rig(&r, 'a', "q8");
    gguf_close(r.g);
    write_with_mtp_inside(&r.tiny, r.path);
    assert_fine(gguf_open(&r.g, r.path, &e), &e);
    split(&r, "2", "0-4,5-7");
    for (int i = 0; i < 2; i++) {
        assert_fine(gguf_open_one(&g, scratch_path(&r.out, i ? "stage-01.gguf" : "stage-00.gguf"), &e), &e);
        assert_fine(hparams_read(&hp, g, &e), &e);
        assert_int_equal(hp.n_layer, 5);
        assert_true((gguf_find_tensor(g, "blk.5.nextn.eh_proj.weight") != NULL) == (i == 1));
        gguf_close(g);
    }
    assert_int_equal(verify(&r, -1).n, 0);
    const char *back = scratch_path(&r.model, "back.gguf");
    assert_fine(join(&r, back, &e), &e);
    same_files(r.path, back);
    close_rig(&r);
}

/* ---- damage ---- */

static void flip(const char *path, uint64_t at) {
    FILE *f = fopen(path, "r+b");
    CHECK(f && fseek(f, (long)at, SEEK_SET) == 0);
    int c = fgetc(f);
    CHECK(fseek(f, (long)at, SEEK_SET) == 0 && fputc(c ^ 16, f) != EOF && fclose(f) == 0);
}

static void every_flipped_bit_in_a_tensor_is_named(void **state) {
    (void)state;
    struct rig r;
    struct gguf *g;
    struct err e;
    open_rig(&r, 'b', "f16");
    split(&r, "2", "0-9,10-15");
    const char *files[] = { "stage-00.gguf", "stage-00-experts-10-15.gguf", "stage-01.gguf" };
    for (size_t i = 0; i < COUNT_OF(files); i++) {
        char path[FILE_PATH_MAX], name[96];
        snprintf(path, sizeof path, "%s", scratch_path(&r.out, files[i]));
        assert_fine(gguf_open_one(&g, path, &e), &e);
        const struct gguf_tensor *t = gguf_tensor_at(g, gguf_n_tensors(g) / 2);
        uint64_t at = t->file_offset + t->size - 1;
        snprintf(name, sizeof name, "tensor %.*s ", (int)t->name.len, t->name.data);
        gguf_close(g);
        flip(path, at);
        struct lines lines = verify(&r, -1);
        assert_int_equal(lines.n, 1);
        assert_non_null(strstr(lines.last, name));
        assert_non_null(strstr(lines.last, files[i]));
        assert_int_equal(verify(&r, i < 2).n, 0);         /* the other stage is as it was */
        assert_int_equal(join(&r, scratch_path(&r.model, "back.gguf"), &e), ERR_CORRUPT);
        assert_non_null(strstr(e.text, name));
        assert_int_equal(access(scratch_path(&r.model, "back.gguf"), F_OK), -1);
        flip(path, at);
    }
    assert_int_equal(verify(&r, -1).n, 0);
    close_rig(&r);
}

static void missing_double_and_foreign_files_are_noticed(void **state) {
    (void)state;
    struct rig r, other;
    struct err e;
    open_rig(&r, 'b', "f16");
    open_rig(&other, 'b', "q8");
    split(&r, "1,2", NULL);
    split(&other, "1,2", NULL);
    unlink(scratch_path(&r.out, "stage-01.gguf"));
    struct lines lines = verify(&r, -1);
    assert_true(lines.n == 1 && strstr(lines.last, "part 2 of 3 is missing"));
    assert_int_equal(join(&r, scratch_path(&r.model, "back.gguf"), &e), ERR_NOTFOUND);
    CHECK(rename(scratch_path(&other.out, "stage-01.gguf"), scratch_path(&r.out, "stage-01.gguf")) == 0);
    assert_int_equal(verify(&r, -1).n, 2);                /* another model, and so still missing */
    assert_int_equal(join(&r, scratch_path(&r.model, "back.gguf"), &e), ERR_INVALID);
    CHECK(link(scratch_path(&r.out, "stage-00.gguf"), scratch_path(&r.out, "stage-09.gguf")) == 0);
    assert_true(verify(&r, -1).n >= 3);
    close_rig(&r);
    close_rig(&other);
}

/* ---- stopped and started again ---- */

struct stop { uint64_t calls, after; };

static bool stop_after(void *ctx, const char *what, uint64_t done, uint64_t total) {
    (void)what;
    struct stop *s = ctx;
    assert_true(done <= total);
    return ++s->calls < s->after;
}

static void check_no_torn_file(struct rig *r) {
    struct file_names names;
    struct err e;
    assert_fine(file_list(&names, r->out.folder, &e), &e);
    for (int i = 0; i < names.n; i++) {
        const char *path = scratch_path(&r->out, names.name[i]);
        struct gguf *g;
        if (strstr(names.name[i], ".tmp") || strcmp(names.name[i], "manifest.json") == 0) continue;
        assert_fine(gguf_open_one(&g, path, &e), &e);
        gguf_close(g);
    }
    file_names_free(&names);
}

static void a_stopped_split_goes_on_where_it_was(void **state) {
    (void)state;
    struct rig r;
    struct err e;
    struct shard_split_result result;
    open_rig(&r, 'a', "q4");
    uint64_t total = split(&r, "1,3", NULL).written_bytes;
    scratch_close(&r.out);
    scratch_open(&r.out);
    uint64_t kept = 0;
    int runs = 0;
    for (uint64_t after = 20;; after += 20, runs++) {     /* each run a little further than the one before */
        struct stop stop = { 0, after };
        int rc = split_with(&r, "1,3", NULL, (struct shard_progress){ stop_after, &stop }, false,
                            &result, &e);
        check_no_torn_file(&r);
        if (rc == 0) break;
        assert_int_equal(rc, ERR_CANCELLED);
        assert_true(result.kept_bytes >= kept);
        kept = result.kept_bytes;
        assert_true(runs < 100);
    }
    assert_true(runs > 3 && kept > 0 && result.kept_bytes + result.written_bytes == total &&
                result.n_kept_files >= 1);
    assert_int_equal(verify(&r, -1).n, 0);
    const char *back = scratch_path(&r.model, "back.gguf");
    assert_fine(join(&r, back, &e), &e);
    same_files(r.path, back);
    assert_true(split(&r, "1,3", NULL).written_bytes == 0);            /* nothing left to do */
    close_rig(&r);
}

static void what_is_damaged_in_a_stopped_split_is_done_again(void **state) {
    (void)state;
    struct rig r;
    struct err e;
    struct shard_split_result result;
    struct stop stop = { 0, 60 };
    open_rig(&r, 'a', "q4");
    assert_int_equal(split_with(&r, NULL, "0-7", (struct shard_progress){ stop_after, &stop },
                                false, &result, &e),
                     ERR_CANCELLED);
    uint64_t written = result.written_bytes;
    struct hparams hp = r.tiny.hp;
    struct shard_part part = { .count = 1,
                               .layer_end = hp.n_layer,
                               .dense = true,
                               .embed = true,
                               .head = true,
                               .rest = true,
                               .expert = { { 0, 8 } },
                               .n_range = 1 };
    struct shard_layout *l;
    assert_fine(shard_layout_new(&l, r.g, &part, SHARD_ALIGNMENT, &e), &e);
    flip(scratch_path(&r.out, "stage-00.gguf.tmp"), l->item[0].offset + 7);       /* one that was finished */
    shard_layout_free(l);
    result = split(&r, NULL, "0-7");
    assert_true(result.kept_bytes > 0 && result.kept_bytes < written);
    assert_int_equal(verify(&r, -1).n, 0);
    close_rig(&r);
}

/* Same names, same shapes, other weights: neither the .tmp nor the finished file of the old model may
 * survive in the new one's. */
static void files_of_another_model_are_not_taken_over(void **state) {
    (void)state;
    struct rig r;
    struct err e;
    struct shard_split_result result;
    struct stop stop = { 0, 20 };
    open_rig(&r, 'a', "q4");
    assert_int_equal(
        split_with(&r, "2", NULL, (struct shard_progress){ stop_after, &stop }, false, &result, &e),
        ERR_CANCELLED);
    gguf_close(r.g);
    r.tiny.seed = 12;
    tiny_write(&r.tiny, r.path);
    assert_fine(gguf_open(&r.g, r.path, &e), &e);
    assert_int_equal(split(&r, "2", NULL).kept_bytes, 0);
    gguf_close(r.g);
    r.tiny.seed = 13;
    tiny_write(&r.tiny, r.path);
    assert_fine(gguf_open(&r.g, r.path, &e), &e);
    assert_int_equal(split_with(&r, "2", NULL, (struct shard_progress){ 0 }, false, &result, &e),
                     ERR_INVALID);
    assert_non_null(strstr(e.text, "--force"));
    assert_fine(split_with(&r, "2", NULL, (struct shard_progress){ 0 }, true, &result, &e), &e);
    const char *back = scratch_path(&r.model, "back.gguf");
    assert_fine(join(&r, back, &e), &e);
    same_files(r.path, back);
    close_rig(&r);
}

static void refuses_what_makes_no_sense(void **state) {
    (void)state;
    struct rig r;
    struct err e;
    struct shard_split_result result;
    static const struct { const char *cuts, *experts;
    } bad[] = {
        { "0", NULL },   { "5", NULL },       { "2,2", NULL },     { "3,1", NULL },
        { "x", NULL },   { "1,", NULL },      { "1;2", NULL },     { "99999999", NULL },
        { NULL, "0-6" }, { NULL, "1-7" },     { NULL, "0-3,5-7" }, { NULL, "0-8" },
        { NULL, "" },    { NULL, "0-7,8-9" }, { NULL, "4-7,0-3" },
    };
    open_rig(&r, 'a', "q2");
    for (size_t i = 0; i < COUNT_OF(bad); i++)
        if (split_with(&r, bad[i].cuts, bad[i].experts, (struct shard_progress){ 0 }, false,
                       &result, &e) != ERR_INVALID)
            fail_msg("cuts %s experts %s", bad[i].cuts ? bad[i].cuts : "-",
                     bad[i].experts ? bad[i].experts : "-");
    split(&r, "2", NULL);
    struct gguf *shard;
    struct shard_layout *l;
    struct shard_part part = { .count = 1, .layer_end = 1, .dense = true };
    assert_fine(gguf_open_one(&shard, scratch_path(&r.out, "stage-00.gguf"), &e), &e);
    assert_int_equal(shard_layout_new(&l, shard, &part, SHARD_ALIGNMENT, &e), ERR_INVALID);
    gguf_close(shard);
    close_rig(&r);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        TEST(a_stage_file_holds_its_tensors_in_the_order_of_use_on_pages),
        TEST(says_which_layers_a_file_covers),
        TEST(a_pipeline_over_shards_gives_the_same_bits),
        TEST(join_gives_the_very_file),
        TEST(an_mtp_block_inside_goes_to_the_last_file_and_comes_back),
        TEST(every_flipped_bit_in_a_tensor_is_named),
        TEST(missing_double_and_foreign_files_are_noticed),
        TEST(a_stopped_split_goes_on_where_it_was),
        TEST(what_is_damaged_in_a_stopped_split_is_done_again),
        TEST(files_of_another_model_are_not_taken_over),
        TEST(refuses_what_makes_no_sense),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
