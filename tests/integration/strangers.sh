#!/usr/bin/env bash
# Others at the ports of a cluster: whoever has no key, a wrong one, or does not even speak our protocol is refused and
# logged once; who is served does not notice.
. "$(dirname "$0")/../harness/lib.sh"
. "$(dirname "$0")/../harness/cluster.sh"

command -v python3 >/dev/null 2>&1 || { skip "strangers" "no python3 here"; exit 0; }
"$pleiades" version | grep -q 'curve *yes' || { skip "strangers" "this zmq cannot encrypt"; exit 0; }

model=$tmp/tiny.gguf
"$pleiades" synth -o "$model" >"$tmp/synth.log" 2>&1 || { failed "synth writes a model"; exit 1; }
printf 'Closed by default.' | "$pleiades" tokenize -m "$model" >"$tmp/ids"
want=$("$pleiades" generate -m "$model" --ids "$tmp/ids" -n 16 --threads 1 2>/dev/null)
served() { same "$1" "$want" "$(ask "$tmp/ids" -n 16 2>&1)"; }
visit() { python3 tests/integration/stranger.py "$1" "$2" 2>"$tmp/stranger.log"; }
port_of() { sed -n 's|.* listens at tcp://[^ ]*:\([0-9]*\).*|\1|p' "$tmp/$1.log" | head -n 1; }
log_lines() { wc -l <"$tmp/$1.log" | tr -d ' '; }
# Lines about strangers; what a cluster under load says of itself does not count.
refusals() { cat "$tmp/boss.log" "$tmp/a.log" | grep -c 'refused\|dropped'; }
invite() { (umask 077; "$pleiades" keys invite --keys "$1" --address "$nodes_at" "${@:3}" >"$tmp/$2.key" 2>"$tmp/keys.log"); }

# ---- keys ----
ok "keys init" "$pleiades" keys init --out "$tmp/keys"
fails 1 "a second keys init changes nothing" "$pleiades" keys init --out "$tmp/keys"
same "the keys are for their owner alone" "600 600" \
    "$(echo $(ls -l "$tmp/keys" | awk '$1 == "-rw-------" { print 600 }'))"
serve boss -m "$model" --ctx 1024 --no-local-node --bind-nodes 127.0.0.1:0 --key "$tmp/keys" --nodes 2 --stages a=0-1,b=2-4
invite "$tmp/keys" a --once --name for-a
invite "$tmp/keys" b --once --name for-b
cp "$tmp/a.key" "$tmp/copied.key"
chmod 600 "$tmp/copied.key"
cp "$tmp/a.key" "$tmp/open.key"
chmod 644 "$tmp/open.key"
fails 1 "a key file that others can read is refused" "$pleiades" node --key "$tmp/open.key" -m "$model" --name x
says "with the remedy" "chmod 600"
start a node --name a --bind 127.0.0.1 --no-measure -t 1 -m "$model" --memory 1G --key "$tmp/a.key"
start b node --name b --bind 127.0.0.1 --no-measure -t 1 -m "$model" --memory 1G --key "$tmp/b.key"
ok "two nodes join by one-time tokens" wait_for serving
served "they serve"
same "the tokens are used up" "a machine b machine" \
    "$(echo $("$pleiades" keys list --keys "$tmp/keys" | awk 'NR > 1 { print $1, $2 }' | sort))"
same "no secret in a process list or a log" 0 \
    "$(ps -ww -o args= -p "$(pid boss),$(pid a),$(pid b)" | cat - "$tmp"/*.log | grep -c 'pleiades1:')"

# ---- who comes ----
nodes_port=${nodes_at##*:}
before=$(refusals)
for what in http noise scan silence zmtp2 nokey; do
    for port in "$nodes_port" "$(port_of a)"; do
        answer=$(visit "$port" $what)
        same "$what at port $port gets no message" 0 "$(printf '%s' "$answer" | grep -c 504c4549)"
    done
    served "after $what the cluster serves as before"
done
if command -v curl >/dev/null 2>&1; then
    ok "curl is turned away" sh -c "! curl -s -m 3 http://127.0.0.1:$nodes_port/"
fi

# A machine with the token that was used, one of another cluster, one without keys: all at once, for some seconds.
"$pleiades" keys init --out "$tmp/other" >"$tmp/keys.log" 2>&1
invite "$tmp/other" other
start copied node --name copied --bind 127.0.0.1 --no-measure -m "$model" --key "$tmp/copied.key"
start other node --name other --bind 127.0.0.1 --no-measure -m "$model" --key "$tmp/other.key"
start plain node --name plain --bind 127.0.0.1 --no-measure -m "$model" --insecure --join "$nodes_at"
for name in copied other plain; do
    ok "the machine \"$name\" learns that it is refused" soon "$name" said "$name" 'warn'
done
sleep 2
served "with three machines knocking the cluster serves as before"
for name in copied other plain; do
    same "the machine \"$name\" never joined, and says so a few times only" 1 $(($(log_lines $name) <= 6))
    ok "nor is it listed" sh -c "! '$pleiades' keys list --keys '$tmp/keys' | grep -q '^$name '"
    stop $name
done
lines=$(($(refusals) - before))
same "all that left few lines in the logs of two processes ($lines)" 1 $((lines >= 1 && lines <= 10))
ok "one of them says that a key is not known" said boss "key is not known"

# ---- revoked ----
ok "keys revoke" "$pleiades" keys revoke b --keys "$tmp/keys"
ok "and the machine is out within seconds" soon "the loss of b" sh -c "! '$pleiades' status --url '$url' | grep -q '^ *b .*ready'"
invite "$tmp/keys" again --once
stop b
start b node --name b --bind 127.0.0.1 --no-measure -t 1 -m "$model" --memory 1G --key "$tmp/again.key"
ok "with a new token it is back" wait_for serving
served "and they serve"
start b2 node --name b --bind 127.0.0.1 --no-measure -t 1 -m "$model" --memory 1G --key "$tmp/again.key"
stop a
ok "without a the others do not serve" wait_for loading
start a node --name a --bind 127.0.0.1 --no-measure -t 1 -m "$model" --memory 1G --key "$tmp/a.key"
stop b2
ok "a node that restarts needs no new token" wait_for serving
served "and they serve again"
stop boss
stop a
stop b

# ---- without keys ----
serve boss -m "$model" --ctx 1024 --no-local-node --bind-nodes 127.0.0.1:0 --insecure --nodes 1
node a --insecure -m "$model" --memory 1G
ok "without keys, because it was asked for" wait_for serving
"$pleiades" status --url "$url" >"$tmp/output"
says "which the status shows" "insecure"
for what in http noise scan junk; do
    visit "${nodes_at##*:}" $what >/dev/null
    served "after $what it serves as before"
done
same "a HELLO of another version is refused, not ignored" 1 \
    "$(visit "${nodes_at##*:}" version | grep -c 504c4549)"
served "and it still serves"
same "the log stays short ($(log_lines boss) lines)" 1 $(($(log_lines boss) <= 30))
stop boss
stop a
