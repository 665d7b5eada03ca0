#!/usr/bin/env bash
# The web page in headless Chromium, before a coordinator with three machines, and before one that wants a key. Pictures
# of it are left in build/page/.
. "$(dirname "$0")/../harness/lib.sh"

browser=${CHROMIUM:-$(command -v chromium || command -v chromium-browser || command -v google-chrome || true)}
for tool in node npm; do
    command -v $tool >/dev/null 2>&1 || { skip "the web page" "no $tool here: make deps-ci"; exit 0; }
done
[ -n "$browser" ] || { skip "the web page" "no chromium here: make deps-ci (or set CHROMIUM)"; exit 0; }
# shellcheck source=tests/clients/install.sh
. tests/clients/install.sh || { skip "the web page" "its npm packages cannot be installed"; exit 0; }

pids=
start() { local log=$1; shift; "$@" >"$log" 2>&1 </dev/null & pids="$pids $!"; }
trap 'kill $pids 2>/dev/null; wait $pids 2>/dev/null; finish' EXIT
# What a log says behind a word, once it says it.
said() {
    for _ in $(seq 300); do
        grep -qF "$2" "$1" 2>/dev/null && { sed -n "s|.*$2||p" "$1" | head -n 1; return 0; }
        sleep 0.1
    done
    sed 's/^/#   /' "$1"
    return 1
}

model=$tmp/tiny.gguf
"$pleiades" synth -o "$model" >/dev/null 2>&1
start "$tmp/serve" "$pleiades" serve -m "$model" --port 0 --ctx 8192 --bind-nodes 127.0.0.1:0 --insecure --nodes 3 \
    --stages first=0-1,second=2-3,third=4-4 --name first
url=$(said "$tmp/serve" "endpoint at ")
nodes=$(said "$tmp/serve" "nodes join at " | sed 's|tcp://||')
for name in second third; do
    start "$tmp/$name" "$pleiades" node --join "$nodes" --insecure --name $name --bind 127.0.0.1 -m "$model" --no-measure
done
(umask 077; echo sesame >"$tmp/key")
start "$tmp/locked" "$pleiades" serve -m "$model" --port 0 --ctx 4096 --api-key-file "$tmp/key"
locked=$(said "$tmp/locked" "endpoint at ")
ok "three machines serve" said "$tmp/serve" "serving: 3 nodes"
ok "and one with a key" said "$tmp/locked" "serving: 1 node"

mkdir -p build/page
PAGE_URL=$url LOCKED_URL=$locked LOCKED_KEY=sesame CHROMIUM=$browser SHOTS=$PWD/build/page HOME=$tmp \
    timeout 540 node --test --test-reporter=./tests/clients/reporter.js tests/clients/page.test.js
status=$?
[ $status -eq 0 ] || failed "the browser tests end well (status $status; 124: too slow)"
ok "a picture was made" test -s build/page/page.png
