#!/usr/bin/env bash
# run.sh [PART...] - builds the CUDA backend and its tests with nothing but nvcc and a C compiler, and runs them on this machine's card.
# Parts: ops (every operation against the CPU backend), sanitize (the same, small, under compute-sanitizer), bench (single
# operations), model (expected logits of the tiny models), speed (prefill and decode of a whole model, one table); model and
# speed need a program, see below. Default: ops bench.
#
#     PLEIADES          the program for `model` and `speed` (default: build/release/pleiades, or dist/*/bin/pleiades)
#     MODEL             the model for `speed`; without it one is made in SCRATCH (default /dev/shm) and removed: LAYERS layers of
#                       flash-q2 (default 8: 17 GB; 43 is the whole model, 87 GB)
#     PLEIADES_VECTORS  folder with the expected values
#     JOBS              compile jobs
set -u
cd "$(dirname "$0")/../.."
out=build/cuda-tests
nvcc=$(command -v nvcc || echo /usr/local/cuda/bin/nvcc)
cuda_home=$(dirname "$(dirname "$(readlink -f "$nvcc")")")
jobs=${JOBS:-$(nproc)}
failed=0

c_flags="-std=gnu11 -O2 -g -ffp-contract=off -fno-math-errno -pthread -I. -D_GNU_SOURCE -DPLEIADES_CUDA=1"
nvcc_flags="-std=c++17 -O3 -lineinfo -fmad=false -I. -DPLEIADES_CUDA=1 -arch=${CUDA_ARCH:-native}"
avx2="-mavx2 -mfma -mf16c -O3"
avx512="$avx2 -mavx512f -mavx512bw -mavx512vl -mavx512dq -mavx512vnni -mavx512vbmi -mavx512bitalg -mavx512vbmi2"

sources="common/base/err.c common/base/rng.c common/base/mark.c common/model/dtype.c common/model/dtype_encode.c common/model/iq2xxs_tables.c
         kernels/kernels.c $(echo kernels/cpu/*.c kernels/cuda/*.cu tests/cuda/*.c)"

compile_one() {                                    # prints nothing unless something is wrong
    local source=$1 object=$out/${1//\//_}.o flags=$c_flags
    [ "$object" -nt "$source" ] && [ -z "$(find kernels common tests/cuda -newer "$object" \( -name '*.h' -o -name '*.cuh' -o -name '*.inc' \) -print -quit)" ] && return 0
    case $source in
    *.cu) "$nvcc" $nvcc_flags -c "$source" -o "$object"; return ;;
    *_avx2.c) flags="$flags $avx2" ;;
    *_avx512.c) flags="$flags $avx512" ;;
    esac
    gcc $flags -c "$source" -o "$object"
}

build() {
    mkdir -p $out
    export -f compile_one
    export out c_flags nvcc_flags avx2 avx512 nvcc
    echo $sources | tr ' ' '\n' | grep . | xargs -P "$jobs" -I{} bash -c 'compile_one {} || exit 255' || return 1
    local objects
    objects=$(for s in $sources; do echo "$out/${s//\//_}.o"; done)
    g++ -o $out/ops_test $objects -L"$cuda_home/lib64" -lcudart_static -lm -ldl -lrt -pthread
}

part() {                                           # part NAME COMMAND...: runs, and remembers a failure
    local name=$1 start=$SECONDS
    shift
    echo "=== $name"
    if "$@"; then echo "=== $name: fine ($((SECONDS - start)) s)"; else echo "=== $name: FAILED ($((SECONDS - start)) s)"; failed=1; fi
}

sanitize() {
    local tool
    for tool in memcheck racecheck initcheck; do
        echo "--- $tool"
        compute-sanitizer --tool $tool --error-exitcode 9 --print-limit 5 $out/ops_test --small 2>&1 | tail -n 12
        [ "${PIPESTATUS[0]}" -eq 0 ] || return 1
    done
}

speed() {
    local program=${PLEIADES:-$(ls -d build/release/pleiades dist/*/bin/pleiades 2>/dev/null | head -n 1)}
    local model=${MODEL:-} made=
    [ -x "$program" ] || { echo "SKIP no program (set PLEIADES)"; return 0; }
    if [ -z "$model" ]; then
        made=$(mktemp -d "${SCRATCH:-/dev/shm}/pleiades.XXXXXX") || return 1
        model=$made/model.gguf
        "$program" synth --preset flash-q2 --layers "${LAYERS:-8}" -o "$model" || { rm -rf "$made"; return 1; }
    fi
    {
        "$program" bench -m "$model" --backend cuda --chunk 4096 -n 0 -p 512,4096,16384,32768 &&
            "$program" bench -m "$model" --backend cuda --chunk 4096 -p 0 -n 64 -s 1,4,16,64 -d 2048 &&
            "$program" bench -m "$model" --backend cuda --chunk 4096 -p 0 -n 64 -s 1,16 -d 8192,32768
    } | grep -vE '^(machine|$)'
    local rc=${PIPESTATUS[0]}
    [ -z "$made" ] || rm -rf "$made"
    return "$rc"
}

nvidia-smi --query-gpu=name,memory.total,driver_version --format=csv,noheader
part build build
[ $failed = 0 ] || exit 1
for p in ${*:-ops bench}; do
    case $p in
    ops) part ops $out/ops_test ;;
    ops:*) part "$p" $out/ops_test "${p#ops:}" ;;
    bench) part bench $out/ops_test --bench ;;
    sanitize) part sanitize sanitize ;;
    model) part model bash tests/cuda/model.sh ;;
    speed) part speed speed ;;
    *) echo "unknown part $p"; exit 2 ;;
    esac
done
exit $failed
