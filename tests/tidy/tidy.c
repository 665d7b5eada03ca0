/* tidy - reads every source file and reports what the compiler does not: who includes whom, where third-party
 * headers live, dangerous functions, line form.
 *
 *     tidy FOLDER         one line per finding; exit status 1 if there are any
 *     tidy --self-test    a planted mistake per rule, and clean files that must stay clean (TAP)
 *
 * Checking is pure (path and text in, findings out); only main and walk() know about files. Comments
 * and string literals are blanked before the rules that look for names. */
#include "common/base/buf.h"
#include "common/base/check.h"

#include <ctype.h>
#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

enum { COLUMNS_MAX = 110, PATH_LENGTH_MAX = 1024, FILE_BYTES_MAX = 8 << 20 };

/* ---- the rules, as data ---- */

/* Who may include which of our headers: the longest matching folder decides, its list holds prefixes of
 * allowed paths. */
struct layer {
    const char *folder;
    const char *may[12];
};

static const struct layer layers[] = {
    { "common/base/", { "common/base/" } },
    { "common/sys/", { "common/base/", "common/sys/" } },
    { "common/model/", { "common/base/", "common/model/", "common/sys/file.h" } },
    { "common/wire/", { "common/base/", "common/wire/" } },
    { "common/wire/codec", { "common/base/", "common/wire/", "proto/" } },
    { "common/share/",
      { "common/base/", "common/sys/", "common/model/", "common/wire/", "common/share/" } },
    { "kernels/", { "common/base/", "common/model/dtype.h", "kernels/kernels.h" } },
    { "kernels/cpu/",
      { "common/base/", "common/model/dtype.h", "kernels/kernels.h", "kernels/cpu/" } },
    { "kernels/cuda/",
      { "common/base/", "common/model/dtype.h", "kernels/kernels.h", "kernels/cuda/" } },
    { "kernels/metal/",
      { "common/base/", "common/model/dtype.h", "kernels/kernels.h", "kernels/metal/" } },
    { "node/", { "common/", "kernels/kernels.h", "node/" } },
    { "coordinator/", { "common/", "coordinator/" } },
    { "shard_tool/",
      { "common/base/", "common/model/", "common/wire/", "common/sys/file.h", "shard_tool/" } },
    { "cli/",
      { "common/", "kernels/kernels.h", "node/", "coordinator/", "shard_tool/", "cli/",
        "build_info.h" } },
    { "tests/", { "" } },
};

/* Headers that are neither ours nor every system's: only files under one of these prefixes may include
 * them. */
struct home {
    const char *header;                           /* prefix */
    const char *files[4];
};

static const struct home homes[] = {
    { "xxhash.h",       { "common/base/hash.c" } },
    { "jansson.h",      { "cli/", "coordinator/api" } },
    { "zmq.h",          { "common/sys/zpump.c", "common/sys/link_", "common/sys/zap.c",
                          "common/sys/curve.c" } },
    { "uv.h",           { "common/sys/" } },
    { "protobuf-c/",    { "common/wire/codec" } },
    { "microhttpd.h",   { "coordinator/http.c" } },
    { "curl/",          { "common/sys/", "cli/http_client.c" } },
    { "dns_sd.h",       { "common/sys/" } },
    { "histedit.h",     { "cli/" } },
    { "editline/",      { "cli/" } },
    { "cuda",           { "kernels/cuda/" } },
    { "mma.h",          { "kernels/cuda/" } },
    { "cooperative_groups", { "kernels/cuda/" } },
    { "Metal/",         { "kernels/metal/" } },
    { "Foundation/",    { "kernels/metal/" } },
    { "immintrin.h",    { "kernels/cpu/" } },
    { "arm_neon.h",     { "kernels/cpu/" } },
    { "cpuid.h",        { "kernels/cpu/" } },
};

