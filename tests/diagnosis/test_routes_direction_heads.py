"""Directions of edits on shared attention heads: planted synergy, conflict and nothing, beside plain arithmetic."""

import pytest
import torch

from counterpoint.anatomy import Anatomy
from counterpoint.diagnosis.directions import directions, unit_products
from counterpoint.errors import ModelError

LAYERS, HEADS, SIZE, WIDTH = 2, 30, 3, 8
LAYERS_H = torch.arange(LAYERS * HEADS) // HEADS
SHARED_H = torch.arange(LAYERS * HEADS) % HEADS < 20
QUERY, OUTPUT = "model.layers.{}.self_attn.q_proj.weight", "model.layers.{}.self_attn.o_proj.weight"


def by_head(name, edit):
    """Heads first: [H, entries of one head]."""
    return (edit if "q_proj" in name else edit.T).reshape(HEADS, -1)


def pair(cosine, seed):
    """Two edits of the stated cosine on the shared heads, and unrelated ones on the rest."""
    generator = torch.Generator().manual_seed(seed)
    first, second = {}, {}
    for layer in range(LAYERS):
        for name, shape in ((QUERY, (HEADS * SIZE, WIDTH)), (OUTPUT, (WIDTH, HEADS * SIZE))):
            a, b = (torch.randn(shape, generator=generator) for _ in range(2))
            shared = SHARED_H[:HEADS].repeat_interleave(SIZE)
            c = torch.where(shared[:, None] if name is QUERY else shared[None], cosine, 0.0)
            first[name.format(layer)], second[name.format(layer)] = a, c * a + (1 - c**2).sqrt() * b
        first[f"model.layers.{layer}.self_attn.k_proj.weight"] = torch.ones(SIZE, WIDTH)
    return {"math": first, "qa": second}


def head_products(edits, layers_H):
    shapes = {name: tuple(tensor.shape) for name, tensor in edits["math"].items()}
    return unit_products(edits, layers_H, Anatomy.of({"model.embed_tokens.weight": (5, WIDTH)} | shapes), "head")


def measure(edits, shared_H=SHARED_H, **options):
    found = directions(("math", "qa"), shared_H, head_products(edits, LAYERS_H), LAYERS_H, **options)
    assert {d.kind for d in found} == {"head"}
    return {d.part: d for d in found}


@pytest.mark.parametrize(("cosine", "verdict"), [(0.4, "synergy"), (-0.4, "conflict"), (0.0, "neutral")])
def test_planted_directions_are_found_in_every_part(cosine, verdict):
    found = measure(pair(cosine, seed=1))
    assert list(found) == ["total", "layers.0.attention", "layers.1.attention"]
    assert {part.verdict for part in found.values()} == {verdict}
    assert (found["total"].units, found["layers.0.attention"].units) == (40, 20)


def test_the_cosine_is_that_of_the_heads_rows_and_columns():
    edits = pair(0.2, seed=2)
    found = measure(edits)
    for part, layer in (("layers.0.attention", 0), ("layers.1.attention", 1)):
        vectors = [
            torch.cat([by_head(n, edit[n])[SHARED_H[:HEADS]] for n in (QUERY.format(layer), OUTPUT.format(layer))], 1)
            for edit in edits.values()
        ]
        expected = torch.cosine_similarity(vectors[0].flatten(), vectors[1].flatten(), dim=0)
        assert found[part].cosine.value == pytest.approx(float(expected), abs=1e-6)


def test_unrelated_edits_are_neutral_as_often_as_stated():
    wrong = [measure(pair(0.0, seed), minimum=0.0)["total"].verdict != "neutral" for seed in range(80)]
    assert sum(wrong) / len(wrong) <= 0.09, "nominal 0.05; 80 draws have a standard error of 0.024"


def test_few_heads_fused_queries_and_other_models():
    few_H = torch.zeros_like(SHARED_H)
    few_H[:9] = True
    assert measure(pair(0.9, seed=3), few_H)["total"].verdict == "too few heads"
    fused = {d: {n: t for n, t in edit.items() if "q_proj" not in n} for d, edit in pair(0.5, seed=4).items()}
    assert list(measure(fused)) == ["total", "layers.0.attention", "layers.1.attention"]
    with pytest.raises(ModelError, match="has 28 heads in the model, and the edit has 90"):
        head_products(pair(0.0, seed=5), torch.arange(56) // 28)
