"""What a recovery is going to do, in words, with what it will cost by the run's own timing."""

import statistics
from collections.abc import Sequence
from typing import Any

from counterpoint.errors import RunError
from counterpoint.recovery.recovering.results import Fallen, RecoverOptions
from counterpoint.recovery.rolling_back.options import BUDGETS
from counterpoint.recovery.rolling_back.verdict import show, signed
from counterpoint.runs import RunDirectory
from counterpoint.runs.records import AnyObject, read_as
from counterpoint.runs.run import Since

WHOLE_RUN = "diagnosis/summary.json"
"""Where `counterpoint diagnose all` says who hurt whom."""


def nothing_fell(rest: Sequence[Since]) -> str:
    """The sentence for a run that lost nothing."""
    if not rest:
        return "nothing to recover: no domain was trained before another one, so none can have fallen since its stage."
    said = ", ".join(f"{one.domain} {signed(one.corrected)}" for one in rest)
    return f"nothing to recover: no domain fell beyond noise after its own stage ({said})."


def plan_sentences(
    run: RunDirectory, fallen: Sequence[Fallen], rest: Sequence[Since], options: RecoverOptions
) -> tuple[str, ...]:
    """What fell, what a diagnosis says of it, what will be tried and what that costs."""
    cost = Cost(run)
    said = [_fell(one) for one in fallen]
    if rest:
        kept = ", ".join(f"{one.domain} {signed(one.corrected)}" for one in rest)
        said.append(f"Not lost beyond noise: {kept}.")
    said += _diagnosed(run, fallen)
    if len(fallen) > 1:
        order = ", then ".join(one.domain for one in fallen)
        said.append(
            f"They are recovered one after another, the worst first: {order}; each from what the last one left."
        )
    for one in fallen:
        said += [_rollback(one, options, cost), _refresh(one, options, cost)]
    said.append(
        f"Left as {run.path / 'recovery' / 'checkpoint'}: of the attempts that bring the domain up and harm no other, "
        "the one with the best mean over all domains."
    )
    return tuple(said)


class Cost:
    """Seconds by the run's own timing; the machine is taken to be as fast as it was then."""

    def __init__(self, run: RunDirectory) -> None:
        lines = run.lines("evals.jsonl")
        last = max(line["step"] for line in lines)
        self.evaluations = {line["domain"]: line for line in lines if line["step"] == last}
        self.metrics = run.lines("metrics.jsonl")

    @property
    def evaluation(self) -> float:
        """One evaluation of all domains."""
        return sum(line["seconds"] for line in self.evaluations.values())

    @property
    def held_out(self) -> int:
        """Sampled completions of one evaluation."""
        return sum(line["prompts"] * line["samples"] for line in self.evaluations.values())

    @property
    def completion(self) -> float:
        """One completion; greedy ones are counted with the others."""
        done = sum(
            line["prompts"] * (line["samples"] + (line["greedy"] is not None)) for line in self.evaluations.values()
        )
        return self.evaluation / done

    def step(self, one: Fallen) -> float:
        """One optimizer step in the stage of a domain."""
        times = [line.get("step_time") for line in self.metrics if line["step"] <= one.from_step]
        known = [time for time in times[-20:] if time is not None]
        return statistics.median(known) if known else 0.0


def _fell(one: Fallen) -> str:
    corrected = f", corrected for {one.comparisons} comparisons" if one.comparisons > 1 else ""
    return (
        f"{one.domain} fell from {show(one.former)} after its stage (step {one.from_step}) to {show(one.now)} at the "
        f"end (step {one.to_step}), after {', '.join(one.since)}: {signed(one.change)}, paired by prompt{corrected}."
    )


def _rollback(one: Fallen, options: RecoverOptions, cost: Cost) -> str:
    if one.checkpoint is None:
        return f"No rollback for {one.domain}: the checkpoint after its stage (step {one.from_step}) was not kept."
    wanted = options.rollback
    sets = len(wanted.budgets or BUDGETS) * len(wanted.scales)
    tried = sets * (1 + wanted.draws)
    selection = (tried + 1) * wanted.prompts * wanted.samples * len(cost.evaluations)
    total = selection + wanted.prompts * wanted.samples + (3 + wanted.draws) * cost.held_out
    return (
        f"First a rollback for {one.domain} towards step {one.from_step}, without training: {sets} sets of weights and "
        f"{tried - sets} random ones of the same sizes on training prompts, the best of them on the held-out ones; "
        f"{total:,} completions, about {duration(total * cost.completion)}."
    )


def _refresh(one: Fallen, options: RecoverOptions, cost: Cost) -> str:
    wanted = options.refresh
    looks = 1 + -(-wanted.steps // wanted.every)
    seconds = wanted.steps * cost.step(one) + looks * cost.evaluation
    when = (
        "Then" if options.both or one.checkpoint is None else f"If {one.domain} stays below {one.former.low:.3f}, then"
    )
    return (
        f"{when} a refresh: at most {wanted.steps} steps on {one.domain} with up to {looks} evaluations of all "
        f"domains, about {duration(seconds)} at most."
    )


def _diagnosed(run: RunDirectory, fallen: Sequence[Fallen]) -> list[str]:
    """What `diagnose all` said of the domains that fell; a hint where it was not run."""
    file = run.path / WHOLE_RUN
    if not file.exists():
        return [f"Where the damage lies is not known: `counterpoint diagnose all {run.path}` would say."]
    try:
        said = read_as(file, AnyObject, "", _sentences)
    except RunError:
        return [f"{file} cannot be read, so what a diagnosis found is left out."]
    return [f"Diagnosis: {said[one.domain]}" for one in fallen if one.domain in said]


def _sentences(summary: dict[str, Any]) -> dict[str, str]:
    return {str(total["domain"]): str(total["sentence"]) for total in summary["totals"]}


def duration(seconds: float) -> str:
    """``40 s``, ``3 min`` or ``2.5 h``."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
