"""Restored checkpoints: the formula, bits kept and bits restored, types, tied weights, adapters."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from counterpoint.checkpoints import open_checkpoint
from counterpoint.diagnosis._edit_vector import changed_weights
from counterpoint.errors import ModelError
from counterpoint.recovery.masks import Everything, Patch, open_edit, write_patch
from diagnosis_models import random_model, save
from recovery_helpers import edited, saved_edit, top_mask


def written(edit, out, count=40, scale=1.0):
    mask = top_mask(edit, count)
    write_patch(Patch(edit, mask, scale), out)
    return mask, {name: open_checkpoint(out).tensor(name) for name in open_checkpoint(out).names}


def bits(tensor):
    return tensor.contiguous().view(torch.uint8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("scale", [0.3, 1.0])
def test_masked_weights_follow_the_formula_and_all_others_keep_their_bits(tmp_path, dtype, scale):
    edit, before, after = saved_edit(tmp_path, dtype=dtype, shards=3)
    mask, found = written(edit, tmp_path / "out", scale=scale)
    restored = 0
    for name in edit.names:
        part = mask.of(name)
        assert found[name].dtype == dtype
        assert torch.equal(bits(found[name][~part]), bits(after[name][~part]))
        if scale == 1:
            assert torch.equal(bits(found[name][part]), bits(before[name][part]))
        else:
            expected = after[name].double() - scale * (after[name].double() - before[name].double())
            assert torch.allclose(
                found[name][part].double(), expected[part], rtol=2 * torch.finfo(dtype).eps, atol=1e-7
            )
        restored += int(part.sum())
    assert restored == 40


def test_a_pull_back_moves_every_weight_alike(tmp_path):
    edit, before, after = saved_edit(tmp_path)
    write_patch(Patch(edit, Everything(), 0.3), tmp_path / "out")
    found = open_checkpoint(tmp_path / "out")
    for name in edit.names:
        expected = after[name] - 0.3 * (after[name] - before[name])
        assert torch.allclose(found.tensor(name), expected, atol=1e-6)


def test_tensors_without_a_restored_weight_are_the_same_file_content(tmp_path):
    edit, _, after = saved_edit(tmp_path)
    mask, found = written(edit, tmp_path / "out", count=1)
    untouched = [name for name in edit.names if not mask.of(name).any()]
    assert len(untouched) == len(edit.names) - 1
    for name in untouched:
        assert torch.equal(bits(found[name]), bits(after[name]))


def test_a_stored_copy_of_a_tied_embedding_stays_its_copy(tmp_path):
    before = random_model(0)
    after = edited(before)
    for name, tensors in (("before", before), ("after", after)):
        save(tmp_path / name, tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"].clone()}, tied=True)
    edit = open_edit(tmp_path / "before", tmp_path / "after")
    assert "lm_head.weight" not in edit.names
    _, found = written(edit, tmp_path / "out", count=edit.num_weights)
    assert torch.equal(found["lm_head.weight"], found["model.embed_tokens.weight"])
    assert torch.equal(found["lm_head.weight"], before["model.embed_tokens.weight"])


def test_an_untied_projection_is_restored_apart(tmp_path):
    edit, before, _ = saved_edit(tmp_path, head=True, tied=False)
    assert "lm_head.weight" in edit.names
    _, found = written(edit, tmp_path / "out", count=edit.num_weights)
    assert all(torch.equal(found[name], before[name]) for name in before)


def test_tied_only_afterwards_is_refused(tmp_path):
    before = random_model(0, head=True)
    after = {name: tensor for name, tensor in edited(before).items() if name != "lm_head.weight"}
    save(tmp_path / "before", before)
    save(tmp_path / "after", after, tied=True)
    with pytest.raises(ModelError, match="ties its output projection"):
        open_edit(tmp_path / "before", tmp_path / "after")


def test_integer_tensors_are_copied(tmp_path):
    before = random_model(0)
    after = edited(before)
    for name, tensors in (("before", before), ("after", after)):
        save(tmp_path / name, tensors | {"model.layers.0.steps": torch.tensor([3, 4])})
    edit = open_edit(tmp_path / "before", tmp_path / "after")
    _, found = written(edit, tmp_path / "out")
    assert found["model.layers.0.steps"].tolist() == [3, 4]


def test_adapters_are_restored_on_merged_weights(tmp_path):
    base = random_model(0)
    save(tmp_path / "base", base)
    name = "model.layers.0.mlp.up_proj"
    generator = torch.Generator().manual_seed(1)
    a, b = torch.randn(2, 12, generator=generator), torch.randn(20, 2, generator=generator)
    folder = tmp_path / "lora"
    folder.mkdir()
    settings = {"peft_type": "LORA", "base_model_name_or_path": str(tmp_path / "base"), "r": 2, "lora_alpha": 2}
    (folder / "adapter_config.json").write_text(json.dumps(settings | {"target_modules": ["up_proj"]}))
    save_file(
        {f"base_model.model.{name}.lora_A.weight": a, f"base_model.model.{name}.lora_B.weight": b},
        folder / "adapter_model.safetensors",
    )
    edit = open_edit(tmp_path / "base", folder)
    assert list(changed_weights(edit)) == [f"{name}.weight"]
    mask, found = written(edit, tmp_path / "out", count=100)
    part = mask.of(f"{name}.weight")
    merged = base[f"{name}.weight"] + b @ a
    assert torch.equal(found[f"{name}.weight"][part], base[f"{name}.weight"][part])
    assert torch.allclose(found[f"{name}.weight"][~part], merged[~part], atol=1e-5)
    assert not (tmp_path / "out" / "adapter_config.json").exists()
    assert (tmp_path / "out" / "model.safetensors").is_file()
    stored = load_file(tmp_path / "out" / "model.safetensors")
    assert torch.equal(stored["model.norm.weight"], base["model.norm.weight"])


def test_equal_checkpoints_and_broken_ones_are_named(tmp_path):
    tensors = random_model(0)
    save(tmp_path / "a", tensors)
    save(tmp_path / "b", tensors)
    with pytest.raises(ModelError, match="hold the same weights: there is no edit"):
        changed_weights(open_edit(tmp_path / "a", tmp_path / "b"))
    broken = edited(tensors)
    broken["model.layers.1.mlp.up_proj.weight"][2, 3] = float("nan")
    save(tmp_path / "c", broken)
    with pytest.raises(ModelError, match=r"1.mlp.up_proj.weight: of 240 weights 0 are NaN or infinite in .* and 1 in"):
        changed_weights(open_edit(tmp_path / "a", tmp_path / "c"))
