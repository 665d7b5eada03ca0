/* fetch_store - a tensor's checksum grows with its pieces as far as they follow one another; what came
 * early (from another source, or in an earlier run) is read back when those before it are there. */
#include "node/fetch_store.h"

#include "common/base/check.h"
#include "common/model/shard.h"
#include "common/model/share.h"
#include "common/sys/file.h"
#include "node/store.h"

#include <stdio.h>
#include <stdlib.h>

struct item_state {                                /* pieces of one tensor: numbers in the whole list */
    uint32_t first, n, n_there, n_summed;
    struct hash_stream *stream;                    /* of the first n_summed; NULL: of none, or complete */
};

struct fetch_store {
    struct buf header;
    struct gguf *g;
    struct shard_layout *l;
    char path[FILE_PATH_MAX];
    struct file_pieces *file;
    struct fetch_piece *piece, *missing;
    uint64_t *journal;                             /* hash per piece, 0: not there */
    bool *there;                                   /* likewise; looked at, when it was there before */
    uint32_t n_piece, n_missing;
    struct item_state *item;
    struct hash128 *sum;                           /* per tensor */
    uint8_t *buffer;                               /* one piece, for reading back */
    fetch_store_progress *progress;
    void *ctx;
};

/* ---- the layout ---- */

static int part_of(struct shard_part *p, const struct msg_assign *a, const struct gguf *g, struct err *e) {
    struct hparams hp;
    int rc = hparams_read(&hp, g, e);
    if (rc < 0) return rc;
    *p = (struct shard_part){ .index = a->stage_i,
                              .count = a->n_stage,
                              .layer_begin = a->layer_begin,
                              .layer_end = a->layer_end,
                              .dense = !a->is_helper,
                              .embed = a->has_embed && !a->is_helper,
                              .head = a->has_head && !a->is_helper,
                              .rest = a->has_head && !a->is_helper,
                              .expert = { { 0, hp.n_expert } },
                              .n_range = 1 };
    if (a->expert_end) p->expert[0] = (struct shard_range){ a->expert_begin, a->expert_end };
    return 0;
}

static int open_layout(struct fetch_store *s, const struct msg_assign *a, uint64_t file_bytes,
                       struct err *e) {
    struct hash128 model;
    struct shard_part part;
    int rc = gguf_open_header(&s->g, s->header.data, s->header.size, file_bytes,
                              "the model at the source", e);
    if (rc == 0 && shard_is(s->g)) rc = err_set(e, ERR_UNSUPPORTED, "the source has a shard only");
    if (rc == 0) rc = shard_fingerprint(s->g, &model, e);
    if (rc == 0 && (model.lo != a->model_lo || model.hi != a->model_hi))
        rc = err_set(e, ERR_CORRUPT, "the source sends another model than the one that was assigned");
    if (rc == 0) rc = part_of(&part, a, s->g, e);
    return rc == 0 ? shard_layout_new(&s->l, s->g, &part, SHARD_ALIGNMENT, e) : rc;
}

static uint32_t pieces_of(uint64_t bytes) {
    return (uint32_t)((bytes + FETCH_PIECE_BYTES - 1) / FETCH_PIECE_BYTES);
}

static bool begins(struct gguf_str s, const char *with) {
    size_t n = strlen(with);
    return s.len >= n && memcmp(s.data, with, n) == 0;
}

/* As shard_layout.c and shard_coverage see it. */
static uint32_t part_of_name(const struct fetch_store *s, struct gguf_str name) {
    uint32_t layer;
    if (shard_layer_of(name, &layer, NULL) && layer < s->l->n_block_main) return layer;
    return begins(name, "token_embd.") ? FETCH_PART_EMBED
           : begins(name, "output")    ? FETCH_PART_HEAD
                                       : FETCH_PART_REST;
}

static void cut_item(struct fetch_store *s, uint32_t i) {
    const struct shard_item *item = &s->l->item[i];
    uint64_t from = shard_item_begin(s->l, item), name = share_name_hash(item->from->name);
    uint32_t part = part_of_name(s, item->from->name);
    s->item[i] = (struct item_state){ .first = s->n_piece, .n = pieces_of(item->size) };
    for (uint32_t k = 0; k < s->item[i].n; k++) {
        uint64_t at = (uint64_t)k * FETCH_PIECE_BYTES;
        s->piece[s->n_piece++] =
            (struct fetch_piece){ .tensor = item->order,
                                  .bytes = (uint32_t)MIN(item->size - at, (uint64_t)FETCH_PIECE_BYTES),
                                  .name = name,
                                  .offset = from + at,
                                  .at = item->offset + at,
                                  .item = i,
                                  .number = k,
                                  .part = part };
    }
}

