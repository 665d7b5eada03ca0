/* fetch - see the header. A piece's state is a byte: PIECE_WAITING, PIECE_DONE, or between them how many
 * were asked for it. Each source looks for its next piece from a place of its own, before which nothing
 * waits that it has; a piece that waits again moves those places back. */
#include "node/fetch.h"

#include "common/base/check.h"

#include <stdio.h>
#include <stdlib.h>

#include "common/base/banned.h"

static const uint64_t MS_NS = 1000000;

enum { PIECE_WAITING = 0, PIECE_ASKED = 1, PIECE_ASKED_TWICE = 2, PIECE_STORING = 3, PIECE_DONE = 4 };

static void fail(struct fetch *f, int code, const char *text) {
    if (f->code < 0) return;
    f->code = code;
    snprintf(f->text, sizeof f->text, "%s", text);
}

void fetch_end(struct fetch *f) {
    free(f->state);
    f->state = NULL;
    f->piece = NULL;
    f->n = f->n_done = f->n_way = 0;
    memset(f->way, 0, sizeof f->way);
}

void fetch_begin(struct fetch *f, uint64_t model_lo, uint64_t model_hi,
                 const struct fetch_piece *piece, uint32_t n, enum fetch_from from, uint64_t now_ns) {
    fetch_end(f);
    f->single = from != FETCH_FROM_ANY;
    f->torn = false;
    if (from != FETCH_FROM_SAME) f->pinned = -1;
    f->model_lo = model_lo;
    f->model_hi = model_hi;
    f->piece = piece;
    f->n = n;
    f->state = xcalloc(n, sizeof *f->state);
    f->id_first = f->id_next;
    f->now_ns = now_ns;
    f->alone_ns = f->bytes_done = 0;
    f->code = 0;
    f->text[0] = 0;
    for (struct fetch_source *s = f->source; s < f->source + MSG_SOURCES_MAX; s++) {
        s->n_way = s->next = 0;
        s->wait_until_ns = 0;
        if (!s->window) s->window = 2;
    }
}

/* ---- sources ---- */

static void take_parts(struct fetch_source *s, const struct msg_source *what) {
    for (uint32_t l = 0; l < MSG_LAYERS_MAX; l++) s->has[l] = what->layers[l / 8] >> (l % 8) & 1;
    s->has[FETCH_PART_EMBED] = what->has_embed;
    s->has[FETCH_PART_HEAD] = what->has_head;
    s->has[FETCH_PART_REST] = what->has_rest;
    s->has[FETCH_PART_HEADER] = what->has_header;
}

static bool may_have(const struct fetch_source *s, uint32_t part) {
    return s->known && s->has[part] && !s->lacks[part] && !s->given_up;
}

static void wait_again(struct fetch *f, uint32_t piece) {
    f->state[piece] = PIECE_WAITING;
    for (struct fetch_source *s = f->source; s < f->source + MSG_SOURCES_MAX; s++)
        s->next = MIN(s->next, piece);
}

/* The way is over; its piece waits again unless somebody else has it on the way, or it came. */
static void way_end(struct fetch *f, struct fetch_way *w, bool again) {
    if (again && !w->storing && f->state[w->piece] == PIECE_ASKED_TWICE) f->state[w->piece] = PIECE_ASKED;
    else if (again) wait_again(f, w->piece);
    f->source[w->source].n_way--;
    f->n_way--;
    w->used = false;
}

static void lose_ways(struct fetch *f, uint32_t source) {
    if (f->single && f->pinned == (int)source) f->torn = true;
    for (struct fetch_way *w = f->way; w < f->way + FETCH_WINDOW_MAX; w++)
        if (w->used && !w->storing && w->source == source) way_end(f, w, true);
}

void fetch_source_set(struct fetch *f, uint32_t source, const struct msg_source *what, uint64_t now_ns) {
    struct fetch_source *s = &f->source[source];
    CHECK(source < MSG_SOURCES_MAX);
    f->now_ns = now_ns;
    if (!what) {
        lose_ways(f, source);
        s->known = s->up = false;
        return;
    }
    if (!s->known) *s = (struct fetch_source){ .known = true, .n_way = s->n_way, .window = 2 };
    take_parts(s, what);
    s->next = 0;
}

