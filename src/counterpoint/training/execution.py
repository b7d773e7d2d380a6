"""One run on its way: stage after stage along its course, evaluated, recorded, and taken up again after a kill."""

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

from counterpoint.launch import Launch
from counterpoint.runs import RunDirectory
from counterpoint.training.callbacks import (
    CheckpointMover,
    Evaluator,
    GramWriter,
    MetricsWriter,
    Stopper,
    once_placed,
)
from counterpoint.training.course import Course, ended_at
from counterpoint.training.disk import explain_disk_errors
from counterpoint.training.evaluations import Evaluations, with_look
from counterpoint.training.interrupt import Interrupt
from counterpoint.training.metrics import no_signal
from counterpoint.training.preflight import Plan
from counterpoint.training.reporter import Reporter
from counterpoint.training.resuming import resume_point
from counterpoint.training.settings import clear_output
from counterpoint.training.stage_trainer import build_trainer, continued_checkpoint, free_memory
from counterpoint.training.stages import Stage
from counterpoint.training.state import read_numbers
from counterpoint.training.trainer import DomainGRPOTrainer

OnCheckpoint = Callable[[int, Path], None]
"""``(step, folder)`` of a checkpoint that was just written."""


class Interrupted(KeyboardInterrupt):
    """The user stopped the run; it is saved and can be resumed from ``run``."""

    def __init__(self, run: RunDirectory) -> None:
        super().__init__(str(run.path))
        self.run = run


def ignore_checkpoint(step: int, folder: Path) -> None:
    """Nobody waits for checkpoints."""


