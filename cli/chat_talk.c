/* chat_talk - see the header. */
#include "cli/chat_talk.h"

#include "common/base/utf8.h"
#include "common/sys/file.h"
#include "coordinator/api_json.h"

#include <stdlib.h>

enum { FILE_BYTES_MAX = 6 * CHAT_TALK_BYTES_MAX }; /* a control character takes six bytes in JSON */

static void turn_free(struct chat_talk *t, struct chat_turn *turn) {
    t->bytes -= turn->content_len + turn->reasoning_len;
    free(turn->content);
    free(turn->reasoning);
}

void chat_talk_cut(struct chat_talk *t, int n) {
    while (t->n > n) turn_free(t, &t->turn[--t->n]);
}

void chat_talk_deinit(struct chat_talk *t) {
    chat_talk_cut(t, 0);
    free(t->turn);
    *t = (struct chat_talk){ 0 };
}

static char *copy_text(struct chat_text text) {
    char *copy = malloc(text.len + 1);
    if (!copy) return NULL;
    if (text.len) memcpy(copy, text.data, text.len);
    copy[text.len] = 0;
    return copy;
}

static int make_room(struct chat_talk *t, size_t more, struct err *e) {
    if (t->n == CHAT_TALK_TURNS_MAX)
        return err_set(e, ERR_LIMIT, "the conversation has %d messages, which is the limit", t->n);
    if (more > CHAT_TALK_BYTES_MAX - t->bytes)
        return err_set(e, ERR_LIMIT, "the conversation would be longer than %d MiB",
                       CHAT_TALK_BYTES_MAX >> 20);
    if (t->n < t->room) return 0;
    int room = t->room ? 2 * t->room : 16;
    struct chat_turn *turn = realloc(t->turn, (size_t)room * sizeof *turn);
    if (!turn) return err_set(e, ERR_NOMEM, "no memory for a message");
    t->turn = turn;
    t->room = room;
    return 0;
}

int chat_talk_add(struct chat_talk *t, enum chat_role role, struct chat_text content,
                  struct chat_text reasoning, struct err *e) {
    int rc = make_room(t, content.len + reasoning.len, e);
    if (rc < 0) return rc;
    struct chat_turn turn = { .role = role, .content_len = content.len, .reasoning_len = reasoning.len };
    turn.content = copy_text(content);
    if (reasoning.len) turn.reasoning = copy_text(reasoning);
    if (!turn.content || (reasoning.len && !turn.reasoning)) {
        free(turn.content);
        free(turn.reasoning);
        return err_set(e, ERR_NOMEM, "no memory for a message");
    }
    t->bytes += content.len + reasoning.len;
    t->turn[t->n++] = turn;
    return 0;
}

int chat_talk_restart(struct chat_talk *t, const char *system_prompt, struct err *e) {
    bool has = t->n > 0 && t->turn[0].role == CHAT_ROLE_SYSTEM;
    chat_talk_cut(t, !system_prompt && has ? 1 : 0);
    if (!system_prompt || !*system_prompt) return 0;
    return chat_talk_add(t, CHAT_ROLE_SYSTEM, chat_text_of(system_prompt), (struct chat_text){ 0 }, e);
}

void chat_talk_messages(const struct chat_talk *t, struct chat_message *out) {
    for (int i = 0; i < t->n; i++) {
        const struct chat_turn *turn = &t->turn[i];
        out[i] = (struct chat_message){ .role = turn->role,
                                        .content = { turn->content, turn->content_len },
                                        .reasoning = { turn->reasoning, turn->reasoning_len } };
    }
}

static const char *role_name(enum chat_role role) {
    return role == CHAT_ROLE_SYSTEM ? "system" : role == CHAT_ROLE_USER ? "user" : "assistant";
}

