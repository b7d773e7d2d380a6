"""What every domain weighs in a step, and the rules that set it: ``balance`` in a configuration. No torch.

TRL's loss of a step is a sum over the scored tokens of all domains, in which each domain has an *effective weight*: the
factor in front of its mean loss, as a fraction of all. It follows from what the loss type counts by (``COUNTS_BY``). A
:class:`Balance` gives each domain's loss (or gradient) a factor in every step, so that the weights become those it
means to have. The factors keep their weighted sum: with one domain, and where nothing is out of balance, all are 1.

A new rule is one class with a ``name`` here, that stands in ``BALANCES``.
"""

import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from annotated_types import Ge, Gt, doc

from counterpoint.errors import ConfigError, nearest
from counterpoint.registry import Named, Path, option_problems

COUNTS_BY: Mapping[str, str] = {
    "dapo": "tokens",
    "cispo": "tokens",
    "vespo": "tokens",
    "dr_grpo": "tokens",
    "luspo": "tokens",
    "grpo": "completions",
    "sapo": "completions",
}
"""TRL's loss type -> what a domain counts by: its scored tokens, or those of its completions that have any."""

DEFAULT_LOSS = "dapo"
"""TRL's own default."""

MAX_ROUNDS = 100
"""The most rounds of extra generation that ``dynamic_sampling`` may ask for."""

Factors = dict[str, float]


@dataclass(frozen=True)
class Part:
    """What a domain has of a step, over all ranks. *Scored* tokens are those in the loss: of the model, not masked."""

    completions: int
    """Completions, scored or not; their fraction is the domain's share of the prompts."""
    live: int
    """Completions of prompts with scored tokens, in whichever of their completions."""
    scored: int
    """Completions with scored tokens."""
    tokens: int
    """Scored tokens."""
    signal_completions: int
    """Completions of prompts that teach: those whose completions differ in reward."""
    signal_scored: int
    """Those of them with scored tokens."""
    signal_tokens: int
    """Scored tokens of those prompts."""

    def amount(self, loss_type: str, *, signal: bool = False) -> int:
        """What the loss counts the domain by; with ``signal`` only what it has of prompts that teach."""
        if COUNTS_BY[loss_type] == "tokens":
            return self.signal_tokens if signal else self.tokens
        return self.signal_scored if signal else self.scored


Step = Mapping[str, Part]
"""Domain -> what it has of the step; the domains that are in it."""


def fractions(amounts: Mapping[str, float]) -> Factors:
    """Each amount over their sum; empty where that is 0."""
    total = sum(amounts.values())
    return {name: amount / total for name, amount in amounts.items()} if total > 0 else {}


def prompt_shares(step: Step) -> Factors:
    """The share of the step's prompts that each domain has."""
    return fractions({name: part.completions for name, part in step.items()})


def effective_weights(step: Step, loss_type: str, factors: Mapping[str, float]) -> Factors:
    """The factor in front of each domain's mean loss, as a fraction of all, where its loss is multiplied by
    ``factors``."""
    return fractions({name: factors.get(name, 1.0) * part.amount(loss_type) for name, part in step.items()})


def factors_for(wanted: Mapping[str, float], amounts: Mapping[str, float]) -> Factors:
    """Factors with which domains that count by ``amounts`` get weights in the proportions ``wanted``.

    ``sum(factor * amount)`` stays ``sum(amount)``, so one domain alone has the factor 1, as has one without an amount.
    """
    live = [name for name, amount in amounts.items() if amount > 0]
    total, whole = sum(amounts[name] for name in live), sum(wanted[name] for name in live)
    found = dict.fromkeys(amounts, 1.0)
    if len(live) > 1:
        found |= {name: wanted[name] / whole * total / amounts[name] for name in live}
    return found


def weighted(factors: Mapping[str, float], amounts: Mapping[str, float], weights: Mapping[str, float]) -> Factors:
    """``factors`` times ``weights``, 1 for a domain without one, so that ``sum(factor * amount)`` stays.

    One domain alone keeps its factor, as does one without an amount.
    """
    live = [name for name, amount in amounts.items() if amount > 0]
    found = dict(factors)
    if len(live) > 1:
        changed = {name: factors[name] * weights.get(name, 1.0) for name in live}
        before, after = (sum(of[name] * amounts[name] for name in live) for of in (factors, changed))
        found |= {name: factor * (before / after) for name, factor in changed.items()}
    return found


def expected_weights(loss_type: str, shares: Mapping[str, float], lengths: Mapping[str, float]) -> Factors:
    """The effective weights of domains with these shares of the prompts and mean lengths of their completions."""
    by_tokens = COUNTS_BY[loss_type] == "tokens"
    return fractions({name: share * (lengths[name] if by_tokens else 1.0) for name, share in shares.items()})


