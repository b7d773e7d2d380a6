"""Routes: which neurons and attention heads each domain uses, how far they overlap, and who pulls them where.

What is measured, and which choices are ours: ``docs/diagnosis/routes.md``. Defined after LPT (arXiv 2606.02398), whose
scoring rule is not public.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import torch
from torch import Tensor

from counterpoint.anatomy import Anatomy
from counterpoint.diagnosis.rollouts import Rollouts
from counterpoint.diagnosis.route_analysis.capture import Activity, Sites, Tokens, activity_of, sites_of
from counterpoint.diagnosis.route_analysis.direction import (
    MINIMUM,
    Direction,
    directions,
    head_products,
    neuron_products,
)
from counterpoint.diagnosis.route_analysis.overlap import Choice, Overlap, Stability, overlap, stability
from counterpoint.diagnosis.subject import check_enough
from counterpoint.errors import CounterpointError, DomainError, nearest
from counterpoint.progress import Progress, silent

FRACTIONS = (0.01, 0.05, 0.1, 0.2, 0.5)
MIN_PROMPTS = 2
"""Prompts per domain that two halves need."""


@dataclass(frozen=True)
class Route:
    """What one domain uses most: units by layer, numbered within their layer.

    ``neuron_share`` and ``head_share`` are the shares of all contribution that the route's units have (were all units
    alike, it would be the share of units in the route); ``prompts``, ``completions`` and ``tokens`` were measured.
    """

    domain: str
    prompts: int
    completions: int
    tokens: int
    neurons: dict[int, tuple[int, ...]]
    heads: dict[int, tuple[int, ...]]
    neuron_share: float
    head_share: float


@dataclass(frozen=True)
class Routes:
    """The routes of a model's domains at the main ``fraction``, their stability and overlaps at every fraction.

    ``num_neurons`` and ``num_heads`` are those of each layer; ``layers_left_out`` have MLPs whose neurons are not
    known here. ``directions`` need edits; ``non_finite`` counts values of edits that are no numbers.
    """

    fraction: float
    per_layer: bool
    tokens: str
    minimum_cosine: float
    num_neurons: dict[int, int]
    num_heads: dict[int, int]
    layers_left_out: tuple[int, ...]
    routes: tuple[Route, ...]
    stability: tuple[Stability, ...]
    overlaps: tuple[Overlap, ...]
    directions: tuple[Direction, ...]
    non_finite: dict[str, int]

    def route(self, domain: str) -> Route:
        """The route of one domain."""
        by_domain = {route.domain: route for route in self.routes}
        if domain not in by_domain:
            raise DomainError(f"No route of a domain {domain!r} was measured; {nearest(domain, by_domain)}")
        return by_domain[domain]

    def shared_neurons(self, first: str, second: str) -> dict[int, tuple[int, ...]]:
        """The neurons on the routes of both domains, by layer."""
        ours, theirs = self.route(first).neurons, self.route(second).neurons
        shared = {layer: tuple(sorted(set(ours[layer]) & set(theirs.get(layer, ())))) for layer in ours}
        return {layer: units for layer, units in shared.items() if units}


def routes(
    model: Any,
    tokenizer: Any,
    rollouts_by_domain: Mapping[str, Rollouts],
    *,
    fraction: float = 0.1,
    fractions: Sequence[float] = FRACTIONS,
    per_layer: bool = False,
    tokens: Tokens = "completion",
    batch_size: int = 32,
    edits: Mapping[str, Mapping[str, Tensor]] | None = None,
    minimum: float = MINIMUM,
    seed: int = 0,
    on_progress: Progress = silent,
) -> Routes:
    """Measures the routes of every domain on its own completions, and what the domains share.

    Args:
        model: a causal language model of transformers; its training mode is restored and its hooks are removed.
        tokenizer: its tokenizer; only the padding token is used.
        rollouts_by_domain: completions of at least 2 prompts per domain.
        fraction: share of units that form the active route.
        fractions: shares at which overlaps are measured too.
        per_layer: the top of each layer instead of the top of the whole model.
        tokens: ``completion`` tokens, ``prompt`` tokens, or ``all``.
        batch_size: completions in one forward pass.
        edits: domain -> parameter name -> edit (``EditTensors`` reads them from checkpoints); two or more give the
            directions on shared routes.
        minimum: cosines nearer to 0 than this are neutral.
        seed: of resampling and controls.
        on_progress: called with ``routes of DOMAIN``, completions done and in total.

    Raises:
        CounterpointError: too few completions, a fraction outside (0, 1], contributions that are not finite.
        UnsupportedError: a model whose neurons are not known.
        ModelError: edits of another architecture.
    """
    _check(rollouts_by_domain, (fraction, *fractions), edits or {})
    sites = sites_of(model)
    activities = _activities(model, sites, rollouts_by_domain, tokenizer.pad_token_id, batch_size, tokens, on_progress)
    choices = {"neuron": Choice(sites.neuron_layers_N, per_layer), "head": Choice(sites.head_layers_H, per_layer)}
    choices = {kind: choice for kind, choice in choices.items() if len(choice.layers_U)}
    stable, overlaps = _overlaps(activities, choices, sorted({fraction, *fractions}))
    found, non_finite = _directions(
        activities, choices, fraction, edits or {}, sites.anatomy, minimum, seed, on_progress
    )
    return Routes(
        fraction=fraction,
        per_layer=per_layer,
        tokens=tokens,
        minimum_cosine=minimum,
        num_neurons=_counts(sites.neuron_layers_N),
        num_heads=_counts(sites.head_layers_H),
        layers_left_out=sites.left_out,
        routes=tuple(_route(rollouts_by_domain[name], one, choices, fraction) for name, one in activities.items()),
        stability=tuple(stable),
        overlaps=tuple(overlaps),
        directions=tuple(found),
        non_finite=non_finite,
    )


def _check(rollouts: Mapping[str, Rollouts], fractions: Sequence[float], edits: Mapping[str, Any]) -> None:
    for level in fractions:
        if not 0 < level <= 1:
            raise CounterpointError(f"A route's fraction must be above 0 and at most 1, found {level}. Try 0.1.")
    if not rollouts:
        raise CounterpointError("There are no completions, so no routes. Give those of at least one domain.")
    check_enough(rollouts, rollouts, MIN_PROMPTS, "Routes")
    for name in edits:
        if name not in rollouts:
            raise DomainError(
                f"There is an edit of {name!r} but no completions of that domain; {nearest(name, rollouts)}"
            )
    if len(edits) == 1:
        raise CounterpointError(
            f"There is one edit, that of {next(iter(edits))!r}; directions on a shared route need the edits of two "
            "domains or more. Give another one."
        )


def _activities(
    model: Any,
    sites: Sites,
    rollouts_by_domain: Mapping[str, Rollouts],
    pad_id: int,
    batch_size: int,
    tokens: Tokens,
    on_progress: Progress,
) -> dict[str, Activity]:
    found = {}
    for name, rollouts in rollouts_by_domain.items():
        done = 0

        def count(more: int, name: str = name, total: int = len(rollouts)) -> None:
            nonlocal done
            done += more
            on_progress(f"routes of {name}", done, total)

        found[name] = activity_of(
            model, sites, rollouts, pad_id=pad_id, batch_size=batch_size, tokens=tokens, on_batch=count
        )
    return found


def _route(rollouts: Rollouts, activity: Activity, choices: Mapping[str, Choice], fraction: float) -> Route:
    chosen: dict[str, dict[int, tuple[int, ...]]] = {"neuron": {}, "head": {}}
    share = {"neuron": 0.0, "head": 0.0}
    for kind, choice in choices.items():
        mean_U = activity.mean(kind)
        top_U = choice.top(mean_U, fraction)
        chosen[kind] = _members(top_U, choice.layers_U)
        share[kind] = float(mean_U[top_U].sum() / mean_U.sum()) if bool(mean_U.any()) else 0.0
    return Route(
        domain=rollouts.domain,
        prompts=rollouts.num_groups,
        completions=len(rollouts),
        tokens=int(activity.tokens_K.sum()),
        neurons=chosen["neuron"],
        heads=chosen["head"],
        neuron_share=share["neuron"],
        head_share=share["head"],
    )


def _overlaps(
    activities: Mapping[str, Activity], choices: Mapping[str, Choice], levels: Sequence[float]
) -> tuple[list[Stability], list[Overlap]]:
    stable, overlaps = [], []
    for kind, choice in choices.items():
        for level in levels:
            found = {name: choice.top(activity.mean(kind), level) for name, activity in activities.items()}
            stable += [stability(name, activity, kind, choice, level) for name, activity in activities.items()]
            overlaps += [
                overlap((a, b), found[a], found[b], choice.layers_U, kind, level) for a, b in combinations(found, 2)
            ]
    return stable, overlaps


def _directions(
    activities: Mapping[str, Activity],
    choices: Mapping[str, Choice],
    fraction: float,
    edits: Mapping[str, Mapping[str, Tensor]],
    anatomy: Anatomy,
    minimum: float,
    seed: int,
    on_progress: Progress,
) -> tuple[list[Direction], dict[str, int]]:
    if not edits:
        return [], {}
    measure = {"neuron": neuron_products, "head": head_products}
    anatomy = getattr(next(iter(edits.values())), "anatomy", anatomy)  # on the disk tensors may lie otherwise
    products = {kind: measure[kind](edits, choice.layers_U, anatomy) for kind, choice in choices.items()}
    pairs = list(combinations(edits, 2))
    found = []
    for done, (a, b) in enumerate(pairs, 1):
        for kind, choice in choices.items():
            first_U, second_U = (choice.top(activities[name].mean(kind), fraction) for name in (a, b))
            layers_U = choice.layers_U
            found += directions((a, b), first_U & second_U, products[kind], layers_U, minimum=minimum, seed=seed)
        on_progress("directions on shared routes", done, len(pairs))
    return found, {name: count for kind in products for name, count in products[kind].non_finite.items()}


def _members(top_U: Tensor, layers_U: Tensor) -> dict[int, tuple[int, ...]]:
    """Layer -> positions within the layer of the chosen units."""
    members = {}
    for layer in layers_U.unique().tolist():
        inside_U = top_U[layers_U == layer]
        members[layer] = tuple(inside_U.nonzero().squeeze(1).tolist())
    return members


def _counts(layers_U: Tensor) -> dict[int, int]:
    layers, counts = torch.unique(layers_U, return_counts=True)
    return dict(zip(layers.tolist(), counts.tolist(), strict=True))
