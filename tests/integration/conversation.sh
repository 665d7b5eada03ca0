#!/usr/bin/env bash
# Whole conversations with tools through the true server, in three dialects; the model follows a script.
. "$(dirname "$0")/../harness/lib.sh"

scripted=${SCRIPTED:-$(dirname "$pleiades")/tests/tools/scripted-serve}
if ! command -v python3 >/dev/null 2>&1; then
    skip "conversations with tools" "no python3 here"
    exit 0
fi
[ -x "$scripted" ] || { failed "$scripted is there (make tests)"; exit 1; }

"$pleiades" synth -p tiny -o "$tmp/tiny.gguf" >/dev/null 2>&1
python3 tests/integration/conversation.py "$scripted" "$tmp/tiny.gguf" "$tmp" || failures=1
