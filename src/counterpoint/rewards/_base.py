"""What every reward is: a callable in TRL's form, made of two pure steps, ``prepare`` a row and ``score`` a text."""

import inspect
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

from counterpoint.errors import RewardError
from counterpoint.masking import masked

Row = Mapping[str, Any]
Completion = str | list[dict[str, Any]] | None

_MAX_PROBLEMS = 20


class _Failed(float):
    """NaN, which plain TRL takes for no reward, and told from other numbers by its class."""

    def __repr__(self) -> str:
        return "FAILED"


FAILED = _Failed("nan")
"""What a reward returns for a completion that it should have scored and could not: a judge that did not answer.

``None`` means that the reward does not apply to the row; the other rewards of the domain still count. ``FAILED`` leaves
the completion out of its group, whatever the others gave: half a reward would turn into a false advantage.
"""


def is_failed(value: Any) -> bool:
    """Whether a value is ``FAILED``."""
    return isinstance(value, _Failed)


def completion_text(completion: Completion) -> str:
    """The text of a completion: the string itself, or the contents of its assistant messages. Nothing gives ``""``."""
    if completion is None:
        return ""
    if isinstance(completion, str):
        return completion
    parts = [message_text(message) for message in completion if message.get("role", "assistant") == "assistant"]
    return "\n".join(part for part in parts if part)


def message_text(message: Mapping[str, Any]) -> str:
    """The text of one chat message, whose content is a string or a list of parts."""
    content = message.get("content")
    if isinstance(content, list):
        return "".join(str(part.get("text", "")) for part in content if isinstance(part, Mapping))
    return content if isinstance(content, str) else ""


class Reward(ABC):
    """A reward function in TRL's form: ``reward(prompts=..., completions=..., **columns) -> list[float]``.

    A completion never makes it raise: nonsense scores 0. A row that the reward cannot use raises ``RewardError`` naming
    the row, because that is a mistake in the data.

    Attributes:
        columns: Columns that every row must have.
        optional_columns: Columns that are used where a row has them.
        sees_prompt: Whether rows have the key ``prompt``: a text, or a list of chat messages.
        whole_batch: Whether a completion's score depends on the others that are scored with it.
        normalize: Whether a trainer of counterpoint brings the scores to mean 0 and deviation 1 in each domain.
        kept: Whether a trainer does.
        cut: Completions so far that it could not read whole.
        options: What it was made with, by name.
    """

    columns: ClassVar[tuple[str, ...]] = ()
    optional_columns: ClassVar[tuple[str, ...]] = ()
    sees_prompt: ClassVar[bool] = False
    whole_batch: ClassVar[bool] = False
    normalize: bool = False
    kept: bool = False
    cut: int = 0
    options: dict[str, Any]
    __name__: str

    def __new__(cls, *args: Any, **options: Any) -> Self:
        """An object with the name of its class, which ``__init__`` may change, and the options it was made with."""
        made = super().__new__(cls)
        made.__name__ = cls.__name__
        made.options = dict(zip(inspect.signature(cls).parameters, args, strict=False)) | options
        return made

    def __call__(
        self, completions: Sequence[Completion], prompts: Sequence[Any] | None = None, **columns: Any
    ) -> list[float | None]:
        """Scores a batch; ``columns`` holds one list per column, other keyword arguments are ignored.

        ``None`` is no reward: the completion could not be scored.
        """
        rows = self._rows(len(completions), prompts, columns)
        prepared = [self._prepare_at(index, row) for index, row in enumerate(rows)]
        return self.score_all([completion_text(completion) for completion in completions], prepared)

    @abstractmethod
    def prepare(self, row: Row) -> Any:
        """What scoring needs of a row. Raises ``RewardError`` when the row cannot be used."""

    def score(self, text: str, prepared: Any) -> float | None:
        """The reward of one completion text. Never raises for what the text holds."""
        return self.score_all([text], [prepared])[0]

    def score_all(self, texts: Sequence[str], prepared: Sequence[Any]) -> list[float | None]:
        """The rewards of a batch. A reward overrides ``score`` or, to work in parallel, this."""
        return [self.score(text, row) for text, row in zip(texts, prepared, strict=True)]

    def check_rows(self, rows: Sequence[Row]) -> list[str]:
        """Problems that would stop training later, one sentence each; at most 20."""
        problems: list[str] = []
        for index, row in enumerate(rows):
            try:
                self._prepare_at(index, row)
            except RewardError as error:
                problems.append(str(error))
            if len(problems) == _MAX_PROBLEMS:
                break
        return problems

    def _prepare_at(self, index: int, row: Row) -> Any:
        # A null is no value: joining data sets of several domains fills the columns that one of them lacks with nulls.
        missing = [name for name in self.columns if row.get(name) is None]
        if missing:
            raise RewardError(
                f"row {index}: reward {self.__name__!r} needs the column {missing[0]!r}, "
                f"the row has {_present(row)}. Add it to the data or rename one."
            )
        try:
            return self.prepare(row)
        except RewardError as error:
            raise RewardError(f"row {index}: {error}") from None

    def _rows(self, count: int, prompts: Sequence[Any] | None, columns: Mapping[str, Any]) -> list[dict[str, Any]]:
        wanted = [name for name in (*self.columns, *self.optional_columns) if columns.get(name) is not None]
        for name in wanted:
            if isinstance(columns[name], str) or len(columns[name]) != count:
                raise RewardError(
                    f"Reward {self.__name__!r} got {count} completions and {len(columns[name])} values of the column "
                    f"{name!r}. Pass one list entry per completion."
                )
        rows = [{name: columns[name][index] for name in wanted} for index in range(count)]
        if self.sees_prompt and prompts is not None:
            rows = [{**row, "prompt": prompt} for row, prompt in zip(rows, prompts, strict=True)]
        return rows


def _present(row: Row) -> str:
    return ", ".join(sorted(name for name, value in row.items() if value is not None)) or "no columns"


def text_list(value: Any, column: str, kind: str = "a text or a list of texts") -> list[str]:
    """``value`` as a list of texts (numbers become texts). Raises ``RewardError`` naming ``column``."""
    items = list(value) if isinstance(value, list | tuple) else [value]
    for item in items:
        if (
            isinstance(item, bool)
            or not isinstance(item, str | int | float)
            or (isinstance(item, float) and math.isnan(item))
        ):
            raise RewardError(f"{column!r} must be {kind}, found {shorten(item)}.")
    if not items:
        raise RewardError(f"{column!r} must be {kind}, found an empty list.")
    return [str(item) for item in items]


def one_of(name: str, value: Any, allowed: Sequence[str]) -> str:
    """``value`` of the option ``name`` when it is allowed; otherwise ``RewardError`` with the allowed ones."""
    if value not in allowed:
        raise RewardError(f"{name} must be one of {', '.join(allowed)}, found {value!r}.")
    return str(value)


def shorten(value: Any, limit: int = 80) -> str:
    """``repr(value)`` without secrets, cut in the middle when it is long."""
    try:
        text = masked(repr(value))
    except Exception:  # whatever a user's class does
        text = f"a {type(value).__name__} that cannot be shown"
    return text if len(text) <= limit else f"{text[: limit // 2]} ... {text[-limit // 4 :]}"
