"""How fast a refresh undoes the damage: the fit of (1 - r)^t to a falling norm, and its verdict.

Source: the contraction ``||P_S(theta_t - theta_A)|| <= (1 - alpha mu)^t ||P_S delta||`` of gradient descent with
learning rate alpha and curvature mu on S (arXiv 2606.02398, Theorem 1).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from counterpoint.stats import student_quantile


@dataclass(frozen=True)
class Fit:
    """``norm_t = c (1 - rate)^t``: the rate per step, its 95 % interval (None with two points) and R^2 on the log."""

    rate: float
    low: float | None
    high: float | None
    r_squared: float


def fit_rate(steps: Sequence[int], norms: Sequence[float]) -> Fit | None:
    """Least squares of ``log(norm)`` on the step; None with fewer than two points or a norm of zero.

    The interval takes the points for independent; a drift of the norm makes it too narrow.
    """
    if len(steps) < 2 or min(norms) <= 0:
        return None
    logs = [math.log(norm) for norm in norms]
    count = len(steps)
    mean_step, mean_log = sum(steps) / count, sum(logs) / count
    spread = sum((step - mean_step) ** 2 for step in steps)
    slope = sum((s - mean_step) * (y - mean_log) for s, y in zip(steps, logs, strict=True)) / spread
    residual = sum((y - mean_log - slope * (s - mean_step)) ** 2 for s, y in zip(steps, logs, strict=True))
    total = sum((y - mean_log) ** 2 for y in logs)
    explained = 1 - residual / total if total > 0 else 1.0
    rate = -math.expm1(slope)
    if count < 3:
        return Fit(rate, None, None, explained)
    half = student_quantile(0.975, count - 2) * math.sqrt(residual / (count - 2) / spread)
    return Fit(rate, -math.expm1(slope + half), -math.expm1(slope - half), explained)


def verdict_of(fit: Fit | None, predicted: float | None) -> str:
    """One sentence: contracts, grows or no change, and how the rate compares with the predicted one."""
    if fit is None:
        return "Too few looks to say whether the distance on the route shrinks."
    if fit.low is None or fit.high is None:
        return f"Two looks alone: the distance on the route changed by {-fit.rate:+.2%} a step."
    if fit.low > 0:
        said = f"The distance on the route contracts by {_interval(fit.rate, fit.low, fit.high)} a step"
    elif fit.high < 0:
        said = f"The distance on the route grows by {_interval(-fit.rate, -fit.high, -fit.low)} a step"
    else:
        said = f"No change of the distance on the route: {_interval(fit.rate, fit.low, fit.high)} a step"
    if predicted is None:
        return f"{said}."
    place = "inside" if fit.low <= predicted <= fit.high else "outside"
    return f"{said}; learning rate times curvature gives {predicted:.2%}, {place} that interval (Adam is no descent)."


def _interval(value: float, low: float, high: float) -> str:
    return f"{value:.2%} [{low:.2%}, {high:.2%}]"
