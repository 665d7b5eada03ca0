/* chat - see the header. Messages become turns (consecutive user and tool messages are one), then
 * each turn is written by a function of its role. What a turn looks like depends on three facts
 * about the whole conversation: whether the model thinks, whether tools are attached (then all
 * reasoning is kept), and which turn is the last of the user's. */
#include "common/model/chat.h"

#include <stdlib.h>

#include "common/model/chat_format.h"

struct turn {
    enum chat_role role;                          /* CHAT_ROLE_TOOL became CHAT_ROLE_USER */
    enum chat_task task;
    size_t first, n;                              /* its messages */
};

struct render {
    struct chat_prompt *out;
    const struct chat_options *o;
    const struct chat_message *messages;
    size_t n_messages;
    struct turn *turns;
    ptrdiff_t n_turns, last_user;                 /* last_user: -1 for none */
    bool keep_all;
    const struct chat_message *caller;            /* the latest message with calls */
    struct err *e;
};

/* ---- writing text and segments ---- */

void chat_prompt_init(struct chat_prompt *p) {
    *p = (struct chat_prompt){ .segments = NULL };
    buf_init(&p->text, CHAT_PROMPT_BYTES_MAX);
}

void chat_prompt_deinit(struct chat_prompt *p) {
    buf_deinit(&p->text);
    free(p->segments);
    *p = (struct chat_prompt){ .segments = NULL };
}

static struct chat_segment *segment_new(struct chat_prompt *p) {
    if (p->n_segments == p->room) {
        size_t room = p->room ? p->room * 2 : 64;
        struct chat_segment *segments = realloc(p->segments, room * sizeof *segments);
        if (!segments) return NULL;
        p->segments = segments;
        p->room = room;
    }
    return &p->segments[p->n_segments++];
}

/* Counts what was appended from `at` on as one kind of text. */
static void mark(struct chat_prompt *p, size_t at, bool control) {
    if (p->text.rc < 0 || p->text.size == at) return;
    p->in_reasoning = false;
    struct chat_segment *last = p->n_segments ? &p->segments[p->n_segments - 1] : NULL;
    if (!last || last->control != control) {
        last = segment_new(p);
        if (!last) {
            p->text.rc = ERR_NOMEM;
            return;
        }
        *last = (struct chat_segment){ .at = at, .control = control };
    }
    last->len = p->text.size - last->at;
}

static void put(struct chat_prompt *p, const char *bytes, size_t n, bool control) {
    size_t at = p->text.size;
    buf_add(&p->text, bytes, n);
    mark(p, at, control);
}

static void put_plain(struct chat_prompt *p, struct chat_text text) {
    put(p, text.data, text.len, false);
}

static void put_token(struct chat_prompt *p, const char *token) {
    put(p, token, strlen(token), true);
}

/* Length of the control token that begins at text[0], 0 for none. All begin with '<' or a bar. */
static size_t control_at(struct chat_text text) {
#define CHAT_CONTROL_TEXT(token) { token, sizeof token - 1 },
    static const struct chat_text controls[] = { CHAT_CONTROLS(CHAT_CONTROL_TEXT) };
    if (*text.data != CHAT_BOS[0] && *text.data != CHAT_DSML[0]) return 0;
    for (size_t i = 0; i < COUNT_OF(controls); i++) {
        size_t n = controls[i].len;
        if (n <= text.len && memcmp(text.data, controls[i].data, n) == 0) return n;
    }
    return 0;
}

/* Text of the format itself: the control tokens in it are meant. */
static void put_format(struct chat_prompt *p, const char *text) {
    struct chat_text rest = chat_text_of(text);
    size_t plain = 0;
    while (plain < rest.len) {
        size_t n = control_at((struct chat_text){ rest.data + plain, rest.len - plain });
        if (n == 0) {
            plain++;
            continue;
        }
        put(p, rest.data, plain, false);
        put(p, rest.data + plain, n, true);
        rest = (struct chat_text){ rest.data + plain + n, rest.len - plain - n };
        plain = 0;
    }
    put(p, rest.data, rest.len, false);
}

/* A sampled block: its markup is meant, control tokens inside its values are somebody's words. */
static void put_replay(struct chat_prompt *p, struct chat_text block) {
    const char *at = block.data, *end = at + block.len;
    for (const char *bar = at; (bar = memchr(bar, CHAT_DSML[0], (size_t)(end - bar))) != NULL;) {
        size_t n = strlen(CHAT_DSML);
        if ((size_t)(end - bar) < n || memcmp(bar, CHAT_DSML, n)) {
            bar++;
            continue;
        }
        put(p, at, (size_t)(bar - at), false);
        put(p, bar, n, true);
        at = bar += n;
    }
    put(p, at, (size_t)(end - at), false);
}

