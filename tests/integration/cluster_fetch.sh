#!/usr/bin/env bash
# Nodes without a file: each gets its own share from the coordinator, keeps it, and needs nothing the next time.
. "$(dirname "$0")/../harness/lib.sh"
. "$(dirname "$0")/../harness/cluster.sh"

model=$tmp/tiny.gguf
"$pleiades" synth -o "$model" -x q4 >"$tmp/synth.log" 2>&1 || { failed "synth writes a model"; exit 1; }
"$pleiades" shard split -m "$model" --cuts 2 -o "$tmp/split" >"$tmp/split.log" 2>&1 || { failed "split"; exit 1; }
printf 'Everybody brings a dish, and nobody carries the whole table.' | "$pleiades" tokenize -m "$model" >"$tmp/ids"
want=$("$pleiades" generate -m "$model" --ids "$tmp/ids" -n 16 --threads 1 2>/dev/null)

cluster() {
    serve head -m "$model" --no-local-node --bind-nodes 127.0.0.1:0 --insecure --nodes 2 --stages a=0-1,b=2-4 \
        --threads 1 --ctx 1024 || return 1
    node a --insecure --store "$tmp/a"
    node b --insecure --store "$tmp/b"
    wait_for serving
}
end_cluster() { stop a; stop b; stop head; }

ok "two nodes that have nothing begin to serve" cluster
same "and give the tokens of one process" "$want" "$(ask "$tmp/ids" -n 16 2>&1)"
end_cluster
same "each has one file" "1 1" "$(find "$tmp/a" -type f | grep -c .) $(find "$tmp/b" -type f | grep -c .)"
ok "the first is the one that split writes" cmp "$tmp/split/stage-00.gguf" "$tmp"/a/*-stage-00-01-embed.gguf
ok "the second, too" cmp "$tmp/split/stage-01.gguf" "$tmp"/b/*-stage-02-04-head.gguf

ok "started again, they serve again" cluster
fails 1 "and nothing is fetched" grep -q 'come from' "$tmp/a.log" "$tmp/b.log"
same "for the same tokens" "$want" "$(ask "$tmp/ids" -n 16 2>&1)"
end_cluster

share=$(ls "$tmp"/a/*.gguf)
mv "$share" "$share.tmp"
ok "a leftover without a journal is no share" cluster
end_cluster
ok "it is fetched anew" cmp "$tmp/split/stage-00.gguf" "$share"
