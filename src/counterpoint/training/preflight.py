"""Everything that can be checked before a model is loaded: settings, shares, domains, model, tokenizer."""

import math
from dataclasses import dataclass
from typing import Any

from trl import GRPOConfig

from counterpoint.config import Config
from counterpoint.domains import Domain, load_domains
from counterpoint.errors import ConfigError, CounterpointError
from counterpoint.models import load_tokenizer, skeleton, with_adapters
from counterpoint.surgery import group_parameters, resolve_strategy
from counterpoint.training.backends import check_args, check_devices
from counterpoint.training.config import check_strategy, quota_sampler
from counterpoint.training.settings import grpo_config
from counterpoint.training.stages import Stage, plan_stages


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


def strategy_spec(config: Config) -> str | dict[str, Any]:
    """What the Surgeon is to do; a stage of a sequential run holds one domain, so there it is plain mixing."""
    return "mixed" if config.strategy.sequential else config.strategy.spec


def check_config(config: Config) -> list[str]:
    """Problems of a configuration that need TRL but no data and no model; empty when there are none."""
    problems: list[str] = []
    try:
        args = grpo_config(config, "unused", rehearse=True)
        check_args(args)
        check_devices(args)
        check_shares(config, args, dict.fromkeys(config.domains, 1))
        plan_stages(config, args.max_steps if args.max_steps > 0 else 10**9)
        resolve_strategy(strategy_spec(config))
    except CounterpointError as error:
        problems += str(error).splitlines()
    return problems


def check_shares(config: Config, args: GRPOConfig, sizes: dict[str, int]) -> None:
    """Refuses shares that a step of this batch cannot hold, naming a batch that can."""
    for domains in {stage.domains for stage in plan_stages(config, 10**9)}:
        shares = {name: config.domains[name].share for name in domains}
        sampler = quota_sampler(args, {name: sizes[name] for name in domains}, shares, config.share_rule)
        check_strategy(resolve_strategy(strategy_spec(config)), sampler)


def plan_run(config: Config) -> Plan:
    """A checked :class:`Plan`: settings, model, tokenizer, then the rows of all domains.

    Raises:
        ConfigError, ModelError, GroupingError, DomainError, RewardError, UnsupportedError: what is wrong, what to do.
    """
    if problems := check_config(config):
        raise ConfigError("\n".join(problems))
    model = skeleton(config.model)
    num_params = sum(param.numel() for param in model.parameters())
    # raises where a parameter has no group
    group_parameters(with_adapters(config.model, model), resolve_strategy(strategy_spec(config)).grouping)
    tokenizer = load_tokenizer(config.model)
    domains = tuple(load_domains(config, tokenizer))
    args = grpo_config(config, "unused")
    stages = tuple(plan_stages(config, total_steps(args, sum(len(domain.train) for domain in domains))))
    return Plan(config, domains, stages, tokenizer, num_params)


def total_steps(args: GRPOConfig, num_rows: int) -> int:
    """Optimizer steps of a run: ``max_steps``, else ``num_train_epochs`` passes over all rows, as TRL counts them.

    A generation that is used ``num_iterations`` times takes as many steps.
    """
    if args.max_steps > 0:
        return args.max_steps
    assert args.num_generations is not None
    rows_per_step = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
    return math.ceil(args.num_train_epochs * num_rows * args.num_generations * args.num_iterations / rows_per_step)


def needed_bytes(plan: Plan) -> int:
    """Disk that a run's checkpoints take at most: weights and Adam's two moments, one checkpoint more while saving."""
    config = plan.config
    ends = len(plan.stages) * (3 if config.recovery.watch else 1)  # a refresh in each: where it starts, where it ends
    saves = math.ceil(plan.total_steps / config.run.save_every) + ends
    kept = saves if config.run.keep is None else min(saves, config.run.keep + ends)
    trained = 0.02 if config.model.lora else 1.0
    return int(plan.num_params * trained * 12 * (kept + 1))
