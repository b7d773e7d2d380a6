# ruff: noqa: RUF001 (tables of short cases, with the signs that people type)
"""Reward ``choice``: what chooses an option, what chooses another, and what chooses none."""

import pytest

from counterpoint.rewards import build_reward

O = ["optA", "optB", "optC", "optD"]  # noqa: E741
TEN = ["opt" + letter for letter in "ABCDEFGHIJ"]
LANGUAGES = ["C", "C++", "C#", "Java"]
PLACES = ["bank", "library", "department store", "mall", "new york"]
# completion, right label, choices, reward
CASES = [
    ("5", "B", ["5", "-5", "0", "10"], 0),
    ("5", "A", ["5", "-5", "0", "10"], 1),
    ("x < 3", "A", ["x > 3", "x < 3", "x = 3", "x >= 3"], 0),
    ("x<3", "B", ["x > 3", "x < 3", "x = 3", "x >= 3"], 1),
    ("so x >= 3.", "D", ["x > 3", "x < 3", "x = 3", "x >= 3"], 1),
    ("H-", "A", ["H+", "H-", "H", "H2"], 0),
    ("H-", "B", ["H+", "H-", "H", "H2"], 1),
    ("It is C#.", "A", LANGUAGES, 0),
    ("It is C#.", "C", LANGUAGES, 1),
    ("C++", "C", LANGUAGES, 0),
    ("C++", "B", LANGUAGES, 1),
    ("The language is C++, clearly", "B", LANGUAGES, 1),
    ("x^2", "A", ["x^2", "x_2"], 1),
    ("x^2", "B", ["x^2", "x_2"], 0),
    ("Answer: A or B", "A", O, 0),
    ("Answer: A or B", "B", O, 0),
    ("The answer is A and B.", "A", O, 0),
    ("Answer: A, B, C, D", "A", O, 0),
    ("Answer: A/B", "A", O, 0),
    ("The answer is not B.", "B", O, 0),
    ("Definitely not A.", "A", O, 0),
    ("Answer: I think it is C", "C", TEN, 1),
    ("Answer: I think it is C", "I", TEN, 0),
    ("Answer: I", "I", TEN, 1),
    ("The answer is I.", "I", TEN, 1),
    ("I think B", "B", TEN, 1),
    ("B\n\n**Answer**: **C**", "C", O, 1),
    ("A fails. *ANSWER*: *C*", "C", O, 1),
    ("A is no. C too.\n**B**", "B", O, 1),
    ("A fails, C fails. Hence, B.", "B", O, 1),
    ("\\boxed{\\mathbf{B}}", "B", O, 1),
    ("\\boxed{B. optB}", "B", O, 1),
    ("\\boxed{\\text{(C)}}", "C", O, 1),
    ("\\boxed{A} or \\boxed{B}", "B", O, 0),
    ("答案是C。", "C", O, 1),
    ("选A", "A", O, 1),
    ("我選擇B", "B", O, 1),
    ("A ist falsch. Antwort: C", "C", O, 1),
    ("A no. Respuesta: C", "C", O, 1),
    ("A нет. Ответ: C", "C", O, 1),
    ("AとBは違う。答え: C", "C", O, 1),
    ("A 아님. 답변: C", "C", O, 1),
    ("A, B faux. La réponse est C.", "C", O, 1),
    ("الإجابة: ب", "B", O, 1),
    ("Ａ", "A", O, 1),
    ("The correct option is (D).", "D", O, 1),
    ("Option C is correct, not B", "C", O, 1),
    ("I choose B because A is wrong", "B", O, 1),
    ("A bank, I think.", "A", PLACES, 1),
    ("Answer: B. No: Answer: A", "A", PLACES, 1),
    ("bank or library", "A", PLACES, 0),
    ("The answer is **A**.", "A", PLACES, 1),
    ("(a)", "A", PLACES, 1),
    ("a", "A", PLACES, 1),
    ("A. bank", "A", PLACES, 1),
    ("It is the mall.", "D", PLACES, 1),
    ("New York!", "E", PLACES, 1),
    ("The answer is the department store, not the mall", "C", PLACES, 0),
    ("B) library", "B", PLACES, 1),
    ("Answer: bank", "A", PLACES, 1),
    ("Answer: (B) library", "B", PLACES, 1),
    ("Answer: b", "B", PLACES, 1),
    ("Let me see. A: no. B: no. C: yes.\nC", "C", O, 1),
    ("A is correct.", "A", O, 1),
    ("The answer is A because it is", "A", O, 1),
    ("So the answer must be D.", "D", O, 1),
    ("It's either A or C, but A fails. So C", "C", O, 1),
    ("None", "A", O, 0),
    ("We eliminate A, B and C, leaving D.", "D", O, 1),
    ("D: because", "D", O, 1),
    ("Answer: 50%", "B", ["5%", "50%"], 1),
    ("1000", "A", ["1,000", "100"], 1),
    ("The answer is $5", "A", ["$5", "$50"], 1),
    ("0.5", "A", [".5", "5"], 0),
    ("The answer is 3/4.", "A", ["3/4", "4/3"], 1),
    ('He said: "state of the art"', "A", ["state-of-the-art", "x"], 1),
    ("The answer is C++", "B", LANGUAGES, 1),
    ("A. 5\nB. -5\nThe answer is B.", "B", ["5", "-5"], 1),
    ("I am sure it is B", "B", TEN, 1),
    ("It is I", "I", TEN, 1),
    ("Answer: A bank is", "A", PLACES, 1),
    ("I would say B.", "B", TEN, 1),
    ("A or B? I say B.", "B", O, 1),
    ("The answer is A? No, it is B.", "B", O, 1),
    ("Answer: A, or maybe B", "A", O, 0),
    ("A、B错误，答案是C", "C", O, 1),
    ("About A and C.\n\nFinal: D", "D", O, 1),
    ("About A.\nNot: B", "B", O, 0),
    ("A..\n> B", "B", O, 1),
    ("It can't be B", "B", O, 0),
    ("anything but B", "B", O, 0),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: repr(case[0])[:40])
def test_kind(case):
    completion, label, choices, reward = case
    assert build_reward("choice")(completions=[completion], answer=[label], choices=[choices]) == [reward]


def test_more_than_26_options():
    many = [f"option number {number}" for number in range(40)]
    values = build_reward("choice")(
        completions=["AB", "Answer: AB", "option number 27", "A"], answer=[27] * 4, choices=[many] * 4
    )
    assert values == [1.0, 1.0, 1.0, 0.0]
