"""What a step holds: rows of several domains behind one index, micro-batches of one domain, advantages inside a domain.

Legend: B rows of a batch, F reward functions, T tokens.
"""

from bisect import bisect_right
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate, zip_longest
from typing import Any

import torch
from datasets import Dataset, DatasetDict, IterableDatasetDict
from torch import nn
from trl.trainer.utils import split_pixel_values_by_grid, unsplit_pixel_values_by_grid

from counterpoint.domains.sampler import MixedRows
from counterpoint.errors import DomainError, RewardError, UnsupportedError, nearest
from counterpoint.rewards.values import LARGEST_PART

Rows = Any
"""A sequence of mappings from column to value: a list of rows or a ``datasets.Dataset``."""

Buffer = dict[str, Any]

DOMAIN_KEY = "domain_id"
"""Key of the ``[B]`` int64 tensor that names each row's domain in a generation buffer."""

PROMPT_KEY = "prompt_id"
"""Key of the ``[B]`` int64 tensor that is equal for completions of one prompt, and for no others of the buffer."""

SIGNAL_KEY = "signal"
"""Key of the ``[B]`` bool tensor that is true where completions of the row's prompt differ in reward."""

EPSILON = 1e-4
"""TRL's own constant beside a standard deviation, kept so that one domain alone reproduces TRL."""


# Rows


@dataclass(frozen=True)
class DomainRows:
    """Rows of all domains behind one index, so that columns of different domains need no common type.

    ``index`` is what TRL iterates; its one column holds places over all domains. It is called ``prompt`` because that
    is the column that TRL keeps under ``remove_unused_columns=True``.
    """

    rows: Mapping[str, Rows]
    unnamed: bool = False
    """Whether the rows have no domain at all; then they stand under one empty name."""

    @property
    def domains(self) -> tuple[str, ...]:
        """Names of the domains in the order of the index."""
        return tuple(self.rows)

    @property
    def sizes(self) -> dict[str, int]:
        """Number of rows of each domain."""
        return {name: len(rows) for name, rows in self.rows.items()}

    @property
    def pictured(self) -> str | None:
        """A domain whose prompts have images, where any has."""
        return next((name for name, rows in self.rows.items() if _has_images(rows)), None)

    @property
    def mixed(self) -> dict[str, MixedRows]:
        """The rows of those domains whose sources have shares."""
        return {name: rows for name, rows in self.rows.items() if isinstance(rows, MixedRows)}

    @cached_property
    def index(self) -> Dataset:
        """The dataset for TRL."""
        return Dataset.from_dict({"prompt": range(self._ends[-1])})

    @cached_property
    def _ends(self) -> list[int]:
        return list(accumulate(self.sizes.values()))

    def place(self, example: Mapping[str, Any]) -> tuple[str, int]:
        """Domain and row number of an example of the index."""
        position = example["prompt"]
        at = bisect_right(self._ends, position)
        return self.domains[at], position - (self._ends[at - 1] if at else 0)

    def expand(self, places: Sequence[tuple[str, int]], columns: Collection[str] | None = None) -> list[dict[str, Any]]:
        """The rows at ``places`` with a column ``domain`` where they have none, all with the same keys.

        A column that a domain lacks is None, but for the prompt, which an environment may give.

        Args:
            columns: all that is kept; everything by default.
        """
        named: list[dict[str, Any]] = [{} if self.unnamed else {"domain": name} for name, _ in places]
        full = [base | self.rows[name][row] for base, (name, row) in zip(named, places, strict=True)]
        keys = sorted({key for row in full for key in row if columns is None or key in columns})
        return [{key: row.get(key) for key in keys if key in row or key != "prompt"} for row in full]


