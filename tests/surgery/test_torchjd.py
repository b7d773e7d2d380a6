"""TorchJD's weightings through the adapter, against TorchJD itself."""

import inspect
import json

import pytest
import torch

from counterpoint.errors import MissingExtraError, StrategyError
from counterpoint.registry import options_of
from counterpoint.surgery import WEIGHTINGS, Context, Surgeon, build_weighting
from counterpoint.surgery.weightings.torchjd import TorchJDWeighting

torchjd = pytest.importorskip("torchjd.aggregation", reason="the extra torchjd is not installed")

TORCHJD = {name: found for name, found in WEIGHTINGS.items() if issubclass(found, TorchJDWeighting)}
KEEPS_SUM = [name for name, method in TORCHJD.items() if method.keeps_sum]
DOMAINS = ("a", "b", "c")


def weighting_of(name: str):
    try:
        return build_weighting(name)
    except MissingExtraError as error:
        pytest.skip(f"{name}: {error}")


def grams(num_groups: int, seed: int = 0, positive: bool = False) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    vectors = torch.randn(num_groups, 3, 5, generator=generator, dtype=torch.float64)
    vectors = vectors.abs() if positive else vectors
    return vectors @ vectors.mT


def context(num_groups: int, step: int = 0) -> Context:
    return Context(tuple(f"g{i}" for i in range(num_groups)), DOMAINS, 0, step)


@pytest.mark.parametrize("name", TORCHJD)
def test_every_method_gives_finite_weights(name):
    weights_GD = weighting_of(name)(grams(4), context(4))
    assert weights_GD.shape == (4, 3)
    assert weights_GD.isfinite().all()


@pytest.mark.parametrize("name", TORCHJD)
def test_zero_gradients_do_no_harm(name):
    gram_GDD = grams(3)
    gram_GDD[0, 1], gram_GDD[0, :, 1] = 0, 0
    gram_GDD[1] = 0
    weights_GD = weighting_of(name)(gram_GDD, context(3))
    assert weights_GD.isfinite().all()
    assert weights_GD[1].eq(1).all()


@pytest.mark.parametrize("name", [n for n in TORCHJD if n not in ("upgrad", "dualproj", "aligned_mtl")])
def test_scale_against_torchjd(name):
    method = TORCHJD[name]
    ours = weighting_of(name)(grams(1), context(1))[0]
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(context(1).generator("g0").initial_seed())
        defaults = {option: known.default for option, known in options_of(method).items()}
        theirs = getattr(torchjd, method.theirs)(**defaults)(grams(1)[0])
    torch.testing.assert_close(ours, theirs * (3 if method.scale == "times_d" else 1))


@pytest.mark.parametrize("name", KEEPS_SUM)
def test_no_conflict_is_the_sum(name):
    assert weighting_of(name)(grams(5, positive=True), context(5)).eq(1).all()


@pytest.mark.parametrize("name", KEEPS_SUM)
def test_the_shortcut_for_no_conflict_is_what_torchjd_says(name):
    ones = torch.ones(3, dtype=torch.float64)
    weights_D = getattr(torchjd, TORCHJD[name].theirs)(pref_vector=ones)(grams(1, positive=True)[0])
    torch.testing.assert_close(weights_D, ones, rtol=1e-3, atol=1e-3)


def test_methods_scaled_by_the_number_of_domains_sum_to_it():
    for name in ("mgda", "imtl_g"):
        torch.testing.assert_close(weighting_of(name)(grams(4), context(4)).sum(1), torch.full((4,), 3.0).double())


def test_cagrad_without_its_term_is_the_sum():
    weighting_of("cagrad")
    weights_GD = build_weighting({"type": "cagrad", "c": 0.0})(grams(2), context(2))
    torch.testing.assert_close(weights_GD, torch.ones(2, 3).double())


