/* term - what the terminal behind stdout or stderr can do: width, colour, and lines that are redrawn.
 *
 * Main thread. Pipes and files count as "no terminal": no colour, no redrawing, TERM_COLUMNS wide, so
 * that output which is read by programs never depends on who looks. $NO_COLOR and TERM=dumb switch
 * colour off as well. */
#ifndef SYS_TERM_H
#define SYS_TERM_H

#include <stdbool.h>
#include <stdio.h>

enum { TERM_COLUMNS = 80 };

enum term_style {
    TERM_PLAIN,
    TERM_BOLD,
    TERM_DIM,
    TERM_RED,
    TERM_GREEN,
    TERM_YELLOW,
    TERM_CYAN,
    TERM_STYLES
};

bool term_is_terminal(FILE *f);
int term_columns(FILE *f);
const char *term_style(FILE *f, enum term_style style);       /* "" where there is no colour */

#endif