void fetch_source_up(struct fetch *f, uint32_t source, bool up, uint64_t now_ns) {
    struct fetch_source *s = &f->source[source];
    f->now_ns = now_ns;
    if (!s->known) return;
    lose_ways(f, source);
    s->up = up;
    s->heard_ns = now_ns;
    s->wait_until_ns = 0;
    s->window = 2;
    s->each_ns = 0;
    s->n_paced = s->n_silent = s->n_damaged = 0;
    if (up) s->given_up = false;
}

static void give_up(struct fetch *f, uint32_t source, int code, const char *text) {
    bool left = false;
    lose_ways(f, source);
    f->source[source].given_up = true;
    for (uint32_t i = 0; i < MSG_SOURCES_MAX; i++) left |= f->source[i].known && !f->source[i].given_up;
    if (!left) fail(f, code, text);
}

/* ---- questions ---- */

static struct fetch_way *way_free(struct fetch *f) {
    for (uint32_t i = 0; i < FETCH_WINDOW_MAX; i++)
        if (!f->way[i].used) return &f->way[i];
    return NULL;
}

static bool find_waiting(const struct fetch *f, struct fetch_source *s, uint32_t *piece) {
    for (; s->next < f->n; s->next++) {
        if (f->state[s->next] != PIECE_WAITING || !may_have(s, f->piece[s->next].part)) continue;
        *piece = s->next;
        return true;
    }
    return false;
}

/* What another source has for so long that it may never come. */
static bool find_late(const struct fetch *f, uint32_t source, uint32_t *piece) {
    const struct fetch_way *late = NULL;
    for (const struct fetch_way *w = f->way; w < f->way + FETCH_WINDOW_MAX; w++) {
        bool fits = w->used && !w->storing && w->source != source && f->state[w->piece] == PIECE_ASKED &&
                    f->now_ns >= w->asked_ns + FETCH_LATE_MS * MS_NS &&
                    may_have(&f->source[source], f->piece[w->piece].part);
        if (fits && (!late || w->asked_ns < late->asked_ns)) late = w;
    }
    if (late) *piece = late->piece;
    return late != NULL;
}

static bool has_room(struct fetch *f, uint32_t source) {
    struct fetch_source *s = &f->source[source];
    if (f->single && f->pinned >= 0 && f->pinned != (int)source) return false;
    if (s->wait_until_ns && f->now_ns >= s->wait_until_ns) s->wait_until_ns = 0;
    return s->known && s->up && !s->given_up && !s->wait_until_ns && s->n_way < s->window;
}

/* When it would answer one more; of one that is not known yet, at once. */
static uint64_t expected_ns(const struct fetch_source *s) {
    return (s->n_way + 1) * MAX(s->each_ns, UINT64_C(1));
}

/* The one that will be first, of those that have something for us; the first in the list of equals. */
static bool choose(struct fetch *f, uint32_t *source, uint32_t *piece) {
    bool found = false;
    for (uint32_t i = 0; i < MSG_SOURCES_MAX; i++) {
        struct fetch_source *s = &f->source[i];
        uint32_t p;
        if (!has_room(f, i) || (found && expected_ns(s) >= expected_ns(&f->source[*source]))) continue;
        if (!find_waiting(f, s, &p)) continue;
        found = true;
        *source = i;
        *piece = p;
    }
    for (uint32_t i = 0; i < MSG_SOURCES_MAX && !found; i++) {
        if (!has_room(f, i) || !find_late(f, i, piece)) continue;
        found = true;
        *source = i;
        f->odds.twice++;
    }
    return found;
}

/* Somebody is there who has what waits, or what is on its way will do. */
static bool is_alone(const struct fetch *f) {
    uint32_t i = 0;
    if (f->n_way || f->n_done == f->n) return false;
    while (i < f->n && f->state[i] != PIECE_WAITING) i++;
    for (const struct fetch_source *s = f->source; s < f->source + MSG_SOURCES_MAX && i < f->n; s++)
        if (s->up && may_have(s, f->piece[i].part)) return false;
    return true;
}

