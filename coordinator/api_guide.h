/* api_guide - from what a client asked about tools and format to the guide of its answer.
 *
 * Pure; any thread. in_reasoning is what the rendered prompt says (chat_prompt.in_reasoning). *out is
 * NULL when nothing has to be steered; else it goes to service_request.take_guide. With a guide the
 * prompt is never given the beginning of a call, and the parser of the answer starts where it always
 * does: a call that is required is written by the model under the guide. */
#ifndef COORDINATOR_API_GUIDE_H
#define COORDINATOR_API_GUIDE_H

#include "coordinator/api_request.h"
#include "coordinator/guide.h"

int api_guide_new(struct service_guide **out, const struct guide_vocab *v, const struct api_request *r,
                  bool in_reasoning, struct err *e);

#endif
