/* Cutting a model into files. One file at a time, one tensor at a time:
 *
 *     stage-00.gguf.tmp   [ room for the header | tensor | tensor | ... ][ stamp | checksum | ... ]
 *                                             the journal, behind the file's end ^
 *
 * A tensor's checksum goes into the journal when its bytes are written; a run that finds the .tmp of an
 * earlier one with the same stamp (layout and source files) reads those tensors back and keeps the ones
 * that are as the journal says. The header is written last, the journal cut off, and only then the file
 * gets its name: whatever lies under the name is complete. */
#include "shard_tool/shard_tool.h"

#include "common/base/check.h"

#include <stdio.h>
#include <stdlib.h>

enum { PIECE = 8 << 20, HEADER_MAX = 1 << 30, MANIFEST_MAX = 16 << 20 };

struct split_run {
    const struct shard_split *s;
    struct shard_split_result *result;
    uint8_t *buffer;                                   /* PIECE bytes, for reading back */
    struct hash_stream *hash;
    uint64_t done, total;
};

struct target {                                        /* one file */
    struct shard_layout *l;
    char path[FILE_PATH_MAX], name[64];
    struct file_pieces *file;
    struct hash128 *sum;                               /* per tensor; zero: not there yet */
};

static const struct hash128 no_hash;

static int advance(struct split_run *r, const char *name, uint64_t bytes, struct err *e) {
    const struct shard_progress *p = &r->s->progress;
    r->done += bytes;
    if (!p->tell || p->tell(p->ctx, name, r->done, r->total)) return 0;
    return err_set(e, ERR_CANCELLED, "stopped; the same command goes on from here");
}

/* ---- names ---- */

static uint32_t stage_number(const struct shard_pieces *p, uint32_t i) {
    uint32_t n = 0;
    for (uint32_t k = 1; k <= i; k++) n += p->item[k].part.dense;
    return n;
}

static void piece_name(const struct shard_pieces *p, uint32_t i, char *out, size_t size) {
    const struct shard_part *part = &p->item[i].part;
    uint32_t stage = stage_number(p, i);
    if (part->dense) snprintf(out, size, "stage-%02u.gguf", stage);
    else
        snprintf(out, size, "stage-%02u-experts-%u-%u.gguf", stage, part->expert[0].begin,
                 part->expert[part->n_range - 1].end - 1);
}

/* ---- the journal ---- */

static uint64_t journal_at(const struct shard_layout *l, uint64_t i) {
    return l->file_bytes + sizeof(struct hash128) * (1 + i);
}

/* Two runs may share a .tmp only if they would write the same: same layout, same source files, unchanged. */
static int make_stamp(const struct shard_layout *l, struct hash128 *out, struct err *e) {
    struct buf bytes;
    buf_init(&bytes, HEADER_MAX);
    int rc = shard_layout_header(l, NULL, &bytes, e);
    for (int i = 0; i < gguf_n_files(l->g) && rc == 0; i++) {
        struct file_facts facts;
        rc = file_facts(&facts, gguf_path(l->g, i), e);
        facts.disk_bytes = 0;                          /* may change without the file */
        if (rc == 0) rc = buf_add(&bytes, &facts, sizeof facts);
    }
    if (rc == 0) *out = hash_128(bytes.data, bytes.size);
    buf_deinit(&bytes);
    return rc;
}

/* ---- tensors ---- */

static int copy_tensor(struct split_run *r, struct target *t, uint64_t i, struct err *e) {
    const struct shard_item *item = &t->l->item[i];
    uint64_t at = item->offset, size;
    const uint8_t *data;
    int rc = 0;
    hash_stream_reset(r->hash);
    for (uint32_t k = 0; shard_item_run(t->l, item, k, &data, &size) && rc == 0; k++)
        for (uint64_t from = 0; from < size && rc == 0; from += PIECE) {
            size_t n = (size_t)MIN(size - from, (uint64_t)PIECE);
            hash_stream_add(r->hash, data + from, n);
            rc = file_pieces_write(t->file, at, data + from, n, e);
            at += n;
            if (rc == 0) rc = advance(r, t->name, n, e);
        }
    gguf_release(t->l->g, item->from);
    if (rc < 0) return rc;
    CHECK(at == item->offset + item->size);
    t->sum[i] = hash_stream_value(r->hash);
    r->result->written_bytes += item->size;
    return file_pieces_write(t->file, journal_at(t->l, i), &t->sum[i], sizeof t->sum[i], e);
}

