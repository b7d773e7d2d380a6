# ruff: noqa: E501 (tables of short programs)
"""Reward ``code``: forms of tests and of replies. No form of a test passes without running."""

import textwrap

import pytest

from counterpoint.errors import RewardError
from counterpoint.rewards import build_reward

RIGHT, WRONG = "def triple(x):\n    return 3 * x\n", "def triple(x):\n    return x + 3\n"
FORMS = {
    "pytest": "def test_triple():\n    assert triple(4) == 12",
    "module": "from solution import triple\n\ndef test_it():\n    assert triple(4) == 12",
    "renamed": "from solution import triple as t\n\ndef test_it():\n    assert t(4) == 12",
    "attribute": "import solution\n\ndef test_it():\n    assert solution.triple(4) == 12",
    "class": "class TestTriple:\n    def test_a(self):\n        assert triple(4) == 12",
    "set up": "class TestTriple:\n    def setup_method(self):\n        self.x = 4\n    def test_a(self):\n        assert triple(self.x) == 12",
    "unittest": "import unittest\n\nclass T(unittest.TestCase):\n    def test_a(self):\n        self.assertEqual(triple(4), 12)\n\nif __name__ == '__main__':\n    unittest.main()",
    "runner": "import unittest\nclass T(unittest.TestCase):\n    def test_a(self):\n        self.assertEqual(triple(4), 12)\nunittest.TextTestRunner().run(unittest.TestLoader().loadTestsFromTestCase(T))",
    "main": "import unittest\nclass T(unittest.TestCase):\n    def test_a(self):\n        self.assertEqual(triple(4), 12)\nunittest.main()",
    "called": "def run():\n    assert triple(4) == 12\nrun()",
}  # fmt: skip


def score(completion, **row):
    return build_reward("code")(completions=[completion], **{name: [value] for name, value in row.items()})[0]


@pytest.mark.parametrize("form", FORMS)
def test_a_form_of_tests_runs(form):
    assert score(RIGHT, tests=[FORMS[form]]) == 1.0
    assert score(WRONG, tests=[FORMS[form]]) == 0.0


PYTEST = {
    "approx": "assert triple(4) == pytest.approx(12.0000001) and triple(1) == pytest.approx(3.2, abs=0.3)",
    "approx of many": "assert [triple(4), triple(1)] == pytest.approx([12.0, 3.0]) and {'a': triple(4)} == pytest.approx({'a': 12.0})",
    "not approx": "assert triple(4) == 12 and triple(4) != pytest.approx(12.1) and triple(4) != pytest.approx(13, abs=0.5)",
    "raises": "with pytest.raises(TypeError):\n        triple(None)\n    assert triple(4) == 12",
    "raises with a text": "with pytest.raises((TypeError, ValueError), match='unsupported operand') as info:\n        triple(None)\n    assert info.type is TypeError and 'NoneType' in str(info.value) and triple(4) == 12",
    "raises at an end": "with pytest.raises(StopIteration):\n        next(iter([]))\n    assert triple(4) == 12",
    "fails": "try:\n        triple(None)\n        pytest.fail('no error')\n    except Exception:\n        assert triple(4) == 12",
    "calls and raises": "pytest.raises(TypeError, triple, None)\n    assert triple(4) == 12",
}  # fmt: skip
PARAMETERS = {
    "pairs": "@pytest.mark.parametrize('x, y', [(1, 3), (4, 12)])\ndef test_a(x, y):\n    assert triple(x) == y",
    "single": "@pytest.mark.parametrize('x', [0, 4], ids=['a', 'b'])\ndef test_a(x):\n    assert triple(x) == 3 * x",
    "param": "@pytest.mark.parametrize(['x', 'y'], [pytest.param(4, 12, id='a')])\ndef test_a(x, y):\n    assert triple(x) == y",
    "two": "@pytest.mark.parametrize('x', [0, 4])\n@pytest.mark.parametrize('k', [3])\ndef test_a(x, k):\n    assert triple(x) == k * x",
    "in a class": "class TestA:\n    @pytest.mark.parametrize('x', [0, 4])\n    def test_a(self, x):\n        assert triple(x) == 3 * x",
    "main": "def test_a():\n    assert triple(4) == 12\nif __name__ == '__main__':\n    pytest.main()",
}  # fmt: skip


