#!/usr/bin/env bash
# fetch.sh BENCHES PROGRAM - how fast a node gets its share of a model from another, beside what the same link gives to
# one plain TCP stream (bench_raw) and to payloads of the same size over our encrypted links (bench_link, loopback).
#
#     BENCH_MODEL=FILE     default: a synthetic layer of Flash with embedding and head, written once (3.6 GB)
#     BENCH_STORE=DIR      where the share is written; on a disk that is slower than the link it measures the disk
#     BENCH_SHORT=1        loopback only
#     BENCH_MBIT=1000      rate of the network between namespaces; needs root, /dev/net/tun and a compiler
#
# A ratio is that of the same bytes over the same wire on the same cores, which the wire (a process of its own), both
# nodes and the coordinator share.
set -euo pipefail
benches=$1 program=$2
model=${BENCH_MODEL:-build/bench/one-layer.gguf}
mbit=${BENCH_MBIT:-1000}
mkdir -p build/bench
[ -e "$model" ] || "$program" synth --preset mid --layers 1 -o "$model"
megabytes=$(($(wc -c <"$model") / 1000000))
tmp=$(mktemp -d build/bench/fetch.XXXXXX)
store=$(mktemp -d "${BENCH_STORE:-$tmp}/store.XXXXXX")
run=pf$$
jobs_started=''
end_jobs() {
    local p
    for p in $jobs_started; do kill "$p" 2>/dev/null || true; done
    for p in $jobs_started; do wait "$p" 2>/dev/null || true; done
    jobs_started=''
}
leave() {
    local n
    end_jobs
    for n in boss a b; do ip netns del $run$n 2>/dev/null || true; done
    rm -rf "$tmp" "$store"
}
trap leave EXIT
trap 'exit 1' INT TERM

in_a='' in_b='' in_boss=''
background() {
    local log=$1
    shift
    "$@" >"$tmp/$log" 2>&1 </dev/null &
    jobs_started="$jobs_started $!"
}
soon() {
    local i
    for i in $(seq 1200); do if grep -q "$2" "$tmp/$1" 2>/dev/null; then return 0; fi; sleep 0.1; done
    echo "fetch.sh: no '$2' in $1:"; tail -n 5 "$tmp/$1"; exit 1
}
rate_in() { sed -n "s/.*$2.* \([0-9.]*\) MB\/s.*/\1/p" "$tmp/$1" | tail -n 1; }
ratio() { awk -v a="$1" -v b="$2" 'BEGIN { printf "%.2f", (b > 0 ? a / b : 0) }'; }

# raw ADDRESS_OF_B: a plain stream from a to b.
raw() {
    local port=$((20000 + RANDOM % 20000))
    # shellcheck disable=SC2086
    background raw.log $in_b "$benches/bench_raw" listen "$1" $port
    # shellcheck disable=SC2086
    $in_a "$benches/bench_raw" send "$1" $port "$megabytes"
    soon raw.log 'MB/s'
    end_jobs
    rate_in raw.log 'MB in'
}

