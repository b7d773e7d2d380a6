"""Finds the safetensors files of a checkpoint folder and reads tensors from them, whole or some rows."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from counterpoint.anatomy import plain_name
from counterpoint.errors import ModelError
from counterpoint.inputs import kind_of, read_json, reading

INDEX = "model.safetensors.index.json"
WEIGHTS = "model.safetensors"
_SHARD = re.compile(r"^(.*)-(\d{5})-of-(\d{5})\.safetensors$")
_INSIDE_NAME = re.compile(r"[^/\\\0]{1,255}$")
_MAX_NAME = 500
_AGAIN = "Save, copy or download the checkpoint again."
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".distcp")
_NOT_MODELS = ("optimizer.pt", "scheduler.pt", "training_args.bin", "scaler.pt")
_EMBEDDING = re.compile(r"embed|wte|wpe")
_EIGHT_BITS = (torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz)
_SCALE = re.compile(r"_scale(?:_inv)?$")
_BUFFERS = re.compile(r"(?:rotary_emb\.inv_freq|attn\.masked_bias|attention\.masked_bias)$")
"""Tensors of old checkpoints that are computed, not trained."""


@dataclass(frozen=True)
class Stored:
    """One tensor in a safetensors file, which is mapped into memory: nothing is read before it is asked for."""

    part: Any
    """safetensors' slice of the file; threads may share it."""
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        """Bytes of the tensor."""
        return math.prod(self.shape) * self.dtype.itemsize

    def read(self) -> Tensor:
        """A copy of the whole tensor."""
        return self.part[...].clone()

    def rows(self, start: int, stop: int) -> Tensor:
        """A copy of the slices ``start`` to ``stop`` along dimension 0: who changes it does not change the mapping."""
        return self.part[start:stop].clone()


def find_files(folder: Path) -> list[Path]:
    """The safetensors files of the model in ``folder``.

    Raises:
        ModelError: none there, only pickles, missing shards, or files that are not shards of one model.
    """
    index = folder / INDEX
    if kind_of(index):
        return _indexed(folder, index)
    if kind_of(folder / WEIGHTS):
        return [folder / WEIGHTS]
    found = sorted(folder.glob("*.safetensors"))
    if not found:
        raise _no_weights(folder)
    shards = [match for path in found if (match := _SHARD.match(path.name))]
    if len(shards) == len(found):
        return _all_shards(folder, found, shards)
    if len(found) > 1:
        names = ", ".join(path.name for path in found[:6])
        raise ModelError(
            f"{folder}: {len(found)} safetensors files and no {INDEX} that says which belong to the model ({names}). "
            "Save the model with save_pretrained, or leave one file."
        )
    return found


def _indexed(folder: Path, index: Path) -> list[Path]:
    shards = read_json(index, ModelError, "index of a checkpoint", _AGAIN).get("weight_map")
    if not isinstance(shards, dict) or not shards:
        raise ModelError(f"{index}: a weight_map of tensors to files was expected, found {shards!r:.60}. {_AGAIN}")
    for name in shards.values():
        if not isinstance(name, str) or not _INSIDE_NAME.match(name) or name.startswith(".."):
            raise ModelError(f"{index}: weight_map names {name!r:.60}, which is no file beside it. {_AGAIN}")
    names = sorted(set(shards.values()))
    _refuse_missing(folder, [name for name in names if kind_of(folder / name) != "file"], len(names))
    return [folder / name for name in names]


def _all_shards(folder: Path, found: list[Path], shards: Sequence[re.Match[str]]) -> list[Path]:
    stem, count = shards[0][1], shards[0][3]
    wanted = [f"{stem}-{i:05d}-of-{count}.safetensors" for i in range(1, int(count) + 1)]
    _refuse_missing(folder, sorted(set(wanted) - {path.name for path in found}), len(wanted))
    return found


def _refuse_missing(folder: Path, missing: list[str], total: int) -> None:
    if missing:
        listed = ", ".join(missing[:4]) + (f" and {len(missing) - 4} more" if len(missing) > 4 else "")
        raise ModelError(
            f"{folder}: {len(missing)} of {total} shards of the model are missing: {listed}. Copy or download the "
            "checkpoint again."
        )


