#include "common/sys/host.h"

#include <netdb.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>
#ifdef __APPLE__
#include <sys/sysctl.h>
#endif

uint64_t host_memory_bytes(void) {
#ifdef __APPLE__
    uint64_t bytes = 0;
    size_t size = sizeof bytes;
    return sysctlbyname("hw.memsize", &bytes, &size, NULL, 0) == 0 ? bytes : 0;
#else
    long pages = sysconf(_SC_PHYS_PAGES), page = sysconf(_SC_PAGESIZE);
    return pages > 0 && page > 0 ? (uint64_t)pages * (uint64_t)page : 0;
#endif
}

uint32_t host_cores(void) {
#ifdef __linux__
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set) == 0) return (uint32_t)CPU_COUNT(&set);
#endif
    long n = sysconf(_SC_NPROCESSORS_ONLN);
    return n > 0 ? (uint32_t)n : 1;
}

static bool name_char(char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_' || c == '-';
}

/* The first label only: "studio.local" is "studio". */
void host_name(char out[HOST_NAME_MAX_BYTES]) {
    char name[256] = "";
    size_t n = 0;
    gethostname(name, sizeof name - 1);
    for (const char *c = name; *c && *c != '.' && n < HOST_NAME_MAX_BYTES - 1; c++)
        out[n++] = name_char(*c) ? *c : '-';
    out[n] = 0;
    if (!n) snprintf(out, HOST_NAME_MAX_BYTES, "node");
}

/* A connected datagram socket sends nothing, but has chosen its own address. */
int host_address_towards(const char *host, const char *port, char out[HOST_ADDRESS_MAX], struct err *e) {
    struct addrinfo hints = { .ai_socktype = SOCK_DGRAM }, *list = NULL;
    struct sockaddr_storage own;
    socklen_t size = sizeof own;
    int rc = getaddrinfo(host, port, &hints, &list), found = ERR_NOTFOUND;
    if (rc != 0) return err_set(e, ERR_NOTFOUND, "%s: %s", host, gai_strerror(rc));
    for (struct addrinfo *a = list; a && found < 0; a = a->ai_next) {
        int fd = socket(a->ai_family, a->ai_socktype, a->ai_protocol);
        if (fd < 0) continue;
        if (connect(fd, a->ai_addr, a->ai_addrlen) == 0 &&
            getsockname(fd, (struct sockaddr *)&own, &size) == 0 &&
            getnameinfo((struct sockaddr *)&own, size, out, HOST_ADDRESS_MAX, NULL, 0,
                        NI_NUMERICHOST) == 0)
            found = 0;
        close(fd);
    }
    freeaddrinfo(list);
    return found < 0 ? err_set(e, found, "no way to %s from here", host) : 0;
}

int host_port_parse(const char *text, struct host_port *out, struct err *e) {
    const char *at = strncmp(text, "tcp://", 6) == 0 ? text + 6 : text, *colon = strrchr(at, ':');
    size_t n = colon ? (size_t)(colon - at) : 0;
    bool brackets = n > 2 && at[0] == '[' && at[n - 1] == ']';
    char *end = NULL;
    unsigned long port = colon ? strtoul(colon + 1, &end, 10) : 0;
    if (!n || end == colon + 1 || *end || port > 65535 || n >= sizeof out->host)
        return err_set(e, ERR_INVALID, "'%s' is not HOST:PORT", text);
    snprintf(out->host, sizeof out->host, "%.*s", (int)(brackets ? n - 2 : n), at + brackets);
    snprintf(out->port, sizeof out->port, "%lu", port);
    return 0;
}
