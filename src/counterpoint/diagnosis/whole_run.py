"""Everything that a run's checkpoints, or a few given ones, allow: a folder of JSON, resumed where it stopped.

FOLDER/diagnosis/behaviour.json            what every stage did to every domain's score
                 edits.json                what every stage changed
                 rollouts-step-N.json      completions at the checkpoint before a stage (the completions: .jsonl)
                 routes-step-N.json        the neurons each domain uses there, and what two domains share
                 conflicts-step-N.json     gradients of the domains there
                 conflicts-over-time.json  the same from the run's Grams, where domains were trained together
                 damage-A-B.json           what B's stage cost domain A
                 summary.json              all of it pair by pair, one sentence each

Given checkpoints have ``base``, ``before`` and ``after`` in the place of ``step-N``, and ``scores-*.json``.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from counterpoint.diagnosis._course import Course, GivenRun, Leg, Point, course_of_checkpoints, course_of_run
from counterpoint.diagnosis._findings import PartFindings, conflict_findings, edit_findings, route_findings
from counterpoint.diagnosis._parts import Fingerprints, Part, PartDone, digest_of, run_part
from counterpoint.diagnosis._workshop import CompletionsKept, Effort, PointScores, Workshop
from counterpoint.diagnosis.behaviour import Behaviour, behaviour
from counterpoint.diagnosis.conflicts_over_time import conflicts_over_time
from counterpoint.diagnosis.damage import Damage
from counterpoint.diagnosis.summary import Summary, summarise
from counterpoint.disk import file_digest
from counterpoint.errors import CounterpointError, RunError, nearest
from counterpoint.models import check_model, resolve_path, threads_for
from counterpoint.progress import Progress, silent
from counterpoint.results import plain

ANALYSES = ("behaviour", "edits", "routes", "conflicts", "damage")
"""What ``only`` can name."""

ON_COMPLETIONS = {"routes", "conflicts", "damage"}
"""Analyses that need sampled completions."""

KINDS = {"scores": "behaviour", "conflicts_over_time": "conflicts"}
"""Kinds of parts that belong to an analysis of another name."""


@dataclass(frozen=True)
class DiagnoseOptions:
    """How much is measured: ``prompts`` per domain with ``samples`` completions each, at every checkpoint.

    ``effort`` is ``usual``, ``quick`` (half of both numbers; no metric of Adam, no scales of edits) or ``thorough``
    (also the spectrum of the Hessian, and more random controls).
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


