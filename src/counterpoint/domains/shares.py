"""Shares: how many rows of every domain an optimizer step holds, and which rows.

``Quotas`` splits the units of a step, ``Geometry`` says how many units a step has, ``QuotaSampler`` gives TRL the rows.
All arithmetic is in integers and fractions, so a share typed as 0.1 is one tenth.
"""

import hashlib
import math
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction

from counterpoint.errors import DomainError, nearest

RULES = ("exact", "carry")

_MAX_SUGGESTED = 4096  # beyond this many units an exact split is no practical advice


def normalise(shares: Mapping[str, float]) -> dict[str, Fraction]:
    """Each domain's fraction of every step, in the same order and summing to exactly one.

    Raises:
        DomainError: no domain, or a share that is not a positive finite number.
    """
    if not shares:
        raise DomainError("No domain has a share. Name at least one domain.")
    for name, share in shares.items():
        if not (math.isfinite(share) and share > 0):
            raise DomainError(f"The share of domain {name!r} must be a positive number, found {share!r}.")
    exact = {name: Fraction(str(share)) for name, share in shares.items()}
    total = sum(exact.values(), Fraction(0))
    return {name: share / total for name, share in exact.items()}


def exact_units(shares: Mapping[str, float]) -> int:
    """The smallest number of units per step that ``shares`` split without remainder."""
    return math.lcm(*(share.denominator for share in normalise(shares).values()))


def ratio(shares: Mapping[str, float]) -> str:
    """The shares as the smallest whole numbers, such as ``2:1:1``."""
    units = exact_units(shares)
    return ":".join(str(int(share * units)) for share in normalise(shares).values())


def would_do(shares: Mapping[str, float], units: int) -> list[int]:
    """The numbers of units nearest to ``units``, below and above, that split exactly; empty if all are too large."""
    smallest = exact_units(shares)
    below = units // smallest * smallest
    return [number for number in (below, below + smallest) if 0 < number <= _MAX_SUGGESTED]


class Quotas:
    """Units of each domain in every step of ``units`` units; any step can be asked for first.

    With ``rule="exact"`` every step holds each share without remainder. With ``rule="carry"`` every domain gets the
    whole part of its share in each step, and the units left over go round by Tijdeman's schedule for the chairman
    assignment problem (Discrete Mathematics 32, 1980): after every step, each domain has had its exact share to within
    one unit. Always serving the domain that is furthest behind does not keep that bound.

    Raises:
        DomainError: shares that ``rule="exact"`` cannot meet, naming numbers of units that it could.
    """

    def __init__(self, shares: Mapping[str, float], units: int, rule: str = "exact") -> None:
        if rule not in RULES:
            raise DomainError(f"Unknown share rule {rule!r}: {nearest(rule, RULES)}")
        if units < 1:
            raise DomainError(f"A step must hold at least one unit of rows, found {units}.")
        targets = [share * units for share in normalise(shares).values()]
        self._base = [math.floor(target) for target in targets]
        left = [target - whole for target, whole in zip(targets, self._base, strict=True)]
        self._period = math.lcm(*(share.denominator for share in left))  # steps after which nothing is owed
        self._parts = [int(share * self._period) for share in left]  # extra units of each domain in a period
        self._left = units - sum(self._base)
        if self._left and rule == "exact":
            would = " or ".join(map(str, would_do(shares, units))) or "no practical number of units"
            raise DomainError(
                f"{units} units of rows per step cannot be split {ratio(shares)} between the domains "
                f"{', '.join(shares)}; {would} would do. Change the batch, change the shares, or set share_rule: carry."
            )
        self._extra: list[list[int]] = [[0] * len(targets)]  # extra units had before each step of the period

    def counts(self, step: int) -> list[int]:
        """Units of each domain in ``step`` (from 0), in the order of the shares."""
        before, after = self.before(step), self.before(step + 1)
        return [later - earlier for earlier, later in zip(before, after, strict=True)]

    def before(self, step: int) -> list[int]:
        """Units each domain has had in all steps before ``step``."""
        periods, within = divmod(step, self._period)
        while len(self._extra) <= within:
            self._extra.append(self._next(len(self._extra) - 1))
        columns = zip(self._base, self._parts, self._extra[within], strict=True)
        return [step * base + periods * part + extra for base, part, extra in columns]

    def _next(self, step: int) -> list[int]:
        """The extra units had after ``step``: ``left`` more, each to the eligible domain whose deadline is nearest."""
        given, total = list(self._extra[step]), self._left * self._period
        active = [index for index, part in enumerate(self._parts) if part]
        slack = 2 * len(active) - 2
        for unit in range(step * self._left + 1, (step + 1) * self._left + 1):
            owed = {index: unit * self._parts[index] - total * given[index] for index in active}
            eligible = [index for index in active if slack * owed[index] >= total]
            chosen = min(eligible, key=lambda i: (Fraction((slack - 1) * total - slack * owed[i], self._parts[i]), i))
            given[chosen] += 1
        return given


