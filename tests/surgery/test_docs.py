"""The code in docs/strategies.md runs as it stands, and its tables name what exists."""

import re
from pathlib import Path

import pytest
import torch

from counterpoint.surgery import GROUPINGS, STRATEGIES, WEIGHTINGS, Context, Surgeon, build_weighting

PAGE = (Path(__file__).parents[2] / "docs" / "strategies.md").read_text()


@pytest.fixture(scope="module")
def blocks() -> list[dict[str, object]]:
    found = []
    for code in re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL):
        names: dict[str, object] = {}
        exec(code, names)
        found.append(names)
    return found


def test_the_loop(blocks, capsys):
    assert blocks[0]["record"].domains == ("code", "math")


def test_own_weighting(blocks):
    vectors_DP = torch.tensor([[1.0, 0.0], [2.0, -1.0], [-1.0, 1.0]], dtype=torch.float64)
    weights_GD = blocks[1]["protect_math"]((vectors_DP @ vectors_DP.T)[None], Context(("g",), ("chat", "code", "math")))
    # Projected against math: chat by half of math's gradient, code by one and a half of it.
    torch.testing.assert_close(weights_GD, torch.tensor([[1.0, 1.0, 3.0]], dtype=torch.float64))


def test_own_weighting_as_a_class(blocks):
    found = build_weighting(blocks[2]["Damped"])
    gram_GDD = torch.tensor([[[1.0, 0.5], [0.5, 1.0]], [[1.0, -0.5], [-0.5, 1.0]]], dtype=torch.float64)
    assert found(gram_GDD, Context(("a", "b"), ("math", "code"))).tolist() == [[1, 1], [0.5, 0.5]]


def test_own_grouping(blocks, build):
    assert Surgeon(build("llama"), grouping=blocks[3]["attention_or_not"]).groups == ("rest", "attention")


def test_every_name_is_on_the_page():
    for name in (*STRATEGIES, *GROUPINGS, *WEIGHTINGS):
        assert f"`{name}`" in PAGE, name
