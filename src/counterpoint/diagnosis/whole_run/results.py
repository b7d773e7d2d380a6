"""``summary.json``: what a diagnosis found, pair by pair, in the form in which the report shows it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from counterpoint.diagnosis.whole_run.parts import PartDone
from counterpoint.stats import Estimate


@dataclass(frozen=True)
class ModuleDamage:
    """A module's row of the second-order damage, beside its share of the edit's squared norm."""

    module: str
    second: Estimate
    edit_share: float


@dataclass(frozen=True)
class PairDamage:
    """Loss of the earlier domain that the later stage's edit adds, per completion token, with 95 % intervals.

    ``first``, ``second``: terms of the expansion at the checkpoint before the later stage. ``fisher``:
    the second-order term with the Fisher matrix in the Hessian's place. ``measured``: the loss after the edit minus
    that before, on the same completions.
    """

    measured: Estimate
    first: Estimate
    second: Estimate
    fisher: Estimate | None
    modules: tuple[ModuleDamage, ...]


@dataclass(frozen=True)
class ModuleConflict:
    """Cosine of the two domains' gradients in one module; ``floor`` is what noise alone reaches in 1 of 20 cases.

    ``verdict``: -1 conflict, 1 synergy, 0 within noise (corrected over all modules and pairs).
    """

    module: str
    cosine: float
    floor: float
    debiased: float
    verdict: int


@dataclass(frozen=True)
class PairConflict:
    """Policy gradients of both domains at one checkpoint: over all parameters, and by module."""

    step: int
    moment: str
    cosine: float
    floor: float
    verdict: int
    modules: tuple[ModuleConflict, ...]


@dataclass(frozen=True)
class PairOverlap:
    """Jaccard overlap of two sets of neurons, the level of chance, the exact p-value of that much or more."""

    fraction: float
    jaccard: float
    chance: float
    p_value: float


@dataclass(frozen=True)
class Pair:
    """Two domains: ``earlier`` was trained before ``later``, or in the same stage (``together``).

    ``change`` with its simultaneous interval ``corrected`` and ``verdict``: the earlier domain's score over the later
    one's stage, as in ``behaviour.json``. ``outcome`` and ``mechanism`` are the sentences. What is None could not be
    measured; the sentences say why.
    """

    earlier: str
    later: str
    together: bool
    first_step: int | None
    last_step: int | None
    change: Estimate | None
    corrected: Estimate | None
    verdict: str
    outcome: str
    mechanism: str
    damage: PairDamage | None
    conflict: PairConflict | None
    edits: PairOverlap | None
    routes: PairOverlap | None


@dataclass(frozen=True)
class Total:
    """What all stages after a domain's own do to it together: ``damage`` from the end of its stage to the run's end."""

    domain: str
    later: tuple[str, ...]
    first_step: int
    last_step: int
    sentence: str
    damage: PairDamage | None


@dataclass(frozen=True)
class ModuleEdit:
    """A module's edit over one stage: its norm over the norm of the weights before."""

    module: str
    relative_norm: float


@dataclass(frozen=True)
class StageEdit:
    """What one stage changed: ``unchanged`` is the share of weights below both of LPT's thresholds."""

    domains: tuple[str, ...]
    first_step: int
    last_step: int
    unchanged: float
    relative_norm: float
    modules: tuple[ModuleEdit, ...]


@dataclass(frozen=True)
class Summary:
    """Everything the report shows of a diagnosis but the behaviour, which is ``behaviour.json``."""

    run: str
    options: Mapping[str, Any]
    seconds: float
    parts: tuple[PartDone, ...]
    pairs: tuple[Pair, ...]
    totals: tuple[Total, ...]
    edits: tuple[StageEdit, ...]
    sentences: tuple[str, ...]
    """Forgetting and rigidity, domain by domain."""

    notes: tuple[str, ...]
