"""Budgets made into masks, beside random masks, and the choice among what was tried on the selection split."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from statistics import fmean

from counterpoint.errors import CounterpointError
from counterpoint.recovery.rolling_back.edit import Edit, Watch
from counterpoint.recovery.rolling_back.masks import (
    Chooser,
    Mask,
    coordinates,
    neurons,
    random_coordinates,
    random_neurons,
)
from counterpoint.recovery.rolling_back.options import BUDGETS, RollbackOptions
from counterpoint.recovery.rolling_back.region import Region
from counterpoint.recovery.rolling_back.results import Chosen, Trial
from counterpoint.recovery.rolling_back.scores import WeightScores

REMEDIES = {
    "damage": "The domain's completions have no gradient there. Sample more with --prompts, or use --score magnitude.",
    "magnitude": "The edit changed nothing there. Use --where everywhere, or --unit coordinates.",
}
"""What to do where no weight has a score above 0."""


@dataclass(frozen=True)
class Candidate:
    """A set of weights and how far to move it back; ``draw`` is None for the ranked one."""

    mask: Mask
    budget: float
    scale: float
    draw: int | None

    @property
    def kind(self) -> str:
        """``rollback`` or ``random``."""
        return "rollback" if self.draw is None else "random"


def chooser_of(scores: WeightScores, unit: str, names: Sequence[str], watch: Watch) -> Chooser:
    """Ranks the weights or the neurons of an edit.

    Raises:
        CounterpointError: none has a score above 0.
    """
    chooser = neurons(scores, watch) if unit == "neurons" else coordinates(names, scores, watch)
    if not chooser.num_candidates:
        place = "on the shared route" if scores.region.shared is not None else "in this model"
        raise CounterpointError(
            f"--score {scores.rule}: no weight {place} has a score above 0, so the mask would be empty. "
            f"{REMEDIES[scores.rule]}"
        )
    return chooser


def budget_masks(chooser: Chooser, edit: Edit, options: RollbackOptions, watch: Watch) -> tuple[dict, list[str]]:
    """The mask of every budget that the edit allows, smallest first, and a note for each default that it does not.

    Raises:
        CounterpointError: a budget that was asked for is larger than the edit or smaller than one unit, or none
            is left.
    """
    total, most = edit.num_weights, chooser.num_candidates
    budgets = sorted(set(options.budgets or BUDGETS))
    notes, counts = [], {}
    for budget in budgets:
        problem = _problem(budget, total, most)
        if problem and options.budgets:
            raise CounterpointError(f"--budgets: {problem}")
        if problem:
            notes.append(f"Left out: {problem}")
        else:
            counts[budget] = round(budget * total)
    masks = dict(zip(counts, chooser.masks(list(counts.values()), watch), strict=True)) if counts else {}
    for budget in [budget for budget, mask in masks.items() if not mask.num_weights]:
        problem = (
            f"{budget:.3%} of {total:,} weights is less than the best neuron has, so the mask would be empty. Use a "
            "larger budget, or --unit coordinates."
        )
        if options.budgets:
            raise CounterpointError(f"--budgets: {problem}")
        notes.append(f"Left out: {problem}")
        del masks[budget]
    if not masks:
        raise CounterpointError(
            f"None of the default budgets fits: {most:,} of {total:,} weights can be restored ({most / total:.4%}). "
            f"Give a smaller one, e.g. --budgets {most / total / 2:.2g}, or --unit coordinates."
        )
    return masks, notes


def _problem(budget: float, total: int, most: int) -> str | None:
    count = round(budget * total)
    if count < 1:
        return (
            f"{budget:g} of {total:,} weights is less than one weight, so the mask would be empty. The smallest budget "
            f"is {1 / total:.2g}."
        )
    if count > most:
        return (
            f"{budget:g} of {total:,} weights is {count:,}, a budget that is larger than the edit: {most:,} weights "
            f"can be restored. The largest budget is {largest(most, total):g}."
        )
    return None


def largest(most: int, total: int) -> float:
    """The largest budget of ``most`` among ``total`` weights, rounded down to four digits where that leaves any."""
    share = most / total
    digits = 10.0 ** (3 - int(f"{share:e}".split("e")[1]))
    return int(share * digits) / digits


def check_budgets(options: RollbackOptions, edit: Edit, num_changed: int) -> None:
    """Refuses budgets beyond everything that the edit changed, before any long work.

    Raises:
        CounterpointError: naming the largest budget.
    """
    for budget in options.budgets or ():
        problem = _problem(budget, edit.num_weights, num_changed)
        if problem:
            raise CounterpointError(f"--budgets: {problem}")


def candidates(
    masks: Mapping[float, Mask],
    edit: Edit,
    region: Region,
    names: Sequence[str],
    options: RollbackOptions,
    on_draw: Callable[[int, int], None] = lambda done, total: None,
) -> list[Candidate]:
    """Every budget at every scale, and beside each as many random weights in the same region, several times."""
    found = [Candidate(mask, budget, scale, None) for (budget, mask), scale in product(masks.items(), options.scales)]
    counts = [mask.num_weights for mask in masks.values()]
    for draw in range(options.draws):
        if options.unit == "neurons":
            random: Chooser = random_neurons(edit, region, options.seed, draw)
        else:
            random = random_coordinates(edit, region, names, options.seed, draw)
        drawn = dict(zip(masks, random.masks(counts, lambda done, total: None), strict=True))
        found += [Candidate(drawn[budget], budget, scale, draw) for budget, scale in product(masks, options.scales)]
        on_draw(draw + 1, options.draws)
    return found


def choose(tried: Sequence[Trial]) -> Chosen | None:
    """The rollback with the best objective, the smallest of equal ones; None where none beats doing nothing."""
    nothing = next(trial.objective for trial in tried if trial.kind == "after")
    own = [trial for trial in tried if trial.kind == "rollback" and trial.objective > nothing]
    best = min(own, key=lambda trial: (-trial.objective, trial.num_weights, trial.scale), default=None)
    return None if best is None else Chosen(best.budget, best.scale, best.num_weights)


def better_random(tried: Sequence[Trial], chosen: Chosen) -> str | None:
    """A sentence where random weights of another number or scale do better, on the selection split, than the chosen.

    Then moving back any weights helps, and only the comparison at the chosen budget says what the ranking adds.
    """
    own = next(t for t in tried if t.kind == "rollback" and (t.budget, t.scale) == (chosen.budget, chosen.scale))
    random: dict[tuple[float, float], list[float]] = {}
    for trial in tried:
        if trial.kind == "random":
            random.setdefault((trial.budget, trial.scale), []).append(trial.objective)
    best = max(random, key=lambda place: fmean(random[place]), default=None)
    if best is None or fmean(random[best]) <= own.objective:
        return None
    return (
        f"On the selection split random weights at a budget of {best[0]:g} and a scale of {best[1]:g} reach "
        f"{fmean(random[best]):.3f}, more than the chosen mask's {own.objective:.3f}: moving any weights back that far "
        "helps here, so the ranking is to be judged at equal budgets alone."
    )
