"""A run directory for training from a script: what a run from a configuration leaves, for every command to read.

The rows of every domain are kept in the run (``data/DOMAIN.jsonl``, ``data/DOMAIN.held-out.jsonl``) and its
``config.yaml`` names them, with each reward by its place in a module: ``diagnose`` and ``recover`` sample and score in
another process.
"""

import dataclasses
import json
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeGuard

from trl import GRPOConfig

from counterpoint.config import Config, parse_config
from counterpoint.config.checks import plain_findings
from counterpoint.config.training_keys import refused_reason
from counterpoint.domains import Domain, LoadSummary, WeightedReward
from counterpoint.domains.domain_rewards import is_function, named_rewards
from counterpoint.errors import DomainError, RewardError, RunError
from counterpoint.evaluation.history import Evaluations
from counterpoint.evaluation.trackers import RunTracking
from counterpoint.launch import Launch
from counterpoint.rewards import REWARDS, Reward
from counterpoint.runs import Bystander, Reporter, RunDirectory, write_text
from counterpoint.runs.resuming import ResumePoint, resume_point
from counterpoint.runs.stages import Stage
from counterpoint.training.config import plain_curriculum, plain_strategy, total_steps
from counterpoint.training.metrics import no_signal
from counterpoint.training.recording import AtEnd, CheckpointMover, Evaluator, GramWriter, MetricsWriter, once_placed


class ScriptRun:
    """The run of one trainer, at ``path``.

    Args:
        path: the run directory; made when training starts, taken up where training is resumed.
        args: the trainer's settings. Those that a run needs are set: where TRL writes, a line for every step, and
            checkpoints that are kept by the run.

    Raises:
        RunError: a setting under which checkpoints would not stay in the run.
    """

    def __init__(self, path: str | Path, args: GRPOConfig) -> None:
        self.path = Path(path)
        if args.load_best_model_at_end:
            raise RunError("run=: load_best_model_at_end looks for checkpoints where the run has none. Leave it out.")
        args.output_dir = str(RunDirectory(self.path).trl_folder(0))
        args.run_name = args.run_name or self.path.name
        args.logging_strategy, args.logging_steps, args.logging_first_step = "steps", 1, True
        self.keep, args.save_total_limit = args.save_total_limit, None
        args.save_strategy = "steps"
        self._callbacks: list[Any] = []

    @contextmanager
    def recording(self, trainer: Any, resume: bool) -> Iterator[str | None]:
        """Around TRL's training: gives the checkpoint to go on from, writes the run, and says how it ended."""
        launch = Launch.join()
        steps = total_steps(trainer.args, sum(trainer.domain_rows.sizes.values()), trainer.shares)
        domains = _domains(trainer)
        stage = Stage(0, tuple(domain.name for domain in domains), 0, steps)
        config = _config(trainer, self.path, domains, self.keep)
        opened: list[RunDirectory] = []  # on the first rank

        def open_run() -> int:
            run, start = self._open(config, domains, resume)
            opened.append(run)
            return start.step

        step = launch.share(open_run)
        with opened[0] if opened else Bystander(self.path) as run:
            book = _Book(trainer, config, domains, stage, launch, run)
            status = "failed"
            try:
                if step < steps:
                    for old in self._callbacks:
                        trainer.remove_callback(old)
                    self._callbacks = book.callbacks(self.keep)
                    for callback in self._callbacks:
                        trainer.add_callback(callback)
                    self._callbacks.append(end := AtEnd(book.after))
                    end.add_to(trainer)
                    book.before(step)
                yield str(run.checkpoint_path(step)) if step else None
                book.close()
                status = "done"
            except KeyboardInterrupt:
                status = "interrupted"
                raise
            finally:
                run.finish(status)

    def _open(self, config: Config, domains: Sequence[Domain], resume: bool) -> tuple[RunDirectory, ResumePoint]:
        """The run and the point it goes on from; on the first rank alone."""
        if resume:
            run = RunDirectory.open(self.path)
            start = resume_point(run)
            start.forget_later(run)
            run.clear_unfinished()
            run.update(status="running", stages=[], seal=run.seal(start.step))
            return run, start
        RunDirectory(self.path).clear_unfinished()  # TRL's constructor has made its empty folder there
        run = RunDirectory.create(self.path, config)
        for domain in domains:
            for kind, rows in (("", domain.train), (".held-out", domain.evaluation)):
                text = "".join(json.dumps(row, default=str) + "\n" for row in rows)
                write_text(_data_file(self.path, domain.name, kind), text)
        run.update(rows={domain.name: vars(domain.summary) for domain in domains})
        return run, resume_point(run)