static int put_json_line(struct render *r, struct chat_text json) {
    size_t at = r->out->text.size;
    int rc = chat_json_reprint(json, &r->out->text, r->e);
    mark(r->out, at, false);
    return rc;
}

/* ---- tools and schemas ---- */

static int put_tools(struct render *r, const struct chat_message *m) {
    put_format(r->out, "\n\n" CHAT_TOOLS_HEAD);
    for (size_t i = 0; i < m->n_tools; i++) {
        if (i) put_format(r->out, "\n");
        int rc = put_json_line(r, m->tools[i]);
        if (rc < 0) return err_wrap(r->e, rc, "tool %zu", i);
    }
    put_format(r->out, CHAT_TOOLS_TAIL);
    return 0;
}

static int put_schema(struct render *r, const struct chat_message *m) {
    put_format(r->out, "\n\n" CHAT_SCHEMA_HEAD);
    int rc = put_json_line(r, m->schema);
    return rc < 0 ? err_wrap(r->e, rc, "schema of the answer") : 0;
}

static int put_instructions(struct render *r, const struct chat_message *m) {
    put_plain(r->out, m->content);
    int rc = m->n_tools ? put_tools(r, m) : 0;
    if (rc == 0 && m->schema.len) rc = put_schema(r, m);
    return rc;
}

/* ---- calls ---- */

static void open_parameter(struct chat_prompt *p, struct chat_text key, bool string) {
    put_format(p, CHAT_PARAMETER_OPEN);
    put_plain(p, key);
    put_format(p, string ? "\" string=\"true\">" : "\" string=\"false\">");
}

static void put_value(struct chat_prompt *p, const struct chat_json *j, uint32_t i) {
    bool string = j->values[i].type == CHAT_JSON_STRING;
    open_parameter(p, j->values[i].key, string);
    size_t at = p->text.size;
    if (string) chat_json_put_string(j, i, &p->text);
    else chat_json_put_line(j, i, &p->text);
    mark(p, at, false);
    put_format(p, CHAT_PARAMETER_CLOSE);
}

/* What is no JSON object, or too deep to be read, is shown as one string that is called like this:
 * the client only sends back what the model once wrote, so there is nobody to complain to. */
static void put_odd_arguments(struct chat_prompt *p, struct chat_text arguments) {
    open_parameter(p, chat_text_of("arguments"), true);
    put_plain(p, arguments);
    put_format(p, CHAT_PARAMETER_CLOSE);
}

static int put_arguments(struct render *r, struct chat_text arguments) {
    struct chat_json j;
    struct chat_text text = chat_json_trim(arguments);
    if (!text.len) return 0;                      /* as {} */
    int rc = chat_json_parse(&j, text, r->e);
    if (rc == ERR_NOMEM) return rc;
    if (rc < 0 || j.values[0].type != CHAT_JSON_OBJECT) put_odd_arguments(r->out, arguments);
    if (rc < 0) return 0;
    for (uint32_t i = chat_json_first(&j, 0); i && j.values[0].type == CHAT_JSON_OBJECT;) {
        put_value(r->out, &j, i);
        i = chat_json_next(&j, i);
        if (i) put_format(r->out, "\n");
    }
    chat_json_deinit(&j);
    return 0;
}

static int put_calls(struct render *r, const struct chat_message *m) {
    put_format(r->out, "\n\n" CHAT_CALLS_OPEN "\n");
    for (size_t i = 0; i < m->n_calls; i++) {
        if (i) put_format(r->out, "\n");
        put_format(r->out, CHAT_INVOKE_OPEN);
        put_plain(r->out, m->calls[i].name);
        put_format(r->out, "\">\n");
        int rc = put_arguments(r, m->calls[i].arguments);
        if (rc < 0) return err_wrap(r->e, rc, "arguments of call %zu", i);
        put_format(r->out, "\n" CHAT_INVOKE_CLOSE);
    }
    put_format(r->out, "\n" CHAT_CALLS_CLOSE);
    return 0;
}

/* ---- order of tool results ---- */

/* Something to sort: a call by its id, or a result by the place of the call that it answers. */
struct place {
    struct chat_text id;
    size_t at, message_i;
};

static int compare_ids(const void *a, const void *b) {
    const struct place *x = a, *y = b;
    int order = chat_text_compare(x->id, y->id);
    return order ? order : (x->at > y->at) - (x->at < y->at);
}

