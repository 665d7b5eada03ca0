#!/usr/bin/env bash
# `make check`: everything that must hold, and the counts as the last line ("N passed, N failed", maybe ", N skipped").
#
#     tests/run-check.sh [STEP...]     steps: build clang unit sim asan tsan fuzz tidy arm64 integration (all by default)
#
# Steps go on after a failure, so that one run shows everything that is wrong. What cannot run here is a loud SKIP.
set -u
cd "$(dirname "$0")/.." || exit 2
unset MAKEFLAGS MFLAGS MAKELEVEL                  # we may run below make; its job server is not ours
export LC_ALL=C

cuda=${CUDA:-auto} metal=${METAL:-auto}
jobs=$(getconf _NPROCESSORS_ONLN 2>/dev/null || echo 2)
steps=${*:-build clang unit sim asan tsan fuzz tidy arm64 integration}
results=build/check-results
mkdir -p build
rm -f $results

build=("${MAKE_PROGRAM:-make}" -j"$jobs" --no-print-directory CUDA="$cuda" METAL="$metal")

heading() { printf '\n== %s\n' "$*"; }
have() { command -v "$1" >/dev/null 2>&1; }

# The runner comes first: without it nothing can be counted.
release=$("${build[@]}" -s print-folder) || exit 2
runner=$release/tests/harness/runner
"${build[@]}" -s "$runner" || { echo "the test runner does not build"; echo "0 passed, 1 failed"; exit 1; }
run() { "$runner" -r $results "$@"; }
step() { local name=$1; shift; run -t 900 -c "$name" "$@"; }
# A build that fails is tried once more with one job: its error then stands at the end, and a compiler that was
# only out of memory beside its neighbour is no finding about the source.
build_step() {
    local name=$1
    shift
    # shellcheck disable=SC2016
    step "$name" bash -c '"$@" || { echo "failed; once more with one job:"; "$@" -j1; }' build "${build[@]}" "$@"
}
skip() { run -k "$1" "$2"; }

# Programs run as many at a time as there are processors: at least two, because most of them also wait, and at most
# eight. Those that take longest begin first, so that none of them is alone at the end.
at_once=$((jobs < 2 ? 2 : jobs > 8 ? 8 : jobs))
slowest="test_cluster sim test_model_bits test_service test_guide test_model_vectors test_model_mtp test_experts test_http
    test_sampler test_gguf_files test_stage test_synth test_fetch_run test_kv_cache test_links
    vectors.sh page.sh cluster_failure.sh cluster_stages.sh processors.sh netns.sh strangers.sh clients.sh"

# run_many OPTION... -- PROGRAM...
run_many() {
    local options=() first=() name program
    while [ "$1" != -- ]; do options+=("$1"); shift; done
    shift
    for name in $slowest; do
        for program in "$@"; do
            [ "${program##*/}" != "$name" ] || first+=("$program")
        done
    done
    for program in "$@"; do
        case " $(echo $slowest) " in *" ${program##*/} "*) ;; *) first+=("$program") ;; esac
    done
    run -j $at_once ${options[@]+"${options[@]}"} "${first[@]}"
}

unit_programs() { "${build[@]}" -s SAN="${1:-}" CROSS="${2:-}" print-unit-tests; }

check_unit() {
    heading "unit tests"
    build_step "unit tests build" tests || return
    # shellcheck disable=SC2046
    run_many -- $(unit_programs)
}

# Of unit test programs, those whose source speaks of threads, and not just of one, or of a whole service.
threaded() {
    local program
    for program in "$@"; do
        sed 's/n_threads = 1\>//; s/one_thread//' "tests/unit/$(basename "$program").c" | grep -q 'thread\|service_rig' &&
            echo "$program"
    done
}

starts() { "$@" -r /dev/null -s 2>/dev/null | grep -q ' passed'; }

