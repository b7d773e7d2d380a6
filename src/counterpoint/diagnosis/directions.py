"""Whether the edits of two domains pull what both use the same way: cosines on the shared route, against noise.

A cosine is that of the sums over units of ``a.b``, ``a.a`` and ``b.b``, the last axis of every tensor of values.

Legend: D domains with an edit, U units of all layers (neurons, or attention heads), S shared units, R resamples.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from counterpoint.anatomy import Anatomy
from counterpoint.checkpoints import Comparison
from counterpoint.diagnosis._edit_stream import is_coarser, likenesses, without_rounding, without_steps
from counterpoint.errors import ModelError
from counterpoint.stats import Estimate

Kind = Literal["neuron", "head"]
Verdict = Literal["synergy", "neutral", "conflict", "too few neurons", "too few heads", "no edit"]

MINIMUM = 0.05
"""Cosines nearer to 0 are neutral however sure they are. Ours."""

MIN_UNITS = 10
"""Fewer units give no interval and no verdict."""

_DRAWS = 1000
_CONTROLS = 400
_NUMBERS_AT_ONCE = 2_000_000


@dataclass(frozen=True)
class Direction:
    """The cosine of two domains' edits on the units of their shared route.

    Attributes:
        first, second: the domains.
        kind: ``neuron`` (gate row, up row and down column) or ``head`` (rows of the query projection, columns of the
            output projection).
        part: ``total``, or a module as ``layers.3.mlp`` or ``layers.3.attention``.
        units: shared ones in the part.
        cosine: with a 95 % bootstrap interval over units.
        noise: what 95 % of cosines stay below (in absolute value) when every unit's agreement gets a random sign.
        elsewhere: the same cosine on as many random units of the same layers outside the shared route: mean and 95 %
            range of draws with replacement; None where a layer has none outside.
        verdict: ``neutral`` where the interval holds 0, or the cosine is within ``noise`` or below the minimum.
    """

    first: str
    second: str
    kind: Kind
    part: str
    units: int
    cosine: Estimate
    noise: float
    elsewhere: Estimate | None
    verdict: Verdict

    @property
    def name(self) -> str:
        """The part as tables show it."""
        return f"all {self.kind}s" if self.part == "total" else self.part


class EditTensors(Mapping[str, Tensor]):
    """The edit between two checkpoints as a mapping from parameter names to ``after - base``, read when asked for."""

    def __init__(self, comparison: Comparison) -> None:
        self._comparison = comparison

    @cached_property
    def anatomy(self) -> Anatomy:
        """Where the tensors lie in the model."""
        return self._comparison.anatomy()

    def __getitem__(self, name: str) -> Tensor:
        comparison = self._comparison
        in_base, in_after = comparison.sources[name]
        return _difference(comparison.base.tensor(in_base), comparison.after.tensor(in_after))

    def rows(self, name: str, start: int, stop: int) -> Tensor:
        """The rows ``start`` to ``stop`` of one edit; no more of it is read."""
        comparison = self._comparison
        in_base, in_after = comparison.sources[name]
        base, after = comparison.base.rows(in_base, start, stop), comparison.after.rows(in_after, start, stop)
        return _difference(base, after)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of one edit."""
        return self._comparison.after.shapes[self._comparison.sources[name][1]]

    def __iter__(self) -> Iterator[str]:
        return iter(self._comparison.names)

    def __len__(self) -> int:
        return len(self._comparison.names)


def _difference(base: Tensor, after: Tensor) -> Tensor:
    """The edit; from a base that is stored finer, without what rounding does to it, as ``edits`` compares it."""
    wide = torch.float64 if after.dtype == torch.float64 else torch.float32
    if not is_coarser(after.dtype, base.dtype):
        return after.to(wide).sub_(base)
    rounded = base.to(after.dtype).to(wide)
    rounding = base.to(wide) - rounded
    freed = without_steps(after.to(wide).sub_(rounded), rounding)
    return without_rounding(freed, rounding, likenesses(base.to(wide), rounding, after.dtype))


@dataclass(frozen=True)
class Products:
    """Inner products of the domains' edits by unit: ``products_UDD``, float64.

    ``non_finite`` counts values that are no number by ``domain: tensor``; they are taken as 0.
    """

    domains: tuple[str, ...]
    products_UDD: Tensor
    non_finite: dict[str, int]
    kind: Kind = "neuron"

    def of(self, first: str, second: str) -> Tensor:
        """Columns ``a.b``, ``a.a`` and ``b.b`` of two domains: [U, 3]."""
        i, j = self.domains.index(first), self.domains.index(second)
        return torch.stack([self.products_UDD[:, one, other] for one, other in ((i, j), (i, i), (j, j))], -1)


@dataclass(frozen=True)
class _Weight:
    """A weight that belongs to the units of one layer: they lie along ``dim``, ``times`` over."""

    name: str
    layer: int
    dim: int
    times: int = 1


