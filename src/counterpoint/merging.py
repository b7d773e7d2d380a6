"""One model from fine-tuned ones: average, task arithmetic, TIES. Nothing is trained; tensors are read one at a time.

    merge("pocket", ["runs/math/checkpoints/step-30", "runs/code/checkpoints/step-30"], Path("merged"))

merged = base + scale * (the experts' edits, made into one). With one expert that is the line from the base to it.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from counterpoint.checkpoints import Checkpoint, Comparison, check_output, compare, open_checkpoint, write_checkpoint
from counterpoint.errors import CounterpointError, ModelError, nearest
from counterpoint.progress import Progress, silent
from counterpoint.topk import Ranking

DENSITY = 0.2
"""Share of each edit that TIES keeps where none is given: its paper's choice."""


def average(edits_E: Tensor) -> Tensor:
    """The mean edit of experts [E, ...]: base + average is the mean of their weights.

    M. Wortsman et al. (2022), arXiv 2203.05482 (uniform soup).
    """
    return edits_E.mean(0)


def task_arithmetic(edits_E: Tensor) -> Tensor:
    """The sum of the edits [E, ...], to be scaled. G. Ilharco et al. (2023), arXiv 2212.04089, section 2."""
    return edits_E.sum(0)


def ties(edits_E: Tensor) -> Tensor:
    """Elect sign, disjoint mean, of edits [E, ...] that are trimmed already.

    P. Yadav et al. (2023), arXiv 2306.01708, section 4 and algorithm 1. Of every weight the sign with the larger total
    wins; the result is the mean over the experts whose edit is not 0 and has that sign, zero where none has.
    """
    elected = edits_E.sum(0).sign()
    agreeing_E = (edits_E.sign() == elected) & (edits_E != 0)
    return torch.where(agreeing_E, edits_E, 0.0).sum(0) / agreeing_E.sum(0).clamp(min=1)


Combine = Callable[[Tensor], Tensor]

METHODS: Mapping[str, tuple[Combine, float]] = {
    "average": (average, 1.0),
    "task_arithmetic": (task_arithmetic, 0.4),
    "ties": (ties, 1.0),
}
"""Method -> how edits become one, and the scale where none is given. Task arithmetic sums edits, and its paper finds
0.3 to 0.5 best for several tasks; the others take means, for which 1 is the plain reading."""


def merge(
    base: str | Path,
    experts: Sequence[str | Path],
    out: Path,
    *,
    method: str = "ties",
    scale: float | None = None,
    density: float | None = None,
    on_progress: Progress = silent,
) -> Path:
    """Writes the merged checkpoint to the folder ``out``.

    Args:
        base: the checkpoint that all experts were trained from.
        experts: checkpoints, one or more; the first one's files (tokenizer, configuration) and dtypes are kept. One
            expert gives the point ``scale`` of the way from the base to it.
        out: a new folder.
        method: ``average``, ``task_arithmetic`` or ``ties``.
        scale: factor of the merged edit; see ``METHODS``.
        density: ``ties`` only: share of each edit's weights, by magnitude over the whole model, that is kept.
        on_progress: called with a word for the work, tensors done and in total.

    Raises:
        ModelError: a checkpoint cannot be read, differs in its architecture, or ``out`` is taken.
        CounterpointError: an unknown method, no expert, or numbers out of their range.
    """
    _check(method, scale, density, experts)
    opened = [open_checkpoint(expert) for expert in experts]
    origin = open_checkpoint(base)
    pairs = [compare(origin, expert, opened) for expert in opened]
    own = next((pair for pair in pairs if len({name for _, name in pair.sources.values()}) == len(pair.names)), None)
    if own is None:
        raise ModelError(
            f"{base}: has an output projection of its own, and every expert is tied to its embedding. Give the base "
            "that they were trained from."
        )
    check_output(out, own.after)
    combine, usual = METHODS[method]
    kept = (DENSITY if density is None else density) if method == "ties" else None
    merger = _Merger(pairs, own, combine, usual if scale is None else scale, kept, on_progress)
    return write_checkpoint(out, own.after, merger.tensor, on_progress)


