"""Scores a model on the held-out prompts of every domain: mean reward with a 95 % interval, greedy score, lengths."""

import asyncio
import inspect
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self

from counterpoint.config import Config
from counterpoint.domains import Domain, WeightedReward
from counterpoint.domains.domain_rewards import DOMAIN_COLUMN, ROW_COLUMN, build_domain_rewards
from counterpoint.errors import RewardError
from counterpoint.evaluation.sampling import ALONE, Completion, Engine, Prompt, Sampling, generate, render_prompt
from counterpoint.launch import Launch
from counterpoint.masking import masked
from counterpoint.rewards import Reward
from counterpoint.rewards.values import FAILED_MARK, LARGEST_PART
from counterpoint.stats import mean_interval


@dataclass(frozen=True)
class Sample:
    """One completion with its reward, None where it was not scored; ``reference`` is the row's ``answer``, if any."""

    prompt: str
    completion: str
    reward: float | None
    reference: str | None


@dataclass(frozen=True)
class DomainScore:
    """What one domain scored.

    ``mean`` with its 95 % interval ``low``, ``high`` over prompts (samples of one prompt are not independent);
    ``greedy`` is the mean reward of greedy decoding; ``scores`` the mean per prompt, in the order of the held-out rows;
    ``completion_length`` in tokens; ``truncated`` the share that reached the limit; ``seconds`` of wall time.
    ``parts`` holds the mean of every reward function, without its weight, where the domain has several. Completions
    that no function scored are left out of all means; ``unscored`` counts them, greedy ones too. None stands for the
    score of a prompt without any, and for ``greedy`` where nothing was scored. ``metrics`` holds the means of the
    domain's metrics over the completions that each of them scored. ``reward_cut`` counts those, greedy ones too, that a
    reward model could not read whole.
    """

    domain: str
    mean: float
    low: float
    high: float
    greedy: float | None
    prompts: int
    samples: int
    completion_length: float
    truncated: float
    seconds: float
    scores: tuple[float | None, ...]
    parts: Mapping[str, float | None] = field(default_factory=dict)
    unscored: int = 0
    examples: tuple[Sample, ...] = ()
    metrics: Mapping[str, float | None] = field(default_factory=dict)
    reward_cut: int = 0

    def to_json(self) -> dict[str, Any]:
        """The fields of one line of ``evals.jsonl``."""
        left_out = ("examples", "parts", "unscored", "metrics", "reward_cut")
        fields = {key: value for key, value in vars(self).items() if key not in left_out}
        fields["scores"] = [None if score is None else round(score, 6) for score in self.scores]
        metrics = {name: None if value is None else round(value, 6) for name, value in self.metrics.items()}
        seldom = {
            "parts": dict(self.parts),
            "unscored": self.unscored,
            "metrics": metrics,
            "reward_cut": self.reward_cut,
        }
        return fields | {key: value for key, value in seldom.items() if value}


@dataclass(frozen=True)
class EvaluationPlan:
    """How every domain is evaluated: samples per prompt, greedy decoding beside them, examples kept for people.

    ``own`` is what domains have for themselves of ``training``, by their names.
    """

    samples: int = 4
    greedy: bool = True
    examples: int = 8
    sampling: Sampling = field(default_factory=Sampling)
    own: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def sampling_of(self, domain: str) -> Sampling:
        """How a domain's completions are drawn: what it has for itself stands above ``sampling``."""
        return self.sampling.within(self.own.get(domain, {}))

    @classmethod
    def of_config(cls, config: Config, max_new_tokens: int | None) -> Self:
        """How a run's domains are evaluated; ``max_new_tokens`` is used where the configuration gives none."""
        settings = config.evaluation
        sampling = Sampling.of_training(
            config.training,
            temperature=settings.temperature,
            top_p=settings.top_p,
            max_new_tokens=settings.max_new_tokens or max_new_tokens or Sampling.max_new_tokens,
            batch_size=settings.batch_size,
            seed=settings.seed,
        )
        own = {name: domain.training.own for name, domain in config.domains.items()}
        return cls(settings.samples, settings.greedy, config.run.samples, sampling, own)


