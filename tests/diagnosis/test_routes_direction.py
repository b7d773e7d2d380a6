"""Directions of edits on shared neurons: planted synergy, conflict and nothing; power, false positives, coverage."""

import math

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from counterpoint.anatomy import Anatomy
from counterpoint.checkpoints import compare, open_checkpoint
from counterpoint.diagnosis import Rollout, Rollouts
from counterpoint.diagnosis import measure_routes as routes
from counterpoint.diagnosis.directions import (
    EditTensors,
    cosine_interval,
    directions,
    draw_outside,
    sign_noise,
    unit_products,
    verdict_of,
)
from counterpoint.errors import ModelError
from diagnosis_models import save

LAYERS, NEURONS, WIDTH = 2, 60, 12
LAYERS_N = torch.arange(LAYERS * NEURONS) // NEURONS
SHARED_N = torch.arange(LAYERS * NEURONS) % NEURONS < 30
NAMES = [f"model.layers.{layer}.mlp.{part}_proj.weight" for layer in range(LAYERS) for part in ("gate", "up", "down")]


def noise(generator):
    shapes = [(WIDTH, NEURONS) if "down" in name else (NEURONS, WIDTH) for name in NAMES]
    edit = {n: torch.randn(shape, generator=generator) for n, shape in zip(NAMES, shapes, strict=True)}
    return edit | {"model.embed_tokens.weight": torch.randn(5, WIDTH, generator=generator)}


def pair(cosine, seed, elsewhere=0.0):
    """Two edits of the stated cosine on the shared neurons, and of another one on the rest."""
    generator = torch.Generator().manual_seed(seed)
    first, second = noise(generator), noise(generator)
    for name in NAMES:
        here_N = (SHARED_N[:NEURONS] if "down" in name else SHARED_N[:NEURONS, None]).expand(first[name].shape)
        c = torch.where(here_N, cosine, elsewhere)
        second[name] = c * first[name] + (1 - c**2).sqrt() * second[name]
    return {"math": first, "qa": second}


def neuron_products(edits, layers_N):
    shapes = {name: tuple(tensor.shape) for name, tensor in edits["math"].items()}
    return unit_products(edits, layers_N, Anatomy.of({"model.embed_tokens.weight": (5, WIDTH)} | shapes))


def measure(edits, **options):
    found = directions(("math", "qa"), SHARED_N, neuron_products(edits, LAYERS_N), LAYERS_N, **options)
    return {d.part: d for d in found}


@pytest.mark.parametrize(("cosine", "verdict"), [(0.3, "synergy"), (-0.3, "conflict"), (0.0, "neutral")])
def test_planted_directions_are_found_in_every_part(cosine, verdict):
    found = measure(pair(cosine, seed=0))
    assert list(found) == ["total", "layers.0.mlp", "layers.1.mlp"]
    for part in found.values():
        assert part.verdict == verdict
        assert part.cosine.low <= cosine <= part.cosine.high
        assert part.elsewhere.low - 0.03 < 0 < part.elsewhere.high + 0.03, "nothing is planted elsewhere"
    assert found["total"].units == 60
    here, outside = found["total"].cosine, found["total"].elsewhere
    assert (here.low <= outside.high and outside.low <= here.high) == (verdict == "neutral")


def test_a_direction_of_the_whole_layer_is_told_from_one_of_the_shared_route():
    found = measure(pair(0.3, seed=1, elsewhere=0.3))["total"]
    assert found.verdict == "synergy"
    assert found.elsewhere.value == pytest.approx(0.3, abs=0.05)
    assert found.elsewhere.low <= found.cosine.value <= found.elsewhere.high


def test_totals_are_the_cosines_of_all_entries():
    edits = pair(-0.2, seed=2)

    def flat(edit, names):
        cut = [edit[n].T if "down" in n else edit[n] for n in names]
        return torch.cat([rows[:30].double().flatten() for rows in cut])

    for part, names in (("total", NAMES), ("layers.1.mlp", NAMES[3:])):
        a, b = (flat(edits[domain], names) for domain in ("math", "qa"))
        found = measure(edits)[part]
        assert found.cosine.value == pytest.approx((a @ b / a.norm() / b.norm()).item(), rel=1e-9)


def test_false_positives_and_power():
    def rate(cosine, wanted, seeds=10, minimum=0.0):
        found = [part for i in range(seeds) for part in measure(pair(cosine, i), minimum=minimum).values()]
        return sum(part.verdict in wanted for part in found) / len(found)

    assert rate(0.0, ("synergy", "conflict"), seeds=80) <= 0.05 + 0.015
    assert rate(0.15, ("synergy",), seeds=10) > 0.9
    assert rate(-0.15, ("conflict",), seeds=10) > 0.9
    assert rate(0.02, ("neutral",), minimum=0.05) > 0.9, "sure, but below what matters"


