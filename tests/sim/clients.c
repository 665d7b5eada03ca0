/* clients - who submits what and when, and whether what comes out is what has to. */
#include "tests/sim/world.h"

#include "common/base/check.h"

#include "common/base/banned.h"

/* The reference: one process, one sequence, no cluster. */
static void expect(struct world *w, struct client *c) {
    static int32_t token[2 * CTX_MAX];
    struct reference ref = { .n = 0 };
    uint32_t n = c->n_prompt, room = MIN(c->n_new, w->n_ctx - MIN(w->n_ctx, c->n_prompt));
    memcpy(token, c->prompt, n * sizeof token[0]);
    for (uint32_t i = 1; i < n; i++) c->score[i] = compute_score(reference_next(w, &ref, token, i), token[i]);
    bool end = false;
    for (c->n_expected = 0; c->n_expected < room && !end; n++) {
        uint64_t x = reference_next(w, &ref, token, n);
        token[n] = compute_pick(w, x, c->seed, n, &end);
        c->expected[c->n_expected++] = token[n];
    }
}

/* The prompt begins with n_told tokens of text. */
static struct client *add(struct world *w, uint64_t at, const int32_t *text, uint32_t n_told,
                          uint32_t n_prompt, uint32_t n_new) {
    CHECK(w->n_client < CLIENTS_MAX);
    struct client *c = &w->client[w->n_client];
    memset(c, 0, sizeof *c);
    c->seed = rng_u64(&w->rng);
    c->n_prompt = n_prompt;
    c->n_new = n_new;
    for (uint32_t i = 0; i < n_prompt; i++)
        c->prompt[i] = i < n_told ? text[i] : (int32_t)world_between(w, 0, VOCAB - 1);
    world_post(w, (struct ev){ .t = at, .kind = EV_CLIENT, .arg = w->n_client++ });
    expect(w, c);
    return c;
}

struct client *clients_add(struct world *w, uint64_t at, uint32_t n_prompt, uint32_t n_new) {
    return add(w, at, NULL, 0, n_prompt, n_new);
}

/* A conversation: what was asked and answered, without the last `back` tokens of it, then n_more others. */
struct client *clients_go_on(struct world *w, const struct client *c, uint64_t at, uint32_t back,
                             uint32_t n_more, uint32_t n_new) {
    static int32_t text[2 * CTX_MAX];
    uint32_t n = c->n_prompt + c->n_got, n_told = n - MIN(back, n - 1);
    memcpy(text, c->prompt, c->n_prompt * sizeof text[0]);
    memcpy(text + c->n_prompt, c->expected, c->n_got * sizeof text[0]);
    struct client *next = add(w, at, text, n_told, n_told + n_more, n_new);
    next->strict = c->strict;
    world_say(w, NOBODY, "client %u goes on where client %u was after %u of %u tokens",
              (uint32_t)(next - w->client), (uint32_t)(c - w->client), n_told, n);
    return next;
}

/* Somebody asks the same, or goes on from there, while the first one is still being answered. */
static void clients_twin(struct world *w, const struct client *c, uint64_t at) {
    uint32_t n_more = (uint32_t)world_between(w, 0, 4);
    if (w->n_client + 2 < CLIENTS_MAX)
        add(w, at, c->prompt, c->n_prompt, c->n_prompt + n_more, (uint32_t)world_between(w, 1, 16));
}

static void perhaps_go_on(struct world *w, const struct client *c) {
    uint32_t back = 0;
    if (w->endless || c->long_one || w->n_client + 2 >= CLIENTS_MAX || world_chance(w, 3)) return;
    if (world_chance(w, 2)) back = (uint32_t)world_between(w, 1, world_chance(w, 4) ? 24 : 12);
    else if (world_chance(w, 2)) back = c->n_got + (uint32_t)world_between(w, 0, 3);      /* another answer */
    uint32_t n_more = (uint32_t)world_between(w, 0, world_chance(w, 3) ? 40 : 6);
    uint64_t at = w->now + world_between(w, 0, world_chance(w, 2) ? 10 * MS : 3000 * MS);
    if (c->n_prompt + c->n_got + n_more + 1 >= w->n_ctx) return;
    clients_go_on(w, c, at, back, n_more, (uint32_t)world_between(w, 1, 16));
}

static struct client *some_client(struct world *w, uint64_t at) {
    uint32_t n_prompt = (uint32_t)world_between(w, 1, world_chance(w, 3) ? 48 : 8);
    struct client *c = clients_add(w, at, n_prompt, (uint32_t)world_between(w, 1, 16));
    c->scores = c->seed % 4 == 0;                 /* these take nothing over: conversations do not ask */
    return c;
}

void clients_init(struct world *w) {
    uint32_t n = (uint32_t)world_between(w, 1, 14);
    uint64_t span = world_chance(w, 3) ? 500 * MS : w->faults_end - w->now;
    for (uint32_t i = 0; i < n; i++) {
        uint64_t at = w->now + world_between(w, 0, span);
        struct client *c = some_client(w, at);
        if (world_chance(w, 5)) {
            c->cancels = true;
            uint64_t then = at + world_between(w, 0, 4000 * MS);
            world_post(w, (struct ev){ .t = then, .kind = EV_CANCEL, .arg = (uint32_t)(c - w->client) });
        }
        if (world_chance(w, 6) && !c->cancels) clients_twin(w, c, at + world_between(w, 0, 2000 * MS));
        if (world_chance(w, 12)) c->deadline_ms = (uint32_t)world_between(w, 10, 5000);
        if (world_chance(w, 25)) {
            c->n_prompt = (uint32_t)world_between(w, w->n_ctx, CTX_DRAWN);
            for (uint32_t k = 0; k < c->n_prompt; k++) c->prompt[k] = (int32_t)(k % VOCAB);
            c->long_one = true;
            expect(w, c);
        }
    }
}

