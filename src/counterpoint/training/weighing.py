"""The balance at work: what every domain has of a step, counted over all ranks, and the factors that follow.

Legend: B rows of a micro-batch, D domains, N rows of a step on this rank.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple
from types import MappingProxyType
from typing import Any

import torch

from counterpoint.balance import (
    COUNTS_BY,
    Balance,
    BalanceSpec,
    Factors,
    Part,
    build_balance,
    effective_weights,
    fractions,
    prompt_shares,
    weighted,
)
from counterpoint.errors import UnsupportedError
from counterpoint.training.batches import DOMAIN_KEY, PROMPT_KEY, SIGNAL_KEY, Buffer, scored_tokens


class Weighing:
    """What the steps of a training hold, and what ``balance`` makes of it.

    Args:
        balance: the rule, as ``DomainGRPOConfig.balance``.
        args: the settings of the training.
        domains: their names, in the order of their ids.

    Raises:
        ConfigError: an unknown rule or option.
        UnsupportedError: a setting with which the rule would not be exact.
    """

    def __init__(self, balance: BalanceSpec, args: Any, domains: Sequence[str]) -> None:
        self.rule = balance_for(args, balance)
        self.domains = tuple(domains)
        self._loss_type = str(args.loss_type)
        self._window = min(args.gradient_accumulation_steps, args.steps_per_generation)
        self._args = args
        self.forget()

    def forget(self, state: Mapping[str, Any] | None = None) -> None:
        """Makes ready for the first step, or to go on from the rule's ``state_dict()``."""
        self.rule.load_state_dict(state or {})
        self.step: dict[str, Part] = {}
        """What each domain has of the step at hand."""
        self.factors: Factors = {}
        """What each domain's loss, and gradient, is multiplied by in it."""
        self._row_factors: list[torch.Tensor] = []
        self._weights: Mapping[str, float] = {}

    def check_weights(self) -> None:
        """Refuses weights of domains where they would not be exact.

        Raises:
            UnsupportedError: naming the setting.
        """
        if not self.rule.uses_gradients:
            _check_counts("a schedule or curriculum with weights", "or leave the weights out", self._args)

    def begin(
        self, buffer: Sequence[Buffer], slot: int, accelerator: Any, weights: Mapping[str, float] = MappingProxyType({})
    ) -> Buffer:
        """The micro-batch at ``slot``, ready for its forward pass.

        At the first of a step (or of a generation, where a step has several) all that come are counted. All ranks call
        it together, for the same slot.

        Args:
            weights: factors on what the rule gives domains; 1 for others.
        """
        within = slot % self._window
        self._weights = weights
        if within == 0 and len(self.domains) > 1:  # alone, a domain has the whole weight under every rule
            self._count(buffer[slot : slot + self._window], accelerator)
        if not self._row_factors:
            return buffer[slot]
        return {**buffer[slot], "advantages": buffer[slot]["advantages"] * self._row_factors[within]}

    def _count(self, micro_batches: Sequence[Buffer], accelerator: Any) -> None:
        # rows of a micro-batch are as long as its own longest completion, so they are counted one by one
        tokens_N = torch.cat([scored_tokens(part).sum(dim=1) for part in micro_batches]).long()
        domain_N, prompt_N, signal_N = (
            torch.cat([part[key] for part in micro_batches]) for key in (DOMAIN_KEY, PROMPT_KEY, SIGNAL_KEY)
        )
        scored_N = tokens_N > 0
        amount_N = tokens_N if COUNTS_BY[self._loss_type] == "tokens" else scored_N.long()
        prompts, place_N = prompt_N.unique(return_inverse=True)
        of_prompt_NK = torch.stack([amount_N, torch.ones_like(amount_N)], dim=1)
        of_prompt_NK = of_prompt_NK.new_zeros(len(prompts), 2).index_add(0, place_N, of_prompt_NK)[place_N]
        own_N, number_N = of_prompt_NK.unbind(dim=1)
        columns = (
            torch.ones_like(tokens_N), own_N > 0, scored_N, tokens_N, signal_N, signal_N & scored_N, signal_N * tokens_N
        )  # fmt: skip
        counts_ND = torch.stack([column.long() for column in columns], dim=1)
        counts_DK = counts_ND.new_zeros(len(self.domains), len(columns)).index_add(0, domain_N, counts_ND)
        for name, row in zip(self.domains, accelerator.reduce(counts_DK, reduction="sum").tolist(), strict=True):
            if row[0]:
                before = astuple(self.step[name]) if name in self.step else [0] * len(row)
                self.step[name] = Part(*(old + new for old, new in zip(before, row, strict=True)))
        self.factors = self.rule.factors(self.step, self._loss_type)
        if self._weights and not self.rule.uses_gradients:
            amounts = {name: part.amount(self._loss_type) for name, part in self.step.items()}
            self.factors = weighted(self.factors, amounts, self._weights)
        self._row_factors = []
        if self.rule.within_domains and sum(part.live > 0 for part in self.step.values()) > 1:
            means = [self._mean(self.step.get(name)) for name in self.domains]
            # a prompt, of which a step may hold some completions only, counts as many times the mean completion
            factor_N = torch.tensor(means, device=own_N.device)[domain_N] * number_N / own_N.clamp(min=1)
            self._row_factors = list(factor_N.split([len(part[DOMAIN_KEY]) for part in micro_batches]))

    def _mean(self, part: Part | None) -> float:
        """What the loss counts a completion by, on average."""
        return part.amount(self._loss_type) / part.live if part and part.live else 0.0

    def scale(self, loss: torch.Tensor, domain_id: int) -> torch.Tensor:
        """The loss of a micro-batch, balanced."""
        factor = self.factors.get(self.domains[domain_id], 1.0)
        return loss if factor == 1.0 else loss * factor

    def see(self, metrics: Mapping[str, tuple[float, int]], shares: Mapping[str, float]) -> None:
        """Tells the rule of the rewards in a new generation's ``batch_metrics``."""
        means = {name: metrics[key][0] for name in self.domains if (key := f"reward/{name}") in metrics}
        self.rule.see(means, shares)

    @property
    def of_gradients(self) -> Callable[[Mapping[str, float]], Factors] | None:
        """From the lengths of gradients to their factors, for ``Surgeon.combine``; None where the rule has none."""
        return self._gradient_factors if self.rule.uses_gradients and len(self.domains) > 1 else None

    def _gradient_factors(self, lengths: Mapping[str, float]) -> Factors:
        found = self.rule.gradient_factors(self.step, lengths)
        if self._weights:
            found = weighted(found, lengths, self._weights)
        self.factors = {name: factor * found.get(name, 1.0) for name, factor in self.factors.items()}
        return found

    def end(self) -> dict[str, float]:
        """The metrics of the step that ends here; a domain that had no part in it has zeros. Empty for one domain."""
        step, factors, self.step, self.factors = self.step, self.factors, {}, {}
        found = {
            "share_prompts": prompt_shares(step),
            "share_tokens": fractions({name: part.tokens for name, part in step.items()}),
            "share_signal": fractions({name: part.signal_completions for name, part in step.items()}),
            "effective_weight": effective_weights(step, self._loss_type, factors),
        }
        return {
            f"{key}/{name}": shares.get(name, 0.0) for key, shares in found.items() if shares for name in self.domains
        }


