"""The arithmetic of a step: rows, groups, micro-batches, ranks and generations, checked before anything runs."""

import math
from dataclasses import dataclass

from counterpoint.errors import DomainError


@dataclass(frozen=True)
class Geometry:
    """How rows are cut. All numbers of rows are per rank (device); every rank is cut alike.

    A *unit* is the smallest number of rows that can belong to one domain: whole micro-batches and whole groups of
    completions of one prompt, so ``lcm(rows_per_device, num_generations)`` rows. A *quota step* is the stretch of
    different micro-batches that one optimizer step sums; the shares hold in each.

    Args:
        num_generations: completions of one prompt (TRL's ``num_generations``).
        rows_per_device: completions of one micro-batch (``per_device_train_batch_size``).
        accumulation: micro-batches of an optimizer step (``gradient_accumulation_steps``).
        steps_per_generation: micro-batches generated at once; a multiple or a divisor of ``accumulation``.
        iterations: how often each generation is used (``num_iterations``).
        world: number of ranks.

    Raises:
        DomainError: numbers that do not fit, naming numbers that would.
    """

    num_generations: int
    rows_per_device: int
    accumulation: int
    steps_per_generation: int
    iterations: int = 1
    world: int = 1

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value < 1:
                raise DomainError(f"{name} must be at least 1, found {value}.")
        self._check_generation()
        self._check_iterations()
        self._check_units()

    @property
    def unit_rows(self) -> int:
        """Rows of a unit."""
        return math.lcm(self.rows_per_device, self.num_generations)

    @property
    def unit_micro_batches(self) -> int:
        """Micro-batches of a unit."""
        return self.unit_rows // self.rows_per_device

    @property
    def unit_prompts(self) -> int:
        """Prompts of a unit."""
        return self.unit_rows // self.num_generations

    @property
    def generation_units(self) -> int:
        """Units that are generated at once."""
        return self.steps_per_generation // self.unit_micro_batches

    @property
    def quota_micro_batches(self) -> int:
        """Different micro-batches in an optimizer step."""
        if self.steps_per_generation >= self.accumulation:
            return self.accumulation
        return max(self.accumulation // self.iterations, self.steps_per_generation)

    @property
    def quota_units(self) -> int:
        """Units that the shares split, in every optimizer step."""
        return self.quota_micro_batches // self.unit_micro_batches

    @property
    def period_quota_steps(self) -> int:
        """Quota steps after which a generation and an optimizer step end together."""
        return max(1, self.steps_per_generation // self.quota_micro_batches)

    @property
    def period_generations(self) -> int:
        """Generations in such a period."""
        return max(1, self.quota_micro_batches // self.steps_per_generation)

    @property
    def period_steps(self) -> int:
        """Optimizer steps in such a period, repeated use of generations included."""
        return self.period_generations * self.iterations * self.steps_per_generation // self.accumulation

    def accumulation_for(self, units: int) -> int:
        """The ``accumulation`` that gives ``units`` units in a step, all else equal."""
        return units * self.unit_micro_batches * (self.accumulation // self.quota_micro_batches)

    def _check_generation(self) -> None:
        accumulation, generated = self.accumulation, self.steps_per_generation
        if accumulation % generated and generated % accumulation:
            raise DomainError(
                f"steps_per_generation={generated} and gradient_accumulation_steps={accumulation}: one must divide the "
                f"other, so that no step ends inside a generation. "
                f"Use steps_per_generation={_fitting(generated, accumulation)}."
            )

    def _check_iterations(self) -> None:
        generations, rest = divmod(self.accumulation, self.steps_per_generation)
        if rest or generations < 2:
            return
        if generations % self.iterations and self.iterations % generations:
            raise DomainError(
                f"num_iterations={self.iterations} with {generations} generations per step "
                f"(gradient_accumulation_steps={self.accumulation}, steps_per_generation={self.steps_per_generation}): "
                f"one must divide the other. Use num_iterations={_fitting(self.iterations, generations)}, "
                f"or steps_per_generation={self.accumulation}."
            )

    def _check_units(self) -> None:
        at_once = min(self.steps_per_generation, self.accumulation)
        if at_once % self.unit_micro_batches == 0:
            return
        key = "gradient_accumulation_steps" if at_once == self.accumulation else "steps_per_generation"
        raise DomainError(
            f"per_device_train_batch_size={self.rows_per_device} and num_generations={self.num_generations}: whole "
            f"micro-batches of whole groups come in {self.unit_rows} rows on each device, but {key}={at_once} gives "
            f"{at_once * self.rows_per_device}. Use {key}={_around(at_once, self.unit_micro_batches)}, or a "
            f"per_device_train_batch_size that is a multiple of {self.num_generations}."
        )


def _around(found: int, base: int) -> str:
    """The multiples of ``base`` next to ``found``, as ``4 or 8``."""
    below = found // base * base
    return " or ".join(str(number) for number in (below, below + base) if number > 0)


def _fitting(found: int, base: int) -> str:
    """The nearest numbers below and above ``found`` that divide ``base`` or are its multiples."""
    above = found + base - found % base
    fitting = [number for number in range(1, above + 1) if base % number == 0 or number % base == 0]
    below = [number for number in fitting if number < found][-1:]
    return " or ".join(str(number) for number in (*below, *[n for n in fitting if n > found][:1]))
