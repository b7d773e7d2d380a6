"""Which neurons and attention heads each domain uses, which of them two domains share, and who pulls them where.

    found = routes("runs/seq", "runs/seq/checkpoints/step-80", edits={"math": (before, after), "qa": (after, end)})
    print(found)
    found.shared_neurons("math", "qa")   # layer -> neurons on both routes

A domain's route is the top of all neurons (and of all heads) by mean absolute contribution where its own completions
are predicted. Defined after LPT (arXiv 2606.02398), whose scoring rule is not public; the choices are ours.

Legend: U units (neurons or heads) of all layers.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from counterpoint.anatomy import Anatomy
from counterpoint.checkpoints import compare, open_checkpoint
from counterpoint.config import Config
from counterpoint.diagnosis._chance import chance_of, jaccard, jaccard_by_chance, sizes_in_layers
from counterpoint.diagnosis._contributions import Activity, Sites, activity_of, sites_of
from counterpoint.diagnosis.directions import MINIMUM, Direction, EditTensors, directions, unit_products
from counterpoint.diagnosis.rollouts import Rollouts
from counterpoint.diagnosis.subject import (
    Subject,
    check_enough,
    completions_for,
    config_of,
    counter,
    open_subject,
    wanted_domains,
)
from counterpoint.errors import CounterpointError, DomainError, nearest
from counterpoint.progress import Progress, silent
from counterpoint.results import Result
from counterpoint.tables import Cell, Table

MIN_PROMPTS = 2
"""Prompts per domain that two halves need."""

Checkpoints = str | Path | tuple[str | Path, str | Path]
"""The checkpoint after an edit, or those before and after it."""


@dataclass(frozen=True)
class Route:
    """What one domain uses most: units by layer, numbered within their layer.

    ``neuron_share`` is the share of all neurons' contribution that the route's have (were all alike, it would be their
    share of all neurons); ``prompts``, ``completions`` and ``tokens`` were measured.
    """

    domain: str
    prompts: int
    completions: int
    tokens: int
    neurons: dict[int, tuple[int, ...]]
    heads: dict[int, tuple[int, ...]]
    neuron_share: float


@dataclass(frozen=True)
class Stability:
    """Jaccard of a domain's route between two halves that share no prompt, and that of random sets."""

    domain: str
    kind: str
    jaccard: float
    chance: float


@dataclass(frozen=True)
class RouteOverlap:
    """How far the routes of two domains overlap: ``shared`` units in both, and their Jaccard.

    ``chance_in_layers`` is the expected Jaccard of random sets with as many units in each layer: that two domains use
    the same layers most is no shared route. ``p_value_in_layers`` is the exact chance that such sets share as many.
    """

    first: str
    second: str
    kind: str
    jaccard: float
    shared: int
    chance_in_layers: float
    p_value_in_layers: float


@dataclass(frozen=True, eq=False)
class Routes(Result):
    """The routes of a model's domains at one ``fraction`` of all units, their stability and overlaps.

    ``num_neurons`` and ``num_heads`` are those of each layer; ``layers_left_out`` have MLPs whose neurons are not
    known here. ``directions`` need edits; ``non_finite`` counts values of edits that are no numbers.
    """

    kind: ClassVar[str] = "routes"

    fraction: float
    num_neurons: dict[int, int]
    num_heads: dict[int, int]
    layers_left_out: tuple[int, ...]
    routes: tuple[Route, ...]
    stability: tuple[Stability, ...]
    overlaps: tuple[RouteOverlap, ...]
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

    def tables(self) -> list[Table]:
        """Overlaps first, then every route, then directions of edits."""
        found = [_overlap_table(self)] if self.overlaps else []
        found.append(_routes_table(self))
        return [*found, _directions_table(self)] if self.directions else found

    def sentences(self) -> list[str]:
        """What was left out, and how many verdicts noise would give."""
        said = []
        tested = [d for d in self.directions if d.part != "total" and d.verdict in ("synergy", "neutral", "conflict")]
        if tested:
            clear = sum(d.verdict != "neutral" for d in tested)
            said.append(
                f"{clear} of {len(tested)} modules are not neutral; noise would give up to {0.05 * len(tested):.1f}. "
                f"Cosines below {MINIMUM:g} count as neutral."
            )
        if self.layers_left_out:
            layers = ", ".join(map(str, self.layers_left_out))
            said.append(f"Left out: the MLPs of layers {layers}, whose neurons are not known here.")
        if not self.num_heads:
            said.append("Left out: attention heads, whose output projection is not known here.")
        return said + [f"Left out: {n} values of {name} that are no numbers." for name, n in self.non_finite.items()]


