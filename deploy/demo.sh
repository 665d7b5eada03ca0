#!/usr/bin/env bash
# `make demo`: from a fresh clone to generated text on this machine, alone and as a cluster of a coordinator and three
# nodes, with the time of each step.
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

# ---- the cluster: four processes on loopback that trust each other by keys ----

folder=build/demo
processes=''
end_processes() {
    local p
    for p in $processes; do kill "$p" 2>/dev/null || true; done
    wait 2>/dev/null || true
}
trap end_processes EXIT
trap 'exit 1' INT TERM

# until "what" COMMAND...: at most a minute.
until_so() {
    local what=$1 tries=600
    shift
    until "$@" >/dev/null 2>&1; do
        tries=$((tries - 1))
        [ $tries -gt 0 ] || { echo "demo: $what: not within a minute"; tail -n 5 $folder/*.log; exit 1; }
        sleep 0.1
    done
}
serving() { "$pleiades" status --url "$url" --json | grep -q '"state": "serving"'; }
layers() { "$pleiades" inspect "$model" --json 2>/dev/null | sed -n 's/.*"n_layer": *\([0-9]*\).*/\1/p' | head -n 1; }

start_cluster() {
    local n a b name
    rm -rf $folder/keys $folder/*.log $folder/*.key
    "$pleiades" keys init --out $folder/keys >/dev/null
    n=$(layers)
    a=$(((${n:-5} + 2) / 3)) b=$((2 * a))
    local plan="one=0-$((a - 1)),two=$a-$((b - 1)),three=$b-$((${n:-5} - 1))"
    "$pleiades" serve -m "$model" --port 0 --ctx 4096 --no-local-node --bind-nodes 127.0.0.1:0 --key $folder/keys \
        --nodes 3 --stages "$plan" 2>$folder/serve.log &
    processes="$processes $!"
    until_so "the coordinator" grep -q 'nodes join at' $folder/serve.log
    url=$(sed -n 's/^endpoint at \([^ ]*\).*/\1/p' $folder/serve.log)
    local address
    address=$(sed -n 's|^nodes join at tcp://||p' $folder/serve.log)
    for name in one two three; do
        (umask 077 && "$pleiades" keys invite --keys $folder/keys --address "$address" --once >$folder/$name.key)
        "$pleiades" node --key $folder/$name.key --name $name --bind 127.0.0.1 -m "$model" -t 1 2>$folder/$name.log &
        processes="$processes $!"
    done
    until_so "three nodes" serving
    echo "a coordinator and three nodes: $plan, every link encrypted"
}

ask_cluster() {
    "$pleiades" run --url "$url" -p 'Which stars are the Pleiades?' -n 32 --no-think
    if command -v curl >/dev/null; then
        echo 'the same through the API, POST /v1/chat/completions:'
        curl -s "$url/v1/chat/completions" -H 'Content-Type: application/json' \
            -d '{"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 16, "temperature": 0}' | cut -c 1-400
        echo
    fi
}

same_in_cluster() {
    printf '  %-34s ' "three nodes"
    "$pleiades" generate --cluster "$url" --ids $folder/prompt -n 12 | tr '\n' ' ' | tee $folder/ids
    echo
    cmp -s $folder/ids $folder/first || { echo "demo: these tokens differ from those of one process"; exit 1; }
}

where_time_goes() {
    "$pleiades" generate --cluster "$url" --ids $folder/prompt -n 200 >/dev/null
    sleep 1
    "$pleiades" status --url "$url"
}

timed "dependencies" ensure_deps
timed "build" build
pleiades=$("${make[@]}" -s print-folder)/pleiades
"$pleiades" version
timed "model ($model)" write_model
timed "what is in it" look_inside
timed "an answer" talk
timed "the same tokens, four ways" same_tokens
timed "speed" measure
timed "a cluster on this machine" start_cluster
timed "an answer of the cluster" ask_cluster
timed "the same tokens as in one process" same_in_cluster
timed "where the time goes" where_time_goes

printf '\n%s' "$summary"
[ -n "${DEMO_MODEL:-}" ] || echo "A synthetic model has the shapes and types of the real one and random weights: it says nothing sensible."
