"""Gradient surgery for several domains, usable in any PyTorch loop; imports torch alone.

    strategy = grouping x weighting

Cut the parameters into groups; for each group the Gram (the inner products of the domain gradients) tells who
conflicts with whom; a weighting turns it into one weight per domain; the update of the group is the weighted sum.

    surgeon = Surgeon(model, strategy="mgs")
    for domain, batch in micro_batches:      # each micro-batch holds one domain
        loss(model, batch).backward()
        surgeon.collect(domain)              # takes .grad over
    record = surgeon.combine()               # writes .grad
    optimizer.step(); optimizer.zero_grad()

    Surgeon, Record                          the object above and what combine() returns
    STRATEGIES, resolve_strategy             the strategies by name, or {grouping, weighting}
    GROUPINGS, group_parameters              the groupings by name, or a rule of your own
    WEIGHTINGS, build_weighting              the weightings by name, or a function or class of your own
    Weighting, Context, Halves               what one of your own is and sees
    cosines, conflict_rate, removed_share, contributions    what a Gram tells
"""

from .gram import conflict_rate, contributions, cosines, removed_share
from .groupings import GROUPINGS, group_parameters
from .record import Record
from .strategies import STRATEGIES, Strategy, resolve_strategy, strategy_problems
from .surgeon import Surgeon
from .weightings import WEIGHTINGS, Context, Halves, Weighting, build_weighting

__all__ = [
    "GROUPINGS",
    "STRATEGIES",
    "WEIGHTINGS",
    "Context",
    "Halves",
    "Record",
    "Strategy",
    "Surgeon",
    "Weighting",
    "build_weighting",
    "conflict_rate",
    "contributions",
    "cosines",
    "group_parameters",
    "removed_share",
    "resolve_strategy",
    "strategy_problems",
]