class _Book:
    """What is written around and during training; on other ranks than the first ``run`` takes it and writes nothing."""

    def __init__(
        self,
        trainer: Any,
        config: Config,
        domains: Sequence[Domain],
        stage: Stage,
        launch: Launch,
        run: RunDirectory,
    ) -> None:
        self.trainer, self.launch, self.run = trainer, launch, run
        self.config, self.stage, self._evaluated = config, stage, False
        self.evaluations = Evaluations(config, domains, trainer.processing_class, run, launch, Reporter())

    def before(self, step: int) -> None:
        """The evaluation of the untouched model, where it is not there yet."""
        self.evaluations.remind(self.trainer)
        if not step and not self.evaluations.has(0):
            once_placed(self.trainer, lambda: self._evaluate("before", 0, None))

    def callbacks(self, keep: int | None) -> list[Any]:
        """What writes the run during training."""
        every, run = self.config.evaluation.every, self.run
        return [
            GramWriter(run, self.stage, self.trainer, self.config.run.grams_every),
            Evaluator(lambda step: bool(every and step % every == 0), self.stage, self._look),
            MetricsWriter(run, self.stage, self.stage.last_step, Reporter()),
            CheckpointMover(run, self.stage, keep, {self.stage.last_step}, self.launch),
            RunTracking(self.trainer),
        ]

    def after(self) -> None:
        """The last evaluation, while trackers still listen."""
        self._evaluate("after", self.last_step, 0)
        self._evaluated = True

    @property
    def last_step(self) -> int:
        """Where training ended, which a callback of the user's may have done early."""
        return min(self.trainer.state.global_step, self.stage.last_step)

    def close(self) -> None:
        """Writes the stage, and a sentence where nothing taught anything."""
        if not self._evaluated:  # a finished run was resumed
            self.after()
        last = self.last_step
        if not self.launch.first:
            return
        self.run.clear_unfinished()
        silent = no_signal(self.run.lines("metrics.jsonl"))
        entry = self.run.stage_entry(self.stage.ended_at(last))
        self.run.update(
            stages=[entry], steps=last, seal=self.run.seal(last), **({"no_signal": silent} if silent else {})
        )
        if silent:
            warnings.warn(silent, UserWarning, stacklevel=2)

    def _look(self, step: int) -> bool:
        self._evaluate("during", step, None)
        return False

    def _evaluate(self, when: str, step: int, stage: int | None) -> None:
        self.evaluations.take(self.trainer, when, step, stage)


def check_script(reward_funcs: Any, eval_rows: Any, domains: Sequence[str]) -> None:
    """Refuses what a run could not be written of, before a model is loaded.

    Raises:
        DomainError: no held-out rows of some domain.
        RewardError: a reward that no other process could call.
    """
    if eval_rows is None or set(eval_rows.domains) != set(domains):
        missing = sorted(set(domains) - set(eval_rows.domains if eval_rows else ()))
        raise DomainError(
            f"run=: no held-out rows of {', '.join(missing)}. A run scores every domain before and after training: "
            "pass them as eval_dataset, rows that are not trained on."
        )
    for domain, name, reward in _named(reward_funcs, domains):
        if not is_function(reward):
            raise RewardError(
                f"run=: the reward {name!r} of {domain!r} is a model, and a run's evaluations call functions. Train "
                "without run=, or wrap the model in a function."
            )


def _named(reward_funcs: Any, domains: Sequence[str]) -> list[tuple[str, str, Any]]:
    by_domain = reward_funcs if isinstance(reward_funcs, Mapping) else dict.fromkeys(domains, reward_funcs)
    return [(domain, name, reward) for domain in domains for name, reward in named_rewards(by_domain[domain])]


def _domains(trainer: Any) -> list[Domain]:
    """The trainer's domains as a run has them."""
    named = _named(trainer.reward_sources, trainer.domains)
    weights = trainer.args.reward_weights or [1.0] * len(named)
    if len(weights) < len(named):  # one list of rewards for all domains
        weights = list(weights) * len(trainer.domains)
    rewards: dict[str, list[WeightedReward]] = {name: [] for name in trainer.domains}
    for (domain, name, function), weight in zip(named, weights, strict=True):
        rewards[domain].append(WeightedReward(name, weight, function))
    shares = trainer.shares
    found = []
    for name in trainer.domains:
        train = [{**row, "domain": name} for row in trainer.domain_rows.rows[name]]
        held_out = [{**row, "domain": name} for row in trainer.eval_rows.rows[name]]
        summary = LoadSummary(len(train), 0, 0, 0, 0, len(train), len(held_out))
        found.append(Domain(name, train, held_out, tuple(rewards[name]), shares[name], summary))
    return found


def _data_file(run: Path, domain: str, kind: str) -> Path:
    return run / "data" / f"{domain}{kind}.jsonl"


