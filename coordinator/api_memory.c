/* api_memory - see the header. */
#include "coordinator/api_memory.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>

#include "common/base/check.h"
#include "common/base/log.h"
#include "common/sys/file.h"
#include "coordinator/http_guard.h"

/* Per block the file has 8 bytes and 4 for each id, memory more than that. */
enum { FILE_BYTES_MORE = 4096 };

struct api_memory {
    pthread_mutex_t lock;
    struct replay *replay;
    size_t bytes_max;
    char path[FILE_PATH_MAX];                     /* "" without a file */
    struct file_writer *held;                     /* PATH.lock: nobody else uses the folder */
    atomic_uint_fast64_t n_put, n_saved;
};

int api_memory_new(struct api_memory **out, size_t bytes_max, struct err *e) {
    struct api_memory *m = xcalloc(1, sizeof *m);
    m->bytes_max = bytes_max ? bytes_max : REPLAY_BYTES_DEFAULT;
    pthread_mutex_init(&m->lock, NULL);
    int rc = replay_new(&m->replay, m->bytes_max, e);
    if (rc < 0) api_memory_free(m);
    *out = rc < 0 ? NULL : m;
    return rc;
}

void api_memory_free(struct api_memory *m) {
    if (!m) return;
    file_writer_abort(m->held);
    replay_free(m->replay);
    pthread_mutex_destroy(&m->lock);
    free(m);
}

/* ---- the file ---- */

static int load(struct api_memory *m, struct err *e) {
    void *data = NULL;
    size_t size = 0;
    int rc = http_guard_file(m->path, e);
    if (rc == 0) rc = file_read_all(m->path, m->bytes_max + FILE_BYTES_MORE, &data, &size, e);
    if (rc == 0) rc = replay_load(m->replay, data, size, e);
    free(data);
    return rc;
}

int api_memory_keep_in(struct api_memory *m, const char *folder, struct err *e) {
    struct file_facts facts;
    struct err why = { .text = "" };
    char lock[FILE_PATH_MAX];
    if (strlen(folder) + 32 > sizeof lock) return err_set(e, ERR_LIMIT, "%.100s...: too long a path", folder);
    int rc = file_make_folder(folder, e);
    snprintf(lock, sizeof lock, "%s/lock", folder);
    if (rc == 0) rc = file_writer_new_private(&m->held, lock, e);
    if (rc == ERR_BUSY) return err_set(e, rc, "%s: another server keeps its state there", folder);
    if (rc < 0) return rc;
    snprintf(m->path, sizeof m->path, "%s/tool-calls", folder);
    if (file_facts(&facts, m->path, &why) < 0) return 0;       /* nothing yet */
    if (load(m, &why) < 0) log_warn("api", "earlier tool calls are forgotten: %s", why.text);
    struct replay_stats stats = replay_stats(m->replay);
    atomic_store(&m->n_put, stats.n_put);
    atomic_store(&m->n_saved, stats.n_put);
    log_info("api", "%zu blocks of earlier tool calls from %s", stats.n_blocks, m->path);
    return 0;
}

bool api_memory_is_due(const struct api_memory *m) {
    return m->path[0] && atomic_load(&m->n_put) != atomic_load(&m->n_saved);
}

static int write_file(const char *path, const struct buf *data, struct err *e) {
    struct file_writer *w;
    int rc = file_writer_new_private(&w, path, e);
    if (rc < 0) return rc;
    rc = file_writer_write(w, data->data, data->size, e);
    if (rc == 0) return file_writer_finish(w, e);
    file_writer_abort(w);
    return rc;
}

int api_memory_save(struct api_memory *m, struct err *e) {
    struct buf data;
    if (!api_memory_is_due(m)) return 0;
    buf_init(&data, m->bytes_max + FILE_BYTES_MORE);
    pthread_mutex_lock(&m->lock);
    uint64_t n_put = replay_stats(m->replay).n_put;
    int rc = replay_save(m->replay, NULL, 0, &data);
    pthread_mutex_unlock(&m->lock);
    if (rc < 0) err_set(e, rc, "no memory to write %s", m->path);
    else rc = write_file(m->path, &data, e);
    buf_deinit(&data);
    if (rc == 0) atomic_store(&m->n_saved, n_put);
    return rc;
}

/* ---- calls as they were written ---- */

void api_memory_recall(struct api_memory *m, struct api_request *r) {
    pthread_mutex_lock(&m->lock);
    int rc = replay_fill(m->replay, r->messages, r->n_messages, &r->arena);
    pthread_mutex_unlock(&m->lock);
    if (rc < 0) log_warn("api", "earlier tool calls are rendered anew: %s", err_text(rc));
}

void api_memory_remember(struct api_memory *m, const struct chat_text *ids, size_t n_ids,
                         struct chat_text block) {
    struct err e = { .text = "" };
    pthread_mutex_lock(&m->lock);
    int rc = replay_put(m->replay, ids, n_ids, block, &e);
    atomic_store(&m->n_put, replay_stats(m->replay).n_put);
    pthread_mutex_unlock(&m->lock);
    if (rc < 0) log_debug("api", "a block of tool calls is not kept: %s", e.text);
}

struct replay_stats api_memory_stats(struct api_memory *m) {
    pthread_mutex_lock(&m->lock);
    struct replay_stats stats = replay_stats(m->replay);
    pthread_mutex_unlock(&m->lock);
    return stats;
}
