"""Shares that change over steps: how many units each domain has in every step, and nobody loses by a change."""

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from fractions import Fraction

from counterpoint.domains.shares import Quotas


class ChangingQuotas:
    """``Quotas`` of shares that change at some steps; what a domain is owed then goes on into the new shares.

    So no domain loses by the rounding of changes, however often shares change. Any step before the next change can be
    asked for first.

    >>> quotas = ChangingQuotas({"math": 1, "code": 1}, 4)
    >>> quotas.change(2, {"math": 3, "code": 1})
    >>> quotas.counts(1), quotas.counts(2), quotas.before(4)
    ([2, 2], [3, 1], [10, 6])
    """

    def __init__(self, shares: Mapping[str, float], units: int, rule: str = "exact") -> None:
        self._units, self._rule = units, rule
        self.parts = [Quotas(shares, units, rule)]
        """The quotas from each change to the next; the first are those of the start."""
        self._starts, self._had = [0], [[0] * len(shares)]

    def change(self, step: int, shares: Mapping[str, float]) -> None:
        """From ``step`` on, which must not come before the last change, each domain has its part of ``shares``.

        Raises:
            DomainError: shares that the rule ``exact`` cannot meet.
        """
        last = self.parts[-1]
        owed = last.owed(step - self._starts[-1])
        part = Quotas(shares, self._units, self._rule, _rounded(owed))
        had = self.before(step)
        if step == self._starts[-1]:
            del self.parts[-1], self._starts[-1], self._had[-1]
        self.parts.append(part)
        self._starts.append(step)
        self._had.append(had)

    def forget(self) -> None:
        """Goes back to the quotas of the start."""
        del self.parts[1:], self._starts[1:], self._had[1:]

    def counts(self, step: int) -> list[int]:
        """Units of each domain in ``step`` (from 0), in the order of the shares."""
        at = bisect_right(self._starts, step) - 1
        return self.parts[at].counts(step - self._starts[at])

    def before(self, step: int) -> list[int]:
        """Units each domain has had in all steps before ``step``."""
        at = bisect_right(self._starts, step) - 1
        within = self.parts[at].before(step - self._starts[at])
        return [earlier + own for earlier, own in zip(self._had[at], within, strict=True)]


def _rounded(owed: Sequence[Fraction]) -> list[Fraction]:
    """``owed`` in billionths, summing to 0 still: exact fractions would grow by every change."""
    fine = [Fraction(round(share * _BILLION), _BILLION) for share in owed[1:]]
    return [-sum(fine, Fraction(0)), *fine]


_BILLION = 10**9
