"""Rewards by domain as the one list that ``GRPOTrainer`` takes: functions, async functions, ids and reward models."""

import functools
from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import nn
from trl.trainer.utils import is_async_callable

from counterpoint.domains.domain_rewards import DomainRewards, check_domains, named_rewards, of_one_domain
from counterpoint.errors import RewardError
from counterpoint.rewards import Reward
from counterpoint.training.normalizing import Normalizer


class Rewards:
    """What a trainer scores with.

    ``functions`` and ``processing_classes`` go to ``GRPOTrainer``, which loads reward models; ``limit`` then keeps each
    to its own domain. With ``by_domain`` every completion needs a domain. ``raw`` holds, by ``DOMAIN/NAME``, what the
    rewards that are normalised gave to the last batch before that: the mean, and how many completions they scored.
    """

    def __init__(self, rewards: DomainRewards | Any, processing_classes: Any, domains: Sequence[str]) -> None:
        self.by_domain = isinstance(rewards, Mapping)
        self._owners: list[tuple[str, str] | None]
        if self.by_domain:
            check_domains(rewards, domains)
            named = [(domain, name, reward) for domain in domains for name, reward in named_rewards(rewards[domain])]
            self._owners = [(domain, name) for domain, name, _ in named]
            given: list[Any] = [reward for *_, reward in named]
            self.functions = [r if _is_model(r) else of_one_domain(domain, name, r) for domain, name, r in named]
        else:
            self.functions = [] if rewards is None else list(rewards) if isinstance(rewards, list) else [rewards]
            self._owners = [None] * len(self.functions)
            given = self.functions
        self.processing_classes = self._in_order(processing_classes, rewards, domains)
        self._scaled = [i for i, reward in enumerate(given) if isinstance(reward, Reward) and reward.normalize]
        for i in self._scaled:
            given[i].kept = True
        self.normalizer = Normalizer()
        self.raw: dict[str, tuple[float, int]] = {}
        self._models: list[_OneDomain] = []
        self._error: RewardError | None = None

    def _in_order(self, classes: Any, rewards: Any, domains: Sequence[str]) -> Any:
        """The processing classes in the order of the functions, from a mapping shaped as the rewards are."""
        if not isinstance(classes, Mapping):
            return classes
        if not self.by_domain:
            raise RewardError("reward_processing_classes: a mapping from domain needs reward_funcs by domain as well.")
        if unknown := [name for name in classes if name not in domains]:
            raise RewardError(f"reward_processing_classes: {unknown[0]!r} is no domain; there are {list(domains)}.")
        ordered: list[Any] = []
        for domain in domains:
            names = [name for name, _ in named_rewards(rewards[domain])]
            given = classes.get(domain)
            if isinstance(given, Mapping):
                given = [given.get(name) for name in names]
            given = given if isinstance(given, list) else [given] * len(names)
            if len(given) != len(names):
                raise RewardError(
                    f"reward_processing_classes[{domain!r}]: {len(given)} for {len(names)} rewards. Give one for each, "
                    "None for functions."
                )
            ordered += given
        return ordered

    def limit(self, functions: list[Any], names: list[str]) -> None:
        """Changes TRL's own lists: reward models of a domain score its rows alone, under the domain's name."""
        for i, owner in enumerate(self._owners):
            if owner is None:
                continue
            domain, name = owner
            names[i] = f"{domain}/{name}"
            if isinstance(functions[i], nn.Module):
                functions[i] = _OneDomain(functions[i], domain)
                self._models.append(functions[i])

    def see(self, domains: Sequence[str | None]) -> None:
        """Tells the reward models the domain of every completion that they are about to score."""
        for model in self._models:
            model.places = [i for i, name in enumerate(domains) if name == model.domain]

    def normalise(
        self, rewards_BF: torch.Tensor, domains: Sequence[str | None], names: Sequence[str], *, counts: bool = True
    ) -> torch.Tensor:
        """The rewards of all ranks, those that are to be normalised on the scale of their domain; they are counted in.

        Args:
            rewards_BF: of all ranks, ``[B, F]``.
            domains: of this rank's completions.
            names: of the F rewards in the metrics.
            counts: False for completions in place of others, which say nothing of the domain as a whole.
        """
        if not self._scaled:
            return rewards_BF
        self.raw, rewards_BF = {}, rewards_BF.clone()
        of_all = gather_object(list(domains))
        for i in self._scaled:
            for domain in sorted({name for name in of_all if name is not None}):
                own_B = torch.tensor([name == domain for name in of_all], device=rewards_BF.device)
                values_B = rewards_BF[own_B, i]
                if count := int(values_B.isfinite().sum()):
                    name = f"{domain}/{names[i].removeprefix(f'{domain}/')}"
                    self.raw[name] = values_B[values_B.isfinite()].mean().item(), count
                    rewards_BF[own_B, i] = self.normalizer(name, values_B, counts=counts)
        return rewards_BF

    # A reward that fails on one rank stops all of them with its message, instead of leaving the others waiting.

    def hold_errors(self) -> None:
        """From now on errors of functions wait for :meth:`raise_together`; for trainings on several ranks."""
        self.functions = [f if _is_model(f) else self._held(f) for f in self.functions]

    def _held(self, function: Callable[..., Any]) -> Callable[..., Any]:
        if is_async_callable(function):

            @functools.wraps(function)
            async def async_reward(**arguments: Any) -> Any:
                try:
                    return await function(**arguments)
                except RewardError as error:
                    return self._keep(error, arguments)

            return async_reward

        @functools.wraps(function)
        def reward(**arguments: Any) -> Any:
            try:
                return function(**arguments)
            except RewardError as error:
                return self._keep(error, arguments)

        return reward

    def _keep(self, error: RewardError, arguments: dict[str, Any]) -> list[None]:
        self._error = self._error or error
        return [None] * len(arguments["prompts"])

    def raise_together(self, num_processes: int) -> None:
        """Raises, on every rank, the error of the first rank that has one.

        Raises:
            RewardError: some rank's reward function failed.
        """
        if num_processes == 1:
            return
        own, self._error = self._error, None
        for message in gather_object([None if own is None else str(own)]):
            if message is not None:
                raise RewardError(message) from own


def _is_model(reward: Any) -> bool:
    return isinstance(reward, str | nn.Module)


class _OneDomain(nn.Module):
    """A reward model, asked about the rows of one domain; the logits of all others are NaN, TRL's mark of no reward."""

    def __init__(self, model: nn.Module, domain: str) -> None:
        super().__init__()
        self.model, self.domain = model, domain
        self.places: list[int] = []

    def forward(self, **inputs: torch.Tensor) -> Any:
        """Logits ``[B, 1]`` of all rows."""
        # never none at all: the ranks of a sharded reward model must call it together
        asked = self.places or [0]
        own = {key: value[asked] if torch.is_tensor(value) else value for key, value in inputs.items()}
        logits = self.model(**own).logits[:, :1]
        num_rows = next(iter(inputs.values())).shape[0]
        full = logits.new_full((num_rows, 1), torch.nan)
        if self.places:
            full[self.places] = logits
        return SimpleNamespace(logits=full)
