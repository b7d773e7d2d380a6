"""What a run does around TRL's loop: metrics, Grams, evaluations, whole checkpoints, stopping when asked."""

import contextlib
import math
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from counterpoint.launch import Launch
from counterpoint.runs import Reporter, RunDirectory
from counterpoint.runs.grams import gram_line
from counterpoint.runs.seals import move_folder, write_manifest
from counterpoint.runs.stages import Stage

_SUMMARY_KEY = "train_runtime"
"""Marks TRL's closing summary, which is no step."""


class MetricsWriter(TrainerCallback):
    """One line of ``metrics.jsonl`` per optimizer step, counted over all stages."""

    def __init__(self, run: RunDirectory, stage: Stage, total: int, reporter: Reporter) -> None:
        self.run, self.stage, self.total, self.reporter = run, stage, total, reporter

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Writes the step's metrics and shows them."""
        if not state.is_world_process_zero or not logs or _SUMMARY_KEY in logs:
            return
        step = self.stage.offset + state.global_step
        line = {"step": step, "time": time.time(), "stage": self.stage.index} | _clean(logs)
        self.run.append_metrics(line)
        self.reporter.training(step, self.total, line)


def _clean(logs: Mapping[str, Any]) -> dict[str, Any]:
    """Numbers only, NaN as null: JSON has no NaN."""
    return {
        key: None if isinstance(value, float) and not math.isfinite(value) else value
        for key, value in logs.items()
        if value is None or isinstance(value, int | float)
    }


class GramWriter(TrainerCallback):
    """One line of ``grams.jsonl`` for the first of every ``every`` steps of a stage."""

    def __init__(self, run: RunDirectory, stage: Stage, trainer: Any, every: int) -> None:
        self.run, self.stage, self.trainer, self.every = run, stage, trainer, every

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Appends the record that this step left, if it left one."""
        record = self.trainer.last_record
        if not state.is_world_process_zero or (state.global_step - 1) % self.every:
            return
        if record is not None and record.finite:
            groups, gram_GDD = record.regroup("module")
            step = self.stage.offset + state.global_step
            self.run.append_grams(gram_line(step, groups, record.domains, gram_GDD, record.groups, record.weights_GD))


class Evaluator(TrainerCallback):
    """Evaluates all domains where ``due`` says so, before the step's checkpoint is written.

    ``evaluate`` says whether the stage ends here; then a checkpoint is written and training stops.
    """

    def __init__(self, due: Callable[[int], bool], stage: Stage, evaluate: Callable[[int], bool]) -> None:
        self.due, self.stage, self.evaluate = due, stage, evaluate

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Evaluates where it is due; the last step of a stage is evaluated by the run itself."""
        step = self.stage.offset + state.global_step
        if step != self.stage.last_step and self.due(step) and self.evaluate(step):
            control.should_save = True
            control.should_training_stop = True


class AtStart(TrainerCallback):
    """Does something once the model is prepared and before the first step."""

    def __init__(self, action: Callable[[], object]) -> None:
        self.action = action

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Does it."""
        self.action()


class AtEnd(TrainerCallback):
    """Does something when training ends, while trackers still listen, on all ranks."""

    def __init__(self, action: Callable[[], object]) -> None:
        self.action = action

    def add_to(self, trainer: Any) -> None:
        """Ahead of the trackers, which close at the same event."""
        trainer.callback_handler.callbacks.insert(0, self)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Does it."""
        self.action()


def once_placed(trainer: Any, action: Callable[[], object]) -> None:
    """Does ``action`` with the model on its devices: now, or with FSDP2, which puts it there when training starts,
    just after that."""
    if trainer.is_fsdp_enabled:
        trainer.add_callback(AtStart(action))
    else:
        action()


class Stopper(TrainerCallback):
    """Ends training with a checkpoint at the end of the step in which the user asked any rank for it."""

    def __init__(self, interrupt: "Interrupt", launch: Launch) -> None:
        self.interrupt, self.launch = interrupt, launch

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Sets TRL's own flags, on all ranks at the same step."""
        if self.launch.any(self.interrupt.requested):
            self.interrupt.request()
            control.should_save = True
            control.should_training_stop = True


class CheckpointMover(TrainerCallback):
    """Gives a finished checkpoint of TRL its manifest, turns it into ``checkpoints/step-N`` by one rename once it has
    reached the disk, and removes old ones.
    """

    def __init__(
        self,
        run: RunDirectory,
        stage: Stage,
        keep: int | None,
        protected: set[int],
        launch: Launch,
    ) -> None:
        self.run, self.stage, self.keep, self.protected, self.launch = run, stage, keep, protected, launch

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Runs after TRL has written everything; a kill before the rename leaves the old checkpoints as they were."""
        self.launch.wait()  # every rank has its own part to write
        if self.launch.first:
            step = self.stage.offset + state.global_step
            source = Path(str(args.output_dir)) / f"checkpoint-{state.global_step}"
            self._move(source, self.run.checkpoint_path(step), step)
        self.launch.wait()

    def _move(self, source: Path, target: Path, step: int) -> None:
        if not source.exists():
            return
        write_manifest(source, step, self.run.seal(step))
        if target.exists():
            shutil.rmtree(target)
        target.parent.mkdir(parents=True, exist_ok=True)
        move_folder(source, target)
        self._prune()

    def _prune(self) -> None:
        if self.keep is None:
            return
        for step, path in self.run.checkpoints()[: -self.keep]:
            if step not in self.protected:
                shutil.rmtree(path)


# Stopping


class Interrupt:
    """A context in which SIGTERM and the first SIGINT are only remembered.

    A launcher that is stopped with Ctrl-C sends its ranks SIGTERM besides the terminal's SIGINT, so only a second
    SIGINT means that the user cannot wait. Outside the main thread nothing hears signals; only ``request`` works there.

    Args:
        on_request: called once, when the first signal arrives.
    """

    def __init__(self, on_request: Callable[[], None] = lambda: None) -> None:
        self.requested = False
        self._pressed = False
        self._on_request = on_request
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "Interrupt":
        if _hears_signals():
            for name in (signal.SIGINT, signal.SIGTERM):
                self._previous[name] = signal.signal(name, self._remember)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def release(self) -> None:
        """Lets signals do again what they did before; the context may end later."""
        for name, handler in self._previous.items():
            signal.signal(name, handler)
        self._previous = {}

    def request(self) -> None:
        """Remembers that training is to end, as a signal would."""
        if not self.requested:
            self.requested = True
            self._on_request()

    def _remember(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT:
            if self._pressed:
                raise KeyboardInterrupt
            self._pressed = True
        self.request()


def _hears_signals() -> bool:
    """Python lets only the main thread handle signals."""
    return threading.current_thread() is threading.main_thread()


@contextlib.contextmanager
def sigterm_as_ctrl_c() -> Iterator[None]:
    """Lets SIGTERM end what stands outside of training steps, an evaluation say, in order: by a KeyboardInterrupt.

    A second one is ignored. Outside the main thread nothing happens.
    """
    if not _hears_signals():
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)
