"""Hostile values, trees and bytes, drawn from a seed: what a broken tool, a bad disk or an ill will writes."""

import copy
import json
import random
import traceback

from counterpoint.errors import CounterpointError

CASES = 800

NUMBERS = [0, -1, 1, 2, 2**31, 2**63, -(2**40), 10**30, 10**400, 0.5, 1e308, 1e-320, float("inf"), float("nan"), 2.5]
TEXTS = [
    *("", " ", "x" * 5000, "9" * 5000, "a\0b", "\ud800", "\u2028", "\u202e", "é", "\x1b[31m"),
    *("~nouser/x", "~", "..", ".", "/", "../../etc/passwd", "/dev/zero", "/dev/null", "/proc/self/mem", "file://x"),
    *("null", "yes", "1e5", "0x10", "1:30", "2020-01-01", "*", "?", "[", "{", "}", "{a.b}", "{a[²]}", "<<", "=", "%s"),
    *("${NOPE}", "${", "$${X}", "a.b:c", "x:", ":x", "nan", "all", "mgs", "sequential", "math", "pocket", "auto"),
]
TREES = [[], {}, [[]], [{}], {"": ""}, {"a": {"b": {"c": {}}}}, list(range(100)), {"type": "file"}, {"name": "math"}]
PIECES = [
    *(
        b":",
        b"-",
        b"\t",
        b"{",
        b"[",
        b'"',
        b"'",
        b"&a ",
        b"*a",
        b"<<: ",
        b"? ",
        b"|",
        b"%",
        b"@",
        b"#",
        b"\n",
        b"---\n",
    ),
    *(b"\0", b"\x1b", b"\xff", b"\xef\xbb\xbf", b"\xc2\x85", b"\\ud800", b"1e999", b"NaN", b"9" * 5000, b"[" * 3000),
    *(b"!!int ", b"!!float ", b"!!bool ", b"!!set ", b"!!binary ", b"!!timestamp ", b"!!omap ", b"!x ", b"%YAML 9.9\n"),
]


def survey(attack, cases=CASES):
    """Runs ``attack(rng)`` for every seed below ``cases``; it may succeed, or raise a printable error of ours.

    Returns how many succeeded.
    """
    faults, succeeded = {}, 0
    for seed in range(cases):
        try:
            attack(random.Random(seed))
            succeeded += 1
        except CounterpointError as error:
            str(error).encode()
        except Exception as error:
            frames = [f"{f.filename.rsplit('/', 1)[-1]}:{f.lineno}" for f in traceback.extract_tb(error.__traceback__)]
            faults.setdefault(f"{type(error).__name__} {str(error)[:100]!r} in {frames[-3:]}", []).append(seed)
    assert not faults, "\n".join(f"seeds {seeds[:5]} of {len(seeds)}: {fault}" for fault, seeds in faults.items())
    return succeeded


def value(rng):
    """Something that stands where something else should."""
    return copy.deepcopy(rng.choice([None, True, False, *NUMBERS, *TEXTS, *TREES]))


def places(tree, path=()):
    """The path of everything inside a tree of mappings and lists."""
    inside = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, below in inside:
        yield (*path, key)
        yield from places(below, (*path, key))


def at(tree, path):
    for key in path:
        tree = tree[key]
    return tree


def mutated(tree, rng):
    """``tree`` with one to five of its values replaced, removed, renamed, exchanged or joined by another."""
    tree = copy.deepcopy(tree)
    for _ in range(rng.choice([1, 1, 1, 2, 3, 5])):
        paths = list(places(tree))
        if not paths:
            return value(rng)
        path = rng.choice(paths)
        holder, key = at(tree, path[:-1]), path[-1]
        match rng.choice(["replace", "replace", "replace", "remove", "rename", "copy", "add"]):
            case "replace":
                holder[key] = value(rng)
            case "remove":
                del holder[key]
            case "rename" if isinstance(holder, dict):
                holder[rng.choice([f"{key}x", *TEXTS])] = holder.pop(key)
            case "copy":
                holder[key] = copy.deepcopy(at(tree, rng.choice(paths)))
            case _ if isinstance(holder, dict):
                holder[rng.choice(["type", "name", "path", "options", "extra", *TEXTS])] = value(rng)
            case _:
                holder.append(value(rng))
    return tree


def damaged(data, rng):
    """``data`` with one to eight bytes or stretches changed, cut out, repeated or put in, or with its end cut off."""
    data = bytearray(data)
    for _ in range(rng.choice([1, 1, 2, 4, 8])):
        if not data:
            break
        start = rng.randrange(len(data))
        match rng.choice(["byte", "byte", "cut", "piece", "repeat", "end"]):
            case "byte":
                data[start] = rng.randrange(256)
            case "cut":
                del data[start : start + rng.randint(1, 50)]
            case "piece":
                data[start:start] = rng.choice(PIECES)
            case "repeat":
                data[start:start] = data[start : start + 1] * rng.choice([2, 10, 1000])
            case "end":
                del data[start:]
    return bytes(data)


def as_json(tree):
    """A tree as JSON, halves of surrogate pairs as escapes."""
    return json.dumps(tree).encode()
