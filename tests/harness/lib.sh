# Sourced by the scripts in tests/integration: `ok`, `same`, `fails` print one TAP line each; the runner counts them.
#
#     . "$(dirname "$0")/../harness/lib.sh"
#     ok "a sentence" COMMAND WORD...          passed when COMMAND exits with 0; its output is shown if not
#     fails STATUS "a sentence" COMMAND...     passed when COMMAND exits with STATUS
#     same "a sentence" EXPECTED ACTUAL        passed when the two texts are equal
#     skip "a sentence" "why"                  cannot be tested here
#
# $pleiades is the program, $tmp a folder that goes away at the end, the working folder is the repository's. After any
# failure the script exits with 1.
set -u
cd "$(dirname "${BASH_SOURCE[0]}")/../.." || exit 1
pleiades=${PLEIADES:-$PWD/build/release/pleiades}
tmp=$(mktemp -d "${TMPDIR:-/tmp}/pleiades-test.XXXXXX") || exit 1
failures=0
finish() { local status=$?; rm -rf "$tmp"; [ $failures -eq 0 ] || status=1; exit $status; }
trap finish EXIT
trap 'exit 1' INT TERM HUP

passed() { printf 'ok - %s\n' "$1"; }
failed() { printf 'not ok - %s\n' "$1"; failures=$((failures + 1)); }
skip() { printf 'skip - %s: %s\n' "$1" "$2"; }

fails() {
    local want=$1 name=$2 status=0
    shift 2
    "$@" >"$tmp/output" 2>&1 </dev/null || status=$?
    if [ $status -eq "$want" ]; then passed "$name"; return; fi
    failed "$name"
    printf '#   status %s, wanted %s: %s\n' $status "$want" "$*"
    tail -n 20 "$tmp/output" | sed 's/^/#   /'
}

ok() { fails 0 "$@"; }

same() {
    if [ "$2" = "$3" ]; then passed "$1"; return; fi
    failed "$1"
    printf '#   expected: %s\n#   actual:   %s\n' "$2" "$3" | head -n 40
}

# The last command's output, as left by ok and fails, contains a text.
says() {
    if grep -qF -- "$2" "$tmp/output"; then passed "$1"; return; fi
    failed "$1"
    printf '#   not said: %s\n' "$2"
    tail -n 20 "$tmp/output" | sed 's/^/#   /'
}
