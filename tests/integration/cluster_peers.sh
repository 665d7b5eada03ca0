#!/usr/bin/env bash
# Weights from one another: the coordinator gives none. One node has the model; it dies while two others fetch their
# shares, and comes back. Later a node gets everything from those two, and what earlier plans left is tidied away.
. "$(dirname "$0")/../harness/lib.sh"
. "$(dirname "$0")/../harness/cluster.sh"

model=$tmp/tiny.gguf
"$pleiades" synth -o "$model" -x q4 >"$tmp/synth.log" 2>&1 || { failed "synth writes a model"; exit 1; }
"$pleiades" shard split -m "$model" --cuts 2 -o "$tmp/split" >"$tmp/split.log" 2>&1 || { failed "split"; exit 1; }
printf 'Whoever has it gives it on.' | "$pleiades" tokenize -m "$model" >"$tmp/ids"
want=$("$pleiades" generate -m "$model" --ids "$tmp/ids" -n 12 --threads 1 2>/dev/null)

keys=''
at=127.0.0.1:$((20000 + RANDOM % 20000))
if "$pleiades" version | grep -q 'curve *yes'; then
    keys=$tmp/keys
    "$pleiades" keys init --out "$keys" >/dev/null 2>&1
    for name in a b c d; do
        (umask 077; "$pleiades" keys invite --once --keys "$keys" --address "$at" >"$tmp/$name.key" 2>/dev/null)
    done
fi
lead() {
    local name=$1
    shift
    if [ -n "$keys" ]; then set -- --key "$keys" "$@"; else set -- --insecure "$@"; fi
    serve "$name" -m "$model" --no-local-node --no-give --bind-nodes "$at" --nodes 3 --threads 1 --ctx 1024 "$@"
}
member_node() {
    local name=$1
    shift
    if [ -n "$keys" ]; then set -- --key "$tmp/$name.key" "$@"; else set -- --insecure --join "$at" "$@"; fi
    start "$name" node --name "$name" --bind 127.0.0.1 --no-measure -t 1 "$@"
}
has_part() { [ -n "$(find "$tmp/$1" -name '*.gguf.tmp' 2>/dev/null)" ]; }
parts() { find "$tmp/$1" -name '*.gguf*' | grep -c .; }

ok "a coordinator that keeps its weights" lead one --stages b=0-1,c=2-4
member_node a -m "$model" --give-rate 2M
member_node b --store "$tmp/b" --keep 0
member_node c --store "$tmp/c"
ok "two nodes begin to fetch" soon "their files" eval 'has_part b && has_part c'
sleep 0.3
kill -9 "$(pid a)"
ok "they notice that their source is gone" soon "a word of it" eval 'said b "gives no more" && said c "gives no more"'
same "and have no whole file" "1 1" "$(parts b) $(parts c)"
member_node a -m "$model"
ok "it comes back, and they serve" wait_for serving
same "for the tokens of one process" "$want" "$(ask "$tmp/ids" -n 12 2>&1)"
ok "the first share is the one that split writes" cmp "$tmp/split/stage-00.gguf" "$tmp"/b/*-stage-00-01-embed.gguf
ok "the second, too" cmp "$tmp/split/stage-01.gguf" "$tmp"/c/*-stage-02-04-head.gguf
same "all came from the node" "2 0" \
    "$(cat "$tmp/b.log" "$tmp/c.log" | grep -c 'complete:.* from a') $(cat "$tmp/b.log" "$tmp/c.log" | grep -c 'complete:.*coordinator')"

stop one; stop a
ok "another plan, for one that has nothing" lead two --stages d=0-4
member_node d --store "$tmp/d"
ok "it serves" wait_for serving
ok "its weights are from the two that fetched theirs before" grep -q 'complete:.* MB from .* MB from ' "$tmp/d.log"
same "for the same tokens" "$want" "$(ask "$tmp/ids" -n 12 2>&1)"

stop two
ok "a third plan" lead three --stages b=0-4
ok "serves as well" wait_for serving
same "with the same tokens" "$want" "$(ask "$tmp/ids" -n 12 2>&1)"
ok "and what the first plan left is removed where nothing is to be kept" \
    soon "its removal" eval 'said b "removed: .* of an earlier plan" && [ "$(parts b)" = 1 ]'
same "and nowhere else" "1 1" "$(parts c) $(parts d)"