def routes(
    config: str | Path | Config,
    model: str | Path | None = None,
    *,
    domains: Sequence[str] | None = None,
    edits: Mapping[str, Checkpoints] | None = None,
    completions: Path | None = None,
    prompts: int = 64,
    samples: int = 4,
    seed: int = 0,
    fraction: float = 0.1,
    batch_size: int = 32,
    on_progress: Progress = silent,
) -> Routes:
    """Measures the routes of every domain on completions of ``model``, and what the domains share.

    Args:
        config: a configuration file, a run directory, or a configuration already read.
        model: a checkpoint folder, a hub id or ``pocket``; the configuration's own model where it is None.
        domains: names of those that are wanted; None means all.
        edits: domain -> the checkpoint after its training, or ``(before, after)``; before is the configuration's model
            where it is not given. Two or more give the directions of edits on shared routes.
        completions: a file with completions that an analysis saved, instead of sampling.
        prompts: prompts per domain, from its training rows.
        samples: completions of each prompt.
        seed: of sampling, resampling and controls.
        fraction: share of units that form a route.
        batch_size: completions in one forward pass.
        on_progress: called with what is done, how much of it, and how much there is.

    Raises:
        CounterpointError: too few completions, a fraction outside (0, 1], contributions that are not finite.
        ConfigError: a bad configuration, or a domain that it lacks.
        UnsupportedError: a model whose neurons are not known.
        ModelError: a model that cannot be read, or edits of another architecture.
    """
    config = config if isinstance(config, Config) else config_of(config)
    opened = _open_edits(edits or {}, str(config.model.path), wanted_domains(config, domains))
    _check(opened, fraction)
    subject = open_subject(config, model, domains)
    rollouts = completions_for(
        subject, file=completions, prompts=prompts, samples=samples, seed=seed, on_progress=on_progress
    )
    return measure_routes(
        subject.model,
        subject.tokenizer,
        rollouts,
        fraction=fraction,
        batch_size=batch_size,
        edits=opened,
        seed=seed,
        on_progress=on_progress,
    )


def measure_routes(
    model: Any,
    tokenizer: Any,
    rollouts_by_domain: Mapping[str, Rollouts],
    *,
    fraction: float = 0.1,
    batch_size: int = 32,
    edits: Mapping[str, Mapping[str, Tensor]] | None = None,
    seed: int = 0,
    on_progress: Progress = silent,
) -> Routes:
    """The same for a model in memory and completions at hand.

    Args:
        model: a causal language model of transformers; its training mode is restored and its hooks are removed.
        tokenizer: its tokenizer; only the padding token is used.
        rollouts_by_domain: completions of at least 2 prompts per domain.
        edits: domain -> parameter name -> edit (``EditTensors`` reads them from checkpoints).
        fraction, batch_size, seed, on_progress: as for ``routes``.

    Raises:
        CounterpointError, UnsupportedError, ModelError: as ``routes``.
    """
    _check(edits or {}, fraction)
    _check_rollouts(rollouts_by_domain, edits or {})
    sites = sites_of(model)
    activities = _activities(model, sites, rollouts_by_domain, tokenizer.pad_token_id, batch_size, on_progress)
    layers = {"neuron": sites.neuron_layers_N, "head": sites.head_layers_H}
    layers = {kind: layers_U for kind, layers_U in layers.items() if len(layers_U)}
    tops = {
        kind: {name: top_units(activity.mean(kind), fraction) for name, activity in activities.items()}
        for kind in layers
    }
    found, non_finite = _directions(tops, layers, edits or {}, sites.anatomy, seed, on_progress)
    return Routes(
        fraction=fraction,
        num_neurons=_counts(sites.neuron_layers_N),
        num_heads=_counts(sites.head_layers_H),
        layers_left_out=sites.left_out,
        routes=tuple(_route(rollouts_by_domain[name], one, tops, layers) for name, one in activities.items()),
        stability=tuple(stability(name, one, kind, fraction) for kind in layers for name, one in activities.items()),
        overlaps=tuple(
            route_overlap((a, b), tops[kind][a], tops[kind][b], layers[kind], kind)
            for kind in layers
            for a, b in combinations(activities, 2)
        ),
        directions=tuple(found),
        non_finite=non_finite,
    )


