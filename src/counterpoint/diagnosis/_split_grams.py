"""Gradients of domains, batch by batch, and their inner products over independent splits, in bounded memory.

Legend: D domains, K splits of each, S = D * K, N batches of each, U units, E elements.

Memory holds K running sums per domain for a slice of the parameters at a time. The completions are read once for every
slice, so memory is bought with time; ``memory_gib`` decides. Only the Grams stay.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from counterpoint.anatomy import Anatomy
from counterpoint.diagnosis._adam import trained_shapes
from counterpoint.diagnosis._split_tests import LOWEST_SPLITS
from counterpoint.diagnosis._surrogates import policy_loss
from counterpoint.diagnosis.rollouts import Rollout, Rollouts, collate
from counterpoint.errors import CounterpointError, ModelError
from counterpoint.progress import Progress, silent
from counterpoint.surgery.units import Units

MOST_SPLITS = 16
"""Beyond it the tests gain little and memory grows."""

_ELEMENT_CHUNK = 1 << 20

Slices = dict[str, slice]
"""By parameter the elements of each of its units that one pass over the completions collects."""


class GradientSource(Protocol):
    """Independent, unbiased estimates of each domain's gradient; the same call always gives the same one.

    ``shapes`` holds the parameters that have gradients, in model order; ``anatomy`` says where they are. No two of the
    ``num_batches`` batches of a domain share a prompt.
    """

    @property
    def domains(self) -> tuple[str, ...]: ...

    @property
    def num_batches(self) -> int: ...

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]: ...

    @property
    def anatomy(self) -> Anatomy: ...

    def gradients(self, domain: int, batch: int, names: Sequence[str]) -> dict[str, Tensor]:
        """The gradients of these parameters on one batch of one domain."""


class PolicyGradients:
    """Policy gradients of a model on fixed completions and advantages, as a ``GradientSource``.

    A batch's gradient is that of ``policy_loss``, a sum over tokens, over the number of its completions. Prompts whose
    completions all have one reward are left out, the others dealt out evenly, so batches share none. ``.grad`` is not
    touched; ``rows`` completions are in one backward pass.

    Raises:
        CounterpointError: fewer than two domains, or too few prompts that teach something (says how many are needed).
        ModelError: a model without trainable parameters.
    """

    def __init__(self, model: Any, rollouts: Mapping[str, Rollouts], num_batches: int, rows: int = 32) -> None:
        if len(rollouts) < 2:
            found = ", ".join(rollouts) or "none"
            raise CounterpointError(f"A conflict is between two domains; found {found}. Give completions of more.")
        self.model = model
        self.num_batches = num_batches
        self.rows = rows
        self.domains = tuple(rollouts)
        self._params = dict(model.named_parameters())
        self.shapes = trained_shapes(model)
        self.anatomy = Anatomy.of(model)
        if not self.shapes:
            raise ModelError("No parameter of the model requires a gradient. Unfreeze those whose conflicts you want.")
        self._device = self._params[next(iter(self.shapes))].device
        self._batches = [_deal(rollouts[domain], num_batches) for domain in self.domains]
        self.prompts = tuple(sum(len({item.group for item in batch}) for batch in found) for found in self._batches)
        self.completions = tuple(sum(map(len, found)) for found in self._batches)

    def gradients(self, domain: int, batch: int, names: Sequence[str]) -> dict[str, Tensor]:
        """The gradients of these parameters on one batch, in the parameters' dtype or float32 where that is wider."""
        items = self._batches[domain][batch]
        params = [self._params[name] for name in names]
        total = [
            torch.zeros(p.shape, dtype=torch.promote_types(p.dtype, torch.float32), device=p.device) for p in params
        ]
        # completions of one length next to each other waste little padding; those at the mean reward add nothing
        live = sorted((item for item in items if item.advantage), key=_length)
        for low in range(0, len(live), self.rows):
            loss = policy_loss(self.model, collate(live[low : low + self.rows], pad_id=0).to(self._device))
            for into, gradient in zip(total, torch.autograd.grad(loss, params, allow_unused=True), strict=True):
                if gradient is not None:
                    into += gradient
        return {name: gradient.div_(len(items)) for name, gradient in zip(names, total, strict=True)}


def _length(item: Rollout) -> int:
    return len(item.prompt_ids) + len(item.completion_ids)


def _deal(rollouts: Rollouts, num_batches: int) -> list[list[Rollout]]:
    """Prompts that teach something, dealt out like cards: the counts of two batches differ by one prompt at most."""
    groups = rollouts.groups
    useful = [items for items in groups if any(item.advantage for item in items)]
    if len(useful) < num_batches:
        share = len(useful) / max(1, len(groups))
        advice = f"sample about {round(1.2 * num_batches / share)} prompts" if useful else "sample more of them"
        raise CounterpointError(
            f"The domain {rollouts.domain!r} has {len(useful)} prompts whose completions differ in reward (of "
            f"{len(groups)}), and {num_batches} batches that share no prompt need at least {num_batches}. For this "
            f"domain {advice}, or ask for fewer batches."
        )
    return [[item for items in useful[number::num_batches] for item in items] for number in range(num_batches)]


