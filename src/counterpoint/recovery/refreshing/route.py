"""Where a refresh is measured: the neurons that carry the damage, and the curvature along it."""

from collections.abc import Mapping

from torch import Tensor

from counterpoint.anatomy import Anatomy
from counterpoint.config import Config
from counterpoint.diagnosis.damage_analysis.curvature import along, inner
from counterpoint.diagnosis.damage_analysis.edit import edit_between, open_at
from counterpoint.diagnosis.damage_analysis.loss import text_loss
from counterpoint.diagnosis.damage_analysis.parts import on_neurons
from counterpoint.diagnosis.damage_analysis.stages import shared_neurons
from counterpoint.diagnosis.domains_of_config import Progress, Subject, completions_for, open_subject
from counterpoint.diagnosis.rollouts import Rollouts
from counterpoint.errors import CounterpointError
from counterpoint.recovery.refreshing.results import RefreshOptions

Neurons = Mapping[int, Tensor]
"""A bool vector for each layer, true for the chosen neurons."""


def route_of(
    config: Config, reference: str, domain: str, other: str | None, options: RefreshOptions, on_progress: Progress
) -> Neurons:
    """The neurons on the routes of ``domain`` and ``other`` at ``reference``; the domain's own where other is None.

    Raises:
        UnsupportedError: a model whose neurons are not known.
        CounterpointError: fewer rows than prompts.
    """
    names = [domain] if other is None else [domain, other]
    opened = open_subject(config, reference, names)
    found = _completions(opened, options, on_progress)
    pair = (found[domain], found[other or domain])
    return shared_neurons(opened, pair, options.fraction, config.evaluation.batch_size)


def curvature_on(
    neurons: Neurons,
    config: Config,
    reference: str,
    model: str,
    domain: str,
    options: RefreshOptions,
    on_progress: Progress,
) -> float:
    """``v'Hv / v'v`` for v = ``model - reference`` on ``neurons`` and H the Hessian of the domain's policy loss there.

    Raises:
        CounterpointError: too few prompts with a signal, equal checkpoints, or no damage on these neurons.
    """
    opened = open_at(config, reference, [domain])
    rollouts = _completions(opened, options, on_progress)[domain]
    part = on_neurons(edit_between(reference, model, opened.model), neurons, Anatomy.of(opened.model))
    length = float(inner(part, part))
    if not length:
        raise CounterpointError("the two checkpoints do not differ on the neurons of the route.")
    loss = text_loss(opened.model, rollouts, on_progress=on_progress).loss
    found = along(loss, {"route": part}, what="curvature on the route", on_progress=on_progress)
    return float(found.second["route"].sum()) / float(loss.units_P.sum()) / length


def _completions(opened: Subject, options: RefreshOptions, on_progress: Progress) -> dict[str, Rollouts]:
    return completions_for(
        opened,
        prompts=options.prompts,
        samples=options.samples,
        seed=opened.config.run.seed,
        on_progress=on_progress,
    )