def unit_products(
    edits: Mapping[str, Mapping[str, Tensor]], layers_U: Tensor, anatomy: Anatomy, kind: str = "neuron"
) -> Products:
    """Inner products of every pair of ``edits`` (domain -> parameter name -> edit) by unit, some rows at a time.

    A query projection that is fused with others, or that does not divide among the heads, is left out.

    Raises:
        ModelError: the edits' units are not those of the model (naming the first tensor).
    """
    domains = tuple(edits)
    products = torch.zeros(len(layers_U), len(domains), len(domains), dtype=torch.float64)
    found = Products(domains, products, {}, "neuron" if kind == "neuron" else "head")
    weights = (
        _mlp_weights(edits[domains[0]], anatomy) if kind == "neuron" else _head_weights(edits[domains[0]], anatomy)
    )
    for weight in weights:
        for domain in domains:
            if weight.name not in edits[domain]:
                raise ModelError(
                    f"The edit of {domain!r} has no tensor {weight.name}, which other edits have. Use one architecture."
                )
        _add(found, edits, weight, layers_U)
    missing = sorted(set(layers_U.tolist()) - {weight.layer for weight in weights})
    if missing and kind == "neuron":
        raise ModelError(f"The edits have no MLP weights of layer {missing[0]}, whose neurons the routes hold.")
    return found


def _mlp_weights(edit: Mapping[str, Tensor], anatomy: Anatomy) -> list[_Weight]:
    axes = ((name, anatomy.neuron_axis(name)) for name in edit)
    return [_Weight(name, axis.layer, axis.dim, axis.times) for name, axis in axes if axis is not None]


def _head_weights(edit: Mapping[str, Tensor], anatomy: Anatomy) -> list[_Weight]:
    found = []
    for name in edit:
        layer, query = anatomy.output_layer(name), f"{name.rsplit('.', 2)[0]}.q_proj.weight"
        if layer is not None:
            found += [_Weight(query, layer, 0)] if query in edit else []
            found.append(_Weight(name, layer, 1))
    return found


