"""The order of prompts: which rows of every domain a step holds, on every rank, from any step on."""

import hashlib
import math
import random
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from counterpoint.domains.changing import ChangingQuotas
from counterpoint.domains.shares import Geometry, Quotas, exact_units, ratio, rows_per_prompt, would_do
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
        self.num_rows, self.seed, self.name, self.shuffle = num_rows, seed, name, shuffle
        self._pass, self._order = -1, list(range(num_rows))

    def __getitem__(self, position: int) -> int:
        """The row at ``position`` (from 0) of the endless order."""
        number, within = divmod(position, self.num_rows)
        if self.shuffle and number != self._pass:
            self._pass, self._order = number, list(range(self.num_rows))
            text = f"{self.seed}\n{self.name}\n{number}"
            _generator(text).shuffle(self._order)
        return self._order[within]

    def draw(self, start: int, end: int) -> list[int]:
        """The rows from position ``start`` to before ``end``."""
        return [self[position] for position in range(start, end)]


def _generator(text: str) -> random.Random:
    return random.Random(hashlib.sha256(text.encode()).digest())


SOURCE_COLUMN = "domain_source"
"""Column of the rows of a domain with several sources: the name of the row's source."""


class MixedRows(list[dict[str, Any]]):
    """Rows of one domain from several sources, each drawn by its share inside the domain.

    ``shares`` are those of the sources; every row names its own in the column ``domain_source``.
    """

    def __init__(self, rows: Iterable[dict[str, Any]], shares: Mapping[str, float]) -> None:
        super().__init__(rows)
        self.shares = dict(shares)

    def by_source(self) -> dict[str, list[int]]:
        """Source -> the places of its rows, in the order of the shares."""
        places: dict[str, list[int]] = {source: [] for source in self.shares}
        for place, row in enumerate(self):
            places[row[SOURCE_COLUMN]].append(place)
        return places


class MixedStream:
    """An endless order of the rows of one domain in which every source has its share.

    After any number of rows each source has had its share of them to within one row (``Quotas`` with units of one
    row), and goes through its own rows as a ``DomainStream`` does: a short source repeats, a long one takes longer to
    be seen whole.

    >>> rows = MixedRows([{"domain_source": "a"}, {"domain_source": "b"}, {"domain_source": "b"}], {"a": 3, "b": 1})
    >>> stream = MixedStream(rows, seed=0, name="math", shuffle=False)
    >>> [stream[position] for position in range(8)]
    [0, 0, 1, 0, 0, 0, 2, 0]
    """

    def __init__(self, rows: MixedRows, seed: int, name: str, shuffle: bool = True) -> None:
        self.seed, self.name, self.shuffle = seed, name, shuffle
        self._quotas = Quotas(rows.shares, 1, "carry")
        by_source = rows.by_source()
        self._rows = list(by_source.values())
        self._streams = [
            DomainStream(len(own), seed, f"{name}\n{source}", shuffle) for source, own in by_source.items()
        ]

    def __getitem__(self, position: int) -> int:
        """The row at ``position`` (from 0) of the endless order."""
        source = self._quotas.counts(position).index(1)
        return self._rows[source][self._streams[source][self._quotas.before(position)[source]]]

    def draw(self, start: int, end: int) -> list[int]:
        """The rows from position ``start`` to before ``end``, which is what one step holds.

        They are shuffled: shares of 1:1 would otherwise give each of two ranks, or halves of a step, one source.
        """
        rows = [self[position] for position in range(start, end)]
        if self.shuffle:
            _generator(f"{self.seed}\n{self.name}\nfrom {start}").shuffle(rows)
        return rows


