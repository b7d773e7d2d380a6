"""The domains of a configuration: rows filtered, made into prompts with their reward's columns, measured, split."""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from counterpoint.config import Config, DomainConfig, PocketSource
from counterpoint.domains.prompts import Column, Prompter, Template, prompt_key, prompt_lengths
from counterpoint.domains.sources import Row, read_pocket_test, read_source
from counterpoint.errors import CounterpointError, DomainError

_GIVEN = ("prompt", "prompts", "completion", "completions", "completion_ids", "domain")
"""What every reward gets without a column of the data."""

_SHOWN = 3  # rows that a reward cannot use which are shown


@dataclass(frozen=True)
class WeightedReward:
    """One reward of a domain: ``function`` is in TRL's protocol, ``name`` is what its part is logged as."""

    name: str
    weight: float
    function: Callable[..., list[float | None]]


@dataclass(frozen=True)
class LoadSummary:
    """What became of the rows of a domain; every number counts rows."""

    rows_read: int
    dropped_filtered: int
    dropped_too_long: int
    dropped_unusable: int
    dropped_held_out: int
    train_rows: int
    evaluation_rows: int

    def __str__(self) -> str:
        """``7,000 rows to train on, 64 held out; dropped of 7,473 read: 12 by filter, 3 too long``."""
        dropped = {
            "by filter": self.dropped_filtered,
            "too long": self.dropped_too_long,
            "of no use to the reward": self.dropped_unusable,
            "with held-out prompts": self.dropped_held_out,
        }
        reasons = ", ".join(f"{count:,} {why}" for why, count in dropped.items() if count)
        kept = f"{self.train_rows:,} rows to train on, {self.evaluation_rows:,} held out"
        return f"{kept}; dropped of {self.rows_read:,} read: {reasons}" if reasons else kept


@dataclass(frozen=True)
class Domain:
    """A domain ready for training: rows have ``prompt``, ``domain`` and the columns of its rewards."""

    name: str
    train: list[Row]
    evaluation: list[Row]
    rewards: tuple[WeightedReward, ...]
    share: float
    summary: LoadSummary


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
    rewards = build_rewards(domain)
    maker = _RowMaker(name, config, rewards, tokenizer)
    train = maker.make(read_source(domain.source, domain.limit))
    size = domain.evaluation.size or config.evaluation.prompts
    if domain.evaluation.source is None and not isinstance(domain.source, PocketSource):
        kept, held_out = _hold_out(train, size, f"{config.evaluation.seed}\n{name}")
    else:
        source = domain.evaluation.source or domain.source
        test = read_pocket_test(source, size) if isinstance(source, PocketSource) else read_source(source, None)
        held_out = _first_prompts(maker.make(test), size, f"{config.evaluation.seed}\n{name}")
        taken = {prompt_key(row["prompt"]) for row in held_out}
        kept = [row for row in train.rows if prompt_key(row["prompt"]) not in taken]
        if not kept:
            raise DomainError(f"all {len(train.rows)} training prompts are among the held-out ones. Use other rows.")
    lost = len(train.rows) - len(kept)
    summary = LoadSummary(train.read, train.filtered, train.too_long, train.unusable, lost, len(kept), len(held_out))
    return Domain(name, kept, held_out, rewards, domain.share, summary)


def build_rewards(domain: DomainConfig) -> tuple[WeightedReward, ...]:
    """The rewards of ``domain``, ready to be called."""
    from counterpoint.rewards import build_reward

    return tuple(
        WeightedReward(reward.label or reward.name, reward.weight, build_reward(reward.name, **reward.options))
        for reward in domain.reward
    )


@dataclass(frozen=True)
class _Made:
    """Rows made of one source, and how many were dropped on the way."""

    rows: list[Row]
    read: int
    filtered: int
    too_long: int
    unusable: int


