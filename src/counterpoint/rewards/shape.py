"""Rewards ``length`` and ``format``: what a completion looks like, whatever it says.

LengthReward(maximum=50)("...")                        1.0 up to 50 words, falling to 0.0 at 100; thoughts do not count
FormatReward()("<think>2+2</think><answer>4</answer>")  1.0
"""

import re
from typing import ClassVar

from counterpoint.errors import RewardError
from counterpoint.rewards._base import Reward, Row, one_of
from counterpoint.rewards._regions import final_answer

UNITS = ("words", "characters")


class LengthReward(Reward):
    """1 where the answer's length is inside a range; outside it 0, or falling with the distance. Thoughts do not count.

    Arguments:
        minimum: Smallest length that earns 1.
        maximum: Largest length that earns 1; none means no upper end.
        unit: ``words`` (separated by space) or ``characters``.
        smooth: Below the range the reward is length / minimum, above it falls in a straight line to 0 at twice the
        maximum.
        closed_thought: A completion without ``</think>`` scores 0.
    """

    columns: ClassVar[tuple[str, ...]] = ()

    def __init__(
        self,
        minimum: int = 0,
        maximum: int | None = None,
        unit: str = "words",
        smooth: bool = True,
        closed_thought: bool = False,
    ) -> None:
        self.__name__ = "length"
        self.unit = one_of("unit", unit, UNITS)
        if not isinstance(minimum, int) or minimum < 0:
            raise RewardError(f"minimum must be a whole number from 0, found {minimum!r}.")
        if maximum is not None and (not isinstance(maximum, int) or maximum < max(1, minimum)):
            raise RewardError(f"maximum must be a whole number from the minimum ({minimum}) and 1, found {maximum!r}.")
        if minimum == 0 and maximum is None:
            raise RewardError("minimum or maximum must be set: without either every text earns 1.")
        self.minimum, self.maximum, self.smooth = minimum, maximum, smooth
        self.closed_thought = closed_thought

    def prepare(self, row: Row) -> None:
        """Nothing: the row's columns are not used."""

    def score(self, text: str, prepared: None) -> float:
        """The reward of the text's length; an empty text earns 0."""
        text = final_answer(text, self.closed_thought)
        length = len(text.split()) if self.unit == "words" else len(text.strip())
        if length == 0:
            return 0.0
        if length < self.minimum:
            return length / self.minimum if self.smooth else 0.0
        if self.maximum is not None and length > self.maximum:
            return max(0.0, 2.0 - length / self.maximum) if self.smooth else 0.0
        return 1.0


class FormatReward(Reward):
    """1 when the completion is exactly the given tags, once each, in order, none empty and nothing between them.

    Arguments:
        tags: Names of the tags. Where ``think`` is the last one, the answer follows it without a tag.
        partial: Gives the share of tags that stand there once, opened and closed, instead of 0 when something is wrong.
        prefilled: The prompt ends with the first tag's opening, so that the completion begins inside it.
    """

    columns: ClassVar[tuple[str, ...]] = ()

    def __init__(
        self,
        tags: list[str] | tuple[str, ...] | str = ("think", "answer"),
        partial: bool = False,
        prefilled: bool = False,
    ) -> None:
        self.__name__ = "format"
        self.tags = tuple(tags.split(",") if isinstance(tags, str) else tags)
        for tag in self.tags:
            if not isinstance(tag, str) or not re.fullmatch(r"[\w-]+", tag):
                raise RewardError(f"tags must be names of letters, digits, '-' and '_', found {tag!r}.")
        if not self.tags:
            raise RewardError("tags must name at least one tag.")
        self.partial = partial
        self.prefilled = prefilled

    def prepare(self, row: Row) -> None:
        """Nothing: the row's columns are not used."""

    def score(self, text: str, prepared: None) -> float:
        """1 for the whole form, otherwise 0 or, with ``partial``, less than 1 by the share of good tags."""
        opening = f"<{self.tags[0]}>"
        if self.prefilled and not text.lstrip().startswith(opening):
            text = opening + text
        if self._is_whole(text.strip()):
            return 1.0
        if not self.partial:
            return 0.0
        good = sum(text.count(f"<{tag}>") == 1 == text.count(f"</{tag}>") for tag in self.tags)
        return min(good, len(self.tags) - 0.5) / len(self.tags)

    def _is_whole(self, text: str) -> bool:
        for tag in self.tags:
            opening, closing = f"<{tag}>", f"</{tag}>"
            if not text.startswith(opening) or text.count(opening) != 1 or text.count(closing) != 1:
                return False
            body, _, rest = text[len(opening) :].partition(closing)
            if not body.strip():
                return False
            text = rest.lstrip()
        return bool(text) if self.tags[-1] == "think" else not text
