/* log - see the header. A line is built on the stack and handed to stdio in one call, which locks the
 * stream. */
#include "common/base/log.h"

#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

static const char *const level_names[LOG_LEVELS] = { "error", "warn", "info", "debug" };
static atomic_int level_now = LOG_INFO;
static void (*_Atomic line_sink)(const char *line, size_t length);

void log_set_level(enum log_level level) {
    atomic_store(&level_now, (int)level);
}

int log_set_level_name(const char *name) {
    for (int i = 0; i < LOG_LEVELS; i++) {
        if (strcmp(name, level_names[i]) != 0) continue;
        log_set_level((enum log_level)i);
        return 0;
    }
    return ERR_INVALID;
}

int log_enabled(enum log_level level) {
    return (int)level <= atomic_load_explicit(&level_now, memory_order_relaxed);
}

void log_set_sink(void (*sink)(const char *line, size_t length)) {
    atomic_store(&line_sink, sink);
}

/* Universal time, so that the lines of machines in different places can be laid side by side. */
static int put_head(char *line, size_t room, enum log_level level, const char *area) {
    struct timespec now = { 0, 0 };
    timespec_get(&now, TIME_UTC);
    int day_s = (int)(now.tv_sec % 86400);
    return snprintf(line, room, "%02d:%02d:%02d.%03d %-5s %s: ", day_s / 3600, day_s / 60 % 60, day_s % 60,
                    (int)(now.tv_nsec / 1000000), level_names[level], area);
}

static void put_line(enum log_level level, const char *area, const char *format, va_list args) {
    char line[LOG_LINE_MAX + 2];
    size_t length = (size_t)put_head(line, LOG_LINE_MAX / 2, level, area);
    if (length >= LOG_LINE_MAX / 2) length = LOG_LINE_MAX / 2 - 1;
    int rest = vsnprintf(line + length, LOG_LINE_MAX - length + 1, format, args);
    if (rest > 0) length += (size_t)rest;
    if (length > LOG_LINE_MAX) length = LOG_LINE_MAX;
    for (size_t i = 0; i < length; i++) {
        if ((unsigned char)line[i] < ' ' || line[i] == 127) line[i] = '?';
    }
    line[length++] = '\n';
    void (*sink)(const char *, size_t) = atomic_load(&line_sink);
    if (sink) sink(line, length);
    else fwrite(line, 1, length, stderr);
}

#define LOG_FUNCTION(name, level)                         \
    void name(const char *area, const char *format, ...) { \
        if (!log_enabled(level)) return;                  \
        va_list args;                                     \
        va_start(args, format);                           \
        put_line(level, area, format, args);              \
        va_end(args);                                     \
    }

LOG_FUNCTION(log_error, LOG_ERROR)
LOG_FUNCTION(log_warn, LOG_WARN)
LOG_FUNCTION(log_info, LOG_INFO)
LOG_FUNCTION(log_debug, LOG_DEBUG)
