/* api_openai_parts - what the two older OpenAI dialects (chat and text completions) share: the head of
 * every object, the end of an answer, errors inside a stream, signs of life.
 *
 * Each writes to j->out. Belongs to whoever owns the job. Private to api_openai*.c. */
#ifndef COORDINATOR_API_OPENAI_PARTS_H
#define COORDINATOR_API_OPENAI_PARTS_H

#include "coordinator/api_job.h"

struct api_openai_words {
    const char *whole, *piece;                    /* the "object" of an answer, and of a part of a stream */
    void (*put_choice)(struct api_job *j, struct api_choice *c);
    void (*put_usage)(struct api_job *j);
};

void api_openai_put_head(struct api_job *j, const char *object);      /* up to the first choice */
/* ["usage": null,] the end of the object, and of the event. */
void api_openai_end_piece(struct api_job *j, bool with_usage, const struct api_openai_words *w);
void api_openai_end(struct api_job *j, const struct api_openai_words *w);
void api_openai_alive(struct api_job *j);
void api_openai_fail(struct api_job *j);

#endif
