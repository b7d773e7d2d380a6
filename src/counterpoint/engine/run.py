"""A whole run: stage after stage as its policy says, evaluated, recorded, and taken up again after a kill."""

import functools
import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from counterpoint.config import Config, load_config
from counterpoint.disk import disk_errors
from counterpoint.engine.prepare import (
    Plan,
    build_trainer,
    continued_checkpoint,
    free_memory,
    needed_bytes,
    plan_run,
)
from counterpoint.engine.stages import History, InOrder, Policy, Refreshing, RefreshPlan, Watched
from counterpoint.errors import RunError
from counterpoint.evaluation import DomainScore
from counterpoint.evaluation.history import Evaluations, with_look
from counterpoint.launch import Launch
from counterpoint.runs import Bystander, Reporter, RunDirectory, write_text
from counterpoint.runs.resuming import resume_point
from counterpoint.runs.seals import check_config
from counterpoint.runs.stages import Stage
from counterpoint.training.metrics import no_signal
from counterpoint.training.recording import (
    AtEnd,
    CheckpointMover,
    Evaluator,
    GramWriter,
    Interrupt,
    MetricsWriter,
    Stopper,
    once_placed,
    sigterm_as_ctrl_c,
)
from counterpoint.training.state import read_numbers
from counterpoint.training.trainer import DomainGRPOTrainer


class Interrupted(KeyboardInterrupt):
    """The user stopped the run; it is saved and can be resumed from ``run``."""

    def __init__(self, run: RunDirectory) -> None:
        super().__init__(str(run.path))
        self.run = run


def train(
    config: Config,
    name: str,
    reporter: Reporter | None = None,
    *,
    refresh: RefreshPlan | None = None,
) -> RunDirectory:
    """Trains as configured and leaves a run directory.

    On several ranks (``torchrun``, ``accelerate launch``) every rank calls it and the first one writes the run.

    Args:
        config: a checked configuration.
        name: the run's name where the configuration gives none.
        reporter: hears of progress.
        refresh: end early, by its rule; the configuration must have one stage. It is kept in ``run.json``.

    Raises:
        CounterpointError: anything wrong with configuration, data, model or rewards; before training where it can be
            known.
        Interrupted: the user pressed Ctrl-C; everything up to the last whole step is saved.
    """
    plan = plan_run(config)
    path = Path(config.run.dir) / (config.run.name or name)
    facts = {} if refresh is None else {"refresh": refresh.to_json()}
    opening = functools.partial(RunDirectory.create, path, config, needed_bytes(plan), facts)
    return _execute(plan, path, opening, reporter, refresh)


LONGER = ("training.max_steps", "training.num_train_epochs", "strategy.order", "strategy.steps")
"""Keys that make a finished run longer."""


def resume(
    path: Path,
    reporter: Reporter | None = None,
    *,
    longer: Sequence[str] = (),
) -> RunDirectory:
    """Continues the run at ``path`` from its last whole checkpoint, with the numbers of one never interrupted.

    A newer checkpoint that is damaged is skipped, with a message.

    Args:
        path: the run directory.
        reporter: hears of progress.
        longer: ``KEY=VALUE`` of the keys in ``LONGER``: a finished run goes on, along the learning-rate schedule of the
            longer one.

    Raises:
        RunError: no run there, another process is writing it, it was trained by another number of ranks, no checkpoint
            is whole, a file of the run is not what it was, or it cannot be made longer so.
    """
    opened = RunDirectory.open(path, write=False)
    if "seal" in opened.state:
        check_config(opened.path, opened.state["seal"])
    for setting in longer:
        if setting.partition("=")[0].strip() not in LONGER:
            raise RunError(
                f"--set {setting}: a run that has started keeps its settings. Of a finished one "
                f"{', '.join(LONGER)} may change. Start a new run for anything else."
            )
    plan = plan_run(load_config(opened.config_path, longer))
    stored = opened.state.get("refresh")
    refresh = None if stored is None else RefreshPlan.from_json(stored)

    def opening() -> RunDirectory:
        run = RunDirectory.open(path)
        if longer:
            _lengthen(run, plan)
        return run

    return _execute(plan, path, opening, reporter, refresh)


