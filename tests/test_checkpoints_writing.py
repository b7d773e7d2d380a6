"""A written checkpoint: the source's files and tensors, changed only where asked, whole or not there."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from counterpoint.checkpoints import open_checkpoint, write_checkpoint, writing
from counterpoint.errors import ModelError


@pytest.fixture
def source(tmp_path):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=32, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, tie_word_embeddings=True,
    )  # fmt: skip
    model = LlamaForCausalLM(config).to(torch.bfloat16)
    model.save_pretrained(tmp_path / "source")
    (tmp_path / "source" / "optimizer.pt").write_bytes(b"not to be copied")
    (tmp_path / "source" / "tokenizer.json").write_text("{}")
    return open_checkpoint(tmp_path / "source")


@pytest.mark.parametrize("shard_bytes", [1 << 30, 2000])
def test_a_copy_is_bit_identical_and_can_be_loaded(source, tmp_path, monkeypatch, shard_bytes):
    monkeypatch.setattr(writing, "SHARD_BYTES", shard_bytes)
    changed = "model.layers.0.mlp.up_proj.weight"
    seen = []
    out = write_checkpoint(
        tmp_path / "out",
        source,
        lambda name: source.tensor(name).float() + (name == changed),
        lambda what, done, total: seen.append((done, total)),
    )
    written = open_checkpoint(out)
    assert written.names == source.names
    assert written.dtypes == source.dtypes
    for name in source.names:
        assert torch.equal(written.tensor(name), source.tensor(name)) == (name != changed)
    assert seen[-1] == (len(source.names), len(source.names))
    index = out / "model.safetensors.index.json"
    files = {file.name for file in out.glob("*.safetensors")}
    shards = set(json.loads(index.read_text())["weight_map"].values()) if index.exists() else {"model.safetensors"}
    assert files == shards
    assert (len(files) > 1) == (shard_bytes == 2000)
    loaded = AutoModelForCausalLM.from_pretrained(out, dtype=torch.bfloat16)
    assert torch.equal(loaded.model.norm.weight, source.tensor("model.norm.weight"))
    assert (out / "tokenizer.json").is_file()
    assert not (out / "optimizer.pt").exists()


def test_what_fails_on_the_way_leaves_nothing_in_place(source, tmp_path):
    def broken(name):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        write_checkpoint(tmp_path / "out", source, broken)
    assert not (tmp_path / "out").exists()
    write_checkpoint(tmp_path / "out", source, source.tensor)
    assert open_checkpoint(tmp_path / "out").names == source.names


def test_a_taken_folder_is_refused(source, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    with pytest.raises(ModelError, match=r"out: is there already, and nothing is overwritten\. Give another"):
        write_checkpoint(tmp_path / "out", source, source.tensor)
    assert (tmp_path / "out" / "mine.txt").read_text() == "mine"


def test_what_belongs_to_a_training_is_not_copied(source, tmp_path):
    for name in ("manifest.json", "counterpoint_state.json", "trainer_state.json", "rng_state_0.pth"):
        (tmp_path / "source" / name).write_text("{}")
    out = write_checkpoint(tmp_path / "out", source, source.tensor)
    assert {file.name for file in out.iterdir()} == {
        *("config.json", "generation_config.json", "model.safetensors", "tokenizer.json")
    }
