"""What the suite trains on: which rows of which domain every rank sees in every step, and the loss of a row.

A step's rows of a domain are one fixed batch, its union; a plan only deals them out. The loss of a rank's micro-batch
is the sum over its rows divided by the *mean* number of rows per rank, so that the average over ranks is exactly the
mean loss of the union, however unevenly the rows are dealt.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

TOKENS = 8


@dataclass(frozen=True)
class Rows:
    """Some rows of a domain: token numbers and advantages, as in policy gradients."""

    tokens_BT: Tensor
    advantages_B: Tensor

    def __getitem__(self, chosen: slice) -> "Rows":
        return Rows(self.tokens_BT[chosen], self.advantages_B[chosen])

    def __len__(self) -> int:
        return len(self.advantages_B)


def policy_loss(model: nn.Module, rows: Rows) -> Tensor:
    """The sum over rows of ``-advantage * mean log-probability of the row's next tokens``."""
    logits_BTV = model(rows.tokens_BT[:, :-1])
    if logits_BTV.dtype != torch.float64:
        logits_BTV = logits_BTV.float()
    logs_BT = logits_BTV.log_softmax(-1).gather(-1, rows.tokens_BT[:, 1:].unsqueeze(-1)).squeeze(-1)
    return -(rows.advantages_B.to(logs_BT.dtype) * logs_BT.mean(-1)).sum()


@dataclass(frozen=True)
class Plan:
    """How the rows of every step are dealt to ranks and micro-batches."""

    shards: int = 1
    """Ranks with data of their own."""
    domains: int = 0
    steps: int = 10
    micro_batches: int = 2
    """Micro-batches per domain, step and rank."""
    uneven: bool = False
    """Micro-batches of 0 to 3 rows instead of 2."""
    missing: bool = False
    """Every other step lacks a domain."""
    own_ways: bool = False
    """Each rank has its own order of domains, its own number of micro-batches, and lacks a domain in some steps."""
    vocabulary: int = 23

    def names(self, step: int) -> list[str]:
        """The domains of a step, in the order every rank goes through them."""
        absent = step % self.domains if self.missing and step % 2 and self.domains > 1 else None
        present = [d for d in range(self.domains) if d != absent]
        turn = step % len(present)
        return [domain_name(d) for d in present[turn:] + present[:turn]]

    def order(self, step: int, shard: int) -> list[str]:
        """The domains of a step in the order this rank goes through them."""
        names = self.names(step)
        if not self.own_ways:
            return names
        turn = shard % len(names)
        mine = (names[turn:] + names[:turn])[:: -1 if shard % 3 else 1]
        return [name for name in mine if self._sizes(step, name, shard)]

    def union(self, step: int, domain: str, device: torch.device | str = "cpu") -> Rows:
        """All rows of a domain in a step."""
        total = sum(sum(self._sizes(step, domain, shard)) for shard in range(self.shards))
        generator = torch.Generator().manual_seed(1000 * step + number_of(domain))
        tokens_BT = torch.randint(self.vocabulary, (total, TOKENS + 1), generator=generator)
        # a domain's rows resemble each other: half of their tokens follow a rule of its own
        start_B1 = tokens_BT[:, :1]
        rule_BT = (start_B1 + (number_of(domain) + 1) * torch.arange(TOKENS + 1)) % self.vocabulary
        keep_BT = torch.rand(total, TOKENS + 1, generator=generator) < 0.5
        advantages_B = torch.randn(total, generator=generator, dtype=torch.float64).float()
        return Rows(torch.where(keep_BT, rule_BT, tokens_BT).to(device), advantages_B.to(device))

    def micro(self, step: int, domain: str, shard: int, device: torch.device | str = "cpu") -> list[Rows]:
        """This rank's micro-batches of a domain in a step."""
        union = self.union(step, domain, device)
        low = sum(sum(self._sizes(step, domain, other)) for other in range(shard))
        pieces = []
        for size in self._sizes(step, domain, shard):
            pieces.append(union[low : low + size])
            low += size
        return pieces

    def _sizes(self, step: int, domain: str, shard: int) -> list[int]:
        """Rows of every micro-batch of this rank."""
        number = number_of(domain)
        micro = self.micro_batches
        if self.own_ways:
            if self.shards > 1 and (step + number + shard) % (2 * self.shards) == 0:
                return []
            micro = 1 + (micro + shard + step) % (micro + 1)
        if not self.uneven:
            return [2] * micro
        least = 1 if self.own_ways or shard == 0 else 0  # some rank always has a row
        return [max(least, (shard + 2 * i + number + step) % 4) for i in range(micro)]


def domain_name(number: int) -> str:
    """``domain-2`` for 2."""
    return f"domain-{number}"


def number_of(domain: str) -> int:
    """2 for ``domain-2``."""
    return int(domain.rpartition("-")[2])