@dataclass(frozen=True)
class Geometry:
    """How a step is cut into rows, groups, micro-batches and generations; numbers of rows are per rank.

    A *unit* is the smallest number of rows that can belong to one domain: whole micro-batches and whole groups of
    completions of one prompt, so ``lcm(rows_per_device, num_generations)`` rows. A *quota step* is the stretch of
    different micro-batches that one optimizer step sums; the shares hold in each.

    Args:
        num_generations: completions of one prompt (TRL's ``num_generations``).
        rows_per_device: completions of one micro-batch (``per_device_train_batch_size``).
        accumulation: micro-batches of an optimizer step (``gradient_accumulation_steps``).
        steps_per_generation: micro-batches generated at once; a multiple or a divisor of ``accumulation``.
        iterations: how often each generation is used (``num_iterations``).
        world: number of ranks.

    Raises:
        DomainError: numbers that do not fit, naming numbers that would.
    """

    num_generations: int
    rows_per_device: int
    accumulation: int
    steps_per_generation: int
    iterations: int = 1
    world: int = 1

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value < 1:
                raise DomainError(f"{name} must be at least 1, found {value}.")
        self._check_generation()
        self._check_iterations()
        self._check_units()

    @property
    def unit_rows(self) -> int:
        """Rows of a unit."""
        return math.lcm(self.rows_per_device, self.num_generations)

    @property
    def unit_micro_batches(self) -> int:
        """Micro-batches of a unit."""
        return self.unit_rows // self.rows_per_device

    @property
    def unit_prompts(self) -> int:
        """Prompts of a unit."""
        return self.unit_rows // self.num_generations

    @property
    def generation_units(self) -> int:
        """Units that are generated at once."""
        return self.steps_per_generation // self.unit_micro_batches

    @property
    def quota_micro_batches(self) -> int:
        """Different micro-batches in an optimizer step."""
        if self.steps_per_generation >= self.accumulation:
            return self.accumulation
        return max(self.accumulation // self.iterations, self.steps_per_generation)

    @property
    def quota_units(self) -> int:
        """Units that the shares split, in every optimizer step."""
        return self.quota_micro_batches // self.unit_micro_batches

    @property
    def period_quota_steps(self) -> int:
        """Quota steps after which a generation and an optimizer step end together."""
        return max(1, self.steps_per_generation // self.quota_micro_batches)

    @property
    def period_generations(self) -> int:
        """Generations in such a period."""
        return max(1, self.quota_micro_batches // self.steps_per_generation)

    @property
    def period_steps(self) -> int:
        """Optimizer steps in such a period, repeated use of generations included."""
        return self.period_generations * self.iterations * self.steps_per_generation // self.accumulation

    def accumulation_for(self, units: int) -> int:
        """The ``accumulation`` that gives ``units`` units in a step, all else equal."""
        return units * self.unit_micro_batches * (self.accumulation // self.quota_micro_batches)

    def _check_generation(self) -> None:
        accumulation, generated = self.accumulation, self.steps_per_generation
        if accumulation % generated and generated % accumulation:
            raise DomainError(
                f"steps_per_generation={generated} and gradient_accumulation_steps={accumulation}: one must divide the "
                f"other, so that no step ends inside a generation. "
                f"Use steps_per_generation={_fitting(generated, accumulation)}."
            )

    def _check_iterations(self) -> None:
        generations, rest = divmod(self.accumulation, self.steps_per_generation)
        if rest or generations < 2:
            return
        if generations % self.iterations and self.iterations % generations:
            raise DomainError(
                f"num_iterations={self.iterations} with {generations} generations per step "
                f"(gradient_accumulation_steps={self.accumulation}, steps_per_generation={self.steps_per_generation}): "
                f"one must divide the other. Use num_iterations={_fitting(self.iterations, generations)}, "
                f"or steps_per_generation={self.accumulation}."
            )

    def _check_units(self) -> None:
        at_once, base = min(self.steps_per_generation, self.accumulation), self.unit_micro_batches
        if at_once % base == 0:
            return
        key = "gradient_accumulation_steps" if at_once == self.accumulation else "steps_per_generation"
        below = at_once // base * base
        raise DomainError(
            f"per_device_train_batch_size={self.rows_per_device} and num_generations={self.num_generations}: whole "
            f"micro-batches of whole groups come in {self.unit_rows} rows on each device, but {key}={at_once} gives "
            f"{at_once * self.rows_per_device}. Use {key}={f'{below} or ' if below else ''}{below + base}, or a "
            f"per_device_train_batch_size that is a multiple of {self.num_generations}."
        )


def _fitting(found: int, base: int) -> str:
    """The nearest numbers below and above ``found`` that divide ``base`` or are its multiples."""
    above = found + base - found % base
    fitting = [number for number in range(1, above + 1) if base % number == 0 or number % base == 0]
    below = [number for number in fitting if number < found][-1:]
    return " or ".join(str(number) for number in (*below, *[n for n in fitting if n > found][:1]))


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
            random.Random(hashlib.sha256(text.encode()).digest()).shuffle(self._order)
        return self._order[within]


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
        _check_shares(shares, self.geometry, rule)
        self.quotas = Quotas(shares, self.geometry.quota_units, rule)
        self._streams = [DomainStream(size, seed, name, shuffle) for name, size in sizes.items()]
        self._offsets = [sum(list(sizes.values())[:index]) for index in range(len(sizes))]
        prompts_per_step = world * self.geometry.quota_units * self.geometry.unit_prompts
        self._periods = math.ceil(sum(sizes.values()) / (prompts_per_step * self.geometry.period_quota_steps))
        self._repeats = self.geometry.iterations * self.geometry.steps_per_generation
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
                row
                for rank in range(self.geometry.world)
                for unit in units[start : start + size]
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
