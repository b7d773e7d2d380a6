"""Checkpoints read one tensor, or a few rows, at a time: names and shapes come from headers, weights from the disk.

A checkpoint is a Hugging Face folder with safetensors (one file or shards) or with LoRA adapters, which are merged
tensor by tensor while they are read.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor

from counterpoint.checkpoints.files import Stored, find_files, model_order, read_headers
from counterpoint.checkpoints.lora import Adapters, read_adapters
from counterpoint.errors import ModelError
from counterpoint.inputs import kind_of, read_json, reading, refuse_devices
from counterpoint.models import ADAPTER_CONFIG, read_adapter_config
from counterpoint.pocket import model_path


class Checkpoint:
    """The tensors of one model on disk. Opening reads headers only; ``open_checkpoint`` makes it.

    Attributes:
        path: the folder.
        names: parameter names in model order, without the prefixes of wrappers.
        shapes: shape by name.
        dtypes: torch dtype by name; float32 for tensors that LoRA adapters change.
        tied: whether the model says that its output projection is its embedding.
        folders: where its other files (configuration, tokenizer) are: its own folder, after that of the base model
            where it is made of adapters.
    """

    def __init__(
        self,
        path: Path,
        stored: Mapping[str, Stored],
        tied: bool,
        adapters: Adapters | None = None,
        base_folders: Sequence[Path] = (),
    ) -> None:
        self.path = path
        self.tied = tied
        self.folders = (*base_folders, path)
        self._stored = dict(stored)
        self._adapters = adapters
        self.names = tuple(sorted(stored, key=model_order))
        self.shapes = {name: stored[name].shape for name in self.names}
        merged = adapters.changed if adapters else {}
        self.dtypes = {name: merged.get(name, stored[name].dtype) for name in self.names}

    def tensor(self, name: str) -> Tensor:
        """A fresh copy of one tensor, adapters merged in.

        Raises:
            KeyError: no tensor of that name.
        """
        shape = self.shapes[name]
        return self.rows(name, 0, shape[0]) if shape else self._stored[name].read()

    def rows(self, name: str, start: int, stop: int) -> Tensor:
        """A fresh copy of the slices ``start`` to ``stop`` along dimension 0 of a tensor that has dimensions."""
        rows = self._stored[name].rows(start, stop)
        return self._adapters.merge(name, rows, start) if self._adapters else rows

    def num_bytes(self, name: str) -> int:
        """Bytes that the tensor takes on disk, adapters not counted."""
        return self._stored[name].num_bytes


def open_checkpoint(path: str | Path) -> Checkpoint:
    """The checkpoint at ``path``: a folder, ``pocket``, or a hub id whose files are cached or can be fetched.

    Raises:
        ModelError: nothing there, a run instead of a checkpoint, no safetensors, pickles only, a missing shard, a file
            that is cut off or no safetensors, or adapters that cannot be merged exactly.
    """
    return _open(_folder(path), ())


def _open(folder: Path, above: tuple[Path, ...]) -> Checkpoint:
    """The checkpoint in ``folder``, which the adapters in the folders ``above`` build upon."""
    if kind_of(folder / ADAPTER_CONFIG):
        return _with_adapters(folder, above)
    with reading(folder, ModelError):
        files = find_files(folder)
    return Checkpoint(folder, read_headers(folder, files), _says_tied(folder))


def _with_adapters(folder: Path, above: tuple[Path, ...]) -> Checkpoint:
    config = read_adapter_config(folder)
    try:
        base_folder = _folder(config["base_model_name_or_path"], config.get("revision"))
        if base_folder.resolve() in (here := (*above, folder.resolve())):
            raise ModelError(f"{base_folder}: these adapters are their own base model")
        base = _open(base_folder, here)
    except ModelError as error:
        raise ModelError(
            f"{folder}: the adapters' base model cannot be read ({error}). Correct base_model_name_or_path in "
            f"{ADAPTER_CONFIG}."
        ) from error
    adapters = read_adapters(folder, config, base.dtypes, base.shapes)
    stored = {**base._stored, **adapters.replaced}
    tied = base.tied and not any(name in stored for name in adapters.heads)
    return Checkpoint(folder, stored, tied, adapters, base.folders)


def _folder(path: str | Path, revision: str | None = None) -> Path:
    if str(path) == "pocket":
        return model_path()
    folder = Path(path)
    if (found := kind_of(folder)) == "folder":
        refuse_devices(folder, ModelError)
        return _not_a_run(folder)
    if found:
        raise ModelError(f"{path}: this is a {found}. Give the folder that holds the model and its config.json.")
    if _looks_like_hub_id(str(path)):
        return _snapshot(str(path), revision)
    raise ModelError(f"{path}: no such folder. Give a checkpoint folder, `pocket`, or a hub id such as org/model.")


def _not_a_run(folder: Path) -> Path:
    checkpoints = folder / "checkpoints"
    if not (folder / "config.json").exists() and checkpoints.is_dir():
        found = sorted((p.name for p in checkpoints.iterdir()), key=model_order)
        hint = f"Give one of its checkpoints: {', '.join(f'checkpoints/{name}' for name in found)}."
        raise ModelError(f"{folder}: this is a run, not a checkpoint. {hint if found else 'It has no checkpoint yet.'}")
    return folder


def _looks_like_hub_id(path: str) -> bool:
    parts = path.split("/")
    return len(parts) == 2 and all(parts) and not path.startswith((".", "~"))


def _snapshot(hub_id: str, revision: str | None) -> Path:
    """The hub's copy of a model on this disk, fetched where it is not cached and the hub can be reached."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(hub_id, revision=revision, allow_patterns=["*.safetensors", "*.json"]))
    except (OSError, HfHubHTTPError, HFValidationError, LocalEntryNotFoundError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ModelError(
            f"{hub_id}: no such folder, and no model of that name is cached or could be fetched from the hub "
            f"({reason}). Give a checkpoint folder, or fetch the model where the hub can be reached."
        ) from error


def _says_tied(folder: Path) -> bool:
    file = folder / "config.json"
    config = read_json(file, ModelError, "configuration of a model") if kind_of(file) else {}
    nested = config.get("text_config")
    inside = nested.get("tie_word_embeddings", False) if isinstance(nested, dict) else False
    return bool(config.get("tie_word_embeddings", inside))
