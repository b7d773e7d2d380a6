"""Settings of training that a domain has for itself: what they are, and which combinations are refused."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Self

from pydantic import ValidationError

from counterpoint.balance import build_balance
from counterpoint.config.domain import DomainTraining
from counterpoint.config.section import explained
from counterpoint.errors import ConfigError, DomainError, UnsupportedError, nearest

PerDomain = Mapping[str, Mapping[str, Any]]
"""Domain -> the settings that it has for itself, as ``DomainGRPOConfig.per_domain``."""

_SAMPLED = ("temperature", "top_p")
_GENERATED = (*_SAMPLED, "max_completion_length", "stop")


@dataclass(frozen=True)
class DomainSettings:
    """What holds for one domain: its own settings, the whole training's where it has none."""

    temperature: float
    top_p: float
    max_completion_length: int | None
    num_generations: int
    beta: float
    epsilon: float
    epsilon_high: float
    stop: tuple[str, ...] = ()

    @classmethod
    def of(cls, args: Any, own: Mapping[str, Any]) -> Self:
        """Of a ``GRPOConfig`` and what the domain has for itself."""
        names = {field.name for field in fields(cls)} - {"stop"}
        given = {name: own[name] if name in own else getattr(args, name) for name in names}
        if given["epsilon_high"] is None:
            given["epsilon_high"] = given["epsilon"]
        return cls(**given, stop=tuple(own.get("stop", ())))

    @property
    def sampling(self) -> tuple[float, float]:
        """What decides which rows can be sampled together."""
        return self.temperature, self.top_p


@dataclass(frozen=True)
class SettingsByDomain:
    """The settings of every domain of a training.

    Args:
        whole: those of rows without a domain.
        of_domain: domain -> its settings, in the order of the domains.
        any: whether any domain has settings for itself.
    """

    whole: DomainSettings
    of_domain: Mapping[str, DomainSettings]
    any: bool

    @classmethod
    def of(cls, args: Any, per_domain: PerDomain | None, domains: Sequence[str]) -> Self:
        """Of a ``GRPOConfig``, what domains have for themselves, and the names of all.

        Raises:
            DomainError: settings of a domain that is not there.
        """
        given = {name: own for name, own in (per_domain or {}).items() if own}
        for name in given:
            if name not in domains:
                raise DomainError(f"per_domain: {name!r} is no domain of train_dataset; {nearest(name, domains)}")
        of_domain = {name: DomainSettings.of(args, given.get(name, {})) for name in domains}
        return cls(DomainSettings.of(args, {}), of_domain, bool(given))

    def __getitem__(self, domain: str) -> DomainSettings:
        return self.of_domain.get(domain, self.whole)

    def differ(self, name: str) -> bool:
        """Whether any domain has another value of a setting than the whole training."""
        return any(getattr(own, name) != getattr(self.whole, name) for own in self.of_domain.values())

    @property
    def generates(self) -> bool:
        """Whether any domain's completions are made in another way than the whole training's."""
        return any(map(self.differ, _GENERATED))

    @property
    def samplings(self) -> list[tuple[float, float]]:
        """What rows of any domain are sampled with, each once, in one order on all ranks."""
        return list(dict.fromkeys(own.sampling for own in (*self.of_domain.values(), self.whole)))

    @property
    def temperatures(self) -> list[float]:
        """The temperatures of all rows, each once, in one order on all ranks."""
        return list(dict.fromkeys(own.temperature for own in (*self.of_domain.values(), self.whole)))

    def longest(self, rows: Sequence[str], sampling: tuple[float, float]) -> int | None:
        """The longest completion of any domain that is sampled so; ``rows`` may be of none."""
        own = [one for one in self.of_domain.values() if one.sampling == sampling]
        if not set(rows) <= set(self.of_domain) or not own:
            return self.whole.max_completion_length
        lengths = [one.max_completion_length for one in own]
        return None if None in lengths else max(filter(None, lengths))


def checked_per_domain(given: Any) -> dict[str, dict[str, Any]] | None:
    """``DomainGRPOConfig.per_domain`` as plain data, without settings that are null.

    Raises:
        ConfigError: it is no mapping, or has an unknown setting or a value out of range.
    """
    if given is None:
        return None
    if not isinstance(given, Mapping) or not all(isinstance(own, Mapping) for own in given.values()):
        raise ConfigError(
            f"per_domain={given!r}: give a mapping from domain to settings, such as {{'math': {{'temperature': 0.8}}}}."
        )
    return {str(name): _checked(str(name), own) for name, own in given.items()}


def _checked(name: str, own: Mapping[str, Any]) -> dict[str, Any]:
    try:
        return DomainTraining.model_validate(own).own
    except ValidationError as error:
        findings = (explained(DomainTraining, details) for details in error.errors(include_url=False))
        lines = [f"per_domain[{name!r}]: {'.'.join(map(str, path))}: {message}" for path, message in findings]
        raise ConfigError("\n".join(lines)) from error


def generations_of(args: Any, domains: Sequence[str]) -> dict[str, int]:
    """Completions of one prompt of every domain."""
    per_domain = getattr(args, "per_domain", None) or {}
    return {name: per_domain.get(name, {}).get("num_generations", args.num_generations) for name in domains}


