"""Tensors on the disk are the parameters in memory, for every family: both ways, and where the file says nothing."""

import json
import shutil

import pytest
import torch
from transformers import AutoModelForCausalLM

from counterpoint.anatomy import Anatomy
from counterpoint.checkpoints import Conversion, anatomy_of, compare, open_checkpoint
from counterpoint.diagnosis._edit_vector import changed_weights, edit_between
from counterpoint.errors import UnsupportedError
from counterpoint.recovery.masks import Patch, Site, open_edit, write_patch
from counterpoint.surgery import group_parameters
from families import FAMILIES, build, groups_of
from recovery_helpers import top_mask

pytestmark = pytest.mark.filterwarnings("ignore")  # transformers' own deprecations, of some families


@pytest.fixture(scope="module", params=FAMILIES)
def saved(request, tmp_path_factory):
    """A family, its folder, and the model that transformers loads from it."""
    folder = tmp_path_factory.mktemp(request.param)
    build(request.param).save_pretrained(folder)
    return request.param, folder, AutoModelForCausalLM.from_pretrained(folder)


def test_the_disk_becomes_the_model_and_the_model_the_disk(saved):
    _, folder, model = saved
    checkpoint = open_checkpoint(folder)
    conversion = Conversion(model, checkpoint.shapes)
    bundles = conversion.bundles(checkpoint.names, "the model")
    rebuilt = {name: value for bundle in bundles for name, value in bundle.to_model(checkpoint.tensor).items()}
    assert set(rebuilt) >= {name for name, _ in model.named_parameters()}
    for name, value in rebuilt.items():
        assert torch.equal(value, model.state_dict()[name]), name
    for bundle in bundles:
        values = {name: conversion.params[name].detach() for name in bundle.params}
        for name, value in bundle.to_disk(values, checkpoint.shapes).items():
            assert torch.equal(value, checkpoint.tensor(name)), name


def test_stored_tensors_lie_where_the_models_parameters_do(saved):
    kind, folder, model = saved
    checkpoint = open_checkpoint(folder)
    anatomy = anatomy_of(checkpoint)
    buffers = {name.rpartition(".")[2] for name, _ in model.named_buffers()}
    shapes = {n: shape for n, shape in checkpoint.shapes.items() if n.rpartition(".")[2] not in buffers}
    stored = {piece for name in shapes for piece in anatomy.place(name).blocks}
    assert stored == groups_of(kind)
    sizes = dict.fromkeys(stored, 0)
    for name, shape in shapes.items():
        blocks = anatomy.place(name).blocks
        for block in blocks:
            sizes[block] += torch.Size(shape).numel() // len(blocks)
    expected = dict.fromkeys(stored, 0)
    groups = group_parameters(model, "module")
    for name, param in model.named_parameters():
        for piece in groups[name]:
            expected[piece] += param.numel() // len(groups[name])
    assert sizes == expected
    assert {axis.layer for axis in anatomy.neurons.values()} == {
        axis.layer for axis in Anatomy.of(model).neurons.values()
    }


MERGED = ["mixtral", "qwen3_moe", "deepseek_v3", "gpt_oss", "gpt_neox", "llama"]
"""Families whose checkpoints keep apart, or call otherwise, what the model holds; and one whose do not."""


@pytest.fixture(params=MERGED)
def edited(request, tmp_path):
    """Two checkpoints whose models differ in every parameter but the embedding, and these models."""
    model = build(request.param, seed=1)
    model.save_pretrained(tmp_path / "before")
    with torch.no_grad():
        for name, param in model.named_parameters():
            if "embed" not in name:
                param.add_(0.01 * torch.randn_like(param))
    model.save_pretrained(tmp_path / "after")
    loaded = [AutoModelForCausalLM.from_pretrained(tmp_path / name) for name in ("before", "after")]
    return tmp_path, *loaded


def test_the_edit_in_memory_is_the_difference_of_the_models(edited):
    folder, before, after = edited
    change = edit_between(compare(open_checkpoint(folder / "before"), open_checkpoint(folder / "after")), before)
    later = dict(after.named_parameters())
    for name, param in before.named_parameters():
        difference = (later[name] - param).detach()
        torch.testing.assert_close(change.get(name, torch.zeros_like(param)), difference, rtol=0, atol=1e-6)


def test_any_patch_is_held_in_memory_and_written_to_the_disk(edited):
    folder, before, after = edited
    edit = open_edit(folder / "before", folder / "after")
    site = Site.of(after, edit, changed_weights(edit))
    site.put(None)
    for (name, held), param in zip(after.named_parameters(), before.parameters(), strict=True):
        assert torch.equal(held, param), name
    patch = Patch(edit, top_mask(edit, 500))
    site.put(patch)
    written = AutoModelForCausalLM.from_pretrained(write_patch(patch, folder / "out"))
    for (name, held), param in zip(after.named_parameters(), written.named_parameters(), strict=True):
        assert torch.equal(held, param[1]), name


def test_numbers_of_parameters_lie_in_the_stored_tensors_as_the_weights_do(edited):
    folder, before, _ = edited
    edit = open_edit(folder / "before", folder / "after")
    site = Site.of(before, edit, changed_weights(edit))
    values = {name: param.detach() for name, param in before.named_parameters()}
    assert set(site.params_of(edit.names)) >= set(values)
    stored = site.to_disk(values)
    for name, value in stored.items():
        assert torch.equal(value, edit.before(name)), name
    assert {name for name in edit.names if name not in stored} == {n for n in edit.names if "correction_bias" in n}


def test_without_a_configuration_names_have_to_do(tmp_path):
    build("qwen3_moe").save_pretrained(tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "bare")
    (tmp_path / "bare" / "config.json").unlink()
    odd = json.loads((tmp_path / "whole" / "config.json").read_text()) | {"model_type": "nobody_knows"}
    shutil.copytree(tmp_path / "bare", tmp_path / "odd")
    (tmp_path / "odd" / "config.json").write_text(json.dumps(odd))
    found = [anatomy_of(open_checkpoint(tmp_path / name)).places for name in ("whole", "bare", "odd")]
    assert found[0] == found[1] == found[2]


def test_a_tensor_that_the_model_has_no_place_for_is_named(tmp_path):
    build("llama").save_pretrained(tmp_path)
    checkpoint = open_checkpoint(tmp_path)
    conversion = Conversion(build("llama"), {**checkpoint.shapes, "model.layers.0.extra.weight": (2,)})
    with pytest.raises(UnsupportedError, match=r"model\.layers\.0\.extra\.weight .* LlamaForCausalLM has no parameter"):
        conversion.bundles([*checkpoint.names, "model.layers.0.extra.weight"], "LlamaForCausalLM")
