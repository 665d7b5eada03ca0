#!/bin/sh
# run.sh SECONDS NAME... - libFuzzer for SECONDS on each target. New inputs stay in build/fuzz/found/NAME; an input that
# breaks something is written to build/fuzz/ and belongs, once mended, into tests/fuzz/corpus/NAME.
set -eu
seconds=$1
shift
for name in "$@"; do
    mkdir -p "build/fuzz/found/$name"
    echo "== $name, $seconds s"
    "build/fuzz/fuzz_$name" -max_total_time="$seconds" -print_final_stats=1 -verbosity=0 -timeout=10 \
        -artifact_prefix="build/fuzz/$name-" "build/fuzz/found/$name" "tests/fuzz/corpus/$name" 2>&1 |
        grep -E 'ERROR|SUMMARY|Test unit|stat::number_of_executed_units|CHECK failed' || true
    # The pipe hid the status: an artefact is the failure.
    if ls build/fuzz/"$name"-* >/dev/null 2>&1; then
        echo "fuzz: $name failed, see build/fuzz/$name-*"
        exit 1
    fi
done
