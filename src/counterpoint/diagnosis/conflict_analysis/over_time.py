"""Conflicts over a run, from the Grams that training left behind.

One step's cosine is mostly noise, so nothing is said about one step: means over steps, with standard errors that allow
for steps that resemble their neighbours.

Legend: T recorded steps, G groups, D domains, Q pairs of domains.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from counterpoint.diagnosis._chance import benjamini_hochberg, pairs_of
from counterpoint.diagnosis.conflict_analysis.noise import student_t_p_value
from counterpoint.errors import CounterpointError, RunError
from counterpoint.runs.grams import FILE, read_grams
from counterpoint.surgery.gram import cosines

LOWEST_BLOCKS = 4
"""Blocks of steps without which a standard error means nothing."""

LOWEST_STEPS = 16
"""Steps in which both domains of a pair must have taken part: four blocks of four."""


@dataclass(frozen=True)
class PairsOverTime:
    """One grouping: cosines at every recorded step, and what their mean over steps says."""

    grouping: str
    groups: tuple[str, ...]

    cosine_TGQ: Tensor
    """NaN where a domain was absent or had no gradient."""

    moving_average_TGQ: Tensor
    """Mean over the recorded steps up to ``window`` around each."""

    mean_GQ: Tensor
    standard_error_GQ: Tensor
    """Of the mean, from means over blocks of consecutive steps."""

    median_size_GQ: Tensor
    """Median of |cosine| over steps: how large a single step's cosine is, whatever its sign."""

    noise_size_GQ: Tensor
    """The median of |cosine| that the step-to-step deviation alone gives around a mean of zero."""

    negative_share_GQ: Tensor
    """Share of steps with a negative cosine; noise alone gives one half."""

    p_value_GQ: Tensor
    verdict_GQ: Tensor
    """-1 conflict, 1 synergy, 0 within noise; corrected over groups and pairs (Benjamini-Hochberg)."""

    tested: int
    conflicts: int
    synergies: int


@dataclass(frozen=True)
class ConflictsOverTime:
    """Cosines between domain gradients over the steps of a run."""

    domains: tuple[str, ...]
    pairs: tuple[tuple[str, str], ...]
    steps: tuple[int, ...]
    window: int
    level: float
    groupings: tuple[PairsOverTime, ...]

    def grouping(self, name: str) -> PairsOverTime:
        """The results of ``global``, ``layer`` or ``module``; KeyError for others."""
        return {found.grouping: found for found in self.groupings}[name]


def conflicts_over_time(run: str | Path, *, window: int = 10, level: float = 0.05) -> ConflictsOverTime:
    """Cosines of all pairs of domains over a run's steps, by module, layer and globally.

    Args:
        run: a run directory, or a ``grams.jsonl``.
        window: recorded steps of the moving average.
        level: the false discovery rate.

    Raises:
        RunError: no readable Grams there, or too few steps with two domains at once (says how many are needed).
        CounterpointError: a window below one.
    """
    if window < 1:
        raise CounterpointError(f"A moving average over {window} steps is not one. Give a window of 1 or more.")
    path = Path(run) / FILE if Path(run).is_dir() else Path(run)
    steps, groups, domains, gram_TGDD = _read(path)
    pairs = tuple((domains[i], domains[j]) for i, j in pairs_of(len(domains)))
    _check_steps(path, gram_TGDD, pairs)
    found = []
    for grouping in ("global", "layer", "module"):
        names, merged_TGDD = _merge(groups, gram_TGDD, grouping)
        found.append(_one_grouping(grouping, names, merged_TGDD, window, level))
    return ConflictsOverTime(tuple(domains), pairs, tuple(steps), window, level, tuple(found))


def block_means(values_T: Tensor) -> tuple[float, float, int]:
    """Mean of a series, its standard error, and how many blocks stand behind it (0: too few to say).

    Blocks are about the square root of the series long (non-overlapping batch means; Glynn and Whitt, 1991), so that
    steps that resemble their neighbours are not counted as independent.
    """
    values_T = values_T[values_T.isfinite()].double()
    length = max(1, math.isqrt(len(values_T)))
    blocks = len(values_T) // length
    if blocks < LOWEST_BLOCKS:
        return (float(values_T.mean()) if len(values_T) else math.nan), math.nan, 0
    means_B = values_T[len(values_T) - blocks * length :].reshape(blocks, length).mean(1)
    return float(means_B.mean()), float(means_B.std() / math.sqrt(blocks)), blocks


