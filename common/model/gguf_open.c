/* Which files make up a model. Two conventions, both told by the name alone:
 *
 *   NAME-00001-of-00003.gguf ...                         parts; split.no and split.count inside must agree
 *   NAME-Layers00-30.gguf + NAME-Layers-31-output.gguf   slices; each a complete header, together all layers
 *
 * Of the reader's files only this one and the writer know the disk; they use sys/file.h, the plain
 * blocking door. */
#include "common/model/gguf_parts.h"
#include "common/base/check.h"

#include <stdio.h>

/* ---- one file into the set ---- */

static struct gguf *set_new(int n_files) {
    struct gguf *g = xcalloc(1, sizeof *g);
    g->files = xcalloc((size_t)n_files, sizeof *g->files);
    return g;
}

static char *copy_text(const char *text) {
    size_t size = strlen(text) + 1;
    return memcpy(xcalloc(1, size), text, size);
}

static int set_add(struct gguf *g, const char *path, const void *data, uint64_t have, uint64_t size,
                   struct err *e) {
    struct gguf_file *f = &g->files[g->n_files++];
    f->path = copy_text(path);
    f->data = data;
    f->have = have;
    f->size = size;
    int rc = gguf_parse(g, g->n_files - 1, e);
    return rc < 0 ? err_wrap(e, rc, "%s", path) : 0;
}

static int set_map(struct gguf *g, const char *path, struct err *e) {
    struct file_map map;
    int rc = file_map(&map, path, e);
    if (rc < 0) return rc;
    g->files[g->n_files].map = map;
    return set_add(g, path, map.data, map.size, map.size, e);
}

void gguf_close(struct gguf *g) {
    if (!g) return;
    for (int i = 0; i < g->n_files; i++) {
        struct gguf_file *f = &g->files[i];
        free(f->meta.kvs);
        map_deinit(&f->meta.by_key);
        file_unmap(&f->map);
        free(f->path);
    }
    map_deinit(&g->by_name);
    free(g->tensors);
    free(g->files);
    free(g);
}

/* Hands a complete set out, or closes it. */
static int deliver(struct gguf **out, struct gguf *g, int rc) {
    *out = rc < 0 ? NULL : g;
    if (rc < 0) gguf_close(g);
    return rc;
}

int gguf_open_one(struct gguf **out, const char *path, struct err *e) {
    struct gguf *g = set_new(1);
    return deliver(out, g, set_map(g, path, e));
}

int gguf_open_header(struct gguf **out, const void *image, size_t size, uint64_t file_size, const char *name,
                     struct err *e) {
    struct gguf *g = set_new(1);
    uint64_t have = MIN((uint64_t)size, file_size);
    return deliver(out, g, set_add(g, name, image, have, file_size, e));
}

int gguf_open_memory(struct gguf **out, const void *image, size_t size, const char *name, struct err *e) {
    return gguf_open_header(out, image, size, size, name, e);
}

/* ---- parts: -00001-of-00003 ---- */

static bool read_digits(const char *text, int n, int *out) {
    *out = 0;
    for (int i = 0; i < n; i++) {
        if (text[i] < '0' || text[i] > '9') return false;
        *out = *out * 10 + (text[i] - '0');
    }
    return true;
}

enum { PART_TAIL = 20 };                              /* strlen("-00001-of-00003.gguf") */

/* Is PATH part `no` of `count`? */
static bool part_parse(const char *path, int *no, int *count) {
    size_t len = strlen(path);
    if (len <= PART_TAIL) return false;
    const char *tail = path + len - PART_TAIL;
    return tail[0] == '-' && read_digits(tail + 1, 5, no) && memcmp(tail + 6, "-of-", 4) == 0 &&
           read_digits(tail + 10, 5, count) && strcmp(tail + 15, ".gguf") == 0;
}

static int split_key(const struct gguf_file *f, const char *key, uint64_t want, struct err *e) {
    uint64_t value;
    int rc = gguf_meta_u64(&f->meta, key, &value, e);
    if (rc == 0 && value != want)
        rc = err_set(e, ERR_CORRUPT, "key %s is %llu, but the file's name says %llu", key,
                     (unsigned long long)value, (unsigned long long)want);
    return rc < 0 ? err_wrap(e, rc, "%s", f->path) : 0;
}