/* Any file may include these: C11, POSIX, and what Linux and macOS give us behind an #if. */
static const char *const free_headers[] = {
    "assert.h",    "complex.h", "ctype.h",  "errno.h",   "fenv.h",    "float.h",    "inttypes.h",
    "limits.h",    "locale.h",  "math.h",   "setjmp.h",  "signal.h",  "stdalign.h", "stdarg.h",
    "stdatomic.h", "stdbool.h", "stddef.h", "stdint.h",  "stdio.h",   "stdlib.h",   "stdnoreturn.h",
    "string.h",    "strings.h", "time.h",   "wchar.h",   "arpa/",     "dirent.h",   "dlfcn.h",
    "fcntl.h",     "fnmatch.h", "getopt.h", "glob.h",    "ifaddrs.h", "libgen.h",   "netdb.h",
    "net/",        "netinet/",  "poll.h",   "pthread.h", "pwd.h",     "sched.h",    "spawn.h",
    "sys/",        "termios.h", "unistd.h", "linux/",    "mach/",     "malloc.h",   "execinfo.h",
};

static const struct { const char *name, *instead;
} banned[] = {
    { "strcpy", "snprintf or memcpy" },
    { "strcat", "buf_add_text" },
    { "strncpy", "snprintf" },
    { "strncat", "buf_add" },
    { "sprintf", "snprintf" },
    { "vsprintf", "vsnprintf" },
    { "strtok", "strcspn" },
    { "gets", "fgets" },
    { "atoi", "opts_read_int or strtol" },
    { "atol", "strtol" },
    { "atoll", "strtoll" },
    { "atof", "strtod" },
    { "rand", "rng_below" },
    { "srand", "rng_init" },
    { "drand48", "rng_double" },
    { "tmpnam", "mkstemp" },
    { "mktemp", "mkstemp" },
    { "system", "posix_spawn" },
    { "alloca", "an array or malloc" },
    { "asctime", "strftime" },
    { "ctime", "strftime" },
    { "gmtime", "gmtime_r" },
    { "localtime", "localtime_r" },
};

/* Halves, so that this list does not find itself. */
static const char *const unfinished[][2] = { { "TO", "DO" }, { "FIX", "ME" }, { "XX", "X" }, { "HA", "CK" } };

/* ---- findings ---- */

struct report {
    bool quiet;                                   /* the self-test only counts */
    int n;
    char first_rule[32];
};

static void finding(struct report *r, const char *path, int line, const char *rule, const char *format, ...)
    PRINTF_LIKE(5, 6);

static void finding(struct report *r, const char *path, int line, const char *rule, const char *format, ...) {
    if (r->n++ == 0) snprintf(r->first_rule, sizeof r->first_rule, "%s", rule);
    if (r->quiet) return;
    va_list args;
    va_start(args, format);
    printf("%s:%d: %s: ", path, line, rule);
    vprintf(format, args);
    printf("\n");
    va_end(args);
}

/* ---- text ---- */

static bool begins(const char *text, const char *with) {
    return strncmp(text, with, strlen(with)) == 0;
}

static bool ends(const char *text, const char *with) {
    size_t n = strlen(text), m = strlen(with);
    return n >= m && strcmp(text + n - m, with) == 0;
}

static bool is_word(char c) {
    return isalnum((unsigned char)c) || c == '_';
}

/* Comments and literals become spaces, line ends stay; so every position and line number stays the same. */
static void blank_comments_and_literals(char *text) {
    for (char *c = text; *c;) {
        char *end = c + 1;
        if (c[0] == '/' && c[1] == '*') {
            end = strstr(c + 2, "*/");
            end = end ? end + 2 : c + strlen(c);
        } else if (c[0] == '/' && c[1] == '/') {
            end = c + strcspn(c, "\n");
        } else if (c[0] == '"' || (c[0] == '\'' && (c == text || !is_word(c[-1])))) {
            while (*end && *end != *c && *end != '\n') end += end[0] == '\\' && end[1] ? 2 : 1;
            end += *end == *c;
        } else {
            c++;
            continue;
        }
        for (; c < end; c++) {
            if (*c != '\n') *c = ' ';
        }
    }
}

