"""What a weighting is: it turns the Grams of all groups into the weights of the domains in each group.

    weights_GD = weighting(gram_GDD, context)

``gram_GDD`` [G, D, D] and ``weights_GD`` [G, D] are float64 on the CPU. The update of group g is
``sum_d weights_GD[g, d] * gradient of domain d``.
"""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ...errors import StrategyError, nearest
from ...registry import Named

PATIENCE = 50
"""Steps after which a weighting that could do nothing so far says so instead of going on."""


@dataclass(frozen=True)
class Halves:
    """Every domain's gradient of this step in two parts, of alternate ``collect()`` calls, that sum to the whole.

    How the parts differ tells how noisy the whole is. Vector ``2 * d + h`` is half ``h`` of domain ``d``.
    """

    gram_GVV: Tensor
    """[G, 2D, 2D] float64: inner products of the parts; zero where nothing was collected."""
    counts_D2: Tensor
    """[D, 2] int64: ``collect()`` calls in each part."""


@dataclass(frozen=True)
class Context:
    """What a weighting may know besides the Grams: the names of groups and domains, the seed and the step."""

    groups: tuple[str, ...]
    domains: tuple[str, ...]
    seed: int = 0
    step: int = 0
    halves: Halves | None = None
    """The split gradients, for a weighting that ``uses_halves``."""

    @property
    def num_domains(self) -> int:
        """Number of domains D taking part in this step."""
        return len(self.domains)

    def generator(self, group: str) -> torch.Generator:
        """A new generator that depends on (seed, step, group) alone: equal on every rank, machine and run."""
        digest = hashlib.blake2b(self._key(group), digest_size=8).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)

    def draws(self, groups: Sequence[str], number: int) -> Tensor:
        """Random int64 numbers [groups, number], uniform over all 64 bits, that depend on (seed, step, group) alone.

        What a generator for each of many groups would give, at a hundredth of the time: bytes of SHAKE-128.
        """
        stream = b"".join(hashlib.shake_128(self._key(group)).digest(8 * number) for group in groups)
        return torch.frombuffer(bytearray(stream), dtype=torch.int64).view(len(groups), number)

    def _key(self, group: str) -> bytes:
        return f"{self.seed}/{self.step}/{group}".encode()


class Weighting(Named, ABC):
    """Base of all weightings. One without memory defines ``__call__`` alone; its options are those of ``__init__``."""

    strategies: ClassVar[tuple[tuple[str, str, str], ...]] = ()
    """Name, grouping and description of each named strategy that is made of it."""

    uses_halves: bool = False
    """Whether it needs every domain's gradient in two halves, as ``context.halves``; that takes twice the buffers."""

    weighs_one: bool = False
    """Whether it is asked also in a step of one domain, which passes unchanged otherwise."""

    protects: bool = False
    """Whether it has the option ``protect``."""

    @abstractmethod
    def __call__(self, gram_GDD: Tensor, context: Context) -> Tensor:
        """Weights [G, D], float64, for Grams [G, D, D]."""

    def state_dict(self) -> dict[str, Any]:
        """What it remembers from step to step, of plain Python objects."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Puts back what ``state_dict()`` gave."""


class NamedDomains:
    """The domains that an option names, and whether they ever turn up.

    Arguments:
        names: the domains.
        option, effect: for the error: what names them, and what a name without a domain leaves undone.
    """

    def __init__(self, names: Iterable[str], option: str, effect: str) -> None:
        self.names = tuple(names)
        self._option, self._effect = option, effect
        self._steps = 0
        self._seen: set[str] = set()

    def see(self, context: Context) -> None:
        """Takes note of one step; ``StrategyError`` where a name belongs to no domain of the first 50."""
        if not self.names:
            return
        self._steps += 1
        self._seen.update(context.domains)
        missing = [name for name in self.names if name not in self._seen]
        if missing and self._steps >= PATIENCE:
            raise StrategyError(
                f"{self._option} {missing[0]!r}, a domain that none of {self._steps} steps held, so that "
                f"{self._effect}: {nearest(missing[0], self._seen)}"
            )

    def state_dict(self) -> dict[str, Any]:
        """The domains seen so far; empty where none is named."""
        return {"steps": self._steps, "seen": sorted(self._seen)} if self.names else {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Puts back what ``state_dict()`` gave."""
        self._steps, self._seen = state.get("steps", 0), set(state.get("seen", ()))
