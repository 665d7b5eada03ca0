/* coordinator/api_request: the three dialects, as messages of ours. Chat's rendering is in
 * test_chat_render. */
#include "tests/harness/test.h"

#include "coordinator/api_request.h"
#include "coordinator/api_sealed.h"

typedef int reader(struct api_request *, json_t *, struct chat_text, const struct api_defaults *,
                   struct err *);

static const struct api_defaults defaults = { .encoding = CHAT_V4_0731, .thinking = true };

static int read_with(reader *read, struct api_request *r, const char *body, struct err *e) {
    json_t *root;
    struct chat_text text = chat_text_of(body);
    int rc = api_json_parse(&root, text, e);
    if (rc < 0) return rc;
    rc = read(r, root, text, &defaults, e);
    json_decref(root);
    return rc;
}

static void put_text(struct buf *b, const char *before, struct chat_text text) {
    buf_add_text(b, before);
    buf_add(b, text.data, text.len);
}

/* One line per message: role, content, then what else it has. */
static void put_message(struct buf *b, const struct chat_message *m) {
    static const char letters[] = "SUATRD";
    buf_add_char(b, letters[m->role]);
    put_text(b, ":", m->content);
    if (m->reasoning.len) put_text(b, " R:", m->reasoning);
    if (m->call_id.len) put_text(b, " for:", m->call_id);
    for (size_t i = 0; i < m->n_calls; i++) {
        put_text(b, " call:", m->calls[i].id);
        put_text(b, ",", m->calls[i].name);
        put_text(b, ",", m->calls[i].arguments);
    }
    for (size_t i = 0; i < m->n_tools; i++) put_text(b, " tool:", m->tools[i]);
    if (m->schema.len) put_text(b, " schema:", m->schema);
    if (m->prefix) buf_add_text(b, " prefix");
    buf_add_char(b, '\n');
}

static void expect(reader *read, const char *body, const char *expected) {
    struct api_request r;
    struct err e;
    struct buf b;
    buf_init(&b, 1 << 20);
    assert_fine(read_with(read, &r, body, &e), &e);
    for (size_t i = 0; i < r.n_messages; i++) put_message(&b, &r.messages[i]);
    assert_string_equal(b.data, expected);
    buf_deinit(&b);
    api_request_deinit(&r);
}

static void expect_error(reader *read, const char *body, const char *text) {
    struct api_request r = { .messages = NULL };
    struct err e = { .text = "" };
    int rc = read_with(read, &r, body, &e);
    if (rc >= 0) fail_msg("accepted: %s", body);
    assert_int_equal(rc, ERR_INVALID);
    assert_string_equal(e.text, text);
}

/* Single quotes are easier to read in here. */
static const char *quoted(const char *text) {
    static char rooms[4][4096];
    static int next;
    char *room = rooms[next++ % 4];
    snprintf(room, sizeof rooms[0], "%s", text);
    for (char *p = room; *p; p++)
        if (*p == '\'') *p = '"';
    return room;
}

#define Q(text) quoted(text)

/* ---- chat ---- */

static void chat_takes_the_shapes_that_clients_send(void **state) {
    (void)state;
    expect(api_request_chat,
           Q("{'messages':[{'role':'user','content':['a',{'type':'input_text','text':'b'}]},"
             "{'role':'assistant','content':[{'type':'refusal','refusal':'no'},"
             "{'type':'output_text','text':'c'}],'reasoning':'r','refusal':null,"
             "'function_call':{'name':'f','arguments':'{}'}},"
             "{'role':'function','name':'f','content':'d'}]}"),
           "U:a\n\nb\nA:c R:r call:,f,{}\nT:d\n");
    expect(api_request_chat,
           Q("{'messages':[{'role':'assistant','tool_calls':[{'id':'i','function':{'name':'f',"
             "'arguments': {'b': 123456789012345678901234567890, 'a':1.50} }}]},"
             "{'role':'assistant','content':'x','prefix':true}]}"),
           Q("A: call:i,f,{'b': 123456789012345678901234567890, 'a':1.50}\nA:x prefix\n"));
    expect(api_request_chat,
           Q("{'messages':[{'role':'assistant','content':'x','prefix':true},{'role':'user'}]}"),
           "A:x\nU:\n");
    expect(api_request_chat,
           Q("{'messages':[{'role':'user','content':'\\u0000'}],'functions':[{'name':'g'}],"
             "'function_call':{'name':'g'}}"),
           Q("S: tool:{'name':'g'}\nU:"));
}

