/* http_net - sockets of the endpoint: where it listens, who comes, who has left.
 *
 * Blocking never; every socket is non-blocking and closed on exec. Plain functions, the caller owns the
 * descriptors. */
#ifndef COORDINATOR_HTTP_NET_H
#define COORDINATOR_HTTP_NET_H

#include <sys/socket.h>

#include "common/base/err.h"
#include "common/base/types.h"

enum { HTTP_LISTEN_MAX = 4, HTTP_BACKLOG = 512 };

struct http_listeners {
    int fd[HTTP_LISTEN_MAX];
    bool is_unix[HTTP_LISTEN_MAX];
    int n, port;                                  /* of TCP */
    bool beyond;                                  /* other machines can reach an address */
    char unix_path[108];                          /* to be removed at the end */
};

void http_listeners_init(struct http_listeners *l);
int http_listen_tcp(struct http_listeners *l, const char *host, int port, struct err *e);
/* A socket that nobody listens at any more is replaced; ERR_BUSY otherwise. Only its owner may connect. */
int http_listen_unix(struct http_listeners *l, const char *path, struct err *e);
void http_listeners_close(struct http_listeners *l);

/* -1: nobody, or *full when this process has no descriptors left. */
int http_accept(int fd, struct sockaddr_storage *from, socklen_t *from_len, bool *full);

int http_pipe(int fd[2], struct err *e);          /* non-blocking on both ends */

/* Which of these are gone, or will send nothing more: left[i]. `room` is for n entries of scratch. */
struct pollfd;
void http_peers_left(const int *fd, bool *left, int n, struct pollfd *room);

/* Whether all that the other end sent was read, and it will send nothing more. */
bool http_peer_done(int fd);

/* Makes room for so many descriptors, as far as the system lets us. */
void http_raise_files(int n);

#endif