static int line_of(const char *text, const char *at) {
    int line = 1;
    for (; text < at; text++) line += *text == '\n';
    return line;
}

/* ---- rules on lines ---- */

static void check_lines(struct report *r, const char *path, const char *text) {
    int line = 1;
    for (const char *at = text; *at; line++) {
        size_t length = strcspn(at, "\n");
        int columns = 0;
        for (size_t i = 0; i < length; i++) columns += ((unsigned char)at[i] & 0xc0) != 0x80;
        if (columns > COLUMNS_MAX)
            finding(r, path, line, "length", "%d columns, %d at most", columns, COLUMNS_MAX);
        if (memchr(at, '\t', length)) finding(r, path, line, "tab", "a tab");
        if (memchr(at, '\r', length)) finding(r, path, line, "line-end", "a carriage return");
        if (length && at[length - 1] == ' ')
            finding(r, path, line, "space", "a space at the end of the line");
        at += length;
        if (!*at) finding(r, path, line, "line-end", "the last line has no end");
        else at++;
    }
}

static void check_unfinished(struct report *r, const char *path, const char *text) {
    for (size_t i = 0; i < COUNT_OF(unfinished); i++) {
        char word[16];
        snprintf(word, sizeof word, "%s%s", unfinished[i][0], unfinished[i][1]);
        for (const char *at = text; (at = strstr(at, word)); at += strlen(word)) {
            if ((at > text && is_word(at[-1])) || is_word(at[strlen(word)])) continue;
            finding(r, path, line_of(text, at), "unfinished", "%s", word);
        }
    }
}

/* ---- rules on names; `code` has no comments and literals ---- */

static void check_banned(struct report *r, const char *path, const char *code) {
    for (size_t i = 0; i < COUNT_OF(banned); i++) {
        size_t length = strlen(banned[i].name);
        for (const char *at = code; (at = strstr(at, banned[i].name)); at += length) {
            const char *next = at + length + strspn(at + length, " ");
            bool member = at > code && (at[-1] == '.' || (at[-1] == '>' && at - code > 1 && at[-2] == '-'));
            if ((at > code && is_word(at[-1])) || member || *next != '(') continue;
            finding(r, path, line_of(code, at), "banned", "%s: use %s", banned[i].name, banned[i].instead);
        }
    }
}

static void check_typedef(struct report *r, const char *path, const char *code) {
    for (const char *at = code; (at = strstr(at, "typedef ")); at++) {
        const char *what = at + 8 + strspn(at + 8, " ");
        if (begins(what, "struct ") || begins(what, "union ")) {
            finding(r, path, line_of(code, at), "typedef", "a struct is named by its tag");
        }
    }
}

/* ---- rules on includes ---- */

static bool any_prefix(const char *path, const char *const *prefixes, size_t n) {
    for (size_t i = 0; i < n && prefixes[i]; i++) {
        if (begins(path, prefixes[i])) return true;
    }
    return false;
}

static const struct layer *layer_of(const char *path) {
    const struct layer *found = NULL;
    for (size_t i = 0; i < COUNT_OF(layers); i++) {
        if (!begins(path, layers[i].folder)) continue;
        if (!found || strlen(layers[i].folder) > strlen(found->folder)) found = &layers[i];
    }
    return found;
}

static bool same_folder(const char *a, const char *b) {
    const char *slash_a = strrchr(a, '/'), *slash_b = strrchr(b, '/');
    return slash_a && slash_b && slash_a - a == slash_b - b && strncmp(a, b, (size_t)(slash_a - a)) == 0;
}

static void check_ours(struct report *r, const char *path, int line, const char *header) {
    const struct layer *layer = layer_of(path);
    if (!layer) {
        finding(r, path, line, "layer", "this folder has no layer in tests/tidy/tidy.c");
        return;
    }
    bool private = ends(header, "_private.h") || ends(header, "_parts.h");
    if (!any_prefix(header, layer->may, COUNT_OF(layer->may))) {
        finding(r, path, line, "layer", "%s may not include %s", layer->folder, header);
    } else if (private && !same_folder(path, header) && !begins(path, "tests/")) {
        finding(r, path, line, "layer", "%s is private to its folder", header);
    }
}

