/* fetch_run - jobs for the writing thread carry the number of their run: after a new start the answers
 * of an older one only give back what they hold. The thread alone owns the store; a job that opens one
 * closes the one before. */
#include "node/fetch_run.h"

#include "common/base/check.h"
#include "common/base/hash.h"
#include "common/sys/clock.h"
#include "common/sys/file.h"
#include "common/sys/worker.h"
#include "node/fetch_store.h"
#include "node/store.h"

#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>

enum { PROGRESS_MS = 500, JOBS_MAX = 64 };

enum fetch_job_kind { JOB_OPEN, JOB_WRITE, JOB_FINISH, JOB_CLOSE, JOB_TIDY, JOB_PROGRESS };

struct fetch_job {
    enum fetch_job_kind kind;
    uint64_t run;
    struct msg_assign assign;                      /* OPEN */
    struct buf header;
    uint64_t file_bytes;
    const struct fetch_piece *piece;               /* WRITE; answer of OPEN: the missing ones */
    uint32_t number, n_piece;                      /* number: TIDY: how many to keep; answer: removed */
    const void *data;
    struct payload payload;
    uint64_t hash, done, total;                    /* of OPEN and PROGRESS: bytes there, of all */
    int code;
    char text[MSG_TEXT_MAX], path[FILE_PATH_MAX];
};

enum run_state { RUN_IDLE, RUN_HEADER, RUN_OPENING, RUN_PIECES, RUN_FINISHING };

struct fetch_run {
    struct fetch_run_config config;
    char folder[FILE_PATH_MAX];
    struct worker *worker;
    struct loop_timer *timer;
    enum run_state state;
    uint64_t run, epoch;
    atomic_uint_fast64_t wanted_run;
    struct msg_assign assign;
    struct fetch fetch;
    struct fetch_piece *header_piece;
    struct buf header;
    uint64_t file_bytes, had, total, told_ns, begun_ns;
    struct fetch_totals totals;
    struct fetch_store *store;                     /* the thread's */
    struct fetch_job *opening;                     /* the thread's: the job that fetch_store_open runs for */
};

/* ---- on the thread ---- */

static bool on_read_back(void *ctx, uint64_t done, uint64_t total) {
    struct fetch_run *r = ctx;
    struct fetch_job *j = xcalloc(1, sizeof *j);
    *j = (struct fetch_job){ .kind = JOB_PROGRESS, .run = r->opening->run, .done = done, .total = total };
    if (done % (64 << 20) < FETCH_PIECE_BYTES) worker_answer(r->worker, j);
    else free(j);
    return atomic_load(&r->wanted_run) == r->opening->run && !worker_is_stopping(r->worker);
}

static int do_open(struct fetch_run *r, struct fetch_job *j, struct err *e) {
    if (atomic_load(&r->wanted_run) != j->run) return err_set(e, ERR_CANCELLED, "given up");
    fetch_store_close(r->store);
    r->store = NULL;
    r->opening = j;
    int rc = fetch_store_open(&r->store, r->folder, &j->assign, &j->header, j->file_bytes,
                              on_read_back, r, e);
    if (rc < 0) return rc;
    uint64_t missing = 0;
    j->piece = fetch_store_missing(r->store, &j->n_piece);
    for (uint32_t i = 0; i < j->n_piece; i++) missing += j->piece[i].bytes;
    j->total = fetch_store_bytes(r->store);
    j->done = j->total - missing;
    return 0;
}

static int do_finish(struct fetch_run *r, struct fetch_job *j, struct err *e) {
    int rc = fetch_store_finish(r->store, e);
    snprintf(j->path, sizeof j->path, "%s", fetch_store_path(r->store));
    return rc;
}

static int do_job(struct fetch_run *r, struct fetch_job *j, struct err *e) {
    switch (j->kind) {
    case JOB_OPEN: return do_open(r, j, e);
    case JOB_WRITE:
        if (atomic_load(&r->wanted_run) != j->run || !r->store) return err_set(e, ERR_CANCELLED, "given up");
        return fetch_store_write(r->store, j->piece, j->data, j->payload.bytes, j->hash, e);
    case JOB_FINISH: return do_finish(r, j, e);
    case JOB_CLOSE:
        fetch_store_close(r->store);
        r->store = NULL;
        break;
    case JOB_TIDY: j->number = (uint32_t)store_tidy(r->folder, j->path, j->number); break;
    case JOB_PROGRESS: break;
    }
    return 0;
}

