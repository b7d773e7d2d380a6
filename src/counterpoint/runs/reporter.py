"""How a run tells people what it does."""

from collections.abc import Mapping, Sequence
from typing import Any


class Reporter:
    """Hears of everything in a run that takes time, and says nothing; the command line's draws bars."""

    def message(self, text: str) -> None:
        """One line worth reading."""

    def evaluating(self, when: str, domain: str, done: int, total: int) -> None:
        """``done`` of ``total`` completions of a domain are evaluated."""

    def evaluated(self, when: str, step: int, scores: Sequence[Any]) -> None:
        """An evaluation is complete, with a ``DomainScore`` of every domain."""

    def working(self, what: str, done: int, total: int, note: str = "") -> None:
        """``done`` of ``total`` of any other work are done; ``note`` stands beside them."""

    def training(self, step: int, total: int, metrics: Mapping[str, float]) -> None:
        """Optimizer step ``step`` of ``total`` is done."""