void chat_talk_put_json(const struct chat_talk *t, struct buf *out) {
    buf_add_char(out, '[');
    for (int i = 0; i < t->n; i++) {
        const struct chat_turn *turn = &t->turn[i];
        buf_printf(out, "%s\n  {\"role\": \"%s\", \"content\": ", i ? "," : "", role_name(turn->role));
        chat_json_put_quoted(out, (struct chat_text){ turn->content, turn->content_len });
        if (turn->reasoning_len) {
            buf_add_text(out, ", \"reasoning_content\": ");
            chat_json_put_quoted(out, (struct chat_text){ turn->reasoning, turn->reasoning_len });
        }
        buf_add_char(out, '}');
    }
    buf_add_text(out, "\n]");
}

/* ---- files ---- */

int chat_talk_save(const struct chat_talk *t, const char *path, struct err *e) {
    struct buf text;
    buf_init(&text, FILE_BYTES_MAX);
    buf_add_text(&text, "{\"messages\": ");
    chat_talk_put_json(t, &text);
    buf_add_text(&text, "}\n");
    int rc = text.rc < 0 ? err_set(e, text.rc, "no memory for the file's text") : 0;
    if (rc == 0) rc = file_write_all(path, text.data, text.size, e);
    buf_deinit(&text);
    return rc;
}

static int read_role(const json_t *message, enum chat_role *role, struct err *e) {
    struct chat_text name = { 0 };
    int rc = api_json_string(message, "role", &name, e);
    if (rc < 0) return rc;
    for (enum chat_role r = CHAT_ROLE_SYSTEM; r <= CHAT_ROLE_ASSISTANT; r++) {
        *role = r;
        if (chat_text_equal(name, chat_text_of(role_name(r)))) return 0;
    }
    return err_set(e, ERR_INVALID, "role must be system, user or assistant");
}

static int read_message(struct chat_talk *t, const json_t *message, struct err *e) {
    enum chat_role role;
    struct chat_text content = { 0 }, reasoning = { 0 };
    if (!json_is_object(message)) return err_set(e, ERR_INVALID, "not an object");
    int rc = read_role(message, &role, e);
    if (rc == 0) rc = api_json_string(message, "content", &content, e);
    if (rc >= 0) rc = api_json_string(message, "reasoning_content", &reasoning, e);
    if (rc >= 0 && role == CHAT_ROLE_SYSTEM && t->n > 0)
        rc = err_set(e, ERR_INVALID, "a system message stands at the beginning or nowhere");
    return rc < 0 ? rc : chat_talk_add(t, role, content, reasoning, e);
}

static int read_messages(struct chat_talk *t, struct chat_text text, struct err *e) {
    json_t *root = NULL, *messages = NULL;
    int rc = api_json_parse(&root, text, e);
    if (rc < 0) return rc;
    if (!json_is_object(root)) rc = err_set(e, ERR_INVALID, "not an object with \"messages\"");
    if (rc == 0) rc = api_json_array(root, "messages", &messages, e);
    if (rc >= 0 && !messages) rc = err_set(e, ERR_INVALID, "no \"messages\"");
    for (size_t i = 0; rc >= 0 && i < json_array_size(messages); i++) {
        rc = read_message(t, json_array_get(messages, i), e);
        if (rc < 0) err_wrap(e, rc, "message %zu", i + 1);
    }
    json_decref(root);
    return rc < 0 ? rc : 0;
}

int chat_talk_load(struct chat_talk *t, const char *path, struct err *e) {
    struct chat_talk fresh = { 0 };
    void *data;
    size_t size;
    int rc = file_read_all(path, FILE_BYTES_MAX, &data, &size, e);
    if (rc < 0) return rc;
    rc = read_messages(&fresh, (struct chat_text){ data, size }, e);
    free(data);
    if (rc < 0) {
        chat_talk_deinit(&fresh);
        return err_wrap(e, rc, "%s", path);
    }
    chat_talk_deinit(t);
    *t = fresh;
    return 0;
}