@pytest.mark.parametrize("spread", [0.0, 1.0])
@pytest.mark.parametrize("count", [12, 60])
def test_neurons_of_very_different_size_give_no_false_positives(count, spread):
    generator, wrong = torch.Generator().manual_seed(0), 0
    for _ in range(300):
        size = torch.exp(spread * torch.randn(count, 1, generator=generator, dtype=torch.float64))
        a, b = (size * torch.randn(count, 20, generator=generator, dtype=torch.float64) for _ in range(2))
        values = torch.stack([(a * b).sum(1), (a * a).sum(1), (b * b).sum(1)], 1)
        cosine = cosine_interval(values, generator, draws=200)
        wrong += verdict_of(count, cosine, sign_noise(values, generator, draws=200), 0.0) != "neutral"
    assert wrong / 300 <= 0.05 + 0.02


def test_the_interval_covers_the_true_cosine():
    generator, covered = torch.Generator().manual_seed(1), 0
    for _ in range(200):
        a, b = (torch.randn(60, 20, generator=generator, dtype=torch.float64) for _ in range(2))
        b = -0.4 * a + math.sqrt(1 - 0.16) * b
        values = torch.stack([(a * b).sum(1), (a * a).sum(1), (b * b).sum(1)], 1)
        found = cosine_interval(values, generator, draws=200)
        covered += found.low <= -0.4 <= found.high
    assert 0.9 <= covered / 200 <= 0.99


def test_fused_and_transposed_weights_are_cut_into_the_same_neurons():
    edits, layers = pair(0.1, seed=3), LAYERS_N[:NEURONS]
    plain = {d: {n: e for n, e in edit.items() if "layers.1" not in n} for d, edit in edits.items()}
    fused = {}
    for domain, edit in plain.items():
        gate, up, down = (edit[name] for name in NAMES[:3])
        fused[domain] = {"model.layers.0.mlp.gate_up_proj.weight": torch.cat([gate, up]), NAMES[2]: down}
    expected = neuron_products(plain, layers).products_UDD
    torch.testing.assert_close(neuron_products(fused, layers).products_UDD, expected)
    gpt2 = {d: {"h.0.mlp.c_fc.weight": e[NAMES[1]].T, "h.0.mlp.c_proj.weight": e[NAMES[2]].T} for d, e in plain.items()}
    gateless = {d: {n: t for n, t in e.items() if n != NAMES[0]} for d, e in plain.items()}
    expected = neuron_products(gateless, layers).products_UDD
    torch.testing.assert_close(neuron_products(gpt2, layers).products_UDD, expected)


def test_rows_of_checkpoints_add_up_to_the_products_of_whole_edits(tmp_path, monkeypatch):
    monkeypatch.setattr("counterpoint.diagnosis.directions._NUMBERS_AT_ONCE", 7 * WIDTH)
    edits = {name: {n: 1e-3 * t.contiguous() for n, t in edit.items()} for name, edit in pair(0.3, seed=8).items()}
    base = {name: torch.zeros_like(tensor) for name, tensor in edits["math"].items()}
    opened = open_checkpoint(save(tmp_path / "base", base))
    read = {d: EditTensors(compare(opened, open_checkpoint(save(tmp_path / d, edit)))) for d, edit in edits.items()}
    expected = neuron_products(edits, LAYERS_N).products_UDD
    found = unit_products(read, LAYERS_N, read["math"].anatomy).products_UDD
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-12)


def test_the_rounding_of_a_wider_base_is_no_synergy(tmp_path):
    generator = torch.Generator().manual_seed(0)
    base = {name: 0.05 * tensor for name, tensor in noise(generator).items()}
    stored = {d: {n: (base[n] + 3e-5 * e).bfloat16() for n, e in edit.items()} for d, edit in pair(0.0, 9).items()}
    opened = open_checkpoint(save(tmp_path / "base", base))
    edits = {d: EditTensors(compare(opened, open_checkpoint(save(tmp_path / d, t)))) for d, t in stored.items()}
    products = unit_products(edits, LAYERS_N, edits["math"].anatomy)
    total = directions(("math", "qa"), SHARED_N, products, LAYERS_N)[0]
    assert total.verdict == "neutral"
    assert abs(total.cosine.value) < 0.1


