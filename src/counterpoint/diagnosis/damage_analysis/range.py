"""How far second order predicts: the loss measured along the edit beside the parabola that its derivatives predict.

Legend: P prompts.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from counterpoint.diagnosis.damage_analysis.curvature import Direction, SumLoss, displaced, inner, losses
from counterpoint.diagnosis.damage_analysis.parts import Modules, over_draws, per_unit, select
from counterpoint.progress import Progress, silent
from counterpoint.stats import Estimate

SCALES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.25, 1.5)
"""Multiples of the edit at which the loss is measured."""


@dataclass(frozen=True)
class ScalePoint:
    """At ``scale`` times the edit: damage measured, predicted, and their difference on the same prompts.

    ``relative_error`` is ``|difference| / |measured|``; ``term_error`` is ``|difference|`` over the largest of
    ``|measured|``, ``|s g.d|`` and ``|s^2 1/2 d'Hd|``, which stays meaningful where the two orders cancel.
    ``within_noise`` says that prompts drawn anew could make the difference vanish.
    """

    scale: float
    measured: Estimate
    predicted: Estimate
    difference: Estimate
    relative_error: float
    term_error: float
    within_noise: bool


@dataclass(frozen=True)
class Range:
    """``largest_scale``: ``term_error`` below ``tolerance`` at it and at every smaller scale measured; 0 for none."""

    tolerance: float
    largest_scale: float
    points: tuple[ScalePoint, ...]


def damage_at(
    loss: SumLoss, edit: Direction, scales: Sequence[float], what: str = "measured", on_progress: Progress = silent
) -> dict[float, Tensor]:
    """``L(params + s d) - L(params)`` of every prompt [P], not yet over units, by scale s."""
    total, done = (len(scales) + 1) * len(loss.pieces), 0

    def count(pieces: int) -> None:
        on_progress(what, done + pieces, total)

    before_P = losses(loss, count)
    found = {}
    for scale in scales:
        done += len(loss.pieces)
        with displaced(loss.params, edit, scale):
            found[scale] = losses(loss, count) - before_P
    return found


def range_of(
    measured: dict[float, Tensor], first_P: Tensor, second_P: Tensor, units_P: Tensor, tolerance: float = 0.2
) -> Range:
    """Measured beside ``s g.d + s^2 (1/2 d'Hd)`` for every scale, and the largest scale at which they agree.

    Args:
        measured: sums of each prompt [P] by scale.
        first_P: ``g.d`` of each prompt.
        second_P: ``1/2 d'Hd`` of each prompt.
        units_P: what each prompt counts for.
        tolerance: largest relative error.
    """
    points = []
    for scale, measured_P in sorted(measured.items()):
        points.append(_point(scale, measured_P, scale * first_P, scale**2 * second_P, units_P))
    largest = 0.0
    for point in points:
        if not point.term_error < tolerance:
            break
        largest = point.scale
    return Range(tolerance, largest, tuple(points))


def _point(scale: float, measured_P: Tensor, first_P: Tensor, second_P: Tensor, units_P: Tensor) -> ScalePoint:
    measured, predicted = per_unit(measured_P, units_P), per_unit(first_P + second_P, units_P)
    difference = per_unit(measured_P - first_P - second_P, units_P)
    largest = max(abs(float(values_P.sum() / units_P.sum())) for values_P in (measured_P, first_P, second_P))
    return ScalePoint(
        scale=scale,
        measured=measured,
        predicted=predicted,
        difference=difference,
        relative_error=_over(abs(difference.value), abs(measured.value)),
        term_error=_over(abs(difference.value), largest),
        within_noise=difference.low <= 0 <= difference.high,
    )


def _over(error: float, size: float) -> float:
    if error == 0:
        return 0.0
    return error / size if size else float("inf")


def random_edit_damage(
    loss: SumLoss, edit: Direction, modules: Modules, draws: int, seed: int = 0, on_progress: Progress = silent
) -> Estimate:
    """The damage measured for random edits as large as ``edit`` in every module: mean, lowest and highest of draws."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for i in range(draws):
        random = _random_like(edit, modules, generator)
        (measured_P,) = damage_at(loss, random, [1.0], f"random edit {i + 1}", on_progress).values()
        found.append(float(measured_P.sum() / loss.units_P.sum()))
    return over_draws(found)


def _random_like(edit: Direction, modules: Modules, generator: torch.Generator) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for names in modules.values():
        part = select(edit, names)
        noise = {n: torch.randn(v.shape, generator=generator, dtype=torch.float32).to(v) for n, v in part.items()}
        size = float(inner(noise, noise)) ** 0.5
        scale = float(inner(part, part)) ** 0.5 / size if size else 0.0
        found |= {name: value * scale for name, value in noise.items()}
    return found
