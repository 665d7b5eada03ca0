/* Constrained decoding: a model that says anything at all, at random, is held to a schema; what comes out
 * is parsed by jansson and judged by a validator of the tests' own. */
#include "tests/harness/guide_world.h"

static struct world full;

/* ---- schemas by hand ---- */

static const char *const schemas[] = {
    "{}",
    "true",
    "{\"type\":\"object\"}",
    "{\"type\":[\"string\",\"null\"]}",
    "{\"type\":\"object\",\"properties\":{\"name\":{\"type\":\"string\"},\"age\":{\"type\":"
    "\"integer\",\"minimum\":0,"
    "\"maximum\":150},\"email\":{\"type\":\"string\",\"format\":\"email\"}},\"required\":[\"name\","
    "\"age\"],"
    "\"additionalProperties\":false}",
    "{\"type\":\"object\",\"properties\":{\"a\":{\"type\":\"boolean\"},\"b\":{\"type\":\"null\"}},"
    "\"additionalProperties\":{\"type\":\"integer\"}}",
    "{\"type\":\"object\",\"properties\":{\"gr\\u00fcn\":{\"type\":\"boolean\"},\"gr\":{\"const\":"
    "1}},"
    "\"additionalProperties\":true,\"required\":[\"gr\"]}",
    "{\"type\":\"object\",\"required\":[\"x\"],\"additionalProperties\":{\"type\":\"string\","
    "\"maxLength\":3}}",
    "{\"enum\":[\"red\",\"green\",1,2.5,null,[1,{\"a\":\"b\"}],\"re\"]}",
    "{\"type\":\"string\",\"enum\":[\"red\",\"green\",7],\"maxLength\":4}",
    "{\"const\":{\"k\":[1,2,\"\\\"x\\\\\"]}}",
    "{\"type\":\"array\",\"items\":{\"type\":\"integer\"},\"minItems\":2,\"maxItems\":4}",
    "{\"type\":\"array\",\"prefixItems\":[{\"type\":\"string\"},{\"type\":\"boolean\"}],\"items\":"
    "false,\"minItems\":1}",
    "{\"type\":\"array\",\"prefixItems\":[{\"const\":1}],\"items\":{\"const\":2},\"minItems\":3,"
    "\"maxItems\":5}",
    "{\"type\":\"array\",\"maxItems\":0}",
    "{\"anyOf\":[{\"type\":\"integer\"},{\"type\":\"string\",\"maxLength\":2},{\"type\":\"object\","
    "\"properties\":"
    "{\"k\":{\"type\":\"null\"}},\"additionalProperties\":false}]}",
    "{\"oneOf\":[{\"type\":\"object\",\"properties\":{\"t\":{\"const\":\"a\"},\"x\":{\"type\":"
    "\"integer\"}},"
    "\"required\":[\"t\"]},{\"type\":\"object\",\"properties\":{\"t\":{\"const\":\"b\"}},"
    "\"required\":[\"t\"]}]}",
    "{\"allOf\":[{\"type\":\"object\",\"properties\":{\"a\":{\"type\":\"integer\"}},\"required\":["
    "\"a\"]},"
    "{\"properties\":{\"b\":{\"type\":\"string\"},\"a\":{\"minimum\":5,\"maximum\":12}},"
    "\"required\":[\"b\"]}]}",
    "{\"$ref\":\"#/$defs/"
    "node\",\"$defs\":{\"node\":{\"type\":\"object\",\"properties\":{\"v\":{\"type\":\"integer\"},"
    "\"next\":{\"anyOf\":[{\"$ref\":\"#/$defs/"
    "node\"},{\"type\":\"null\"}]}},\"required\":[\"v\",\"next\"],"
    "\"additionalProperties\":false}}}",
    "{\"type\":\"object\",\"properties\":{\"kids\":{\"type\":\"array\",\"items\":{\"$ref\":\"#\"}}}"
    ","
    "\"required\":[\"kids\"],\"additionalProperties\":false}",
    "{\"type\":\"string\",\"minLength\":3,\"maxLength\":5}",
    "{\"type\":\"string\",\"pattern\":\"^[a-z]{2,4}-[0-9]+$\"}",
    "{\"type\":\"string\",\"pattern\":\"^(foo|ba[rz])+x?$\"}",
    "{\"type\":\"string\",\"pattern\":\"ab|^c\"}",
    "{\"type\":\"string\",\"pattern\":\"^[!-@]{1,3}$\"}",
    "{\"type\":\"string\",\"pattern\":\"^\\\\(\\\\+[\\\\\\\\\\\"]\\\\)$\"}",
    "{\"type\":\"integer\",\"minimum\":-3,\"maximum\":17}",
    "{\"type\":\"integer\",\"exclusiveMinimum\":99,\"maximum\":1001}",
    "{\"type\":\"integer\",\"minimum\":-9007199254740991,\"maximum\":9007199254740991}",
    "{\"type\":\"number\",\"minimum\":0.25,\"maximum\":0.75}",
    "{\"type\":\"number\",\"exclusiveMinimum\":-1.5,\"exclusiveMaximum\":0}",
    "{\"type\":\"number\",\"minimum\":1e3}",
    "{\"type\":\"number\",\"maximum\":-0.001}",
    "{\"type\":\"integer\",\"minimum\":0.5,\"maximum\":1.5}",
    "{\"type\":[\"integer\",\"array\"],\"minimum\":5,\"maxItems\":1,\"items\":{\"type\":\"number\","
    "\"multipleOf\":1}}",
    "{\"type\":\"number\",\"exclusiveMinimum\":0.12345678,\"exclusiveMaximum\":0.12345679}",
    "{\"minLength\":2,\"title\":\"no type\",\"description\":\"guessed\",\"x-what\":[1]}",
    /* numbers in steps */
    "{\"type\":\"integer\",\"multipleOf\":7}",
    "{\"type\":\"integer\",\"multipleOf\":5,\"minimum\":-12,\"maximum\":103}",
    "{\"type\":\"number\",\"multipleOf\":0.01}",
    "{\"type\":\"number\",\"multipleOf\":0.25,\"exclusiveMinimum\":0,\"exclusiveMaximum\":1}",
    "{\"type\":\"integer\",\"multipleOf\":0.5,\"minimum\":100}",
    "{\"type\":\"number\",\"multipleOf\":2.5,\"maximum\":-7.5}",
    "{\"allOf\":[{\"type\":\"integer\",\"multipleOf\":4},{\"multipleOf\":6}],\"maximum\":100}",
    "{\"enum\":[1,2,3,4,9.5],\"multipleOf\":1.5}",
    /* properties that are counted */
    "{\"type\":\"object\",\"minProperties\":1}",
    "{\"type\":\"object\",\"maxProperties\":0}",
    "{\"type\":\"object\",\"maxProperties\":3,\"additionalProperties\":{\"type\":\"null\"}}",
    "{\"type\":\"object\",\"properties\":{\"a\":{\"const\":1},\"b\":{\"const\":2},\"c\":{\"const\":"
    "3},"
    "\"d\":{\"const\":4}},\"required\":[\"c\"],\"minProperties\":2,\"maxProperties\":3}",
    "{\"type\":\"object\",\"properties\":{\"a\":{\"const\":1},\"b\":{\"const\":2}},"
    "\"minProperties\":3,"
    "\"maxProperties\":4,\"additionalProperties\":{\"type\":\"boolean\"}}",
    "{\"type\":\"object\",\"properties\":{\"a\":{\"const\":1},\"b\":{\"const\":2}},"
    "\"minProperties\":1,"
    "\"additionalProperties\":true}",
    /* names */
    "{\"type\":\"object\",\"propertyNames\":{\"type\":\"string\"},\"additionalProperties\":{"
    "\"type\":\"null\"}}",
    "{\"type\":\"object\",\"propertyNames\":{\"enum\":[\"x\",\"y\",\"a\\\"b\",7]},"
    "\"additionalProperties\":{\"type\":\"integer\"}}",
    "{\"type\":\"object\",\"propertyNames\":{\"pattern\":\"^[a-c]{1,3}$\"},"
    "\"additionalProperties\":{\"type\":\"null\"}}",
    "{\"type\":\"object\",\"propertyNames\":{\"maxLength\":2},\"maxProperties\":2}",
    "{\"type\":\"object\",\"properties\":{\"a\":{\"const\":1},\"long\":{\"const\":2}},"
    "\"propertyNames\":{\"maxLength\":2},\"additionalProperties\":false}",
    "{\"type\":\"object\",\"properties\":{\"x\":{\"const\":1},\"z\":{\"const\":2}},"
    "\"propertyNames\":{\"enum\":[\"x\",\"y\"]},\"additionalProperties\":{\"const\":3}}",
    "{\"type\":\"object\",\"propertyNames\":false}",
    "{\"type\":\"object\",\"patternProperties\":{\"^x-[a-z]+$\":{\"type\":\"integer\"}},"
    "\"additionalProperties\":false}",
    "{\"type\":\"object\",\"patternProperties\":{\"b\":{\"type\":\"null\"}},"
    "\"additionalProperties\":"
    "{\"type\":\"string\"},\"minProperties\":1,\"maxProperties\":2}",
    /* arrays that contain, or hold nothing twice */
    "{\"type\":\"array\",\"items\":{\"type\":\"integer\"},\"contains\":{\"const\":5}}",
    "{\"type\":\"array\",\"items\":{\"type\":\"integer\",\"minimum\":0,\"maximum\":30},"
    "\"contains\":{\"minimum\":20},"
    "\"minContains\":2,\"minItems\":3,\"maxItems\":4}",
    "{\"type\":\"array\",\"contains\":{\"type\":\"string\"},\"minContains\":0,\"maxItems\":2}",
    "{\"type\":\"array\",\"uniqueItems\":true,\"items\":{\"enum\":[\"a\",\"b\",\"c\",1,1.0,null]}}",
    "{\"type\":\"array\",\"uniqueItems\":true,\"items\":{\"type\":\"string\",\"enum\":[\"red\","
    "\"green\",\"blue\"]},"
    "\"minItems\":2,\"maxItems\":2}",
    "{\"type\":\"array\",\"uniqueItems\":true,\"maxItems\":1}",
    /* the other way round */
    "{\"not\":{\"type\":[\"object\",\"array\",\"string\"]}}",
    "{\"type\":[\"null\",\"number\",\"boolean\"],\"not\":{\"type\":\"integer\"}}",
    "{\"enum\":[\"a\",\"b\",1,2],\"not\":{\"enum\":[\"b\",1.0]}}",
    "{\"type\":\"boolean\",\"not\":{\"const\":\"x\"}}",
};

