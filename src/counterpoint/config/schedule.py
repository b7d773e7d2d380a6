"""Shares and weights that change over steps: the sections ``schedule`` and ``curriculum``, and checks of both."""

import json
from collections.abc import Collection, Iterator, Mapping
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, ValidationError

from counterpoint.config.section import Section, Share, explained
from counterpoint.config.variables import Key
from counterpoint.errors import ConfigError, nearest


class ScheduleEntry(Section):
    """Shares or weights from one step on, until another entry changes them."""

    step: int = Field(ge=0, le=10**9, description="Optimizer steps before it holds; 0 is the start.", examples=[50])
    shares: dict[str, Share] | None = Field(
        default=None,
        description="The share of every domain; null leaves them as they are.",
        examples=[{"math": 3, "code": 1}],
    )
    weights: dict[str, Share] | None = Field(
        default=None,
        description="Domain -> factor on the weight that `balance` gives it; others have 1. Null leaves them as they "
        "are, `{}` ends them.",
        examples=[{"math": 2.0}],
    )


class CurriculumConfig(Section):
    """A function of your own that settles shares and weights from the scores so far; docs/weights.md."""

    function: str = Field(
        pattern=":", description="The function, as `package.module:function`.", examples=["my_curriculum:next_mix"]
    )
    every: int = Field(default=1, gt=0, description="Optimizer steps between its calls.")
    folder: str | None = Field(
        default=None, description="Folder of its module; null looks where rewards of your own are looked for."
    )


def _expand_curriculum(value: Any) -> Any:
    return {"function": value} if isinstance(value, str) else value


def _no_schedule(value: Any) -> Any:
    return () if value is None else value


Schedule = Annotated[
    tuple[ScheduleEntry, ...],
    BeforeValidator(_no_schedule, json_schema_input_type=tuple[ScheduleEntry, ...] | None),
]
Curriculum = Annotated[
    CurriculumConfig, BeforeValidator(_expand_curriculum, json_schema_input_type=str | CurriculumConfig)
]


class Changes(Section):
    """What changes shares and weights: a schedule or a curriculum."""

    schedule: Schedule = Field(default=(), description="Shares and weights by step.")
    curriculum: Curriculum | None = Field(default=None, description="A function that settles them.")


def plain_schedule(schedule: Collection[ScheduleEntry]) -> list[dict[str, Any]] | None:
    """The schedule as plain data; None where nothing changes."""
    return [entry.model_dump(mode="json", exclude_none=True) for entry in schedule] or None


def read_changes(schedule: Any, curriculum: Any, domains: Collection[str] | None = None) -> Changes:
    """The settings of a script: as in a configuration, or JSON text of it.

    Raises:
        ConfigError: everything wrong with them; with ``domains`` also names that are none of them.
    """
    given = {
        "schedule": _parsed("schedule", schedule),
        "curriculum": _parsed("curriculum", curriculum) if _is_json(curriculum) else curriculum,
    }
    try:
        changes = Changes.model_validate(given)
    except ValidationError as error:
        found = [explained(Changes, details) for details in error.errors(include_url=False)]
    else:
        found = list(change_findings(given, domains))
    if found:
        raise ConfigError("\n".join(f"{'.'.join(map(str, path))}: {message}" for path, message in found))
    return changes


_AS_JSON = {
    "schedule": '[{"step": 50, "shares": {"math": 3, "code": 1}}]',
    "curriculum": '{"function": "my_curriculum:next_mix", "every": 10}',
}


def _is_json(value: Any) -> bool:
    return isinstance(value, str) and value.lstrip().startswith(("[", "{"))


def _parsed(name: str, value: Any) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except json.JSONDecodeError as error:
        raise ConfigError(f"{name}={value!r}: it is no JSON ({error}). Write it as {_AS_JSON[name]!r}.") from error


def change_findings(
    data: Mapping[str, Any], domains: Collection[str] | None, *, sequential: bool = False
) -> Iterator[tuple[Key, str]]:
    """Path and message of what is wrong between the keys of ``schedule`` and ``curriculum`` in plain ``data``.

    Ill-typed parts are passed over. Without ``domains`` names are not looked at.
    """
    schedule, curriculum = data.get("schedule"), data.get("curriculum")
    for key in ("schedule", "curriculum"):
        if sequential and data.get(key):
            yield (
                (key,),
                "changes what a step holds of several domains, and a stage of strategy: sequential holds one. Remove "
                "it, or use another strategy.",
            )
    if schedule and curriculum:
        yield ("curriculum",), "both a schedule and a curriculum settle the shares. Remove one of them."
    before = -1
    for index, entry in enumerate(schedule if isinstance(schedule, list | tuple) else ()):
        if not isinstance(entry, Mapping):
            continue
        where: Key = ("schedule", index)
        step, shares, weights = (entry.get(key) for key in ("step", "shares", "weights"))
        if shares is None and weights is None:
            yield where, "changes nothing. Give it shares, weights, or both."
        if type(step) is int:
            if step <= before:
                yield (*where, "step"), f"{step} does not come after {before}. Write the entries in the order of steps."
            before = step
        for key, named in (("shares", shares), ("weights", weights)):
            if isinstance(named, Mapping) and domains is not None:
                for message in name_problems(named, domains, whole=key == "shares"):
                    yield (*where, key), message


def name_problems(named: Mapping[Any, Any], domains: Collection[str], *, whole: bool) -> Iterator[str]:
    """What is wrong with the names of shares or weights; with ``whole`` every domain must be there."""
    for name in named:
        if name not in domains:
            yield f"unknown domain {name!r}: {nearest(str(name), domains)}"
    if whole and (missing := [name for name in domains if name not in named]):
        yield f"no share for {', '.join(missing)}. Give every domain its share."
