/* version - says what this program was built from and with, and what it would use on this machine.
 *
 * One list of (section, key, value) facts is collected; plain text and JSON are two ways to print it. */
#include "cli/cmd.h"

#include "build_info.h"
#include "cli/opts.h"
#include "kernels/kernels.h"

#include <histedit.h>
#include <jansson.h>
#include <protobuf-c/protobuf-c.h>
#include <stdio.h>
#include <uv.h>
#include <xxhash.h>
#include <zmq.h>

enum { FACTS_MAX = 32, FACT_TEXT_MAX = 96 };

struct fact {
    const char *section, *key;                    /* section NULL: top level */
    char value[FACT_TEXT_MAX];
};

struct facts {
    struct fact item[FACTS_MAX];
    int n;
};

static void add(struct facts *f, const char *section, const char *key, const char *format, ...)
    PRINTF_LIKE(4, 5);

static void add(struct facts *f, const char *section, const char *key, const char *format, ...) {
    if (f->n == FACTS_MAX) return;
    struct fact *fact = &f->item[f->n++];
    va_list args;
    va_start(args, format);
    vsnprintf(fact->value, sizeof fact->value, format, args);
    va_end(args);
    fact->section = section;
    fact->key = key;
}

static const char *os_name(void) {
#if defined(__APPLE__)
    return "macos";
#elif defined(__linux__)
    return "linux";
#else
    return "unknown";
#endif
}

static const char *arch_name(void) {
#if defined(__aarch64__)
    return "arm64";
#elif defined(__x86_64__)
    return "x86_64";
#else
    return "unknown";
#endif
}

static void add_compiler(struct facts *f) {
#if defined(__clang__)
    add(f, NULL, "compiler", "clang %d.%d.%d", __clang_major__, __clang_minor__, __clang_patchlevel__);
#elif defined(__GNUC__)
    add(f, NULL, "compiler", "gcc %d.%d.%d", __GNUC__, __GNUC_MINOR__, __GNUC_PATCHLEVEL__);
#else
    add(f, NULL, "compiler", "unknown");
#endif
}

/* The instruction sets that kernels/cpu has files for; the machine picks one of them. */
static const char *cpu_paths(void) {
#if defined(__x86_64__)
    return "avx512 avx2 generic";
#elif defined(__aarch64__)
    return "i8mm neon generic";
#else
    return "generic";
#endif
}

static void add_backends(struct facts *f) {
    add(f, "backends", "cpu", "%s", kernels_cpu_simd_name());
    add(f, "backends", "cpu_paths", "%s", cpu_paths());
#if defined(PLEIADES_CUDA)
    add(f, "backends", "cuda", "yes");
#else
    add(f, "backends", "cuda", "no");
#endif
#if defined(PLEIADES_METAL)
    add(f, "backends", "metal", "yes");
#else
    add(f, "backends", "metal", "no");
#endif
}

static void add_libraries(struct facts *f) {
    unsigned xxhash = XXH_versionNumber();
    int zmq[3];
    zmq_version(&zmq[0], &zmq[1], &zmq[2]);
    add(f, "libraries", "jansson", "%s", jansson_version_str());
    add(f, "libraries", "libedit", "%d.%d", LIBEDIT_MAJOR, LIBEDIT_MINOR);
    add(f, "libraries", "libuv", "%s", uv_version_string());
    add(f, "libraries", "libzmq", "%d.%d.%d", zmq[0], zmq[1], zmq[2]);
    add(f, "libraries", "curve", "%s", zmq_has("curve") ? "yes" : "no");
    add(f, "libraries", "protobuf-c", "%s", protobuf_c_version());
    add(f, "libraries", "xxhash", "%u.%u.%u", xxhash / 10000, xxhash / 100 % 100, xxhash % 100);
}

static void collect(struct facts *f) {
    add(f, NULL, "version", "%s", PLEIADES_VERSION);
    add(f, NULL, "commit", "%s", PLEIADES_COMMIT);
    add(f, NULL, "system", "%s-%s", os_name(), arch_name());
    add_compiler(f);
    add(f, NULL, "config", "%s", PLEIADES_BUILD);
    add_backends(f);
    add_libraries(f);
}

static void print_text(const struct facts *f) {
    const char *section = NULL;
    for (int i = 0; i < f->n; i++) {
        const struct fact *fact = &f->item[i];
        if (fact->section && fact->section != section) printf("%s\n", fact->section);
        section = fact->section;
        printf("%s%-*s %s\n", section ? "  " : "", section ? 10 : 12, fact->key, fact->value);
    }
}

static int print_json(const struct facts *f) {
    json_t *root = json_object();
    for (int i = 0; i < f->n; i++) {
        const struct fact *fact = &f->item[i];
        json_t *object = fact->section ? json_object_get(root, fact->section) : root;
        if (!object) {
            json_object_set_new(root, fact->section, json_object());
            object = json_object_get(root, fact->section);
        }
        json_object_set_new(object, fact->key, json_string(fact->value));
    }
    int rc = json_dumpf(root, stdout, JSON_INDENT(2));
    putchar('\n');
    json_decref(root);
    return rc == 0 ? 0 : OPTS_EXIT_FAILURE;
}

int cmd_version(int argc, char **argv) {
    bool json = false, brief = false;
    const struct opt table[] = {
        OPT_FLAG('j', "json", &json, "print JSON"),
        OPT_FLAG('s', "short", &brief, "one line: version and commit"),
    };
    const struct opts spec = { "version", "", "Says what this build contains and what it uses here.",
                               table, COUNT_OF(table), 0, 0 };
    int n_args = opts_parse(&spec, argc, argv);
    if (n_args < 0) return opts_exit_status(n_args);
    if (brief) {
        printf("pleiades %s (%s)\n", PLEIADES_VERSION, PLEIADES_COMMIT);
        return 0;
    }
    struct facts facts = { .n = 0 };
    collect(&facts);
    if (json) return print_json(&facts);
    print_text(&facts);
    return 0;
}
