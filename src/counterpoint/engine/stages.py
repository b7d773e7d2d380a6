"""Which stage of a run comes next: four small policies that decide by what is done and what was evaluated.

A policy keeps no state, so a run that was killed and is resumed takes the same way. A plain run and a sequential one
take the configured stages ``InOrder``; ``Watched`` puts a refresh in where a domain falls; ``Refreshing`` is one stage
that ends as soon as its domain is back.
"""

import math
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from counterpoint.config import Config, RecoveryConfig
from counterpoint.errors import ConfigError
from counterpoint.runs.stages import Looks, Stage
from counterpoint.stats import (
    LEVEL,
    MARGIN,
    Former,
    Scores,
    difference_interval,
    harm,
    has_fallen,
    mean_interval,
    standing,
)

Stop = Literal["recovered", "harmed", "limit", "nothing"]


@dataclass(frozen=True)
class History:
    """The stages that are done, and the scores of every evaluation so far."""

    done: tuple[Stage, ...]
    looks: Looks

    @property
    def step(self) -> int:
        """Where the last stage ended, in steps of the run."""
        return self.done[-1].last_step if self.done else 0


class Policy(ABC):
    """The way of a run through its stages; ``steps`` are those configured, refreshes not counted."""

    steps: int

    @abstractmethod
    def next(self, history: History) -> Stage | None:
        """The stage after those that are done; None at the end of the run."""

    def total(self, parts: Sequence[Stage]) -> int:
        """Optimizer steps of the whole run as it looks with ``parts``, the last of which may be under way."""
        return self.steps + sum(part.num_steps for part in parts if part.kind == "refresh")

    def closing(self, history: History) -> tuple[dict[str, Any], str | None]:
        """What is noted in ``run.json`` at the end, and a line for people."""
        return {}, None


class InOrder(Policy):
    """The stages of the configuration, each to its end."""

    def __init__(self, stages: Sequence[Stage]) -> None:
        self.stages = tuple(stages)
        self.steps = self.stages[-1].last_step

    def next(self, history: History) -> Stage | None:
        """The stages in order."""
        number = len(history.done)
        return self.stages[number] if number < len(self.stages) else None


