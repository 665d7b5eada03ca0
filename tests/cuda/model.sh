#!/usr/bin/env bash
# model.sh - whole models on this machine's card: expected logits of the tiny models, then the same bits for chunks and cuts.
#
# Expected values: every prompt of every model and mode, at f32 precision, judged by the vectors' own score.py. Bits: logits of
# one prompt at fast precision, computed in other chunks and with the layers cut elsewhere, must be the same file.
set -u
cd "$(dirname "$0")/../.."
program=${PLEIADES:-$(ls -d build/release/pleiades dist/*/bin/pleiades 2>/dev/null | head -n 1)}
vectors=${PLEIADES_VECTORS:-../shared/vectors}/model
backend=${BACKEND:-cuda}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
failed=0

[ -x "$program" ] || { echo "SKIP no program (set PLEIADES)"; exit 0; }
[ -d "$vectors" ] || { echo "SKIP no expected values in $vectors (set PLEIADES_VECTORS)"; exit 0; }
"$program" version | head -n 4

# The prompts of a .vec file as N.prompt, and how many positions have logits as N.last.
write_prompts() {
    python3 - "$vectors" "$1" "$2" <<'PY'
import sys
sys.path.insert(0, sys.argv[1])
sys.dont_write_bytecode = True
import vecfile
v = (vecfile.load if hasattr(vecfile, "load") else vecfile.read)(sys.argv[2])
for k in [k for k in v if k.endswith(".tokens")]:
    p = k[:-7]
    open("%s/%s.prompt" % (sys.argv[3], p), "w").write(" ".join(str(t) for t in v[k][1]))
    open("%s/%s.last" % (sys.argv[3], p), "w").write(str(len(v[p + ".positions"][1])))
PY
}

for model in tiny-f32 tiny-q8 tiny-q2; do
    for mode in exact official official-f16; do
        [ -f "$vectors/$model.$mode.vec" ] || continue
        rm -rf "$work/run" && mkdir "$work/run"
        write_prompts "$vectors/$model.$mode.vec" "$work/run" || { failed=1; continue; }
        for ids in "$work"/run/*.prompt; do
            p=${ids%.prompt}
            "$program" logits -m "$vectors/$model.gguf" --backend "$backend" --precision f32 --numerics $mode --ids "$ids" \
                --last "$(cat "$p.last")" -o "$p.f32" || failed=1
        done
        echo "--- $model $mode"
        (cd "$vectors" && PYTHONDONTWRITEBYTECODE=1 python3 score.py $model.$mode.vec "$work/run") || failed=1
    done
done

same_bits() {                                      # same_bits NAME OPTIONS...: against the first run of this model
    local name=$1
    shift
    "$program" logits -m "$vectors/$model.gguf" --backend "$backend" --ids "$work/run/p700.prompt" -o "$work/$name.f32" "$@" || failed=1
    if cmp -s "$work/$name.f32" "$work/whole.f32"; then echo "$model: $name: same bits"; else echo "$model: $name: OTHER BITS"; failed=1; fi
}

for model in tiny-f32 tiny-q8 tiny-q2; do
    "$program" logits -m "$vectors/$model.gguf" --backend "$backend" --ids "$work/run/p700.prompt" -o "$work/whole.f32" --chunk 1024 || failed=1
    same_bits again --chunk 1024
    same_bits chunks-of-1 --chunk 1
    same_bits chunks-of-50 --chunk 50
    same_bits chunks-of-129 --chunk 129
    same_bits cut-at-2 --cuts 2 --chunk 300
done
exit $failed
