#include "node/store.h"

#include "common/base/check.h"
#include "common/base/log.h"
#include "common/sys/file.h"

#include <stdio.h>
#include <stdlib.h>

/* ---- names ---- */

static bool skip_text(const char **at, const char *text) {
    size_t n = strlen(text);
    bool there = strncmp(*at, text, n) == 0;
    if (there) *at += n;
    return there;
}

static bool skip_digits(const char **at, const char *digits, size_t least, size_t most) {
    size_t n = strspn(*at, digits);
    if (n < least || n > most) return false;
    *at += n;
    return true;
}

static bool skip_range(const char **at) {
    static const char digits[] = "0123456789";
    return skip_digits(at, digits, 1, 5) && skip_text(at, "-") && skip_digits(at, digits, 1, 5);
}

bool store_is_share(const char *name, bool *unfinished) {
    const char *at = name;
    if (!skip_digits(&at, "0123456789abcdef", 16, 16)) return false;
    if (!skip_text(&at, "-stage-") && !skip_text(&at, "-helper-")) return false;
    if (!skip_range(&at)) return false;
    skip_text(&at, "-embed");
    skip_text(&at, "-head");
    if (skip_text(&at, "-experts-") && !skip_range(&at)) return false;
    if (!skip_text(&at, ".gguf")) return false;
    *unfinished = skip_text(&at, ".tmp");
    return *at == 0;
}

/* ---- the choice ---- */

static bool is_of(const struct store_file *unfinished, const char *name) {
    size_t n = strlen(name);
    return strncmp(unfinished->name, name, n) == 0 && strcmp(unfinished->name + n, ".tmp") == 0;
}

static bool is_left_over(const struct store_file *f, const struct store_file *file, uint32_t n) {
    for (uint32_t i = 0; f->unfinished && i < n; i++)
        if (!file[i].unfinished && is_of(f, file[i].name)) return true;
    return false;
}

static bool is_later(const struct store_file *a, const struct store_file *b) {
    if (a->used_s != b->used_s) return a->used_s > b->used_s;
    if (a->used_ns != b->used_ns) return a->used_ns > b->used_ns;
    return strcmp(a->name, b->name) < 0;
}

void store_choose(struct store_file *file, uint32_t n, const char *current, uint32_t n_keep) {
    for (uint32_t i = 0; i < n; i++) {
        struct store_file *f = &file[i];
        uint32_t n_later = 0;
        f->goes = is_left_over(f, file, n);
        if (f->goes || (current && (strcmp(f->name, current) == 0 || (f->unfinished && is_of(f, current)))))
            continue;
        for (uint32_t k = 0; k < n; k++) {
            bool counts = k != i && !(current && strcmp(file[k].name, current) == 0) &&
                          !(current && file[k].unfinished && is_of(&file[k], current)) &&
                          !is_left_over(&file[k], file, n);
            n_later += counts && is_later(&file[k], f);
        }
        f->goes = n_later >= n_keep;
    }
}

/* ---- the folder ---- */

static uint32_t gather(struct store_file *out, const struct file_names *names, const char *folder) {
    uint32_t n = 0;
    for (int i = 0; i < names->n && n < STORE_FILES_MAX; i++) {
        char path[FILE_PATH_MAX];
        struct file_facts facts;
        struct store_file f = { .name = names->name[i] };
        snprintf(path, sizeof path, "%s/%s", folder, f.name);
        if (!store_is_share(f.name, &f.unfinished) || file_facts(&facts, path, NULL) < 0) continue;
        f.used_s = facts.changed_s;
        f.used_ns = facts.changed_ns;
        f.bytes = facts.disk_bytes;
        out[n++] = f;
    }
    return n;
}

static bool remove_file(const char *folder, const struct store_file *f) {
    char path[FILE_PATH_MAX];
    struct err e;
    snprintf(path, sizeof path, "%s/%s", folder, f->name);
    int rc = file_remove_unused(path, &e);
    if (rc == 0)
        log_info("node", "%s removed: %.1f MB of an earlier plan%s", path, (double)f->bytes / 1e6,
                 f->unfinished ? ", never finished" : "");
    else if (rc != ERR_BUSY) log_warn("node", "%s", e.text);
    return rc == 0;
}

int store_tidy(const char *folder, const char *current, uint32_t n_keep) {
    struct file_names names = { 0 };
    int n_removed = 0;
    if (file_list(&names, folder, NULL) < 0) return 0;
    struct store_file *file = xcalloc(STORE_FILES_MAX, sizeof *file);
    uint32_t n = gather(file, &names, folder);
    store_choose(file, n, current, n_keep);
    for (uint32_t i = 0; i < n; i++)
        if (file[i].goes) n_removed += remove_file(folder, &file[i]);
    free(file);
    file_names_free(&names);
    return n_removed;
}