def combine_domains(
    data: Dataset | Mapping[str, Rows] | None,
    where: str = "train_dataset",
    *,
    needs_prompt: bool = True,
    alone: str = "",
) -> DomainRows:
    """One :class:`DomainRows` from a dataset with a ``domain`` column or a mapping from domain to rows.

    Args:
        data: the rows.
        where: what messages call them.
        needs_prompt: whether every row needs a prompt; False where an environment gives it.
        alone: the only domain there can be, to which rows without a ``domain`` column then belong.

    Raises:
        DomainError: no ``domain`` or ``prompt`` column, an empty domain, a stream, or chat and plain prompts mixed.
    """
    if data is None:
        raise DomainError(f"{where}: none is given. {_NO_ROWS if needs_prompt else _NO_ROWS_OF_AN_ENVIRONMENT}")
    if isinstance(data, DatasetDict | IterableDatasetDict):
        raise DomainError(
            f"{where}: a {type(data).__name__} holds splits ({', '.join(map(str, data))}), and splits are no domains. "
            f"Pass one of them, such as data['{next(iter(data), 'train')}'] with a 'domain' column, or a plain mapping "
            "from domain to dataset."
        )
    rows = dict(data) if isinstance(data, Mapping) else _split(data, where, alone)
    if not rows:
        raise DomainError(f"{where}: no domains. Give a mapping from domain to rows, or rows with a 'domain' column.")
    kinds: dict[str, str] = {}
    pictured: dict[bool, str] = {}
    for name, domain_rows in rows.items():
        here = f"{where}[{name!r}]"
        if not hasattr(domain_rows, "__len__") or not hasattr(domain_rows, "__getitem__"):
            raise DomainError(f"{here}: {_stream(domain_rows)}")
        if len(domain_rows) == 0:
            raise DomainError(f"{here}: the domain has no rows. Give it some or leave it out.")
        pictured[_has_images(domain_rows)] = name
        # all rows of a Dataset have the same columns and types, and reading one may decode an image
        for i, row in enumerate([domain_rows[0]] if isinstance(domain_rows, Dataset) else domain_rows):
            if needs_prompt and "prompt" not in row:
                raise DomainError(f"{here}: row {i} has no 'prompt' column; it has {sorted(row)}.")
            kinds.setdefault("plain text" if isinstance(row.get("prompt"), str) else "messages", name)
    if len(kinds) > 1:
        raise DomainError(
            f"{where}: prompts of {kinds['plain text']!r} are plain text and those of {kinds['messages']!r} are chat "
            "messages. One batch holds one kind: give all domains a chat template, or none (chat: false)."
        )
    if len(pictured) > 1:
        raise DomainError(
            f"{where}: prompts of {pictured[True]!r} have images and those of {pictured[False]!r} have none. TRL has "
            "no batches of both: train them one after the other, or give every prompt an image."
        )
    return DomainRows(rows)


_NO_ROWS = "Give a mapping from domain to rows, or rows with a 'domain' column."
_NO_ROWS_OF_AN_ENVIRONMENT = (
    "Even where the environment makes every prompt, rows say which domain a step's prompts belong to. Give each domain "
    "a few rows that the environment may ignore, such as {'game': [{'level': 1}, {'level': 2}]}."
)


def held_out_rows(data: Any, where: str, domains: Sequence[str], *, any_domain: bool, needs_prompt: bool) -> DomainRows:
    """Rows to evaluate, which belong to ``domains``.

    Args:
        any_domain: whether rows may have no domain, because no reward asks for it.

    Raises:
        DomainError: as :func:`combine_domains`, or a domain that is none of ``domains``.
    """
    alone = domains[0] if len(domains) == 1 else ""
    if isinstance(data, Dataset) and "domain" not in data.column_names and any_domain and not alone:
        return replace(combine_domains({"": data}, where, needs_prompt=needs_prompt), unnamed=True)
    rows = combine_domains(data, where, needs_prompt=needs_prompt, alone=alone)
    if unknown := sorted(set(rows.domains) - set(domains)):
        raise DomainError(f"{where}: {unknown[0]!r} is no domain of train_dataset; {nearest(unknown[0], domains)}")
    return rows


def _has_images(rows: Rows) -> bool:
    return bool({"image", "images"} & {*rows[0]})


def _stream(data: Any) -> str:
    return (
        f"rows must be a datasets.Dataset or a list, found {type(data).__name__}. Streams cannot be used: exact shares "
        "need rows that can be indexed."
    )


def _split(data: Any, where: str, alone: str) -> dict[str, Rows]:
    if not isinstance(data, Dataset):
        raise DomainError(
            f"{where}: expected a datasets.Dataset with a 'domain' column or a mapping from domain to rows; "
            f"{_stream(data)}"
        )
    if "domain" not in data.column_names:
        if alone:
            return {alone: data}
        raise DomainError(
            f"{where}: no 'domain' column; it has {data.column_names}. Add one that names each row's domain, or pass "
            "a mapping from domain to dataset."
        )
    positions: dict[str, list[int]] = {}
    for i, name in enumerate(data["domain"]):
        positions.setdefault(name, []).append(i)
    return {name: data.select(index) for name, index in positions.items()}


# Micro-batches


def domain_of(micro_batch: Buffer) -> int:
    """The one domain id of a domain-pure micro-batch."""
    return int(micro_batch[DOMAIN_KEY][0])


