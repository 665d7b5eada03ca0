#include "common/sys/file.h"
#include "common/base/check.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

enum {
    WRITE_BUFFER = 4 << 20,                           /* one write() is large enough for any disk */
    IO_PIECE = 1 << 30,                               /* some systems refuse single calls over 2 GiB */
    FILE_HUGE_MIN = 64 << 20                          /* mappings of at least this ask for huge pages */
};

/* ---- opening and mapping ---- */

static int open_regular(const char *path, struct stat *st, struct err *e) {
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return err_errno(e, errno == ENOENT ? ERR_NOTFOUND : ERR_IO, "%s: cannot open", path);
    if (fstat(fd, st) < 0) {
        int rc = err_errno(e, ERR_IO, "%s: fstat", path);
        close(fd);
        return rc;
    }
    if (!S_ISREG(st->st_mode)) {
        close(fd);
        return err_set(e, ERR_INVALID, "%s: not a regular file", path);
    }
    return fd;
}

int file_map(struct file_map *map, const char *path, struct err *e) {
    struct stat st;
    memset(map, 0, sizeof *map);
    int fd = open_regular(path, &st, e);
    if (fd < 0) return fd;
    if (st.st_size == 0) {                            /* mmap refuses a length of 0 */
        close(fd);
        return 0;
    }
    void *data = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_SHARED, fd, 0);
    int rc = data == MAP_FAILED ? err_errno(e, ERR_IO, "%s: mmap", path) : 0;
    close(fd);                                        /* the mapping keeps the file */
    if (rc < 0) return rc;
#ifdef MADV_HUGEPAGE
    /* Large files are read into huge pages where the file system can; pages that are cached already
     * stay as they are. */
    if (st.st_size >= FILE_HUGE_MIN) madvise(data, (size_t)st.st_size, MADV_HUGEPAGE);
#endif
    map->data = data;
    map->size = (uint64_t)st.st_size;
    return 0;
}

void file_unmap(struct file_map *map) {
    if (map->data) munmap((void *)(uintptr_t)map->data, (size_t)map->size);
    memset(map, 0, sizeof *map);
}

static int advice_of(enum file_advice advice) {
    switch (advice) {
    case FILE_SEQUENTIAL: return MADV_SEQUENTIAL;
    case FILE_RANDOM: return MADV_RANDOM;
    case FILE_WILLNEED: return MADV_WILLNEED;
    case FILE_DONTNEED: return MADV_DONTNEED;
    }
    return MADV_NORMAL;
}

void file_map_advise(const struct file_map *map, uint64_t offset, uint64_t size, enum file_advice advice) {
    if (!map->data || offset >= map->size) return;
    uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE), first = offset / page * page;
    uint64_t end = MIN(size, map->size - offset) + offset;
    madvise((void *)(uintptr_t)(map->data + first), (size_t)(end - first), advice_of(advice));
}

int file_open(struct file *f, const char *path, struct err *e) {
    struct stat st;
    memset(f, 0, sizeof *f);
    int fd = open_regular(path, &st, e);
    f->fd = fd < 0 ? -1 : fd;
    if (fd < 0) return fd;
    f->size = (uint64_t)st.st_size;
    return 0;
}

int file_read_at(const struct file *f, uint64_t offset, void *out, size_t size, struct err *e) {
    uint8_t *to = out;
    while (size > 0) {
        ssize_t n = pread(f->fd, to, MIN(size, (size_t)IO_PIECE), (off_t)offset);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) return err_errno(e, ERR_IO, "read at byte %llu", (unsigned long long)offset);
        if (n == 0)
            return err_set(e, ERR_CORRUPT, "file ends at byte %llu, %zu bytes early",
                           (unsigned long long)offset, size);
        to += n;
        offset += (uint64_t)n;
        size -= (size_t)n;
    }
    return 0;
}

void file_close(struct file *f) {
    if (f->fd > 0) close(f->fd);                      /* a zeroed struct holds nothing; we never own stdin */
    f->fd = -1;
}

