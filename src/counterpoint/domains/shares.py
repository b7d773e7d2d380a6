"""How many units of every optimizer step each domain gets: exactly its share, or exactly in the long run.

A unit is the smallest number of rows that can go to one domain (whole micro-batches of whole groups). All arithmetic
is in integers and fractions, so a share typed as 0.1 is one tenth.
"""

import math
from collections.abc import Mapping
from fractions import Fraction

from counterpoint.errors import DomainError, nearest

RULES = ("exact", "carry")

MAX_SUGGESTED = 4096  # beyond this many units an exact split is no practical advice


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


def ratio(shares: Mapping[str, float]) -> str:
    """The shares as the smallest whole numbers, such as ``2:1:1``."""
    fractions = normalise(shares)
    scale = math.lcm(*(share.denominator for share in fractions.values()))
    return ":".join(str(int(share * scale)) for share in fractions.values())


def exact_units(shares: Mapping[str, float]) -> int:
    """The smallest number of units per step that ``shares`` split without remainder."""
    return math.lcm(*(share.denominator for share in normalise(shares).values()))


def would_do(shares: Mapping[str, float], units: int) -> list[int]:
    """The numbers of units nearest to ``units``, below and above, that split exactly; empty if all are too large."""
    smallest = exact_units(shares)
    below = units // smallest * smallest
    return [number for number in (below, below + smallest) if 0 < number <= MAX_SUGGESTED]


class Quotas:
    """Units of each domain in every step, for ``units`` per step; ``counts(step)`` needs no state from the caller.

    With ``rule="exact"`` every step is the same and holds each share without remainder. With ``rule="carry"`` every
    domain gets the whole part of its share in each step, and the units left over go round by Tijdeman's schedule for
    the chairman assignment problem (Discrete Mathematics 32, 1980), which keeps the number of units that each domain
    has had by any step within one of its exact share. Handing each unit to the domain that is furthest behind does
    not keep that bound.

    Raises:
        DomainError: shares that ``rule="exact"`` cannot meet, naming numbers of units that it could.
    """

    def __init__(self, shares: Mapping[str, float], units: int, rule: str = "exact") -> None:
        if rule not in RULES:
            raise DomainError(f"Unknown share rule {rule!r}: {nearest(rule, RULES)}")
        if units < 1:
            raise DomainError(f"A step must hold at least one unit of rows, found {units}.")
        self.units = units
        targets = [share * units for share in normalise(shares).values()]
        self._base = [math.floor(target) for target in targets]
        left = [target - whole for target, whole in zip(targets, self._base, strict=True)]
        self._period = math.lcm(*(share.denominator for share in left))  # steps after which nothing is owed
        self._parts = [int(share * self._period) for share in left]  # extra units of each domain in a period
        self._left = units - sum(self._base)
        if self._left and rule == "exact":
            raise DomainError(_cannot_split(shares, units))
        self._extra: list[list[int]] = [[0] * len(targets)]  # extra units had before each step of the period

    def counts(self, step: int) -> list[int]:
        """Units of each domain in ``step`` (from 0), in the order of the shares; they sum to ``units``."""
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


def _cannot_split(shares: Mapping[str, float], units: int) -> str:
    numbers = would_do(shares, units)
    names = ", ".join(shares)
    advice = f"{' or '.join(map(str, numbers))} would do" if numbers else "no practical number of units would do"
    return (
        f"{units} units of rows per step cannot be split {ratio(shares)} between the domains {names}; {advice}. "
        "Change the batch, change the shares, or set share_rule: carry."
    )
