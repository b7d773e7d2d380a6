"""Reward functions that misbehave: each is a ``RewardError`` that names it, in training, evaluation and ``score``."""

import asyncio
import collections
import decimal
import fractions
import json
import math
import sys
import threading

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from counterpoint.cli.app import app
from counterpoint.domains.domain_rewards import DOMAIN_COLUMN, ROW_COLUMN, build_domain_rewards
from counterpoint.errors import RewardError
from counterpoint.rewards import build_reward


class Unspeakable(Exception):
    def __str__(self):
        raise ValueError("no text for you")


class Unshowable:
    def __repr__(self):
        raise ValueError("no repr for you")


class Endless:
    def __len__(self):
        return 2

    def __getitem__(self, index):
        return 1.0


class Liar(list):
    def __len__(self):
        return 2

    def __iter__(self):
        raise OSError("no values for you")


class Shapeshifter:
    ndim = 0

    def item(self):
        raise SystemExit(0)


def raising(error):
    def function(**_):
        raise error

    return function


def exiting(**_):
    sys.exit(0)


def quitting(**_):
    exit()


def emptying(prompts, completions, **_):
    prompts.clear()
    completions.clear()
    raise KeyError("gone")


def recursing(**_):
    return recursing()


def grouping(**_):
    raise BaseExceptionGroup("several", [ValueError("a"), SystemExit(0)])


async def coroutine():
    return [1.0, 1.0]


