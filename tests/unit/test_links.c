/* Links over zmq: what arrives, what is lost and said to be lost, who is let in. Both ends live in this
 * process, each with its own zmq context; "thread" tests give each end a loop thread of its own. */
#include "tests/harness/test.h"

#include "common/base/log.h"
#include "common/sys/clock.h"
#include "common/sys/curve.h"
#include "common/sys/keyring.h"
#include "common/sys/link.h"
#include "common/sys/link_peers.h"
#include "common/sys/loop.h"
#include "common/sys/once.h"
#include "common/sys/slots.h"
#include "common/sys/zpump.h"
#include "tests/harness/scratch.h"

#include <arpa/inet.h>
#include <pthread.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>
#include <zmq.h>

#if !defined(MSG_NOSIGNAL)
#define MSG_NOSIGNAL 0
#endif

#define MS UINT64_C(1000000)
enum { FIRST = 32, BIG = 1 << 20 };

struct side {
    struct loop *loop;
    struct net *net;
    struct slots *slots;
    struct links *links;
    struct keyring *keyring;
    bool owns_net, echo;
    uint32_t n_frame, n_closed, n_up, n_refused, link, closed;
    char header[64];
    size_t n_header;
    struct payload payload;                       /* of the last frame; the one before is given back */
    uint64_t sum;                                 /* of headers that are numbers */
};

static void on_frame(void *ctx, uint32_t link, const void *header, size_t n, struct payload p) {
    struct side *s = ctx;
    s->n_frame++;
    s->link = link;
    s->n_header = MIN(n, sizeof s->header - 1);
    memcpy(s->header, header, s->n_header);
    s->header[s->n_header] = 0;
    uint64_t number = 0;
    if (n == sizeof number) memcpy(&number, header, n);
    s->sum += number;
    if (s->echo) {
        links_send(s->links, link, header, n, p, false);
        return;
    }
    slots_give(s->slots, s->payload);
    s->payload = p;
}

static void on_closed(void *ctx, uint32_t link) {
    struct side *s = ctx;
    s->n_closed++;
    s->closed = link;
}

static void on_up(void *ctx, uint32_t link) {
    (void)link;
    ((struct side *)ctx)->n_up++;
}

static void on_refused(void *ctx, uint32_t link, const char *why) {
    (void)link;
    assert_true(strlen(why) > 0);
    ((struct side *)ctx)->n_refused++;
}

static void side_open(struct side *s, struct loop *l, struct net *net, struct keyring *k, const char *bind,
                      const struct links_config *more) {
    struct err e;
    memset(s, 0, sizeof *s);
    s->loop = l;
    s->net = net;
    s->keyring = k;
    if (!net) assert_fine(net_new(&s->net, &e), &e);
    s->owns_net = !net;
    struct slots_config slots = { .n_big = 4, .n_small = 4, .big_bytes = BIG, .small_bytes = 4096 };
    assert_fine(slots_new(&s->slots, l, &slots, &e), &e);
    if (k && bind) assert_fine(net_guard(s->net, l, k, &e), &e);
    struct links_config config = more ? *more : (struct links_config){ .redial_ms = 10 };
    config.loop = l;
    config.net = s->net;
    config.slots = s->slots;
    config.bind = bind;
    config.keyring = k;
    config.accepted_first = FIRST;
    config.on_frame = on_frame;
    config.on_closed = on_closed;
    config.on_up = on_up;
    config.on_refused = on_refused;
    config.ctx = s;
    assert_fine(links_open(&s->links, &config, &e), &e);
}

static void side_close(struct side *s) {
    slots_give(s->slots, s->payload);
    links_close(s->links);
    if (s->owns_net) net_unguard(s->net);
    if (s->owns_net) net_free(s->net);
}

/* After the contexts of all sides are gone every lease is back. */
static void side_free(struct side *s) {
    slots_free(s->slots);
}

/* ---- waiting ---- */

struct wait {
    struct loop *loop;
    struct loop_timer *timer;
    const uint32_t *counter;
    uint32_t to;
    uint64_t until_ns;
};

static void on_look(void *ctx) {
    struct wait *w = ctx;
    uint64_t now = clock_now_ns();
    if ((w->counter && *w->counter >= w->to) || now >= w->until_ns) loop_stop(w->loop);
    else loop_timer_set(w->timer, now + MS);
}

/* Runs the loop until the counter is there, or for so long. */
static bool wait_for(struct loop *l, const uint32_t *counter, uint32_t to, uint32_t ms) {
    struct wait w = { .loop = l, .counter = counter, .to = to, .until_ns = clock_now_ns() + ms * MS };
    w.timer = loop_timer_new(l, on_look, &w);
    loop_timer_set(w.timer, 0);
    loop_run(l);
    loop_timer_free(w.timer);
    return counter && *counter >= to;
}

