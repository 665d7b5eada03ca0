#!/usr/bin/env bash
# The endpoint of `pleiades serve` with a synthetic model, asked by curl: the four dialects, streams, aborts, limits, keys,
# TLS, Unix sockets, and an end that finishes what runs.
. "$(dirname "$0")/../harness/lib.sh"

command -v curl >/dev/null 2>&1 || { skip "the endpoint" "no curl here"; exit 0; }
model=$tmp/tiny.gguf
"$pleiades" synth -o "$model" >/dev/null 2>&1 || { failed "a model to serve"; exit 1; }

server=0
stop_server() {
    [ $server -eq 0 ] && return
    kill "$server" 2>/dev/null
    wait "$server" 2>/dev/null
    server=0
}
trap 'stop_server; finish' EXIT

# Starts a server with these options and waits until it answers; $url says where.
serve() {
    stop_server
    "$pleiades" serve -m "$model" -P 0 -t 1 "$@" >"$tmp/serve.log" 2>&1 &
    server=$!
    url=''
    for _ in $(seq 1 300); do
        url=$(sed -n 's/^endpoint at //p' "$tmp/serve.log")
        [ -n "$url" ] && grep -q '^serving' "$tmp/serve.log" && curl -ksf "$url/health" >/dev/null 2>&1 && return 0
        kill -0 $server 2>/dev/null || break
        sleep 0.1
    done
    failed "a server with $*"
    tail -n 20 "$tmp/serve.log" | sed 's/^/#   /'
    exit 1
}

