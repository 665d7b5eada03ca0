#!/usr/bin/env bash
# Conversations: what a prompt shares with an earlier one is not computed again, and the tokens are those of a process
# that never saw the earlier one. Real processes, one and three stages.
. "$(dirname "$0")/../harness/lib.sh"
. "$(dirname "$0")/../harness/cluster.sh"

model=$tmp/tiny-pro.gguf
"$pleiades" synth --preset tiny-pro -o "$model" >"$tmp/synth.log" 2>&1 || { failed "synth writes a model"; exit 1; }
for i in 1 2 3 4 5; do
    echo "Turn $i of a long conversation about seven sisters, one sky, and who of them is seen through clouds."
done >"$tmp/text"
"$pleiades" tokenize -m "$model" <"$tmp/text" >"$tmp/turn1"
n=$(wc -w <"$tmp/turn1" | tr -d ' ')
same "the first prompt is long enough to be kept" 1 $((n >= 200))

alone() { "$pleiades" generate -m "$model" -n 20 --threads 1 --temp 1 --seed 3 --ids "$1" 2>/dev/null; }
words() { cat "$@" | tr '\n' ' '; }
words_but() { words "$2" | tr -s ' ' '\n' | head -n $(($(words "$2" | wc -w) - $1)) | tr '\n' ' '; }

# turn FILE "what" LEAST: asks, compares, and at least LEAST tokens of the prompt were there.
turn() {
    local before cached
    before=$(member cached)
    same "$way: $2: the tokens of a process that knows nothing" "$(alone "$1")" \
        "$(ask "$1" -n 20 --temp 1 --seed 3 2>&1)"
    cached=$(($(member cached) - before))
    same "$way: $2: $cached tokens of the prompt were there, at least $3" 1 $((cached >= $3))
}

alone "$tmp/turn1" >"$tmp/answer1"
echo "11 12 13 14 15" >"$tmp/more"
words "$tmp/turn1" "$tmp/answer1" "$tmp/more" >"$tmp/turn2"          # history and answer, and then something new
{ words_but 3 "$tmp/turn1"; words "$tmp/more"; } >"$tmp/turn3"       # the prompt without its last tokens: another branch
{ words_but 120 "$tmp/turn1"; words "$tmp/more"; } >"$tmp/turn4"     # too far back

conversation() {
    turn "$tmp/turn1" "a first prompt" 0
    turn "$tmp/turn2" "its answer, and more" $((n + 19))
    turn "$tmp/turn3" "the prompt again, another end" $((n - 3))
    turn "$tmp/turn4" "half of it" 0
    turn "$tmp/turn1" "the first prompt once more" 0
    turn "$tmp/turn1" "and again" $((n - 1))
    crowd
}

# Three at once begin with a prompt that is there, and go on differently.
crowd() {
    local i jobs='' right=0 before cached
    before=$(member cached)
    for i in 1 2 3; do
        { words_but "$i" "$tmp/turn1"; echo "$i$i $i 7"; } >"$tmp/branch.$i"
        ask "$tmp/branch.$i" -n 20 --temp 1 --seed 3 >"$tmp/crowd.$i" 2>&1 &
        jobs="$jobs $!"
    done
    # shellcheck disable=SC2086
    wait $jobs
    for i in 1 2 3; do [ "$(cat "$tmp/crowd.$i")" = "$(alone "$tmp/branch.$i")" ] && right=$((right + 1)); done
    same "$way: three that branch at once get what each gets alone" 3 $right
    cached=$(($(member cached) - before))
    same "$way: and each found the prompt ($cached tokens)" 1 $((cached >= 3 * n - 6))
}

way="one stage"
serve alone -m "$model" --threads 1 --ctx 2048
ok "a service" wait_for serving
conversation
if command -v curl >/dev/null 2>&1; then
    curl -s --max-time 20 "$url/metrics" >"$tmp/output"
    kept=$(sed -n 's/^pleiades_prefix_cache_entries //p' "$tmp/output")
    same "metrics say how many are kept ($kept), and what they take" 1 \
        $((kept > 0 && $(sed -n 's/^pleiades_prefix_cache_bytes //p' "$tmp/output") > kept * 1000))
    same "and how many had to make room" 1 $(($(sed -n 's/^pleiades_prefix_cache_evictions_total //p' "$tmp/output") >= 0))
fi
stop alone

way="three stages"
serve boss -m "$model" --ctx 2048 --no-local-node --bind-nodes 127.0.0.1:0 --insecure --nodes 3 --stages a=0-1,b=2-2,c=3-4
for name in a b c; do node "$name" --insecure -m "$model" --memory 1G; done
ok "three nodes" wait_for serving
conversation
kill -9 "$(pid b)"
ok "the loss of one is noticed" wait_for loading
node b --insecure -m "$model" --memory 1G
ok "and its return" wait_for serving
turn "$tmp/turn2" "after a machine was lost" 0
turn "$tmp/turn1" "nothing of before, then again" 0
turn "$tmp/turn1" "what has been computed since" $((n - 1))
stop boss
for name in a b c; do stop "$name"; done