def scored_tokens(micro_batch: Buffer) -> torch.Tensor:
    """[B, T]: 1 for the tokens that TRL's loss sums over."""
    mask: torch.Tensor = micro_batch["completion_mask"]
    return mask if micro_batch.get("tool_mask") is None else mask * micro_batch["tool_mask"]


def regroup(
    buffer: Sequence[Buffer], steps: Sequence[Sequence[int]] | None = None, *, halves: bool = False
) -> list[Buffer]:
    """The rows of ``buffer`` as equally many, equally large micro-batches of one domain each.

    Rows keep their order inside a domain; micro-batches of a domain lie next to each other inside an optimizer step, in
    the order of domain ids.

    Args:
        buffer: micro-batches of B rows each: ``[B, ...]`` tensors or lists of length B; 0-d tensors belong to all rows.
        steps: for every optimizer step that the buffer covers, the number of micro-batches of each domain id; None for
            a buffer that lies inside one step.
        halves: order a domain's rows by prompt, so that its micro-batches at even and at odd places of a step hold
            different prompts (one prompt lies in both where a half is no whole number of them).

    Raises:
        AssertionError: rows that do not fill whole micro-batches, or not the steps; the quota sampler prevents this.
    """
    rows: Buffer = split_pixel_values_by_grid(_concatenate(buffer))  # images by row, as TRL itself cuts a batch
    _check_rows(rows)
    size = rows[DOMAIN_KEY].shape[0] // len(buffer)
    chunks = {domain_id: _chunks(rows, domain_id, size, halves) for domain_id in rows[DOMAIN_KEY].unique().tolist()}
    arrange = _in_halves if halves else list
    if steps is None:
        return [_select(rows, index_B) for domain_id in sorted(chunks) for index_B in arrange(chunks[domain_id])]
    ordered = []
    for counts in steps:
        for domain_id, count in enumerate(counts):
            own = chunks.get(domain_id, [])
            assert len(own) >= count, f"domain {domain_id}: {len(own)} micro-batches left, a step needs {count}"
            ordered += arrange(own[:count])
            chunks[domain_id] = own[count:]
    assert not any(chunks.values()), "rows are left over after the last step"
    return [_select(rows, index_B) for index_B in ordered]


def _chunks(rows: Buffer, domain_id: int, size: int, by_prompt: bool) -> list[torch.Tensor]:
    index_B = (rows[DOMAIN_KEY] == domain_id).nonzero().squeeze(1)
    if by_prompt:
        index_B = index_B[rows[PROMPT_KEY][index_B].argsort(stable=True)]
    assert len(index_B) % size == 0, f"domain {domain_id}: {len(index_B)} rows do not fill micro-batches of {size}"
    return list(index_B.split(size))


def _in_halves(chunks: list[torch.Tensor]) -> list[torch.Tensor]:
    """The first half of ``chunks`` at even places, the second at odd ones."""
    middle = (len(chunks) + 1) // 2
    return [chunk for pair in zip_longest(chunks[:middle], chunks[middle:]) for chunk in pair if chunk is not None]


def _concatenate(buffer: Sequence[Buffer]) -> Buffer:
    first = buffer[0]
    return {
        key: value
        if _is_shared(value)
        else torch.cat([part[key] for part in buffer])
        if isinstance(value, torch.Tensor)
        else [item for part in buffer for item in part[key]]
        for key, value in first.items()
    }


def _check_rows(rows: Buffer) -> None:
    """Refuses what could not be cut by completion; TRL has more kinds of images with every version."""
    num_rows = rows[DOMAIN_KEY].shape[0]
    for key, value in rows.items():
        if value is not None and not _is_shared(value) and len(value) != num_rows:
            raise UnsupportedError(
                f"{key!r} of this model's batches has {len(value)} rows for {num_rows} completions, so nobody can say "
                "which belong to which domain. Train with text alone, or with another vision-language model."
            )


def _is_shared(value: Any) -> bool:
    """Whether all rows have the one value: a number of the batch, or nothing at all."""
    return value is None or (isinstance(value, torch.Tensor) and value.ndim == 0)


def _select(rows: Buffer, index_B: torch.Tensor) -> Buffer:
    chosen = index_B.tolist()
    cut = {
        key: value
        if _is_shared(value)
        else value[index_B]
        if isinstance(value, torch.Tensor)
        else [value[i] for i in chosen]
        for key, value in rows.items()
    }
    if cut.get("num_images") is not None and not any(cut["num_images"]):
        # a micro-batch of a domain without images, in a batch that has some: to the model it is text
        return {key: value for key, value in cut.items() if key not in _IMAGES}
    return unsplit_pixel_values_by_grid(cut)


