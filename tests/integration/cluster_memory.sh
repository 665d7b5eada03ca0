#!/usr/bin/env bash
# Many short requests leave memory as it was, in the coordinator and in a node. CLUSTER_REQUESTS says how many
# (`make soak`: 10,000); ten clients at a time.
. "$(dirname "$0")/../harness/lib.sh"
. "$(dirname "$0")/../harness/cluster.sh"

requests=${CLUSTER_REQUESTS:-600}
slack_kib=${CLUSTER_SLACK_KIB:-3000}
if ! ps -o rss= -p $$ >/dev/null 2>&1; then skip "memory of processes" "ps does not tell it"; exit 0; fi
command -v curl >/dev/null || { skip "many requests" "no curl here"; exit 0; }
model=$tmp/tiny.gguf
"$pleiades" synth -o "$model" >"$tmp/synth.log" 2>&1 || { failed "synth writes a model"; exit 1; }

# As many as asked for, over ten connections that are kept; prompts of changing lengths, streamed or not.
rounds() {
    local n=$1 i client jobs=''
    for client in 1 2 3 4 5 6 7 8 9 10; do
        : >"$tmp/urls.$client"
        for ((i = client; i <= n; i += 10)); do
            [ -s "$tmp/urls.$client" ] && echo next >>"$tmp/urls.$client"
            printf 'url = "%s/v1/completions"\noutput = /dev/null\nsilent\nheader = "Content-Type: application/json"\n' \
                "$url" >>"$tmp/urls.$client"
            printf 'write-out = "%%{http_code}\\n"\ndata = "{\\"prompt\\": \\"%s\\", \\"max_tokens\\": 2, \\"stream\\": %s}"\n' \
                "$(printf 'word %.0s' $(seq 1 $((1 + i % 17))))" "$([ $((i % 2)) = 0 ] && echo true || echo false)" \
                >>"$tmp/urls.$client"
        done
        curl --config "$tmp/urls.$client" >>"$tmp/codes" 2>&1 &
        jobs="$jobs $!"
    done
    # shellcheck disable=SC2086
    wait $jobs
}
rss() { ps -o rss= -p "$(pid "$1")" | tr -d ' '; }

serve boss -m "$model" --ctx 1024 --slots 6 --no-local-node --bind-nodes 127.0.0.1:0 --insecure --nodes 2 --stages a=0-1,b=2-4
node a --insecure -m "$model" --memory 1G
node b --insecure -m "$model" --memory 1G
ok "two stages" wait_for serving
rounds $((requests / 3))
before="$(rss boss) $(rss a) $(rss b)"
rounds "$requests"
after="$(rss boss) $(rss a) $(rss b)"
same "every request was answered" "$((requests / 3 + requests)) 200" "$(sort "$tmp/codes" | uniq -c | sed 's/^ *//')"
# shellcheck disable=SC2086
set -- $before $after
for i in 1 2 3; do
    name=$(echo boss a b | cut -d ' ' -f $i)
    grown=$((${4} - ${1}))
    same "$requests requests leave the memory of $name flat ($1 KiB, then $4)" 1 $((grown <= slack_kib))
    shift
done
