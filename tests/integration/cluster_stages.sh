#!/usr/bin/env bash
# Real processes on loopback: one to four stages give the tokens of one process; what is shown adds up; idle costs nothing.
. "$(dirname "$0")/../harness/lib.sh"
. "$(dirname "$0")/../harness/cluster.sh"

model=$tmp/tiny.gguf
"$pleiades" synth -o "$model" >"$tmp/synth.log" 2>&1 || { failed "synth writes a model"; exit 1; }
printf 'One sky over several machines, and nobody can tell them apart by their words.' |
    "$pleiades" tokenize -m "$model" >"$tmp/ids"
ways=("" "--temp 1 --seed 7" "--temp 0.8 --top-p 0.9 --repetition-penalty 1.3 --seed 11")
alone() { "$pleiades" generate -m "$model" --ids "$tmp/ids" -n 24 --threads 1 "$@" 2>/dev/null; }
for i in 0 1 2; do
    # shellcheck disable=SC2086
    alone ${ways[$i]} >"$tmp/want.$i"
done
alone --json --top-logprobs 3 | grep '"id"' >"$tmp/want.json"

compare() {
    local what=$1 i
    for i in 0 1 2; do
        # shellcheck disable=SC2086
        same "$what: the tokens of one process (${ways[$i]:-greedy})" "$(cat "$tmp/want.$i")" \
            "$(ask "$tmp/ids" -n 24 ${ways[$i]} 2>&1)"
    done
    ask "$tmp/ids" -n 24 --json --top-logprobs 3 2>&1 | grep '"id"' >"$tmp/have.json"
    ok "$what: log-probabilities and alternatives, digit by digit" cmp "$tmp/want.json" "$tmp/have.json"
}

# Several at once, each compared with what it gets alone.
crowd() {
    local what=$1 i right=0 jobs=''
    for i in 1 2 3 4 5 6; do
        ask "$tmp/ids" -n 24 --temp 1 --seed $((i % 3)) >"$tmp/crowd.$i" 2>&1 &
        jobs="$jobs $!"
    done
    # shellcheck disable=SC2086
    wait $jobs
    for i in 1 2 3 4 5 6; do
        [ "$(cat "$tmp/crowd.$i")" = "$(alone --temp 1 --seed $((i % 3)))" ] && right=$((right + 1))
    done
    same "$what: six requests at once get what each gets alone" 6 $right
}

# Processor time of a process in hundredths of a second.
ticks() { awk '{ print $14 + $15 }' "/proc/$1/stat"; }

serve alone -m "$model" --threads 1 --ctx 2048
ok "a service without a cluster" wait_for serving
compare "one process"
crowd "one process"
if [ -r /proc/self/stat ]; then
    before=$(ticks "$(pid alone)")
    sleep 3
    used=$(($(ticks "$(pid alone)") - before))
    same "idle costs less than 1 % of a core ($used of 300 ticks)" 1 $((used <= 3))
else
    skip "idle costs less than 1 % of a core" "no /proc here"
fi
stop alone

for plan in a=0-4 a=0-1,b=2-4 b=0-0,c=1-2,a=3-4 d=0-0,a=1-1,c=2-3,b=4-4; do
    names=$(echo "$plan" | tr ',' '\n' | sed 's/=.*//' | sort)
    n=$(echo "$names" | wc -l | tr -d ' ')
    serve boss -m "$model" --ctx 2048 --no-local-node --bind-nodes 127.0.0.1:0 --insecure --nodes "$n" --stages "$plan"
    for name in $names; do node "$name" --insecure -m "$model" --memory 1G; done
    ok "$n stages ($plan)" wait_for serving
    compare "$plan"
    crowd "$plan"
    share=$(member attributed)
    same "$plan: at least 98 % of a token's time is accounted for ($share)" 1 \
        "$(awk -v s="$share" 'BEGIN { print (s >= 0.98 && s <= 1.02) }')"
    same "$plan: status names every node" "$n" "$("$pleiades" status --url "$url" | grep -c ' ready ')"
    if [ "$n" = 3 ]; then
        ok "a plan for the machines that are there" "$pleiades" shard plan -m "$model" --url "$url" --ctx 2048
        says "names them" "machine"
        same "and gives the layers to some of them" 1 "$(($(grep -c '^[abc] ' "$tmp/output") >= 1))"
    fi
    if [ -r /proc/self/stat ] && [ "$n" = 3 ]; then
        before=0 after=0
        for name in boss $names; do before=$((before + $(ticks "$(pid "$name")"))); done
        sleep 3
        for name in boss $names; do after=$((after + $(ticks "$(pid "$name")"))); done
        same "an idle cluster of 4 processes costs less than 1 % of a core each ($((after - before)) of 1200 ticks)" 1 \
            $((after - before <= 12))
    fi
    stop boss
    for name in $names; do stop "$name"; done
done

# Nobody says which plan: how far and how fast everybody is from everybody is measured before the first one.
serve boss -m "$model" --ctx 2048 --no-local-node --bind-nodes 127.0.0.1:0 --insecure --nodes 3
for name in a b c; do node "$name" --insecure -m "$model" --memory 1G --measure; done
ok "three nodes and no plan by hand" wait_for serving
same "the plan is the first" 1 "$(member epoch)"
"$pleiades" status --url "$url" --json | tr '{' '\n' | grep '^"from": ' >"$tmp/links"
same "every way is known, to the coordinator as well" 9 \
    "$(grep -c '"rtt_us": [1-9][0-9]*, "bytes_per_s": [1-9]' "$tmp/links")"
ok "a plan from what was measured" "$pleiades" shard plan -m "$model" --url "$url" --ctx 2048 --explain
says "says what a helper would cost" "ms of round trips"
compare "a plan that was found"
ask "$tmp/ids" -n 200 >/dev/null 2>&1
predicted=$("$pleiades" shard plan -m "$model" --url "$url" --ctx 2048 --depth 100 --json |
    sed -n 's/.*"stream_tokens_per_s": *\([0-9.]*\).*/\1/p')
measured=$("$pleiades" status --url "$url" --json |
    sed -n 's/.*"time": {"tokens": \([0-9]*\), "wall_us": \([0-9]*\).*/\1 \2/p' | awk '$2 { print $1 * 1000000 / $2 }')
same "its speed is as predicted, within a factor of six ($predicted tokens/s, measured $measured)" 1 \
    "$(awk -v p="${predicted:-0}" -v m="${measured:-0}" 'BEGIN { print (p > 0 && m < 6 * p && p < 6 * m) }')"
stop boss
for name in a b c; do stop "$name"; done

# This machine and another one: the coordinator computes, too.
serve boss -m "$model" --ctx 2048 --threads 1 --bind-nodes 127.0.0.1:0 --insecure --nodes 2 --stages local=0-1,b=2-4
node b --insecure -m "$model" --memory 1G
ok "a coordinator that computes, and a node" wait_for serving
compare "local and b"
stop boss
stop b