def merge_rows(first: Buffer, second: Buffer, index: Sequence[int], pad_token_id: int) -> Buffer:
    """The rows ``index`` of two batches of text, the second behind the first, padded to one width."""
    both = ({**first}, {**second})
    for key, value in first.items():
        if isinstance(value, torch.Tensor) and value.ndim == 2:
            width = max(value.shape[1], second[key].shape[1])
            for batch in both:
                missing = width - batch[key].shape[1]
                sides = (missing, 0) if key.startswith("prompt") else (0, missing)
                fill = {"prompt_ids": pad_token_id, "completion_ids": pad_token_id, "tool_mask": 1}.get(key, 0)
                batch[key] = nn.functional.pad(batch[key], sides, value=fill)
    return _select(_concatenate(both), torch.tensor(index, device=first[DOMAIN_KEY].device))


_IMAGES = (
    *("pixel_values", "image_grid_thw", "image_position_ids", "pixel_attention_mask", "spatial_shapes", "image_sizes"),
    *("num_images", "num_tiles"),
)
"""Keys of a batch that only images have."""


# Advantages
#
# TRL's scale_rewards="group" and "none" never look across prompts, so nothing changes there. "batch" and the last step
# of multi_objective_aggregation="normalize_then_sum" divide by one standard deviation over the whole batch: a domain
# with wide rewards (a chat score) would shrink one with narrow rewards (0/1 math). Here the batch means the domain's.


def total_rewards(rewards_BF: torch.Tensor, weights_F: torch.Tensor) -> torch.Tensor:
    """Weighted sum of reward functions ``[B]``; NaN where every function returned none."""
    total_B = (rewards_BF * weights_F.to(rewards_BF)).nansum(dim=1)
    return total_B.masked_fill(rewards_BF.isnan().all(dim=1), torch.nan)


def check_size(rewards_BF: torch.Tensor, weights_F: torch.Tensor, names: Sequence[str]) -> None:
    """Refuses rewards whose squares would leave float32: every advantage of their domain would be zero.

    Raises:
        RewardError: a reward times its weight is larger than ``LARGEST_PART``, naming the function.
    """
    largest_F = (rewards_BF * weights_F.to(rewards_BF)).abs().nan_to_num(nan=0.0).amax(dim=0)
    for name, largest in zip(names, largest_F.tolist(), strict=True):
        if largest > LARGEST_PART:
            raise RewardError(
                f"reward {name!r} gives {largest:g} with its weight; it may not exceed {LARGEST_PART:g}. Scale the "
                "reward, or give it a smaller weight."
            )


def nanstd(values_B: torch.Tensor) -> torch.Tensor:
    """Unbiased standard deviation of the finite entries, a 0-d tensor; 0 when there are fewer than two."""
    finite = values_B[~values_B.isnan()]
    return finite.std() if len(finite) > 1 else values_B.new_zeros(())


def rescale_per_domain(
    advantages_B: torch.Tensor, rewards_B: torch.Tensor, domain_B: torch.Tensor, *, normalised_sum: bool
) -> torch.Tensor:
    """Advantages ``[B]`` with the batch's statistics replaced by the domain's.

    Args:
        advantages_B: TRL's advantages, divided by the standard deviation of the whole batch.
        rewards_B: total rewards (NaN where unscorable).
        domain_B: int64 domain ids.
        normalised_sum: True for ``normalize_then_sum``, whose last step also centres over the batch; there the
            advantages ``a = (r - mean) / (std + EPSILON)`` are all that is known of the sums r. Inside the domain
            ``(r - mean_d) / (std_d + EPSILON)`` is ``(a - mean_d(a)) / (std_d(a) + 1 - std(a))``.
    """
    scored_B = ~rewards_B.isnan()
    result = torch.zeros_like(advantages_B)
    batch_std = nanstd(rewards_B) + EPSILON
    rest = 1 - nanstd(advantages_B[scored_B])
    for domain_id in domain_B.unique():
        own_B = (domain_B == domain_id) & scored_B
        if normalised_sum:
            values = advantages_B[own_B]
            result[own_B] = (values - values.mean()) / (nanstd(values) + rest)
        else:
            result[own_B] = advantages_B[own_B] * batch_std / (nanstd(rewards_B[own_B]) + EPSILON)
    return result
