"""Checkpoints, or runs, beside each other on the same held-out prompts: scores, and differences paired by prompt.

>>> found = compare_scores({"base": {"math": [0.0, 0.5]}, "tuned": {"math": [1.0, 1.0]}})
>>> found.cell("tuned", "math").change.value
0.75
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from counterpoint.results import Result
from counterpoint.stats import Estimate, Scores, difference_interval, mean_interval, mean_of_independent
from counterpoint.tables import Table

if TYPE_CHECKING:
    import pandas

LEVEL = 0.05
"""Chance, over all differences of a comparison together, of calling any of them one where there is none."""

AVERAGE = "average"
"""The row of the mean over domains."""

Verdict = Literal["higher", "lower", "within noise"]


@dataclass(frozen=True)
class Cell:
    """One checkpoint on one domain, or on average over the domains.

    ``score`` is the mean over held-out prompts with its 95 % interval. ``change`` is the difference from the first
    checkpoint, paired by prompt; its interval holds for all differences of the comparison at once (Bonferroni). It is
    None for the first checkpoint itself, and where no prompt has both scores.
    """

    checkpoint: str
    domain: str
    score: Estimate
    change: Estimate | None

    @property
    def verdict(self) -> Verdict | None:
        """Whether the score differs from the first checkpoint's beyond noise; None where there is no difference."""
        if self.change is None:
            return None
        return "higher" if self.change.low > 0 else "lower" if self.change.high < 0 else "within noise"


@dataclass(frozen=True)
class Comparison(Result):
    """Checkpoints on the same held-out prompts; ``cells`` go checkpoint by checkpoint, ``comparisons`` were judged."""

    kind: ClassVar[str] = "comparison"

    checkpoints: tuple[str, ...]
    domains: tuple[str, ...]
    cells: tuple[Cell, ...]
    comparisons: int

    def cell(self, checkpoint: str, domain: str) -> Cell | None:
        """The cell of a checkpoint and a domain, or of ``average``; None where it was not scored."""
        return next((cell for cell in self.cells if (cell.checkpoint, cell.domain) == (checkpoint, domain)), None)

    @property
    def rows(self) -> tuple[str, ...]:
        """The domains, and their average where there are several."""
        return (*self.domains, AVERAGE) if len(self.domains) > 1 else self.domains

    def tables(self) -> list[Table]:
        """Scores; and where there are several checkpoints, the differences from the first."""
        found = [self._table("Held-out score, mean [95 % interval over prompts]", self.checkpoints, changes=False)]
        if len(self.checkpoints) > 1:
            title = f"Difference from {self.checkpoints[0]}, paired by prompt"
            found.append(self._table(title, self.checkpoints[1:], changes=True))
        return found

    def _table(self, title: str, names: Sequence[str], *, changes: bool) -> Table:
        def value(name: str, domain: str) -> Estimate | None:
            cell = self.cell(name, domain)
            return None if cell is None else cell.change if changes else cell.score

        rows = tuple((domain, *(value(name, domain) for name in names)) for domain in self.rows)
        form = dict.fromkeys(names, "+.3f" if changes else ".3f")
        return Table(title, ("domain", *names), rows, form, self._note() if changes else "")

    def _note(self) -> str:
        return f"The intervals hold for all {self.comparisons} differences at once (95 %, Bonferroni)."

    def long_table(self) -> Table:
        """One row per checkpoint and domain, for plots and spreadsheets."""
        rows = tuple((cell.checkpoint, cell.domain, cell.score, cell.change, cell.verdict) for cell in self.cells)
        return Table("Comparison", ("checkpoint", "domain", "score", "change", "verdict"), rows)

    def to_frame(self) -> "pandas.DataFrame":
        """``long_table`` as a pandas frame."""
        return self.long_table().to_frame()

    def sentences(self) -> list[str]:
        """One verdict for every checkpoint but the first."""
        return [self._sentence(name) for name in self.checkpoints[1:]]

    def _sentence(self, name: str) -> str:
        cells = [cell for domain in self.domains if (cell := self.cell(name, domain)) is not None]
        parts = []
        average = self.cell(name, AVERAGE)
        if average is not None and average.change is not None:
            change = average.change
            parts.append(f"{average.verdict} on average, {change.value:+.3f} [{change.low:+.3f}, {change.high:+.3f}]")
        for verdict in ("lower", "higher", "within noise"):
            if names := [cell.domain for cell in cells if cell.verdict == verdict]:
                parts.append(f"{verdict}: {', '.join(names)}")
        return f"{name} against {self.checkpoints[0]}: {'; '.join(parts) or 'no prompt has both scores'}."


def compare_scores(scores: Mapping[str, Mapping[str, Scores]]) -> Comparison:
    """Checkpoints, or runs, by their scores.

    Args:
        scores: checkpoint -> domain -> the mean score of every held-out prompt [num_prompts], None where a prompt has
            none; the same prompts in the same order for every checkpoint.
    """
    return compare_scored(
        {
            name: {
                domain: (mean_interval(prompts), prompts)
                for domain, prompts in found.items()
                if any(score is not None for score in prompts)
            }
            for name, found in scores.items()
        }
    )


def compare_scored(found: Mapping[str, Mapping[str, tuple[Estimate, Scores]]]) -> Comparison:
    """The same where the mean with its interval is known already; without scores of prompts there is no difference."""
    first, *others = found
    domains = tuple(dict.fromkeys(domain for scored in found.values() for domain in scored))
    comparisons = len(others) * (len(domains) + (len(domains) > 1))
    confidence = 1 - LEVEL / max(1, comparisons)
    cells: list[Cell] = []
    for name, scored in found.items():
        start = {} if name == first else {domain: scores for domain, (_, scores) in found[first].items()}
        own = [
            Cell(name, domain, scored[domain][0], _change(start.get(domain, ()), scored[domain][1], confidence))
            for domain in domains
            if domain in scored
        ]
        cells += own
        if len(domains) > 1 and len(own) == len(domains):  # an average over fewer domains could not be compared
            changes = [cell.change for cell in own if cell.change is not None]
            change = mean_of_independent(changes) if len(changes) == len(domains) else None
            cells.append(Cell(name, AVERAGE, mean_of_independent([cell.score for cell in own]), change))
    return Comparison(tuple(found), domains, tuple(cells), comparisons)


def _change(before: Scores, after: Scores, confidence: float) -> Estimate | None:
    if len(before) != len(after) or not any(
        b is not None and a is not None for b, a in zip(before, after, strict=True)
    ):
        return None
    return difference_interval(before, after, confidence)