# Refusals


def check_per_domain(args: Any, per_domain: PerDomain | None) -> None:
    """Refuses settings of domains that do not go with those of the whole training, or would not be exact with them.

    Raises:
        ConfigError: a value that the whole training does not allow.
        UnsupportedError: a combination that would not be exact.
    """
    for name, own in (per_domain or {}).items():
        _check_values(args, name, own)
        _check_generation(args, name, own)
        _check_loss(args, name, own)


def check_rollouts(per_domain: PerDomain | None, *, own_rollouts: str | None, images: bool) -> None:
    """Refuses settings of domains that ways of making completions beside TRL's own would pass over.

    Args:
        own_rollouts: the argument of the trainer that makes completions in another way; None without one.
        images: whether prompts have images.

    Raises:
        UnsupportedError: naming the setting and what to do.
    """
    for name, own in (per_domain or {}).items():
        for key in (*_GENERATED, "num_generations"):
            if own_rollouts and key in own:
                raise UnsupportedError(
                    f"Domain {name!r}: {key} of one domain, and {own_rollouts}= makes completions of several turns or "
                    f"in its own way, which would pass over it. Leave one of them out, or set {key} for all domains."
                )
            if images and key in _SAMPLED and key in own:
                raise UnsupportedError(
                    f"Domain {name!r}: {key} of one domain needs rows that are sampled and scored apart, and prompts "
                    f"with images are not. Set {key} for all domains."
                )


def _check_values(args: Any, name: str, own: Mapping[str, Any]) -> None:
    longest, length = args.max_completion_length, own.get("max_completion_length", 0)
    if longest is not None and length > longest:
        raise ConfigError(
            f"Domain {name!r}: max_completion_length={length} is above the whole training's ({longest}), for which "
            f"the engine has room. Set training.max_completion_length to {length} or more."
        )
    if own.get("beta") and not args.beta:
        raise ConfigError(
            f"Domain {name!r}: beta={own['beta']} needs a reference model, which is there only where the whole "
            "training's beta is above 0. Set training.beta above 0, and beta: 0 in the domains without a KL term."
        )


def _check_generation(args: Any, name: str, own: Mapping[str, Any]) -> None:
    chosen = args.generation_kwargs or {}
    for key in _SAMPLED:
        if key not in own:
            continue
        if key in chosen:
            raise ConfigError(
                f"Domain {name!r}: {key}={own[key]}, and generation_kwargs has {key}={chosen[key]} for all domains. "
                "Take it out of generation_kwargs."
            )
        if reason := _sampled_together(args):
            raise UnsupportedError(f"Domain {name!r}: {key} of one domain, and {reason} Set {key} for all domains.")
    if "stop" in own and args.mask_truncated_completions:
        raise UnsupportedError(
            f"Domain {name!r}: stop, and mask_truncated_completions=True takes a completion that a stop string ends "
            "for one that was cut off. Use mask_truncated_completions=False, or leave stop out."
        )


def _sampled_together(args: Any) -> str | None:
    """Why rows of different domains cannot be sampled apart."""
    if args.use_vllm and args.vllm_mode == "server":
        return "a vLLM server is given the rows of all ranks at once. Use vllm_mode='colocate'."
    if args.use_vllm and args.vllm_tensor_parallel_size > 1:
        return "vLLM over several GPUs needs equally many rows on each. Use vllm_tensor_parallel_size=1."
    if args.use_transformers_continuous_batching:
        return "continuous batching was never shown to sample domains apart. Leave it out."
    return None


def _check_loss(args: Any, name: str, own: Mapping[str, Any]) -> None:
    clips = [key for key in ("epsilon", "epsilon_high") if key in own]
    if clips and args.loss_type in ("sapo", "vespo"):
        raise ConfigError(f"Domain {name!r}: {clips[0]}, and loss_type={args.loss_type!r} clips nothing. Leave it out.")
    if "num_generations" not in own or own["num_generations"] == args.num_generations:
        return
    of_one = f"Domain {name!r}: num_generations of one domain"
    if args.scale_rewards == "batch" or args.multi_objective_aggregation == "normalize_then_sum":
        raise UnsupportedError(
            f"{of_one}, and scale_rewards={args.scale_rewards!r} with multi_objective_aggregation="
            f"{args.multi_objective_aggregation!r} normalises over a batch of groups of one size. Use "
            "scale_rewards='group' or 'none', and 'sum_then_normalize'."
        )
    if getattr(args, "dynamic_sampling", 0):
        raise UnsupportedError(
            f"{of_one}, and dynamic_sampling replaces groups of one size. Use dynamic_sampling=0, or one "
            "num_generations."
        )
    if build_balance(getattr(args, "balance", None) or "none").within_domains:
        raise UnsupportedError(
            f"{of_one}, and balance={args.balance!r} makes prompts count alike by their completions. Use "
            "balance='tokens', or one num_generations."
        )
    if args.use_vllm and args.vllm_mode == "server":
        raise UnsupportedError(
            f"{of_one}, and a vLLM server is asked for equally many completions of every prompt. Use "
            "vllm_mode='colocate', or one num_generations."
        )
