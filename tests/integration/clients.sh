#!/usr/bin/env bash
# Unmodified client packages against the true server with a scripted model: `openai`, `@anthropic-ai/sdk`, `ai`.
. "$(dirname "$0")/../harness/lib.sh"

for tool in node npm; do
    command -v $tool >/dev/null 2>&1 || { skip "client packages" "no $tool here: make deps-ci"; exit 0; }
done
scripted=$(dirname "$pleiades")/tests/tools/scripted-serve
[ -x "$scripted" ] || { skip "client packages" "no $scripted here: make tests"; exit 0; }
# shellcheck source=tests/clients/install.sh
. tests/clients/install.sh || { skip "client packages" "they cannot be installed"; exit 0; }

pids=
start() { local log=$1; shift; "$@" >"$log" 2>&1 </dev/null & pids="$pids $!"; }
trap 'kill $pids 2>/dev/null; wait $pids 2>/dev/null; finish' EXIT
# What a log says behind a word, once it says it.
said() {
    for _ in $(seq 300); do
        grep -qF "$2" "$1" 2>/dev/null && { sed -n "s|.*$2||p" "$1" | head -n 1; return 0; }
        sleep 0.1
    done
    sed 's/^/#   /' "$1"
    return 1
}

model=$tmp/tiny.gguf
"$pleiades" synth -o "$model" >/dev/null 2>&1
(umask 077; echo sesame >"$tmp/key")
serve() { local log=$1; shift; start "$log" "$scripted" --script tests/clients/script.jsonl -m "$model" --port 0 "$@"; }
serve "$tmp/open" --model-id scripted --ctx 8192 --slots 8
serve "$tmp/small" --model-id scripted --ctx 4096 --slots 1 --queue 1 --strict-model --api-key-file "$tmp/key"
open=$(said "$tmp/open" "endpoint at ") small=$(said "$tmp/small" "endpoint at ")
ok "the scripted servers are up" said "$tmp/open" "serving: "
ok "both of them" said "$tmp/small" "serving: "

# Our own client first.
run() { "$pleiades" run --url "$@" 2>"$tmp/remarks"; }
same "run gets the answer, without the thinking" "Hello there, stargazer: 昴 🌌!" "$(run "$open" 'say hello')"
same "with a key as well" "Hello there, stargazer: 昴 🌌!" "$(run "$small" --api-key-file "$tmp/key" --max 'say hello')"
same "and goes on with a conversation" "Hello there, stargazer: 昴 🌌! Hello again." \
    "$(printf 'say hello\nand again\n' | run "$open" | tr '\n' ' ' | sed 's/ $//')"

OPEN_URL=$open SMALL_URL=$small SMALL_KEY=sesame HOME=$tmp timeout 540 node --test --test-concurrency=1 \
    --test-reporter=./tests/clients/reporter.js tests/clients/openai.test.js tests/clients/anthropic.test.js \
    tests/clients/ai.test.js
status=$?
[ $status -eq 0 ] || failed "the client tests end well (status $status; 124: too slow)"
