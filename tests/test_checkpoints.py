"""Checkpoints on disk: what is read, what is merged, what is refused and with which words."""

import contextlib
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from counterpoint.checkpoints import compare, lora, open_checkpoint
from counterpoint.errors import ModelError
from counterpoint.pocket import model_path
from diagnosis_models import random_model, save
from families import build


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_tensors_and_rows_are_those_of_safetensors(tmp_path, dtype):
    tensors = random_model(dtype=dtype) | {"model.scale": torch.tensor(3.0).to(dtype)}
    checkpoint = open_checkpoint(save(tmp_path, tensors))
    assert set(checkpoint.names) == set(tensors)
    for name, tensor in tensors.items():
        assert checkpoint.dtypes[name] == dtype
        assert checkpoint.shapes[name] == tensor.shape
        torch.testing.assert_close(checkpoint.tensor(name), tensor, rtol=0, atol=0)
    name = "model.layers.1.mlp.gate_proj.weight"
    torch.testing.assert_close(checkpoint.rows(name, 3, 7), tensors[name][3:7], rtol=0, atol=0)


def test_names_come_in_the_order_of_the_model(tmp_path):
    names = open_checkpoint(save(tmp_path, random_model(layers=11, head=True))).names
    assert names[0] == "model.embed_tokens.weight"
    assert names[-2:] == ("model.norm.weight", "lm_head.weight")
    layers = [int(name.split(".")[2]) for name in names if ".layers." in name]
    assert layers == sorted(layers)
    first = [name.split(".", 3)[3].removesuffix(".weight") for name in names if ".layers.0." in name]
    assert first == sorted(first)


def test_shards_read_as_one_file(tmp_path):
    tensors = random_model()
    one, many = open_checkpoint(save(tmp_path / "1", tensors)), open_checkpoint(save(tmp_path / "3", tensors, shards=3))
    assert one.names == many.names
    for _, a, b in compare(one, many):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_shards_without_an_index_are_found(tmp_path):
    folder = save(tmp_path, random_model(), shards=3)
    (folder / "model.safetensors.index.json").unlink()
    assert set(open_checkpoint(folder).names) == set(random_model())


def test_pocket_is_the_embedded_model():
    checkpoint = open_checkpoint("pocket")
    assert checkpoint.path == model_path()
    assert checkpoint.tied


def test_wrapper_prefixes_are_dropped(tmp_path):
    tensors = {f"_orig_mod.{name}": tensor for name, tensor in random_model().items()}
    assert set(open_checkpoint(save(tmp_path, tensors)).names) == set(random_model())


def test_a_tied_head_stored_twice_counts_once(tmp_path):
    tensors = random_model()
    twice = tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"].clone()}
    base, after = open_checkpoint(save(tmp_path / "a", tensors, tied=True)), save(tmp_path / "b", twice, tied=True)
    assert "lm_head.weight" not in compare(base, open_checkpoint(after)).names


def test_a_head_untied_by_training_is_compared_with_the_embedding(tmp_path):
    tensors = random_model()
    head = tensors["model.embed_tokens.weight"] + 1
    base = open_checkpoint(save(tmp_path / "a", tensors, tied=True))
    after = open_checkpoint(save(tmp_path / "b", tensors | {"lm_head.weight": head}))
    pairs = {name: (before, now) for name, before, now in compare(base, after)}
    torch.testing.assert_close(pairs["lm_head.weight"][0], tensors["model.embed_tokens.weight"])
    torch.testing.assert_close(pairs["lm_head.weight"][1], head)


def test_other_shapes_are_refused_by_the_first_tensor_that_differs(tmp_path):
    base, after = save(tmp_path / "a", random_model()), save(tmp_path / "b", random_model(inner=24))
    with pytest.raises(
        ModelError, match=r"layers\.0\.mlp\.down_proj\.weight is \[12, 20\] in .*a and \[12, 24\] in .*b"
    ):
        compare(open_checkpoint(base), open_checkpoint(after))