/* After the faults: these have no excuse. */
void clients_add_strict(struct world *w) {
    for (int i = 0; i < 2; i++) {
        struct client *c = some_client(w, w->now + world_between(w, 150000 * MS, 180000 * MS));
        c->strict = true;
    }
}

struct client *client_of(struct world *w, uint64_t tag) {
    for (uint32_t i = 0; i < w->n_client; i++)
        if (w->client[i].tag == tag && w->client[i].state == CLIENT_WAITS) return &w->client[i];
    return NULL;
}

void client_score(struct world *w, struct client *c, uint32_t position, int32_t token, uint64_t score) {
    uint32_t i = (uint32_t)(c - w->client);
    if (!c->scores) world_fail(w, "client %u is told of its prompt, and did not ask", i);
    else if (position != c->n_scored + 1 || position >= c->n_prompt)
        world_fail(w, "client %u is told of token %u of its prompt after %u", i, position, c->n_scored);
    else if (token != c->prompt[position] || score != c->score[position])
        world_fail(w, "client %u is told something else of token %u of its prompt", i, position);
    c->n_scored++;
}

void client_token(struct world *w, uint64_t tag, int32_t token, uint32_t index) {
    struct client *c = client_of(w, tag);
    if (!c) {
        world_fail(w, "a token for nobody (tag %llu)", (unsigned long long)tag);
        return;
    }
    uint32_t i = (uint32_t)(c - w->client);
    world_say(w, NOBODY, "client %u gets token %u: %d", i, index, token);
    if (c->cancelled) world_fail(w, "client %u gets a token after it cancelled", i);
    if (c->scores && c->n_scored + 1 != c->n_prompt)
        world_fail(w, "client %u gets a token, and was told of %u of its %u prompt tokens", i,
                   c->n_scored + 1, c->n_prompt);
    if (index != c->n_got) world_fail(w, "client %u gets token %u, and waits for %u", i, index, c->n_got);
    else if (index >= c->n_expected) world_fail(w, "client %u gets more tokens than there are", i);
    else if (token != c->expected[index])
        world_fail(w, "client %u, token %u: %d instead of %d", i, index, token, c->expected[index]);
    if (c->n_got++ == 0) c->first_at = w->now;
    else c->gap_max = MAX(c->gap_max, w->now - c->last_at);
    c->last_at = w->now;
}

/* Which ends are right: complete; cancelled by itself; too long; its own deadline; and, when things were
 * broken, an error that says so. */
static bool end_is_right(const struct world *w, const struct client *c, int code) {
    if (code == 0) return c->n_got == c->n_expected;
    if (code == ERR_CANCELLED) return c->cancelled;
    if (code == ERR_LIMIT) return c->long_one;
    if (c->strict) return false;
    if (code == ERR_TIMEOUT && c->deadline_ms) return true;
    bool broken = false;
    for (int f = FAULT_CLOG; f < FAULTS; f++) broken |= w->fault[f];
    return broken && (code == ERR_PEER || code == ERR_TIMEOUT || code == ERR_DEVICE || code == ERR_CORRUPT ||
                      (code == ERR_INTERNAL && w->fault[FAULT_COMPUTE]));
}

void client_over(struct world *w, uint64_t tag, int code, uint32_t n_cached) {
    struct client *c = client_of(w, tag);
    if (!c) {
        world_fail(w, "an end for nobody (tag %llu)", (unsigned long long)tag);
        return;
    }
    uint32_t i = (uint32_t)(c - w->client);
    if (w->stopping && code == ERR_CANCELLED) return;     /* it asks again when the coordinator is gone */
    const char *how = code ? err_name(code) : "complete";
    world_say(w, NOBODY, "client %u is over: %s after %u of %u tokens, %u of the prompt were there", i, how,
              c->n_got, c->n_expected, n_cached);
    if (n_cached >= c->n_prompt) world_fail(w, "client %u: all of the prompt was there", i);
    if (code == ERR_BUSY) {                       /* as a client would: again, later */
        c->state = CLIENT_IDLE;
        world_post(w, (struct ev){ .t = w->now + 700 * MS, .kind = EV_CLIENT, .arg = i });
        return;
    }
    if (!end_is_right(w, c, code))
        world_fail(w, "client %u ends with %s after %u of %u tokens", i, how, c->n_got, c->n_expected);
    c->state = CLIENT_DONE;
    c->code = code;
    w->n_done++;
    if (code == 0 || code == ERR_CANCELLED) perhaps_go_on(w, c);
}

/* Requests die with the coordinator; clients ask again. */
void clients_coordinator_gone(struct world *w) {
    for (uint32_t i = 0; i < w->n_client; i++) {
        struct client *c = &w->client[i];
        c->handle = (struct handle){ 0 };         /* of a process that is gone, with its cancellations */
        c->cancelled = c->cancelled && c->state != CLIENT_WAITS;
        if (c->state != CLIENT_WAITS) continue;
        c->state = CLIENT_IDLE;
        world_post(w, (struct ev){ .t = w->now + 1000 * MS, .kind = EV_CLIENT, .arg = i });
    }
}
