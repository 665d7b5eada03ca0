#!/usr/bin/env bash
# What cannot work says so before it begins: models that would not load, contexts that do not suffice, memory that is
# not there. One line with file and reason, exit status 1, and nothing on the output that looks like an answer.
. "$(dirname "$0")/../harness/lib.sh"

model=$tmp/tiny.gguf
"$pleiades" synth -o "$model" >"$tmp/output" 2>&1
echo "1 2 3 4 5" >"$tmp/ids"

# ---- inspect tells what loading would ----

# broken PERL-SUBSTITUTION: a copy of the model with those bytes changed
broken() { perl -0777 -pe "$1" "$model" >"$tmp/broken.gguf"; }
refused() {
    fails 1 "inspect refuses $1" "$pleiades" inspect "$tmp/broken.gguf"
    says "and names file and tensor" "broken.gguf: tensor $2"
    says "and the reason" "$3"
    says "but shows what is there" "Class"
    cp "$tmp/output" "$tmp/inspected"
    fails 1 "generate refuses it, too" "$pleiades" generate -m "$tmp/broken.gguf" --ids "$tmp/ids" -n 1
    same "with the same words" "$(tail -n 1 "$tmp/inspected" | cut -d: -f2-)" "$(tail -n 1 "$tmp/output" | cut -d: -f2-)"
}
ok "inspect is content with a model" "$pleiades" inspect "$model"
if command -v perl >/dev/null 2>&1; then
    broken 's/blk\.2\.attn_kv\.weight/blk.2.attn_kx.weight/'
    refused "a model without one of its tensors" blk.2.attn_kv.weight "is missing"
    broken 's/(blk\.3\.attn_kv\.weight\x02\0\0\0.{16})\x08\0\0\0/$1\x63\0\0\0/s'
    refused "a tensor of an unknown type" blk.3.attn_kv.weight "unknown type 99"
    broken 's/(blk\.1\.attn_norm\.weight\x01\0\0\0)\0\x01/$1\x80\0/s'
    refused "a tensor of another shape" blk.1.attn_norm.weight "has dimensions [128, 1, 1, 1], expected [256, 1, 1]"
    fails 1 "inspect --json fails as well" "$pleiades" inspect --json "$tmp/broken.gguf"
    says "and has the reason in the document" '"error": "'
else
    skip "models with damaged headers" "no perl here"
fi

"$pleiades" shard split -m "$model" -o "$tmp/shards" --cuts 2 >"$tmp/output" 2>&1
for shard in "$tmp"/shards/*.gguf; do ok "a stage's share is complete in itself" "$pleiades" inspect "$shard"; done
"$pleiades" synth --mtp "$tmp/mtp.gguf" >"$tmp/output" 2>&1
ok "so is the MTP block" "$pleiades" inspect "$tmp/mtp.gguf"

# ---- a context that does not suffice ----

room() { "$pleiades" generate -m "$model" --ids "$tmp/ids" "$@"; }
ok "five tokens and four more fit into eight" room -n 4 --ctx 8
fails 1 "five more do not" room -n 5 --ctx 8
says "and the numbers are named" "5 tokens and 5 new ones are past the context limit of 8 tokens"
says "with the file" "$tmp/ids"
same "nothing was printed before" "" "$(room -n 5 --ctx 8 2>/dev/null)"
same "not as JSON either" "" "$(room -n 5 --ctx 8 --json 2>/dev/null)"

# ---- memory that is not there ----

# limited KIB: what happens with so much address space
limited() { (ulimit -v "$1" && exec "$pleiades" generate -m "$model" --ids "$tmp/ids" -n 2 -t 1); }
if [ "$(uname)" = Linux ] && (ulimit -v 1000000) 2>/dev/null && limited 1000000 >/dev/null 2>&1; then
    # What the program and its libraries need to begin at all; below that the system's loader speaks, or dies.
    base=16000
    while ! (ulimit -v $base && exec "$pleiades" version) >/dev/null 2>&1; do base=$((base + 1000)); done 2>/dev/null
    status=0 n_refused=0 wrong='' work=''
    for more in 0 2000 4000 6000 8000 12000 16000 20000 24000 32000 40000 48000 56000; do
        kib=$((base + more))
        limited $kib >"$tmp/output" 2>&1 && continue
        status=$?
        n_refused=$((n_refused + 1))
        [ $status -eq 1 ] || [ $status -eq 127 ] || wrong="$wrong status $status with $kib KiB"
        [ $status -ne 1 ] || grep -q 'memory\|allocate\|Cannot\|cannot' "$tmp/output" || wrong="$wrong no reason with $kib KiB"
        ! grep -q 'tiny.gguf: work space for batches of 1024 rows: cannot allocate' "$tmp/output" || work=said
    done
    same "too little memory is an error, never a crash" "" "$wrong"
    same "and it was too little now and then" 1 "$([ $n_refused -gt 2 ] && echo 1)"
    same "file and purpose are named" said "$work"
else
    skip "no memory" "ulimit -v does not work here"
fi