def _lengthen(run: RunDirectory, plan: Plan) -> None:
    """Lets the finished ``run`` go on as ``plan`` says, whose stages must begin with those that it has."""
    state = run.state
    entries = sorted(state["stages"], key=lambda entry: int(entry["last_step"]))
    if state["status"] != "done" or not entries or "refresh" in state or plan.config.recovery.watch:
        raise RunError(
            f"{run.path}: only a finished run without refreshes can be made longer; it is {state['status']}."
        )
    *whole, last = [Stage.from_json(i, entry) for i, entry in enumerate(entries)]
    if plan.total_steps <= last.last_step:
        raise RunError(f"{run.path}: it has {last.last_step} steps already. Give more than that.")
    planned = plan.stages[: len(entries)]
    goes_on = len(planned) == len(entries) and planned[-1].last_step >= last.last_step
    if not goes_on or [*planned[:-1], planned[-1].ended_at(last.last_step)] != [*whole, last]:
        raise RunError(
            f"{run.path}: the new settings do not begin with the stages that are trained. Give more steps, or append "
            "domains to strategy.order, with strategy.steps as it was."
        )
    write_text(run.config_path, plan.config.to_yaml())
    kept = entries if planned[-1] == last else entries[:-1]
    run.update(status="running", stages=kept, seal=run.seal(last.last_step))


def _execute(
    plan: Plan,
    path: Path,
    opening: Callable[[], RunDirectory],
    reporter: Reporter | None,
    refresh: RefreshPlan | None,
) -> RunDirectory:
    """The run from where it stands to its end; the first rank opens it for writing, the others write nothing."""
    launch, opened = Launch.join(), []
    launch.share(lambda: opened.append(opening()))
    with sigterm_as_ctrl_c(), opened[0] if opened else Bystander(path) as run:
        return _Execution(plan, run, launch, reporter or Reporter(), _policy(plan, refresh)).execute()


def _policy(plan: Plan, refresh: RefreshPlan | None) -> Policy:
    if refresh is not None:
        if len(plan.stages) != 1:
            raise RunError(f"A refresh is one stage, and the configuration has {len(plan.stages)}. Give one domain.")
        return Refreshing(plan.stages[0], refresh)
    return Watched(plan.stages, plan.config.recovery) if plan.config.recovery.watch else InOrder(plan.stages)