check_sanitizer() {
    local san=$1 launcher='' programs
    heading "unit tests with $san"
    build_step "$san build" SAN="$san" tests tools || return
    # A sanitizer that cannot map its shadow memory on this kernel often can without address randomisation.
    local probe
    probe=$("${build[@]}" -s SAN="$san" print-folder)/tests/harness/runner
    if ! starts "$probe"; then
        launcher="setarch -R"
        starts setarch -R "$probe" || { skip "$san" "programs with this sanitizer do not start here"; return; }
    fi
    # The thread sanitizer has nothing to say about programs with one thread.
    programs=$(unit_programs "$san")
    [ "$san" != tsan ] || programs=$(threaded $programs)
    [ -n "$programs" ] || { skip "$san" "no unit test starts threads"; return; }
    # shellcheck disable=SC2086
    ASAN_OPTIONS=detect_stack_use_after_return=1 UBSAN_OPTIONS=print_stacktrace=1 TSAN_OPTIONS=halt_on_error=1 \
        run_many ${launcher:+-l "$launcher"} -- $programs
}

check_clang() {
    heading "clang"
    have clang || { skip "clang" "no clang here: make deps-ci"; return; }
    build_step "clang build without warnings" CC=clang CUDA=0 B=build/clang CFLAGS='-O0 -Wno-pass-failed' all tests
}

check_fuzz() {
    heading "fuzz corpora"
    local names name folder
    names=$("${build[@]}" -s print-fuzz)
    build_step "fuzz targets build (asan)" SAN=asan fuzz-replay || return
    folder=$("${build[@]}" -s SAN=asan print-folder)
    for name in $names; do step "fuzz corpus $name" "$folder/tests/fuzz/replay_$name" tests/fuzz/corpus/"$name"; done
}

# One thousand seeds, the planted mistakes and the marks; each is a line of its own.
check_sim() {
    heading "cluster simulation"
    build_step "simulation builds" "$release/tests/sim/sim" || return
    run -t 600 "$release/tests/sim/sim"
}

# Where both are wanted the simulation, which is one thread, runs beside the unit tests.
check_unit_and_sim() {
    heading "unit tests and cluster simulation"
    build_step "unit tests and simulation build" tests "$release/tests/sim/sim" || return
    # shellcheck disable=SC2046
    run_many -t 600 -- $(unit_programs) "$release/tests/sim/sim"
}

check_tidy() {
    heading "tidy"
    "${build[@]}" -s tools || return
    step "tidy catches planted mistakes" "$release/tests/tidy/tidy" --self-test
    step "tidy finds nothing" "$release/tests/tidy/tidy" .
}

check_arm64() {
    heading "arm64"
    local root=build/root-aarch64 tool
    for tool in aarch64-linux-gnu-gcc qemu-aarch64; do
        have $tool || { skip "arm64" "no $tool here: make deps-ci"; return; }
    done
    [ -e $root/.complete ] || { skip "arm64" "no arm64 libraries in $root: make deps-ci"; return; }
    build_step "arm64 build" CROSS=aarch64 all tests || return
    # test_model_bits would emulate for an hour, test_model_vectors for minutes; integration/processors.sh compares arm64
    # logits with ours instead, bit for bit.
    # test_cluster and test_service are many threads that wait for one another, test_guide fills thousands of answers:
    # minutes each.
    # shellcheck disable=SC2046
    run_many -t 900 -l "qemu-aarch64 -L $root" -- $(unit_programs "" aarch64 | tr ' ' '\n' | grep -v '/test_model_bits$\|/test_model_vectors$\|/test_cluster$\|/test_service$\|/test_guide\(_tools\)\?$')
}

check_integration() {
    heading "integration"
    build_step "release build" all "$release/tests/tools/scripted-serve" || return
    export PLEIADES="$PWD/$release/pleiades"
    local scripts
    scripts=$(ls tests/integration/*.sh 2>/dev/null)
    [ -n "$scripts" ] || return
    # shellcheck disable=SC2086
    run_many -t 600 -- $scripts
}

case " $steps " in *" unit sim "*) steps=${steps/unit sim/unit_and_sim} ;; esac
for name in $steps; do
    case $name in
    build) heading "build"; build_step "release build without warnings" all tests ;;
    unit | clang | sim | unit_and_sim | fuzz | tidy | arm64 | integration) "check_$name" ;;
    asan | tsan) check_sanitizer "$name" ;;
    *) echo "no step '$name'"; exit 2 ;;
    esac
done

echo
run -s
