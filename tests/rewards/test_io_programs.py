# ruff: noqa: E501 (tables of short programs)
"""Reward ``code``: programs that read and write, and functions with inputs and outputs."""

import base64
import json
import pickle
import zlib

import pytest

from counterpoint.errors import RewardError
from counterpoint.rewards import build_reward
from counterpoint.rewards._io_tests import io_tests
from counterpoint.rewards.sandbox import MAX_FRAME
from counterpoint.rewards.sandbox._outputs import same_output, same_value

SUM = [{"input": "1 2\n", "output": "3\n"}, {"input": "5 6", "output": "11"}]
READS = "a, b = map(int, input().split())\n"
CASES = json.dumps([{"input": "[1, 2]\n3", "output": "[1, 2, 3]", "testtype": "functional"}])
APPEND = "class Solution:\n    def append(self, a: List[int], b):\n        return (*a, b)\n"


def score(completion, options=None, **row):
    reward = build_reward("code", **(options or {}))
    return reward(completions=[completion], **{name: [value] for name, value in row.items()})[0]


def packed(value):
    return base64.b64encode(zlib.compress(pickle.dumps(value))).decode()


# fmt: off
PROGRAMS = {
    "prints": (READS + "print(a + b)", 1.0),
    "one of two": (READS + "print(a + b + (a > 4))", 0.5),
    "by main": ("import sys\ndef main():\n    print(sum(map(int, sys.stdin.read().split())))\nif __name__ == '__main__':\n    main()", 1.0),
    "by descriptor": ("import os\nos.write(1, str(sum(map(int, os.read(0, 99).split()))).encode())\nos._exit(0)", 1.0),
    "by open": ("print(sum(map(int, open(0).read().split())))\nexit()", 1.0),
    "in a thread": ("import threading\ndef main():\n    " + READS + "    print(a + b)\nthreading.Thread(target=main).start()", 1.0),
    "at exit": ("import atexit, io, sys\nout, sys.stdout = sys.stdout, io.StringIO()\natexit.register(lambda: out.write(sys.stdout.getvalue()))\n" + READS + "print(a + b)", 1.0),
    "closed": (READS + "print(a + b)\nimport sys\nsys.stdout.close()", 1.0),
    "to the end": ("try:\n    while True:\n        " + READS + "        print(a + b)\nexcept EOFError:\n    pass", 1.0),
    "past the end": ("while True:\n    " + READS + "    print(a + b)", 0.0),
    "exit 0": (READS + "print(a + b)\nimport sys\nsys.exit(0)", 1.0),
    "exit 1": (READS + "print(a + b)\nimport sys\nsys.exit(1)", 0.0),
    "exit before": ("import sys\nsys.exit(0)\n" + READS + "print(a + b)", 0.0),
    "raises after": (READS + "print(a + b)\n1 / 0", 0.0),
    "on the other stream": (READS + "import sys\nprint(a + b, file=sys.stderr)", 0.0),
    "logs": (READS + "import sys\nprint(a, file=sys.stderr)\nprint(a + b)", 1.0),
    "with samples": ("```python\n" + READS + "print(a + b)\n```\nFor\n```\n1 2\n```\nit prints\n```\n3\n```", 1.0),
    "explained": ("```python\n" + READS + "print(a + b)\n```\nHere\n```python\nprint(a + b)\n```\nprints.", 1.0),
    "without end": ("while True:\n    print('3' * 1000)", 0.0),
    "nonsense": ("lorem (", 0.0),
    "all it can find": ("import gc, os, sys\nfor thing in gc.get_objects():\n    print(*(v for v in (thing if isinstance(thing, list) else [])), file=sys.stderr) if isinstance(thing, list) and '11' in map(str, thing) else None\nfor number in range(64):\n    try:\n        os.write(number, b'{\"passed\": true}')\n    except OSError:\n        pass\nos._exit(0)", 0.0),
}
# fmt: on


def test_programs_that_read_and_write():
    reward = build_reward("code", fraction=True)
    texts = [text for text, _ in PROGRAMS.values()]
    found = dict(zip(PROGRAMS, reward(completions=texts, tests=[SUM] * len(texts)), strict=True))
    assert found == {name: value for name, (_, value) in PROGRAMS.items()}


def test_each_test_has_its_own_time_and_all_have_a_total():
    slow = READS + "while a < 5:\n    pass\nprint(a + b)"
    limits = {"cpu_seconds": 1, "wall_seconds": 1.0}
    assert score(slow, {**limits, "fraction": True}, tests=SUM) == 0.5
    assert score(slow, {**limits, "fraction": True, "total_seconds": 0.1}, tests=SUM) == 0.0
    assert score(slow, limits, tests=SUM[::-1]) == 0.0
    with pytest.raises(RewardError, match="total_seconds"):
        build_reward("code", total_seconds=0)


