"""The exactness suite: is a domain's gradient that domain's gradient, on these ranks, with these back ends?

    with open_world() as world:             # the ranks torchrun started, or one process
        report = run_suite(world)
    report.failed                           # empty where everything held

Every case trains a tiny model spread over the ranks and compares gradients, Grams, weights and parameters with one
process that holds all rows. Planted bugs show that the comparison would see what it must see. The command is
``torchrun --nproc-per-node N -m counterpoint verify``.
"""

from .case import Case
from .cases import CASES
from .controls import CONTROLS, Control
from .measure import Measured
from .runner import Outcome, Report, open_world, run_suite, select
from .simulation import filed_cosines
from .world import World

__all__ = [
    "CASES",
    "CONTROLS",
    "Case",
    "Control",
    "Measured",
    "Outcome",
    "Report",
    "World",
    "filed_cosines",
    "open_world",
    "run_suite",
    "select",
]