enum { LONG_MS = 20000 };

static struct loop *new_loop(void) {
    struct loop *l;
    struct err e;
    assert_fine(loop_new(&l, &e), &e);
    return l;
}

/* A door and one link to it, up. */
struct two { struct loop *loop; struct side door, client; };

static void two_open(struct two *t) {
    struct err e;
    t->loop = new_loop();
    side_open(&t->door, t->loop, NULL, NULL, "tcp://127.0.0.1:0", NULL);
    side_open(&t->client, t->loop, NULL, NULL, NULL, NULL);
    assert_fine(links_connect(t->client.links, 1, links_address(t->door.links), NULL, &e), &e);
    assert_true(wait_for(t->loop, &t->client.n_up, 1, LONG_MS));
}

static void two_close(struct two *t) {
    side_close(&t->client);
    side_close(&t->door);
    side_free(&t->client);
    side_free(&t->door);
    loop_free(t->loop);
}

static struct payload filled(struct side *s, size_t bytes, uint8_t with) {
    struct payload p = slots_take(s->slots, bytes);
    assert_true(p.generation != 0);
    memset(slots_data(s->slots, p), with, bytes);
    return p;
}

static void settle(struct loop *l) {
    wait_for(l, NULL, 0, 60);
}

/* ---- what arrives ---- */

static void a_message_and_its_payload_arrive_and_the_slot_comes_back(void **state) {
    struct two t;
    (void)state;
    two_open(&t);
    assert_int_equal(0, links_send(t.client.links, 1, "hello", 5, filled(&t.client, 3000, 7), false));
    assert_true(wait_for(t.loop, &t.door.n_frame, 1, LONG_MS));
    assert_string_equal("hello", t.door.header);
    assert_int_equal(FIRST, t.door.link);
    assert_int_equal(3000, t.door.payload.bytes);
    const uint8_t *bytes = slots_data(t.door.slots, t.door.payload);
    assert_int_equal(7, bytes[0]);
    assert_int_equal(7, bytes[2999]);
    settle(t.loop);
    assert_int_equal(0, slots_used(t.client.slots));

    assert_int_equal(0, links_send(t.door.links, FIRST, "back", 4, (struct payload){ 0 }, false));
    assert_true(wait_for(t.loop, &t.client.n_frame, 1, LONG_MS));
    assert_string_equal("back", t.client.header);
    assert_int_equal(1, t.client.link);
    assert_int_equal(0, t.client.payload.generation);
    struct link_view v;
    assert_true(links_view(t.client.links, 1, &v));
    assert_true(v.up && v.outgoing && !v.encrypted);
    assert_int_equal(1, v.n_in);
    assert_int_equal(3005, v.bytes_out);
    assert_false(links_view(t.client.links, 2, &v));
    two_close(&t);
}

static void a_borrowed_payload_stays_with_its_owner(void **state) {
    struct two t;
    (void)state;
    two_open(&t);
    struct payload p = filled(&t.client, BIG, 3);
    assert_int_equal(0, links_send(t.client.links, 1, "a", 1, p, true));
    assert_int_equal(0, links_send(t.client.links, 1, "b", 1, p, true));
    assert_true(slots_has(t.client.slots, p));
    assert_true(wait_for(t.loop, &t.door.n_frame, 2, LONG_MS));
    assert_int_equal(BIG, t.door.payload.bytes);
    settle(t.loop);
    assert_int_equal(1, slots_used(t.client.slots));
    slots_give(t.client.slots, p);
    assert_int_equal(0, slots_used(t.client.slots));
    two_close(&t);
}

static void inproc_links_carry_the_same_frames(void **state) {
    struct loop *l = new_loop();
    struct net *net;
    struct side a, b;
    struct err e;
    (void)state;
    assert_fine(net_new(&net, &e), &e);
    side_open(&a, l, net, NULL, "inproc://stage", NULL);
    side_open(&b, l, net, NULL, NULL, NULL);
    assert_fine(links_connect(b.links, 2, "inproc://stage", "", &e), &e);
    assert_int_equal(0, links_send(b.links, 2, "work", 4, filled(&b, 5000, 1), false));
    assert_true(wait_for(l, &a.n_frame, 1, LONG_MS));
    assert_int_equal(5000, a.payload.bytes);
    assert_int_equal(0, links_send(a.links, a.link, "credit", 6, (struct payload){ 0 }, false));
    assert_true(wait_for(l, &b.n_frame, 1, LONG_MS));
    links_disconnect(b.links, 2);
    side_close(&b);
    side_close(&a);
    net_free(net);
    side_free(&a);
    side_free(&b);
    loop_free(l);
}

