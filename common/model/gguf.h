/* gguf - reads GGUF v2/v3 files over a mapping, single or split, and writes v3.
 *
 * A model is one or more files seen as one set of tensors and one set of metadata (those of the first
 * file). Nothing is copied: strings and tensor data are views into the mappings, valid until
 * gguf_close. Every count, length and offset is checked against the file before it is used, so a
 * damaged file gives an error that names file, item and reason. Immutable after open, so any thread may
 * read. */
#ifndef MODEL_GGUF_H
#define MODEL_GGUF_H

#include "common/base/err.h"
#include "common/base/types.h"
#include "common/model/dtype.h"

enum gguf_type {
    GGUF_U8, GGUF_I8, GGUF_U16, GGUF_I16, GGUF_U32, GGUF_I32, GGUF_F32, GGUF_BOOL, GGUF_STRING, GGUF_ARRAY,
    GGUF_U64, GGUF_I64, GGUF_F64, GGUF_TYPES
};

enum {
    GGUF_DIMS_MAX = 4, GGUF_FILES_MAX = 256,
    GGUF_ALIGNMENT = 32, GGUF_ALIGNMENT_MAX = 1 << 20,  /* when the file does not say; when it does */
    GGUF_NAME_MAX = 1024, GGUF_TENSORS_MAX = 1 << 17, GGUF_KV_MAX = 1 << 16
};

uint32_t gguf_type_size(enum gguf_type type);     /* bytes of a scalar; 0 for string and array */
/* Bytes of a tensor. False: unknown type, a dimension of 0, a row that is not whole blocks, or 2^62
 * bytes and more. */
bool gguf_tensor_size(uint32_t dtype, uint32_t n_dims, const uint64_t *ne, uint64_t *size);

struct gguf_str { const char *data; uint64_t len; };                  /* not terminated */

struct gguf_kv {
    struct gguf_str key;
    enum gguf_type type, array_type;              /* array_type: only when type is GGUF_ARRAY */
    uint64_t n;                                                       /* elements of an array, else 1 */
    const uint8_t *data, *end;                    /* encoded value(s), bounds already checked */
};

struct gguf_tensor {
    struct gguf_str name;
    uint32_t type;                                /* dtype id; may be one we cannot decode */
    uint32_t n_dims;
    uint64_t ne[GGUF_DIMS_MAX];                                       /* ne[0] fastest; unused dims are 1 */
    uint64_t size;                                                    /* bytes; 0 when the type is unknown */
    const uint8_t *data;                          /* in the mapping; NULL: unknown type, or only a header */
    uint64_t file_offset;                                             /* absolute, in file file_i */
    int file_i;
};

struct gguf;

/* Opens PATH and, when its name says that it is one of several (-00001-of-0000N, or LayersAA-BB /
 * Layers-AA-output beside each other), the others too. gguf_open_one opens exactly the one file: a
 * shard of a stage. */
int gguf_open(struct gguf **out, const char *path, struct err *e);
int gguf_open_one(struct gguf **out, const char *path, struct err *e);
/* Parses a whole file image in memory (fuzzing, tests); `image` is borrowed until close. */
int gguf_open_memory(struct gguf **out, const void *image, size_t size, const char *name, struct err *e);
/* The same with only the first `size` bytes of a file of file_size at hand (a download's beginning).
 * Tensors behind those bytes have data NULL. ERR_LIMIT: the header goes on behind `size`; try again
 * with more. */
int gguf_open_header(struct gguf **out, const void *image, size_t size, uint64_t file_size, const char *name,
                     struct err *e);
void gguf_close(struct gguf *g);

int gguf_n_files(const struct gguf *g);
const char *gguf_path(const struct gguf *g, int file_i);
uint64_t gguf_file_size(const struct gguf *g, int file_i);
const void *gguf_file_data(const struct gguf *g, int file_i);         /* start of that file's mapping */

