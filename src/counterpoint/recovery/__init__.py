"""Brings back what a later domain cost an earlier one.

    rollback     undoes part of an edit without training, beside random masks of the same tensors and sizes
    refresh      short reinforcement learning on the damaged domain
    recover      reads a run, says what fell, and tries both

>>> from counterpoint.recovery import recover
>>> print(recover("runs/sequential"))  # doctest: +SKIP

Results print as tables and sentences; ``found.to_frame()`` and ``found.to_dict()`` hold the numbers.
"""

from counterpoint.recovery._rollback_result import Rollback, RollbackOptions
from counterpoint.recovery.recover import Recover, RecoverOptions, plan_recovery, recover
from counterpoint.recovery.refresh import Refresh, RefreshOptions, continue_refresh, refresh
from counterpoint.recovery.rollback import rollback

__all__ = [
    "Recover",
    "RecoverOptions",
    "Refresh",
    "RefreshOptions",
    "Rollback",
    "RollbackOptions",
    "continue_refresh",
    "plan_recovery",
    "recover",
    "refresh",
    "rollback",
]
