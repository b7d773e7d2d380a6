"""Edits with planted sparsity, directions, neurons and overlap are found; edits without are not said to have them."""

import math
import subprocess
import sys

import pytest
import torch

from counterpoint.diagnosis import edits
from counterpoint.errors import ConfigError, ModelError
from diagnosis_models import random_model, save

GATE = "model.layers.0.mlp.gate_proj.weight"


def changed(tensors, edit, seed=1):
    """The tensors with ``edit(name, tensor, generator)`` added to each."""
    generator = torch.Generator().manual_seed(seed)
    return {name: tensor + edit(name, tensor, generator) for name, tensor in tensors.items()}


def noise(scale=1e-2):
    return lambda name, tensor, generator: scale * torch.randn(tensor.shape, generator=generator)


def diagnose(tmp_path, base, *checkpoints, **options):
    folders = [save(tmp_path / str(i), tensors) for i, tensors in enumerate((base, *checkpoints))]
    return edits(folders[0], folders[1:], **options)


def by_name(parts):
    return {part.name: part for part in parts}


@pytest.mark.parametrize("share", [0.0, 0.3, 0.89])
def test_planted_sparsity_is_found_exactly(tmp_path, share):
    base = random_model()
    untouched = {}

    def edit(name, tensor, generator):
        untouched[name] = torch.rand(tensor.shape, generator=generator) < share
        return torch.where(untouched[name], 0.0, 0.01)

    found = diagnose(tmp_path, base, changed(base, edit)).checkpoints[0]
    total = sum(tensor.numel() for tensor in base.values())
    expected = sum(int(mask.sum()) for mask in untouched.values()) / total
    assert found.sparsity.identical == pytest.approx(expected)
    assert found.sparsity.unchanged == pytest.approx(expected)
    assert found.whole.weights == total
    assert by_name(found.tensors)[GATE].unchanged == pytest.approx(untouched[GATE].float().mean().item())


def test_a_weight_is_unchanged_below_both_thresholds(tmp_path):
    name = "model.norm.weight"
    base = {name: torch.tensor([1.0, 1.0, 1e-4, 1e-6, 0.0, 0.0], dtype=torch.float64)}
    edit = torch.tensor([0.0, 1e-5, 2e-6, 5e-8, 0.0, 1e-9], dtype=torch.float64)
    # below:           both relative neither absolute both absolute, of a weight that was 0
    both = diagnose(tmp_path, base, {name: base[name] + edit}).checkpoints[0].sparsity
    assert (both.unchanged, both.identical) == (2 / 6, 2 / 6)


def test_what_bfloat16_would_hide(tmp_path):
    base = {name: tensor.bfloat16().float() for name, tensor in random_model().items()}

    def edit(name, tensor, generator):
        small = torch.rand(tensor.shape, generator=generator) < 0.25
        half_step = torch.ldexp(torch.full_like(tensor, 2.0**-9), torch.frexp(tensor).exponent)
        return half_step * torch.where(small, 0.4, 3.0)

    found = diagnose(tmp_path, base, changed(base, edit)).checkpoints[0]
    assert found.sparsity.same_in_bfloat16 == pytest.approx(0.25, abs=0.03)
    assert found.sparsity.identical == 0
    assert list(found.dtypes) == ["float32"]
    assert found.rounded_base is None


def test_norms_of_parts_add_up_to_the_whole(tmp_path):
    base = random_model()
    after = changed(base, noise())
    found = diagnose(tmp_path, base, after).checkpoints[0]
    edit = torch.cat([(after[name] - base[name]).flatten() for name in base])
    weights = torch.cat([tensor.flatten() for tensor in base.values()])
    assert found.whole.norm == pytest.approx(edit.norm().item(), rel=1e-5)
    assert found.whole.relative_norm == pytest.approx((edit.norm() / weights.norm()).item(), rel=1e-5)
    assert found.whole.largest == pytest.approx(edit.abs().max().item())
    for parts in (found.modules, found.tensors):
        assert math.sqrt(sum(part.norm**2 for part in parts)) == pytest.approx(found.whole.norm, rel=1e-6)
    names = [part.name for part in found.modules]
    assert names == ["embedding", *(f"layers.{i}.{m}" for i in (0, 1) for m in ("attention", "mlp")), "norm"]