def test_few_neurons_and_empty_edits_have_no_verdict():
    edits = pair(0.9, seed=4)
    few_N = SHARED_N & (torch.arange(len(SHARED_N)) < 5)
    products = neuron_products(edits, LAYERS_N)
    found = directions(("math", "qa"), few_N, products, LAYERS_N)
    assert {d.part: d.verdict for d in found}["total"] == "too few neurons"
    assert math.isnan(found[0].cosine.low)
    assert "layers.1.mlp" not in {d.part for d in found}
    edits["qa"] = {name: torch.zeros_like(tensor) for name, tensor in edits["qa"].items()}
    assert {d.verdict for d in measure(edits).values()} == {"no edit"}


def test_a_shared_route_without_enough_neurons_elsewhere_has_no_control():
    products = neuron_products(pair(0.3, seed=5), LAYERS_N)
    found = directions(("math", "qa"), torch.ones(len(LAYERS_N), dtype=torch.bool), products, LAYERS_N)
    assert found[0].elsewhere is None
    assert found[0].verdict == "synergy"


def test_values_that_are_no_numbers_are_counted_and_left_out():
    edits = pair(0.3, seed=6)
    edits["qa"][NAMES[0]][0, :3] = float("nan")
    products = neuron_products(edits, LAYERS_N)
    assert products.non_finite == {f"qa: {NAMES[0]}": 3}
    assert products.products_UDD.isfinite().all()


def test_edits_of_another_architecture_are_refused():
    edits = pair(0.3, seed=7)
    with pytest.raises(ModelError, match=r"layer 0 has 50 neurons in the model, and the edit has 60"):
        neuron_products(edits, torch.zeros(50, dtype=torch.long))
    with pytest.raises(ModelError, match="no MLP weights of layer 2"):
        neuron_products(edits, torch.arange(3 * NEURONS) // NEURONS)
    del edits["qa"][NAMES[1]]
    with pytest.raises(ModelError, match=f"edit of 'qa' has no tensor {NAMES[1]}"):
        neuron_products(edits, LAYERS_N)


def test_checkpoints_on_disk_from_end_to_end(tmp_path):
    """Two edits that agree on a layer and oppose each other on the next, read from checkpoints."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=12,
        hidden_size=16,
        intermediate_size=80,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=32,
        pad_token_id=0,
    )
    model = LlamaForCausalLM(config)
    model.save_pretrained(tmp_path / "base")
    steps = {n: 1e-2 * torch.randn_like(p) for n, p in model.named_parameters()}
    for domain, signs in (("math", (1, 1)), ("qa", (1, -1))):
        after = LlamaForCausalLM.from_pretrained(tmp_path / "base")
        with torch.no_grad():
            for name, parameter in after.named_parameters():
                layer = 0 if "layers.0" in name else 1
                parameter += signs[layer] * steps[name] + 1e-3 * torch.randn_like(parameter)
        after.save_pretrained(tmp_path / domain)
    base = open_checkpoint(tmp_path / "base")
    edits = {d: EditTensors(compare(base, open_checkpoint(tmp_path / d))) for d in ("math", "qa")}
    items = tuple(Rollout(i // 2, (1, 3), tuple(3 + (i + j) % 9 for j in range(5)), 0.0, 0.0) for i in range(16))

    class Tokenizer:
        pad_token_id = 0

    given = {domain: Rollouts(domain, items) for domain in edits}
    found = routes(model, Tokenizer(), given, fraction=0.4, edits=edits)
    verdicts = {d.part: d.verdict for d in found.directions}
    assert verdicts["layers.0.mlp"] == "synergy"
    assert verdicts["layers.1.mlp"] == "conflict"
    assert all(o.jaccard == 1 for o in found.overlaps)


def test_controls_are_drawn_from_all_neurons_outside():
    """Outside, half of the neurons agree and half oppose each other: on average nothing."""
    generator = torch.Generator().manual_seed(0)
    sign = torch.where(torch.arange(NEURONS) < 45, 1.0, -1.0).double().repeat(LAYERS)
    values = torch.stack([sign, torch.ones_like(sign), torch.ones_like(sign)], 1)
    drawn = sum(draw_outside(values, SHARED_N, layer == LAYERS_N, generator) for layer in (0, 1))
    cosines = drawn[:, 0] / (drawn[:, 1] * drawn[:, 2]).sqrt()
    assert cosines.mean().item() == pytest.approx(0, abs=0.03)
    assert cosines.std().item() == pytest.approx(1 / math.sqrt(60), rel=0.2)
