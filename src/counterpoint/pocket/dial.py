"""A dial of interference: two pocket domains over one family of prompts that want opposite things.

``short`` wants the shortest answers and ``long`` long ones, whatever they say. What tells them apart is the *cue*::

    plain     A:3 words +a -e:    B:3 words +a -e:      the first letter of the prompt
    hidden    3 words +a -e:      3 words +t -e:        the letter after +: a to l is short, m to z is long
    absent    3 words +a -e:      3 words +a -e:        nothing: what one domain gains the other loses

So conflict is known and graded. ``length`` says how long an answer must be, and with it how unequal the domains are in
tokens; the size of a step and of the shared capacity (``model.lora.r``) are settings of the training.
"""

import random
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Final, Literal

from counterpoint.errors import DomainError
from counterpoint.pocket.tasks import TASKS, Task, Writing
from counterpoint.pocket.words import WORDS

Cue = Literal["plain", "hidden", "absent"]

_WRITING = Writing()


@dataclass(frozen=True)
class LengthTask(Task):
    """One of the two domains."""

    is_short: ClassVar[bool]
    mark: ClassVar[str]
    cue: Cue = "hidden"
    length: int = 20
    """Characters of the longest answer that is still rewarded more than a shorter one."""

    def draw(self, rng: random.Random) -> tuple[str, str]:
        """A prompt of the family ``writing`` that carries this domain's cue, and an answer of score 1."""
        while True:
            prompt, _ = _WRITING.draw(rng)
            if self.cue != "hidden" or (prompt.split("+")[1][0] < "m") == self.is_short:
                break
        return (f"{self.mark}:{prompt}" if self.cue == "plain" else prompt), self._answer(rng)

    def _answer(self, rng: random.Random) -> str:
        words = [rng.choice(WORDS)]
        while not self.is_short and len(" ".join(words)) < self.length:
            words.append(rng.choice(WORDS))
        return words[0][0] if self.is_short else " ".join(words)

    def generate(self, split: str, index: int) -> dict[str, Any]:
        """A row as of any task, with the ``length`` by which it is scored."""
        return {**super().generate(split, index), "length": self.length}

    def score(self, row: Mapping[str, Any], completion: str) -> float:
        """By the number of characters without white space around them.

        ``long``: their share of ``length``, at most 1. ``short``: 1 up to a fifth of ``length``, falling to 0 at four
        fifths; nothing at all is worth 0.
        """
        count, length = len(completion.strip()), row["length"]
        if not self.is_short:
            return min(count, length) / length
        return min(1.0, max(0.0, (0.8 * length - count) / (0.6 * length))) if count else 0.0


class Short(LengthTask):
    """Wants the shortest answers."""

    name, about, is_short, mark = "short", "a short answer, of whatever", True, "A"


class Long(LengthTask):
    """Wants long answers."""

    name, about, is_short, mark = "long", "a long answer, of whatever", False, "B"


DIAL: Final[Mapping[str, LengthTask]] = {"short": Short(), "long": Long()}

ALL_TASKS: Final[Mapping[str, Task]] = {**TASKS, **DIAL}
"""All pocket tasks by name; the base model was made on ``TASKS`` alone."""


def pocket_task(name: str, cue: Cue | None = None, length: int | None = None) -> Task:
    """A task of ``ALL_TASKS``, those of the dial with their settings.

    Raises:
        DomainError: a setting for a task that has none.
    """
    task = ALL_TASKS[name]
    given: dict[str, Any] = {key: value for key, value in (("cue", cue), ("length", length)) if value is not None}
    if given and not isinstance(task, LengthTask):
        raise DomainError(
            f"the pocket task {name!r} has no {' and no '.join(given)}; only {' and '.join(DIAL)} have. Remove it."
        )
    return replace(task, **given) if given and isinstance(task, LengthTask) else task
