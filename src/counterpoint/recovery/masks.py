"""An edit between two checkpoints, sets of its weights, and models in which such a set is moved back.

    theta_new = theta_after - scale * mask * (theta_after - theta_before)

Everything is read tensor by tensor, scores and masks again in each pass: beside the models that run, and the Fisher
diagonal where it ranks, there are never more than three copies of the largest tensor.

Notation: d the edit of a tensor, F the diagonal of a domain's Fisher matrix in its shape.
"""

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from counterpoint.anatomy import plain_name
from counterpoint.checkpoints import Conversion, compare, open_checkpoint, write_checkpoint
from counterpoint.diagnosis._contributions import wide
from counterpoint.diagnosis._edit_vector import Edit
from counterpoint.diagnosis._surrogates import log_probs
from counterpoint.diagnosis.rollouts import Rollouts, collate
from counterpoint.errors import CounterpointError, ModelError
from counterpoint.models import is_out_of_memory
from counterpoint.progress import Progress, silent
from counterpoint.topk import Cut, Ranking

DECILES = 10
"""Classes of the size of an edit, within each tensor, in which matched random masks are drawn."""


def open_edit(before: str | Path, after: str | Path) -> Edit:
    """The edit between two checkpoints; reads headers and no weights.

    Raises:
        ModelError: a checkpoint that cannot be read, another architecture, or a projection tied only afterwards.
    """
    pair = compare(open_checkpoint(before), open_checkpoint(after))
    taken = [in_after for _, in_after in pair.sources.values()]
    if len(set(taken)) < len(taken):
        raise ModelError(
            f"{after} ties its output projection to its embedding and {before} does not, so the two cannot be "
            "restored apart. Use checkpoints of one run."
        )
    return Edit(pair)


# What ranks weights


def diagonal_fisher(
    model: Any, rollouts: Rollouts, names: Iterable[str], on_progress: Progress = silent
) -> dict[str, Tensor]:
    """The diagonal of the Fisher matrix of a domain's likelihood: float32 on the host, by plain parameter name.

    With n completions y of the domain's prompts x, sampled from the model itself at temperature 1,

        F = 1/n sum over completions of (d log pi(y | x) / d theta)^2,      log pi(y | x) = sum over tokens

    is an unbiased estimate of the diagonal of E[grad log pi grad log pi']. One backward pass per completion; F takes
    the memory of a float32 copy of these parameters, and gradients are dropped one by one as they come.
    """
    wanted = set(names)
    model.requires_grad_(False)
    params = {plain_name(name): param for name, param in model.named_parameters() if plain_name(name) in wanted}
    hooks = []
    try:
        sums = {name: torch.zeros_like(param, dtype=torch.float32) for name, param in params.items()}
        for name, param in params.items():
            param.requires_grad_(True)
            hooks.append(param.register_post_accumulate_grad_hook(_adder(sums[name])))
        for done, item in enumerate(rollouts.items, 1):
            batch = collate([item], pad_id=0).to(model.device)
            (log_probs(model, batch) * batch.completion_BT[:, 1:]).sum().backward()
            on_progress(f"Fisher of {rollouts.domain}", done, len(rollouts))
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise CounterpointError(
            "Memory does not suffice for the Fisher diagonal, which is as large as the model in float32. Use "
            "score='magnitude', or shorten completions (training.max_completion_length)."
        ) from error
    finally:
        for hook in hooks:
            hook.remove()
        model.requires_grad_(False)
    for name, total in sums.items():
        if not bool(total.isfinite().all()):
            raise CounterpointError(
                f"{name}: gradients on the domain {rollouts.domain!r} are not finite numbers. Load the model in "
                "float32 (model.dtype), or use score='magnitude'."
            )
    return {name: total.div_(len(rollouts)).cpu() for name, total in sums.items()}


def _adder(total: Tensor) -> Callable[[Tensor], None]:
    def add(param: Tensor) -> None:
        assert param.grad is not None, "autograd calls it with a gradient"
        total.add_(param.grad.float().square_())
        param.grad = None

    return add