static void later_duplicates_and_escaped_keys_are_found_in_the_text(void **state) {
    (void)state;
    expect(
        api_request_chat,
        Q("{'tools':[1],'messages':[{'role':'user','content':'{[,\\\\'}],\n 't\\u006fols' : [ "
          "{'type':'function','function':{'name':'x','a':1},'function':{'name':'f', 'z' : 2}}]}"),
        Q("S: tool:{'name':'f', 'z' : 2}\nU:{[,\\\n"));
}

static void chat_choices_filter_and_name_tools(void **state) {
    (void)state;
    static const char tools[] =
        "{'messages':[{'role':'user','content':'q'}],'tools':[{'type':'function','function':"
        "{'name':'f'}},{'type':'other'},{'type':'function','function':{'name':'g'}}],"
        "'parallel_tool_calls':false,'tool_choice':";
    static const struct {
        const char *choice;
        enum api_tool_choice expected;
        size_t n_tools;
        const char *error;
    } cases[] = {
        { "'auto'}", API_TOOLS_AUTO, 2, NULL },
        { "null}", API_TOOLS_AUTO, 2, NULL },
        { "'none'}", API_TOOLS_NONE, 0, NULL },
        { "'required'}", API_TOOLS_REQUIRED, 2, NULL },
        { "{'type':'function','function':{'name':'g'}}}", API_TOOLS_NAMED, 2, NULL },
        { "{'type':'allowed_tools','allowed_tools':{'mode':'required','tools':[{'type':'function',"
          "'function':{'name':'g'}}]}}}",
          API_TOOLS_REQUIRED, 1, NULL },
        { "{'type':'function','function':{'name':'h'}}}", API_TOOLS_AUTO, 0,
          "tool_choice names \"h\", which is not among the tools" },
        { "{'type':'allowed_tools','allowed_tools':{'tools':[{'name':'h'}]}}}", API_TOOLS_AUTO, 0,
          "tool_choice names \"h\", which is not among the tools" },
        { "'sometimes'}", API_TOOLS_AUTO, 0,
          "tool_choice must be auto, none, required or name a tool" },
        { "7}", API_TOOLS_AUTO, 0, "tool_choice must be a string or an object" },
    };
    for (size_t i = 0; i < COUNT_OF(cases); i++) {
        char body[1024];
        struct api_request r;
        struct err e;
        snprintf(body, sizeof body, "%s%s", tools, cases[i].choice);
        if (cases[i].error) {
            expect_error(api_request_chat, Q(body), cases[i].error);
            continue;
        }
        assert_fine(read_with(api_request_chat, &r, Q(body), &e), &e);
        assert_int_equal(r.tool_choice, cases[i].expected);
        assert_int_equal(r.n_tools, cases[i].n_tools);
        assert_true(r.one_call);
        if (r.tool_choice == API_TOOLS_NAMED)
            assert_true(chat_text_equal(r.tool_name, chat_text_of("g")));
        api_request_deinit(&r);
    }
}

