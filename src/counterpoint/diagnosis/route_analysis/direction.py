"""Whether the edits of two domains pull what both use the same way: cosines on the shared route.

Legend: D domains with an edit, N units of all layers (neurons, or attention heads), W parts of a unit (a neuron's gate
row, up row and down column; a head's query rows and output columns), M entries of one part, S shared units.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from counterpoint.anatomy import Anatomy, NeuronAxis
from counterpoint.checkpoints import Comparison
from counterpoint.diagnosis.route_analysis.controls import MIN_NEURONS, cosine_interval, draw_controls, sign_noise
from counterpoint.errors import ModelError
from counterpoint.stats import Estimate

Verdict = Literal["synergy", "neutral", "conflict", "too few neurons", "too few heads", "no edit"]

PARTS = ("gate", "up", "down")
HEAD_PARTS = ("query", "output")
MINIMUM = 0.05
"""Cosines nearer to 0 are neutral however sure they are. Ours."""
_NEURONS_AT_ONCE = 1024


@dataclass(frozen=True)
class Direction:
    """The cosine of two domains' edits on the neurons, or on the attention heads, of their shared route.

    ``kind`` is ``neuron`` or ``head``, and what is said of neurons here holds for heads. ``part`` is ``total``; of all
    layers ``gate``, ``up``, ``down`` of neurons, ``query``, ``output`` of heads; or a module as ``layers.3.mlp`` or
    ``layers.3.attention``. ``neurons`` counts the shared ones.

    ``cosine`` has a 95 % bootstrap interval over neurons; ``noise`` is what 95 % of cosines stay below (in absolute
    value) when every neuron's agreement gets a random sign. ``control`` is the same cosine on as many random neurons of
    the same layers outside the shared route: mean and 95 % range of draws with replacement; None where a layer has none
    outside. ``p_elsewhere`` is the chance that as many neurons of the same layers, chosen at random, have a cosine as
    far from the usual one: small where what was found is of the shared route and not of the whole layer.

    ``verdict`` is ``neutral`` where the interval holds 0, or the cosine is within ``noise`` or below the minimum.
    ``share_of_neurons`` of the part lie on the shared route, with ``share_first`` and ``share_second`` of the squared
    norms of the two edits: by chance all three are equal.
    """

    first: str
    second: str
    part: str
    neurons: int
    cosine: Estimate
    noise: float
    control: Estimate | None
    p_elsewhere: float
    verdict: Verdict
    share_of_neurons: float
    share_first: float
    share_second: float
    kind: Literal["neuron", "head"] = "neuron"


class EditTensors(Mapping[str, Tensor]):
    """The edit between two checkpoints as a mapping from parameter names to ``after - base``, read when asked for."""

    def __init__(self, comparison: Comparison) -> None:
        self._comparison = comparison

    @cached_property
    def anatomy(self) -> Anatomy:
        """Where the tensors lie in the model."""
        return self._comparison.anatomy()

    def __getitem__(self, name: str) -> Tensor:
        in_base, in_after = self._comparison.sources[name]
        base, after = self._comparison.base.tensor(in_base), self._comparison.after.tensor(in_after)
        wide = torch.float64 if after.dtype == torch.float64 else torch.float32
        return after.to(wide) - base.to(wide)

    def __iter__(self) -> Iterator[str]:
        return iter(self._comparison.names)

    def __len__(self) -> int:
        return len(self._comparison.names)


@dataclass(frozen=True)
class Products:
    """Inner products of the domains' edits by unit (``kind``) and part: ``products_NWDD``, float64.

    ``non_finite`` counts values that are no number by ``domain: tensor``; they are taken as 0.
    """

    domains: tuple[str, ...]
    products_NWDD: Tensor
    non_finite: dict[str, int]
    kind: Literal["neuron", "head"] = "neuron"

    @property
    def parts(self) -> tuple[str, ...]:
        """Names of the parts, in the order of W."""
        return PARTS if self.kind == "neuron" else HEAD_PARTS

    def module(self, layer: int) -> str:
        """The module that holds a layer's units."""
        return f"layers.{layer}.{'mlp' if self.kind == 'neuron' else 'attention'}"

    def of(self, first: str, second: str) -> Tensor:
        """Columns ``a.b``, ``a.a`` and ``b.b`` of two domains: [N, W, 3]."""
        i, j = self.domains.index(first), self.domains.index(second)
        pairs = ((i, j), (i, i), (j, j))
        return torch.stack([self.products_NWDD[:, :, one, other] for one, other in pairs], -1)


