#include "coordinator/sequence.h"

#include "coordinator/core_private.h"

#include "common/base/check.h"
#include "common/base/mark.h"
#include "common/base/plant.h"
#include "common/base/sm.h"

#include "common/base/banned.h"

static const struct sm_state states[SQ_STATES] = {
    [SQ_GONE] = { "gone", SM_BIT(SQ_OWNED) },
    [SQ_OWNED] = { "owned", SM_BIT(SQ_CLOSING) | SM_BIT(SQ_GONE) },    /* GONE: the plan is over */
    [SQ_CLOSING] = { "closing", SM_BIT(SQ_PARKED) | SM_BIT(SQ_GONE) },
    [SQ_PARKED] = { "parked", SM_BIT(SQ_OWNED) | SM_BIT(SQ_GONE) },
};
static const struct sm_table seq_table = { "sequence", states, SQ_STATES };

static void set_state(struct coord *c, struct seq *s, enum seq_state to) {
    sm_move(&seq_table, &s->state, (int)to, s->id, &c->config.trace);
}

void sequences_init(struct coord *c) {
    c->sequences = (struct sequences){ .seq = xcalloc(MSG_SEQS_MAX, sizeof *c->sequences.seq), .next = 1 };
}

void sequences_deinit(struct coord *c) {
    for (uint32_t i = 0; i < c->sequences.n; i++) free(c->sequences.seq[i].token);
    free(c->sequences.seq);
}

struct seq *seq_find(struct coord *c, uint64_t id) {
    struct sequences *q = &c->sequences;
    uint32_t lo = 0, hi = q->n;
    while (lo < hi) {
        uint32_t mid = lo + (hi - lo) / 2;
        if (q->seq[mid].id < id) lo = mid + 1;
        else hi = mid;
    }
    return lo < q->n && q->seq[lo].id == id ? &q->seq[lo] : NULL;
}

static void reserve(struct coord *c, struct seq *s, uint32_t n_tokens) {
    c->sequences.tokens_reserved += n_tokens;
    c->sequences.tokens_reserved -= s->n_reserved;
    s->n_reserved = n_tokens;
}

/* Numbers rise, so the newest is the last. */
uint64_t seq_open(struct coord *c, uint32_t request, uint32_t n_reserved) {
    struct sequences *q = &c->sequences;
    CHECK(q->n < MSG_SEQS_MAX);
    struct seq *s = &q->seq[q->n++];
    *s = (struct seq){ .state = SQ_GONE, .id = q->next++, .request = request };
    set_state(c, s, SQ_OWNED);
    reserve(c, s, n_reserved);
    return s->id;
}

/* Whether it counts among those that may be given up. */
static void count_parked(struct coord *c, const struct seq *s, bool parked) {
    struct sequences *q = &c->sequences;
    if (parked) q->n_parked++, q->tokens_parked += s->n_reserved;
    else q->n_parked--, q->tokens_parked -= s->n_reserved;
}

static void unpark(struct coord *c, struct seq *s) {
    if (s->n_copying == 0) count_parked(c, s, false);
    free(s->token);
    s->token = NULL;
}

static void seq_remove(struct coord *c, struct seq *s) {
    struct sequences *q = &c->sequences;
    if (s->state == SQ_PARKED) unpark(c, s);
    set_state(c, s, SQ_GONE);
    reserve(c, s, 0);
    free(s->token);
    q->n--;
    memmove(s, s + 1, (size_t)(&q->seq[q->n] - s) * sizeof *s);
    c->pipeline.sync_dirty = true;
}

void sequences_drop_all(struct coord *c) {
    struct sequences *q = &c->sequences;
    while (q->n) seq_remove(c, &q->seq[q->n - 1]);
    CHECK(q->tokens_reserved == 0 && q->tokens_parked == 0 && q->n_parked == 0);
}

/* ---- room ---- */

bool sequences_have_room(const struct coord *c, uint32_t n_reserved, bool *slot_missing) {
    const struct sequences *q = &c->sequences;
    *slot_missing = q->n - q->n_parked >= c->cluster.n_slot;
    return !*slot_missing &&
           q->tokens_reserved - q->tokens_parked + n_reserved <= c->cluster.state_tokens_max;
}

/* The parked one that has not been used for longest; `but` only when there is no other. */
static struct seq *oldest_parked(struct coord *c, uint64_t but) {
    struct sequences *q = &c->sequences;
    struct seq *oldest = NULL;
    for (uint32_t i = 0; i < q->n; i++) {
        struct seq *s = &q->seq[i];
        if (s->state != SQ_PARKED || s->n_copying) continue;
        if (!oldest || oldest->id == but || (s->id != but && s->used < oldest->used)) oldest = s;
    }
    return oldest;
}

static void give_up(struct coord *c, struct seq *s) {
    c->sequences.n_given_up++;
    seq_remove(c, s);
}

void sequences_make_room(struct coord *c, struct seq_match match, uint32_t n_reserved) {
    struct sequences *q = &c->sequences;
    for (;;) {
        struct seq *taken = match.id ? seq_find(c, match.id) : NULL;
        uint64_t tokens = q->tokens_reserved - (taken ? taken->n_reserved : 0) + n_reserved;
        if (q->n - (taken != NULL) < c->cluster.n_slot && tokens <= c->cluster.state_tokens_max) return;
        struct seq *oldest = oldest_parked(c, match.id);
        CHECK(oldest && oldest != taken);         /* sequences_have_room() has counted */
        MARK(seq_given_up);
        give_up(c, oldest);
    }
}

/* ---- parked ones ---- */

static uint32_t common_prefix(const int32_t *a, uint32_t n_a, const int32_t *b, uint32_t n_b) {
    uint32_t n = MIN(n_a, n_b), i = 0;
    while (i < n && a[i] == b[i]) i++;
    return i;
}

