/* chat_encoding - which release of the format a weight file needs, and what an API's words for
 * the reasoning effort mean in it. The table follows the vendor's documents at the time of each
 * release. */
#include "common/model/chat.h"

int chat_effort_read(enum chat_encoding encoding, struct chat_text word, bool *thinking,
                     enum chat_effort *effort, struct err *e) {
    static const struct {
        const char *word;
        enum chat_effort v4_2604, v4_0731;
    } table[] = {
        { "none", CHAT_EFFORT_UNSET, CHAT_EFFORT_UNSET },
        { "minimal", CHAT_EFFORT_HIGH, CHAT_EFFORT_LOW },
        { "low", CHAT_EFFORT_HIGH, CHAT_EFFORT_LOW },
        { "medium", CHAT_EFFORT_HIGH, CHAT_EFFORT_HIGH },
        { "high", CHAT_EFFORT_HIGH, CHAT_EFFORT_HIGH },
        { "xhigh", CHAT_EFFORT_MAX, CHAT_EFFORT_HIGH },
        { "max", CHAT_EFFORT_MAX, CHAT_EFFORT_MAX },
        { "ultra", CHAT_EFFORT_MAX, CHAT_EFFORT_MAX },
    };
    for (size_t i = 0; i < COUNT_OF(table); i++) {
        if (!chat_text_equal(word, chat_text_of(table[i].word))) continue;
        *effort = encoding == CHAT_V4_0731 ? table[i].v4_0731 : table[i].v4_2604;
        if (i == 0) *thinking = false;
        return 0;
    }
    return err_set(e, ERR_INVALID, "reasoning effort must be none, minimal, low, medium, high, "
                                   "xhigh, max or ultra");
}

const char *chat_encoding_name(enum chat_encoding encoding) {
    return encoding == CHAT_V4_0731 ? "v4-0731" : "v4-2604";
}

int chat_encoding_read(const char *name, enum chat_encoding *encoding, struct err *e) {
    for (int i = CHAT_V4_2604; i <= CHAT_V4_0731; i++) {
        if (strcmp(name, chat_encoding_name((enum chat_encoding)i))) continue;
        *encoding = (enum chat_encoding)i;
        return 0;
    }
    return err_set(e, ERR_INVALID, "chat encoding \"%s\": v4-2604 or v4-0731", name);
}

static bool contains(struct chat_text text, const char *needle) {
    size_t n = strlen(needle);
    for (size_t i = 0; i + n <= text.len; i++)
        if (memcmp(text.data + i, needle, n) == 0) return true;
    return false;
}

enum chat_encoding chat_encoding_guess(struct chat_text model_name, struct chat_text jinja) {
    bool newer = contains(jinja, "Beyond maximum") || contains(model_name, "0731") ||
                 contains(model_name, "0813");
    return newer ? CHAT_V4_0731 : CHAT_V4_2604;
}