def diagnose(
    run: str | Path,
    options: DiagnoseOptions | None = None,
    *,
    only: Sequence[str] | None = None,
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
        only: analyses out of ``ANALYSES``; all by default. What is kept of the others is in the summary too.
        alone: for a domain, a run that trains it alone; see ``behaviour``.
        on_progress: called with what is being done, steps done and in total.
        on_part: called after every part.

    Raises:
        RunError: no run, or no checkpoint at the end of a stage.
        CounterpointError: numbers or names that cannot be used.
    """
    options, wanted = _checked(options, only)
    return _diagnose(course_of_run(run), options, wanted, alone or {}, on_progress, on_part)


def diagnose_checkpoints(
    config: str | Path,
    *,
    after: str | Path,
    domain: str,
    base: str | Path | None = None,
    before: str | Path | None = None,
    other: str | None = None,
    out: str | Path | None = None,
    options: DiagnoseOptions | None = None,
    only: Sequence[str] | None = None,
    on_progress: Progress = silent,
    on_part: Callable[[PartDone], None] = lambda part: None,
) -> Summary:
    """Diagnoses given checkpoints, whoever trained them, as :func:`diagnose` does a run.

    Args:
        config: configuration or run directory that defines the domains; nothing is trained, so its batches and shares
            may be anything.
        after: the later checkpoint, which may have lost ``domain``.
        domain: the domain that may have suffered.
        base: the model from which ``domain`` was trained. Without ``before`` it is the model that was good at it.
        before: the checkpoint after the domain's own training, when it was good.
        other: the domain that was trained between ``before`` and ``after``.
        out: folder that gets ``diagnosis/*.json``; ``diagnosis-DOMAIN`` in the current one by default.
        options, only, on_progress, on_part: as for :func:`diagnose`.

    Raises:
        ConfigError, ModelError: a configuration, domain or checkpoint that cannot be used.
        CounterpointError: nothing to compare ``after`` with, or numbers or names that cannot be used.
    """
    options, wanted = _checked(options, only)
    course = course_of_checkpoints(config, base=base, before=before, after=after, domain=domain, other=other, out=out)
    return _diagnose(course, options, wanted, {}, on_progress, on_part)


def _diagnose(
    course: Course,
    options: DiagnoseOptions,
    wanted: set[str],
    alone: Mapping[str, Path | str],
    on_progress: Progress,
    on_part: Callable[[PartDone], None],
) -> Summary:
    started = time.perf_counter()
    if wanted - {"behaviour"} and not course.points:
        run = course.folder.parent
        raise RunError(
            f"{run}: has no checkpoint at the end of a stage, so only its behaviour can be diagnosed: "
            f"counterpoint diagnose {run} --only behaviour"
        )
    if course.run is not None:
        wanted = wanted | {"behaviour"}  # it takes no time, and every pair has its change of score
    work = Workshop(course, *options.budget, options.seed, options.effort, on_progress)
    planned = plan_parts(work, Fingerprints(course.folder))
    done: list[PartDone] = []
    found: dict[str, Any] = {}

    def do(part: Part[Any]) -> None:
        on_progress(f"part {len(done) + 1} of {len(planned) + 1}: {part.name}", 0, 1)
        how, finding = run_part(course.folder, part, _is_wanted(part, wanted))
        done.append(how)
        if finding is not None:
            found[part.name] = finding
        on_part(how)

    with threads_for(check_model(course.config.model)):
        if course.run is not None:
            do(_behaviour(work, alone, found))
        for part in planned:
            do(part)
        if course.run is None:
            do(_behaviour(work, alone, found))
    about = {"prompts": work.prompts, "samples": work.samples, "effort": options.effort, "seed": options.seed}
    summary = summarise(course, done, found, about, time.perf_counter() - started)
    summary.write(course.folder / "summary.json")
    return summary


def _checked(options: DiagnoseOptions | None, only: Sequence[str] | None) -> tuple[DiagnoseOptions, set[str]]:
    options = options or DiagnoseOptions()
    for name in only or ():
        if name not in ANALYSES:
            raise CounterpointError(f"only={name!r}: there is no such analysis; {nearest(name, ANALYSES)}")
    if options.prompts < 8 or options.samples < 2:
        raise CounterpointError(
            "prompts must be at least 8 and samples at least 2, as halves of the prompts and rewards of one prompt are "
            f"compared; found {options.prompts} and {options.samples}."
        )
    return options, set(only or ANALYSES)


def _is_wanted(part: Part[Any], wanted: set[str]) -> bool:
    if part.kind == "rollouts":
        return bool(wanted & ON_COMPLETIONS)
    return KINDS.get(part.kind, part.kind) in wanted


def plan_parts(work: Workshop, prints: Fingerprints) -> list[Part[Any]]:
    """Every part that the course allows but the behaviour, cheap ones first."""
    course = work.course
    if not course.points:
        return []
    marks = {point.name: _mark(work, point, prints) for point in course.points}
    planned: list[Part[Any]] = []
    if course.run is None:
        planned += [_scores(work, point, marks) for point in course.points]
    planned.append(_edits(work, marks))
    for point in measuring_points(course):
        planned += _at_point(work, point, marks)
    if course.run and any(len(s.domains) > 1 for s in course.stages) and (course.run.path / "grams.jsonl").is_file():
        run, inputs = course.run.path, {"grams": file_digest(course.run.path / "grams.jsonl")}
        measure = partial(conflicts_over_time, run)
        planned.append(Part("conflicts-over-time", "conflicts_over_time", inputs, measure, dict, {}, lambda _: {}))
    names: set[str] = set()
    for leg in course.legs:
        for domain in leg.earlier:
            planned.append(_damage(work, domain, leg, marks, names))
    return planned


def measuring_points(course: Course) -> list[Point]:
    """The checkpoints before every stage that some domain was trained before; else the last one."""
    starts = [leg.start for leg in course.legs if leg.earlier]
    return starts or [course.points[-1]]


def _mark(work: Workshop, point: Point, prints: Fingerprints) -> str:
    """What tells a point's weights from others: every byte of a folder, name and revision of a hub model."""
    settings = work.course.config.model
    path = resolve_path(settings) if point.model == settings.path else point.model
    return prints.of(Path(path)) if Path(path).is_dir() else f"{path}@{settings.revision}"


def _behaviour(work: Workshop, alone: Mapping[str, Path | str], found: Mapping[str, Any]) -> Part[Behaviour]:
    """From the run's files, or from the scores of given checkpoints, which must have been measured."""
    course = work.course
    if course.run is None:
        scores = [item for item in found.values() if isinstance(item, PointScores)]

        def measure() -> Behaviour:
            if len(scores) < len(course.points):
                raise CounterpointError("scores of the checkpoints are missing.")
            evals = [line for item in scores for line in item.evals]
            return behaviour(GivenRun(course, evals, [line for item in scores for line in item.samples]))

        return Part("behaviour", "behaviour", {"scores": digest_of(plain(scores))}, measure, Behaviour)
    files = {
        f"{name}/{file}": file_digest(Path(path) / file)
        for name, path in {"": course.run.path, **alone}.items()
        for file in ("run.json", "evals.jsonl", "metrics.jsonl", "samples.jsonl")
    }
    run = course.run
    return Part("behaviour", "behaviour", {"files": files}, lambda: behaviour(run, alone), Behaviour)


def _scores(work: Workshop, point: Point, marks: Mapping[str, str]) -> Part[PointScores]:
    inputs = {"weights": marks[point.name], "config": file_digest(work.course.config_file)}
    about = {"moment": point.moment}
    return Part(f"scores-{point.name}", "scores", inputs, lambda: work.scores(point), PointScores, about)


def _edits(work: Workshop, marks: Mapping[str, str]) -> Part[PartFindings]:
    inputs = {"weights": list(marks.values()), "seed": work.seed}
    about = {"steps": [point.step for point in work.course.points[1:]]}
    return Part("edits", "edits", inputs, work.edits, PartFindings, about, edit_findings)


def _at_point(work: Workshop, point: Point, marks: Mapping[str, str]) -> list[Part[Any]]:
    inputs = _inputs(work, marks[point.name])
    about: dict[str, Any] = {"step": point.step, "moment": point.moment}
    edits = {"edits": [(marks[leg.start.name], marks[leg.end.name]) for leg in work.course.legs]}

    def part(kind: str, inputs: Any, measure: Callable[[Point], Any], read: Any, **more: Any) -> Part[Any]:
        return Part(f"{kind}-{point.name}", kind, inputs, lambda: measure(point), read, about, **more)

    return [
        part("rollouts", inputs, work.sample, CompletionsKept, beside=(work.rollouts_file(point),)),
        part("routes", inputs | edits, work.routes, PartFindings, finding=route_findings),
        part("conflicts", inputs, work.conflicts, PartFindings, finding=conflict_findings),
    ]


def _damage(work: Workshop, domain: str, leg: Leg, marks: Mapping[str, str], names: set[str]) -> Part[Damage]:
    start, end, later = leg.start, leg.end, leg.stage.domains
    name = f"damage-{domain}-{'+'.join(later)}".replace(" ", "-").replace("/", "-")
    name = name if name not in names else f"{name}-{start.name}"
    names.add(name)
    inputs = _inputs(work, marks[start.name]) | {"domain": domain, "later": list(later), "after": marks[end.name]}
    about = {"domain": domain, "later": list(later), "first_step": start.step, "last_step": end.step}
    other = later[0] if len(later) == 1 and later[0] in work.course.config.domains else None
    return Part(name, "damage", inputs, lambda: work.damage(domain, start, end, other), Damage, about)


def _inputs(work: Workshop, mark: str) -> dict[str, Any]:
    return {
        "weights": mark,
        "config": file_digest(work.course.config_file),
        "prompts": work.prompts,
        "samples": work.samples,
        "seed": work.seed,
        "effort": work.effort,
    }
