/* file - plain files: whole-file read-only mappings, positional reads, and writes that a crash cannot
 * tear.
 *
 * A written file exists when its name exists: bytes go to PATH.tmp, then fsync, rename, fsync of the
 * folder, so a crash leaves the old file or the new one and at most a .tmp that the next writer of that
 * path takes over. Everything here blocks; call it from a thread that may. Each object belongs to its
 * caller, one thread at a time, except that a mapping may be read by all. A path is limited by
 * FILE_PATH_MAX. */
#ifndef SYS_FILE_H
#define SYS_FILE_H

#include "common/base/err.h"
#include "common/base/types.h"

enum { FILE_PATH_MAX = 4096, FILE_NAMES_MAX = 65536 };

/* A mapping of the whole file. Empty files have data NULL and size 0. Reading a mapped file that someone
 * shortens raises SIGBUS: model files are replaced by rename, never written in place. */
struct file_map {
    const uint8_t *data;
    uint64_t size;
};

enum file_advice {
    FILE_SEQUENTIAL,                                  /* read ahead far, drop behind */
    FILE_RANDOM,                                      /* no read-ahead */
    FILE_WILLNEED,                                    /* start reading now */
    FILE_DONTNEED                                     /* the pages may go */
};

int file_map(struct file_map *map, const char *path, struct err *e);
void file_unmap(struct file_map *map);                                /* zeroed struct is fine */
/* A hint: failure is not an error. The range is rounded outward to pages and cut at the end of the file. */
void file_map_advise(const struct file_map *map, uint64_t offset, uint64_t size, enum file_advice advice);

/* Positional reads without a mapping. Reading past the end is ERR_CORRUPT: the caller knew the size. */
struct file {
    int fd;
    uint64_t size;                                                    /* at the time of opening */
};
int file_open(struct file *f, const char *path, struct err *e);
int file_read_at(const struct file *f, uint64_t offset, void *out, size_t size, struct err *e);
void file_close(struct file *f);

/* The whole file in memory of the caller's (free it), with a 0 byte behind the end. Larger than `limit`:
 * ERR_LIMIT. */
int file_read_all(const char *path, size_t limit, void **out, size_t *size, struct err *e);

/* Writer of PATH by way of PATH.tmp. The first failure sticks: later calls return it again. A second
 * writer of the same path gets ERR_BUSY. finish and abort free the writer, whatever they return; abort
 * removes the .tmp. */
struct file_writer;
int file_writer_new(struct file_writer **out, const char *path, struct err *e);
/* Nobody else may read it (mode 0600), from the first moment. ERR_INVALID for links and devices. */
int file_writer_new_private(struct file_writer **out, const char *path, struct err *e);
int file_writer_write(struct file_writer *w, const void *data, size_t size, struct err *e);
int file_writer_zeros(struct file_writer *w, uint64_t size, struct err *e);
uint64_t file_writer_size(const struct file_writer *w);               /* bytes accepted so far */
int file_writer_finish(struct file_writer *w, struct err *e);
void file_writer_abort(struct file_writer *w);                        /* NULL is fine */

int file_write_all(const char *path, const void *data, size_t size,
                   struct err *e); /* all of the above at once */
int file_sync_folder_of(const char *path, struct err *e);

/* A file written in any order, for work that goes on after a restart: PATH.tmp of exactly `size` bytes
 * while it grows, PATH once finished and cut to what it is to be. `fresh`: the bytes are zeros; false:
 * they are what a run before left. A second opener gets ERR_BUSY. finish, close (keeps the .tmp) and
 * abort (removes it) free the object. */
struct file_pieces;
int file_pieces_open(struct file_pieces **out, const char *path, uint64_t size, bool *fresh, struct err *e);
int file_pieces_write(struct file_pieces *p, uint64_t offset, const void *data, size_t size, struct err *e);
int file_pieces_read(const struct file_pieces *p, uint64_t offset, void *data, size_t size, struct err *e);
int file_pieces_clear(struct file_pieces *p, struct err *e);          /* all zeros again */
int file_pieces_sync(struct file_pieces *p, struct err *e);
int file_pieces_finish(struct file_pieces *p, uint64_t size, struct err *e);
void file_pieces_close(struct file_pieces *p);                        /* NULL is fine */
void file_pieces_abort(struct file_pieces *p);

/* What tells a file from another of the same name, and what it takes on the disk. */
struct file_facts {
    uint64_t size, disk_bytes, inode, device;
    int64_t changed_s, changed_ns;
};
int file_facts(struct file_facts *out, const char *path, struct err *e);

/* A file that this process uses for a while: file_remove_unused leaves it alone, here and in any other
 * process of ours, and its time of change says when this was. hold->fd is -1 for one that is not held. */
struct file_hold { int fd; };
int file_hold(struct file_hold *hold, const char *path, struct err *e);
void file_release(struct file_hold *hold);                            /* fine if it is not held */
/* A plain file that nobody holds or writes; ERR_BUSY if somebody does. */
int file_remove_unused(const char *path, struct err *e);

int file_make_folder(const char *path, struct err *e);                /* fine if it is there already */

/* Names in a folder, sorted by byte value, without "." and "..". Free with file_names_free. */
struct file_names {
    char **name;
    int n;
};
int file_list(struct file_names *out, const char *folder, struct err *e);
void file_names_free(struct file_names *names);

/* The folder part of a path ("." when it has none) into out. ERR_LIMIT if it does not fit. */
int file_folder_of(const char *path, char *out, size_t size, struct err *e);

/* Bytes that may still be written to the disk on which `path` would lie. */
int file_free_bytes(const char *path, uint64_t *bytes, struct err *e);

#endif