def test_other_architectures_are_refused_by_the_first_tensor_that_differs(tmp_path):
    base, after = save(tmp_path / "a", random_model(layers=3)), save(tmp_path / "b", random_model(layers=2))
    with pytest.raises(ModelError, match=r"layers\.2\.input_layernorm\.weight \[12\] is in .*a and not in .*b"):
        compare(open_checkpoint(base), open_checkpoint(after))


def cut(folder: Path):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def no_safetensors(folder: Path):
    (folder / "model.safetensors").write_bytes(b"<html>not found</html>")


def pickled(folder: Path):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    (folder / "optimizer.pt").touch()


def trainer_state_alone(folder: Path):
    (folder / "model.safetensors").rename(folder / "optimizer.pt")


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (cut, r"model.safetensors: cannot be read .*It is cut off or no safetensors file"),
        (no_safetensors, "It is cut off or no safetensors file"),
        (pickled, r"only pickled weights \(pytorch_model.bin\).*save_pretrained"),
        (trainer_state_alone, r"no \.safetensors weights there, found config.json, optimizer.pt"),
    ],
)
def test_a_spoilt_folder_says_how(tmp_path, spoil, words):
    spoil(save(tmp_path, random_model()))
    with pytest.raises(ModelError, match=words):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("index", [True, False])
def test_missing_shards_are_named(tmp_path, index):
    folder = save(tmp_path, random_model(), shards=3)
    (folder / "model-00002-of-00003.safetensors").unlink()
    if not index:
        (folder / "model.safetensors.index.json").unlink()
    with pytest.raises(ModelError, match=r"1 of 3 shards of the model are missing: model-00002-of-00003\.safetensors"):
        open_checkpoint(folder)


def test_two_files_that_are_no_shards_are_refused(tmp_path):
    folder = save(tmp_path, random_model())
    (folder / "model.safetensors").rename(folder / "a.safetensors")
    save_file(random_model(1), folder / "b.safetensors")
    with pytest.raises(ModelError, match="2 safetensors files and no model"):
        open_checkpoint(folder)


def test_places_that_are_no_checkpoint_say_what_they_are(tmp_path):
    (tmp_path / "run" / "checkpoints" / "step-8").mkdir(parents=True)
    (tmp_path / "file").touch()
    with pytest.raises(ModelError, match=r"this is a run, not a checkpoint\. .* checkpoints/step-8"):
        open_checkpoint(tmp_path / "run")
    with pytest.raises(ModelError, match="this is a file"):
        open_checkpoint(tmp_path / "file")
    with pytest.raises(ModelError, match="no such folder"):
        open_checkpoint(tmp_path / "nothing")


def test_a_hub_id_that_cannot_be_had_says_so(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match="no model of that name is cached or could be fetched"):
        open_checkpoint("nobody/nothing")


def test_adapters_build_upon_the_revision_that_they_name(tmp_path, monkeypatch):
    asked = []

    def snapshot(hub_id, *, revision, **_):
        asked.append((hub_id, revision))
        return str(model_path())

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    config = {"base_model_name_or_path": "org/model", "revision": "v2", "peft_type": "LORA", "r": 2}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    save_file({"base_model.model.model.norm.weight": torch.ones(128)}, tmp_path / "adapter_model.safetensors")
    with contextlib.suppress(ModelError):
        open_checkpoint(tmp_path)
    assert asked == [("org/model", "v2")]


def adapted(tmp_path, kind="pocket", **settings):
    """A folder of adapters over a model with random factors, what PEFT merges them to, and the base."""
    peft = pytest.importorskip("peft")
    from transformers import AutoModelForCausalLM

    path = model_path()
    if kind != "pocket":
        build(kind).save_pretrained(path := tmp_path / "base")
    base = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    targets = settings.pop("target_modules", ["q_proj", "down_proj"])
    model = peft.get_peft_model(base, peft.LoraConfig(target_modules=targets, task_type="CAUSAL_LM", **settings))
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad or "lora" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    model.save_pretrained(tmp_path / "adapters")
    config = tmp_path / "adapters" / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"base_model_name_or_path": str(path)}))
    return tmp_path / "adapters", model.merge_and_unload().state_dict(), path