static void check_foreign(struct report *r, const char *path, int line, const char *header) {
    if (any_prefix(header, free_headers, COUNT_OF(free_headers)) || begins(path, "tests/")) return;
    for (size_t i = 0; i < COUNT_OF(homes); i++) {
        if (!begins(header, homes[i].header)) continue;
        bool home = any_prefix(path, homes[i].files, COUNT_OF(homes[i].files));
        bool names_versions = strcmp(path, "cli/cmd_version.c") == 0;
        if (!home && !names_versions)
            finding(r, path, line, "home", "<%s> belongs in %s", header, homes[i].files[0]);
        return;
    }
    finding(r, path, line, "home", "<%s> has no home in tests/tidy/tidy.c", header);
}

/* The path between the quotes or brackets of the #include at `line`; false if the line is none. */
static bool read_include(const char *line, char *header, size_t room, bool *ours) {
    line += strspn(line, " ");
    if (*line++ != '#') return false;
    line += strspn(line, " ");
    if (!begins(line, "include")) return false;
    line += 7 + strspn(line + 7, " ");
    if (*line != '"' && *line != '<') return false;
    *ours = *line == '"';
    int length = (int)strcspn(line + 1, *ours ? "\"\n" : ">\n");
    snprintf(header, room, "%.*s", length, line + 1);
    return true;
}

/* NAME.c may start with NAME.h or with the private header that includes it. */
static bool is_own_header(const char *header, const char *own) {
    static const char *const endings[] = { ".h", "_private.h", "_parts.h" };
    size_t stem = strlen(own) - 2;
    for (size_t i = 0; i < COUNT_OF(endings); i++) {
        if (strncmp(header, own, stem) == 0 && strcmp(header + stem, endings[i]) == 0) return true;
    }
    return false;
}

static void check_includes(struct report *r, const char *path, const char *text, const char *own_header) {
    char header[PATH_LENGTH_MAX];
    bool ours;
    int line = 1, n = 0;
    for (const char *at = text; *at; at += strcspn(at, "\n"), at += *at == '\n', line++) {
        if (!read_include(at, header, sizeof header, &ours)) continue;
        if (n++ == 0 && own_header && !is_own_header(header, own_header)) {
            finding(r, path, line, "own-header", "the first include is not %s", own_header);
        }
        if (ours) check_ours(r, path, line, header);
        else check_foreign(r, path, line, header);
    }
    if (n == 0 && own_header) finding(r, path, 1, "own-header", "%s is not included", own_header);
}

/* own_header: the .h of the same name, or NULL when there is none. `text` is changed. */
static void check_source(struct report *r, const char *path, char *text, const char *own_header) {
    check_lines(r, path, text);
    check_unfinished(r, path, text);
    check_includes(r, path, text, own_header);
    blank_comments_and_literals(text);
    check_banned(r, path, text);
    check_typedef(r, path, text);
}

/* ---- the tree ---- */

static bool is_source(const char *name) {
    static const char *const endings[] = { ".c", ".h", ".inc", ".cu", ".cuh", ".m" };
    for (size_t i = 0; i < COUNT_OF(endings); i++) {
        if (ends(name, endings[i])) return true;
    }
    return false;
}

static void read_whole(const char *path, struct buf *text) {
    FILE *f = fopen(path, "rb");
    char piece[65536];
    size_t n;
    CHECK(f);
    buf_init(text, FILE_BYTES_MAX);
    while ((n = fread(piece, 1, sizeof piece, f)) > 0) buf_add(text, piece, n);
    fclose(f);
    CHECK(text->rc == 0);
}