static void answers_validate_whatever_the_model_wants(void **state) {
    (void)state;
    int rounds = test_rounds(30), n_complete = 0;
    for (size_t i = 0; i < COUNT_OF(schemas); i++)
        for (int k = 0; k < rounds; k++)
            n_complete += try_schema(&small, schemas[i], 1000 * i + (uint64_t)k, STEPS);
    print_message("     %d of %d answers came to an end\n", n_complete, rounds * (int)COUNT_OF(schemas));
    assert_true(n_complete > rounds * (int)COUNT_OF(schemas) * 9 / 10);
}

/* ---- schemas by chance ---- */

static void put_schema(struct rng *r, struct buf *b, int depth, bool defs);

static void put_list(struct rng *r, struct buf *b, int depth, bool defs, int n) {
    buf_add_char(b, '[');
    for (int i = 0; i < n; i++) {
        if (i) buf_add_char(b, ',');
        put_schema(r, b, depth + 1, defs);
    }
    buf_add_char(b, ']');
}

static void put_object_schema(struct rng *r, struct buf *b, int depth, bool defs) {
    static const char *const names[] = { "a", "ab", "abc", "b", "\xc3\xa9t\xc3\xa9", "x y", "\\\"q\\\"", "" };
    int n = (int)rng_below(r, 5);
    bool need[COUNT_OF(names)] = { false };
    buf_add_text(b, "{\"type\":\"object\",\"properties\":{");
    for (int i = 0; i < n; i++) {
        buf_printf(b, "%s\"%s\":", i ? "," : "", names[i + 3 * (n < 4)]);
        put_schema(r, b, depth + 1, defs);
        need[i] = rng_below(r, 2);
    }
    buf_add_text(b, "},\"required\":[");
    for (int i = 0, first = 1; i < n; i++)
        if (need[i]) buf_printf(b, "%s\"%s\"", first ? "" : ",", names[i + 3 * (n < 4)]), first = 0;
    buf_add_char(b, ']');
    if (rng_below(r, 3) == 0) buf_add_text(b, ",\"additionalProperties\":false");
    else if (rng_below(r, 3) == 0) {
        buf_add_text(b, ",\"additionalProperties\":");
        put_schema(r, b, depth + 1, defs);
    }
    buf_add_char(b, '}');
}

