"""Recover: reads what a run lost, tries to bring it back, and leaves the better checkpoint with its evidence.

Source: rollback and refresh after LPT (arXiv 2606.02398); the order, and the rule that decides, are ours.
"""

import math
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar

from counterpoint.checkpoints import open_checkpoint, write_checkpoint
from counterpoint.config import Config
from counterpoint.diagnosis.subject import config_of, wanted_domains
from counterpoint.errors import CounterpointError, RunError, first_line, nearest
from counterpoint.models import is_out_of_memory
from counterpoint.progress import Progress, silent
from counterpoint.recovery import _words
from counterpoint.recovery._rollback_result import MODEL, RESULT, Rollback, RollbackOptions
from counterpoint.recovery.refresh import Refresh, RefreshOptions, refresh
from counterpoint.recovery.rollback import BUDGETS, rollback
from counterpoint.results import Result
from counterpoint.runs import Reporter, RunDirectory
from counterpoint.runs.run import LEVEL, Run, Since
from counterpoint.stats import Estimate, Harm, difference_interval, mean_interval
from counterpoint.tables import Table

WAYS = ("auto", "rollback", "refresh", "both")
FILE = "recover.json"


@dataclass(frozen=True)
class RecoverOptions:
    """``how`` is ``rollback``, ``refresh``, ``both``, or ``auto``: a refresh where the rollback is not enough."""

    how: str = "auto"
    rollback: RollbackOptions = field(default_factory=RollbackOptions)
    refresh: RefreshOptions = field(default_factory=RefreshOptions)

    def __post_init__(self) -> None:
        if self.how not in WAYS:
            raise CounterpointError(f"how={self.how!r}: there is no such way; {nearest(self.how, WAYS)}")


@dataclass(frozen=True)
class Fallen:
    """A domain that fell after its own stage, which ended at ``from_step``; ``to_step`` is the end of the run.

    ``change`` is paired by prompt, its interval simultaneous over all comparisons of the run; ``since`` names the
    domains trained in between. ``checkpoint`` is the one right after its stage, None where it was not kept.
    """

    domain: str
    from_step: int
    to_step: int
    since: tuple[str, ...]
    former: Estimate
    now: Estimate
    change: Estimate
    checkpoint: str | None


@dataclass(frozen=True)
class Attempt:
    """One rollback or refresh of ``domain`` from the checkpoint ``start``; ``folder`` has its own result.

    ``outcome`` is the domain's standing (``back``, ``improved``, ``not proven``, ``fell``), or ``nothing`` to recover,
    ``none`` where nothing helped on training prompts, or ``failed``: then ``reason`` says why. ``scores`` and
    ``changes`` are those on the held-out prompts, the changes against ``start``.
    """

    kind: str
    domain: str
    start: str
    folder: str
    outcome: str
    reason: str = ""
    checkpoint: str | None = None
    scores: Mapping[str, Estimate] = field(default_factory=dict)
    changes: Mapping[str, Estimate] = field(default_factory=dict)
    others: Mapping[str, Harm] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def name(self) -> str:
        """``rollback of math``."""
        return f"{self.kind} of {self.domain}"

    @property
    def helped(self) -> bool:
        """Whether there is a checkpoint in which the domain rose beyond noise and no other domain was harmed."""
        rose = self.outcome in ("back", "improved")
        return self.checkpoint is not None and rose and "harmed" not in self.others.values()

    @property
    def average(self) -> float:
        """Mean over all domains of the scores afterwards."""
        return sum(score.value for score in self.scores.values()) / len(self.scores)


