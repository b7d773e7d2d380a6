"""Merging against brute force on flat vectors, its thresholds against sorting, and on checkpoints from end to end."""

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from counterpoint.checkpoints import open_checkpoint
from counterpoint.errors import CounterpointError, ModelError
from counterpoint.merging import average, magnitude_threshold, merge, task_arithmetic, ties


def ties_by_hand(edits, density):
    """Algorithm 1 of arXiv 2306.01708, weight by weight, in plain Python."""
    experts, size = len(edits), len(edits[0])
    keep = -(-int(density * size * 1000) // 1000)
    trimmed = []
    for edit in edits:
        largest = sorted(range(size), key=lambda i: -abs(edit[i]))[:keep]
        trimmed.append([edit[i] if i in largest else 0.0 for i in range(size)])
    merged = []
    for i in range(size):
        values = [trimmed[e][i] for e in range(experts)]
        total = sum(values)
        sign = (total > 0) - (total < 0)
        agreeing = [v for v in values if v * sign > 0]
        merged.append(sum(agreeing) / len(agreeing) if agreeing else 0.0)
    return merged


@pytest.mark.parametrize("density", [0.1, 0.3, 0.5, 1.0])
@pytest.mark.parametrize("experts", [2, 3, 5])
def test_ties_is_the_papers_algorithm(density, experts):
    generator = torch.Generator().manual_seed(experts)
    edits = torch.randn(experts, 40, generator=generator)
    expected = torch.tensor(ties_by_hand(edits.tolist(), density))
    for edit in edits:
        edit[edit.abs() < magnitude_threshold([""], lambda _, edit=edit: edit.abs(), density)] = 0
    torch.testing.assert_close(ties(edits), expected)


def test_ties_keeps_what_averaging_would_cancel():
    edits = torch.tensor([[1.0, 4.0, 0.1], [1.0, -1.0, -0.1], [1.0, 0.0, 0.0]])
    trimmed = torch.where(edits.abs() >= 0.5, edits, 0.0)
    torch.testing.assert_close(ties(trimmed), torch.tensor([1.0, 4.0, 0.0]))
    torch.testing.assert_close(average(edits), torch.tensor([1.0, 1.0, 0.0]))
    torch.testing.assert_close(task_arithmetic(edits), torch.tensor([3.0, 3.0, 0.0]))


@pytest.mark.parametrize("density", [1e-9, 0.001, 0.2, 0.7, 1.0])
def test_the_threshold_is_the_one_that_sorting_finds(density):
    generator = torch.Generator().manual_seed(7)
    tensors = [torch.randn(n, generator=generator) * scale for n, scale in ((1000, 1e-4), (37, 1.0), (500, 1e-7))]
    tensors[0][:100] = 0.0
    tensors[2][:50] = 3e-8  # many of one size
    everything = torch.cat(tensors).abs().sort(descending=True).values
    keep = max(1, -(-int(density * len(everything) * 10**6) // 10**6))
    names = [str(i) for i in range(len(tensors))]
    threshold = magnitude_threshold(names, lambda name: tensors[int(name)].abs(), density)
    assert threshold == everything[keep - 1].item()
    assert int((everything > threshold).sum()) < keep <= int((everything >= threshold).sum())


def tiny(folder, seed, tied=True, shift=0.0, dtype=torch.float32):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=32, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, tie_word_embeddings=tied,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for param in model.parameters():
            param += shift * torch.randn(param.shape, generator=generator)
    model.to(dtype).save_pretrained(folder)
    return folder


@pytest.fixture
def base(tmp_path):
    return tiny(tmp_path / "base", 0)


@pytest.fixture
def experts(tmp_path):
    return [tiny(tmp_path / f"expert-{seed}", seed, shift=0.01) for seed in (1, 2, 3)]


def tensors(folder):
    checkpoint = open_checkpoint(folder)
    return {name: checkpoint.tensor(name) for name in checkpoint.names}


def test_the_average_is_the_mean_of_the_weights(base, experts, tmp_path):
    merged = tensors(merge(base, experts, tmp_path / "out", method="average"))
    parts = [tensors(expert) for expert in experts]
    assert merged.keys() == parts[0].keys()
    for name, tensor in merged.items():
        torch.testing.assert_close(tensor, torch.stack([part[name] for part in parts]).mean(0), rtol=0, atol=5e-7)


def test_one_expert_is_the_line_from_the_base_to_it(base, experts, tmp_path):
    found = tensors(merge(base, experts[:1], tmp_path / "out", method="average", scale=0.3))
    start, end = tensors(base), tensors(experts[0])
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, start[name] + 0.3 * (end[name] - start[name]), rtol=0, atol=5e-7)


def test_task_arithmetic_adds_scaled_edits(base, experts, tmp_path):
    merged = tensors(merge(base, experts, tmp_path / "out", method="task_arithmetic", scale=0.7))
    start, parts = tensors(base), [tensors(expert) for expert in experts]
    for name, tensor in merged.items():
        edits = sum(part[name] - start[name] for part in parts)
        torch.testing.assert_close(tensor, start[name] + 0.7 * edits, rtol=0, atol=5e-7)


def test_ties_trims_over_the_whole_model(base, experts, tmp_path):
    with torch.no_grad():  # one tensor of the first expert moves far more than all others
        model = AutoModelForCausalLM.from_pretrained(experts[0])
        model.model.layers[1].mlp.up_proj.weight += 5.0
        model.save_pretrained(experts[0])
    merged = tensors(merge(base, experts, tmp_path / "out", density=0.05))
    start, parts = tensors(base), [tensors(expert) for expert in experts]
    names = list(start)
    flat = torch.stack([torch.cat([(part[n] - start[n]).flatten() for n in names]) for part in parts])
    keep = -(-flat.shape[1] // 20)
    limits = [edit.abs().sort(descending=True).values[keep - 1].item() for edit in flat]
    trimmed = torch.where(flat.abs() >= torch.tensor(limits)[:, None], flat, 0.0)
    expected = ties(trimmed).split([start[n].numel() for n in names])
    for name, edit in zip(names, expected, strict=True):
        torch.testing.assert_close(merged[name], start[name] + edit.view_as(start[name]), rtol=0, atol=1e-6)


def test_a_merged_checkpoint_can_be_loaded_and_keeps_the_experts_dtype(base, tmp_path):
    halves = [tiny(tmp_path / f"half-{seed}", seed, shift=0.01, dtype=torch.bfloat16) for seed in (1, 2)]
    out = merge(base, halves, tmp_path / "out")
    loaded = AutoModelForCausalLM.from_pretrained(out, dtype=torch.bfloat16)
    assert {tensor.dtype for tensor in tensors(out).values()} == {torch.bfloat16}
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight


def test_two_copies_of_one_expert_are_that_expert(base, experts, tmp_path):
    for method in ("average", "ties"):
        out = merge(
            base, [experts[0], experts[0]], tmp_path / method, method=method, density=1.0 if method == "ties" else None
        )
        for name, tensor in tensors(out).items():
            torch.testing.assert_close(tensor, tensors(experts[0])[name], rtol=0, atol=5e-7)


def test_an_untied_expert_beside_a_tied_one(base, experts, tmp_path):
    untied = tiny(tmp_path / "untied", 4, tied=False, shift=0.01)
    merged = tensors(merge(base, [experts[0], untied], tmp_path / "out", method="average"))
    head = tensors(untied)["lm_head.weight"] + tensors(experts[0])["model.embed_tokens.weight"]
    torch.testing.assert_close(merged["lm_head.weight"], head / 2, rtol=0, atol=5e-7)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "tie"}, "unknown method 'tie': did you mean 'ties'?"),
        ({"scale": 0.0}, "scale: should be above 0, found 0.0"),
        ({"density": 1.5}, "density: should be above 0 and at most 1, found 1.5"),
        ({"density": 0.5, "method": "average"}, "density: belongs to the method 'ties', found 'average'"),
    ],
)
def test_bad_input_is_refused_before_anything_is_read(changes, message, tmp_path):
    with pytest.raises(CounterpointError, match=message.replace("?", r"\?")):
        merge("nowhere", ["nowhere", "nowhere"], tmp_path / "out", **changes)


def test_unequal_checkpoints_one_expert_and_a_taken_folder_are_refused(base, experts, tmp_path):
    with pytest.raises(CounterpointError, match="there is one, which alone merges into itself"):
        merge(base, experts[:1], tmp_path / "out")
    with pytest.raises(CounterpointError, match="takes one or more checkpoints, found none"):
        merge(base, [], tmp_path / "out")
    config = LlamaConfig(vocab_size=32, hidden_size=8, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2)
    LlamaForCausalLM(config).save_pretrained(tmp_path / "small")
    untied = tiny(tmp_path / "untied", 4, tied=False)
    with pytest.raises(ModelError, match="has an output projection of its own, and every expert is tied"):
        merge(untied, experts, tmp_path / "out")
    with pytest.raises(ModelError, match="different"):
        merge(base, [experts[0], tmp_path / "small"], tmp_path / "out")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").write_text("mine")
    with pytest.raises(ModelError, match="is there already"):
        merge(base, experts, tmp_path / "taken")
