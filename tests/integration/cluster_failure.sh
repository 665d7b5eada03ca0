#!/usr/bin/env bash
# Real processes on loopback that come and go: any start order, kill -9 in the middle, strangers at the door, the end.
. "$(dirname "$0")/../harness/lib.sh"
. "$(dirname "$0")/../harness/cluster.sh"

model=$tmp/tiny.gguf
"$pleiades" synth -o "$model" >"$tmp/synth.log" 2>&1 || { failed "synth writes a model"; exit 1; }
printf 'Who goes away may come back, and the sentence goes on.' | "$pleiades" tokenize -m "$model" >"$tmp/ids"
n_new=600
"$pleiades" generate -m "$model" --ids "$tmp/ids" -n $n_new --threads 1 --temp 1 --seed 5 >"$tmp/want" 2>/dev/null
# A long answer in the background; its tokens in $tmp/have when it is over.
ask_long() {
    ask "$tmp/ids" -n $n_new --temp 1 --seed 5 >"$tmp/have" 2>"$tmp/have.err" &
    asked=$!
}
decoding() { [ "$(member decoding)" = 1 ] && [ "$(wc -w <"$tmp/have")" -gt 5 ]; }
answer_is_right() {
    wait $asked
    same "$1" "$(cat "$tmp/want")" "$(cat "$tmp/have" "$tmp/have.err")"
}

# ---- any start order ----

serve boss -m "$model" --ctx 2048 --no-local-node --bind-nodes 127.0.0.1:0 --insecure --nodes 2
stop boss
node a --insecure -m "$model" --memory 1G
sleep 0.5
node b --insecure -m "$model" --memory 1G
serve boss -m "$model" --ctx 2048 --no-local-node --bind-nodes "$nodes_at" --insecure --nodes 2 --stages a=0-1,b=2-4
ok "nodes that came before their coordinator serve with it" wait_for serving
ask_long
answer_is_right "and give the right tokens"

# ---- the coordinator is restarted; nodes keep their weights and wait ----

stop boss KILL
serve boss -m "$model" --ctx 2048 --no-local-node --bind-nodes "$nodes_at" --insecure --nodes 2 --stages a=0-1,b=2-4
ok "a coordinator that was killed and started again finds its nodes" wait_for serving
ask_long
answer_is_right "and gives the right tokens"

# ---- a node dies in the middle; the other one can hold the model ----

ask_long
ok "an answer is on its way" soon "tokens" decoding
stop b KILL
answer_is_right "a stream survives kill -9 of a stage: the survivor goes on alone, and no token differs"
same "with one stage" 1 "$(member stages)"
stages_are() { [ "$(member stages)" = "$1" ] && state_is serving; }
ask_long
ok "an answer is on its way" soon "tokens" decoding
node b --insecure -m "$model" --memory 1G
ok "when the machine is back, so is the plan that was asked for" soon "two stages" stages_are 2
answer_is_right "and the stream goes on in it"
ask_long
answer_is_right "as do new ones"
stop b
stop a
stop boss

# ---- a node dies in the middle; the other one cannot hold the model ----

serve boss -m "$model" --ctx 2048 --no-local-node --bind-nodes 127.0.0.1:0 --insecure --nodes 2 --stages a=0-1,b=2-4
node a --insecure -m "$model" --memory 38M
node b --insecure -m "$model" --memory 38M
ok "two small nodes" wait_for serving
ask_long
ok "an answer is on its way" soon "tokens" decoding
stop b KILL
ok "without one of them the service says that it does not serve" wait_for loading
fails 1 "and refuses new requests at once" ask "$tmp/ids" -n 4
says "with the reason" "node b"
node b --insecure -m "$model" --memory 38M
ok "it serves again when the node is back" wait_for serving
answer_is_right "and the stream goes on where it was"

# ---- strangers ----

printf 'GET / HTTP/1.1\r\nHost: x\r\n\r\n' >"$tmp/stranger"
port=${nodes_at##*:}
for i in 1 2 3; do
    (exec 3<>"/dev/tcp/127.0.0.1/$port" && cat "$tmp/stranger" >&3 && sleep 0.1) 2>/dev/null
done
(exec 3<>"/dev/tcp/127.0.0.1/$port" && head -c 100000 /dev/urandom >&3) 2>/dev/null
ask_long
answer_is_right "strangers at the door of the nodes disturb nothing"

# ---- the end ----

ask_long
ok "an answer is on its way" soon "tokens" decoding
kill -TERM "$(pid boss)"
answer_is_right "a coordinator that is told to end finishes what runs"
ok "and ends" soon "the end of boss" gone "$(pid boss)"
kill -TERM "$(pid a)" "$(pid b)"
ok "nodes end when told to, without a coordinator" soon "the end of a" gone "$(pid a)"
ok "both" soon "the end of b" gone "$(pid b)"

serve boss -m "$model" --ctx 2048 --threads 1
ok "a service alone" wait_for serving
n_new=1900
ask_long
ok "an answer is on its way" soon "tokens" decoding
kill -TERM "$(pid boss)"
kill -TERM "$(pid boss)"
wait $asked
same "a second signal ends at once, with an error for who waits" 1 $?
ok "and the process is gone" soon "the end of boss" gone "$(pid boss)"

# ---- asked wrongly ----

fails 1 "a port that is none is refused before anything opens" \
    "$pleiades" serve -m "$model" --port 0 --bind-nodes 127.0.0.1:99999 --insecure
fails 1 "also at a node" "$pleiades" node --join 127.0.0.1:1 --insecure -m "$model" --bind 127.0.0.1:70000
fails 2 "nodes without keys need the word for it" "$pleiades" serve -m "$model" --port 0 --bind-nodes 127.0.0.1:0
fails 1 "a name that is none is refused" "$pleiades" node --join 127.0.0.1:1 --insecure -m "$model" --name 'a b'
