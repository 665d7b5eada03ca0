/* fake_service - service.h by script: every request is answered with the same tokens, at the pace and with
 * the end that the test sets. Linked instead of the real one, because a program's own functions come first.
 *
 * One loop thread, as the real thing; the fields under `lock` may be set while it runs. Header only, for
 * one test program. */
#ifndef HARNESS_FAKE_SERVICE_H
#define HARNESS_FAKE_SERVICE_H

#include <pthread.h>
#include <stdatomic.h>

#include "common/sys/clock.h"
#include "coordinator/service.h"
#include "tests/harness/api_site.h"

enum { FAKE_ENTRIES = 2048, FAKE_SCRIPT_MAX = 1 << 16 };

struct fake_entry {
    bool used, cancelled;
    uint64_t ticket, next_ns, submitted_ns;
    uint32_t n, n_max, n_prompt;
    struct service_listener listener;
    struct service_guide *guide;
};

struct service {
    struct small_vocab vocab;
    struct tokenizer *tokenizer;
    pthread_mutex_t lock;
    pthread_cond_t more;
    pthread_t thread;
    bool stop;
    enum service_state state;
    int32_t script[FAKE_SCRIPT_MAX];
    uint32_t n_script, n_used, queue_max;
    uint64_t prefill_us, token_us;
    enum service_end end;
    struct fake_entry entry[FAKE_ENTRIES];
    uint64_t next_ticket;
    atomic_uint n_submitted, n_cancelled;
    _Atomic uint64_t cancel_ns, told_ns;          /* of the last one */
    _Atomic uint64_t cpu_ns;                      /* of the loop thread, so far */
};

static inline void fake_end(struct service *s, struct fake_entry *t, enum service_end end) {
    struct service_done d = { .end = end,
                              .code = end == SERVICE_END_ERROR ? ERR_DEVICE : 0,
                              .n_prompt = t->n_prompt,
                              .n_output = t->n };
    if (end == SERVICE_END_ERROR) snprintf(d.text, sizeof d.text, "the accelerator caught fire");
    if (t->guide) t->guide->free(t->guide);
    struct service_listener l = t->listener;
    t->used = false;
    s->n_used--;
    l.on_done(l.ctx, &d);
}

/* One step of one request; when it wants the next. */
static inline uint64_t fake_step(struct service *s, struct fake_entry *t, uint64_t now) {
    if (t->cancelled) return fake_end(s, t, SERVICE_END_CANCELLED), UINT64_MAX;
    if (now < t->next_ns) return t->next_ns;
    if (s->end == SERVICE_END_ERROR && t->n == s->n_script)
        return fake_end(s, t, SERVICE_END_ERROR), UINT64_MAX;
    if (t->n == s->n_script || t->n == t->n_max)
        return fake_end(s, t, t->n == t->n_max ? SERVICE_END_LENGTH : s->end), UINT64_MAX;
    struct service_token token = { .id = s->script[t->n], .index = t->n, .logprob = -1 };
    t->n++;
    atomic_store(&s->told_ns, clock_now_ns());
    t->listener.on_token(t->listener.ctx, &token);
    t->next_ns = now + s->token_us * 1000;
    return t->next_ns;
}

static inline void *fake_loop(void *ctx) {
    struct service *s = ctx;
    pthread_mutex_lock(&s->lock);
    while (!s->stop) {
        uint64_t now = clock_now_ns(), next = UINT64_MAX;
        for (int i = 0; i < FAKE_ENTRIES; i++) {
            uint64_t wanted = s->entry[i].used ? fake_step(s, &s->entry[i], now) : UINT64_MAX;
            next = MIN(next, wanted);
        }
        if (s->stop || next <= clock_now_ns()) continue;
        struct timespec until, cpu;
        clock_gettime(CLOCK_THREAD_CPUTIME_ID, &cpu);
        atomic_store(&s->cpu_ns, (uint64_t)cpu.tv_sec * 1000000000 + (uint64_t)cpu.tv_nsec);
        clock_gettime(CLOCK_REALTIME, &until);
        now = clock_now_ns();
        uint64_t wait = next == UINT64_MAX || next < now ? 1000000 : next - now;
        until.tv_nsec += (long)MIN(wait, (uint64_t)50000000);
        if (until.tv_nsec >= 1000000000) until.tv_sec++, until.tv_nsec -= 1000000000;
        pthread_cond_timedwait(&s->more, &s->lock, &until);
    }
    for (int i = 0; i < FAKE_ENTRIES; i++)
        if (s->entry[i].used) fake_end(s, &s->entry[i], SERVICE_END_CANCELLED);
    pthread_mutex_unlock(&s->lock);
    return NULL;
}