@dataclass(frozen=True)
class Recover(Result):
    """What fell, what was tried, and the checkpoint that was left; ``plan`` says so in words beforehand.

    ``chosen`` names the attempts that were built on, as ``rollback of math``; ``checkpoint`` is what the last one left.
    """

    kind: ClassVar[str] = "recover"
    run: str
    options: RecoverOptions
    domains: tuple[str, ...]
    fallen: tuple[Fallen, ...] = ()
    plan: tuple[str, ...] = ()
    attempts: tuple[Attempt, ...] = ()
    chosen: tuple[str, ...] = ()
    checkpoint: str | None = None
    finished: bool = False
    seconds: float = 0.0

    def tables(self) -> list[Table]:
        """What fell, and every attempt with the changes of all domains."""
        forms = {"former": ".3f", "now": ".3f", "change": "+.3f"}
        fell = [
            (one.domain, f"{one.from_step} to {one.to_step}", one.former, one.now, one.change) for one in self.fallen
        ]
        title = "Fell after its own stage: held-out reward [95 %, changes corrected for all comparisons]"
        tables = [Table(title, ("domain", "steps", *forms), tuple(fell), forms)]
        measured = [one for one in self.attempts if one.changes]
        if measured:
            names = list(measured[0].changes)
            rows = [
                (
                    f"{one.name}{' (kept)' if one.name in self.chosen else ''}",
                    one.outcome,
                    *(one.changes.get(name) for name in names),
                )
                for one in measured
            ]
            note = "The choice between attempts is made on these prompts, and a refresh stops by them: the kept one's "
            columns = ("attempt", "outcome", *names)
            title = "Tried: change of held-out reward against the start [95 %]"
            tables.append(
                Table(title, columns, tuple(rows), dict.fromkeys(names, "+.3f"), note=f"{note}numbers flatter it.")
            )
        return tables if self.fallen or len(tables) == 1 else tables[1:]

    def sentences(self) -> Sequence[str]:
        """What every attempt came to, and what was left; the plan where nothing was done yet."""
        if not self.finished or not self.domains:
            return self.plan
        return [*(_sentence(one, self.options) for one in self.attempts), self._end()]

    def _end(self) -> str:
        chosen = [one for one in self.attempts if one.name in self.chosen]
        settled = {one.domain for one in chosen} | {one.domain for one in self.attempts if one.outcome == "nothing"}
        missed = ", ".join(name for name in self.domains if name not in settled)
        if not chosen:
            rest = (
                f"Nothing that was tried raises {missed} beyond noise without harm to another domain; the checkpoint "
            )
            return f"{rest}it began with stays the best one." if missed else "Nothing to recover."
        parts = []
        for outcome, said in (("back", "Recovered"), ("improved", "Improved, not back")):
            names = [f"{one.domain} by {one.kind}" for one in chosen if one.outcome == outcome]
            parts += [f"{said}: {', '.join(names)}."] if names else []
        parts += [f"Not recovered: {missed}."] if missed else []
        return f"{' '.join(parts)} The checkpoint is {self.checkpoint}."


def _sentence(one: Attempt, options: RecoverOptions) -> str:
    head = f"{one.name.capitalize()}: "
    if one.reason or not one.changes:
        return head + (one.reason or one.outcome)
    margin = options.rollback.margin if one.kind == "rollback" else options.refresh.margin
    said = "improved, but not proven" if one.outcome == "not proven" and one.changes[one.domain].value > 0 else ""
    said = said or _words.STANDINGS[one.outcome]
    gain = _words.change(one.changes[one.domain])
    return f"{head}{one.domain} {said}: {gain}. {_words.others(one.changes, one.others, margin)}".rstrip()


def plan_recovery(run: str | Path, domain: str | None = None, options: RecoverOptions | None = None) -> Recover:
    """What ``recover`` would do with a run, in ``plan``; nothing is loaded, written or trained.

    Raises:
        RunError: no run, one that is not finished, or one without evaluations.
        ConfigError: the run has no such domain.
    """
    options, opened = options or RecoverOptions(), Run.open(Path(run).resolve())
    if domain is not None:
        wanted_domains(config_of(opened.path), [domain])
    fallen, rest = fallen_domains(opened)
    fallen = [one for one in fallen if domain in (None, one.domain)]
    plan = [*(_fell(one) for one in fallen), *_own_collapses(opened), *_kept(rest, fallen, domain)]
    if len(fallen) > 1:
        order = ", then ".join(one.domain for one in fallen)
        plan.append(f"One after another, the worst first: {order}; each from what the last one left.")
    for one in fallen:
        plan += _ways(one.domain, one.checkpoint, options)
    return Recover(str(opened.path), options, tuple(one.domain for one in fallen), tuple(fallen), tuple(plan))


