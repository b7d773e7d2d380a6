"""Names of strategies and weightings."""

import subprocess
import sys
from typing import Annotated

import pytest
import torch
from annotated_types import Gt

from counterpoint.errors import MissingExtraError, StrategyError
from counterpoint.registry import meaning, option_problems, options_of
from counterpoint.surgery import STRATEGIES, WEIGHTINGS, Context, Strategy, Weighting, build_weighting, resolve_strategy
from counterpoint.surgery.weightings import weighting_problems

TWO = torch.eye(2, dtype=torch.float64).unsqueeze(0)
CONTEXT = Context(("g",), ("a", "b"))


def half(gram_GDD: torch.Tensor) -> torch.Tensor:
    return torch.full(gram_GDD.shape[:2], 0.5)


def counted(gram_GDD: torch.Tensor, context: Context, factor: float = 1.0) -> torch.Tensor:
    return torch.full(gram_GDD.shape[:2], factor * context.num_domains)


class Remembering:
    def __init__(self, start: int = 0) -> None:
        self.calls = start

    def __call__(self, gram_GDD: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return torch.ones(gram_GDD.shape[:2])

    def state_dict(self) -> dict[str, int]:
        return {"calls": self.calls}


def test_the_named_strategies():
    parts = {name: (strategy.grouping, strategy.weighting) for name, strategy in STRATEGIES.items()}
    assert parts == {
        "mixed": ("global", "ones"),
        "pcgrad": ("global", "pcgrad"),
        "mgs": ("module", "pcgrad"),
        "mgs-tensor": ("tensor", "pcgrad"),
        "mgs-significant": ("module", "significant"),
        "mgs-ema": ("module", "ema"),
        "mgs-shuffled": ("module", "shuffled"),
    }


def test_spelled_out_equals_named():
    assert resolve_strategy({"grouping": "module", "weighting": "pcgrad"}) is STRATEGIES["mgs"]
    assert resolve_strategy({"name": "mgs"}) == STRATEGIES["mgs"]
    protecting = {"grouping": "module", "weighting": {"type": "pcgrad", "protect": ["math"]}}
    assert resolve_strategy({"name": "mgs", "protect": ["math"]}) == resolve_strategy(protecting)
    written = {"grouping": "layer", "weighting": "cagrad", "options": {"c": 0.2}, "protect": []}
    assert resolve_strategy(written).weighting == {"type": "cagrad", "c": 0.2}
    assert resolve_strategy("mgs", weighting="ones") == Strategy("module x ones", "module", "ones")
    assert resolve_strategy("mgs", grouping="tensor") is STRATEGIES["mgs-tensor"]
    spelled = resolve_strategy({"grouping": "layer", "weighting": {"type": "cagrad", "c": 0.2}})
    assert spelled.name == "layer x cagrad(c=0.2)"
    assert resolve_strategy(spelled) is spelled


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("mgs_tensor", r"Unknown strategy 'mgs_tensor': did you mean 'mgs-tensor'\?"),
        ("sequential", r"'sequential' trains one domain after another: it is a strategy of training"),
        ({"name": "mgs_tensor"}, r"Unknown strategy 'mgs_tensor': did you mean 'mgs-tensor'\?"),
        ({"name": "mgs", "weighting": "ones"}, r"has a name and a grouping or weighting"),
        ({"grouping": "module"}, r"needs a name, or grouping and weighting together"),
        ({}, r"needs a name, or grouping and weighting together"),
        ({"grouping": "module", "weightings": "ones"}, r"Unknown key 'weightings' .* did you mean 'weighting'\?"),
    ],
)
def test_bad_strategies(spec, message):
    with pytest.raises(StrategyError, match=message):
        resolve_strategy(spec)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("pcgrd", r"Unknown weighting 'pcgrd': did you mean 'pcgrad'\?"),
        ({"c": 1}, r"has no name"),
        ({"type": "ones", "c": 1}, r"'ones': c is no option of 'ones': it has none"),
        ({"type": "pcgrad", "c": 1}, r"'pcgrad': c is no option of 'pcgrad': Known: protect"),
        (
            {"type": "significant", "levl": 1},
            r"levl is no option of 'significant': did you mean 'level'\? Known: decay, level, protect",
        ),
        ({"type": "significant", "level": 0.5}, r"level should be less than 0.5, found 0.5"),
        ({"type": "significant", "level": True}, r"level should be a valid number, found True"),
        ({"type": "significant", "decay": -1}, r"decay should be greater than or equal to 0, found -1"),
        ({"type": "ema", "decay": "x"}, r"decay should be a valid number, found 'x'"),
        ({"type": "ema", "decay": float("nan")}, r"decay should be .*, found nan"),
        ({"type": "ema", "decay": 1, "protect": "math"}, r"decay should be less than 1, found 1.* protect .*'math'"),
        ({"type": "pcgrad", "protect": "math"}, r"protect .*, found 'math'"),
        ({"type": "pcgrad", "protect": ["a", 1]}, r"protect.1 should be a valid string, found 1"),
        ({"type": "pcgrad", "protect": ["a", "a"]}, r"protect lists 2 domains. Give at most 7, each of them once"),
        ({"type": "ema", "protect": list("abcdefgh")}, r"protect lists 8 domains. Give at most 7"),
        ("counterpoint.surgery:nothing", r"cannot be imported"),
        ("counterpoint.surgery:STRATEGIES", r"it must be a function"),
        (lambda: 1, r"must take \(gram_GDD\) or \(gram_GDD, context\); it takes 0 arguments"),
    ],
)
def test_bad_weightings(spec, message):
    with pytest.raises(StrategyError, match=message):
        build_weighting(spec)