class _Execution:
    """A run from where it stands to its end; ``execute`` is called once, on every rank."""

    def __init__(
        self,
        plan: Plan,
        run: RunDirectory,
        launch: Launch,
        reporter: Reporter,
        policy: Policy,
    ) -> None:
        self.plan, self.run, self.launch, self.reporter = plan, run, launch, reporter
        self.policy = policy
        self.config = plan.config
        self.evaluations = Evaluations(plan.config, plan.domains, plan.tokenizer, run, launch, reporter)
        self.start = launch.share(lambda: resume_point(run))
        self.done_steps = self.start.step
        self.done: tuple[Stage, ...] = ()
        self._stopping = False

    def execute(self) -> RunDirectory:
        """Every stage that the policy asks for.

        Raises:
            Interrupted: the user asked for it; everything is saved.
        """
        self.launch.share(self._check_ranks)
        self.done = self.launch.share(self._take_up)
        self._announce()
        status = "failed"
        try:
            while (stage := self._next()) is not None:
                if self._stopping:
                    raise Interrupted(self.run)
                self._run_stage(stage)
            if self.launch.first:
                self._close()
            status = "done"
        except KeyboardInterrupt:
            status = "interrupted"
            raise Interrupted(self.run) from None
        finally:
            self.run.finish(status)
            if status == "failed" and (checkpoints := self.run.checkpoints()):
                self.reporter.message(f"The last whole checkpoint is {checkpoints[-1][1]}")
        return self.run

    def _next(self) -> Stage | None:
        """The next stage. What ends it early is asked on the first rank alone, and does not travel to the others."""
        own: list[Stage | None] = []

        def ask() -> Stage | None:
            own.append(self.policy.next(self._history()))
            return own[0] and replace(own[0], stop_when=None)

        shared = self.launch.share(ask)
        return own[0] if own else shared

    def _history(self) -> History:
        """What is done and recorded; for the first rank."""
        return History(self.done, self.evaluations.looks())

    def _check_ranks(self) -> None:
        """Refuses to go on with another number of ranks before any model is loaded."""
        if self.done_steps:
            read_numbers(self.run.checkpoint_path(self.done_steps), self.launch.size)

    def _take_up(self) -> tuple[Stage, ...]:
        """The stages that ended before the start; what a killed run wrote after it is forgotten and written again."""
        self.start.forget_later(self.run)
        self.run.clear_unfinished()
        entries = sorted(self.run.state["stages"], key=lambda entry: entry["last_step"])
        looks = self.evaluations.looks()
        whole = list(itertools.takewhile(lambda entry: self.done_steps >= entry["last_step"] in looks, entries))
        self.run.update(stages=whole, seal=self.run.seal(self.done_steps))
        return tuple(Stage.from_json(i, entry) for i, entry in enumerate(whole))

    def _announce(self) -> None:
        rows = {domain.name: vars(domain.summary) for domain in self.plan.domains}
        self.run.update(status="running", steps=self.policy.total(self.done), rows=rows)
        self.run.add_environment(ranks=self.launch.size)
        for sentence in self.start.skipped:
            self.reporter.message(sentence)
        if not self.done_steps:
            for domain in self.plan.domains:
                self.reporter.message(f"{domain.name}: {domain.summary}")

    def _close(self) -> None:
        self.run.clear_unfinished()
        entries, said = self.policy.closing(self._history())
        silent = no_signal(self.run.lines("metrics.jsonl"))
        news = silent if silent != self.run.state.get("no_signal") else None  # a finished run that is resumed told it
        self.run.update(steps=self.done_steps, **entries, **({"no_signal": silent} if silent else {}))
        for sentence in (said, news):
            if sentence:
                self.reporter.message(sentence)

    # One stage

    def _run_stage(self, stage: Stage) -> None:
        if self._stopped_at(stage, self.done_steps):  # it ended here before the run was killed
            stage = stage.ended_at(self.done_steps)
        finished = stage.last_step <= self.done_steps
        if not (finished and self.evaluations.has(stage.last_step)):
            worked = self._work(stage, finished)
            free_memory()  # trainer and callbacks hold each other, so only a collection ends them
            if worked is None:
                return
            stage = worked
        self.done = (*self.done, stage)
        self._record_stages()

    def _work(self, stage: Stage, finished: bool) -> Stage | None:
        """Trains and evaluates, and returns the stage as it became; None where nothing was to be done."""
        start = stage.last_step if finished else stage.first_step
        trainer = build_trainer(self.plan, self.run, stage, self.run.checkpoint_path(start) if start else None)
        self.evaluations.remind(trainer)
        if stage.first_step == 0 and self.config.evaluation.before and not self.evaluations.has(0):
            once_placed(trainer, lambda: self.evaluations.take(trainer, "before", 0, None))
            if reason := self._stopped_at(stage, 0):
                self.reporter.message(reason)
                return None
        if not finished:
            stage = self._train(trainer, stage)
        elif not self.evaluations.has(stage.last_step):
            self._evaluate_end(trainer, stage)
        return stage

    def _evaluate_end(self, trainer: DomainGRPOTrainer, stage: Stage) -> None:
        scores = self.evaluations.make(trainer, "after")
        self.launch.share(lambda: self._write_last(scores, stage))

    def _stopped_at(self, stage: Stage, step: int) -> str | None:
        """Why ``stage`` ends after ``step``, from what is recorded."""
        return self.launch.share(lambda: stage.why_ended(step, self.evaluations.looks()))

    def _write_last(self, scores: list[DomainScore], stage: Stage) -> None:
        """Writes the evaluation at the end of ``stage``, which is the run's last one where no stage follows."""
        looks = with_look(self.evaluations.looks(), stage.last_step, scores)
        after = self.policy.next(History((*self.done, stage), looks))
        self.evaluations.write(scores, "stage" if after else "after", stage.last_step, stage.index)

    def _look(self, trainer: DomainGRPOTrainer, stage: Stage, step: int) -> bool:
        """Evaluates in the middle of a stage, and says whether it ends here."""
        scores = self.evaluations.make(trainer, "during")

        def judge() -> str | None:
            reason = stage.why_ended(step, with_look(self.evaluations.looks(), step, scores))
            if reason is None:
                self.evaluations.write(scores, "during", step, None)
            else:
                self._write_last(scores, stage.ended_at(step))
                self.reporter.message(reason)
            return reason

        return self.launch.share(judge) is not None

    def _train(self, trainer: DomainGRPOTrainer, stage: Stage) -> Stage:
        """Trains to the end of the stage, which may be an early one, and returns the stage as it became."""
        ended: list[int] = []

        def look(step: int) -> bool:
            ends = self._look(trainer, stage, step)
            if ends:
                ended.append(step)
            return ends

        def finish() -> None:
            interrupt.release()  # no step is left to end: a signal stops the evaluation
            if not ended and trainer.state.global_step >= stage.num_steps:
                self._evaluate_end(trainer, stage)

        AtEnd(finish).add_to(trainer)
        for callback in self._callbacks(trainer, stage, look):
            trainer.add_callback(callback)
        checkpoint = self._checkpoint_of(stage)
        with Interrupt(self._on_interrupt) as interrupt, disk_errors(self.run.path, around_other_work=True):
            trainer.add_callback(Stopper(interrupt, self.launch))
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        if interrupt.requested and not ended and trainer.state.global_step < stage.num_steps:
            raise Interrupted(self.run)
        self._stopping = interrupt.requested
        stage = stage.ended_at(ended[0]) if ended else stage
        self.done_steps = stage.last_step
        return stage

    def _on_interrupt(self) -> None:
        self.reporter.message("Stopping after this step, with a checkpoint. Press Ctrl-C again to stop at once.")

    def _checkpoint_of(self, stage: Stage) -> Path | None:
        """Where training of ``stage`` is taken up: after a kill, or after a refresh that interrupted it."""
        if self.done_steps > stage.first_step:
            return self.run.checkpoint_path(self.done_steps)
        if stage.taken:
            stopped = next(part.last_step for part in reversed(self.done) if part.kind == "train")
            return continued_checkpoint(self.run, stage, stopped, self.launch)
        return None

    def _callbacks(self, trainer: DomainGRPOTrainer, stage: Stage, look: Callable[[int], bool]) -> list[Any]:
        kept = {part.last_step for part in (*self.done, stage)}
        every = self.config.evaluation.every
        return [
            GramWriter(self.run, stage, trainer, self.config.run.grams_every),
            Evaluator(lambda step: bool(every and step % every == 0) or stage.looks_at(step), stage, look),
            MetricsWriter(self.run, stage, self.policy.total((*self.done, stage)), self.reporter),
            CheckpointMover(self.run, stage, self.config.run.keep, kept, self.launch),
        ]

    def _record_stages(self) -> None:
        if not self.launch.first:
            return
        entries = [self.run.stage_entry(part) for part in self.done]
        last = self.done[-1].last_step
        self.run.update(stages=entries, steps=self.policy.total(self.done), seal=self.run.seal(last))
