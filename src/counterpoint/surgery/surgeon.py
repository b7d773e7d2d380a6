"""The Surgeon: gradient surgery in any training loop."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import StrategyError, UnsupportedError
from .buffers import DomainBuffers
from .groupings import ParameterRule
from .record import Record
from .strategies import Strategy, resolve_strategy
from .units import Units, sum_units
from .weighting import Context
from .weightings import WeightingSpec, build_weighting

NamedParameters = Mapping[str, nn.Parameter] | Iterable[tuple[str, nn.Parameter]]


class Surgeon:
    """Combines the gradients of several domains so that they do not work against each other.

    >>> surgeon = Surgeon(model, strategy="mgs")
    >>> for domain, batch in micro_batches:  # each micro-batch holds one domain
    ...     loss(model, batch).backward()
    ...     surgeon.collect(domain)
    >>> record = surgeon.combine()
    >>> optimizer.step(); optimizer.zero_grad()

    Arguments:
        model_or_named_parameters: a module, or names and parameters. Frozen parameters are left out, tied ones count
            once. What requires a gradient now is what takes part later.
        strategy: a name in ``STRATEGIES`` or ``{"grouping": ..., "weighting": ...}``.
        grouping, weighting: replace that part of the strategy.
        seed: of the private random generators; with the step and the group's name it fixes every random order.
        copy: copy each gradient instead of taking its tensor over. Needed where something else owns and reuses the
            memory of ``.grad``, as DDP with ``gradient_as_bucket_view=True`` does; costs a copy per domain.

    Raises ``StrategyError`` and ``GroupingError`` for names and parameters that nothing knows, ``UnsupportedError``
    for parameters sharded over devices.
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
    ) -> None:
        self.strategy = resolve_strategy(strategy, grouping, weighting)
        self.seed = seed
        self.step = 0
        """Number of combinations so far."""
        self.nonfinite_steps = 0
        """How many of them fell back to the plain sum because a gradient was not finite."""
        self._weighting = build_weighting(self.strategy.weighting)
        named = _distinct(model_or_named_parameters)
        trainable = {name: parameter for name, parameter in named.items() if parameter.requires_grad}
        _check_parameters(trainable)
        shapes = {name: tuple(parameter.shape) for name, parameter in named.items()}
        self._units = Units(shapes, list(trainable), self.strategy.grouping)
        self._buffers = DomainBuffers(trainable, copy)

    @property
    def groups(self) -> tuple[str, ...]:
        """The strategy's groups, in model order."""
        return self._units.own.groups

    @property
    def collected(self) -> tuple[str, ...]:
        """The domains collected since the last combination, sorted by name."""
        return self._buffers.domains

    @torch.no_grad()
    def collect(self, domain: str) -> None:
        """Moves the gradients of the micro-batch just back-propagated into the domain's buffer; ``.grad`` is empty.

        A parameter without gradient counts as zero for this micro-batch. Call it once per micro-batch, in any order of
        domains. Raises ``StrategyError`` where no parameter has a gradient.
        """
        self._buffers.take(domain)

    @torch.no_grad()
    def combine(self) -> Record:
        """Writes the weighted sum of the collected domain gradients into ``.grad`` and empties the buffers.

        Clip and step as usual afterwards. Domains that were not collected take no part; one domain alone passes
        unchanged. Where a domain's gradient is not finite, or so large that its squared norm is not, the plain sum is
        written and ``nonfinite_steps`` counts it. Raises ``StrategyError`` where nothing was collected.
        """
        domains = self._buffers.domains
        if not domains:
            raise StrategyError("combine() without a collected domain: call collect(domain) after each backward().")
        index = self._units.own
        gram_UDD = self._buffers.gram(self._units.counts)
        gram_GDD = sum_units(gram_UDD, index)
        finite = bool(gram_UDD.isfinite().all())
        weights_GD = self._weights(gram_GDD, domains, finite)
        self._buffers.write(weights_GD[index.index_U], self._units.counts)
        record = Record(self.step, index.groups, domains, gram_GDD, weights_GD, finite, gram_UDD, self._units)
        self.step += 1
        self.nonfinite_steps += not finite
        return record

    def reset(self) -> None:
        """Forgets the gradients collected since the last combination; counters and weighting state stay."""
        self._buffers.clear()

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs to go on with the same numbers; collected gradients are not part of it."""
        memory = getattr(self._weighting, "state_dict", None)
        return {
            "strategy": self.strategy.name,
            "groups": list(self.groups),
            "seed": self.seed,
            "step": self.step,
            "nonfinite_steps": self.nonfinite_steps,
            "weighting": memory() if memory else {},
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
        if hasattr(self._weighting, "load_state_dict"):
            self._weighting.load_state_dict(state["weighting"])

    def _weights(self, gram_GDD: Tensor, domains: tuple[str, ...], finite: bool) -> Tensor:
        shape = gram_GDD.shape[:2]
        if len(domains) == 1 or not finite:
            return torch.ones(shape, dtype=torch.float64)
        context = Context(self.groups, domains, self.seed, self.step)
        weights_GD = torch.as_tensor(self._weighting(gram_GDD, context), dtype=torch.float64)
        if weights_GD.shape != shape or not weights_GD.isfinite().all():
            raise StrategyError(
                f"At step {self.step} the weighting of {self.strategy.name!r} gave "
                f"{_describe(weights_GD, self.groups)}; "
                f"it must give one finite weight per group and domain, shape {tuple(shape)}."
            )
        return weights_GD


def _distinct(source: nn.Module | NamedParameters) -> dict[str, nn.Parameter]:
    """Names and parameters, a tied parameter under its first name only."""
    pairs = source.named_parameters() if isinstance(source, nn.Module) else source
    pairs = pairs.items() if isinstance(pairs, Mapping) else pairs
    seen: set[int] = set()
    named: dict[str, nn.Parameter] = {}
    for name, parameter in pairs:
        if id(parameter) not in seen:
            seen.add(id(parameter))
            named[name] = parameter
    return named


def _check_parameters(trainable: Mapping[str, nn.Parameter]) -> None:
    if not trainable:
        raise StrategyError("No parameter requires a gradient, so there is nothing to combine.")
    for name, parameter in trainable.items():
        if hasattr(parameter, "placements"):  # a DTensor; its class is not imported for one look
            raise UnsupportedError(
                f"The parameter {name!r} is sharded over devices, and inner products of shards would be partial. "
                "Use one process, or DDP, where every rank holds whole gradients."
            )


def _describe(weights_GD: Tensor, groups: tuple[str, ...]) -> str:
    if weights_GD.ndim == 2 and len(weights_GD) == len(groups):
        for group, row in zip(groups, weights_GD, strict=True):
            if not row.isfinite().all():
                return f"{row.tolist()} for the group {group!r}"
    return f"weights of shape {tuple(weights_GD.shape)}"
