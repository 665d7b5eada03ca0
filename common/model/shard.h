/* shard - files that hold one stage's share of a model: what is in them, in which order, and what their
 * metadata says.
 *
 * A shard is a GGUF of its own: the whole model's metadata, the tensors of the stage, in the order in
 * which a token meets them, each on a page of its own. So a node maps it and reads it from front to
 * back, and any reader of GGUF can look inside. This file is about layout and metadata and never
 * writes; shard_tool/ copies the bytes. Pure but for what gguf does; a layout borrows the gguf it was
 * made from. Limits: SHARD_RANGES_MAX ranges of experts per file, GGUF's own for everything else.
 *
 * Keys (all `pleiades.shard.*`):
 *   version     u32         SHARD_VERSION
 *   model       string      fingerprint of the whole model, 32 hexadecimal digits
 *   index count u32         which of how many files of one split
 *   layers      [u32; 2]    first layer, one behind the last
 *   dense       bool        everything but the routed experts is here; false in a helper's file
 *   experts     [u32; 2 n]  first, one behind the last, ...: ascending, as in each expert tensor
 *   embed head rest  bool   token embedding; output tensors; all else (an MTP block)
 *   tensors     u64         of the whole model
 *   order       [u32; t]    place of each tensor of this file in the whole model's table
 *   xxh3        [u64; 2 t]  XXH3-128 of each tensor's bytes in this file: low half, high half
 *   was.KEY     any         what the whole model says for KEY where a shard has to say something else
 * A shard says block_count without MTP layers and nextn_predict_layers 0, because its tensors no longer
 * show which dialect it is.
 *
 * Fingerprint: XXH3-128 over every key of the model sorted by name, without general.alignment, split.*
 * and pleiades.*:
 *   u64 length, name, u32 type, [array: u32 element type, u64 count], u64 length, encoded value
 * and then every tensor sorted by name: u64 length, name, u32 type, u32 dimensions, u64 of each, u64
 * bytes. All little-endian. It says that two files are the same model in another order, alignment or
 * division; not that their bytes are undamaged. */
#ifndef MODEL_SHARD_H
#define MODEL_SHARD_H

#include "common/base/buf.h"
#include "common/base/hash.h"
#include "common/model/hparams.h"

enum {
    SHARD_VERSION = 1,
    SHARD_ALIGNMENT = 16384,                           /* a page on every machine we know */
    SHARD_ALIGNMENT_MIN = 4096,
    SHARD_RANGES_MAX = 16, SHARD_COUNT_MAX = 4096
};

struct shard_range { uint32_t begin, end; };

struct shard_part {                                    /* what one file is to hold, or holds */
    uint32_t index, count;
    uint32_t layer_begin, layer_end;
    bool dense, embed, head, rest;
    struct shard_range expert[SHARD_RANGES_MAX];
    uint32_t n_range;                                  /* 0: no routed experts */
};

/* ---- any file of a model ---- */

/* Of the whole model: computed, or in a shard as it says. */
int shard_fingerprint(const struct gguf *g, struct hash128 *out, struct err *e);

/* Which layers are complete in this file or set (bit l of layers), for what a node offers. A shard with
 * a part of the experts, or without the rest of a layer, covers none. */
struct shard_cover {
    uint8_t layers[HP_LAYERS_MAX / 8];
    bool embed, head;
};
int shard_coverage(struct shard_cover *out, const struct gguf *g, const struct hparams *hp, struct err *e);

/* ---- reading ---- */

struct shard_info {
    struct hash128 model;
    struct shard_part part;
    uint64_t n_model_tensors;
    const struct gguf_kv *order, *xxh3;
};

bool shard_is(const struct gguf *g);
/* Everything is checked against the file itself. ERR_NOTFOUND: not a shard. */
int shard_info_read(struct shard_info *out, const struct gguf *g, struct err *e);
uint32_t shard_info_order(const struct shard_info *s, uint64_t tensor);
struct hash128 shard_info_hash(const struct shard_info *s, uint64_t tensor);

/* The key that a shard keeps under was.KEY, or NULL. */
const struct gguf_kv *shard_was(const struct gguf *g, const char *key);
bool shard_own_key(struct gguf_str key);      /* pleiades.shard.*, and what only says how a file is divided */

/* "blk.N.": the layer of a tensor's name; false: another name. `rest`, if not NULL, is what comes behind. */
bool shard_layer_of(struct gguf_str name, uint32_t *layer, struct gguf_str *rest);
/* Is it one of the three stacks of routed experts of the part's layers? Of those a file may hold some
 * experts only. */
bool shard_is_stack(const struct shard_part *p, struct gguf_str name);

/* ---- making ---- */

struct shard_item {                                    /* one tensor of the file to be */
    const struct gguf_tensor *from;
    uint64_t ne[GGUF_DIMS_MAX], size, offset;          /* in this file */
    uint32_t order;
    bool cut;                                          /* only the part's experts of it */
};

struct shard_layout {
    struct shard_part part;
    const struct gguf *g;
    struct hash128 model;
    uint32_t alignment, n_block_main;
    struct shard_item *item;
    uint64_t n;
    uint64_t header_bytes, file_bytes;
};

/* ERR_NOTFOUND: the model lacks tensors of these layers. ERR_INVALID: the part makes no sense, or g is
 * a shard itself. */
int shard_layout_new(struct shard_layout **out, const struct gguf *g, const struct shard_part *part,
                     uint32_t alignment, struct err *e);
void shard_layout_free(struct shard_layout *l);        /* NULL is fine */
/* The header with these checksums (NULL: zeros); always header_bytes long. */
int shard_layout_header(const struct shard_layout *l, const struct hash128 *hash, struct buf *out,
                        struct err *e);
/* Where in the whole tensor the item's first byte is. Its other bytes follow when the part has one range. */
uint64_t shard_item_begin(const struct shard_layout *l, const struct shard_item *item);
/* The i-th run of bytes that make up an item; false: no more. Not for a gguf that is only a header. */
bool shard_item_run(const struct shard_layout *l, const struct shard_item *item, uint32_t i,
                    const uint8_t **data, uint64_t *size);

#endif
