"""Checkpoints that no friend wrote: headers, indexes, adapters and odd files are refused with our own errors."""

import json
import os
import struct

import pytest
import torch
from safetensors.torch import save, save_file
from typer.testing import CliRunner

from counterpoint.checkpoints import compare, open_checkpoint
from counterpoint.cli.app import app
from counterpoint.config import parse_config
from counterpoint.diagnosis import edits
from counterpoint.errors import CounterpointError, ModelError
from counterpoint.models import check_model, load_model, load_tokenizer
from hostile import as_json, damaged, mutated, survey, value

SHAPES = {
    "model.embed_tokens.weight": (16, 8),
    "model.layers.0.self_attn.q_proj.weight": (8, 8),
    "model.layers.0.mlp.up_proj.weight": (16, 8),
    "model.layers.0.input_layernorm.weight": (8,),
    "lm_head.weight": (16, 8),
}
TENSORS = {
    name: torch.arange(torch.Size(shape).numel(), dtype=torch.bfloat16).view(shape) for name, shape in SHAPES.items()
}
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 8,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "vocab_size": 16,
    "tie_word_embeddings": False,
}
GOOD = save(TENSORS, metadata={"format": "pt"})
LENGTH = struct.unpack("<Q", GOOD[:8])[0]
HEADER, DATA = json.loads(GOOD[8 : 8 + LENGTH]), GOOD[8 + LENGTH :]
INDEX = {"metadata": {"total_size": 5}, "weight_map": dict.fromkeys(SHAPES, "model-00001-of-00001.safetensors")}
SIZES = [2**63 - 1, 2**40, 2**31, -1, 10**400, 1.5, "8", None, True, [], {}]


def file_of(header, length=None):
    text = header if isinstance(header, bytes) else as_json(header)
    return struct.pack("<Q", (len(text) if length is None else length) % 2**64) + text + DATA


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "c"
    path.mkdir()
    (path / "config.json").write_text(json.dumps(CONFIG))
    return path


def refused(folder):
    with pytest.raises(ModelError) as caught:
        for _ in compare(open_checkpoint(folder), open_checkpoint(folder)):
            pass
    return str(caught.value)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"PK\x03\x04",
        GOOD[:-1],
        GOOD + b"x",
        file_of(b'{"a":1}'),
        file_of(b"["),
        file_of(b'{"a":' * 5000),
        file_of(HEADER, length=2**64 - 1),
        file_of(HEADER | {"lm_head.weight": HEADER["lm_head.weight"] | {"shape": [-8, -8]}}),
        file_of(HEADER | {"lm_head.weight": HEADER["lm_head.weight"] | {"shape": [2**31, 2**33]}}),
        file_of(HEADER | {"lm_head.weight": HEADER["lm_head.weight"] | {"data_offsets": [256, 0]}}),
        file_of(HEADER | {"lm_head.weight": {"dtype": "BF16"}}),
        file_of(HEADER | {"lm_head.weight": HEADER["lm_head.weight"] | {"dtype": "F99"}}),
        file_of({"x." + "9" * 5000: {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}, **HEADER}),
    ],
)
def test_a_bad_header_is_refused(folder, content):
    (folder / "model.safetensors").write_bytes(content)
    assert "model.safetensors" in refused(folder)


@pytest.mark.parametrize(
    "name",
    ["../c/model.safetensors", "/etc/passwd", "..", ".", "", "a\0b", "a" * 300, "sub/x.safetensors", 5, None, []],
)
def test_an_index_names_files_beside_it(folder, name):
    (folder / "model.safetensors").write_bytes(GOOD)
    index = {"weight_map": dict.fromkeys(SHAPES, name) if name != "" else {"x": name}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    refused(folder)


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"null", b"{}", b'{"weight_map": {}}', b'{"weight_map": 5}', b"[" * 5000]
)
def test_a_bad_index_is_refused(folder, content):
    (folder / "model.safetensors.index.json").write_bytes(content)
    assert "model.safetensors.index.json" in refused(folder)


def test_what_is_no_file_does_not_hang(folder):
    os.mkfifo(folder / "model.safetensors")
    assert "device or pipe" in refused(folder)
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").symlink_to("/dev/zero")
    assert "device or pipe" in refused(folder)
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").mkdir()
    assert "folder" in refused(folder)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "extra.json"])
def test_models_are_not_waited_for(folder, name):
    (folder / name).unlink(missing_ok=True)
    os.mkfifo(folder / name)
    model = parse_config({"model": str(folder), "domains": {"math": {"source": "pocket"}}}).model
    for load in (check_model, load_tokenizer, load_model):
        with pytest.raises(ModelError, match=f"{name} is a device or pipe"):
            load(model)
    assert isinstance(CliRunner().invoke(app, ["plan", str(folder), "--groups", "module"]).exception, ModelError)


