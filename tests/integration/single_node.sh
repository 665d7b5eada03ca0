#!/usr/bin/env bash
# One machine, from a synthetic model to text: every command that takes a model, and what must not change its answer.
. "$(dirname "$0")/../harness/lib.sh"

model=$tmp/tiny.gguf
ok "synth writes a model" "$pleiades" synth -o "$model"
ok "the same options" "$pleiades" synth -o "$tmp/again.gguf" --threads 1
ok "give the same bytes" cmp "$model" "$tmp/again.gguf"
ok "inspect reads it" "$pleiades" inspect "$model"
says "and names its layers" "n_layer"

# text -> ids -> text
printf 'Seven sisters, one sky:\n  Electra & Maia. \xe6\x98\xb4 \xf0\x9f\x8c\x8c' >"$tmp/text"
"$pleiades" tokenize -m "$model" <"$tmp/text" >"$tmp/ids"
"$pleiades" detokenize -m "$model" <"$tmp/ids" >"$tmp/back"
ok "detokenize undoes tokenize" cmp "$tmp/text" "$tmp/back"

# The same tokens whatever the machine does with its threads, chunks and cuts, greedy and sampled.
answer() { "$pleiades" generate -m "$model" --ids "$tmp/ids" -n 12 "$@" 2>/dev/null; }
for how in "" "--temp 1 --seed 7"; do
    # shellcheck disable=SC2086
    want=$(answer $how --threads 1)
    same "there is an answer (${how:-greedy})" 12 "$(echo "$want" | wc -w | tr -d ' ')"
    for change in "--threads 2" "--threads 3" "--chunk 1" "--chunk 7" "--cuts 1" "--cuts 2,3 --chunk 5 --threads 2"; do
        # shellcheck disable=SC2086
        same "$change changes no token (${how:-greedy})" "$want" "$(answer $how $change)"
    done
done
same "another seed, another answer" 1 "$([ "$(answer --temp 1 --seed 7)" != "$(answer --temp 1 --seed 8)" ] && echo 1)"

# The logits themselves, bit for bit.
logits() { "$pleiades" logits -m "$model" --ids "$tmp/ids" -o "$@" 2>/dev/null; }
for numerics in official exact; do
    for precision in fast f32; do
        how="--numerics $numerics --precision $precision"
        # shellcheck disable=SC2086
        logits "$tmp/want" $how --threads 1
        # shellcheck disable=SC2086
        logits "$tmp/have" $how --threads 2 --chunk 3 --cuts 2
        ok "logits are equal bit for bit ($how)" cmp "$tmp/want" "$tmp/have"
    done
done
n_ids=$(wc -w <"$tmp/ids" | tr -d ' ')
same "one row of float32 for each position" $((n_ids * 1024 * 4)) "$(wc -c <"$tmp/want" | tr -d ' ')"

ok "run answers" "$pleiades" run -m "$model" -p 'Which stars?' -n 8
ok "bench measures" "$pleiades" bench -m "$model" -p 16 -n 2 --json
if command -v python3 >/dev/null 2>&1; then
    cp "$tmp/output" "$tmp/bench.json"
    ok "and prints JSON" python3 -m json.tool "$tmp/bench.json"
    "$pleiades" inspect --json "$model" >"$tmp/inspect.json"
    ok "as inspect does" python3 -m json.tool "$tmp/inspect.json"
fi

# The layer pattern of Pro: hash routing and heavy compression in the first two layers; more tokens than the 128 that
# such a layer compresses into one entry.
pro=$tmp/pro.gguf
ok "synth writes the pattern of Pro" "$pleiades" synth --preset tiny-pro -o "$pro"
for i in 1 2 3 4 5 6 7 8 9; do cat "$tmp/ids"; done | tr '\n' ' ' >"$tmp/long"
same "a prompt of more than two windows" 1 "$([ "$(wc -w <"$tmp/long")" -gt 260 ] && echo 1)"
pro_logits() { "$pleiades" logits -m "$pro" --ids "$tmp/long" --last 40 -o "$@" 2>/dev/null; }
for numerics in official exact; do
    pro_logits "$tmp/want" --numerics $numerics --threads 1
    for change in "--cuts 1" "--cuts 2,4 --threads 2" "--chunk 1" "--chunk 127" "--cuts 1,2,3,4 --chunk 33"; do
        # shellcheck disable=SC2086
        pro_logits "$tmp/have" --numerics $numerics $change
        ok "$change changes no bit of Pro's pattern ($numerics)" cmp "$tmp/want" "$tmp/have"
    done
done

# Damaged and missing files: an error that names the file, never a crash.
fails 1 "a missing model is an error" "$pleiades" generate -m "$tmp/nothing.gguf" --ids "$tmp/ids"
says "that names the file" "nothing.gguf"
size=$(wc -c <"$model" | tr -d ' ')
for keep in 0 3 24 1000 $((size / 2)) $((size - 1)); do
    head -c "$keep" "$model" >"$tmp/short.gguf"
    fails 1 "a model cut at $keep bytes is an error" "$pleiades" generate -m "$tmp/short.gguf" --ids "$tmp/ids" -n 1
    says "that names the file, too" "short.gguf"
done
echo "1 2 3 999999" >"$tmp/wild"
fails 1 "an id outside the vocabulary is an error" "$pleiades" generate -m "$model" --ids "$tmp/wild" -n 1
says "that names the file of ids" "wild: token id 999999, number 4"
fails 1 "a prompt longer than the context is refused before it is computed" "$pleiades" generate -m "$model" --ids "$tmp/ids" --ctx 4
says "with both numbers" "$(wc -w <"$tmp/ids" | tr -d ' ') tokens after 0 are past the context limit of 4"
fails 2 "no model is a usage error" "$pleiades" generate --ids "$tmp/ids"