static void put_number_schema(struct rng *r, struct buf *b) {
    bool integer = rng_below(r, 2);
    int digits = (int)rng_below(r, 4);
    double scale = (const double[]){ 1, 10, 100, 1000 }[digits];
    double lo = (double)rng_below(r, 4000) - 2000, hi = lo + (double)rng_below(r, 300) + 2 * scale;
    buf_printf(b, "{\"type\":\"%s\"", integer ? "integer" : "number");
    if (rng_below(r, 2))
        buf_printf(b, ",\"%s\":%.*f", rng_below(r, 2) ? "minimum" : "exclusiveMinimum", digits,
                   lo / scale);
    if (rng_below(r, 2))
        buf_printf(b, ",\"%s\":%.*f", rng_below(r, 2) ? "maximum" : "exclusiveMaximum", digits,
                   hi / scale);
    buf_add_char(b, '}');
}

static void put_string_schema(struct rng *r, struct buf *b) {
    static const char *const patterns[] = { "^a*b+$", "x", "^[0-9]{1,3}([.][0-9]+)?$",
                                            "^(a|b|cc)*$", "[^ -~]$" };
    if (rng_below(r, 2)) {
        buf_printf(b, "{\"type\":\"string\",\"pattern\":\"%s\"}", patterns[rng_below(r, COUNT_OF(patterns))]);
        return;
    }
    int min = (int)rng_below(r, 4);
    buf_printf(b, "{\"type\":\"string\",\"minLength\":%d,\"maxLength\":%d}", min, min + (int)rng_below(r, 9));
}

