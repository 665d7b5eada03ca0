/* scratch - a folder of its own for a test that writes files, gone afterwards (one level, no subfolders).
 *
 * struct scratch s; scratch_open(&s); ... scratch_path(&s, "a.gguf") ... scratch_close(&s). Header only. */
#ifndef HARNESS_SCRATCH_H
#define HARNESS_SCRATCH_H

#include "tests/harness/test.h"

#include "common/base/check.h"
#include "common/sys/file.h"

#include <unistd.h>

struct scratch {
    char folder[256];
};

static inline void scratch_open(struct scratch *s) {
    const char *base = getenv("TMPDIR");
    memset(s, 0, sizeof *s);
    snprintf(s->folder, sizeof s->folder, "%s/pleiades-test-XXXXXX", base ? base : "/tmp");
    CHECK(mkdtemp(s->folder));
}

/* Valid until the fourth call from now. */
static inline const char *scratch_path(const struct scratch *s, const char *name) {
    static char paths[4][FILE_PATH_MAX];
    static int next;
    char *path = paths[next++ % 4];
    snprintf(path, FILE_PATH_MAX, "%s/%s", s->folder, name);
    return path;
}

static inline void scratch_close(struct scratch *s) {
    struct file_names names;
    struct err e;
    if (file_list(&names, s->folder, &e) == 0) {
        for (int i = 0; i < names.n; i++) unlink(scratch_path(s, names.name[i]));
        file_names_free(&names);
    }
    rmdir(s->folder);
}

#endif