static int compare_places(const void *a, const void *b) {
    const struct place *x = a, *y = b;
    if (x->at != y->at) return x->at > y->at ? 1 : -1;
    return (x->message_i > y->message_i) - (x->message_i < y->message_i);
}

/* The calls that have ids, sorted by id; their number. */
static size_t sort_calls(const struct chat_message *m, struct place *calls) {
    size_t n = 0;
    for (size_t i = 0; i < m->n_calls; i++)
        if (m->calls[i].id.len) calls[n++] = (struct place){ m->calls[i].id, i, 0 };
    if (n) qsort(calls, n, sizeof *calls, compare_ids);
    return n;
}

/* Which of the calls has this id: the last one if several do, the first of all if none does. */
static size_t call_place(const struct place *calls, size_t n, struct chat_text id) {
    size_t lo = 0, hi = n;                   /* the first call whose id is greater lies in lo..hi */
    while (lo < hi) {
        size_t mid = lo + (hi - lo) / 2;
        if (chat_text_compare(calls[mid].id, id) <= 0) lo = mid + 1;
        else hi = mid;
    }
    return lo && chat_text_equal(calls[lo - 1].id, id) ? calls[lo - 1].at : 0;
}

/* Puts the turn's results into the order of the calls; texts between them keep their places. */
static void order_results(const struct render *r, const struct turn *t, const struct place *calls,
                          size_t n_calls, struct place *results, size_t *order) {
    size_t n = 0, next = 0;
    for (size_t i = t->first; i < t->first + t->n; i++) {
        const struct chat_message *m = &r->messages[i];
        if (m->role == CHAT_ROLE_TOOL)
            results[n++] = (struct place){ m->call_id, call_place(calls, n_calls, m->call_id), i };
    }
    qsort(results, n, sizeof *results, compare_places);
    for (size_t i = 0; i < t->n; i++) {
        bool result = r->messages[t->first + i].role == CHAT_ROLE_TOOL;
        order[i] = result ? results[next++].message_i : t->first + i;
    }
}

/* The order in which to write the turn's messages, to be freed; NULL in *order: as they come. */
static int find_order(struct render *r, const struct turn *t, size_t **order) {
    size_t n_results = 0;
    for (size_t i = 0; i < t->n; i++) n_results += r->messages[t->first + i].role == CHAT_ROLE_TOOL;
    *order = NULL;
    if (n_results < 2 || !r->caller) return 0;
    struct place *calls = malloc((r->caller->n_calls + n_results) * sizeof *calls);
    size_t *numbers = malloc(t->n * sizeof *numbers);
    size_t n_calls = calls && numbers ? sort_calls(r->caller, calls) : 0;
    if (n_calls) {
        order_results(r, t, calls, n_calls, calls + r->caller->n_calls, numbers);
        *order = numbers;
    }
    int rc = calls && numbers ? 0 : err_set(r->e, ERR_NOMEM, "order of %zu results", n_results);
    if (!*order) free(numbers);
    free(calls);
    return rc;
}

/* ---- turns ---- */

static void put_header(struct render *r, bool thinking) {
    put_token(r->out, CHAT_ASSISTANT);
    put_token(r->out, thinking ? CHAT_THINK : CHAT_THINK_END);
    r->out->in_reasoning = thinking;
}

/* Whether an answer begins behind turn i: at the end, and before what the model wrote. */
static bool answer_follows(const struct render *r, ptrdiff_t i) {
    if (i + 1 == r->n_turns) return true;
    enum chat_role next = r->turns[i + 1].role;
    return next == CHAT_ROLE_ASSISTANT || next == CHAT_ROLE_REMINDER;
}

static const char *task_token(enum chat_task task) {
    switch (task) {
    case CHAT_TASK_ACTION: return CHAT_ACTION;
    case CHAT_TASK_QUERY: return CHAT_QUERY;
    case CHAT_TASK_AUTHORITY: return CHAT_AUTHORITY;
    case CHAT_TASK_DOMAIN: return CHAT_DOMAIN;
    case CHAT_TASK_TITLE: return CHAT_TITLE;
    case CHAT_TASK_READ_URL: return CHAT_READ_URL;
    case CHAT_TASK_NONE: break;
    }
    return "";
}

static void end_user_turn(struct render *r, ptrdiff_t i) {
    enum chat_task task = r->turns[i].task;
    if (!answer_follows(r, i)) return;
    if (task == CHAT_TASK_NONE)
        put_header(r, r->o->thinking && (r->keep_all || i >= r->last_user));
    if (task == CHAT_TASK_ACTION) put_header(r, r->o->thinking);
    if (task != CHAT_TASK_NONE) put_token(r->out, task_token(task));
}

