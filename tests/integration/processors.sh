#!/usr/bin/env bash
# The same model bytes and the same logits, bit for bit, from every instruction set that can run here: those of this
# processor ($PLEIADES_SIMD), and arm64 under qemu when its build is there (`make CROSS=aarch64`).
. "$(dirname "$0")/../harness/lib.sh"

model=$tmp/tiny.gguf
"$pleiades" synth -o "$model" 2>/dev/null
echo 'eleven tokens, more or less, of any kind' | "$pleiades" tokenize -m "$model" >"$tmp/ids"
ways="official:fast official:f32 exact:fast exact:f32"

# logits PROGRAM-WORDS... -- FILE WAY
logits() {
    local program=()
    while [ "$1" != -- ]; do program=(${program[@]+"${program[@]}"} "$1"); shift; done
    "${program[@]}" logits -m "$model" --ids "$tmp/ids" -o "$2" --numerics "${3%:*}" --precision "${3#*:}" 2>"$tmp/error"
}

compare() {
    local name=$1 way
    shift
    for way in $ways; do
        logits "$@" -- "$tmp/other" "$way"
        ok "$name gives the same bits ($way)" cmp "$tmp/want.$way" "$tmp/other"
    done
}

for way in $ways; do logits "$pleiades" -- "$tmp/want.$way" "$way"; done
chosen=$("$pleiades" version | sed -n 's/^  cpu  *//p')
for simd in $("$pleiades" version | sed -n 's/^  cpu_paths *//p'); do
    [ "$simd" != "$chosen" ] || continue
    if [ "$(PLEIADES_SIMD=$simd "$pleiades" version | sed -n 's/^  cpu  *//p')" = "$simd" ]; then
        compare "$simd" env PLEIADES_SIMD="$simd" "$pleiades"
    else
        skip "$simd" "this processor does not have it"
    fi
done

arm64=build/release-aarch64/pleiades
if [ "$(uname -m)" != x86_64 ] || [ ! -x $arm64 ] || ! command -v qemu-aarch64 >/dev/null 2>&1; then
    skip "arm64" "no build in $arm64 or no qemu-aarch64"
    exit
fi
run_arm64() { qemu-aarch64 -L build/root-aarch64 $arm64 "$@"; }
ok "synth under arm64" run_arm64 synth -o "$tmp/arm64.gguf"
ok "writes the same bytes" cmp "$model" "$tmp/arm64.gguf"
for simd in i8mm neon generic; do
    if [ "$(PLEIADES_SIMD=$simd run_arm64 version | sed -n 's/^  cpu  *//p')" = $simd ]; then
        compare "arm64 $simd" env PLEIADES_SIMD=$simd qemu-aarch64 -L build/root-aarch64 $arm64
    else
        skip "arm64 $simd" "this qemu does not have it"
    fi
done
