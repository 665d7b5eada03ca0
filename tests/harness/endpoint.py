"""An OpenAI-style endpoint that says what it is asked to say, to try clients with things a real one never sends.

    endpoint.py FOLDER [KEY]      prints its address, then serves until it is killed or its parent ends

The last user message decides: "echo" answers with the request itself, "escape" with control sequences, "think" with
reasoning first, "slow" with a word every 20 ms until the client has gone (then FOLDER/gone exists), "busy" is 429 the
first time, "long" tells how far its prompt is first, "broken" ends without an end, "late" fails in the middle. All
else is answered with "fine".
"""
import json
import os
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

FOLDER, KEY = Path(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else None
busy = set()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def reply(self, status, body, headers=()):
        data = json.dumps(body).encode()
        self.send_response(status)
        for name, value in (("Content-Type", "application/json"), ("Content-Length", str(len(data))), *headers):
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def denied(self):
        if not KEY or self.headers.get("Authorization") == f"Bearer {KEY}":
            return False
        self.reply(401, {"error": {"message": "no such key\x1b[31m", "type": "invalid_request_error"}})
        return True

    def do_GET(self):
        if self.denied():
            return
        self.reply(200, {"object": "list", "data": [{"id": "mock\x1b]0;evil\x07", "context_length": 4096}]})

    def event(self, delta, finish=None, **more):
        body = {"choices": [{"index": 0, "delta": delta, "finish_reason": finish}], **more}
        data = f"data: {json.dumps(body)}\n\n".encode()
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
        self.wfile.flush()

    def finish_stream(self):
        usage = {"prompt_tokens": 30, "completion_tokens": 12, "prompt_tokens_details": {"cached_tokens": 10}}
        self.event({}, "stop", usage=usage)
        self.wfile.write(b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n")

    def slow(self):
        try:
            for i in range(1500):
                self.event({"content": f"word{i} "})
                time.sleep(0.02)
        except OSError:
            (FOLDER / "gone").write_text("yes")
            raise

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.denied():
            return
        said = body["messages"][-1]["content"].split("\n")[0]
        if said == "busy" and said not in busy:
            busy.add(said)
            error = {"error": {"message": "queue is full", "type": "rate_limit_error"}}
            self.reply(429, error, [("Retry-After", "1")])
            return
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream; charset=utf-8")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        self.wfile.write(b"d\r\n: keep-alive\n\r\n")
        self.event({"role": "assistant", "content": ""})
        if said == "long":
            for n in (100, 300):
                data = b": prefill %d/400\n\n" % n
                self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
                self.wfile.flush()
                time.sleep(0.1)
            self.event({"content": "read it"})
        elif said == "slow":
            self.slow()
        elif said == "escape":
            self.event({"content": "before\x1b]0;evil\x07\x1b[2J\u009b31m after"})
        elif said == "think":
            self.event({"reasoning_content": "hidden thoughts\x1b[2J"})
            self.event({"content": "shown answer"})
        elif said == "echo":
            self.event({"content": json.dumps(body, sort_keys=True)})
        elif said == "broken":
            self.event({"content": "half an "})
            self.wfile.write(b"0\r\n\r\n")
            return
        elif said == "late":
            self.event({"content": "half an "})
            data = b'data: {"error": {"message": "a machine was lost\\u001b[2J"}}\n\n'
            self.wfile.write(b"%x\r\n%s\r\n0\r\n\r\n" % (len(data), data))
            return
        else:
            self.event({"content": "fine"})
        self.finish_stream()


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request, client_address):
        pass


server = Server(("127.0.0.1", 0), Handler)
threading.Thread(target=server.serve_forever, daemon=True).start()
print(f"http://127.0.0.1:{server.server_port}", flush=True)
parent = os.getppid()
while os.getppid() == parent:
    time.sleep(1)
