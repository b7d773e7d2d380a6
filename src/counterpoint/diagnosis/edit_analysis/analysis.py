"""What training changed between a base and checkpoints: sparsity, norms, directions, neurons, and what they share.

One streaming pass over all checkpoints at once; see ``stream`` for how, ``results`` for what comes out.
"""

import math
from collections.abc import Sequence
from pathlib import Path

from counterpoint.anatomy import Anatomy
from counterpoint.checkpoints import Checkpoint, compare, open_checkpoint
from counterpoint.diagnosis._chance import pairs_of
from counterpoint.diagnosis.edit_analysis.chunks import Thresholds
from counterpoint.diagnosis.edit_analysis.neurons import NORMS, Layers, change_scores, numbers, top_neurons
from counterpoint.diagnosis.edit_analysis.overlap import Overlap, overlap
from counterpoint.diagnosis.edit_analysis.results import (
    CheckpointEdits,
    Direction,
    Edits,
    NonFinite,
    PairEdits,
    Part,
    Rounding,
    add_up,
    direction_of,
    part_of,
    sparsity_of,
)
from counterpoint.diagnosis.edit_analysis.stream import Options, Progress, TensorEdits, floating_names, stream
from counterpoint.errors import ConfigError

READINGS = ("both", "either")
Groups = dict[str, list[TensorEdits]]


def edits(
    base: str | Path,
    checkpoints: Sequence[str | Path],
    *,
    chain: bool = False,
    thresholds: Thresholds | None = None,
    top: float = 0.1,
    norm: str = "l2",
    permutations: int = 200,
    seed: int = 0,
    threads: int | None = None,
    on_progress: Progress | None = None,
) -> Edits:
    """What every checkpoint changed of ``base``, and what their edits share.

    Args:
        base: folder, hub id or ``pocket``, before training.
        checkpoints: one or more, trained from it.
        chain: compare every checkpoint with the one before it, as the stages of a sequence need, not with ``base``.
        thresholds: below which a weight counts as unchanged; LPT's by default.
        top: share of neurons called the most changed.
        norm: of a neuron's edit, ``l2``, ``l1`` or ``max``.
        permutations: shuffles that check the chance level of overlaps; p-values are exact without them.
        seed: of the shuffles.
        threads: that read and add at the same time; by default as many as there are processors.
        on_progress: told of megabytes read.

    Raises:
        ModelError: a checkpoint that cannot be read or is of another architecture.
        ConfigError: no checkpoint, or an option out of range.
    """
    thresholds = thresholds or Thresholds()
    _check_options(checkpoints, thresholds, top, norm, permutations)
    opened, before = [open_checkpoint(path) for path in checkpoints], open_checkpoint(base)
    comparisons = [compare(before, after, opened) for after in opened]
    anatomy = comparisons[0].anatomy()
    tensors = stream(comparisons, Options(thresholds, norm, chain, anatomy), threads, on_progress)
    names = _labels(checkpoints)
    scores = [_scores(tensors, i, norm, anatomy) for i in range(len(opened))]
    tops = [top_neurons(own, top) for own in scores]
    against = [str(base), *names[:-1]] if chain else [str(base)] * len(names)
    found = tuple(
        _checkpoint(
            (names[i], str(checkpoints[i]), against[i]), opened[i], tensors, anatomy, i, thresholds, scores[i], tops[i]
        )
        for i in range(len(opened))
    )
    pairs = tuple(
        _pair(
            names[i],
            names[j],
            tensors,
            anatomy,
            number,
            overlap(tops[i], tops[j], permutations, seed) if tops[i] else None,
        )
        for number, (i, j) in enumerate(pairs_of(len(opened)))
    )
    skipped = tuple(sorted({*comparisons[0].names, *comparisons[0].left_out} - set(floating_names(comparisons))))
    return Edits(str(base), chain, thresholds, norm, top, permutations, skipped, found, pairs)