static int check_total(const struct gguf *g, struct err *e) {
    const char *key = "split.tensors.count";
    uint64_t total;
    if (!gguf_find(g, key)) return 0;
    int rc = gguf_get_u64(g, key, &total, e);
    if (rc == 0 && total != g->n_tensors)
        rc = err_set(e, ERR_CORRUPT, "key %s is %llu, but all parts together hold %llu tensors", key,
                     (unsigned long long)total, (unsigned long long)g->n_tensors);
    return rc < 0 ? err_wrap(e, rc, "%s", g->files[0].path) : 0;
}

static int open_parts(struct gguf **out, const char *path, int count, struct err *e) {
    int rc = 0, stem = (int)strlen(path) - PART_TAIL;
    char part[FILE_PATH_MAX];
    struct gguf *g = set_new(count);
    for (int i = 0; i < count && rc == 0; i++) {
        snprintf(part, sizeof part, "%.*s-%05d-of-%05d.gguf", stem, path, i + 1, count);
        rc = set_map(g, part, e);
        if (rc == 0) rc = split_key(&g->files[i], "split.no", (uint64_t)i, e);
        if (rc == 0) rc = split_key(&g->files[i], "split.count", (uint64_t)count, e);
    }
    if (rc == 0) rc = check_total(g, e);
    return deliver(out, g, rc);
}

/* ---- slices: Layers00-30 beside Layers-31-output ---- */

enum { LAST_OUTPUT = 1 << 20 };                       /* "output": to the end */

struct slice {
    int first, last;
    size_t stem;                                      /* bytes before "Layers" */
    const char *name;
};

/* One to three digits at *p, which moves behind them. */
static bool take_layer(const char **p, int *out) {
    int n = 0;
    while (n < 3 && (*p)[n] >= '0' && (*p)[n] <= '9') n++;
    if (n == 0 || !read_digits(*p, n, out)) return false;
    *p += n;
    return true;
}

/* Does the file name (no folder) end in "Layers", perhaps '-', FIRST, '-', LAST or "output", ".gguf"? */
static bool slice_parse(const char *name, struct slice *s) {
    const char *at = NULL;
    for (const char *p = name; (p = strstr(p, "Layers")); p++) at = p;
    if (!at) return false;
    const char *p = at + strlen("Layers");
    if (*p == '-') p++;
    if (!take_layer(&p, &s->first) || *p++ != '-') return false;
    if (strncmp(p, "output", 6) == 0) {
        s->last = LAST_OUTPUT;
        p += 6;
    } else if (!take_layer(&p, &s->last)) {
        return false;
    }
    s->stem = (size_t)(at - name);
    s->name = name;
    return strcmp(p, ".gguf") == 0;
}

static int compare_slices(const void *a, const void *b) {
    const struct slice *x = a, *y = b;
    return x->first != y->first ? (x->first < y->first ? -1 : 1) : strcmp(x->name, y->name);
}

/* All slices beside `own` that share its stem, in order; the names are borrowed from `names`. */
static int collect_slices(const struct file_names *names, const struct slice *own,
                          struct slice *out, struct err *e) {
    int n = 0;
    for (int i = 0; i < names->n; i++) {
        struct slice s;
        if (!slice_parse(names->name[i], &s) || s.stem != own->stem || memcmp(s.name, own->name, s.stem) != 0)
            continue;
        if (n == GGUF_FILES_MAX) return err_set(e, ERR_LIMIT, "more than %d slices", GGUF_FILES_MAX);
        out[n++] = s;
    }
    qsort(out, (size_t)n, sizeof *out, compare_slices);
    return n;
}

/* The slices must follow one another from layer 0 to the output without gap or overlap. */
static int check_slices(const struct slice *slices, int n, struct err *e) {
    int next = 0;
    for (int i = 0; i < n; i++) {
        if (slices[i].first > next)
            return err_set(e, ERR_NOTFOUND, "the file with layers %d to %d is missing beside it", next,
                           slices[i].first - 1);
        if (slices[i].first < next || slices[i].last < slices[i].first)
            return err_set(e, ERR_INVALID, "%s does not continue at layer %d", slices[i].name, next);
        next = slices[i].last + 1;
    }
    return next > LAST_OUTPUT ? 0
           : err_set(e, ERR_NOTFOUND, "the file with layers %d to the output is missing beside it", next);
}