static void empty_header_frames_are_nothing(void **state) {
    struct two t;
    (void)state;
    two_open(&t);
    assert_int_equal(0, links_send(t.client.links, 1, "", 0, (struct payload){ 0 }, false));
    assert_int_equal(0, links_send(t.client.links, 1, "x", 1, (struct payload){ 0 }, false));
    assert_true(wait_for(t.loop, &t.door.n_frame, 1, LONG_MS));
    assert_string_equal("x", t.door.header);
    two_close(&t);
}

/* ---- what is lost ---- */

static void an_empty_payload_is_none(void **state) {
    struct two t;
    (void)state;
    two_open(&t);
    assert_int_equal(0, links_send(t.client.links, 1, "x", 1, slots_take(t.client.slots, 0), false));
    assert_true(wait_for(t.loop, &t.door.n_frame, 1, LONG_MS));
    assert_int_equal(0, t.door.payload.generation);
    assert_int_equal(0, slots_used(t.door.slots));
    two_close(&t);
}

static void what_goes_to_nobody_is_lost_and_its_payload_freed(void **state) {
    struct loop *l = new_loop();
    struct side s;
    struct err e;
    (void)state;
    side_open(&s, l, NULL, NULL, NULL, NULL);
    assert_int_equal(ERR_PEER, links_send(s.links, 5, "x", 1, filled(&s, 10, 0), false));
    assert_int_equal(ERR_PEER, links_send(s.links, FIRST, "x", 1, filled(&s, 10, 0), false));
    assert_fine(links_connect(s.links, 5, "tcp://127.0.0.1:1", NULL, &e), &e);   /* nobody listens there */
    assert_int_equal(ERR_PEER, links_send(s.links, 5, "x", 1, filled(&s, 10, 0), false));
    settle(l);
    assert_int_equal(0, slots_used(s.slots));
    assert_int_equal(0, s.n_up);
    side_close(&s);
    side_free(&s);
    loop_free(l);
}

static void a_client_that_leaves_is_reported_soon(void **state) {
    struct two t;
    (void)state;
    two_open(&t);
    links_send(t.client.links, 1, "x", 1, (struct payload){ 0 }, false);
    assert_true(wait_for(t.loop, &t.door.n_frame, 1, LONG_MS));
    uint64_t start = clock_now_ns();
    links_disconnect(t.client.links, 1);
    assert_true(wait_for(t.loop, &t.door.n_closed, 1, LONG_MS));
    assert_true(clock_now_ns() - start < 1500 * MS);
    assert_int_equal(FIRST, t.door.closed);
    assert_int_equal(ERR_PEER, links_send(t.door.links, FIRST, "x", 1, (struct payload){ 0 }, false));
    settle(t.loop);
    assert_int_equal(1, t.door.n_closed);
    two_close(&t);
}

static void a_link_dials_again_when_the_door_comes_back(void **state) {
    struct two t;
    struct err e;
    char address[LINK_ADDRESS_MAX];
    (void)state;
    two_open(&t);
    snprintf(address, sizeof address, "%s", links_address(t.door.links));
    side_close(&t.door);
    side_free(&t.door);
    settle(t.loop);
    assert_int_equal(ERR_PEER, links_send(t.client.links, 1, "x", 1, (struct payload){ 0 }, false));
    struct side *d = &t.door;
    side_open(d, t.loop, NULL, NULL, address, NULL);
    assert_true(wait_for(t.loop, &t.client.n_up, 2, LONG_MS));
    assert_int_equal(0, links_send(t.client.links, 1, "y", 1, (struct payload){ 0 }, false));
    assert_true(wait_for(t.loop, &d->n_frame, 1, LONG_MS));
    assert_string_equal("y", d->header);
    assert_fine(links_connect(t.client.links, 1, address, NULL, &e), &e);         /* the same number again */
    assert_true(wait_for(t.loop, &t.client.n_up, 3, LONG_MS));
    assert_int_equal(0, links_send(t.client.links, 1, "z", 1, (struct payload){ 0 }, false));
    assert_true(wait_for(t.loop, &d->n_frame, 2, LONG_MS));
    assert_int_equal(FIRST + 1, d->link);
    two_close(&t);
}

static void without_a_free_slot_a_message_is_lost_and_the_next_one_is_not(void **state) {
    struct two t;
    struct payload held[4];
    (void)state;
    two_open(&t);
    for (int i = 0; i < 4; i++) held[i] = slots_take(t.door.slots, BIG);
    assert_int_equal(0, links_send(t.client.links, 1, "a", 1, filled(&t.client, BIG, 1), false));
    assert_int_equal(0, links_send(t.client.links, 1, "b", 1, (struct payload){ 0 }, false));
    assert_true(wait_for(t.loop, &t.door.n_frame, 1, LONG_MS));
    assert_string_equal("b", t.door.header);
    for (int i = 0; i < 4; i++) slots_give(t.door.slots, held[i]);
    assert_int_equal(0, links_send(t.client.links, 1, "c", 1, filled(&t.client, BIG, 1), false));
    assert_true(wait_for(t.loop, &t.door.n_frame, 2, LONG_MS));
    assert_int_equal(BIG, t.door.payload.bytes);
    two_close(&t);
}

