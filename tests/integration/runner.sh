#!/usr/bin/env bash
# The runner of the tests must catch every way in which a test can go wrong; here are planted ones.
. "$(dirname "$0")/../harness/lib.sh"

runner=$(dirname "$pleiades")/tests/harness/runner
[ -x "$runner" ] || { skip "the runner" "not built: $runner"; exit 0; }

# plant NAME TEXT: a script whose run the runner must judge.
plant() { printf '#!/bin/bash\n%s\n' "$2" >"$tmp/$1.sh"; }
plant good 'echo "ok - a"; echo "ok 2 - b"'
plant bad 'echo "ok - a"; echo "not ok - b"; exit 1'
plant lying 'echo "not ok - b"; exit 0'
plant silent 'exit 0'
plant status 'echo "ok - a"; exit 3'
plant killed 'echo "ok - a"; kill -SEGV $$'
plant slow 'echo "ok - a"; sleep 60'
plant leaves 'echo "ok - a"; sleep 60 & exit 0'
plant skips 'echo "skip - c: no such machine"; echo "not ok 2 # SKIP d"; echo "ok 3 # SKIP e"'
plant loud 'i=0; while [ $i -lt 3000 ]; do echo "line $i"; i=$((i + 1)); done; echo "not ok - z"'

ok "passes are passes" "$runner" -r "$tmp/r" "$tmp/good.sh"
fails 1 "a failed test is a failure" "$runner" -r "$tmp/r" "$tmp/bad.sh"
says "and is shown" "not ok - b"
fails 1 "also when the program exits with 0" "$runner" -r "$tmp/r" "$tmp/lying.sh"
fails 1 "no test at all is a failure" "$runner" -r "$tmp/r" "$tmp/silent.sh"
says "with its reason" "reported no test"
fails 1 "an exit status without a failed test is a failure" "$runner" -r "$tmp/r" "$tmp/status.sh"
fails 1 "a crash is a failure" "$runner" -r "$tmp/r" "$tmp/killed.sh"
says "with its signal" "killed by signal 11"
fails 1 "a deadline holds" "$runner" -t 1 -r "$tmp/r" "$tmp/slow.sh"
says "with its reason, too" "ran past its deadline"
fails 1 "a process left behind is noticed" "$runner" -t 1 -r "$tmp/r" "$tmp/leaves.sh"
ok "skipped tests do not fail" "$runner" -r "$tmp/r" "$tmp/skips.sh"
says "but are counted" "3 skipped"
says "and say why" "no such machine"
fails 1 "long output is cut, its end is shown" "$runner" -r "$tmp/r" "$tmp/loud.sh"
says "the end" "| line 2999"
same "the start is not" 0 "$(grep -c 'line 10$' "$tmp/output")"
ok "a step that works" "$runner" -r "$tmp/r" -c "a step" true
fails 1 "a step that does not" "$runner" -r "$tmp/r" -c "a step" false
fails 1 "a step that is not there" "$runner" -r "$tmp/r" -c "a step" "$tmp/nothing"
ok "a launcher is put before each program" "$runner" -r "$tmp/r" -l "env X=1 bash" "$tmp/good.sh"
ok "a skipped step" "$runner" -r "$tmp/r" -k "a step" "no reason"

# Each waits for the other.
plant first "touch $tmp/first; until [ -e $tmp/second ]; do sleep 0.05; done; echo 'ok - a'"
plant second "touch $tmp/second; until [ -e $tmp/first ]; do sleep 0.05; done; echo 'ok - a'"
fails 1 "one at a time, and two that need each other are late" "$runner" -t 1 "$tmp/first.sh" "$tmp/good.sh"
rm -f "$tmp/first" "$tmp/second"
ok "two at a time run at the same time" "$runner" -j 2 -t 20 "$tmp/first.sh" "$tmp/second.sh" "$tmp/good.sh"
same "and each has its line" 3 "$(grep -c '^ok ' "$tmp/output")"
fails 1 "a failure among others is a failure" "$runner" -j 4 "$tmp/good.sh" "$tmp/bad.sh" "$tmp/skips.sh"
fails 1 "a deadline holds for each" "$runner" -j 3 -t 1 "$tmp/slow.sh" "$tmp/leaves.sh" "$tmp/good.sh"
same "and for those alone that are late" 1 "$(grep -c '^ok ' "$tmp/output")"
fails 2 "none at a time is refused" "$runner" -j 0 "$tmp/good.sh"

fails 1 "the totals fail when something failed" "$runner" -r "$tmp/r" -s
same "and end with the counts" "10 passed, 10 failed, 4 skipped" "$(tail -n 1 "$tmp/output")"
"$runner" -r "$tmp/well" "$tmp/good.sh" >/dev/null
ok "the totals are well when all is well" "$runner" -r "$tmp/well" -s
same "without skips they say nothing of them" "2 passed, 0 failed" "$(tail -n 1 "$tmp/output")"
fails 1 "nothing counted is not well" "$runner" -r "$tmp/never" -s