/* Is the tensor there, as the journal says? */
static int check_tensor(struct split_run *r, struct target *t, uint64_t i, bool *whole, struct err *e) {
    const struct shard_item *item = &t->l->item[i];
    *whole = false;
    if (hash_equal(t->sum[i], no_hash)) return 0;
    int rc = 0;
    hash_stream_reset(r->hash);
    for (uint64_t at = 0; at < item->size && rc == 0; at += PIECE) {
        size_t n = (size_t)MIN(item->size - at, (uint64_t)PIECE);
        rc = file_pieces_read(t->file, item->offset + at, r->buffer, n, e);
        if (rc == 0) hash_stream_add(r->hash, r->buffer, n);
    }
    *whole = rc == 0 && hash_equal(hash_stream_value(r->hash), t->sum[i]);
    return rc;
}

static int write_tensors(struct split_run *r, struct target *t, struct err *e) {
    int rc = 0;
    for (uint64_t i = 0; i < t->l->n && rc == 0; i++) {
        bool whole;
        rc = check_tensor(r, t, i, &whole, e);
        if (rc < 0) break;
        if (!whole) {
            rc = copy_tensor(r, t, i, e);
            continue;
        }
        r->result->kept_bytes += t->l->item[i].size;
        rc = advance(r, t->name, t->l->item[i].size, e);
    }
    return rc;
}

/* ---- one file ---- */

static int open_target(struct target *t, struct err *e) {
    bool fresh;
    struct hash128 stamp, there;
    int rc = make_stamp(t->l, &stamp, e);
    if (rc == 0) rc = file_pieces_open(&t->file, t->path, journal_at(t->l, t->l->n), &fresh, e);
    if (rc < 0) return rc;
    if (!fresh) rc = file_pieces_read(t->file, t->l->file_bytes, &there, sizeof there, e);
    if (rc == 0 && !fresh && hash_equal(there, stamp))
        return file_pieces_read(t->file, journal_at(t->l, 0), t->sum, (size_t)t->l->n * sizeof *t->sum, e);
    if (rc == 0 && !fresh) rc = file_pieces_clear(t->file, e);
    return rc == 0 ? file_pieces_write(t->file, t->l->file_bytes, &stamp, sizeof stamp, e) : rc;
}

static int finish_target(struct target *t, struct err *e) {
    struct buf header;
    buf_init(&header, HEADER_MAX);
    int rc = shard_layout_header(t->l, t->sum, &header, e);
    if (rc == 0) rc = file_pieces_write(t->file, 0, header.data, header.size, e);
    buf_deinit(&header);
    if (rc < 0) return rc;
    struct file_pieces *file = t->file;
    t->file = NULL;                                    /* finish frees it, whatever it says */
    return file_pieces_finish(file, t->l->file_bytes, e);
}

static int write_target(struct split_run *r, struct target *t, struct err *e) {
    int rc = open_target(t, e);
    if (rc == 0) rc = write_tensors(r, t, e);
    if (rc == 0) rc = finish_target(t, e);
    file_pieces_close(t->file);
    return rc;
}

/* The checksum that a tensor of the file to be must have, from the source alone. */
static struct hash128 source_hash(struct split_run *r, const struct shard_layout *l, uint64_t i) {
    const uint8_t *data;
    uint64_t size;
    hash_stream_reset(r->hash);
    for (uint32_t k = 0; shard_item_run(l, &l->item[i], k, &data, &size); k++)
        hash_stream_add(r->hash, data, (size_t)size);
    gguf_release(l->g, l->item[i].from);
    return hash_stream_value(r->hash);
}

