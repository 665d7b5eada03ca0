#!/usr/bin/env bash
# A cluster of three machines that are network namespaces, over links as people have them: the tokens are those of one
# process whatever the network is like. What a token costs over each of them is printed.
. "$(dirname "$0")/../harness/lib.sh"
. "$(dirname "$0")/../harness/cluster.sh"

what="a cluster over Thunderbolt, Ethernet, Wi-Fi and WAN"
real=$pleiades
run=pl$$
namespaces=''
leave() {
    local n
    [ $failures -eq 0 ] || show_logs
    stop_all
    for n in $namespaces; do ip netns del "$n" 2>/dev/null; done
    finish
}
trap leave EXIT

[ "$(uname -s)" = Linux ] || { skip "$what" "network namespaces are Linux's"; exit 0; }
command -v ip >/dev/null 2>&1 || { skip "$what" "no ip here: make deps-ci"; exit 0; }
[ "$(id -u)" = 0 ] || { skip "$what" "network namespaces need root"; exit 0; }
[ -c /dev/net/tun ] || { skip "$what" "no /dev/net/tun here"; exit 0; }
compiler=$(command -v cc || command -v gcc || command -v clang) || { skip "$what" "no compiler for the network"; exit 0; }
"$compiler" -std=c11 -O2 -Wall -o "$tmp/wire" tests/harness/wire.c || { failed "the network compiles"; exit 1; }
for name in boss a b c; do
    if ! ip netns add "$run$name" 2>"$tmp/netns.log"; then
        skip "$what" "namespaces cannot be made here: $(tail -n 1 "$tmp/netns.log")"
        exit 0
    fi
    namespaces="$namespaces $run$name"
    ip -n "$run$name" link set lo up
    printf '#!/bin/sh\nexec ip netns exec %s "%s" "$@"\n' "$run$name" "$real" >"$tmp/in-$name"
    chmod +x "$tmp/in-$name"
done

model=$tmp/tiny.gguf
"$real" synth -o "$model" >"$tmp/synth.log" 2>&1 || { failed "synth writes a model"; exit 1; }
printf 'Far from each other, and one sky.' | "$real" tokenize -m "$model" >"$tmp/ids"
alone() { "$real" generate -m "$model" --ids "$tmp/ids" -n 16 --threads 1 "$@" 2>/dev/null; }
greedy=$(alone)
sampled=$(alone --temp 1 --seed 7)

keys=insecure
if "$real" version | grep -q 'curve *yes'; then
    keys=$tmp/keys
    "$real" keys init --out "$keys" >/dev/null 2>&1
    for name in a b c; do
        (umask 077; "$real" keys invite --once --keys "$keys" --address 10.77.0.1:7700 >"$tmp/$name.key" 2>/dev/null)
    done
fi

# network DELAY_US MBIT: from now on, one way.
network() {
    local i=0 n
    : >"$tmp/wire.log"
    # shellcheck disable=SC2086
    "$tmp/wire" "$1" "$2" $namespaces >"$tmp/wire.log" 2>&1 </dev/null &
    echo $! >"$tmp/wire.pid"
    started="$started $!"
    disown
    soon "the network" grep -q ready "$tmp/wire.log" || return 1
    for n in $namespaces; do
        i=$((i + 1))
        ip -n "$n" addr add 10.77.0.$i/24 dev wire && ip -n "$n" link set wire mtu 9000 up || return 1
    done
}

member_node() {
    local name=$1 address=$2
    pleiades=$tmp/in-$name
    if [ "$keys" = insecure ]; then set -- --insecure --join 10.77.0.1:7700; else set -- --key "$tmp/$name.key"; fi
    start "$name" node --name "$name" --bind "$address" --no-measure -t 1 -m "$model" --memory 1G "$@"
    pleiades=$tmp/in-boss
}

now_ms() { date +%s%3N; }
timed() { [ "$(member rtt_us)" -gt 0 ] 2>/dev/null; }

# cluster NAME ROUND_TRIP_US MBIT OPTION...: three machines on such a network, and a coordinator with these options.
cluster() {
    local name=$1 us=$2 mbit=$3
    shift 3
    ok "$name: a network" network $((us / 2)) "$mbit"
    pleiades=$tmp/in-boss
    if [ "$keys" = insecure ]; then set -- "$@" --insecure; else set -- "$@" --key "$keys"; fi
    serve boss -m "$model" --ctx 1024 --no-local-node --bind-nodes 10.77.0.1:7700 --nodes 3 "$@"
    member_node a 10.77.0.2
    member_node b 10.77.0.3
    member_node c 10.77.0.4
}
end_cluster() { local i; for i in boss a b c wire; do stop $i; done; }

# try NAME ROUND_TRIP_US MBIT
try() {
    local name=$1 us=$2 mbit=$3 begin spent seen
    cluster "$@" --stages a=0-1,b=2-2,c=3-4
    ok "$name: three stages" wait_for serving
    same "$name: the tokens of one process" "$greedy" "$(ask "$tmp/ids" -n 16 2>&1)"
    begin=$(now_ms)
    same "$name: sampled as well" "$sampled" "$(ask "$tmp/ids" -n 16 --temp 1 --seed 7 2>&1)"
    spent=$(($(now_ms) - begin))
    for i in 1 2 3; do ask "$tmp/ids" -n 16 --temp 1 --seed 7 >"$tmp/crowd.$i" 2>&1 & jobs[i]=$!; done
    wait "${jobs[@]}"
    same "$name: three at once" "$sampled $sampled $sampled" "$(echo $(cat "$tmp/crowd.1" "$tmp/crowd.2" "$tmp/crowd.3"))"
    ok "$name: a heartbeat has been round" soon "a round trip" timed
    seen=$(member rtt_us)
    same "$name: the round trip is seen as what it is (${seen:-0} of $us us)" 1 \
        "$(awk -v s="${seen:-0}" -v u="$us" 'BEGIN { print (s >= 0.9 * u) }')"
    printf '# %-18s %6.1f ms round trip %6d Mb/s: %4d ms for a prompt of %d and 16 tokens\n' "$name" \
        "$(awk -v u="$us" 'BEGIN { print u / 1000 }')" "$mbit" "$spent" "$(wc -w <"$tmp/ids")"
    end_cluster
}

# What the first plan knows of links, when nobody says which plan.
survey() {
    local name=$1 us=$2 mbit=$3
    cluster "$@"
    ok "$name: a plan that was found" wait_for serving
    "$pleiades" status --url "$url" --json | tr '{' '\n' | grep '^"from": ' >"$tmp/links"
    same "$name: nine ways are measured before it, as far and fast as they are" 9 "$(
        sed 's/.*"rtt_us": \([0-9]*\), "bytes_per_s": \([0-9]*\).*/\1 \2/' "$tmp/links" |
            awk -v us="$us" -v rate=$((mbit * 125000)) \
                '$1 >= 0.9 * us && $1 < 4 * us && $2 > 0.1 * rate && $2 < 1.5 * rate { n++ } END { print n + 0 }')"
    end_cluster
}

declare -a jobs
survey "Wi-Fi" 5000 300
try "Thunderbolt" 300 20000
try "10 GbE" 200 10000
try "1 GbE" 400 1000
try "Wi-Fi" 5000 300
try "WAN" 40000 50
