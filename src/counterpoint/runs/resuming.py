"""Where a run is taken up again: its newest whole checkpoint, beside files of the run that are as they were then."""

import contextlib
import functools
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from counterpoint.errors import RunError
from counterpoint.runs import RunDirectory
from counterpoint.runs.seals import CONFIG, check_checkpoint, check_seal, cut_to, empty_seal

Check = Callable[[int], Mapping[str, Any]]


@dataclass(frozen=True)
class ResumePoint:
    """``step`` is 0 where there is no checkpoint yet; ``skipped`` says of newer ones what is wrong with them."""

    step: int
    seal: Mapping[str, Any]
    skipped: tuple[str, ...]

    def forget_later(self, run: RunDirectory) -> None:
        """Removes what the run wrote after this point; it will be written again."""
        cut_to(run.path, self.seal)
        for step, folder in run.checkpoint_folders():
            if step > self.step:
                shutil.rmtree(folder)


def resume_point(run: RunDirectory) -> ResumePoint:
    """The point from which ``run`` goes on with the numbers of one that was never interrupted.

    Raises:
        RunError: there are checkpoints and none is whole, or a file of the run is not what it was.
    """
    state = run.state
    whole = functools.cache(lambda step: check_checkpoint(run.checkpoint_path(step), step))
    skipped = []
    for step, _ in reversed(run.checkpoint_folders()):
        try:
            manifest = _usable(step, state["stages"], whole)
        except RunError as error:
            skipped.append(f"Checkpoint step-{step} is skipped. {error}")
            continue
        seal = _newer(state.get("seal"), manifest["run"])
        _check_files(run, step, seal, whole)
        return ResumePoint(step, seal, tuple(skipped))
    if skipped:
        raise RunError(
            f"{run.path}: none of its checkpoints is whole, so it cannot go on with the same numbers. "
            f"{' '.join(skipped)} Restore one from a copy, or remove {run.path / 'checkpoints'} to begin from step 0."
        )
    return ResumePoint(0, _first_seal(run, state.get("seal")), ())


def _first_seal(run: RunDirectory, stored: Mapping[str, Any] | None) -> Mapping[str, Any]:
    """That of the evaluation before training, where it is there; what is lost so early is simply made again."""
    if stored is not None and stored["step"] == 0:
        with contextlib.suppress(RunError):
            check_seal(run.path, stored)
            return stored
    first = empty_seal(stored)
    check_seal(run.path, first)
    return first


def _usable(step: int, stages: list[Mapping[str, Any]], whole: Check) -> Mapping[str, Any]:
    """The manifest of a checkpoint; it and those that its stage began or was interrupted at are whole."""
    manifest = whole(step)
    ended = [entry for entry in stages if entry["last_step"] <= step]
    trained = [entry for entry in ended if entry.get("kind", "train") == "train"]
    for entries in (ended, trained):
        if entries:
            whole(max(entry["last_step"] for entry in entries))
    if manifest["removed"] and step not in {entry["last_step"] for entry in stages}:
        raise RunError(f"{', '.join(manifest['removed'])} was removed when the run was done.")
    return manifest


def _newer(stored: Mapping[str, Any] | None, of_checkpoint: Mapping[str, Any]) -> Mapping[str, Any]:
    """The evaluation at the end of a stage comes after its checkpoint, and ``run.json`` knows of it.

    It alone knows the configuration of a run that was made longer since.
    """
    if stored is None or stored["step"] == of_checkpoint["step"]:
        return stored or of_checkpoint
    config = {name: part for name, part in stored["files"].items() if name == CONFIG}
    return {**of_checkpoint, "files": {**of_checkpoint["files"], **config}}


def _check_files(run: RunDirectory, step: int, seal: Mapping[str, Any], whole: Check) -> None:
    try:
        check_seal(run.path, seal)
    except RunError as error:
        older = next((at for at, _ in reversed(run.checkpoint_folders()) if at < step and _fits(run, at, whole)), 0)
        later = f"the checkpoints after step {older}" if older else str(run.path / "checkpoints")
        raise RunError(f"{error} Or remove {later} to go on from step {older}, with the same numbers.") from error


def _fits(run: RunDirectory, step: int, whole: Check) -> bool:
    try:
        check_seal(run.path, _usable(step, run.state["stages"], whole)["run"])
    except RunError:
        return False
    return True