def _check(method: str, scale: float | None, density: float | None, experts: Sequence[str | Path]) -> None:
    if method not in METHODS:
        raise CounterpointError(f"method: unknown method {method!r}: {nearest(method, METHODS)}")
    if not experts:
        raise CounterpointError("experts: merging takes one or more checkpoints, found none. Give one.")
    if len(experts) == 1 and scale is None:
        raise CounterpointError(
            "experts: there is one, which alone merges into itself. Give another, or scale: 0.5 is half-way from the "
            "base to it."
        )
    if scale is not None and not 0 < scale < math.inf:
        raise CounterpointError(f"scale: should be above 0, found {scale!r}. 1 adds the merged edit as it is.")
    if density is not None and method != "ties":
        raise CounterpointError(f"density: belongs to the method 'ties', found {method!r}. Leave it out.")
    if density is not None and not 0 < density <= 1:
        raise CounterpointError(f"density: should be above 0 and at most 1, found {density!r}. 0.2 keeps a fifth.")


@dataclass
class _Merger:
    """Gives the merged tensor of a name; thresholds are found when the first one is asked for.

    ``own`` is the comparison with the expert whose names, files and dtypes the merged checkpoint has. ``density`` is
    None where nothing is trimmed.
    """

    pairs: Sequence[Comparison]
    own: Comparison
    combine: Combine
    scale: float
    density: float | None
    on_progress: Progress

    def tensor(self, stored: str) -> Tensor:
        """``base + scale * merged edit``; what is not compared is that expert's own."""
        name = self.own.name_of(stored)
        if name is None:
            return self.own.after.tensor(stored)
        base = _tensor(self.own.base, self.own.sources[name][0])
        if not base.is_floating_point():
            return base
        edits_E = torch.stack([_edit(pair, name, base) for pair in self.pairs])
        if self.density is not None:
            for edit, limit in zip(edits_E, self.thresholds, strict=True):
                edit[edit.abs() < limit] = 0
        return base + self.scale * self.combine(edits_E)

    @cached_property
    def thresholds(self) -> list[float]:
        """The smallest magnitude that is kept, of each expert."""
        assert self.density is not None
        return [self._threshold(number, pair, self.density) for number, pair in enumerate(self.pairs)]

    def _threshold(self, number: int, pair: Comparison, density: float) -> float:
        def magnitudes(name: str) -> Tensor:
            base = _tensor(pair.base, pair.sources[name][0])
            self.on_progress(f"trim expert {number + 1}", pair.names.index(name) + 1, len(pair.names))
            return _edit(pair, name, base).abs_().float() if base.is_floating_point() else torch.zeros(0)

        return magnitude_threshold(pair.names, magnitudes, density)


def magnitude_threshold(names: Sequence[str], magnitudes: Callable[[str], Tensor], density: float) -> float:
    """The magnitude that the largest ``density`` of all N numbers reach: ceil(density * N) of them.

    More are kept only where several are exactly as large as the threshold; it is 0 where that many are not above 0.
    ``magnitudes`` gives a tensor by its name, in every pass again: float32, not negative.
    """
    sizes: dict[str, int] = {}

    def counted(name: str) -> Tensor:
        found = magnitudes(name)
        sizes[name] = found.numel()
        return found

    ranking = Ranking.of(names, counted)
    wanted = math.ceil(density * sum(sizes.values()))
    return ranking.largest([wanted])[0] if 0 < wanted <= ranking.num_candidates else 0.0


def _edit(pair: Comparison, name: str, base: Tensor) -> Tensor:
    after = _tensor(pair.after, pair.sources[name][1])
    wide = torch.promote_types(base.dtype, after.dtype)
    return (after.to(wide) - base.to(wide)).to(base.dtype)


def _tensor(checkpoint: Checkpoint, name: str) -> Tensor:
    """One tensor, in float32 at least: differences of halves would lose what small edits have."""
    tensor = checkpoint.tensor(name)
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32)) if tensor.is_floating_point() else tensor