def fallen_domains(run: Run) -> tuple[list[Fallen], list[Since]]:
    """Those that fell beyond noise, corrected for all comparisons, the worst first; and those that did not."""
    if run.status != "done":
        raise RunError(
            f"{run.path}: the run is {run.status}, and only a finished one can be recovered. Finish it with "
            f"`counterpoint train --resume {run.path}`."
        )
    assert run.steps, "raises where nothing was evaluated"
    fell = sorted((one for one in run.at_the_end if one.fell), key=lambda one: one.change.value)
    return [_fallen(run, one) for one in fell], [one for one in run.at_the_end if not one.fell]


def _fallen(run: Run, one: Since) -> Fallen:
    own = run.checkpoint(one.first_step)
    return Fallen(
        domain=one.domain,
        from_step=one.first_step,
        to_step=one.last_step,
        since=one.since,
        former=mean_interval(run.known_scores(one.domain, one.first_step)),
        now=mean_interval(run.known_scores(one.domain, one.last_step)),
        change=one.corrected,
        checkpoint=None if own is None else str(own),
    )


def _fell(one: Fallen) -> str:
    return (
        f"{one.domain} fell from {_words.score(one.former)} after its stage (step {one.from_step}) to "
        f"{_words.score(one.now)} at the end (step {one.to_step}), after {', '.join(one.since)}: "
        f"{_words.change(one.change)}."
    )


def _own_collapses(run: Run) -> list[str]:
    """A domain that fell while it was trained itself: no later stage can have done it."""
    said = []
    for domain in run.domains:
        own = run.own_stage(domain)
        start = None if own is None else run.scores(domain, own.first_step)
        end = run.former(domain)
        if own is None or start is None or end is None:
            continue
        change = difference_interval(start, end, 1 - LEVEL / len(run.domains))
        if change.high >= 0:
            continue
        better = run.checkpoint(own.first_step)
        where = "there is no earlier better checkpoint but the base"
        if own.first_step:
            where = f"before that stage is {better or f'step {own.first_step}, whose checkpoint was not kept'}"
        said.append(
            f"{domain} fell in its own stage, {mean_interval(start).value:.3f} -> {mean_interval(end).value:.3f} "
            f"({_words.change(change)}); {where}. Train it again with a lower learning rate."
        )
    return said


def _kept(rest: Sequence[Since], fallen: Sequence[Fallen], domain: str | None) -> list[str]:
    listed = ", ".join(f"{one.domain} {_words.change(one.corrected)}" for one in rest if domain in (None, one.domain))
    if fallen:
        return [f"Not lost beyond noise: {listed}."] if listed else []
    if not listed:
        return [
            "Nothing to recover: no domain was trained before another one, so none can have fallen since its stage."
        ]
    return [f"Nothing to recover: no domain is seen to fall after its own stage ({listed})."]


def _ways(domain: str, checkpoint: str | None, options: RecoverOptions) -> list[str]:
    how, rolled, fresh = options.how, options.rollback, options.refresh
    said = []
    if how != "refresh" and checkpoint is None:
        said.append(f"No rollback of {domain}: the checkpoint after its own stage was not kept.")
    elif how != "refresh":
        sets = len(rolled.budgets or BUDGETS) * len(rolled.scales) + len(rolled.pull_backs)
        said.append(
            f"Rollback of {domain}, without training: {sets} ways to move weights back are tried on {rolled.prompts} "
            f"training prompts per domain x {rolled.samples}; the best are measured on the held-out ones."
        )
    if how != "rollback":
        when = f"If {domain} is not back then, refresh" if how == "auto" and checkpoint is not None else "Refresh"
        said.append(
            f"{when} of {domain}: at most {fresh.steps} steps, with up to {1 + math.ceil(fresh.steps / fresh.every)} "
            "evaluations of all domains."
        )
    return said