struct seq_match seq_match(struct coord *c, const int32_t *token, uint32_t n_token) {
    struct seq_match best = { 0 };
    uint64_t used = 0;
    for (uint32_t i = 0; i < c->sequences.n; i++) {
        const struct seq *s = &c->sequences.seq[i];
        if (s->state != SQ_PARKED) continue;
        uint32_t pos0 = common_prefix(s->token, s->n_held, token, n_token);
        if (PLANT(prefix_unchecked)) pos0 = MIN(pos0 + 1, s->n_held);
        pos0 = MIN(pos0, n_token - 1);
        bool possible = pos0 == s->n_held || s->n_sent_max - pos0 <= MSG_ROLLBACK;
        if (!possible || pos0 == 0 || pos0 < best.pos0 || (pos0 == best.pos0 && s->used < used)) continue;
        best = (struct seq_match){ s->id, pos0 };
        used = s->used;
    }
    return best;
}

void seq_take(struct coord *c, uint64_t id, uint32_t request, uint32_t n_reserved) {
    struct seq *s = seq_find(c, id);
    CHECK(s->n_copying == 0);
    MARK(seq_taken_over);
    unpark(c, s);
    set_state(c, s, SQ_OWNED);
    reserve(c, s, n_reserved);
    s->request = request;
    s->is_prompt = false;
}

/* All that was sent is known to be in: what a stage holds is what we think. */
static void park(struct coord *c, struct seq *s) {
    struct sequences *q = &c->sequences;
    s->token = xrealloc(s->token, s->n_held * sizeof *s->token);
    s->used = q->used_next++;
    set_state(c, s, SQ_PARKED);
    reserve(c, s, s->n_sent_max);
    if (s->n_copying == 0) count_parked(c, s, true);
    if (q->n_parked > c->config.n_park_max) give_up(c, oldest_parked(c, 0));
}

static void seq_over(struct coord *c, struct seq *s) {
    if (s->token && s->n_held == s->n_sent && s->n_held > 0) park(c, s);
    else seq_remove(c, s);
}

void seq_leave(struct coord *c, struct seq *s, const struct seq_rest *rest) {
    set_state(c, s, SQ_CLOSING);
    if (rest && c->config.n_park_max > 0) {
        s->token = rest->take_token;
        s->n_sent = rest->n_sent;
        s->n_held = rest->n_held;
        s->n_sent_max = rest->n_sent_max;
    } else if (rest) {
        free(rest->take_token);
    }
    if (s->n_flying == 0) seq_over(c, s);
}

void seq_flight_over(struct coord *c, struct seq *s) {
    if (s->n_flying == 0) seq_over(c, s);
}

/* ---- copies ---- */

uint64_t seq_fork(struct coord *c, struct seq *s, const struct seq_rest *rest) {
    bool slot_missing;
    uint64_t id = s->id;
    if (!sequences_have_room(c, rest->n_sent_max, &slot_missing)) return 0;
    sequences_make_room(c, (struct seq_match){ 0 }, rest->n_sent_max);
    s = seq_find(c, id);
    uint64_t copy = seq_open(c, s->request, s->n_reserved);
    MARK(seq_forked);
    s = seq_find(c, id);
    s->is_prompt = true;
    s->n_copying++;
    reserve(c, s, rest->n_sent_max);
    seq_leave(c, s, rest);
    return copy;
}

uint64_t seq_copy(struct coord *c, uint64_t source, uint32_t request, uint32_t n_reserved) {
    struct seq *s = seq_find(c, source);
    bool slot_missing;
    if (!s->is_prompt) return 0;
    if (s->n_copying++ == 0) count_parked(c, s, false);
    if (!sequences_have_room(c, n_reserved, &slot_missing)) {
        seq_copied(c, source);
        return 0;
    }
    MARK(seq_copied);
    s->used = c->sequences.used_next++;
    sequences_make_room(c, (struct seq_match){ 0 }, n_reserved);
    return seq_open(c, request, n_reserved);
}

void seq_copied(struct coord *c, uint64_t source) {
    struct seq *s = seq_find(c, source);
    CHECK(s && s->n_copying > 0);
    if (--s->n_copying == 0 && s->state == SQ_PARKED) count_parked(c, s, true);
    if (c->sequences.n_parked > c->config.n_park_max) give_up(c, oldest_parked(c, 0));
}

/* ---- for tests ---- */

void sequences_check(const struct coord *c) {
    const struct sequences *q = &c->sequences;
    uint64_t reserved = 0, parked = 0;
    uint32_t n_parked = 0;
    for (uint32_t i = 0; i < q->n; i++) {
        const struct seq *s = &q->seq[i];
        CHECK(i == 0 || q->seq[i - 1].id < s->id);
        CHECK(s->state == SQ_OWNED || s->state == SQ_CLOSING || s->state == SQ_PARKED);
        CHECK(s->state != SQ_OWNED || (!s->token && c->requests.request[s->request].seq == s->id));
        CHECK(s->state != SQ_CLOSING || s->n_flying > 0);
        CHECK(s->state != SQ_PARKED || (s->token && s->n_flying == 0 && s->n_reserved == s->n_sent_max));
        reserved += s->n_reserved;
        parked += s->state == SQ_PARKED && !s->n_copying ? s->n_reserved : 0;
        n_parked += s->state == SQ_PARKED && !s->n_copying;
    }
    CHECK(reserved == q->tokens_reserved && parked == q->tokens_parked && n_parked == q->n_parked);
    CHECK(n_parked <= c->config.n_park_max);
    CHECK(c->cluster.state != CL_SERVING || q->n <= c->cluster.n_slot);
}
