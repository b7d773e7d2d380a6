"""The moments of a run whose weights are there: the model it started from, and its checkpoints."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from counterpoint.config import Config
from counterpoint.diagnosis.whole_run.parts import fingerprint
from counterpoint.errors import RunError
from counterpoint.models import resolve_path
from counterpoint.runs.run import Run
from counterpoint.runs.stages import Stage


@dataclass(frozen=True)
class Point:
    """Weights after ``step`` optimizer steps: ``model`` is a folder, a hub id or ``pocket``.

    ``moment`` is what people call it: ``before``, ``after code``. ``trained`` names the domains trained so far.
    """

    step: int
    moment: str
    model: str
    trained: tuple[str, ...]
    fingerprint: str


@dataclass(frozen=True)
class Leg:
    """One stage between two points: what it trained, and the domains that earlier stages had trained."""

    stage: Stage
    start: Point
    end: Point

    @property
    def earlier(self) -> tuple[str, ...]:
        """Domains trained before this stage and not in it."""
        return tuple(name for name in self.start.trained if name not in self.stage.domains)


def points_of(run: Run, config: Config, stages: Sequence[Stage]) -> list[Point]:
    """The base and the checkpoint at the end of every stage that is still there, in order.

    Raises:
        RunError: there is no checkpoint.
    """
    folders = dict(run.checkpoints)
    ends = [stage for stage in stages if stage.last_step in folders]
    if not ends:
        raise RunError(
            f"{run.path}: has no checkpoint at the end of a stage, so there is nothing to diagnose but its behaviour: "
            f"counterpoint diagnose behaviour {run.path}"
        )
    base = resolve_path(config.model)
    mark = fingerprint(Path(base)) if Path(base).is_dir() else f"{base}@{config.model.revision}"
    found = [Point(0, "before", config.model.path, (), mark)]
    for stage in ends:
        folder = folders[stage.last_step]
        trained = tuple(dict.fromkeys(name for s in stages if s.index <= stage.index for name in s.domains))
        moment = f"after {stage.domains[0]}" if len(stage.domains) == 1 else "after training"
        found.append(Point(stage.last_step, moment, str(folder), trained, fingerprint(folder)))
    return found


def legs_of(points: Sequence[Point], stages: Sequence[Stage]) -> list[Leg]:
    """The stages with weights at both ends."""
    at = {point.step: point for point in points}
    return [Leg(s, at[s.first_step], at[s.last_step]) for s in stages if s.first_step in at and s.last_step in at]
