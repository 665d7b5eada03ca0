/* vectors - reads the golden vectors, which are not part of the repository.
 *
 * vectors_need() gives the path of one file and skips the test, after vectors_folder's loud line, where
 * it is absent. vectors_read() loads a .vec file: named arrays of float or int32. Header only: each
 * test is one program. */
#ifndef HARNESS_VECTORS_H
#define HARNESS_VECTORS_H

#include "tests/harness/test.h"

#include "common/base/check.h"
#include "common/sys/file.h"

static inline const char *vectors_need(const char *name) {
    const char *path = vectors_folder(name);
    if (!path) skip();
    return path;
}

/* One array of a .vec file; data points into the file's memory. */
struct vector {
    char name[64];
    uint32_t is_int, n_dims;
    uint64_t dims[4], n;
    const void *data;
};

struct vectors {
    char *bytes;
    struct vector *items;
    uint32_t n;
};

static inline void vectors_read(struct vectors *v, const char *path) {
    size_t size, at = 12;
    struct err e;
    void *bytes;
    assert_fine(file_read_all(path, (size_t)1 << 28, &bytes, &size, &e), &e);
    v->bytes = bytes;
    CHECK(size >= 12 && memcmp(v->bytes, "DS4VEC01", 8) == 0);
    memcpy(&v->n, v->bytes + 8, 4);
    v->items = xcalloc(v->n, sizeof *v->items);
    for (uint32_t i = 0; i < v->n; i++) {
        struct vector *a = &v->items[i];
        uint32_t len;
        memcpy(&len, v->bytes + at, 4);
        CHECK(len < sizeof a->name);
        memcpy(a->name, v->bytes + at + 4, len);
        memcpy(&a->is_int, v->bytes + at + 4 + len, 4);
        memcpy(&a->n_dims, v->bytes + at + 8 + len, 4);
        at += 12 + len;
        a->n = 1;
        CHECK(a->n_dims <= 4);
        for (uint32_t d = 0; d < a->n_dims; d++, at += 8) {
            memcpy(&a->dims[d], v->bytes + at, 8);
            a->n *= a->dims[d];
        }
        at = ALIGN_UP(at, 4);
        a->data = v->bytes + at;
        at += 4 * a->n;
        CHECK(at <= size);
    }
}

static inline const struct vector *vectors_at(const struct vectors *v, const char *name) {
    for (uint32_t i = 0; i < v->n; i++)
        if (strcmp(v->items[i].name, name) == 0) return &v->items[i];
    return NULL;
}

static inline void vectors_free(struct vectors *v) {
    free(v->bytes);
    free(v->items);
}

#endif