RAISING = {
    "sys.exit": exiting,
    "exit": quitting,
    "exits with a text": raising(SystemExit("bye")),
    "generator exit": raising(GeneratorExit()),
    "base exception": raising(BaseException("base")),
    "group": grouping,
    "cancelled": raising(asyncio.CancelledError()),
    "no text": raising(Unspeakable()),
    "stop": raising(StopIteration()),
    "stop of another kind": raising(StopAsyncIteration()),
    "key": raising(KeyError("answer")),
    "assertion": raising(AssertionError()),
    "memory": raising(MemoryError()),
    "out of disk": raising(OSError(28, "No space left on device")),
    "recursion": recursing,
    "empties its arguments": emptying,
    "takes no columns": lambda prompts, completions: [1.0, 1.0],
    "takes nothing": lambda: [1.0, 1.0],
    "asserts": raising(UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad")),
    "module": lambda **_: __import__("a_module_that_is_not_there"),
}
RETURNING = {
    "nothing": None,
    "a number": 1.0,
    "a dict": {0: 1.0, 1: 0.5},
    "a dict by completion": {"a": 1.0, "b": 0.5},
    "a text": "12",
    "bytes": b"12",
    "bytearray": bytearray(b"12"),
    "memory": memoryview(b"12"),
    "a set": {1.0, 2.0},
    "values of a dict": {"a": 1.0, "b": 2.0}.values(),
    "a zip": zip([1.0], [2.0], strict=True),
    "a map": map(float, [1, 2]),
    "a counter": collections.Counter("ab"),
    "too few": [1.0],
    "too many": [1.0, 1.0, 1.0],
    "no values": [],
    "texts": ["1", "2"],
    "lists": [[1.0], [2.0]],
    "tuples": [(1.0,), (2.0,)],
    "dicts": [{"reward": 1.0}, {"reward": 2.0}],
    "nan": [1.0, math.nan],
    "infinite": [math.inf, 1.0],
    "negative infinite": [1.0, -math.inf],
    "10**400": [10**400, 1],
    "-10**400": [1, -(10**400)],
    "beyond float32": [1e39, 1.0],
    "1e308": [1e308, 1e308],
    "a huge fraction": [fractions.Fraction(10**50), 1],
    "complex": [1 + 2j, 1.0],
    "decimal": [decimal.Decimal(1), decimal.Decimal(2)],
    "a column of an array": np.ones((2, 1)),
    "a row of an array": np.ones((1, 2)),
    "a square array": np.ones((2, 2)),
    "an array of no dimension": np.float32(1.0),
    "an array of texts": np.array(["1", "2"]),
    "an array of objects": np.array([{}, []], dtype=object),
    "an array of complex": np.ones(2, dtype=complex),
    "a column of a tensor": torch.ones(2, 1),
    "a square tensor": torch.ones(2, 2),
    "a tensor of no dimension": torch.tensor(1.0),
    "a tensor on no device": torch.ones(2, device="meta"),
    "tensors": [torch.ones(2), torch.ones(2)],
    "tensors of one": [torch.ones(1), torch.ones(1)],
    "arrays of one": [np.ones(1), np.ones(1)],
    "objects": [object(), object()],
    "functions": [len, len],
    "types": [float, int],
    "what cannot be shown": [Unshowable(), Unshowable()],
    "is itself not shown": Unshowable(),
    "has a length alone": Endless(),
    "has no values": Liar([1.0, 2.0]),
    "exits when it is read": [Shapeshifter(), Shapeshifter()],
    "a lock": threading.Lock(),
    "not implemented": NotImplemented,
    "ellipsis": [..., ...],
}
GOOD = {
    "floats": [0.5, 1.0],
    "whole numbers": [0, 1],
    "booleans": [False, True],
    "a tuple": (0.5, 1.0),
    "left out": [None, 1.0],
    "an array": np.array([0.5, 1.0], dtype=np.float16),
    "an array of booleans": np.array([False, True]),
    "numbers of arrays": [np.float32(0.5), np.bool_(True)],
    "a tensor": torch.tensor([0.5, 1.0], dtype=torch.bfloat16),
    "a tensor with a gradient": torch.ones(2, requires_grad=True),
    "numbers of tensors": [torch.tensor(0.5), torch.tensor(1)],
    "fractions": [fractions.Fraction(1, 2), 1],
    "a range": range(2),
    "a deque": collections.deque([0.5, 1.0]),
    "the largest": [3.4028234663852886e38, -3.4e38],
}


def made(behave):
    """A synchronous and an asynchronous reward that behaves so."""

    async def awaited(**arguments):
        return behave(**arguments)

    return {"sync": behave, "async": awaited}


def call(function):
    (reward,) = build_domain_rewards({"d": {"r": function}}, ["d"])
    arguments = {
        "prompts": ["p", "q", "x"],
        "completions": ["a", "b", "c"],
        "answer": ["1", "2", "3"],
        DOMAIN_COLUMN: ["d", "d", "e"],
        ROW_COLUMN: [3, 4, 5],
    }
    values = reward(**arguments)
    return asyncio.run(values) if asyncio.iscoroutine(values) else values


@pytest.mark.parametrize("kind", ["sync", "async"])
@pytest.mark.parametrize("name", RAISING)
def test_whatever_a_reward_raises_is_told_as_its_failure(name, kind):
    with pytest.raises(RewardError, match=r"domain 'd': reward 'r'"):
        call(made(RAISING[name])[kind])


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("kind", ["sync", "async"])
@pytest.mark.parametrize("name", RETURNING)
def test_whatever_is_no_list_of_numbers_is_told(name, kind):
    with pytest.raises(RewardError, match=r"domain 'd': reward 'r'"):
        call(made(lambda **_: RETURNING[name])[kind])


@pytest.mark.parametrize("name", GOOD)
def test_numbers_of_every_kind_are_taken(name):
    values = call(lambda **_: GOOD[name])
    assert values[2] is None
    assert all(value is None or type(value) is float for value in values)


@pytest.mark.filterwarnings("error")
def test_a_generator_and_a_coroutine_are_told():
    for function in (lambda **_: (x for x in (1.0, 2.0)), lambda **_: coroutine()):
        with pytest.raises(RewardError, match="Return a list"):
            call(function)


def test_ctrl_c_goes_through():
    with pytest.raises(KeyboardInterrupt):
        call(raising(KeyboardInterrupt()))


def test_an_async_reward_gets_its_options(tmp_path, monkeypatch):
    (tmp_path / "later_reward.py").write_text("async def later(completions, bonus, **_):\n    return [bonus] * 2\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    assert call(build_reward("later_reward:later", bonus=0.5))[:2] == [0.5, 0.5]


@pytest.mark.parametrize(
    "body",
    [
        "import sys\nsys.exit(0)",
        "raise BaseException('no')",
        "def r(:",
        "import nothing_of_this_name",
        "class r:\n    def __init__(self): exit()",
        "class r:\n    def __init__(self): raise OSError('no')",
        "class r:\n    def __init__(self, needed): ...",
        "class r(type(Exception)): ...",
        "r = 5",
        "def __getattr__(name): raise SystemExit",
    ],
)
def test_a_module_or_a_class_that_fails_is_told(body, tmp_path, monkeypatch):
    name = f"failing_{abs(hash(body))}"
    (tmp_path / f"{name}.py").write_text(body)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    with pytest.raises(RewardError, match=f"Reward '{name}:r'"):
        build_reward(f"{name}:r")


@pytest.mark.parametrize("name", [":r", "m:", "a b:r", "a..b:r", "../a:r", "a:r:s", "a:r.", "-m:r"])
def test_a_name_that_is_none_is_told(name):
    with pytest.raises(RewardError, match=r"package\.module:object"):
        build_reward(name)


@pytest.mark.parametrize("body", ["import sys; sys.exit(0)", "return {0: 1.0}", "return [10**400]", "return [1e39]"])
def test_score_tells_it_too(body, tmp_path, monkeypatch):
    name = f"scoring_{abs(hash(body))}"
    (tmp_path / f"{name}.py").write_text(f"def r(completions, **_):\n    {body}\n")
    (tmp_path / "rows.jsonl").write_text(json.dumps({"completion": "a"}) + "\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    result = CliRunner().invoke(app, ["score", f"{name}:r", "rows.jsonl", "out.jsonl"])
    assert isinstance(result.exception, RewardError)
    assert result.exit_code == 1
    assert not (tmp_path / "out.jsonl").exists()
