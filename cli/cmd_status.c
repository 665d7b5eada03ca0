/* cmd_status - what a service is doing: nodes, stages, memory, links, and where a token's time goes. */
#include "cli/cmd.h"

#include "cli/http_client.h"
#include "cli/status_view.h"

#include <stdio.h>

enum { DOCUMENT_MAX = 16 << 20 };

static int show(const struct status_source *source, bool json, struct err *e) {
    struct http_client *client;
    struct buf document, table;
    int rc = status_connect(&client, source, NULL, e);
    if (rc < 0) return rc;
    buf_init(&document, DOCUMENT_MAX);
    buf_init(&table, DOCUMENT_MAX);
    rc = status_fetch(client, &document, e);
    if (rc == 0) rc = status_table(document.data, document.size, "\n", &table, e);
    if (rc == 0) puts(json ? document.data : table.data);
    buf_deinit(&document);
    buf_deinit(&table);
    http_client_free(client);
    return rc;
}

int cmd_status(int argc, char **argv) {
    struct status_source source = { .url = STATUS_URL };
    bool json = false;
    const struct opt table[] = {
        STATUS_OPTS(source),
        OPT_FLAG('j', "json", &json, "print the document instead of the table"),
    };
    const struct opts spec = { "status", "", "Shows what a service is doing and where a token's time goes.",
                               table, COUNT_OF(table), 0, 0 };
    int n_args = opts_parse(&spec, argc, argv);
    if (n_args < 0) return opts_exit_status(n_args);
    struct err e = { 0 };
    return show(&source, json, &e) < 0 ? opts_failure(&spec, &e) : 0;
}
