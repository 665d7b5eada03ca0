#!/usr/bin/env bash
# Unmodified client packages against the true server with a scripted model: `openai`, `@anthropic-ai/sdk`, `ai`.
. "$(dirname "$0")/../harness/lib.sh"

. "$(dirname "$0")/../harness/clients.sh"

scripted=$(dirname "$pleiades")/tests/tools/scripted-serve
[ -x "$scripted" ] || { skip "client packages" "no $scripted here: make tests"; exit 0; }
need "client packages" node npm

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

export OPEN_URL=$open SMALL_URL=$small SMALL_KEY=sesame
node_tests tests/clients/openai.test.js tests/clients/anthropic.test.js tests/clients/ai.test.js
