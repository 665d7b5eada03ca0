#!/usr/bin/env bash
# How likely the tokens of a prompt are (echo with logprobs), against the logits of a process of its own: one stage and
# three, also after the same prompt was kept, and while a machine is lost.
. "$(dirname "$0")/../harness/lib.sh"
. "$(dirname "$0")/../harness/cluster.sh"

command -v python3 >/dev/null 2>&1 || { skip "scores of prompts" "no python3 here"; exit 0; }
model=$tmp/tiny-pro.gguf
"$pleiades" synth --preset tiny-pro -o "$model" >"$tmp/synth.log" 2>&1 || { failed "synth writes a model"; exit 1; }
for i in 1 2 3 4 5 6; do
    echo "Turn $i of a long conversation about seven sisters, one sky, and who of them is seen through clouds."
done >"$tmp/text"
"$pleiades" tokenize -m "$model" <"$tmp/text" >"$tmp/ids"
ok "logits of every position" "$pleiades" logits -m "$model" --threads 1 --ids "$tmp/ids" -o "$tmp/logits"
same "more rows than one batch takes" 1 $(($(wc -w <"$tmp/ids") > 192))

# compare [MORE]: what the endpoint says of the prompt, against the softmax of those rows; MORE: members of the body.
compare() {
    python3 - "$url" "$tmp/ids" "$tmp/logits" "${1:-}" <<'PY'
import array, json, math, sys, time, urllib.error, urllib.request
url, ids_path, logits_path, more = sys.argv[1:5]
ids = [int(x) for x in open(ids_path).read().split()]
rows = array.array("f", open(logits_path, "rb").read())
n = len(rows) // len(ids)
body = {"prompt": ids, "echo": True, "logprobs": 5, "max_tokens": 0, "return_token_ids": True}
body.update(json.loads(more or "{}"))
copies = body.pop("copies", 1)
if copies > 1:
    body["prompt"] = [ids] * copies
request = urllib.request.Request(url + "/v1/completions", json.dumps(body).encode())
for attempt in range(100):
    try:
        answer = json.load(urllib.request.urlopen(request, timeout=60))
        break
    except urllib.error.HTTPError as e:           # while the cluster is without a machine, as clients do it
        if e.code != 503 or attempt == 99:
            raise
        time.sleep(0.1)
for choice in answer["choices"]:
    details = choice["token_details"][:len(ids)]
    assert choice["token_ids"][:len(ids)] == ids, "other tokens"
    assert details[0]["logprob"] is None and choice["logprobs"]["token_logprobs"][0] is None
    for p in range(1, len(ids)):
        row = rows[(p - 1) * n:p * n]
        top = max(row)
        lse = top + math.log(math.fsum(math.exp(x - top) for x in row))
        best = sorted(range(n), key=lambda i: (-row[i], i))[:5]
        d = details[p]
        assert d["id"] == ids[p] and [t["id"] for t in d["top"]] == best, (p, d)
        for id, logprob in [(d["id"], d["logprob"])] + [(t["id"], t["logprob"]) for t in d["top"]]:
            want = row[id] - lse
            assert abs(logprob - want) <= 2e-8 * (1 + abs(want)), (p, id, logprob, want)
assert len(choice["logprobs"]["tokens"]) == len(choice["token_ids"])
assert len(answer["choices"]) == copies * body.get("n", 1)
assert answer["usage"]["prompt_tokens"] == len(ids) * copies
assert answer["usage"]["completion_tokens"] == (body["max_tokens"] * len(answer["choices"])), answer["usage"]
PY
}

under_way() { [ "$(member active)" != 0 ]; }

way="one stage"
serve alone -m "$model" --threads 1 --ctx 2048
ok "a service" wait_for serving
ok "$way: every token of the prompt is as likely as the logits say" compare
ok "$way: also when the prompt has been kept" compare
ok "$way: also with an answer behind it, twice" compare '{"max_tokens": 3, "n": 2, "seed": 5, "ignore_eos": true}'
curl -s -N --max-time 30 "$url/v1/completions" -d '{"prompt": "seven sisters", "echo": true, "logprobs": 1, "max_tokens": 2,
    "stream": true}' >"$tmp/output" 2>/dev/null
says "$way: a stream begins with it" '"text":"seven sisters","logprobs":{"tokens":['
stop alone

way="three stages"
serve boss -m "$model" --ctx 2048 --no-local-node --bind-nodes 127.0.0.1:0 --insecure --nodes 3 --stages a=0-1,b=2-2,c=3-4
for name in a b c; do node "$name" --insecure -m "$model" --memory 1G; done
ok "three nodes" wait_for serving
ok "$way: the same numbers" compare
compare '{"copies": 12}' >"$tmp/compared" 2>&1 &
comparing=$!
soon "prompts under way" under_way
kill -9 "$(pid b)"
ok "the loss of one is noticed" wait_for loading
node b --insecure -m "$model" --memory 1G
wait $comparing
same "$way: and when a machine is lost meanwhile" 0 $?
sed 's/^/# /' "$tmp/compared"
stop boss
for name in a b c; do stop "$name"; done