static void put_block(struct chat_prompt *p, const struct chat_message *m) {
    bool result = m->role == CHAT_ROLE_TOOL;
    if (result) put_format(p, CHAT_RESULT_OPEN);
    put_plain(p, m->content);
    if (result) put_format(p, CHAT_RESULT_CLOSE);
}

static int put_user(struct render *r, ptrdiff_t i) {
    const struct turn *t = &r->turns[i];
    size_t *order;
    int rc = find_order(r, t, &order);
    if (rc < 0) return rc;
    put_token(r->out, CHAT_USER);
    for (size_t b = 0; b < t->n; b++) {
        if (b) put_format(r->out, "\n\n");
        put_block(r->out, &r->messages[order ? order[b] : t->first + b]);
    }
    free(order);
    end_user_turn(r, i);
    return 0;
}

static int put_developer(struct render *r, ptrdiff_t i) {
    put_token(r->out, CHAT_USER);
    int rc = put_instructions(r, &r->messages[r->turns[i].first]);
    if (rc == 0) end_user_turn(r, i);
    return rc;
}

static int put_assistant(struct render *r, ptrdiff_t i) {
    const struct chat_message *m = &r->messages[r->turns[i].first];
    bool after_task = i > 0 && r->turns[i - 1].task != CHAT_TASK_NONE;
    bool last = i + 1 == r->n_turns;
    if (r->o->thinking && !after_task && (r->keep_all || i > r->last_user)) {
        put_plain(r->out, m->reasoning);
        put_token(r->out, CHAT_THINK_END);
    }
    put_plain(r->out, m->content);
    int rc = 0;
    if (m->replay.len) put_replay(r->out, m->replay);
    else if (m->n_calls) rc = put_calls(r, m);
    if (rc < 0) return rc;
    if (!last || !m->prefix) put_token(r->out, CHAT_EOS);
    if (m->task != CHAT_TASK_NONE && answer_follows(r, i)) put_token(r->out, task_token(m->task));
    return 0;
}

static int put_turn(struct render *r, ptrdiff_t i) {
    const struct chat_message *m = &r->messages[r->turns[i].first];
    switch (r->turns[i].role) {
    case CHAT_ROLE_SYSTEM: return put_instructions(r, m);
    case CHAT_ROLE_DEVELOPER: return put_developer(r, i);
    case CHAT_ROLE_USER: return put_user(r, i);
    case CHAT_ROLE_ASSISTANT: return put_assistant(r, i);
    case CHAT_ROLE_REMINDER:
        put_token(r->out, CHAT_REMINDER);
        put_plain(r->out, m->content);
        return 0;
    case CHAT_ROLE_TOOL: break;                   /* became part of a user turn */
    }
    return err_set(r->e, ERR_INTERNAL, "a turn of role %d", (int)r->turns[i].role);
}

/* ---- the conversation ---- */

static bool joins(const struct turn *t, const struct chat_message *m) {
    if (t->role != CHAT_ROLE_USER) return false;
    return m->role == CHAT_ROLE_TOOL || (m->role == CHAT_ROLE_USER && t->task == CHAT_TASK_NONE);
}

static void collect_turns(struct render *r) {
    for (size_t i = 0; i < r->n_messages; i++) {
        const struct chat_message *m = &r->messages[i];
        if (r->n_turns && i != r->o->n_context && joins(&r->turns[r->n_turns - 1], m)) {
            r->turns[r->n_turns - 1].n++;
            continue;
        }
        enum chat_role role = m->role == CHAT_ROLE_TOOL ? CHAT_ROLE_USER : m->role;
        r->turns[r->n_turns++] = (struct turn){ role, m->task, i, 1 };
    }
}

static bool is_users(const struct turn *t) {
    return t->role == CHAT_ROLE_USER || t->role == CHAT_ROLE_DEVELOPER;
}

/* With old reasoning the reference also drops its own developer role's old turns. */
static void drop_old_developer_turns(struct render *r) {
    ptrdiff_t kept = 0;
    for (ptrdiff_t i = 0; i < r->n_turns; i++)
        if (r->turns[i].role != CHAT_ROLE_DEVELOPER || i >= r->last_user)
            r->turns[kept++] = r->turns[i];
    r->last_user -= r->n_turns - kept;
    r->n_turns = kept;
}

static void survey(struct render *r) {
    collect_turns(r);
    r->last_user = r->n_turns - 1;
    while (r->last_user >= 0 && !is_users(&r->turns[r->last_user])) r->last_user--;
    r->keep_all = r->o->keep_reasoning;
    for (size_t i = 0; i < r->n_messages; i++) r->keep_all |= r->messages[i].n_tools > 0;
    if (r->o->thinking && !r->keep_all && r->last_user > 0) drop_old_developer_turns(r);
}

