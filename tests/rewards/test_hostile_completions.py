"""Whatever a model writes, a reward gives a number in its range and never raises. Rewards with workers apart."""

import re
from fractions import Fraction

import pytest

from counterpoint.pocket.tasks import TASKS
from counterpoint.rewards import build_reward
from counterpoint.rewards._math_extract import Expression
from counterpoint.rewards._numbers import Number, last_number, parse_number
from counterpoint.rewards._units import UNITS
from hostile_texts import hostile_texts

ROWS = {
    "choice": [
        {"answer": "A"},
        {"answer": "s"},
        {"answer": "7"},
        {"answer": "A", "choices": list("bcdefghijklmnopqrstu")},
        {"answer": "b", "choices": {"label": ["a", "b"], "text": ["bank", "the library"]}},
        {"answer": "A", "choices": ["(", ")"]},
        {"answer": "ı", "choices": {"label": ["I", "ı", "SS", "ß"], "text": ["1", "2", "3", "İ"]}},  # noqa: RUF001
    ],
    "text": [{"answer": "Hamlet"}, {"answer": ["!!!", "İ", "bank the library"]}, {"answer": 5}],
    "length": [{}],
    "format": [{}],
    "pocket": [dict(task.generate("train", index)) for task in TASKS.values() for index in range(3)],
}
OPTIONS = {
    "choice": [{}, {"strict": True}],
    "text": [{"mode": mode} for mode in ("exact", "contains", "f1")],
    "length": [{"maximum": 5}, {"minimum": 3, "unit": "characters"}, {"minimum": 2, "maximum": 3, "smooth": False}],
    "format": [{}, {"partial": True}, {"tags": ["a-b", "answer"]}],
    "pocket": [{}],
}


@pytest.mark.slow
@pytest.mark.parametrize("name", ROWS)
def test_hundreds_of_hostile_texts(name: str) -> None:
    texts = hostile_texts(400, seed=1)
    rewards = [build_reward(name, **options) for options in OPTIONS[name]]
    for index, text in enumerate(texts):
        row = ROWS[name][index % len(ROWS[name])]
        for reward in rewards:
            (value,) = reward(completions=[text], **{column: [entry] for column, entry in row.items()})
            assert isinstance(value, float), (text, row)
            assert 0.0 <= value <= 1.0, (text, row)


def test_hundreds_of_hostile_texts_read_as_numbers_and_answers() -> None:
    rewards = [build_reward("math", extraction=e) for e in ("auto", "gsm8k", "boxed", "plain", "last_number")]
    for text in hostile_texts(400, seed=2):
        for number in (parse_number(text), parse_number(text, comma=True), last_number(text)):
            assert number is None or _is_exact(number), text
        for reward in rewards:
            for numeric in (True, False):
                answer = reward.extract(text, numeric)
                assert answer is None or _is_exact(answer) or (isinstance(answer, Expression) and answer.text), text


def _is_exact(number: object) -> bool:
    """Whether it is a number as the math reward has them: exact, equal to itself, of a named unit or of none."""
    return (
        isinstance(number, Number)
        and isinstance(number.value, Fraction)
        and number.agrees(number)
        and (not number.name or (len(number.name) == 1 and number.name.isalpha()))
        and set(re.sub(r"\^-?\d+", "", number.unit).split()) <= set(UNITS.values())
    )


@pytest.mark.parametrize("text", ["{}", "({})", "Answer: {}", "[{}]", "the answer is {}."])
def test_no_letter_that_only_folds_to_a_label_is_one(text: str) -> None:
    reward = build_reward("choice")
    for letter in ("ı", "İ", "ſ", "\u212a", "ẞ", "ﬀ"):  # noqa: RUF001
        for answer in "IKS":
            columns = {"answer": [answer], "choices": [[f"text {i}" for i in range(20)]]}
            assert reward(completions=[text.format(letter)], **columns) == [0.0], letter


def test_of_all_characters_only_the_label_itself_answers() -> None:
    texts = [f"({chr(point)})" for point in (*range(0x3000), *range(0x3000, 0x110000, 499))]
    options = {"label": list("AKS"), "text": ["one", "two", "three"]}
    values = build_reward("choice")(completions=texts, answer=["S"] * len(texts), choices=[options] * len(texts))
    assert [text for text, value in zip(texts, values, strict=True) if value] == ["(S)", "(s)"]