def _add(found: Products, edits: Mapping[str, Mapping[str, Tensor]], weight: _Weight, layers_U: Tensor) -> None:
    inside = (layers_U == weight.layer).nonzero().squeeze(1)
    units, shape = len(inside), _shape(edits[found.domains[0]], weight.name)
    length = shape[weight.dim]
    fits = length == weight.times * units if found.kind == "neuron" else units > 0 and length % units == 0
    if not fits and found.kind == "head" and weight.dim == 0:
        return
    if not fits:
        raise ModelError(
            f"{weight.name}: layer {weight.layer} has {units} {found.kind}s in the model, and the edit has {length} of "
            "their rows or columns. Give checkpoints of the model that the routes are measured on."
        )
    # Position along dim -> unit: neurons repeat (gate, then up), heads are stretches of equal length.
    position = torch.arange(length)
    unit = inside[position % units if found.kind == "neuron" else position // (length // units)]
    step = max(1, _NUMBERS_AT_ONCE // max(1, math.prod(shape[1:])))
    for start in range(0, shape[0], step):
        stop = min(start + step, shape[0])
        rows = [_rows(domain, edits[domain], weight.name, start, stop, found.non_finite) for domain in found.domains]
        grams = _grams([own.movedim(weight.dim, 0).flatten(1) for own in rows])
        found.products_UDD.index_add_(0, unit[start:stop] if weight.dim == 0 else unit, grams)


def _shape(edit: Mapping[str, Tensor], name: str) -> tuple[int, ...]:
    return edit.shape(name) if isinstance(edit, EditTensors) else tuple(edit[name].shape)


def _rows(
    domain: str, edit: Mapping[str, Tensor], name: str, start: int, stop: int, non_finite: dict[str, int]
) -> Tensor:
    rows = edit.rows(name, start, stop) if isinstance(edit, EditTensors) else edit[name][start:stop]
    good = rows.isfinite()
    if bool(good.all()):
        return rows
    key = f"{domain}: {name}"
    non_finite[key] = non_finite.get(key, 0) + int((~good).sum())
    return torch.where(good, rows, 0)


def _grams(rows: Sequence[Tensor]) -> Tensor:
    """Inner products of the domains' rows [N, M], row by row: [N, D, D]."""
    wide = [own.double() for own in rows]
    grams = torch.stack([(a * b).sum(1) for a in wide for b in wide], 1)
    return grams.unflatten(1, (len(rows), len(rows)))


def directions(
    names: tuple[str, str],
    shared_U: Tensor,
    products: Products,
    layers_U: Tensor,
    *,
    minimum: float = MINIMUM,
    seed: int = 0,
) -> list[Direction]:
    """The directions on the shared route ``shared_U`` [bool]: in total, and by layer's module."""
    values_U3 = products.of(*names)
    layers = layers_U.unique().tolist()
    module = "mlp" if products.kind == "neuron" else "attention"
    cuts = [("total", layers), *((f"layers.{layer}.{module}", [layer]) for layer in layers)]
    generator = torch.Generator().manual_seed(seed)
    outside = {layer: draw_outside(values_U3, shared_U, layers_U == layer, generator) for layer in layers}
    found = []
    for part, inside in cuts:
        here_U = shared_U & torch.isin(layers_U, torch.tensor(inside))
        if bool(here_U.any()):
            values_S3 = values_U3[here_U]
            cosine, noise = cosine_interval(values_S3, generator), sign_noise(values_S3, generator)
            verdict = verdict_of(len(values_S3), cosine, noise, minimum, products.kind)
            drawn_R3 = torch.stack([outside[layer] for layer in inside]).sum(0)
            found.append(
                Direction(*names, products.kind, part, len(values_S3), cosine, noise, _elsewhere(drawn_R3), verdict)
            )
    return found


def verdict_of(units: int, cosine: Estimate, noise: float, minimum: float, kind: Kind = "neuron") -> Verdict:
    """The class of a cosine: beyond its interval, the noise of random signs and the stated minimum, or neutral."""
    if math.isnan(cosine.value):
        return "no edit"
    if units < MIN_UNITS:
        return "too few neurons" if kind == "neuron" else "too few heads"
    if cosine.low <= 0 <= cosine.high or abs(cosine.value) <= max(noise, minimum):
        return "neutral"
    return "synergy" if cosine.value > 0 else "conflict"


def cosine_interval(values_S3: Tensor, generator: torch.Generator, draws: int = _DRAWS) -> Estimate:
    """The cosine over units with its percentile interval over resampled units.

    Fewer than ``MIN_UNITS`` give the number without an interval; not a number where one edit is 0.
    """
    value = float(_cosine(values_S3.sum(0)))
    count = len(values_S3)
    if count < MIN_UNITS or math.isnan(value):
        return Estimate(value, math.nan, math.nan)
    drawn = []
    for rows in _chunks(draws, count):
        index_RS = torch.randint(count, (rows, count), generator=generator)
        drawn.append(_cosine(values_S3[index_RS].sum(1)))
    return Estimate(value, *_range(torch.cat(drawn)))


def sign_noise(values_S3: Tensor, generator: torch.Generator, draws: int = _DRAWS) -> float:
    """What 95 % of absolute cosines stay below if each unit's ``a.b`` gets a random sign."""
    dot_S, norm = values_S3[:, 0], float((values_S3[:, 1].sum() * values_S3[:, 2].sum()).sqrt())
    if norm == 0:
        return math.nan
    drawn = []
    for rows in _chunks(draws, len(dot_S)):
        signs_RS = torch.randint(2, (rows, len(dot_S)), generator=generator).double() * 2 - 1
        drawn.append((signs_RS @ dot_S).abs() / norm)
    return float(torch.quantile(torch.cat(drawn), 0.95))


def draw_outside(values_U3: Tensor, shared_U: Tensor, layer_U: Tensor, generator: torch.Generator) -> Tensor:
    """Sums over random units of one layer off the shared route, as many as it has on it: [R, 3].

    They are drawn with replacement, so that a small rest does not look certain. A layer without any gives NaN.
    """
    wanted, rest_N3 = int((shared_U & layer_U).sum()), values_U3[layer_U & ~shared_U]
    if not wanted or not len(rest_N3):
        return torch.full((_CONTROLS, 3), math.nan if wanted else 0.0, dtype=values_U3.dtype)
    drawn = []
    for rows in _chunks(_CONTROLS, 3 * wanted):
        index_RS = torch.randint(len(rest_N3), (rows, wanted), generator=generator)
        drawn.append(rest_N3[index_RS].sum(1))
    return torch.cat(drawn)


def _elsewhere(sums_R3: Tensor) -> Estimate | None:
    cosines_R = _cosine(sums_R3)
    return None if bool(cosines_R.isnan().all()) else Estimate(float(cosines_R.nanmean()), *_range(cosines_R))


def _cosine(sums: Tensor) -> Tensor:
    """Not a number where one edit is 0 there."""
    return sums[..., 0] / (sums[..., 1] * sums[..., 2]).sqrt()


def _range(values_R: Tensor) -> tuple[float, float]:
    kept = values_R[~values_R.isnan()]
    if not len(kept):
        return math.nan, math.nan
    low, high = torch.quantile(kept, torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return low, high


def _chunks(draws: int, count: int) -> Iterator[int]:
    size = max(1, _NUMBERS_AT_ONCE // max(1, count))
    for low in range(0, draws, size):
        yield min(size, draws - low)
