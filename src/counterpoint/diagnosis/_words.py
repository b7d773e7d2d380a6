"""Changes of scores in words: points are hundredths of a score."""

from collections.abc import Sequence

from counterpoint.stats import Estimate


def in_points(estimate: Estimate) -> Estimate:
    """A change of a score in hundredths."""
    return Estimate(100 * estimate.value, 100 * estimate.low, 100 * estimate.high)


def lost(change: Estimate) -> str:
    """``9.0 points [5.0, 13.0]`` for a change of -0.09."""
    return gained(Estimate(-change.value, -change.high, -change.low))


def gained(change: Estimate) -> str:
    """``9.0 points [5.0, 13.0]`` for a change of 0.09."""
    return f"{100 * change.value:.1f} points [{100 * change.low:.1f}, {100 * change.high:.1f}]"


def signed(change: Estimate) -> str:
    """``+1.0 points [-2.0, +4.0]``."""
    return f"{100 * change.value:+.1f} points [{100 * change.low:+.1f}, {100 * change.high:+.1f}]"


def not_excluded(change: Estimate) -> str:
    """What an interval that holds zero leaves open."""
    if change.low >= 0:
        return "within noise"
    return f"within noise, which does not exclude a loss of {-100 * change.low:.1f}"


def listed(names: Sequence[str]) -> str:
    """``a, b and c``."""
    return " and ".join([", ".join(names[:-1]), names[-1]]) if len(names) > 1 else "".join(names)
