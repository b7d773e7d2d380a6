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
from counterpoint.errors import CounterpointError, RunError
from counterpoint.results import Result
from counterpoint.runs.grams import FILE, read_grams
from counterpoint.series import LOWEST_STEPS, series_mean, verdicts
from counterpoint.surgery.gram import cosines
from counterpoint.tables import Cell, Table

MOST_ROWS = 12
"""Groups that a table lists; ``to_dict`` has all."""


@dataclass(frozen=True, eq=False)
class PairsOverTime:
    """One grouping: the mean cosine over steps, and what it says."""

    grouping: str
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

    tested: int
    conflicts: int
    synergies: int


@dataclass(frozen=True, eq=False)
class ConflictsOverTime(Result):
    """Cosines between domain gradients over the steps of a run; ``by`` is the grouping that the tables show."""

    kind: ClassVar[str] = "conflicts_over_time"

    domains: tuple[str, ...]
    pairs: tuple[tuple[str, str], ...]
    steps: tuple[int, ...]
    level: float
    groupings: tuple[PairsOverTime, ...]
    by: str = "module"

    def grouping(self, name: str) -> PairsOverTime:
        """The results of ``global``, ``layer`` or ``module``; KeyError for others."""
        return {found.grouping: found for found in self.groupings}[name]

    def tables(self) -> list[Table]:
        """The whole model, then the groups whose mean lies beyond noise."""
        whole, groups = self.grouping("global"), self.grouping(self.by)
        pairs = [" - ".join(pair) for pair in self.pairs]
        note = (
            "negative: share of steps with a cosine below zero (noise alone: 50 %); "
            "standard errors allow for steps that resemble their neighbours"
        )
        rows = tuple((pair, *_cells(whole, 0, q)) for q, pair in enumerate(pairs))
        found = [Table("Whole model, mean over steps", ("domains", *_COLUMNS), rows, _FORMS, note)]
        beyond = groups.verdict_GQ.nonzero().tolist()
        beyond.sort(key=lambda place: (int(groups.verdict_GQ[*place]), float(groups.p_value_GQ[*place])))
        if beyond:
            rest = f" ({MOST_ROWS} of {len(beyond)})" if len(beyond) > MOST_ROWS else ""
            rows = tuple((groups.groups[g], pairs[q], *_cells(groups, g, q)) for g, q in beyond[:MOST_ROWS])
            found.append(Table(f"Beyond noise{rest}", (self.by, "domains", *_COLUMNS), rows, _FORMS))
        return found

    def sentences(self) -> list[str]:
        """How many groups x pairs conflict, and how many cannot be known."""
        groups = self.grouping(self.by)
        within = groups.tested - groups.conflicts - groups.synergies
        found = [
            f"Over {len(self.steps)} recorded steps, {groups.conflicts} of {groups.tested} ({self.by}, pair of domains)"
            f" combinations conflict beyond noise; {groups.synergies} pull together, {within} are within noise."
        ]
        untested = groups.p_value_GQ.numel() - groups.tested
        if untested:
            found.append(
                f"{untested} more cannot be known: fewer than {LOWEST_STEPS} steps in which both domains have a "
                "gradient, or cosines without variation."
            )
        return found


def conflicts_over_time(run: str | Path, *, level: float = 0.05, by: str = "module") -> ConflictsOverTime:
    """Cosines of all pairs of domains over a run's steps, by module, layer and globally.

    Args:
        run: a run directory, or a ``grams.jsonl``.
        level: the false discovery rate.
        by: the grouping that tables show, ``module`` or ``layer``.

    Raises:
        RunError: no readable Grams there, or too few steps with two domains at once (says how many are needed).
        CounterpointError: a grouping that a run does not record.
    """
    if by not in ("module", "layer"):
        raise CounterpointError(f"by={by!r}: a run records its Grams by module. Give module or layer.")
    path = Path(run) / FILE if Path(run).is_dir() else Path(run)
    steps, groups, domains, gram_TGDD = _read(path)
    pairs = tuple((domains[i], domains[j]) for i, j in pairs_of(len(domains)))
    _check_steps(path, gram_TGDD, pairs)
    found = []
    for grouping in ("global", "layer", "module"):
        names, merged_TGDD = _merge(groups, gram_TGDD, grouping)
        found.append(_one_grouping(grouping, names, merged_TGDD, level))
    return ConflictsOverTime(tuple(domains), pairs, tuple(steps), level, tuple(found), by)


def _read(path: Path) -> tuple[list[int], tuple[str, ...], tuple[str, ...], Tensor]:
    if not path.is_file():
        raise RunError(
            f"{path}: there are no Grams here. Give a run directory of a strategy that trains several domains in every "
            "step; elsewhere, measure at a checkpoint: counterpoint diagnose RUN --only conflicts."
        )
    found = read_grams(path)
    gram_TGDD = torch.from_numpy(found.gram_SGDD).double()
    return found.step_S.tolist(), found.groups, found.domains, gram_TGDD


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


def _merge(groups: Sequence[str], gram_TGDD: Tensor, grouping: str) -> tuple[tuple[str, ...], Tensor]:
    """The recorded modules summed into coarser groups, and what is recorded left as it is for ``module``."""
    if grouping == "module":
        return tuple(groups), gram_TGDD
    coarse = ["global" if grouping == "global" else _layer(name) for name in groups]
    names = tuple(dict.fromkeys(coarse))
    index = torch.tensor([names.index(name) for name in coarse])
    merged = gram_TGDD.new_zeros(len(gram_TGDD), len(names), *gram_TGDD.shape[2:])
    return names, merged.index_add_(1, index, gram_TGDD)


def _layer(name: str) -> str:
    return ".".join(name.split(".")[:2]) if name.startswith("layers.") else name


def _one_grouping(grouping: str, groups: tuple[str, ...], gram_TGDD: Tensor, level: float) -> PairsOverTime:
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
        grouping=grouping,
        groups=groups,
        mean_GQ=mean,
        standard_error_GQ=error,
        negative_share_GQ=torch.where(steps_GQ > 0, (cosine_TGQ < 0).sum(0).double() / steps_GQ, torch.nan),
        p_value_GQ=p_value,
        verdict_GQ=verdict,
        tested=int(p_value.isfinite().sum()),
        conflicts=int((verdict < 0).sum()),
        synergies=int((verdict > 0).sum()),
    )


_COLUMNS = ("cosine", "s.e.", "negative", "p")
_FORMS = {"cosine": "+.3f", "s.e.": ".3f", "negative": ".0%", "p": ".2g"}


def _cells(groups: PairsOverTime, g: int, q: int) -> tuple[Cell, ...]:
    columns = (groups.mean_GQ, groups.standard_error_GQ, groups.negative_share_GQ, groups.p_value_GQ)
    return tuple(float(column[g, q]) for column in columns)
