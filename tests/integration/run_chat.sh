#!/usr/bin/env bash
# `pleiades run`: one answer and conversations, with the model in process and with an endpoint, on pipes and terminals.
. "$(dirname "$0")/../harness/lib.sh"

model=$tmp/tiny.gguf
"$pleiades" synth -o "$model" >/dev/null 2>&1
run() { "$pleiades" run --temp 0 -n 12 "$@"; }

# ---- one answer ----

answer=$(run -m "$model" -p 'Which stars?' --no-think 2>/dev/null)
same "an argument is the prompt, like --prompt" "$answer" "$(run -m "$model" 'Which stars?' --no-think 2>/dev/null)"
same "and so is stdin behind a dash" "$answer" "$(printf 'Which stars?' | run -m "$model" - --no-think 2>/dev/null)"
same "thinking is not part of what a pipe gets" "" "$(run -m "$model" 'Which stars?' 2>/dev/null)"
printf 'You count stars.\n' >"$tmp/system"
with=$(run -m "$model" --no-think --system 'You count stars.' 'Which?' 2>/dev/null)
same "a system prompt from a file says the same as one from the command line" "$with" \
    "$(run -m "$model" --no-think --system-file "$tmp/system" 'Which?' 2>/dev/null)"
same "and something else than none" 1 "$([ "$with" != "$(run -m "$model" --no-think 'Which?' 2>/dev/null)" ] && echo 1)"
ok "the figures tell tokens and speed" run -m "$model" --no-think 'Which?'
says "of the answer" "answer 12 tokens in"
says "and the context" ", context "
fails 2 "no model and no address is a usage error" "$pleiades" run 'Which?'
fails 2 "a key without an address is one too" "$pleiades" run -m "$model" --api-key-file "$tmp/system" 'Which?'
fails 1 "a context that is too short is an error" run -m "$model" --ctx 4 'Which stars are the Pleiades?'
says "with both numbers" "tokens, the context ends at 4"

# ---- a conversation on a pipe ----

printf '/system be brief\nWhich stars?\n/nothink\nAnd\\\nnow?\n/save %s\n/ctx\n/quit\nnot asked\n' "$tmp/talk.json" |
    run -m "$model" >"$tmp/answers" 2>"$tmp/remarks"
same "a conversation ends with /quit" 0 "$?"
ok "it can be saved" python3 - "$tmp/talk.json" <<'PY'
import json, sys
messages = json.load(open(sys.argv[1], encoding="utf-8"))["messages"]
assert [m["role"] for m in messages] == ["system", "user", "assistant", "user", "assistant"], messages
assert messages[0]["content"] == "be brief" and messages[3]["content"] == "And\nnow?", messages
assert messages[2].get("reasoning_content") and not messages[4].get("reasoning_content"), messages
PY
cp "$tmp/remarks" "$tmp/output"
says "the second prompt reuses what is known" " known)"
says "and /ctx counts" "5 messages, "
ok "a saved conversation is a request" sh -c '"$1" render -m "$2" <"$3"' - "$pleiades" "$model" "$tmp/talk.json"
printf '/load %s\n/save %s\n' "$tmp/talk.json" "$tmp/again.json" | run -m "$model" >/dev/null 2>&1
ok "and comes back as it was" cmp "$tmp/talk.json" "$tmp/again.json"
printf 'three stars' >"$tmp/a file"
printf '/nothink\n/read "%s" How many?\n/save %s\n' "$tmp/a file" "$tmp/read.json" | run -m "$model" >/dev/null 2>&1
ok "/read says what is in a file" grep -qF '"content": "three stars\n\nHow many?"' "$tmp/read.json"
printf '/nothink\nWhich stars?\n/ctx 2K\nAnd now?\n/ctx 1000\n/ctx\n' |
    run -m "$model" --ctx 512 --temp 0 >"$tmp/grown" 2>"$tmp/output"
says "/ctx makes the context larger" " of at most 2048"
says "and smaller" " of at most 1000"
printf '/nothink\nWhich stars?\nAnd now?\n' | run -m "$model" --ctx 2048 --temp 0 >"$tmp/large" 2>/dev/null
same "which changes no answer" "$(cat "$tmp/large")" "$(cat "$tmp/grown")"
printf '/ctx 8\n' | run -m "$model" >/dev/null 2>"$tmp/output"
says "a context that the model does not allow is an error" "a context of 16 to "
for bad in "/load $tmp/nothing" "/load $model" "/read $model" "/unknown" "/save"; do
    printf '%s\n' "$bad" >"$tmp/line"
    status=0
    run -m "$model" <"$tmp/line" >/dev/null 2>"$tmp/remarks" || status=$?
    same "a script notices that '${bad%% *}' fails" 1 $status
done

# ---- an endpoint ----

command -v python3 >/dev/null 2>&1 || { skip "endpoints and terminals" "no python3"; exit 0; }
python3 tests/harness/endpoint.py "$tmp" >"$tmp/address" </dev/null &
server=$!
python3 tests/harness/endpoint.py "$tmp" sesame >"$tmp/address2" </dev/null &
server2=$!
trap 'kill $server $server2 2>/dev/null; finish' EXIT
for _ in $(seq 100); do [ -s "$tmp/address" ] && [ -s "$tmp/address2" ] && break; sleep 0.1; done
url=$(cat "$tmp/address") locked=$(cat "$tmp/address2")

