"""Recover: reads what a run lost, tries to bring it back, and leaves the better checkpoint with its evidence.

Source: rollback and refresh after LPT (arXiv 2606.02398); the order, and the rule that decides, are ours.
"""

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from counterpoint.checkpoints import open_checkpoint, write_checkpoint
from counterpoint.errors import RunError
from counterpoint.progress import Progress, silent
from counterpoint.recovery.recovering.attempts import Attempts, attempt_of, plain
from counterpoint.recovery.recovering.fallen import fallen_domains
from counterpoint.recovery.recovering.plan import nothing_fell, plan_sentences
from counterpoint.recovery.recovering.results import Attempt, Fallen, Recover, RecoverOptions
from counterpoint.recovery.recovering.words import attempt_sentence, end_sentence
from counterpoint.recovery.results import write_result
from counterpoint.runs import Reporter, RunDirectory
from counterpoint.runs.records import AnyObject, read_as


def plan_recovery(run: str | Path, options: RecoverOptions | None = None) -> Recover:
    """What ``recover`` would do, in ``plan``; nothing is loaded, written or trained.

    Raises:
        RunError: no run, one that is not finished, or one without evaluations.
    """
    opened, options = RunDirectory.open(Path(run).resolve(), write=False), options or RecoverOptions()
    fallen, rest = fallen_domains(opened)
    plan = plan_sentences(opened, fallen, rest, options) if fallen else (nothing_fell(rest),)
    return Recover(str(opened.path), options, tuple(fallen), plan)


def recover(
    run: str | Path,
    options: RecoverOptions | None = None,
    *,
    reporter: Reporter | None = None,
    on_progress: Progress = silent,
) -> Recover:
    """Brings the fallen domains of a finished run back, the worst first, and leaves ``RUN/recovery/checkpoint``.

    Every domain gets a rollback, and a refresh where that is not enough; both start from the same checkpoint. Of those
    that bring it up and harm no other, the one with the best mean over all domains is kept. All of it is told by
    ``RUN/recovery/recover.json``. Repeating the call goes on where it was stopped, and returns what was finished.

    Args:
        run: a run directory.
        options: of both attempts.
        reporter: hears of training and of every step of the way.
        on_progress: called with what is being done, steps done and in total.

    Raises:
        RunError: no run, one that is not finished, or a recovery with other options in it.
        Interrupted: the user stopped a refresh; repeating the call goes on.
    """
    reporter = reporter or Reporter()
    found = plan_recovery(run, options)
    for sentence in found.plan:
        reporter.message(sentence)
    with RunDirectory.open(found.run) as opened:
        file = opened.path / "recovery" / "recover.json"
        kept = _kept(file, found)
        if kept is not None:
            reporter.message(f"Finished before: {file}")
            return replace(found, **kept)
        if not found.fallen:
            found = replace(found, finished=True, sentences=found.plan)
            write_result(file, "recover", found)
            return found
        return _Work(opened, file, found, reporter, on_progress).run()


class _Work:
    """The attempts, one after another, each one on disk before the next begins."""

    def __init__(
        self, run: RunDirectory, file: Path, found: Recover, reporter: Reporter, on_progress: Progress
    ) -> None:
        self.run_, self.file, self.found, self.reporter = run, file, found, reporter
        self.on_progress = on_progress
        self.attempts = Attempts(run.path, found.options, reporter, on_progress, reporter.message)
        self.began = time.monotonic()

    def run(self) -> Recover:
        self._write()
        start = str(self.run_.checkpoint_path(self.found.fallen[0].to_step))
        chosen: list[Attempt] = []
        for one in self.found.fallen:
            best = self._recover(one, chosen[-1].checkpoint or start if chosen else start)
            if best is not None:
                chosen.append(best)
        checkpoint = self._keep(chosen[-1]) if chosen else None
        self.found = replace(
            self.found,
            chosen=chosen[-1].kind if chosen else "none",
            checkpoint=checkpoint,
            sentences=(*self.found.sentences, end_sentence(self.found.fallen, self.found.attempts, chosen, checkpoint)),
            finished=True,
        )
        self._write()
        self.reporter.message(self.found.sentences[-1])
        return self.found

    def _recover(self, one: Fallen, start: str) -> Attempt | None:
        """The attempts for one domain; the better one, or None."""
        own: list[Attempt] = []
        if one.checkpoint is not None:
            own.append(self._done(one, self.attempts.rollback(one, start)))
        done = bool(own) and (own[-1].nothing or (own[-1].back and own[-1].helped))
        if self.found.options.both or not done:
            own.append(self._done(one, self.attempts.refresh(one, start)))
        return better(own)

    def _done(self, one: Fallen, attempt: Attempt) -> Attempt:
        self.found = replace(
            self.found,
            attempts=(*self.found.attempts, attempt),
            sentences=(*self.found.sentences, attempt_sentence(one, attempt)),
        )
        self._write()
        self.reporter.message(self.found.sentences[-1])
        return attempt

    def _keep(self, attempt: Attempt) -> str:
        """A copy of the model alone, adapters merged: the attempts' folders may be deleted afterwards."""
        assert attempt.checkpoint is not None, "only attempts with one are chosen"
        out = self.file.parent / "checkpoint"
        if not out.is_dir():
            source = open_checkpoint(attempt.checkpoint)
            write_checkpoint(out, source, source.tensor, self.on_progress)
        return str(out)

    def _write(self) -> None:
        self.found = replace(self.found, seconds=time.monotonic() - self.began)
        write_result(self.file, "recover", self.found)


def better(attempts: Sequence[Attempt]) -> Attempt | None:
    """Of those that helped and harmed no other domain, the one with the best mean over all; None where none did."""
    return max((one for one in attempts if one.helped), key=lambda one: one.average, default=None)


def _kept(file: Path, found: Recover) -> dict[str, Any] | None:
    """What an earlier call found, where it was finished; its attempts and sentences as they are in the file.

    Raises:
        RunError: it had other options, or the run has been trained on since.
    """
    if not file.is_file():
        return None
    remedy = f"Move {file.parent} away and repeat the command."
    asked = plain(found.options), [(one.domain, one.to_step) for one in found.fallen]
    if read_as(file, AnyObject, remedy, _asked) != asked:
        raise RunError(
            f"{file}: holds a recovery with other options or of another state of the run. Repeat the first command, or "
            f"move {file.parent} away to begin again."
        )
    return read_as(file, AnyObject, remedy, _result)


def _asked(data: dict[str, Any]) -> tuple[dict[str, Any], list[tuple[str, int]]]:
    return data["options"], [(one["domain"], one["to_step"]) for one in data["fallen"]]


def _result(data: dict[str, Any]) -> dict[str, Any] | None:
    if not data["finished"]:
        return None
    return {
        "attempts": tuple(attempt_of(fields) for fields in data["attempts"]),
        "finished": True,
        "chosen": data["chosen"],
        "checkpoint": data["checkpoint"],
        "sentences": tuple(data["sentences"]),
        "seconds": data["seconds"],
    }
