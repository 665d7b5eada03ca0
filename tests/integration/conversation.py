"""Drives scripted-serve through whole conversations and prints one TAP line per fact; see conversation.sh.

A dialect knows how to ask, to read the answer (streamed or not) and to put it into the history that the
client keeps. The conversation is the same for all: two calls, their results, an answer, a third call."""
import json
import re
import subprocess
import sys
import threading
import urllib.error
import urllib.request

scripted, model, folder = sys.argv[1:4]
failures = 0
M = "｜DSML｜"


def check(name, passed, shown=""):
    global failures
    print(("ok - " if passed else "not ok - ") + name)
    if not passed:
        failures += 1
        print("#   " + str(shown)[:2000].replace("\n", "\n#   "))
    sys.stdout.flush()


# ---- the script: spelt as no renderer of ours would spell it ----

def call(name, *parameters, gap="\n"):
    text = gap.join(f'<{M}parameter name="{k}" string="{s}">{v}</{M}parameter>' for k, s, v in parameters)
    return f'<{M}invoke name="{name}">\n{text}\n</{M}invoke>'


def block(*calls):
    return f"\n\n<{M}tool_calls>\n" + "\n\n".join(calls) + f"\n</{M}tool_calls>"


ROME = call("weather", ("city", "true", 'Rome "I"'), ("days", "false", "2.0"), gap="")
OSLO = call("weather", ("days", "false", "3e0"), ("city", "true", "Oslo <b>\n</b>"))
PARIS = call("weather", ("city", "true", "Paris"), ("more", "false", '{"a":[1,  2.50,"x"]}'))
LINES = [
    ("Rome and Oslo?", "Two calls then.</think>Let me look." + block(ROME, OSLO)),
    ("<tool_result>sun</tool_result>\n\n<tool_result>rain</tool_result>",
     "Both are there.</think>Sun and rain."),
    ("And Paris?", "One more.</think>" + block(PARIS)),
    ("<tool_result>snow</tool_result>", "Fine.</think>Snow in Paris."),
    ("Forced?", "Must.</think>" + block(call("weather", ("city", "true", "Bergen")))),
    ("Malformed?", f"</think>Here:\n\n<{M}tool_calls>\n<{M}invoke name=\"weather\">\n<{M}parameter nonsense"),
    ("Cut call?", "</think>" + block(call("weather", ("city", "true", "long " * 200)))),
    ("Two at once?", "</think>" + block(ROME, PARIS)),
]
TOOL = {"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "number"}, "more": {}},
        "required": ["city"], "additionalProperties": False}
WANTED = {
    "Rome and Oslo?": [{"city": 'Rome "I"', "days": 2.0}, {"days": 3.0, "city": "Oslo <b>\n</b>"}],
    "And Paris?": [{"city": "Paris", "more": {"a": [1, 2.5, "x"]}}],
}


