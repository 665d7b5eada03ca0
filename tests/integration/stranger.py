"""What comes to a port that is open to others. Usage: stranger.py PORT WHAT

    noise      random bytes          http    a web client         scan     200 connections that say nothing
    silence    a few that stay open  zmtp2   an old zmq           nokey    zmq without encryption
    version    a HELLO of another version, over zmq without encryption (for a cluster with --insecure)
    junk       whole zmq messages that mean nothing, the same way

Speaks ZMTP 3.0 by itself, from its specification; prints what the other side answered, as hexadecimal, and never fails."""
import random
import socket
import struct
import sys
import time

port, what = int(sys.argv[1]), sys.argv[2]


def dial():
    s = socket.create_connection(("127.0.0.1", port), timeout=3)
    s.settimeout(1)
    return s


def hear(s, n=4096):
    try:
        return s.recv(n)
    except OSError:
        return b""


def say(s, data):
    try:
        s.sendall(data)
    except OSError:
        pass


def zmtp(mechanism=b"NULL"):
    """A connection past greeting and handshake."""
    s = dial()
    say(s, b"\xff" + b"\0" * 8 + b"\x7f" + b"\x03\x00" + mechanism.ljust(20, b"\0") + b"\0" * 32)
    hear(s, 64)
    if mechanism == b"NULL":
        ready = b"\x05READY" + b"\x0bSocket-Type" + struct.pack(">I", 6) + b"DEALER"
        say(s, b"\x04" + bytes([len(ready)]) + ready)
    hear(s)
    return s


def message(s, *frames):
    for i, frame in enumerate(frames):
        more = 1 if i + 1 < len(frames) else 0
        say(s, bytes([2 | more]) + struct.pack(">Q", len(frame)) + frame)


def hello(low, high):
    """Field by field as in proto/message.proto and proto/link.proto, with the prefix of common/wire/frame.h."""
    name = b"stranger"
    body = (b"\x0d" + b"PLEI" + b"\x10" + bytes([low]) + b"\x18" + bytes([high]) + b"\x20\x02" + b"\x32" +
            bytes([len(name)]) + name)
    packed = b"\x08\x01" + b"\x19" + struct.pack("<Q", 7) + b"\x82\x01" + bytes([len(body)]) + body
    return b"PLEI" + struct.pack("<HHII", low, 1, len(packed), 0) + packed


answer = b""
if what == "noise":
    for seed in range(20):
        s = dial()
        say(s, random.Random(seed).randbytes(20000))
        answer += hear(s)
        s.close()
elif what == "http":
    s = dial()
    say(s, b"GET /v1/models HTTP/1.1\r\nHost: x\r\nUser-Agent: curl/8\r\n\r\n")
    answer = hear(s)
elif what == "scan":
    for _ in range(200):
        dial().close()
elif what == "silence":
    held = [dial() for _ in range(30)]
    time.sleep(2)
elif what == "zmtp2":
    s = dial()
    say(s, b"\xff" + b"\0" * 7 + b"\x01\x7f" + b"\x01\x05\x00\x00")
    answer = hear(s)
elif what == "nokey":
    s = zmtp()
    message(s, hello(1, 1))
    answer = hear(s)
elif what == "version":
    s = zmtp()
    message(s, hello(98, 99))
    end = time.time() + 10
    while b"PLEI" not in answer and time.time() < end:
        answer += hear(s)
elif what == "junk":
    for seed in range(10):
        s = zmtp()
        message(s, random.Random(seed).randbytes(100))
        message(s, b"PLEI" + random.Random(seed).randbytes(60), b"x" * 1000)
        message(s, b"a", b"b", b"c", b"d")
        answer += hear(s)
        s.close()
print(answer.hex())
