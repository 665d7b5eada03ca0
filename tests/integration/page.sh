#!/usr/bin/env bash
# The web page in headless Chromium, before a coordinator with three machines, and before one that wants a key. Pictures
# of it are left in build/page/.
. "$(dirname "$0")/../harness/lib.sh"

. "$(dirname "$0")/../harness/clients.sh"

browser=${CHROMIUM:-$(command -v chromium || command -v chromium-browser || command -v google-chrome || true)}
[ -n "$browser" ] || { skip "the web page" "no chromium here: make deps-ci (or set CHROMIUM)"; exit 0; }
need "the web page" node npm

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
export PAGE_URL=$url LOCKED_URL=$locked LOCKED_KEY=sesame CHROMIUM=$browser SHOTS=$PWD/build/page
node_tests tests/clients/page.test.js
ok "a picture was made" test -s build/page/page.png