@pytest.mark.parametrize("test", [*(f"def test_a():\n    {body}" for body in PYTEST.values()), *PARAMETERS.values()])
def test_forms_of_pytest_run(test):
    for text in (f"import pytest\n{test}", f"from pytest import approx, fail, mark, param, raises\n{test}"):
        text = text if text.startswith("import pytest") else text.replace("pytest.", "").replace("main()", "pass")
        assert score(RIGHT, tests=[text]) == 1.0
        assert score("def triple(x):\n    return 4 - x", tests=[text]) == 0.0
        assert score("def triple(x):\n    return x", tests=[text]) == 0.0


@pytest.mark.parametrize(
    "text",
    [
        "with pytest.raises(ValueError):\n    triple(0)",
        "with pytest.raises(TypeError, match='^NoneType'):\n    triple(None)",
        "with pytest.raises(TypeError):\n    triple(None)\nassert triple(0)",
        "assert triple(1) == pytest.approx(float('nan'))",
        "assert triple(1) == pytest.approx(float('inf'))",
        "assert triple(1) == pytest.approx('3')",
        "assert triple(1) == pytest.approx(3.000001, rel=0)",
        "assert [triple(1)] == pytest.approx([3, 3])",
        "@pytest.mark.parametrize('x', [])\ndef test_a(x):\n    assert triple(x) == 3 * x",
    ],
)
def test_forms_of_pytest_that_fail(text):
    assert score(RIGHT, tests=[f"import pytest\n{text}"]) == 0.0


def test_a_program_does_not_end_or_satisfy_an_expected_error():
    test = "import pytest\nwith pytest.raises(BaseException):\n    triple(4)"
    assert score("def triple(x): raise KeyError", tests=[test]) == 1.0
    for act in ("os._exit(0)", "os.closerange(3, 64)", "sys.modules.clear()"):
        assert score(f"import os, sys\ndef triple(x): {act}", tests=[test]) == 0.0
    any_number = "class N(float):\n    def __eq__(self, o): return True\n    __sub__ = __rsub__ = lambda s, o: 0\n"
    for made in ("N(5)", "type('T', (), {'__eq__': lambda s, o: True, '__rsub__': lambda s, o: 0})()", "None", "'12'"):
        program = f"{any_number}def triple(x): return {made}"
        assert score(program, tests=["import pytest\nassert triple(4) == pytest.approx(12)"]) == 0.0
        assert score(program, tests=["import pytest\nassert pytest.approx(12) == triple(4)"]) == 0.0


