/* generate_remote - `pleiades generate` over an endpoint: the same prompt, sampling and output, computed by
 * whatever stands behind it.
 *
 * One request to POST /v1/completions with return_token_ids, streamed. Main thread; blocks until the last
 * token. */
#ifndef CLI_GENERATE_REMOTE_H
#define CLI_GENERATE_REMOTE_H

#include "common/base/buf.h"
#include "common/model/sampler.h"
#include "common/model/tokenizer.h"

struct generate_remote {
    const char *cluster;                           /* HOST:PORT or a URL of `pleiades serve` */
    const char *api_key_file, *ca_file;
    const struct token_buf *prompt;
    const struct sampler_params *params;
    int n_new;
    bool json, stop_at_eos;
};

int generate_remote(const struct generate_remote *r, struct err *e);

#endif
