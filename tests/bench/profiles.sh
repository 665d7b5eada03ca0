#!/usr/bin/env bash
# profiles.sh BENCH PROGRAM - two stages on one core each, over links as people have them, against one process on one
# core: decode of one stream, of twice as many streams, and prefill, as one table. Linux, root, two cores.
#
#     BENCH_MODEL=FILE     default: a synthetic one, five of Flash's layers with 64 experts each, written once (5 GB)
#     BENCH_TOKENS=16 BENCH_PROMPT=512 BENCH_STREAMS=4
#     BENCH_NET=netem|wire how links are made slow: by the kernel where it can, else in user space (tests/harness/wire.c,
#                          which itself takes processor time at high rates)
#     BENCH_PROFILES="1-GbE WAN"    only these
#     BENCH_WIRE=f16s      streams between stages in 16 bits
set -euo pipefail
bench=$1 program=$2
model=${BENCH_MODEL:-build/bench/mid5-e64.gguf}
tokens=${BENCH_TOKENS:-16} prompt=${BENCH_PROMPT:-512} streams=${BENCH_STREAMS:-4}
run=pp$$
[ "$(id -u)" = 0 ] || { echo "profiles.sh: network namespaces need root"; exit 1; }
tmp=$(mktemp -d)
. "$(dirname "$0")/stages.sh"
synthetic "$model" --layers 5 --experts 64
spaces='' wire=''
end_network() {
    local n
    if [ -n "$wire" ]; then kill "$wire" 2>/dev/null || true; wait "$wire" 2>/dev/null || true; wire=''; fi
    for n in $spaces; do ip netns del "$n" 2>/dev/null || true; done
    spaces=''
}
trap 'end_nodes; end_network; rm -rf "$tmp"' EXIT
trap 'exit 1' INT TERM

space() { ip netns add "$run$1" && spaces="$spaces $run$1" && ip -n "$run$1" link set lo up; }

# A switch with one port per machine; what leaves a machine waits at its port, and again comes to nobody late.
by_kernel() {
    local name i=0
    space hub
    ip -n "${run}hub" link add sw type bridge && ip -n "${run}hub" link set sw up
    for name in boss a b; do
        i=$((i + 1))
        space "$name"
        ip -n "$run$name" link add wire type veth peer name "p$i" netns "${run}hub"
        ip -n "${run}hub" link set "p$i" master sw up
        ip -n "$run$name" addr add "10.77.0.$i/24" dev wire
        ip -n "$run$name" link set wire mtu 9000 up
        tc -n "$run$name" qdisc add dev wire root netem delay "$1us" rate "$2mbit" limit 100000
    done
    for i in 1 2 3; do ip -n "${run}hub" link set "p$i" mtu 9000; done
}
by_hand() {
    local name i=0
    for name in boss a b; do space "$name"; done
    # shellcheck disable=SC2086
    "$tmp/wire" "$1" "$2" $spaces >"$tmp/wire.log" 2>&1 </dev/null &
    wire=$!
    until grep -q ready "$tmp/wire.log"; do sleep 0.05; kill -0 "$wire"; done
    for name in $spaces; do
        i=$((i + 1))
        ip -n "$name" addr add "10.77.0.$i/24" dev wire && ip -n "$name" link set wire mtu 9000 up
    done
}

has_netem() {
    local fine=1
    ip netns add "${run}try" || return 1
    ip -n "${run}try" link add x type veth peer name y 2>/dev/null &&
        tc -n "${run}try" qdisc add dev x root netem delay 1ms 2>/dev/null && fine=0
    ip netns del "${run}try"
    return $fine
}
net=${BENCH_NET:-}
[ -n "$net" ] || { if has_netem; then net=netem; else net=wire; fi; }
[ "$net" = netem ] || cc -std=c11 -O2 -Wall -o "$tmp/wire" "$(dirname "$0")/../harness/wire.c"

echo "model $model, links by $net, wire ${BENCH_WIRE:-f32}; $(uptime | sed 's/.*load/load/')"
base=$(one -s 1 -n "$tokens" | field tokens_per_s)
base_many=$(one -s "$streams" -n "$tokens" | field tokens_per_s)
base_first=$(one -s 1 -p "$prompt" -n 2 | field first_ms)
printf '%-14s %9s %9s   %16s   %16s   %18s\n' link "trip, ms" "Mb/s" "one stream" "$((2 * streams)) streams" "prefill of $prompt"
cell() { printf '%7.2f x %6s' "$1" "$2"; }
row() { printf '%-14s %9s %9s   %16s   %16s   %18s\n' "$@"; }
row "one process" "" "" "$base /s" "$base_many /s" "$base_first ms"

# profile NAME ROUND_TRIP_US MBIT
profile() {
    local x y z
    case " ${BENCH_PROFILES:-$1} " in *" $1 "*) ;; *) return 0 ;; esac
    if [ "$net" = netem ]; then by_kernel $(($2 / 2)) "$3"; else by_hand $(($2 / 2)) "$3"; fi
    boss_at=10.77.0.1 a_at=10.77.0.2 b_at=10.77.0.3
    boss_in="ip netns exec ${run}boss" a_in="ip netns exec ${run}a" b_in="ip netns exec ${run}b"
    x=$(two "$(stages_for $((2 * streams)))" -s 1 -n "$tokens" --wire "${BENCH_WIRE:-f32}" | field tokens_per_s)
    y=$(two "$(stages_for $((2 * streams)))" -s $((2 * streams)) -n "$tokens" --wire "${BENCH_WIRE:-f32}" | field tokens_per_s)
    z=$(two "$(halves)" -s 1 -p "$prompt" -n 2 --wire "${BENCH_WIRE:-f32}" | field first_ms)
    row "$1" "$(awk -v u="$2" 'BEGIN { print u / 1000 }')" "$3" "$(cell "$x" "$(ratio "$x" "$base")")" \
        "$(cell "$y" "$(ratio "$y" "$base_many")")" "$(printf '%8.0f x %6s' "$z" "$(ratio "$base_first" "$z")")"
    end_network
}
profile Thunderbolt 300 20000
profile 10-GbE 200 10000
profile 1-GbE 400 1000
profile Wi-Fi 5000 300
profile WAN 40000 50
