/* dsml_out - see the header. */
#include "common/model/dsml_out.h"

#include <stdlib.h>

void dsml_out_init(struct dsml_out *o, size_t limit) {
    *o = (struct dsml_out){ .slots = NULL };
    buf_init(&o->text, limit);
}

void dsml_out_deinit(struct dsml_out *o) {
    buf_deinit(&o->text);
    free(o->slots);
    *o = (struct dsml_out){ .slots = NULL };
}

void dsml_out_clear(struct dsml_out *o) {
    o->n = o->next = 0;
    buf_clear(&o->text);
}

static void add_slot(struct dsml_out *o, enum dsml_kind kind) {
    if (o->n == o->room) {
        size_t room = o->room ? o->room * 2 : 8;
        struct dsml_slot *slots = realloc(o->slots, room * sizeof *slots);
        if (!slots) {
            o->rc = ERR_NOMEM;
            return;
        }
        o->slots = slots;
        o->room = room;
    }
    o->slots[o->n++] = (struct dsml_slot){ kind, o->call_i, o->text.size, 0 };
}

struct buf *dsml_out_begin(struct dsml_out *o, enum dsml_kind kind) {
    if (!o->n || o->slots[o->n - 1].kind != kind) add_slot(o, kind);
    return &o->text;
}

void dsml_out_end(struct dsml_out *o) {
    if (o->text.rc < 0) o->rc = o->text.rc;
    if (o->n) o->slots[o->n - 1].len = o->text.size - o->slots[o->n - 1].at;
}

void dsml_out_add(struct dsml_out *o, enum dsml_kind kind, struct chat_text text) {
    if (text.len == 0) return;
    buf_add(dsml_out_begin(o, kind), text.data, text.len);
    dsml_out_end(o);
}

void dsml_out_mark(struct dsml_out *o, enum dsml_kind kind, struct chat_text text) {
    add_slot(o, kind);
    buf_add(&o->text, text.data, text.len);
    dsml_out_end(o);
}

bool dsml_out_next(struct dsml_out *o, struct dsml_delta *d) {
    if (o->next == o->n) return false;
    const struct dsml_slot *slot = &o->slots[o->next++];
    *d = (struct dsml_delta){ slot->kind, slot->call_i, { o->text.data + slot->at, slot->len } };
    return true;
}
