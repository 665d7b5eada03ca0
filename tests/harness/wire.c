/* wire - a network between namespaces of this machine, with a delay and a rate, in user space.
 *
 *     wire DELAY_US MBIT NAMESPACE...       one way; 0 Mbit: as fast as it goes
 *
 * Each namespace gets a device "wire"; namespace i (from 1) is 10.77.0.i, and packets go where their last
 * byte says. A packet leaves when those before it from the same namespace have left at the rate, and
 * arrives after the delay; what would wait longer than QUEUE_MS is dropped, as a router does. For kernels
 * without netem, and the same everywhere. Linux, root; built by the test that uses it, stands alone. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/if.h>
#include <linux/if_tun.h>
#include <poll.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

enum { PORTS_MAX = 16, PACKET_MAX = 65536, PLACES = 16384, QUEUE_MS = 200, BURST = 64 };

struct packet { uint64_t arrives_ns; int to; size_t n; unsigned char *data; };

struct port {
    struct packet queue[PLACES];                  /* sent from here, in order */
    unsigned first, n;
    uint64_t free_ns;                             /* when the last one has left */
};

static struct port *port;
static struct pollfd in[PORTS_MAX];
static int n_port;
static uint64_t delay_ns, ns_per_byte_1024;       /* 1/1024 ns */

static uint64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static void die(const char *what) {
    perror(what);
    exit(1);
}

static int open_device(const char *namespace) {
    char path[256];
    struct ifreq r;
    snprintf(path, sizeof path, "/var/run/netns/%s", namespace);
    int ns = open(path, O_RDONLY | O_CLOEXEC);
    if (ns < 0 || setns(ns, CLONE_NEWNET) < 0) die(path);
    close(ns);
    int fd = open("/dev/net/tun", O_RDWR | O_CLOEXEC | O_NONBLOCK);
    memset(&r, 0, sizeof r);
    r.ifr_flags = IFF_TUN | IFF_NO_PI;
    snprintf(r.ifr_name, sizeof r.ifr_name, "wire");
    if (fd < 0 || ioctl(fd, TUNSETIFF, &r) < 0) die("/dev/net/tun");
    return fd;
}

static void take(int from, const unsigned char *data, size_t n, uint64_t now) {
    struct port *p = &port[from];
    int to = n >= 20 && data[0] >> 4 == 4 ? data[19] - 1 : -1;
    uint64_t start = p->free_ns > now ? p->free_ns : now;
    if (to < 0 || to >= n_port || p->n == PLACES || start > now + QUEUE_MS * 1000000ull) return;
    struct packet *k = &p->queue[(p->first + p->n++) % PLACES];
    p->free_ns = start + n * ns_per_byte_1024 / 1024;
    *k = (struct packet){ p->free_ns + delay_ns, to, n, malloc(n) };
    if (!k->data) die("malloc");
    memcpy(k->data, data, n);
}

static void read_all(int from) {
    static unsigned char data[PACKET_MAX];
    for (int i = 0; i < BURST; i++) {
        ssize_t n = read(in[from].fd, data, sizeof data);
        if (n <= 0) return;
        take(from, data, (size_t)n, now_ns());
    }
}

/* What has arrived; gives back when the next one does. */
static uint64_t deliver(void) {
    uint64_t next = UINT64_MAX, now = now_ns();
    for (int i = 0; i < n_port; i++) {
        struct port *p = &port[i];
        for (; p->n && p->queue[p->first].arrives_ns <= now; p->n--) {
            struct packet *k = &p->queue[p->first];
            if (write(in[k->to].fd, k->data, k->n) < 0) { /* its device is down: lost */ }
            free(k->data);
            p->first = (p->first + 1) % PLACES;
        }
        if (p->n && p->queue[p->first].arrives_ns < next) next = p->queue[p->first].arrives_ns;
    }
    return next;
}

int main(int argc, char **argv) {
    if (argc < 4 || argc - 3 > PORTS_MAX) {
        fprintf(stderr, "wire DELAY_US MBIT NAMESPACE...\n");
        return 2;
    }
    uint64_t mbit = strtoull(argv[2], NULL, 10);
    delay_ns = strtoull(argv[1], NULL, 10) * 1000;
    ns_per_byte_1024 = mbit ? 8 * 1000 * 1024 / mbit : 0;
    n_port = argc - 3;
    port = calloc((size_t)n_port, sizeof *port);
    if (!port) die("calloc");
    for (int i = 0; i < n_port; i++) in[i] = (struct pollfd){ open_device(argv[3 + i]), POLLIN, 0 };
    printf("ready\n");
    fflush(stdout);
    for (;;) {
        uint64_t next = deliver(), now = now_ns();
        uint64_t wait = next == UINT64_MAX ? 1000000000u : next > now ? next - now : 0;
        struct timespec t = { (time_t)(wait / 1000000000u), (long)(wait % 1000000000u) };
        if (ppoll(in, (nfds_t)n_port, &t, NULL) < 0) continue;
        for (int i = 0; i < n_port; i++)
            if (in[i].revents & POLLIN) read_all(i);
    }
}
