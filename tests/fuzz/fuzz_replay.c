/* A stored memory of tool calls from anywhere: refused, or what was read is written the same again. */
#include "common/base/check.h"
#include "common/base/hash.h"
#include "coordinator/replay.h"

#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* The checksum is made right, so that what is behind it is looked at. */
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    struct replay *r, *back;
    struct buf out, again;
    uint8_t *copy = malloc(size + 8);
    CHECK(copy && replay_new(&r, 1 << 20, NULL) == 0 && replay_new(&back, 1 << 20, NULL) == 0);
    if (size) memcpy(copy, data, size);
    uint64_t sum = hash_64(copy, size, 0);
    for (int i = 0; i < 8; i++) copy[size + (size_t)i] = (uint8_t)(sum >> 8 * i);
    buf_init(&out, 1 << 22);
    buf_init(&again, 1 << 22);
    int rc = replay_load(r, copy, size + 8, NULL);
    CHECK(rc == 0 || (rc == ERR_CORRUPT && replay_stats(r).n_put == 0));
    CHECK(replay_save(r, NULL, 0, &out) == 0 && replay_load(back, out.data, out.size, NULL) == 0);
    CHECK(replay_save(back, NULL, 0, &again) == 0);
    CHECK(out.size == again.size && memcmp(out.data, again.data, out.size) == 0);
    buf_deinit(&out);
    buf_deinit(&again);
    replay_free(r);
    replay_free(back);
    free(copy);
    return 0;
}
