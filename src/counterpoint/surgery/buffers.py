"""The gradients of the step in progress, one set per domain."""

from collections.abc import Callable, Mapping
from typing import TypeVar

import torch
from torch import Tensor, nn

from ..errors import StrategyError, UnsupportedError
from . import _kernels

Result = TypeVar("Result")

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
        spans = self._spans(held, counts)

        def products(span: _kernels.Span) -> Tensor:
            flats = [gradient.view(-1)[span.low : span.high] for _, gradient in _present(held, span.parameter)]
            return _kernels.pair_products(flats, 1, chunk)[0]

        parts = self._run(products, spans)
        targets = [_targets(span.unit, [d for d, _ in _present(held, span.parameter)], len(held)) for span in spans]
        flat = torch.zeros(sum(counts) * len(held) ** 2, dtype=torch.float64)
        for device in {part.device for part in parts}:
            mine = [i for i, part in enumerate(parts) if part.device == device]
            flat.index_add_(0, torch.cat([targets[i] for i in mine]), torch.cat([parts[i] for i in mine]).cpu())
        gram_UDD = flat.view(-1, len(held), len(held))
        return gram_UDD + gram_UDD.triu(1).mT

    def write(self, weights_UD: Tensor, counts: list[int], chunk: int | None = None) -> None:
        """Sets ``.grad`` to the weighted sum, unit by unit, and lets go of every buffer.

        ``weights_UD`` [U, D] is in the order of ``domains``. A parameter for which no domain has a gradient gets none.
        """
        held = [self._held[domain] for domain in self.domains]
        weights = weights_UD.tolist()

        def combine(span: _kernels.Span) -> None:
            mine = _present(held, span.parameter)
            flats = [gradient.view(-1)[span.low : span.high] for _, gradient in mine]
            _kernels.weighted_sum_(flats, [[weights[span.unit][d] for d, _ in mine]], chunk)

        self._run(combine, self._spans(held, counts))
        for i, parameter in enumerate(self._parameters):
            mine = _present(held, i)
            if mine:
                parameter.grad = mine[0][1]
        self.clear()

    def _spans(self, held: list[Gradients], counts: list[int]) -> list[_kernels.Span]:
        """The spans of every parameter for which some domain has a gradient."""
        longest = _kernels.CPU_SPAN if self._on_cpu else _kernels.DEVICE_CHUNK
        spans = _kernels.spans([parameter.numel() for parameter in self._parameters], counts, longest)
        there = [bool(_present(held, i)) for i in range(len(self._parameters))]
        return [span for span in spans if there[span.parameter]]

    def _run(self, function: Callable[[_kernels.Span], Result], spans: list[_kernels.Span]) -> list[Result]:
        """``function`` of every span; where the CPU does the work, on as many threads as the work is worth."""
        if not self._on_cpu:
            return [function(span) for span in spans]
        work = sum(span.high - span.low for span in spans)
        return _kernels.in_threads(function, spans, wanted=-(-work // _kernels.CPU_SPAN))

    @property
    def _on_cpu(self) -> bool:
        return all(parameter.device.type == "cpu" for parameter in self._parameters)

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


def _targets(unit: int, present: list[int], num_domains: int) -> Tensor:
    """Where in a flat [U, D, D] the pair products of a unit belong (upper triangle)."""
    cells = [present[i] * num_domains + present[j] for i, j in _kernels.pairs(len(present))]
    return torch.tensor(cells) + unit * num_domains**2
