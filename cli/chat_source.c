/* chat_source - see the header. */
#include "cli/chat_source.h"

void chat_answer_init(struct chat_answer *a, struct chat_screen *screen) {
    *a = (struct chat_answer){ .screen = screen };
    buf_init(&a->reasoning, CHAT_ANSWER_BYTES_MAX);
    buf_init(&a->content, CHAT_ANSWER_BYTES_MAX);
    chat_screen_begin(screen);
}

void chat_answer_deinit(struct chat_answer *a) {
    buf_deinit(&a->reasoning);
    buf_deinit(&a->content);
}

int chat_answer_add(struct chat_answer *a, enum chat_part part, const char *text, size_t len) {
    struct buf *to = part == CHAT_PART_REASONING ? &a->reasoning : &a->content;
    chat_screen_show(a->screen, part, text, len);
    return buf_add(to, text, len);
}