def test_a_class_of_tests_beside_check_runs():
    test = FORMS["unittest"] + "\n\ndef check(candidate):\n    pass"
    assert score(RIGHT, test=test, entry_point="triple") == 1.0
    assert score(WRONG, test=test, entry_point="triple") == 0.0
    assert score(WRONG, test=FORMS["unittest"], entry_point="triple") == 0.0


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"tests": ["def helper():\n    assert triple(4) == 12"]}, "test 0 runs nothing"),
        ({"tests": ["x = 3"]}, "test 0 runs nothing"),
        ({"test": "def check(candidate):\n    pass", "entry_point": "triple"}, "assert nothing"),
        ({"test": "def check(candidate):\n    candidate(4)", "entry_point": "triple"}, "assert nothing"),
        ({"tests": ["triple(4) == 12"]}, "assert nothing"),
        ({"tests": ["print(triple(4))"]}, "assert nothing"),
        ({"tests": ["assert (triple(4) == 12, 'no')"]}, "assert nothing"),
        ({"tests": ["def test_a():\n    return triple(4) == 12"]}, "assert nothing"),
        ({"tests": ["def test_a(x):\n    assert triple(x) == 12"]}, "has arguments or a decorator"),
        ({"tests": ["async def test_a():\n    assert triple(4) == 12"]}, "is asynchronous"),
        ({"tests": ["import asyncio\nassert asyncio.run(triple(4)) == 12"]}, "run a coroutine"),
        ({"tests": ["import asyncio\nloop = asyncio.new_event_loop()\nassert loop.run_until_complete(triple(4)) == 12"]}, "run a coroutine"),
        ({"tests": ["import inspect\nassert inspect.iscoroutinefunction(triple)"]}, "inspect triple"),
        ({"tests": ["from contextlib import redirect_stdout as r\nimport io\nwith r(io.StringIO()) as o:\n    triple(4)\nassert o"]}, "use redirect_stdout"),
        ({"tests": ["from unittest.mock import MagicMock\nimport time\nassert triple(MagicMock())"]}, "use unittest.mock"),
        ({"tests": ["import time\ntime.time = lambda: 4\nassert triple(4) == 12"]}, "use time.time"),
        ({"tests": ["import builtins\nsetattr(builtins, 'input', lambda: '4')\nassert triple(4) == 12"]}, "use setattr"),
        ({"tests": ["import os\nos.environ['A'] = '4'\nassert triple(4) == 12"]}, "use os.environ"),
        ({"tests": ["import pytest\n@pytest.fixture\ndef x(): return 4\ndef test_a(x):\n    assert triple(x) == 12"]}, "has arguments or a decorator"),
        ({"tests": ["import pytest\n@pytest.fixture(autouse=True)\ndef x(): return 4\ndef test_a():\n    assert triple(4) == 12"]}, "use pytest.fixture"),
        ({"tests": ["import pytest\n@pytest.mark.skip\ndef test_a():\n    assert triple(4) == 12"]}, "has arguments or a decorator"),
        ({"tests": ["import pytest\npytestmark = pytest.mark.skip\ndef test_a():\n    assert triple(4) == 12"]}, "use pytest.mark.skip"),
        ({"tests": ["from pytest import mark as m, skip\ndef test_a():\n    skip()\n    assert triple(4) == 12"]}, "use pytest.skip"),
        ({"tests": ["import pytest\n@pytest.mark.parametrize('x', [4])\ndef test_a(x, tmp_path):\n    assert triple(x) == 12"]}, "has arguments or a decorator"),
        ({"tests": ["import pytest\n@pytest.mark.parametrize(NAMES, [4])\ndef test_a(x):\n    assert triple(x) == 12"]}, "has arguments or a decorator"),
        ({"tests": ["import pytest\n@pytest.mark.parametrize('x', [4])\ndef test_a(x):\n    triple(x)"]}, "assert nothing"),
        ({"tests": ["import pytest\ndef test_a():\n    triple(4) == pytest.approx(12)"]}, "assert nothing"),
        ({"tests": ["import pytest\ndef test_a():\n    with pytest.raises(Mine):\n        triple(4)"]}, "use Mine as a class"),
        ({"tests": ["import unittest\nclass T(unittest.TestCase):\n    def test_a(self):\n        self.assertRaises(Mine, triple, 4)"]}, "use Mine as a class"),
        ({"tests": ["import unittest\nclass T(unittest.TestCase):\n    def test_a(self):\n        self.assertIsInstance(triple(4), Mine)"]}, "use Mine as a class"),
        ({"tests": ["assert np.isclose(triple(4), 12)"]}, "use np"),
        ({"tests": ["import contextlib, io\nwith contextlib.redirect_stdout(io.StringIO()) as o:\n    triple(4)\nassert o"]}, "use redirect_stdout"),
        ({"tests": ["from unittest.mock import patch\nwith patch('builtins.input', lambda: '4'):\n    assert triple(4) == 12"]}, "use patch"),
        ({"tests": ["import sys, io\nsys.stdout = io.StringIO()\ntriple(4)"]}, "use sys.stdout"),
    ],
)  # fmt: skip
def test_what_cannot_run_is_refused(row, message):
    with pytest.raises(RewardError, match=message):
        score(RIGHT, **row)


