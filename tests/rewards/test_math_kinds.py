# ruff: noqa: RUF001 (tables of short cases, with the signs that people type)
"""Reward ``math``: kinds of answers that are easily taken for others, each with a right and a wrong reading."""

import time

import pytest

from counterpoint.errors import RewardError
from counterpoint.rewards import build_reward

# completion, reference, reward
CASES = [
    ("We get $4$ and $6$.", "4, 6", 1),
    ("The answer is $4$ and $6$.", "4", 0),
    ("The answer is $4$ or $6$.", "4, 6", 1),
    ("$$x = 1 + 2y$$\n$$x = 2y + 1$$", "x=2y+1", 1),
    ("\\boxed{120}", "5!", 1),
    ("\\boxed{3628800}", "$10!$", 1),
    ("\\boxed{5!}", "5", 0),
    ("The answer is 42!", "42", 1),
    ("\\boxed{4}", "4a", 0),
    ("4a", "4", 0),
    ("2abc", "2", 0),
    ("\\boxed{-4}", "-4m^2", 0),
    ("\\boxed{4s^3}", "4s^2", 0),
    ("0.5", "\\frac{1}{2}a", 0),
    ("1/2", "1/2a", 0),
    ("\\boxed{3}", "3cosx", 0),
    ("\\boxed{3}", "3m", 0),
    ("\\boxed{72}", "72_8", 0),
    ("\\boxed{58}", "72_8", 1),
    ("72_8", "72_8", 1),
    ("\\boxed{3 km}", "3 m", 0),
    ("\\boxed{3 km}", "3", 1),
    ("\\boxed{3 kilometers}", "3 km", 1),
    ("\\boxed{3\\text{ m}}", "3", 1),
    ("\\boxed{72km}", "72", 1),
    ("\\boxed{72\\text{k}}", "72", 0),
    ("\\boxed{72 \\operatorname{foo}(x)}", "72", 0),
    ("#### Step 2: Add\n3 + 4 = 7\n\nThe answer is \\boxed{7}.", "7", 1),
    ("3 + 4 = 7\n\n#### Final Answer\n\n7", "7", 1),
    ("#### 1. Compute the total\n3 + 4 = 7\nSo it is 7.", "1", 0),
    ("#### 1. Compute the total\n3 + 4 = 7\nSo it is 7.", "7", 1),
    ("x\n#### 72 apples\n", "72", 1),
    ("#### Final Answer: 7", "7", 1),
    ("\\boxed{-2}", "so \\(\\boxed{1}\\) and \\(\\boxed{-2}\\).", 0),
    ("\\boxed{3}, \\boxed{5}, and \\boxed{7}.", "7", 0),
    ("\\boxed{3} + \\boxed{4} = \\boxed{7}", "7", 1),
    ("\\boxed{7}. Yes, \\boxed{7}", "7", 1),
    ("First \\boxed{3}. Then \\boxed{4}.", "4", 1),
    ("所以答案是42。", "42", 1),
    ("答案：12，因为3乘4等于12，不是13。", "12", 1),
    ("答えは42です。", "42", 1),
    ("الإجابة: ٤٢", "42", 1),
    ("উত্তর: ৪২", "42", 1),
    ("答案是４２", "42", 1),
    ("Ответ: 42, а не 43", "42", 1),
    ("정답은 42입니다.", "42", 1),
    ("共有42个", "42", 1),
    ("1.234,56 €", "1234.56", 1),
    ("La réponse est 2,5.", "2.5", 1),
    ("2,5", "2,5", 1),
    ("2.5", "2,5", 1),
    ("\\boxed{2,5}", "2.5", 1),
    ("10⁴", "10000", 1),
    ("2½ cups", "2.5", 1),
    ("\\boxed 5", "5", 1),
    ("Answer: 7 or 8", "7", 0),
    ("Answer: 7 or 8", "8", 0),
    ("**Answer**: $34$ ways, as 5 of 7 fail.", "34", 1),
    ("\\boxed{x+y=1}", "1", 0),
    ("\\boxed{x^2-5x+6=0}", "0", 0),
    ("\\boxed{f(2)=5}", "5", 1),
    ("\\boxed{AB = 5}", "5", 1),
    ("$x = 5+5+1 = 11$", "$x = 11$", 1),
    ("\\[ 48 + 24 = 72 \\]", "72", 1),
    ("So we get $48 + 24 = 72$.", "72", 1),
    ("The answer is 48 + 24 = 72.", "72", 1),
    ("\\boxed{1/2^{98}}", "1/2^{99}", 0),
    ("\\boxed{1/2^{99}}", "1/2^{99}", 1),
    ("\\boxed{\\frac{1}{2^{99}}}", "1/2^{99}", 1),
    ("28\\%", "28", 1),
    ("Paris", "Paris", 1),
    ("It is **Paris**, of course", "paris", 1),
    ("So it was $5.", "5", 1),
    ("He paid $5 and $6, total $11", "11", 1),
    ("It costs $2.50 per kg, so 4 kg cost $10.", "10", 1),
    ("the 5th", "5", 1),
    ("\\boxed{5}", "9. Anya needs to climb the height of one floor", 0),
    ("\\boxed{3\\frac{1}{2}}", "3.5", 1),
    ("\\boxed{1,000,000}", "1000000", 1),
    ("\\boxed{10{,}000}", "10000", 1),
    ("\\boxed{10\\,000}", "10000", 1),
    ("10'000", "10000", 1),
    ("\\boxed{\\$5}", "5", 1),
    ("\\boxed{5\\%}", "5%", 1),
    ("The answer is 12 dollars and 50 cents", "12", 1),
    ("x=2 or x=3", "2, 3", 1),
    ("\\boxed{x=2, x=3}", "2,3", 1),
    ("\\boxed{\\text{Yes}}", "yes", 1),
    ("(A)", "A", 1),
    ("\\boxed{9}", "5", 0),
    ("Count: 1, 2, 3, 4", "4", 0),
    ("It is 3x", "3", 0),
    ("I bought 3 apples, 4 pears", "4", 1),
    ("\\boxed{60^\\circ}", "60", 1),
    ("\\boxed{60^{\\circ}}", "60^\\circ", 1),
    ("\\boxed{\\frac{\\pi}{3}}", "\\pi/3", 1),
    ("Antwort: 3,5 kg", "3.5", 1),
    ("\\boxed{5\\cdot 10^3}", "5000", 1),
    ("$5!$", "120", 1),
    ("The area is 12 m^2", "12", 1),
    ("\\boxed{12\\text{ cm}^2}", "12", 1),
    ("\\boxed{6.02 \\times 10^{23}}", "6.02e23", 1),
    ("5 and 6", "6", 1),
    ("The total is **$1,200**.", "1200", 1),
    ("\\boxed{1{,}234}", "1,234", 1),
    ("\\boxed{(1,2)}", "(1, 2)", 1),
    ("a) 3\nb) 4", "4", 1),
    ("2\\frac12", "2.5", 1),
    ("\\boxed{-\\frac{3}{4}}", "-0.75", 1),
    ("\\boxed{1/2018!}", "1/2020!", 0),
    ("\\boxed{2, 4, \\dots, 2n}", "3, 5, \\dots, 2n+1", 0),
    ("\\boxed{3\\sqrt(5)}", "3", 0),
    ("\\boxed{\\lnot 9}", "9", 0),
    ("\\boxed{8 \\lor 9}", "9", 0),
    ("\\boxed{\\foo 4 \\baz 9}", "9", 0),
    ("\\boxed{2 + \\frac{1}{\\mathrm{e}}}", "2", 0),
    ("\\boxed{101_2}", "5", 1),
    ("\\boxed{101}", "101_2", 0),
    ("\\boxed{129_8}", "129", 0),
    ("\\boxed{6 am}", "6 pm", 0),
    ("Set $a = 4$ and get $\\boxed{4}$ \\text{ and } $\\boxed{6}$", "4, 6", 1),
    ("Total: 9, 8, 7, 6", "6", 0),
    ("Lösung: 1.250,5 kg", "1250.5", 1),
    ("답: ７", "7", 1),
    ("ответ: 17 яблок", "17", 1),
    ("\\boxed{1 234,5}", "1234.5", 1),
    ("\\boxed{1 234 567,25}", "1234567.25", 1),
    ("\\boxed{1 234}", "1234", 1),
    ("\\boxed{7 ? 8}", "8", 0),
    ("\\boxed{7 = 8}", "8", 0),
    ("\\boxed{x = 7 = 7}", "7", 1),
]


@pytest.fixture(scope="module")
def rewards():
    return build_reward("math")(completions=[case[0] for case in CASES], answer=[case[1] for case in CASES])


@pytest.mark.parametrize("number", range(len(CASES)), ids=lambda number: repr(CASES[number][0])[:40])
def test_kind(number, rewards):
    assert rewards[number] == CASES[number][2]


def test_a_batch_of_hostile_answers_ends_in_its_time():
    hostile = [f"\\boxed{{{n}^{{9^{{9^{{9}}}}}}}}" for n in range(2, 14)]
    reward = build_reward("math", timeout=2.0, batch_timeout=3.0)
    start = time.monotonic()
    with pytest.warns(RuntimeWarning, match="took longer than 3 s for the batch"):
        values = reward(completions=[*hostile, "7"], answer=["7"] * 13)
    assert time.monotonic() - start < 20
    assert values[-1] == 1.0
    assert set(values[:-1]) <= {0.0, None}
    assert None in values
    with pytest.raises(RewardError, match="batch_timeout must be a number of seconds"):
        build_reward("math", batch_timeout=0)