def _read(path: Path) -> tuple[list[int], tuple[str, ...], tuple[str, ...], Tensor]:
    if not path.is_file():
        raise RunError(
            f"{path}: there are no Grams here. Give a run directory of a strategy that trains several domains in every "
            "step; elsewhere, measure at a checkpoint: counterpoint diagnose conflicts MODEL CONFIG."
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
            "after the other are measured at a checkpoint: counterpoint diagnose conflicts MODEL CONFIG."
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


def _one_grouping(
    grouping: str, groups: tuple[str, ...], gram_TGDD: Tensor, window: int, level: float
) -> PairsOverTime:
    cosine_TGQ = _cosines(gram_TGDD)
    shape = cosine_TGQ.shape[1:]
    columns = cosine_TGQ.flatten(1).unbind(1)
    found = [block_means(column) for column in columns]
    mean, error = (torch.tensor([f[i] for f in found], dtype=torch.float64) for i in (0, 1))
    p_value = torch.tensor([_p_value(*f) for f in found], dtype=torch.float64)
    known = p_value.isfinite()
    verdict = torch.zeros_like(p_value)
    rejected = torch.tensor(benjamini_hochberg(p_value[known].tolist(), level), dtype=torch.float64)
    verdict[known] = rejected * mean[known].sign()
    sizes = torch.tensor([_sizes(column) for column in columns], dtype=torch.float64)
    return PairsOverTime(
        grouping=grouping,
        groups=groups,
        cosine_TGQ=cosine_TGQ,
        moving_average_TGQ=_moving_average(cosine_TGQ, window),
        mean_GQ=mean.reshape(shape),
        standard_error_GQ=error.reshape(shape),
        median_size_GQ=sizes[:, 0].reshape(shape),
        noise_size_GQ=sizes[:, 1].reshape(shape),
        negative_share_GQ=sizes[:, 2].reshape(shape),
        p_value_GQ=p_value.reshape(shape),
        verdict_GQ=verdict.reshape(shape).long(),
        tested=int(known.sum()),
        conflicts=int((verdict < 0).sum()),
        synergies=int((verdict > 0).sum()),
    )


def _cosines(gram_TGDD: Tensor) -> Tensor:
    first, second = (list(side) for side in zip(*pairs_of(gram_TGDD.shape[-1]), strict=True))
    live_TGD = gram_TGDD.diagonal(dim1=-2, dim2=-1) > 0
    cosine_TGQ = cosines(gram_TGDD)[..., first, second]
    return torch.where(live_TGD[..., first] & live_TGD[..., second], cosine_TGQ, torch.nan)


def _p_value(mean: float, error: float, blocks: int) -> float:
    if blocks < LOWEST_BLOCKS or not error > 0:
        return math.nan
    return float(student_t_p_value(torch.tensor(mean / error), blocks - 1))


def _sizes(cosine_T: Tensor) -> tuple[float, float, float]:
    """Median |cosine|, the one that deviations from the mean alone would have, and the share of negative steps."""
    cosine_T = cosine_T[cosine_T.isfinite()]
    if not len(cosine_T):
        return math.nan, math.nan, math.nan
    noise = (cosine_T - cosine_T.mean()).abs().median()
    return float(cosine_T.abs().median()), float(noise), float((cosine_T < 0).double().mean())


def _moving_average(values_TGQ: Tensor, window: int) -> Tensor:
    """Mean over the ``window`` steps around each, fewer at the ends; missing steps are left out."""
    total = torch.cat([torch.zeros_like(values_TGQ[:1]), values_TGQ.nan_to_num(0).cumsum(0)])
    count = torch.cat([torch.zeros_like(values_TGQ[:1]), values_TGQ.isfinite().double().cumsum(0)])
    index = torch.arange(len(values_TGQ))
    low, high = (index - (window - 1) // 2).clamp(min=0), (index + window // 2 + 1).clamp(max=len(values_TGQ))
    return (total[high] - total[low]) / (count[high] - count[low])
