"""Rewards ``repetition``, ``copying`` and ``same_answer``: cheap ways to please a judge, from 0 (found) to 1 (not).

    RepetitionReward()("so it goes, so it goes, so it goes, ...")    near 0
    CopyingReward()(a completion that says the prompt again)         near 0
    SameAnswerReward()(one text for all prompts)                     0

All three count n-grams: n words or signs in a row, regardless of case. ``repetition`` is 1 minus seq-rep-n (Welleck et
al. 2020, arXiv 1908.04319), ``copying`` the share of novel n-grams (See et al. 2017, arXiv 1704.04368). ``same_answer``
is ours: how seldom an n-gram of the completion stands in a completion to another prompt. Time grows with the length
of the texts alone.
"""

import json
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any, ClassVar

from counterpoint.errors import RewardError
from counterpoint.rewards._base import Reward, Row, message_text
from counterpoint.rewards._regions import final_answer

Gram = tuple[str, ...]

# Scripts that put no space between words count by character.
_TOKEN = re.compile(r"[\u0e00-\u0eff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]|[^\W\u0e00-\u0eff\u3040-\u9fff]+|[^\w\s]")


def grams(text: str, n: int) -> list[Gram]:
    """The n-grams of a text in order; a text of fewer than ``n`` words and signs has none."""
    tokens = _TOKEN.findall(text.casefold())
    return list(zip(*(tokens[start:] for start in range(n)), strict=False))


class _Guard(Reward):
    """What the three share.

    Arguments:
        n: words or signs in a row that are counted as one.
        thought: the thought counts too, and not only what answers.
    """

    def __init__(self, n: int = 4, thought: bool = False) -> None:
        if isinstance(n, bool) or not isinstance(n, int) or n < 1:
            raise RewardError(f"n must be a whole number from 1, found {n!r}.")
        self.n, self.thought = n, thought

    def text(self, completion: str) -> str:
        """The part of a completion that is looked at."""
        return completion.strip() if self.thought else final_answer(completion)


class RepetitionReward(_Guard):
    """The share of a completion's n-grams that are different ones: 1 where nothing is said twice, 0 for no text."""

    def __init__(self, n: int = 4, thought: bool = False) -> None:
        super().__init__(n, thought)
        self.__name__ = "repetition"

    def prepare(self, row: Row) -> None:
        """Nothing: the row's columns are not used."""

    def score(self, text: str, prepared: None) -> float:
        """Different n-grams over all; a text too short for one repeats nothing."""
        text = self.text(text)
        found = grams(text, self.n)
        return len(set(found)) / len(found) if found else float(bool(text))


class CopyingReward(_Guard):
    """The share of a completion's n-grams that do not stand in the prompt: 0 for a copy of it and for no text."""

    sees_prompt: ClassVar[bool] = True

    def __init__(self, n: int = 4, thought: bool = False) -> None:
        super().__init__(n, thought)
        self.__name__ = "copying"

    def prepare(self, row: Row) -> set[Gram]:
        """The n-grams of the prompt, of each message by itself."""
        prompt = _prompt_of(row, self.__name__)
        texts = [prompt] if isinstance(prompt, str) else [message_text(message) for message in prompt]
        return {gram for text in texts for gram in grams(text, self.n)}

    def score(self, text: str, prepared: set[Gram]) -> float:
        """Novel n-grams over all; a text too short for one copies nothing."""
        text = self.text(text)
        found = grams(text, self.n)
        return sum(gram not in prepared for gram in found) / len(found) if found else float(bool(text))


class SameAnswerReward(_Guard):
    """1 minus the mean, over a completion's n-grams, of the share of the completions to other prompts that hold it.

    Compared is what is scored together: in training a process's completions of one step, in evaluation a domain's. A
    batch with one prompt has nothing to compare with and gives None.
    """

    sees_prompt: ClassVar[bool] = True
    whole_batch: ClassVar[bool] = True

    def __init__(self, n: int = 4, thought: bool = False) -> None:
        super().__init__(n, thought)
        self.__name__ = "same_answer"

    def prepare(self, row: Row) -> str:
        """What tells prompts apart."""
        return json.dumps(_prompt_of(row, self.__name__), sort_keys=True, default=str)

    def score_all(self, texts: Sequence[str], prepared: Sequence[str]) -> list[float | None]:
        """The batch's scores; no text gives 0, and a text too short for an n-gram is one as a whole."""
        answers = [self.text(text) for text in texts]
        found = [grams(answer, self.n) or grams(answer, len(_TOKEN.findall(answer)) or 1) for answer in answers]
        held = Counter(gram for one in found for gram in set(one))
        own = Counter((prompt, gram) for prompt, one in zip(prepared, found, strict=True) for gram in set(one))
        asked = Counter(prepared)
        scores: list[float | None] = []
        for prompt, one in zip(prepared, found, strict=True):
            others = len(texts) - asked[prompt]
            shared = sum(held[gram] - own[prompt, gram] for gram in one)
            scores.append(None if not others else 1 - shared / (others * len(one)) if one else 0.0)
        return scores


def _prompt_of(row: Row, name: str) -> Any:
    prompt = row.get("prompt")
    if not isinstance(prompt, str | list):
        raise RewardError(f"{name} compares with the prompt, and there is none. Pass prompts, or a column 'prompt'.")
    return prompt
