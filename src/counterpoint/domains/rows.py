"""From the rows of a domain's sources to rows with a prompt and the columns of its rewards."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from counterpoint.config import Config
from counterpoint.domains.prompts import Column, Prompter, Template, prompt_lengths
from counterpoint.domains.sampler import SOURCE_COLUMN
from counterpoint.domains.sources import Row
from counterpoint.errors import DomainError

_GIVEN = ("prompt", "prompts", "completion", "completions", "completion_ids", "domain", SOURCE_COLUMN)
"""What every reward gets without a column of the data."""

_SHOWN = 3  # rows that a reward cannot use which are shown


@dataclass(frozen=True)
class WeightedReward:
    """One reward of a domain: ``function`` is in TRL's protocol, ``name`` is what its part is logged as."""

    name: str
    weight: float
    function: Callable[..., list[float | None]]


@dataclass(frozen=True)
class Made:
    """Rows made of one source, the columns of other sources that it lacks, and how many rows were read and dropped."""

    rows: list[Row]
    lacking: frozenset[str]
    counts: dict[str, int]


class RowMaker:
    """Makes rows of one domain: prompt, the columns of the rewards, nothing too long or of no use to a reward."""

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
        self.several = any(isinstance(source, tuple) for source in (domain.source, domain.evaluation.source))
        self.filter, self.drop_unusable = domain.filter or {}, domain.unusable_rows == "drop"
        self.max_tokens = domain.max_prompt_tokens or config.max_prompt_tokens
        self.chat_template_kwargs = config.training.get("chat_template_kwargs") or {}

    def make(self, sources: Mapping[str, Sequence[Row]], known: frozenset[str] = frozenset()) -> dict[str, Made]:
        """The rows of every source, by its name. A column that one source lacks and another has is None.

        Args:
            known: columns that any of these sources may lack.

        Raises:
            DomainError: a column is missing, or nothing is left of a source (saying what dropped how many).
        """
        has = {source: {column for row in raw for column in row} for source, raw in sources.items()}
        anywhere = known.union(*has.values())
        found: dict[str, Made] = {}
        for source, raw in sources.items():
            try:
                found[source] = self._make(source, raw, anywhere - has[source])
            except DomainError as error:
                raise DomainError(f"{source}: {error}" if self.several else str(error)) from None
        return found

    def _make(self, source: str, raw: Sequence[Row], lacking: frozenset[str]) -> Made:
        numbers = [number for number, row in enumerate(raw, start=1) if self._wanted(number, row, lacking)]
        about = {"domain": self.name, **({SOURCE_COLUMN: source} if self.several else {})}
        rows = [self._row(number, raw[number - 1], lacking) | about for number in numbers]
        lengths = prompt_lengths([row["prompt"] for row in rows], self.tokenizer, self.chat_template_kwargs)
        short = [index for index, length in enumerate(lengths) if length <= self.max_tokens]
        problems = {index: problem for index in short if (problem := self._problem(rows[index])) is not None}
        if problems and not self.drop_unusable:
            raise DomainError(_unusable({numbers[index]: problem for index, problem in problems.items()}))
        kept = [rows[index] for index in short if index not in problems]
        filtered, too_long = len(raw) - len(rows), len(rows) - len(short)
        if not kept:
            shortest = f" (the shortest has {min(lengths)})" if lengths else ""
            raise DomainError(
                f"no rows are left: {len(raw)} read, {filtered} dropped by filter, {too_long} longer than "
                f"max_prompt_tokens={self.max_tokens}{shortest}, {len(problems)} of no use to the reward. "
                "Relax what dropped them."
            )
        dropped = {"dropped_filtered": filtered, "dropped_too_long": too_long, "dropped_unusable": len(problems)}
        return Made(kept, lacking, {"rows_read": len(raw), **dropped})

    def _problem(self, row: Row) -> str | None:
        """Why a reward says that it cannot use ``row``, which it gets as it will in training."""
        for reward in self.rewards:
            check_rows = getattr(reward.function, "check_rows", None)
            given = set(_GIVEN) - set(getattr(reward.function, "columns", ()))
            given -= {"prompt"} if getattr(reward.function, "sees_prompt", False) else set()
            seen = {column: value for column, value in row.items() if column not in given}
            if check_rows is not None and (problems := check_rows([seen])):
                return f"the reward {reward.name!r} cannot use it: {problems[0].removeprefix('row 0: ')}"
        return None

    def _wanted(self, number: int, raw: Row, lacking: frozenset[str]) -> bool:
        for column, wanted in self.filter.items():
            found = _read(_getter(Column(column), lacking), raw, f"filter.{column}", number)
            accepted = wanted if isinstance(wanted, list) else [wanted]
            if found not in accepted and str(found) not in map(str, accepted):  # CSV knows only text
                return False
        return True

    def _row(self, number: int, raw: Row, lacking: frozenset[str]) -> Row:
        row = {column: raw[column] for column in raw if column not in _GIVEN} if self.every_column else {}
        for column, place in self.columns.items():
            read = place.render if isinstance(place, Template) else _getter(place, lacking)
            own_name = isinstance(place, Column) and place.text == column
            what = f"the reward needs the column {column!r} (columns maps it)" if own_name else f"columns.{column}"
            row[column] = _read(read, raw, what, number)
        row |= {column: raw[column] for column in self.optional if column in raw}
        return {"prompt": _read(self.prompter.prompt, raw, "prompt", number), **row}


def _getter(column: Column, lacking: frozenset[str]) -> Callable[[Row], Any]:
    """Reads ``column`` in a row; None where it lies in a column that the whole source lacks."""
    top = column.text.partition(".")[0].partition("[")[0]
    return column.get if lacking.isdisjoint((column.text, top)) else lambda row: None


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