@dataclass(frozen=True)
class WeightScores:
    """How much it helps to restore a weight: float32, not negative, 0 where the edit changed nothing.

    Without ``fisher`` the size ``|d|``. With it the root of ``F d^2``, which ranks as the diagonal of the second-order
    damage ``1/2 d'Hd`` with F for H does, and does not vanish in float32; tensors that it lacks have F = 0.
    """

    edit: Edit
    fisher: Mapping[str, Tensor] | None = None

    def __call__(self, name: str) -> Tensor:
        """The scores of one tensor."""
        size = self.edit.change(name).abs_()
        if self.fisher is None:
            return size.float()
        if name not in self.fisher:
            return torch.zeros_like(size, dtype=torch.float32)
        return size.mul_(self.fisher[name].sqrt()).float()


# Sets of weights


class Mask(Protocol):
    """A set of weights."""

    def of(self, name: str) -> Tensor | None:
        """Which weights of one tensor it has: bool in its shape; None for none of them."""
        ...


@dataclass(frozen=True)
class TopMask:
    """The weights with the largest scores; scores are computed again for every tensor, so it takes no memory."""

    cut: Cut
    scores: Callable[[str], Tensor]

    def of(self, name: str) -> Tensor | None:
        """Which weights of one tensor it has."""
        return self.cut.mask(name, self.scores(name)) if name in self.cut.ties else None


@dataclass(frozen=True)
class RandomScores:
    """A random order of the weights that the edit changed; the same ``draw`` gives the same order."""

    edit: Edit
    seed: int
    draw: int

    def __call__(self, name: str) -> Tensor:
        """One tensor's scores: float32 in (0, 1], 0 where the edit changed nothing."""
        changed = self.edit.change(name) != 0
        return _random_order(changed, _generator(self.seed, self.draw, name))


@dataclass(frozen=True)
class MatchedMask:
    """Random weights, in each tensor as many of each size of the edit as ``model`` has.

    Sizes are the deciles of |d| among the weights that the edit changed. What ``model`` does beyond such a mask is due
    to which single weights it has.
    """

    model: Mask
    edit: Edit
    seed: int
    draw: int

    def of(self, name: str) -> Tensor | None:
        """Which weights of one tensor it has."""
        wanted = self.model.of(name)
        if wanted is None or not wanted.any():
            return None
        size = self.edit.change(name).abs_().float()
        generator = _generator(self.seed, self.draw, name)
        drawn = torch.zeros_like(wanted)
        for low, high in _deciles(size):
            inside = (size > low) & (size <= high)
            if count := int((wanted & inside).sum()):
                order = _random_order(inside, generator)
                (cut,) = Ranking.of([name], lambda _, order=order: order).cuts([count])  # type: ignore[misc]
                drawn |= cut.mask(name, order)
        return drawn


def _deciles(size: Tensor) -> list[tuple[float, float]]:
    """Bounds (low, high] of classes with about a tenth of the numbers above 0 each; equal numbers share one."""
    ranking = Ranking.of([""], lambda _: size)
    ranks = [round(ranking.num_candidates * (DECILES - i) / DECILES) for i in range(1, DECILES)]
    edges = sorted(set(ranking.largest([rank for rank in ranks if rank > 0])))
    return list(zip([0.0, *edges], [*edges, torch.inf], strict=True))


def uniform_masks(edit: Edit, changed: Iterable[str], count: int, seed: int, draws: int) -> list[Mask]:
    """``draws`` sets of ``count`` weights, drawn uniformly among all that the edit changed."""
    found: list[Mask] = []
    for draw in range(draws):
        scores = RandomScores(edit, seed, draw)
        found += [TopMask(cut, scores) for cut in Ranking.of(list(changed), scores).cuts([count])]
    return found


class Everything:
    """All weights: with a scale below 1, the point on the line from after to before."""

    def of(self, name: str) -> Tensor:
        """True, broadcast over the tensor."""
        return torch.ones((), dtype=torch.bool)


