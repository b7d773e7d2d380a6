"""What ``edits`` finds, as frozen dataclasses, and how sums become them."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from counterpoint.diagnosis.edit_analysis.chunks import Agreement, Sums, Thresholds
from counterpoint.diagnosis.edit_analysis.neurons import Layers
from counterpoint.diagnosis.edit_analysis.overlap import Overlap
from counterpoint.diagnosis.edit_analysis.spectrum import Spectrum, random_spectrum
from counterpoint.diagnosis.edit_analysis.stream import TensorEdits


@dataclass(frozen=True)
class Beside:
    """A number and what a Gaussian random edit of the same shapes gives in its place."""

    value: float
    random: float


@dataclass(frozen=True)
class Part:
    """The edit of a tensor, a module, a layer, or of everything.

    Attributes:
        name: of the part.
        weights: compared; those that are not finite are left out.
        unchanged: share of weights below the thresholds, in the reading asked for.
        norm: of the edit (l2).
        relative_norm: ``norm`` over the norm of the base weights; None where these are zero.
        largest: size of the largest edit of one weight.
        effective_rank, top_1, top_8: see ``Spectrum``; of several matrices the mean, weighted by their squared norms;
            None without a matrix that changed.
    """

    name: str
    weights: int
    unchanged: float
    norm: float
    relative_norm: float | None
    largest: float
    effective_rank: Beside | None = None
    top_1: Beside | None = None
    top_8: Beside | None = None


@dataclass(frozen=True)
class Sparsity:
    """Shares of weights that training left as they were, by several measures.

    Attributes:
        unchanged: in the reading of ``thresholds``; one of the next two.
        both: below the absolute and the relative threshold.
        either: below one of them.
        identical: not changed at all.
        absolute_curve, relative_curve: threshold -> share of weights below it.
    """

    unchanged: float
    both: float
    either: float
    identical: float
    absolute_curve: Mapping[float, float]
    relative_curve: Mapping[float, float]


@dataclass(frozen=True)
class Rounding:
    """What bfloat16 alone would make of the edit.

    Attributes:
        below_half_step: share of weights whose edit is smaller than half a step of bfloat16 at the base weight, so
            that training in pure bfloat16 could not have made it.
        unchanged_in_bfloat16: share of weights that are equal before and after once both are rounded to bfloat16.
        dtypes: the types that the checkpoint is stored in, with weights in each; in a bfloat16 checkpoint every edit
            has been rounded already and the sparsity shows it.
    """

    below_half_step: float
    unchanged_in_bfloat16: float
    dtypes: Mapping[str, int]


@dataclass(frozen=True)
class NonFinite:
    """Weights of one tensor that are NaN or infinite and were left out."""

    tensor: str
    base: int
    checkpoint: int


@dataclass(frozen=True)
class CheckpointEdits:
    """What training changed in one checkpoint.

    Attributes:
        name: short and unique in this diagnosis.
        path: as given.
        against: the checkpoint that it is compared with: the base, or in a chain the one before.
        equal: every weight is as it was there.
        whole, layers, modules, tensors: the edit of all weights and of parts, in model order.
        neurons: change score of every MLP neuron by layer, in the norm asked for.
        top: the most changed neurons of each layer, by number.
    """

    name: str
    path: str
    against: str
    equal: bool
    sparsity: Sparsity
    rounding: Rounding
    nonfinite: tuple[NonFinite, ...]
    whole: Part
    layers: tuple[Part, ...]
    modules: tuple[Part, ...]
    tensors: tuple[Part, ...]
    neurons: Layers
    top: Mapping[int, Sequence[int]]


@dataclass(frozen=True)
class Direction:
    """Whether two edits point the same way in one part.

    Attributes:
        name: of the part.
        cosine: of the two edits; None where one is zero. Chance gives 0.
        cosine_noise: 1.96 standard deviations of the cosine if every sign were drawn by lot and the sizes kept; for
            edits of equal size everywhere this is ``1.96 / sqrt(weights)``.
        same_sign: share of the weights changed by both whose edits have one sign. Chance gives 0.5.
        same_sign_noise: 1.96 standard deviations of that share, ``0.98 / sqrt(changed_by_both)``.
        changed_by_both: how many they are.
    """

    name: str
    cosine: float | None
    cosine_noise: float | None
    same_sign: float | None
    same_sign_noise: float | None
    changed_by_both: int


@dataclass(frozen=True)
class PairEdits:
    """The edits of two checkpoints, compared."""

    first: str
    second: str
    overlap: Overlap | None
    """Of the most changed neurons; None for a model without MLP neurons that we know."""
    whole: Direction
    layers: tuple[Direction, ...]
    modules: tuple[Direction, ...]


@dataclass(frozen=True)
class Reference:
    """LPT's numbers (arXiv 2606.02398), single-domain experts of one 4B model: to read beside, not to pass."""

    unchanged_low: float = 0.77
    unchanged_high: float = 0.89
    jaccard_below: float = 0.19