def shared_neurons(
    subject: Subject, rollouts: tuple[Rollouts, Rollouts], fraction: float, batch_size: int
) -> Mapping[int, Tensor]:
    """The neurons that are on the routes of both domains, as bool by layer: the top ``fraction`` of each."""
    sites, pad_id = sites_of(subject.model), subject.tokenizer.pad_token_id
    tops = [
        top_units(
            activity_of(subject.model, sites, part, pad_id=pad_id, batch_size=batch_size).mean("neuron"), fraction
        )
        for part in rollouts
    ]
    layers_N = sites.neuron_layers_N
    return {int(layer): (tops[0] & tops[1])[layers_N == layer] for layer in torch.unique(layers_N)}


def top_units(contribution_U: Tensor, fraction: float) -> Tensor:
    """The route as a bool vector [U]: the top ``fraction``, at least one unit, and none that contributes nothing."""
    count = max(1, round(fraction * len(contribution_U))) if len(contribution_U) else 0
    order = contribution_U.argsort(descending=True, stable=True)[:count]
    route_U = torch.zeros(len(contribution_U), dtype=torch.bool)
    route_U[order] = True
    return route_U & (contribution_U > 0)


def stability(domain: str, activity: Activity, kind: str, fraction: float) -> Stability:
    """Overlap of a domain's route with itself, measured on other prompts."""
    first_U, second_U = (top_units(activity.mean(kind, half), fraction) for half in (0, 1))
    chance = jaccard_by_chance(int(first_U.sum()), int(second_U.sum()), len(first_U))
    return Stability(domain, kind, jaccard(first_U, second_U), chance)


def route_overlap(
    names: tuple[str, str], first_U: Tensor, second_U: Tensor, layers_U: Tensor, kind: str
) -> RouteOverlap:
    """The overlap of two domains' routes, given as bool vectors, with chance in layers."""
    shared = int((first_U & second_U).sum())
    chance = chance_of(shared, sizes_in_layers(first_U, second_U, layers_U))
    found = jaccard(first_U, second_U)
    return RouteOverlap(*names, kind, found, shared, chance.jaccard, chance.p_value)


def _open_edits(edits: Mapping[str, Checkpoints], default: str, domains: Sequence[str]) -> dict[str, EditTensors]:
    """Opens headers only."""
    for name in edits:
        if name not in domains:
            raise DomainError(f"edits has a domain {name!r} that is not measured; {nearest(name, domains)}")
    pairs = {name: path if isinstance(path, tuple) else (default, path) for name, path in edits.items()}
    opened = {str(path): open_checkpoint(path) for pair in pairs.values() for path in pair}
    return {name: EditTensors(compare(opened[str(a)], opened[str(b)])) for name, (a, b) in pairs.items()}


def _check(edits: Mapping[str, Any], fraction: float) -> None:
    if not 0 < fraction <= 1:
        raise CounterpointError(f"fraction={fraction} must be above 0 and at most 1. Try 0.1.")
    if len(edits) == 1:
        raise CounterpointError(
            f"edits has one domain, {next(iter(edits))!r}; a direction on a shared route needs two or more. Give "
            "another one."
        )


def _check_rollouts(rollouts: Mapping[str, Rollouts], edits: Mapping[str, Any]) -> None:
    if not rollouts:
        raise CounterpointError("There are no completions, so no routes. Give those of at least one domain.")
    check_enough(rollouts, rollouts, MIN_PROMPTS, "Routes")
    for name in edits:
        if name not in rollouts:
            raise DomainError(
                f"There is an edit of {name!r} but no completions of that domain; {nearest(name, rollouts)}"
            )


def _activities(
    model: Any,
    sites: Sites,
    rollouts_by_domain: Mapping[str, Rollouts],
    pad_id: int,
    batch_size: int,
    on_progress: Progress,
) -> dict[str, Activity]:
    found = {}
    for name, rollouts in rollouts_by_domain.items():
        count = counter(f"routes of {name}", len(rollouts), on_progress)
        found[name] = activity_of(model, sites, rollouts, pad_id=pad_id, batch_size=batch_size, on_batch=count)
    return found


