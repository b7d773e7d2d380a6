"""Keeps the Grams of a run, module by module, in one compact safetensors file.

Legend: S recorded steps, G module groups, D domains of the run, K groups of the strategy.
"""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

from counterpoint.errors import RunError
from counterpoint.runs import write_bytes
from counterpoint.runs.grams import read_grams
from counterpoint.surgery import Record


class GramRecorder:
    """Collects records and writes ``step [S]``, ``gram [S, G, D, D]`` and ``weights [S, K, D]`` (float32).

    Domains absent from a step are NaN. The file is written beside and renamed, so readers always see a whole one.

    Args:
        path: the file, usually ``runs/NAME/grams.safetensors``. An existing file is continued.
        domains: all domains of the run, in the order of the D axis.
        strategy: name of the strategy, kept in the file's metadata.
    """

    def __init__(self, path: Path, domains: tuple[str, ...], strategy: str) -> None:
        self.path = path
        self.domains = tuple(sorted(domains))
        self.strategy = strategy
        self._steps: list[int] = []
        self._grams: list[torch.Tensor] = []
        self._weights: list[torch.Tensor] = []
        self._groups: tuple[str, ...] = ()
        self._strategy_groups: tuple[str, ...] = ()
        if path.exists():
            self._load()

    def add(self, step: int, record: Record, grouping: Any = "module") -> None:
        """Appends one step's record, in the groups of ``grouping``, and rewrites the file."""
        self._groups, gram_GDD = record.regroup(grouping)
        self._strategy_groups = record.groups
        index = torch.tensor([self.domains.index(name) for name in record.domains])
        full_GDD = torch.full((len(self._groups), len(self.domains), len(self.domains)), torch.nan)
        full_GDD[:, index.unsqueeze(1), index] = gram_GDD.float()
        weights_KD = torch.full((len(record.groups), len(self.domains)), torch.nan)
        weights_KD[:, index] = record.weights_GD.float()
        self._steps.append(step)
        self._grams.append(full_GDD)
        self._weights.append(weights_KD)
        self.write()

    def truncate_after(self, step: int) -> None:
        """Forgets all records later than ``step`` (a resumed run records them again)."""
        keep = [i for i, recorded in enumerate(self._steps) if recorded <= step]
        self._steps = [self._steps[i] for i in keep]
        self._grams = [self._grams[i] for i in keep]
        self._weights = [self._weights[i] for i in keep]
        if self._steps:
            self.write()
        else:
            self.path.unlink(missing_ok=True)

    def write(self) -> None:
        """Writes the file whole."""
        tensors = {
            "step": torch.tensor(self._steps),
            "gram": torch.stack(self._grams),
            "weights": torch.stack(self._weights),
        }
        metadata = {
            "groups": json.dumps(self._groups),
            "domains": json.dumps(self.domains),
            "strategy": self.strategy,
            "strategy_groups": json.dumps(self._strategy_groups),
        }
        write_bytes(self.path, save(tensors, metadata))

    def _load(self) -> None:
        found = read_grams(self.path)
        if found.domains != self.domains or len(found.weights_SKD) != len(found.step_S):
            raise RunError(
                f"{self.path}: holds Grams of {', '.join(found.domains)}, which are not this run's. Restore it."
            )
        self._steps = found.step_S.tolist()
        self._grams = [torch.from_numpy(gram_GDD) for gram_GDD in found.gram_SGDD]
        self._weights = [torch.from_numpy(weights_KD) for weights_KD in found.weights_SKD]
        self._groups, self._strategy_groups = found.groups, found.strategy_groups
