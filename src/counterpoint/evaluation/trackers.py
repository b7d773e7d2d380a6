"""What ``report_to`` names gets of a whole run: steps counted over all stages, and the held-out scores."""

import copy
from collections.abc import Sequence
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

from counterpoint.evaluation.scoring import DomainScore


class RunTracking(TrainerCallback):
    """Makes the trackers of one stage's trainer part of the run's.

    Scores that come before training wait for it: a tracker is set up when training begins.

    Args:
        trainer: any ``transformers.Trainer``, to whose callbacks this is to be added.
        offset: steps of the run before the stage's first one.
    """

    def __init__(self, trainer: Any, offset: int = 0) -> None:
        self.trainer = trainer
        self._listening = False
        self._waiting: list[dict[str, float]] = []
        kinds = tuple(INTEGRATION_TO_CALLBACK.values())
        self._trackers: list[Any] = [item for item in trainer.callback_handler.callbacks if isinstance(item, kinds)]
        for tracker in self._trackers:
            tracker.on_log = _counted_from(tracker.on_log, offset)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Sends what has waited."""
        self._listening = True
        for logs in self._waiting:
            self._send(logs)
        self._waiting = []

    def scored(self, scores: Sequence[DomainScore]) -> None:
        """Sends an evaluation as ``eval_held_out/DOMAIN``, with ``.../greedy`` and ``.../metrics/NAME``, if any."""
        logs = {f"eval_held_out/{score.domain}": score.mean for score in scores}
        logs |= {f"eval_held_out/{score.domain}/greedy": score.greedy for score in scores if score.greedy is not None}
        logs |= {
            f"eval_held_out/{score.domain}/metrics/{name}": value
            for score in scores
            for name, value in score.metrics.items()
            if value is not None
        }
        if self._listening:
            self._send(logs)
        else:
            self._waiting.append(logs)

    def _send(self, logs: dict[str, float]) -> None:
        trainer = self.trainer
        for tracker in self._trackers:
            tracker.on_log(trainer.args, trainer.state, trainer.control, logs=dict(logs), model=trainer.model)


def _counted_from(on_log: Any, offset: int) -> Any:
    def counted(args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> Any:
        state = copy.copy(state)
        state.global_step += offset
        return on_log(args, state, control, **kwargs)

    return counted


def tracking_of(trainer: Any) -> RunTracking | None:
    """The tracking that was added to ``trainer``."""
    return next((item for item in trainer.callback_handler.callbacks if isinstance(item, RunTracking)), None)
