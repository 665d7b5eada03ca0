#!/usr/bin/env bash
# predict.sh BENCH PROGRAM - what `pleiades shard plan` predicts beside what is measured: one process on one core, and
# two stages on a core each. The machine is described by what `pleiades bench` measures of it, the link by its defaults
# for loopback; nothing is fitted. Exits with 1 when a figure is off by more than $BENCH_FACTOR (2).
#
#     BENCH_MODEL=FILE     default: a synthetic one, five of Flash's layers with 64 experts each, written once (5 GB)
#     BENCH_TOKENS=16 BENCH_PROMPT=256
set -euo pipefail
bench=$1 program=$2
model=${BENCH_MODEL:-build/bench/mid5-e64.gguf}
tokens=${BENCH_TOKENS:-16} prompt=${BENCH_PROMPT:-256} factor=${BENCH_FACTOR:-2}
tmp=$(mktemp -d)
. "$(dirname "$0")/stages.sh"
synthetic "$model" --layers 5 --experts 64
trap 'end_nodes; rm -rf "$tmp"' EXIT
trap 'exit 1' INT TERM
plan=${BENCH_STAGES:-$(halves)}
off=0

# compare WHAT PREDICTED MEASURED
compare() {
    local r verdict=yes
    r=$(ratio "$3" "$2")
    if awk -v r="$r" -v f="$factor" 'BEGIN { exit !(r > f || r * f < 1) }'; then verdict=NO off=1; fi
    printf '%-44s %10.2f %10.2f %8s   %s\n' "$1" "$2" "$3" "$r" "$verdict"
}

taskset -c 0 "$program" bench -m "$model" -t 1 -p "$prompt" -n "$tokens" -d 0 -s 1 --json >"$tmp/alone"
speed="bw=$(field read_bytes_per_s <"$tmp/alone"),int8=$(field int8_ops_per_s <"$tmp/alone"),f32=$(
    field f32_ops_per_s <"$tmp/alone")"
predict() {
    "$program" shard plan -m "$model" --machine "a,mem=64G,$speed" --machine "b,mem=64G,$speed" --link ms=0.05,bw=2G \
        --ctx 8192 --chunk 512 --depth "$prompt" --json "$@"
}
test_of() { grep "\"test\": \"$1\"" "$tmp/alone" | field tokens_per_s; }

echo "model $model, a core: $speed; $(uptime | sed 's/.*load/load/')"
printf '%-44s %10s %10s %8s   %s\n' "tokens/s" predicted measured ratio "within $factor"
predict --stages "a=0-$(($(layers_of) - 1))" >"$tmp/plan"
compare "one core, prefill of $prompt" "$(field prefill_tokens_per_s <"$tmp/plan")" "$(test_of prefill)"
compare "one core, decode" "$(field stream_tokens_per_s <"$tmp/plan")" "$(test_of decode)"
predict --stages "$plan" --streams 8 >"$tmp/plan"
two "$plan" -s 1 -p 16 -n "$tokens" >"$tmp/stream"
two "$plan" -s 8 -p 16 -n "$tokens" >"$tmp/streams"
two "$plan" -s 1 -p "$prompt" -n 2 >"$tmp/prefill"
first=$(field first_ms <"$tmp/prefill")
compare "two stages, prefill of $prompt" "$(field prefill_tokens_per_s <"$tmp/plan")" \
    "$(awk -v n="$prompt" -v ms="$first" 'BEGIN { print n * 1000 / ms }')"
compare "two stages, decode of one stream" "$(field stream_tokens_per_s <"$tmp/plan")" "$(field tokens_per_s <"$tmp/stream")"
compare "two stages, decode of 8 streams" "$(field all_tokens_per_s <"$tmp/plan")" "$(field tokens_per_s <"$tmp/streams")"
exit $off
