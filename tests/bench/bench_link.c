/* link - one link over loopback between two threads, with and without encryption: round trips of a small
 * message, and large payloads one after the other with a window of eight, as between two stages.
 *
 *     bench_link [SECONDS]       per measurement; 2 by default. The best of RUNS parts counts
 *
 * Beside the rate stands what it cost in processor time, of both ends and all their threads: that does not
 * depend on who else uses the machine. */
#include "common/base/check.h"
#include "common/sys/clock.h"
#include "common/sys/keyring.h"
#include "common/sys/link.h"
#include "common/sys/loop.h"
#include "common/sys/slots.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <unistd.h>

enum { RUNS = 8, WINDOW = 8, BIG = 32 << 20, TRIPS_MAX = 200000, OUT = 1, FIRST = 32 };

struct end {
    struct loop *loop;
    struct net *net;
    struct slots *slots;
    struct links *links;
    struct loop_timer *timer;
    bool up;
    uint64_t until_ns, sent_ns, bytes, start_ns;
    uint32_t payload_bytes, n_trip, n_flying;
    uint32_t *trip_ns;
};

static struct err error;

static void must(int rc) {
    if (rc == 0) return;
    fprintf(stderr, "bench_link: %s\n", error.text);
    exit(1);
}

/* The far end: answers every message with a small one, which stands for a credit. */
static void on_far(void *ctx, uint32_t link, const void *header, size_t n, struct payload p) {
    struct end *e = ctx;
    slots_give(e->slots, p);
    links_send(e->links, link, header, n, (struct payload){ 0 }, false);
}

static void send_one(struct end *e) {
    uint8_t header[64] = { 1 };
    struct payload p = { 0 };
    if (e->payload_bytes) p = slots_take(e->slots, e->payload_bytes);
    e->n_flying++;
    e->sent_ns = clock_now_ns();
    links_send(e->links, OUT, header, sizeof header, p, false);
}

static void on_near(void *ctx, uint32_t link, const void *header, size_t n, struct payload p) {
    struct end *e = ctx;
    uint64_t now = clock_now_ns();
    (void)link;
    (void)header;
    (void)n;
    slots_give(e->slots, p);
    e->n_flying--;
    if (now >= e->until_ns) {
        if (e->n_flying == 0) loop_stop(e->loop);
        return;
    }
    if (!e->payload_bytes && e->n_trip < TRIPS_MAX) e->trip_ns[e->n_trip++] = (uint32_t)(now - e->sent_ns);
    e->bytes += e->payload_bytes;
    send_one(e);
}

static void on_closed(void *ctx, uint32_t link) {
    (void)ctx;
    (void)link;
}

static void on_up(void *ctx, uint32_t link) {
    struct end *e = ctx;
    (void)link;
    loop_stop(e->loop);
}

static void end_open(struct end *e, struct keyring *k, const char *bind) {
    struct slots_config slots = { .n_big = 2 * WINDOW, .n_small = 2 * WINDOW, .big_bytes = BIG,
                                  .small_bytes = 1 << 20 };
    must(loop_new(&e->loop, &error));
    must(net_new(&e->net, &error));
    must(slots_new(&e->slots, e->loop, &slots, &error));
    if (k && bind) must(net_guard(e->net, e->loop, k, &error));
    struct links_config c = { .loop = e->loop, .net = e->net, .slots = e->slots, .bind = bind, .keyring = k,
                              .accepted_first = FIRST, .on_frame = bind ? on_far : on_near,
                              .on_closed = on_closed, .on_up = on_up, .ctx = e };
    must(links_open(&e->links, &c, &error));
}

static void end_close(struct end *e) {
    links_close(e->links);
    net_unguard(e->net);
    net_free(e->net);
    slots_free(e->slots);
    loop_free(e->loop);
}

static void *far_main(void *ctx) {
    loop_run(((struct end *)ctx)->loop);
    return NULL;
}