class Execution:
    """A run from where it stands to its end; ``execute`` is called once, on every rank."""

    def __init__(
        self,
        plan: Plan,
        run: RunDirectory,
        launch: Launch,
        reporter: Reporter,
        course: Course,
        on_checkpoint: OnCheckpoint = ignore_checkpoint,
    ) -> None:
        self.plan, self.run, self.launch, self.reporter = plan, run, launch, reporter
        self.course, self.on_checkpoint = course, on_checkpoint
        self.config = plan.config
        self.evaluations = Evaluations(plan, run, launch, reporter)
        self.start = launch.share(lambda: resume_point(run))
        self.done_steps = self.start.step
        self.done: list[Stage] = []
        self._stopping = False

    def execute(self) -> RunDirectory:
        """Every stage that the course asks for.

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
            if status == "failed":
                self._say_what_is_left()
        return self.run

    def _take_up(self) -> list[Stage]:
        """The stages that ended before the start; what a killed run wrote after it is forgotten and written again."""
        self.start.forget_later(self.run)
        clear_output(self.run)
        entries = sorted(self.run.state["stages"], key=lambda entry: entry["last_step"])
        looks = self.evaluations.looks()
        whole = list(itertools.takewhile(lambda entry: self.done_steps >= entry["last_step"] in looks, entries))
        self.run.update(stages=whole, seal=self.run.seal(self.done_steps))
        return [Stage.from_json(i, entry) for i, entry in enumerate(whole)]

    def _next(self) -> Stage | None:
        return self.launch.share(lambda: self.course.next(self.done, self.evaluations.looks()))

    def _check_ranks(self) -> None:
        """Refuses to go on with another number of ranks before any model is loaded."""
        if self.done_steps:
            read_numbers(self.run.checkpoint_path(self.done_steps), self.launch.size)

    def _announce(self) -> None:
        rows = {domain.name: vars(domain.summary) for domain in self.plan.domains}
        self.run.update(status="running", steps=self.course.total(self.done, None), rows=rows)
        self.run.add_environment(ranks=self.launch.size)
        for sentence in self.start.skipped:
            self.reporter.message(sentence)
        if not self.done_steps:
            for domain in self.plan.domains:
                self.reporter.message(f"{domain.name}: {domain.summary}")

    def _say_what_is_left(self) -> None:
        if checkpoints := self.run.checkpoints():
            self.reporter.message(f"The last whole checkpoint is {checkpoints[-1][1]}")

    def _close(self) -> None:
        clear_output(self.run)
        entries, said = self.course.closing(self.done, self.evaluations.looks())
        silent = no_signal(self.run.lines("metrics.jsonl"))
        news = silent if silent != self.run.state.get("no_signal") else None  # a finished run that is resumed told it
        self.run.update(steps=self.done_steps, **entries, **({"no_signal": silent} if silent else {}))
        for sentence in (said, news):
            if sentence:
                self.reporter.message(sentence)

    def _run_stage(self, stage: Stage) -> None:
        if self._reason(stage, self.done_steps):  # it ended here before the run was killed
            stage = ended_at(stage, self.done_steps)
        finished = stage.last_step <= self.done_steps
        if not (finished and self.evaluations.has(stage.last_step)):
            worked = self._work(stage, finished)
            free_memory()  # trainer and callbacks hold each other, so only a collection ends them
            if worked is None:
                return
            stage = worked
        self.done.append(stage)
        self._record_stages()

    def _work(self, stage: Stage, finished: bool) -> Stage | None:
        """Trains and evaluates, and returns the stage as it became; None where nothing was to be done."""
        trainer = self._trainer(stage, finished)
        if stage.first_step == 0 and self.config.evaluation.before and not self.evaluations.has(0):
            once_placed(trainer, lambda: self.evaluations.take(trainer, "before", 0, None))
            if reason := self._reason(stage, 0):
                self.reporter.message(reason)
                return None
        if not finished:
            stage = self._train_stage(trainer, stage)
        if not self.evaluations.has(stage.last_step):
            self._evaluate_end(trainer, stage)
        return stage

    def _reason(self, stage: Stage, step: int) -> str | None:
        """Why ``stage`` ends after ``step``, from what is recorded; None where it does not, or ends there anyway."""
        if not stage.first_step <= step < stage.last_step:
            return None
        return self.launch.share(lambda: self.course.ends(stage, step, self.done, self.evaluations.looks()))

    def _evaluate_within(self, trainer: DomainGRPOTrainer, stage: Stage, step: int) -> bool:
        """Evaluates in the middle of a stage, and says whether it ends here."""
        scores = self.evaluations.make(trainer, "during")

        def judge() -> str | None:
            looks = with_look(self.evaluations.looks(), step, scores)
            reason = self.course.ends(stage, step, self.done, looks)
            if reason is None:
                self.evaluations.write(scores, "during", step, None)
                return None
            after = self.course.next([*self.done, ended_at(stage, step)], looks)
            self.evaluations.write(scores, "stage" if after else "after", step, stage.index)
            self.reporter.message(reason)
            return reason

        return self.launch.share(judge) is not None

    def _evaluate_end(self, trainer: DomainGRPOTrainer, stage: Stage) -> None:
        scores = self.evaluations.make(trainer, "after")

        def write() -> None:
            looks = with_look(self.evaluations.looks(), stage.last_step, scores)
            after = self.course.next([*self.done, stage], looks)
            self.evaluations.write(scores, "stage" if after else "after", stage.last_step, stage.index)

        self.launch.share(write)

    def _train_stage(self, trainer: DomainGRPOTrainer, stage: Stage) -> Stage:
        """Trains to the end of the stage, which may be an early one, and returns the stage as it became."""
        ended: list[int] = []

        def look(step: int) -> bool:
            ends = self._evaluate_within(trainer, stage, step)
            if ends:
                ended.append(step)
            return ends

        for callback in self._callbacks(trainer, stage, look):
            trainer.add_callback(callback)
        checkpoint = self._checkpoint_of(stage)
        with Interrupt(self._on_interrupt) as interrupt, explain_disk_errors(self.run.path):
            trainer.add_callback(Stopper(interrupt, self.launch))
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        if interrupt.requested and not ended and trainer.state.global_step < stage.num_steps:
            raise Interrupted(self.run)
        self._stopping = interrupt.requested
        stage = ended_at(stage, ended[0]) if ended else stage
        self.done_steps = stage.last_step
        return stage

    def _looks_at(self, stage: Stage, step: int) -> bool:
        every = self.config.evaluation.every
        return bool(every and step % every == 0) or self.course.due(stage, step)

    def _checkpoint_of(self, stage: Stage) -> Path | None:
        """Where training of ``stage`` is taken up: after a kill, or after a refresh that interrupted it."""
        if self.done_steps > stage.first_step:
            return self.run.checkpoint_path(self.done_steps)
        if stage.taken:
            stopped = next(part.last_step for part in reversed(self.done) if part.kind == "train")
            return continued_checkpoint(self.run, stage, stopped, self.launch)
        return None

    def _on_interrupt(self) -> None:
        self.reporter.message("Stopping after this step, with a checkpoint. Press Ctrl-C again to stop at once.")

    def _trainer(self, stage: Stage, finished: bool) -> DomainGRPOTrainer:
        start = stage.last_step if finished else stage.first_step
        return build_trainer(self.plan, self.run, stage, self.run.checkpoint_path(start) if start else None)

    def _callbacks(self, trainer: DomainGRPOTrainer, stage: Stage, look: Callable[[int], bool]) -> list[Any]:
        kept = {part.last_step for part in (*self.done, stage)}
        return [
            GramWriter(self.run, stage, trainer, self.config.run.grams_every),
            Evaluator(lambda step: self._looks_at(stage, step), stage, look),
            MetricsWriter(self.run, stage, self.course.total(self.done, stage), self.reporter),
            CheckpointMover(self.run, stage, self.config.run.keep, kept, self.launch, self.on_checkpoint),
        ]

    def _record_stages(self) -> None:
        if not self.launch.first:
            return
        folders = [self.run.checkpoint_path(part.last_step).relative_to(self.run.path) for part in self.done]
        entries = [
            part.to_json() | {"checkpoint": str(folder)} for part, folder in zip(self.done, folders, strict=True)
        ]
        last = self.done[-1].last_step
        self.run.update(stages=entries, steps=self.course.total(self.done, None), seal=self.run.seal(last))
