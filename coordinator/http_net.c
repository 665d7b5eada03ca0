/* http_net - see the header. */
#include "coordinator/http_net.h"

#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdio.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

void http_listeners_init(struct http_listeners *l) {
    *l = (struct http_listeners){ .n = 0 };
}

static int set_up(int fd) {
    int one = 1;
#ifdef SO_NOSIGPIPE
    setsockopt(fd, SOL_SOCKET, SO_NOSIGPIPE, &one, sizeof one);
#endif
    (void)one;
    int flags = fcntl(fd, F_GETFL);
    return flags < 0 || fcntl(fd, F_SETFL, flags | O_NONBLOCK) < 0 ||
                   fcntl(fd, F_SETFD, FD_CLOEXEC) < 0
               ? -1
               : 0;
}

/* ---- listening ---- */

static bool is_loopback(const struct sockaddr *a) {
    if (a->sa_family == AF_INET)
        return ntohl(((const struct sockaddr_in *)(const void *)a)->sin_addr.s_addr) >> 24 == 127;
    return a->sa_family == AF_INET6 &&
           IN6_IS_ADDR_LOOPBACK(&((const struct sockaddr_in6 *)(const void *)a)->sin6_addr);
}

static int port_of(int fd) {
    struct sockaddr_storage a;
    socklen_t len = sizeof a;
    if (getsockname(fd, (struct sockaddr *)&a, &len) < 0) return 0;
    if (a.ss_family == AF_INET6) return ntohs(((struct sockaddr_in6 *)(void *)&a)->sin6_port);
    return ntohs(((struct sockaddr_in *)(void *)&a)->sin_port);
}

/* Port 0 the first time: the others of the same name take the port that this one got. */
static int listen_at(struct http_listeners *l, struct addrinfo *a, struct err *e) {
    int one = 1, fd = socket(a->ai_family, SOCK_STREAM, 0);
    if (fd < 0) return err_errno(e, ERR_IO, "a socket");
    if (l->port && a->ai_family == AF_INET)
        ((struct sockaddr_in *)(void *)a->ai_addr)->sin_port = htons((uint16_t)l->port);
    if (l->port && a->ai_family == AF_INET6)
        ((struct sockaddr_in6 *)(void *)a->ai_addr)->sin6_port = htons((uint16_t)l->port);
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (a->ai_family == AF_INET6) setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &one, sizeof one);
    if (set_up(fd) < 0 || bind(fd, a->ai_addr, a->ai_addrlen) < 0 || listen(fd, HTTP_BACKLOG) < 0) {
        int rc = err_errno(e, ERR_IO, "listening");
        close(fd);
        return rc;
    }
    l->fd[l->n++] = fd;
    l->beyond |= !is_loopback(a->ai_addr);
    l->port = port_of(fd);
    return 0;
}

int http_listen_tcp(struct http_listeners *l, const char *host, int port, struct err *e) {
    struct addrinfo hints = { .ai_family = AF_UNSPEC,
                              .ai_socktype = SOCK_STREAM,
                              .ai_flags = AI_PASSIVE },
                    *list;
    char service[16];
    int before = l->n, rc = 0;
    snprintf(service, sizeof service, "%d", port);
    int failed = getaddrinfo(host, service, &hints, &list);
    if (failed) return err_set(e, ERR_IO, "%s: %s", host, gai_strerror(failed));
    for (struct addrinfo *a = list; a && l->n + 1 < HTTP_LISTEN_MAX; a = a->ai_next) {
        int one = listen_at(l, a, e);
        if (one < 0) rc = one;
    }
    freeaddrinfo(list);
    /* "localhost" has two addresses, and not every machine has IPv6: one of them is enough. */
    return l->n > before ? 0 : err_wrap(e, rc < 0 ? rc : ERR_IO, "%s port %d", host, port);
}

static bool somebody_listens(const struct sockaddr_un *a) {
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    bool yes = fd >= 0 && connect(fd, (const struct sockaddr *)a, sizeof *a) == 0;
    if (fd >= 0) close(fd);
    return yes;
}