static void run_job(void *ctx, void *job) {
    struct fetch_run *r = ctx;
    struct fetch_job *j = job;
    struct err e = { 0 };
    j->code = do_job(r, j, &e);
    snprintf(j->text, sizeof j->text, "%.250s", j->code < 0 ? e.text : "");
    worker_answer(r->worker, j);
}

static void thread_ends(void *ctx) {
    struct fetch_run *r = ctx;
    fetch_store_close(r->store);
    r->store = NULL;
}

/* ---- on the loop ---- */

static struct fetch_job *job_new(struct fetch_run *r, enum fetch_job_kind kind) {
    struct fetch_job *j = xcalloc(1, sizeof *j);
    j->kind = kind;
    j->run = r->run;
    return j;
}

static void job_free(struct fetch_run *r, struct fetch_job *j) {
    if (j->kind == JOB_WRITE) slots_give(r->config.slots, j->payload);
    buf_deinit(&j->header);
    free(j);
}

/* Lets go of the file. Full: a later open does it. */
static void push_close(struct fetch_run *r) {
    struct fetch_job *j = job_new(r, JOB_CLOSE);
    if (!worker_push(r->worker, j)) job_free(r, j);
}

static void forget(struct fetch_run *r) {
    r->totals.n_late += r->fetch.odds.late;
    r->totals.n_damaged += r->fetch.odds.damaged;
    r->totals.n_silent += r->fetch.odds.silent;
    r->totals.n_twice += r->fetch.odds.twice;
    memset(&r->fetch.odds, 0, sizeof r->fetch.odds);
    fetch_end(&r->fetch);
    r->state = RUN_IDLE;
    free(r->header_piece);
    r->header_piece = NULL;
    buf_deinit(&r->header);
    loop_timer_set(r->timer, LOOP_NEVER);
}

static void end(struct fetch_run *r, const char *path, int code, const char *text) {
    char why[MSG_TEXT_MAX];
    snprintf(why, sizeof why, "%s", text ? text : "");         /* it may lie in what is freed now */
    if (code < 0) push_close(r);
    forget(r);
    r->config.done(r->config.ctx, r->epoch, path, code, why);
}

/* The ring holds what one run can need. It is full only when runs follow one another faster than the
 * disk works. */
static void push(struct fetch_run *r, struct fetch_job *j) {
    if (worker_push(r->worker, j)) return;
    job_free(r, j);
    end(r, NULL, ERR_BUSY, "the disk does not keep up");
}

static void tell(struct fetch_run *r, bool always) {
    uint64_t now = clock_now_ns();
    if (!always && now < r->told_ns + PROGRESS_MS * UINT64_C(1000000)) return;
    r->told_ns = now;
    r->config.progress(r->config.ctx, r->epoch, r->had + r->fetch.bytes_done, r->total);
}

static void begin_header(struct fetch_run *r, uint64_t from, uint64_t to, enum fetch_from of);

/* Whatever happened: asks for what may be asked for, and sets the timer. */
static void advance(struct fetch_run *r) {
    struct msg_weights_get get;
    uint32_t source;
    if (r->state != RUN_HEADER && r->state != RUN_PIECES) return;
    if (r->fetch.code < 0) {
        end(r, NULL, r->fetch.code, r->fetch.text);
        return;
    }
    if (r->fetch.torn) {                           /* half a header of a source that is gone */
        buf_deinit(&r->header);
        begin_header(r, 0, FETCH_PIECE_BYTES, FETCH_FROM_ONE);
    }
    uint64_t now = clock_now_ns();
    while (fetch_next(&r->fetch, &source, &get, now)) r->config.send(r->config.ctx, source, &get);
    loop_timer_set(r->timer, fetch_deadline_ns(&r->fetch));
}

void fetch_run_source(struct fetch_run *r, uint32_t source, const struct msg_source *what) {
    fetch_source_set(&r->fetch, source, what, clock_now_ns());
    advance(r);
}

void fetch_run_source_up(struct fetch_run *r, uint32_t source, bool up) {
    fetch_source_up(&r->fetch, source, up, clock_now_ns());
    advance(r);
}

bool fetch_run_is_idle(const struct fetch_run *r) {
    return !r || r->state == RUN_IDLE;
}

static void on_timer(void *ctx) {
    struct fetch_run *r = ctx;
    fetch_on_tick(&r->fetch, clock_now_ns());
    advance(r);
}

/* ---- the header ---- */

