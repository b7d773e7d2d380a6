"""The order of prompts: every optimizer step holds every domain's share, on every rank, from any step on."""

import hashlib
import math
import random
from collections.abc import Iterator, Mapping

from counterpoint.domains.geometry import Geometry
from counterpoint.domains.shares import Quotas, exact_units, ratio, would_do
from counterpoint.errors import DomainError


class DomainStream:
    """An endless order of the rows of one domain: every pass holds each row once, each pass is shuffled anew.

    With ``shuffle=False`` every pass keeps the order of the rows.

    >>> stream = DomainStream(3, seed=0, name="math")
    >>> sorted(stream[position] for position in range(3))
    [0, 1, 2]
    """

    def __init__(self, num_rows: int, seed: int, name: str, shuffle: bool = True) -> None:
        if num_rows < 1:
            raise DomainError(f"The domain {name!r} has no rows. Give it some or leave it out.")
        self.num_rows = num_rows
        self.seed = seed
        self.name = name
        self.shuffle = shuffle
        self._pass = -1
        self._order: list[int] = []

    def __getitem__(self, position: int) -> int:
        """The row at ``position`` (from 0) of the endless order."""
        number, within = divmod(position, self.num_rows)
        if not self.shuffle:
            return within
        if number != self._pass:
            text = f"{self.seed}\n{self.name}\n{number}"
            self._order = list(range(self.num_rows))
            random.Random(hashlib.sha256(text.encode()).digest()).shuffle(self._order)
            self._pass = number
        return self._order[within]


