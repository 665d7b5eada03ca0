#!/usr/bin/env python3
"""wrap.py FILE... - makes lines that are too long fit, and leaves all others as they are. `make format` runs it.

Prose in block comments is filled anew; in comments with columns only the long line is broken. A comment behind code
moves to the line above when it does not fit. What is left is code, and clang-format breaks those very lines."""

import re
import subprocess
import sys

LONGEST = 110      # what tidy.c accepts
FILL = 104         # to where comments are filled
COLUMN = 50        # where comments behind code begin, if they can


def fill(words, first, rest, width=FILL):
    """Lines of words; `first` and `rest` stand before the first and the other lines."""
    lines, line = [], first
    fresh = True
    for word in words:
        if not fresh and len(line) + 1 + len(word) > width and word != "*/":
            lines.append(line)
            line, fresh = rest, True
        line += word if fresh else " " + word
        fresh = False
    return lines + [line]


class Comment:
    """A block comment that has its lines to itself: each line is (indent behind the star, text)."""

    def __init__(self, lines):
        self.margin = re.match(r" *", lines[0]).group()
        self.lines = []
        for i, line in enumerate(lines):
            text = line[len(self.margin) + 2 :] if i == 0 else re.sub(r"^ *\*(?!/) ?", "", line)
            if i and not re.match(r"^ *\*(?!/)", line):
                text = line.strip()
            if i == 0 and text.startswith(" "):
                text = text[1:]
            self.lines.append(text)

    def wrapped(self):
        out, i = [], 0
        while i < len(self.lines):
            n = self.paragraph(i)
            part = self.lines[i : i + n]
            out += self.broken(part, i) if any(self.too_long(t) for t in part) else [self.put(t, i + k) for k, t in enumerate(part)]
            i += n
        return out

    def paragraph(self, i):
        """How many lines from i may be filled together: prose, or what hangs behind a label; 1 for a line alone."""
        n = 1
        if not self.prose(self.lines[i]):
            hang = self.hang(i)
            while hang and i + n < len(self.lines) and self.indent(self.lines[i + n]) == hang and "   " not in self.lines[i + n].strip():
                n += 1
            return n
        while i + n < len(self.lines) and self.prose(self.lines[i + n]):
            n += 1
        return n

    @staticmethod
    def indent(text):
        return len(text) - len(text.lstrip())

    def hang(self, i):
        """The column at which the text of "  label   text" goes on in the next line, or 0."""
        text = self.lines[i]
        after = self.indent(self.lines[i + 1]) if i + 1 < len(self.lines) else 0
        return after if after > self.indent(text) and text[:after].endswith(" ") else 0

    @staticmethod
    def prose(text):
        return bool(text) and text[0] != " " and "   " not in text and not re.match(r"[-*\d]", text)

    def too_long(self, text):
        return len(self.margin) + 3 + len(text) > LONGEST

    def put(self, text, i):
        star = "/*" if i == 0 else " *"
        return (self.margin + star + (" " + text if text else "")).rstrip()

    def broken(self, part, i):
        star = self.margin + " * "
        first = self.margin + "/* " if i == 0 else star
        if self.prose(part[0]):
            return fill(" ".join(part).split(), first, star)
        text = part[0]
        if len(part) > 1:
            hang = self.hang(i)
            return fill((text[hang:] + " " + " ".join(part[1:])).split(), first + text[:hang], star + " " * hang)
        indent = re.match(r" *", text).group()
        after = self.lines[i + 1] if i + 1 < len(self.lines) else ""
        deeper = re.match(r" *", after).group()
        hang = deeper if len(deeper) > len(indent) else indent + "  "
        room = FILL - len(first)
        cut = text.rfind(" ", len(indent) + 1, room)
        if cut < 0:
            return [first + text]
        lines, tail = [first + text[:cut].rstrip()], text[cut:].split()
        return lines + fill(tail, star + hang, star + hang)


def wrap_comments(lines):
    out, i = [], 0
    while i < len(lines):
        if not re.match(r" */\*", lines[i]):
            out.append(lines[i])
            i += 1
            continue
        n = 1
        while "*/" not in lines[i + n - 1] and i + n < len(lines):
            n += 1
        block = lines[i : i + n]
        alone = block[-1].rstrip().endswith("*/")
        if alone and any(len(line) > LONGEST for line in block):
            block = Comment(block).wrapped()
        out += block
        i += n
    return out


def move_trailing_comments(lines):
    out = []
    for line in lines:
        match = re.match(r"^( *)(\S.*?)( +)(/\*.*\*/)$", line)
        if len(line) <= LONGEST or not match or match.group(2).startswith(("#", "/*", "*")) or "*/" in match.group(4)[:-2]:
            out.append(line)
            continue
        margin, code, _, comment = match.groups()
        if len(margin) + len(code) + 2 + len(comment) <= LONGEST:
            column = max(len(margin + code) + 2, min(COLUMN, LONGEST - len(comment)))
            out.append((margin + code).ljust(column) + comment)
        elif out and (out[-1].endswith("\\") or re.match(r"(else|\})", code) or not re.search(r"[;{},:]$|^ */\*.*\*/$|^$", out[-1])):
            out.append(line)                      # inside a macro or an expression: clang-format's business
        else:
            out += fill(comment.split(), margin, margin + " * ")
            out.append(margin + code)
    return out


def code_of(text):
    """What the compiler sees: no comments, no white space outside of literals, neighbouring strings joined."""
    pieces = re.findall(r'/\*.*?\*/|//[^\n]*|"(?:\\.|[^"\\])*"|\'(?:\\.|[^\'\\])*\'|\\\n|\s+|.', text, re.S)
    return "".join(p for p in pieces if not p.startswith(("/*", "//")) and not p.isspace() and p != "\\\n").replace('""', "")


def wrap(path):
    with open(path, encoding="utf-8") as f:
        before = f.read()
    try:
        wrap_lines(path, before)
    finally:
        with open(path, encoding="utf-8") as f:
            same = code_of(f.read()) == code_of(before)
        if not same:
            with open(path, "w", encoding="utf-8") as f:
                f.write(before)
            sys.exit(f"{path}: wrapping would have changed the code; left as it was")


def wrap_lines(path, before):
    if all(len(line) <= LONGEST for line in before.split("\n")):
        return
    lines = before.split("\n")
    lines = wrap_comments(move_trailing_comments(wrap_comments(lines)))
    with open(path, "w", encoding="utf-8") as f:
        f.write("\n".join(lines))
    for _ in range(3):
        with open(path, encoding="utf-8") as f:
            long_lines = [i + 1 for i, line in enumerate(f.read().split("\n")) if len(line) > LONGEST]
        if not long_lines:
            return
        subprocess.run(["clang-format", "-i", *[f"--lines={i}:{i}" for i in long_lines], path], check=True)
    print(f"{path}: lines {long_lines} have to be broken by hand")


for name in sys.argv[1:]:
    wrap(name)
