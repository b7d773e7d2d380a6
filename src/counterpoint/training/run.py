"""A whole run: stages of training with evaluations between them, written so that a kill loses at most one step."""

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from transformers.trainer_callback import PrinterCallback

from counterpoint.config import Config, load_config
from counterpoint.evaluation import DomainScore, EvaluationPlan, Sampling, evaluate
from counterpoint.launch import Launch
from counterpoint.models import load_model, lora_config
from counterpoint.runs import Bystander, RunDirectory
from counterpoint.training.callbacks import AtStart, CheckpointMover, Evaluator, GramWriter, MetricsWriter, Stopper
from counterpoint.training.disk import explain_disk_errors
from counterpoint.training.grams import GramRecorder
from counterpoint.training.interrupt import Interrupt
from counterpoint.training.preflight import Plan, needed_bytes, plan_run, strategy_spec
from counterpoint.training.reporter import Reporter, Silent
from counterpoint.training.settings import grpo_config, output_dir
from counterpoint.training.stages import Stage
from counterpoint.training.support import check_checkpoints
from counterpoint.training.trainer import DomainGRPOTrainer
from counterpoint.training.trainer_state import read_numbers


class Interrupted(KeyboardInterrupt):
    """The user stopped the run; it is saved and can be resumed from ``run``."""

    def __init__(self, run: RunDirectory) -> None:
        super().__init__(str(run.path))
        self.run = run


def train(config: Config, name: str, reporter: Reporter | None = None) -> RunDirectory:
    """Trains as configured and leaves a run directory.

    On several ranks (``torchrun``, ``accelerate launch``) every rank calls it and the first one writes the run.

    Args:
        config: a checked configuration.
        name: the run's name where the configuration gives none.
        reporter: hears of progress.

    Raises:
        CounterpointError: anything wrong with configuration, data, model or rewards; before training where it can be
            known.
        Interrupted: the user pressed Ctrl-C; everything up to the last whole step is saved.
    """
    plan = plan_run(config)
    launch = Launch.join()
    path = Path(config.run.dir) / (config.run.name or name)
    with _first_opens(launch, path, lambda: RunDirectory.create(path, config, needed_bytes(plan))) as run:
        return _Run(plan, run, launch, reporter or Silent()).execute()


def resume(path: Path, reporter: Reporter | None = None) -> RunDirectory:
    """Continues the run at ``path`` from its last whole checkpoint, with the numbers of one never interrupted.

    Raises:
        RunError: no run there, another process is writing it, or it was trained by another number of ranks.
    """
    plan = plan_run(load_config(RunDirectory.open(path, write=False).config_path))
    launch = Launch.join()
    with _first_opens(launch, path, lambda: RunDirectory.open(path)) as run:
        return _Run(plan, run, launch, reporter or Silent()).execute()


def _first_opens(launch: Launch, path: Path, opening: Callable[[], RunDirectory]) -> RunDirectory:
    """The run, opened for writing on the first rank; the others get a view that writes nothing."""
    opened: list[RunDirectory] = []
    launch.share(lambda: opened.append(opening()))
    return opened[0] if opened else Bystander(path)


def evaluation_plan(config: Config, max_new_tokens: int | None) -> EvaluationPlan:
    """How a run's domains are evaluated; ``max_new_tokens`` is used where the configuration gives none."""
    settings = config.evaluation
    return EvaluationPlan(
        samples=settings.samples,
        greedy=settings.greedy,
        examples=config.run.samples,
        sampling=Sampling(
            temperature=settings.temperature,
            top_p=settings.top_p,
            max_new_tokens=settings.max_new_tokens or max_new_tokens or Sampling.max_new_tokens,
            batch_size=settings.batch_size,
            seed=settings.seed,
        ),
    )