def test_a_function_starts_anew_where_a_test_ended_it():
    row = {"fn_name": "f", "inputs": [[1], [2], [3], [4]], "outputs": [1, 2, 3, 4]}
    program = (
        "import os\ndef f(x):\n    if x == 2:\n        os._exit(0)\n    while x == 3:\n        pass\n    return x\n"
    )
    assert score(program, {"fraction": True, "wall_seconds": 1.0}, **row) == 0.5


def test_large_inputs_that_are_read_or_not():
    tests = [{"input": "1\n" * 300_000, "output": "300000"}]
    assert score("import sys\nprint(sum(map(int, sys.stdin)))", tests=tests) == 1.0
    assert score("print(300000)", tests=tests) == 1.0
    with pytest.raises(RewardError, match="row 0: test 0 is too large"):
        score("print()", tests=[{"input": "1" * MAX_FRAME, "output": ""}])


ADD = {"fn_name": "add", "inputs": [[1, 2], [3, 4]], "outputs": [[3], [7]]}


@pytest.mark.parametrize(
    ("completion", "row"),
    [
        (READS + "print(a + b)", {"input_output": json.dumps({"inputs": ["1 2\n", ["3 4"]], "outputs": ["3", ["7"]]})}),
        ("def add(a, b): return a + b", {"input_output": json.dumps(ADD)}),
        ("class Solution:\n    def add(self, a, b): return a + b", {"input_output": json.dumps(ADD)}),
        ("class Solution: pass\ndef add(a, b): return a + b", ADD),
        (APPEND, {"public_test_cases": CASES, "private_test_cases": packed(CASES), "metadata": '{"func_name": "append"}'}),
        (APPEND, {"tests": json.loads(CASES), "fn_name": "append"}),
        (READS + "print(a + b)", {"public_test_cases": json.dumps(SUM), "private_test_cases": "[]", "metadata": "{}"}),
        (READS + "print(a + b)", {"reward_model": {"style": "rule", "ground_truth": '{"inputs": ["1 2"], "outputs": ["3"]}'}}),
        ("def f(x): return 4", {"ground_truth": json.dumps({"functional": "def check(c):\n    assert c(3) == 4\ncheck(f)"})}),
        ("def f(x): return 4", {"tests": '{"functional": "assert f(3) == 4"}', "prompt": [{"role": "user", "content": "f?"}]}),
        ("import math\ndef f(x): return math.sqrt(x)", {"fn_name": "f", "inputs": [[2]], "outputs": [1.41421356]}),
    ],
)  # fmt: skip
def test_forms_of_data_sets(completion, row):
    assert score(completion, **row) == 1.0
    assert score(completion.replace("return", "return not").replace("print(", "print('no',"), **row) == 0.0


@pytest.mark.parametrize(
    ("body", "arguments", "result"),
    [
        ("return Counter(a)[2]", [[2, 1]], 1),
        ("return max(accumulate(a))", [[2, 1]], 3),
        ("heapify(a); return heappop(a)", [[2, 1]], 1),
        ("return heapq.nlargest(1, a) + list(itertools.chain(a)) + [bisect.bisect_left(a, 2)]", [[1, 2]], [2, 1, 2, 1]),
        ("return gcd(*a) + floor(inf > 1) + len(ascii_lowercase)", [[4, 6]], 29),
        ("return re.sub('a', 'b', a) + string.digits", ["a"], "b0123456789"),
        ("return datetime.date(2024, 2, a).isoformat()", [29], "2024-02-29"),
        ("return reduce(operator.add, map(itemgetter(0), a))", [[[1], [2]]], 3),
        ("root: Optional[TreeNode] = None\n        head: List = ListNode(3, ListNode(4))\n        return head.next.val", [0], 4),
        ("@cache\n        def g(n): return n and n + g(n - 1)\n        return g(a)", [4], 10),
        ("add = 1\n        for count in a: add += count\n        return add", [[1, 2]], 4),
    ],
)  # fmt: skip
def test_solutions_use_names_of_the_library_without_importing_them(body, arguments, result):
    row = {"fn_name": "f", "inputs": [arguments], "outputs": [result]}
    program = f"class Solution:\n    def f(self, a, root: Optional[TreeNode] = None):\n        {body}\n"
    assert score(program, **row) == 1.0
    assert score(program, tests=[f"assert Solution().f(*{arguments!r}) == {result!r}"]) == 1.0
    assert score(f"def Counter(x): return 5\nfrom math import *\n{program}", **row) == float("Counter" not in body)
    if "Tree" not in body:
        plain = f"def f(a):\n    {body}\n".replace("\n        ", "\n    ")
        assert score(plain, **row) == 1.0
        assert score(plain, tests=[f"assert f(*{arguments!r}) == {result!r}"]) == float("add = 1" in body)


