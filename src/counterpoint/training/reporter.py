"""How a run tells people what it does; the command line draws bars, tests and libraries stay silent."""

from collections.abc import Mapping, Sequence
from typing import Protocol

from counterpoint.evaluation import DomainScore


class Reporter(Protocol):
    """Hears of everything that takes time."""

    def message(self, text: str) -> None:
        """One line worth reading."""

    def evaluating(self, when: str, domain: str, done: int, total: int) -> None:
        """``done`` of ``total`` completions of a domain are evaluated."""

    def evaluated(self, when: str, step: int, scores: Sequence[DomainScore]) -> None:
        """An evaluation of all domains is complete."""

    def training(self, step: int, total: int, metrics: Mapping[str, float]) -> None:
        """Optimizer step ``step`` of ``total`` is done."""


class Silent:
    """A reporter that says nothing."""

    def message(self, text: str) -> None:
        """Says nothing."""

    def evaluating(self, when: str, domain: str, done: int, total: int) -> None:
        """Says nothing."""

    def evaluated(self, when: str, step: int, scores: Sequence[DomainScore]) -> None:
        """Says nothing."""

    def training(self, step: int, total: int, metrics: Mapping[str, float]) -> None:
        """Says nothing."""
