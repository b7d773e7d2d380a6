"""Everything that a run's checkpoints allow: one folder of JSON, made part by part, and resumed where it stopped.

RUN/diagnosis/behaviour.json            what every stage did to every domain's score
              edits.json                what every stage changed
              rollouts-step-N.json      completions at the checkpoint before a stage (the completions: .jsonl)
              routes-step-N.json        the neurons each domain uses there, and what two domains share
              conflicts-step-N.json     gradients of the domains there
              conflicts-over-time.json  the same from the run's Grams, where domains were trained together
              damage-A-B.json           what B's stage cost domain A
              summary.json              all of it pair by pair, with two sentences for each
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from counterpoint.diagnosis.results import write_result
from counterpoint.diagnosis.subject import config_of
from counterpoint.diagnosis.whole_run.parts import Part, PartDone, read_part, run_part
from counterpoint.diagnosis.whole_run.plan import plan_parts
from counterpoint.diagnosis.whole_run.points import Leg, legs_of, points_of
from counterpoint.diagnosis.whole_run.results import Summary
from counterpoint.diagnosis.whole_run.summary import summarise
from counterpoint.diagnosis.whole_run.work import Effort, Workshop
from counterpoint.errors import CounterpointError
from counterpoint.models import check_model, threads_for
from counterpoint.progress import Progress, silent
from counterpoint.runs.run import Run


@dataclass(frozen=True)
class DiagnoseOptions:
    """How much is measured: ``prompts`` per domain with ``samples`` completions each, at every checkpoint.

    ``effort`` is ``usual``, ``quick`` (half of both numbers; no metric of Adam, no scales of edits, no damage from a
    domain's own stage to the end of the run) or ``thorough`` (also blocks and spectrum of
    the Hessian, and all scales).
    """

    prompts: int = 128
    samples: int = 4
    effort: Effort = "usual"
    seed: int = 0

    @property
    def budget(self) -> tuple[int, int]:
        """Prompts and samples that are used."""
        half = self.effort == "quick"
        return (max(8, self.prompts // 2), max(2, self.samples // 2)) if half else (self.prompts, self.samples)


@dataclass(frozen=True)
class Plan:
    """What a diagnosis of the run named ``run`` is going to do: its ``parts``, one after another."""

    run: str
    workshop: Workshop
    legs: Sequence[Leg]
    parts: Sequence[Part]


def plan_diagnosis(
    run: str | Path,
    options: DiagnoseOptions,
    alone: Mapping[str, Path | str] | None = None,
    on_progress: Progress = silent,
) -> Plan:
    """Reads the run; nothing is loaded, measured or written.

    Raises:
        RunError, CounterpointError: as :func:`diagnose`.
    """
    _check(options)
    history = Run.open(run)
    config = config_of(history.path)
    points = points_of(history, config, history.stages)
    workshop = Workshop(history.path, config, options.budget, options.seed, options.effort, on_progress)
    legs = legs_of(points, history.stages)
    return Plan(history.name, workshop, legs, plan_parts(workshop, history, points, legs, alone or {}))


def diagnose(
    run: str | Path,
    options: DiagnoseOptions | None = None,
    *,
    alone: Mapping[str, Path | str] | None = None,
    on_progress: Progress = silent,
    on_part: Callable[[PartDone], None] = lambda part: None,
) -> Summary:
    """Diagnoses ``run`` into ``RUN/diagnosis`` and returns what ``summary.json`` holds.

    Parts whose file has a result of the same inputs (weights, configuration, numbers of completions) are kept. A part
    that cannot be measured is noted with its reason, and the others go on.

    Args:
        run: a run directory, finished or not.
        options: how much is measured.
        alone: for a domain, a run that trains it alone; see ``behaviour``.
        on_progress: called with what is being done, steps done and in total.
        on_part: called after every part.

    Raises:
        RunError: no run, no evaluation in it, or no checkpoint at the end of a stage.
        CounterpointError: numbers that cannot be used.
    """
    options = options or DiagnoseOptions()
    started = time.perf_counter()
    plan = plan_diagnosis(run, options, alone, on_progress)
    workshop = plan.workshop
    done = []
    with threads_for(check_model(workshop.config.model)):
        for i, part in enumerate(plan.parts):
            on_progress(f"part {i + 1} of {len(plan.parts)}: {part.name}", 0, 1)
            done.append(run_part(workshop.folder, part))
            on_part(done[-1])
    results = {part.name: read_part(workshop.folder / part.file) for part in done if part.status != "failed"}
    summary = summarise(plan.run, plan.legs, done, {name: found for name, found in results.items() if found})
    summary = replace(
        summary,
        options={
            "prompts": workshop.prompts,
            "samples": workshop.samples,
            "effort": options.effort,
            "seed": options.seed,
        },
        seconds=time.perf_counter() - started,
    )
    write_result(workshop.folder / "summary.json", "summary", summary)
    return summary


def _check(options: DiagnoseOptions) -> None:
    if options.prompts < 8 or options.samples < 2:
        raise CounterpointError(
            f"--prompts must be at least 8 and --samples at least 2, as halves of the prompts and rewards of one "
            f"prompt are compared; found {options.prompts} and {options.samples}."
        )
