#!/usr/bin/env bash
# `make demo`: from a fresh clone to generated text on this machine, with the time of each step.
#
#     DEMO_PRESET=mid make demo     the true layers and vocabulary of Flash, four of them (gigabytes) instead of a tiny model
#     DEMO_MODEL=FILE make demo     your own GGUF instead of a synthetic one
#     DEMO_DEPS=0 make demo         install nothing
set -euo pipefail
cd "$(dirname "$0")/.."
unset MAKEFLAGS MFLAGS MAKELEVEL

preset=${DEMO_PRESET:-tiny}
model=${DEMO_MODEL:-build/demo/$preset.gguf}
jobs=$(getconf _NPROCESSORS_ONLN 2>/dev/null || echo 2)
make=("${MAKE_PROGRAM:-make}" -j"$jobs" --no-print-directory CUDA="${CUDA:-auto}" METAL="${METAL:-auto}")
summary=''

# timed "what" COMMAND...: runs it and remembers how long it took. SECONDS counts whole seconds on every bash.
timed() {
    local what=$1 start=$SECONDS
    shift
    printf '\n== %s\n' "$what"
    "$@"
    summary="$summary$(printf '%5d s  %s' $((SECONDS - start)) "$what")
"
}

ensure_deps() {
    if [ "${DEMO_DEPS:-1}" = 0 ]; then echo "left out (DEMO_DEPS=0)"; else sh deploy/deps.sh; fi
}

build() { "${make[@]}" -s all | tail -n 3; }

write_model() {
    if [ -e "$model" ]; then echo "$model is there"; return; fi
    mkdir -p "$(dirname "$model")"
    "$pleiades" synth --preset "$preset" -o "$model"
}

look_inside() { "$pleiades" inspect "$model" | sed -n 1,15p; }

talk() { "$pleiades" run -m "$model" -p 'Which stars are the Pleiades?' -n 32 --no-think; }

# One line of ids; the rest are switches that must not change a single one of them.
ids() {
    local name=$1
    shift
    printf '  %-34s ' "$name"
    "$pleiades" generate -m "$model" --ids build/demo/prompt -n 12 "$@" | tr '\n' ' ' | tee build/demo/ids
    echo
    [ -e build/demo/first ] || cp build/demo/ids build/demo/first
    cmp -s build/demo/ids build/demo/first || { echo "demo: these tokens differ from the first line"; exit 1; }
}

same_tokens() {
    mkdir -p build/demo
    rm -f build/demo/first
    printf 'The same tokens, whatever the threads, the chunks and the cuts.' |
        "$pleiades" tokenize -m "$model" >build/demo/prompt
    ids "all threads"
    ids "one thread" --threads 1
    ids "the prompt in pieces of 3" --chunk 3
    ids "the layers as three slices" --cuts 1,3
}

measure() { "$pleiades" bench -m "$model" -p 128 -n 16; }

timed "dependencies" ensure_deps
timed "build" build
pleiades=$("${make[@]}" -s print-folder)/pleiades
"$pleiades" version
timed "model ($model)" write_model
timed "what is in it" look_inside
timed "an answer" talk
timed "the same tokens, four ways" same_tokens
timed "speed" measure

printf '\n%s' "$summary"
[ -n "${DEMO_MODEL:-}" ] || echo "A synthetic model has the shapes and types of the real one and random weights: it says nothing sensible."