def balance_for(args: Any, balance: BalanceSpec) -> Balance:
    """The rule ``balance``, for a training with ``args``.

    Raises:
        ConfigError: an unknown rule or option.
        UnsupportedError: a setting with which the rule would not be exact.
    """
    rule = build_balance(balance)
    if rule.uses_counts:
        _check(rule, args)
    return rule


def _check(rule: Balance, args: Any) -> None:
    """Refuses a rule that would not be exact."""
    _check_counts(f"balance={rule.name!r}", "or use balance='none'", args)
    if rule.within_domains and args.beta != 0.0:
        raise UnsupportedError(
            f"balance={rule.name!r} weighs prompts by their advantages, which the KL term (beta={args.beta}) has not. "
            "Use beta=0.0, or balance='tokens', under which both are weighed by domain."
        )


def _check_counts(what: str, otherwise: str, args: Any) -> None:
    """Refuses settings with which a domain's loss cannot be multiplied exactly."""
    if args.steps_per_generation < args.gradient_accumulation_steps:
        raise UnsupportedError(
            f"{what} needs to know what a step holds before its first backward pass, and with "
            f"steps_per_generation={args.steps_per_generation} below gradient_accumulation_steps="
            f"{args.gradient_accumulation_steps} a part of it is generated later. Leave steps_per_generation out, "
            f"{otherwise}."
        )
    if args.entropy_coef != 0.0 or args.use_adaptive_entropy:
        raise UnsupportedError(
            f"{what} multiplies a domain's whole loss, and the entropy bonus, a mean over each micro-batch, with it. "
            f"Use entropy_coef=0.0 without use_adaptive_entropy, {otherwise}."
        )
    if args.router_aux_loss_coef:
        raise UnsupportedError(
            f"{what} multiplies a domain's whole loss, and the experts' balancing loss with it. Leave "
            f"router_aux_loss_coef out, {otherwise}."
        )