def evaluate(
    model: Any,
    tokenizer: Any,
    domains: Sequence[Domain],
    plan: EvaluationPlan,
    on_progress: Callable[[str, int, int], None] = lambda domain, done, total: None,
    launch: Launch = ALONE,
    engine: Engine | None = None,
) -> list[DomainScore]:
    """One :class:`DomainScore` per domain, on its held-out rows.

    The ranks of ``launch`` generate a part each, the first one scores, and all return the same.

    The same prompts and the same random stream at every call, so scores before and after can be compared in pairs.

    Args:
        on_progress: called with the domain, completions done and completions in total.
        launch: the ranks that take part.
        engine: the rollout engine of training, where it is not the model itself.

    Raises:
        RewardError: a reward function raised or returned something that is no reward.
    """

    def complete(prompts: Sequence[Prompt], sampling: Sampling, report: Callable[[int], None]) -> list[Completion]:
        return generate(model, tokenizer, prompts, sampling, report, launch, engine)

    return [_evaluate_domain(complete, tokenizer, domain, plan, on_progress, launch) for domain in domains]


Complete = Callable[[Sequence[Prompt], Sampling, Callable[[int], None]], list[Completion]]


def _evaluate_domain(
    complete: Complete,
    tokenizer: Any,
    domain: Domain,
    plan: EvaluationPlan,
    on_progress: Callable[[str, int, int], None],
    launch: Launch,
) -> DomainScore:
    start = time.perf_counter()
    sampling = plan.sampling_of(domain.name)
    prompts = [row["prompt"] for row in domain.evaluation]
    total = len(prompts) * (plan.samples + int(plan.greedy))
    done = 0

    def report(count: int) -> None:
        nonlocal done
        done += count
        on_progress(domain.name, done, total)

    repeated = [prompt for prompt in prompts for _ in range(plan.samples)]
    rows = [row for row in domain.evaluation for _ in range(plan.samples)]
    completions = complete(repeated, sampling, report)
    rewards = launch.share(lambda: score_rows(domain, rows, completions))
    metrics = launch.share(lambda: measure_rows(domain, rows, completions))
    greedy = Rewards([], {})
    if plan.greedy:
        certain = complete(prompts, replace(sampling, temperature=0.0), report)
        greedy = launch.share(lambda: score_rows(domain, domain.evaluation, certain))
    scores = [mean(rewards.totals[i : i + plan.samples]) for i in range(0, len(rows), plan.samples)]
    if not any(score is not None for score in scores):
        raise RewardError(
            f"domain {domain.name!r}: none of {len(rows)} completions was scored, every reward function returned None "
            "for each. Give the domain a reward that scores its held-out rows."
        )
    interval = mean_interval(scores)
    step = max(1, len(prompts) // max(1, plan.examples))
    return DomainScore(
        domain=domain.name,
        mean=interval.value,
        low=interval.low,
        high=interval.high,
        greedy=mean(greedy.totals),
        prompts=len(prompts),
        samples=plan.samples,
        completion_length=statistics.fmean(c.num_tokens for c in completions),
        truncated=statistics.fmean(c.truncated for c in completions),
        seconds=time.perf_counter() - start,
        scores=tuple(scores),
        parts={name: mean(values) for name, values in rewards.parts.items()} if len(domain.rewards) > 1 else {},
        unscored=[*rewards.totals, *greedy.totals].count(None),
        examples=tuple(
            _sample(plan, tokenizer, rows[i], completions[i], rewards.totals[i])
            for i in range(0, len(rows), step * plan.samples)
        )[: plan.examples],
        metrics={name: mean(values) for name, values in metrics.items()},
        reward_cut=rewards.cut + greedy.cut,
    )


def mean(values: Sequence[float | None]) -> float | None:
    """The mean of those that are there; None without any."""
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None


@dataclass(frozen=True)
class Rewards:
    """The weighted total of every row, None where every reward function left it out or one failed, the parts, and how
    many completions a reward model could not read whole.
    """

    totals: list[float | None]
    parts: dict[str, list[float | None]]
    cut: int = 0


def score_rows(domain: Domain, rows: Sequence[Mapping[str, Any]], completions: Sequence[Completion]) -> Rewards:
    """The rewards of one completion per row.

    Raises:
        RewardError: a function raised (naming the row and its completion) or returned something that is no reward.
    """
    totals: list[float | None] = [None] * len(rows)
    parts: dict[str, list[float | None]] = {}
    failed: set[int] = set()
    models = [reward.function for reward in domain.rewards if isinstance(reward.function, Reward)]
    cut = -sum(model.cut for model in models)
    for reward, values in _called(domain, domain.rewards, rows, completions):
        failed |= {i for i, value in enumerate(values) if value == FAILED_MARK}
        parts[reward.name] = [None if value == FAILED_MARK else value for value in values]
        for i, value in enumerate(parts[reward.name]):
            if value is not None:
                totals[i] = (totals[i] or 0.0) + _part(domain.name, reward, value)
    cut += sum(model.cut for model in models)
    return Rewards([None if i in failed else total for i, total in enumerate(totals)], parts, cut)


def measure_rows(
    domain: Domain, rows: Sequence[Mapping[str, Any]], completions: Sequence[Completion]
) -> dict[str, list[float | None]]:
    """What the domain's metrics give for one completion per row, None where one gave nothing or failed.

    Raises:
        RewardError: as ``score_rows``.
    """
    return {
        metric.name: [None if value == FAILED_MARK else value for value in values]
        for metric, values in _called(domain, domain.metrics, rows, completions)
    }


def _called(
    domain: Domain,
    rewards: Sequence[WeightedReward],
    rows: Sequence[Mapping[str, Any]],
    completions: Sequence[Completion],
) -> Iterator[tuple[WeightedReward, list[float | None]]]:
    """Every reward with its values."""
    if not rewards:
        return
    chat = not isinstance(rows[0]["prompt"], str)
    texts = [[{"role": "assistant", "content": c.text}] if chat else c.text for c in completions]
    columns: dict[str, list[Any]] = {
        key: [row.get(key) for row in rows] for row in rows[:1] for key in row if key != "prompt"
    }
    columns = {"domain": [domain.name] * len(rows)} | columns
    columns |= {DOMAIN_COLUMN: [domain.name] * len(rows), ROW_COLUMN: list(range(len(rows)))}
    named = {reward.name: reward.function for reward in rewards}
    functions = build_domain_rewards({domain.name: named}, [domain.name])
    for reward, function in zip(rewards, functions, strict=True):
        values = function(prompts=[row["prompt"] for row in rows], completions=texts, **columns)
        yield reward, asyncio.run(values) if inspect.iscoroutine(values) else values


def _part(domain: str, reward: WeightedReward, value: float) -> float:
    part = reward.weight * value
    if abs(part) > LARGEST_PART:
        raise RewardError(
            f"domain {domain!r}: reward {reward.name!r} is {value:g} and its weight {reward.weight:g}; their product "
            f"may not exceed {LARGEST_PART:g}. Scale the reward, or give it a smaller weight."
        )
    return part


def _sample(
    plan: EvaluationPlan, tokenizer: Any, row: Mapping[str, Any], completion: Completion, reward: float | None
) -> Sample:
    answer = row.get("answer")
    return Sample(
        prompt=masked(render_prompt(tokenizer, row["prompt"], plan.sampling.chat_template_kwargs)),
        completion=masked(completion.text),
        reward=reward,
        reference=None if answer is None else masked(str(answer)),
    )
