"""Which parts a run's checkpoints allow, in the order in which they are done, each with what it depends on."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from counterpoint.diagnosis.results import VERSION
from counterpoint.diagnosis.whole_run.parts import Part, file_digest
from counterpoint.diagnosis.whole_run.points import Leg, Point
from counterpoint.diagnosis.whole_run.work import Workshop
from counterpoint.runs.run import Run


def plan_parts(
    workshop: Workshop, history: Run, points: Sequence[Point], legs: Sequence[Leg], alone: Mapping[str, Path | str]
) -> list[Part]:
    """Every part that the run allows, cheap ones first."""
    planned = [_behaviour(workshop, alone), _edits(workshop, points)]
    for point in measuring_points(points, legs):
        planned += _at_point(workshop, point, legs)
    if any(len(stage.domains) > 1 for stage in history.stages) and (workshop.run / "grams.jsonl").is_file():
        planned.append(_over_time(workshop))
    names: set[str] = set()
    for leg in legs:
        for domain in leg.earlier:
            planned.append(_damage(workshop, domain, leg.start, leg.end, leg.stage.domains, names))
    if workshop.effort != "quick":
        planned += _damage_to_the_end(workshop, points, legs, names)
    return planned


def measuring_points(points: Sequence[Point], legs: Sequence[Leg]) -> list[Point]:
    """The checkpoints before every stage that some domain was trained before; else the last one."""
    starts = [leg.start for leg in legs if leg.earlier]
    return starts or [points[-1]]


def _behaviour(workshop: Workshop, alone: Mapping[str, Path | str]) -> Part:
    files = {
        f"{name}/{file}": file_digest(Path(path) / file)
        for name, path in {"": workshop.run, **alone}.items()
        for file in ("run.json", "evals.jsonl", "metrics.jsonl", "samples.jsonl")
    }
    return Part("behaviour", "behaviour", {"files": files, "version": VERSION}, lambda: workshop.behaviour(alone))


def _edits(workshop: Workshop, points: Sequence[Point]) -> Part:
    inputs = {"weights": [point.fingerprint for point in points], "seed": workshop.seed, "version": VERSION}
    about = {"steps": [point.step for point in points[1:]]}
    return Part("edits", "edits", inputs, lambda: workshop.edits(points), about)


def _at_point(workshop: Workshop, point: Point, legs: Sequence[Leg]) -> list[Part]:
    inputs = _inputs(workshop, point)
    about: dict[str, Any] = {"step": point.step, "moment": point.moment}
    tag = f"step-{point.step}"
    edits = {"edits": [(leg.start.fingerprint, leg.end.fingerprint) for leg in legs]}
    return [
        Part(
            f"rollouts-{tag}",
            "rollouts",
            inputs,
            lambda: workshop.sample(point),
            about,
            (workshop.rollouts_file(point),),
        ),
        Part(f"routes-{tag}", "routes", inputs | edits, lambda: workshop.routes(point, legs), about),
        Part(f"conflicts-{tag}", "conflicts", inputs, lambda: workshop.conflicts(point), about),
    ]


def _over_time(workshop: Workshop) -> Part:
    inputs = {"grams": file_digest(workshop.run / "grams.jsonl"), "version": VERSION}
    return Part("conflicts-over-time", "conflicts_over_time", inputs, workshop.over_time)


def _damage(workshop: Workshop, domain: str, start: Point, end: Point, later: Sequence[str], names: set[str]) -> Part:
    name = f"damage-{domain}-{'+'.join(later)}"
    name = name if name not in names else f"{name}-step-{start.step}"
    names.add(name)
    inputs = _inputs(workshop, start) | {"domain": domain, "later": list(later), "after": end.fingerprint}
    about = {"domain": domain, "later": list(later), "first_step": start.step, "last_step": end.step}
    other = later[0] if len(later) == 1 else None
    return Part(name, "damage", inputs, lambda: workshop.damage(domain, start, end, other), about)


def _damage_to_the_end(workshop: Workshop, points: Sequence[Point], legs: Sequence[Leg], names: set[str]) -> list[Part]:
    """From the end of every domain's own stage over all later ones, where these are two or more."""
    found = []
    for i, leg in enumerate(legs):
        later = tuple(dict.fromkeys(name for after in legs[i + 1 :] for name in after.stage.domains))
        for domain in leg.stage.domains:
            if len(legs) - i > 2 and domain not in later:
                found.append(_damage(workshop, domain, leg.end, points[-1], later, names))
    return found


def _inputs(workshop: Workshop, point: Point) -> dict[str, Any]:
    return {
        "weights": point.fingerprint,
        "config": file_digest(workshop.run / "config.yaml"),
        "prompts": workshop.prompts,
        "samples": workshop.samples,
        "seed": workshop.seed,
        "effort": workshop.effort,
        "version": VERSION,
    }
