"""Writes a checkpoint shard by shard, whole or not at all: a new model never needs to be in memory at once."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from safetensors.torch import save_file

from counterpoint.checkpoints.reading import Checkpoint
from counterpoint.disk import check_disk, disk_errors
from counterpoint.errors import ModelError

SHARD_BYTES = 1 << 30
"""Largest shard, and so the memory that writing needs; a larger tensor is a shard of its own."""

_WEIGHTS = (".safetensors", ".safetensors.index.json", ".bin", ".pt", ".pth")
_STATE = ("adapter_config.json", "trainer_state.json", "counterpoint_state.json", "manifest.json", "README.md")


def check_output(out: Path, source: Checkpoint) -> None:
    """Refuses, before any work, a folder that is taken or a disk that cannot hold a copy of ``source``.

    Raises:
        ModelError: ``out`` exists and is not an empty folder.
        RunError: its disk is full.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ModelError(f"{out}: is there already, and nothing is overwritten. Give another output folder.")
    check_disk(out, sum(size for _, size in _sizes(source)))


def write_checkpoint(
    out: Path,
    source: Checkpoint,
    tensor_of: Callable[[str], torch.Tensor],
    on_progress: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> Path:
    """Writes the folder ``out``: the files of ``source``, with ``tensor_of(name)`` for each of its tensors.

    It is written beside its place and renamed, so ``out`` holds a whole checkpoint or is not there. LoRA adapters are
    written merged.

    Args:
        out: a folder that is not there yet, or is empty.
        source: whose configuration, tokenizer, names, order and dtypes are kept.
        tensor_of: the tensor to write under a name of ``source``; it is cast to the dtype that ``source`` has there.
        on_progress: called with ``write``, tensors done and in total.

    Raises:
        ModelError: ``out`` is taken.
        RunError: the disk is full or cannot be written.
    """
    check_output(out, source)
    beside = out.with_name(f".{out.name}.tmp")
    with disk_errors(out):
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir(parents=True)
        _copy_files(source, beside)
        shards = list(_shards(source))
        index: dict[str, str] = {}
        for number, names in enumerate(shards, 1):
            file = "model.safetensors" if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
            tensors = {}
            for name in names:
                tensors[name] = tensor_of(name).to(source.dtypes[name]).contiguous()
                index[name] = file
                on_progress("write", len(index), len(source.names))
            save_file(tensors, beside / file, metadata={"format": "pt"})
        if len(shards) > 1:
            total = sum(size for _, size in _sizes(source))
            listing = {"metadata": {"total_size": total}, "weight_map": index}
            (beside / "model.safetensors.index.json").write_text(json.dumps(listing, indent=1), encoding="utf-8")
        if out.exists():
            out.rmdir()
        beside.rename(out)
    return out


def _sizes(source: Checkpoint) -> Iterator[tuple[str, int]]:
    for name in source.names:
        size = source.dtypes[name].itemsize
        for length in source.shapes[name]:
            size *= length
        yield name, size


def _shards(source: Checkpoint) -> Iterator[list[str]]:
    names: list[str] = []
    filled = 0
    for name, size in _sizes(source):
        if names and filled + size > SHARD_BYTES:
            yield names
            names, filled = [], 0
        names.append(name)
        filled += size
    if names:
        yield names


def _copy_files(source: Checkpoint, target: Path) -> None:
    """Configuration, tokenizer and the like; with adapters the base model's, under what the adapters bring along."""
    for folder in source.folders:
        for file in sorted(folder.iterdir()):
            if file.suffix in (".json", ".jinja", ".model", ".txt") and not _left_out(file.name):
                shutil.copyfile(file, target / file.name)


def _left_out(name: str) -> bool:
    return name.endswith(_WEIGHTS) or name in _STATE or name.startswith(("optimizer", "rng_state", "scheduler"))