uint64_t gguf_n_tensors(const struct gguf *g);
const struct gguf_tensor *gguf_tensor_at(const struct gguf *g, uint64_t i);
const struct gguf_tensor *gguf_find_tensor(const struct gguf *g, const char *name);     /* NULL: none */

/* Hints to the system: read this tensor's bytes soon; its pages may go. */
void gguf_prefetch(const struct gguf *g, const struct gguf_tensor *tensor);
void gguf_release(const struct gguf *g, const struct gguf_tensor *tensor);

uint64_t gguf_n_kv(const struct gguf *g);
const struct gguf_kv *gguf_kv_at(const struct gguf *g, uint64_t i);
const struct gguf_kv *gguf_find(const struct gguf *g, const char *key);                 /* NULL: none */

/* Typed access. Integers of any width and bool are accepted where they fit; else ERR_CORRUPT naming the key.
 * A missing key is ERR_NOTFOUND (with text). */
int gguf_get_u64(const struct gguf *g, const char *key, uint64_t *out, struct err *e);
int gguf_get_u32(const struct gguf *g, const char *key, uint32_t *out, struct err *e);
int gguf_get_f32(const struct gguf *g, const char *key, float *out, struct err *e);
int gguf_get_bool(const struct gguf *g, const char *key, bool *out, struct err *e);
int gguf_get_str(const struct gguf *g, const char *key, struct gguf_str *out, struct err *e);
/* element i of an integer value/array */
int gguf_kv_int(const struct gguf_kv *kv, uint64_t i, int64_t *out);
int gguf_kv_float(const struct gguf_kv *kv, uint64_t i, float *out);
/* Iterates an array of strings: start with *cursor = kv->data; false at the end. */
bool gguf_kv_next_str(const struct gguf_kv *kv, const uint8_t **cursor, struct gguf_str *out);

/* Writer: declare metadata and tensors, then write the data of the tensors in that same order, in any pieces.
 * The file is PATH.tmp until gguf_writer_finish has synced and renamed it; abort removes it. */
struct buf;
struct gguf_writer;
int gguf_writer_new(struct gguf_writer **out, const char *path, uint32_t alignment, struct err *e);
void gguf_put_u32(struct gguf_writer *w, const char *key, uint32_t value);
void gguf_put_u64(struct gguf_writer *w, const char *key, uint64_t value);
void gguf_put_u16(struct gguf_writer *w, const char *key, uint16_t value);
void gguf_put_i32(struct gguf_writer *w, const char *key, int32_t value);
void gguf_put_f32(struct gguf_writer *w, const char *key, float value);
void gguf_put_bool(struct gguf_writer *w, const char *key, bool value);
void gguf_put_str(struct gguf_writer *w, const char *key, const char *value, size_t len);
/* scalars */
void gguf_put_array(struct gguf_writer *w, const char *key, enum gguf_type type, const void *values,
                    uint64_t n);
void gguf_put_strs(struct gguf_writer *w, const char *key, const struct gguf_str *values, uint64_t n);
void gguf_put_kv(struct gguf_writer *w, const struct gguf_kv *kv);  /* copies one from a reader */
void gguf_put_tensor(struct gguf_writer *w, const char *name, enum dtype type, uint32_t n_dims,
                     const uint64_t *ne);
int gguf_writer_begin_data(struct gguf_writer *w, struct err *e);  /* writes the header */
/* Instead, for a writer without a file (path NULL): appends the header with its padding to `out`; then
 * abort frees the writer. */
int gguf_writer_header(struct gguf_writer *w, struct buf *out, struct err *e);
uint64_t gguf_writer_end(const struct gguf_writer *w);  /* size of the whole file; likewise */
uint64_t gguf_writer_tensor_offset(const struct gguf_writer *w, uint64_t i);  /* absolute; after begin_data */
int gguf_writer_data(struct gguf_writer *w, const void *data, size_t size, struct err *e);
int gguf_writer_finish(struct gguf_writer *w, struct err *e);                           /* frees w */
void gguf_writer_abort(struct gguf_writer *w);    /* frees w; NULL is fine */

#endif