def _config(trainer: Any, path: Path, domains: Sequence[Domain], keep: int | None) -> Config:
    """The configuration of the run, from which other commands know its domains, its model and its settings."""
    args, own = trainer.args, getattr(trainer.args, "per_domain", None)
    every = int(args.eval_steps) if str(args.eval_strategy.value) == "steps" and args.eval_steps else None
    return parse_config(
        {
            "run": {
                "name": path.name,
                "dir": str(path.parent),
                "seed": args.seed,
                "save_every": max(1, int(args.save_steps)),
                "keep": keep,
                "grams_every": trainer.grams_every,
                "device": "cpu" if args.use_cpu else "auto",
            },
            "model": _model(trainer),
            "strategy": _strategy(trainer.strategy),
            "balance": getattr(args, "balance", "none"),
            "schedule": getattr(args, "schedule", None),
            "curriculum": plain_curriculum(getattr(args, "curriculum", None)),
            "training": _training(args),
            "evaluation": {"every": every, "prompts": max(len(domain.evaluation) for domain in domains)},
            "domains": {domain.name: _domain(domain, (own or {}).get(domain.name, {})) for domain in domains},
        }
    )


def _domain(domain: Domain, training: Mapping[str, Any]) -> dict[str, Any]:
    chat = not isinstance(domain.train[0]["prompt"], str)
    return {
        "source": {"type": "file", "path": f"data/{domain.name}.jsonl"},
        "prompt": "{prompt}",
        "chat": chat,
        "share": domain.share,
        "training": dict(training),
        "reward": [
            {"name": reward_path(reward.function), "label": reward.name, "weight": reward.weight}
            | {"options": reward.function.options if _has_plain_options(reward.function) else {}}
            for reward in domain.rewards
        ],
        "evaluation": {
            "source": {"type": "file", "path": f"data/{domain.name}.held-out.jsonl"},
            "size": len(domain.evaluation),
        },
    }


def _model(trainer: Any) -> dict[str, Any]:
    config = trainer.accelerator.unwrap_model(trainer.model).config
    dtype = str(trainer.model.dtype).removeprefix("torch.")
    found: dict[str, Any] = {"path": config._name_or_path or "unknown", "dtype": dtype}
    adapters = getattr(trainer.model, "peft_config", {}).get("default")
    if adapters is not None and hasattr(adapters, "lora_alpha"):
        modules = adapters.target_modules
        found["lora"] = {
            "r": adapters.r,
            "alpha": adapters.lora_alpha,
            "dropout": adapters.lora_dropout,
            "target_modules": modules if isinstance(modules, str) else sorted(modules),
        }
    return found


def _strategy(strategy: Any) -> dict[str, Any]:
    spec = plain_strategy(strategy)
    if isinstance(spec, str):
        return {"name": spec}
    weighting = spec["weighting"]
    if isinstance(weighting, Mapping):
        options = {key: value for key, value in weighting.items() if key not in ("type", "protect")}
        found = {"grouping": spec["grouping"], "weighting": weighting["type"], "options": options}
        return found | ({"protect": list(weighting["protect"])} if weighting.get("protect") else {})
    return dict(spec)


def _training(args: GRPOConfig) -> dict[str, Any]:
    """TRL's own settings that differ from its defaults and that a configuration may hold."""
    found = {}
    for item in dataclasses.fields(GRPOConfig):
        value = getattr(args, item.name)
        default = item.default_factory() if callable(item.default_factory) else item.default
        if value == default or refused_reason(item.name) or item.name in _OF_THE_RUN:
            continue
        if isinstance(value, bool | int | float | str) or _is_plain(value):
            found[item.name] = value
    return found


_OF_THE_RUN = ("report_to", "bf16", "dataloader_pin_memory", "disable_tqdm", "trust_remote_code", "hub_token")
"""Settings of this process and not of the training: other commands have their own."""


def _is_plain(value: Any) -> bool:
    return isinstance(value, dict | list) and value == json.loads(json.dumps(value, default=str))


def _has_plain_options(function: Any) -> TypeGuard[Reward]:
    """Whether a configuration can say with what options the reward was made."""
    return isinstance(function, Reward) and not list(plain_findings(function.options))


def reward_path(function: Any) -> str:
    """Where another process finds a reward: a built-in name, or ``package.module:object``.

    A function of the script itself is looked for in the script's file. What has no place of its own (a lambda, a
    function inside a function, an object with settings that is no ``Reward``) gets one that is not there, with a
    warning.
    """
    kind = type(function)
    if _has_plain_options(function):
        for name, path in REWARDS.items():
            if f"{kind.__module__}:{kind.__qualname__}" == path:
                return name
        function = kind
    named = function if hasattr(function, "__qualname__") else kind
    module = named.__module__
    if module == "__main__":
        module = Path(getattr(sys.modules["__main__"], "__file__", "") or "script").stem
    whole = f"{module}:{named.__qualname__}"
    if all(part.isidentifier() for part in whole.replace(":", ".").split(".")) and named is function:
        return whole
    warnings.warn(
        f"run=: the reward {whole} has no place from which another process could import it, and `diagnose` and "
        "`recover` score with it. Define it as a function at the top of a module, or write its place into config.yaml.",
        UserWarning,
        stacklevel=2,
    )
    return f"{module}:unknown"