static void put_schema(struct rng *r, struct buf *b, int depth, bool defs) {
    static const char *const simple[] = { "{\"type\":\"string\"}",
                                          "{\"type\":\"null\"}",
                                          "{\"type\":\"boolean\"}",
                                          "{\"type\":[\"null\",\"integer\"]}",
                                          "{\"enum\":[1,\"1\",null,{\"a\":[]}]}",
                                          "{\"const\":\"c\"}",
                                          "true",
                                          "{}" };
    switch (rng_below(r, depth > 3 ? 3 : 9)) {
    case 0: buf_add_text(b, simple[rng_below(r, COUNT_OF(simple))]); break;
    case 1: put_number_schema(r, b); break;
    case 2: put_string_schema(r, b); break;
    case 3:
    case 4: put_object_schema(r, b, depth, defs); break;
    case 5: {
        int min = (int)rng_below(r, 3);
        buf_printf(b, "{\"type\":\"array\",\"minItems\":%d,\"maxItems\":%d,\"items\":", min,
                   min + (int)rng_below(r, 4));
        put_schema(r, b, depth + 1, defs);
        buf_add_text(b, ",\"prefixItems\":");
        put_list(r, b, depth, defs, 1 + (int)rng_below(r, 2));
        buf_add_char(b, '}');
        break;
    }
    case 6:
        buf_add_text(b, "{\"anyOf\":");
        put_list(r, b, depth, defs, 1 + (int)rng_below(r, 3));
        buf_add_char(b, '}');
        break;
    case 7:
        buf_add_text(b, "{\"allOf\":[{\"type\":\"object\",\"properties\":{\"b\":{\"type\":\"integer\"}}},");
        put_object_schema(r, b, depth, defs);
        buf_add_text(b, "]}");
        break;
    default:
        buf_add_text(b, defs ? "{\"$ref\":\"#/$defs/d\"}" : "{\"type\":\"string\"}");
        break;
    }
}

static void random_schemas_are_kept_too(void **state) {
    (void)state;
    struct rng r;
    struct err e;
    int n_complete = 0, n_cut = 0, n_empty = 0, rounds = test_rounds(2500);
    rng_init(&r, 77, 0);
    for (int i = 0; i < rounds; i++) {
        struct buf b;
        buf_init(&b, 1 << 20);
        buf_add_text(&b, "{\"allOf\":[");
        put_schema(&r, &b, 0, true);
        buf_add_text(&b, "],\"$defs\":{\"d\":{\"anyOf\":[{\"type\":\"null\"},");
        put_object_schema(&r, &b, 2, true);
        buf_add_text(&b, "]}}}");
        struct guide_options o = { .format = GUIDE_JSON_SCHEMA, .schema = { b.data, b.size } };
        struct service_guide *g = NULL;
        int rc = guide_new(&g, small.v, &o, &e);
        if (rc == 0) {
            g->free(g);
            for (uint64_t seed = 0; seed < 2; seed++) {
                bool complete = try_schema(&small, b.data, rng_u64(&r), STEPS / 3);
                n_complete += complete;
                n_cut += !complete;
            }
        } else if (strstr(e.text, "nothing can satisfy")) n_empty++;
        else fail_msg("%s\n%s", e.text, b.data);
        buf_deinit(&b);
    }
    print_message(
        "     %d schemas: %d answers whole, %d cut, %d schemas that nothing can satisfy\n", rounds,
        n_complete, n_cut, n_empty);
    assert_true(n_complete > 4 * n_cut && n_empty < rounds / 8);
}

