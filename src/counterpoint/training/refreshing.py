"""The course of a refresh: short training on a damaged domain, ended when it is back or another one falls."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from counterpoint.evaluation.intervals import Scores, difference_interval
from counterpoint.training.course import Looks
from counterpoint.training.falls import Former, is_back, is_harmed
from counterpoint.training.stages import Stage

Stop = Literal["recovered", "harmed", "limit", "nothing"]


@dataclass(frozen=True)
class RefreshPlan:
    """What a refresh is to bring back: ``domain`` to its ``former`` score, looked at every ``every`` steps.

    ``options`` are what the run was started with, kept for whoever resumes it.
    """

    domain: str
    former: Former
    every: int
    options: Mapping[str, Any]

    def to_json(self) -> dict[str, Any]:
        """The entry ``refresh`` of ``run.json``."""
        return {**vars(self), "former": self.former.to_json(), "options": dict(self.options)}

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> "RefreshPlan":
        """What ``to_json`` gave."""
        return cls(fields["domain"], Former.from_json(fields["former"]), fields["every"], fields["options"])


class Refreshing:
    """One stage that begins with an evaluation and ends by ``outcome``."""

    def __init__(self, stage: Stage, plan: RefreshPlan) -> None:
        self.stage = Stage(0, stage.domains, 0, stage.last_step, "refresh")
        self.plan = plan

    def next(self, done: Sequence[Stage], looks: Looks) -> Stage | None:
        """The one stage, unless the domain is well already."""
        if done or (0 in looks and self.ends(self.stage, 0, done, looks)):
            return None
        return self.stage

    def due(self, stage: Stage, step: int) -> bool:
        """Every ``every`` steps, and before the first one."""
        return step % self.plan.every == 0

    def ends(self, stage: Stage, step: int, done: Sequence[Stage], looks: Looks) -> str | None:
        """The first evaluation at which the domain is back or another one has fallen."""
        if not self.due(stage, step) or step not in looks:
            return None
        stop, harmed = outcome(self.plan.domain, self.plan.former, looks, 0, step)
        if stop == "nothing":
            return f"Nothing to recover: {self.plan.domain} is within the interval of its former score."
        return None if stop == "limit" else sentence(stop, self.plan.domain, harmed)

    def total(self, done: Sequence[Stage], stage: Stage | None) -> int:
        """The limit, or the steps that were taken."""
        return done[-1].last_step if done else self.stage.last_step

    def closing(self, done: Sequence[Stage], looks: Looks) -> tuple[dict[str, Any], str | None]:
        """Nothing: whoever started the refresh says what became of it."""
        return {}, None


def outcome(domain: str, former: Former, looks: Looks, start: int, step: int) -> tuple[Stop, str | None]:
    """How a refresh that began at ``start`` stands after ``step``, and the domain that it harmed.

    Harm to another domain comes first: it ends the refresh whether or not the domain is back. ``limit`` means that
    neither happened.
    """
    now = looks[step]
    if step == start:
        return ("nothing" if is_back(former, now[domain]) else "limit"), None
    others = [name for name in now if name != domain and is_harmed(looks[start][name], now[name])]
    if others:
        return "harmed", max(others, key=lambda name: _loss(looks[start][name], now[name]))
    return ("recovered" if is_back(former, now[domain]) else "limit"), None


def sentence(stop: Stop, domain: str, harmed: str | None) -> str:
    """Why a refresh ended, in words."""
    if stop == "harmed":
        return f"{harmed} fell below its interval at the start, so the refresh of {domain} ends."
    if stop == "recovered":
        return f"{domain} is back within the interval of its former score."
    return f"{domain} is not back within the interval of its former score."


def _loss(before: Scores, now: Scores) -> float:
    return -difference_interval(before, now).mean
