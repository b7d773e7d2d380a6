"""What the summary of a diagnosis needs of each result: small dataclasses without tensors, kept in the parts' files."""

import math
from dataclasses import dataclass
from typing import Any

from counterpoint.diagnosis.conflicts import Conflicts
from counterpoint.diagnosis.damage import Damage
from counterpoint.diagnosis.edits import Edits
from counterpoint.diagnosis.routes import Routes
from counterpoint.stats import Estimate

RELIABLE = 0.2
"""Second order "predicts" a damage where it errs by at most this share of the largest term, as in ``damage``. Ours."""


@dataclass(frozen=True)
class ModuleDamage:
    """A module's row of the second-order damage, and its share of the edit's squared norm."""

    module: str
    second: Estimate
    edit_share: float


@dataclass(frozen=True)
class PairDamage:
    """Loss of the earlier domain that the later stage's edit adds, per completion token, with 95 % intervals.

    ``first``, ``second``: terms of the expansion at the checkpoint before the later stage. ``fisher``: the second-order
    term with the Fisher matrix in the Hessian's place. ``measured``: the loss after the edit minus that before, on the
    same completions. All are None where the measurement ``stopped`` early.
    """

    measured: Estimate | None
    first: Estimate | None
    second: Estimate | None
    fisher: Estimate | None
    modules: tuple[ModuleDamage, ...]
    stopped: str | None = None

    @property
    def predicted(self) -> float | None:
        """First and second order together."""
        return self.first.value + self.second.value if self.first and self.second else None

    @property
    def is_predicted(self) -> bool:
        """Whether the expansion gives what was measured, within ``RELIABLE`` of the largest term."""
        if self.measured is None or self.first is None or self.second is None:
            return False
        largest = max(abs(term.value) for term in (self.measured, self.first, self.second))
        return abs(self.first.value + self.second.value - self.measured.value) <= RELIABLE * largest

    @property
    def place(self) -> tuple[str, float, float] | None:
        """The module with most of the harm that curvature does, its share of it, and its share of the edit.

        None where no module's own interval lies above zero.
        """
        sure = [row for row in self.modules if row.second.low > 0]
        if not sure:
            return None
        top = max(sure, key=lambda row: row.second.value)
        return top.module, top.second.value / sum(max(0.0, row.second.value) for row in self.modules), top.edit_share


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
class ModuleEdit:
    """A module's edit over one stage: its norm over the norm of the weights before."""

    module: str
    relative_norm: float


@dataclass(frozen=True)
class StageEdit:
    """What one stage changed: ``unchanged`` is the share of weights below both of LPT's thresholds."""

    unchanged: float
    relative_norm: float
    modules: tuple[ModuleEdit, ...]


@dataclass(frozen=True)
class EditFindings:
    """What every edit changed, and the overlap of every two: named by their number, from 0."""

    edits: tuple[StageEdit, ...]
    overlaps: tuple[PairOverlap, ...]


@dataclass(frozen=True)
class RouteFindings:
    """The overlap of the routes of every two domains at one checkpoint."""

    overlaps: tuple[PairOverlap, ...]


@dataclass(frozen=True)
class ConflictFindings:
    """The conflict of every two domains at one checkpoint."""

    pairs: tuple[PairConflict, ...]


def damage_findings(result: Damage) -> PairDamage:
    """The numbers of one damage; estimates that could not be computed are None."""
    rows = [
        ModuleDamage(row.module, known, row.edit_share)
        for row in result.modules
        if (known := _finite(row.second)) is not None
    ]
    return PairDamage(
        measured=_finite(result.measured),
        first=_finite(result.first),
        second=_finite(result.second),
        fisher=_finite(result.fisher),
        modules=tuple(rows),
        stopped=result.stopped,
    )


def conflict_findings(result: Conflicts) -> ConflictFindings:
    """The cosines of plain gradients, for pairs of domains whose gradients are known."""
    whole, modules = (result.metrics[0].grouping(name) for name in ("global", "module"))
    found = []
    for q, (first, second) in enumerate(whole.pairs):
        cosine, floor, verdict = (float(x_GQ[0, q]) for x_GQ in (whole.cosine_GQ, whole.floor_GQ, whole.verdict_GQ))
        if math.isfinite(cosine) and math.isfinite(verdict):
            rows = tuple(row for g in range(len(modules.groups)) if (row := _module_conflict(modules, g, q)))
            found.append(PairConflict(first, second, cosine, floor, int(verdict), rows))
    return ConflictFindings(tuple(found))


def _module_conflict(modules: Any, g: int, q: int) -> ModuleConflict | None:
    axes = (modules.cosine_GQ, modules.floor_GQ, modules.debiased_GQ, modules.verdict_GQ)
    cosine, floor, debiased, verdict = (float(x_GQ[g, q]) for x_GQ in axes)
    if not (math.isfinite(cosine) and math.isfinite(floor)):
        return None
    return ModuleConflict(modules.groups[g], cosine, floor, debiased if math.isfinite(debiased) else None, int(verdict))


def route_findings(result: Routes) -> RouteFindings:
    """The overlaps of neurons at the main fraction, and chance within layers."""
    return RouteFindings(
        tuple(
            PairOverlap(row.first, row.second, row.jaccard, row.chance_in_layers, row.p_value_in_layers)
            for row in result.overlaps
            if row.kind == "neuron"
        )
    )


def edit_findings(result: Edits) -> EditFindings:
    """What every edit changed, and the overlap of the neurons that two of them changed most, and chance in layers."""
    number = {found.name: str(i) for i, found in enumerate(result.checkpoints)}
    edits = [
        StageEdit(
            found.sparsity.unchanged,
            found.whole.relative_norm if found.whole.relative_norm is not None else math.nan,
            tuple(ModuleEdit(p.name, p.relative_norm) for p in found.modules if p.relative_norm is not None),
        )
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
    return EditFindings(tuple(edits), tuple(overlaps))


def _finite(value: Estimate | None) -> Estimate | None:
    """An estimate; None where it, or a bound, could not be computed."""
    if value is None or not all(map(math.isfinite, (value.value, value.low, value.high))):
        return None
    return value