static void a_dropped_link_is_not_heard_for_a_moment_and_then_is_a_newcomer(void **state) {
    struct two t;
    (void)state;
    two_open(&t);
    links_send(t.client.links, 1, "a", 1, (struct payload){ 0 }, false);
    assert_true(wait_for(t.loop, &t.door.n_frame, 1, LONG_MS));
    links_drop(t.door.links, t.door.link);
    links_drop(t.door.links, 4711);
    links_send(t.client.links, 1, "b", 1, (struct payload){ 0 }, false);
    settle(t.loop);
    assert_int_equal(1, t.door.n_frame);
    assert_int_equal(0, t.door.n_closed);
    wait_for(t.loop, NULL, 0, LINK_QUIET_MS);
    links_send(t.client.links, 1, "c", 1, (struct payload){ 0 }, false);
    assert_true(wait_for(t.loop, &t.door.n_frame, 2, LONG_MS));
    assert_int_equal(FIRST + 1, t.door.link);
    two_close(&t);
}

/* ---- what others send ---- */

static void *raw_dealer(void *zmq, const char *address) {
    int zero = 0;
    void *s = zmq_socket(zmq, ZMQ_DEALER);
    zmq_setsockopt(s, ZMQ_LINGER, &zero, sizeof zero);
    assert_int_equal(0, zmq_connect(s, address));
    return s;
}

static void a_frame_too_many_closes_that_link_only(void **state) {
    struct two t;
    (void)state;
    two_open(&t);
    void *zmq = zmq_ctx_new(), *raw = raw_dealer(zmq, links_address(t.door.links));
    zmq_send(raw, "fine", 4, 0);
    assert_true(wait_for(t.loop, &t.door.n_frame, 1, LONG_MS));
    for (int i = 0; i < 4; i++) zmq_send(raw, "part", 4, i < 3 ? ZMQ_SNDMORE : 0);
    assert_true(wait_for(t.loop, &t.door.n_closed, 1, LONG_MS));
    zmq_send(raw, "again", 5, 0);
    settle(t.loop);
    assert_int_equal(1, t.door.n_frame);
    links_send(t.client.links, 1, "still", 5, (struct payload){ 0 }, false);
    assert_true(wait_for(t.loop, &t.door.n_frame, 2, LONG_MS));
    assert_string_equal("still", t.door.header);
    zmq_close(raw);
    zmq_ctx_term(zmq);
    two_close(&t);
}

static void a_frame_too_large_is_not_read(void **state) {
    struct two t;
    (void)state;
    two_open(&t);
    void *zmq = zmq_ctx_new(), *raw = raw_dealer(zmq, links_address(t.door.links));
    void *large = calloc(1, BIG + 1);
    zmq_send(raw, large, BIG + 1, 0);
    settle(t.loop);
    links_send(t.client.links, 1, "still", 5, (struct payload){ 0 }, false);
    assert_true(wait_for(t.loop, &t.door.n_frame, 1, LONG_MS));
    assert_string_equal("still", t.door.header);
    free(large);
    zmq_close(raw);
    zmq_ctx_term(zmq);
    two_close(&t);
}

static void no_more_newcomers_than_there_are_places(void **state) {
    struct loop *l = new_loop();
    struct links_config config = { .n_accepted_max = 3 };
    struct side s;
    void *zmq = zmq_ctx_new(), *raw[5];
    (void)state;
    side_open(&s, l, NULL, NULL, "tcp://127.0.0.1:0", &config);
    for (int i = 0; i < 5; i++) {
        raw[i] = raw_dealer(zmq, links_address(s.links));
        zmq_send(raw[i], "x", 1, 0);
        settle(l);
    }
    assert_int_equal(3, s.n_frame);
    zmq_close(raw[0]);
    assert_true(wait_for(l, &s.n_closed, 1, LONG_MS));
    zmq_send(raw[4], "y", 1, 0);
    assert_true(wait_for(l, &s.n_frame, 4, LONG_MS));
    for (int i = 1; i < 5; i++) zmq_close(raw[i]);
    zmq_ctx_term(zmq);
    side_close(&s);
    side_free(&s);
    loop_free(l);
}

static int tcp_to(uint16_t port) {
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    struct sockaddr_in to = { .sin_family = AF_INET, .sin_port = htons(port) };
    to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    assert_int_equal(0, connect(fd, (struct sockaddr *)&to, sizeof to));
    return fd;
}

