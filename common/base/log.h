/* log - one line per event on stderr: time of day, level, area, text.
 *
 * Any thread may log; a line is written in one piece. The level is the only state and is set once at
 * start, from $PLEIADES_LOG or an option. A line is cut at LOG_LINE_MAX bytes, and control characters
 * in it (they may come from outside) are shown as '?'. Log where an error stops travelling, once; what
 * is on its way up is not logged. */
#ifndef BASE_LOG_H
#define BASE_LOG_H

#include "common/base/err.h"

enum log_level { LOG_ERROR, LOG_WARN, LOG_INFO, LOG_DEBUG, LOG_LEVELS };
enum { LOG_LINE_MAX = 1024 };

void log_set_level(enum log_level level);
int log_set_level_name(const char *name);         /* "error" "warn" "info" "debug"; else ERR_INVALID */
int log_enabled(enum log_level level);            /* for text that costs something to make */

void log_error(const char *area, const char *format, ...) PRINTF_LIKE(2, 3);
void log_warn(const char *area, const char *format, ...) PRINTF_LIKE(2, 3);
void log_info(const char *area, const char *format, ...) PRINTF_LIKE(2, 3);
void log_debug(const char *area, const char *format, ...) PRINTF_LIKE(2, 3);

/* Where finished lines go instead of stderr (tests, `top`); NULL gives stderr back. Called on the
 * logging thread. */
void log_set_sink(void (*sink)(const char *line, size_t length));

#endif
