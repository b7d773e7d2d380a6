"""A whole run: stages of training with evaluations between them, written so that a kill loses at most one step."""

import functools
from collections.abc import Callable
from pathlib import Path

from counterpoint.config import Config, load_config
from counterpoint.errors import RunError
from counterpoint.evaluation import DomainScore, EvaluationPlan, evaluate
from counterpoint.launch import Launch
from counterpoint.models import load_model
from counterpoint.runs import Bystander, RunDirectory
from counterpoint.runs.seals import check_config
from counterpoint.training.course import Course, Planned
from counterpoint.training.execution import Execution, Interrupted, OnCheckpoint, ignore_checkpoint
from counterpoint.training.interrupt import sigterm_as_ctrl_c
from counterpoint.training.preflight import Plan, needed_bytes, plan_run
from counterpoint.training.refreshing import Refreshing, RefreshPlan
from counterpoint.training.reporter import Reporter, Silent
from counterpoint.training.settings import grpo_config
from counterpoint.training.watching import Watched

__all__ = ["Interrupted", "evaluate_model", "resume", "train"]


def train(
    config: Config,
    name: str,
    reporter: Reporter | None = None,
    *,
    refresh: RefreshPlan | None = None,
    on_checkpoint: OnCheckpoint = ignore_checkpoint,
) -> RunDirectory:
    """Trains as configured and leaves a run directory.

    On several ranks (``torchrun``, ``accelerate launch``) every rank calls it and the first one writes the run.

    Args:
        config: a checked configuration.
        name: the run's name where the configuration gives none.
        reporter: hears of progress.
        refresh: end early, by its rule; the configuration must have one stage. It is kept in ``run.json``.
        on_checkpoint: called on the first rank with the step and the folder of every checkpoint.

    Raises:
        CounterpointError: anything wrong with configuration, data, model or rewards; before training where it can be
            known.
        Interrupted: the user pressed Ctrl-C; everything up to the last whole step is saved.
    """
    plan = plan_run(config)
    path = Path(config.run.dir) / (config.run.name or name)
    facts = {} if refresh is None else {"refresh": refresh.to_json()}
    opening = functools.partial(RunDirectory.create, path, config, needed_bytes(plan), facts)
    return _execute(plan, path, opening, reporter, refresh, on_checkpoint)


def resume(
    path: Path, reporter: Reporter | None = None, *, on_checkpoint: OnCheckpoint = ignore_checkpoint
) -> RunDirectory:
    """Continues the run at ``path`` from its last whole checkpoint, with the numbers of one never interrupted.

    A newer checkpoint that is damaged is skipped, with a message.

    Raises:
        RunError: no run there, another process is writing it, it was trained by another number of ranks, no checkpoint
            is whole, or a file of the run is not what it was.
    """
    opened = RunDirectory.open(path, write=False)
    if "seal" in opened.state:
        check_config(opened.path, opened.state["seal"])
    plan = plan_run(load_config(opened.config_path))
    stored = opened.state.get("refresh")
    refresh = None if stored is None else RefreshPlan.from_json(stored)
    return _execute(plan, path, lambda: RunDirectory.open(path), reporter, refresh, on_checkpoint)


def _execute(
    plan: Plan,
    path: Path,
    opening: Callable[[], RunDirectory],
    reporter: Reporter | None,
    refresh: RefreshPlan | None,
    on_checkpoint: OnCheckpoint,
) -> RunDirectory:
    """The run from where it stands to its end; the first rank opens it for writing, the others write nothing."""
    launch, opened = Launch.join(), []
    launch.share(lambda: opened.append(opening()))
    with sigterm_as_ctrl_c(), opened[0] if opened else Bystander(path) as run:
        return Execution(plan, run, launch, reporter or Silent(), _course(plan, refresh), on_checkpoint).execute()


def _course(plan: Plan, refresh: RefreshPlan | None) -> Course:
    if refresh is not None:
        if len(plan.stages) != 1:
            raise RunError(f"A refresh is one stage, and the configuration has {len(plan.stages)}. Give one domain.")
        return Refreshing(plan.stages[0], refresh)
    return Watched(plan.stages, plan.config.recovery) if plan.config.recovery.watch else Planned(plan.stages)


def evaluate_model(config: Config, reporter: Reporter | None = None) -> list[DomainScore]:
    """Scores the configuration's model on the held-out rows of its domains, without training.

    On several ranks each evaluates a part of the prompts, and all return the same scores.
    """
    reporter = reporter or Silent()
    plan = plan_run(config)
    args = grpo_config(config, "unused")
    model = load_model(config.model).to(args.device)
    return evaluate(
        model,
        plan.tokenizer,
        plan.domains,
        EvaluationPlan.of_config(config, args.max_completion_length),
        lambda domain, done, total: reporter.evaluating("eval", domain, done, total),
        Launch.join(),
    )