static void any_object_is_an_object(void **state) {
    (void)state;
    struct guide_options o = { .format = GUIDE_JSON_OBJECT };
    int n_complete = 0, rounds = test_rounds(300);
    for (int i = 0; i < rounds; i++) {
        struct service_guide *g = guide_of(&small, &o);
        struct answer a;
        say(&small, g, (uint64_t)i, STEPS, &a);
        g->free(g);
        if (a.complete) {
            json_t *value = parsed(a.text.data);
            assert_true(json_is_object(value));
            json_decref(value);
        }
        n_complete += a.complete;
        buf_deinit(&a.text);
    }
    assert_true(n_complete > rounds * 8 / 10);
}

/* ---- what is refused ---- */

static void what_cannot_be_kept_is_named(void **state) {
    (void)state;
    static const struct { const char *schema, *says;
    } cases[] = {
        { "{\"type\":\"object\",\"properties\":{\"a\":{\"not\":{}}}}", "not" },
        { "{\"if\":{},\"then\":{}}", "if" },
        { "{\"type\":\"array\",\"uniqueItems\":true}", "uniqueItems" },
        { "{\"type\":\"array\",\"uniqueItems\":true,\"items\":{\"enum\":[1,2,3,4,5,6,7,8,9,10,11]}"
          "}",
          "uniqueItems" },
        { "{\"type\":\"array\",\"uniqueItems\":true,\"items\":{\"enum\":[[1],[1.0]]}}",
          "uniqueItems" },
        { "{\"type\":\"array\",\"contains\":{},\"prefixItems\":[{}]}", "contains" },
        { "{\"type\":\"array\",\"contains\":{},\"maxContains\":2}", "maxContains" },
        { "{\"allOf\":[{\"contains\":{}},{\"contains\":{\"const\":1}}]}", "contains" },
        { "{\"type\":\"object\",\"patternProperties\":{\"^x\":{},\"y\":{}}}", "patternProperties" },
        { "{\"type\":\"object\",\"patternProperties\":{\"^x\":{}},\"properties\":{\"xa\":{}}}",
          "^x" },
        { "{\"allOf\":[{\"patternProperties\":{\"^x\":{}}},{\"additionalProperties\":false}]}",
          "^x" },
        { "{\"type\":\"object\",\"patternProperties\":{\"(?=x)\":{}}}", "looks around" },
        { "{\"type\":\"object\",\"minProperties\":2}", "minProperties" },
        { "{\"type\":\"object\",\"propertyNames\":{\"pattern\":\"a\"},\"properties\":{\"b\":{}}}",
          "propertyNames" },
        { "{\"type\":\"object\",\"propertyNames\":{\"anyOf\":[{}]}}", "anyOf" },
        { "{\"type\":\"string\",\"not\":{\"const\":\"x\"}}", "not" },
        { "{\"not\":{\"minimum\":3}}", "not" },
        { "{\"oneOf\":[{\"const\":1},{\"const\":1.0}]}", "oneOf" },
        { "{\"type\":\"object\",\"properties\":{\"a\":{}},\"additionalProperties\":false,"
          "\"minProperties\":2}",
          "nothing can satisfy" },
        { "{\"type\":\"object\",\"minProperties\":2,\"maxProperties\":1}", "nothing can satisfy" },
        { "{\"type\":\"object\",\"propertyNames\":{\"maxLength\":1},\"properties\":{\"long\":{}},"
          "\"required\":[\"long\"],\"additionalProperties\":false}",
          "nothing can satisfy" },
        { "{\"type\":\"array\",\"contains\":{\"type\":\"string\"},\"items\":{\"type\":\"null\"}}",
          "nothing can satisfy" },
        { "{\"type\":\"array\",\"uniqueItems\":true,\"items\":{\"enum\":[1,2]},\"minItems\":3}",
          "nothing can satisfy" },
        { "{\"type\":\"integer\",\"multipleOf\":10,\"minimum\":11,\"maximum\":19}",
          "nothing can satisfy" },
        { "{\"type\":\"integer\",\"multipleOf\":0}", "multipleOf" },
        { "{\"type\":\"integer\",\"multipleOf\":-2}", "multipleOf" },
        { "{\"type\":\"object\",\"dependentRequired\":{\"a\":[\"b\"]}}", "dependentRequired" },
        { "{\"type\":\"number\",\"multipleOf\":0.0000001}", "multipleOf" },
        { "{\"type\":\"number\",\"multipleOf\":1001}", "multipleOf" },
        { "{\"type\":\"string\",\"pattern\":\"a(?=b)\"}", "looks around" },
        { "{\"type\":\"string\",\"pattern\":\"(a)\\\\1\"}", "escape" },
        { "{\"type\":\"string\",\"pattern\":\"a$b\"}", "middle" },
        { "{\"type\":\"string\",\"pattern\":\"[a\"}", "pattern" },
        { "{\"type\":\"string\",\"pattern\":\"a\",\"maxLength\":3}", "maxLength" },
        { "{\"type\":\"strin\"}", "type" },
        { "{\"type\":\"object\",\"properties\":[]}", "properties" },
        { "{\"$ref\":\"#/$defs/none\"}", "$defs/none" },
        { "{\"$ref\":\"http://example.com/x\"}", "http" },
        { "{\"$ref\":\"#\"}", "refers to itself" },
        { "{\"oneOf\":[{\"type\":\"integer\"},{\"type\":\"number\"}]}", "oneOf" },
        { "{\"enum\":[]}", "nothing can satisfy" },
        { "false", "nothing can satisfy" },
        { "{\"type\":\"integer\",\"minimum\":5,\"maximum\":4}", "nothing can satisfy" },
        { "{\"type\":\"object\",\"properties\":{\"a\":{\"$ref\":\"#\"}},\"required\":[\"a\"]}",
          "nothing can satisfy" },
        { "{\"type\":\"object\",\"properties\":{},\"required\":[\"a\"],\"additionalProperties\":"
          "false}",
          "nothing" },
        { "{\"type\":", "schema" },
        { "[]", "not a schema" },
        { "{\"properties\":{\"a\":7}}", "not a schema" },
    };
    for (size_t i = 0; i < COUNT_OF(cases); i++) {
        struct guide_options o = { .format = GUIDE_JSON_SCHEMA, .schema = chat_text_of(cases[i].schema) };
        struct service_guide *g;
        struct err e = { 0 };
        int rc = guide_new(&g, small.v, &o, &e);
        if (rc == 0) fail_msg("accepted: %s", cases[i].schema);
        assert_int_equal(rc, ERR_INVALID);
        assert_null(g);
        if (!strstr(e.text, cases[i].says)) fail_msg("%s: says %s", cases[i].schema, e.text);
    }
}

