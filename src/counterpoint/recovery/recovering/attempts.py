"""One rollback or one refresh of a run's domain; what was finished before is read and not done again."""

import dataclasses
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from counterpoint.engine import Reporter
from counterpoint.errors import RunError
from counterpoint.progress import Progress
from counterpoint.recovery.recovering.results import Attempt, Fallen, RecoverOptions
from counterpoint.recovery.refreshing.analysis import refresh
from counterpoint.recovery.rolling_back.analysis import rollback
from counterpoint.runs.records import AnyObject, read_as
from counterpoint.stats import Estimate

T = TypeVar("T")

Tell = Callable[[str], None]


@dataclass(frozen=True)
class Attempts:
    """Tries things in ``run / recovery``."""

    run: Path
    options: RecoverOptions
    reporter: Reporter | None
    on_progress: Progress
    tell: Tell

    def rollback(self, one: Fallen, start: str) -> Attempt:
        """A rollback of the domain from ``start`` towards the checkpoint after its own stage."""
        assert one.checkpoint is not None, "the caller has looked"
        folder = self.run / "recovery" / f"rollback-{one.domain}"
        file, out = folder / "rollback.json", folder / "checkpoint"
        if not self._finished(file, start):
            shutil.rmtree(out, ignore_errors=True)  # written by a kill between the checkpoint and its result
            rollback(
                one.checkpoint,
                start,
                one.domain,
                self.run,
                out=out,
                options=self.options.rollback,
                save=file,
                on_progress=self.on_progress,
            )
        else:
            self.tell(f"The rollback for {one.domain} was finished before.")
        return _read(file, lambda found: _rollback_attempt(found, one, start, folder, file))

    def refresh(self, one: Fallen, start: str) -> Attempt:
        """A refresh of the domain from ``start``; one that was stopped goes on."""
        folder = self.run / "recovery" / f"refresh-{one.domain}"
        refresh(
            start,
            one.domain,
            self.run,
            out=folder,
            options=self.options.refresh,
            reporter=self.reporter,
        )
        file = folder / "recovery" / "refresh.json"
        return _read(file, lambda found: _refresh_attempt(found, one, start, folder, file))

    def _finished(self, file: Path, start: str) -> bool:
        """Whether there is the result of an earlier rollback from ``start``.

        Raises:
            RunError: one with other options or from another checkpoint is there.
        """
        if not file.is_file():
            return False
        if not _read(file, lambda found: found["after"] == start and found["options"] == plain(self.options.rollback)):
            raise RunError(
                f"{file}: holds a rollback with other options or from another checkpoint. Move {self.run / 'recovery'} "
                "away to begin again, or repeat the first command."
            )
        return True


def _rollback_attempt(found: Mapping[str, Any], one: Fallen, start: str, folder: Path, file: Path) -> Attempt:
    rows = {row["name"]: row for row in found["reported"] if row["name"] != "random"}
    row = rows.get("rollback") if found["checkpoint"] else None
    scores = {} if row is None else _estimates(row["scores"])
    changes = {} if row is None else _estimates(row["changes"])
    whole = not found["tried"]
    return _attempt("rollback", found, one, start, folder, file, scores, changes, whole)


def _refresh_attempt(found: Mapping[str, Any], one: Fallen, start: str, folder: Path, file: Path) -> Attempt:
    done = found["checkpoint"] is not None
    scores = _estimates(found["evaluations"][-1]["scores"]) if done else {}
    changes = _estimates(found["changes"]) if done else {}
    return _attempt("refresh", found, one, start, folder, file, scores, changes, found["stopped"] == "nothing")


def _attempt(
    kind: str,
    found: Mapping[str, Any],
    one: Fallen,
    start: str,
    folder: Path,
    file: Path,
    scores: dict[str, Estimate],
    changes: dict[str, Estimate],
    nothing: bool,
) -> Attempt:
    harmed = tuple(name for name, change in changes.items() if name != one.domain and change.high < 0)
    return Attempt(
        kind=kind,
        domain=one.domain,
        start=start,
        folder=str(folder),
        file=str(file),
        checkpoint=found["checkpoint"],
        scores=scores,
        changes=changes,
        back=bool(scores) and scores[one.domain].value >= one.former.low,
        harmed=harmed,
        nothing=nothing,
        seconds=found["seconds"],
        verdict=found["verdict"],
    )


def _read(file: Path, build: Callable[[dict[str, Any]], T]) -> T:
    return read_as(file, AnyObject, "Move it away and repeat the command.", build)


def _estimates(values: Mapping[str, Mapping[str, float]]) -> dict[str, Estimate]:
    return {name: Estimate(**value) for name, value in values.items()}


def attempt_of(fields: Mapping[str, Any]) -> Attempt:
    """The attempt that a ``recover.json`` holds."""
    values = {"scores": _estimates(fields["scores"]), "changes": _estimates(fields["changes"])}
    return Attempt(**{**fields, **values, "harmed": tuple(fields["harmed"])})


def plain(options: Any) -> dict[str, Any]:
    """Options as JSON would give them back."""
    found: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(options)))
    return found
