#!/usr/bin/env bash
# Experts of a stage on helper nodes, as real processes: the tokens of one process, each file only its own share.
. "$(dirname "$0")/../harness/lib.sh"
. "$(dirname "$0")/../harness/cluster.sh"

model=$tmp/tiny.gguf
"$pleiades" synth -o "$model" -x q4 >"$tmp/synth.log" 2>&1 || { failed "synth writes a model"; exit 1; }
printf 'Many hands make light work, if somebody adds it up in the right order.' |
    "$pleiades" tokenize -m "$model" >"$tmp/ids"
alone() { "$pleiades" generate -m "$model" --ids "$tmp/ids" -n 16 --threads 1 "$@" 2>/dev/null; }
alone >"$tmp/want"
alone --temp 1 --seed 3 >"$tmp/want.sampled"

# cluster PLAN NAME...: a coordinator with that plan, and nodes with empty stores.
cluster() {
    local plan=$1 name n=0
    shift
    for name in "$@"; do n=$((n + 1)); done
    serve head -m "$model" --no-local-node --bind-nodes 127.0.0.1:0 --insecure --nodes $n --stages "$plan" \
        --threads 1 --ctx 1024 || return 1
    for name in "$@"; do node "$name" --insecure --store "$tmp/$name"; done
    wait_for serving
}
compare() {
    same "$1: the tokens of one process" "$(cat "$tmp/want")" "$(ask "$tmp/ids" -n 16 2>&1)"
    same "$1: drawn ones, too" "$(cat "$tmp/want.sampled")" "$(ask "$tmp/ids" -n 16 --temp 1 --seed 3 2>&1)"
}
end_cluster() { local name; for name in "$@" head; do stop "$name"; done; }

ok "a stage with one helper" cluster a=0-4+b a b
compare "one helper"
same "lead and helper have one file each" "1 1" "$(find "$tmp/a" -type f | grep -c .) $(find "$tmp/b" -type f | grep -c .)"
ok "the helper has half of the experts and nothing else" test -n "$(find "$tmp/b" -name '*-helper-00-04-experts-*')"
whole=$(stat -c %s "$model" 2>/dev/null || stat -f %z "$model")
lead=$(cat "$tmp"/a/*.gguf | wc -c)
same "the lead has less than the model" 1 $((lead < whole))

# The helper dies in the middle of an answer: nothing hangs, and the service is back with it.
"$pleiades" generate -m "$model" --ids "$tmp/ids" -n 400 --threads 1 >"$tmp/want.long" 2>/dev/null
ask "$tmp/ids" -n 400 >"$tmp/have.long" 2>"$tmp/have.err" &
asked=$!
decoding() { [ "$(wc -w <"$tmp/have.long")" -gt 5 ]; }
ok "an answer is on its way" soon "tokens" decoding
stop b KILL
ok "without its helper the stage does not serve" wait_for loading
node b --insecure --store "$tmp/b"
ok "the service is back when the helper is" wait_for serving
wait $asked
same "the answer went on where it was" "$(cat "$tmp/want.long")" "$(cat "$tmp/have.long" "$tmp/have.err")"
compare "after the helper's death"
end_cluster a b

ok "two stages, the first with three helpers" cluster a=0-1+b+c+d,e=2-4 a b c d e
compare "three helpers and a second stage"
end_cluster a b c d e

# Nobody asked for helpers, but no machine can hold a layer alone.
model=$tmp/one.gguf
"$pleiades" synth -o "$model" -l 1 -x f16 >"$tmp/synth.log" 2>&1 || { failed "synth writes a model of one layer"; exit 1; }
alone >"$tmp/want"
alone --temp 1 --seed 3 >"$tmp/want.sampled"
narrow() {
    serve head -m "$model" --no-local-node --bind-nodes 127.0.0.1:0 --insecure --nodes 2 --threads 1 --ctx 512 \
        --slots 1 --rows 64 || return 1
    node f --insecure --store "$tmp/f" --memory 9M --rows 64
    node g --insecure --store "$tmp/g" --memory 9M --rows 64
    wait_for serving
}
ok "a layer that fits nobody is served by two" narrow
ok "one of them is a helper" test -n "$(find "$tmp/f" "$tmp/g" -name '*-helper-*')"
compare "a plan with helpers"
end_cluster f g
