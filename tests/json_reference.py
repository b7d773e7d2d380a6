"""Writes docs/diagnosis/json.md from the dataclasses: ``python tests/json_reference.py``. A test holds both equal."""

import ast
import dataclasses
import inspect
import itertools
import re
import sys
import textwrap
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from counterpoint.diagnosis.behaviour_analysis.analysis import Behaviour
from counterpoint.diagnosis.conflict_analysis.over_time import ConflictsOverTime
from counterpoint.diagnosis.conflict_analysis.results import Conflicts
from counterpoint.diagnosis.damage_analysis.results import Damage
from counterpoint.diagnosis.edit_analysis.results import Edits
from counterpoint.diagnosis.results import VERSION
from counterpoint.diagnosis.route_analysis.analysis import Routes
from counterpoint.diagnosis.whole_run.results import Summary
from counterpoint.diagnosis.whole_run.work import CompletionsKept

PAGE = Path(__file__).parent.parent / "docs" / "diagnosis" / "json.md"

SCHEMAS = {
    "summary": (Summary, "`counterpoint diagnose all`: `RUN/diagnosis/summary.json`"),
    "behaviour": (Behaviour, "`counterpoint diagnose behaviour`: `RUN/diagnosis/behaviour.json`"),
    "edits": (Edits, "`counterpoint diagnose edits`: `RUN/diagnosis/edits.json`"),
    "routes": (Routes, "`counterpoint diagnose routes`: `RUN/diagnosis/routes-step-N.json`"),
    "conflicts": (Conflicts, "`counterpoint diagnose conflicts`: `RUN/diagnosis/conflicts-step-N.json`"),
    "conflicts_over_time": (
        ConflictsOverTime,
        "`counterpoint diagnose conflicts --run`: `RUN/diagnosis/conflicts-over-time.json`",
    ),
    "damage": (Damage, "`counterpoint diagnose damage`: `RUN/diagnosis/damage-A-B.json`"),
    "rollouts": (CompletionsKept, "`counterpoint diagnose all`: `RUN/diagnosis/rollouts-step-N.json`"),
}

HEAD = f"""# JSON of a diagnosis

Every `--json FILE` and every file in `RUN/diagnosis/` is one object that begins with

| field | meaning |
|---|---|
| `schema` | `counterpoint.diagnosis.KIND`, with the kinds below |
| `version` | {VERSION}; it rises when a field is renamed, removed or changes its meaning |
| `inputs` | only in `RUN/diagnosis/`: a hash of weights, configuration and options; a new one means a new measurement |

A number that could not be computed is `null`. Fields whose name ends in capital letters are nested lists with one axis
per letter (`cosine_GQ`: groups, then pairs); each kind says what the letters stand for. An *estimate* has `value` and
the bounds `low` and `high` of its 95 % interval. `rollouts-step-N.jsonl` holds one completion a line: `domain`, `group`
(the number of its prompt), `prompt_ids`, `completion_ids`, `reward`, `advantage`, `truncated`.

This page is written from the code by `tests/json_reference.py`.
"""


def page():
    """The whole page."""
    seen = set()
    parts = [HEAD]
    for kind, (root, where) in SCHEMAS.items():
        parts.append(f"## `{kind}`\n\n{where}\n")
        for found in reachable(root):
            if found in seen:
                parts.append(f"**{found.__name__}**: see above.\n")
            else:
                seen.add(found)
                parts.append(section(found))
    return re.sub(r"\n{3,}", "\n\n", "\n".join(parts)).rstrip() + "\n"


def reachable(root):
    """The dataclass and those its fields hold, in the order of their first use."""
    found = [root]
    for kind in found:
        for hint in typing.get_type_hints(kind).values():
            found += [inner for inner in inner_classes(hint) if inner not in found]
    return found


def inner_classes(hint):
    if dataclasses.is_dataclass(hint):
        return [hint]
    return [inner for argument in typing.get_args(hint) for inner in inner_classes(argument)]


def section(kind):
    hints, notes = typing.get_type_hints(kind), field_notes(kind)
    rows = [
        f"| `{field.name}` | {words(hints[field.name])} | {notes.get(field.name, '')} |"
        for field in dataclasses.fields(kind)
    ]
    text = plain(inspect.getdoc(kind) or "")
    return f"### {kind.__name__}\n\n{text}\n\n| field | type | |\n|---|---|---|\n" + "\n".join(rows) + "\n"


def plain(text):
    """A docstring as Markdown."""
    text = text.replace("``", "`")
    return re.sub(r"(?m)^ {4,}(\w[\w, ]*): ", r"* \1: ", text)


def field_notes(kind):
    """The texts below fields, by field; one text may stand below several."""
    body = ast.parse(textwrap.dedent(inspect.getsource(kind))).body[0].body
    notes = {}
    for field, below in itertools.pairwise(body):
        if isinstance(field, ast.AnnAssign) and isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant):
            notes[field.target.id] = " ".join(plain(inspect.cleandoc(below.value.value)).split()).replace("|", r"\|")
    return notes


def words(hint):
    """A type as JSON has it."""
    arguments = [argument for argument in typing.get_args(hint) if argument not in (type(None), Ellipsis)]
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        return " or ".join([*(words(argument) for argument in arguments), "null"])
    if origin is typing.Literal:
        return " or ".join(f"`{argument}`" for argument in arguments)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return f"object of {words(arguments[1])}"
    if isinstance(origin, type) and issubclass(origin, Sequence):
        return f"list of {words(arguments[0])}"
    names = {bool: "true or false", int: "integer", float: "number", str: "text", torch.Tensor: "nested lists"}
    return names.get(hint) or getattr(hint, "__name__", "any").removesuffix("Any") or "any"


if __name__ == "__main__":
    PAGE.write_text(page())
    sys.stdout.write(f"{PAGE}\n")
