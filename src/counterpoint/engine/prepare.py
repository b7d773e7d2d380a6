"""From a configuration to a checked run and the trainer of each stage: what is passed on to TRL and what we set."""

import gc
import math
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers.trainer_callback import PrinterCallback

from counterpoint.config import Config
from counterpoint.config.schedule import plain_schedule
from counterpoint.domains import Domain, load_domains
from counterpoint.engine.stages import plan_stages
from counterpoint.errors import ConfigError, CounterpointError, DomainError
from counterpoint.evaluation.trackers import RunTracking
from counterpoint.launch import Launch
from counterpoint.models import load_model, load_tokenizer, lora_config, skeleton, with_adapters
from counterpoint.runs import CONTINUED, RunDirectory
from counterpoint.runs.stages import Stage
from counterpoint.surgery import group_parameters, resolve_strategy
from counterpoint.training.backends import check_args, check_checkpoints, check_devices
from counterpoint.training.config import DomainGRPOConfig, check_strategy, quota_sampler, total_steps
from counterpoint.training.domain_settings import check_per_domain
from counterpoint.training.mix import load_curriculum
from counterpoint.training.redrawing import check_dynamic_sampling
from counterpoint.training.trainer import DomainGRPOTrainer
from counterpoint.training.values import build_config, setting_findings
from counterpoint.training.weighing import balance_for

_STATE = ("optimizer", "scheduler", "scaler", "rng_state", "trainer_state", "training_args", "counterpoint_")
"""Parts of the names of those files of a checkpoint that are not the model's."""


@dataclass(frozen=True)
class Plan:
    """A checked run: its domains with their rows, its stages and the tokenizer."""

    config: Config
    domains: tuple[Domain, ...]
    stages: tuple[Stage, ...]
    tokenizer: Any
    num_params: int

    @property
    def total_steps(self) -> int:
        """Optimizer steps of all stages."""
        return self.stages[-1].last_step


def check_config(config: Config) -> list[str]:
    """Problems of a configuration that need TRL but no data and no model; empty when there are none."""
    problems: list[str] = []
    try:
        args = grpo_config(config, "unused", rehearse=True)
        check_args(args)
        check_devices(args)
        balance_for(args, config.balance.spec)
        check_dynamic_sampling(args.dynamic_sampling, args)
        check_per_domain(args, _own_of_domains(config))
        check_shares(config, args, dict.fromkeys(config.domains, 1))
        plan_stages(config, args.max_steps if args.max_steps > 0 else 10**9)
        resolve_strategy(config.strategy.within_a_stage)
    except CounterpointError as error:
        problems += str(error).splitlines()
    return problems


def check_shares(config: Config, args: DomainGRPOConfig, sizes: dict[str, int]) -> None:
    """Refuses shares that a step of this batch cannot hold, naming a batch that can."""
    for domains in {stage.domains for stage in plan_stages(config, 10**9)}:
        shares = {name: config.domains[name].share for name in domains}
        named, schedule = {name: sizes[name] for name in domains}, plain_schedule(config.schedule)
        sampler = quota_sampler(args, named, shares, config.share_rule, schedule=schedule)
        check_strategy(resolve_strategy(config.strategy.within_a_stage), sampler)


def plan_run(config: Config) -> Plan:
    """A checked :class:`Plan`: settings, model, tokenizer, then the rows of all domains.

    Raises:
        ConfigError, ModelError, GroupingError, DomainError, RewardError, UnsupportedError: what is wrong, what to do.
    """
    if problems := check_config(config):
        raise ConfigError("\n".join(problems))
    return plan_checked(config)


def plan_checked(config: Config) -> Plan:
    """What :func:`plan_run` does, of a configuration in which ``check_config`` found nothing."""
    found: list[CounterpointError] = []  # what is wrong with the model and with the data is said at once
    try:
        model = skeleton(config.model)
        num_params = sum(param.numel() for param in model.parameters())
        # raises where a parameter has no group
        group_parameters(with_adapters(config.model, model), resolve_strategy(config.strategy.within_a_stage).grouping)
    except CounterpointError as error:
        found.append(error)
    try:
        tokenizer = load_tokenizer(config.model)
        domains = tuple(load_domains(config, tokenizer))
    except CounterpointError as error:
        found.append(error)
    if len(found) > 1 and isinstance(found[1], DomainError):
        raise ConfigError("\n".join(map(str, found)))
    if found:
        raise found[0]  # of a path that is no model it is enough to say so once
    args = grpo_config(config, "unused")
    if config.curriculum is not None:
        load_curriculum(config.curriculum.model_dump(), args)
    shares = {domain.name: domain.share for domain in domains}
    steps = total_steps(args, sum(len(domain.train) for domain in domains), shares)
    stages = tuple(plan_stages(config, steps))
    return Plan(config, domains, stages, tokenizer, num_params)