@pytest.mark.parametrize(
    ("program", "test"),
    [
        ("import datetime\ndef f(): return datetime.date(2024, 2, 29)", "import datetime\nassert f() == datetime.date(2024, 2, 29)"),
        ("from datetime import datetime\ndef f(): return datetime(2024, 1, 2, 3)", "from datetime import datetime\nassert f().hour == 3 and f() == datetime(2024, 1, 2, 3)"),
        ("from datetime import timedelta\ndef f(): return timedelta(hours=5)", "assert f().total_seconds() == 18000"),
        ("from collections import deque\ndef f(): return deque([1, 2], maxlen=3)", "from collections import deque\nassert f() == deque([1, 2]) and f().maxlen == 3"),
        ("def f(d): d.append(4)", "from collections import deque\nd = deque([3])\nf(d)\nassert d == deque([3, 4])"),
        ("from pathlib import Path\ndef f(): return Path('a') / 'b'", "from pathlib import Path\nassert f() == Path('a/b')"),
        ("from collections import Counter\ndef f(s): return Counter(s)", "from collections import Counter\nassert isinstance(f('aab'), Counter) and f('aab').most_common(1) == [('a', 2)]"),
        ("from collections import OrderedDict\ndef f(): return OrderedDict(a=1, b=2)", "from collections import OrderedDict\nassert isinstance(f(), OrderedDict) and f() == OrderedDict(a=1, b=2) != OrderedDict(b=2, a=1) and f() == {'b': 2, 'a': 1}"),
        ("from collections import defaultdict\ndef f(): return defaultdict(list, a=[1])", "from collections import defaultdict\nassert isinstance(f(), defaultdict) and f() == {'a': [1]} and f()['b'] == [] and f().default_factory is list"),
        ("from collections import defaultdict\ndef f(): return defaultdict(lambda: 3, a=1)", "from collections import defaultdict\nassert isinstance(f(), defaultdict) and f() == {'a': 1}"),
        ("def f(d):\n    d.move_to_end('a')\n    d['c'] = 3", "from collections import OrderedDict\nd = OrderedDict(a=1, b=2)\nf(d)\nassert list(d) == ['b', 'a', 'c']"),
        ("def f(d): d['b'].append(4)", "from collections import defaultdict\nd = defaultdict(list)\nf(d)\nassert d == {'b': [4]} and d['c'] == []"),
        ("def apply(f, *x): return f(*x)", "import math, operator, datetime\nfrom collections import Counter\nassert apply(math.sqrt, 9) == 3 and apply(operator.add, 1, 2) == 3 and apply(str.upper, 'a') == 'A'and apply(datetime.date, 2024, 2, 29).day == 29 and apply(Counter, 'aa') == {'a': 2}"),
        ("class A: pass\nclass B(A): pass\ndef make(): return B()", "assert type(make()).__name__ == 'B' and make().__class__.__name__ == 'B' and type(make()) is B and type(make()) is not A"),
        ("def f(x): return x", "def g(x): return type(x)\nassert g(f(3)) is int and type(f('a')).__name__ == 'str' and f(3).__class__ == int and type(int) is type and type('T', (), {})"),
        ("from collections import namedtuple\nP = namedtuple('P', 'x y')\ndef f(): return P(1, 2)", "assert f() == (1, 2) and f().y == 2"),
        ("from array import array\ndef f(): return array('i', [1, 2])", "from array import array\nassert f() == array('i', [1, 2])"),
        ("import uuid\ndef f(): return uuid.UUID(int=5)", "import uuid\nassert f() == uuid.UUID(int=5)"),
        ("class Box:\n    def __contains__(self, x): return x == 3", "assert 3 in Box() and 4 not in Box()"),
        ("import contextlib\n@contextlib.contextmanager\ndef f():\n    yield 7", "with f() as x:\n    assert x == 7"),
        ("def f():\n    'says so'", "assert f.__name__ == 'f' and f.__doc__ == 'says so'"),
        ("class S:\n    def f(self, xs: List[int]) -> Optional[int]:\n        return max(xs)", "assert S().f([1, 3]) == 3"),
    ],
)  # fmt: skip
def test_what_crosses_from_the_program(program, test):
    assert score(program, tests=[test]) == 1.0


