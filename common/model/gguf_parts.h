/* gguf_parts - what the three files of the reader share: gguf_parse.c (bytes to structs), gguf.c
 * (looking things up), gguf_open.c (files and sets of files). Private to them. */
#ifndef MODEL_GGUF_PARTS_H
#define MODEL_GGUF_PARTS_H

#include "common/base/map.h"
#include "common/model/gguf.h"
#include "common/sys/file.h"

struct gguf_meta {                                    /* the metadata of one file */
    struct gguf_kv *kvs;
    uint64_t n;
    struct map by_key;                                /* key to index in kvs */
};

struct gguf_file {
    char *path;
    struct file_map map;                              /* empty when the image is the caller's */
    const uint8_t *data;
    uint64_t have, size;                              /* bytes at hand; bytes of the whole file */
    uint32_t alignment;
    uint64_t data_start;
    struct gguf_meta meta;
};

struct gguf {
    struct gguf_file *files;
    int n_files;
    struct gguf_tensor *tensors;                      /* of all files */
    uint64_t n_tensors;
    struct map by_name;                               /* name to index in tensors */
};

/* Parses header, metadata and tensor infos of a file whose data, have and size are set; appends its
 * tensors to g. */
int gguf_parse(struct gguf *g, int file_i, struct err *e);

const struct gguf_kv *gguf_meta_find(const struct gguf_meta *meta, const char *key);
int gguf_meta_u64(const struct gguf_meta *meta, const char *key, uint64_t *out, struct err *e);
int gguf_meta_str(const struct gguf_meta *meta, const char *key, struct gguf_str *out, struct err *e);

#endif