def needed_bytes(plan: Plan) -> int:
    """Disk that a run's checkpoints take at most: weights and Adam's two moments, one checkpoint more while saving."""
    config = plan.config
    ends = len(plan.stages) * (3 if config.recovery.watch else 1)  # a refresh in each: where it starts, where it ends
    saves = math.ceil(plan.total_steps / config.run.save_every) + ends
    kept = saves if config.run.keep is None else min(saves, config.run.keep + ends)
    trained = 0.02 if config.model.lora else 1.0
    return int(plan.num_params * trained * 12 * (kept + 1))


# Settings


def grpo_config(
    config: Config, output_dir: str, max_steps: int | None = None, *, rehearse: bool = False
) -> DomainGRPOConfig:
    """The ``DomainGRPOConfig`` of a run; ``max_steps`` replaces the configured number for one stage of several.

    With ``rehearse`` optimizer, schedule and the like are built once, to see that they can be.

    Raises:
        ConfigError: a key under ``training`` that TRL does not know, or a value that it refuses.
    """
    if problems := [f"training.{key}: {message}" for key, message in setting_findings(config.training)]:
        raise ConfigError("\n".join(problems))
    training = config.training if max_steps is None else config.training | {"max_steps": max_steps}
    args = build_config(_own_settings(config, output_dir), training, rehearse=rehearse)
    args.balance, args.dynamic_sampling = config.balance.spec, config.dynamic_sampling
    args.per_domain = _own_of_domains(config)
    return args


def _own_of_domains(config: Config) -> dict[str, Any]:
    """What domains have for themselves of ``training``."""
    return {name: own for name, domain in config.domains.items() if (own := domain.training.own)}


def _own_settings(config: Config, output_dir: str) -> dict[str, Any]:
    on_cpu = uses_cpu(config)
    settings: dict[str, Any] = {
        "output_dir": output_dir,
        "seed": config.run.seed,
        "logging_steps": 1,
        "logging_first_step": True,
        "save_strategy": "steps",
        "save_steps": config.run.save_every,
        "save_total_limit": None,
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": on_cpu,
        "trust_remote_code": config.model.trust_remote_code,
        "ddp_timeout": 24 * 3600,  # the first rank scores an evaluation while the others wait
    }
    if on_cpu:
        settings |= {"bf16": False, "dataloader_pin_memory": False}
    return settings


def uses_cpu(config: Config) -> bool:
    """Whether training runs on the CPU: asked for, or nothing else is there."""
    return config.run.device == "cpu" or not torch.accelerator.is_available()


# The trainer of a stage


def build_trainer(plan: Plan, run: RunDirectory, stage: Stage, start: Path | None) -> DomainGRPOTrainer:
    """The trainer of ``stage`` with the model in ``start``, or the configuration's where it is None.

    A refresh that is put between stages has its own seed, so that it does not repeat the prompts of the domain's stage.
    """
    config = plan.config
    domains = [domain for domain in plan.domains if domain.name in stage.domains]
    args = grpo_config(config, str(run.trl_folder(stage.index)), stage.num_steps)
    args.run_name = run.path.name
    args.strategy, args.share_rule = config.strategy.within_a_stage, config.share_rule
    args.schedule = plain_schedule(config.schedule)
    args.curriculum = None if config.curriculum is None else config.curriculum.model_dump()
    args.shares = {domain.name: domain.share for domain in domains}
    args.per_domain = {name: own for name, own in _own_of_domains(config).items() if name in args.shares}
    args.buffers, args.grams_every = config.surgery.buffers, config.run.grams_every
    args.reward_weights = [reward.weight for domain in domains for reward in domain.rewards]
    if stage.kind == "refresh":
        args.seed += stage.index
        args.learning_rate = config.recovery.learning_rate or args.learning_rate
    model, peft = load_model(config.model, start), lora_config(config.model) if start is None else None
    try:
        trainer = DomainGRPOTrainer(
            model,
            {domain.name: {reward.name: reward.function for reward in domain.rewards} for domain in domains},
            args,
            {domain.name: domain.train for domain in domains},
            processing_class=plan.tokenizer,
            peft_config=peft,
        )
    except CounterpointError:
        raise
    except (ValueError, ImportError, NotImplementedError, OSError) as error:  # how TRL refuses settings for a model
        raise ConfigError(f"training: TRL cannot use these settings with this model: {error}") from error
    check_checkpoints(trainer.accelerator)
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(RunTracking(trainer, stage.offset))
    return trainer


def free_memory() -> None:
    """Gives back the memory of a trainer that nobody uses any more, before the next model is loaded."""
    gc.collect()
    if torch.accelerator.is_available():
        torch.accelerator.empty_cache()


def continued_checkpoint(run: RunDirectory, stage: Stage, stopped: int, launch: Launch) -> Path:
    """A checkpoint with the model before ``stage`` and everything else from step ``stopped``.

    From it ``stage``, which was interrupted, goes on after a refresh: with its own optimizer state, schedule, random
    numbers and order of prompts. It is made of links and costs no space.
    """
    folder = run.trl_folder(stage.index) / CONTINUED

    def link() -> None:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        for step, wants_state in ((stopped, True), (stage.first_step, False)):
            for file in run.checkpoint_path(step).resolve().iterdir():
                if any(part in file.name for part in _STATE) == wants_state:
                    (folder / file.name).symlink_to(file)

    launch.share(link)
    return folder