int http_listen_unix(struct http_listeners *l, const char *path, struct err *e) {
    struct sockaddr_un a = { .sun_family = AF_UNIX };
    struct stat st;
    if (strlen(path) >= sizeof a.sun_path)
        return err_set(e, ERR_LIMIT, "%s: longer than %zu characters", path, sizeof a.sun_path - 1);
    snprintf(a.sun_path, sizeof a.sun_path, "%s", path);
    if (lstat(path, &st) == 0) {
        if (!S_ISSOCK(st.st_mode)) return err_set(e, ERR_INVALID, "%s exists and is no socket", path);
        if (somebody_listens(&a)) return err_set(e, ERR_BUSY, "%s: another process listens there", path);
        unlink(path);
    }
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    if (fd < 0) return err_errno(e, ERR_IO, "a socket");
    mode_t before = umask(0177);
    int bound = bind(fd, (const struct sockaddr *)&a, sizeof a);
    umask(before);
    if (bound < 0 || set_up(fd) < 0 || listen(fd, HTTP_BACKLOG) < 0) {
        int rc = err_errno(e, ERR_IO, "%s", path);
        close(fd);
        return rc;
    }
    l->is_unix[l->n] = true;
    l->fd[l->n++] = fd;
    snprintf(l->unix_path, sizeof l->unix_path, "%s", path);
    return 0;
}

void http_listeners_close(struct http_listeners *l) {
    for (int i = 0; i < l->n; i++) close(l->fd[i]);
    if (l->unix_path[0]) unlink(l->unix_path);
    http_listeners_init(l);
}

/* ---- connections ---- */

int http_accept(int fd, struct sockaddr_storage *from, socklen_t *from_len, bool *full) {
    int one = 1;
    *from_len = sizeof *from;
    *full = false;
    int c = accept(fd, (struct sockaddr *)from, from_len);
    if (c < 0) {
        *full = errno == EMFILE || errno == ENFILE || errno == ENOBUFS || errno == ENOMEM;
        return -1;
    }
    if (set_up(c) < 0) {
        close(c);
        return -1;
    }
    setsockopt(c, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);  /* fails on Unix sockets, which do not wait */
    return c;
}

int http_pipe(int fd[2], struct err *e) {
    if (pipe(fd) < 0) return err_errno(e, ERR_IO, "a pipe");
    return set_up(fd[0]) < 0 || set_up(fd[1]) < 0 ? err_errno(e, ERR_IO, "a pipe") : 0;
}

#ifndef POLLRDHUP
#define POLLRDHUP 0                               /* where it is unknown, reading tells */
#endif

static bool has_left(int fd, short revents) {
    char c;
    if (revents & (POLLRDHUP | POLLHUP | POLLERR | POLLNVAL)) return true;
    if (!(revents & POLLIN)) return false;
    ssize_t n = recv(fd, &c, 1, MSG_PEEK | MSG_DONTWAIT);
    return n == 0 || (n < 0 && errno != EAGAIN && errno != EWOULDBLOCK && errno != EINTR);
}

void http_peers_left(const int *fd, bool *left, int n, struct pollfd *room) {
    if (n <= 0) return;
    for (int i = 0; i < n; i++) room[i] = (struct pollfd){ fd[i], POLLIN | POLLRDHUP, 0 };
    int n_ready = poll(room, (nfds_t)n, 0);
    for (int i = 0; i < n; i++) left[i] = n_ready > 0 && has_left(fd[i], room[i].revents);
}

bool http_peer_done(int fd) {
    char c;
    return recv(fd, &c, 1, MSG_PEEK | MSG_DONTWAIT) == 0;
}

void http_raise_files(int n) {
    struct rlimit r;
    if (getrlimit(RLIMIT_NOFILE, &r) < 0 || r.rlim_cur >= (rlim_t)n) return;
    r.rlim_cur = r.rlim_max == RLIM_INFINITY ? (rlim_t)n : MIN((rlim_t)n, r.rlim_max);
    setrlimit(RLIMIT_NOFILE, &r);
}