static void begin_header(struct fetch_run *r, uint64_t from, uint64_t to, enum fetch_from of) {
    uint32_t n = (uint32_t)((to - from + FETCH_PIECE_BYTES - 1) / FETCH_PIECE_BYTES);
    free(r->header_piece);
    r->header_piece = xcalloc(n, sizeof *r->header_piece);
    for (uint32_t i = 0; i < n; i++) {
        uint64_t at = from + (uint64_t)i * FETCH_PIECE_BYTES;
        r->header_piece[i] =
            (struct fetch_piece){ .tensor = MSG_WEIGHTS_HEADER,
                                  .bytes = (uint32_t)MIN(to - at, (uint64_t)FETCH_PIECE_BYTES),
                                  .offset = at,
                                  .at = at,
                                  .part = FETCH_PART_HEADER };
    }
    fetch_begin(&r->fetch, r->assign.model_lo, r->assign.model_hi, r->header_piece, n, of, clock_now_ns());
}

static void header_is_whole(struct fetch_run *r) {
    struct fetch_job *j = job_new(r, JOB_OPEN);
    j->assign = r->assign;
    j->header = r->header;
    j->file_bytes = r->file_bytes;
    r->header = (struct buf){ 0 };
    r->state = RUN_OPENING;
    loop_timer_set(r->timer, LOOP_NEVER);
    push(r, j);
}

/* The first answer tells how much there is. */
static int header_size(struct fetch_run *r, const struct msg_weights *w, struct err *e) {
    if (w->total_bytes > FETCH_HEADER_MAX || w->total_bytes > w->file_bytes)
        return err_set(e, ERR_LIMIT, "the source has a header of %llu bytes",
                       (unsigned long long)w->total_bytes);
    r->file_bytes = w->file_bytes;
    buf_init(&r->header, FETCH_HEADER_MAX);
    return buf_grow(&r->header, (size_t)w->total_bytes)
               ? 0
               : err_set(e, ERR_NOMEM, "no memory for the header");
}

static int header_take(struct fetch_run *r, const struct msg_weights *w, const struct fetch_piece *p,
                       struct payload payload, struct err *e) {
    const void *data = slots_data(r->config.slots, payload);
    int rc = r->header.size ? 0 : header_size(r, w, e);
    if (rc < 0) return rc;
    uint64_t n = MIN((uint64_t)p->bytes, r->header.size - MIN(p->offset, (uint64_t)r->header.size));
    if (w->total_bytes != r->header.size || payload.bytes != n || hash_64(data, payload.bytes, 0) != w->hash)
        return err_set(e, ERR_CORRUPT, "the header of the model arrived damaged");
    memcpy(r->header.data + p->offset, data, payload.bytes);
    return 0;
}

static void on_header(struct fetch_run *r, const struct msg_weights *w, uint32_t i, struct payload payload) {
    struct err e = { 0 };
    int rc = header_take(r, w, &r->header_piece[i], payload, &e);
    slots_give(r->config.slots, payload);
    fetch_stored(&r->fetch, i, rc, e.text);
    if (!fetch_is_done(&r->fetch)) return;
    if (r->header_piece[0].offset == 0 && r->header.size > FETCH_PIECE_BYTES)
        begin_header(r, FETCH_PIECE_BYTES, r->header.size, FETCH_FROM_SAME);
    else header_is_whole(r);
}

/* ---- pieces ---- */

void fetch_run_on_weights(struct fetch_run *r, uint32_t source, const struct msg_weights *w,
                          struct payload payload) {
    uint32_t i;
    bool waits = r->state == RUN_HEADER || r->state == RUN_PIECES;
    if (!waits || !fetch_on_answer(&r->fetch, source, w, &i, clock_now_ns())) {
        if (!waits) r->totals.n_late++;
        slots_give(r->config.slots, payload);
        advance(r);
        return;
    }
    r->totals.bytes += payload.bytes;
    r->totals.n_piece++;
    if (r->state == RUN_HEADER) {
        on_header(r, w, i, payload);
    } else {
        struct fetch_job *j = job_new(r, JOB_WRITE);
        j->number = i;
        j->piece = &r->fetch.piece[i];
        j->payload = payload;
        j->data = slots_data(r->config.slots, payload);
        j->hash = w->hash;
        push(r, j);
    }
    advance(r);
}

static void maybe_finish(struct fetch_run *r) {
    if (r->state != RUN_PIECES || !fetch_is_done(&r->fetch)) return;
    r->state = RUN_FINISHING;
    r->totals.ns = clock_now_ns() - r->begun_ns;
    for (int i = 0; i < MSG_SOURCES_MAX; i++) r->totals.source_bytes[i] = r->fetch.source[i].bytes;
    loop_timer_set(r->timer, LOOP_NEVER);
    tell(r, true);
    push(r, job_new(r, JOB_FINISH));
}

/* ---- answers of the thread ---- */

