"""How far a trial is from the truth, as relative errors."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..surgery import GROUPINGS, Record
from .case import Case
from .trial import local_records, prepare
from .truth import Gradients, Trajectory, truth
from .world import World, copies_that_differ, whole


@dataclass(frozen=True)
class Measured:
    """The largest error of one quantity, and what is allowed."""

    error: float
    tolerance: float

    @property
    def held(self) -> bool:
        """Whether the error is within tolerance; one that is not a number is not."""
        return self.error <= self.tolerance


Errors = dict[str, Measured]
"""By quantity: ``gradients``, ``Grams``, ``weights``, ``parameters``, ``copies``."""


def run_case(case: Case, world: World) -> Errors:
    """The errors of a case as this rank sees them; a collective.

    ``gradients`` and ``Grams`` (of all groupings) are those of the first step, ``weights`` of all steps, ``parameters``
    after the last. ``copies`` counts parameters and records of which two ranks hold different bits.
    """
    trial = prepare(case, world)
    right = truth(case.model, trial.plan, world.device, case.compute)
    allowed = case.allowed(world)
    assert right.num_conflicts or trial.plan.domains == 1, "without a conflict nothing but the plain sum is tested"
    gradients, record = trial.probe()
    errors = {
        "gradients": Measured(gradient_error(gradients, right.gradients), allowed.gradients),
        "Grams": Measured(gram_error(record, right), allowed.grams),
    }
    records = trial.train()
    end = {name: parameter.detach() for name, parameter in trial.parameters.items()}
    different = copies_that_differ({**end, **local_records(records)}, world)
    errors["weights"] = Measured(weight_error(records, right), allowed.weights)
    errors["parameters"] = Measured(parameter_error(end, right), allowed.parameters)
    errors["copies"] = Measured(float(len(different)), 0.0)
    return errors


def gradient_error(found: Mapping[str, Gradients], right: Mapping[str, Gradients]) -> float:
    """The largest ``|found - right| / |right|`` over domains, each as one vector; infinite where one is missing."""
    if set(found) != set(right):
        return math.inf
    return max(_relative(found[domain], right[domain]) for domain in found)


def gram_error(record: Record, right: Trajectory) -> float:
    """The largest ``|found - right| / (|g_i| |g_j|)`` over the groups of all groupings and pairs of domains."""
    largest = 0.0
    for grouping in GROUPINGS:
        groups, gram_GDD = record.regroup(grouping)
        truths = right.grams[grouping]
        if set(groups) != set(truths):
            return math.inf
        for group, gram_DD in zip(groups, gram_GDD, strict=True):
            norm_D = truths[group].diagonal().sqrt()
            largest = max(largest, ((gram_DD - truths[group]).abs() / torch.outer(norm_D, norm_D)).max().item())
    return largest


def weight_error(records: Sequence[Record], right: Trajectory) -> float:
    """The largest difference of any weight in any step; weights are about 1."""
    pairs = zip(records, right.weights, strict=True)
    return max((record.weights_GD - weights_GD).abs().max().item() for record, weights_GD in pairs)


def parameter_error(end: Mapping[str, Tensor], right: Trajectory) -> float:
    """``|found - right| / |right - start|``: relative to how far training moved all parameters together."""
    return _relative({name: whole(tensor) for name, tensor in end.items()}, right.end, right.start)


def drift(end: Gradients, other: Gradients, right: Trajectory) -> float:
    """``|end - other| / |right - start|``: how far two copies are apart, relative to how far training moved them."""
    return math.sqrt(_square(end, other) / _square(right.end, right.start))


def _relative(found: Gradients, right: Gradients, origin: Gradients | None = None) -> float:
    return math.sqrt(_square(found, right) / _square(right, origin))


def _square(found: Gradients, other: Gradients | None) -> float:
    """``|found - other|^2`` over all parameters."""
    assert other is None or found.keys() == other.keys()
    total = 0.0
    for name, tensor in found.items():
        # offloaded parameters are not where the truth is
        difference = tensor.double() - (0 if other is None else other[name].to(tensor.device))
        total += difference.square().sum().item()
    return total
