"""Ways in which files are damaged: by a kill, a full disk, a bad copy, a hand, or a hostile one."""

import copy
import json

NASTY = (
    None, True, False, 0, -1, 1, 2**63, 10**400, 0.5, 1e308, float("inf"), float("nan"), "", "\0", "x" * 3000, "\ud800",
    "../..", "math", [], {}, [[]], [{}], [None], {"": ""}, {"a": {"b": {}}}, ["a"] * 50, list(range(100)),
)  # fmt: skip
"""Values of wrong types and sizes."""


def damaged_bytes(data, stream):
    """``data`` with one physical damage."""
    place = stream.randrange(len(data) + 1)
    match stream.randrange(7):
        case 0:
            return data[:place]
        case 1:
            return b""
        case 2:
            return data[:place] + bytes(byte ^ 0x55 for byte in data[place : place + 16]) + data[place + 16 :]
        case 3:
            return data[: -min(len(data), 4096)] + b"\0" * min(len(data), 4096)
        case 4:
            return data + b'{"step": 9, "x'
        case 5:
            return data[:place] + bytes(stream.randrange(256) for _ in range(4)) + data[place:]
        case _:
            return stream.choice(
                [b"[1,2,3]\n", b"{}\n", b"null\n", b"[" * 9000, b'{"a":' * 9000, b"\xff\xfe", b"9" * 5000]
            )


def damaged_value(value, stream):
    """A JSON value with one to three entries replaced, renamed, removed, moved or doubled."""
    value = copy.deepcopy(value)
    for _ in range(stream.choice([1, 1, 1, 2, 3])):
        places = [place for place in _places(value) if place]
        if not places:
            return stream.choice(NASTY)
        _damage(value, places, stream)
    return value


def damaged_json(data, stream):
    """A JSON file with its entries changed."""
    return json.dumps(damaged_value(json.loads(data), stream)).encode() + b"\n"


def damaged_lines(data, stream):
    """A file of JSON lines with one line changed, lost, doubled or broken, or one more in the middle."""
    lines = data.splitlines(keepends=True)
    place = stream.randrange(len(lines))
    match stream.randrange(6):
        case 0:
            del lines[place]
        case 1:
            lines.insert(stream.randrange(len(lines)), lines[place])
        case 2:
            lines[place] = damaged_bytes(lines[place], stream) + b"\n"
        case 3:
            lines.insert(place, b'{"broken\n')
        case _:
            lines[place] = damaged_json(lines[place], stream)
    return b"".join(lines)


def _places(value, place=()):
    yield place
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _places(item, (*place, key))
    elif isinstance(value, list):
        for number, item in enumerate(value):
            yield from _places(item, (*place, number))


def _damage(value, places, stream):
    *way, last = stream.choice(places)
    parent = value
    for key in way:
        parent = parent[key]
    choice = stream.random()
    if choice < 0.6:
        parent[last] = copy.deepcopy(stream.choice(NASTY))
    elif choice < 0.75:
        del parent[last]
    elif choice < 0.85 and isinstance(parent, dict):
        parent[str(last)[:-1]] = parent.pop(last)
    elif isinstance(parent, dict):
        parent[stream.choice(["", "x", "step", "domain", "name"])] = copy.deepcopy(stream.choice(NASTY))
    else:
        parent.append(copy.deepcopy(stream.choice(NASTY)))