/* ---- sets of tokens are exact ---- */

/* For every token: it is in the set just when its bytes go on from here. */
static void compare_masks(const struct grammar *g, const char *prefix) {
    struct match *m;
    struct err e;
    uint64_t mask[N_VOCAB / 64];
    assert_fine(match_new(&m, g, small.trie, &e), &e);
    assert_true(match_bytes(m, prefix, strlen(prefix)));
    memcpy(mask, match_mask(m), sizeof mask);
    match_free(m);
    for (int32_t id = 0; id < N_VOCAB; id += effort() == EFFORT_QUICK ? 13 : 1) {
        size_t len;
        const char *bytes = tokenizer_token_bytes(small.t, id, &len);
        if (tokenizer_token_kind(small.t, id) != TOKEN_NORMAL) {
            assert_false(mask[id / 64] >> id % 64 & 1);
            continue;
        }
        struct match *one;
        assert_fine(match_new(&one, g, small.trie, &e), &e);
        bool fits = match_bytes(one, prefix, strlen(prefix)) && match_bytes(one, bytes, len);
        match_free(one);
        if (fits != (mask[id / 64] >> id % 64 & 1))
            fail_msg("behind \"%s\": token %d \"%.*s\" %s", prefix, id, (int)len, bytes,
                     fits ? "is missing" : "is not right");
    }
}

static void sets_hold_just_the_tokens_that_go_on(void **state) {
    (void)state;
    static const struct { const char *schema, *prefix;
    } cases[] = {
        { "{}", "" },
        { "{}", "{\"a" },
        { "{}", "[1" },
        { "{}", "[1.5e" },
        { "{}", "\"\\u" },
        { "{}", "\"\\ud8" },
        { "{}", "{\n  \"a\": [" },
        { "{}", "\"\xe2\x82" },
        { "{\"type\":\"string\",\"maxLength\":3}", "\"" },
        { "{\"type\":\"string\",\"maxLength\":3}", "\"ab" },
        { "{\"type\":\"string\",\"minLength\":9}", "\"abcd" },
        { "{\"type\":\"string\",\"maxLength\":60}", "\"x" },
        { "{\"type\":\"object\",\"properties\":{\"the\":{},\"th\":{}},\"additionalProperties\":{}}",
          "{\"t" },
        { "{\"type\":\"string\",\"pattern\":\"^[a-e]+$\"}", "\"a" },
        { "{\"type\":\"integer\",\"minimum\":10,\"maximum\":12345}", "12" },
    };
    for (size_t i = 0; i < COUNT_OF(cases); i++) {
        struct grammar g;
        struct err e;
        uint32_t rule;
        grammar_init(&g);
        assert_fine(grammar_schema_rule(&g, chat_text_of(cases[i].schema), false, &rule, &e), &e);
        assert_fine(grammar_finish(&g, rule, &e), &e);
        compare_masks(&g, cases[i].prefix);
        grammar_deinit(&g);
    }
}

