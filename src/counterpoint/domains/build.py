"""The domains of a configuration, ready for training: rows of all sources, held-out rows, rewards, a summary."""

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from counterpoint.config import Config, DomainConfig, PocketSource
from counterpoint.config.domain import MetricConfig, RewardConfig
from counterpoint.config.sources import Source, listed, source_names
from counterpoint.domains.prompts import prompt_key
from counterpoint.domains.rows import Made, RowMaker, WeightedReward
from counterpoint.domains.sampler import MixedRows
from counterpoint.domains.shares import Quotas
from counterpoint.domains.sources import Row, read_pocket_test, read_source
from counterpoint.errors import CounterpointError, DomainError


@dataclass(frozen=True)
class LoadSummary:
    """What became of the rows of a domain; every number counts rows.

    ``sources`` has the same numbers for each of several sources, by name.
    """

    rows_read: int
    dropped_filtered: int
    dropped_too_long: int
    dropped_unusable: int
    dropped_held_out: int
    train_rows: int
    evaluation_rows: int
    sources: dict[str, dict[str, int]] = field(default_factory=dict)

    def __str__(self) -> str:
        """``7,000 rows to train on, 64 held out; dropped of 7,473 read: 12 by filter``, and a line for each source."""
        of_sources = (f"\n  {name}: {_sentence(counts)}" for name, counts in self.sources.items())
        return _sentence(vars(self)) + "".join(of_sources)


def _sentence(counts: Mapping[str, Any]) -> str:
    reasons = {
        "dropped_filtered": "by filter",
        "dropped_too_long": "too long",
        "dropped_unusable": "of no use to the reward",
        "dropped_held_out": "with held-out prompts",
    }
    dropped = ", ".join(f"{counts[key]:,} {why}" for key, why in reasons.items() if counts[key])
    kept = f"{counts['train_rows']:,} rows to train on, {counts['evaluation_rows']:,} held out"
    return f"{kept}; dropped of {counts['rows_read']:,} read: {dropped}" if dropped else kept


@dataclass(frozen=True)
class Domain:
    """A domain ready for training: rows have ``prompt``, ``domain`` and the columns of its rewards and its metrics.

    Rows of several sources have ``domain_source`` too; ``train`` is a ``MixedRows`` where the sources have shares.
    """

    name: str
    train: list[Row]
    evaluation: list[Row]
    rewards: tuple[WeightedReward, ...]
    share: float
    summary: LoadSummary
    metrics: tuple[WeightedReward, ...] = ()


def load_domains(config: Config, tokenizer: Any) -> list[Domain]:
    """Every domain with its training rows, held-out rows and rewards, in the order of the configuration.

    The result depends on the configuration, the data and the tokenizer alone.

    Args:
        config: a checked configuration.
        tokenizer: the model's tokenizer; prompts are measured with it.

    Raises:
        DomainError: one line per domain that cannot be used, each with what was found and what to do.
    """
    domains: list[Domain] = []
    problems: list[str] = []
    for name in config.domains:
        try:
            domains.append(build_domain(name, config, tokenizer))
        except CounterpointError as error:
            problems.append(f"domains.{name}: {error}")
    if problems:
        raise DomainError("\n".join(problems))
    return domains


def build_domain(name: str, config: Config, tokenizer: Any) -> Domain:
    """The domain ``name`` of ``config``.

    Raises:
        DomainError: anything that would make it unusable, before any training.
    """
    domain = config.domains[name]
    rewards, metrics = build_rewards(domain.reward), build_rewards(domain.metrics)
    maker = RowMaker(name, config, (*rewards, *metrics), tokenizer)
    sources = _by_name(domain.source)
    made = maker.make({label: read_source(source, domain.limit) for label, source in sources.items()})
    size = domain.evaluation.size or config.evaluation.prompts
    seed = f"{config.evaluation.seed}\n{name}"
    held_out = _hold_out(domain, maker, made, size, seed)
    train = _without(made, held_out)
    rows = _interleaved(train, _weights(sources, train), seed)
    evaluation = _interleaved(held_out, {label: len(drawn) for label, drawn in held_out.items()}, seed)
    if maker.several:  # rewards get columns, so all rows need the same ones
        columns = dict.fromkeys(column for row in [*rows, *evaluation] for column in row)
        rows, evaluation = ([columns | row for row in part] for part in (rows, evaluation))
    if any(source.share is not None for source in sources.values()):
        rows = MixedRows(rows, _weights(sources, train))
    return Domain(name, rows, evaluation, rewards, domain.share, _summary(made, train, held_out), metrics)


def build_rewards(rewards: Sequence[MetricConfig]) -> tuple[WeightedReward, ...]:
    """``rewards`` ready to be called; a metric has the weight 1."""
    from counterpoint.rewards import build_reward
    from counterpoint.rewards._registry import make_importable

    for reward in rewards:
        if reward.folder is not None:
            make_importable(reward.folder)
    return tuple(
        WeightedReward(
            reward.label or reward.name,
            reward.weight if isinstance(reward, RewardConfig) else 1.0,
            build_reward(reward.name, **reward.options),
        )
        for reward in rewards
    )