def _no_weights(folder: Path) -> ModelError:
    files = sorted(path.name for path in folder.iterdir() if path.is_file())
    pickles = [name for name in files if name.endswith(_PICKLES) and name not in _NOT_MODELS]
    if pickles:
        return ModelError(
            f"{folder}: only pickled weights ({', '.join(pickles[:3])}), and a pickle can run any code when read. "
            "Convert it where you trust it: AutoModelForCausalLM.from_pretrained(folder).save_pretrained(new_folder) "
            "writes safetensors."
        )
    found = ", ".join(files[:8]) or "no file"
    return ModelError(
        f"{folder}: no .safetensors weights there, found {found}. Give a checkpoint folder that save_pretrained wrote."
    )


def read_headers(folder: Path, files: Sequence[Path]) -> dict[str, Stored]:
    """Every tensor of the files by plain name; the first of two files that hold the same name counts.

    Raises:
        ModelError: a file that is no safetensors or is cut off, or a type that torch cannot hold.
    """
    stored: dict[str, Stored] = {}
    for path in files:
        for name, tensor in read_header(path).items():
            plain = plain_name(name)
            if not _BUFFERS.search(plain):
                stored.setdefault(plain, tensor)
    if not stored:
        raise ModelError(f"{folder}: its safetensors files hold no tensor. Save or download the checkpoint again.")
    _refuse_scaled(folder, stored)
    return stored


def _refuse_scaled(folder: Path, stored: Mapping[str, Stored]) -> None:
    """Numbers of 8 bits that a factor beside them makes weights of are no weights by themselves."""
    coded = next((name for name, one in stored.items() if one.dtype in _EIGHT_BITS), None)
    scale = next((name for name in stored if _SCALE.search(name)), None)
    if coded and scale:
        raise ModelError(
            f"{folder}: {coded} is quantized to {str(stored[coded].dtype).removeprefix('torch.')}, with factors in "
            f"tensors such as {scale}; such weights are not read. Load the model dequantized (in transformers: "
            "quantization_config=FineGrainedFP8Config(dequantize=True)), save_pretrained it in bfloat16, and give that "
            "folder."
        )


def read_header(path: Path) -> dict[str, Stored]:
    """Every tensor of one safetensors file by its name there; see ``read_headers``."""
    if (found := kind_of(path)) != "file":
        raise ModelError(f"{path}: weights are read from a file, and this is a {found}. {_AGAIN}")
    with reading(path, ModelError, f"It is cut off or no safetensors file. {_AGAIN}", also=(SafetensorError,)):
        file = safe_open(path, framework="pt")  # checks the header: names, shapes, and bytes that fit the file
        return {name: _stored(path, name, file.get_slice(name)) for name in file.keys()}  # noqa: SIM118 (no mapping)


def _stored(path: Path, name: str, part: Any) -> Stored:
    if len(name) > _MAX_NAME:
        raise ModelError(f"{path}: the name of a tensor has {len(name)} characters: {name[:60]}... {_AGAIN}")
    shape = tuple(part.get_shape())
    try:
        dtype = part[:0].dtype if shape else part[...].dtype
    except RuntimeError as error:  # several numbers in one byte, which torch has no shape for
        raise ModelError(
            f"{path}: {name} has the type {part.get_dtype()}, which is not read. Save the checkpoint as bfloat16 or "
            "float32."
        ) from error
    return Stored(part, dtype, shape)


def model_order(name: str) -> tuple[int, list[str | int]]:
    """Sorts names as a model has them, numbers by size: embedding, layers, final norm, output projection."""
    natural = [int(part) if i % 2 else part for i, part in enumerate(re.split(r"(\d+)", name))]
    if len(natural) > 1:  # in a layer
        return 1, natural
    return (2 if "head" in name or "embed_out" in name else 0 if _EMBEDDING.search(name) else 1), natural
