/* chat_screen - see the header. */
#include "cli/chat_screen.h"

#include "common/base/utf8.h"
#include "common/sys/term.h"

enum { SHOW_BYTES_MAX = 1 << 28 };

/* What stands for a character that a terminal would act on; 0: it is harmless. */
static uint32_t picture_of(uint32_t c) {
    if (c < 0x20) return c == '\n' || c == '\t' ? 0 : 0x2400 + c;  /* U+2400: pictures of controls */
    if (c == 0x7f) return 0x2421;
    if (c >= 0x80 && c < 0xa0) return UTF8_REPLACEMENT;  /* the 8-bit controls, as U+009B */
    if ((c >= 0x202a && c <= 0x202e) || (c >= 0x2066 && c <= 0x2069)) return UTF8_REPLACEMENT; /* direction */
    return 0;
}

void chat_screen_filter(struct buf *out, const char *text, size_t len) {
    const uint8_t *at = (const uint8_t *)text, *end = at + len, *kept = at;
    while (at < end) {
        uint32_t c = 0;
        unsigned n = utf8_decode(at, end, &c);
        uint32_t picture = n ? picture_of(c) : UTF8_REPLACEMENT;
        if (picture) {
            char bytes[UTF8_MAX];
            buf_add(out, kept, (size_t)(at - kept));
            buf_add(out, bytes, utf8_encode(picture, bytes));
        }
        at += n ? n : 1;
        if (picture) kept = at;
    }
    buf_add(out, kept, (size_t)(at - kept));
}

const char *chat_screen_line(struct buf *out, const char *text, size_t max) {
    size_t len = strlen(text), n = MIN(len, max);
    if (n < len) n = utf8_valid_prefix(text, n);
    chat_screen_filter(out, text, n);
    for (size_t i = 0; i < out->size; i++)
        if (out->data[i] == '\n' || out->data[i] == '\t') out->data[i] = ' ';
    return out->data;
}

static void write_text(FILE *f, const char *text, size_t len) {
    if (!term_is_terminal(f)) {
        fwrite(text, 1, len, f);
    } else {
        struct buf safe;
        buf_init(&safe, SHOW_BYTES_MAX);
        chat_screen_filter(&safe, text, len);
        if (safe.size) fwrite(safe.data, 1, safe.size, f);
        buf_deinit(&safe);
    }
    fflush(f);
}

static void show_reasoning(struct chat_screen *s, const char *text, size_t len) {
    if (!term_is_terminal(s->side)) return;
    if (!s->fold) {
        fputs(term_style(s->side, TERM_DIM), s->side);
        write_text(s->side, text, len);
        fputs(term_style(s->side, TERM_PLAIN), s->side);
    } else {
        for (size_t i = 0; i < len; i++) s->n_folded += ((uint8_t)text[i] & 0xc0) != 0x80;
        fprintf(s->side, "\r%sthinking, %zu characters%s\033[K", term_style(s->side, TERM_DIM), s->n_folded,
                term_style(s->side, TERM_PLAIN));
    }
    fflush(s->side);
}

/* Between reasoning and what follows: the counting line goes, shown reasoning gets a line of its own. */
static void leave_reasoning(struct chat_screen *s, bool content_follows) {
    if (!term_is_terminal(s->side)) return;
    if (s->fold) fputs("\r\033[K", s->side);
    else fputs(content_follows ? "\n\n" : "\n", s->side);
    fflush(s->side);
}

void chat_screen_begin(struct chat_screen *s) {
    s->part = CHAT_PART_NONE;
    s->mid_line = false;
    s->n_folded = 0;
}

void chat_screen_show(struct chat_screen *s, enum chat_part part, const char *text, size_t len) {
    if (len == 0) return;
    if (s->part == CHAT_PART_REASONING && part == CHAT_PART_CONTENT) leave_reasoning(s, true);
    s->part = part;
    if (part == CHAT_PART_REASONING) {
        show_reasoning(s, text, len);
        return;
    }
    write_text(s->answer, text, len);
    s->mid_line = text[len - 1] != '\n';
}

void chat_screen_end(struct chat_screen *s) {
    if (s->part == CHAT_PART_REASONING) leave_reasoning(s, false);
    if (s->mid_line) fputc('\n', s->answer);
    fflush(s->answer);
    s->mid_line = false;
    s->part = CHAT_PART_NONE;
}
