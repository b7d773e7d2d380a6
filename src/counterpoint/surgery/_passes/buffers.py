"""The gradients of the step in progress, one set per domain, or one per half of a domain's micro-batches."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ...errors import StrategyError, UnsupportedError
from .reduced import Vector
from .shards import like_parameter, local
from .stores import DeviceStore, Gradients, add_up


class DomainBuffers:
    """Takes gradients out of ``.grad`` and keeps them by domain until the step is combined.

    No gradient is copied unless ``copy`` or the store does: the first micro-batch of a domain hands over its gradient
    tensors, later ones are added to them. ``halves`` files a domain's micro-batches alternately under half 0 and 1.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], store: DeviceStore, copy: bool, halves: bool) -> None:
        self._names = list(parameters)
        self._parameters = list(parameters.values())
        self._store = store
        self._copy = copy
        self._halves = halves
        self.held: dict[Vector, Gradients] = {}
        """What this rank holds of each vector's gradient."""
        self.counts: dict[Vector, int] = {}
        """How often each vector was collected."""
        self.sequence: list[str] = []
        """The domains in the order in which they were collected."""

    @property
    def domains(self) -> tuple[str, ...]:
        """The domains collected so far, sorted by name: the same order on every rank, whoever came first."""
        return tuple(sorted({domain for domain, _ in self.held}))

    def clear(self) -> None:
        """Forgets all gradients collected so far; ``.grad`` is not touched."""
        self._store.release(list(self.held.values()))
        self.held, self.counts, self.sequence = {}, {}, []

    def take(self, domain: str, last: bool = False) -> None:
        """Moves ``.grad`` of every parameter into the domain's buffer, adding to what is there."""
        gradients = [parameter.grad for parameter in self._parameters]
        self._check(domain, gradients)
        mine = [self._own(g, p, last) for g, p in zip(gradients, self._parameters, strict=True)]
        for parameter in self._parameters:
            parameter.grad = None
        vector = self._vector(domain)
        if vector not in self.held:
            self.held[vector] = mine if last else self._store.keep(mine)
        elif last:
            held = self.held[vector]
            self.held[vector] = add_up(self._store.load(held), mine)
            self._store.release([held])
        else:
            self.held[vector] = self._store.add(self.held[vector], mine)
        self.counts[vector] = self.counts.get(vector, 0) + 1
        self.sequence.append(domain)

    def _vector(self, domain: str) -> Vector:
        seen = self.counts.get((domain, 0), 0) + self.counts.get((domain, 1), 0)
        return (domain, seen % 2 if self._halves else 0)

    def _own(self, gradient: Tensor | None, parameter: nn.Parameter, last: bool) -> Tensor | None:
        """What this rank holds of the gradient, contiguous, in memory that nobody else writes before combine()."""
        if gradient is None:
            return None
        mine = local(like_parameter(gradient.detach(), parameter))
        if self._copy and not last:
            return mine.clone(memory_format=torch.contiguous_format)
        return mine.contiguous()

    def _check(self, domain: str, gradients: Gradients) -> None:
        if all(gradient is None for gradient in gradients):
            raise StrategyError(
                f"collect({domain!r}) found no gradient in any parameter: call it after backward() and before "
                "zero_grad()."
            )
        for name, gradient in zip(self._names, gradients, strict=True):
            if gradient is not None and gradient.layout != torch.strided:
                raise UnsupportedError(
                    f"The gradient of {name!r} is sparse, and surgery needs dense ones: make the embedding with "
                    "sparse=False."
                )
