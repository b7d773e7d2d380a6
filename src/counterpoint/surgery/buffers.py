"""The gradients of the step in progress, one set per domain."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ..errors import StrategyError, UnsupportedError
from . import _kernels

Gradients = list[Tensor | None]
"""One gradient per trainable parameter; ``None`` where a domain has none."""


class DomainBuffers:
    """Takes gradients out of ``.grad``, keeps them by domain, and puts their weighted sum back.

    No gradient is copied unless ``copy``: the first micro-batch of a domain hands over its gradient tensors, later
    ones are added to them, and the sum is written into the tensors of one domain. With D domains D gradients are alive
    at most.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], copy: bool = False) -> None:
        self._names = list(parameters)
        self._parameters = list(parameters.values())
        self._copy = copy
        self._held: dict[str, Gradients] = {}

    @property
    def domains(self) -> tuple[str, ...]:
        """The domains collected so far, sorted by name: the same order on every rank, whoever came first."""
        return tuple(sorted(self._held))

    def clear(self) -> None:
        """Forgets all gradients collected so far; ``.grad`` is not touched."""
        self._held.clear()

    def take(self, domain: str) -> None:
        """Moves ``.grad`` of every parameter into the domain's buffer, adding to what is there."""
        gradients = [parameter.grad for parameter in self._parameters]
        self._check(domain, gradients)
        for parameter in self._parameters:
            parameter.grad = None
        if domain not in self._held:
            self._held[domain] = [self._own(gradient) for gradient in gradients]
            return
        held = self._held[domain]
        sums: list[Tensor] = []
        terms: list[Tensor] = []
        for i, gradient in enumerate(gradients):
            mine = held[i]
            if mine is None:
                held[i] = self._own(gradient)
            elif gradient is not None:
                sums.append(mine)
                terms.append(gradient)
        if sums:
            torch._foreach_add_(sums, terms)

    def gram(self, counts: list[int], chunk: int | None = None) -> Tensor:
        """Inner products of the domains' gradients for every unit, [U, D, D] float64 on the CPU.

        ``counts`` holds the number of units of each parameter. Domains are in the order of ``domains``. The numbers
        leave the device once, at the end.
        """
        held = [self._held[domain] for domain in self.domains]
        gram_UDD = torch.zeros(sum(counts), len(held), len(held), dtype=torch.float64)
        products: dict[torch.device, list[Tensor]] = {}
        targets: dict[torch.device, list[Tensor]] = {}
        start = 0
        with _kernels.few_threads():
            for i, count in enumerate(counts):
                mine = _present(held, i)
                if mine:
                    device = mine[0][1].device
                    found = _kernels.pair_products([gradient.view(-1) for _, gradient in mine], count, chunk)
                    products.setdefault(device, []).append(found.view(-1))
                    targets.setdefault(device, []).append(_targets(start, count, [d for d, _ in mine], len(held)))
                start += count
        flat = gram_UDD.view(-1)
        for device, parts in products.items():
            flat[torch.cat(targets[device])] = torch.cat(parts).cpu()
        return gram_UDD + gram_UDD.triu(1).mT

    def write(self, weights_UD: Tensor, counts: list[int], chunk: int | None = None) -> None:
        """Sets ``.grad`` to the weighted sum, unit by unit, and lets go of every buffer.

        ``weights_UD`` [U, D] is in the order of ``domains``. A parameter for which no domain has a gradient gets none.
        """
        held = [self._held[domain] for domain in self.domains]
        weights = weights_UD.tolist()
        start = 0
        with _kernels.few_threads():
            for i, (parameter, count) in enumerate(zip(self._parameters, counts, strict=True)):
                mine = _present(held, i)
                rows = [[weights[unit][d] for d, _ in mine] for unit in range(start, start + count)]
                start += count
                if mine:
                    _kernels.weighted_sum_([gradient.view(-1) for _, gradient in mine], rows, chunk)
                    parameter.grad = mine[0][1]
        self.clear()

    def _own(self, gradient: Tensor | None) -> Tensor | None:
        if gradient is None:
            return None
        gradient = gradient.detach()
        return gradient.clone(memory_format=torch.contiguous_format) if self._copy else gradient.contiguous()

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


def _present(held: list[Gradients], i: int) -> list[tuple[int, Tensor]]:
    """The domains that have a gradient for parameter ``i``, by number, with that gradient."""
    return [(d, gradient) for d, gradients in enumerate(held) if (gradient := gradients[i]) is not None]


def _targets(start: int, count: int, present: list[int], num_domains: int) -> Tensor:
    """Where in a flat [U, D, D] the pair products of ``count`` units from ``start`` on belong (upper triangle)."""
    units = torch.arange(start, start + count).unsqueeze(1) * num_domains**2
    cells = torch.tensor([present[i] * num_domains + present[j] for i, j in _kernels.pairs(len(present))])
    return (units + cells).view(-1)