static void the_first_thinking_switch_decides(void **state) {
    (void)state;
    static const struct {
        const char *fields;
        bool thinking;
        enum chat_effort effort;
    } cases[] = {
        { "'x':1", true, CHAT_EFFORT_UNSET },
        { "'thinking':null,'model':'deepseek-chat'", false, CHAT_EFFORT_UNSET },
        { "'thinking':{'type':'adaptive'},'model':'deepseek-chat'", true, CHAT_EFFORT_UNSET },
        { "'thinking':{'type':'enabled'},'think':false", true, CHAT_EFFORT_UNSET },
        { "'think':false,'enable_thinking':true", false, CHAT_EFFORT_UNSET },
        { "'chat_template_kwargs':{'enable_thinking':false,'reasoning_effort':'max'}", false,
          CHAT_EFFORT_MAX },
        { "'reasoning':{'enabled':true,'effort':'none'}", true, CHAT_EFFORT_UNSET },
        { "'reasoning':{'effort':'high'},'reasoning_effort':'low'", true, CHAT_EFFORT_HIGH },
        { "'reasoning_effort':'none'", false, CHAT_EFFORT_UNSET },
        { "'reasoning_effort':'minimal'", true, CHAT_EFFORT_LOW },
    };
    for (size_t i = 0; i < COUNT_OF(cases); i++) {
        char body[512];
        struct api_request r;
        struct err e;
        snprintf(body, sizeof body, "{'messages':[{'role':'user'}],%s}", cases[i].fields);
        assert_fine(read_with(api_request_chat, &r, Q(body), &e), &e);
        if (r.options.thinking != cases[i].thinking || r.options.effort != cases[i].effort)
            fail_msg("%s: thinking %d, effort %d", cases[i].fields, r.options.thinking,
                     (int)r.options.effort);
        api_request_deinit(&r);
    }
}

static void bad_chat_requests_say_what_is_wrong(void **state) {
    (void)state;
    static const char *const cases[][2] = {
        { "[]", "the body must be a JSON object" },
        { "{}", "messages must be an array and not empty" },
        { "{'messages':[]}", "messages must be an array and not empty" },
        { "{'messages':{}}", "messages must be an array" },
        { "{'messages':[1]}", "messages[0]: a message must be an object" },
        { "{'messages':[{'role':'bot'}]}",
          "messages[0]: role must be system, developer, user, assistant or tool" },
        { "{'messages':[{'role':'user'},{'role':'user','content':7}]}",
          "messages[1]: content: content must be a string or an array of parts" },
        { "{'messages':[{'role':'user','content':[{'type':'text','text':'x'},{'type':'image_url'}]}"
          "]}",
          "messages[0]: content: part 1: only text is supported, not parts of type \"image_url\"" },
        { "{'messages':[{'role':'assistant','tool_calls':[{'id':'x'}]}]}",
          "messages[0]: tool_calls[0]: a call must have a function with a name" },
        { "{'messages':[{'role':'user'}],'tools':[{'type':'function'}]}",
          "tools[0]: a function must be an object with a name" },
        { "{'messages':[{'role':'user'}],'tool_choice':'required'}",
          "tool_choice requires a call, but there are no tools" },
        { "{'messages':[{'role':'user'}],'response_format':{'type':'xml'}}",
          "a format must be text, json_object or json_schema" },
        { "{'messages':[{'role':'user'}],'response_format':{'type':'json_schema'}}",
          "json_schema is missing" },
        { "{'messages':[{'role':'user'}],'thinking':'yes'}",
          "thinking must be a bool, or have the type enabled, adaptive or disabled" },
        { "{'messages':[{'role':'user'}],'reasoning_effort':'much'}",
          "reasoning effort must be none, minimal, low, medium, high, xhigh, max or ultra" },
    };
    for (size_t i = 0; i < COUNT_OF(cases); i++)
        expect_error(api_request_chat, Q(cases[i][0]), cases[i][1]);
}

static void bodies_that_are_no_json_are_refused(void **state) {
    (void)state;
    static char deep[2 * API_JSON_DEPTH_MAX + 3];
    static const char *const bodies[] = {
        "", "{", "{\"a\":\"\\ud800\"}", "{\"a\":\"\xc3\"}", "{\"a\":1}x", "nul"
    };
    json_t *root;
    struct err e;
    for (size_t i = 0; i < COUNT_OF(bodies); i++) {
        assert_int_equal(api_json_parse(&root, chat_text_of(bodies[i]), &e), ERR_INVALID);
        assert_int_equal(strncmp(e.text, "the body is not JSON: ", 22), 0);
    }
    for (int depth = API_JSON_DEPTH_MAX; depth <= API_JSON_DEPTH_MAX + 1; depth++) {
        memset(deep, '[', (size_t)depth);
        memset(deep + depth, ']', (size_t)depth);
        int rc = api_json_parse(&root, (struct chat_text){ deep, 2 * (size_t)depth }, &e);
        assert_int_equal(rc, depth > API_JSON_DEPTH_MAX ? ERR_INVALID : 0);
        if (rc == 0) json_decref(root);
    }
    assert_fine(api_json_parse(&root, chat_text_of("{\"n\":99999999999999999999,\"s\":7}"), &e),
                &e);
    json_decref(root);
}

