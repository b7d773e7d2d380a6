"""How much of a run goes into the page, so that the page stays below its promised size."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Detail:
    """Upper bounds on what the page repeats of the run's files."""

    curve_points: int
    """Points of one curve; longer ones are averaged in bins."""
    heat_cells: int
    """Cells of all heat maps together."""
    samples: int
    """Prompts shown per domain."""
    characters: int
    """Characters of one prompt or completion."""
    domains: int
    """Domains shown apart."""


LEVELS = (
    Detail(curve_points=400, heat_cells=60_000, samples=6, characters=6_000, domains=24),
    Detail(curve_points=150, heat_cells=20_000, samples=4, characters=2_000, domains=16),
    Detail(curve_points=60, heat_cells=6_000, samples=2, characters=600, domains=8),
)
"""Tried in order until the page is small enough."""
