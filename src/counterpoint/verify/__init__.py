"""The exactness suite: is a domain's gradient that domain's gradient, on these ranks, with these back ends?

    with open_world() as world:             # the ranks torchrun started, or one process
        outcomes = run_suite(world)         # every rank calls it
    [outcome.name for outcome in outcomes if outcome.status == "failed"]

Every case trains a tiny model spread over the ranks and compares gradients, Grams, weights and parameters with one
process that holds all rows. Planted bugs show that the comparison would see what it must see. The command is
``torchrun --nproc-per-node N -m counterpoint verify``.
"""

from ._cases import CASES, PLANTED, Case
from ._suite import Outcome, run_suite, select
from ._world import World, open_world

__all__ = ["CASES", "PLANTED", "Case", "Outcome", "World", "open_world", "run_suite", "select"]