/* More states than the tables hold: they are emptied on the way, and nothing is different for it. */
static void full_tables_forget_and_go_on(void **state) {
    (void)state;
    static const char schema[] = "{\"type\":\"array\",\"items\":{\"type\":\"string\",\"maxLength\":9000}}";
    struct grammar g;
    struct match *m, *fresh;
    struct err e;
    uint32_t rule;
    uint64_t mask[N_VOCAB / 64];
    grammar_init(&g);
    assert_fine(grammar_schema_rule(&g, chat_text_of(schema), false, &rule, &e), &e);
    assert_fine(grammar_finish(&g, rule, &e), &e);
    assert_fine(match_new(&m, &g, small.trie, &e), &e);
    assert_fine(match_new(&fresh, &g, small.trie, &e), &e);
    assert_true(match_bytes(m, "[\"", 2) && match_bytes(fresh, "[\"", 2));
    for (int i = 0; i < 8998; i++) {
        assert_true(match_bytes(m, "a", 1) && match_bytes(fresh, "a", 1));
        if (i % 50 == 0) match_mask(m);
    }
    memcpy(mask, match_mask(m), sizeof mask);
    assert_memory_equal(mask, match_mask(fresh), sizeof mask);
    assert_true(match_stats(m).n_resets > 2);
    assert_true(match_bytes(m, "bc", 2) && !match_bytes(m, "d", 1) && match_bytes(m, "\"]", 2));
    assert_true(match_must_end(m));
    match_free(m);
    match_free(fresh);
    grammar_deinit(&g);
}

/* ---- limits ---- */

static void endless_nesting_is_cut_before_it_has_no_way_out(void **state) {
    (void)state;
    struct guide_options o = { .format = GUIDE_JSON_OBJECT };
    struct service_guide *g = guide_of(&small, &o);
    struct answer a = { .complete = false };
    int depth = 0;
    struct token_buf open = { 0 };
    assert_int_equal(tokenizer_encode(small.t, "[", 1, false, &open, NULL), 0);
    assert_false(read_text(g, "{\"a\":"));
    for (;;) {                                    /* deeper as long as it may */
        struct service_steer s;
        int32_t id = open.ids[0];
        g->next(g, &s);
        if (!(s.allowed[id / 64] >> id % 64 & 1)) break;
        g->accept(g, id);
        assert_true(++depth < 1000);
    }
    print_message("     %d arrays inside one another\n", depth);
    assert_true(depth > 50);
    token_buf_free(&open);
    say(&small, g, 5, STEPS, &a);
    assert_true(a.complete);
    g->free(g);
    buf_deinit(&a.text);
}

/* As deep as it may go, wherever it may; what is still required must fit in on the way out. */
static void what_is_required_has_room_at_the_deepest_place(void **state) {
    (void)state;
    static const char schema[] =
        "{\"type\":\"object\",\"properties\":{\"kids\":{\"type\":\"array\",\"items\":{\"$ref\":\"#\"}},"
        "\"must\":{\"type\":\"array\",\"minItems\":2,\"items\":{\"type\":\"array\",\"minItems\":2,"
        "\"items\":{\"const\":\"v\"}}}},\"required\":[\"kids\",\"must\"],\"additionalProperties\":false}";
    struct guide_options o = { .format = GUIDE_JSON_SCHEMA, .schema = chat_text_of(schema) };
    struct service_guide *g = guide_of(&small, &o);
    struct buf text;
    int depth = 0, deepest = 0;
    buf_init(&text, 1 << 24);
    for (bool complete = false; !complete;) {
        struct service_steer s;
        int32_t best = -1;
        size_t rank = SIZE_MAX, len;
        g->next(g, &s);
        for (int32_t id = 0; id < N_VOCAB; id++) {
            const char *bytes = tokenizer_token_bytes(small.t, id, &len);
            if (!(s.allowed[id / 64] >> id % 64 & 1) || len != 1) continue;
            const char *order = "[{\"]}a,", *found = memchr(order, *bytes, 7);
            size_t this_rank = found ? (size_t)(found - order) : 7;
            if (this_rank < rank) rank = this_rank, best = id;
        }
        if (best < 0) fail_msg("no way on, %d deep", depth);
        const char *bytes = tokenizer_token_bytes(small.t, best, &len);
        depth += *bytes == '[' || *bytes == '{' ? 1 : *bytes == ']' || *bytes == '}' ? -1 : 0;
        deepest = MAX(deepest, depth);
        buf_add(&text, bytes, len);
        complete = g->accept(g, best);
        assert_true(text.size < 100000);
    }
    print_message("     %d deep\n", deepest);
    json_t *value = parsed(text.data), *root = parsed(schema);
    assert_true(check_value(root, root, value) && deepest > 50);
    json_decref(value);
    json_decref(root);
    buf_deinit(&text);
    g->free(g);
}