/* ---- messages ---- */

static void messages_become_turns(void **state) {
    (void)state;
    expect(
        api_request_messages,
        Q("{'system':[{'type':'text','text':'x-anthropic-billing: 7'},{'type':'text','text':'s1'},"
          "{'type':'text','text':'s2','cache_control':{}}],'messages':["
          "{'role':'user','content':[{'type':'text','text':'q1'},{'type':'text','text':'q2'}]},"
          "{'role':'assistant','content':[{'type':'thinking','thinking':'t','signature':'x'},{'"
          "type':'text',"
          "'text':'a'},{'type':'tool_use','id':'i','name':'f','input':{'n': 1e3, 'n2':[ "
          "]}},{'type':'new'}]},"
          "{'role':'user','content':[{'type':'tool_result','tool_use_id':'i','is_error':true,'"
          "content':["
          "{'type':'text','text':'r'},{'type':'image'}]},{'type':'text','text':'go'}]},"
          "{'role':'system','content':'mid'},{'role':'assistant','content':'pre '}]}"),
        Q("S:s1\n\ns2\nU:q1\nU:q2\nA:a R:t call:i,f,{'n': 1e3, 'n2':[ ]}\nT:r\n\n[Unsupported "
          "image] for:i\n"
          "U:go\nS:mid\nA:pre  prefix\n"));
    expect(api_request_messages,
           Q("{'messages':[{'role':'user','content':[]},{'role':'assistant','content':"
             "[{'type':'tool_use','id':'i','name':'f'}]}]}"),
           "U:\nA: call:i,f,\n");
}

static void messages_tools_become_functions(void **state) {
    (void)state;
    expect(api_request_messages,
           Q("{'messages':[{'role':'user','content':'q'}],'tools':[{'input_schema':{'type':'object'"
             ", 'x':1.0},"
             "'name':'f','description':'d','cache_control':{}},{'type':'web_search_2025','name':'"
             "web'},"
             "{'type':'custom','name':'g','input_schema':{}}],'output_config':{'effort':'high','"
             "format':"
             "{'type':'json_schema','schema':{'a': 1 }}},'tool_choice':{'type':'any'}}"),
           Q("S: tool:{'name': 'f', 'description': 'd', 'parameters': {'type':'object', 'x':1.0}} "
             "tool:{'name': 'g', 'parameters': {}} schema:{'a': 1 }\nU:q\n"));
    struct api_request r;
    struct err e;
    assert_fine(read_with(api_request_messages, &r,
                          Q("{'messages':[{'role':'user','content':'q'}],'tools':[{'name':'f'}],'"
                            "thinking':{'type':"
                            "'disabled'},'tool_choice':{'type':'tool','name':'f','disable_parallel_"
                            "tool_use':true}}"),
                          &e),
                &e);
    assert_int_equal(r.tool_choice, API_TOOLS_NAMED);
    assert_true(r.one_call);
    assert_false(r.options.thinking);
    api_request_deinit(&r);
}

