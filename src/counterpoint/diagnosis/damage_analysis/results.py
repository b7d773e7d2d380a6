"""What is asked of a measurement of damage, and what it finds."""

from dataclasses import dataclass

from counterpoint.diagnosis.damage_analysis.loss import BASELINES, MIN_PROMPTS
from counterpoint.diagnosis.damage_analysis.parts import ModulePart, RoutePart, Span
from counterpoint.diagnosis.damage_analysis.range import SCALES, Range
from counterpoint.diagnosis.damage_analysis.spectrum import Spectrum
from counterpoint.diagnosis.surrogate import SURROGATES
from counterpoint.errors import CounterpointError, nearest
from counterpoint.stats import Estimate


@dataclass(frozen=True)
class DamageOptions:
    """What is measured and how much of it.

    ``surrogate`` is ``policy`` or ``likelihood``, ``baseline`` ``prompt`` or ``domain``. ``prompts`` and ``samples``
    say how many completions are sampled, ``batch_size`` how many are in memory at once. ``blocks`` turns on one
    Hessian product per module; ``lanczos`` is the number of Hessian products for the spectrum (0 for none), ``top`` the
    directions whose share is measured. ``fraction`` of the neurons make a route. ``draws`` is the number of random
    edits and random sets of neurons. ``scales`` are multiples of the edit, ``tolerance`` the relative error up to which
    second order predicts.
    """

    surrogate: str = "policy"
    baseline: str = "prompt"
    prompts: int = 64
    samples: int = 8
    batch_size: int = 8
    blocks: bool = True
    lanczos: int = 16
    top: int = 8
    fraction: float = 0.1
    draws: int = 5
    scales: tuple[float, ...] = SCALES
    tolerance: float = 0.2
    seed: int = 0


@dataclass(frozen=True)
class RewardDrop:
    """Mean held-out reward of the domain before and after the edit; ``change`` is paired by prompt."""

    before: Estimate
    after: Estimate
    change: Estimate
    prompts: int


@dataclass(frozen=True)
class Damage:
    """What an edit does to a domain's loss, per completion token; positive numbers are damage.

    ``predicted`` is ``first + second``; ``second`` is ``1/2 d'Hd``, ``gauss_newton`` the same with the logits taken for
    linear in the weights, ``fisher`` ``1/2 d'Fd`` in nats per token. ``difference`` is ``measured - predicted`` on the
    same prompts; ``range`` has it relative to the damage, at 1 and at other multiples of the edit. ``random_edit`` is
    the damage measured for random edits as large in every module (mean, lowest, highest). What was not asked for, or
    did not fit in memory, is null; ``stopped`` then says why.
    """

    base: str
    after: str
    domain: str
    other: str | None
    options: DamageOptions
    prompts: int = 0
    informative: int = 0
    completions: int = 0
    tokens: int = 0
    edit_norm: float = 0.0
    relative_edit_norm: float = 0.0
    first: Estimate | None = None
    second: Estimate | None = None
    predicted: Estimate | None = None
    gauss_newton: Estimate | None = None
    fisher: Estimate | None = None
    measured: Estimate | None = None
    difference: Estimate | None = None
    random_edit: Estimate | None = None
    modules: tuple[ModulePart, ...] = ()
    span: Span | None = None
    route: RoutePart | None = None
    spectrum: Spectrum | None = None
    range: Range | None = None
    reward: RewardDrop | None = None
    verdict: str = ""
    stopped: str | None = None


def check_options(options: DamageOptions, sampled: bool = True) -> None:
    """Refuses what cannot be measured, before any weight is read; ``sampled`` says that ``prompts`` will be."""
    if options.surrogate not in SURROGATES:
        raise CounterpointError(
            f"There is no surrogate loss {options.surrogate!r}; {nearest(options.surrogate, SURROGATES)}"
        )
    if options.baseline not in BASELINES:
        raise CounterpointError(f"There is no baseline {options.baseline!r}; {nearest(options.baseline, BASELINES)}")
    counts = {"--prompts": options.prompts, "--samples": options.samples, "--batch-size": options.batch_size}
    for name, value in (counts | {"--top": options.top, "--draws": options.draws}).items():
        if value < 1:
            raise CounterpointError(f"{name} must be at least 1; found {value}.")
    if sampled and options.prompts < MIN_PROMPTS:
        raise CounterpointError(
            f"--prompts must be at least {MIN_PROMPTS}, so many are needed for an interval; found {options.prompts}."
        )
    if options.samples < 2 and options.baseline == "prompt":
        raise CounterpointError(
            f"--samples must be at least 2, as rewards of one prompt are compared; found {options.samples}. Ask for "
            "more, or compare with the whole domain: --baseline domain."
        )
    if not 0 < options.fraction <= 1:
        raise CounterpointError(f"--fraction must be above 0 and at most 1; found {options.fraction}. Try 0.1.")
    if options.lanczos < 0:
        raise CounterpointError(f"--lanczos must not be negative; found {options.lanczos}. 0 leaves the spectrum out.")
    if not options.scales or min(options.scales) <= 0 or not options.tolerance > 0:
        raise CounterpointError(
            f"Scales and tolerance must be positive; found {options.scales} and {options.tolerance}. Give for example "
            "--scales 0.1,0.5,1 --tolerance 0.2."
        )