static void large_schemas_are_refused_and_not_suffered(void **state) {
    (void)state;
    struct buf b;
    struct err e;
    struct service_guide *g;
    clock_t begin = clock();
    buf_init(&b, 4 << 20);
    buf_add_text(&b, "{\"anyOf\":[");
    for (int i = 0; i < 3000; i++)
        buf_printf(&b, "{\"type\":\"object\",\"properties\":{\"p%d\":{\"$ref\":\"#\"}}},", i);
    buf_add_text(&b, "{}],\"properties\":{");
    for (int i = 0; i < 3000; i++) buf_printf(&b, "\"q%d\":{},", i);
    buf_add_text(&b, "\"z\":{}}}");
    struct guide_options o = { .format = GUIDE_JSON_SCHEMA, .schema = { b.data, b.size } };
    int rc = guide_new(&g, small.v, &o, &e);
    assert_int_equal(rc, ERR_LIMIT);
    double s = (double)(clock() - begin) / CLOCKS_PER_SEC;
    print_message("     refused after %.2f s: %s\n", s, e.text);
    buf_deinit(&b);
}

/* ---- speed ---- */

static double now_us(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec * 1e6 + (double)t.tv_nsec * 1e-3;
}

static int order_of(const void *a, const void *b) {
    const double *x = a, *y = b;
    return *x < *y ? -1 : *x > *y;
}

static void sets_for_the_full_vocabulary_take_less_than_a_millisecond(void **state) {
    (void)state;
    static double us[1 << 16];
    static const char *const slow[] = { "{}", "{\"type\":\"string\",\"maxLength\":400}",
        "{\"type\":\"string\",\"pattern\":\"^[^0-9]*$\"}", PARAMETERS };
    world_open(&full, SYNTH_VOCAB_FULL);
    for (size_t k = 0; k < COUNT_OF(slow); k++) {
        struct guide_options o = { .format = GUIDE_JSON_SCHEMA, .schema = chat_text_of(slow[k]) };
        double begin = now_us(), sum = 0;
        struct service_guide *g = guide_of(&full, &o);
        double made = now_us() - begin;
        int n = 0;
        struct rng r;
        rng_init(&r, 3, k);
        for (bool complete = false; n < 400 && !complete; n++) {
            struct service_steer s;
            begin = now_us();
            g->next(g, &s);
            us[n] = now_us() - begin;
            sum += us[n];
            int32_t id;
            do id = (int32_t)rng_below(&r, SYNTH_VOCAB_FULL);
            while (!(s.allowed[id / 64] >> id % 64 & 1));
            complete = g->accept(g, id);
        }
        qsort(us, (size_t)n, sizeof *us, order_of);
        print_message("     %-48.48s made in %5.0f us; sets: median %4.0f us, mean %4.0f, 95 %% "
                      "%4.0f, most %5.0f (%d)\n",
                      slow[k], made, us[n / 2], sum / n, us[n * 95 / 100], us[n - 1], n);
        if (effort() != EFFORT_QUICK) assert_true(us[n / 2] < 2000);
        g->free(g);
    }
    world_close(&full);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        TEST(answers_validate_whatever_the_model_wants),
        TEST(random_schemas_are_kept_too),
        TEST(any_object_is_an_object),
        TEST(what_cannot_be_kept_is_named),
        TEST(sets_hold_just_the_tokens_that_go_on),
        TEST(full_tables_forget_and_go_on),
        TEST(endless_nesting_is_cut_before_it_has_no_way_out),
        TEST(what_is_required_has_room_at_the_deepest_place),
        TEST(large_schemas_are_refused_and_not_suffered),
        TEST(sets_for_the_full_vocabulary_take_less_than_a_millisecond),
    };
    return cmocka_run_group_tests(tests, open_worlds, close_worlds);
}