/* Does the file under the name have the very header that we would write, and the checksums of this source? */
static int is_ours(struct split_run *r, const struct target *t, const struct gguf *there,
                   bool *same, struct err *e) {
    struct shard_info info;
    struct buf header;
    *same = false;
    if (shard_info_read(&info, there, NULL) < 0 || gguf_n_tensors(there) != t->l->n ||
        gguf_file_size(there, 0) != t->l->file_bytes)
        return 0;
    for (uint64_t i = 0; i < t->l->n; i++) t->sum[i] = shard_info_hash(&info, i);
    buf_init(&header, HEADER_MAX);
    int rc = shard_layout_header(t->l, t->sum, &header, e);
    *same = rc == 0 && memcmp(header.data, gguf_file_data(there, 0), header.size) == 0;
    buf_deinit(&header);
    for (uint64_t i = 0; i < t->l->n && *same && rc == 0; i++) {
        *same = hash_equal(source_hash(r, t->l, i), t->sum[i]);
        rc = advance(r, t->name, t->l->item[i].size, e);
    }
    return rc;
}

/* What an earlier run has finished stays; anything else under the name only goes by force. */
static int split_one(struct split_run *r, struct target *t, struct err *e) {
    struct gguf *there = NULL;
    struct file_facts facts;
    bool same = false, exists = file_facts(&facts, t->path, NULL) == 0;
    uint64_t before = r->done;
    int rc = 0;
    if (exists && gguf_open_one(&there, t->path, NULL) == 0) rc = is_ours(r, t, there, &same, e);
    gguf_close(there);
    if (rc < 0) return rc;
    if (same) {
        r->result->n_kept_files++;
        r->result->kept_bytes += r->done - before;
        return 0;
    }
    if (exists && !r->s->force)
        return err_set(e, ERR_INVALID, "%s: exists and is not this shard; --force replaces it",
                       t->path);
    r->done = before;
    memset(t->sum, 0, (size_t)t->l->n * sizeof *t->sum);
    return write_target(r, t, e);
}

/* ---- all files ---- */

static int open_layouts(const struct shard_split *s, struct target *targets, struct err *e) {
    int rc = 0;
    for (uint32_t i = 0; i < s->pieces.n && rc == 0; i++) {
        struct target *t = &targets[i];
        rc = shard_layout_new(&t->l, s->g, &s->pieces.item[i].part,
                              s->alignment ? s->alignment : SHARD_ALIGNMENT, e);
        if (rc < 0) break;
        t->sum = xcalloc(t->l->n, sizeof *t->sum);
        piece_name(&s->pieces, i, t->name, sizeof t->name);
        if (snprintf(t->path, sizeof t->path, "%s/%s", s->folder, t->name) >= (int)sizeof t->path - 8)
            rc = err_set(e, ERR_INVALID, "%.64s...: folder name too long", s->folder);
    }
    return rc;
}

static void close_layouts(struct target *targets, uint32_t n) {
    for (uint32_t i = 0; i < n; i++) {
        shard_layout_free(targets[i].l);
        free(targets[i].sum);
    }
}

/* Before anything is written. What lies there already under the name or as .tmp has its room. */
static int check_disk(const struct target *targets, uint32_t n, struct err *e) {
    uint64_t need = 0, room = 0;
    for (uint32_t i = 0; i < n; i++) {
        char tmp[FILE_PATH_MAX + 8];
        struct file_facts final, left;
        snprintf(tmp, sizeof tmp, "%s.tmp", targets[i].path);
        uint64_t bytes = journal_at(targets[i].l, targets[i].l->n),
                 has = file_facts(&left, tmp, NULL) == 0 ? left.disk_bytes : 0;
        if (file_facts(&final, targets[i].path, NULL) == 0 &&
            final.size == targets[i].l->file_bytes)
            has = bytes;
        need += bytes > has ? bytes - has : 0;
    }
    int rc = file_free_bytes(targets[0].path, &room, e);
    if (rc == 0 && need > room)
        rc = err_set(e, ERR_IO, "not enough room on the disk: %llu bytes are needed, %llu are free",
                     (unsigned long long)need, (unsigned long long)room);
    return rc;
}

/* Text from a model may hold anything; a manifest is ASCII. */
static void put_json_text(struct buf *b, const char *text) {
    buf_add_char(b, '"');
    for (; *text; text++) {
        uint8_t c = (uint8_t)*text;
        if (c < 0x20 || c == '"' || c == '\\') buf_printf(b, "\\u%04x", c);
        else buf_add_char(b, c < 0x7f ? *text : '?');
    }
    buf_add_char(b, '"');
}

