/* page - the web page at "/", built into the program: markup, style and script as three fixed texts.
 *
 * Sources are page.html, page.css and page.js beside this file; the Makefile turns them into arrays. They
 * name nothing outside this server, so the policy below forbids everything else and needs neither nonces
 * nor hashes. All three are public: they are served without a key, and the page asks for the key that
 * /v1/ wants. Immutable; any thread. */
#ifndef COORDINATOR_PAGE_H
#define COORDINATOR_PAGE_H

#include <stddef.h>

struct page_file {
    const char *path;                             /* "/", "/page.css", "/page.js" */
    const char *type;                             /* Content-Type */
    const unsigned char *data;
    size_t size;
};

const struct page_file *page_find(const char *path);       /* NULL: not one of ours */

/* Headers that every one of them is to be sent with; the last name is NULL. */
struct page_header {
    const char *name, *value;
};
extern const struct page_header page_headers[];

#endif