class Server:
    def __init__(self):
        path = folder + "/script.jsonl"
        with open(path, "w", encoding="utf-8") as f:
            for match, answer in LINES:
                f.write(json.dumps({"match": match, "answer": answer}) + "\n")
            f.write(json.dumps({"match": "Ponder?", "answer": "hm, " * 400 + "</think>Well."}) + "\n")
            f.write(json.dumps({"match": "Long?", "answer": "word ", "repeat": 400}) + "\n")
        command = [scripted, "--script", path, "-m", model, "-P", "0", "-c", "16384", "--slots", "4",
                   "--thinking-budget"]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, encoding="utf-8")
        self.log, self.url, self.ready = [], None, threading.Event()
        threading.Thread(target=self.read, daemon=True).start()
        if not self.ready.wait(60):
            raise SystemExit("not serving:\n" + "".join(self.log))

    def read(self):
        for line in self.process.stderr:
            self.log.append(line)
            found = re.search(r"endpoint at (http://\S+)", line)
            self.url = found.group(1) if found else self.url
            if line.startswith("serving:"):
                self.ready.set()

    def post(self, path, body):
        request = urllib.request.Request(self.url + path, json.dumps(body).encode(),
                                         {"content-type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as e:
            return e.code, e.read().decode()

    def stop(self):
        self.process.terminate()
        return self.process.wait(30)


def events(text):
    for part in text.split("\n\n"):
        data = [line[6:] for line in part.split("\n") if line.startswith("data: ")]
        if data and data[0] != "[DONE]":
            yield json.loads("\n".join(data))


class Answer:
    def __init__(self):
        self.reasoning = self.content = ""
        self.calls = []                           # id, name, arguments as text
        self.raw = self.end = None
        self.prompt = self.cached = self.output = 0


# ---- dialects ----

class Dialect:
    def user(self, history, text):
        history.append({"role": "user", "content": text})


class Chat(Dialect):
    name, path = "chat", "/v1/chat/completions"

    def tools(self):
        return [{"type": "function", "function": {"name": "weather", "parameters": TOOL}}]

    def body(self, history, stream):
        body = {"messages": history, "tools": self.tools(), "stream": stream}
        return dict(body, stream_options={"include_usage": True}) if stream else body

    def read(self, text, stream):
        a = Answer()
        if stream:
            message, usage = {"role": "assistant", "content": "", "reasoning_content": ""}, {}
            message["tool_calls"] = []
            for e in events(text):
                usage = e.get("usage") or usage
                for choice in e["choices"]:
                    a.end = choice["finish_reason"] or a.end
                    delta = choice["delta"]
                    message["content"] += delta.get("content") or ""
                    message["reasoning_content"] += delta.get("reasoning_content") or ""
                    for c in delta.get("tool_calls", []):
                        if "id" in c:
                            message["tool_calls"].append(dict(c))
                        else:
                            known = message["tool_calls"][c["index"]]["function"]
                            known["arguments"] += c["function"]["arguments"]
        else:
            whole = json.loads(text)
            message, usage = whole["choices"][0]["message"], whole["usage"]
            a.end = whole["choices"][0]["finish_reason"]
        a.raw = message
        a.content, a.reasoning = message.get("content") or "", message.get("reasoning_content") or ""
        a.calls = [(c["id"], c["function"]["name"], c["function"]["arguments"])
                   for c in message.get("tool_calls") or []]
        a.prompt, a.output = usage["prompt_tokens"], usage["completion_tokens"]
        a.cached = usage["prompt_tokens_details"]["cached_tokens"]
        return a

    def keep(self, history, a, results):
        history.append(a.raw)
        for (id, _, _), result in zip(a.calls, results):
            history.append({"role": "tool", "tool_call_id": id, "content": result})


class Messages(Dialect):
    name, path = "messages", "/v1/messages"

    def tools(self):
        return [{"name": "weather", "input_schema": TOOL}]

    def body(self, history, stream):
        return {"model": "m", "max_tokens": 4000, "messages": history, "tools": self.tools(),
                "stream": stream, "thinking": {"type": "enabled", "budget_tokens": 2000}}

    def read(self, text, stream):
        a = Answer()
        if stream:
            blocks, parts, usage = [], [], {}
            for e in events(text):
                if e["type"] == "message_start":
                    usage = e["message"]["usage"]
                elif e["type"] == "content_block_start":
                    blocks.append(dict(e["content_block"]))
                    parts.append("")
                elif e["type"] == "content_block_delta":
                    d = e["delta"]
                    for key in ("thinking", "text", "signature"):
                        if key in d:
                            blocks[e["index"]][key] = blocks[e["index"]].get(key, "") + d[key]
                    parts[e["index"]] += d.get("partial_json", "")
                elif e["type"] == "message_delta":
                    a.end = e["delta"]["stop_reason"]
                    usage = {**usage, **e["usage"]}
            for b, p in zip(blocks, parts):
                if b["type"] == "tool_use":
                    b["input"] = json.loads(p or "{}")
        else:
            whole = json.loads(text)
            blocks, usage, a.end = whole["content"], whole["usage"], whole["stop_reason"]
        a.raw = blocks
        for b in blocks:
            a.reasoning += b.get("thinking", "")
            a.content += b.get("text", "")
            if b["type"] == "tool_use":
                a.calls.append((b["id"], b["name"], json.dumps(b["input"])))
        a.cached, a.output = usage["cache_read_input_tokens"], usage["output_tokens"]
        a.prompt = usage["input_tokens"] + a.cached + usage["cache_creation_input_tokens"]
        return a

    def keep(self, history, a, results):
        history.append({"role": "assistant", "content": a.raw})
        if results:
            history.append({"role": "user", "content": [
                {"type": "tool_result", "tool_use_id": id, "content": result}
                for (id, _, _), result in zip(a.calls, results)]})


class Responses(Dialect):
    name, path = "responses", "/v1/responses"

    def tools(self):
        return [{"type": "function", "name": "weather", "parameters": TOOL}]

    def body(self, history, stream):
        return {"input": history, "tools": self.tools(), "stream": stream, "store": False,
                "include": ["reasoning.encrypted_content"]}

    def read(self, text, stream):
        a = Answer()
        whole = json.loads(text) if not stream else None
        items = []
        for e in events(text) if stream else []:
            if e["type"] == "response.output_item.done":
                items.append(e["item"])
            if e["type"] in ("response.completed", "response.incomplete", "response.failed"):
                whole = e["response"]
        a.raw, usage, a.end = items if stream else whole["output"], whole["usage"], whole["status"]
        for item in a.raw:
            if item["type"] == "reasoning":
                a.reasoning += "".join(c["text"] for c in item["content"])
            if item["type"] == "message":
                a.content += "".join(c["text"] for c in item["content"])
            if item["type"] == "function_call":
                a.calls.append((item["call_id"], item["name"], item["arguments"]))
        a.prompt, a.output = usage["input_tokens"], usage["output_tokens"]
        a.cached = usage["input_tokens_details"]["cached_tokens"]
        return a

    def keep(self, history, a, results):
        history.extend(a.raw)
        for (id, _, _), result in zip(a.calls, results):
            history.append({"type": "function_call_output", "call_id": id, "output": result})


# ---- conversations ----

def ask(server, dialect, history, stream):
    status, text = server.post(dialect.path, dialect.body(history, stream))
    if status != 200:
        raise SystemExit(f"{dialect.name}: {status} {text}")
    return dialect.read(text, stream)


def converse(server, dialect, stream):
    what = f"{dialect.name}{', streamed' if stream else ''}"
    history, before = [], 0
    turns = [("Rome and Oslo?", "Two calls then.", "Let me look.", ["sun", "rain"]),
             (None, "Both are there.", "Sun and rain.", []),
             ("And Paris?", "One more.", "", ["snow"]),
             (None, "Fine.", "Snow in Paris.", [])]
    for i, (text, reasoning, content, results) in enumerate(turns):
        if text:
            dialect.user(history, text)
        a = ask(server, dialect, history, stream)
        said = (a.reasoning, a.content.strip(), [json.loads(c[2]) for c in a.calls])
        wanted = (reasoning, content, WANTED.get(text, []))
        check(f"{what}: turn {i + 1} says what the script says", said == wanted, f"{said}\n{wanted}")
        if i:
            check(f"{what}: turn {i + 1} begins with all that went before, token for token",
                  a.cached >= before - 2, f"{a.cached} cached of {a.prompt}, {before} before")
        before = a.prompt + a.output
        dialect.keep(history, a, results)


# ---- what is asked of the answer ----

SCHEMA = {"type": "object", "properties": {
    "name": {"type": "string", "maxLength": 12}, "n": {"type": "integer", "minimum": 3, "maximum": 40},
    "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "minItems": 1, "maxItems": 3}},
    "required": ["name", "n", "tags"], "additionalProperties": False}


def validates(text):
    v = json.loads(text)
    return (sorted(v) == ["n", "name", "tags"] and len(v["name"]) <= 12 and isinstance(v["n"], int) and
            3 <= v["n"] <= 40 and 1 <= len(v["tags"]) <= 3 and all(t in ("a", "b") for t in v["tags"]))


def formats(server):
    fine = {"chat": 0, "messages": 0, "responses": 0}
    for seed in range(5):
        for thinking in (True, False):
            body = {"messages": [{"role": "user", "content": "Off the script"}], "seed": seed,
                    "thinking": {"type": "enabled" if thinking else "disabled"},
                    "response_format": {"type": "json_schema",
                                        "json_schema": {"name": "s", "strict": True, "schema": SCHEMA}}}
            a = Chat().read(server.post(Chat.path, body)[1], False)
            fine["chat"] += validates(a.content) and a.end == "stop" and bool(a.reasoning) == thinking
        body = {"input": "Off the script",
                "text": {"format": {"type": "json_schema", "name": "s", "strict": True, "schema": SCHEMA}}}
        fine["responses"] += validates(Responses().read(server.post(Responses.path, body)[1], False).content)
        body = {"model": "m", "max_tokens": 4000, "messages": [{"role": "user", "content": "Off the script"}],
                "output_config": {"format": {"type": "json_schema", "schema": SCHEMA}}}
        fine["messages"] += validates(Messages().read(server.post(Messages.path, body)[1], False).content)
    check("answers by a JSON schema validate, in all dialects, with and without thinking",
          fine == {"chat": 10, "messages": 5, "responses": 5}, fine)
    body = {"messages": [{"role": "user", "content": "JSON please, off the script"}],
            "response_format": {"type": "json_object"}}
    a = Chat().read(server.post(Chat.path, body)[1], False)
    check("a JSON object is one", a.end == "length" or isinstance(json.loads(a.content), dict), a.content)
    body["response_format"] = {"type": "json_schema", "json_schema": {"name": "s", "schema": {"not": {}}}}
    status, text = server.post(Chat.path, body)
    check("a schema that cannot be kept is a 400 that names the keyword",
          status == 400 and "not" in text, text)


def choices(server):
    integer = {"type": "object", "properties": {"k": {"type": "integer"}}, "required": ["k"],
               "additionalProperties": False}
    second = {"type": "function", "function": {"name": "other", "parameters": integer, "strict": True}}
    tools = Chat().tools() + [second]
    named = {"type": "function", "function": {"name": "other"}}
    for choice, names in (("required", {"weather", "other"}), (named, {"other"})):
        said, good = [], 0
        for seed in range(6):
            body = {"messages": [{"role": "user", "content": "Off the script"}], "tools": tools, "seed": seed,
                    "tool_choice": choice, "parallel_tool_calls": False,
                    "thinking": {"type": "enabled" if seed % 2 else "disabled"}}
            a = Chat().read(server.post(Chat.path, body)[1], False)
            said.append((a.end, a.content, a.calls))
            if len(a.calls) != 1 or a.calls[0][1] not in names or a.end != "tool_calls":
                continue
            v = json.loads(a.calls[0][2])
            good += isinstance(v["k"], int) if a.calls[0][1] == "other" else isinstance(v["city"], str)
        what = "a tool call that is required" if choice == "required" else "a tool that is named"
        check(f"{what} is called, once, with valid arguments", good == 6, said)
    body = {"model": "m", "max_tokens": 4000, "messages": [{"role": "user", "content": "Off the script"}],
            "tools": Messages().tools(), "tool_choice": {"type": "tool", "name": "weather"}}
    a = Messages().read(server.post(Messages.path, body)[1], False)
    check("messages: a named tool", a.end == "tool_use" and a.calls[0][1] == "weather", a.raw)
    body = {"input": "Off the script", "tools": Responses().tools(), "tool_choice": "required"}
    a = Responses().read(server.post(Responses.path, body)[1], False)
    check("responses: a required tool", [c[1] for c in a.calls][:1] == ["weather"], a.raw)


def forced_turn(server):
    """A call that was forced is remembered like any other; the one that follows is free again."""
    d, history = Chat(), []
    d.user(history, "Forced?")
    body = dict(d.body(history, False), tool_choice="required", parallel_tool_calls=False)
    a = d.read(server.post(d.path, body)[1], False)
    d.keep(history, a, ["snow"])
    b = ask(server, d, history, False)
    check("a prompt behind a forced call begins with it, token for token",
          len(a.calls) == 1 and b.content == "Snow in Paris." and b.cached >= a.prompt + a.output - 2,
          f"{b.content}: {b.cached} of {b.prompt}, {a.prompt}+{a.output}")


def odd_answers(server):
    def chat(text, **more):
        body = dict(Chat().body([{"role": "user", "content": text}], False), **more)
        return Chat().read(server.post(Chat.path, body)[1], False)
    a = chat("Malformed?")
    check("markup that breaks off is content",
          not a.calls and a.end == "stop" and "parameter nonsense" in a.content, a.raw)
    a = chat("Cut call?", max_tokens=60)
    check("a call that is cut is no call", not a.calls and a.end == "length", a.raw)
    a = chat("Two at once?", parallel_tool_calls=False)
    check("one call where one is wanted", len(a.calls) == 1 and a.end == "tool_calls", a.raw)
    a = chat("Long?", max_tokens=100)
    check("a long answer ends at its limit", a.end == "length" and a.output == 100, a.raw)
    a = chat("Long?")
    check("or comes whole", a.end == "stop" and a.content == "word " * 400, len(a.content))


def changed_history(server):
    """What the client changed is rendered anew: the beginning no longer fits, and nothing breaks."""
    d, history = Chat(), []
    d.user(history, "Rome and Oslo?")
    a = ask(server, d, history, False)
    a.raw["tool_calls"][1]["function"]["arguments"] = '{"city": "Bergen"}'
    d.keep(history, a, ["sun", "rain"])
    b = ask(server, d, history, False)
    check("a call that the client changed is rendered anew", b.content == "Sun and rain." and
          b.cached < a.prompt + a.output - 20, f"{b.cached} of {b.prompt}, {a.prompt}+{a.output}")


def budgets(server):
    """However long the model would think."""
    for body in ({"messages": [{"role": "user", "content": "Ponder?"}], "max_tokens": 90,
                  "thinking": {"type": "enabled", "budget_tokens": 20}},
                 {"messages": [{"role": "user", "content": "Ponder?"}], "max_tokens": 90, "tools": Chat().tools(),
                  "thinking": {"type": "enabled", "budget_tokens": 20}}):
        status, text = server.post(Chat.path, body)
        usage = json.loads(text)["usage"]
        check("thinking ends with its budget" + (", beside tools" if "tools" in body else ""),
              usage["completion_tokens_details"]["reasoning_tokens"] == 21, text)
    body["thinking"]["budget_tokens"] = "some"
    status, text = server.post(Chat.path, body)
    check("a budget that is none is a 400", status == 400 and "budget_tokens" in text, text)


server = Server()
try:
    for one in (Chat(), Messages(), Responses()):
        for streamed in (False, True):
            converse(server, one, streamed)
    formats(server)
    choices(server)
    forced_turn(server)
    odd_answers(server)
    changed_history(server)
    budgets(server)
finally:
    status = server.stop()
check("the server ends when it is told to", status == 0, "".join(server.log[-20:]))
sys.exit(1 if failures else 0)
