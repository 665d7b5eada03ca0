/* share - a model as others may read it over a link: its header as if it were one file, and ranges of
 * its tensors.
 *
 * Reads from the mapping of an open gguf and never writes; immutable after open, so any thread may
 * read. The header of a model in one file is that file's own beginning; for one in several it is made
 * anew (same keys without split.*, all tensors, in the order of gguf_tensor_at). The caller bounds what
 * is asked for at once. The gguf outlives the share. */
#ifndef MODEL_SHARE_H
#define MODEL_SHARE_H

#include "common/base/hash.h"
#include "common/model/gguf.h"

#define SHARE_HEADER UINT32_MAX                    /* in place of a tensor: the header */

struct share;

struct share_ask {
    struct hash128 model;                          /* fingerprint */
    uint32_t tensor, bytes;                        /* place in the header's table */
    uint64_t offset;
};

struct share_part {
    const uint8_t *data;                           /* in the mapping */
    uint32_t bytes;                                /* as asked, or less at the end */
    uint64_t total_bytes, file_bytes;              /* of the tensor or header; of the model as one file */
    bool last;                                     /* to the end of the tensor or header */
};

/* ERR_UNSUPPORTED: a shard, or a tensor of unknown type; only whole models are shared. */
int share_open(struct share **out, const struct gguf *g, struct err *e);
void share_close(struct share *s);                 /* NULL is fine */
struct hash128 share_model(const struct share *s);

/* ERR_NOTFOUND: another model. ERR_INVALID: no such tensor, or behind its end. */
int share_find(const struct share *s, const struct share_ask *ask, struct share_part *out, struct err *e);

#endif