static void bad_messages_say_what_is_wrong(void **state) {
    (void)state;
    static const char *const cases[][2] = {
        { "{'system':7,'messages':[{'role':'user'}]}",
          "system must be a string or an array of blocks" },
        { "{'messages':[{'role':'tool'}]}", "messages[0]: role must be user, assistant or system" },
        { "{'messages':[{'role':'user','content':[{'type':'image'}]}]}",
          "messages[0]: content[0]: only text is supported, not images or documents" },
        { "{'messages':[{'role':'user','content':[{'type':'tool_result','tool_use_id':'é'}]}]}",
          "a result for \"é\", but no earlier call has this id" },
        { "{'messages':[{'role':'user','content':[{'type':'tool_result','tool_use_id':'i'}]},"
          "{'role':'assistant','content':[{'type':'tool_use','id':'i','name':'f'}]}]}",
          "a result for \"i\", but no earlier call has this id" },
        { "{'messages':[{'role':'assistant','content':[{'type':'tool_use','id':'i'}]}]}",
          "messages[0]: content[0]: a tool_use without a name" },
        { "{'messages':[{'role':'user'}],'tools':[{}]}",
          "tools[0]: a tool must be an object with a name" },
    };
    for (size_t i = 0; i < COUNT_OF(cases); i++)
        expect_error(api_request_messages, Q(cases[i][0]), cases[i][1]);
}

/* ---- responses ---- */

static void items_become_messages(void **state) {
    (void)state;
    expect(api_request_responses, Q("{'input':'hi','instructions':'be'}"), "S:be\nU:hi\n");
    expect(api_request_responses,
           Q("{'input':[{'role':'developer','content':'dev'},{'type':'message','role':'user','"
             "content':"
             "[{'type':'input_text','text':'q'}]},{'type':'reasoning','summary':[{'type':'summary_"
             "text','text':'s1'},"
             "{'type':'summary_text','text':'s2'}]},{'type':'reasoning','summary':[{'text':'no'}],'"
             "content':"
             "[{'type':'reasoning_text','text':'c'}]},{'type':'message','role':'assistant','"
             "content':[{'type':"
             "'output_text','text':'a'}]},{'type':'mystery'},{'type':'function_call','call_id':'i',"
             "'name':'f',"
             "'namespace':'n__','arguments':'{}'},{'type':'custom_tool_call','call_id':'j','name':'"
             "g','input':'x\\ny'},"
             "{'type':'custom_tool_call_output','call_id':'j','output':[{'type':'input_text','text'"
             ":'o'}]},"
             "{'type':'function_call_output','call_id':'i','output':'p'},{'type':'reasoning','"
             "summary':[]}]}"),
           Q("S:dev\nU:q\nA:a R:s1\n\ns2\n\nc call:i,n__f,{} call:j,g,{'input': 'x\\ny'}\nT:o "
             "for:j\nT:p for:i\n"));
}

/* Histories of other servers: what their own tools were asked, and what came of it. */
static void items_of_tools_that_are_not_ours_become_calls_and_results(void **state) {
    (void)state;
    expect(api_request_responses,
           Q("{'input':[{'role':'user','content':'q'},"
             "{'type':'local_shell_call','id':'l','call_id':'c','status':'completed',"
             "'action':{'type':'exec','command':['ls','-l']}},"
             "{'type':'local_shell_call_output','call_id':'c','output':'a\\nb'},"
             "{'type':'tool_search_call','call_id':'t','arguments':{'query':'x'}},"
             "{'type':'tool_search_output','call_id':'t','status':'completed','tools':[{'name':'f'}]},"
             "{'type':'web_search_call','id':'w','status':'completed','query':'stars'},"
             "{'type':'computer_call_output','call_id':'w','output':{'type':'screenshot'}},"
             "{'type':'compaction','encrypted_content':'x'}]}"),
           Q("U:q\nA: call:c,local_shell,{'type':'exec','command':['ls','-l']}\nT:a\nb for:c\n"
             "A: call:t,tool_search,{'query':'x'}\nT:{'tools':[{'name':'f'}]} for:t\n"
             "A: call:w,web_search,{'query':'stars'}\nT:{'type':'screenshot'} for:w\n"));
}