int file_read_all(const char *path, size_t limit, void **out, size_t *size, struct err *e) {
    struct file f;
    int rc = file_open(&f, path, e);
    if (rc < 0) return rc;
    char *data = NULL;
    if (f.size > limit) {
        rc = err_set(e, ERR_LIMIT, "%s: %llu bytes, the limit is %zu", path,
                     (unsigned long long)f.size, limit);
        goto close;
    }
    data = malloc((size_t)f.size + 1);
    rc = data ? file_read_at(&f, 0, data, (size_t)f.size, e) : err_set(e, ERR_NOMEM, "out of memory");
    if (rc < 0) {
        rc = err_wrap(e, rc, "%s", path);
        free(data);
        goto close;
    }
    data[f.size] = 0;
    *out = data;
    *size = (size_t)f.size;
close:
    file_close(&f);
    return rc;
}

/* ---- writing ---- */

struct file_writer {
    char *path, *tmp;
    bool in_place;                                    /* tmp is path */
    int fd;
    int rc;                                           /* the first failure */
    uint64_t size;
    size_t used;
    uint8_t *buffer;
};

/* Does the name still mean the file that we opened? Not if another writer has renamed it in between. */
static bool still_named(int fd, const char *tmp) {
    struct stat opened, named;
    return fstat(fd, &opened) == 0 && stat(tmp, &named) == 0 && opened.st_ino == named.st_ino &&
           opened.st_dev == named.st_dev;
}

/* A device, a pipe or a link (/dev/stdout is one) is written where it is: a rename would put a file in
 * its place. */
static bool is_special(const char *path) {
    struct stat st;
    return lstat(path, &st) == 0 && !S_ISREG(st.st_mode);
}

static int open_special(const char *path, struct err *e) {
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    return fd < 0 ? err_errno(e, ERR_IO, "%s: cannot write", path) : fd;
}

/* Opens and takes the lock before anything is changed: a second writer must not empty the first one's
 * file. */
static int open_tmp(const char *tmp, bool keep, mode_t mode, struct err *e) {
    int fd = open(tmp, O_RDWR | O_CREAT | O_CLOEXEC, mode);
    if (fd < 0) return err_errno(e, ERR_IO, "%s: cannot create", tmp);
    int rc = 0;
    bool taken = flock(fd, LOCK_EX | LOCK_NB) < 0 && errno == EWOULDBLOCK;  /* no locks on this disk: go on */
    if (taken || !still_named(fd, tmp))
        rc = err_set(e, ERR_BUSY, "%s: being written by another process", tmp);
    else if (!keep && ftruncate(fd, 0) < 0)
        rc = err_errno(e, ERR_IO, "%s: truncate", tmp);
    if (rc < 0) close(fd);
    return rc < 0 ? rc : fd;
}

static void writer_free(struct file_writer *w) {
    if (w->fd >= 0) close(w->fd);
    free(w->buffer);
    free(w->path);
    free(w->tmp);
    free(w);
}

static int writer_new(struct file_writer **out, const char *path, mode_t mode, struct err *e) {
    *out = NULL;
    size_t len = strlen(path);
    if (len == 0 || len + 5 > FILE_PATH_MAX) return err_set(e, ERR_INVALID, "file name is empty or too long");
    struct file_writer *w = xcalloc(1, sizeof *w);
    w->path = xcalloc(1, len + 1);
    w->tmp = xcalloc(1, len + 5);
    memcpy(w->path, path, len);
    w->in_place = is_special(path);
    snprintf(w->tmp, len + 5, "%s%s", path, w->in_place ? "" : ".tmp");
    w->buffer = xcalloc(1, WRITE_BUFFER);
    int fd = w->in_place ? open_special(path, e) : open_tmp(w->tmp, false, mode, e);
    w->fd = fd < 0 ? -1 : fd;
    if (fd < 0) {
        writer_free(w);
        return fd;
    }
    *out = w;
    return 0;
}

int file_writer_new(struct file_writer **out, const char *path, struct err *e) {
    return writer_new(out, path, 0644, e);
}

int file_writer_new_private(struct file_writer **out, const char *path, struct err *e) {
    if (is_special(path)) return err_set(e, ERR_INVALID, "%s: not a plain file", path);
    int rc = writer_new(out, path, 0600, e);
    if (rc < 0 || fchmod((*out)->fd, 0600) == 0) return rc;   /* of a .tmp that somebody else left */
    rc = err_errno(e, ERR_IO, "%s: cannot be made private", path);
    file_writer_abort(*out);
    *out = NULL;
    return rc;
}

