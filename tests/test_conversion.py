"""Tensors on the disk are the parameters in memory, for every family: both ways, and where the file says nothing."""

import json
import shutil

import pytest
import torch
from transformers import AutoModelForCausalLM

from counterpoint.anatomy import Anatomy
from counterpoint.checkpoints import Conversion, anatomy_of, open_checkpoint
from counterpoint.errors import UnsupportedError
from counterpoint.surgery import group_parameters
from families import FAMILIES, build, groups_of

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
