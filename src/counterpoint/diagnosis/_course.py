"""What is diagnosed: the points whose weights are there, and the legs of training between them.

A run's points are its base and the checkpoints at the ends of its stages. Given checkpoints are points in the order
base, before, after: the legs are ``domain``'s own training, and the later one that may have hurt it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from counterpoint.config import Config
from counterpoint.diagnosis.behaviour import stage_name
from counterpoint.diagnosis.subject import config_of, model_of, wanted_domains
from counterpoint.errors import CounterpointError
from counterpoint.runs.run import Run
from counterpoint.runs.stages import Stage

LATER = "later training"
"""Name of the later stage where nobody says which domain it trained."""


@dataclass(frozen=True)
class Point:
    """Weights after ``step`` optimizer steps: ``model`` is a folder, a hub id or ``pocket``.

    ``name`` is that of its files (``step-40``; ``before``), ``moment`` what people call it (``after code``).
    ``trained`` names the domains trained so far.
    """

    step: int
    name: str
    moment: str
    model: str
    trained: tuple[str, ...]


@dataclass(frozen=True)
class Leg:
    """One stage between two points: what it trained, and the domains that earlier stages had trained."""

    stage: Stage
    start: Point
    end: Point

    @property
    def name(self) -> str:
        """What the stage is called."""
        return stage_name(self.stage)

    @property
    def earlier(self) -> tuple[str, ...]:
        """Domains trained before this stage and not in it."""
        return tuple(name for name in self.start.trained if name not in self.stage.domains)


@dataclass(frozen=True)
class Course:
    """What is diagnosed, and the ``folder`` for the results.

    ``run`` is None for given checkpoints, whose scores are measured. ``remedy`` is the command that brings a fallen
    domain back.
    """

    name: str
    folder: Path
    config: Config
    config_file: Path
    stages: tuple[Stage, ...]
    points: tuple[Point, ...]
    legs: tuple[Leg, ...]
    run: Run | None
    remedy: str


def course_of_run(path: str | Path) -> Course:
    """The course of a run directory; it has no points where no checkpoint at the end of a stage was kept."""
    run = Run.open(path)
    config = config_of(run.path)
    folders = dict(run.checkpoints)
    ends = [stage for stage in run.stages if stage.last_step in folders]
    points = [Point(0, "step-0", "before", config.model.path, ())] if ends else []
    for stage in ends:
        trained = tuple(dict.fromkeys(name for s in run.stages if s.index <= stage.index for name in s.domains))
        name, moment = f"step-{stage.last_step}", run.moment(stage.last_step)
        points.append(Point(stage.last_step, name, moment, str(folders[stage.last_step]), trained))
    return Course(
        name=run.name,
        folder=run.path / "diagnosis",
        config=config,
        config_file=run.path / "config.yaml",
        stages=run.stages,
        points=tuple(points),
        legs=_legs(points, run.stages),
        run=run,
        remedy=f"counterpoint recover {run.path}",
    )


def course_of_checkpoints(
    config: str | Path,
    *,
    base: str | Path | None,
    before: str | Path | None,
    after: str | Path,
    domain: str,
    other: str | None,
    out: str | Path | None,
) -> Course:
    """The course of given checkpoints; see :func:`counterpoint.diagnosis.diagnose_checkpoints`."""
    read = config_of(config)
    wanted_domains(read, [name for name in (domain, other) if name is not None])
    if domain == other:
        raise CounterpointError(f"other={other!r} is the domain itself. Name the domain that was trained later.")
    given = {"base": base, "before": before, "after": after}
    models = {name: str(path) for name, path in given.items() if path is not None}
    if len(models) < 2:
        raise CounterpointError(f"after={after}: nothing to compare it with. Give before, base, or both.")
    for path in models.values():
        model_of(read, path)
    later = (other or LATER,)
    trained = [(domain,), later] if len(models) == 3 else [later]
    stages = tuple(Stage(i, names, i, i + 1) for i, names in enumerate(trained))
    known = [(), (domain,), (domain, *later)][-len(models) :]
    points = [Point(step, name, name, path, known[step]) for step, (name, path) in enumerate(models.items())]
    # Without `before`, the domain was good at the base.
    start = before or base
    return Course(
        name=f"{domain} after {other or LATER}",
        folder=Path(out or f"diagnosis-{domain}") / "diagnosis",
        config=read,
        config_file=Path(config) / "config.yaml" if Path(config).is_dir() else Path(config),
        stages=stages,
        points=tuple(points),
        legs=_legs(points, stages),
        run=None,
        remedy=f"counterpoint recover {config} --before {start} --after {after} --domain {domain}",
    )


def _legs(points: Sequence[Point], stages: Sequence[Stage]) -> tuple[Leg, ...]:
    """The stages with weights at both ends."""
    at = {point.step: point for point in points}
    return tuple(Leg(s, at[s.first_step], at[s.last_step]) for s in stages if s.first_step in at and s.last_step in at)


class GivenRun(Run):
    """Given checkpoints as a run that was evaluated at each of them: ``lines`` are those of ``evals.jsonl``."""

    def __init__(
        self, course: Course, evals: Sequence[Mapping[str, Any]], samples: Sequence[Mapping[str, Any]]
    ) -> None:
        domains = list(course.config.domains)
        stages = [stage.to_json() for stage in course.stages]
        files = {"evals.jsonl": [dict(line) for line in evals], "samples.jsonl": [dict(line) for line in samples]}
        state = {"name": course.name, "status": "done", "domains": domains, "stages": stages}
        super().__init__(course.folder.parent, state, lambda name: files.get(name, []))
        self._moments = {point.step: point.moment for point in course.points}

    def moment(self, step: int) -> str:
        """``base``, ``before`` or ``after``."""
        return self._moments[step]
