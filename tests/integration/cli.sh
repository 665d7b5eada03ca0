#!/usr/bin/env bash
# The front of the program: dispatch, help, exit statuses, version.
. "$(dirname "$0")/../harness/lib.sh"

fails 2 "without a command it lists them" "$pleiades"
says "the list says how to call it" "Usage: pleiades COMMAND"
fails 2 "an unknown command is a usage error" "$pleiades" vresion
says "and the nearest one is named" "did you mean 'version'"
fails 2 "nothing is near nonsense" "$pleiades" qqqqqqqq
says "then the list is named" "'pleiades help' lists them"
ok "help works" "$pleiades" help
ok "help works as an option" "$pleiades" --help
ok "help explains a command" "$pleiades" help version
says "with its options" "--json"
fails 2 "help knows unknown commands" "$pleiades" help nothing
fails 2 "an unknown option is a usage error" "$pleiades" version --jsn
says "and the nearest one is named, too" "did you mean --json"
fails 2 "PLEIADES_LOG is checked" env PLEIADES_LOG=loud "$pleiades" version

# Every command in the list answers --help, and its usage line names it.
for name in $("$pleiades" help | sed -n 's/^  \([a-z][a-z-]*\) .*/\1/p'); do
    "$pleiades" "$name" --help >"$tmp/output" 2>&1
    same "$name --help begins with its usage" "Usage: pleiades $name" "$(head -n 1 "$tmp/output" | cut -d' ' -f1-3)"
done

ok "--version is one line" "$pleiades" --version
same "with a number" 1 "$(grep -c '^pleiades [0-9]*\.[0-9]*\.[0-9]* (' "$tmp/output")"
ok "version has text" "$pleiades" version
says "that names the CPU path" "  cpu "
"$pleiades" version --json >"$tmp/version.json"
if command -v python3 >/dev/null 2>&1; then
    same "version --json has all parts" "backends commit compiler config libraries system version" "$(python3 -c '
import json, sys
v = json.load(open(sys.argv[1]))
assert set(v["backends"]) >= {"cpu", "cuda", "metal"}
print(" ".join(sorted(v)))' "$tmp/version.json")"
else
    skip "version --json is JSON" "no python3 here"
fi
if [ -e /dev/full ]; then fails 1 "a full disk is noticed" bash -c '"$1" version >/dev/full' - "$pleiades"; fi
