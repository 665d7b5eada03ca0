/* status_view - the status document of a service as a table for people, at most 80 columns wide.
 *
 * The document is fetched from an endpoint (GET /v1/status; its members are listed in
 * coordinator/service_status.c). Main thread. Members that are missing count as 0 or "", so that another
 * version's document still shows something. */
#ifndef CLI_STATUS_VIEW_H
#define CLI_STATUS_VIEW_H

#include "cli/opts.h"
#include "common/base/buf.h"

#include <signal.h>

struct http_client;

struct status_source { const char *url, *api_key_file, *ca_file; };

#define STATUS_OPTS(s)                                                                                    \
    OPT_STRING('u', "url", &(s).url, "URL", "the endpoint of `pleiades serve`"),                          \
        OPT_STRING(0, "api-key-file", &(s).api_key_file, "FILE", "holds the key that the endpoint wants"), \
        OPT_STRING(0, "ca-file", &(s).ca_file, "FILE", "certificates to trust (PEM); default: the system's")

#define STATUS_URL "http://127.0.0.1:8080"

int status_connect(struct http_client **out, const struct status_source *s, const volatile sig_atomic_t *stop,
                   struct err *e);
int status_fetch(struct http_client *c, struct buf *document, struct err *e);
/* Appends the table; lines end with `newline`. ERR_CORRUPT: not a status document. */
int status_table(const char *document, size_t size, const char *newline, struct buf *out, struct err *e);

#endif
