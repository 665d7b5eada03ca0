/* http_client - raw HTTP for tests: bytes out, bytes in, with time limits. Header only. */
#ifndef HARNESS_HTTP_CLIENT_H
#define HARNESS_HTTP_CLIENT_H

#include <errno.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "common/base/buf.h"
#include "common/base/check.h"
#include "common/sys/clock.h"

enum { CLIENT_WAIT_MS = 5000 };

static inline int client_connect(int port) {
    struct sockaddr_in a = { .sin_family = AF_INET,
                             .sin_port = htons((uint16_t)port),
                             .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    CHECK(fd >= 0);
    for (int i = 0; i < 100 && connect(fd, (struct sockaddr *)&a, sizeof a) < 0; i++) clock_sleep_ms(10);
    return fd;
}

static inline int client_connect_unix(const char *path) {
    struct sockaddr_un a = { .sun_family = AF_UNIX };
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    snprintf(a.sun_path, sizeof a.sun_path, "%s", path);
    CHECK(fd >= 0 && connect(fd, (struct sockaddr *)&a, sizeof a) == 0);
    return fd;
}

/* False when the other end has closed. */
static inline bool client_send(int fd, const char *data, size_t n) {
    while (n) {
        ssize_t k = send(fd, data, n, MSG_NOSIGNAL);
        if (k < 0 && errno == EINTR) continue;
        if (k <= 0) return false;
        data += k;
        n -= (size_t)k;
    }
    return true;
}

static inline void client_post(int fd, const char *path, const char *headers, const char *body) {
    char head[1024];
    int n = snprintf(head, sizeof head,
                     "POST %s HTTP/1.1\r\nHost: localhost\r\nContent-Length: %zu\r\n%s\r\n", path,
                     strlen(body), headers);
    CHECK(n < (int)sizeof head);
    client_send(fd, head, (size_t)n);
    client_send(fd, body, strlen(body));
}

static inline void client_get(int fd, const char *path, const char *headers) {
    char head[1024];
    int n = snprintf(head, sizeof head, "GET %s HTTP/1.1\r\nHost: localhost\r\n%s\r\n", path, headers);
    client_send(fd, head, (size_t)n);
}

/* Appends what comes until `text` is in it, the other end closes, or `ms` are over. True: it is in. */
static inline bool client_wait(int fd, struct buf *in, const char *text, int ms) {
    uint64_t until = clock_now_ns() + (uint64_t)ms * 1000000;
    while (!in->size || !strstr(in->data, text)) {
        uint64_t now = clock_now_ns();
        struct pollfd p = { fd, POLLIN, 0 };
        char data[16384];
        if (now >= until || poll(&p, 1, (int)((until - now) / 1000000) + 1) <= 0) return false;
        ssize_t n = recv(fd, data, sizeof data, 0);
        if (n <= 0) return false;
        buf_add(in, data, (size_t)n);
    }
    return true;
}

/* Reads to the end of the connection; false when that does not come in time. */
static inline bool client_closed(int fd, struct buf *in, int ms) {
    uint64_t until = clock_now_ns() + (uint64_t)ms * 1000000;
    for (;;) {
        uint64_t now = clock_now_ns();
        struct pollfd p = { fd, POLLIN, 0 };
        char data[16384];
        if (now >= until || poll(&p, 1, (int)((until - now) / 1000000) + 1) <= 0) return false;
        ssize_t n = recv(fd, data, sizeof data, 0);
        if (n <= 0) return true;
        buf_add(in, data, (size_t)n);
    }
}

#endif