@pytest.mark.parametrize(
    "changes",
    [
        {"base_model_name_or_path": 5},
        {"base_model_name_or_path": ""},
        {"base_model_name_or_path": "/etc"},
        {"base_model_name_or_path": "."},
        {"base_model_name_or_path": "x" * 5000},
        {"lora_alpha": "x"},
        {"lora_alpha": float("inf")},
        {"alpha_pattern": []},
        {"alpha_pattern": {"[": 1}},
        {"alpha_pattern": {"(a+)+x": 1}},
        {"peft_type": ["LORA"]},
        {"r": 0},
    ],
)
def test_bad_adapters_are_refused(tmp_path, monkeypatch, folder, changes):
    base = tmp_path / "base"
    base.mkdir()
    save_file(TENSORS, base / "model.safetensors")
    module, r = "base_model.model.model.layers.0.self_attn.q_proj", 0 if "r" in changes else 2
    factors = {f"{module}.lora_A.weight": torch.ones(r, 8), f"{module}.lora_B.weight": torch.ones(8, r)}
    save_file(factors, folder / "adapter_model.safetensors")
    config = {"base_model_name_or_path": str(base), "peft_type": "LORA", "r": 2, "lora_alpha": 4}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    if r:
        assert open_checkpoint(folder).dtypes["model.layers.0.self_attn.q_proj.weight"] == torch.float32
    (folder / "adapter_config.json").write_text(json.dumps(config | changes))
    monkeypatch.chdir(folder)
    with pytest.raises(ModelError):
        open_checkpoint(folder)


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"{}", b"{", b"[" * 5000, b"\xff", b'{"base_model_name_or_path": null}']
)
def test_a_torn_adapter_configuration_is_refused(folder, content):
    (folder / "adapter_config.json").write_bytes(content)
    assert "adapter_config.json" in refused(folder)


@pytest.mark.parametrize("whole", [0, 1])
def test_whole_numbers_on_one_side_are_refused(tmp_path, whole):
    paths = [tmp_path / "a", tmp_path / "b"]
    for number, path in enumerate(paths):
        path.mkdir()
        name = "lm_head.weight"
        changed = {name: TENSORS[name].short()} if number == whole else {}
        save_file(TENSORS | changed, path / "model.safetensors")
    with pytest.raises(ModelError, match=r"lm_head.weight .*int16"):
        edits(paths[0], [paths[1]])


def hostile_weights(rng):
    header = json.loads(json.dumps(HEADER))
    entry = header[rng.choice(list(SHAPES))]
    match rng.randrange(7):
        case 0:
            return file_of(mutated(header, rng))
        case 1:
            entry["shape"] = rng.choice([[rng.choice(SIZES), 8], [0], [], [8] * 50, [2**31, 2**31], rng.choice(SIZES)])
        case 2:
            entry["data_offsets"] = rng.choice(
                [[0, rng.choice(SIZES)], [rng.choice(SIZES), 5], [5, 0], [0], [], [1, 3]]
            )
        case 3:
            entry["dtype"] = rng.choice(["F64", "F32", "F16", "I16", "U16", "BOOL", "F8_E4M3", "F4", "", None, 5, []])
        case 4:
            return file_of(header, rng.choice([0, 1, 2**63, 2**64 - 1, LENGTH - 1, LENGTH + 1, len(GOOD)]))
        case 5:
            header[rng.choice(["", "\0", "a" * 5000, "../x", "model.layers.99999999999.x"])] = value(rng)
        case 6:
            return damaged(GOOD, rng)
    return file_of(header)


def hostile_folder(folder, rng):
    """Fills ``folder`` with a checkpoint of which one part is not as it should be."""
    for path in folder.iterdir():
        path.unlink()
    part = rng.choice(["weights", "weights", "weights", "index", "config", "adapter"])
    config = as_json(CONFIG)
    if part == "config":
        config = as_json(mutated(CONFIG, rng)) if rng.random() < 0.7 else damaged(config, rng)
    (folder / "config.json").write_bytes(config)
    if part == "index":
        index = as_json(mutated(INDEX, rng)) if rng.random() < 0.5 else damaged(as_json(INDEX), rng)
        (folder / "model.safetensors.index.json").write_bytes(index)
        (folder / "model-00001-of-00001.safetensors").write_bytes(GOOD)
    elif part == "adapter":
        adapter = {"base_model_name_or_path": "base", "peft_type": "LORA", "lora_alpha": 8, "alpha_pattern": {"q": 1}}
        (folder / "adapter_config.json").write_bytes(as_json(mutated(adapter, rng)))
        (folder / "adapter_model.safetensors").write_bytes(hostile_weights(rng))
    else:
        (folder / "model.safetensors").write_bytes(hostile_weights(rng) if part == "weights" else GOOD)


@pytest.mark.slow
def test_any_checkpoint_is_read_or_refused(tmp_path, monkeypatch, folder):
    base = tmp_path / "base"
    base.mkdir()
    save_file(TENSORS, base / "model.safetensors")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")

    def attack(rng):
        hostile_folder(folder, rng)
        for _ in compare(open_checkpoint(base), open_checkpoint(folder)):
            pass

    assert survey(attack, 400) > 30


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_edits_says_what_is_wrong_with_a_checkpoint(tmp_path, folder):
    base = tmp_path / "base"
    base.mkdir()
    save_file(TENSORS, base / "model.safetensors")
    (base / "config.json").write_text(json.dumps(CONFIG))

    def attack(rng):
        hostile_folder(folder, rng)
        edits(base, [folder])

    assert survey(attack, 80) > 7


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("command", ["plan c --groups module", "merge base c c --method average -o m"])
def test_commands_say_what_is_wrong_with_a_checkpoint(tmp_path, monkeypatch, folder, command):
    base = tmp_path / "base"
    base.mkdir()
    save_file(TENSORS, base / "model.safetensors")
    (base / "config.json").write_text(json.dumps(CONFIG))
    monkeypatch.chdir(tmp_path)

    def attack(rng):
        hostile_folder(folder, rng)
        for path in (tmp_path / "m").glob("*"):
            path.unlink()
        error = CliRunner().invoke(app, command.split()).exception
        if isinstance(error, CounterpointError) or (error and not isinstance(error, SystemExit)):
            raise error

    assert survey(attack, 80) > 7
