"""Merges checkpoints on disk: base + scale * (the experts' edits, made into one), tensor by tensor."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from counterpoint.checkpoints import Checkpoint, Comparison, check_output, compare, open_checkpoint, write_checkpoint
from counterpoint.errors import CounterpointError, ModelError, nearest
from counterpoint.merging.methods import average, task_arithmetic, ties
from counterpoint.merging.threshold import magnitude_threshold

Method = Literal["average", "task_arithmetic", "ties"]
Progress = Callable[[str, int, int], None]

METHODS: Mapping[str, float] = {"average": 1.0, "task_arithmetic": 0.4, "ties": 1.0}
"""Method -> scale where none is given. Task arithmetic sums edits, and its paper finds 0.3 to 0.5 best for several
tasks; the others take means, for which 1 is the plain reading."""

DENSITY = 0.2
"""Share of each edit that TIES keeps where none is given: its paper's choice."""


def merge(
    base: str | Path,
    experts: Sequence[str | Path],
    out: Path,
    *,
    method: str = "ties",
    scale: float | None = None,
    density: float | None = None,
    on_progress: Progress = lambda what, done, total: None,
) -> Path:
    """Writes the merged checkpoint to the folder ``out``.

    Args:
        base: the checkpoint that all experts were trained from.
        experts: two or more checkpoints; the first one's files (tokenizer, configuration) and dtypes are kept.
        out: a new folder.
        method: ``average``, ``task_arithmetic`` or ``ties``.
        scale: factor of the merged edit; see ``METHODS``.
        density: ``ties`` only: share of each edit's weights, by magnitude over the whole model, that is kept.
        on_progress: called with a word for the work, tensors done and in total.

    Raises:
        ModelError: a checkpoint cannot be read, differs in its architecture, or ``out`` is taken.
        CounterpointError: an unknown method, fewer than two experts, or numbers out of their range.
    """
    chosen = _checked(method, scale, density, experts)
    opened = [open_checkpoint(expert) for expert in experts]
    origin = open_checkpoint(base)
    pairs = [compare(origin, expert, opened) for expert in opened]
    own = next(
        (pair for pair in pairs if len({in_after for _, in_after in pair.sources.values()}) == len(pair.names)), None
    )
    if own is None:
        raise ModelError(
            f"{base}: has an output projection of its own, and every expert is tied to its embedding. Give the base "
            "that they were trained from."
        )
    check_output(out, own.after)
    merger = _Merger(pairs, own, method, METHODS[method] if scale is None else scale, chosen, on_progress)
    return write_checkpoint(out, own.after, merger.tensor, on_progress)


def _checked(method: str, scale: float | None, density: float | None, experts: Sequence[str | Path]) -> float:
    """The density to use."""
    if method not in METHODS:
        raise CounterpointError(f"method: unknown method {method!r}: {nearest(method, METHODS)}")
    if len(experts) < 2:
        raise CounterpointError(f"experts: merging takes two or more checkpoints, found {len(experts)}. Give another.")
    if scale is not None and not 0 < scale < float("inf"):
        raise CounterpointError(f"scale: should be above 0, found {scale!r}. 1 adds the merged edit as it is.")
    if density is not None and method != "ties":
        raise CounterpointError(f"density: belongs to the method 'ties', found {method!r}. Leave it out.")
    if density is not None and not 0 < density <= 1:
        raise CounterpointError(f"density: should be above 0 and at most 1, found {density!r}. 0.2 keeps a fifth.")
    return DENSITY if density is None else density


@dataclass
class _Merger:
    """Gives the merged tensor of a name; thresholds are found when the first one is asked for."""

    pairs: Sequence[Comparison]
    own: Comparison
    """That with the expert whose names, files and dtypes the merged checkpoint has."""
    method: str
    scale: float
    density: float
    on_progress: Progress
    thresholds: tuple[float, ...] = ()

    def tensor(self, stored: str) -> Tensor:
        """``base + scale * merged edit``; what is not compared is that expert's own."""
        name = self.own.name_of(stored)
        if name is None:
            return self.own.after.tensor(stored)
        base = _tensor(self.own.base, self.own.sources[name][0])
        if not base.is_floating_point():
            return base
        edits_E = torch.stack([_edit(pair, name, base) for pair in self.pairs])
        return base + self.scale * self._merged(edits_E)

    def _merged(self, edits_E: Tensor) -> Tensor:
        if self.method == "average":
            return average(edits_E)
        if self.method == "task_arithmetic":
            return task_arithmetic(edits_E)
        self.thresholds = self.thresholds or self._find_thresholds()
        return ties(edits_E, self.thresholds)

    def _find_thresholds(self) -> tuple[float, ...]:
        total = 2 * len(self.pairs) * len(self.pairs[0].names)
        done = 0

        def edits(pair: Comparison) -> Iterator[Tensor]:
            nonlocal done
            for name in pair.names:
                base = _tensor(pair.base, pair.sources[name][0])
                if base.is_floating_point():
                    yield _edit(pair, name, base)
                done += 1
                self.on_progress("trim", done, total)

        return tuple(magnitude_threshold(lambda pair=pair: edits(pair), self.density) for pair in self.pairs)  # type: ignore[misc]


def _edit(pair: Comparison, name: str, base: Tensor) -> Tensor:
    after = _tensor(pair.after, pair.sources[name][1])
    wide = torch.promote_types(base.dtype, after.dtype)
    return (after.to(wide) - base.to(wide)).to(base.dtype)


def _tensor(checkpoint: Checkpoint, name: str) -> Tensor:
    """One tensor, in float32 at least: differences of halves would lose what small edits have."""
    tensor = checkpoint.tensor(name)
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32)) if tensor.is_floating_point() else tensor
