/* msg_lists - the lists that a message points to, as places of pointers in it: for those who copy or
 * compare whole messages.
 *
 * Listed by hand, not from the codec's own lists: one that the codec forgets has to show. Nothing is owned
 * or allocated here, a place lives as long as its message. Header only; any thread. */
#ifndef HARNESS_MSG_LISTS_H
#define HARNESS_MSG_LISTS_H

#include "common/wire/msg.h"

enum { MSG_LISTS_MAX = 8 };

struct msg_list { const void **at; size_t bytes; };

/* How many; MSG_LISTS_MAX at most. */
static inline int msg_lists(struct msg *m, struct msg_list list[MSG_LISTS_MAX]) {
    int n = 0;
#define MSG_LIST(member, count)                                                                           \
    list[n++] = (struct msg_list){ (const void **)(void *)&(member), (size_t)(count) * sizeof *(member) }
    switch (m->kind) {
    case MSG_HELLO: MSG_LIST(m->u.hello.file, m->u.hello.n_file); break;
    case MSG_ASSIGN:
        MSG_LIST(m->u.assign.helper, m->u.assign.n_helper);
        MSG_LIST(m->u.assign.peer, m->u.assign.n_peer);
        MSG_LIST(m->u.assign.source, m->u.assign.n_source);
        break;
    case MSG_WORK:
        MSG_LIST(m->u.work.seg, m->u.work.n_seg);
        MSG_LIST(m->u.work.token, m->u.work.n_row);
        MSG_LIST(m->u.work.want, m->u.work.n_want);
        MSG_LIST(m->u.work.bias, m->u.work.n_bias);
        MSG_LIST(m->u.work.timing, m->u.work.n_timing);
        break;
    case MSG_RESULT:
        MSG_LIST(m->u.result.row, m->u.result.n_row);
        MSG_LIST(m->u.result.timing, m->u.result.n_timing);
        break;
    case MSG_SYNC:
        MSG_LIST(m->u.sync.seq, m->u.sync.n_seq);
        MSG_LIST(m->u.sync.dead, m->u.sync.n_dead);
        break;
    case MSG_LINKS: MSG_LIST(m->u.links.link, m->u.links.n_link); break;
    case MSG_FILES: MSG_LIST(m->u.files.file, m->u.files.n_file); break;
    case MSG_PEERS: MSG_LIST(m->u.peers.peer, m->u.peers.n_peer); break;
    case MSG_SURVEY: MSG_LIST(m->u.survey.hop, m->u.survey.n_hop); break;
    default: break;
    }
#undef MSG_LIST
    return n;
}

#endif