EXACT = {
    "plain": ("pocket", {"r": 4, "lora_alpha": 32}, 8),
    "rslora": ("pocket", {"r": 4, "lora_alpha": 32, "use_rslora": True}, 8),
    "patterns": ("pocket", {"alpha_pattern": {"layers.1.mlp.down_proj": 3}, "rank_pattern": {"q_proj": 2}}, 8),
    "rslora patterns": ("pocket", {"use_rslora": True, "alpha_pattern": {"q_proj": 3}, "rank_pattern": {"q": 2}}, 8),
    "embedding": ("pocket", {"target_modules": ["embed_tokens", "o_proj"]}, 5),
    "saved": ("pocket", {"modules_to_save": ["norm"]}, 17),
    "saved head": ("llama", {"modules_to_save": ["lm_head"]}, 5),
    "some layers": ("pocket", {"layers_to_transform": [1, 2], "layers_pattern": "layers"}, 4),
    "excluded": ("pocket", {"exclude_modules": ["layers.0.mlp.down_proj"]}, 7),
    "dropout": ("pocket", {"lora_dropout": 0.5}, 8),
    "gaussian": ("pocket", {"init_lora_weights": "gaussian"}, 8),
    "random": ("pocket", {"init_lora_weights": False}, 8),
    "eva": ("pocket", {"init_lora_weights": "eva"}, 8),
    "orthogonal": ("pocket", {"init_lora_weights": "orthogonal"}, 8),
    "mica": ("pocket", {"init_lora_weights": "mica"}, 8),
    "turned": ("gpt2", {"target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True}, 6),
    "biases of adapted modules": (
        "gpt2",
        {"target_modules": ["c_attn"], "fan_in_fan_out": True, "bias": "lora_only"},
        4,
    ),
    "all biases": ("gpt2", {"target_modules": ["c_attn"], "fan_in_fan_out": True, "bias": "all"}, 15),
}
"""Base, settings of PEFT's LoraConfig, and how many tensors they change."""


@pytest.mark.parametrize(("kind", "settings", "expected"), EXACT.values(), ids=EXACT)
@pytest.mark.filterwarnings("ignore")
def test_adapters_merge_as_peft_merges_them(tmp_path, kind, settings, expected):
    folder, merged, base = adapted(tmp_path, kind, **settings)
    changed = 0
    for name, before, after in compare(open_checkpoint(base), open_checkpoint(folder)):
        torch.testing.assert_close(after.float(), merged[name], rtol=1e-5, atol=1e-6)
        changed += not torch.equal(before.float(), after.float())
    assert changed == expected


@pytest.mark.filterwarnings("ignore")
def test_every_setting_that_is_not_refused_is_tested():
    peft = pytest.importorskip("peft")
    plain = peft.LoraConfig().to_dict()
    tried = {key for _, settings, _ in EXACT.values() for key in settings} | {"target_modules"}
    named = {key for key in plain if key in lora._EXACT}
    inert = {"peft_type", "task_type", "auto_mapping", "peft_version", "inference_mode", "base_model_name_or_path"}
    assert named - tried - inert == {"revision", "eva_config", "megatron_core", "qalora_group_size"}
    assert not [key for key, value in plain.items() if value and key not in lora._EXACT]
    known = {value for _, settings, _ in EXACT.values() if (value := settings.get("init_lora_weights", True))}
    assert set(lora._KEEPS_THE_BASE) == known | {False, None}


@pytest.mark.parametrize("start", ["pissa", "pissa_niter_4", "olora"])
@pytest.mark.filterwarnings("ignore")
def test_adapters_that_took_their_start_out_of_the_base_are_refused_or_converted(tmp_path, start):
    peft = pytest.importorskip("peft")
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(model_path(), dtype=torch.float32)
    model = peft.get_peft_model(base, peft.LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights=start))
    model.save_pretrained(tmp_path / "first")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.add_(0.01 * torch.randn_like(parameter))
    model.save_pretrained(tmp_path / "refused")
    model.save_pretrained(tmp_path / "converted", path_initial_model_for_weight_conversion=str(tmp_path / "first"))
    for name in ("refused", "converted"):
        spoil_config(tmp_path / name, base_model_name_or_path="pocket")
    with pytest.raises(ModelError, match=rf"with init_lora_weights '{start}' are not merged, .* merge_and_unload"):
        open_checkpoint(tmp_path / "refused")
    merged = model.merge_and_unload().state_dict()
    for name, _, after in compare(open_checkpoint("pocket"), open_checkpoint(tmp_path / "converted")):
        torch.testing.assert_close(after.float(), merged[name], rtol=1e-5, atol=2e-6)


@pytest.mark.filterwarnings("ignore")
def test_rows_of_a_merged_tensor_are_rows_of_the_whole(tmp_path):
    checkpoint = open_checkpoint(adapted(tmp_path, target_modules=["embed_tokens", "down_proj"])[0])
    for name in ("model.embed_tokens.weight", "model.layers.2.mlp.down_proj.weight"):
        torch.testing.assert_close(checkpoint.rows(name, 5, 9), checkpoint.tensor(name)[5:9])


def spoil_config(folder, **changes):
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"use_dora": True}, "adapters with use_dora True are not merged: .* merge_and_unload"),
        ({"layer_replication": [[0, 2]]}, "adapters with layer_replication .* are not merged"),
        ({"a_setting_of_tomorrow": {"a": 1}}, "adapters with a_setting_of_tomorrow {'a': 1} are not merged"),
        ({"init_lora_weights": "corda"}, "adapters with init_lora_weights 'corda' are not merged"),
        ({"peft_type": "LOHA"}, "adapters of the type LOHA are not merged"),
        ({"base_model_name_or_path": None}, "adapter_config.json: base_model_name_or_path: "),
        ({"base_model_name_or_path": "/nowhere/model"}, "the adapters' base model cannot be read"),
    ],
)
def test_adapters_that_cannot_be_merged_say_why(tmp_path, changes, words):
    folder = adapted(tmp_path)[0]
    spoil_config(folder, **changes)
    with pytest.raises(ModelError, match=words):
        open_checkpoint(folder)