def recover(
    run: str | Path,
    domain: str | None = None,
    *,
    before: str | Path | None = None,
    after: str | Path | None = None,
    out: str | Path | None = None,
    options: RecoverOptions | None = None,
    reporter: Reporter | None = None,
    on_progress: Progress = silent,
) -> Recover:
    """Brings back what a finished run lost, the worst domain first, and leaves ``RUN/recovery/checkpoint``.

    Every domain gets a rollback, and a refresh where that is not enough; both start from the same checkpoint. An
    attempt that fails is noted and the next one is made. Of those that raise the domain beyond noise and harm no other,
    the one with the best mean over all domains is kept. Repeating the call goes on where it was stopped, and returns
    what was finished.

    Checkpoints of elsewhere: ``recover(config, "math", before=..., after=..., out=...)``.

    Args:
        run: a run directory; with ``after``, a configuration or run that defines the domains and training settings.
        domain: the one to bring back; None means every domain that fell.
        before: the checkpoint right after the domain's own stage.
        after: the later checkpoint that may have lost it.
        out: the folder for everything; ``RUN/recovery``, or ``recovery-DOMAIN``, where it is None.
        options: of both attempts.
        reporter: hears of training and of every step of the way.
        on_progress: called with what is being done, steps done and in total.

    Raises:
        RunError: no run, one that is not finished, or a recovery with other options in its folder.
        CounterpointError: ``after`` without ``domain`` or ``before``.
        Interrupted: the user stopped a refresh; repeating the call goes on.
    """
    reporter, options = reporter or Reporter(), options or RecoverOptions()
    if after is None and before is None:
        found = plan_recovery(run, domain, options)
        for sentence in found.plan:
            reporter.message(sentence)
        with RunDirectory.open(found.run) as opened:
            folder = opened.path / "recovery" if out is None else Path(out)
            if not found.domains:
                return replace(found, finished=True)
            start = str(opened.checkpoint_path(found.fallen[0].to_step))
            sources = {one.domain: one.checkpoint for one in found.fallen}
            return _Work(found, opened.path, sources, None, folder, reporter, on_progress).run(start)
    if after is None or before is None or domain is None:
        raise CounterpointError(
            "recover: checkpoints of elsewhere need domain, before (after the domain's own stage) and after (later). "
            "Give all three, or a run alone."
        )
    config = config_of(Path(run))
    wanted_domains(config, [domain])
    places = {"before": _words.place(before), "after": _words.place(after)}
    found = Recover(str(run), options, (domain,), plan=tuple(_ways(domain, places["before"], options)))
    folder = Path(f"recovery-{domain}" if out is None else out)
    work = _Work(found, config, {domain: places["before"]}, places["before"], folder, reporter, on_progress)
    return work.run(places["after"])