def neuron_products(edits: Mapping[str, Mapping[str, Tensor]], neuron_layers_N: Tensor, anatomy: Anatomy) -> Products:
    """Inner products of every pair of ``edits`` (domain -> parameter name -> edit), a weight of each at a time.

    Raises:
        ModelError: the edits' MLPs are not those of the model (naming the first tensor).
    """
    domains = tuple(edits)
    found = torch.zeros(len(neuron_layers_N), len(PARTS), len(domains), len(domains), dtype=torch.float64)
    non_finite: dict[str, int] = {}
    seen = set()
    for name in edits[domains[0]]:
        axis = anatomy.neuron_axis(name)
        if axis is None:
            continue
        inside_N = neuron_layers_N == axis.layer
        tensors = [_finite(domain, name, edits[domain], non_finite) for domain in domains]
        for part, rows in zip(_parts(axis), zip(*(_by_neuron(t, axis) for t in tensors), strict=True), strict=True):
            if any(len(edit_NM) != int(inside_N.sum()) for edit_NM in rows):
                raise ModelError(
                    f"{name}: layer {axis.layer} has {len(rows[0])} neurons in the edit and {int(inside_N.sum())} in "
                    "the model. Give checkpoints of the model that the routes are measured on."
                )
            found[inside_N, part] += _gram(rows)
            seen.add(axis.layer)
    missing = sorted(set(neuron_layers_N.tolist()) - seen)
    if missing:
        raise ModelError(f"The edits have no MLP weights of layer {missing[0]}, whose neurons the routes hold.")
    return Products(domains, found, non_finite)


def head_products(edits: Mapping[str, Mapping[str, Tensor]], head_layers_H: Tensor, anatomy: Anatomy) -> Products:
    """The same by attention head: its rows of the query projection, its columns of the output projection.

    A query projection that is fused with others, or that does not divide among the heads, is left out.

    Raises:
        ModelError: the edits' output projections are not those of the model (naming the first tensor).
    """
    domains = tuple(edits)
    found = torch.zeros(len(head_layers_H), len(HEAD_PARTS), len(domains), len(domains), dtype=torch.float64)
    non_finite: dict[str, int] = {}
    for name in edits[domains[0]]:
        layer = anatomy.output_layer(name)
        if layer is None:
            continue
        inside_H = head_layers_H == layer
        heads, query = int(inside_H.sum()), f"{name.rsplit('.', 2)[0]}.q_proj.weight"
        for part, tensor_name, dim in ((0, query, 0), (1, name, 1)):
            if tensor_name not in edits[domains[0]]:
                continue
            tensors = [_finite(domain, tensor_name, edits[domain], non_finite) for domain in domains]
            if heads == 0 or tensors[0].shape[dim] % heads:
                if part == 0:
                    continue
                raise ModelError(
                    f"{name}: {tensors[0].shape[dim]} columns in the edit are not those of {heads} heads in the model. "
                    "Give checkpoints of the model that the routes are measured on."
                )
            found[inside_H, part] += _gram([t.movedim(dim, 0).unflatten(0, (heads, -1)).flatten(1) for t in tensors])
    return Products(domains, found, non_finite, "head")