/* Slices of one model tell the same architecture and number of layers. */
static int check_same_model(const struct gguf *g, int file_i, struct err *e) {
    const struct gguf_meta *first = &g->files[0].meta, *other = &g->files[file_i].meta;
    struct gguf_str a, b;
    char key[64];
    uint64_t n_a, n_b;
    int rc = gguf_meta_str(first, "general.architecture", &a, e);
    if (rc == 0) rc = gguf_meta_str(other, "general.architecture", &b, e);
    if (rc < 0) return rc;
    if (a.len != b.len || a.len > 32 || memcmp(a.data, b.data, (size_t)a.len) != 0)
        return err_set(e, ERR_CORRUPT, "architecture differs from that of %s", g->files[0].path);
    snprintf(key, sizeof key, "%.*s.block_count", (int)a.len, a.data);
    rc = gguf_meta_u64(first, key, &n_a, e);
    if (rc == 0) rc = gguf_meta_u64(other, key, &n_b, e);
    if (rc == 0 && n_a != n_b) rc = err_set(e, ERR_CORRUPT, "key %s differs from %s", key, g->files[0].path);
    return rc;
}

static int open_set(struct gguf **out, const char *folder, const struct slice *slices, int n, struct err *e) {
    int rc = 0;
    char path[2 * FILE_PATH_MAX];
    struct gguf *g = set_new(n);
    for (int i = 0; i < n && rc == 0; i++) {
        snprintf(path, sizeof path, "%s/%s", folder, slices[i].name);
        rc = set_map(g, path, e);
        if (rc < 0) break;
        rc = check_same_model(g, i, e);
        if (rc < 0) rc = err_wrap(e, rc, "%s", path);
    }
    return deliver(out, g, rc);
}

static int open_slices(struct gguf **out, const char *path, const struct slice *own, struct err *e) {
    char folder[FILE_PATH_MAX];
    struct file_names names;
    int rc = file_folder_of(path, folder, sizeof folder, e);
    if (rc == 0) rc = file_list(&names, folder, e);
    if (rc < 0) return rc;
    struct slice *slices = xcalloc(GGUF_FILES_MAX, sizeof *slices);
    int n = collect_slices(&names, own, slices, e);
    rc = n < 0 ? n : check_slices(slices, n, e);
    rc = rc < 0 ? err_wrap(e, rc, "%s", path) : open_set(out, folder, slices, n, e);
    free(slices);
    file_names_free(&names);
    return rc;
}

/* ---- by name ---- */

/* A part that was renamed would load as a model with most tensors missing; better say what it is. */
static int refuse_lone_part(struct gguf **g, struct err *e) {
    uint64_t count;
    if (gguf_get_u64(*g, "split.count", &count, NULL) < 0 || count < 2) return 0;
    int rc = err_set(e, ERR_INVALID, "%s: one of %llu parts, but not named NAME-00001-of-%05llu.gguf",
                     (*g)->files[0].path, (unsigned long long)count, (unsigned long long)count);
    gguf_close(*g);
    *g = NULL;
    return rc;
}

int gguf_open(struct gguf **out, const char *path, struct err *e) {
    int no, count;
    struct slice own;
    *out = NULL;
    if (strlen(path) >= FILE_PATH_MAX) return err_set(e, ERR_INVALID, "file name is too long");
    if (part_parse(path, &no, &count)) {
        if (no < 1 || no > count || count > GGUF_FILES_MAX)
            return err_set(e, ERR_INVALID, "%s: part %d of %d is not possible", path, no, count);
        return open_parts(out, path, count, e);
    }
    const char *slash = strrchr(path, '/');
    if (slice_parse(slash ? slash + 1 : path, &own)) return open_slices(out, path, &own, e);
    int rc = gguf_open_one(out, path, e);
    return rc < 0 ? rc : refuse_lone_part(out, e);
}
