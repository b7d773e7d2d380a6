# ruff: noqa: RUF001 (characters that look like others are the point)
"""Texts that a model could write and no reward should trip over, made from a seed.

>>> texts = hostile_texts(1000, seed=0)  # the same thousand every time

Fragments of answers, mark-up, formulas, code and odd Unicode are strung together, repeated, torn and changed in case;
some texts are random characters of any plane, lone surrogates included. The longest have 200,000
characters, and most are short, so that a failure is read at a glance.
"""

import random

_ANSWERS = [
    "The answer is **A**", "the answer is", "Answer: ", "answer:", "#### 72", "####", "\\boxed{72}", "\\boxed{",
    "(A)", "(b)", "[C]", "A.", "B)", "A or B", "A B C", "None of the above", "Option D", "choice", "I", "i",
    "J", "s", "k", "a)b)c)", "(a) (b)", "one", "twenty-one", "1st", "the", "bank", "library", "Hamlet", "True",
    "None", "null", "yes",
]  # fmt: skip
_NUMBERS = [
    "1", "0", "-3", "--5", "5-", "2.5", "1.2.3", ".5", "5.", "1/2", "1/0", "0/0", "1,000", "1,0007", "$5.00",
    "50%", "3 million", "1e400", "-1e-400", "1e999999999", "9" * 400, "9" * 5000, "0x10", "NaN", "inf", "-inf",
    "∞", "½", "²", "①", "Ⅳ", "千", "١٢٣", "๓", "𝟗", "12:30", "10!", "1000000!", "9**9**9**9", "2^(2^(2^(2^2)))",
]  # fmt: skip
_MARKUP = [
    "<think>", "</think>", "<answer>", "</answer>", "<response>", "</response>", "<ANSWER>", "<answer/>", "<",
    "<<<", ">" * 20, "```python\n", "```", "~~~", "**", "* ", "- ", "# ", "|", "[x](y)",
    "<script>alert(1)</script>", "${x}", "$${x}", "%s", "{0}", "{", "}", "[", "]", "(", ")", "[]", "{}", "''",
    '""', '"', "'", "\\", "\\" * 40, "$" * 40, "&amp;", "\x1b[31m", "{{", "}}",
]  # fmt: skip
_FORMULAS = [
    "\\frac{1}{2}", "\\frac{", "\\sqrt{2}", "\\int_0^1 x dx", "\\sum_{i=1}^{10^9} i",
    "\\begin{pmatrix}1&2\\\\3&4\\end{pmatrix}", "\\text{a}", "\\left(", "\\right)", "[0,1)", "{1,2}", "\\infty",
    "x^2+1", "f(f(f(x)))", "sin(1)", "log(0)", "0^0", "$$x$$", "\\(x\\)", "\\[x\\]", "=", "+", "-", "*", "/",
    "^", "≤", "\\def\\a{\\a\\a}\\a", "factorial(100000)",
]  # fmt: skip
_CODE = [
    "def double(x):\n    return 2*x\n", "import os", "__import__('os').system('touch pwned')", "exit()",
    "raise SystemExit", "while True: pass", "lambda: (yield)", "[__import__('sys').exit(3)]",
    "';DROP TABLE x;--", '{"a":', "a\rb", "a,b\rc", '"a\n',
]  # fmt: skip
_UNICODE = [
    "ı", "İ", "ſ", "\u212a", "\u212b", "ß", "ẞ", "ǅ", "ŉ", "ﬃ", "ﬀ", "Σ", "ς", "µ", "é" * 100, "e\u0301", "\u0345",
    "\u0301" * 200, "\u202e", "\u2028", "\u2029", "\x85", "\x1c", "\u200b", "\u00a0", "\u3000", "\ufeff",
    "\ufffe", "\x00", "\x7f", "\ud800", "\udfff", "\udc80", "\U0010ffff", "\ue000", "🎉" * 20, "👨‍👩‍👧", "🇩🇪",
    "안녕", "日本語", "עברית", "العربية", "ⓐ", "Ａ", "（ａ）",
]  # fmt: skip
_SPACES = ["", " ", "  ", "\n", "\n\n", "\r\n", "\r", "\t", "\v", "\f", ". ", ", ", ": ", " " * 200, "\n" * 200]
_LONG = [
    "(" * 5000,
    ")" * 50,
    "((" * 50,
    "a" * 3000,
    "ab " * 2000,
    "!" * 30,
    "-" * 500,
    "." * 500,
    "[" * 3000 + "1",
    "\\frac{" * 300,
]

_FRAGMENTS = (_ANSWERS, _NUMBERS, _MARKUP, _FORMULAS, _CODE, _UNICODE, _LONG)
_WEIGHTS = (6, 5, 5, 4, 2, 6, 1)


def hostile_texts(count: int, seed: int) -> list[str]:
    """``count`` nasty texts; the first ones are every fragment by itself, then alone between brackets."""
    rng = random.Random(seed)
    alone = ["", *(fragment for kind in _FRAGMENTS for fragment in kind)]
    bracketed = [f"({fragment})" for fragment in (*_UNICODE, *_ANSWERS)]
    first = [*alone, *bracketed][:count]
    return first + [_text(rng) for _ in range(count - len(first))]


def _text(rng: random.Random) -> str:
    kind = rng.random()
    if kind < 0.1:
        return _random_characters(rng)
    text = "".join(_fragment(rng) + rng.choice(_SPACES) for _ in range(rng.choice([1, 1, 2, 2, 3, 5, 10, 30])))
    if kind < 0.13:
        return (text * rng.choice([10, 100]))[:200_000]
    if kind < 0.2 and text:
        start = rng.randrange(len(text))
        return text[start : start + rng.randrange(1, 200)]
    if kind < 0.3:
        return rng.choice([str.lower, str.upper, str.swapcase, str.title])(text)
    if kind < 0.35:
        return rng.choice(["<think>", "<answer>", "<think>a</think>", "```\n", "#### ", "\\boxed{"]) + text
    return text


def _fragment(rng: random.Random) -> str:
    return rng.choice(rng.choices(_FRAGMENTS, _WEIGHTS)[0])


def _random_characters(rng: random.Random) -> str:
    limit = rng.choice([0x80, 0x250, 0x3000, 0x110000])
    return "".join(chr(rng.randrange(limit)) for _ in range(rng.randrange(1, 200)))
