/* replay - runs a fuzz target over stored inputs, with any compiler: `replay_NAME FOLDER|FILE...`.
 *
 * Every input is a heap block of exactly its size, so that reading one byte behind it is seen by the
 * address sanitizer, and each is tried shortened at every length up to REPLAY_CUTS_MAX as well: a
 * damaged file is most often a short one. No input at all is a failure, because then nothing was
 * tested. */
#include "common/sys/file.h"

#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>

enum { REPLAY_CUTS_MAX = 4096, REPLAY_BYTES_MAX = 16 << 20 };

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void run_exactly(const void *bytes, size_t size) {
    uint8_t *copy = malloc(size ? size : 1);
    if (!copy) abort();
    memcpy(copy, bytes, size);
    LLVMFuzzerTestOneInput(copy, size);
    free(copy);
}

static int replay_file(const char *path) {
    struct err e;
    void *bytes;
    size_t size;
    if (file_read_all(path, REPLAY_BYTES_MAX, &bytes, &size, &e) < 0) {
        fprintf(stderr, "%s\n", e.text);
        return -1;
    }
    for (size_t n = 0; n < MIN(size, (size_t)REPLAY_CUTS_MAX); n++) run_exactly(bytes, n);
    run_exactly(bytes, size);
    free(bytes);
    return 1;
}

/* How many inputs, or negative. */
static int replay(const char *path) {
    struct stat st;
    struct file_names names;
    struct err e;
    int n = 0;
    if (stat(path, &st) == 0 && !S_ISDIR(st.st_mode)) return replay_file(path);
    if (file_list(&names, path, &e) < 0) {
        fprintf(stderr, "%s\n", e.text);
        return -1;
    }
    for (int i = 0; i < names.n && n >= 0; i++) {
        char file[FILE_PATH_MAX];
        snprintf(file, sizeof file, "%s/%s", path, names.name[i]);
        n = replay_file(file) < 0 ? -1 : n + 1;
    }
    file_names_free(&names);
    return n;
}

int main(int argc, char **argv) {
    int n = 0;
    for (int i = 1; i < argc; i++) {
        int more = replay(argv[i]);
        if (more < 0) return 1;
        n += more;
    }
    printf("%d inputs\n", n);
    return n == 0;
}
