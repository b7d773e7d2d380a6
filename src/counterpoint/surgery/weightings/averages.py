"""Exponential averages over steps of numbers that belong to a group and a pair of domains.

    average = sum_s decay^s x_s / sum_s decay^s          x_0 the newest value of that pair

Dividing by the sum of the weights removes the bias of the first steps. A pair that a step says nothing about keeps what
it has. Legend: C numbers per pair; N all domains seen so far.
"""

from collections.abc import Mapping
from typing import Annotated, Any

import torch
from annotated_types import Ge, Lt
from torch import Tensor

from ...errors import StrategyError
from .base import Context

Decay = Annotated[float, Ge(0), Lt(1)]
"""Weight of a step against the one after it; 0 keeps the newest alone."""


class PairAverages:
    """Averages of C numbers for every group and ordered pair of domains, kept by their names.

    Arguments:
        decay: see ``Decay``.
        width: C.

    Raises ``StrategyError`` where one object is used with the groups of two models.
    """

    def __init__(self, decay: float, width: int) -> None:
        self._decay = float(decay)
        self._width = width
        self._groups: tuple[str, ...] = ()
        self._domains: list[str] = []
        # Along the last axis: the C weighted sums, the sum of the weights, and the sum of their squares.
        self._sums_GNN = torch.zeros(0, 0, 0, self._width + 2, dtype=torch.float64)

    @property
    def empty(self) -> bool:
        """Whether no pair has an average yet."""
        return not bool(self._sums_GNN[..., -1].any())

    def update(self, context: Context, values_GDDC: Tensor, valid_GDD: Tensor) -> None:
        """Takes in this step's numbers of the pairs in ``valid_GDD`` [G, D, D]."""
        rows_D = self._place(context)
        old_GDDC = self._sums_GNN[:, rows_D.unsqueeze(1), rows_D]
        ones_GDDC = torch.ones_like(old_GDDC[..., :1])
        fade = torch.full((self._width + 2,), self._decay, dtype=torch.float64)
        gain = 1 - fade
        fade[-1], gain[-1] = fade[-1] ** 2, gain[-1] ** 2
        new_GDDC = fade * old_GDDC + gain * torch.cat([values_GDDC, ones_GDDC, ones_GDDC], dim=-1)
        self._sums_GNN[:, rows_D.unsqueeze(1), rows_D] = torch.where(valid_GDD.unsqueeze(-1), new_GDDC, old_GDDC)

    def read(self, context: Context) -> tuple[Tensor, Tensor]:
        """The averages [G, D, D, C], and [G, D, D] how many equally weighted steps they are worth; 0 where none."""
        rows_D = self._place(context)
        sums_GDDC = self._sums_GNN[:, rows_D.unsqueeze(1), rows_D]
        mass_GDD, squares_GDD = sums_GDDC[..., -2], sums_GDDC[..., -1]
        known_GDD = mass_GDD > 0
        averages_GDDC = sums_GDDC[..., :-2] / torch.where(known_GDD, mass_GDD, 1.0).unsqueeze(-1)
        return averages_GDDC, mass_GDD**2 / torch.where(known_GDD, squares_GDD, 1.0)

    def state_dict(self) -> dict[str, Any]:
        return {"groups": list(self._groups), "domains": list(self._domains), "sums": self._sums_GNN.tolist()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._groups, self._domains = tuple(state["groups"]), list(state["domains"])
        number = len(self._domains)
        shape = (len(self._groups), number, number, self._width + 2)
        self._sums_GNN = torch.tensor(state["sums"], dtype=torch.float64).view(shape)

    def _place(self, context: Context) -> Tensor:
        """Rows of the step's domains in the memory, [D]; a domain seen for the first time gets a new one."""
        if self._groups and self._groups != context.groups:
            raise StrategyError(
                f"A weighting with memory of {len(self._groups)} groups was called with {len(context.groups)} others: "
                "make one for each Surgeon."
            )
        new = [domain for domain in context.domains if domain not in self._domains]
        if new or not self._groups:
            self._groups = context.groups
            self._domains += new
            old_GNN, number = self._sums_GNN, len(self._domains)
            self._sums_GNN = old_GNN.new_zeros(len(self._groups), number, number, self._width + 2)
            self._sums_GNN[: len(old_GNN), : old_GNN.shape[1], : old_GNN.shape[2]] = old_GNN
        return torch.tensor([self._domains.index(domain) for domain in context.domains])
