/* share_server - questions wait in a queue of their own until a slot is free, then are read by the
 * worker in their order:
 *
 *     on_get -> queue -> slot -> worker: copy, hash -> send, next of the queue
 *
 * At most SHARE_READING_MAX have a slot; the slots of those that were sent are the network's until it
 * gives them back, and while there is none, or more was given away than may be in a second, the queue
 * waits for a timer. */
#include "common/share/share_server.h"

#include "common/base/check.h"
#include "common/sys/clock.h"
#include "common/sys/worker.h"

#include <stdlib.h>

enum { RETRY_MS = 2 };

struct share_job {
    struct share_job *next;
    uint32_t link;
    struct msg_weights_get get;
    struct share_part part;
    struct payload payload;
    uint8_t *to;
    uint64_t hash;
};

struct share_server {
    struct share_server_config config;
    struct worker *worker;
    struct loop_timer *retry;
    struct share_job *first, **last;               /* the queue */
    uint32_t n_queued, n_reading;
    uint64_t next_ns;                              /* with a limit: when the next piece may be read */
    struct share_totals totals;
};

/* Worker's thread. */
static void read_part(void *ctx, void *job) {
    struct share_server *s = ctx;
    struct share_job *j = job;
    memcpy(j->to, j->part.data, j->part.bytes);
    j->hash = hash_64(j->to, j->part.bytes, 0);
    worker_answer(s->worker, j);
}

static void answer(struct share_server *s, uint32_t link, const struct msg_weights_get *get,
                   const struct msg_weights *w, struct payload payload) {
    struct msg m = { .kind = MSG_WEIGHTS, .u.weights = *w };
    m.u.weights.id = get->id;
    m.u.weights.tensor = get->tensor;
    m.u.weights.offset = w->code < 0 ? 0 : get->offset;
    s->config.send(s->config.ctx, link, &m, payload);
}

static void refuse(struct share_server *s, uint32_t link, const struct msg_weights_get *get, int code) {
    s->totals.n_refused++;
    answer(s, link, get, &(struct msg_weights){ .code = code }, (struct payload){ 0 });
}

/* ---- the queue ---- */

static struct share_job *dequeue(struct share_server *s) {
    struct share_job *j = s->first;
    s->first = j->next;
    if (!s->first) s->last = &s->first;
    s->n_queued--;
    return j;
}

/* When the first of the queue may be read, if that is not now. */
static bool must_wait(struct share_server *s, uint64_t now, uint64_t *until) {
    *until = s->next_ns;
    if (s->config.bytes_per_s && now < s->next_ns) return true;
    *until = now + RETRY_MS * UINT64_C(1000000);
    return slots_small_free(s->config.slots) <= s->config.n_slot_left;
}

static void note_rate(struct share_server *s, uint64_t now, uint32_t bytes) {
    if (s->config.bytes_per_s)
        s->next_ns = MAX(s->next_ns, now) + bytes * UINT64_C(1000000000) / s->config.bytes_per_s;
}

static void advance(struct share_server *s) {
    while (s->first && s->n_reading < SHARE_READING_MAX) {
        uint64_t now = clock_now_ns(), until;
        bool wait = must_wait(s, now, &until);
        struct payload p = { 0 };
        if (!wait) p = slots_take(s->config.slots, s->first->part.bytes);
        if (!p.generation) {
            loop_timer_set(s->retry, until);
            return;
        }
        note_rate(s, now, s->first->part.bytes);
        struct share_job *j = dequeue(s);
        j->payload = p;
        j->to = slots_data(s->config.slots, p);
        s->n_reading++;
        bool taken = worker_push(s->worker, j);
        CHECK(taken);                              /* its ring holds SHARE_READING_MAX */
    }
}

static void on_retry(void *ctx) {
    advance(ctx);
}

static void on_read(void *ctx, void *job) {
    struct share_server *s = ctx;
    struct share_job *j = job;
    s->n_reading--;
    s->totals.n_piece++;
    s->totals.bytes += j->part.bytes;
    struct msg_weights w = { .total_bytes = j->part.total_bytes,
                             .file_bytes = j->get.tensor == MSG_WEIGHTS_HEADER ? j->part.file_bytes : 0,
                             .hash = j->hash,
                             .last = j->part.last };
    answer(s, j->link, &j->get, &w, j->payload);
    free(j);
    advance(s);
}

void share_server_on_get(struct share_server *s, uint32_t link, const struct msg_weights_get *get) {
    struct share_part part;
    struct share_ask ask = { .model = { get->model_lo, get->model_hi },
                             .header = get->tensor == MSG_WEIGHTS_HEADER,
                             .name = get->name,
                             .bytes = get->bytes,
                             .offset = get->offset };
    int rc = s->config.find(s->config.ctx, &ask, &part);
    if (rc == 0 && s->n_queued + s->n_reading >= SHARE_JOBS_MAX) rc = ERR_BUSY;
    if (rc == 0 && part.bytes > slots_bytes_max(s->config.slots)) rc = ERR_LIMIT;
    if (rc < 0) {
        refuse(s, link, get, rc);
        return;
    }
    struct share_job *j = xcalloc(1, sizeof *j);
    *j = (struct share_job){ .link = link, .get = *get, .part = part };
    *s->last = j;
    s->last = &j->next;
    s->n_queued++;
    advance(s);
}

void share_server_on_closed(struct share_server *s, uint32_t link) {
    struct share_job **at = &s->first;
    while (*at) {
        struct share_job *j = *at;
        if (j->link != link) {
            at = &j->next;
            continue;
        }
        *at = j->next;
        s->n_queued--;
        free(j);
    }
    s->last = at;
}

/* ---- life ---- */

int share_server_new(struct share_server **out, const struct share_server_config *config, struct err *e) {
    struct share_server *s = xcalloc(1, sizeof *s);
    *out = NULL;
    s->config = *config;
    s->last = &s->first;
    struct worker_config w = { .name = "share",
                               .n_job_max = SHARE_READING_MAX,
                               .n_answer_max = SHARE_READING_MAX,
                               .run = read_part,
                               .on_answer = on_read,
                               .ctx = s };
    int rc = worker_start(&s->worker, config->loop, &w, e);
    if (rc < 0) {
        free(s);
        return rc;
    }
    s->retry = loop_timer_new(config->loop, on_retry, s);
    *out = s;
    return 0;
}

static void drop_job(void *ctx, void *job) {
    struct share_server *s = ctx;
    struct share_job *j = job;
    slots_give(s->config.slots, j->payload);
    free(j);
}

static void swallow(void *ctx, uint32_t link, struct msg *m, struct payload payload) {
    struct share_server *s = ctx;
    (void)link, (void)m;
    slots_give(s->config.slots, payload);
}

void share_server_free(struct share_server *s) {
    if (!s) return;
    while (s->first) free(dequeue(s));
    s->config.send = swallow;                      /* what is being read goes nowhere */
    s->config.ctx = s;
    worker_stop(s->worker, drop_job);
    loop_timer_free(s->retry);
    free(s);
}

bool share_server_is_idle(const struct share_server *s) {
    return !s || (s->n_queued == 0 && s->n_reading == 0);
}

struct share_totals share_server_totals(const struct share_server *s) {
    return s->totals;
}