static int write_out(struct file_writer *w, const uint8_t *data, size_t size, struct err *e) {
    while (size > 0) {
        ssize_t n = write(w->fd, data, MIN(size, (size_t)IO_PIECE));
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) return w->rc = err_errno(e, ERR_IO, "%s: write", w->tmp);
        data += n;
        size -= (size_t)n;
    }
    return 0;
}

static int flush_buffer(struct file_writer *w, struct err *e) {
    size_t used = w->used;
    w->used = 0;
    return write_out(w, w->buffer, used, e);
}

int file_writer_write(struct file_writer *w, const void *data, size_t size, struct err *e) {
    if (w->rc < 0) return err_set(e, w->rc, "%s: an earlier write failed", w->tmp);
    const uint8_t *from = data;
    w->size += size;
    while (size > 0) {
        if (w->used == 0 && size >= WRITE_BUFFER) return write_out(w, from, size, e);
        size_t n = MIN(size, WRITE_BUFFER - w->used);
        memcpy(w->buffer + w->used, from, n);
        w->used += n;
        from += n;
        size -= n;
        if (w->used == WRITE_BUFFER && flush_buffer(w, e) < 0) return w->rc;
    }
    return 0;
}

int file_writer_zeros(struct file_writer *w, uint64_t size, struct err *e) {
    static const uint8_t zeros[4096];
    int rc = 0;
    while (size > 0 && rc == 0) {
        size_t n = (size_t)MIN(size, sizeof zeros);
        rc = file_writer_write(w, zeros, n, e);
        size -= n;
    }
    return rc;
}

uint64_t file_writer_size(const struct file_writer *w) {
    return w->size;
}

/* macOS's fsync only reaches the drive's cache; F_FULLFSYNC reaches the medium, where the disk can do it. */
static int sync_fd(int fd) {
#ifdef F_FULLFSYNC
    if (fcntl(fd, F_FULLFSYNC) == 0) return 0;
#endif
    return fsync(fd);
}

int file_folder_of(const char *path, char *out, size_t size, struct err *e) {
    const char *slash = strrchr(path, '/');
    size_t len = !slash ? 1 : slash == path ? 1 : (size_t)(slash - path);
    if (len + 1 > size) return err_set(e, ERR_LIMIT, "%.64s...: folder name too long", path);
    memcpy(out, slash ? path : ".", len);
    out[len] = 0;
    return 0;
}

int file_free_bytes(const char *path, uint64_t *bytes, struct err *e) {
    char folder[FILE_PATH_MAX];
    struct statvfs fs;
    int rc = file_folder_of(path, folder, sizeof folder, e);
    if (rc < 0) return rc;
    if (statvfs(folder, &fs) < 0) return err_errno(e, errno == ENOENT ? ERR_NOTFOUND : ERR_IO, "%s", folder);
    *bytes = (uint64_t)fs.f_bavail * fs.f_frsize;
    return 0;
}

