"""What the summary of a diagnosis needs of each result: small dataclasses without tensors, kept in the parts' files."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from counterpoint.diagnosis.conflicts import Conflicts
from counterpoint.diagnosis.edits import Edits
from counterpoint.diagnosis.routes import Routes


@dataclass(frozen=True)
class ModuleConflict:
    """Cosine of the two domains' gradients in one module; ``floor`` is what noise alone reaches in 1 of 20 cases.

    ``verdict``: -1 conflict, 1 synergy, 0 within noise (corrected over all modules and pairs).
    """

    module: str
    cosine: float
    floor: float
    debiased: float | None
    verdict: int


@dataclass(frozen=True)
class PairConflict:
    """Policy gradients of two domains at one checkpoint: over all parameters, and by module."""

    first: str
    second: str
    cosine: float
    floor: float
    verdict: int
    modules: tuple[ModuleConflict, ...]

    @property
    def opposed(self) -> list[ModuleConflict]:
        """Modules in conflict beyond noise, the strongest first."""
        return sorted((row for row in self.modules if row.verdict < 0), key=lambda row: row.cosine)


@dataclass(frozen=True)
class PairOverlap:
    """Jaccard overlap of two sets of neurons, the level of chance, the exact p-value of that much or more."""

    first: str
    second: str
    jaccard: float
    chance: float
    p_value: float


@dataclass(frozen=True)
class PartFindings:
    """What one part found: conflicts or overlaps of every two domains or edits, or each edit's relative norms.

    Edits are named by their number, from 0; ``edits`` has for each the norm over that of the weights, by module.
    """

    pairs: tuple[PairConflict, ...] = ()
    overlaps: tuple[PairOverlap, ...] = ()
    edits: tuple[Mapping[str, float], ...] = ()


def conflict_findings(result: Conflicts) -> PartFindings:
    """The cosines of plain gradients, for pairs of domains whose gradients are known."""
    whole, modules = (result.metrics[0].grouping(name) for name in ("global", "module"))
    found = []
    for q, (first, second) in enumerate(whole.pairs):
        cosine, floor, verdict = (float(x_GQ[0, q]) for x_GQ in (whole.cosine_GQ, whole.floor_GQ, whole.verdict_GQ))
        if math.isfinite(cosine) and math.isfinite(verdict):
            rows = tuple(row for g in range(len(modules.groups)) if (row := _module_conflict(modules, g, q)))
            found.append(PairConflict(first, second, cosine, floor, int(verdict), rows))
    return PartFindings(pairs=tuple(found))


def _module_conflict(modules: Any, g: int, q: int) -> ModuleConflict | None:
    axes = (modules.cosine_GQ, modules.floor_GQ, modules.debiased_GQ, modules.verdict_GQ)
    cosine, floor, debiased, verdict = (float(x_GQ[g, q]) for x_GQ in axes)
    if not (math.isfinite(cosine) and math.isfinite(floor)):
        return None
    return ModuleConflict(modules.groups[g], cosine, floor, debiased if math.isfinite(debiased) else None, int(verdict))


def route_findings(result: Routes) -> PartFindings:
    """The overlaps of neurons at the main fraction, and chance within layers."""
    return PartFindings(
        overlaps=tuple(
            PairOverlap(row.first, row.second, row.jaccard, row.chance_in_layers, row.p_value_in_layers)
            for row in result.overlaps
            if row.kind == "neuron"
        )
    )


def edit_findings(result: Edits) -> PartFindings:
    """What every edit changed, and the overlap of the neurons that two of them changed most, and chance in layers."""
    number = {found.name: str(i) for i, found in enumerate(result.checkpoints)}
    edits = [
        {part.name: part.relative_norm for part in found.modules if part.relative_norm is not None}
        for found in result.checkpoints
    ]
    overlaps = [
        PairOverlap(
            number[row.first],
            number[row.second],
            row.overlap.jaccard,
            row.overlap.within_layers.jaccard,
            row.overlap.within_layers.p_value,
        )
        for row in result.pairs
        if row.overlap and row.overlap.first and row.overlap.second
    ]
    return PartFindings(overlaps=tuple(overlaps), edits=tuple(edits))
