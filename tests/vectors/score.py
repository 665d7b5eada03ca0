"""Compares logits and greedy ids that the program wrote with a golden vector file. Standard library only.

    score.py FILE.MODE.vec PROMPT LOGITS [IDS]    one prompt: raw float32 rows, and the continuation as text (or "-")
    score.py FILE.MODE.vec --tokens PROMPT        the prompt's token ids, for the program's input
    score.py FILE.MODE.vec --prompts              the prompts: name and how many of the last positions have logits

A position is near when the largest difference over the vocabulary is at most max(floor, 4 * noise there). exact: every
position must be near; official modes: nine of ten (below ten positions: all). Continuations must agree up to the first step
where the reference itself was unsure: its margin there is less than twice that tolerance. Exit status 1: not so.
"""
import struct
import sys

RULES = {"exact": (1e-4, 100), "official": (5e-3, 90), "official-f16": (1e-2, 90)}   # floor, percent of positions


def read_arrays(path):
    """{name: (dims, values)} of a .vec file; the layout is described in the vectors' README."""
    data = open(path, "rb").read()
    if data[:8] != b"DS4VEC01":
        sys.exit(path + ": not a vector file")
    arrays, at = {}, 12
    for _ in range(struct.unpack_from("<I", data, 8)[0]):
        n_name, = struct.unpack_from("<I", data, at)
        name = data[at + 4:at + 4 + n_name].decode()
        at += 4 + n_name
        kind, n_dims = struct.unpack_from("<II", data, at)
        dims = struct.unpack_from("<%dQ" % n_dims, data, at + 8)
        at = (at + 8 + 8 * n_dims + 3) // 4 * 4
        count = 1
        for d in dims:
            count *= d
        arrays[name] = dims, struct.unpack_from("<%d%s" % (count, "fi"[kind]), data, at)
        at += 4 * count
    return arrays


class Prompt:
    def __init__(self, path, name):
        arrays = read_arrays(path)
        self.floor, self.percent = RULES[path.split(".")[-2]]
        for key in ("tokens", "positions", "noise", "margin", "greedy"):
            setattr(self, key, arrays["%s.%s" % (name, key)][1])
        (self.n_rows, self.n_vocab), self.want = arrays[name + ".logits_f64"]

    def tolerance(self, position):
        return max(self.floor, 4 * self.noise[position])

    def distances(self, got):
        for row in range(self.n_rows):
            part = slice(row * self.n_vocab, (row + 1) * self.n_vocab)
            pairs = zip(got[part], self.want[part])
            yield max(abs(a - b) if a == a else float("inf") for a, b in pairs)

    def check_logits(self, path):
        data = open(path, "rb").read()
        if len(data) != 4 * self.n_rows * self.n_vocab:
            return False, "%d bytes of logits, expected %d rows of %d" % (len(data), self.n_rows, self.n_vocab)
        distance = list(self.distances(struct.unpack("<%df" % (len(data) // 4), data)))
        near = sum(d <= self.tolerance(p) for d, p in zip(distance, self.positions))
        must = self.n_rows if self.n_rows < 10 else -(-self.percent * self.n_rows // 100)
        text = "largest %.2e, %d of %d near" % (max(distance), near, self.n_rows)
        return near >= must, text

    def check_ids(self, path):
        ids = [int(word) for word in open(path).read().split()]
        step = 0
        while step < len(self.greedy) and step < len(ids) and ids[step] == self.greedy[step]:
            step += 1
        text = "continuation equal for %d of %d" % (step, len(self.greedy))
        if step == len(self.greedy):
            return True, text
        position = len(self.tokens) - 1 + step            # its logits choose this token
        return step < len(ids) and self.margin[position] < 2 * self.tolerance(position), text


def main(arguments):
    path = arguments[0]
    if arguments[1] == "--prompts":
        for name, (dims, _) in read_arrays(path).items():
            if name.endswith(".positions"):
                print(name[:-len(".positions")], dims[0])
        return 0
    if arguments[1] == "--tokens":
        print(*Prompt(path, arguments[2]).tokens)
        return 0
    prompt = Prompt(path, arguments[1])
    results = []
    if arguments[2] != "-":
        results.append(prompt.check_logits(arguments[2]))
    if len(arguments) > 3:
        results.append(prompt.check_ids(arguments[3]))
    print("; ".join(text for _, text in results))
    return 0 if all(good for good, _ in results) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
