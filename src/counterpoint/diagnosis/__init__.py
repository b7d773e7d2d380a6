"""Where and why one domain hurts another, measured on checkpoints: whoever trained them.

    edits        what training changed: sparsity, norms, neurons, overlap between checkpoints
    routes       which neurons and heads a domain uses, and which of them two domains share
    conflicts    policy gradients per domain, their cosines, and what noise alone would give
    damage       what a later edit costs an earlier domain: first order, second order, measured
    behaviour    entropy, length and diversity per domain over a run
    diagnose     everything that a run's checkpoints allow; diagnose_checkpoints, of given ones

Every number comes with the level that chance or noise would give. Results are frozen dataclasses that print as tables.
For example, what two checkpoints changed of the model that both were trained from::

    from counterpoint.diagnosis import edits

    found = edits("pocket", ["runs/math/checkpoints/step-40", "runs/qa/checkpoints/step-40"])
    print(found)
"""

from counterpoint.checkpoints import Checkpoint, Comparison, compare, open_checkpoint
from counterpoint.diagnosis._adam import read_optimizer
from counterpoint.diagnosis._parts import PartDone
from counterpoint.diagnosis.behaviour import Behaviour, behaviour
from counterpoint.diagnosis.conflicts import Conflicts, conflicts
from counterpoint.diagnosis.conflicts_over_time import ConflictsOverTime, conflicts_over_time
from counterpoint.diagnosis.damage import Damage, DamageOptions, damage
from counterpoint.diagnosis.edits import Edits, edits
from counterpoint.diagnosis.rollouts import Rollout, Rollouts, read_rollouts, sample_rollouts, save_rollouts
from counterpoint.diagnosis.routes import Routes, measure_routes, routes
from counterpoint.diagnosis.summary import Summary
from counterpoint.diagnosis.whole_run import ANALYSES, DiagnoseOptions, diagnose, diagnose_checkpoints
from counterpoint.stats import Estimate

__all__ = [
    "ANALYSES",
    "Behaviour",
    "Checkpoint",
    "Comparison",
    "Conflicts",
    "ConflictsOverTime",
    "Damage",
    "DamageOptions",
    "DiagnoseOptions",
    "Edits",
    "Estimate",
    "PartDone",
    "Rollout",
    "Rollouts",
    "Routes",
    "Summary",
    "behaviour",
    "compare",
    "conflicts",
    "conflicts_over_time",
    "damage",
    "diagnose",
    "diagnose_checkpoints",
    "edits",
    "measure_routes",
    "open_checkpoint",
    "read_optimizer",
    "read_rollouts",
    "routes",
    "sample_rollouts",
    "save_rollouts",
]