int file_sync_folder_of(const char *path, struct err *e) {
    char folder[FILE_PATH_MAX];
    int rc = file_folder_of(path, folder, sizeof folder, e);
    if (rc < 0) return rc;
    int fd = open(folder, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return err_errno(e, ERR_IO, "%s: cannot open folder", folder);
    /* Some file systems cannot sync a folder and say EINVAL: there is nothing more that we could do then. */
    if (sync_fd(fd) < 0 && errno != EINVAL) rc = err_errno(e, ERR_IO, "%s: fsync", folder);
    close(fd);
    return rc;
}

static int commit(struct file_writer *w, struct err *e) {
    if (w->rc < 0) return err_set(e, w->rc, "%s: an earlier write failed", w->tmp);
    int rc = flush_buffer(w, e);
    if (rc < 0) return rc;
    /* pipes cannot */
    if (sync_fd(w->fd) < 0 && !w->in_place) return err_errno(e, ERR_IO, "%s: fsync", w->tmp);
    if (w->in_place) return 0;
    if (rename(w->tmp, w->path) < 0) return err_errno(e, ERR_IO, "%s: rename to %s", w->tmp, w->path);
    return 0;
}

int file_writer_finish(struct file_writer *w, struct err *e) {
    int rc = commit(w, e);
    if (rc < 0) {
        file_writer_abort(w);
        return rc;
    }
    rc = w->in_place ? 0 : file_sync_folder_of(w->path, e);
    writer_free(w);
    return rc;
}

void file_writer_abort(struct file_writer *w) {
    if (!w) return;
    if (!w->in_place) unlink(w->tmp);                 /* while we still hold the lock */
    writer_free(w);
}

int file_write_all(const char *path, const void *data, size_t size, struct err *e) {
    struct file_writer *w;
    int rc = file_writer_new(&w, path, e);
    if (rc < 0) return rc;
    rc = file_writer_write(w, data, size, e);
    if (rc < 0) {
        file_writer_abort(w);
        return rc;
    }
    return file_writer_finish(w, e);
}

/* ---- writing in any order ---- */

struct file_pieces {
    char *path, *tmp;
    int fd;
    uint64_t size;
};

static void pieces_free(struct file_pieces *p) {
    if (p->fd >= 0) close(p->fd);
    free(p->path);
    free(p->tmp);
    free(p);
}

int file_pieces_clear(struct file_pieces *p, struct err *e) {
    if (ftruncate(p->fd, 0) < 0 || ftruncate(p->fd, (off_t)p->size) < 0)
        return err_errno(e, ERR_IO, "%s: truncate", p->tmp);
    return 0;
}

int file_pieces_open(struct file_pieces **out, const char *path, uint64_t size, bool *fresh, struct err *e) {
    struct stat st;
    *out = NULL;
    size_t len = strlen(path);
    if (len == 0 || len + 5 > FILE_PATH_MAX || size > INT64_MAX)
        return err_set(e, ERR_INVALID, "file name or size is not possible");
    struct file_pieces *p = xcalloc(1, sizeof *p);
    p->size = size;
    p->path = memcpy(xcalloc(1, len + 1), path, len);
    p->tmp = xcalloc(1, len + 5);
    snprintf(p->tmp, len + 5, "%s.tmp", path);
    int rc = p->fd = open_tmp(p->tmp, true, 0644, e);
    if (rc >= 0) rc = fstat(p->fd, &st) < 0 ? err_errno(e, ERR_IO, "%s: fstat", p->tmp) : 0;
    *fresh = rc == 0 && (uint64_t)st.st_size != size;
    if (*fresh) rc = file_pieces_clear(p, e);
    if (rc < 0) pieces_free(p);
    else *out = p;
    return rc;
}

int file_pieces_write(struct file_pieces *p, uint64_t offset, const void *data, size_t size, struct err *e) {
    const uint8_t *from = data;
    while (size > 0) {
        ssize_t n = pwrite(p->fd, from, MIN(size, (size_t)IO_PIECE), (off_t)offset);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) return err_errno(e, ERR_IO, "%s: write", p->tmp);
        from += n;
        offset += (uint64_t)n;
        size -= (size_t)n;
    }
    return 0;
}

int file_pieces_read(const struct file_pieces *p, uint64_t offset, void *data, size_t size, struct err *e) {
    struct file f = { p->fd, p->size };
    int rc = file_read_at(&f, offset, data, size, e);
    return rc < 0 ? err_wrap(e, rc, "%s", p->tmp) : 0;
}

int file_pieces_sync(struct file_pieces *p, struct err *e) {
    return sync_fd(p->fd) < 0 ? err_errno(e, ERR_IO, "%s: fsync", p->tmp) : 0;
}

int file_pieces_finish(struct file_pieces *p, uint64_t size, struct err *e) {
    int rc = ftruncate(p->fd, (off_t)size) < 0 ? err_errno(e, ERR_IO, "%s: truncate", p->tmp)
                                               : file_pieces_sync(p, e);
    if (rc == 0 && rename(p->tmp, p->path) < 0)
        rc = err_errno(e, ERR_IO, "%s: rename to %s", p->tmp, p->path);
    if (rc == 0) rc = file_sync_folder_of(p->path, e);
    pieces_free(p);
    return rc;
}

void file_pieces_close(struct file_pieces *p) {
    if (p) pieces_free(p);
}