bool fetch_next(struct fetch *f, uint32_t *source, struct msg_weights_get *out, uint64_t now_ns) {
    uint32_t i = 0;
    f->now_ns = now_ns;
    if (f->code < 0 || f->torn) return false;
    if (f->n_way == FETCH_WINDOW_MAX || !choose(f, source, &i)) {
        if (!is_alone(f)) f->alone_ns = 0;
        else if (!f->alone_ns) f->alone_ns = now_ns;
        return false;
    }
    struct fetch_source *s = &f->source[*source];
    struct fetch_way *w = way_free(f);
    CHECK(w);
    f->alone_ns = 0;
    if (f->pinned < 0) f->pinned = (int)*source;
    f->n_way++;
    f->state[i] = f->state[i] == PIECE_WAITING ? PIECE_ASKED : PIECE_ASKED_TWICE;
    if (s->n_way++ == 0) s->heard_ns = now_ns;     /* nothing was expected until now */
    *w = (struct fetch_way){ .used = true, .source = (uint8_t)*source, .id = ++f->id_next, .piece = i,
                             .asked_ns = now_ns };
    const struct fetch_piece *p = &f->piece[i];
    *out = (struct msg_weights_get){ .model_lo = f->model_lo, .model_hi = f->model_hi, .name = p->name,
                                     .offset = p->offset, .id = w->id, .tensor = p->tensor,
                                     .bytes = p->bytes };
    return true;
}

/* ---- answers ---- */

/* One step per window of answers: what a step did shows only in the answers after those. */
static void pace(struct fetch_source *s, uint64_t took_ns, uint64_t since_last_ns) {
    uint64_t each = MAX(MIN(took_ns, since_last_ns), UINT64_C(1));
    s->each_ns = s->each_ns ? (3 * s->each_ns + each) / 4 : each;
    if (++s->n_paced < s->window) return;
    s->n_paced = 0;
    if (took_ns > FETCH_SLOW_MS * MS_NS) s->window -= s->window > 1;
    else s->window += s->window < FETCH_WINDOW_MAX;
}

/* All that are known have said themselves that they do not have it, or are given up. */
static bool nobody_has(const struct fetch *f, uint32_t part) {
    bool known = false;
    for (const struct fetch_source *s = f->source; s < f->source + MSG_SOURCES_MAX; s++) {
        if (!s->known) continue;
        if (!s->given_up && !s->lacks[part]) return false;
        known = true;
    }
    return known;
}

static void refused(struct fetch *f, struct fetch_way *w, int code) {
    struct fetch_source *s = &f->source[w->source];
    uint32_t part = f->piece[w->piece].part;
    char text[MSG_TEXT_MAX];
    way_end(f, w, true);
    if (code == ERR_BUSY) {
        f->odds.busy++;
        s->wait_until_ns = f->now_ns + FETCH_BUSY_MS * MS_NS;
        return;
    }
    s->lacks[part] = true;
    if (f->single) f->torn = true;
    snprintf(text, sizeof text, "the source of the weights says: %s", err_text(code));
    if (nobody_has(f, part)) fail(f, code, text);
}

/* By its number; an answer to an earlier question for the same piece does as well. */
static struct fetch_way *way_of(struct fetch *f, uint32_t source, const struct msg_weights *m) {
    struct fetch_way *same = NULL;
    if (m->id <= f->id_first || m->id > f->id_next) return NULL;       /* of an older list */
    for (struct fetch_way *w = f->way; w < f->way + FETCH_WINDOW_MAX; w++) {
        if (!w->used || w->storing || w->source != source) continue;
        const struct fetch_piece *p = &f->piece[w->piece];
        if (w->id == m->id) return w;
        if (m->code >= 0 && p->tensor == m->tensor && p->offset == m->offset) same = w;
    }
    return same;
}

/* Others that were asked for the same piece need not answer any more. */
static void end_others(struct fetch *f, const struct fetch_way *came) {
    for (struct fetch_way *w = f->way; w < f->way + FETCH_WINDOW_MAX; w++)
        if (w->used && w != came && w->piece == came->piece) way_end(f, w, false);
}