static const char *effort_text(const struct chat_options *o) {
    if (!o->thinking) return "";
    if (o->effort == CHAT_EFFORT_MAX)
        return o->encoding == CHAT_V4_0731 ? CHAT_EFFORT_TEXT_B : CHAT_EFFORT_TEXT_A;
    if (o->effort == CHAT_EFFORT_HIGH && o->encoding == CHAT_V4_0731) return CHAT_EFFORT_TEXT_A;
    return "";
}

/* Whether the first n turns end where the model may go on by itself. */
static bool is_open(const struct render *r, ptrdiff_t n) {
    if (n == 0) return false;
    const struct turn *last = &r->turns[n - 1];
    const struct chat_message *m = &r->messages[last->first];
    if (last->role == CHAT_ROLE_ASSISTANT) return m->prefix || m->task != CHAT_TASK_NONE;
    if (last->role == CHAT_ROLE_REMINDER) return n > 1 && is_users(last - 1);
    return is_users(last);
}

/* The header that open_turn gave an answer stands before it in later prompts, too: the model sees what it
 * wrote where it wrote it, and what was computed of it serves again. */
static void put_given_header(struct render *r, ptrdiff_t i) {
    bool given = r->o->open_turn && i > 0 && r->turns[i].role == CHAT_ROLE_ASSISTANT && !is_open(r, i);
    if (given) put_header(r, r->o->thinking && (r->keep_all || i >= r->last_user));
}

static int put_turns(struct render *r) {
    for (ptrdiff_t i = 0; i < r->n_turns; i++) {
        const struct chat_message *m = &r->messages[r->turns[i].first];
        if (r->turns[i].first >= r->o->n_context) put_given_header(r, i);
        int rc = r->turns[i].first < r->o->n_context ? 0 : put_turn(r, i);
        if (rc < 0) return err_wrap(r->e, rc, "message %zu", r->turns[i].first);
        if (m->role == CHAT_ROLE_ASSISTANT && m->n_calls) r->caller = m;
    }
    return 0;
}

static int check_limits(const struct chat_message *messages, size_t n, struct err *e) {
    if (n > CHAT_MESSAGES_MAX)
        return err_set(e, ERR_LIMIT, "%zu messages (limit %d)", n, CHAT_MESSAGES_MAX);
    for (size_t i = 0; i < n; i++) {
        size_t n_calls = messages[i].n_calls, n_tools = messages[i].n_tools;
        if (n_calls > CHAT_CALLS_MAX)
            return err_set(e, ERR_LIMIT, "message %zu: %zu calls (limit %d)", i, n_calls,
                           CHAT_CALLS_MAX);
        if (n_tools > CHAT_TOOLS_MAX)
            return err_set(e, ERR_LIMIT, "%zu tools (limit %d)", n_tools, CHAT_TOOLS_MAX);
    }
    return 0;
}

static int check_text(const struct chat_prompt *p, struct err *e) {
    if (p->text.rc == ERR_LIMIT)
        return err_set(e, ERR_LIMIT, "a prompt of more than %d bytes", CHAT_PROMPT_BYTES_MAX);
    return p->text.rc < 0 ? err_set(e, p->text.rc, "a prompt of %zu bytes", p->text.size) : 0;
}

int chat_render(struct chat_prompt *p, const struct chat_message *messages, size_t n,
                const struct chat_options *o, struct err *e) {
    int rc = check_limits(messages, n, e);
    if (rc < 0) return rc;
    struct render r = { .out = p, .o = o, .messages = messages, .n_messages = n, .e = e };
    r.turns = calloc(n ? n : 1, sizeof *r.turns);
    if (!r.turns) return err_set(e, ERR_NOMEM, "%zu messages", n);
    survey(&r);
    if (o->n_context == 0) {
        if (!o->without_bos) put_token(p, CHAT_BOS);
        if (n) put_format(p, effort_text(o));
    }
    rc = put_turns(&r);
    if (rc == 0 && o->open_turn && !is_open(&r, r.n_turns)) put_header(&r, o->thinking);
    free(r.turns);
    return rc < 0 ? rc : check_text(p, e);
}

int chat_prompt_force_call(struct chat_prompt *p, struct chat_text name, struct err *e) {
    put_format(p, "\n\n" CHAT_CALLS_OPEN "\n" CHAT_INVOKE_OPEN);
    if (name.len) {
        put_plain(p, name);
        put_format(p, "\">\n");
    }
    return check_text(p, e);
}