class _RowMaker:
    """Makes the rows of one domain: prompt, the columns of the rewards, nothing that a reward cannot use."""

    def __init__(self, name: str, config: Config, rewards: Sequence[WeightedReward], tokenizer: Any) -> None:
        domain = config.domains[name]
        functions = [reward.function for reward in rewards]
        required = [column for function in functions for column in getattr(function, "columns", ())]
        optional = [column for function in functions for column in getattr(function, "optional_columns", ())]
        self.columns: dict[str, Column | Template] = {c: Column(c) for c in required if c not in _GIVEN}
        for column, written in domain.columns.items():
            self.columns[column] = _template(f"columns.{column}", written) if "{" in written else Column(written)
        self.optional = [c for c in optional if c not in self.columns and c not in _GIVEN]
        self.every_column = any(not hasattr(function, "columns") for function in functions)
        self.prompter = Prompter(domain.prompt, domain.system, domain.chat, tokenizer)
        self.name, self.rewards, self.tokenizer = name, rewards, tokenizer
        self.filter, self.drop_unusable = domain.filter or {}, domain.unusable_rows == "drop"
        self.max_tokens = domain.max_prompt_tokens or config.max_prompt_tokens
        self.chat_template_kwargs = config.training.get("chat_template_kwargs") or {}

    def make(self, raw: Sequence[Row]) -> _Made:
        """The rows of this domain in ``raw``.

        Raises:
            DomainError: a column is missing, or nothing is left (saying what dropped how many).
        """
        numbers = [number for number, row in enumerate(raw, start=1) if self._wanted(number, row)]
        rows = [self._row(number, raw[number - 1]) for number in numbers]
        lengths = prompt_lengths([row["prompt"] for row in rows], self.tokenizer, self.chat_template_kwargs)
        short = [index for index, length in enumerate(lengths) if length <= self.max_tokens]
        problems = {index: problem for index in short if (problem := self._problem(rows[index])) is not None}
        if problems and not self.drop_unusable:
            raise DomainError(_unusable({numbers[index]: problem for index, problem in problems.items()}))
        kept = [rows[index] for index in short if index not in problems]
        made = _Made(kept, len(raw), len(raw) - len(rows), len(rows) - len(short), len(problems))
        if not kept:
            shortest = f" (the shortest has {min(lengths)})" if lengths else ""
            raise DomainError(
                f"no rows are left: {made.read} read, {made.filtered} dropped by filter, {made.too_long} longer than "
                f"max_prompt_tokens={self.max_tokens}{shortest}, {made.unusable} of no use to the reward. "
                "Relax what dropped them."
            )
        return made

    def _problem(self, row: Row) -> str | None:
        """Why a reward says that it cannot use ``row``, which it gets as it will in training: without the prompt."""
        for reward in self.rewards:
            check_rows = getattr(reward.function, "check_rows", None)
            given = set(_GIVEN) - set(getattr(reward.function, "columns", ()))
            seen = {column: value for column, value in row.items() if column not in given}
            if check_rows is not None and (problems := check_rows([seen])):
                return f"the reward {reward.name!r} cannot use it: {problems[0].removeprefix('row 0: ')}"
        return None

    def _wanted(self, number: int, raw: Row) -> bool:
        for column, wanted in self.filter.items():
            found = _read(Column(column).get, raw, f"filter.{column}", number)
            accepted = wanted if isinstance(wanted, list) else [wanted]
            if found not in accepted and str(found) not in map(str, accepted):  # CSV knows only text
                return False
        return True

    def _row(self, number: int, raw: Row) -> Row:
        row = {column: raw[column] for column in raw if column not in _GIVEN} if self.every_column else {}
        for column, place in self.columns.items():
            read = place.render if isinstance(place, Template) else place.get
            own_name = isinstance(place, Column) and place.text == column
            what = f"the reward needs the column {column!r} (columns maps it)" if own_name else f"columns.{column}"
            row[column] = _read(read, raw, what, number)
        for column in self.optional:
            if column in raw:
                row[column] = raw[column]
        return {"prompt": _read(self.prompter.prompt, raw, "prompt", number), "domain": self.name, **row}


def _unusable(problems: Mapping[int, str]) -> str:
    shown = " ".join(f"Row {number}: {problem}" for number, problem in list(problems.items())[:_SHOWN])
    more = f" And {len(problems) - _SHOWN} more rows." if len(problems) > _SHOWN else ""
    count = "1 row" if len(problems) == 1 else f"{len(problems)} rows"
    return f"{count} cannot be used. {shown}{more} Mend or filter them, or set unusable_rows: drop."


def _read(read: Callable[[Row], Any], raw: Row, what: str, number: int) -> Any:
    try:
        return read(raw)
    except DomainError as error:
        raise DomainError(f"{what}; row {number}: {error}") from None


def _template(what: str, text: str) -> Template:
    try:
        return Template.parse(text)
    except DomainError as error:
        raise DomainError(f"{what}: {error}") from None


def _hold_out(made: _Made, size: int, seed: str) -> tuple[list[Row], list[Row]]:
    """Training rows and ``size`` held-out rows; no prompt is in both."""
    keys = [prompt_key(row["prompt"]) for row in made.rows]
    unique = sorted(set(keys))
    if len(unique) <= size:
        raise DomainError(
            f"{size} prompts are to be held out, but there are only {len(unique)} different ones and at least one must "
            "be left to train on. Set evaluation.size lower, or give evaluation.source."
        )
    chosen = set(random.Random(seed).sample(unique, size))
    first = {key: index for index, key in reversed(list(enumerate(keys)))}
    held_out = [made.rows[first[key]] for key in sorted(chosen, key=lambda key: first[key])]
    return [row for row, key in zip(made.rows, keys, strict=True) if key not in chosen], held_out


def _first_prompts(made: _Made, size: int, seed: str) -> list[Row]:
    """``size`` rows with different prompts, drawn from an evaluation source."""
    unique = {prompt_key(row["prompt"]): row for row in reversed(made.rows)}
    if len(unique) < size:
        raise DomainError(
            f"{size} held-out prompts are asked for, but the evaluation source has only {len(unique)} different ones. "
            "Set evaluation.size lower, or give more rows."
        )
    chosen = set(random.Random(seed).sample(sorted(unique), size))
    return [row for key, row in reversed(unique.items()) if key in chosen]