def test_planted_neurons_are_the_most_changed(tmp_path):
    base = random_model(inner=40)
    planted = {0: [3, 7, 39], 1: [0, 5, 6, 8, 11]}

    def edit(name, tensor, generator):
        change = 1e-4 * torch.randn(tensor.shape, generator=generator)
        if ".mlp." in name:
            rows = change.t() if "down" in name else change
            rows[planted[int(name.split(".")[2])]] *= 100
        return change

    found = diagnose(tmp_path, base, changed(base, edit), top=0.1).checkpoints[0]
    assert found.top == planted


def test_scores_are_norms_over_gate_row_up_row_and_down_column(tmp_path):
    base = random_model()
    after = changed(base, noise())
    at = "model.layers.1.mlp."
    parts = [after[f"{at}{x}_proj.weight"] - base[f"{at}{x}_proj.weight"] for x in ("gate", "up", "down")]
    edit = torch.cat([parts[0], parts[1], parts[2].t()], 1).double()
    found = diagnose(tmp_path, base, after).checkpoints[0]
    torch.testing.assert_close(found.neurons[1], edit.norm(dim=1), rtol=1e-5, atol=1e-9)


def test_a_low_rank_edit_is_told_from_a_random_one(tmp_path):
    base = random_model(hidden=32, inner=64)

    def low_rank(name, tensor, generator):
        if tensor.ndim < 2:
            return 0
        a, b = (torch.randn(size, 2, generator=generator) for size in tensor.shape)
        return 1e-2 * a @ b.T

    found = diagnose(tmp_path, base, changed(base, low_rank), changed(base, noise())).checkpoints
    low, random = (by_name(checkpoint.modules)["layers.0.mlp"] for checkpoint in found)
    assert low.effective_rank.value < 2.1
    assert low.top_8.value == pytest.approx(1, abs=1e-6)
    assert low.effective_rank.random == pytest.approx(random.effective_rank.value, rel=0.05)
    assert random.top_8.value == pytest.approx(random.top_8.random, rel=0.2)


def test_directions_of_planted_edits(tmp_path):
    base = random_model(hidden=48, inner=96)
    mlp = changed({name: torch.zeros_like(tensor) for name, tensor in base.items()}, noise())

    def second(name, tensor, generator):
        fresh = 1e-2 * torch.randn(tensor.shape, generator=generator)
        return -0.6 * mlp[name] + 0.8 * fresh if "layers.1.mlp" in name else fresh

    after = {name: tensor + mlp[name] for name, tensor in base.items()}
    pair = diagnose(tmp_path, base, after, changed(base, second, seed=2)).pairs[0]
    for part in pair.modules:
        beyond = abs(part.cosine) > 2 * part.noise
        assert beyond == (part.name == "layers.1.mlp")
    planted = by_name(pair.modules)["layers.1.mlp"]
    assert planted.cosine == pytest.approx(-0.6, abs=0.03)
    free = by_name(pair.modules)["layers.0.mlp"]
    assert free.noise == pytest.approx(1.96 / math.sqrt(3 * 48 * 96), rel=0.1)


def test_a_chain_takes_each_edit_from_the_checkpoint_before(tmp_path):
    base = random_model()
    first = changed(base, noise(), seed=1)
    second = changed(first, noise(), seed=2)
    chained = diagnose(tmp_path / "chain", base, first, second, chain=True)
    apart = diagnose(tmp_path / "apart", first, second)
    assert chained.checkpoints[1].against == chained.checkpoints[0].name
    assert chained.checkpoints[1].whole.norm == pytest.approx(apart.checkpoints[0].whole.norm)
    assert chained.checkpoints[1].sparsity == apart.checkpoints[0].sparsity
    whole = chained.pairs[0].whole
    assert abs(whole.cosine) < 2 * whole.noise
    assert not chained.pairs[0].in_sequence


def test_a_sequence_given_without_chain_is_said_to_agree_by_construction(tmp_path):
    base = random_model()
    first = changed(base, noise(), seed=1)
    second, other = changed(first, noise(), seed=2), changed(base, noise(1.5e-2), seed=3)
    found = diagnose(tmp_path, base, first, second, other)
    assert found.pairs[0].whole.cosine > 0.6
    assert [pair.in_sequence for pair in found.pairs] == [True, False, False]
    (said,) = [sentence for sentence in found.sentences() if "by construction" in sentence]
    assert said.startswith("2 seems to have been trained on from 1")
    assert "chain=True" in said


def test_equal_checkpoints_are_a_result(tmp_path):
    base = random_model()
    found = diagnose(tmp_path, base, base, changed(base, noise()))
    same, other = found.checkpoints
    assert same.equal
    assert not other.equal
    assert same.sparsity.unchanged == 1
    assert same.whole.effective_rank is None
    assert not any(same.top.values())
    assert found.pairs[0].whole.cosine is None
    assert found.pairs[0].overlap.jaccard == 0