@pytest.mark.filterwarnings("ignore")
def test_factors_of_a_kind_that_is_not_known_are_refused(tmp_path):
    file = adapted(tmp_path)[0] / "adapter_model.safetensors"
    tensors = load_file(file)
    odd = next(iter(tensors)).replace("lora_A", "lora_magnitude_vector")
    save_file(tensors | {odd: torch.ones(4)}, file)
    with pytest.raises(ModelError, match=r"lora_magnitude_vector.* is no factor of plain LoRA"):
        open_checkpoint(file.parent)


@pytest.mark.filterwarnings("ignore")
def test_adapters_of_another_base_are_refused(tmp_path):
    folder = adapted(tmp_path)[0]
    spoil_config(folder, base_model_name_or_path=str(save(tmp_path / "other", random_model())))
    with pytest.raises(ModelError, match=r"the adapters change .*\.weight"):
        open_checkpoint(folder)


@pytest.mark.parametrize("scale", ["weight_scale_inv", "weight_scale"])
def test_weights_of_8_bits_with_a_scale_are_refused(tmp_path, scale):
    tensors = random_model()
    name = "model.layers.0.mlp.up_proj.weight"
    tensors[name] = tensors[name].to(torch.float8_e4m3fn)
    assert open_checkpoint(save(tmp_path / "plain", tensors)).dtypes[name] == torch.float8_e4m3fn
    tensors[name.replace("weight", scale)] = torch.ones(1, 1)
    with pytest.raises(ModelError, match=rf"up_proj\.weight is quantized to float8_e4m3fn.*{scale}.*bfloat16"):
        open_checkpoint(save(tmp_path / "scaled", tensors))


def test_comparing_keeps_no_weights(tmp_path):
    comparison = compare(open_checkpoint(save(tmp_path, random_model())), open_checkpoint(tmp_path))
    loaded = load_file(tmp_path / "model.safetensors")
    for name, before, after in comparison:
        assert before.data_ptr() != after.data_ptr()
        torch.testing.assert_close(before, loaded[name])