static void check_file(struct report *r, const char *root, const char *path) {
    char full[PATH_LENGTH_MAX * 2], own[PATH_LENGTH_MAX], own_full[PATH_LENGTH_MAX * 2];
    struct stat st;
    struct buf text;
    snprintf(full, sizeof full, "%s/%s", root, path);
    snprintf(own, sizeof own, "%.*s.h", (int)(strlen(path) - 2), path);
    snprintf(own_full, sizeof own_full, "%s/%s", root, own);
    bool has_own = ends(path, ".c") && stat(own_full, &st) == 0;
    read_whole(full, &text);
    check_source(r, path, text.data, has_own ? own : NULL);
    buf_deinit(&text);
}

static int by_name(const void *a, const void *b) {
    return strcmp(*(char *const *)a, *(char *const *)b);
}

/* In order of names, so that two runs print the same. Hidden folders and build results are not ours. */
static int walk(struct report *r, const char *root, const char *folder) {
    char path[PATH_LENGTH_MAX * 2], *names[4096];
    int n = 0, n_files = 0;
    snprintf(path, sizeof path, "%s/%s", root, folder);
    DIR *d = opendir(path);
    if (!d) return 0;
    for (struct dirent *entry; (entry = readdir(d));) {
        if (entry->d_name[0] == '.' || n == (int)COUNT_OF(names)) continue;
        CHECK((names[n++] = strdup(entry->d_name)));
    }
    closedir(d);
    qsort(names, (size_t)n, sizeof names[0], by_name);
    for (int i = 0; i < n; i++) {
        struct stat st;
        char below[PATH_LENGTH_MAX];
        snprintf(below, sizeof below, "%s%s%s", folder, *folder ? "/" : "", names[i]);
        snprintf(path, sizeof path, "%s/%s", root, below);
        bool skip = !*folder && (strcmp(names[i], "build") == 0 || strcmp(names[i], "dist") == 0);
        bool modules = strcmp(names[i], "node_modules") == 0;
        if (stat(path, &st) == 0 && S_ISDIR(st.st_mode) && !skip && !modules) n_files += walk(r, root, below);
        else if (is_source(names[i])) check_file(r, root, below), n_files++;
        free(names[i]);
    }
    return n_files;
}

/* ---- self-test ---- */