def splits_of(num_batches: int) -> int:
    """Independent splits for so many batches: the largest divisor up to 16; refuses fewer than four."""
    found = max((k for k in range(1, MOST_SPLITS + 1) if num_batches > 0 and num_batches % k == 0), default=0)
    if found < LOWEST_SPLITS:
        raise CounterpointError(
            f"batches={num_batches} cannot tell conflict from noise: they must divide into {LOWEST_SPLITS} to "
            f"{MOST_SPLITS} equal splits. Ask for 8 or 16."
        )
    return found


@dataclass(frozen=True)
class SplitGrams:
    """Inner products ``grams_USS`` of the split means in every unit, under one metric."""

    metric: str
    units: Units
    grams_USS: Tensor


def collect(
    source: GradientSource,
    splits: int,
    metrics: Mapping[str, Mapping[str, Tensor]] | None = None,
    *,
    groupings: Sequence[str] = (),
    memory_gib: float = 4.0,
    on_progress: Progress = silent,
) -> list[SplitGrams]:
    """The inner products under ``gradient`` (Euclidean) and each of ``metrics``, which are diagonals by parameter.

    Batch n goes to split ``n % splits``. ``groupings`` will be asked of the units besides the built-in ones. Running
    sums take up to ``memory_gib``; less of it takes more passes over the completions. Refuses a gradient that is not
    finite.
    """
    units, num_splits = Units(source.shapes, "tensor", source.anatomy, groupings), len(source.domains) * splits
    starts = itertools.accumulate(units.counts, initial=0)
    places = {name: slice(low, low + n) for name, low, n in zip(units.names, starts, units.counts, strict=False)}
    counts = dict(zip(units.names, units.counts, strict=True))
    chosen: dict[str, Mapping[str, Tensor]] = {"gradient": {}, **(metrics or {})}
    found = [
        SplitGrams(name, units, torch.zeros(units.num_units, num_splits, num_splits, dtype=torch.float64))
        for name in chosen
    ]
    passes = _passes(source.shapes, counts, int(memory_gib * 2**30 / (4 * num_splits)))
    for number, part in enumerate(passes):
        sums = _split_means(source, part, counts, splits, (number, len(passes)), on_progress)
        for name, sums_SUE in sums.items():
            for into, diagonal in zip(found, chosen.values(), strict=True):
                weight_UE = _rows(diagonal[name], counts[name])[:, part[name]] if diagonal else None
                into.grams_USS[places[name]] += _gram(sums_SUE, weight_UE)
    return found


def _split_means(
    source: GradientSource,
    part: Slices,
    counts: Mapping[str, int],
    splits: int,
    pass_of: tuple[int, int],
    on_progress: Progress,
) -> dict[str, Tensor]:
    """The split means [S, units, E] of one slice of the parameters."""
    D, N = len(source.domains), source.num_batches
    number, passes = pass_of
    sums: dict[str, Tensor] = {}
    for n, domain in itertools.product(range(N), range(D)):
        for name, gradient in source.gradients(domain, n, list(part)).items():
            _check_finite(gradient, name, source.domains[domain])
            value_UE = _rows(gradient, counts[name])[:, part[name]]
            if name not in sums:
                sums[name] = value_UE.new_zeros(D * splits, *value_UE.shape)
            sums[name][domain * splits + n % splits] += value_UE * (splits / N)
        on_progress("gradients", (number * N + n) * D + domain + 1, passes * N * D)
    return sums


def _rows(value: Tensor, count: int) -> Tensor:
    """A parameter's tensor as its equal units [count, E]."""
    return value.reshape(count, -1)


def _check_finite(value: Tensor, name: str, domain: str) -> None:
    if not bool(value.isfinite().all()):
        raise CounterpointError(
            f"The gradient of the domain {domain!r} holds NaN or Inf in {name!r}, so no inner product means anything. "
            "Check that the checkpoint is whole, or load the model in float32."
        )


def _passes(shapes: Mapping[str, tuple[int, ...]], counts: Mapping[str, int], most: int) -> list[Slices]:
    """Slices of the parameters, in order, with at most ``most`` elements together (at least one of every unit)."""
    passes: list[Slices] = []
    room = 0
    for name, shape in shapes.items():
        size, low = math.prod(shape) // counts[name], 0
        while low < size:
            if room < counts[name]:
                passes.append({})
                room = max(most, counts[name])
            high = min(size, low + room // counts[name])
            passes[-1][name] = slice(low, high)
            room -= (high - low) * counts[name]
            low = high
    return passes


def _gram(value_SUE: Tensor, weight_UE: Tensor | None) -> Tensor:
    """Inner products [U, S, S] over E, each element counted with its weight; summed in float64."""
    S, U, _ = value_SUE.shape
    total = torch.zeros(U, S, S, dtype=torch.float64)
    for low in range(0, value_SUE.shape[2], _ELEMENT_CHUNK):
        place = slice(low, low + _ELEMENT_CHUNK)
        value_USE = value_SUE[..., place].transpose(0, 1)
        if weight_UE is not None:
            value_USE = value_USE * weight_UE[:, place].to(value_SUE).sqrt().unsqueeze(1)
        total += (value_USE @ value_USE.transpose(1, 2)).double().cpu()
    return total