static void opened(struct fetch_run *r, const struct fetch_job *j) {
    if (j->code < 0) {
        end(r, NULL, j->code, j->text);
        return;
    }
    r->state = RUN_PIECES;
    r->had = j->done;
    r->total = j->total;
    r->begun_ns = clock_now_ns();
    for (int i = 0; i < MSG_SOURCES_MAX; i++) r->fetch.source[i].bytes = 0;
    fetch_begin(&r->fetch, r->assign.model_lo, r->assign.model_hi, j->piece, j->n_piece, FETCH_FROM_ANY,
                r->begun_ns);
    tell(r, true);
    maybe_finish(r);
    advance(r);
}

static void written(struct fetch_run *r, const struct fetch_job *j) {
    fetch_stored(&r->fetch, j->number, j->code, j->text);
    tell(r, false);
    maybe_finish(r);
    advance(r);
}

static void on_answer(void *ctx, void *answer) {
    struct fetch_run *r = ctx;
    struct fetch_job *j = answer;
    if (j->kind == JOB_WRITE) slots_give(r->config.slots, j->payload);
    j->payload = (struct payload){ 0 };
    if (j->kind == JOB_TIDY && j->number) r->config.tidied(r->config.ctx);
    if (j->run == r->run && r->state != RUN_IDLE) {
        if (j->kind == JOB_OPEN) opened(r, j);
        else if (j->kind == JOB_WRITE) written(r, j);
        else if (j->kind == JOB_FINISH) end(r, j->path, j->code, j->text);
        else if (j->kind == JOB_PROGRESS) r->config.progress(r->config.ctx, r->epoch, j->done, j->total);
    }
    job_free(r, j);
}

/* ---- life ---- */

void fetch_run_start(struct fetch_run *r, uint64_t epoch, const struct msg_assign *a) {
    fetch_run_stop(r);
    r->epoch = epoch;
    r->assign = *a;
    r->assign.helper = NULL;                       /* lists are not ours, and not needed */
    r->assign.peer = NULL;
    r->assign.source = NULL;
    r->assign.n_helper = r->assign.n_peer = r->assign.n_source = 0;
    r->state = RUN_HEADER;
    r->had = r->total = r->told_ns = 0;
    for (uint32_t i = 0; i < MSG_SOURCES_MAX; i++) fetch_source_set(&r->fetch, i, NULL, clock_now_ns());
    begin_header(r, 0, FETCH_PIECE_BYTES, FETCH_FROM_ONE);
    advance(r);
}

/* Full: the next one will do. */
void fetch_run_tidy(struct fetch_run *r, const char *path, uint32_t n_keep) {
    struct fetch_job *j = job_new(r, JOB_TIDY);
    const char *slash = strrchr(path, '/');
    snprintf(j->path, sizeof j->path, "%s", slash ? slash + 1 : path);
    j->number = n_keep;
    if (!worker_push(r->worker, j)) job_free(r, j);
}

void fetch_run_stop(struct fetch_run *r) {
    r->run++;
    atomic_store(&r->wanted_run, r->run);
    if (r->state == RUN_IDLE) return;
    push_close(r);
    forget(r);
}

int fetch_run_new(struct fetch_run **out, const struct fetch_run_config *config, struct err *e) {
    struct fetch_run *r = xcalloc(1, sizeof *r);
    *out = NULL;
    r->config = *config;
    snprintf(r->folder, sizeof r->folder, "%s", config->folder);
    atomic_init(&r->wanted_run, 0);
    struct worker_config w = { .name = "fetch",
                               .n_job_max = JOBS_MAX,
                               .n_answer_max = JOBS_MAX,
                               .run = run_job,
                               .end = thread_ends,
                               .on_answer = on_answer,
                               .ctx = r };
    int rc = worker_start(&r->worker, config->loop, &w, e);
    if (rc < 0) {
        free(r);
        return rc;
    }
    r->timer = loop_timer_new(config->loop, on_timer, r);
    *out = r;
    return 0;
}

static void drop_job(void *ctx, void *job) {
    job_free(ctx, job);
}

void fetch_run_free(struct fetch_run *r) {
    if (!r) return;
    r->run++;
    atomic_store(&r->wanted_run, r->run);
    forget(r);
    worker_stop(r->worker, drop_job);
    loop_timer_free(r->timer);
    free(r);
}

struct fetch_totals fetch_run_totals(const struct fetch_run *r) {
    struct fetch_totals t = r->totals;
    t.n_late += r->fetch.odds.late;
    t.n_damaged += r->fetch.odds.damaged;
    t.n_silent += r->fetch.odds.silent;
    t.n_twice += r->fetch.odds.twice;
    return t;
}