/* Only where the server lets it count. */
static void a_budget_limits_thinking(void **state) {
    (void)state;
    static const struct { const char *thinking; bool lets; uint32_t max; const char *error; } cases[] = {
        { "{'type':'enabled','budget_tokens':2048}", true, 2048, NULL },
        { "{'type':'enabled','budget_tokens':2048.0}", true, 2048, NULL },
        { "{'type':'enabled','budget_tokens':2048}", false, 0, NULL },
        { "{'type':'enabled','budget_tokens':'many'}", false, 0, NULL },
        { "{'type':'adaptive'}", true, 0, NULL },
        { "{'type':'disabled','budget_tokens':0}", true, 0, NULL },
        { "{'type':'enabled','budget_tokens':0}", true, 0,
          "thinking: budget_tokens must be a whole number, at least 1" },
        { "{'type':'enabled','budget_tokens':'many'}", true, 0,
          "thinking: budget_tokens must be a whole number, at least 1" },
    };
    for (size_t i = 0; i < COUNT_OF(cases); i++) {
        char body[256];
        struct api_defaults d = defaults;
        struct api_request r = { .messages = NULL };
        struct err e = { .text = "" };
        json_t *root;
        snprintf(body, sizeof body, "{'messages':[{'role':'user','content':'q'}],'thinking':%s}",
                 cases[i].thinking);
        struct chat_text text = chat_text_of(Q(body));
        d.budget = cases[i].lets;
        assert_fine(api_json_parse(&root, text, &e), &e);
        int rc = api_request_messages(&r, root, text, &d, &e);
        assert_int_equal(rc, cases[i].error ? ERR_INVALID : 0);
        assert_string_equal(cases[i].error ? e.text : "", cases[i].error ? cases[i].error : "");
        if (rc == 0) assert_int_equal(r.reasoning_max, cases[i].max);
        if (rc == 0) api_request_deinit(&r);
        json_decref(root);
    }
}

static void responses_tools_become_functions(void **state) {
    (void)state;
    static const char body[] =
        "{'input':'q','tools':[{'type':'function','description':'d','name':'f','strict':false,'"
        "parameters':{'a': 1.0}},"
        "{'type':'custom','name':'p','description':'patch','format':{'type':'grammar'}},{'type':'"
        "web_search'},"
        "{'type':'namespace','name':'n__','tools':[{'type':'function','name':'h'}]}],"
        "'text':{'format':{'type':'json_schema','name':'x','strict':true,'schema':{'s':1}}},'tool_"
        "choice':{'type':"
        "'function','name':'h'},'reasoning':{'effort':'none'},'parallel_tool_calls':false}";
    expect(api_request_responses, Q(body),
           Q("S: tool:{'description': 'd', 'name': 'f', 'strict': false, 'parameters': {'a': 1.0}} "
             "tool:{'name': 'p', 'description': 'patch', 'parameters': {'type': 'object', "
             "'properties': {'input': "
             "{'type': 'string'}}, 'required': ['input']}} tool:{'name': 'n__h'} "
             "schema:{'s':1}\nU:q\n"));
    struct api_request r;
    struct err e;
    assert_fine(read_with(api_request_responses, &r, Q(body), &e), &e);
    assert_true(chat_text_equal(r.tool_name, chat_text_of("n__h")));
    assert_true(chat_text_equal(r.tools[2].client_name, chat_text_of("h")));
    assert_true(chat_text_equal(r.tools[2].client_space, chat_text_of("n__")));
    assert_true(r.tools[1].custom && r.strict && r.one_call && !r.options.thinking);
    assert_int_equal(r.format, API_FORMAT_JSON_SCHEMA);
    api_request_deinit(&r);
}

