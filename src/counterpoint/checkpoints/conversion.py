"""How the tensors of a checkpoint become the parameters of a model, by transformers' own conversion.

A checkpoint may keep apart what a model holds in one parameter (experts, gate and up), or under another name
(``embed_out``). Here both directions are one table of bundles: some tensors on the disk that are some parameters.
"""

import copy
import dataclasses
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from counterpoint.anatomy import Anatomy, Place, path_of, plain_name
from counterpoint.checkpoints.reading import Checkpoint
from counterpoint.errors import UnsupportedError


@dataclass(frozen=True)
class Bundle:
    """Tensors on the disk (``stored``) that hold exactly the parameters ``params``, in any order of elements."""

    stored: tuple[str, ...]
    params: tuple[str, ...]
    converter: Any = None
    """transformers' converter with the source pattern of each stored tensor; None where only the name differs."""
    patterns: tuple[str, ...] = ()

    def to_model(self, read: Callable[[str], Tensor]) -> dict[str, Tensor]:
        """The parameters, from ``read(name)`` of every stored tensor."""
        if self.converter is None:
            return {self.params[0]: read(self.stored[0])}
        converter = copy.deepcopy(self.converter)
        for name, pattern in zip(self.stored, self.patterns, strict=True):
            converter.add_tensor(self.params[0], name, pattern, read(name))
        found = converter.convert(self.params[0])
        return {name: value[0] if isinstance(value, list) else value for name, value in found.items()}

    def to_disk(self, values: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
        """The stored tensors, of these ``shapes``, that ``values`` of the parameters become: element by element."""
        if self.converter is None:
            return {self.stored[0]: values[self.params[0]].reshape(shapes[self.stored[0]])}
        sizes = [torch.Size(shapes[name]).numel() for name in self.stored]
        numbers_of = dict(zip(self.stored, torch.arange(sum(sizes)).split(sizes), strict=True))
        numbers = self.to_model(lambda name: numbers_of[name].view(shapes[name]))
        first = next(iter(values.values()))
        flat = torch.empty(sum(sizes), dtype=first.dtype)
        for name, places in numbers.items():
            flat[places.flatten()] = values[name].flatten().to(flat)
        parts = flat.split(sizes)
        return {name: part.view(shapes[name]) for name, part in zip(self.stored, parts, strict=True)}


class Conversion:
    """Which stored tensors are which parameters of a model; reads no weights.

    Args:
        model: a model of transformers, on any device (``meta`` too).
        shapes: of the stored tensors.

    ``params`` are the model's parameters and buffers by plain name, ``by_stored`` and ``by_param`` the bundle of a
    stored tensor or of one of them. Stored tensors that the model has no place for are in neither.
    """

    def __init__(self, model: Any, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self.shapes = shapes
        self.params = {plain_name(name): tensor for name, tensor in model.state_dict(keep_vars=True).items()}
        self.by_stored: dict[str, Bundle] = {}
        self.by_param: dict[str, Bundle] = {}
        for bundle in _bundles(model, set(self.params), shapes):
            self.by_stored |= dict.fromkeys(bundle.stored, bundle)
            self.by_param |= dict.fromkeys(bundle.params, bundle)

    def bundles(self, stored: Iterable[str], model: str) -> list[Bundle]:
        """The bundles of these stored tensors, each once.

        Raises:
            UnsupportedError: a tensor that the model (called ``model``) has no parameter for.
        """
        found: dict[int, Bundle] = {}
        for name in stored:
            if name not in self.by_stored:
                raise UnsupportedError(
                    f"{name} changed between the checkpoints, and {model} has no parameter that holds it, by name or "
                    f"by transformers' conversion (it has {next(iter(self.params))}, ...). Give the model class "
                    "that the checkpoints were saved with."
                )
            found.setdefault(id(self.by_stored[name]), self.by_stored[name])
        return list(found.values())

    def anatomy(self, inside: Anatomy, outside: Anatomy) -> Anatomy:
        """The anatomy of the stored tensors: ``inside`` is the model's, ``outside`` what their own names tell."""
        found = Anatomy(layers=inside.layers)
        for name in self.shapes:
            path, bundle = path_of(name), self.by_stored.get(name)
            if bundle is None or path_of(bundle.params[0]) not in inside.places:  # a buffer is no parameter
                found.places[path] = outside.place(name)
                continue
            place = inside.place(bundle.params[0])
            if bundle.converter is None:
                found.places[path] = place
                if axis := inside.neuron_axis(bundle.params[0]):
                    found.neurons[path] = axis
                if (layer := inside.output_layer(bundle.params[0])) is not None:
                    found.outputs[path] = layer
            else:
                found.places[path] = _part(place, name, bundle)
                # A dense MLP that is stored in other pieces still has its neurons where names and shapes say.
                if inside.neuron_axis(bundle.params[0]) and (axis := outside.neuron_axis(name)):
                    found.neurons[path] = axis
        return found


def _part(place: Place, name: str, bundle: Bundle) -> Place:
    """Where one of several stored tensors lies: expert i where there is one tensor for every expert."""
    pattern = bundle.patterns[bundle.stored.index(name)]
    alike = [s for s, p in zip(bundle.stored, bundle.patterns, strict=True) if p == pattern]
    if place.experts == len(alike) > 1:
        return Place(place.layer, f"{place.block}.{alike.index(name)}")
    return Place(place.layer, place.block)


def _bundles(model: Any, params: set[str], shapes: Mapping[str, tuple[int, ...]]) -> Iterable[Bundle]:
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import (
        WeightConverter,
        WeightRenaming,
        dot_natural_key,
        rename_source_key,
    )

    rules = get_model_conversion_mapping(model) if hasattr(model, "base_model_prefix") else []
    renamings = [rule for rule in rules if isinstance(rule, WeightRenaming)]
    converters = [rule for rule in rules if isinstance(rule, WeightConverter)]
    by_pattern = {pattern: rule for rule in converters for pattern in rule.source_patterns}
    prefix, known = getattr(model, "base_model_prefix", None), dict.fromkeys(params, True)
    collected: dict[str, list[tuple[str, str | None]]] = {}
    for name in sorted(shapes, key=dot_natural_key):
        target, pattern = rename_source_key(name, renamings, converters, prefix, known)
        if target not in params and name in params:
            target, pattern = name, None
        if target in params:
            collected.setdefault(target, []).append((name, pattern))
    for target, found in collected.items():
        stored = tuple(name for name, _ in found)
        patterns = tuple(pattern or "" for _, pattern in found)
        if not patterns[0]:
            yield Bundle(stored[:1], (target,))
            continue
        bundle = Bundle(stored, (target,), by_pattern[patterns[0]], patterns)
        try:
            empty = bundle.to_model(lambda name: torch.empty(shapes[name], device="meta"))
        except (RuntimeError, ValueError) as error:
            raise UnsupportedError(
                f"The shapes of {stored[0]} and {len(stored) - 1} more do not make one {target}, which the model has "
                f"instead ({str(error).splitlines()[0]}). Give the model class that the checkpoint was saved with."
            ) from error
        yield dataclasses.replace(bundle, params=tuple(empty))


def described_model(folder: Path) -> Any:
    """The model that a folder's ``config.json`` describes, on the meta device; None where transformers builds none."""
    import transformers

    from counterpoint.models import MODEL_FAULTS, meta_model

    if not (folder / "config.json").exists():
        return None
    try:
        config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False)
        own = getattr(transformers, (config.architectures or [""])[0], None)
        return meta_model(config, own if hasattr(own, "_from_config") else None)
    except MODEL_FAULTS:
        return None  # custom code, or a configuration of another version: names have to do


def model_of(checkpoint: Checkpoint) -> Any:
    """The model of a checkpoint on the meta device; see ``described_model``."""
    return next((model for folder in checkpoint.folders if (model := described_model(folder)) is not None), None)


def anatomy_of(checkpoint: Checkpoint) -> Anatomy:
    """The anatomy of a checkpoint's tensors: of the model that its configuration describes, else of their names."""
    outside, model = Anatomy.of(checkpoint.shapes), model_of(checkpoint)
    if model is None:
        return outside
    return Conversion(model, checkpoint.shapes).anatomy(Anatomy.of(model), outside)
