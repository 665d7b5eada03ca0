#!/usr/bin/env bash
# cluster.sh BENCH PROGRAM [PART...] - what the machinery of a cluster costs on this machine: one process on one core beside
# two stages on one core each, over loopback. BENCH is build/.../tests/bench/bench_cluster.
#
#     PART                 decode streams prefill gap (default: all)
#     BENCH_MODEL=FILE     default: a synthetic one with Flash's true layers, written once (12 GB)
#     BENCH_LONG_MODEL=FILE    for prefill; default: nine such layers with 64 experts each (7 GB). The last layer of a
#                          prompt computes one row only, so a model of few layers has no two halves that take as long
#     BENCH_TOKENS=48 BENCH_PROMPT=16384 BENCH_DISTURB=4096
#
# Needs taskset and two cores; numbers of a machine that does something else besides say little.
set -euo pipefail
bench=$1 program=$2
shift 2
parts=" ${*:-decode streams prefill gap} "
model=${BENCH_MODEL:-build/bench/mid5.gguf} long_model=${BENCH_LONG_MODEL:-build/bench/mid9-e64.gguf}
tokens=${BENCH_TOKENS:-48} prompt=${BENCH_PROMPT:-16384} disturb=${BENCH_DISTURB:-4096}
tmp=$(mktemp -d)
. "$(dirname "$0")/stages.sh"
trap 'end_nodes; rm -rf "$tmp"' EXIT
trap 'exit 1' INT TERM

wants() { case $parts in *" $1 "*) true ;; *) false ;; esac; }

row() { printf '%-58s %10s %10s %8s   %s\n' "$@"; }

if wants decode || wants streams || wants gap; then
    synthetic "$model" --layers 5
fi
row "$(uptime | sed 's/.*load/load/')" "one core" "two cores" "ratio" "wanted"

if wants decode; then
    plan=$(stages_for 8)
    a=$(one --warm 2 -s 1 -n "$tokens"); b=$(two "$plan" --warm 2 -s 1 -n "$tokens")
    x=$(echo "$a" | field tokens_per_s) y=$(echo "$b" | field tokens_per_s)
    row "decode, one stream, tokens/s" "$x" "$y" "$(ratio "$y" "$x")" ">= 0.95"
    echo "    $plan $b"
    b=$(keys=1 two "$plan" --warm 2 -s 1 -n "$tokens" | field tokens_per_s)
    row "decode, one stream, encrypted links, tokens/s" "" "$b" "$(ratio "$b" "$y")" ">= 0.97"
fi
if wants streams; then
    for n in 4 8; do
        plan=$(stages_for $((2 * n)))
        a=$(one -s $n -n "$tokens"); b=$(two "$plan" -s $((2 * n)) -n "$tokens")
        x=$(echo "$a" | field tokens_per_s) y=$(echo "$b" | field tokens_per_s)
        row "decode, $n streams against $((2 * n)), tokens/s" "$x" "$y" "$(ratio "$y" "$x")" ">= 1.7"
        echo "    $plan $b"
    done
fi
if wants gap; then
    plan=$(stages_for 8)
    a=$(two "$plan" -s 2 -n "$tokens" | field gap_ms_max)
    b=$(two "$plan" -s 2 -n $((tokens * 6)) --disturb "$disturb")
    row "longest gap of 2 streams beside a prompt of $disturb, ms" "$a" "$(echo "$b" | field gap_ms_max)" "" \
        "+ 250 at most"
    echo "    $plan $b"
fi
if wants prefill; then
    model=$long_model
    synthetic "$model" --layers 9 --experts 64
    plan=$(halves)
    a=$(one -s 1 -p "$prompt" -n 2); b=$(two "$plan" -s 1 -p "$prompt" -n 2)
    x=$(echo "$a" | field first_ms) y=$(echo "$b" | field first_ms)
    row "prefill of $prompt tokens, ms" "$x" "$y" "$(ratio "$x" "$y")" ">= 1.85"
    echo "    $plan $b"
fi
