#!/usr/bin/env bash
# A model divided over files and back, a plan before anything is loaded, and what goes wrong on the way.
. "$(dirname "$0")/../harness/lib.sh"
shard() { "$pleiades" shard "$@"; }

model=$tmp/tiny.gguf out=$tmp/out
ok "synth writes a model" "$pleiades" synth -o "$model"

# ---- plan ----
mac="mem=128G,bw=400G,int8=30T,f32=14T"
fails 2 "shard alone lists its commands" "$pleiades" shard
fails 2 "an unknown command is a usage error" shard plam
says "and the nearest one is named" "did you mean 'plan'"
ok "a plan without a file" shard plan -p flash-q2 --machine a,$mac --machine b,$mac --explain
says "predicts prefill" "prefill"
says "and says what alternatives give" "best with 2 stages"
fails 1 "too little memory is an error" shard plan -p flash-q4 --machine a,mem=64G,bw=400G --machine b,mem=64G,bw=400G
says "that says how many bytes are missing" "bytes are missing"
ok "a plan by hand" shard plan -p flash-q2 --machine a,$mac --machine b,$mac --stages a=0-20,b=21-42
ok "links between names with dashes" shard plan --machine a-1,$mac --machine b,$mac --link a-1-b,ms=1 --link b-coordinator,ms=2,bw=1G
fails 1 "a link to nobody is an error" shard plan --machine a-1,$mac --machine b,$mac --link a-b,ms=1
fails 1 "with a gap is an error" shard plan -p flash-q2 --machine a,$mac --machine b,$mac --stages a=0-20,b=22-42
says "that names the place" "do not continue at layer 21"
fails 1 "an unknown machine is an error" shard plan -p flash-q2 --machine a,$mac --stages a=0-20,c=21-42
says "that names it" "'c'"
fails 1 "a wrong property is an error" shard plan --machine a,men=1G
says "that names it, too" "men"
cat >"$tmp/machines.json" <<'END'
{ "machines": [ { "name": "a", "memory": "128G", "bandwidth": "400G", "int8": "30T", "f32": "14T", "backend": "metal" },
                { "name": "b", "memory": 137438953472, "bandwidth": 4e11, "int8": "30T", "f32": "14T", "layer_us": 20 } ],
  "link": { "latency_ms": 0.3, "bandwidth": "1.25G" },
  "links": [ { "from": "a", "to": "b", "latency_ms": 0.05, "bandwidth": "5G" }, { "from": "a", "to": "coordinator", "latency_ms": 1 } ] }
END
ok "machines from a file" shard plan --machines "$tmp/machines.json" --streams 8 --objective throughput --json
if command -v python3 >/dev/null 2>&1; then
    cp "$tmp/output" "$tmp/plan.json"
    same "use both for many streams" 2 "$(python3 -c 'import json, sys; print(len(json.load(open(sys.argv[1]))["stages"]))' "$tmp/plan.json")"
fi
for bad in '' '[]' '{"machines": 3}' '{"machines": [3]}' '{"machines": [{"name": "a"}]}' '{"machines": [], "x": ' \
    '{"machines": [{"name": "a", "memory": "1X", "bandwidth": 1}]}' '{"machines": [{"name": "a", "memory": "1G", "bandwidth": {}}]}'; do
    printf '%s' "$bad" >"$tmp/bad.json"
    fails 1 "machines like $bad are an error" shard plan --machines "$tmp/bad.json"
done

# ---- split, verify, inspect, join ----
ok "split by cuts" shard split -m "$model" -o "$out" --cuts 1,2
ok "verify finds nothing" shard verify "$out"
says "and says so" "all as they should be"
ok "inspect shows a shard" shard inspect "$out/stage-01.gguf"
says "with its layers" "1-1 of"
ok "and every tensor" shard inspect --tensors "$out"
ok "plain inspect reads a shard, too" "$pleiades" inspect "$out/stage-00.gguf" --alone
if command -v python3 >/dev/null 2>&1; then ok "the manifest is JSON" python3 -m json.tool "$out/manifest.json"; fi
ok "join puts it together" shard join "$out" -o "$tmp/back.gguf"
ok "byte by byte" cmp "$model" "$tmp/back.gguf"
ok "the same split again" shard split -m "$model" -o "$out" --cuts 1,2
says "writes nothing" "0.000 GB written"
ok "split by names" shard split -m "$model" -o "$tmp/named" --stages left=0-1,right=2-4
says "into one file each" "2 files"
same "whose machines the manifest tells" 2 "$(grep -c '"machine"' "$tmp/named/manifest.json")"
ok "experts for helpers" shard split -m "$model" -o "$tmp/helpers" --cuts 2 --experts 0-3,4-15
ok "verified" shard verify "$tmp/helpers"
ok "joined" shard join "$tmp/helpers" -o "$tmp/back2.gguf"
ok "byte by byte, too" cmp "$model" "$tmp/back2.gguf"
fails 2 "split needs to know where" shard split -m "$model" -o "$out"
fails 1 "cuts outside the model are an error" shard split -m "$model" -o "$tmp/never" --cuts 99
same "that leaves nothing behind" "" "$(ls "$tmp/never" 2>/dev/null)"

# One damaged byte is found and named, and never joined.
cp "$out/stage-01.gguf" "$tmp/good.gguf"
size=$(wc -c <"$out/stage-01.gguf" | tr -d ' ')
printf '\x5a\xa5\x5a' | dd of="$out/stage-01.gguf" bs=1 seek=$((size / 2)) conv=notrunc 2>/dev/null
fails 1 "verify finds damage" shard verify "$out"
says "and names the tensor" "stage-01.gguf: tensor blk.1."
ok "the other stages are as they were" shard verify "$out" --stage 2
fails 1 "join refuses" shard join "$out" -o "$tmp/never.gguf"
same "and leaves nothing behind" "" "$(ls "$tmp"/never.gguf* 2>/dev/null)"
for keep in 0 100 5000 $((size - 1)); do
    head -c $keep "$tmp/good.gguf" >"$out/stage-01.gguf"
    fails 1 "a shard cut at $keep bytes is found" shard verify "$out"
    fails 1 "and not joined" shard join "$out" -o "$tmp/never.gguf"
done
cp "$tmp/good.gguf" "$out/stage-01.gguf"
ok "restored, all is well" shard verify "$out"

# A split that is killed again and again ends in the same files.
if command -v timeout >/dev/null 2>&1; then
    for ms in 0.005 0.01 0.02 0.04; do timeout -s KILL $ms "$pleiades" shard split -m "$model" -o "$tmp/killed" --cuts 1,2; done >/dev/null 2>&1
    # The killed process may hold the file for a moment longer, and a second writer is refused.
    for try in 1 2 3 4 5 6 7 8 9; do shard split -m "$model" -o "$tmp/killed" --cuts 1,2 >/dev/null 2>&1 && break; sleep 0.$try; done
    ok "a killed split goes on" shard split -m "$model" -o "$tmp/killed" --cuts 1,2
    for name in stage-00 stage-01 stage-02; do ok "$name is as if nothing had happened" cmp "$out/$name.gguf" "$tmp/killed/$name.gguf"; done
else
    skip "a killed split goes on" "no timeout here"
fi
