"""The quota sampler of a TRL configuration."""

from collections.abc import Mapping

from trl import GRPOConfig

from counterpoint.domains.sampler import QuotaSampler


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