static void put_manifest_file(struct buf *b, const struct shard_piece *piece, const struct target *t) {
    const struct shard_part *p = &piece->part;
    buf_printf(b, "    {\"file\": ");
    put_json_text(b, t->name);
    buf_printf(b,
               ", \"bytes\": %llu, \"tensors\": %llu, \"layers\": [%u, %u], \"dense\": %s, "
               "\"embed\": %s, \"head\": %s, \"experts\": [",
               (unsigned long long)t->l->file_bytes, (unsigned long long)t->l->n, p->layer_begin,
               p->layer_end - 1, p->dense ? "true" : "false", p->embed ? "true" : "false",
               p->head ? "true" : "false");
    for (uint32_t i = 0; i < p->n_range; i++)
        buf_printf(b, "%s[%u, %u]", i ? ", " : "", p->expert[i].begin, p->expert[i].end - 1);
    buf_printf(b, "]");
    if (*piece->machine) {
        buf_printf(b, ", \"machine\": ");
        put_json_text(b, piece->machine);
    }
    buf_printf(b, "}");
}

/* For people and other programs; our own read the files themselves. Ranges are inclusive. */
static int write_manifest(const struct shard_split *s, const struct target *targets, struct err *e) {
    char path[FILE_PATH_MAX + 32], hex[HASH_HEX];
    struct hparams hp;
    struct buf b;
    int rc = hparams_read(&hp, s->g, e);
    if (rc < 0) return rc;
    buf_init(&b, MANIFEST_MAX);
    hash_to_hex(targets[0].l->model, hex);
    buf_printf(&b, "{\n  \"version\": %d,\n  \"model\": ", SHARD_VERSION);
    put_json_text(&b, hp.name);
    buf_printf(&b, ",\n  \"fingerprint\": \"%s\",\n  \"layers\": %u,\n  \"files\": [\n", hex, hp.n_layer);
    for (uint32_t i = 0; i < s->pieces.n; i++) {
        put_manifest_file(&b, &s->pieces.item[i], &targets[i]);
        buf_printf(&b, i + 1 < s->pieces.n ? ",\n" : "\n");
    }
    buf_printf(&b, "  ]\n}\n");
    snprintf(path, sizeof path, "%s/manifest.json", s->folder);
    rc = b.rc < 0 ? err_set(e, b.rc, "manifest is too large") : file_write_all(path, b.data, b.size, e);
    buf_deinit(&b);
    return rc;
}

static int split_all(struct split_run *r, struct target *targets, struct err *e) {
    const struct shard_split *s = r->s;
    int rc = open_layouts(s, targets, e);
    if (rc == 0) rc = file_make_folder(s->folder, e);
    if (rc == 0) rc = check_disk(targets, s->pieces.n, e);
    for (uint32_t i = 0; i < s->pieces.n && rc == 0; i++) {
        r->result->file_bytes += targets[i].l->file_bytes;
        for (uint64_t k = 0; k < targets[i].l->n; k++) r->total += targets[i].l->item[k].size;
    }
    for (uint32_t i = 0; i < s->pieces.n && rc == 0; i++) rc = split_one(r, &targets[i], e);
    return rc == 0 ? write_manifest(s, targets, e) : rc;
}

int shard_split(const struct shard_split *s, struct shard_split_result *out, struct err *e) {
    memset(out, 0, sizeof *out);
    if (s->pieces.n < 1 || s->pieces.n > SHARD_COUNT_MAX)
        return err_set(e, ERR_INVALID, "%u files", s->pieces.n);
    struct split_run r = { .s = s, .result = out, .buffer = xcalloc(1, PIECE), .hash = hash_stream_new() };
    struct target *targets = xcalloc(s->pieces.n, sizeof *targets);
    out->n_files = s->pieces.n;
    int rc = split_all(&r, targets, e);
    close_layouts(targets, s->pieces.n);
    free(targets);
    hash_stream_free(r.hash);
    free(r.buffer);
    return rc;
}