def plan_stages(config: Config, max_steps: int) -> list[Stage]:
    """The stages of ``config``; ``max_steps`` is the budget of the whole run, the same for every strategy.

    A sequential run divides it evenly over its stages, earlier stages taking the remainder, unless
    ``strategy.steps`` gives every stage its own number.

    Raises:
        ConfigError: fewer steps than stages.
    """
    if not config.strategy.sequential:
        return [Stage(0, tuple(config.domains), 0, max_steps)]
    order: Sequence[str] = config.strategy.order or list(config.domains)
    if config.strategy.steps is not None:
        lengths = [config.strategy.steps] * len(order)
    else:
        if max_steps < len(order):
            raise ConfigError(
                f"training.max_steps: {max_steps} steps cannot be divided over {len(order)} stages. Use at least "
                f"{len(order)}, or set strategy.steps."
            )
        lengths = [max_steps // len(order) + (i < max_steps % len(order)) for i in range(len(order))]
    stages, first = [], 0
    for i, (domain, length) in enumerate(zip(order, lengths, strict=True)):
        stages.append(Stage(i, (domain,), first, first + length))
        first += length
    return stages


# A refresh


@dataclass(frozen=True)
class RefreshPlan:
    """What a refresh is to bring back: ``domain`` to its ``former`` score but for ``margin``, evaluated every ``every``
    steps.

    ``options`` are what the run was started with, kept for whoever resumes it.
    """

    domain: str
    former: Former
    every: int
    options: Mapping[str, Any]
    margin: float = MARGIN

    def looks(self, steps: int) -> int:
        """How often a refresh of at most ``steps`` steps is judged."""
        return max(1, math.ceil(steps / self.every))

    def to_json(self) -> dict[str, Any]:
        """The entry ``refresh`` of ``run.json``."""
        return {**vars(self), "former": self.former.to_json(), "options": dict(self.options)}

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> "RefreshPlan":
        """What ``to_json`` gave."""
        former = Former.from_json(fields["former"])
        return cls(fields["domain"], former, fields["every"], fields["options"], fields.get("margin", MARGIN))


class Refreshing(Policy):
    """One stage that begins with an evaluation and ends by ``outcome``."""

    def __init__(self, stage: Stage, plan: RefreshPlan) -> None:
        self.plan = plan
        self.stage = replace(stage, kind="refresh", look_every=plan.every, stop_when=self._stop)
        self.steps = stage.last_step

    def next(self, history: History) -> Stage | None:
        """The one stage, unless the domain is well already."""
        if history.done or (0 in history.looks and self._stop(0, history.looks)):
            return None
        return self.stage

    def total(self, parts: Sequence[Stage]) -> int:
        """The limit, or the steps that were taken."""
        return parts[-1].last_step if parts else self.steps

    def _stop(self, step: int, looks: Looks) -> str | None:
        stop, harmed = outcome(self.plan, looks, 0, step, self.stage.last_step)
        return None if stop == "limit" else sentence(stop, self.plan, harmed)


def outcome(plan: RefreshPlan, looks: Looks, start: int, step: int, steps: int) -> tuple[Stop, str | None]:
    """How a refresh of at most ``steps`` steps that began at ``start`` is after ``step``, and the domain it harmed.

    The domain is ``recovered`` where ``stats.standing`` says that it is back, and another one harmed where
    ``stats.harm`` does; both with the chance of an error spent over all planned looks (and all other domains), so
    that a refresh that changes nothing is called recovered with a chance of at most 2.5 %. Harm comes first: it ends
    the refresh whether or not the domain is back. ``limit`` means that neither happened; ``nothing`` that the domain
    lies within the margin of its former score at the start.
    """
    now, num_looks = looks[step], plan.looks(steps)
    if step == start:
        missing = plan.former.mean - mean_interval(now[plan.domain]).value
        return ("nothing" if missing <= plan.margin else "limit"), None
    others = [name for name in now if name != plan.domain]
    confidence = 1 - 0.05 / (num_looks * max(1, len(others)))
    changes = {name: difference_interval(looks[start][name], now[name], confidence) for name in others}
    harmed = [name for name, change in changes.items() if harm(change, plan.margin) == "harmed"]
    if harmed:
        return "harmed", min(harmed, key=lambda name: changes[name].value)
    found = standing(plan.former.mean, looks[start][plan.domain], now[plan.domain], looks=num_looks, margin=plan.margin)
    return ("recovered" if found.verdict == "back" else "limit"), None


def sentence(stop: Stop, plan: RefreshPlan, harmed: str | None) -> str:
    """Why a refresh ended, in words."""
    if stop == "nothing":
        return f"Nothing to recover: {plan.domain} lies within {plan.margin:g} of its former score."
    if stop == "harmed":
        return f"{harmed} fell beyond noise and by more than {plan.margin:g}, so the refresh of {plan.domain} ends."
    if stop == "recovered":
        return f"{plan.domain} is back: it rose beyond noise, to within {plan.margin:g} of its former score."
    return f"{plan.domain} is not back within {plan.margin:g} of its former score."


# A watched run


@dataclass(frozen=True)
class _Place:
    """Where a run is: the configured stage it is in, the steps taken of it, the refreshes of a domain in each."""

    number: int
    taken: int
    refreshed: Counter[tuple[int, str]]


class Watched(Policy):
    """A sequential run that looks after the domains it has trained, and refreshes one that falls.

    The test. A domain that was trained has the scores of the evaluation at the end of its own stage. At every look in a
    later stage (every ``every`` steps and at its end) each such domain is tested, paired by prompt and one-sided, at
    the level ``level / T``, where T counts all tests of the run: domains times looks, over all stages (Bonferroni). So
    a run in which no domain falls starts a refresh with a chance of at most ``level``. A look at the end of a refresh
    only follows an alarm and is tested at the same level; it does not count in T.

    A refresh is a stage put in between: that domain alone, at most ``steps`` steps, ended early as ``outcome`` says.
    Then the interrupted stage goes on where it was: optimizer, schedule and order of prompts.
    """

    def __init__(self, stages: Sequence[Stage], settings: RecoveryConfig) -> None:
        self.stages, self.settings = tuple(stages), settings
        self.steps = self.stages[-1].last_step
        self.num_tests = sum(looks * len(domains) for looks, domains in self._planned_looks())
        self.level = settings.level / max(1, self.num_tests)

    def _planned_looks(self) -> Iterator[tuple[int, set[str]]]:
        """For each configured stage, its looks and the domains that are tested at each."""
        trained: set[str] = set()
        for stage in self.stages:
            own = set(stage.domains)
            yield (stage.num_steps - 1) // self.settings.every + 1, trained - own
            trained |= own

    def next(self, history: History) -> Stage | None:
        """A refresh of what has fallen, else the rest of the interrupted stage, else the next configured one."""
        index, first = len(history.done), history.step
        place = self._place(history.done)
        if history.done and (fallen := self._fallen(history, first, place)):
            return self._refresh(history, fallen[0])
        number, taken = place.number, place.taken
        if taken == self.stages[number].num_steps:
            number, taken = number + 1, 0
        if number == len(self.stages):
            return None
        configured = self.stages[number]
        every = self.settings.every if first > 0 else None  # before any domain was trained none can fall
        stage = Stage(index, configured.domains, first, first + configured.num_steps - taken, "train", taken, every)
        place = _Place(number, taken, place.refreshed)
        return replace(stage, stop_when=lambda step, looks: self._alarm(replace(history, looks=looks), step, place))

    def _refresh(self, history: History, domain: str) -> Stage:
        first = history.step
        steps, every = self.settings.steps, self.settings.refresh_every
        plan = RefreshPlan(domain, Former.of_scores(self.former(history)[domain]), every, {})

        def stop(step: int, looks: Looks) -> str | None:
            found, harmed = outcome(plan, looks, first, step, steps)
            return None if found == "limit" else sentence(found, plan, harmed)

        last = first + steps
        return Stage(len(history.done), (domain,), first, last, "refresh", 0, every, stop)

    def former(self, history: History) -> dict[str, Scores]:
        """The scores of every domain at the end of its own, last whole stage."""
        found: dict[str, Scores] = {}
        number = 0
        for part in history.done:
            if part.kind == "train" and part.num_steps == self.stages[number].num_steps:
                number += 1
                found |= {name: history.looks[part.last_step][name] for name in part.domains}
        return found

    def closing(self, history: History) -> tuple[dict[str, Any], str | None]:
        """The entry ``watch``: the tests, the refreshes, their steps, and what is still fallen."""
        refreshes = [part for part in history.done if part.kind == "refresh"]
        now = history.looks[history.step] if history.done else {}
        left = [name for name, scores in self.former(history).items() if has_fallen(scores, now[name], self.level)]
        steps = sum(part.num_steps for part in refreshes)
        watch = {
            "level": self.settings.level,
            "tests": self.num_tests,
            "level_per_test": self.level,
            "refreshes": len(refreshes),
            "refresh_steps": steps,
            "still_fallen": left,
        }
        return {"watch": watch}, (
            f"Watched: {len(refreshes)} refreshes took {steps} steps on top of those configured; "
            f"{', '.join(left) or 'no domain'} ends below its former score."
        )

    def _place(self, done: Sequence[Stage]) -> _Place:
        number, taken = 0, 0
        refreshed: Counter[tuple[int, str]] = Counter()
        for part in done:
            if part.kind == "refresh":
                refreshed[number, part.domains[0]] += 1
                continue
            if taken == self.stages[number].num_steps:
                number += 1
            taken = part.num_steps
        return _Place(number, taken, refreshed)

    def _fallen(self, history: History, step: int, place: _Place) -> list[str]:
        """Domains that have fallen after ``step`` and may be refreshed once more, the deepest fall first."""
        stage, now = self.stages[place.number], history.looks[step]
        in_training = stage.domains if place.taken < stage.num_steps else ()
        former = self.former(history)
        found = [
            name
            for name, scores in former.items()
            if name not in in_training
            and place.refreshed[place.number, name] < self.settings.times
            and has_fallen(scores, now[name], self.level)
        ]
        return sorted(found, key=lambda name: difference_interval(former[name], now[name], LEVEL).value)

    def _alarm(self, history: History, step: int, place: _Place) -> str | None:
        """Why a stage under way ends after ``step``: a domain has fallen."""
        fallen = self._fallen(history, step, place)
        if not fallen:
            return None
        change = difference_interval(
            self.former(history)[fallen[0]], history.looks[step][fallen[0]], 1 - 2 * self.level
        )
        return (
            f"{fallen[0]} has fallen by {-change.value:.3f} since the end of its own stage (at least "
            f"{-change.high:.3f} at level {self.level:.2g}), so it is refreshed."
        )