void file_pieces_abort(struct file_pieces *p) {
    if (!p) return;
    unlink(p->tmp);                                   /* while we still hold the lock */
    pieces_free(p);
}

int file_facts(struct file_facts *out, const char *path, struct err *e) {
    struct stat st;
    memset(out, 0, sizeof *out);
    if (stat(path, &st) < 0) return err_errno(e, errno == ENOENT ? ERR_NOTFOUND : ERR_IO, "%s", path);
    out->size = (uint64_t)st.st_size;
    out->disk_bytes = (uint64_t)st.st_blocks * 512;
    out->inode = (uint64_t)st.st_ino;
    out->device = (uint64_t)st.st_dev;
#ifdef __APPLE__
    out->changed_s = st.st_mtimespec.tv_sec, out->changed_ns = st.st_mtimespec.tv_nsec;
#else
    out->changed_s = st.st_mtim.tv_sec, out->changed_ns = st.st_mtim.tv_nsec;
#endif
    return 0;
}

/* ---- files in use ---- */

int file_hold(struct file_hold *hold, const char *path, struct err *e) {
    struct stat st;
    int fd = hold->fd = open_regular(path, &st, e);
    if (fd < 0) {
        hold->fd = -1;
        return fd;
    }
    if (flock(fd, LOCK_SH | LOCK_NB) < 0 && errno == EWOULDBLOCK) {
        file_release(hold);
        return err_set(e, ERR_BUSY, "%s: is being removed", path);
    }
    futimens(fd, NULL);                               /* of another owner it keeps its time: no harm */
    return 0;
}

void file_release(struct file_hold *hold) {
    if (hold->fd >= 0) close(hold->fd);
    hold->fd = -1;
}

int file_remove_unused(const char *path, struct err *e) {
    struct stat st;
    int fd = open_regular(path, &st, e);
    if (fd < 0) return fd;
    int rc = 0;
    if (flock(fd, LOCK_EX | LOCK_NB) < 0 && errno == EWOULDBLOCK)
        rc = err_set(e, ERR_BUSY, "%s: is in use", path);
    else if (unlink(path) < 0) rc = err_errno(e, ERR_IO, "%s: cannot remove", path);
    close(fd);
    return rc;
}

/* ---- folders ---- */

int file_make_folder(const char *path, struct err *e) {
    struct stat st;
    if (mkdir(path, 0755) == 0) return 0;
    if (errno == EEXIST && stat(path, &st) == 0 && S_ISDIR(st.st_mode)) return 0;
    return err_errno(e, ERR_IO, "%s: cannot make this folder", path);
}

static int compare_names(const void *a, const void *b) {
    return strcmp(*(char *const *)a, *(char *const *)b);
}

static int names_add(struct file_names *names, const char *name, struct err *e) {
    if (names->n == FILE_NAMES_MAX) return err_set(e, ERR_LIMIT, "more than %d names", FILE_NAMES_MAX);
    if ((names->n & (names->n - 1)) == 0)             /* full at every power of two */
        names->name = xrealloc(names->name, MAX(1, 2 * (size_t)names->n) * sizeof *names->name);
    size_t len = strlen(name) + 1;
    char *copy = xcalloc(1, len);
    memcpy(copy, name, len);
    names->name[names->n++] = copy;
    return 0;
}

int file_list(struct file_names *out, const char *folder, struct err *e) {
    memset(out, 0, sizeof *out);
    DIR *dir = opendir(folder);
    if (!dir) return err_errno(e, errno == ENOENT ? ERR_NOTFOUND : ERR_IO, "%s: cannot list", folder);
    int rc = 0;
    for (struct dirent *entry; rc == 0 && (entry = readdir(dir));) {
        if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0) continue;
        rc = names_add(out, entry->d_name, e);
    }
    closedir(dir);
    if (rc < 0) {
        file_names_free(out);
        return err_wrap(e, rc, "%s", folder);
    }
    if (out->n > 1) qsort(out->name, (size_t)out->n, sizeof *out->name, compare_names);
    return 0;
}

void file_names_free(struct file_names *names) {
    for (int i = 0; i < names->n; i++) free(names->name[i]);
    free(names->name);
    memset(names, 0, sizeof *names);
}
