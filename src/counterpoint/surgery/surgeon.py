"""The Surgeon: gradient surgery in any training loop."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ..anatomy import Anatomy, parameters_of
from ..errors import StrategyError
from ._passes.ranks import find_ranks
from ._passes.reduced import ReducedGradients
from ._passes.scattered import ScatteredGradients
from ._passes.shards import refuse_inexact
from ._passes.stores import DomainBuffers, Vector, build_store
from .gram import norms
from .groupings import ParameterRule
from .record import Record
from .strategies import Strategy, resolve_strategy
from .units import Units, sum_units
from .weightings import Context, Halves, WeightingSpec, build_weighting

NamedParameters = Mapping[str, nn.Parameter] | Iterable[tuple[str, nn.Parameter]]

BalanceFactors = Callable[[Mapping[str, float]], Mapping[str, float]]
"""From domain -> length of its gradient to domain -> factor."""


class Surgeon:
    """Combines the gradients of several domains so that they do not work against each other.

    >>> surgeon = Surgeon(model, strategy="mgs")
    >>> for domain, batch in micro_batches:  # each micro-batch holds one domain
    ...     loss(model, batch).backward()
    ...     surgeon.collect(domain)
    >>> record = surgeon.combine()
    >>> optimizer.step(); optimizer.zero_grad()

    Arguments:
        model_or_named_parameters: a module, or names and parameters. Layers and modules are read from the module's
            tree, or by name where only names are given. Frozen parameters are left out, tied ones count once. What
            requires a gradient now is what takes part later.
        strategy: a name in ``STRATEGIES``, or a mapping as in a configuration, ``{"name": "mgs", "protect": ["math"]}``
            or ``{"grouping": "layer", "weighting": "cagrad", "options": {"c": 0.2}}``.
        grouping, weighting: replace that part of the strategy.
        seed: of the private random generators; with the step and the group's name it fixes every random order.
        copy: copy each gradient instead of taking its tensor over. Needed where something else owns and reuses the
            memory of ``.grad``; with a DDP model that has ``gradient_as_bucket_view=True`` it is switched on by itself.
        buffers: where domain gradients wait for ``combine()``: ``device``; ``bfloat16``, half the memory of float32;
            or ``cpu``, pinned host memory, with copies that overlap the passes that follow.
        average_over: the process group over which collected gradients still have to be averaged. Give it where
            backward runs under DDP's ``no_sync()``, so that every rank collects gradients of its own: each domain is
            then reduced once per step, and ranks may collect domains in any order. ``None`` where gradients are final
            when they are collected: one process, DDP that reduces in every backward, FSDP2, tensor parallelism.

    Raises ``StrategyError`` and ``GroupingError`` for names and parameters that nothing knows, ``UnsupportedError``
    for DeepSpeed and FSDP1, and for parameters over whose device meshes no common sum exists.
    """

    def __init__(
        self,
        model_or_named_parameters: nn.Module | NamedParameters,
        strategy: str | Mapping[str, Any] | Strategy = "mgs",
        *,
        grouping: str | ParameterRule | None = None,
        weighting: WeightingSpec | None = None,
        seed: int = 0,
        copy: bool = False,
        buffers: str = "device",
        average_over: Any = None,
    ) -> None:
        self.strategy = resolve_strategy(strategy, grouping, weighting)
        self.seed = seed
        self.step = 0
        """Number of combinations so far."""
        self.nonfinite_steps = 0
        """How many of them fell back to the plain sum because a gradient was not finite."""
        self._weighting = build_weighting(self.strategy.weighting)
        named = _distinct(model_or_named_parameters)
        refuse_inexact(model_or_named_parameters, named)
        trainable = {name: parameter for name, parameter in named.items() if parameter.requires_grad}
        if not trainable:
            raise StrategyError("No parameter requires a gradient, so there is nothing to combine.")
        source = model_or_named_parameters
        shapes = {name: tuple(parameter.shape) for name, parameter in named.items()}
        anatomy = Anatomy.of(source if isinstance(source, nn.Module) else shapes)
        self._units = Units({name: shapes[name] for name in trainable}, self.strategy.grouping, anatomy)
        parameters = list(trainable.values())
        store = build_store(buffers, {parameter.device for parameter in parameters})
        ddp = _ddp(model_or_named_parameters)
        ranks = find_ranks(parameters, average_over or (ddp.process_group if ddp else None))
        self._passes: ReducedGradients | ScatteredGradients
        if average_over is not None and dist.get_world_size(average_over) > 1:
            assert ranks is not None
            self._passes = ScatteredGradients(parameters, self._units.counts, average_over, ranks, store)
        else:
            self._passes = ReducedGradients(parameters, self._units.counts, ranks, store)
        copy = copy or bool(ddp and ddp.gradient_as_bucket_view)
        self._buffers = DomainBuffers(trainable, store, copy, self._weighting.uses_halves)

    @property
    def groups(self) -> tuple[str, ...]:
        """The strategy's groups, in model order."""
        return self._units.own.groups

    @property
    def collected(self) -> tuple[str, ...]:
        """The domains collected since the last combination, sorted by name."""
        return tuple(sorted({domain for domain, _ in self._buffers.held}))

    @torch.no_grad()
    def collect(self, domain: str, last: bool = False) -> None:
        """Moves the gradients just back-propagated into the domain's buffer; ``.grad`` is empty.

        Call it after every micro-batch, or after the last of several of one domain, whose gradients add up in
        ``.grad``. A parameter without gradient counts as zero. Raises ``StrategyError`` where no parameter has one.

        Without ``average_over`` all ranks must collect the same domains in the same order.

        Arguments:
            domain: whose gradients these are.
            last: nothing more is collected before ``combine()``, so with ``bfloat16`` or ``cpu`` buffers this gradient
                can stay where it is.
        """
        self._buffers.take(domain, last)

    @torch.no_grad()
    def combine(self, balance: BalanceFactors | None = None) -> Record:
        """Writes the weighted sum of the collected domain gradients into ``.grad`` and empties the buffers.

        Clip and step as usual afterwards. Domains that were not collected take no part; one domain alone passes
        unchanged, but for fixed weights. Where a domain's gradient is not finite, or so large that its squared norm is
        not, the plain sum is written and ``nonfinite_steps`` counts it. All ranks call it together and get the same
        record.

        Raises ``StrategyError`` where nothing was collected, ``RankMismatchError`` on all ranks where they collected
        different domains (without ``average_over``).

        Arguments:
            balance: gives each domain's gradient a factor, from the Euclidean lengths of all, before they are weighed;
                the record's Grams are those of the balanced gradients. Not asked where a gradient is not finite.
        """
        held = self._buffers.held
        collected, gram_UVV = self._passes.gram(held, self._buffers.counts, self._buffers.sequence, self.step)
        vectors = list(collected)
        if not vectors:
            raise StrategyError("combine() without a collected domain: call collect(domain) after each backward().")
        domains = tuple(dict.fromkeys(domain for domain, _ in vectors))
        member_VD = torch.tensor([[domain == name for name in domains] for domain, _ in vectors], dtype=torch.float64)
        index = self._units.own
        total_VV = gram_UVV.sum(dim=0)
        finite = bool(total_VV.isfinite().all())
        factor_V = torch.ones(len(vectors), dtype=torch.float64)
        if balance is not None and finite:
            factor_V = member_VD @ _factors(balance, domains, member_VD.mT @ total_VV @ member_VD)
            gram_UVV = gram_UVV * factor_V.unsqueeze(1) * factor_V
        gram_UDD = member_VD.mT @ gram_UVV @ member_VD if len(vectors) > len(domains) else gram_UVV
        gram_GDD = sum_units(gram_UDD, index)
        halves = self._halves(gram_UVV, collected, domains) if self._weighting.uses_halves else None
        weights_GD = self._weights(gram_GDD, domains, finite, halves)
        weights_GV = weights_GD[:, member_VD.argmax(dim=1)] * factor_V
        self._passes.write(held, vectors, weights_GV[index.index_U])
        self._buffers.clear()
        record = Record(self.step, index.groups, domains, gram_GDD, weights_GD, finite, gram_UDD, self._units)
        self.step += 1
        self.nonfinite_steps += not finite
        return record

    def reset(self) -> None:
        """Forgets the gradients collected since the last combination; counters and weighting state stay."""
        self._buffers.clear()

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs to go on with the same numbers; collected gradients are not part of it."""
        expected = self._passes.expected if isinstance(self._passes, ScatteredGradients) else {}
        return {
            "strategy": self.strategy.name,
            "groups": list(self.groups),
            "seed": self.seed,
            "step": self.step,
            "nonfinite_steps": self.nonfinite_steps,
            "weighting": self._weighting.state_dict(),
            "expected": [[*vector, age] for vector, age in expected.items()],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continues where ``state_dict()`` was taken; refuses, unchanged, the state of another strategy or groups."""
        if state["strategy"] != self.strategy.name:
            raise StrategyError(
                f"This state was saved with the strategy {state['strategy']!r}, and the Surgeon has "
                f"{self.strategy.name!r}: resume with the strategy the run was started with."
            )
        if list(state["groups"]) != list(self.groups):
            odd = sorted(set(state["groups"]) ^ set(self.groups))
            difference = f"differing in {', '.join(odd[:3])}" if odd else "in another order"
            raise StrategyError(
                f"This state has {len(state['groups'])} groups and the Surgeon {len(self.groups)}, {difference}: "
                "resume with the model and the trainable parameters the run was started with."
            )
        self.seed, self.step, self.nonfinite_steps = state["seed"], state["step"], state["nonfinite_steps"]
        if isinstance(self._passes, ScatteredGradients):
            self._passes.expected = {(domain, half): age for domain, half, age in state.get("expected", [])}
        self._weighting.load_state_dict(state["weighting"])

    def _weights(self, gram_GDD: Tensor, domains: tuple[str, ...], finite: bool, halves: Halves | None) -> Tensor:
        shape = gram_GDD.shape[:2]
        if not finite or (len(domains) == 1 and not self._weighting.weighs_one):
            return torch.ones(shape, dtype=torch.float64)
        context = Context(self.groups, domains, self.seed, self.step, halves)
        weights_GD = torch.as_tensor(self._weighting(gram_GDD, context), dtype=torch.float64)
        if weights_GD.shape != shape or not weights_GD.isfinite().all():
            found = f"weights of shape {tuple(weights_GD.shape)}"
            if weights_GD.shape == shape:
                row = int(weights_GD.isfinite().all(1).int().argmin())
                found = f"{weights_GD[row].tolist()} for the group {self.groups[row]!r}"
            raise StrategyError(
                f"At step {self.step} the weighting of {self.strategy.name!r} gave {found}; "
                f"it must give one finite weight per group and domain, shape {tuple(shape)}."
            )
        return weights_GD

    def _halves(self, gram_UVV: Tensor, collected: Mapping[Vector, int], domains: tuple[str, ...]) -> Halves:
        """The Grams with every domain split in two."""
        places = torch.tensor([2 * domains.index(domain) + half for domain, half in collected])
        gram_GVV = torch.zeros(len(self.groups), 2 * len(domains), 2 * len(domains), dtype=torch.float64)
        gram_GVV[:, places.unsqueeze(1), places] = sum_units(gram_UVV, self._units.own)
        counts_D2 = torch.tensor([[collected.get((domain, half), 0) for half in (0, 1)] for domain in domains])
        return Halves(gram_GVV, counts_D2)


def _factors(balance: BalanceFactors, domains: tuple[str, ...], gram_DD: Tensor) -> Tensor:
    """The factors [D] that ``balance`` gives, float64."""
    found = balance(dict(zip(domains, norms(gram_DD).tolist(), strict=True)))
    return torch.tensor([found[name] for name in domains], dtype=torch.float64)


def _distinct(source: nn.Module | NamedParameters) -> dict[str, nn.Parameter]:
    """Names and parameters, a tied parameter under its first name only."""
    pairs = parameters_of(source) if isinstance(source, nn.Module) else source
    first: dict[int, tuple[str, nn.Parameter]] = {}
    for name, parameter in pairs.items() if isinstance(pairs, Mapping) else pairs:
        first.setdefault(id(parameter), (name, parameter))
    return dict(first.values())


def _ddp(source: nn.Module | NamedParameters) -> DistributedDataParallel | None:
    """The model if DDP wraps it, compiled or not."""
    inner = getattr(source, "_orig_mod", source)
    return inner if isinstance(inner, DistributedDataParallel) else None