def _check_options(
    checkpoints: Sequence[str | Path], thresholds: Thresholds, top: float, norm: str, permutations: int
) -> None:
    if not checkpoints:
        raise ConfigError("There is no checkpoint to compare with the base. Give one or more.")
    if not 0 < top < 1:
        raise ConfigError(
            f"top is {top}; it is the share of neurons called the most changed. Give one between 0 and 1."
        )
    if norm not in NORMS:
        raise ConfigError(f"norm is {norm!r}; a neuron's edit is measured by one of: {', '.join(NORMS)}.")
    if thresholds.reading not in READINGS:
        raise ConfigError(f"reading is {thresholds.reading!r}; thresholds are joined by one of: {', '.join(READINGS)}.")
    if thresholds.absolute <= 0 or thresholds.relative <= 0:
        raise ConfigError(
            f"The thresholds are {thresholds.absolute:g} and {thresholds.relative:g}; they must be above 0. "
            "LPT's are 1e-7 and 1e-3."
        )
    if permutations < 0:
        raise ConfigError(f"permutations is {permutations}. Give 0 or more.")


def _labels(paths: Sequence[str | Path]) -> list[str]:
    """The last part of each path where these are all different, else as much of it as tells them apart."""
    parts = [Path(path).parts or (str(path),) for path in paths]
    for length in range(1, max(map(len, parts)) + 1):
        labels = ["/".join(own[-length:]) for own in parts]
        if len(set(labels)) == len(labels):
            return labels
    return [f"{label} ({i})" for i, label in enumerate(labels, 1)]


def _scores(tensors: Sequence[TensorEdits], which: int, norm: str, anatomy: Anatomy) -> Layers:
    parts = ((anatomy.neuron_axis(t.name), t.sums[which].neurons) for t in tensors)
    return change_scores(((axis, part) for axis, part in parts if axis and part is not None), norm)


def _checkpoint(
    called: tuple[str, str, str],
    checkpoint: Checkpoint,
    tensors: Sequence[TensorEdits],
    anatomy: Anatomy,
    which: int,
    thresholds: Thresholds,
    scores: Layers,
    top: Layers,
) -> CheckpointEdits:
    def parts(groups: Groups) -> tuple[Part, ...]:
        return tuple(part_of(group, members, which, thresholds) for group, members in groups.items())

    sums = add_up(tensors, which, thresholds)
    weights = max(1, sums.weights)
    broken = [
        NonFinite(t.name, t.sums[which].nonfinite_base, t.sums[which].nonfinite_after)
        for t in tensors
        if t.sums[which].nonfinite_base or t.sums[which].nonfinite_after
    ]
    rounding = Rounding(
        sums.below_half_step / weights, sums.same_in_bfloat16 / weights, _dtypes(checkpoint, [t.name for t in tensors])
    )
    return CheckpointEdits(
        *called,
        sums.identical == sums.weights and not broken,
        sparsity_of(sums, thresholds),
        rounding,
        tuple(broken),
        part_of("all", tensors, which, thresholds),
        parts(by_layer(tensors, anatomy)),
        parts(by_module(tensors, anatomy)),
        parts({tensor.name: [tensor] for tensor in tensors}),
        scores,
        numbers(top),
    )


def _dtypes(checkpoint: Checkpoint, names: Sequence[str]) -> dict[str, int]:
    found: dict[str, int] = {}
    for name in names:
        if name in checkpoint.shapes:
            dtype = str(checkpoint.dtypes[name]).removeprefix("torch.")
            found[dtype] = found.get(dtype, 0) + math.prod(checkpoint.shapes[name])
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def _pair(
    first: str,
    second: str,
    tensors: Sequence[TensorEdits],
    anatomy: Anatomy,
    number: int,
    shared: Overlap | None,
) -> PairEdits:
    def directions(groups: Groups) -> tuple[Direction, ...]:
        return tuple(direction_of(group, members, number) for group, members in groups.items())

    whole = direction_of("all", tensors, number)
    layers, modules = directions(by_layer(tensors, anatomy)), directions(by_module(tensors, anatomy))
    return PairEdits(first, second, shared, whole, layers, modules)


def by_layer(tensors: Sequence[TensorEdits], anatomy: Anatomy) -> Groups:
    """Tensors of each layer, and those outside the layers by module, in model order."""
    groups: Groups = {}
    for tensor in tensors:
        groups.setdefault(anatomy.place(tensor.name).layer, []).append(tensor)
    return groups


def by_module(tensors: Sequence[TensorEdits], anatomy: Anatomy) -> Groups:
    """Tensors of each module in model order."""
    groups: Groups = {}
    for tensor in tensors:
        groups.setdefault(anatomy.module_of(tensor.name), []).append(tensor)
    return groups
