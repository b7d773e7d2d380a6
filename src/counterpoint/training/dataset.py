"""One indexed dataset for TRL from a dataset with a ``domain`` column, or from one dataset per domain."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from datasets import Dataset

from counterpoint.errors import DomainError

Rows = Any
"""A sequence of mappings from column to value: a list of rows or a ``datasets.Dataset``."""


@dataclass(frozen=True)
class DomainRows:
    """Rows of all domains behind one index.

    ``index`` is what TRL iterates (columns ``prompt``, ``domain``, ``row``); ``rows[domain][row]`` is the full row.
    Columns of different domains need no common type this way.
    """

    index: Dataset
    rows: Mapping[str, Rows]
    domains: tuple[str, ...]

    @property
    def offsets(self) -> dict[str, list[int]]:
        """Positions in ``index`` of each domain's rows, in order."""
        positions: dict[str, list[int]] = {name: [] for name in self.domains}
        for position, name in enumerate(self.index["domain"]):
            positions[name].append(position)
        return positions

    def expand(self, examples: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Full rows of ``examples`` of the index, all with the same keys; ``None`` where a domain lacks a column."""
        full = [{**self.rows[e["domain"]][e["row"]], "domain": e["domain"], "row": e["row"]} for e in examples]
        keys = sorted({key for row in full for key in row})
        return [{key: row.get(key) for key in keys} for row in full]


def combine_domains(data: Dataset | Mapping[str, Rows], where: str = "train_dataset") -> DomainRows:
    """One :class:`DomainRows` from a dataset with a ``domain`` column or a mapping from domain to rows.

    Raises:
        DomainError: no ``domain`` or ``prompt`` column, an empty domain, or chat and plain prompts mixed.
    """
    rows = dict(data) if isinstance(data, Mapping) and not isinstance(data, Dataset) else _split(data, where)
    if not rows:
        raise DomainError(f"{where}: no domains. Give a mapping from domain to rows, or rows with a 'domain' column.")
    prompts: list[Any] = []
    names: list[str] = []
    positions: list[int] = []
    for name, domain_rows in rows.items():
        if len(domain_rows) == 0:
            raise DomainError(f"{where}[{name!r}]: the domain has no rows. Give it some or leave it out.")
        for i, row in enumerate(domain_rows):
            if "prompt" not in row:
                raise DomainError(f"{where}[{name!r}]: row {i} has no 'prompt' column; it has {sorted(row)}.")
            prompts.append(row["prompt"])
            names.append(name)
            positions.append(i)
    _check_one_kind(where, names, prompts)
    index = Dataset.from_dict({"prompt": prompts, "domain": names, "row": positions})
    return DomainRows(index, rows, tuple(rows))


def _split(data: Any, where: str) -> dict[str, Rows]:
    if not isinstance(data, Dataset):
        raise DomainError(
            f"{where}: expected a datasets.Dataset with a 'domain' column or a mapping from domain to rows, found "
            f"{type(data).__name__}. Streams cannot be used: exact shares need rows that can be indexed."
        )
    if "domain" not in data.column_names:
        raise DomainError(
            f"{where}: no 'domain' column; it has {data.column_names}. Add one that names each row's domain, or pass "
            "a mapping from domain to dataset."
        )
    positions: dict[str, list[int]] = {}
    for i, name in enumerate(data["domain"]):
        positions.setdefault(name, []).append(i)
    return {name: data.select(index) for name, index in positions.items()}


def _check_one_kind(where: str, names: Sequence[str], prompts: Sequence[Any]) -> None:
    kinds: dict[str, str] = {}
    for name, prompt in zip(names, prompts, strict=True):
        kinds.setdefault("plain text" if isinstance(prompt, str) else "messages", name)
    if len(kinds) > 1:
        raise DomainError(
            f"{where}: prompts of {kinds['plain text']!r} are plain text and those of {kinds['messages']!r} are chat "
            "messages. One batch holds one kind: give all domains a chat template, or none (chat: false)."
        )