static int cut(struct fetch_store *s, struct err *e) {
    uint64_t n = 0;
    for (uint64_t i = 0; i < s->l->n; i++)
        n += (s->l->item[i].size + FETCH_PIECE_BYTES - 1) / FETCH_PIECE_BYTES;
    if (n > FETCH_PIECES_MAX)
        return err_set(e, ERR_LIMIT, "a share of %llu pieces, %d at most", (unsigned long long)n,
                       FETCH_PIECES_MAX);
    s->piece = xcalloc(n, sizeof *s->piece);
    s->missing = xcalloc(n, sizeof *s->missing);
    s->journal = xcalloc(n, sizeof *s->journal);
    s->there = xcalloc(n, sizeof *s->there);
    s->item = xcalloc(s->l->n, sizeof *s->item);
    s->sum = xcalloc(s->l->n, sizeof *s->sum);
    for (uint32_t i = 0; i < s->l->n; i++) cut_item(s, i);
    return 0;
}

static int make_path(struct fetch_store *s, const char *folder, const struct msg_assign *a, struct err *e) {
    char hex[HASH_HEX], experts[48] = "";
    hash_to_hex(s->l->model, hex);
    if (a->expert_end)
        snprintf(experts, sizeof experts, "-experts-%u-%u", a->expert_begin, a->expert_end - 1);
    int n = snprintf(s->path, sizeof s->path - 8, "%s/%.16s-%s-%02u-%02u%s%s%s.gguf", folder, hex,
                     a->is_helper ? "helper" : "stage", a->layer_begin, a->layer_end - 1,
                     a->has_embed && !a->is_helper ? "-embed" : "",
                     a->has_head && !a->is_helper ? "-head" : "", experts);
    return n < (int)sizeof s->path - 8
               ? 0
               : err_set(e, ERR_INVALID, "%.64s...: folder name too long", folder);
}

/* ---- the file and its journal ---- */

static uint64_t journal_at(const struct fetch_store *s, uint64_t i) {
    return s->l->file_bytes + sizeof(struct hash128) + i * sizeof s->journal[0];
}

/* What earlier plans left goes first. */
static int check_disk(const struct fetch_store *s, const char *folder, struct err *e) {
    char tmp[FILE_PATH_MAX + 8];
    struct file_facts there;
    uint64_t need = journal_at(s, s->n_piece), room;
    snprintf(tmp, sizeof tmp, "%s.tmp", s->path);
    if (file_facts(&there, tmp, NULL) == 0) need -= MIN(need, there.disk_bytes);
    int rc = file_free_bytes(s->path, &room, e);
    if (rc == 0 && need > room && store_tidy(folder, strrchr(s->path, '/') + 1, 0) > 0)
        rc = file_free_bytes(s->path, &room, e);
    if (rc == 0 && need > room)
        rc = err_set(e, ERR_IO, "not enough room on the disk: %llu bytes are needed, %llu are free",
                     (unsigned long long)need, (unsigned long long)room);
    return rc;
}

static int make_stamp(const struct fetch_store *s, struct hash128 *out, struct err *e) {
    struct buf bytes;
    uint32_t piece = FETCH_PIECE_BYTES;
    buf_init(&bytes, FETCH_HEADER_MAX);
    int rc = shard_layout_header(s->l, NULL, &bytes, e);
    if (rc == 0) rc = buf_add(&bytes, &piece, sizeof piece);
    *out = hash_128(bytes.data, bytes.size);
    buf_deinit(&bytes);
    return rc;
}

static int open_file(struct fetch_store *s, const char *folder, struct err *e) {
    bool fresh;
    struct hash128 stamp, there = { 0, 0 };
    int rc = check_disk(s, folder, e);
    if (rc == 0) rc = make_stamp(s, &stamp, e);
    if (rc == 0) rc = file_pieces_open(&s->file, s->path, journal_at(s, s->n_piece), &fresh, e);
    if (rc < 0) return rc;
    if (!fresh) rc = file_pieces_read(s->file, s->l->file_bytes, &there, sizeof there, e);
    if (rc == 0 && !fresh && hash_equal(there, stamp))
        return file_pieces_read(s->file, journal_at(s, 0), s->journal, s->n_piece * sizeof s->journal[0], e);
    if (rc == 0 && !fresh) rc = file_pieces_clear(s->file, e);
    return rc == 0 ? file_pieces_write(s->file, s->l->file_bytes, &stamp, sizeof stamp, e) : rc;
}

/* ---- checksums of tensors ---- */

static int read_back(struct fetch_store *s, const struct fetch_piece *p, struct err *e) {
    return file_pieces_read(s->file, p->at, s->buffer, p->bytes, e);
}

/* Pieces that came before those in front of them. */
static int catch_up(struct fetch_store *s, struct item_state *t, struct err *e) {
    int rc = 0;
    while (rc == 0 && t->n_summed < t->n && s->there[t->first + t->n_summed]) {
        const struct fetch_piece *p = &s->piece[t->first + t->n_summed];
        rc = read_back(s, p, e);
        if (rc == 0) hash_stream_add(t->stream, s->buffer, p->bytes);
        t->n_summed++;
    }
    return rc;
}