static void bad_responses_say_what_is_wrong(void **state) {
    (void)state;
    static const char *const cases[][2] = {
        { "{}", "input must be a string or an array of items" },
        { "{'input':[]}", "there must be at least one message" },
        { "{'input':'x','previous_response_id':'r'}",
          "previous_response_id: nothing is stored here, send the full input" },
        { "{'input':'x','background':true}", "background: nothing is stored here" },
        { "{'input':[{'role':'robot'}]}",
          "input[0]: role must be user, assistant, system or developer" },
        { "{'input':[{'role':'user','content':[{'type':'input_image'}]}]}",
          "input[0]: part 0: only text is supported, not parts of type \"input_image\"" },
        { "{'input':[{'type':'function_call_output','call_id':'i','output':'x'}]}",
          "a result for \"i\", but no earlier call has this id" },
        { "{'input':[{'type':'reasoning'},{'type':'function_call'}]}",
          "input[1]: a call without a name" },
        { "{'input':['x',{'type':'item_reference','id':'msg_1'}]}",
          "input[1]: nothing is stored here, so items cannot be referred to: send them" },
        { "{'input':'as you like','text':{'format':{'type':'json_object'}}}",
          "messages must contain the word \"json\" in some form where the format is json_object" },
    };
    for (size_t i = 0; i < COUNT_OF(cases); i++)
        expect_error(api_request_responses, Q(cases[i][0]), cases[i][1]);
}

/* ---- sealed reasoning ---- */

static void sealed_reasoning_comes_back(void **state) {
    (void)state;
    static const char *const texts[] = { "", "a", "ab", "abc", "why, é 🔍 \"x\"\n" };
    for (size_t i = 0; i < COUNT_OF(texts); i++) {
        struct buf sealed, back;
        buf_init(&sealed, 1000);
        buf_init(&back, 1000);
        api_sealed_put(&sealed, chat_text_of(texts[i]));
        assert_int_equal(api_sealed_read(&back, (struct chat_text){ sealed.data, sealed.size }), 0);
        assert_string_equal(back.data, texts[i]);
        for (size_t k = 0; k < sealed.size; k++) { /* every damaged letter is noticed */
            char letter = sealed.data[k];
            sealed.data[k] = letter == 'x' ? 'y' : 'x';
            struct chat_text damaged = { sealed.data, sealed.size };
            assert_int_equal(api_sealed_read(&back, damaged), ERR_INVALID);
            sealed.data[k] = letter;
        }
        for (size_t k = 0; k < sealed.size; k++)
            assert_int_equal(api_sealed_read(&back, (struct chat_text){ sealed.data, k }),
                             ERR_INVALID);
        buf_deinit(&sealed);
        buf_deinit(&back);
    }
}

static void sealed_reasoning_is_read_from_requests(void **state) {
    (void)state;
    struct buf sealed;
    char body[512];
    buf_init(&sealed, 1000);
    api_sealed_put(&sealed, chat_text_of("why"));
    snprintf(
        body, sizeof body,
        "{'input':[{'type':'reasoning','summary':[],'encrypted_content':'%s'},"
        "{'role':'assistant','content':'a'},{'role':'user','content':'b'},"
        "{'type':'reasoning','encrypted_content':'gAAAAA=='},{'role':'assistant','content':'c'}]}",
        sealed.data);
    expect(api_request_responses, Q(body), "A:a R:why\nU:b\nA:c\n");
    snprintf(
        body, sizeof body,
        "{'messages':[{'role':'assistant','content':[{'type':'redacted_thinking','data':'%s'},"
        "{'type':'redacted_thinking','data':'zzz'},{'type':'text','text':'a'}]},{'role':'user'}]}",
        sealed.data);
    expect(api_request_messages, Q(body), "A:a R:why\nU:\n");
    buf_deinit(&sealed);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        TEST(chat_takes_the_shapes_that_clients_send),
        TEST(later_duplicates_and_escaped_keys_are_found_in_the_text),
        TEST(chat_choices_filter_and_name_tools),
        TEST(the_first_thinking_switch_decides),
        TEST(bad_chat_requests_say_what_is_wrong),
        TEST(bodies_that_are_no_json_are_refused),
        TEST(messages_become_turns),
        TEST(messages_tools_become_functions),
        TEST(bad_messages_say_what_is_wrong),
        TEST(items_become_messages),
        TEST(responses_tools_become_functions),
        TEST(bad_responses_say_what_is_wrong),
        TEST(items_of_tools_that_are_not_ours_become_calls_and_results),
        TEST(a_budget_limits_thinking),
        TEST(sealed_reasoning_comes_back),
        TEST(sealed_reasoning_is_read_from_requests),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
