"""What a case of the suite is: a model, a plan, and a way to spread training over ranks."""

import contextlib
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from .data import Plan
from .models import ModelSpec
from .world import World


def always_sync(last: bool) -> AbstractContextManager[None]:
    """Gradients are reduced in every backward pass."""
    return contextlib.nullcontext()


@dataclass(frozen=True)
class Spread:
    """A model spread over the ranks, and how its backward passes are run."""

    model: nn.Module
    shard: int = 0
    """Which data this rank has ..."""
    shards: int = 1
    """... of how many different parts."""
    sync: Callable[[bool], AbstractContextManager[Any]] = always_sync
    """The context of a backward pass, told whether it is the domain's last of this step."""
    collect_each: bool = True
    """Whether every micro-batch is collected, or only a domain's last, with the sum of all in ``.grad``."""
    surgeon: Mapping[str, Any] = field(default_factory=dict)
    """Further arguments of the Surgeon."""


@dataclass(frozen=True)
class Tolerances:
    """The largest relative errors that count as exact."""

    gradients: float
    grams: float
    weights: float
    parameters: float


EXACT = {
    torch.float32: Tolerances(gradients=1e-6, grams=5e-6, weights=1e-5, parameters=1e-4),
    torch.float64: Tolerances(gradients=1e-12, grams=5e-12, weights=1e-11, parameters=1e-10),
}
"""By the parameters' dtype. Gradients and Grams are compared in the first step, where parameters are equal. A Gram has
the rounding errors of two gradients, in a group that may be small. Weights and parameters are compared over all steps,
through which AdamW carries rounding errors on."""

BFLOAT16_BUFFERS = Tolerances(gradients=4e-3, grams=8e-3, weights=4e-2, parameters=0.2)
"""Every element of a waiting gradient is rounded to 8 bits."""
BFLOAT16_COMPUTE = Tolerances(gradients=1e-6, grams=5e-6, weights=4e-2, parameters=0.2)
"""Where both sides round alike in the first step, and as soon as a parameter differs in its last bit no longer."""

BFLOAT16_KERNELS = Tolerances(gradients=2e-2, grams=4e-2, weights=0.2, parameters=0.5)
"""The same on a GPU, which chooses its kernels by where tensors lie in memory, so that both sides round differently."""


def any_world(world: World) -> str:
    """No requirement."""
    return ""


def ranks_from(least: int, multiple: int = 1) -> Callable[[World], str]:
    """Requires ``least`` ranks, and a multiple of ``multiple``."""

    def missing(world: World) -> str:
        if world.size >= least and world.size % multiple == 0:
            return ""
        return f"needs {least} ranks" if multiple == 1 else f"needs {least} ranks or more, a multiple of {multiple}"

    return missing


TWO = ranks_from(2)

USUAL_MODEL = ModelSpec()

USUAL_PLAN = Plan()

SHORT = Plan(steps=3)


@dataclass(frozen=True)
class Case:
    """One thing that must be exact."""

    what: str
    """One line for people."""
    spread: Callable[[nn.Module, World], Spread]
    model: ModelSpec = USUAL_MODEL
    plan: Plan = USUAL_PLAN
    """Its ``shards`` come from the spread, and where it has no ``domains`` their number from the world."""
    needs: Callable[[World], str] = any_world
    """What is missing to run the case, as ``needs 4 ranks``; empty where nothing is."""
    compute: torch.dtype | None = None
    """The dtype of forward and backward under a mixed precision policy."""
    announce: bool = True
    """Whether the step's last ``collect`` says so."""
    tolerances: Tolerances | None = None
    """Instead of ``EXACT``."""

    def allowed(self, world: World) -> Tolerances:
        """The tolerances in this world."""
        if self.compute and not world.on_cpu:
            return BFLOAT16_KERNELS
        return self.tolerances or EXACT[world.dtype]