@pytest.mark.parametrize("name", TORCHJD)
def test_global_random_state_is_untouched(name):
    weighting = weighting_of(name)
    before = torch.get_rng_state()
    weighting(grams(3), context(3))
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("name", TORCHJD)
def test_a_group_does_not_depend_on_the_others(name):
    together, alone = weighting_of(name), weighting_of(name)
    both = together(grams(3), context(3))
    one = alone(grams(3)[2:], Context(("g2",), DOMAINS))
    assert torch.equal(both[2:], one)


def test_gradvac_remembers_per_group_and_resumes():
    first, second = weighting_of("gradvac"), weighting_of("gradvac")
    for step in range(3):
        first(grams(2, seed=step), context(2, step))
    second.load_state_dict(first.state_dict())
    after = first(grams(2, seed=9), context(2, 9))
    assert torch.equal(after, second(grams(2, seed=9), context(2, 9)))
    assert not torch.equal(after, weighting_of("gradvac")(grams(2, seed=9), context(2, 9)))


def test_an_absent_domain_does_not_erase_gradvacs_memory():
    first, second = weighting_of("gradvac"), weighting_of("gradvac")
    for weighting in (first, second):
        weighting(grams(1), context(1))
    first(grams(1)[:, :2, :2], Context(("g0",), ("a", "b")))
    assert torch.equal(first(grams(1, seed=4), context(1, 2)), second(grams(1, seed=4), context(1, 2)))


def test_gradvac_does_not_take_one_pair_of_domains_for_another():
    first, second = weighting_of("gradvac"), weighting_of("gradvac")
    first(grams(1)[:, :2, :2], Context(("g0",), ("a", "b")))
    later = grams(1, seed=4)[:, :2, :2]
    other_pair = Context(("g0",), ("a", "c"))
    assert torch.equal(first(later, other_pair), second(later, other_pair))


def test_gradvacs_memory_travels_in_the_surgeons_state(tmp_path):
    weighting_of("gradvac")

    def make() -> tuple[torch.nn.Module, Surgeon]:
        torch.manual_seed(0)
        model = torch.nn.Linear(3, 2)
        return model, Surgeon(model, grouping="tensor", weighting="gradvac")

    def step(model: torch.nn.Module, surgeon: Surgeon, seed: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed)
        model.zero_grad()
        for domain in DOMAINS:
            model(torch.randn(4, 3, generator=generator)).pow(3).sum().backward()
            surgeon.collect(domain)
        return surgeon.combine().weights_GD

    model, surgeon = make()
    for seed in range(3):
        step(model, surgeon, seed)
    (tmp_path / "surgeon.json").write_text(json.dumps(surgeon.state_dict()))
    other_model, resumed = make()
    resumed.load_state_dict(json.loads((tmp_path / "surgeon.json").read_text()))
    assert torch.equal(step(model, surgeon, 7), step(other_model, resumed, 7))


def test_unknown_options_are_refused():
    with pytest.raises(StrategyError, match="speed is no option of 'mgda': Known: epsilon, max_iters"):
        build_weighting({"type": "mgda", "speed": 3})


@pytest.mark.parametrize("name", TORCHJD)
def test_options_are_those_of_torchjd(name):
    """Each with TorchJD's own default, where it has one; left out are the objects, preferences and projectors."""
    theirs = inspect.signature(getattr(torchjd, TORCHJD[name].theirs)).parameters
    for option, ours in options_of(TORCHJD[name]).items():
        assert theirs[option].default in (ours.default, inspect.Parameter.empty)
    assert set(theirs) - set(options_of(TORCHJD[name])) <= {"pref_vector", "projector"}


def test_a_missing_solver_says_what_to_install(monkeypatch):
    def needs_solver(**_: object) -> None:
        raise ImportError('Install them with: pip install "torchjd[cagrad]"')

    monkeypatch.setattr(torchjd, "CAGradWeighting", needs_solver)
    with pytest.raises(MissingExtraError, match=r"'cagrad' needs a solver.*torchjd\[cagrad\]"):
        build_weighting("cagrad")
