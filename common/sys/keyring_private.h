/* keyring_private - what keyring.c (decisions) and keyring_files.c (texts on disk) share. */
#ifndef SYS_KEYRING_PRIVATE_H
#define SYS_KEYRING_PRIVATE_H

#include "common/sys/curve.h"
#include "common/sys/file.h"
#include "common/sys/keyring.h"

enum { KEYRING_ADDRESS_MAX = 128, KEYRING_FILE_MAX = 1 << 18 };

struct key_pair { char public_key[KEY_TEXT], secret_key[KEY_TEXT]; };

/* cluster.clients */
struct key_list {
    struct keyring_client *client;
    uint32_t n;
};

/* What --key names on a node. */
struct node_file {
    struct key_pair own;
    char address[KEYRING_ADDRESS_MAX], server_key[KEY_TEXT];
    char token_secret[KEY_TEXT];                  /* "" once enrolled */
};

struct token {
    char address[KEYRING_ADDRESS_MAX], server_key[KEY_TEXT], secret_key[KEY_TEXT];
};

bool key_name_is_valid(const char *name);
bool key_address_is_valid(const char *address);   /* HOST:PORT, a port above 0 */

int token_encode(const struct token *t, char out[KEYRING_TOKEN_MAX], struct err *e);
int token_decode(const char *text, struct token *out, struct err *e);
bool token_is_one(const char *text);

/* Whole file that only its owner may read; *out is wiped and freed with private_free. */
int private_read(const char *path, char **out, struct err *e);
void private_free(char *text);

int cluster_key_read(const char *folder, struct key_pair *out, struct err *e);
int cluster_key_write(const char *folder, const struct key_pair *pair, struct err *e);
bool key_list_parse(char *text, struct key_list *out);        /* false: damaged. Free the list anyway */
int key_list_read(const char *folder, struct key_list *out, struct file_facts *facts, struct err *e);
/* Lock, read, change, write: `change` edits the list in its room of KEYRING_CLIENTS_MAX. */
int key_list_change(const char *folder, int (*change)(void *ctx, struct key_list *list, struct err *e),
                    void *ctx, struct err *e);
void key_list_free(struct key_list *list);

int node_file_parse(char *text, const char *path, struct node_file *out, struct err *e);
int node_file_write(const char *path, const struct node_file *f, struct err *e);

#endif
