"""Routes of models whose active neurons are known, and overlaps at and above chance: power and false positives."""

import dataclasses
import json

import pytest
import torch
from scipy.stats import hypergeom
from transformers import LlamaConfig, LlamaForCausalLM

from counterpoint.diagnosis import Rollout, Rollouts
from counterpoint.diagnosis import measure_routes as routes
from counterpoint.diagnosis._chance import chance_of, jaccard_by_chance
from counterpoint.diagnosis._contributions import Activity
from counterpoint.diagnosis.routes import route_overlap, stability, top_units
from counterpoint.errors import CounterpointError

NEURONS, LAYERS, ACTIVE = 40, 2, 4
TOKENS = {"math": range(4, 10), "code": range(10, 16)}
PLANTED = {"math": (0, 1, 2, 3), "code": (2, 3, 4, 5)}
"""Active neurons of each layer: two are shared."""
LAYERS_U = torch.arange(120) // 40


class Tokenizer:
    pad_token_id = 0


def planted_model():
    """Tokens of a domain lie in a direction of their own, which the domain's neurons and no others look for."""
    generator = torch.Generator().manual_seed(0)
    config = LlamaConfig(
        vocab_size=16,
        hidden_size=16,
        intermediate_size=NEURONS,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        max_position_embeddings=32,
        pad_token_id=0,
    )
    model = LlamaForCausalLM(config).double()
    with torch.no_grad():
        model.model.embed_tokens.weight.normal_(0, 0.2, generator=generator)
        for axis, domain in enumerate(TOKENS):
            model.model.embed_tokens.weight[list(TOKENS[domain]), axis] = 5.0
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.normal_(0, 0.01, generator=generator)
            for projection in (layer.mlp.gate_proj, layer.mlp.up_proj):
                projection.weight.normal_(0, 0.1, generator=generator)
                for axis, domain in enumerate(TOKENS):
                    projection.weight[list(PLANTED[domain]), axis] = 1.0
            layer.mlp.down_proj.weight.normal_(0, 0.05, generator=generator)
    return model


