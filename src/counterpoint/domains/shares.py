"""Shares: how many units of rows every domain has in an optimizer step, and how many units a step has.

All arithmetic is in integers and fractions, so a share typed as 0.1 is one tenth.
"""

import math
from collections.abc import Mapping, Sequence
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


def rows_per_prompt(shares: Mapping[str, float], generations: Mapping[str, int]) -> Fraction:
    """Completions of a prompt, on average over the prompts of a step, where shares are shares of completions."""
    return 1 / sum((share / generations[name] for name, share in normalise(shares).items()), Fraction(0))


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

    ``owed`` are units that each domain should have had before the first step and has not (negative where it had too
    many); they sum to 0.

    Raises:
        DomainError: shares that ``rule="exact"`` cannot meet, naming numbers of units that it could.
    """

    def __init__(
        self, shares: Mapping[str, float], units: int, rule: str = "exact", owed: Sequence[Fraction] = ()
    ) -> None:
        if rule not in RULES:
            raise DomainError(f"Unknown share rule {rule!r}: {nearest(rule, RULES)}")
        if units < 1:
            raise DomainError(f"A step must hold at least one unit of rows, found {units}.")
        self._targets = targets = [share * units for share in normalise(shares).values()]
        self._owed = list(owed) or [Fraction(0)] * len(targets)
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
        periods, within = (0, step) if any(self._owed) else divmod(step, self._period)
        while len(self._extra) <= within:
            self._extra.append(self._next(len(self._extra) - 1))
        columns = zip(self._base, self._parts, self._extra[within], strict=True)
        return [step * base + periods * part + extra for base, part, extra in columns]

    def owed(self, step: int) -> list[Fraction]:
        """What each domain should have had before ``step`` and has not, in units."""
        given = zip(self._owed, self._targets, self.before(step), strict=True)
        return [owed + step * target - had for owed, target, had in given]

    def _next(self, step: int) -> list[int]:
        """The extra units had after ``step``: ``left`` more, each to the eligible domain whose deadline is nearest."""
        given, total = list(self._extra[step]), self._left * self._period
        active = [index for index, part in enumerate(self._parts) if part or self._owed[index]]
        slack = 2 * len(active) - 2
        for unit in range(step * self._left + 1, (step + 1) * self._left + 1):
            owed = {i: unit * self._parts[i] + total * (self._owed[i] - given[i]) for i in active}
            eligible = [index for index in active if slack * owed[index] >= total]
            chosen = min(eligible, key=lambda i: (self._deadline((slack - 1) * total - slack * owed[i], i), i))
            given[chosen] += 1
        return given

    def _deadline(self, left: Fraction, domain: int) -> Fraction | float:
        """How long a domain can wait that is ``left`` short of being late; for ever where it is owed no more."""
        if self._parts[domain]:
            return left / self._parts[domain]
        return math.inf if left >= 0 else -math.inf


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

    def quota_step(self, step: int) -> int:
        """The first quota step that shares from optimizer step ``step`` on are for.

        Where generations are used several times it is the first of the next new generation.
        """
        if self.period_steps == self.period_quota_steps:
            return step
        return -(-step // self.period_steps) * self.period_quota_steps

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
