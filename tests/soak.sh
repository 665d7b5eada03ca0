#!/usr/bin/env bash
# soak.sh PROGRAM - for SOAK_SECONDS (default one hour): the same prompt and seed again and again, each time with other
# threads, chunks and cuts. Every answer must equal the first one of its seed. Stops at the first difference and says how to
# repeat it. SOAK_MODEL=FILE takes another model than a tiny synthetic one.
set -euo pipefail
program=$1
seconds=${SOAK_SECONDS:-3600}
model=${SOAK_MODEL:-build/soak/tiny.gguf}
mkdir -p build/soak
[ -e "$model" ] || "$program" synth -o "$model"
printf 'Nothing is lost, and nothing is wrong, for as long as you care to look.' | "$program" tokenize -m "$model" >build/soak/prompt
rm -f build/soak/first-*

cores=$(getconf _NPROCESSORS_ONLN 2>/dev/null || echo 2)
RANDOM=1
rounds=0
while [ $SECONDS -lt "$seconds" ]; do
    seed=$((RANDOM % 8))
    how=(--threads $((1 + RANDOM % cores)) --chunk $((1 + RANDOM % 24)))
    [ $((RANDOM % 2)) -eq 0 ] || how=("${how[@]}" --cuts $((1 + RANDOM % 3)))
    command=("$program" generate -m "$model" --ids build/soak/prompt -n 40 --temp 1 --seed $seed "${how[@]}")
    "${command[@]}" >build/soak/ids
    [ -e build/soak/first-$seed ] || cp build/soak/ids build/soak/first-$seed
    cmp build/soak/ids build/soak/first-$seed || { echo "soak: differs in round $rounds: ${command[*]}"; exit 1; }
    rounds=$((rounds + 1))
    [ $((rounds % 100)) -ne 0 ] || echo "$rounds rounds, $SECONDS s"
done
echo "soak: $rounds rounds in $SECONDS s, no answer differed"
