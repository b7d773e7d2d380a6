"""Where a refresh is measured: the neurons that carry the damage, and the curvature along it."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from counterpoint.config import Config
from counterpoint.diagnosis.damage_analysis.curvature import along, inner
from counterpoint.diagnosis.damage_analysis.edit import edit_between, open_at
from counterpoint.diagnosis.damage_analysis.loss import text_loss
from counterpoint.diagnosis.damage_analysis.parts import on_neurons
from counterpoint.diagnosis.damage_analysis.stages import shared_neurons
from counterpoint.diagnosis.domains_of_config import Progress, completions_for, open_subject
from counterpoint.recovery.refreshing.results import RefreshOptions

Neurons = Mapping[int, Tensor]
"""A bool vector for each layer."""


@dataclass(frozen=True)
class Route:
    """The chosen neurons of each layer, and the curvature mu along the damage on them where it was asked for."""

    neurons: Neurons
    curvature: float | None = None

    @property
    def size(self) -> int:
        """Chosen neurons."""
        return sum(int(chosen.sum()) for chosen in self.neurons.values())


def find_route(
    config: Config,
    reference: str,
    model: str,
    domain: str,
    other: str | None,
    options: RefreshOptions,
    on_progress: Progress,
) -> Route:
    """The neurons on the routes of ``domain`` and ``other`` at ``reference``; the domain's own where other is None.

    Raises:
        UnsupportedError: a model whose neurons are not known.
        CounterpointError: too few prompts with a signal, for the curvature.
    """
    names = [domain] if other is None else [domain, other]
    opened = open_at(config, reference, names) if options.curvature else open_subject(config, reference, names)
    rollouts = completions_for(
        opened,
        prompts=options.prompts,
        samples=options.samples,
        seed=config.run.seed,
        on_progress=on_progress,
    )
    own = rollouts[domain]
    batch = config.evaluation.batch_size
    neurons = shared_neurons(opened, (own, rollouts[other] if other else own), options.fraction, batch)
    if not options.curvature:
        return Route(neurons)
    loss = text_loss(opened.model, own, on_progress=on_progress).loss
    part = on_neurons(edit_between(reference, model, opened.model), neurons)
    found = along(loss, {"shared": part}, what="curvature on the route", on_progress=on_progress)
    second = float(found.second["shared"].sum()) / float(loss.units_P.sum())
    return Route(neurons, second / float(inner(part, part)))