def test_nonfinite_weights_are_counted_named_and_left_out(tmp_path):
    base = random_model()
    after = changed(base, noise())
    clean = diagnose(tmp_path / "clean", base, after).checkpoints[0]
    broken_base, broken = {**base, GATE: base[GATE].clone()}, {**after, GATE: after[GATE].clone()}
    broken_base[GATE][0, 0] = math.inf
    broken[GATE][0, :3] = math.nan
    found = diagnose(tmp_path / "broken", broken_base, broken).checkpoints[0]
    assert [(entry.tensor, entry.base, entry.checkpoint) for entry in found.nonfinite] == [(GATE, 1, 3)]
    assert found.whole.weights == clean.whole.weights - 3
    lost = (after[GATE] - base[GATE])[0, :3].double().square().sum().item()
    assert found.whole.norm**2 == pytest.approx(clean.whole.norm**2 - lost, rel=1e-6)
    assert found.sparsity.identical == clean.sparsity.identical == 0
    assert not found.equal


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_checkpoint_may_be_stored_finer_than_its_base(tmp_path, dtype):
    base = {name: tensor.to(dtype) for name, tensor in random_model().items()}
    after = changed({name: tensor.float() for name, tensor in base.items()}, noise(1e-4))
    found = diagnose(tmp_path, base, after).checkpoints[0]
    edit = torch.cat([(after[name] - base[name].float()).flatten() for name in base])
    assert found.whole.norm == pytest.approx(edit.norm().item(), rel=1e-5)
    assert (list(found.dtypes), found.rounded_base) == (["float32"], None)


def large(seed=0):
    return {name: 0.05 * tensor for name, tensor in random_model(seed, hidden=96, inner=192).items()}


@pytest.mark.parametrize("scale", [1e-5, 3e-5, 1e-4, 1e-3])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_unrelated_edits_stored_coarser_than_their_base_do_not_agree(tmp_path, dtype, scale):
    base = large()
    edited = [changed(base, noise(scale), seed) for seed in (1, 2)]
    stored = [{name: tensor.to(dtype) for name, tensor in tensors.items()} for tensors in (*edited, base)]
    found = diagnose(tmp_path, base, *stored)
    pair, untouched = found.pairs[0], found.checkpoints[2]
    assert abs(pair.whole.cosine) < 0.03
    assert pair.overlap.over_all.p_value > 0.01
    exact = torch.cat([(edited[0][name] - base[name]).flatten() for name in base]).norm().item()
    assert found.checkpoints[0].whole.norm == pytest.approx(exact, rel=0.05)
    assert untouched.equal
    assert untouched.sparsity.identical == 1.0
    short = str(dtype).removeprefix("torch.")
    assert untouched.rounded_base == short
    said = found.sentences()
    assert any(sentence.startswith(f"Stored with fewer digits ({short})") for sentence in said)
    assert f"3 equals {tmp_path / '0'} rounded to {short}: every weight is the same." in said


def test_edits_that_agree_still_do_so_in_a_coarser_type(tmp_path):
    base = large()
    shared = changed({name: torch.zeros_like(tensor) for name, tensor in base.items()}, noise(5e-5))

    def half_shared(name, tensor, generator):
        return 0.8 * shared[name] + 0.6 * 5e-5 * torch.randn(tensor.shape, generator=generator)

    edited = [changed(base, half_shared, seed) for seed in (1, 2)]
    stored = [{name: tensor.bfloat16() for name, tensor in tensors.items()} for tensors in edited]
    found = diagnose(tmp_path, base, *stored).pairs[0].whole
    assert 0.4 < found.cosine < 0.68  # 0.64 before rounding
    assert found.noise < 0.02


def test_a_chain_rounds_only_what_is_stored_finer(tmp_path):
    base = large()
    first = {name: tensor.bfloat16() for name, tensor in changed(base, noise(1e-3)).items()}
    found = diagnose(tmp_path, base, first, first, chain=True).checkpoints
    assert [one.rounded_base for one in found] == ["bfloat16", None]
    assert found[1].equal