static void strangers_at_the_port_disturb_nothing(void **state) {
    static const char *const say[] = { "GET / HTTP/1.1\r\nHost: x\r\n\r\n",
                                       "\xff\x00\x00\x00\x00\x00\x00\x00\x01\x7f\x03",
                                       "SSH-2.0-x\r\n", "", "\x16\x03\x01\x02\x00\x01" };
    struct two t;
    int fd[20];
    (void)state;
    two_open(&t);
    for (int i = 0; i < 20; i++) {
        fd[i] = tcp_to(links_port(t.door.links));
        const char *text = say[i % (int)COUNT_OF(say)];
        ssize_t n = send(fd[i], text, i % 5 == 1 ? 11 : strlen(text), MSG_NOSIGNAL);
        assert_true(n >= 0);
        settle(t.loop);
    }
    assert_int_equal(0, t.door.n_frame);
    links_send(t.client.links, 1, "still", 5, (struct payload){ 0 }, false);
    assert_true(wait_for(t.loop, &t.door.n_frame, 1, LONG_MS));
    for (int i = 0; i < 20; i++) close(fd[i]);
    settle(t.loop);
    assert_int_equal(1, t.door.n_frame);
    assert_int_equal(0, t.door.n_closed);
    two_close(&t);
}

/* ---- keys ---- */

static int n_log;
static void count_line(const char *line, size_t n) {
    (void)line;
    (void)n;
    n_log++;
}

/* The keys of a cluster in a folder that goes away, an invitation to it, and all lines of the log counted. */
struct cluster_keys {
    struct scratch scratch;
    char token[KEYRING_TOKEN_MAX];
};

static void keys_open(struct cluster_keys *k, bool once) {
    struct err e;
    scratch_open(&k->scratch);
    assert_fine(keyring_init_cluster(k->scratch.folder, &e), &e);
    assert_fine(keyring_invite(k->scratch.folder, "box", once, "127.0.0.1:9", k->token, &e), &e);
    log_set_sink(count_line);
    n_log = 0;
}

static void keys_close(struct cluster_keys *k) {
    log_set_sink(NULL);
    scratch_close(&k->scratch);
}

/* A machine with the token in its environment. */
static struct keyring *keys_of_node(const struct cluster_keys *k) {
    struct keyring *ring;
    struct err e;
    setenv("PLEIADES_TOKEN", k->token, 1);
    assert_fine(keyring_open_node(&ring, NULL, NULL, &e), &e);
    unsetenv("PLEIADES_TOKEN");
    return ring;
}

/* A cluster with one node that joins by a token, and what becomes of the token. */
static void a_token_lets_one_machine_in_once(void **state) {
    char file[600], second[600];
    struct cluster_keys keys;
    struct keyring *cluster, *node, *thief;
    struct side door, client, other;
    struct err e;
    (void)state;
    keys_open(&keys, true);
    const char *folder = keys.scratch.folder;
    snprintf(file, sizeof file, "%s/node.key", folder);
    snprintf(second, sizeof second, "%s/second.key", folder);
    for (int i = 0; i < 2; i++) {
        FILE *f = fopen(i ? second : file, "w");
        fprintf(f, "%s\n", keys.token);
        fclose(f);
        assert_int_equal(0, chmod(i ? second : file, 0600));
    }
    struct loop *l = new_loop();
    assert_fine(keyring_open_cluster(&cluster, folder, &e), &e);
    assert_fine(keyring_open_node(&node, file, NULL, &e), &e);
    assert_fine(keyring_open_node(&thief, second, NULL, &e), &e);
    side_open(&door, l, NULL, cluster, "tcp://127.0.0.1:0", NULL);
    side_open(&client, l, NULL, node, NULL, NULL);
    char key[KEY_TEXT];
    snprintf(key, sizeof key, "%s", keyring_server_key(node));

    /* the node: in by the token, known by its own key from then on, over the same connection */
    assert_fine(links_connect(client.links, 1, links_address(door.links), key, &e), &e);
    assert_true(wait_for(l, &client.n_up, 1, LONG_MS));
    links_send(client.links, 1, "hello", 5, (struct payload){ 0 }, false);
    assert_true(wait_for(l, &door.n_frame, 1, LONG_MS));
    struct link_view v;
    assert_true(links_view(door.links, door.link, &v));
    assert_string_equal("invite:box", v.user);
    assert_true(v.encrypted);
    assert_fine(links_admit(door.links, door.link, "node-1", keyring_public(node), &e), &e);
    links_view(door.links, door.link, &v);
    assert_string_equal("node:node-1", v.user);
    assert_fine(keyring_enrolled(node, &e), &e);
    wait_for(l, NULL, 0, 1300);                   /* the door looks at its keys again: nothing changes */
    assert_int_equal(0, door.n_closed);

    /* the same token from elsewhere */
    side_open(&other, l, NULL, thief, NULL, NULL);
    assert_fine(links_connect(other.links, 1, links_address(door.links), key, &e), &e);
    assert_true(wait_for(l, &other.n_refused, 1, LONG_MS));
    wait_for(l, NULL, 0, 300);                    /* it knocks a few times, and is logged once */
    assert_int_equal(0, other.n_up);
    assert_int_equal(1, n_log);

    /* the node again, as after a restart */
    side_close(&client);
    side_free(&client);
    keyring_free(node);
    assert_true(wait_for(l, &door.n_closed, 1, LONG_MS));
    assert_fine(keyring_open_node(&node, file, NULL, &e), &e);
    side_open(&client, l, NULL, node, NULL, NULL);
    assert_fine(links_connect(client.links, 1, links_address(door.links), key, &e), &e);
    assert_true(wait_for(l, &client.n_up, 1, LONG_MS));
    links_send(client.links, 1, "hello", 5, (struct payload){ 0 }, false);
    assert_true(wait_for(l, &door.n_frame, 2, LONG_MS));
    assert_fine(links_admit(door.links, door.link, "node-1", keyring_public(node), &e), &e);
    assert_int_equal(ERR_DENIED,
                     links_admit(door.links, door.link, "node-2", keyring_public(node), &e));

    /* revoked while connected */
    uint32_t n_closed = door.n_closed;
    assert_fine(keyring_revoke(folder, "node-1", &e), &e);
    assert_true(wait_for(l, &door.n_closed, n_closed + 1, LONG_MS));
    links_send(client.links, 1, "more", 4, (struct payload){ 0 }, false);
    settle(l);
    assert_int_equal(2, door.n_frame);

    side_close(&client);
    side_close(&other);
    side_close(&door);
    side_free(&client);
    side_free(&other);
    side_free(&door);
    loop_free(l);
    keyring_free(cluster);
    keyring_free(node);
    keyring_free(thief);
    keys_close(&keys);
}

