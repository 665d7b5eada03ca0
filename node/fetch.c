#include "node/fetch.h"

#include "common/base/check.h"

#include <stdio.h>

#include "common/base/banned.h"

static const uint64_t MS_NS = 1000000;

static void fail(struct fetch *f, int code, const char *text) {
    if (f->code < 0) return;
    f->code = code;
    snprintf(f->text, sizeof f->text, "%s", text);
}

void fetch_begin(struct fetch *f, uint64_t model_lo, uint64_t model_hi,
                 const struct fetch_piece *piece, uint32_t n, uint64_t now_ns) {
    uint32_t id = f->id_next, window = f->window;
    *f = (struct fetch){ .model_lo = model_lo, .model_hi = model_hi, .piece = piece, .n = n,
                         .window = window ? window : 2, .id_next = id, .heard_ns = now_ns };
}

/* ---- questions ---- */

static struct fetch_way *way_free(struct fetch *f) {
    for (uint32_t i = 0; i < FETCH_WINDOW_MAX; i++)
        if (!f->way[i].used) return &f->way[i];
    return NULL;
}

static bool take_piece(struct fetch *f, uint32_t *piece) {
    if (f->n_again) {
        *piece = f->again[0];
        memmove(f->again, f->again + 1, --f->n_again * sizeof f->again[0]);
        return true;
    }
    if (f->next == f->n) return false;
    *piece = f->next++;
    return true;
}

bool fetch_next(struct fetch *f, struct msg_weights_get *out, uint64_t now_ns) {
    uint32_t i;
    if (f->code < 0 || now_ns < f->wait_until_ns || f->n_way >= f->window || !take_piece(f, &i)) return false;
    struct fetch_way *w = way_free(f);
    CHECK(w);
    if (f->n_way++ == 0) f->heard_ns = now_ns;     /* nothing was expected until now */
    *w = (struct fetch_way){ .used = true, .id = ++f->id_next, .piece = i, .asked_ns = now_ns };
    const struct fetch_piece *p = &f->piece[i];
    *out = (struct msg_weights_get){ .model_lo = f->model_lo, .model_hi = f->model_hi, .offset = p->offset,
                                     .id = w->id, .tensor = p->tensor, .bytes = p->bytes };
    return true;
}

static void way_end(struct fetch *f, struct fetch_way *w, bool again) {
    if (again) f->again[f->n_again++] = w->piece;  /* no more than there are places */
    w->used = false;
    f->n_way--;
}

/* ---- answers ---- */

/* One step per window of answers: what a step did shows only in the answers after those. */
static void pace(struct fetch *f, uint64_t took_ns) {
    if (++f->n_paced < f->window) return;
    f->n_paced = 0;
    if (took_ns > FETCH_SLOW_MS * MS_NS) f->window -= f->window > 1;
    else f->window += f->window < FETCH_WINDOW_MAX;
}

static void refused(struct fetch *f, struct fetch_way *w, int code, uint64_t now_ns) {
    char text[MSG_TEXT_MAX];
    if (code == ERR_BUSY) {
        f->odds.busy++;
        f->wait_until_ns = now_ns + FETCH_BUSY_MS * MS_NS;
        way_end(f, w, true);
        return;
    }
    snprintf(text, sizeof text, "the source of the weights says: %s", err_text(code));
    fail(f, code, text);
}

/* By its number; an answer to an earlier question for the same piece does as well. */
static struct fetch_way *way_of(struct fetch *f, const struct msg_weights *m) {
    struct fetch_way *same = NULL;
    for (struct fetch_way *w = f->way; w < f->way + FETCH_WINDOW_MAX; w++) {
        const struct fetch_piece *p = &f->piece[w->piece];
        if (!w->used || w->storing) continue;
        if (w->id == m->id) return w;
        if (m->code >= 0 && p->tensor == m->tensor && p->offset == m->offset) same = w;
    }
    return same;
}

bool fetch_on_answer(struct fetch *f, const struct msg_weights *m, uint32_t *piece, uint64_t now_ns) {
    struct fetch_way *w = f->code < 0 ? NULL : way_of(f, m);
    if (!w) {
        f->odds.late++;
        return false;
    }
    const struct fetch_piece *p = &f->piece[w->piece];
    f->heard_ns = now_ns;
    f->n_silent = 0;
    if (m->code < 0) {
        refused(f, w, m->code, now_ns);
        return false;
    }
    if (m->tensor != p->tensor || m->offset != p->offset) {
        fail(f, ERR_PEER, "the source of the weights answers what was not asked");
        return false;
    }
    pace(f, now_ns - w->asked_ns);
    w->storing = true;
    *piece = w->piece;
    return true;
}

void fetch_stored(struct fetch *f, uint32_t piece, int code, const char *text) {
    struct fetch_way *w = f->way;
    while (w < f->way + FETCH_WINDOW_MAX && !(w->used && w->storing && w->piece == piece)) w++;
    if (w == f->way + FETCH_WINDOW_MAX) return;    /* of a list that was given up */
    if (code == ERR_CORRUPT && ++f->n_damaged < FETCH_DAMAGED_MAX) {
        f->odds.damaged++;
        way_end(f, w, true);
        return;
    }
    if (code < 0) {
        fail(f, code, text);
        return;
    }
    f->n_damaged = 0;
    f->n_done++;
    f->bytes_done += f->piece[piece].bytes;
    way_end(f, w, false);
}

/* ---- time ---- */

static bool is_waiting(const struct fetch *f) {
    for (uint32_t i = 0; i < FETCH_WINDOW_MAX; i++)
        if (f->way[i].used && !f->way[i].storing) return true;
    return false;
}

void fetch_lost(struct fetch *f, uint64_t now_ns) {
    for (uint32_t i = 0; i < FETCH_WINDOW_MAX; i++)
        if (f->way[i].used && !f->way[i].storing) way_end(f, &f->way[i], true);
    f->heard_ns = now_ns;
}

/* Nothing came for long: whatever is on its way is lost, or comes late and finds nobody. */
void fetch_on_tick(struct fetch *f, uint64_t now_ns) {
    if (f->code < 0 || !is_waiting(f) || now_ns < f->heard_ns + FETCH_SILENT_MS * MS_NS) return;
    if (++f->n_silent >= FETCH_SILENT_MAX) {
        fail(f, ERR_TIMEOUT, "the source of the weights is silent");
        return;
    }
    f->odds.silent++;
    fetch_lost(f, now_ns);
    f->window = 1;
}

uint64_t fetch_deadline_ns(const struct fetch *f) {
    if (f->code < 0) return UINT64_MAX;
    uint64_t silent = is_waiting(f) ? f->heard_ns + FETCH_SILENT_MS * MS_NS : UINT64_MAX;
    bool more = f->n_again || f->next < f->n;
    uint64_t busy = more && f->n_way < f->window && f->wait_until_ns ? f->wait_until_ns : UINT64_MAX;
    return MIN(silent, busy);
}
