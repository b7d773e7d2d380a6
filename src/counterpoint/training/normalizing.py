"""Rewards of any scale brought to one: mean 0 and deviation 1 over all that a domain's completions have got so far.

Legend: B completions of the generation batch over all ranks.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch


@dataclass
class Running:
    """Count, mean and sum of squared deviations of all numbers so far, in float64, after Chan et al. (1979)."""

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0

    def add(self, values_B: torch.Tensor) -> None:
        """Counts the finite ones in."""
        values_B = values_B[values_B.isfinite()].double().cpu()
        if not (more := values_B.numel()):
            return
        mean = values_B.mean().item()
        squares = (values_B - mean).square().sum().item()
        total, apart = self.count + more, mean - self.mean
        self.squares += squares + apart * apart * self.count * more / total
        self.mean += apart * more / total
        self.count = total

    @property
    def deviation(self) -> float:
        """The unbiased standard deviation; 0 below two numbers."""
        return math.sqrt(self.squares / (self.count - 1)) if self.count > 1 else 0.0

    def scale(self, values_B: torch.Tensor) -> torch.Tensor:
        """``values_B`` less the mean, over the deviation; 0 while all numbers are equal, NaN and infinity unchanged."""
        scaled_B = (values_B.double() - self.mean) / (self.deviation or math.inf)
        return torch.where(values_B.isfinite(), scaled_B.to(values_B), values_B)


@dataclass
class Normalizer:
    """The numbers of every normalised reward of a training, by ``DOMAIN/NAME``.

    All ranks hold the same, for all see the rewards of all.
    """

    running: dict[str, Running] = field(default_factory=dict)

    def __call__(self, name: str, values_B: torch.Tensor, *, counts: bool = True) -> torch.Tensor:
        """Counts ``values_B`` in unless told not to, then brings them to the scale of all so far."""
        running = self.running.setdefault(name, Running())
        if counts:
            running.add(values_B)
        return running.scale(values_B)

    def state_dict(self) -> dict[str, Any]:
        """Plain data for a checkpoint."""
        return {name: asdict(running) for name, running in self.running.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from what ``state_dict`` gave; what is not in it begins anew."""
        self.running = {name: Running(**one) for name, one in state.items()}
