"""Two checkpoints of one model, tensor by tensor, also where they call or keep their tensors otherwise.

    base, after = open_checkpoint("pocket"), open_checkpoint("runs/first/checkpoints/step-40")
    for name, before, now in compare(base, after):
        ...

Names differ where the published model has another modality as well and the trained one is its language model alone.
They are then matched by transformers' own conversion, and the other modality's tensors are left out.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

from counterpoint.anatomy import Anatomy
from counterpoint.checkpoints.conversion import Conversion, anatomy_of, model_of
from counterpoint.checkpoints.files import model_order
from counterpoint.checkpoints.reading import Checkpoint
from counterpoint.errors import ModelError

_EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "embed_in.weight")
_HEADS = ("lm_head.weight", "embed_out.weight")
_ESSENTIAL = ("embedding", "norm", "lm_head")
"""Blocks outside the layers that every state of one language model has."""


@dataclass(frozen=True)
class Comparison:
    """Two checkpoints of one architecture, tensor by tensor. Iterating gives ``(name, before, after)`` tensors.

    Every weight counts once: of a tied output projection and its embedding only the embedding is compared.
    """

    base: Checkpoint
    after: Checkpoint
    names: tuple[str, ...]
    """In model order, as ``named_by`` has them."""
    sources: Mapping[str, tuple[str, str]]
    """For each name the tensor's name in ``base`` and in ``after``; they differ where only one of them is tied, or
    where the two call their tensors otherwise."""
    named_by: Checkpoint
    left_out: tuple[str, ...] = ()
    """Tensors of one side that the other's model has no place for: a tower for images, a head that predicts further."""

    def __iter__(self) -> Iterator[tuple[str, Tensor, Tensor]]:
        for name in self.names:
            in_base, in_after = self.sources[name]
            yield name, self.base.tensor(in_base), self.after.tensor(in_after)

    def anatomy(self) -> Anatomy:
        """Where the compared tensors lie in the model."""
        return anatomy_of(self.named_by)

    def name_of(self, stored: str) -> str | None:
        """The name under which a tensor of ``after`` is compared: of a tied copy, its embedding's; None if left out."""
        if stored not in self._in_after and stored.endswith(_HEADS):
            stored = _embedding(self.after.names) or stored
        return self._in_after.get(stored)

    @cached_property
    def floats(self) -> tuple[str, ...]:
        """The tensors that training moves, on both sides; integers (quantized weights, indices) are left out."""
        return tuple(name for name in self.names if self.base.dtypes[self.sources[name][0]].is_floating_point)

    @cached_property
    def _in_after(self) -> dict[str, str]:
        return {in_after: name for name, (_, in_after) in self.sources.items()}


def compare(base: Checkpoint, after: Checkpoint, among: Sequence[Checkpoint] = ()) -> Comparison:
    """Pairs the tensors of two checkpoints; reads no weights.

    Args:
        base: before.
        after: after.
        among: checkpoints that are compared with the same base, so that all comparisons have the same names: where one
            of them has untied its output projection, that of the others is their embedding.

    Raises:
        ModelError: other names or shapes, or whole numbers on one side; the message names the first tensor that
            differs, in model order.
    """
    group = (base, after, *among)
    lead, own, left_out = base, {one: {name: name for name in one.names} for one in group}, set[str]()
    if len({frozenset(name for name in one.names if not name.endswith(_HEADS)) for one in group}) > 1:
        lead, own, left_out = _by_conversion(own)
    names = {name for one in group for name in own[one] if not (one.tied and name.endswith(_HEADS))} - left_out
    sources = {}
    for name in sorted(names, key=model_order):
        in_base, in_after = _source(own[base], name), _source(own[after], name)
        if in_base is None or in_after is None:
            raise _missing(base, after, name, in_base, in_after)
        if base.shapes[in_base] != after.shapes[in_after]:
            raise ModelError(
                f"These checkpoints have different shapes: {name} is {list(base.shapes[in_base])} in {base.path} and "
                f"{list(after.shapes[in_after])} in {after.path}. Compare checkpoints trained from one model."
            )
        types = base.dtypes[in_base], after.dtypes[in_after]
        if types[0].is_floating_point != types[1].is_floating_point:
            raise ModelError(
                f"One of these checkpoints holds whole numbers: {name} is {types[0]} in {base.path} and {types[1]} in "
                f"{after.path}. Compare checkpoints that are not quantized."
            )
        sources[name] = in_base, in_after
    return Comparison(base, after, tuple(sources), sources, lead, tuple(sorted(left_out, key=model_order)))


_Names = dict[str, str]
"""Name that is compared -> name of the tensor in one checkpoint."""


def _by_conversion(
    plain: dict[Checkpoint, _Names],
) -> tuple[Checkpoint, dict[Checkpoint, _Names], set[str]]:
    """The names of every checkpoint as those of the one with the fewest tensors, and what this one has no place for."""
    lead = min(plain, key=lambda one: (len(one.names), one.names))
    model = model_of(lead)
    if model is None:
        return next(iter(plain)), plain, set()
    of_lead, own, left_out = Conversion(model, lead.shapes), dict[Checkpoint, _Names](), set[str]()
    ignored = getattr(model, "_keys_to_ignore_on_load_unexpected", None) or ()
    for one in plain:
        conversion, anatomy = Conversion(model, one.shapes), anatomy_of(one)
        own[one] = {_name_in(lead, of_lead, one, conversion, stored): stored for stored in one.names}
        placeless = [name for name in own[one] if name not in lead.shapes and name not in conversion.by_stored]
        # A layer too many makes another model, unless transformers says that this one ignores it (DeepSeek's 61st).
        left_out |= {
            name
            for name in placeless
            if any(re.search(pattern, name) for pattern in ignored)
            or (anatomy.layer_of(name) is None and anatomy.module_of(name) not in _ESSENTIAL)
        }
    return lead, own, left_out


def _name_in(lead: Checkpoint, of_lead: Conversion, other: Checkpoint, of_other: Conversion, name: str) -> str:
    """What ``lead`` calls a tensor of ``other``; the same where it has none for these parameters."""
    bundle = of_other.by_stored.get(name)
    twin = of_lead.by_param.get(bundle.params[0]) if bundle else None
    if bundle is None or twin is None:
        return name
    if twin.patterns != bundle.patterns:
        raise ModelError(
            f"These checkpoints keep {bundle.params[0]} otherwise: as {_pieces(bundle.stored)} in {other.path} and as "
            f"{_pieces(twin.stored)} in {lead.path}. Save both alike: load each and "
            "save_pretrained(folder, save_original_format=False)."
        )
    return twin.stored[bundle.stored.index(name)]


def _pieces(stored: Sequence[str]) -> str:
    return stored[0] if len(stored) == 1 else f"{len(stored)} tensors ({stored[0]}, ...)"


def _source(own: _Names, name: str) -> str | None:
    """The checkpoint's tensor for ``name``: an output projection that is not there is the embedding."""
    if name in own or not name.endswith(_HEADS):
        return own.get(name)
    return _embedding(own.values())


def _embedding(names: Iterable[str]) -> str | None:
    return next((name for name in names if name.endswith(_EMBEDDINGS)), None)


def _missing(base: Checkpoint, after: Checkpoint, name: str, in_base: str | None, in_after: str | None) -> ModelError:
    here, there, found = (after, base, in_after) if in_base is None else (base, after, in_base)
    shape = f" {list(here.shapes[found])}" if found else ""
    return ModelError(
        f"These checkpoints are of different architectures: {found or name}{shape} is in {here.path} and not in "
        f"{there.path}. Compare checkpoints trained from one model."
    )