def _by_name(source: Source | tuple[Source, ...]) -> dict[str, Source]:
    sources = listed(source)
    return dict(zip(source_names(sources), sources, strict=True))


def _weights(sources: Mapping[str, Source], rows: Mapping[str, Sequence[Row]]) -> dict[str, float]:
    """The shares of sources inside their domain; without shares every row weighs the same."""
    return {label: source.share or len(rows[label]) for label, source in sources.items()}


def _hold_out(
    domain: DomainConfig, maker: RowMaker, made: Mapping[str, Made], size: int, seed: str
) -> dict[str, list[Row]]:
    """``size`` held-out rows with different prompts, each source by its share; by source.

    They are drawn from the evaluation sources, from a pocket task's own test rows, or else from the training rows.
    """
    given = domain.evaluation.source
    sources = _by_name(domain.source if given is None else given)
    tests = {
        label: read_pocket_test(source, size) if isinstance(source, PocketSource) else read_source(source, None)
        for label, source in sources.items()
        if given is not None or isinstance(source, PocketSource)
    }
    made_tests = maker.make(tests, known=frozenset().union(*(part.lacking for part in made.values())))
    pools = {label: (made_tests if label in tests else made)[label].rows for label in sources}
    sizes = pools if given is not None else {label: part.rows for label, part in made.items()}
    counts = Quotas(_weights(sources, sizes), size, "carry").counts(0)
    held_out: dict[str, list[Row]] = {}
    for label, count in zip(sources, counts, strict=True):
        alone = len(sources) == 1
        unique = _different(pools[label], held_out)
        if len(unique) < count + (label not in tests):  # one at least is left to train on
            raise DomainError(f"{'' if alone else f'{label}: '}{_too_few(count, len(unique), label in tests)}")
        chosen = set(random.Random(seed if alone else f"{seed}\n{label}").sample(sorted(unique), count))
        held_out[label] = [row for key, row in unique.items() if key in chosen]
    return held_out


def _keys(parts: Mapping[str, Iterable[Row]]) -> set[str]:
    return {prompt_key(row["prompt"]) for rows in parts.values() for row in rows}


def _different(rows: Iterable[Row], taken: Mapping[str, Iterable[Row]]) -> dict[str, Row]:
    """The first row of every prompt that is not in ``taken``, by the prompt's key."""
    known, found = _keys(taken), dict[str, Row]()
    for row in rows:
        found.setdefault(prompt_key(row["prompt"]), row)
    return {key: row for key, row in found.items() if key not in known}


def _too_few(asked: int, found: int, from_tests: bool) -> str:
    if from_tests:
        return (
            f"{asked} held-out prompts are asked for, but the evaluation source has only {found} different ones. "
            "Set evaluation.size lower, or give more rows."
        )
    return (
        f"{asked} prompts are to be held out, but there are only {found} different ones and at least one must be left "
        "to train on. Set evaluation.size lower, or give evaluation.source."
    )


def _without(made: Mapping[str, Made], held_out: Mapping[str, Iterable[Row]]) -> dict[str, list[Row]]:
    """The rows of every source whose prompt is not held out, whichever source that came from."""
    taken = _keys(held_out)
    left = {}
    for label, part in made.items():
        left[label] = [row for row in part.rows if prompt_key(row["prompt"]) not in taken]
        if not left[label]:
            where = f"{label}: " if len(made) > 1 else ""
            raise DomainError(
                f"{where}all {len(part.rows)} training prompts are among the held-out ones. Use other rows."
            )
    return left


def _interleaved(parts: Mapping[str, Sequence[Row]], weights: Mapping[str, float], seed: str) -> list[Row]:
    """The rows of all sources in one list whose beginning and end hold them by weight: analyses take rows from there.

    A source whose rows do not reach keeps the middle free. Places are drawn at random within a source's even steps, so
    that no source lies on every other row.
    """
    parts = {label: rows for label, rows in parts.items() if rows}
    if len(parts) == 1:
        return list(*parts.values())
    generator = random.Random(seed)
    end = max(len(rows) / weights[label] for label, rows in parts.items())
    placed = []
    for label, rows in parts.items():
        for index, row in enumerate(rows):
            early = index < len(rows) / 2
            steps = (index if early else index - len(rows)) + generator.random()
            placed.append((steps / weights[label] + (0 if early else end), row))
    return [row for _, row in sorted(placed, key=lambda pair: pair[0])]


def _summary(made: Mapping[str, Made], train: Mapping[str, Sequence[Row]], held_out: Mapping[str, Any]) -> LoadSummary:
    counts = {
        label: {
            **part.counts,
            "dropped_held_out": len(part.rows) - len(train[label]),
            "train_rows": len(train[label]),
            "evaluation_rows": len(held_out.get(label, ())),
        }
        for label, part in made.items()
    }
    total = {key: sum(numbers[key] for numbers in counts.values()) for key in next(iter(counts.values()))}
    total["evaluation_rows"] = sum(map(len, held_out.values()))
    return LoadSummary(**total, sources=counts if len(counts) > 1 else {})