def out_of_balance(weights: Mapping[str, float], shares: Mapping[str, float], loss_type: str) -> str | None:
    """A sentence on domains whose effective weight is more than twice their share, or less than half of it."""
    odd = [
        f"{name} has {shares[name]:.0%} of the prompts and {weight:.0%} of the loss"
        for name, weight in weights.items()
        if name in shares and not shares[name] / 2 <= weight <= shares[name] * 2
    ]
    if not odd:
        return None
    return (
        f"{', '.join(odd)}: loss_type {loss_type!r} counts a domain by its {COUNTS_BY[loss_type]}. If domains are to "
        "weigh what their shares say, set `balance: tokens` (docs/weights.md)."
    )


class Balance(Named):
    """Base of all rules."""

    uses_counts: ClassVar[bool] = True
    """Whether the factors of a step follow from what it holds, and multiply each domain's loss."""

    uses_gradients: ClassVar[bool] = False
    """Whether they follow from the lengths of the domains' gradients, and multiply those."""

    within_domains: ClassVar[bool] = False
    """Whether prompts of one domain are made to count alike, too."""

    def factors(self, step: Step, loss_type: str) -> Factors:
        """The factor of each domain's loss in a step, known before its first forward pass."""
        return dict.fromkeys(step, 1.0)

    def gradient_factors(self, step: Step, lengths: Mapping[str, float]) -> Factors:
        """The factor of each domain's gradient, from the lengths of all, before they are combined."""
        return dict.fromkeys(lengths, 1.0)

    def see(self, rewards: Mapping[str, float], shares: Mapping[str, float]) -> None:
        """Takes note of the domains' mean rewards in a generation, before it is trained on."""

    def state_dict(self) -> dict[str, Any]:
        """What it remembers, of plain Python objects."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from what ``state_dict()`` gave; from the start where that is empty."""


class NoBalance(Balance):
    """TRL's own loss: a domain weighs what the loss type counts it by."""

    name = "none"
    uses_counts = False


class TokensBalance(Balance):
    """Each domain's loss over its own tokens, times its share of the step's prompts."""

    name = "tokens"

    def factors(self, step: Step, loss_type: str) -> Factors:
        """Weights in proportion to the prompts."""
        return factors_for(prompt_shares(step), {name: part.amount(loss_type) for name, part in step.items()})


class PromptsBalance(Balance):
    """Every prompt counts the same, also inside its domain: each prompt's loss over its own tokens."""

    name = "prompts"
    within_domains = True

    def factors(self, step: Step, loss_type: str) -> Factors:
        """Weights in proportion to the prompts that have anything in the loss."""
        wanted = {name: part.live for name, part in step.items()}
        return factors_for(wanted, {name: part.amount(loss_type) for name, part in step.items()})


class SignalBalance(Balance):
    """As `tokens`, over the prompts that teach: those whose completions differ in reward."""

    name = "signal"
    paper = "2602.05547"

    def __init__(
        self, most: Annotated[float, Ge(1), doc("The most that missing signal may multiply a domain's loss by.")] = 5.0
    ) -> None:
        self.most = most

    def factors(self, step: Step, loss_type: str) -> Factors:
        """Weights over prompts that teach, in proportion to all prompts."""
        amounts = {
            name: max(teaching, part.amount(loss_type) / self.most)
            for name, part in step.items()
            if (teaching := part.amount(loss_type, signal=True))
        }
        return dict.fromkeys(step, 1.0) | factors_for(prompt_shares(step), amounts)


class NormBalance(Balance):
    """The gradients of all domains get the same length, times their share of the step's prompts."""

    name = "norm"
    uses_counts = False
    uses_gradients = True

    def __init__(
        self, most: Annotated[float, Ge(1), doc("The most that a gradient may be multiplied by.")] = 10.0
    ) -> None:
        self.most = most

    def gradient_factors(self, step: Step, lengths: Mapping[str, float]) -> Factors:
        """Lengths in proportion to the prompts."""
        found = factors_for(prompt_shares(step), lengths)
        return {name: min(factor, self.most) for name, factor in found.items()}


