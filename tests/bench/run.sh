#!/usr/bin/env bash
# run.sh PROGRAM - the speed of this machine in one table: prompt lengths, context depths, sequences together.
# BENCH_MODEL=FILE measures your model; without it a synthetic one with Flash's true layers is written once (gigabytes).
set -euo pipefail
program=$1
preset=${BENCH_PRESET:-mid}
model=${BENCH_MODEL:-build/bench/$preset.gguf}
mkdir -p build/bench
if [ ! -e "$model" ]; then "$program" synth --preset "$preset" -o "$model"; fi
"$program" version
"$program" bench -m "$model" --prompt 128,512 --gen 16 --depth 0,4096 --seqs 1,4
