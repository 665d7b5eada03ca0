/* A coordinator and nodes over tcp in one process, mostly without keys: tokens are those of one engine
 * whatever the cuts, whoever starts first, and when a node goes away in the middle. */
#include "tests/harness/service_rig.h"

#include "common/sys/keyring.h"
#include "node/main.h"
#include "node/streams.h"

enum { CTX = 512, NODES_MAX = 4 };

struct machine {
    struct node_process *node;
    pthread_t thread;
    char name[8];
};

static void *machine_main(void *ctx) {
    node_process_run(((struct machine *)ctx)->node);
    return NULL;
}

static void machine_start(struct machine *m, const char *name, const char *join) {
    struct err e;
    struct node_process_config c = { .join = join,
                                     .name = name,
                                     .bind = "tcp://127.0.0.1:0",
                                     .model_path = path,
                                     .backend = "cpu",
                                     .memory_bytes = 4u << 28,
                                     .n_threads = 1 };
    snprintf(m->name, sizeof m->name, "%s", name);
    assert_fine(node_process_new(&m->node, &c, &e), &e);
    assert_int_equal(pthread_create(&m->thread, NULL, machine_main, m), 0);
}

static void machine_stop(struct machine *m) {
    if (!m->node) return;
    node_process_stop(m->node);
    pthread_join(m->thread, NULL);
    node_process_free(m->node);
    m->node = NULL;
}

static void coordinator_start(const char *bind, const char *stages, uint32_t n_node, const char *wire) {
    struct err e;
    struct service_config config = { .model_path = path, .bind = bind, .insecure = true, .n_ctx = CTX,
                                     .n_slot = 6, .n_rows_max = 64, .stages = stages,
                                     .n_node_expected = n_node, .wire = wire };
    assert_fine(service_start(&service, &config, &e), &e);
}

static void coordinator_stop(void) {
    service_stop(service);
    service = NULL;
}

/* The same requests each time, all at once; what the engine says to them is asked once. */
static void ask_many(void) {
    enum { N = 6, N_NEW = 10 };
    static struct client c[N];
    static int32_t prompt[N][PROMPT];
    static struct sampler_result expected[N][N_NEW];
    static bool asked;
    struct service_request r[N];
    for (uint32_t i = 0; i < N; i++) {
        client_init(&c[i]);
        prompt_of(prompt[i], PROMPT, 1000 + i);
        r[i] = request_of(prompt[i], 1 + i * 7 % PROMPT, N_NEW, &c[i]);
        r[i].sampling.temperature = i % 2 ? 1 : 0;
        r[i].sampling.seed = 1000 + i;
        submit(&r[i], &c[i]);
    }
    for (uint32_t i = 0; i < N; i++) client_wait(&c[i]);
    for (uint32_t i = 0; i < N; i++) {
        if (c[i].done.code) fail_msg("request %u: %s", i, c[i].done.text);
        if (!asked) reference(&r[i], expected[i], N_NEW);
        check_against(expected[i], &r[i], &c[i], N_NEW);
    }
    asked = true;
}

static const struct { const char *stages; uint32_t n; } cuts[] = {
    { "a=0-4", 1 }, { "a=0-1,b=2-4", 2 }, { "b=0-0,a=1-4", 2 }, { "a=0-0,b=1-2,c=3-4", 3 },
    { "d=0-0,c=1-1,b=2-2,a=3-4", 4 },
};

static void tokens_are_the_same_for_one_to_four_stages(void **state) {
    (void)state;
    static const char *const names[NODES_MAX] = { "a", "b", "c", "d" };
    for (size_t i = 0; i < COUNT_OF(cuts); i++) {
        if (effort() == EFFORT_QUICK && i % 3 == 0) continue;         /* two orders of two, and four, stay */
        struct machine m[NODES_MAX] = { { 0 } };
        coordinator_start("tcp://127.0.0.1:0", cuts[i].stages, cuts[i].n, "f32");
        for (uint32_t k = 0; k < cuts[i].n; k++)
            machine_start(&m[k], names[k], service_node_address(service));
        wait_for(SERVICE_SERVING);
        ask_many();
        for (uint32_t k = 0; k < cuts[i].n; k++) machine_stop(&m[k]);
        coordinator_stop();
    }
}

/* Its door and the coordinator's are guarded by rings of the same files on two threads. */
static void a_coordinator_that_computes_sees_machines_come_and_go(void **state) {
    (void)state;
    struct scratch keys;
    char token[KEYRING_TOKEN_MAX];
    struct client c;
    int32_t prompt[PROMPT];
    struct err e;
    scratch_open(&keys);
    assert_fine(keyring_init_cluster(keys.folder, &e), &e);
    struct service_config config = { .model_path = path, .bind = "tcp://127.0.0.1:0", .n_ctx = CTX,
                                     .key_path = keys.folder, .local_stage = true,
                                     .local = &local_stage, .n_threads = 1, .n_slot = 2, .n_rows_max = 64,
                                     .n_node_expected = 1 };
    assert_fine(service_start(&service, &config, &e), &e);
    wait_for(SERVICE_SERVING);
    uint64_t start = clock_now_ns();
    while (clock_seconds_since(start) < 1.2) {    /* both look once a second */
        assert_fine(keyring_invite(keys.folder, "x", false, "127.0.0.1:9", token, &e), &e);
        clock_sleep_ms(5);
        assert_fine(keyring_revoke(keys.folder, "x", &e), &e);
        clock_sleep_ms(5);
    }
    client_init(&c);
    prompt_of(prompt, PROMPT, 1);
    struct service_request r = request_of(prompt, PROMPT, 8, &c);
    generate_and_check(&r, &c, 8);
    coordinator_stop();
    scratch_close(&keys);
}