ask() { local path=$1; shift; curl -ks -m 150 "$url$path" "$@"; }
status_of() { local path=$1; shift; curl -ks -m 150 -o "$tmp/output" -w '%{http_code}' "$url$path" "$@"; }
has() { if grep -qF -- "$2" <<<"$3"; then passed "$1"; else failed "$1"; printf '#   no %s in: %.600s\n' "$2" "$3"; fi; }
field() { python3 -c 'import json,sys
v = json.load(sys.stdin)
for k in sys.argv[1].split("."): v = v[int(k)] if k.isdigit() else v[k]
print(v if isinstance(v, str) else json.dumps(v))' "$1"; }

# A prompt of so many tokens that computing it takes a while.
long_prompt() { python3 -c 'import sys
print("{\"prompt\":[" + ",".join(str(100 + i % 500) for i in range(int(sys.argv[1]))) + "],\"max_tokens\":4000,\"ignore_eos\":true,\"stream\":" + sys.argv[2] + "}")' "$1" "$2" >"$tmp/long.json"; }
command -v python3 >/dev/null 2>&1 || { skip "the endpoint" "no python3 here"; exit 0; }

say='"messages":[{"role":"user","content":"Which stars are the Pleiades?"}],"seed":7,"max_tokens":24'

serve --slots 4 --rows 64
has "health is ok" '{"status":"ok"}' "$(ask /health)"
id=$(ask /v1/models | field data.0.id)
has "a model is named" "\"id\":\"$id\"" "$(ask "/v1/models/$id")"
has "the page is served with a policy" "Content-Security-Policy" "$(ask / -i)"
has "metrics are Prometheus text" 'pleiades_build_info{version="' "$(ask /metrics)"
has "status is what the cluster says" '"state": "serving"' "$(ask /v1/status)"

# The same seed gives the same answer in one piece, streamed, and again.
whole=$(ask /v1/chat/completions -d "{$say}")
text() { python3 -c 'import json,sys
out = ""
for line in sys.stdin:
    if not line.startswith("data: {"): continue
    for c in json.loads(line[6:])["choices"]: out += c["delta"].get("reasoning_content", "") + c["delta"].get("content", "")
print(json.dumps(out))'; }
joined=$(python3 -c 'import json,sys
m = json.load(sys.stdin)["choices"][0]["message"]
print(json.dumps(m.get("reasoning_content", "") + (m["content"] or "")))' <<<"$whole")
same "a stream says what an answer in one piece says" "$joined" "$(ask /v1/chat/completions -N -d "{\"stream\":true,$say}" | text)"
same "24 tokens are 24 tokens" 24 "$(field usage.completion_tokens <<<"$whole")"
same "and the reason is their number" length "$(field choices.0.finish_reason <<<"$whole")"
same "another seed, another answer" 1 "$([ "$joined" != "$(ask /v1/chat/completions -N -d "{\"stream\":true,${say/7/8}}" | text)" ] && echo 1)"
twice="\"messages\":[{\"role\":\"user\",\"content\":\"$(seq -s ' ' 1 60)\"}],\"seed\":7,\"max_tokens\":3"
first=$(ask /v1/chat/completions -d "{$twice}")
again=$(ask /v1/chat/completions -d "{$twice}")
same "the prompt of before is not computed again" 1 "$([ "$(field usage.prompt_tokens_details.cached_tokens <<<"$again")" -gt 0 ] && echo 1)"
same "and the answer is the same" "$(field choices.0.message <<<"$first")" "$(field choices.0.message <<<"$again")"
has "HTTP/1.0 gets its stream, too" "data: [DONE]" "$(ask /v1/completions -0 -N -d '{"prompt":"x","max_tokens":2,"stream":true}')"
has "HEAD / says that somebody is there" "200 OK" "$(ask / -I)"
has "streams end with [DONE]" "data: [DONE]" "$(ask /v1/chat/completions -N -d "{\"stream\":true,$say}")"
has "usage comes when asked for" '"choices":[],"usage":{' "$(ask /v1/chat/completions -N -d "{\"stream\":true,\"stream_options\":{\"include_usage\":true},$say}")"
has "log-probabilities come with alternatives" '"top_logprobs":[{"token":' "$(ask /v1/chat/completions -d "{\"logprobs\":true,\"top_logprobs\":3,\"thinking\":false,$say}")"
same "two choices differ" 2 "$(ask /v1/chat/completions -d "{\"n\":2,\"thinking\":false,$say}" | python3 -c 'import json,sys
print(len({c["message"]["content"] for c in json.load(sys.stdin)["choices"]}))')"
has "completions complete" '"object":"text_completion"' "$(ask /v1/completions -d '{"prompt":"Once","max_tokens":4}')"
has "responses respond" '"status":"incomplete"' "$(ask /v1/responses -d '{"input":"Hi","max_output_tokens":4}')"
has "their streams end with the response" 'event: response.incomplete' "$(ask /v1/responses -N -d '{"stream":true,"input":"Hi","max_output_tokens":4}')"
has "messages are messages" '"stop_reason":"max_tokens"' "$(ask /v1/messages -d '{"max_tokens":4,"messages":[{"role":"user","content":"Hi"}]}')"
has "their streams stop" 'event: message_stop' "$(ask '/v1/messages?beta=true' -N -d '{"stream":true,"max_tokens":4,"messages":[{"role":"user","content":"Hi"}]}')"
has "tokens are counted" '{"input_tokens":' "$(ask /v1/messages/count_tokens -d '{"messages":[{"role":"user","content":"Hi"}]}')"
ids=$(ask /tokenize -d '{"content":"Electra & Maia \u660f"}' | field tokens)
same "detokenize undoes tokenize" '"Electra & Maia \u660f"' "$(ask /detokenize -d "{\"tokens\":$ids}" | field content | python3 -c 'import json,sys; print(json.dumps(sys.stdin.read()[:-1]))')"

# Markup that is forced holds together, whatever the model would rather say.
tools='"tools":[{"type":"function","function":{"name":"look","parameters":{"type":"object","properties":{"at":{"type":"string","enum":["sky","sea"]}},"required":["at"],"additionalProperties":false}}}],"tool_choice":"required"'
answer=$(ask /v1/chat/completions -d "{$tools,\"thinking\":false,\"max_tokens\":120,\"messages\":[{\"role\":\"user\",\"content\":\"Look.\"}]}")
same "a call that is required is made" look "$(field choices.0.message.tool_calls.0.function.name <<<"$answer")"
same "with arguments that fit the schema" 1 "$(field choices.0.message.tool_calls.0.function.arguments <<<"$answer" | python3 -c 'import json,sys
print(int(json.load(sys.stdin)["at"] in ("sky", "sea")))')"
call=$(field choices.0.message.tool_calls.0 <<<"$answer")
has "and its result is understood" '"finish_reason":' "$(ask /v1/chat/completions -d "{$tools,\"thinking\":false,\"max_tokens\":40,\"messages\":[{\"role\":\"user\",\"content\":\"Look.\"},{\"role\":\"assistant\",\"content\":null,\"tool_calls\":[$call]},{\"role\":\"tool\",\"tool_call_id\":$(python3 -c 'import json,sys; print(json.dumps(json.load(sys.stdin)["id"]))' <<<"$call"),\"content\":\"stars\"}]}")"

# What is refused.
same "an unknown path is 404" 404 "$(status_of /nothing)"
same "a known path asked wrongly is 405" 405 "$(status_of /v1/chat/completions)"
same "damaged JSON is 400" 400 "$(status_of /v1/chat/completions -d '{')"
same "a context that is too small is 400" 400 "$(long_prompt 70000 false; status_of /v1/completions -d @"$tmp/long.json")"
has "and says so to programs" '"code":"context_length_exceeded"' "$(cat "$tmp/output")"
same "a head of 64 KiB is 431" 431 "$(status_of /health -H "x: $(head -c 65536 /dev/zero | tr '\0' a)")"
same "another page's origin is 403" 403 "$(status_of /v1/models -H 'Origin: http://evil.example')"

# A client that leaves, while its prompt is computed and while it is answered: cancelled within 100 ms. (What a stage is
# computing at that moment is finished first, so its slot may be free a little later.)
count() { ask /v1/status | field "requests.$1"; }
leaves() {
    local before curl_pid after=0
    for _ in 1 2 3; do                            # on a machine that is busy with other things the best try counts
        before=$(count cancelled)
        curl -ksN "$url/v1/completions" -d @"$tmp/long.json" -o /dev/null &
        curl_pid=$!
        for _ in $(seq 1 100); do [ "$(count active)" = 0 ] || break; sleep 0.02; done
        sleep 0.1
        kill $curl_pid
        sleep 0.1
        after=$(count cancelled)
        wait $curl_pid 2>/dev/null
        for _ in $(seq 1 100); do [ "$(count active)" = 0 ] && break; sleep 0.05; done
        [ "$after" -gt "$before" ] && break
    done
    same "$1" $((before + 1)) "$after"
}
long_prompt 60000 true
leaves "a client that leaves while its prompt is computed is gone within 100 ms"
long_prompt 60000 false
leaves "so is one that waits for an answer in one piece"
long_prompt 10 true
leaves "and one that leaves in the middle of a stream"
same "and nothing of them is left" 0 "$(count active)"

# The end: what runs is finished, nothing new is begun.
long_prompt 10 true
sed -i.bak 's/4000/300/' "$tmp/long.json"
curl -ksN "$url/v1/completions" -d @"$tmp/long.json" >"$tmp/stream" &
streamer=$!
for _ in $(seq 1 100); do [ -s "$tmp/stream" ] && break; sleep 0.02; done
kill -TERM $server
sleep 0.05
draining=$(status_of /v1/completions -d '{"prompt":"x"}')
wait $streamer
wait $server
same "a server that is told to stop exits with 0" 0 $?
server=0
case $draining in
503 | 000) passed "and begins nothing new" ;;
*) failed "and begins nothing new: $draining" ;;
esac
same "but finishes the stream" "data: [DONE]" "$(grep -F 'data: [DONE]' "$tmp/stream")"

# One sequence at a time, one that may wait, keys.
printf '# team\nkey-of-mia\n' >"$tmp/keys"
chmod 600 "$tmp/keys"
serve --slots 1 --queue 1 --api-key-file "$tmp/keys" --http-body 65536 --http-connections 40
key='Authorization: Bearer key-of-mia'
same "without a key it is 401" 401 "$(status_of /v1/models)"
same "with one it is not" 200 "$(status_of /v1/models -H "$key")"
head -c 100000 /dev/zero | tr '\0' ' ' >"$tmp/large"
same "a large body is 413" 413 "$(status_of /v1/completions -H "$key" -d @"$tmp/large")"
long_prompt 5000 true
pids=''
for _ in 1 2 3; do
    curl -ksN "$url/v1/completions" -H "$key" -d @"$tmp/long.json" -o /dev/null &
    pids="$pids $!"
done
sleep 0.5
same "behind a full queue it is 429" 429 "$(status_of /v1/completions -H "$key" -d '{"prompt":"x"}')"
has "with a time to come again" "Retry-After: " "$(ask /v1/completions -i -H "$key" -d '{"prompt":"x"}')"
# shellcheck disable=SC2086
kill $pids 2>/dev/null
# shellcheck disable=SC2086
wait $pids 2>/dev/null
same "and afterwards 200 again" 200 "$(sleep 0.3; status_of /v1/completions -H "$key" -d '{"prompt":"x","max_tokens":2}')"
stop_server

# Not without keys where others can reach it.
fails 1 "beyond this machine a key is needed" timeout 20 "$pleiades" serve -m "$model" -P 0 --host 0.0.0.0
says "and the error says what to do" "--api-key-file"

if command -v openssl >/dev/null 2>&1 && openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost \
    -keyout "$tmp/key.pem" -out "$tmp/cert.pem" >/dev/null 2>&1; then
    chmod 600 "$tmp/key.pem"
    serve --tls-cert "$tmp/cert.pem" --tls-key "$tmp/key.pem" --unix "$tmp/sock"
    has "TLS works" '{"status":"ok"}' "$(ask /health)"
    has "so do streams over it" "data: [DONE]" "$(ask /v1/chat/completions -N -d "{\"stream\":true,$say}")"
    has "and a Unix socket beside it" '{"status":"ok"}' "$(curl -s --unix-socket "$tmp/sock" http://localhost/health)"
    stop_server
    same "which is gone at the end" 1 "$([ -e "$tmp/sock" ] || echo 1)"
else
    skip "TLS" "no openssl here"
fi
