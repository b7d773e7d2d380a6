"""What is asked of a rollback, and what is refused before any work."""

import math
from dataclasses import dataclass

from counterpoint.errors import CounterpointError, nearest

SCORES = ("damage", "magnitude")
BUDGETS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3)
SCALES = (0.5, 1.0)
UNITS = ("coordinates", "neurons")
PLACES = ("everywhere", "route")
OBJECTIVES = ("average", "domain")


@dataclass(frozen=True)
class RollbackOptions:
    """Which weights are restored, how many and how far, and what it is measured on.

    ``score`` ranks weights (``SCORES``), alone or summed over neurons (``unit``), everywhere or on the neurons that two
    domains share (``where``). ``budgets`` are shares of the model's weights, ``scales`` how far each is moved back;
    None stands for the defaults, of which those beyond the edit are left out. ``draws`` is the number of random masks
    beside each one. The ``objective`` is the mean reward of all domains or of the damaged one. ``prompts`` per domain
    and ``samples`` of each are taken for the score and again for the selection. ``fraction`` of the neurons make a
    route. ``batch_size`` is that of routes alone. ``force`` goes on where nothing was damaged.
    """

    score: str = "damage"
    unit: str = "coordinates"
    where: str = "everywhere"
    budgets: tuple[float, ...] | None = None
    scales: tuple[float, ...] = SCALES
    draws: int = 3
    objective: str = "average"
    prompts: int = 64
    samples: int = 4
    fraction: float = 0.1
    batch_size: int = 32
    seed: int = 0
    force: bool = False


def check_options(options: RollbackOptions, domain: str, other: str | None) -> None:
    """Refuses what cannot be done, before anything is read.

    Raises:
        CounterpointError: an unknown word, a number out of range, or a domain that the choice needs.
    """
    for name, value, known in (
        ("--score", options.score, SCORES),
        ("--unit", options.unit, UNITS),
        ("--where", options.where, PLACES),
        ("--objective", options.objective, OBJECTIVES),
    ):
        if value not in known:
            raise CounterpointError(f"{name} {value}: there is no such choice; {nearest(value, known)}")
    _check_numbers(options)
    if options.where == "route" and other in (None, domain):
        raise CounterpointError(
            f"--where route restores neurons that two domains share, and --other is {other or 'not given'}. Name the "
            "later domain with --other."
        )


def _check_numbers(options: RollbackOptions) -> None:
    for name, value, least in (
        ("--draws", options.draws, 1),
        ("--prompts", options.prompts, 2),
        ("--samples", options.samples, 1),
        ("--batch-size", options.batch_size, 1),
    ):
        if value < least:
            raise CounterpointError(f"{name} must be at least {least}; found {value}.")
    if not 0 < options.fraction <= 1:
        raise CounterpointError(f"--fraction must be above 0 and at most 1; found {options.fraction}. Try 0.1.")
    for budget in options.budgets or ():
        if not (math.isfinite(budget) and 0 < budget <= 1):
            raise CounterpointError(
                f"--budgets: a budget is a share of the model's weights, above 0 and at most 1; found {budget:g}. "
                "Write for example --budgets 0.001,0.01,0.1."
            )
    for scale in options.scales:
        if not (math.isfinite(scale) and 0 < scale <= 1):
            raise CounterpointError(
                f"--scales: a scale is how far weights move back, above 0 and at most 1 (all the way); found {scale:g}."
                " Write for example --scales 0.5,1."
            )
    if options.budgets == () or not options.scales:
        raise CounterpointError("--budgets and --scales need a number each, e.g. --budgets 0.01,0.1 --scales 0.5,1.")