class QuotaSampler:
    """Row indices in TRL's protocol: each prompt ``num_generations`` times in a row, each generation repeated.

    TRL's loader takes ``steps_per_generation`` micro-batches at a time and accelerate gives rank r the r-th chunk of
    every ``world`` chunks. One generation (W ranks, each with whole units of one domain) is therefore laid out as::

        rank 0: [unit of math][unit of code] | rank 1: [unit of math][unit of code] | ...

    and yielded ``iterations * steps_per_generation`` times, because TRL asks once per micro-step and reuses the first
    answer. Every optimizer step then holds, on every rank, exactly the units that ``Quotas`` gives each domain. The
    order is a function of the step alone: skipping the first k batches is the same as starting at the k-th.

    Args:
        sizes: rows of each domain; they stand in this order in the one dataset that TRL indexes.
        shares: relative share of each domain, the same names.
        rule: ``exact`` or ``carry``, see ``Quotas``.
        seed: seed of the order inside each domain.
        shuffle: whether each pass over a domain's rows has an order of its own; False keeps the order of the rows.
        num_generations, rows_per_device, accumulation, steps_per_generation, iterations, world: see ``Geometry``.

    Raises:
        DomainError: numbers that do not fit, or shares that a step cannot hold, naming what would do.
    """

    def __init__(
        self,
        sizes: Mapping[str, int],
        *,
        shares: Mapping[str, float],
        num_generations: int,
        rows_per_device: int,
        accumulation: int,
        steps_per_generation: int | None = None,
        iterations: int = 1,
        world: int = 1,
        seed: int = 0,
        rule: str = "exact",
        shuffle: bool = True,
    ) -> None:
        if set(sizes) != set(shares):
            raise DomainError(f"Shares are given for {sorted(shares)}, but the domains are {sorted(sizes)}.")
        shares = {name: shares[name] for name in sizes}
        self.domains = tuple(sizes)
        self.geometry = Geometry(
            num_generations, rows_per_device, accumulation, steps_per_generation or accumulation, iterations, world
        )
        check_shares(shares, self.geometry, rule)
        self.quotas = Quotas(shares, self.geometry.quota_units, rule)
        self._streams = [DomainStream(size, seed, name, shuffle) for name, size in sizes.items()]
        self._offsets = [sum(list(sizes.values())[:index]) for index in range(len(sizes))]
        self._periods = self._periods_per_epoch(sum(sizes.values()))
        self.epoch = 0

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps of one pass over the sampler: as many as draw as many prompts as there are rows."""
        return self._periods * self.geometry.period_steps

    def __len__(self) -> int:
        geometry = self.geometry
        rows = geometry.steps_per_generation * geometry.rows_per_device * geometry.world
        return self._periods * geometry.period_generations * self._repeats * rows

    def __iter__(self) -> Iterator[int]:
        for period in range(self.epoch * self._periods, (self.epoch + 1) * self._periods):
            for generation in self._generations(period):
                for _ in range(self._repeats):
                    yield from generation

    def set_epoch(self, epoch: int) -> None:
        """Go on where ``epoch`` passes over the sampler would have ended."""
        self.epoch = epoch

    def layout(self, quota_step: int) -> list[int]:
        """The domain (index) of every unit of one quota step on each rank, evenly interleaved."""
        counts = self.quotas.counts(quota_step)
        placed = [
            ((2 * unit + 1) / count, domain, unit) for domain, count in enumerate(counts) for unit in range(count)
        ]
        return [domain for _, domain, _ in sorted(placed)]

    def generation_quotas(self, micro_step: int) -> list[list[int]] | None:
        """Micro-batches of each domain in every step of the generation made at ``micro_step``.

        None where a step holds several generations, or a part of them over and over.
        """
        geometry = self.geometry
        if geometry.steps_per_generation < geometry.accumulation:
            return None
        steps = geometry.period_quota_steps
        first = micro_step // (geometry.steps_per_generation * geometry.iterations) * steps
        return [
            [units * geometry.unit_micro_batches for units in self.quotas.counts(first + step)] for step in range(steps)
        ]

    @property
    def _repeats(self) -> int:
        return self.geometry.iterations * self.geometry.steps_per_generation

    def _periods_per_epoch(self, num_rows: int) -> int:
        geometry = self.geometry
        prompts = geometry.world * geometry.quota_units * geometry.unit_prompts * geometry.period_quota_steps
        return math.ceil(num_rows / prompts)

    def _generations(self, period: int) -> Iterator[list[int]]:
        """The rows of every generation of ``period``: rank after rank, each prompt ``num_generations`` times."""
        steps = self.geometry.period_quota_steps
        units = [unit for step in range(period * steps, (period + 1) * steps) for unit in self._units(step)]
        size = self.geometry.generation_units
        for start in range(0, len(units), size):
            chunk = units[start : start + size]
            yield [
                row
                for rank in range(self.geometry.world)
                for unit in chunk
                for row in unit[rank]
                for _ in range(self.geometry.num_generations)
            ]

    def _units(self, quota_step: int) -> Iterator[list[list[int]]]:
        """For every unit of the quota step, the rows of its prompts on each rank."""
        prompts, world = self.geometry.unit_prompts, self.geometry.world
        drawn = [units * world * prompts for units in self.quotas.before(quota_step)]
        for domain in self.layout(quota_step):
            start = drawn[domain]
            drawn[domain] += world * prompts
            rows = [self._offsets[domain] + self._streams[domain][start + i] for i in range(world * prompts)]
            yield [rows[rank * prompts : (rank + 1) * prompts] for rank in range(world)]


def check_shares(shares: Mapping[str, float], geometry: Geometry, rule: str) -> None:
    """Refuses shares that a step of this geometry cannot hold exactly, naming batches that would."""
    units = geometry.quota_units
    if rule != "exact" or units % exact_units(shares) == 0:
        return
    numbers = [geometry.accumulation_for(number) for number in would_do(shares, units)]
    advice = (
        f"gradient_accumulation_steps={' or '.join(map(str, numbers))} would do" if numbers else "no batch would do"
    )
    if numbers and geometry.steps_per_generation != geometry.accumulation:
        advice += f" (and a steps_per_generation to match; it is {geometry.steps_per_generation})"
    raise DomainError(
        f"Shares {ratio(shares)} of the domains {', '.join(shares)} cannot be met in a step of {units} units of "
        f"{geometry.unit_rows} rows on each device (whole micro-batches of {geometry.rows_per_device}, whole groups of "
        f"{geometry.num_generations}; gradient_accumulation_steps={geometry.accumulation}): {advice}. "
        "Or change the shares, or set share_rule: carry."
    )