def _route(
    rollouts: Rollouts,
    activity: Activity,
    tops: Mapping[str, Mapping[str, Tensor]],
    layers: Mapping[str, Tensor],
) -> Route:
    chosen = {kind: _members(tops[kind][rollouts.domain], layers_U) for kind, layers_U in layers.items()}
    mean_N = activity.mean("neuron")
    share = float(mean_N[tops["neuron"][rollouts.domain]].sum() / mean_N.sum()) if bool(mean_N.any()) else 0.0
    return Route(
        domain=rollouts.domain,
        prompts=rollouts.num_groups,
        completions=len(rollouts),
        tokens=int(activity.tokens_K.sum()),
        neurons=chosen["neuron"],
        heads=chosen.get("head", {}),
        neuron_share=share,
    )


def _directions(
    tops: Mapping[str, Mapping[str, Tensor]],
    layers: Mapping[str, Tensor],
    edits: Mapping[str, Mapping[str, Tensor]],
    anatomy: Anatomy,
    seed: int,
    on_progress: Progress,
) -> tuple[list[Direction], dict[str, int]]:
    if not edits:
        return [], {}
    anatomy = getattr(next(iter(edits.values())), "anatomy", anatomy)  # on the disk tensors may lie otherwise
    products = {kind: unit_products(edits, layers_U, anatomy, kind) for kind, layers_U in layers.items()}
    pairs = list(combinations(edits, 2))
    found = []
    for done, (a, b) in enumerate(pairs, 1):
        for kind, layers_U in layers.items():
            found += directions((a, b), tops[kind][a] & tops[kind][b], products[kind], layers_U, seed=seed)
        on_progress("directions on shared routes", done, len(pairs))
    return found, {name: count for one in products.values() for name, count in one.non_finite.items()}


def _members(top_U: Tensor, layers_U: Tensor) -> dict[int, tuple[int, ...]]:
    """Layer -> positions within the layer of the chosen units."""
    layers = layers_U.unique().tolist()
    return {layer: tuple(top_U[layers_U == layer].nonzero().squeeze(1).tolist()) for layer in layers}


def _counts(layers_U: Tensor) -> dict[int, int]:
    layers, counts = torch.unique(layers_U, return_counts=True)
    return dict(zip(layers.tolist(), counts.tolist(), strict=True))


def _overlap_table(found: Routes) -> Table:
    rows = [
        (f"{o.first} | {o.second}", f"{o.kind}s", o.jaccard, o.chance_in_layers, o.p_value_in_layers)
        for o in found.overlaps
    ]
    return Table(
        f"Do two domains use the same {found.fraction:.0%} of units?",
        ("domains", "units", "Jaccard", "by chance", "p"),
        tuple(rows),
        {"Jaccard": ".3f", "by chance": ".3f", "p": ".1g"},
        "by chance, p: random sets with as many units in each layer (exact).",
    )


def _routes_table(found: Routes) -> Table:
    halves = {(s.domain, s.kind): s.jaccard for s in found.stability}
    chance = max((s.chance for s in found.stability), default=0.0)
    rows: list[tuple[Cell, ...]] = [
        (r.domain, r.tokens, r.neuron_share, halves.get((r.domain, "neuron")), halves.get((r.domain, "head")))
        for r in found.routes
    ]
    title = f"Routes: the top {found.fraction:.0%} of {sum(found.num_neurons.values()):,} neurons"
    title += f" and {sum(found.num_heads.values()):,} heads" if found.num_heads else ""
    return Table(
        title,
        ("domain", "tokens", "share of contribution", "same on other prompts: neurons", "heads"),
        tuple(rows),
        {"share of contribution": ".0%", "same on other prompts: neurons": ".2f", "heads": ".2f"},
        f"same on other prompts: Jaccard of the routes of two halves of the prompts; by chance {chance:.2f} or less.",
    )


def _directions_table(found: Routes) -> Table:
    shown = [d for d in found.directions if d.part == "total" or d.verdict in ("synergy", "conflict")]
    rows: list[tuple[Cell, ...]] = [
        (f"{d.first} | {d.second}", d.name, d.cosine, d.elsewhere.value if d.elsewhere else None, d.verdict)
        for d in shown
    ]
    return Table(
        "Do two edits pull what both domains use the same way?",
        ("edits", "part", "cosine", "elsewhere", "verdict"),
        tuple(rows),
        {"cosine": ".2f", "elsewhere": ".2f"},
        "elsewhere: as many random units of the same layers that are not on both routes.",
    )