def test_own_weightings():
    assert build_weighting(half)(TWO, CONTEXT).tolist() == [[0.5, 0.5]]
    assert build_weighting(counted)(TWO, CONTEXT).tolist() == [[2, 2]]
    remembering = build_weighting(Remembering)
    remembering(TWO, CONTEXT)
    assert remembering.state_dict() == {"calls": 1}
    assert build_weighting(half).state_dict() == {}


def test_own_weightings_by_path(monkeypatch):
    module = type(sys)("own_weightings")
    module.counted, module.Remembering = counted, Remembering
    monkeypatch.setitem(sys.modules, "own_weightings", module)
    weighting = build_weighting({"type": "own_weightings:counted", "factor": 3.0})
    assert weighting(TWO, CONTEXT).tolist() == [[6, 6]]
    assert build_weighting({"type": "own_weightings:Remembering", "start": 5}).state_dict() == {"calls": 5}
    assert build_weighting("own_weightings:Remembering").state_dict() == {"calls": 0}
    with pytest.raises(StrategyError, match=r"begin is no option of 'own_weightings:Remembering': Known: start"):
        build_weighting({"type": "own_weightings:Remembering", "begin": 5})


def test_without_torchjd_its_weightings_say_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchjd", None)
    monkeypatch.setitem(sys.modules, "torchjd.aggregation", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'counterpoint\[torchjd\]'"):
        build_weighting("upgrad")


@pytest.mark.parametrize("found", WEIGHTINGS.values(), ids=WEIGHTINGS)
def test_every_weighting_says_what_it_is(found):
    """What tables, help and messages are made of."""
    assert found.summary().endswith(".")
    options = options_of(found)
    assert found.protects == ("protect" in options)
    assert all(meaning(option) for option in options.values())
    assert all(option.default is not option.empty or option.name == "weights" for option in options.values())
    defaults = {option.name: option.default for option in options.values() if option.default is not option.empty}
    assert found.name == "static" or not list(option_problems(found.name, found, defaults))


def uses_halves(strategy):
    return build_weighting(strategy.weighting).uses_halves


def test_who_needs_halves():
    assert [name for name, strategy in STRATEGIES.items() if uses_halves(strategy)] == ["mgs-significant"]
    assert uses_halves(resolve_strategy("mgs", weighting={"type": "significant", "level": 0.01}))
    assert not uses_halves(resolve_strategy("mgs", weighting=half))


def test_own_weightings_may_need_halves():
    def splitting(gram_GDD: torch.Tensor, context: Context, factor: float = 1.0) -> torch.Tensor:
        return half(gram_GDD)

    splitting.uses_halves = True
    assert uses_halves(resolve_strategy("mgs", weighting=splitting))
    module = type(sys)("splitting")
    module.splitting = splitting
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "splitting", module)
        spec = {"type": "splitting:splitting", "factor": 2.0}
        assert uses_halves(resolve_strategy("mgs", weighting=spec))
        assert build_weighting(spec).uses_halves