class _Run:
    def __init__(self, plan: Plan, run: RunDirectory, launch: Launch, reporter: Reporter) -> None:
        self.plan, self.run, self.launch, self.reporter = plan, run, launch, reporter
        self.config = plan.config
        self.recorder: GramRecorder | None = None
        self.done_steps = launch.share(lambda: max((step for step, _ in run.checkpoints()), default=0))

    def execute(self) -> RunDirectory:
        self.launch.share(self._check_ranks)
        self._announce()
        self.launch.share(self._forget_unfinished)
        status = "failed"
        try:
            for stage in self.plan.stages:
                self._run_stage(stage)
            if self.launch.first:
                shutil.rmtree(output_dir(self.run), ignore_errors=True)
            status = "done"
        except KeyboardInterrupt:
            status = "interrupted"
            raise Interrupted(self.run) from None
        finally:
            self.run.finish(status)
            if status == "failed":
                self._say_what_is_left()
        return self.run

    def _check_ranks(self) -> None:
        """Refuses to go on with another number of ranks before any model is loaded."""
        if self.done_steps:
            read_numbers(self.run.checkpoint_path(self.done_steps), self.launch.size)

    def _announce(self) -> None:
        rows = {domain.name: vars(domain.summary) for domain in self.plan.domains}
        self.run.update(status="running", steps=self.plan.total_steps, rows=rows)
        self.run.add_environment(ranks=self.launch.size)
        if not self.done_steps:
            for domain in self.plan.domains:
                self.reporter.message(f"{domain.name}: {domain.summary}")

    def _say_what_is_left(self) -> None:
        if checkpoints := self.run.checkpoints():
            self.reporter.message(f"The last whole checkpoint is {checkpoints[-1][1]}")

    def _forget_unfinished(self) -> None:
        """Drops what a killed run wrote after its last whole checkpoint; it will be written again."""
        self.run.truncate_after(self.done_steps)
        whole = self._whole_evaluations()
        for name in ("evals.jsonl", "samples.jsonl"):
            self.run.keep_lines(name, lambda line: (line["when"], line["step"]) in whole)
        self.recorder = GramRecorder(
            self.run.path / "grams.safetensors", tuple(d.name for d in self.plan.domains), self.config.strategy.label
        )
        self.recorder.truncate_after(self.done_steps)
        shutil.rmtree(output_dir(self.run), ignore_errors=True)

    def _run_stage(self, stage: Stage) -> None:
        when = "after" if stage is self.plan.stages[-1] else "stage"
        finished = stage.last_step <= self.done_steps
        if finished and self._is_evaluated(when, stage.last_step):
            return
        trainer = self._build_trainer(stage)
        if stage.index == 0 and self.config.evaluation.before and not self._is_evaluated("before", 0):
            self._evaluate_before(trainer)
        if not finished:
            self._train_stage(trainer, stage)
        self._evaluate(trainer, when, stage.last_step, stage.index)
        self._record_stage(stage)

    def _evaluate_before(self, trainer: DomainGRPOTrainer) -> None:
        """FSDP2 puts the model on its devices when training starts, so there the evaluation comes just after that."""
        if trainer.is_fsdp_enabled:
            trainer.add_callback(AtStart(lambda: self._evaluate(trainer, "before", 0, None)))
        else:
            self._evaluate(trainer, "before", 0, None)

    def _train_stage(self, trainer: DomainGRPOTrainer, stage: Stage) -> None:
        checkpoint = self.run.checkpoint_path(self.done_steps) if self.done_steps > stage.first_step else None
        with Interrupt(self._on_interrupt) as interrupt, explain_disk_errors(self.run.path):
            trainer.add_callback(Stopper(interrupt, self.launch))
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        if interrupt.requested and trainer.state.global_step < stage.num_steps:
            raise Interrupted(self.run)
        self.done_steps = stage.last_step

    def _on_interrupt(self) -> None:
        self.reporter.message("Stopping after this step, with a checkpoint. Press Ctrl-C again to stop at once.")

    def _build_trainer(self, stage: Stage) -> DomainGRPOTrainer:
        domains = [domain for domain in self.plan.domains if domain.name in stage.domains]
        args = grpo_config(self.config, output_dir(self.run), stage.num_steps)
        args.reward_weights = [reward.weight for domain in domains for reward in domain.rewards]
        finished = stage.last_step <= self.done_steps
        start_step = stage.last_step if finished else stage.first_step
        start = self.run.checkpoint_path(start_step) if start_step else None
        trainer = DomainGRPOTrainer(
            load_model(self.config.model, start),
            {domain.name: {reward.name: reward.function for reward in domain.rewards} for domain in domains},
            args,
            {domain.name: domain.train for domain in domains},
            strategy=strategy_spec(self.config),
            shares={domain.name: domain.share for domain in domains},
            share_rule=self.config.share_rule,
            grams_every=self.config.run.grams_every,
            buffers=self.config.surgery.buffers,
            processing_class=self.plan.tokenizer,
            peft_config=lora_config(self.config.model) if start is None else None,
        )
        check_checkpoints(trainer.accelerator)
        trainer.remove_callback(PrinterCallback)
        for callback in self._callbacks(trainer, stage):
            trainer.add_callback(callback)
        return trainer

    def _callbacks(self, trainer: DomainGRPOTrainer, stage: Stage) -> list[Any]:
        stage_ends = {s.last_step for s in self.plan.stages}
        return [
            GramWriter(self.recorder, stage, trainer),
            Evaluator(self.config.evaluation.every, stage, lambda step: self._evaluate(trainer, "during", step, None)),
            MetricsWriter(self.run, stage, self.plan.total_steps, self.reporter),
            CheckpointMover(self.run, stage, self.config.run.keep, stage_ends, self.launch),
        ]

    def _is_evaluated(self, when: str, step: int) -> bool:
        return self.launch.share(lambda: (when, step) in self._whole_evaluations())

    def _whole_evaluations(self) -> set[tuple[str, int]]:
        """The evaluations of which every domain was written; a kill can leave one with some."""
        domains: dict[tuple[str, int], set[str]] = {}
        for line in self.run.lines("evals.jsonl"):
            domains.setdefault((line["when"], line["step"]), set()).add(line["domain"])
        return {key for key, names in domains.items() if names >= {domain.name for domain in self.plan.domains}}

    def _evaluate(self, trainer: DomainGRPOTrainer, when: str, step: int, stage: int | None) -> None:
        model = trainer.accelerator.unwrap_model(trainer.model)
        scores = evaluate(
            model,
            self.plan.tokenizer,
            self.plan.domains,
            evaluation_plan(self.config, trainer.max_completion_length),
            lambda domain, done, total: self.reporter.evaluating(when, domain, done, total),
            self.launch,
        )
        if self.launch.first:
            self._write_scores(scores, when, step, stage)
            self.reporter.evaluated(when, step, scores)

    def _write_scores(self, scores: Sequence[DomainScore], when: str, step: int, stage: int | None) -> None:
        self.run.append_samples(
            [
                {"step": step, "when": when, "domain": score.domain} | vars(sample)
                for score in scores
                for sample in score.examples
            ]
        )
        for score in scores:
            self.run.append_eval({"step": step, "when": when, "stage": stage} | score.to_json())

    def _record_stage(self, stage: Stage) -> None:
        if not self.launch.first:
            return
        stages = [s for s in self.run.state["stages"] if s["last_step"] != stage.last_step]
        checkpoint = self.run.checkpoint_path(stage.last_step).relative_to(self.run.path)
        stages.append(
            {
                "domains": list(stage.domains),
                "first_step": stage.first_step,
                "last_step": stage.last_step,
                "checkpoint": str(checkpoint),
            }
        )
        self.run.update(stages=stages)


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
        evaluation_plan(config, args.max_completion_length),
        lambda domain, done, total: reporter.evaluating("eval", domain, done, total),
        Launch.join(),
    )