static int by_value(const void *a, const void *b) {
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return x < y ? -1 : x > y;
}

static double processor_seconds(void) {
    struct rusage u;
    getrusage(RUSAGE_SELF, &u);
    return (double)(u.ru_utime.tv_sec + u.ru_stime.tv_sec) +
           (double)(u.ru_utime.tv_usec + u.ru_stime.tv_usec) * 1e-6;
}

/* Bytes per second. */
static double measure(struct end *near, uint32_t payload_bytes, int in_flight, double seconds) {
    near->payload_bytes = payload_bytes;
    near->bytes = near->n_trip = 0;
    near->start_ns = clock_now_ns();
    near->until_ns = near->start_ns + (uint64_t)(seconds * 1e9);
    for (int i = 0; i < in_flight; i++) send_one(near);
    loop_run(near->loop);
    return (double)near->bytes / clock_seconds_since(near->start_ns);
}

static void bench(const char *name, struct keyring *door, struct keyring *dialler, double seconds) {
    struct end far = { .up = false }, near = far;
    pthread_t thread;
    end_open(&far, door, "tcp://127.0.0.1:0");
    end_open(&near, dialler, NULL);
    near.trip_ns = xcalloc(TRIPS_MAX, sizeof *near.trip_ns);
    CHECK(pthread_create(&thread, NULL, far_main, &far) == 0);
    must(links_connect(near.links, OUT, links_address(far.links), door ? keyring_server_key(dialler) : NULL,
                       &error));
    loop_run(near.loop);
    double used = processor_seconds();
    measure(&near, 0, 1, seconds);
    used = processor_seconds() - used;
    qsort(near.trip_ns, near.n_trip, sizeof *near.trip_ns, by_value);
    printf("%-10s round trip of 64 bytes   %6.1f us median, %6.1f us p99, %6.1f us of processor\n", name,
           near.trip_ns[near.n_trip / 2] / 1e3, near.trip_ns[near.n_trip * 99ull / 100] / 1e3,
           used * 1e6 / near.n_trip);
    static const uint32_t sizes[] = { 64 << 10, 1 << 20, 8 << 20 };
    for (size_t i = 0; i < COUNT_OF(sizes); i++) {
        double best = 0, sum = 0;
        used = processor_seconds();
        for (int run = 0; run < RUNS; run++) {
            double rate = measure(&near, sizes[i], sizes[i] > 1 << 20 ? 3 : WINDOW, seconds / RUNS);
            best = MAX(best, rate);
            sum += (double)near.bytes;
        }
        used = processor_seconds() - used;
        printf("%-10s payloads of %5u KiB     %6.2f GB/s best, %6.2f s of processor per GB\n", name,
               sizes[i] >> 10, best / 1e9, used / sum * 1e9);
        fflush(stdout);
    }
    loop_stop(far.loop);
    pthread_join(thread, NULL);
    end_close(&near);
    end_close(&far);
    free(near.trip_ns);
}

int main(int argc, char **argv) {
    double seconds = argc > 1 ? strtod(argv[1], NULL) : 2;
    char folder[] = "/tmp/pleiades-bench-XXXXXX", path[128], token[KEYRING_TOKEN_MAX];
    struct keyring *door, *dialler;
    CHECK(mkdtemp(folder));
    bench("plain", NULL, NULL, seconds);
    must(keyring_init_cluster(folder, &error));
    must(keyring_invite(folder, NULL, false, "127.0.0.1:1", token, &error));
    setenv("PLEIADES_TOKEN", token, 1);
    must(keyring_open_cluster(&door, folder, &error));
    must(keyring_open_node(&dialler, NULL, NULL, &error));
    bench("encrypted", door, dialler, seconds);
    keyring_free(door);
    keyring_free(dialler);
    for (int i = 0; i < 2; i++) {
        snprintf(path, sizeof path, "%s/cluster.%s", folder, i ? "key" : "clients");
        unlink(path);
    }
    rmdir(folder);
    return 0;
}