def test_own_weightings_may_be_asked_in_steps_of_one_domain(toy):
    def tripling(gram_GDD: torch.Tensor, factor: float = 3.0) -> torch.Tensor:
        return torch.full(gram_GDD.shape[:2], factor)

    alone = toy.domains(1)
    assert toy.run(alone, weighting=tripling)[1].weights_GD.eq(1).all()
    tripling.weighs_one = True
    module = type(sys)("tripling")
    module.tripling = tripling
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "tripling", module)
        for spec in (tripling, "tripling:tripling", {"type": "tripling:tripling", "factor": 3.0}):
            assert toy.run(alone, weighting=spec)[1].weights_GD.eq(3).all()


class Half(Weighting):
    """A weighting of one's own as a class of ours, with the switches that the base class has."""

    weighs_one = True

    def __call__(self, gram_GDD: torch.Tensor, context: Context) -> torch.Tensor:
        return half(gram_GDD)


def test_own_weightings_may_be_classes_of_ours(toy):
    assert isinstance(build_weighting(Half), Half)
    for spec in (Half, Half()):
        _, record, surgeon = toy.run(toy.domains(1), weighting=spec)
        assert record.weights_GD.eq(0.5).all()
        assert surgeon.state_dict()["weighting"] == {}


def test_protected_domains_of_a_strategy():
    protecting = resolve_strategy("mgs", weighting={"type": "pcgrad", "protect": ["math", "qa"]})
    assert protecting.name == "module x pcgrad(protect=math+qa)"
    assert not list(weighting_problems(protecting.weighting, ["math", "qa", "code"]))
    ((path, message),) = weighting_problems(protecting.weighting, ["maths", "qa"])
    assert path == ("protect", 0)
    assert message.startswith("unknown domain 'math': did you mean 'maths'?")


class Limited(Weighting):
    """A class of the user's, whose types and limits are read as those of ours."""

    def __init__(self, factor: Annotated[float, Gt(0)] = 1.0) -> None:
        self.factor = factor

    def __call__(self, gram_GDD: torch.Tensor, context: Context) -> torch.Tensor:
        return torch.full(gram_GDD.shape[:2], self.factor)


def test_options_of_ones_own_class(monkeypatch):
    module = type(sys)("own_weightings")
    module.Limited = Limited
    monkeypatch.setitem(sys.modules, "own_weightings", module)
    made = build_weighting({"type": "own_weightings:Limited", "factor": 3})
    assert made(TWO, CONTEXT).tolist() == [[3, 3]]
    with pytest.raises(StrategyError, match="factor should be greater than 0, found -1"):
        build_weighting({"type": "own_weightings:Limited", "factor": -1})


def test_every_surgeon_has_its_own_memory():
    assert build_weighting("ema") is not build_weighting("ema")


def test_surgery_imports_torch_alone():
    code = (
        "import sys, counterpoint.surgery; "
        "print([m for m in ('transformers', 'trl', 'peft', 'torchjd', 'accelerate') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
