#include "common/wire/probe.h"

static struct probe_row *row_find(struct probe_rows *rows, uint32_t link, uint32_t id) {
    struct probe_row *oldest = &rows->row[0];
    for (int i = 0; i < PROBES_MAX; i++) {
        struct probe_row *r = &rows->row[i];
        if (r->first_ns && r->link == link && r->id == id) return r;
        if (r->first_ns < oldest->first_ns) oldest = r;
    }
    *oldest = (struct probe_row){ .link = link, .id = id };
    return oldest;
}

bool probe_arrives(struct probe_rows *rows, uint32_t link, const struct msg_probe *probe, uint64_t bytes,
                   uint64_t now_ns, struct msg_probe_done *done) {
    struct probe_row *r = row_find(rows, link, probe->id);
    if (!r->first_ns) r->first_ns = MAX(now_ns, 1);
    else r->bytes += bytes;
    if (!probe->last) return false;
    *done = (struct msg_probe_done){ .id = probe->id, .bytes = r->bytes,
                                     .elapsed_us = MAX((now_ns - r->first_ns) / 1000, 1) };
    *r = (struct probe_row){ 0 };
    return true;
}