/* A piece is there. With the last one of a tensor its checksum is. */
static int note(struct fetch_store *s, const struct fetch_piece *p, const void *data, struct err *e) {
    struct item_state *t = &s->item[p->item];
    int rc = 0;
    if (s->there[t->first + p->number]) return 0;
    s->there[t->first + p->number] = true;
    t->n_there++;
    if (p->number != t->n_summed) return 0;
    if (!t->stream) t->stream = hash_stream_new();
    hash_stream_add(t->stream, data, p->bytes);
    t->n_summed++;
    rc = catch_up(s, t, e);
    if (rc < 0 || t->n_summed < t->n) return rc;
    s->sum[p->item] = hash_stream_value(t->stream);
    hash_stream_free(t->stream);
    t->stream = NULL;
    return 0;
}

/* What an earlier run left, in order. */
static int find_missing(struct fetch_store *s, struct err *e) {
    uint64_t done = 0, total = fetch_store_bytes(s);
    int rc = 0;
    for (uint32_t i = 0; i < s->n_piece && rc == 0; i++) {
        const struct fetch_piece *p = &s->piece[i];
        bool there = false;
        if (s->journal[i]) {
            rc = read_back(s, p, e);
            there = rc == 0 && hash_64(s->buffer, p->bytes, 0) == s->journal[i];
            done += p->bytes;
            if (rc == 0 && s->progress && !s->progress(s->ctx, done, total))
                rc = err_set(e, ERR_CANCELLED, "given up");
        }
        if (rc == 0 && there) rc = note(s, p, s->buffer, e);
        else if (rc == 0) s->missing[s->n_missing++] = *p;
    }
    return rc;
}

/* ---- life ---- */

int fetch_store_open(struct fetch_store **out, const char *folder, const struct msg_assign *a,
                     struct buf *header, uint64_t file_bytes, fetch_store_progress *progress,
                     void *ctx, struct err *e) {
    struct fetch_store *s = xcalloc(1, sizeof *s);
    *out = NULL;
    s->header = *header;
    *header = (struct buf){ 0 };
    s->progress = progress;
    s->ctx = ctx;
    s->buffer = xcalloc(1, FETCH_PIECE_BYTES);
    int rc = open_layout(s, a, file_bytes, e);
    if (rc == 0) rc = cut(s, e);
    if (rc == 0) rc = make_path(s, folder, a, e);
    if (rc == 0) rc = file_make_folder(folder, e);
    if (rc == 0) rc = open_file(s, folder, e);
    if (rc == 0) rc = find_missing(s, e);
    if (rc < 0) {
        fetch_store_close(s);
        return rc;
    }
    *out = s;
    return 0;
}

void fetch_store_close(struct fetch_store *s) {
    if (!s) return;
    file_pieces_close(s->file);
    for (uint64_t i = 0; s->item && i < s->l->n; i++) hash_stream_free(s->item[i].stream);
    free(s->piece);
    free(s->missing);
    free(s->journal);
    free(s->there);
    free(s->item);
    free(s->sum);
    free(s->buffer);
    shard_layout_free(s->l);
    gguf_close(s->g);
    buf_deinit(&s->header);
    free(s);
}

const struct fetch_piece *fetch_store_missing(const struct fetch_store *s, uint32_t *n) {
    *n = s->n_missing;
    return s->missing;
}

uint64_t fetch_store_bytes(const struct fetch_store *s) {
    uint64_t sum = 0;
    for (uint64_t i = 0; i < s->l->n; i++) sum += s->l->item[i].size;
    return sum;
}

const char *fetch_store_path(const struct fetch_store *s) {
    return s->path;
}

int fetch_store_write(struct fetch_store *s, const struct fetch_piece *p, const void *data,
                      uint32_t bytes, uint64_t hash, struct err *e) {
    uint32_t i = s->item[p->item].first + p->number;
    if (bytes != p->bytes || hash_64(data, bytes, 0) != hash)
        return err_set(e, ERR_CORRUPT, "byte %llu of tensor %u arrived damaged",
                       (unsigned long long)p->offset, p->tensor);
    int rc = file_pieces_write(s->file, p->at, data, bytes, e);
    s->journal[i] = hash;
    if (rc == 0) rc = file_pieces_write(s->file, journal_at(s, i), &hash, sizeof hash, e);
    return rc == 0 ? note(s, p, data, e) : rc;
}

int fetch_store_finish(struct fetch_store *s, struct err *e) {
    struct buf header;
    for (uint64_t i = 0; i < s->l->n; i++)
        CHECK(s->item[i].n_there == s->item[i].n && s->item[i].n_summed == s->item[i].n);
    buf_init(&header, FETCH_HEADER_MAX);
    int rc = shard_layout_header(s->l, s->sum, &header, e);
    if (rc == 0) rc = file_pieces_write(s->file, 0, header.data, header.size, e);
    buf_deinit(&header);
    if (rc < 0) return rc;
    struct file_pieces *file = s->file;
    s->file = NULL;                                /* finish frees it, whatever it says */
    return file_pieces_finish(file, s->l->file_bytes, e);
}
