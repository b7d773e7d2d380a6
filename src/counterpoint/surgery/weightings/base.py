"""What a weighting is: a function from the Grams of all groups to the weights of the domains in each group.

    weights_GD = weighting(gram_GDD, context)

``gram_GDD`` [G, D, D] and ``weights_GD`` [G, D] are float64 on the CPU; ``context`` names groups and domains and hands
out private random generators. The update of group g is ``sum_d weights_GD[g, d] * gradient of domain d``. A weighting
with memory is an object with ``state_dict()`` and ``load_state_dict()`` besides. One that has the attribute
``uses_halves = True`` finds the step's gradients split in two in ``context.halves``; one that has ``weighs_one = True``
is asked also in a step of one domain, which passes unchanged otherwise.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


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


Weighting = Callable[[Tensor, Context], Tensor]


def ones(gram_GDD: Tensor, context: Context) -> Tensor:
    """Weights [G, D] of 1 everywhere: the plain sum of the domain gradients."""
    return torch.ones(gram_GDD.shape[:2], dtype=torch.float64)