static void a_node_lets_in_only_whom_the_plan_names(void **state) {
    struct cluster_keys keys;
    struct side a, b;
    struct err e;
    (void)state;
    keys_open(&keys, false);
    struct keyring *ring[2] = { keys_of_node(&keys), keys_of_node(&keys) };
    struct loop *l = new_loop();
    side_open(&a, l, NULL, ring[0], "tcp://127.0.0.1:0", NULL);
    side_open(&b, l, NULL, ring[1], NULL, NULL);
    assert_fine(links_connect(b.links, 2, links_address(a.links), keyring_public(ring[0]), &e), &e);
    assert_true(wait_for(l, &b.n_refused, 1, LONG_MS));
    assert_fine(keyring_allow(ring[0], keyring_public(ring[1]), &e), &e);
    assert_true(wait_for(l, &b.n_up, 1, LONG_MS));            /* without being told: it dials again */
    links_send(b.links, 2, "x", 1, filled(&b, 100, 1), false);
    assert_true(wait_for(l, &a.n_frame, 1, LONG_MS));

    struct payload large = slots_take(b.slots, BIG - 5);      /* leaves in pieces */
    uint8_t *bytes = slots_data(b.slots, large);
    for (int i = 0; i < BIG - 5; i++) bytes[i] = (uint8_t)(i * 7 + i / 4099);
    links_send(b.links, 2, "large", 5, large, true);
    assert_true(wait_for(l, &a.n_frame, 2, LONG_MS));
    assert_int_equal(BIG - 5, a.payload.bytes);
    assert_memory_equal(bytes, slots_data(a.slots, a.payload), BIG - 5);
    slots_give(b.slots, large);

    keyring_allow_nobody(ring[0]);                /* a new plan without it, and one with it */
    assert_true(wait_for(l, &a.n_closed, 1, LONG_MS));
    links_send(b.links, 2, "y", 1, (struct payload){ 0 }, false);
    settle(l);
    assert_int_equal(2, a.n_frame);
    assert_fine(keyring_allow(ring[0], keyring_public(ring[1]), &e), &e);
    wait_for(l, NULL, 0, 1000 + LINK_QUIET_MS + 200);
    links_send(b.links, 2, "z", 1, (struct payload){ 0 }, false);
    assert_true(wait_for(l, &a.n_frame, 3, LONG_MS));
    assert_string_equal("z", a.header);

    side_close(&b);
    side_close(&a);
    side_free(&a);
    side_free(&b);
    loop_free(l);
    for (int i = 0; i < 2; i++) keyring_free(ring[i]);
    keys_close(&keys);
}