def test_the_noise_of_a_cosine_is_not_zero_for_tiny_edits(tmp_path):
    base = {name: torch.zeros_like(tensor) for name, tensor in random_model().items()}
    usual = diagnose(tmp_path / "usual", base, *(changed(base, noise(1e-2), seed) for seed in (1, 2))).pairs[0]
    tiny = diagnose(tmp_path / "tiny", base, *(changed(base, noise(1e-12), seed) for seed in (1, 2))).pairs[0]
    assert tiny.whole.noise == pytest.approx(usual.whole.noise, rel=1e-3)
    assert tiny.whole.cosine == pytest.approx(usual.whole.cosine, rel=1e-3)


def test_shards_and_threads_change_nothing(tmp_path):
    base = random_model(hidden=24, inner=48)
    after = changed(base, noise())
    one = diagnose(tmp_path / "one", base, after, threads=1).checkpoints[0]
    folders = [save(tmp_path / name, tensors, shards=4) for name, tensors in (("a", base), ("b", after))]
    many = edits(folders[0], folders[1:], threads=4).checkpoints[0]
    assert many.tensors == one.tensors
    assert many.sparsity == one.sparsity
    assert many.top == one.top


def test_blocks_of_rows_add_up_to_the_tensor(tmp_path, monkeypatch):
    base = random_model(hidden=24, inner=48)
    after = changed(base, noise())
    whole = diagnose(tmp_path / "whole", base, after).checkpoints[0]
    monkeypatch.setattr("counterpoint.diagnosis._edit_stream.BLOCK", 5 * 24)
    cut = edits(tmp_path / "whole" / "0", [tmp_path / "whole" / "1"]).checkpoints[0]
    assert cut.sparsity == whole.sparsity
    for a, b in zip(cut.tensors, whole.tensors, strict=True):
        assert a.norm == pytest.approx(b.norm, rel=1e-6)
    for layer, scores in whole.neurons.items():
        torch.testing.assert_close(cut.neurons[layer], scores, rtol=1e-5, atol=0)


def test_whole_numbers_are_left_out_and_named(tmp_path):
    base = random_model() | {"model.layers.0.mlp.steps": torch.arange(4)}
    assert diagnose(tmp_path, base, base).skipped == ("model.layers.0.mlp.steps",)


def test_progress_ends_at_the_total(tmp_path):
    calls = []
    base = random_model(hidden=256, inner=512)
    diagnose(tmp_path, base, base, on_progress=lambda what, done, total: calls.append((what, done, total)))
    assert calls[-1][1] == calls[-1][2] > 0
    assert [done for _, done, _ in calls] == sorted(done for _, done, _ in calls)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"top": 1.5}, r"top=1\.5 is the share of neurons"),
        ({"checkpoints": []}, "checkpoints is empty"),
        ({"checkpoints": "pocket"}, r"checkpoints is 'pocket'; give a list of one or more, \['pocket'\]"),
    ],
)
def test_options_out_of_range_are_refused(options, words):
    with pytest.raises(ConfigError, match=words):
        edits("pocket", **{"checkpoints": ["pocket"]} | options)


def test_another_architecture_is_refused_before_anything_is_read(tmp_path):
    with pytest.raises(ModelError, match=r"embed_tokens\.weight is .* in .*base and "):
        edits("pocket", [save(tmp_path, random_model())])


def test_the_result_is_json(tmp_path):
    base = random_model()
    diagnose(tmp_path, base, changed(base, noise())).write(tmp_path / "edits.json")
    assert '"schema": "counterpoint.edits"' in (tmp_path / "edits.json").read_text()


MEMORY = """
import sys
from counterpoint.diagnosis import edits
from pathlib import Path
def own(*_):  # pages of the mapped files are the system's: it takes them back when it needs them
    status = Path("/proc/self/status").read_text().splitlines()
    seen.append(int(next(line for line in status if line.startswith("RssAnon")).split()[1]) * 1024)
seen = []
edits("pocket", ["pocket"], on_progress=own)
before, seen = max(seen), []
edits(sys.argv[1], [sys.argv[2]], threads=2, on_progress=own)
print(max(seen) - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads the memory from /proc")
def test_memory_is_that_of_a_tensor_not_of_a_model(tmp_path):
    tensors = {f"model.layers.{i}.mlp.up_proj.weight": torch.zeros(4096, 2048).bfloat16() for i in range(12)}
    tensors = {name: tensor + i for i, (name, tensor) in enumerate(tensors.items())}
    folders = [save(tmp_path / "a", tensors), save(tmp_path / "b", {k: t * 1.5 for k, t in tensors.items()})]
    largest, model = 4096 * 2048 * 2, 12 * 4096 * 2048 * 2
    done = subprocess.run([sys.executable, "-c", MEMORY, *folders], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 4 * largest < model