def completions(domain, tokens, groups=16, seed=0):
    generator = torch.Generator().manual_seed(seed)
    items = []
    for i in range(2 * groups):
        drawn = torch.tensor(list(tokens))[torch.randint(len(tokens), (6,), generator=generator)].tolist()
        items.append(Rollout(i // 2, (1, 3), tuple(drawn), 0.0, 0.0))
    return Rollouts(domain, tuple(items))


@pytest.fixture(scope="module")
def planted():
    given = {name: completions(name, tokens, seed=i) for i, (name, tokens) in enumerate(TOKENS.items())}
    return routes(planted_model(), Tokenizer(), given, fraction=ACTIVE / NEURONS)


def test_the_planted_neurons_are_the_route(planted):
    for domain, neurons in PLANTED.items():
        assert planted.route(domain).neurons == dict.fromkeys(range(LAYERS), neurons)
        assert planted.route(domain).neuron_share > 0.5
    assert planted.shared_neurons("math", "code") == {0: (2, 3), 1: (2, 3)}


def test_planted_routes_are_stable_and_overlap_as_planted(planted):
    assert all(s.jaccard == 1 for s in planted.stability if s.kind == "neuron")
    found = next(o for o in planted.overlaps if o.kind == "neuron")
    assert found.jaccard == pytest.approx(2 / 6)
    assert found.chance_in_layers == pytest.approx(jaccard_by_chance(8, 8, 80), rel=0.02), "as many in each layer"
    assert found.p_value_in_layers == pytest.approx(0.00285, rel=0.01)


def test_two_domains_that_are_one_overlap_as_much_as_each_with_itself():
    given = {name: completions(name, range(4, 16), groups=32, seed=seed) for seed, name in enumerate(("math", "code"))}
    found = routes(planted_model(), Tokenizer(), given, fraction=0.2)
    (same,) = [o for o in found.overlaps if o.kind == "neuron"]
    stable = [s.jaccard for s in found.stability if s.kind == "neuron"]
    assert same.jaccard > 0.7
    assert same.jaccard >= sum(stable) / 2 - 0.1


def test_results_are_json(planted):
    found = json.loads(json.dumps(planted.to_dict()))
    assert found["schema"] == "counterpoint.routes"
    assert found["routes"][0]["neurons"] == {"0": [0, 1, 2, 3], "1": [0, 1, 2, 3]}
    assert found["num_neurons"] == {"0": 40, "1": 40}


def random_route(generator, fraction, weight=1.0):
    return top_units(weight * torch.rand(120, generator=generator), fraction)


def test_unrelated_routes_overlap_by_chance_and_no_more():
    generator = torch.Generator().manual_seed(0)
    found = []
    for _ in range(300):
        first, second = (random_route(generator, 0.2) for _ in range(2))
        found.append(route_overlap(("a", "b"), first, second, LAYERS_U, "neuron"))
    chance = sum(o.chance_in_layers for o in found) / 300
    assert sum(o.jaccard for o in found) / 300 == pytest.approx(chance, abs=0.01)
    assert sum(o.p_value_in_layers <= 0.05 for o in found) / 300 <= 0.05 + 0.02


def test_layers_that_matter_to_all_domains_are_no_shared_route():
    """Every domain uses the last layer most: beyond plain chance, and not beyond chance within layers."""
    generator = torch.Generator().manual_seed(1)
    plain = strict = 0
    for _ in range(200):
        first, second = (random_route(generator, 0.1, 1 + LAYERS_U) for _ in range(2))
        found = route_overlap(("a", "b"), first, second, LAYERS_U, "neuron")
        plain += chance_of(found.shared, [(12, 12, 120)]).p_value <= 0.05
        strict += found.p_value_in_layers <= 0.05
        assert found.chance_in_layers > jaccard_by_chance(12, 12, 120)
    assert plain > 60
    assert strict / 200 <= 0.07


def test_units_that_contribute_nothing_are_of_no_route():
    contribution = torch.tensor([0.0, 3.0, 0.0, 0.0, 1.0, 0.0])
    assert top_units(contribution, 0.5).tolist() == [False, True, False, False, True, False]


def test_stability_of_noise_is_that_of_chance():
    generator = torch.Generator().manual_seed(3)
    noise = torch.rand(200, 2, 120, generator=generator, dtype=torch.float64)
    activities = [Activity(sums_KN, sums_KN[:, :0], torch.ones(2, dtype=torch.float64)) for sums_KN in noise]
    found = [stability("a", one, "neuron", 0.2) for one in activities]
    assert sum(s.jaccard for s in found) / 200 == pytest.approx(found[0].chance, abs=0.01)


def test_bad_requests_are_refused_before_any_work():
    model, one = planted_model(), {"math": completions("math", TOKENS["math"])}
    with pytest.raises(CounterpointError, match=r"fraction=1\.5 must be above 0 and at most 1"):
        routes(model, Tokenizer(), one, fraction=1.5)
    with pytest.raises(CounterpointError, match="There are no completions"):
        routes(model, Tokenizer(), {})
    few = {"math": dataclasses.replace(one["math"], items=one["math"].items[:2])}
    with pytest.raises(CounterpointError, match="'math' has completions of 1 prompt, and at least 2 are needed"):
        routes(model, Tokenizer(), few)
    with pytest.raises(
        CounterpointError, match=r"edit of 'mth' but no completions of that domain; did you mean 'math'"
    ):
        routes(model, Tokenizer(), one, edits={"mth": {}, "code": {}})
    with pytest.raises(CounterpointError, match="edits has one domain, 'math'"):
        routes(model, Tokenizer(), one, edits={"math": {}})
    with pytest.raises(CounterpointError, match="No route of a domain 'x' was measured"):
        routes(model, Tokenizer(), one).route("x")


def test_p_values_within_layers_are_exact():
    """Counted over all arrangements; the normal approximation is too small by orders of magnitude in the tail."""
    units = torch.arange(400)
    layers = units // 200
    for shared in (2, 8, 20):
        first, second = units % 200 < 20, (units % 200 >= 20 - shared) & (units % 200 < 40 - shared)
        found = route_overlap(("a", "b"), first, second, layers, "neuron")
        assert found.shared == 2 * shared
        counts = hypergeom(200, 20, 20).pmf(torch.arange(21).numpy())
        expected = sum(a * b for i, a in enumerate(counts) for j, b in enumerate(counts) if i + j >= 2 * shared)
        assert found.p_value_in_layers == pytest.approx(expected, rel=1e-6)


def test_a_routes_object_prints_as_tables(planted):
    text = str(planted)
    for words in ("Do two domains use the same 10% of units?", "math | code", "same on other prompts"):
        assert words in text
    assert planted.to_frame()["Jaccard"][0] == pytest.approx(2 / 6)