bool fetch_on_answer(struct fetch *f, uint32_t source, const struct msg_weights *m, uint32_t *piece,
                     uint64_t now_ns) {
    struct fetch_source *s = &f->source[source];
    struct fetch_way *w = f->code < 0 ? NULL : way_of(f, source, m);
    uint64_t heard_ns = s->heard_ns;
    f->now_ns = s->heard_ns = now_ns;
    if (!w) {
        f->odds.late++;
        return false;
    }
    const struct fetch_piece *p = &f->piece[w->piece];
    s->n_silent = 0;
    if (m->code < 0) {
        refused(f, w, m->code);
        return false;
    }
    if (m->tensor != p->tensor || m->offset != p->offset) {
        give_up(f, source, ERR_PEER, "the source of the weights answers what was not asked");
        return false;
    }
    pace(s, now_ns - w->asked_ns, now_ns - heard_ns);
    end_others(f, w);
    w->storing = true;
    f->state[w->piece] = PIECE_STORING;
    *piece = w->piece;
    return true;
}

void fetch_stored(struct fetch *f, uint32_t piece, int code, const char *text) {
    struct fetch_way *w = f->way;
    while (w < f->way + FETCH_WINDOW_MAX && !(w->used && w->storing && w->piece == piece)) w++;
    if (w == f->way + FETCH_WINDOW_MAX) return;    /* of a list that was given up */
    uint32_t source = w->source;
    struct fetch_source *s = &f->source[source];
    if (code == ERR_CORRUPT) {
        f->odds.damaged++;
        way_end(f, w, true);
        if (++s->n_damaged >= FETCH_DAMAGED_MAX) give_up(f, source, code, text);
        return;
    }
    if (code < 0) {
        fail(f, code, text);
        return;
    }
    s->n_damaged = 0;
    s->bytes += f->piece[piece].bytes;
    f->n_done++;
    f->bytes_done += f->piece[piece].bytes;
    f->state[piece] = PIECE_DONE;
    way_end(f, w, false);
}

/* ---- time ---- */

static bool is_waiting(const struct fetch *f, uint32_t source) {
    for (uint32_t i = 0; i < FETCH_WINDOW_MAX; i++)
        if (f->way[i].used && !f->way[i].storing && f->way[i].source == source) return true;
    return false;
}

/* Nothing came for long: whatever is on its way is lost, or comes late and finds nobody. */
static void source_is_silent(struct fetch *f, uint32_t source) {
    struct fetch_source *s = &f->source[source];
    if (++s->n_silent >= FETCH_SILENT_MAX) {
        give_up(f, source, ERR_TIMEOUT, "the source of the weights is silent");
        return;
    }
    f->odds.silent++;
    lose_ways(f, source);
    s->heard_ns = f->now_ns;
    s->window = 1;
}

void fetch_on_tick(struct fetch *f, uint64_t now_ns) {
    f->now_ns = now_ns;
    for (uint32_t i = 0; i < MSG_SOURCES_MAX && f->code == 0; i++)
        if (is_waiting(f, i) && now_ns >= f->source[i].heard_ns + FETCH_SILENT_MS * MS_NS)
            source_is_silent(f, i);
    if (f->code == 0 && f->alone_ns && now_ns >= f->alone_ns + FETCH_ALONE_MS * MS_NS)
        fail(f, ERR_NOTFOUND, "no machine that is here has what is missing of the model");
}

/* When a late piece is worth a second question; there has to be another source. */
static uint64_t late_deadline(const struct fetch *f) {
    uint64_t d = UINT64_MAX;
    uint32_t n_up = 0;
    for (uint32_t i = 0; i < MSG_SOURCES_MAX; i++) n_up += f->source[i].up && !f->source[i].given_up;
    for (const struct fetch_way *w = f->way; w < f->way + FETCH_WINDOW_MAX && n_up > 1; w++) {
        uint64_t late = w->asked_ns + FETCH_LATE_MS * MS_NS;
        if (w->used && !w->storing && late > f->now_ns) d = MIN(d, late);
    }
    return d;
}

uint64_t fetch_deadline_ns(const struct fetch *f) {
    if (f->code < 0) return UINT64_MAX;
    uint64_t d = late_deadline(f);
    for (uint32_t i = 0; i < MSG_SOURCES_MAX; i++) {
        const struct fetch_source *s = &f->source[i];
        if (is_waiting(f, i)) d = MIN(d, s->heard_ns + FETCH_SILENT_MS * MS_NS);
        if (s->known && s->up && s->wait_until_ns > f->now_ns && f->n_done < f->n)
            d = MIN(d, s->wait_until_ns);
    }
    return f->alone_ns ? MIN(d, f->alone_ns + FETCH_ALONE_MS * MS_NS) : d;
}
