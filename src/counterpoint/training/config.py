"""What a configuration of training asks of every step: which prompts it holds, and what a strategy needs of them."""

from collections.abc import Mapping

from trl import GRPOConfig

from counterpoint.domains.sampler import QuotaSampler
from counterpoint.errors import DomainError, nearest
from counterpoint.surgery import Strategy
from counterpoint.surgery.strategies import needs_halves, protected_domains, weighted_domains


def quota_sampler(args: GRPOConfig, sizes: Mapping[str, int], shares: Mapping[str, float], rule: str) -> QuotaSampler:
    """The order of prompts for training with ``args`` on domains of these sizes and shares.

    Raises:
        DomainError: a batch that does not fit, or shares that a step of it cannot hold, naming what would do.
    """
    assert args.num_generations is not None
    return QuotaSampler(
        sizes,
        shares=shares,
        num_generations=args.num_generations,
        rows_per_device=args.per_device_train_batch_size,
        accumulation=args.gradient_accumulation_steps,
        steps_per_generation=args.steps_per_generation,
        iterations=args.num_iterations,
        world=args.world_size,
        seed=args.seed,
        rule=rule,
        num_steps=args.max_steps if args.max_steps > 0 else None,
    )


def check_strategy(strategy: Strategy, sampler: QuotaSampler) -> None:
    """Refuses a strategy that names a domain that is not there, or finds only one half of a domain's gradient.

    Raises:
        DomainError: naming the domain, or saying what to set so that it has two micro-batches in every step.
    """
    for name in protected_domains(strategy):
        if name not in sampler.domains:
            raise DomainError(f"The strategy protects {name!r}, which is no domain; {nearest(name, sampler.domains)}")
    for name in weighted_domains(strategy):
        if name not in sampler.domains:
            raise DomainError(f"The strategy weights {name!r}, which is no domain; {nearest(name, sampler.domains)}")
    if len(sampler.domains) < 2 or not needs_halves(strategy):
        return
    geometry = sampler.geometry
    fewest = [min(counts) for counts in zip(*map(sampler.quotas.counts, range(_STEPS_LOOKED_AT)), strict=True)]
    for name, units in zip(sampler.domains, fewest, strict=True):
        found = units * geometry.unit_micro_batches
        if found < 2:
            raise DomainError(
                f"The strategy {strategy.name!r} compares two halves of every domain's gradient, so each domain needs "
                f"at least 2 micro-batches in every step, and {name!r} has {found}. Double "
                f"gradient_accumulation_steps (it is {geometry.accumulation}), or halve per_device_train_batch_size "
                f"(it is {geometry.rows_per_device})."
            )


_STEPS_LOOKED_AT = 64
"""Steps over which a domain's fewest units are taken; with exact shares every step is the same."""