# fetched KEYS BOSS A B: a has the model, b gets all of it from there.
fetched() {
    local keys=$1 boss=$2:$((20000 + RANDOM % 20000)) name security
    rm -rf "$store" "$tmp"/*.log "$tmp"/*.key "$tmp/keys"
    security="--insecure"
    if [ "$keys" = yes ]; then
        "$program" keys init --out "$tmp/keys" >/dev/null 2>&1
        security="--key $tmp/keys"
        for name in a b; do
            (umask 077; "$program" keys invite --once --keys "$tmp/keys" --address "$boss" >"$tmp/$name.key" 2>/dev/null)
        done
    fi
    # shellcheck disable=SC2086
    background boss.log $in_boss "$program" serve --port 0 -m "$model" --no-local-node --no-give --ctx 1024 \
        --bind-nodes "$boss" --nodes 2 --stages b=0 $security
    for name in a b; do
        local where=$3 in=$in_a what="-m $model"
        if [ $name = b ]; then where=$4 in=$in_b what="--store $store"; fi
        security="--insecure --join $boss"
        if [ "$keys" = yes ]; then security="--key $tmp/$name.key"; fi
        # shellcheck disable=SC2086
        background $name.log $in "$program" node --name $name --bind "$where" --no-measure -t 1 $what $security
    done
    soon b.log 'complete: '
    # shellcheck disable=SC2086
    spent $jobs_started >"$tmp/spent"
    end_jobs
    rate_in b.log 'complete:'
}

# Seconds of processor per GB, of coordinator and both nodes (starting included).
spent() {
    local p sum=0
    for p in "$@"; do
        if [ -r "/proc/$p/stat" ]; then sum=$((sum + $(awk '{ print $14 + $15 }' "/proc/$p/stat"))); fi
    done
    awk -v s=$sum -v m="$megabytes" 'BEGIN { printf "%.2f", s / 100 / (m / 1000) }'
}

row() { printf '%-38s %8s %8s %7s %12s\n' "$@"; }
# table NAME BOSS A B [OPEN KEYED]: beside a TCP stream, or beside what links alone give.
table() {
    local name=$1 boss=$2 a=$3 b=$4 open keyed beside beside_keyed
    beside=$(raw "$b")
    row "$name: one TCP stream" "$beside" "" "" ""
    beside_keyed=${6:-$beside} beside=${5:-$beside}
    open=$(fetched no "$boss" "$a" "$b")
    row "$name: fetched, no keys" "$open" "$beside" "$(ratio "$open" "$beside")" "$(cat "$tmp/spent") s/GB"
    if "$program" version | grep -q 'curve *yes'; then
        keyed=$(fetched yes "$boss" "$a" "$b")
        row "$name: fetched, encrypted" "$keyed" "$beside_keyed" "$(ratio "$keyed" "$beside_keyed")" \
            "$(cat "$tmp/spent") s/GB"
    fi
}

echo "$megabytes MB; $(uptime | sed 's/.*load/load/')"
row "" "MB/s" "beside" "ratio" "processor"
"$benches/bench_link" 1 | grep '1024 KiB' >"$tmp/links.out"
link_rate() { awk -v k="$1" '$1 == k { printf "%.1f", $6 * 1000 }' "$tmp/links.out"; }
link_spent() { awk -v k="$1" '$1 == k { print $9, "s/GB" }' "$tmp/links.out"; }
row "loopback: links alone, no keys" "$(link_rate plain)" "" "" "$(link_spent plain)"
row "loopback: links alone, encrypted" "$(link_rate encrypted)" "" "" "$(link_spent encrypted)"
table loopback 127.0.0.1 127.0.0.1 127.0.0.1 "$(link_rate plain)" "$(link_rate encrypted)"

[ -z "${BENCH_SHORT:-}" ] || exit 0
[ "$(uname -s)" = Linux ] && [ "$(id -u)" = 0 ] && [ -c /dev/net/tun ] || { echo "no network of namespaces here"; exit 0; }
cc -std=c11 -O2 -Wall -o "$tmp/wire" tests/harness/wire.c
for name in boss a b; do ip netns add $run$name; ip -n $run$name link set lo up; done
"$tmp/wire" 200 "$mbit" ${run}boss ${run}a ${run}b >"$tmp/wire.out" 2>&1 </dev/null &
wire=$!
i=0
soon wire.out ready
for name in boss a b; do
    i=$((i + 1))
    ip -n $run$name addr add 10.77.0.$i/24 dev wire && ip -n $run$name link set wire mtu 9000 up
done
in_boss="ip netns exec ${run}boss" in_a="ip netns exec ${run}a" in_b="ip netns exec ${run}b"
table "$mbit Mb/s, 0.4 ms" 10.77.0.1 10.77.0.2 10.77.0.3
kill $wire
