"""Four toy domains that mirror the papers' math, code, qa and writing, in pure Python.

One row of each, with its best answer::

    math     17+25=                   42
    code     rev("abcd")=             dcba
    qa       A:sun C:map D:cat C:     map
    writing  3 words +a -e:           cat lamp sand

``generate(split, index)`` gives a row, the same one on every machine. A prompt belongs to ``train`` or ``test`` by its
hash, so the two never share one. The first three domains are right or wrong; ``writing`` has many good answers and a
graded reward.
"""

import random
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from itertools import permutations
from typing import Any, ClassVar, Final, final

from counterpoint.errors import DomainError, RewardError, nearest
from counterpoint.pocket.words import WORDS

SPLITS: Final = ("train", "test")
TEST_SHARE: Final = 0.2


def split_of(task: str, prompt: str) -> str:
    """The split, ``"train"`` or ``"test"``, that a prompt of a task belongs to, by its hash."""
    place = int.from_bytes(sha256(f"{task}\n{prompt}".encode()).digest()[:4], "big") / 2**32
    return "test" if place < TEST_SHARE else "train"


class Task(ABC):
    """One domain: its prompts, its gold answers and its reward in [0, 1]."""

    name: ClassVar[str]
    """What the domain is called."""
    about: ClassVar[str]
    """What its prompts ask, in one line."""

    @abstractmethod
    def draw(self, rng: random.Random) -> tuple[str, str]:
        """A random prompt of either split and a gold answer to it."""

    def generate(self, split: str, index: int) -> dict[str, str]:
        """Row number ``index`` of ``split``: ``prompt``, ``answer`` (a gold one) and ``task``, the same every time."""
        if split not in SPLITS:
            raise DomainError(f"Unknown split {split!r} of the pocket domain {self.name!r}: {nearest(split, SPLITS)}")
        if index < 0:
            raise DomainError(f"Row {index} of the pocket domain {self.name!r}: rows are numbered from 0.")
        rng = random.Random(f"{self.name}/{split}/{index}")
        while True:
            prompt, answer = self.draw(rng)
            if split_of(self.name, prompt) == split:
                return {"prompt": prompt, "answer": answer, "task": self.name}

    def gold(self, row: Mapping[str, Any], rng: random.Random) -> str:
        """A best answer to the row, of score 1; drawn with ``rng`` where there are many."""
        return str(row["answer"])

    def noise(self, row: Mapping[str, Any], rng: random.Random) -> str:
        """An answer that looks right and most often is not: the gold answer to another random prompt."""
        return self.draw(rng)[1]

    def score(self, row: Mapping[str, Any], completion: str) -> float:
        """1 if the completion, without white space around it, is the row's answer, else 0.

        Text after the answer makes it wrong: to end is part of the answer.
        """
        return float(completion.strip() == row["answer"])


@final
@dataclass(frozen=True)
class Math(Task):
    """Addition of two numbers, ``17+25=``."""

    name: ClassVar[str] = "math"
    about: ClassVar[str] = "the sum of two numbers"
    largest: int = 39

    def draw(self, rng: random.Random) -> tuple[str, str]:
        """``("17+25=", "42")``."""
        left, right = rng.randint(0, self.largest), rng.randint(0, self.largest)
        return f"{left}+{right}=", str(left + right)


PROGRAMS: Final[Mapping[str, Callable[[str], str]]] = {
    "rev": lambda text: text[::-1],
    "sort": lambda text: "".join(sorted(text)),
    "up": str.upper,
    "dup": lambda text: text + text,
}


@final
@dataclass(frozen=True)
class Code(Task):
    """What a small string program prints, ``rev("abcd")=``."""

    name: ClassVar[str] = "code"
    about: ClassVar[str] = "what a string program prints: rev, sort, up or dup"
    letters: str = "abcdefghij"
    lengths: tuple[int, ...] = (3, 4)

    def draw(self, rng: random.Random) -> tuple[str, str]:
        """``('rev("abcd")=', "dcba")``."""
        program = rng.choice(list(PROGRAMS))
        text = "".join(rng.choices(self.letters, k=rng.choice(self.lengths)))
        return f'{program}("{text}")=', PROGRAMS[program](text)


