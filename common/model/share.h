/* share - a file of a model as others may read it over a link: ranges of its tensors, and the header of the
 * whole model as if it were one file.
 *
 * Reads from the mapping of an open gguf and never writes; immutable after open, so any thread may
 * read. Tensors are found by name, because files of one model may order them differently. The header of a
 * model in one file is that file's own beginning; for one in several it is made anew (same keys without
 * split.*, all tensors, in the order of gguf_tensor_at); a shard has none. Offsets are those of the whole
 * tensor, also where a shard holds some experts of it. The caller bounds what is asked for at once. The
 * gguf outlives the share. */
#ifndef MODEL_SHARE_H
#define MODEL_SHARE_H

#include "common/base/hash.h"
#include "common/model/gguf.h"

struct share;

struct share_ask {
    struct hash128 model;                          /* fingerprint */
    bool header;
    uint64_t name;                                 /* of the tensor: share_name_hash */
    uint32_t bytes;
    uint64_t offset;
};

struct share_part {
    const uint8_t *data;                           /* in the mapping */
    uint32_t bytes;                                /* as asked, or less at the end */
    uint64_t total_bytes, file_bytes;              /* of the tensor or header; of the model as one file */
    bool last;                                     /* to the end of the tensor or header */
};

/* ERR_UNSUPPORTED: a tensor of unknown type. ERR_CORRUPT: two tensors of one name, or a shard that
 * contradicts itself. */
int share_open(struct share **out, const struct gguf *g, struct err *e);
void share_close(struct share *s);                 /* NULL is fine */
struct hash128 share_model(const struct share *s);
bool share_is_whole(const struct share *s);        /* has the header, and every tensor */
uint64_t share_name_hash(struct gguf_str name);

/* ERR_NOTFOUND: another model, or not in this file. ERR_INVALID: behind the end. */
int share_find(const struct share *s, const struct share_ask *ask, struct share_part *out, struct err *e);

#endif
