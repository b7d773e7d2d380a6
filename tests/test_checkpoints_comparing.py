"""Two states of one model are one model, whatever their folders call its tensors, and however they cut them."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

from counterpoint.checkpoints import compare, open_checkpoint
from counterpoint.diagnosis import edits
from counterpoint.diagnosis._edit_vector import edit_between
from counterpoint.errors import ModelError
from counterpoint.merging import merge
from counterpoint.recovery.masks import Everything, Patch, open_edit, write_patch
from families import DELTA, SMALL, build

pytestmark = pytest.mark.filterwarnings("ignore")  # transformers' own deprecations

VISION = {
    **{"depth": 1, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2, "out_hidden_size": 32, "patch_size": 4},
    **{"spatial_merge_size": 1, "temporal_patch_size": 1, "num_position_embeddings": 16},
}


def perturbed(model, seed=0):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for param in model.parameters():
            param.add_(0.01 * torch.randn(param.shape, generator=generator))
    return model


def published(folder):
    """A model for images and text, as it is published."""
    torch.manual_seed(0)
    config = AutoConfig.for_model("qwen3_5", text_config=SMALL | DELTA, vision_config=VISION)
    AutoModelForImageTextToText.from_config(config).save_pretrained(folder)
    return folder


def of_text(base, folder, own_names, seed=0):
    """Its text model, trained; under the published names as transformers saves it, or under those of its class."""
    model = perturbed(AutoModelForCausalLM.from_pretrained(base), seed)
    model.save_pretrained(folder, save_original_format=not own_names)
    if own_names:
        names = load_file(folder / "model.safetensors")
        names = {name.replace("model.language_model.", "model."): tensor for name, tensor in names.items()}
        save_file(names, folder / "model.safetensors", metadata={"format": "pt"})
    return model


@pytest.mark.parametrize("own_names", [True, False])
def test_a_text_model_is_compared_with_the_published_model_of_images_and_text(tmp_path, own_names):
    base = published(tmp_path / "base")
    before = AutoModelForCausalLM.from_pretrained(base)
    after = of_text(base, tmp_path / "after", own_names)
    pair = compare(open_checkpoint(base), open_checkpoint(tmp_path / "after"))
    assert pair.names == pair.named_by.names == pair.after.names
    assert pair.names[0].startswith("model.embed" if own_names else "model.language_model.embed")
    assert len(pair.left_out) == len(pair.base.names) - len(pair.names) > 0
    assert all(".visual." in name for name in pair.left_out)
    later = dict(after.named_parameters())
    true = sum(float((later[name] - param).double().square().sum()) for name, param in before.named_parameters()) ** 0.5
    found = edits(base, [tmp_path / "after"])
    assert found.checkpoints[0].whole.norm == pytest.approx(true, rel=1e-5)
    assert found.skipped == tuple(sorted(pair.left_out))
    assert set(found.checkpoints[0].neurons) == {0, 1, 2, 3}
    for name, change in edit_between(
        compare(open_checkpoint(base), open_checkpoint(tmp_path / "after")), before
    ).items():
        torch.testing.assert_close(change, (later[name] - before.get_parameter(name)).detach(), rtol=0, atol=1e-6)


def test_merging_and_restoring_keep_the_names_and_the_files_of_the_one_that_is_written(tmp_path):
    base = published(tmp_path / "base")
    models = [of_text(base, tmp_path / str(seed), seed == 1, seed) for seed in (1, 2)]
    out = merge(base, [tmp_path / "1", tmp_path / "2"], tmp_path / "merged", method="average")
    assert open_checkpoint(out).names == open_checkpoint(tmp_path / "1").names
    merged = AutoModelForCausalLM.from_pretrained(out)
    for name, param in merged.named_parameters():
        mean = sum(model.get_parameter(name) for model in models) / 2
        torch.testing.assert_close(param, mean, rtol=0, atol=1e-6)
    # Restored wholly, the folder with the tower is the first one's text model beside its own tower.
    edit = open_edit(tmp_path / "1", base)
    restored = open_checkpoint(write_patch(Patch(edit, Everything()), tmp_path / "restored"))
    whole = open_checkpoint(base)
    assert restored.names == whole.names
    for name in whole.names:
        same = torch.equal(restored.tensor(name), whole.tensor(name))
        assert same == (name in edit.pair.left_out), name
    back = AutoModelForCausalLM.from_pretrained(restored.path)
    for name, param in back.named_parameters():
        torch.testing.assert_close(param, models[0].get_parameter(name), rtol=0, atol=1e-6)


def test_experts_stored_apart_and_together_are_told_from_another_architecture(tmp_path):
    model = build("mixtral")
    model.save_pretrained(tmp_path / "apart")
    perturbed(model).save_pretrained(tmp_path / "together", save_original_format=False)
    perturbed(model).save_pretrained(tmp_path / "again", save_original_format=False)
    with pytest.raises(ModelError, match=r"keep .*gate_up_proj otherwise: as 8 tensors .*save_original_format=False"):
        compare(open_checkpoint(tmp_path / "apart"), open_checkpoint(tmp_path / "together"))
    assert len(compare(open_checkpoint(tmp_path / "together"), open_checkpoint(tmp_path / "again")).names) > 10


def test_a_layer_that_predicts_further_and_is_never_loaded_is_left_out(tmp_path):
    build("deepseek_v3").save_pretrained(tmp_path / "after")
    tensors = load_file(tmp_path / "after" / "model.safetensors")
    further = "model.layers.61.mlp.up_proj.weight"
    (tmp_path / "base").mkdir()
    save_file(tensors | {further: torch.ones(48, 32)}, tmp_path / "base" / "model.safetensors")
    pair = compare(open_checkpoint(tmp_path / "base"), open_checkpoint(tmp_path / "after"))
    assert pair.left_out == (further,)
    assert pair.names == pair.after.names


def test_a_model_with_fewer_layers_is_another(tmp_path):
    base = published(tmp_path / "base")
    config = AutoConfig.for_model("qwen3_5_text", **(SMALL | DELTA | {"num_hidden_layers": 3}))
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "shorter")
    with pytest.raises(ModelError, match=r"different architectures: model\.language_model\.layers\.3\..* is in .*base"):
        compare(open_checkpoint(base), open_checkpoint(tmp_path / "shorter"))