@final
@dataclass(frozen=True)
class Recall(Task):
    """Recall of one of several facts that the prompt gives, ``A:sun C:map D:cat C:``.

    The keys are in order: in any order, models of this size did not learn to look one up in the time of a build.
    """

    name: ClassVar[str] = "qa"
    about: ClassVar[str] = "the word that the prompt gives to a letter"
    keys: str = "ABCD"
    facts: tuple[int, ...] = (2, 3)

    def draw(self, rng: random.Random) -> tuple[str, str]:
        """``("A:sun C:map D:cat C:", "map")``."""
        count = rng.choice(self.facts)
        facts = dict(zip(sorted(rng.sample(self.keys, count)), rng.sample(SHORT_WORDS, count), strict=True))
        asked = rng.choice(list(facts))
        return " ".join(f"{key}:{value}" for key, value in facts.items()) + f" {asked}:", facts[asked]


SHORT_WORDS: Final = tuple(word for word in WORDS if len(word) == 3)


def fitting_words(needed: str, banned: str) -> list[str]:
    """The words of the book that hold the letter ``needed`` and not the letter ``banned``."""
    return [word for word in WORDS if needed in word and banned not in word]


def _letter_pairs() -> list[tuple[str, str]]:
    """Pairs (needed, banned) that leave words with at least six different first letters, and ban something."""
    pairs = permutations("abcdefghiklmnoprstuw", 2)
    kept = []
    for needed, banned in pairs:
        fitting = fitting_words(needed, banned)
        bans = any(needed in word and banned in word for word in WORDS)
        if bans and len({word[0] for word in fitting}) >= 6:
            kept.append((needed, banned))
    return kept


@final
@dataclass(frozen=True)
class Writing(Task):
    """Lists of words under a wish, ``3 words +a -e:``, with many right answers.

    The wish is a number of words, each holding the letter after ``+`` and not the letter after ``-``. The words are
    separated by single spaces and come from the word book (form), and begin with different letters (variety). The score
    is the number of words that do all this, at most the number wanted, over the number wanted or the number written,
    whichever is larger (length).
    """

    name: ClassVar[str] = "writing"
    about: ClassVar[str] = "a list of different words with one letter and without another"
    counts: tuple[int, ...] = (2, 3, 4)

    def draw(self, rng: random.Random) -> tuple[str, str]:
        """``("3 words +a -e:", "cat lamp sand")``."""
        needed, banned = rng.choice(LETTER_PAIRS)
        prompt = f"{rng.choice(self.counts)} words +{needed} -{banned}:"
        return prompt, self.gold({"prompt": prompt}, rng)

    def gold(self, row: Mapping[str, Any], rng: random.Random) -> str:
        """One of the many lists of score 1: fitting words, one for a first letter, in alphabetical order."""
        count, needed, banned = _wish(row["prompt"])
        chosen: dict[str, str] = {}
        for word in rng.sample(fitting := fitting_words(needed, banned), len(fitting)):
            chosen.setdefault(word[0], word)
        return " ".join(sorted(list(chosen.values())[:count]))

    def score(self, row: Mapping[str, Any], completion: str) -> float:
        """The share of the wanted words that are there, fit, and begin with a letter not used before."""
        count, needed, banned = _wish(row["prompt"])
        pieces = completion.strip().split(" ")
        fitting = set(fitting_words(needed, banned))
        initials = {piece[0] for piece in pieces if piece in fitting}
        return min(count, len(initials)) / max(count, len(pieces))


LETTER_PAIRS: Final = tuple(_letter_pairs())
_WISH = re.compile(r"(\d+) words \+([a-z]) -([a-z]):")


def _wish(prompt: str) -> tuple[int, str, str]:
    """The number of words, the needed letter and the banned letter that a writing prompt asks for."""
    found = _WISH.fullmatch(prompt)
    if found is None:
        raise RewardError(
            f"The pocket domain 'writing' cannot score the prompt {prompt!r}: it has the form '3 words +a -e:'. "
            "Score writing only on rows that its generator made."
        )
    return int(found[1]), found[2], found[3]


TASKS: Final[Mapping[str, Task]] = {task.name: task for task in (Math(), Code(), Recall(), Writing())}
