/* raw - one TCP stream from one process to another, as fast as it goes: what a link gives before any program
 * of ours uses it.
 *
 *     bench_raw listen HOST PORT            takes one connection, says how many bytes came in how long
 *     bench_raw send HOST PORT MEGABYTES */
#include "common/base/types.h"
#include "common/sys/clock.h"

#include <netdb.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

enum { PIECE = 1 << 18, TRIES = 100 };

static char piece[PIECE];

static int die(const char *what) {
    perror(what);
    return 1;
}

static struct addrinfo *resolve(const char *host, const char *port) {
    struct addrinfo hints, *found = NULL;
    memset(&hints, 0, sizeof hints);
    hints.ai_family = AF_INET;
    hints.ai_socktype = SOCK_STREAM;
    return getaddrinfo(host, port, &hints, &found) == 0 ? found : NULL;
}

static int receive(const struct addrinfo *at) {
    int one = 1, door = socket(AF_INET, SOCK_STREAM, 0);
    setsockopt(door, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (door < 0 || bind(door, at->ai_addr, at->ai_addrlen) < 0 || listen(door, 1) < 0) return die("listen");
    int fd = accept(door, NULL, NULL);
    if (fd < 0) return die("accept");
    uint64_t bytes = 0, start = clock_now_ns();
    for (ssize_t n; (n = read(fd, piece, PIECE)) > 0;) bytes += (uint64_t)n;
    double seconds = clock_seconds_since(start);
    printf("%.1f MB in %.2f s, %.1f MB/s\n", (double)bytes / 1e6, seconds, (double)bytes / 1e6 / seconds);
    return 0;
}

static int send_all(const struct addrinfo *to, uint64_t bytes) {
    int fd = -1;
    for (int i = 0; i < TRIES && fd < 0; i++) {
        fd = socket(AF_INET, SOCK_STREAM, 0);
        if (fd >= 0 && connect(fd, to->ai_addr, to->ai_addrlen) == 0) break;
        close(fd);
        fd = -1;
        usleep(20000);
    }
    if (fd < 0) return die("connect");
    while (bytes > 0) {
        ssize_t n = write(fd, piece, bytes < PIECE ? (size_t)bytes : (size_t)PIECE);
        if (n <= 0) return die("write");
        bytes -= (uint64_t)n;
    }
    close(fd);
    return 0;
}

int main(int argc, char **argv) {
    struct addrinfo *a = argc > 3 ? resolve(argv[2], argv[3]) : NULL;
    if (a && strcmp(argv[1], "listen") == 0) return receive(a);
    if (a && argc == 5 && strcmp(argv[1], "send") == 0)
        return send_all(a, strtoull(argv[4], NULL, 10) * 1000000);
    fprintf(stderr, "bench_raw listen HOST PORT | send HOST PORT MEGABYTES\n");
    return 2;
}
