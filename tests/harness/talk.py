"""Runs a program on a terminal of its own and talks to it.

    talk.py TRANSCRIPT STEP... -- PROGRAM WORD...

A step is `prompt` (wait for "> " and until keys are read one by one), `expect=TEXT` (wait until the terminal shows
it, behind what was expected before), `absent=TEXT` (it was not shown so far), `send=TEXT` (and Return), `keys=TEXT`
(as it is; \\x03 is Ctrl-C, \\r Return), `end` (the program ends by itself). Everything the program wrote is in
TRANSCRIPT; exit status 1 says which step failed.
"""
import os
import pty
import re
import select
import sys
import termios
import time

LIMIT_S = 30


class Talk:
    def __init__(self, words):
        self.seen, self.at, self.status = b"", 0, None
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            os.environ["TERM"] = "xterm"
            os.execvp(words[0], words)

    def read(self, seconds):
        ready, _, _ = select.select([self.fd], [], [], seconds)
        if not ready:
            return True
        try:
            data = os.read(self.fd, 65536)
        except OSError:
            data = b""
        self.seen += data
        return bool(data)

    def expect(self, text):
        end = time.monotonic() + LIMIT_S
        while (found := self.seen.find(text, self.at)) < 0:
            if time.monotonic() > end or not self.read(0.2):
                return False
        self.at = found + len(text)
        return True

    def raw(self):
        """Until the line editor has the terminal: earlier keys would be taken line by line."""
        end = time.monotonic() + LIMIT_S
        while termios.tcgetattr(self.fd)[3] & termios.ICANON:
            if time.monotonic() > end or not self.read(0.02):
                return False
        time.sleep(0.05)
        return True

    def end(self):
        end = time.monotonic() + LIMIT_S
        while self.read(0.2):
            if time.monotonic() > end:
                return False
        self.status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return True

    def close(self):
        if self.status is None:
            os.kill(self.pid, 9)
            os.waitpid(self.pid, 0)


def step(talk, word):
    name, _, text = word.partition("=")
    data = re.sub(rb"\\x([0-9a-f]{2})", lambda m: bytes([int(m[1], 16)]), text.encode()).replace(b"\\r", b"\r")
    if name == "expect":
        return talk.expect(data)
    if name == "prompt":
        return talk.expect(b"> ") and talk.raw()
    if name == "absent":
        return data not in talk.seen
    if name == "send":
        os.write(talk.fd, data + b"\r")
        return True
    if name == "keys":
        os.write(talk.fd, data)
        return True
    if name == "end":
        return talk.end()
    raise SystemExit(f"talk.py: what is {word}?")


def main():
    split = sys.argv.index("--")
    talk = Talk(sys.argv[split + 1:])
    failed = None
    for word in sys.argv[2:split]:
        if not step(talk, word):
            failed = word
            break
    talk.close()
    with open(sys.argv[1], "wb") as out:
        out.write(talk.seen)
    if failed:
        print(f"failed: {failed}; the terminal showed: {talk.seen!r}")
        return 1
    return 0 if talk.status in (None, 0) else talk.status


sys.exit(main())