def directions(
    names: tuple[str, str],
    shared_N: Tensor,
    products: Products,
    neuron_layers_N: Tensor,
    *,
    minimum: float = MINIMUM,
    seed: int = 0,
) -> list[Direction]:
    """The directions on the shared route ``shared_N`` [bool]: in total, by part, and by layer's module."""
    values_NW3 = products.of(*names)
    used = [i for i in range(len(products.parts)) if bool(values_NW3[:, i].any())]
    layers = neuron_layers_N.unique().tolist()
    cuts = [("total", used, layers), *((products.parts[i], [i], layers) for i in used)]
    cuts += [(products.module(layer), used, [layer]) for layer in layers]
    generator = torch.Generator().manual_seed(seed)
    controls = draw_controls(values_NW3, shared_N, neuron_layers_N, generator)
    found = []
    for part, parts, inside in cuts:
        inside_N = torch.isin(neuron_layers_N, torch.tensor(inside))
        if bool((shared_N & inside_N).any()):
            values_N3 = values_NW3[inside_N][:, parts].sum(1)
            here_S3 = values_N3[shared_N[inside_N]]
            cosine, noise = cosine_interval(here_S3, generator), sign_noise(here_S3, generator)
            share_first, share_second = (_share(values_N3[:, i], shared_N[inside_N]) for i in (1, 2))
            found.append(
                Direction(
                    *names,
                    part=part,
                    neurons=len(here_S3),
                    cosine=cosine,
                    noise=noise,
                    control=controls.elsewhere(inside, parts),
                    p_elsewhere=controls.p_value(cosine.value, inside, parts),
                    verdict=verdict_of(len(here_S3), cosine, noise, minimum, products.kind),
                    share_of_neurons=len(here_S3) / len(values_N3),
                    share_first=share_first,
                    share_second=share_second,
                    kind=products.kind,
                )
            )
    return found


def verdict_of(
    neurons: int, cosine: Estimate, noise: float, minimum: float, kind: Literal["neuron", "head"] = "neuron"
) -> Verdict:
    """The class of a cosine: beyond its interval, the noise of random signs and the stated minimum, or neutral."""
    if math.isnan(cosine.value):
        return "no edit"
    if neurons < MIN_NEURONS:
        return "too few neurons" if kind == "neuron" else "too few heads"
    if cosine.low <= 0 <= cosine.high or abs(cosine.value) <= max(noise, minimum):
        return "neutral"
    return "synergy" if cosine.value > 0 else "conflict"


def _share(values_N: Tensor, chosen_N: Tensor) -> float:
    total = float(values_N.sum())
    return float(values_N[chosen_N].sum()) / total if total else math.nan


def _parts(axis: NeuronAxis) -> tuple[int, ...]:
    return (0, 1) if axis.times == 2 else (PARTS.index(axis.part),)


def _by_neuron(edit: Tensor, axis: NeuronAxis) -> tuple[Tensor, ...]:
    """The weight's parts, neurons first: [N, M] each."""
    return edit.movedim(axis.dim, 0).flatten(1).chunk(axis.times)


def _gram(rows: Sequence[Tensor]) -> Tensor:
    """Inner products of the domains' rows, neuron by neuron: [N, D, D]."""
    parts = []
    for low in range(0, len(rows[0]), _NEURONS_AT_ONCE):
        edits_DNM = torch.stack([edit_NM[low : low + _NEURONS_AT_ONCE].double() for edit_NM in rows])
        parts.append(torch.einsum("anm,bnm->nab", edits_DNM, edits_DNM))
    return torch.cat(parts)


def _finite(domain: str, name: str, edit: Mapping[str, Tensor], non_finite: dict[str, int]) -> Tensor:
    if name not in edit:
        raise ModelError(f"The edit of {domain!r} has no tensor {name}, which other edits have. Use one architecture.")
    tensor = edit[name]
    good = tensor.isfinite()
    if not bool(good.all()):
        non_finite[f"{domain}: {name}"] = int((~good).sum())
        return torch.where(good, tensor, 0)
    return tensor