@dataclass(frozen=True)
class Edits:
    """Everything ``edits`` measures; ``write_result(path, "edits", result)`` makes JSON of it."""

    base: str
    chain: bool
    """Whether every checkpoint was compared with the one before it."""
    thresholds: Thresholds
    neuron_norm: str
    top_share: float
    permutations: int
    skipped: tuple[str, ...]
    """Tensors of whole numbers (quantized weights, indices), which are not compared."""
    checkpoints: tuple[CheckpointEdits, ...]
    pairs: tuple[PairEdits, ...]
    reference: Reference = Reference()


def sparsity_of(sums: Sums, thresholds: Thresholds) -> Sparsity:
    """Shares from counts."""
    weights = max(1, sums.weights)
    shares = [int(count) / weights for count in sums.curve]
    absolute = len(thresholds.absolute_curve)
    both, either = sums.both / weights, sums.either / weights
    return Sparsity(
        both if thresholds.reading == "both" else either,
        both,
        either,
        sums.identical / weights,
        dict(zip(thresholds.absolute_curve, shares[:absolute], strict=True)),
        dict(zip(thresholds.relative_curve, shares[absolute:], strict=True)),
    )


def add_up(tensors: Sequence[TensorEdits], which: int, thresholds: Thresholds) -> Sums:
    """The sums of one checkpoint over several tensors."""
    total = thresholds.empty()
    for tensor in tensors:
        total += tensor.sums[which]
    return total


def part_of(name: str, tensors: Sequence[TensorEdits], which: int, thresholds: Thresholds) -> Part:
    """The edit of checkpoint number ``which`` in some tensors."""
    sums = add_up(tensors, which, thresholds)
    base = math.sqrt(sums.base_energy)
    unchanged = sums.both if thresholds.reading == "both" else sums.either
    part = Part(
        name,
        sums.weights,
        unchanged / max(1, sums.weights),
        math.sqrt(sums.energy),
        math.sqrt(sums.energy) / base if base else None,
        sums.largest,
    )
    spectra = [
        (tensor.sums[which].energy, spectrum, random_spectrum((tensor.shape[0], tensor.shape[1])))
        for tensor in tensors
        if tensor.spectra and (spectrum := tensor.spectra[which]) is not None
    ]
    if not spectra:
        return part
    return replace(
        part,
        effective_rank=_mean(spectra, "effective_rank"),
        top_1=_mean(spectra, "top_1"),
        top_8=_mean(spectra, "top_8"),
    )


def _mean(spectra: Sequence[tuple[float, Spectrum, Spectrum]], field: str) -> Beside:
    total = sum(energy for energy, _, _ in spectra)
    value = sum(energy * getattr(own, field) for energy, own, _ in spectra) / total
    return Beside(value, sum(energy * getattr(chance, field) for energy, _, chance in spectra) / total)


def direction_of(name: str, tensors: Sequence[TensorEdits], pair: int) -> Direction:
    """Cosine and agreement of signs of pair number ``pair`` in some tensors."""
    sums = Agreement()
    for tensor in tensors:
        sums += tensor.pairs[pair]
    scale = math.sqrt(sums.first_energy) * math.sqrt(sums.second_energy)
    return Direction(
        name,
        sums.dot / scale if scale else None,
        1.96 * math.sqrt(sums.square_dot) / scale if scale else None,
        sums.same / sums.changed if sums.changed else None,
        0.98 / math.sqrt(sums.changed) if sums.changed else None,
        sums.changed,
    )
