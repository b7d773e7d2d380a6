"""A sequential run that looks after the domains it has trained, and refreshes one that falls.

The test. A domain that was trained has the scores of the evaluation at the end of its own stage. At every look in a
later stage (every ``every`` steps and at its end) each such domain is tested, paired by prompt and one-sided, at the
level ``level / T``, where T counts all tests of the run: domains times looks, over all stages (Bonferroni). So a run in
which no domain falls starts a refresh with a chance of at most ``level``. A look at the end of a refresh only follows
an alarm and is tested at the same level; it does not count in T.

A refresh is a stage put in between: that domain alone, at most ``steps`` steps, ended early as ``refreshing`` says.
Then the interrupted stage goes on where it was: optimizer, schedule and order of prompts.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from counterpoint.config import RecoveryConfig
from counterpoint.evaluation.intervals import Scores, difference_interval
from counterpoint.training.course import Looks
from counterpoint.training.falls import LEVEL, Former, has_fallen
from counterpoint.training.refreshing import outcome, sentence
from counterpoint.training.stages import Stage


@dataclass(frozen=True)
class _Place:
    """Where a run is: the configured stage it is in, the steps taken of it, the refreshes of a domain in each."""

    number: int
    taken: int
    refreshed: Counter[tuple[int, str]]


class Watched:
    """The configured stages of a sequential run with refreshes put in where a domain falls."""

    def __init__(self, stages: Sequence[Stage], settings: RecoveryConfig) -> None:
        self.stages, self.settings = tuple(stages), settings
        self.num_tests = sum(looks * len(domains) for looks, domains in self._planned_looks())
        self.level = settings.level / max(1, self.num_tests)

    def _planned_looks(self) -> Iterator[tuple[int, set[str]]]:
        """For each configured stage, its looks and the domains that are tested at each."""
        trained: set[str] = set()
        for stage in self.stages:
            own = set(stage.domains)
            yield (stage.num_steps - 1) // self.settings.every + 1, trained - own
            trained |= own

    def next(self, done: Sequence[Stage], looks: Looks) -> Stage | None:
        """A refresh of what has fallen, else the rest of the interrupted stage, else the next configured one."""
        index, first = len(done), done[-1].last_step if done else 0
        place = self._place(done)
        if done and (fallen := self._fallen(done, looks[first], looks, place)):
            return Stage(index, (fallen[0],), first, first + self.settings.steps, "refresh")
        number, taken = place.number, place.taken
        if taken == self.stages[number].num_steps:
            number, taken = number + 1, 0
        if number == len(self.stages):
            return None
        configured = self.stages[number]
        return Stage(index, configured.domains, first, first + configured.num_steps - taken, "train", taken)

    def due(self, stage: Stage, step: int) -> bool:
        """Within a refresh every ``refresh_every`` steps, within a stage every ``every`` once a domain was trained."""
        if stage.kind == "refresh":
            return step > stage.first_step and (step - stage.first_step) % self.settings.refresh_every == 0
        later = stage.first_step > 0
        return later and step > stage.first_step and (step - stage.offset) % self.settings.every == 0

    def ends(self, stage: Stage, step: int, done: Sequence[Stage], looks: Looks) -> str | None:
        """A stage ends early where a domain has fallen, a refresh where its domain is back or another one is harmed."""
        if not self.due(stage, step) or step not in looks:
            return None
        if stage.kind == "refresh":
            (domain,) = stage.domains
            former = Former.of_scores(self.former(done, looks)[domain])
            stop, harmed = outcome(domain, former, looks, stage.first_step, step)
            return None if stop == "limit" else sentence(stop, domain, harmed)
        place = self._place(done)
        if place.taken == self.stages[place.number].num_steps:
            place = _Place(place.number + 1, 0, place.refreshed)
        fallen = self._fallen(done, looks[step], looks, place)
        return self._alarm(fallen[0], done, step, looks) if fallen else None

    def total(self, done: Sequence[Stage], stage: Stage | None) -> int:
        """The configured steps, and those of the refreshes on top of them."""
        extra = [*done, *([stage] if stage else [])]
        refreshes = sum(part.num_steps for part in extra if part.kind == "refresh")
        return sum(configured.num_steps for configured in self.stages) + refreshes

    def former(self, done: Sequence[Stage], looks: Looks) -> dict[str, Scores]:
        """The scores of every domain at the end of its own, last whole stage."""
        found: dict[str, Scores] = {}
        number = 0
        for part in done:
            if part.kind == "train" and part.num_steps == self.stages[number].num_steps:
                number += 1
                found |= {name: looks[part.last_step][name] for name in part.domains}
        return found

    def closing(self, done: Sequence[Stage], looks: Looks) -> tuple[dict[str, Any], str | None]:
        """The entry ``watch``: the tests, the refreshes, their steps, and what is still fallen."""
        refreshes = [part for part in done if part.kind == "refresh"]
        former = self.former(done, looks)
        now = looks[done[-1].last_step] if done else {}
        left = [name for name, scores in former.items() if has_fallen(scores, now[name], self.level)]
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

    def _fallen(self, done: Sequence[Stage], now: Mapping[str, Scores], looks: Looks, place: _Place) -> list[str]:
        """Domains that have fallen and may be refreshed once more, the deepest fall first."""
        stage = self.stages[place.number]
        in_training = stage.domains if place.taken < stage.num_steps else ()
        former = self.former(done, looks)
        found = [
            name
            for name, scores in former.items()
            if name not in in_training
            and place.refreshed[place.number, name] < self.settings.times
            and has_fallen(scores, now[name], self.level)
        ]
        return sorted(found, key=lambda name: difference_interval(former[name], now[name], LEVEL).mean)

    def _alarm(self, domain: str, done: Sequence[Stage], step: int, looks: Looks) -> str:
        former = self.former(done, looks)[domain]
        change = difference_interval(former, looks[step][domain], 1 - 2 * self.level)
        return (
            f"{domain} has fallen by {-change.mean:.3f} since the end of its own stage (at least {-change.high:.3f} at "
            f"level {self.level:.2g}), so it is refreshed."
        )
