"""What training changed: how many weights, where, in how many directions, which neurons, and what two edits share.

    found = edits("pocket", ["runs/math/checkpoints/step-40", "runs/qa/checkpoints/step-40"])
    print(found)
    found.pairs[0].overlap.jaccard

All checkpoints are streamed past each other once: no model is ever held in memory.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import ClassVar

import torch

from counterpoint.anatomy import Anatomy
from counterpoint.checkpoints import Checkpoint, compare, open_checkpoint
from counterpoint.diagnosis._chance import Layers, NeuronOverlap, neuron_overlap, pairs_of, top_neurons
from counterpoint.diagnosis._edit_spectrum import AgainstRandom, mean_spectrum
from counterpoint.diagnosis._edit_stream import (
    ABSOLUTE,
    RELATIVE,
    Products,
    Sums,
    TensorEdits,
    is_coarser,
    stream,
)
from counterpoint.errors import ConfigError
from counterpoint.progress import Progress, silent
from counterpoint.results import Result
from counterpoint.tables import Cell, Table

MODULES_SHOWN = 12
"""Modules with the largest relative edit that a table shows."""


@dataclass(frozen=True)
class PartEdit:
    """The edit of a tensor, of a module, or of everything.

    Attributes:
        name: of the part.
        weights: compared; those that are not finite are left out.
        unchanged: share of weights with ``|edit| < 1e-7`` and ``|edit| / |weight| < 1e-3``.
        norm: of the edit (l2); where the base was rounded an estimate of that of the unrounded edit.
        relative_norm: ``norm`` over the norm of the base weights; None where these are zero.
        largest: size of the largest edit of one weight.
        effective_rank, top_8: see ``EditSpectrum``; of several matrices the mean, weighted by their squared norms;
            None without a matrix that changed.
    """

    name: str
    weights: int
    unchanged: float
    norm: float
    relative_norm: float | None
    largest: float
    effective_rank: AgainstRandom | None
    top_8: AgainstRandom | None


@dataclass(frozen=True)
class Sparsity:
    """Shares of weights that training left as they were.

    Attributes:
        unchanged: below LPT's thresholds, as in ``PartEdit``.
        identical: not changed at all.
        same_in_bfloat16: equal before and after once both are rounded to bfloat16.
    """

    unchanged: float
    identical: float
    same_in_bfloat16: float


@dataclass(frozen=True)
class NonFinite:
    """Weights of one tensor that are NaN or infinite and were left out."""

    tensor: str
    base: int
    checkpoint: int


@dataclass(frozen=True, eq=False)
class CheckpointEdits:
    """What training changed in one checkpoint.

    Attributes:
        name: short and unique in this result.
        path: as given.
        against: the checkpoint that it is compared with: the base, or in a chain the one before.
        equal: every weight is as it was there.
        dtypes: the types that the checkpoint is stored in, with weights in each.
        rounded_base: the type that the checkpoint before was rounded to, where it is stored finer; else None.
        whole, modules, tensors: the edit of all weights and of parts, in model order.
        neurons: norm of the edit of every MLP neuron by layer, over its gate row, up row and down column.
        top: the most changed neurons of each layer, by number.
    """

    name: str
    path: str
    against: str
    equal: bool
    dtypes: Mapping[str, int]
    rounded_base: str | None
    sparsity: Sparsity
    nonfinite: tuple[NonFinite, ...]
    whole: PartEdit
    modules: tuple[PartEdit, ...]
    tensors: tuple[PartEdit, ...]
    neurons: Layers
    top: Mapping[int, Sequence[int]]


@dataclass(frozen=True)
class EditCosine:
    """Whether two edits point the same way in one part.

    Attributes:
        name: of the part.
        cosine: of the two edits; None where one is zero. Chance gives 0.
        noise: 1.96 standard deviations of the cosine if every sign were drawn by lot and the sizes kept; for edits of
            equal size everywhere this is ``1.96 / sqrt(weights)``.
        share: of the first edit that the second contains: their inner product over the first one's square.
    """

    name: str
    cosine: float | None
    noise: float | None
    share: float | None


@dataclass(frozen=True)
class PairEdits:
    """The edits of two checkpoints, compared; ``overlap`` is None for a model without MLP neurons that we know."""

    first: str
    second: str
    in_sequence: bool
    """The second edit seems to contain the first: it was trained on from there."""
    overlap: NeuronOverlap | None
    whole: EditCosine
    modules: tuple[EditCosine, ...]


@dataclass(frozen=True, eq=False)
class Edits(Result):
    """What ``edits`` measures.

    ``chain`` tells whether every checkpoint was compared with the one before it, ``top_share`` which share of neurons
    counts as the most changed. ``skipped`` are tensors of whole numbers, and those that one side has no place for.
    """

    kind: ClassVar[str] = "edits"

    base: str
    chain: bool
    top_share: float
    skipped: tuple[str, ...]
    checkpoints: tuple[CheckpointEdits, ...]
    pairs: tuple[PairEdits, ...]

    def tables(self) -> list[Table]:
        """Sparsity, what every checkpoint changed, and what pairs share."""
        changed = [checkpoint for checkpoint in self.checkpoints if not checkpoint.equal]
        tables = [_sparsity_table(self), *(_modules_table(checkpoint) for checkpoint in changed)]
        if any(pair.overlap for pair in self.pairs):
            tables.append(_overlap_table(self))
        return [*tables, _cosine_table(self)] if self.pairs else tables

    def sentences(self) -> list[str]:
        """What must be known to read the tables."""
        return [*_of_checkpoints(self), *_of_pairs(self), *_of_tensors(self)]


def edits(
    base: str | Path,
    checkpoints: Sequence[str | Path],
    *,
    chain: bool = False,
    top: float = 0.1,
    threads: int | None = None,
    on_progress: Progress = silent,
) -> Edits:
    """What every checkpoint changed of ``base``, and what their edits share.

    Args:
        base: folder, hub id or ``pocket``, before training.
        checkpoints: one or more, trained from it.
        chain: compare every checkpoint with the one before it, as the stages of a sequence need, not with ``base``.
        top: share of neurons called the most changed.
        threads: that read and add at the same time; by default as many as there are processors, 16 at most.
        on_progress: called with megabytes read and in total.

    Raises:
        ModelError: a checkpoint that cannot be read or is of another architecture.
        ConfigError: no checkpoint, or ``top`` out of range.
    """
    if isinstance(checkpoints, str | Path):
        raise ConfigError(f"checkpoints is {str(checkpoints)!r}; give a list of one or more, [{str(checkpoints)!r}].")
    if not checkpoints:
        raise ConfigError("checkpoints is empty. Give one or more to compare with the base.")
    if not 0 < top < 1:
        raise ConfigError(f"top={top} is the share of neurons called the most changed. Give one between 0 and 1.")
    opened, before = [open_checkpoint(path) for path in checkpoints], open_checkpoint(base)
    comparisons = [compare(before, after, opened) for after in opened]
    anatomy = comparisons[0].anatomy()
    tensors = stream(comparisons, anatomy, chain=chain, threads=threads, on_progress=on_progress)
    names = _labels(checkpoints)
    against = [str(base), *names[:-1]] if chain else [str(base)] * len(names)
    finer = [before, *opened[:-1]] if chain else [before] * len(opened)
    skipped = tuple(sorted({*comparisons[0].names, *comparisons[0].left_out} - set(comparisons[0].floats)))
    pass_ = _Pass(tensors, anatomy, top)
    found = tuple(
        pass_.checkpoint(i, names[i], str(path), against[i], opened[i], _rounded_to(finer[i], opened[i]))
        for i, path in enumerate(checkpoints)
    )
    pairs = tuple(pass_.pair(number, found[i], found[j], chain) for number, (i, j) in enumerate(pairs_of(len(opened))))
    return Edits(str(base), chain, top, skipped, found, pairs)


def _labels(paths: Sequence[str | Path]) -> list[str]:
    """The last part of each path where these are all different, else as much of it as tells them apart."""
    parts = [Path(path).parts or (str(path),) for path in paths]
    for length in range(1, max(map(len, parts)) + 1):
        labels = ["/".join(own[-length:]) for own in parts]
        if len(set(labels)) == len(labels):
            return labels
    return [f"{label} ({i})" for i, label in enumerate(labels, 1)]


def _rounded_to(before: Checkpoint, after: Checkpoint) -> str | None:
    """The type of ``after`` where most of its weights have fewer digits than those of ``before``."""
    ours, theirs = (max(found, key=lambda name: found[name]) for found in (_dtypes(after), _dtypes(before)))
    return ours if is_coarser(getattr(torch, ours), getattr(torch, theirs)) else None


def _dtypes(checkpoint: Checkpoint) -> dict[str, int]:
    found: dict[str, int] = {}
    for name, dtype in checkpoint.dtypes.items():
        if dtype.is_floating_point:
            short = str(dtype).removeprefix("torch.")
            found[short] = found.get(short, 0) + math.prod(checkpoint.shapes[name])
    return dict(sorted(found.items(), key=lambda item: -item[1]))


@dataclass(frozen=True)
class _Pass:
    """Turns the sums of one pass into results."""

    tensors: list[TensorEdits]
    anatomy: Anatomy
    top: float

    def checkpoint(
        self, which: int, name: str, path: str, against: str, opened: Checkpoint, rounded: str | None
    ) -> CheckpointEdits:
        tensors = self.tensors
        whole = sum((tensor.sums[which] for tensor in tensors), Sums())
        own = [(tensor.name, tensor.sums[which]) for tensor in tensors]
        broken = [NonFinite(key, s.nonfinite_base, s.nonfinite_after) for key, s in own]
        broken = [entry for entry in broken if entry.base or entry.checkpoint]
        scores = self._scores(which)
        return CheckpointEdits(
            name=name,
            path=path,
            against=against,
            equal=whole.identical == whole.weights and not broken,
            dtypes=_dtypes(opened),
            rounded_base=rounded,
            sparsity=_sparsity(whole),
            nonfinite=tuple(broken),
            whole=_part("all", tensors, which),
            modules=tuple(_part(module, group, which) for module, group in self.modules.items()),
            tensors=tuple(_part(tensor.name, [tensor], which) for tensor in tensors),
            neurons=scores,
            top={layer: top.nonzero().flatten().tolist() for layer, top in top_neurons(scores, self.top).items()},
        )

    def pair(self, number: int, first: CheckpointEdits, second: CheckpointEdits, chain: bool) -> PairEdits:
        whole = _cosine("all", self.tensors, number)
        tops = [top_neurons(one.neurons, self.top) for one in (first, second)]
        return PairEdits(
            first.name,
            second.name,
            not chain and _in_sequence(whole, first, second),
            neuron_overlap(*tops) if tops[0] else None,
            whole,
            tuple(_cosine(module, group, number) for module, group in self.modules.items()),
        )

    @cached_property
    def modules(self) -> dict[str, list[TensorEdits]]:
        by_name = {tensor.name: tensor for tensor in self.tensors}
        return {module: [by_name[n] for n in names] for module, names in self.anatomy.by_module(by_name).items()}

    def _scores(self, which: int) -> Layers:
        squares: Layers = {}
        for tensor in self.tensors:
            axis, own = self.anatomy.neuron_axis(tensor.name), tensor.sums[which].neurons
            if axis is not None and own is not None:
                squares[axis.layer] = squares.get(axis.layer, 0) + own.view(axis.times, -1).sum(0)
        return {layer: own.sqrt() for layer, own in sorted(squares.items())}


def _in_sequence(whole: EditCosine, first: CheckpointEdits, second: CheckpointEdits) -> bool:
    """The second edit is the first and something else of another direction: its share of the first is about 1."""
    if whole.share is None or whole.cosine is None or not first.whole.norm:
        return False
    folders = [Path(one.path).parent for one in (first, second)]
    of_one_run = folders[0] == folders[1] and (folders[0].parent / "run.json").is_file()
    return of_one_run or (0.75 < whole.share < 1.25 and second.whole.norm > 1.1 * first.whole.norm)


def _sparsity(sums: Sums) -> Sparsity:
    weights = max(1, sums.weights)
    return Sparsity(sums.unchanged / weights, sums.identical / weights, sums.same_in_bfloat16 / weights)


def _part(name: str, tensors: Sequence[TensorEdits], which: int) -> PartEdit:
    sums = sum((tensor.sums[which] for tensor in tensors), Sums())
    norm, base = math.sqrt(sums.energy), math.sqrt(sums.base_energy)
    unchanged = sums.unchanged / max(1, sums.weights)
    spectra = [
        (tensor.sums[which].energy, (tensor.shape[0], tensor.shape[1]), spectrum)
        for tensor in tensors
        if tensor.spectra and (spectrum := tensor.spectra[which]) is not None
    ]
    relative = norm / base if base else None
    return PartEdit(name, sums.weights, unchanged, norm, relative, sums.largest, *mean_spectrum(spectra))


def _cosine(name: str, tensors: Sequence[TensorEdits], pair: int) -> EditCosine:
    sums = Products()
    for tensor in tensors:
        sums += tensor.pairs[pair]
    scale = math.sqrt(sums.first_energy) * math.sqrt(sums.second_energy)
    if not scale:
        return EditCosine(name, None, None, None)
    return EditCosine(name, sums.dot / scale, 1.96 * math.sqrt(sums.square_dot) / scale, sums.dot / sums.first_energy)


def _sparsity_table(found: Edits) -> Table:
    rows = [
        (c.name, s.unchanged, s.identical, s.same_in_bfloat16, c.whole.norm, c.whole.relative_norm)
        for c in found.checkpoints
        if (s := c.sparsity)
    ]
    columns = ("checkpoint", "unchanged", "identical", "same in bf16", "norm", "relative")
    return Table(
        f"Unchanged weights: |edit| < {ABSOLUTE:g} and relative edit < {RELATIVE:g}",
        columns,
        tuple(rows),
        dict.fromkeys(columns[1:4], ".1%"),
        "same in bf16: before and after are equal once both are rounded to bfloat16.",
    )


def _modules_table(checkpoint: CheckpointEdits) -> Table:
    moved = [part for part in checkpoint.modules if part.norm]
    largest = sorted(moved, key=lambda part: -(part.relative_norm or 0))[:MODULES_SHOWN]
    shown = [part for part in moved if part in largest]
    title = f"{checkpoint.name} against {checkpoint.against}"
    if len(shown) < len(moved):
        title += f": the {len(shown)} of {len(moved)} modules with the largest relative edit"
    rows = []
    for part in [*shown, checkpoint.whole]:
        rank, top = part.effective_rank, part.top_8
        spectrum = (rank.value, rank.random, top.value, top.random) if rank and top else (None,) * 4
        rows.append((part.name, part.relative_norm, *spectrum))
    return Table(
        title,
        ("module", "relative", "rank", "random rank", "top 8", "random top 8"),
        tuple(rows),
        {"rank": ".0f", "random rank": ".0f", "top 8": ".0%", "random top 8": ".0%"},
        "relative: norm of the edit over that of the weights; rank: effective rank of the edit; top 8: share of its "
        "squared norm in its 8 strongest directions; random: what a random edit of the same shapes has.",
    )


def _overlap_table(found: Edits) -> Table:
    rows = [
        (
            f"{pair.first} | {pair.second}",
            o.jaccard,
            o.within_layers.jaccard,
            o.within_layers.p_value,
            o.over_all.jaccard,
        )
        for pair in found.pairs
        if (o := pair.overlap)
    ]
    columns = ("pair", "Jaccard", "by chance", "p", "by chance, all layers")
    forms = dict.fromkeys(("Jaccard", "by chance", "by chance, all layers"), ".3f") | {"p": ".1g"}
    title = f"Do the {found.top_share:.0%} most changed neurons overlap?"
    return Table(
        title, columns, tuple(rows), forms, "by chance, p: random sets with as many neurons in each layer (exact)."
    )


def _cosine_table(found: Edits) -> Table:
    rows: list[tuple[Cell, ...]] = []
    for pair in found.pairs:
        known = sorted((part for part in pair.modules if part.cosine is not None), key=lambda part: part.cosine or 0.0)
        ends = [known[0], known[-1]] if len(known) > 1 else []
        rows += [(f"{pair.first} | {pair.second}", part.name, part.cosine, part.noise) for part in [pair.whole, *ends]]
    return Table(
        "Do two edits point the same way?",
        ("pair", "part", "cosine", "noise ±"),
        tuple(rows),
        {"cosine": "+.3f", "noise ±": ".3f"},
        "All weights, then the modules of lowest and highest cosine. Of unrelated edits 95 % lie within noise of 0.",
    )


def _of_checkpoints(found: Edits) -> list[str]:
    said = []
    for one in found.checkpoints:
        if one.equal and one.rounded_base:
            said.append(f"{one.name} equals {one.against} rounded to {one.rounded_base}: every weight is the same.")
        elif one.equal:
            said.append(f"{one.name} equals {one.against}: every weight is the same.")
        if one.nonfinite:
            worst = (f"{n.tensor} ({n.base} before, {n.checkpoint} after)" for n in one.nonfinite[:3])
            more = " and others" if len(one.nonfinite) > 3 else ""
            said.append(
                f"{one.name}: NaN or Inf in {len(one.nonfinite)} tensors, left out of every number: "
                f"{', '.join(worst)}{more}."
            )
    rounded = [one for one in found.checkpoints if one.rounded_base]
    if rounded:
        said.append(
            f"Stored with fewer digits ({rounded[0].rounded_base}) than what they are compared with: "
            f"{', '.join(one.name for one in rounded)}. Edits are taken from weights rounded to that type; norms, "
            "neurons and cosines are corrected for it. Edits below half a step of the type are seen only in part: to "
            "measure them well, save checkpoints in the type of the base."
        )
    coarse = [c.name for c in found.checkpoints if not c.rounded_base and next(iter(c.dtypes), "") == "bfloat16"]
    if coarse:
        said.append(
            f"Stored in bfloat16: {', '.join(coarse)}. Edits below half a step were rounded away, so the share of "
            "unchanged weights is at least partly that of the format."
        )
    return said


def _of_pairs(found: Edits) -> list[str]:
    said = [
        f"{pair.second} seems to have been trained on from {pair.first}, so their cosine and overlap are positive by "
        "construction. Compare each with the one before it (chain=True)."
        for pair in found.pairs
        if pair.in_sequence
    ]
    if found.chain and found.pairs and any(next(iter(c.dtypes), "") == "bfloat16" for c in found.checkpoints):
        said.append(
            "In a chain of rounded checkpoints the rounding of each is in two edits with opposite signs, which pulls "
            "their cosine down."
        )
    return said


def _of_tensors(found: Edits) -> list[str]:
    return [
        f"{len(found.skipped)} tensors were not compared, {name} among them: they hold whole numbers, or only one side "
        "has a place for them (a tower for images)."
        for name in found.skipped[:1]
    ]
