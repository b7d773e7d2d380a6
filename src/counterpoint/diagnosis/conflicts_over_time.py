"""Conflicts over a run, from the Grams that training left behind: means over steps, with standard errors that allow
for steps that resemble their neighbours (``counterpoint.series``).

Legend: T recorded steps, G groups, D domains, Q pairs of domains.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from counterpoint.diagnosis._chance import pairs_of
from counterpoint.errors import RunError
from counterpoint.results import Result
from counterpoint.runs.grams import FILE, read_grams
from counterpoint.series import LOWEST_STEPS, series_mean, verdicts
from counterpoint.surgery.gram import cosines
from counterpoint.tables import Cell, Table

MOST_ROWS = 12
"""Groups that a table lists; ``to_dict`` has all."""


@dataclass(frozen=True, eq=False)
class PairsOverTime:
    """The mean cosine over steps in every group, and what it says."""

    groups: tuple[str, ...]

    mean_GQ: Tensor
    """Mean cosine over the steps in which both domains have a gradient; NaN where there is none."""

    standard_error_GQ: Tensor
    """Of the mean, from means over blocks of consecutive steps; NaN below 16 steps."""

    negative_share_GQ: Tensor
    """Share of steps with a negative cosine; noise alone gives one half."""

    p_value_GQ: Tensor
    verdict_GQ: Tensor
    """-1 conflict, 1 synergy, 0 within noise (Benjamini-Hochberg over groups and pairs). The false discovery rate is
    at most ``level`` where the tests are independent or positively dependent."""


@dataclass(frozen=True, eq=False)
class ConflictsOverTime(Result):
    """Cosines between domain gradients over the steps of a run: of the whole model, and module by module."""

    kind: ClassVar[str] = "conflicts_over_time"

    domains: tuple[str, ...]
    pairs: tuple[tuple[str, str], ...]
    steps: tuple[int, ...]
    level: float
    whole: PairsOverTime
    modules: PairsOverTime

    def tables(self) -> list[Table]:
        """The whole model, then the modules whose mean lies beyond noise."""
        groups = self.modules
        pairs = [" - ".join(pair) for pair in self.pairs]
        note = (
            "negative: share of steps with a cosine below zero (noise alone: 50 %); "
            "standard errors allow for steps that resemble their neighbours"
        )
        rows = tuple((pair, *_cells(self.whole, 0, q)) for q, pair in enumerate(pairs))
        found = [Table("Whole model, mean over steps", ("domains", *_COLUMNS), rows, _FORMS, note)]
        beyond = groups.verdict_GQ.nonzero().tolist()
        beyond.sort(key=lambda place: (int(groups.verdict_GQ[*place]), float(groups.p_value_GQ[*place])))
        if beyond:
            rest = f" ({MOST_ROWS} of {len(beyond)})" if len(beyond) > MOST_ROWS else ""
            rows = tuple((groups.groups[g], pairs[q], *_cells(groups, g, q)) for g, q in beyond[:MOST_ROWS])
            found.append(Table(f"Beyond noise{rest}", ("module", "domains", *_COLUMNS), rows, _FORMS))
        return found

    def sentences(self) -> list[str]:
        """How many modules x pairs conflict, and how many cannot be known."""
        verdict_GQ, tested = self.modules.verdict_GQ, int(self.modules.p_value_GQ.isfinite().sum())
        against, together = int((verdict_GQ < 0).sum()), int((verdict_GQ > 0).sum())
        found = [
            f"Over {len(self.steps)} recorded steps, {against} of {tested} (module, pair of domains) combinations "
            f"conflict beyond noise; {together} pull together, {tested - against - together} are within noise."
        ]
        untested = verdict_GQ.numel() - tested
        if untested:
            found.append(
                f"{untested} more cannot be known: fewer than {LOWEST_STEPS} steps in which both domains have a "
                "gradient, or cosines without variation."
            )
        return found


def conflicts_over_time(run: str | Path, *, level: float = 0.05) -> ConflictsOverTime:
    """Cosines of all pairs of domains over a run's steps, in the whole model and by module.

    Args:
        run: a run directory, or a ``grams.jsonl``.
        level: the false discovery rate.

    Raises:
        RunError: no readable Grams there, or too few steps with two domains at once (says how many are needed).
    """
    path = Path(run) / FILE if Path(run).is_dir() else Path(run)
    if not path.is_file():
        raise RunError(
            f"{path}: there are no Grams here. Give a run directory of a strategy that trains several domains in every "
            "step; elsewhere, measure at a checkpoint: counterpoint diagnose RUN --only conflicts."
        )
    found = read_grams(path)
    gram_TGDD = torch.from_numpy(found.gram_SGDD).double()
    pairs = tuple((found.domains[i], found.domains[j]) for i, j in pairs_of(len(found.domains)))
    _check_steps(path, gram_TGDD, pairs)
    return ConflictsOverTime(
        found.domains,
        pairs,
        tuple(found.step_S.tolist()),
        level,
        _over_steps(("global",), gram_TGDD.sum(1, keepdim=True), level),
        _over_steps(found.groups, gram_TGDD, level),
    )


def _check_steps(path: Path, gram_TGDD: Tensor, pairs: Sequence[tuple[str, str]]) -> None:
    present_TD = gram_TGDD.diagonal(dim1=-2, dim2=-1).isfinite().any(1)
    together = [int((present_TD[:, i] & present_TD[:, j]).sum()) for i, j in pairs_of(present_TD.shape[1])]
    if max(together, default=0) < LOWEST_STEPS:
        most = f"{' and '.join(pairs[together.index(max(together))])} met in {max(together)}" if pairs else "one domain"
        raise RunError(
            f"{path}: no two domains took part together in {LOWEST_STEPS} recorded steps, which a mean with a standard "
            f"error needs ({most}). Train longer or record every step (run.grams_every: 1); domains trained one "
            "after the other are measured at a checkpoint: counterpoint diagnose RUN --only conflicts."
        )


def _over_steps(groups: tuple[str, ...], gram_TGDD: Tensor, level: float) -> PairsOverTime:
    first, second = (list(side) for side in zip(*pairs_of(gram_TGDD.shape[-1]), strict=True))
    cosine_TGQ = cosines(gram_TGDD)[..., first, second]
    shape = cosine_TGQ.shape[1:]
    columns = cosine_TGQ.flatten(1).unbind(1)
    found = [series_mean(column.numpy()) for column in columns]
    mean, error, p_value = (
        torch.tensor([getattr(one, key) for one in found], dtype=torch.float64).reshape(shape)
        for key in ("mean", "standard_error", "p_value")
    )
    verdict = torch.tensor(verdicts(found, level)).reshape(shape)
    steps_GQ = cosine_TGQ.isfinite().sum(0)
    return PairsOverTime(
        groups=groups,
        mean_GQ=mean,
        standard_error_GQ=error,
        negative_share_GQ=torch.where(steps_GQ > 0, (cosine_TGQ < 0).sum(0).double() / steps_GQ, torch.nan),
        p_value_GQ=p_value,
        verdict_GQ=verdict,
    )


_COLUMNS = ("cosine", "s.e.", "negative", "p")
_FORMS = {"cosine": "+.3f", "s.e.": ".3f", "negative": ".0%", "p": ".2g"}


def _cells(groups: PairsOverTime, g: int, q: int) -> tuple[Cell, ...]:
    columns = (groups.mean_GQ, groups.standard_error_GQ, groups.negative_share_GQ, groups.p_value_GQ)
    return tuple(float(column[g, q]) for column in columns)