/* Wrong key of the door, no key at all. */
static void those_without_the_right_keys_stay_outside(void **state) {
    char public_key[CURVE_TEXT], secret_key[CURVE_TEXT];
    struct cluster_keys keys;
    struct keyring *cluster;
    struct side door, client, plain;
    struct err e;
    (void)state;
    keys_open(&keys, false);
    struct keyring *node = keys_of_node(&keys);
    assert_fine(keyring_open_cluster(&cluster, keys.scratch.folder, &e), &e);
    assert_fine(curve_pair_new(public_key, secret_key, &e), &e);
    struct loop *l = new_loop();
    side_open(&door, l, NULL, cluster, "tcp://127.0.0.1:0", NULL);
    side_open(&client, l, NULL, node, NULL, NULL);
    side_open(&plain, l, NULL, NULL, NULL, NULL);
    assert_fine(links_connect(client.links, 1, links_address(door.links), public_key, &e), &e);
    assert_fine(links_connect(plain.links, 1, links_address(door.links), NULL, &e), &e);
    assert_true(wait_for(l, &client.n_refused, 1, LONG_MS));
    assert_true(wait_for(l, &plain.n_refused, 1, LONG_MS));
    for (int i = 0; i < 10; i++) {
        links_send(client.links, 1, "x", 1, (struct payload){ 0 }, false);
        links_send(plain.links, 1, "x", 1, (struct payload){ 0 }, false);
        wait_for(l, NULL, 0, 20);
    }
    assert_int_equal(0, door.n_frame);
    assert_int_equal(0, client.n_up + plain.n_up);
    assert_fine(links_connect(client.links, 1, links_address(door.links), keyring_server_key(node), &e), &e);
    assert_true(wait_for(l, &client.n_up, 1, LONG_MS));
    side_close(&plain);
    side_close(&client);
    side_close(&door);
    side_free(&plain);
    side_free(&client);
    side_free(&door);
    loop_free(l);
    keyring_free(cluster);
    keyring_free(node);
    keys_close(&keys);
}

/* ---- lost signals ---- */

struct sender {
    struct side *from;
    struct loop_timer *timer;
    uint64_t sent, to;
};

/* Fewer than half a queue (256): zmq learns only every 128 messages what the other side took, and to a
 * queue that it believes full nothing can be sent. */
enum { UNANSWERED_MAX = 120 };

/* Sends in bursts, not from the callback of the socket: every call on it may eat a signal. */
static void on_burst(void *ctx) {
    struct sender *s = ctx;
    for (int i = 0; i < 7 && s->sent < s->to && s->sent < s->from->n_frame + UNANSWERED_MAX; i++) {
        uint64_t number = s->sent + 1;
        if (links_send(s->from->links, 1, &number, sizeof number, (struct payload){ 0 }, false) < 0) break;
        s->sent++;
    }
    if (s->sent < s->to) loop_timer_set(s->timer, 0);
}

struct door_thread { struct side side; pthread_t thread; };

static void *door_main(void *ctx) {
    struct door_thread *d = ctx;
    loop_run(d->side.loop);
    return NULL;
}

static void no_message_is_stuck_while_timers_send_in_threads(void **state) {
    (void)state;
    for (int round = test_rounds(effort() == EFFORT_FULL ? 48 : 3); round > 0; round--) {
        struct door_thread d;
        struct side client;
        struct err e;
        struct loop *l = new_loop();
        side_open(&d.side, new_loop(), NULL, NULL, "tcp://127.0.0.1:0", NULL);
        d.side.echo = true;
        assert_int_equal(0, pthread_create(&d.thread, NULL, door_main, &d));
        side_open(&client, l, NULL, NULL, NULL, NULL);
        assert_fine(links_connect(client.links, 1, links_address(d.side.links), NULL, &e), &e);
        assert_true(wait_for(l, &client.n_up, 1, LONG_MS));
        struct sender s = { .from = &client, .to = 20000 };
        s.timer = loop_timer_new(l, on_burst, &s);
        loop_timer_set(s.timer, 0);
        for (uint32_t seen = 0; client.n_frame < s.to; seen = client.n_frame)
            if (!wait_for(l, &client.n_frame, (uint32_t)s.to, 5000) && client.n_frame == seen)
                fail_msg("stuck: %u of %d came back, %d were sent", client.n_frame, (int)s.to, (int)s.sent);
        assert_int_equal(s.to * (s.to + 1) / 2, client.sum);
        loop_timer_free(s.timer);
        loop_stop(d.side.loop);
        pthread_join(d.thread, NULL);
        side_close(&client);
        side_close(&d.side);
        side_free(&client);
        side_free(&d.side);
        loop_free(d.side.loop);
        loop_free(l);
    }
}

/* Two pairs of sockets. What comes in over the first makes its owner write to itself over the second, and
 * look whether it is there, which eats the signal. */
struct eater { struct loop *loop; void *zmq, *in[2], *out[2]; struct zpump *pump[2]; bool came, late; };