static inline struct service *fake_new(const char *script) {
    struct service *s = xcalloc(1, sizeof *s);
    scripted_vocab(&s->vocab);
    CHECK(tokenizer_new_vocab(&s->tokenizer, &s->vocab.v, NULL) == 0);
    struct token_buf ids = scripted_tokens(s->tokenizer, script);
    CHECK(ids.n <= FAKE_SCRIPT_MAX);
    if (ids.n) memcpy(s->script, ids.ids, ids.n * sizeof *ids.ids);
    s->n_script = (uint32_t)ids.n;
    token_buf_free(&ids);
    s->state = SERVICE_SERVING;
    s->queue_max = FAKE_ENTRIES;
    pthread_mutex_init(&s->lock, NULL);
    pthread_cond_init(&s->more, NULL);
    CHECK(pthread_create(&s->thread, NULL, fake_loop, s) == 0);
    return s;
}

static inline void fake_free(struct service *s) {
    pthread_mutex_lock(&s->lock);
    s->stop = true;
    pthread_cond_signal(&s->more);
    pthread_mutex_unlock(&s->lock);
    pthread_join(s->thread, NULL);
    pthread_mutex_destroy(&s->lock);
    pthread_cond_destroy(&s->more);
    tokenizer_free(s->tokenizer);
    small_free(&s->vocab);
    free(s);
}

static inline void fake_set_state(struct service *s, enum service_state state) {
    pthread_mutex_lock(&s->lock);
    s->state = state;
    pthread_mutex_unlock(&s->lock);
}

/* ---- service.h ---- */

int service_submit(struct service *s, const struct service_request *r, uint64_t *ticket, struct err *e) {
    int rc = ERR_BUSY;
    pthread_mutex_lock(&s->lock);
    for (int i = 0; i < FAKE_ENTRIES && s->n_used < s->queue_max; i++) {
        struct fake_entry *t = &s->entry[i];
        if (t->used) continue;
        uint64_t now = clock_now_ns();
        *t = (struct fake_entry){ .used = true,
                                  .ticket = ++s->next_ticket,
                                  .next_ns = now + s->prefill_us * 1000,
                                  .submitted_ns = now,
                                  .n_max = r->n_new_max,
                                  .n_prompt = r->n_token,
                                  .listener = r->listener,
                                  .guide = r->take_guide };
        *ticket = t->ticket;
        s->n_used++;
        atomic_fetch_add(&s->n_submitted, 1);
        pthread_cond_signal(&s->more);
        rc = 0;
        break;
    }
    pthread_mutex_unlock(&s->lock);
    if (rc < 0 && r->take_guide) r->take_guide->free(r->take_guide);
    return rc < 0 ? err_set(e, rc, "the queue is full") : 0;
}

void service_cancel(struct service *s, uint64_t ticket) {
    pthread_mutex_lock(&s->lock);
    for (int i = 0; i < FAKE_ENTRIES; i++)
        if (s->entry[i].used && s->entry[i].ticket == ticket && !s->entry[i].cancelled) {
            s->entry[i].cancelled = true;
            atomic_store(&s->cancel_ns, clock_now_ns());
            atomic_fetch_add(&s->n_cancelled, 1);
        }
    pthread_cond_signal(&s->more);
    pthread_mutex_unlock(&s->lock);
}

void service_info(struct service *s, struct service_info *out) {
    *out = (struct service_info){ .n_ctx = 4096, .n_slot = 4, .n_node = 1, .created_s = 1795166400 };
    snprintf(out->model, sizeof out->model, "Fake 1");
    snprintf(out->why, sizeof out->why, "%s", "nodes load their layers");
    out->n_vocab = tokenizer_n_vocab(s->tokenizer);
    pthread_mutex_lock(&s->lock);
    out->state = s->state;
    out->n_active = s->n_used;
    pthread_mutex_unlock(&s->lock);
    if (out->state == SERVICE_SERVING) out->why[0] = 0;
}

const struct tokenizer *service_tokenizer(const struct service *s) {
    return s->tokenizer;
}

const struct gguf *service_gguf(const struct service *s) {
    (void)s;
    return NULL;
}

int service_status(struct service *s, struct buf *out, struct err *e) {
    (void)s, (void)e;
    return buf_add_text(out, "{\"state\":\"fake\"}");
}

void service_totals(struct service *s, struct service_totals *out) {
    (void)s;
    *out = (struct service_totals){ .n_request = 1 };
}

#endif
