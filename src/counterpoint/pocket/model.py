"""The pocket model: a Llama of a few million parameters, small enough to ship and to train on two cores."""

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from counterpoint.pocket import model_path

__all__ = ["Shape", "load", "model_path", "new_model", "round_to_half", "save_base"]


@dataclass(frozen=True)
class Shape:
    """Sizes of a pocket model."""

    hidden: int = 192
    layers: int = 4
    heads: int = 6
    inner: int = 512
    longest: int = 128
    """The most positions it can read."""


def new_model(shape: Shape, tokenizer: PreTrainedTokenizerBase, seed: int) -> LlamaForCausalLM:
    """A Llama with random float32 weights from ``seed`` and tied embeddings."""
    config = LlamaConfig(
        architectures=[LlamaForCausalLM.__name__],  # TRL loads a model's path by it
        vocab_size=len(tokenizer),
        hidden_size=shape.hidden,
        intermediate_size=shape.inner,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.heads,
        max_position_embeddings=shape.longest,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        dtype="float32",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
    model.generation_config = GenerationConfig(
        max_new_tokens=24,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    return model


def round_to_half(model: LlamaForCausalLM) -> None:
    """Rounds every weight to its nearest float16, in place, so that saving it as float16 loses nothing."""
    with torch.no_grad():
        for param in model.parameters():
            param.copy_(param.half())


def save_base(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Writes a model that ``round_to_half`` has rounded, its settings and its tokenizer as a Hugging Face folder.

    The weights lie in the file as float16 to halve its size. ``config.json`` says float32, so they are loaded, exactly,
    as that.
    """
    folder.mkdir(parents=True, exist_ok=True)
    model.config.save_pretrained(folder)
    model.generation_config.save_pretrained(folder)
    # A tokenizer that has padded a batch would write that batch's padding into its file.
    tokenizer.backend_tokenizer.no_padding()
    tokenizer.save_pretrained(folder)
    weights = {name: param.detach().half().contiguous() for name, param in model.named_parameters()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "model.safetensors").chmod(0o644)


def load(folder: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model, in float32, and the tokenizer of a folder, from the disk alone."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
    return model.eval(), AutoTokenizer.from_pretrained(folder, local_files_only=True)
