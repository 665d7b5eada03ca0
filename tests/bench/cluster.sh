#!/usr/bin/env bash
# cluster.sh BENCH PROGRAM - what the machinery of a cluster costs on this machine: one process on one core beside two
# stages on one core each, over loopback. BENCH is build/.../tests/bench/bench_cluster.
#
#     BENCH_MODEL=FILE     default: a synthetic one with Flash's true layers, written once (gigabytes)
#     BENCH_STAGES=a=0-1,b=2-3      decode; default: the plan for most throughput with two equal machines
#     BENCH_PREFILL=a=0-1,b=2-3     prefill, where the head costs nothing; default: half of the layers each
#     BENCH_TOKENS=32 BENCH_PROMPT=1024 BENCH_LONG=4096
#
# Needs taskset and two cores; numbers of a machine that does something else besides say little.
set -euo pipefail
bench=$1 program=$2
model=${BENCH_MODEL:-build/bench/mid.gguf}
tokens=${BENCH_TOKENS:-32} prompt=${BENCH_PROMPT:-1024} long=${BENCH_LONG:-4096}
command -v taskset >/dev/null || { echo "cluster.sh: taskset is needed"; exit 1; }
mkdir -p build/bench
[ -e "$model" ] || "$program" synth --preset mid --mix q2 -o "$model"
tmp=$(mktemp -d)
nodes=''
end_nodes() {
    local p
    for p in $nodes; do kill "$p" 2>/dev/null || true; done
    wait 2>/dev/null || true
    nodes=''
}
trap 'end_nodes; rm -rf "$tmp"' EXIT
trap 'exit 1' INT TERM

stages=${BENCH_STAGES:-$("$program" shard plan -m "$model" --machine a,mem=64G,bw=10G --machine b,mem=64G,bw=10G \
    --objective throughput --ordered --streams 4 --ctx 8192 --no-helpers --link ms=0.05,bw=2G --json |
    tr -d ' \n' | grep -o '"machine":"[ab]","layers":\[[0-9]*,[0-9]*\]' |
    sed 's/"machine":"\(.\)","layers":\[\([0-9]*\),\([0-9]*\)\]/\1=\2-\3/' | paste -sd, -)}
layers=$("$program" inspect --json "$model" | sed -n 's/.*"n_layer": *\([0-9]*\).*/\1/p' | head -n 1)
prefill_stages=${BENCH_PREFILL:-a=0-$((layers / 2 - 1)),b=$((layers / 2))-$((layers - 1))}
port=$((20000 + RANDOM % 20000))

one() { taskset -c 0 "$bench" -m "$model" --local -t 1 "$@"; }
two() {
    local security="--insecure" name core=0
    port=$((port + 1))
    if [ -n "${keys:-}" ]; then
        "$program" keys init --out "$tmp/keys" >/dev/null 2>&1 || true
        security="--key"
    fi
    for name in a b; do
        if [ -n "${keys:-}" ]; then
            (umask 077 && "$program" keys invite --keys "$tmp/keys" --address "127.0.0.1:$port" >"$tmp/$name.key")
            taskset -c $core "$program" node --key "$tmp/$name.key" --name $name --bind 127.0.0.1 --no-measure -t 1 \
                -m "$model" -q 2>/dev/null &
        else
            taskset -c $core "$program" node --join 127.0.0.1:$port --insecure --name $name --bind 127.0.0.1 \
                --no-measure -t 1 -m "$model" -q 2>/dev/null &
        fi
        nodes="$nodes $!"
        core=$((core + 1))
    done
    if [ "$security" = --key ]; then set -- --key "$tmp/keys" "$@"; fi
    "$bench" -m "$model" --bind 127.0.0.1:$port --nodes 2 --stages "${plan:-$stages}" "$@"
    end_nodes
}
field() { sed -n "s/.*\"$1\": \([0-9.]*\).*/\1/p"; }
ratio() { awk -v a="$1" -v b="$2" 'BEGIN { printf "%.3f", (b > 0 ? a / b : 0) }'; }
row() { printf '%-58s %10s %10s %8s   %s\n' "$@"; }

echo "model $model, stages $stages; $(uptime | sed 's/.*load/load/')"
row "" "one core" "two cores" "ratio" "wanted"
a=$(one -s 1 -n "$tokens"); b=$(two -s 1 -n "$tokens")
x=$(echo "$a" | field tokens_per_s) y=$(echo "$b" | field tokens_per_s)
row "decode, one stream, tokens/s" "$x" "$y" "$(ratio "$y" "$x")" ">= 0.95"
echo "    $b"
keyed=$(keys=1 two -s 1 -n "$tokens" | field tokens_per_s)
row "decode, one stream, encrypted links, tokens/s" "" "$keyed" "$(ratio "$keyed" "$y")" ">= 0.97"
for n in 4 8; do
    a=$(one -s $n -n "$tokens"); b=$(two -s $((2 * n)) -n "$tokens")
    x=$(echo "$a" | field tokens_per_s) y=$(echo "$b" | field tokens_per_s)
    row "decode, $n streams against $((2 * n)), tokens/s" "$x" "$y" "$(ratio "$y" "$x")" ">= 1.7"
    echo "    $b"
done
a=$(one -s 1 -p "$prompt" -n 2); b=$(plan=$prefill_stages two -s 1 -p "$prompt" -n 2)
x=$(echo "$a" | field first_ms) y=$(echo "$b" | field first_ms)
row "prefill of $prompt tokens, ms" "$x" "$y" "$(ratio "$x" "$y")" ">= 1.85"
b=$(two -s 2 -n $((tokens * 8)) --disturb "$long")
calm=$(two -s 2 -n "$tokens" | field gap_ms_max)
row "longest gap of 2 streams beside a prompt of $long, ms" "$calm" "$(echo "$b" | field gap_ms_max)" "" "+ 250 at most"
echo "    $b"