static void streams_in_16_bits_are_near_the_true_ones(void **state) {
    (void)state;
    enum { N = 96, ROWS = 3 };
    float x[ROWS * 4 * N], y[ROWS * 4 * N];
    uint8_t wire[ROWS * 4 * (4 + 2 * N)];
    struct rng r;
    rng_init(&r, 1, 1);
    for (size_t i = 0; i < COUNT_OF(x); i++) x[i] = rng_normal(&r) * (i < 4 * N ? 1e-3f : 1e5f);
    memset(x, 0, N * sizeof *x);
    assert_int_equal(streams_f16s_bytes(N, ROWS), sizeof wire);
    streams_to_f16s(wire, x, N, ROWS);
    streams_from_f16s(y, wire, N, ROWS);
    for (size_t s = 0; s < ROWS * 4; s++) {
        float largest = 0;
        for (size_t i = 0; i < N; i++) largest = fmaxf(largest, fabsf(x[s * N + i]));
        for (size_t i = 0; i < N; i++) {
            float bound = fmaxf(fabsf(x[s * N + i]) * 5e-4f, largest * 6e-8f);
            assert_true(fabsf(x[s * N + i] - y[s * N + i]) <= bound);
        }
    }
}

static void a_cluster_serves_with_streams_in_16_bits_and_says_so(void **state) {
    (void)state;
    struct machine m[2] = { { 0 } };
    struct client c;
    int32_t prompt[PROMPT];
    struct buf status;
    struct err e;
    coordinator_start("tcp://127.0.0.1:0", "a=0-1,b=2-4", 2, "f16s");
    machine_start(&m[0], "a", service_node_address(service));
    machine_start(&m[1], "b", service_node_address(service));
    wait_for(SERVICE_SERVING);
    client_init(&c);
    prompt_of(prompt, PROMPT, 4);
    struct service_request r = request_of(prompt, PROMPT, 20, &c);
    submit(&r, &c);
    client_wait(&c);
    assert_int_equal(c.done.code, 0);
    assert_int_equal(c.n_token, 20);
    buf_init(&status, 1 << 20);
    assert_fine(service_status(service, &status, &e), &e);
    assert_non_null(strstr(status.data, "\"wire\": \"f16s\""));
    buf_deinit(&status);
    machine_stop(&m[0]);
    machine_stop(&m[1]);
    coordinator_stop();
}

static void nodes_may_come_before_their_coordinator_and_stay_after_it(void **state) {
    (void)state;
    struct machine m[2] = { { 0 } };
    char bind[64];
    coordinator_start("tcp://127.0.0.1:0", NULL, 0, "f32");           /* finds a free port */
    snprintf(bind, sizeof bind, "%s", service_node_address(service));
    coordinator_stop();
    machine_start(&m[0], "a", bind);
    machine_start(&m[1], "b", bind);
    clock_sleep_ms(300);
    for (int i = 0; i < 2; i++) {
        coordinator_start(bind, "a=0-1,b=2-4", 2, "f32");
        wait_for(SERVICE_SERVING);
        ask_many();
        coordinator_stop();
    }
    machine_stop(&m[0]);
    machine_stop(&m[1]);
}

static void a_lost_node_is_a_pause_and_the_survivor_goes_on_alone(void **state) {
    (void)state;
    struct machine m[2] = { { 0 } };
    struct client c[3];
    int32_t prompt[3][PROMPT];
    struct service_request r[3];
    uint32_t n_new = effort() == EFFORT_QUICK ? 60 : TOKENS_MAX - 1;
    coordinator_start("tcp://127.0.0.1:0", "a=0-1,b=2-4", 2, "f32");
    machine_start(&m[0], "a", service_node_address(service));
    machine_start(&m[1], "b", service_node_address(service));
    wait_for(SERVICE_SERVING);
    for (int i = 0; i < 3; i++) {
        client_init(&c[i]);
        prompt_of(prompt[i], PROMPT, 300 + (uint64_t)i);
        r[i] = request_of(prompt[i], PROMPT, n_new, &c[i]);
        submit(&r[i], &c[i]);
    }
    while (client_count(&c[0]) < 20) clock_sleep_ms(1);
    machine_stop(&m[1]);
    for (int i = 0; i < 3; i++) client_wait(&c[i]);
    for (int i = 0; i < 3; i++) {
        if (c[i].done.code) fail_msg("request %d: %s", i, c[i].done.text);
        check_equal(&r[i], &c[i], n_new);
    }
    machine_stop(&m[0]);
    coordinator_stop();
}

static int open_all(void **state) {
    (void)state;
    rig_open(CTX);
    return 0;
}

static int close_all(void **state) {
    (void)state;
    rig_close();
    return 0;
}

int main(void) {
    const struct CMUnitTest tests[] = {
        TEST(tokens_are_the_same_for_one_to_four_stages),
        TEST(a_coordinator_that_computes_sees_machines_come_and_go),
        TEST(streams_in_16_bits_are_near_the_true_ones),
        TEST(a_cluster_serves_with_streams_in_16_bits_and_says_so),
        TEST(nodes_may_come_before_their_coordinator_and_stay_after_it),
        TEST(a_lost_node_is_a_pause_and_the_survivor_goes_on_alone),
    };
    return cmocka_run_group_tests(tests, open_all, close_all);
}
