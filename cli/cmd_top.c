/* cmd_top - the status table, live: drawn again every second until Ctrl-C.
 *
 * Plain ANSI: the cursor goes home, every line is cleared to its end, nothing scrolls; what does not fit
 * into the terminal's height is left out at the end. When the endpoint does not answer, the last table
 * stays and the reason stands above it. */
#include "cli/cmd.h"

#include "cli/http_client.h"
#include "cli/status_view.h"
#include "common/sys/clock.h"
#include "common/sys/term.h"

#include <signal.h>
#include <stdio.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

enum { DOCUMENT_MAX = 16 << 20, ROWS_DEFAULT = 24 };
#define NEWLINE "\033[K\n"

static volatile sig_atomic_t stopped;

static void on_signal(int number) {
    (void)number;
    stopped = 1;
}

static int terminal_rows(void) {
    struct winsize size;
    return ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_row > 2 ? size.ws_row : ROWS_DEFAULT;
}

static void draw(const char *table, const char *note) {
    char now[16];
    time_t t = time(NULL);
    struct tm tm;
    int rows = terminal_rows() - 2;
    strftime(now, sizeof now, "%H:%M:%S", localtime_r(&t, &tm));
    printf("\033[H\033[7mpleiades top  %s  Ctrl-C ends  %-42.42s\033[0m" NEWLINE, now, note);
    for (const char *at = table; *at && rows > 0; rows--) {
        size_t n = strcspn(at, "\n");
        n += at[n] == '\n';
        fwrite(at, 1, n, stdout);
        at += n;
    }
    printf("\033[J");
    fflush(stdout);
}

static void refresh(struct http_client *client, struct buf *document, struct buf *table) {
    struct buf fresh;
    struct err e = { 0 };
    buf_init(&fresh, DOCUMENT_MAX);
    buf_clear(document);
    int rc = status_fetch(client, document, &e);
    if (rc == 0) rc = status_table(document->data, document->size, NEWLINE, &fresh, &e);
    if (rc == 0) {
        buf_clear(table);
        buf_add(table, fresh.data, fresh.size);
    }
    buf_deinit(&fresh);
    draw(table->size ? table->data : "", rc < 0 ? e.text : "");
}

static int watch(const struct status_source *source, double every, struct err *e) {
    struct http_client *client;
    struct buf document, table;
    int rc = status_connect(&client, source, &stopped, e);
    if (rc < 0) return rc;
    buf_init(&document, DOCUMENT_MAX);
    buf_init(&table, DOCUMENT_MAX);
    signal(SIGINT, on_signal);
    signal(SIGTERM, on_signal);
    printf("\033[?25l\033[2J");                       /* no cursor, an empty screen */
    while (!stopped) {
        uint64_t next = clock_now_ns() + (uint64_t)(every * 1e9);
        refresh(client, &document, &table);
        while (!stopped && clock_now_ns() < next) clock_sleep_ms(50);
    }
    printf("\033[?25h\n");
    buf_deinit(&document);
    buf_deinit(&table);
    http_client_free(client);
    return 0;
}

int cmd_top(int argc, char **argv) {
    struct status_source source = { .url = STATUS_URL };
    double every = 1;
    const struct opt table[] = {
        STATUS_OPTS(source),
        OPT_NUMBER('n', "every", &every, 0.2, 3600, "S", "seconds between two looks"),
    };
    const struct opts spec = {
        "top", "", "Shows the status of a service, live.", table, COUNT_OF(table), 0, 0
    };
    int n_args = opts_parse(&spec, argc, argv);
    if (n_args < 0) return opts_exit_status(n_args);
    struct err e = { 0 };
    if (!term_is_terminal(stdout)) return opts_usage_error(&spec, "not a terminal; see `pleiades status`");
    return watch(&source, every, &e) < 0 ? opts_failure(&spec, &e) : 0;
}
