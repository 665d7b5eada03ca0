/* term - see the header. The few escape sequences below work on every terminal of the last decades. */
#include "common/sys/term.h"

#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

bool term_is_terminal(FILE *f) {
    return isatty(fileno(f)) == 1;
}

int term_columns(FILE *f) {
    struct winsize size;
    if (!term_is_terminal(f) || ioctl(fileno(f), TIOCGWINSZ, &size) != 0) return TERM_COLUMNS;
    return size.ws_col >= 20 ? size.ws_col : TERM_COLUMNS;
}

static bool has_colour(FILE *f) {
    const char *no_colour = getenv("NO_COLOR"), *kind = getenv("TERM");
    if (no_colour && *no_colour) return false;
    return term_is_terminal(f) && kind && strcmp(kind, "dumb") != 0;
}

const char *term_style(FILE *f, enum term_style style) {
    static const char *const sequences[TERM_STYLES] = {
        [TERM_PLAIN] = "\033[0m", [TERM_BOLD] = "\033[1m",   [TERM_DIM] = "\033[2m",
        [TERM_RED] = "\033[31m",  [TERM_GREEN] = "\033[32m", [TERM_YELLOW] = "\033[33m",
        [TERM_CYAN] = "\033[36m",
    };
    return has_colour(f) ? sequences[style] : "";
}