class _Work:
    """The attempts, one after another; what is measured is on disk before the next begins."""

    def __init__(
        self,
        found: Recover,
        config: Path | Config,
        sources: Mapping[str, str | None],
        before: str | None,
        folder: Path,
        reporter: Reporter,
        on_progress: Progress,
    ) -> None:
        self.found, self.config, self.sources, self.before, self.folder = found, config, sources, before, folder
        self.reporter, self.on_progress = reporter, on_progress
        self.file, self.began = folder / FILE, time.monotonic()

    def run(self, start: str) -> Recover:
        """Everything, or what was finished before."""
        if self.file.is_file() and (kept := self._earlier(start)).finished:
            self.reporter.message(f"Finished before: {self.file}")
            return kept
        attempts: list[Attempt] = []
        chosen: list[Attempt] = []
        for domain in self.found.domains:
            best = self._domain(domain, chosen[-1].checkpoint or start if chosen else start, attempts)
            chosen += [] if best is None else [best]
        checkpoint = self._keep(chosen[-1]) if chosen else None
        names = tuple(one.name for one in chosen)
        found = self._sum(attempts, chosen=names, checkpoint=checkpoint, finished=True)
        self._write(found)
        self.reporter.message(found.sentences()[-1])
        return found

    def _earlier(self, start: str) -> Recover:
        kept = _words.read(Recover, self.file)
        same = (kept.options, kept.domains, kept.fallen) == (self.found.options, self.found.domains, self.found.fallen)
        if not same or any(one.start != start for one in kept.attempts[:1]):
            raise _words.TakenError(
                f"{self.file}: holds a recovery with other options or of another state, and nothing is overwritten. "
                f"Repeat the first command, or move {self.folder} away to begin again."
            )
        return kept

    def _sum(self, attempts: Sequence[Attempt], **fields: object) -> Recover:
        return replace(self.found, attempts=tuple(attempts), seconds=time.monotonic() - self.began, **fields)  # type: ignore[arg-type]

    def _write(self, found: Recover) -> None:
        """Not before anything was measured: a recovery that failed altogether may be tried with other options."""
        if any(one.outcome != "failed" for one in found.attempts):
            _words.write(self.file, found)

    def _domain(self, domain: str, start: str, attempts: list[Attempt]) -> Attempt | None:
        """The attempts for one domain; the better one, or None."""
        own: list[Attempt] = []
        how, source = self.found.options.how, self.sources[domain]
        if how != "refresh" and source is not None:
            folder = self.folder / f"rollback-{domain}"
            own.append(
                self._try("rollback", domain, start, folder, lambda: self._rollback(domain, source, start, folder))
            )
        enough = bool(own) and (own[-1].outcome == "nothing" or (own[-1].outcome == "back" and own[-1].helped))
        if how in ("refresh", "both") or (how == "auto" and not enough):
            folder = self.folder / f"refresh-{domain}"
            own.append(self._try("refresh", domain, start, folder, lambda: self._refresh(domain, start, folder)))
        attempts += own
        self._write(self._sum(attempts))
        return better(own)

    def _try(self, kind: str, domain: str, start: str, folder: Path, work: Callable[[], Attempt]) -> Attempt:
        """An attempt, or why it failed: then the next one is made."""
        try:
            found = work()
        except (CounterpointError, RuntimeError, MemoryError) as error:
            is_ours = isinstance(error, CounterpointError) and not isinstance(error, _words.TakenError)
            if not is_ours and not is_out_of_memory(error):
                raise
            reason = str(error) if is_ours else f"memory ran out ({first_line(error)})"
            found = Attempt(kind, domain, start, str(folder), "failed", f"failed: {reason}")
        self.reporter.message(_sentence(found, self.found.options))
        return found

    def _rollback(self, domain: str, before: str, start: str, folder: Path) -> Attempt:
        if not (folder / RESULT).is_file():
            shutil.rmtree(folder / MODEL, ignore_errors=True)  # killed between the checkpoint and its result
        options = self.found.options.rollback
        found = rollback(before, start, domain, self.config, out=folder, options=options, on_progress=self.on_progress)
        return _of_rollback(found, start, folder)

    def _refresh(self, domain: str, start: str, folder: Path) -> Attempt:
        options = self.found.options.refresh
        found = refresh(
            start, domain, self.config, out=folder, before=self.before, options=options, reporter=self.reporter
        )
        return _of_refresh(found, start, folder)

    def _keep(self, attempt: Attempt) -> str:
        """A copy of the model alone, adapters merged: the attempts' folders may be deleted afterwards."""
        assert attempt.checkpoint is not None, "only attempts with one are chosen"
        out = self.folder / MODEL
        if not out.is_dir():
            source = open_checkpoint(attempt.checkpoint)
            write_checkpoint(out, source, source.tensor, self.on_progress)
        return str(out)


def better(attempts: Sequence[Attempt]) -> Attempt | None:
    """Of those that helped, the one with the best mean over all domains; None where none did."""
    return max((one for one in attempts if one.helped), key=lambda one: one.average, default=None)


def _of_rollback(found: Rollback, start: str, folder: Path) -> Attempt:
    """The candidate that was written, else the one that chose best on training prompts."""
    shown = next((one for one in found.judged if one.name == found.written), None) or next(iter(found.judged), None)
    if shown is None:
        outcome = "nothing" if found.nothing else "none"
        reason = " ".join(found.sentences())
        return Attempt("rollback", found.domain, start, str(folder), outcome, reason, seconds=found.seconds)
    row = found.of(shown.name)
    reason = "" if found.written != "none" else " ".join(found.sentences())
    return Attempt(
        "rollback", found.domain, start, str(folder), shown.standing.verdict, reason, found.checkpoint,
        row.scores, row.changes, shown.others, found.seconds,
    )  # fmt: skip


def _of_refresh(found: Refresh, start: str, folder: Path) -> Attempt:
    if found.standing is None:
        reason = " ".join(found.sentences())
        return Attempt("refresh", found.domain, start, str(folder), "nothing", reason, seconds=found.seconds)
    others = dict(found.others) | ({found.harmed: "harmed"} if found.harmed else {})
    return Attempt(
        "refresh", found.domain, start, str(folder), found.standing.verdict, "", found.checkpoint,
        found.evaluations[-1].scores, found.changes, others, found.seconds,
    )  # fmt: skip
