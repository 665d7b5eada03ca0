#!/usr/bin/env bash
# What a restart of `serve` must not lose: tool calls as the model wrote them, so that a client's history still renders to
# the same tokens. Killed, drained, with a damaged file, and two servers that want the same folder.
. "$(dirname "$0")/../harness/lib.sh"
. "$(dirname "$0")/../harness/cluster.sh"

command -v python3 >/dev/null 2>&1 || { skip "state over restarts" "no python3 here"; exit 0; }
scripted=${SCRIPTED:-$(dirname "$pleiades")/tests/tools/scripted-serve}
[ -x "$scripted" ] || { failed "$scripted is there (make tests)"; exit 1; }
model=$tmp/tiny.gguf state=$tmp/state
"$pleiades" synth -p tiny -o "$model" >/dev/null 2>&1

# talk FIRST | talk AGAIN: a call is made, or the history with it is tokenized; $tmp/history and $tmp/NAME hold what came.
talk() {
    python3 - "$url" "$tmp" "$1" <<'PY'
import json, sys, urllib.request
url, folder, what = sys.argv[1:4]
M = "｜DSML｜"
TOOL = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]
def post(path, body):
    request = urllib.request.Request(url + path, json.dumps(body).encode())
    return json.load(urllib.request.urlopen(request, timeout=30))
if what == "script":
    answer = (f'</think>\n\n<{M}tool_calls>\n<{M}invoke name="weather">\n<{M}parameter name="days" string="false">3e0'
              f'</{M}parameter><{M}parameter name="city" string="true">Rome</{M}parameter>\n</{M}invoke>\n</{M}tool_calls>')
    open(folder + "/script", "w").write(json.dumps({"match": "Rome?", "answer": answer}) + "\n")
    sys.exit()
if what == "first":
    history = [{"role": "user", "content": "Rome?"}]
    message = post("/v1/chat/completions", {"messages": history, "tools": TOOL})["choices"][0]["message"]
    assert message["tool_calls"][0]["function"]["name"] == "weather", message
    history += [message, {"role": "tool", "tool_call_id": message["tool_calls"][0]["id"], "content": "sun"}]
    json.dump(history, open(folder + "/history", "w"))
history = json.load(open(folder + "/history"))
tokens = post("/tokenize", {"messages": history, "tools": TOOL})["tokens"]
json.dump(tokens, open(f"{folder}/tokens.{what}", "w"))
PY
}
url='' talk script
open() {
    local name=$1
    shift
    pleiades=$scripted start "$name" --script "$tmp/script" -m "$model" -P 0 -c 8192 --slots 2 "$@"
    soon "$name serves" said "$name" '^serving: ' || { sed 's/^/# /' "$tmp/$name.log"; return 1; }
    url=$(sed -n 's/^endpoint at \([^ ]*\).*/\1/p' "$tmp/$name.log" | head -n 1)
}
mode() { python3 -c 'import os, sys; print(oct(os.stat(sys.argv[1]).st_mode & 0o777))' "$1"; }
same_tokens() { cmp -s "$tmp/tokens.first" "$tmp/tokens.$1"; }

open one --state "$state"
ok "a call is made" talk first
stop one
same "what was kept is its owner's alone" 0o600 "$(mode "$state/tool-calls")"
open two --state "$state" --state-ms 100
ok "a history after a restart" talk second
ok "has the same tokens" same_tokens second
start busy serve -m "$model" --port 0 --state "$state"
soon "the end of the second" gone "$(pid busy)"
ok "a second server does not get the folder" said busy 'another server keeps its state there'
rm -f "$state/tool-calls"
ok "another call is made" talk first
ok "and written while the server runs" soon "the file" test -s "$state/tool-calls"
stop two KILL
open three --state "$state"
ok "a history after a crash" talk third
ok "has the same tokens, too" same_tokens third
stop three
open four
ok "without the folder" talk fourth
fails 1 "they are rendered anew" same_tokens fourth
stop four
printf 'PLREPLAY damaged' >"$state/tool-calls"
open five --state "$state"
ok "a damaged file is said to be one" said five 'earlier tool calls are forgotten'
ok "and the server answers" talk fifth
stop five
chmod 644 "$state/tool-calls"
open six --state "$state"
ok "one that others can read is not read" said six 'can be read by others'
stop six
