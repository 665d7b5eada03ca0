/* dsml_tags - the tags of tool markup, looked for in text of which more may follow.
 *
 * Pure functions over a view: what begins here, where does it begin, and "perhaps, when more comes"
 * as an answer of its own. Private to dsml*.c. */
#ifndef MODEL_DSML_TAGS_H
#define MODEL_DSML_TAGS_H

#include "common/model/chat_json.h"

/* The tags as one block spells them. Openings with attributes end before those. */
struct dsml_tags {
    const char *calls, *calls_close;
    const char *invoke, *invoke_close;
    const char *parameter, *parameter_close;
};

enum dsml_match { DSML_MATCH_NO, DSML_MATCH_PART, DSML_MATCH_FULL };

/* Whether the text begins with the tag, or is the beginning of it (the empty text is). */
enum dsml_match dsml_match(struct chat_text text, const char *tag);

/* Where the tag begins at or after `from`; else where a part of it begins at the very end; else the
 * length. A tag has '<' as its first character only. */
size_t dsml_find(struct chat_text text, size_t from, const char *tag, bool *found);

/* The same for the first tag of a block; *tags is the spelling of a block that was found. */
size_t dsml_find_block(struct chat_text text, bool loose, const struct dsml_tags **tags,
                       bool *found);

struct dsml_attributes {
    struct chat_text name, string;
};

/* What lies between a tag's opening and its '>': KEY="VALUE" with white space before each, any
 * keys, in any order. False: it is something else, or there is no name. */
bool dsml_read_attributes(struct chat_text text, struct dsml_attributes *a);

bool dsml_is_space(char c);

#endif