static const struct plant {
    const char *rule;                             /* NULL: nothing may be found */
    const char *path, *own_header, *text;
} plants[] = {
    { NULL, "node/a.c", "node/a.h",
      "#include \"node/a.h\"\n\n#include \"kernels/kernels.h\"\n#include <stdio.h>\n" },
    { NULL, "cli/a.c", NULL,
      "#include <jansson.h>\n/* strcpy(a, b); */\nchar *s = \"atoi(x)\"; /* gets(s) */\n" },
    { NULL, "cli/a.c", NULL,
      "int f(void) { return my_atoi(1) + x->rand(2) + y.system(3) + gets; }\n" },
    { NULL, "cli/a.c", NULL, "char c = '\"'; char d = '\\''; /* it's */ int e = 1'000;\n" },
    { NULL, "tests/unit/a.c", NULL, "#include <cmocka.h>\n#include \"node/weights_private.h\"\n" },
    { NULL, "node/a.c", "node/a.h", "#include \"node/a_private.h\"\n" },
    { NULL, "cli/cmd_version.c", NULL, "#include <zmq.h>\n" },
    { "layer", "common/base/a.c", NULL, "#include \"common/sys/file.h\"\n" },
    { "layer", "common/model/a.c", NULL, "#include \"common/sys/clock.h\"\n" },
    { "layer", "common/model/a.h", NULL, "#include \"kernels/kernels.h\"\n" },
    { "layer", "common/sys/a.c", NULL, "#include \"common/wire/msg.h\"\n" },
    { "layer", "kernels/cuda/a.cu", NULL, "#include \"kernels/cpu/simd.h\"\n" },
    { "layer", "kernels/cpu/a.c", NULL, "#  include \"common/model/gguf.h\"\n" },
    { "layer", "node/a.c", NULL, "#include \"kernels/cpu/simd.h\"\n" },
    { "layer", "node/a.c", NULL, "#include \"coordinator/core.h\"\n" },
    { "layer", "coordinator/a.c", NULL, "#include \"kernels/kernels.h\"\n" },
    { "layer", "shard_tool/a.c", NULL, "#include \"common/sys/clock.h\"\n" },
    { "layer", "cli/a.c", NULL, "#include \"node/weights_private.h\"\n" },
    { "layer", "cli/a.c", NULL, "#include \"kernels/cpu/cpu.h\"\n" },
    { "layer", "elsewhere/a.c", NULL, "#include \"common/base/err.h\"\n" },
    { "home", "node/a.c", NULL, "#include <zmq.h>\n" },
    { "home", "common/model/a.c", NULL, "#include <jansson.h>\n" },
    { "home", "node/a.c", NULL, "#include <never_heard_of.h>\n" },
    { "home", "node/a.c", NULL, "#include <cuda_runtime.h>\n" },
    { "own-header", "node/a.c", "node/a.h", "#include <stdio.h>\n#include \"node/a.h\"\n" },
    { "own-header", "node/a.c", "node/a.h", "#include \"node/ab.h\"\n" },
    { "own-header", "node/a.c", "node/a.h", "int x;\n" },
    { "banned", "node/a.c", NULL, "void f(void) { strcpy(a, b); }\n" },
    { "banned", "node/a.c", NULL, "int x = atoi (text);\n" },
    { "banned", "tests/unit/a.c", NULL, "char *s = \"\\\"\"; int x = rand();\n" },
    { "tab", "node/a.c", NULL, "\tint x;\n" },
    { "space", "node/a.c", NULL, "int x; \n" },
    { "line-end", "node/a.c", NULL, "int x;\r\n" },
    { "line-end", "node/a.c", NULL, "int x;" },
    { "typedef", "node/a.h", NULL, "typedef struct x { int y; } x;\n" },
    { "unfinished", "node/a.h", NULL,
      "/* TO"
      "DO: later */\n" },
};

static bool plant_is_caught(const struct plant *p) {
    struct report r = { .quiet = true };
    struct buf text;
    buf_init(&text, FILE_BYTES_MAX);
    buf_add_text(&text, p->text);
    check_source(&r, p->path, text.data, p->own_header);
    buf_deinit(&text);
    return p->rule ? r.n == 1 && strcmp(r.first_rule, p->rule) == 0 : r.n == 0;
}

static bool long_lines_are_caught(void) {
    struct report at = { .quiet = true }, over = { .quiet = true };
    char line[COLUMNS_MAX + 3];
    memset(line, 'x', sizeof line);
    line[COLUMNS_MAX] = '\n';
    line[COLUMNS_MAX + 1] = 0;
    check_lines(&at, "a.c", line);
    line[COLUMNS_MAX] = 'x';
    line[COLUMNS_MAX + 1] = '\n';
    line[COLUMNS_MAX + 2] = 0;
    check_lines(&over, "a.c", line);
    return at.n == 0 && over.n == 1;
}

static int self_test(void) {
    int failed = 0;
    for (size_t i = 0; i < COUNT_OF(plants); i++) {
        const struct plant *p = &plants[i];
        bool ok = plant_is_caught(p);
        failed += !ok;
        printf("%s - tidy %s in %s (plant %d)\n", ok ? "ok" : "not ok",
               p->rule ? p->rule : "finds nothing", p->path, (int)i);
    }
    bool ok = long_lines_are_caught();
    printf("%s - tidy length\n", ok ? "ok" : "not ok");
    return failed || !ok;
}

int main(int argc, char **argv) {
    if (argc == 2 && strcmp(argv[1], "--self-test") == 0) return self_test();
    if (argc != 2) {
        fprintf(stderr, "tidy FOLDER | --self-test\n");
        return 2;
    }
    struct report r = { .n = 0 };
    int n_files = walk(&r, argv[1], "");
    printf("tidy: %d files, %d findings\n", n_files, r.n);
    return r.n || n_files == 0;
}