ERRORS = {
    "subclass": ("class E(ValueError): pass\ndef f(): raise E('bad')", "except ValueError as e: assert str(e) == 'bad'"),
    "own class": ("class E(Exception): pass\ndef f(): raise E('bad')", "except Exception as e: assert str(e) == 'bad'"),
    "two levels": ("class A(LookupError): pass\nclass E(A): pass\ndef f(): raise E", "except LookupError as e: assert e.args == ()"),
    "text of its own": ("class E(ValueError):\n    def __str__(self): return 'so'\ndef f(): raise E(3)", "except ValueError as e: assert str(e) == 'so'"),
    "text of a key": ("def f(): raise KeyError('k')", "except KeyError as e: assert e.args == ('k',) and str(e) == repr('k')"),
    "arguments": ("def f(): raise ValueError('a', 2, [3])", "except ValueError as e: assert e.args == ('a', 2, [3])"),
    "missing file": ("def f(): open('none')", "except FileNotFoundError as e: assert e.errno == 2 and e.filename == 'none' and 'none' in str(e)"),
    "JSON": ("import json\ndef f(): json.loads('{')", "except ValueError as e: assert 'Expecting property name' in str(e)"),
    "JSON by name": ("import json\ndef f(): json.loads('{')", "except json.JSONDecodeError as e: assert 'line 1 column 2' in str(e)"),
    "frozen": ("from dataclasses import dataclass\n@dataclass(frozen=True)\nclass P:\n    x: int = 1\ndef f(): P().x = 2", "except dataclasses.FrozenInstanceError: pass"),
    "text encodings": ("def f(): b'\\xff'.decode()", "except UnicodeDecodeError: pass"),
    "text of a class without one": ("class E(ValueError):\n    def __str__(self): raise OSError\ndef f(): raise E", "except ValueError: pass"),
    "arguments without end": ("def f():\n    a = []\n    a.append(a)\n    raise ValueError(a)", "except ValueError: pass"),
}  # fmt: skip


@pytest.mark.parametrize("name", ERRORS)
def test_an_error_crosses_with_its_class_and_arguments(name):
    program, clause = ERRORS[name]
    test = f"import dataclasses, json\ntry:\n    f()\n{clause}\nelse:\n    assert False"
    assert score(program, tests=[test]) == 1.0
    assert score("def f(): return 1", tests=[test]) == 0.0
    assert score("def f(): raise MemoryError", tests=[test.replace("except Exception", "except OSError")]) == 0.0


def test_no_error_skips_a_test_or_ends_a_loop():
    skip = "import unittest\ndef triple(x):\n    raise unittest.SkipTest('no')"
    case = "import unittest\nclass T(unittest.TestCase):\n    def test_a(self): self.assertEqual(triple(4), 12)\n    def test_b(self): self.assertEqual(1, 1)\n"
    assert score(skip, tests=[case]) == 0.0
    end = "class End(StopIteration): pass\ndef triple(x): raise End"
    test = "def g():\n    yield triple(1)\nassert list(map(lambda x: triple(x), [1])) == []"
    assert score(end, tests=[test]) == 0.0


def test_a_context_manager_of_the_program_swallows_no_failure():
    program = (
        "class C:\n    def __enter__(self): return 1\n    def __exit__(self, *a): return True\ndef f(): return C()"
    )
    assert score(program, tests=["with f() as x:\n    assert x == 2"]) == 0.0


