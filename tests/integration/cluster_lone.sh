#!/usr/bin/env bash
# A coordinator without any model file: the model is on a node, which says what it is and gives the weights.
. "$(dirname "$0")/../harness/lib.sh"
. "$(dirname "$0")/../harness/cluster.sh"

model=$tmp/tiny.gguf
"$pleiades" synth -o "$model" -x q4 >"$tmp/synth.log" 2>&1 || { failed "synth writes a model"; exit 1; }
printf 'No file, no layers, only the word.' | "$pleiades" tokenize -m "$model" >"$tmp/ids"
want=$("$pleiades" generate -m "$model" --ids "$tmp/ids" -n 12 --threads 1 2>/dev/null)

keys=''
at=127.0.0.1:$((20000 + RANDOM % 20000))
if "$pleiades" version | grep -q 'curve *yes'; then
    keys=$tmp/keys
    "$pleiades" keys init --out "$keys" >/dev/null 2>&1
    for name in a b; do
        (umask 077; "$pleiades" keys invite --once --keys "$keys" --address "$at" >"$tmp/$name.key" 2>/dev/null)
    done
fi
member_node() {
    local name=$1
    shift
    if [ -n "$keys" ]; then set -- --key "$tmp/$name.key" "$@"; else set -- --insecure --join "$at" "$@"; fi
    start "$name" node --name "$name" --bind 127.0.0.1 --no-measure -t 1 "$@"
}

fails 2 "with a stage of its own it needs the file" "$pleiades" serve --bind-nodes "$at" --insecure
says "and says so" "--model is required"
member_node b --store "$tmp/b"
if [ -n "$keys" ]; then set -- --key "$keys"; else set -- --insecure; fi
start boss serve --port 0 --no-local-node --bind-nodes "$at" --nodes 2 --stages b=0-2,a=3-4 --ctx 1024 "$@"
ok "the coordinator waits for a node that has the model" soon "its word" said boss "b has no whole model"
member_node a -m "$model"
ok "one comes" soon "the endpoint" said boss 'endpoint at '
url=$(sed -n 's/^endpoint at \([^ ]*\).*/\1/p' "$tmp/boss.log" | head -n 1)
ok "they serve" wait_for serving
same "the tokens of one process" "$want" "$(ask "$tmp/ids" -n 12 2>&1)"
ok "the other's share came from the one that has all" grep -q 'complete:.* MB from a' "$tmp/b.log"