static void pair_open(struct eater *x, int i) {
    char name[32];
    snprintf(name, sizeof name, "inproc://pair-%d", i);
    x->in[i] = zmq_socket(x->zmq, ZMQ_PAIR);
    x->out[i] = zmq_socket(x->zmq, ZMQ_PAIR);
    assert_int_equal(0, zmq_bind(x->in[i], name));
    assert_int_equal(0, zmq_connect(x->out[i], name));
}

static void send_and_eat(struct eater *x, int i) {
    int events = 0;
    size_t size = sizeof events;
    assert_int_equal(1, zmq_send(x->out[i], "x", 1, 0));
    while (!(events & ZMQ_POLLIN)) assert_int_equal(0, zmq_getsockopt(x->in[i], ZMQ_EVENTS, &events, &size));
}

static bool first_came(void *ctx) {
    struct eater *x = ctx;
    char byte;
    if (zmq_recv(x->in[0], &byte, 1, ZMQ_DONTWAIT) < 0) return false;
    send_and_eat(x, 1);
    return true;
}

static bool second_came(void *ctx) {
    struct eater *x = ctx;
    char byte;
    if (zmq_recv(x->in[1], &byte, 1, ZMQ_DONTWAIT) < 0) return false;
    x->came = true;
    loop_stop(x->loop);
    return true;
}

static void on_late(void *ctx) {
    struct eater *x = ctx;
    x->late = !x->came;
    loop_stop(x->loop);
}

static void what_a_hook_causes_is_seen_before_the_loop_waits(void **state) {
    (void)state;
    for (int order = 0; order < 2; order++) {     /* whichever hook runs first */
        struct eater x = { .loop = new_loop(), .zmq = zmq_ctx_new() };
        struct err e;
        pair_open(&x, 0);
        pair_open(&x, 1);
        for (int k = 0; k < 2; k++) {
            int i = k ^ order;
            assert_fine(
                zpump_new(&x.pump[i], x.loop, x.in[i], i ? second_came : first_came, &x, &e), &e);
        }
        struct loop_timer *timer = loop_timer_new(x.loop, on_late, &x);
        loop_timer_set(timer, clock_now_ns() + 300 * MS);
        send_and_eat(&x, 0);                      /* so that its hook finds it, not its descriptor */
        loop_run(x.loop);
        assert_true(x.came && !x.late);
        loop_timer_free(timer);
        for (int i = 0; i < 2; i++) {
            zpump_free(x.pump[i]);
            zmq_close(x.in[i]);
            zmq_close(x.out[i]);
        }
        zmq_ctx_term(x.zmq);
        loop_free(x.loop);
    }
}

/* ---- log lines ---- */

static void an_address_is_worth_one_line_an_hour(void **state) {
    struct once o = { .n_minute = 0 };
    char address[32];
    int n = 0;
    (void)state;
    for (uint64_t i = 1; i < 100; i++) n += once_is_due(&o, "key", "10.0.0.1", i * 1000 * MS);
    assert_int_equal(1, n);
    assert_true(once_is_due(&o, "frame", "10.0.0.1", 99000 * MS));
    assert_true(once_is_due(&o, "key", "10.0.0.1", 3602 * 1000 * MS));
    n = 0;
    for (int i = 0; i < 1000; i++) {
        snprintf(address, sizeof address, "10.1.%d.%d", i / 250, i % 250);
        n += once_is_due(&o, "key", address, 3700 * 1000 * MS);
    }
    assert_int_equal(ONCE_PER_MINUTE, n);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        TEST(a_message_and_its_payload_arrive_and_the_slot_comes_back),
        TEST(a_borrowed_payload_stays_with_its_owner),
        TEST(inproc_links_carry_the_same_frames),
        TEST(empty_header_frames_are_nothing),
        TEST(an_empty_payload_is_none),
        TEST(what_goes_to_nobody_is_lost_and_its_payload_freed),
        TEST(a_client_that_leaves_is_reported_soon),
        TEST(a_link_dials_again_when_the_door_comes_back),
        TEST(without_a_free_slot_a_message_is_lost_and_the_next_one_is_not),
        TEST(a_dropped_link_is_not_heard_for_a_moment_and_then_is_a_newcomer),
        TEST(a_frame_too_many_closes_that_link_only),
        TEST(a_frame_too_large_is_not_read),
        TEST(no_more_newcomers_than_there_are_places),
        TEST(strangers_at_the_port_disturb_nothing),
        TEST(a_token_lets_one_machine_in_once),
        TEST(a_node_lets_in_only_whom_the_plan_names),
        TEST(those_without_the_right_keys_stay_outside),
        TEST(no_message_is_stuck_while_timers_send_in_threads),
        TEST(what_a_hook_causes_is_seen_before_the_loop_waits),
        TEST(an_address_is_worth_one_line_an_hour),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
