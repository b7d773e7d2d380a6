"""Every error a user can cause, as a small hierarchy below ``ValueError``.

Messages say what was wrong, where, what was found and what to do, in that order.
"""

import difflib
from collections.abc import Iterable, Sequence

from counterpoint.masking import masked, masked_data

_LISTED = 50


class CounterpointError(ValueError):
    """Base of all errors that a user of counterpoint can cause and mend; messages print, and hold no secret."""

    def __init__(self, message: str = "") -> None:
        super().__init__(masked(str(message)))

    def __str__(self) -> str:
        return super().__str__().encode("utf-8", "backslashreplace").decode("utf-8")


class ConfigError(CounterpointError):
    """A configuration that cannot be used; the message lists every problem found in the file."""


class DomainError(CounterpointError):
    """A domain whose prompts cannot be loaded or used."""


class RewardError(CounterpointError):
    """A reward that is unknown, lacks its columns, raised, or returned something that is no reward."""


class GroupingError(CounterpointError):
    """A parameter that no grouping rule knows, or an unknown grouping."""


class StrategyError(CounterpointError):
    """An unknown strategy or weighting, or one used against its contract."""


class UnsupportedError(CounterpointError):
    """A setting or back end under which domain gradients could not be exact."""


class RankMismatchError(UnsupportedError):
    """Ranks of one training collected different domains, so their gradients cannot be told apart."""


class RunError(CounterpointError):
    """A run directory that cannot be created, read, resumed or written."""


class ModelError(CounterpointError):
    """A model or tokenizer that cannot be loaded or used as asked."""


class DivergedError(CounterpointError):
    """Training produced a loss that is not a number."""


class MissingExtraError(CounterpointError, ImportError):
    """An optional dependency is needed and not installed."""

    @classmethod
    def for_extra(cls, feature: str, extra: str) -> "MissingExtraError":
        """The error for ``feature`` that needs the optional dependency set ``extra``."""
        return cls(f"{feature} needs an optional dependency. Install it with: pip install 'counterpoint[{extra}]'")


def shown(found: object) -> str:
    """A found value in a message: masked, and not more than 80 characters of it."""
    text = masked(repr(masked_data(found)))
    return text if len(text) <= 80 else f"{text[:80]}..."


def first_line(error: BaseException) -> str:
    """What an error says in its first line, or its type where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint such as ``did you mean 'module'? Known: global, layer, module, tensor`` for an unknown ``name``."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"{hint}Known: {', '.join(known)}."


def listed(head: str, problems: Sequence[object]) -> str:
    """``HEAD 2 problems:`` and a line for each of them, up to fifty."""
    count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
    more = [f"  and {len(problems) - _LISTED} more."] if len(problems) > _LISTED else []
    return "\n".join([f"{head} {count}:", *(f"  {problem}" for problem in problems[:_LISTED]), *more])