def moved_share(edit: Edit, names: Iterable[str], mask: Mask, scale: float) -> float:
    """The share of ``|d|^2`` that moving the mask back by ``scale`` takes away: ``|scale * mask * d|^2 / |d|^2``."""
    moved = total = 0.0
    for name in names:
        square = edit.change(name).square_()
        total += float(square.sum(dtype=torch.float64))
        chosen = mask.of(name)
        if chosen is not None:
            moved += float(square.mul_(chosen).sum(dtype=torch.float64))
    return scale**2 * moved / total


def _random_order(allowed: Tensor, generator: torch.Generator) -> Tensor:
    """A random number in (0, 1] where it is allowed, 0 elsewhere: float32."""
    return (1 - torch.rand(allowed.shape, generator=generator)).mul_(allowed)


def _generator(*parts: int | str) -> torch.Generator:
    """A stream of its own that depends on all parts alike."""
    seed = int.from_bytes(hashlib.sha256("\n".join(map(str, parts)).encode()).digest()[:7], "big")
    return torch.Generator().manual_seed(seed)


# Models with a set moved back


@dataclass(frozen=True)
class Patch:
    """``theta_after - scale * mask * (theta_after - theta_before)``, tensor by tensor; no mask is ``theta_after``.

    A scale of 1 gives the very numbers from before, and every weight outside the mask keeps its bits.
    """

    edit: Edit
    mask: Mask | None = None
    scale: float = 1.0

    def __call__(self, name: str) -> Tensor:
        """One tensor, in the type that it has after the edit."""
        chosen = None if self.mask is None else self.mask.of(name)
        after = self.edit.after(name)
        if chosen is None:
            return after
        before = self.edit.before(name)
        if not chosen.dim():
            return self._moved(after, before)
        after[chosen] = self._moved(after[chosen], before[chosen])
        return after

    def _moved(self, after: Tensor, before: Tensor) -> Tensor:
        return torch.lerp(wide(after), before.to(wide(after).dtype), self.scale).to(after.dtype)


@dataclass(frozen=True)
class Site:
    """A model whose weights are set to any patch of an edit; what it was before does not matter."""

    edit: Edit
    conversion: Conversion
    bundles: list[Any] = field(repr=False)

    @classmethod
    def of(cls, model: Any, edit: Edit, changed: Iterable[str]) -> "Site":
        """Raises ``UnsupportedError`` where the edit changed a tensor that the model has no parameter for."""
        conversion = Conversion(model, {name: edit.shape(name) for name in edit.names})
        kind = type(model).__name__
        conversion.bundles(changed, kind)
        known = [name for name in edit.names if name in conversion.by_stored]
        return cls(edit, conversion, conversion.bundles(known, kind))

    def put(self, patch: Patch | None) -> None:
        """Copies a patch into the model's parameters; None stands for the checkpoint before the edit."""
        tensor_of = self.edit.before if patch is None else patch
        with torch.no_grad():
            for bundle in self.bundles:
                for name, value in bundle.to_model(tensor_of).items():
                    self.conversion.params[name].copy_(value)

    def params_of(self, names: Iterable[str]) -> list[str]:
        """The model's parameters that hold these stored tensors."""
        return [param for bundle in self.conversion.bundles(names, "the model") for param in bundle.params]

    def to_disk(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """``values`` of some of the model's parameters as they lie in the stored tensors."""
        found: dict[str, Tensor] = {}
        for bundle in self.bundles:
            if all(name in values for name in bundle.params):
                parts = {name: values[name] for name in bundle.params}
                found |= bundle.to_disk(parts, self.conversion.shapes)
        return found


def write_patch(patch: Patch, out: Path, on_progress: Progress = silent) -> Path:
    """Writes the patched checkpoint: the files of the one after the edit, with the patch's tensors."""
    after = patch.edit.pair.after

    def tensor_of(stored: str) -> Tensor:
        name = patch.edit.pair.name_of(stored)
        return after.tensor(stored) if name is None else patch(name)

    return write_checkpoint(out, after, tensor_of, on_progress)
