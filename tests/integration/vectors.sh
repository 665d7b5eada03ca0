#!/usr/bin/env bash
# The golden vectors through the command line: logits and greedy continuations of three models in three numerics.
#
# This machine's own instruction set runs every prompt, and the continuations of two; the others run the short prompts.
# PLEIADES_TEST_EFFORT=full: everything with every instruction set.
. "$(dirname "$0")/../harness/lib.sh"
vectors=${PLEIADES_VECTORS:-../shared/vectors}/model
score="python3 tests/vectors/score.py"
[ -e "$vectors/tiny-q8.exact.vec" ] || { skip "golden vectors" "none in $vectors (set PLEIADES_VECTORS)"; exit; }
command -v python3 >/dev/null 2>&1 || { skip "golden vectors" "no python3 here"; exit; }

in_use() { "$pleiades" version | sed -n 's/^ *cpu  *\([a-z0-9]*\)$/\1/p'; }
best=$(in_use)
run() { PLEIADES_SIMD=$table "$pleiades" "$@" --backend cpu --threads 1; }

# prompt MODEL MODE PROMPT ROWS: the logits, and the continuation when $continued names the prompt.
prompt() {
    local model=$1 mode=$2 name=$3 vec=$vectors/$1.$2.vec ids=
    case " $continued " in *" $name "*) ids=yes ;; esac
    $score "$vec" --tokens "$name" >"$tmp/ids"
    rm -f "$tmp/logits" "$tmp/new"
    run logits -m "$vectors/$model.gguf" --ids "$tmp/ids" -o "$tmp/logits" --last "$4" --numerics "$mode" --precision f32 2>"$tmp/error" ||
        { failed "$table $model $mode $name"; sed 's/^/#   /' "$tmp/error"; return; }
    [ -z "$ids" ] || run generate -m "$vectors/$model.gguf" --ids "$tmp/ids" -n 64 --numerics "$mode" --precision f32 >"$tmp/new" 2>>"$tmp/error"
    # shellcheck disable=SC2086
    ok "$table $model $mode $name" $score "$vec" "$name" "$tmp/logits" ${ids:+"$tmp/new"}
}

# all LONGEST: every prompt of at most so many tokens.
all() {
    local model mode name rows
    for model in tiny-f32 tiny-q8 tiny-q2; do
        for mode in exact official official-f16; do
            while read -r name rows; do
                [ "${name#p}" -gt "$1" ] || prompt $model $mode "$name" "$rows"
            done < <($score "$vectors/$model.$mode.vec" --prompts)
        done
    done
}

table=$best longest=37
continued="p5 p200"
[ "${PLEIADES_TEST_EFFORT:-}" != full ] || { longest=700; continued="p1 p5 p37 p200 p700"; }
all 700
[ "${PLEIADES_TEST_EFFORT:-}" = full ] || continued=
for table in avx512 avx2 neon i8mm generic; do
    [ $table != "$best" ] || continue
    [ "$(PLEIADES_SIMD=$table in_use)" = $table ] || continue          # not for this processor
    all $longest
done

# The scorer itself: a wrong row, a missing row, a wrong and a short continuation.
table=$best continued=
prompt tiny-q8 exact p5 5
python3 - "$tmp/logits" "$tmp/bent" <<'END'
import struct, sys
data = bytearray(open(sys.argv[1], "rb").read())
value, = struct.unpack_from("<f", data, 4 * 700)
struct.pack_into("<f", data, 4 * 700, value + 3e-4)
open(sys.argv[2], "wb").write(data)
END
vec=$vectors/tiny-q8.exact.vec
fails 1 "the scorer sees one logit that is off by 3e-4" $score "$vec" p5 "$tmp/bent"
head -c 2560 "$tmp/logits" >"$tmp/bent"
fails 1 "the scorer sees missing rows" $score "$vec" p5 "$tmp/bent"
run generate -m "$vectors/tiny-q8.gguf" --ids "$tmp/ids" -n 64 --numerics exact --precision f32 >"$tmp/new"
ok "the scorer takes the right continuation" $score "$vec" p5 - "$tmp/new"
awk '{ $9 = $9 == 3 ? 4 : 3; print }' "$tmp/new" >"$tmp/bent"
fails 1 "the scorer sees a wrong token" $score "$vec" p5 - "$tmp/bent"
cut -d' ' -f1-9 "$tmp/new" >"$tmp/bent"
fails 1 "the scorer sees a continuation that ends early" $score "$vec" p5 - "$tmp/bent"