class _Hostile:
    def __reduce__(self):
        return (pytest.fail, ("a pickle was run",))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"input_output": ""}, "'input_output' is no JSON"),
        ({"input_output": '{"inputs": ["1"]}'}, "'input_output' must hold 'inputs' and 'outputs'"),
        ({"input_output": '{"inputs": ["1"], "outputs": []}'}, "as many inputs as outputs"),
        ({"input_output": '{"inputs": [], "outputs": []}'}, "holds no test"),
        ({"inputs": [[{}]], "outputs": ["1"]}, "must be a text"),
        ({"inputs": ["["], "outputs": ["1"], "fn_name": "f"}, "test 0 holds no JSON"),
        ({"inputs": [3], "outputs": [3], "fn_name": "f"}, "must be a list of arguments"),
        ({"inputs": [[3]], "outputs": [3], "fn_name": "f g"}, "'fn_name' must be the name"),
        ({"public_test_cases": CASES}, "give its name in 'fn_name'"),
        ({"private_test_cases": packed(_Hostile())}, "only a single text is read"),
        ({"reward_model": {"ground_truth": "72"}}, "'reward_model' must hold"),
    ],
)
def test_rows_that_cannot_be_read_are_refused(row, message):
    with pytest.raises(RewardError, match=message):
        io_tests(row)
    (problem,) = build_reward("code").check_rows([row])
    assert problem.startswith("row 0: ")


def test_numbers_of_many_digits():
    tests = [{"input": "9" * 6000, "output": "1" + "0" * 6000}]
    assert score("print(int(input()) + 1)", tests=tests) == 1.0
    assert score("print(int(input()) + 2)", tests=tests) == 0.0
    function = "def f(n):\n    return 10**n"
    assert score(function, tests=["assert f(5000) == 10**5000 and str(f(6000)) == '1' + '0' * 6000"]) == 1.0
    assert score("while True:\n    print(str(10**9999999)[:9])", {"cpu_seconds": 1}, tests=tests) == 0.0


@pytest.mark.parametrize(
    ("written", "expected", "same"),
    [
        ("1" * 400 + ".5", "2" * 400 + ".5", False),
        ("1" * 400 + ".5", "1" * 400 + ".5", True),
        ("2e999", "1e999", False),
        ("3 \r\n4\n\n", "3\n4", True),
        ("3  4", "3 4", True),
        ("3\n4", "3 4", False),
        ("3\n\n4", "3\n4", False),
        ("0.5000001", "0.5", True),
        ("0.501", "0.5", False),
        ("1e3 x", "1000.0 x", True),
        ("3.0", "3", False),
        ("10000001", "10000000", False),
        ("yes", "YES", False),
        ("1e999", "1.5", False),
        ("nan", "nan", True),
        ("", "\n", True),
    ],
)
def test_when_outputs_are_the_same(written, expected, same):
    assert same_output(written, expected) is same


def test_when_values_are_the_same():
    assert same_value([(1, 2.0000001)], [[1, 2.0]])
    assert same_value({1: "a"}, {"1": "a"})
    assert not same_value([1, 2], [1, 2, 3])
    assert not same_value("1", 1)


def test_a_column_of_another_kind_named_metadata_is_left_alone():
    row = {"tests": [{"input": "1", "output": "1"}], "metadata": "from a book"}
    assert build_reward("code")(completions=["print(input())"], **{k: [v] for k, v in row.items()}) == [1.0]


def test_tests_that_are_too_many_for_one_message_are_sent_in_parts():
    case = {"input": json.dumps("x" * 9_000_000), "output": "9000000"}
    columns = {"tests": [[case] * 4], "fn_name": ["size"]}
    assert build_reward("code")(completions=["def size(text):\n    return len(text)"], **columns) == [1.0]


def test_many_named_tuples_are_read_quickly():
    code = """
from collections import namedtuple
P = namedtuple("P", "x y")
def points(n):
    return [P(i, i) for i in range(n)]
"""
    assert build_reward("code")(completions=[code], tests=[["assert points(20000)[-1].y == 19999"]]) == [1.0]