same "an endpoint answers" fine "$(run --url "$url" hello 2>/dev/null)"
same "with /v1 in its address as well" fine "$(run --url "$url/v1/" hello 2>/dev/null)"
run --url "$url" --max --system S echo >"$tmp/echo" 2>/dev/null
ok "it is sent what was asked for" python3 - "$tmp/echo" <<'PY'
import json, sys
r = json.load(open(sys.argv[1], encoding="utf-8"))
assert r["messages"] == [{"role": "system", "content": "S"}, {"role": "user", "content": "echo"}], r
assert r["stream"] is True and r["stream_options"] == {"include_usage": True}, r
assert r["temperature"] == 0 and r["max_tokens"] == 12 and r["reasoning_effort"] == "max", r
assert r["thinking"] == {"type": "enabled"}, r
PY
printf '/nothink\nhello\necho\n' | run --url "$url" 2>/dev/null | tail -n 1 >"$tmp/echo"
ok "and the whole conversation" python3 - "$tmp/echo" <<'PY'
import json, sys
r = json.load(open(sys.argv[1], encoding="utf-8"))
assert [m["content"] for m in r["messages"]] == ["hello", "fine", "echo"], r
assert r["thinking"] == {"type": "disabled"}, r
PY
ok "a server that is busy is asked again" run --url "$url" busy
says "when it says so" "queue is full (HTTP 429); again in 1 s"
says "and answers then" "fine"
fails 1 "an answer that breaks off is an error" run --url "$url" broken
says "that says so" "the connection ended before the answer did"
fails 1 "so is one that the server gives up" run --url "$url" late
says "in the server's words, without its control characters" "a machine was lost␛[2J"
fails 1 "a wrong key is an error" run --url "$locked" hello
says "in the server's words, too" "no such key␛[31m (HTTP 401)"
echo sesame >"$tmp/key"
ok "the key in a file opens" run --url "$locked" --api-key-file "$tmp/key" hello
printf 'two words\n' >"$tmp/key"
fails 1 "a key that cannot be one is refused" run --url "$url" --api-key-file "$tmp/key" hello
fails 1 "nobody at the address is an error" run --url http://127.0.0.1:1 hello
says "that names it" "http://127.0.0.1:1/v1: "
fails 1 "an address that is none is an error" run --url 127.0.0.1:1 hello

# ---- terminals ----

export HOME=$tmp LC_ALL=C.UTF-8
talk() { python3 tests/harness/talk.py "$tmp/transcript" "$@"; }
same "a pipe gets the bytes of the model" "$(printf 'before\033]0;evil\007\033[2J\302\23331m after')" \
    "$(run --url "$url" escape 2>/dev/null)"
ok "a terminal gets no control sequence from a model" talk prompt send=escape "expect=before␛]0;evil␇␛[2J" \
    "expect=31m after" "absent=\x1b]0;" "absent=\x1b[2J" "absent=\xc2\x9b" prompt send=/quit end \
    -- "$pleiades" run --url "$url"
ok "reasoning is shown before the answer" talk prompt send=think "expect=hidden thoughts␛[2J" "expect=shown answer" \
    prompt send=/fold "expect=counted" prompt send=think "expect=thinking, 19 characters" \
    "expect=shown answer" prompt send=/quit end -- "$pleiades" run --url "$url"
ok "a long prompt tells how far it is" talk prompt send=long "expect=prompt: 100 of 400 tokens" \
    "expect=prompt: 300 of 400 tokens" "expect=\r\x1b[Kread it" prompt send=/quit end -- "$pleiades" run --url "$url"
rm -f "$tmp/gone"
ok "Ctrl-C stops an answer and keeps the conversation" talk prompt send=slow expect=word3 "keys=\x03" \
    "expect=stopped; " prompt send=echo 'expect="word0 word1 ' prompt send=/quit end -- "$pleiades" run --url "$url"
for _ in $(seq 50); do [ -e "$tmp/gone" ] && break; sleep 0.1; done
ok "and the server notices" test -e "$tmp/gone"
ok "Ctrl-C at the prompt clears the line" talk prompt "keys=never sent\x03" prompt send=echo 'expect="content": "echo"' \
    'absent="never' prompt send=/quit end -- "$pleiades" run --url "$url"
ok "Ctrl-D ends" talk prompt "keys=\x04" end -- "$pleiades" run --url "$url"
ok "the history of earlier conversations is there" talk prompt "keys=\x1b[A\x1b[A\r" 'expect="content": "echo"' prompt \
    send=/quit end -- "$pleiades" run --url "$url"
ok "a line of many characters can be edited" talk prompt "keys=ecñho\x1b[D\x1b[D\x7f\r" 'expect="content": "echo"' prompt \
    send=/quit end -- "$pleiades" run --url "$url"
ok "errors leave the conversation going" talk prompt send=late "expect=a machine was lost␛[2J" prompt send=hello "expect=fine" \
    prompt send=/quit end -- "$pleiades" run --url "$url"
ok "Ctrl-C stops the model in this process" talk prompt send=/nothink prompt send=hello "expect=hello\r" \
    expect=tokens/s expect=e "keys=\x03" "expect=stopped; " prompt send=/ctx "expect=2 messages, " prompt send=/quit end \
    -- "$pleiades" run -m "$model" --ctx 8192