class QuotaSampler:
    """Row indices in TRL's protocol: each prompt ``num_generations`` times in a row, each generation repeated.

    TRL's loader takes ``steps_per_generation`` micro-batches at a time and accelerate gives rank r the r-th chunk of
    every ``world`` chunks. One generation (whole units of one domain on each of W ranks) is therefore laid out as::

        rank 0: [unit of math][unit of code] | rank 1: [unit of math][unit of code] | ...

    and yielded ``iterations * steps_per_generation`` times, because TRL asks once per micro-step and reuses the first
    answer. The order is a function of the step alone: skipping the first k batches is the same as starting at the k-th.

    >>> batch = {"num_generations": 2, "rows_per_device": 2, "accumulation": 3}
    >>> sampler = QuotaSampler({"math": 4, "code": 2}, shares={"math": 2, "code": 1}, shuffle=False, **batch)
    >>> rows = list(sampler)  # rows 0 to 3 are math, 4 and 5 are code
    >>> rows[:6], rows[18:24]  # the first and the second step, each asked for three times
    ([0, 0, 4, 4, 1, 1], [2, 2, 5, 5, 3, 3])

    Args:
        sizes: rows of each domain; they stand in this order in the one dataset that TRL indexes.
        shares: relative share of each domain, the same names.
        rule: ``exact`` or ``carry``, see ``Quotas``.
        seed: seed of the order inside each domain.
        shuffle: whether each pass over a domain's rows has an order of its own; False keeps the order of the rows.
        mixed: the rows of those domains whose sources have shares.
        num_generations: completions of one prompt, of every domain or of each by its name. Shares are shares of
            completions, so where they differ a domain with more of them has fewer prompts.
        rows_per_device, accumulation, steps_per_generation, iterations, world: see ``Geometry``.

    Raises:
        DomainError: numbers that do not fit, or shares that a step cannot hold, naming what would do.
    """

    def __init__(
        self,
        sizes: Mapping[str, int],
        *,
        shares: Mapping[str, float],
        num_generations: int | Mapping[str, int],
        rows_per_device: int,
        accumulation: int,
        steps_per_generation: int | None = None,
        iterations: int = 1,
        world: int = 1,
        seed: int = 0,
        rule: str = "exact",
        shuffle: bool = True,
        mixed: Mapping[str, MixedRows] | None = None,
    ) -> None:
        self.domains = tuple(sizes)
        shares = self._in_order(shares)
        own = num_generations if isinstance(num_generations, Mapping) else dict.fromkeys(sizes, num_generations)
        self.generations = [own[name] for name in sizes]
        batch = (rows_per_device, accumulation, steps_per_generation or accumulation, iterations, world)
        self.geometry = _geometry(own, batch)
        _check_shares(shares, self.geometry, rule)
        self._rule = rule
        self.quotas = ChangingQuotas(shares, self.geometry.quota_units, rule)
        self._streams: list[DomainStream | MixedStream] = [
            MixedStream(mixed[name], seed, name, shuffle)
            if mixed and name in mixed
            else DomainStream(size, seed, name, shuffle)
            for name, size in sizes.items()
        ]
        self._offsets = [sum(list(sizes.values())[:index]) for index in range(len(sizes))]
        rows_per_step = world * self.geometry.quota_units * self.geometry.unit_rows
        prompts_per_step = rows_per_step / rows_per_prompt(shares, own)
        self._periods = math.ceil(sum(sizes.values()) / (prompts_per_step * self.geometry.period_quota_steps))
        self._repeats = self.geometry.iterations * self.geometry.steps_per_generation
        self.epoch = 0

    def change_shares(self, quota_step: int, shares: Mapping[str, float]) -> None:
        """Shares from ``quota_step`` on, which must not have been drawn yet.

        Raises:
            DomainError: shares of other domains, or some that a step cannot hold, naming what would do.
        """
        shares = self._in_order(shares)
        _check_shares(shares, self.geometry, self._rule)
        self.quotas.change(quota_step, shares)

    def _in_order(self, shares: Mapping[str, float]) -> dict[str, float]:
        if set(shares) != set(self.domains):
            raise DomainError(f"Shares are given for {sorted(shares)}, but the domains are {sorted(self.domains)}.")
        return {name: shares[name] for name in self.domains}

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
        first = micro_step // self._repeats * steps
        return [
            [units * geometry.unit_micro_batches for units in self.quotas.counts(first + step)] for step in range(steps)
        ]

    def _generations(self, period: int) -> Iterator[list[int]]:
        """The rows of every generation of ``period``: rank after rank, each prompt ``num_generations`` times."""
        steps = self.geometry.period_quota_steps
        units = [unit for step in range(period * steps, (period + 1) * steps) for unit in self._units(step)]
        size = self.geometry.generation_units
        for start in range(0, len(units), size):
            yield [
                row for rank in range(self.geometry.world) for unit in units[start : start + size] for row in unit[rank]
            ]

    def _units(self, quota_step: int) -> Iterator[list[list[int]]]:
        """For every unit of the quota step, its rows on each rank: those of each prompt next to each other."""
        world = self.geometry.world
        prompts = [self.geometry.unit_rows // size for size in self.generations]
        had, will = self.quotas.before(quota_step), self.quotas.before(quota_step + 1)
        rows = [
            iter(stream.draw(start * world * each, end * world * each))
            for stream, start, end, each in zip(self._streams, had, will, prompts, strict=True)
        ]
        for domain in self.layout(quota_step):
            drawn = [[self._offsets[domain] + next(rows[domain]) for _ in range(prompts[domain])] for _ in range(world)]
            yield [[row for row in own for _ in range(self.generations[domain])] for own in drawn]


def _geometry(generations: Mapping[str, int], batch: tuple[int, ...]) -> Geometry:
    """That of a batch; units hold whole groups of whichever domain."""
    sizes = set(generations.values())
    try:
        return Geometry(math.lcm(*sizes), *batch)
    except DomainError as error:
        if len(sizes) == 1:
            raise
        named = ", ".join(f"{size} of {name}" for name, size in generations.items())
        raise DomainError(f"{error} num_generations here is the smallest multiple of all: {named}.") from error


def _check_shares(shares: Mapping[str, float], geometry: Geometry, rule: str) -> None:
    """Refuses shares that a step of this geometry cannot hold exactly, naming batches that would."""
    units = geometry.quota_units
    if rule != "exact" or units % exact_units(shares) == 0:
        return
    numbers = [str(geometry.accumulation_for(number)) for number in would_do(shares, units)]
    advice = f"gradient_accumulation_steps={' or '.join(numbers)} would do" if numbers else "no batch would do"
    if numbers and geometry.steps_per_generation != geometry.accumulation:
        advice += f" (and a steps_per_generation to match; it is {geometry.steps_per_generation})"
    raise DomainError(
        f"Shares {ratio(shares)} of the domains {', '.join(shares)} cannot be met in a step of {units} units of "
        f"{geometry.unit_rows} rows on each device (whole micro-batches of {geometry.rows_per_device}, whole groups of "
        f"{geometry.num_generations}; gradient_accumulation_steps={geometry.accumulation}): {advice}. "
        "Or change the shares, or set share_rule: carry."
    )