REPLIES = {
    "tildes": "~~~python\n{}~~~",
    "closed on a line of code": "```python\ndef triple(x):\n    return 3 * x```\nDone.",
    "byte order mark": "\ufeff```python\n{}```",
    "four ticks": "````py\n{}````",
    "one line": "```triple = lambda x: 3 * x```",
    "answer tag": "<think>hm</think><answer>\n{}</answer>",
    "tag in the program": "```python\nTAG = '<answer>'\n{}```",
    "imports first": "```python\nimport math\n```\nand\n```python\ndef triple(x):\n    return math.prod([3, x])\n```",
    "helper first": "```python\ndef add(a, b):\n    return a + b\n```\nThen\n```python\ndef triple(x):\n    return add(x, add(x, x))\n```",
    "in a docstring": "```python\ndef triple(x):\n    \"\"\"\n    ```\n    triple(1)\n    ```\n    \"\"\"\n    return 3 * x\n```",
    "in Markdown": "````markdown\n```python\n{}```\n````",
    "quoted": "> ```python\n> def triple(x):\n>     return 3 * x\n> ```",
    "in one tick": "`triple = lambda x: 3 * x`",
    "ipython": "```ipython\n{}```",
    "hard spaces": "```python\ndef triple(x):\n\u00a0\u00a0return 3 * x\n```",
    "helper later": "```python\ndef triple(x):\n    return add(x, add(x, x))\n```\nwith\n```python\ndef add(a, b):\n    return a + b\n```",
    "corrected": "```python\ndef triple(x):\n    return x\n```\nNo:\n```python\n{}```",
    "future first": "```python\nfrom __future__ import annotations\ndef triple(x: List[int]):\n    return 3 * x\n```",
    "future after a docstring": "```python\n\"\"\"Triples.\"\"\"\nfrom __future__ import (\n    annotations,\n    division,\n)\ndef triple(x: List[int]):\n    return 3 * x\n```",
    "future after a helper": "```python\ndef add(a, b):\n    return a + b\n```\n```python\nfrom __future__ import annotations\ndef triple(x: Number):\n    return add(x, add(x, x))\n```",
    "indented, with typing": "1. So:\n   ```python\n   def triple(x: Optional[int]):\n       return 3 * x\n   ```",
    "typing after a star": "```python\nfrom math import *\ndef triple(x: Optional[int]):\n    return 3 * x\n```",
    "tags of Python": "So:\n[PYTHON]\n{}[/PYTHON]\nDone.",
    "tags of a beginning": "[BEGIN]\n{}[DONE]\n[BEGIN]",
    "tags around a fence": "[PYTHON]\n```python\n{}```\n[/PYTHON]",
    "one line with its language": "```python def triple(x): return 3 * x```",
    "constant later": "```python\ndef triple(x):\n    return FACTORS['x'] * x\n```\nwith\n```python\nFACTORS = {\n    'x': 3,\n}\n```",
    "with a trial": "```python\n{}```\nTry it:\n```python\nassert triple(1) == 3\nprint(triple(2))\n```",
}  # fmt: skip


@pytest.mark.parametrize("reply", REPLIES)
def test_the_program_of_a_reply_is_found(reply):
    assert score(REPLIES[reply].replace("{}", RIGHT), tests=["assert triple(4) == 12"]) == 1.0


def test_what_is_put_before_a_program_leaves_its_first_lines_first():
    program = "from __future__ import annotations\ndef triple(x: Number) -> Number:\n    return x * times\n"
    assert score(program, tests=["assert triple(4) == 12"], setup="times = 3") == 1.0
    header = "times = 3\ndef triple(x):\n    'Triples.'\n"
    assert score(program, tests=["assert triple(4) == 12"], header=header, entry_point="triple") == 1.0


def test_a_thought_holds_no_program():
    unfinished = f"<think>\n```python\n{RIGHT}```\nbut is it"
    assert score(unfinished, tests=["assert triple(4) == 12"]) == 0.0
    reward = build_reward("code", closed_thought=True)
    rows = {"tests": [["assert triple(4) == 12"]] * 2}
    assert reward(completions=[RIGHT, f"hm</think>\n{textwrap.dedent(RIGHT)}"], **rows) == [0.0, 1.0]
