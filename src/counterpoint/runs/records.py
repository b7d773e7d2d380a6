"""What the files of a run must hold, and the one place that reads them.

Whatever is wrong with a file - it cannot be opened, is no UTF-8, no JSON, or has a field of another type - becomes a
``RunError`` that names the file, the line and what to do.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, RootModel, ValidationError

from counterpoint.disk import write_json
from counterpoint.errors import RunError, first_line

T = TypeVar("T")

CHECKSUM = "checksum"
"""Key under which a JSON object keeps the hash of its other entries."""

Whole = Annotated[int, Field(ge=0, le=2**53)]
Count = Annotated[int, Field(gt=0, le=2**53)]
Number = Annotated[float, Field(ge=-1e100, le=1e100, allow_inf_nan=False)]
Names = Annotated[list[str], Field(min_length=1)]
Row = dict[str, Any]


class Record(BaseModel):
    """The fields that an object must have; it may have others."""

    model_config = ConfigDict(strict=True, extra="allow")


class Sealed(Record):
    """The first ``bytes`` of a file and their hash; ``lines`` of them in a file of lines."""

    bytes: Whole
    blake2b: str
    lines: Whole | None = None


class Seal(Record):
    """What the files of a run were after ``step``."""

    step: Whole
    files: dict[str, Sealed]


class StageEntry(Record):
    """One stage in ``run.json``."""

    domains: Names
    first_step: Whole
    last_step: Whole
    checkpoint: str
    kind: Literal["train", "refresh"] = "train"
    taken: Whole = 0


class FormerEntry(Record):
    """What a domain scored when it was good; infinite where that is not known."""

    mean: float
    low: float
    high: float
    scores: list[Number | None] | None


class RefreshEntry(Record):
    """What a refresh is to bring back, in ``run.json``."""

    domain: str
    former: FormerEntry
    every: Count
    options: Row


class RunState(Record):
    """``run.json``."""

    name: str
    strategy: str
    domains: Names
    status: str
    started: Number
    ended: Number | None
    steps: Whole
    stages: list[StageEntry]
    refresh: RefreshEntry | None = None
    no_signal: str | None = None
    seal: Seal | None = None


class ScoreLine(Record):
    """What an evaluation says of one domain as a whole."""

    domain: str
    mean: Number
    low: Number
    high: Number


class TimedScoreLine(ScoreLine):
    """One line that ``counterpoint eval`` writes."""

    seconds: Number


class MeanLine(ScoreLine):
    """What a line of ``evals.jsonl`` says of a domain as a whole."""

    step: Whole
    when: str


class EvalLine(MeanLine):
    """One line of ``evals.jsonl``."""

    greedy: Number | None
    prompts: Count
    samples: Whole
    completion_length: Number
    truncated: Number
    seconds: Number
    scores: Annotated[list[Number | None], Field(min_length=1)]
    parts: dict[str, Number | None] | None = None
    unscored: Whole = 0
    metrics: dict[str, Number | None] | None = None
    reward_cut: Whole = 0


class SampleLine(Record):
    """One line of ``samples.jsonl``."""

    step: Whole
    when: str
    domain: str
    prompt: str
    completion: str


class CostLine(Record):
    """What a line of ``metrics.jsonl`` says of the cost of its step."""

    step: Whole
    stage: Whole
    num_tokens: Number
    step_time: Number


class MetricsLine(Record):
    """One line of ``metrics.jsonl``: numbers, null where one was not finite."""

    step: Whole
    __pydantic_extra__: dict[str, Number | None]


class GramLine(Record):
    """One line of ``grams.jsonl``: inner products [groups, domains, domains] and weights [strategy_groups, domains] of
    one step, float32 in base64.
    """

    step: Whole
    groups: Names
    domains: Names
    gram: str
    weights: str
    strategy_groups: Names | None = None


class AnyObject(RootModel[Row]):
    """Any JSON object."""


LINE_FILES: dict[str, type[Record]] = {
    "metrics.jsonl": MetricsLine,
    "evals.jsonl": EvalLine,
    "samples.jsonl": SampleLine,
    "grams.jsonl": GramLine,
}
"""Files of one JSON object per line, each with its ``step``."""


def read_json(path: Path, kind: type[BaseModel], remedy: str) -> Row:
    """The JSON object in ``path``, known to be of ``kind``.

    Raises:
        RunError: it cannot be read, is of another kind, or was changed since :func:`write_checked` wrote it. ``remedy``
            ends the message.
    """
    return read_as(path, kind, remedy, lambda row: row)


def read_as(path: Path, kind: type[BaseModel], remedy: str, build: Callable[[Row], T]) -> T:
    """What ``build`` makes of the JSON object in ``path``.

    Raises:
        RunError: as :func:`read_json`, or ``build`` cannot use what is there.
    """
    try:
        row = _object(path.read_bytes(), kind)
        if CHECKSUM in row and row[CHECKSUM] != checksum_of(row):
            raise ValueError(f"it was changed since it was written: its {CHECKSUM} does not fit")
        return build(row)
    except _FAULTS as error:
        raise RunError(f"{path}: cannot be read ({_reason(error)}). {remedy}".rstrip()) from error


def read_lines(path: Path, kind: type[BaseModel], remedy: str, *, growing: bool = False) -> list[Row]:
    """The JSON objects of ``path``, one a line, known to be of ``kind``.

    Of a ``growing`` file a last line without an end is left out: it is being written, or a kill tore it apart.

    Raises:
        RunError: a line is no such object. ``remedy`` ends the message.
    """
    try:
        *lines, last = path.read_bytes().split(b"\n")
    except OSError as error:
        raise RunError(f"{path}: cannot be read ({_reason(error)}). {remedy}") from error
    found = []
    for number, line in enumerate(lines if growing or not last else [*lines, last], 1):
        try:
            found.append(_object(line, kind))
        except _FAULTS as error:
            raise RunError(f"{path}, line {number}: cannot be read ({_reason(error)}). {remedy}") from error
    return found


def write_checked(path: Path, row: Mapping[str, Any]) -> None:
    """Writes a JSON object with a hash of itself, so that :func:`read_json` notices any change."""
    write_json(path, {**row, CHECKSUM: checksum_of(row)})


def checksum_of(row: Mapping[str, Any]) -> str:
    """A hash of a JSON object without its checksum."""
    text = json.dumps({key: value for key, value in row.items() if key != CHECKSUM}, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


_FAULTS = (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError, ArithmeticError, RecursionError)
"""What reading, parsing and building raise for foreign content; ``ValidationError`` is a ``ValueError``."""


def _object(data: bytes, kind: type[BaseModel]) -> Row:
    row: Row = json.loads(data.decode("utf-8"))
    if b"\\ud" in data.lower():
        json.dumps(row, ensure_ascii=False).encode()  # half a character, which can be written nowhere
    if not isinstance(row, dict):
        raise TypeError("no JSON object")
    kind.model_validate(row)
    return row


def _reason(error: Exception) -> str:
    if isinstance(error, ValidationError):
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        where = ".".join(map(str, first["loc"]))
        return f"{where}: {first['msg']}" if where else str(first["msg"])
    if isinstance(error, OSError):
        return error.strerror or type(error).__name__
    if isinstance(error, json.JSONDecodeError):
        return f"no whole JSON: {error.msg}"
    if isinstance(error, KeyError):
        return f"{error.args[0]} is missing"
    return first_line(error)