class WorstBalance(Balance):
    """Weights follow the domain with the least improvement and reward: the rule of MT-GRPO."""

    name = "worst"
    paper = "2602.05547"
    _weights: Factors
    _logits: Factors
    _moments: dict[str, tuple[float, float]]
    _rewards: Factors
    _updates: int

    def __init__(
        self,
        learning_rate: Annotated[float, Gt(0), doc("Of Adam on the logarithms of the weights.")] = 0.025,
        reward: Annotated[float, Ge(0), doc("How much the mean reward counts beside its improvement.")] = 0.2,
        clip: Annotated[float, Gt(0), doc("Largest improvement, and fall, of one generation that counts.")] = 0.1,
        decay: Annotated[float, Ge(0), doc("Adam's weight decay, which pulls the weights together.")] = 1e-5,
    ) -> None:
        self.learning_rate, self.reward, self.clip, self.decay = learning_rate, reward, clip, decay
        self.load_state_dict({})

    def factors(self, step: Step, loss_type: str) -> Factors:
        """Weights as they follow from the rewards of the generations before."""
        wanted = prompt_shares(step) | {name: self._weights[name] for name in step if name in self._weights}
        return factors_for(wanted, {name: part.amount(loss_type) for name, part in step.items()})

    def see(self, rewards: Mapping[str, float], shares: Mapping[str, float]) -> None:
        """Settles the weights of this generation from those before it, then counts its rewards in."""
        if not self._logits:
            self._logits = {name: math.log(share) for name, share in fractions(shares).items()}
        self._weights = _softmax(self._logits)
        known = {name: mean for name, mean in rewards.items() if math.isfinite(mean)}
        now = self._rewards | known
        if len(now) == len(self._logits):
            # s = I + lambda J; gradient z (s - z's mean of s); a domain that was not there has not improved
            gains = {name: mean - self._rewards.get(name, mean) for name, mean in now.items()}
            scores = {
                name: max(-self.clip, min(self.clip, gain)) + self.reward * now[name] for name, gain in gains.items()
            }
            mean = sum(self._weights[name] * score for name, score in scores.items())
            self._descend({name: self._weights[name] * (score - mean) for name, score in scores.items()})
        self._rewards = now

    def _descend(self, gradient: Mapping[str, float]) -> None:
        """One step of AdamW with its usual constants; its first and second moments start at zero."""
        self._updates += 1
        first, second = 0.9, 0.999
        for name, slope in gradient.items():
            mean, square = self._moments.get(name, (0.0, 0.0))
            mean, square = first * mean + (1 - first) * slope, second * square + (1 - second) * slope**2
            self._moments[name] = (mean, square)
            size = math.sqrt(square / (1 - second**self._updates)) + 1e-8
            kept = self._logits[name] * (1 - self.learning_rate * self.decay)
            self._logits[name] = kept - self.learning_rate * mean / (1 - first**self._updates) / size

    def state_dict(self) -> dict[str, Any]:
        """Weights in use, their successors' logarithms, Adam's moments and the last rewards."""
        return {
            "weights": self._weights,
            "logits": self._logits,
            "moments": {name: list(pair) for name, pair in self._moments.items()},
            "rewards": self._rewards,
            "updates": self._updates,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from ``state``."""
        self._weights = dict(state.get("weights", {}))
        self._logits = dict(state.get("logits", {}))
        self._moments = {name: (pair[0], pair[1]) for name, pair in state.get("moments", {}).items()}
        self._rewards = dict(state.get("rewards", {}))
        self._updates = state.get("updates", 0)


def _softmax(logits: Mapping[str, float]) -> Factors:
    largest = max(logits.values())
    return fractions({name: math.exp(logit - largest) for name, logit in logits.items()})


BALANCES: dict[str, type[Balance]] = {
    kind.name: kind for kind in (NoBalance, TokensBalance, PromptsBalance, SignalBalance, NormBalance, WorstBalance)
}
"""The rules by name."""

BalanceSpec = str | Mapping[str, Any]
"""A name in ``BALANCES``, or ``{"name": NAME, "options": {...}}``."""


def build_balance(spec: BalanceSpec) -> Balance:
    """The rule that ``spec`` names, with its options and without memory.

    Raises:
        ConfigError: an unknown name or option, or a value that it does not take.
    """
    long: dict[str, Any] = {"name": spec} if isinstance(spec, str) else dict(spec)
    for key in long:
        if key not in ("name", "options"):
            raise ConfigError(f"balance={spec!r}: unknown key {key!r}. {nearest(str(key), ('name', 'options'))}")
    for path, message in balance_problems(long):
        raise ConfigError(f"balance={spec!r}: {' '.join(map(str, path))} {message}")
    return BALANCES[long["name"]](**(long.get("options") or {}))


def balance_problems(spec: Mapping[str, Any], domains: Collection[str] | None = None) -> Iterator[tuple[Path, str]]:
    """Path and message of everything wrong in the long form of a rule; ill-typed parts are passed over."""
    name, options = spec.get("name"), spec.get("options")
    if name is None:
        yield ("name",), f"is missing. Write one of: {', '.join(BALANCES)}."
    elif isinstance(name, str) and name not in BALANCES:
        yield ("name",), f"unknown balance {name!r}: {nearest(name, BALANCES)}"
    elif isinstance(name, str) and isinstance(options, Mapping):
        for path, message in option_problems(name, BALANCES[name], options, domains):
            yield ("options", *path), message
