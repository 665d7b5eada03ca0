/* page - see the header. page_data.inc is written by the Makefile. */
#include "coordinator/page.h"

#include "common/base/types.h"
#include "coordinator/page_data.inc"

static const struct page_file files[] = {
    { "/", "text/html; charset=utf-8", page_html, sizeof page_html },
    { "/page.css", "text/css; charset=utf-8", page_css, sizeof page_css },
    { "/page.js", "text/javascript; charset=utf-8", page_js, sizeof page_js },
};

/* Nothing inline, nothing from elsewhere, nobody may frame us; what the model says cannot load or send. */
const struct page_header page_headers[] = {
    { "Content-Security-Policy",
      "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
      "base-uri 'none'; form-action 'none'; frame-ancestors 'none'" },
    { "X-Content-Type-Options", "nosniff" },
    { "X-Frame-Options", "DENY" },
    { "Referrer-Policy", "no-referrer" },
    { "Cross-Origin-Opener-Policy", "same-origin" },
    { "Cache-Control", "no-cache" },
    { NULL, NULL },
};

const struct page_file *page_find(const char *path) {
    for (size_t i = 0; i < COUNT_OF(files); i++) {
        if (strcmp(path, files[i].path) == 0) return &files[i];
    }
    return NULL;
}
