/* api_openai_parts - see the header. */
#include "coordinator/api_openai_parts.h"

#include "coordinator/sse.h"

void api_openai_put_head(struct api_job *j, const char *object) {
    buf_printf(&j->out, "{\"id\":\"%s\",\"object\":\"%s\",\"created\":%lld,\"model\":", j->id, object,
               (long long)j->created_s);
    chat_json_put_quoted(&j->out, j->model);
    buf_printf(&j->out, ",\"system_fingerprint\":\"%s\",\"choices\":[", j->site->fingerprint);
}

void api_openai_end_piece(struct api_job *j, bool with_usage, const struct api_openai_words *w) {
    if (j->params.include_usage) {
        buf_add_text(&j->out, ",\"usage\":null");
    } else if (with_usage) {
        buf_add_text(&j->out, ",\"usage\":");
        w->put_usage(j);
    }
    buf_add_char(&j->out, '}');
    sse_end(&j->out);
}

static void put_object(struct api_job *j, const struct api_openai_words *w) {
    api_openai_put_head(j, w->whole);
    for (uint32_t i = 0; i < j->n_choice; i++) {
        if (i) buf_add_char(&j->out, ',');
        w->put_choice(j, &j->choice[i]);
    }
    buf_add_text(&j->out, "],\"usage\":");
    w->put_usage(j);
    buf_add_char(&j->out, '}');
}

void api_openai_end(struct api_job *j, const struct api_openai_words *w) {
    if (!j->params.stream) {
        put_object(j, w);
        return;
    }
    if (j->params.include_usage) {
        sse_begin(&j->out, NULL);
        api_openai_put_head(j, w->piece);
        buf_add_text(&j->out, "],\"usage\":");
        w->put_usage(j);
        buf_add_char(&j->out, '}');
        sse_end(&j->out);
    }
    buf_add_text(&j->out, "data: [DONE]\n\n");
}

void api_openai_alive(struct api_job *j) {
    if (j->n_progress_of) sse_comment(&j->out, "prefill %u/%u", j->n_progress, j->n_progress_of);
    else sse_comment(&j->out, "waiting");
}

void api_openai_fail(struct api_job *j) {
    sse_begin(&j->out, NULL);
    api_error_put(&j->out, &j->fault, API_SHAPE_OPENAI, j->request_id);
    sse_end(&j->out);
}
