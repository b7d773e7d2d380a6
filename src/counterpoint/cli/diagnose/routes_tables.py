"""Tables for people about routes: overlaps beside chance, routes beside the same domain on other prompts."""

from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from counterpoint.diagnosis.route_analysis.analysis import Routes
    from counterpoint.stats import Estimate


COLUMNS = 5
"""Fractions whose overlap and chance fit beside each other in 80 columns."""


def print_routes(found: "Routes", console: Console | None = None) -> None:
    """Prints routes, overlaps and directions."""
    console = console or Console()
    console.print(_routes_table(found))
    if found.overlaps:
        console.print(_overlap_table(found))
        for kind in dict.fromkeys(o.kind for o in found.overlaps):
            console.print(_fractions_table(found, kind))
    if found.directions:
        console.print(_directions_table(found))
        console.print(_modules_sentence(found), soft_wrap=True, highlight=False)
    for sentence in _notes(found):
        console.print(escape(sentence), soft_wrap=True, highlight=False)


def _routes_table(found: "Routes") -> Table:
    top = f"top {found.fraction:.0%} of {sum(found.num_neurons.values()):,} neurons"
    if found.num_heads:
        top += f" and {sum(found.num_heads.values()):,} heads"
    layers = ", layer by layer" if found.per_layer else ""
    table = _table(
        f"Routes: {top}{layers}, on {found.tokens} tokens",
        "domain",
        *("tokens", "contribution", "stability: neurons", "heads"),
    )
    for route in found.routes:
        stable = {s.kind: s for s in found.stability if s.domain == route.domain and s.fraction == found.fraction}
        cells = [f"{s.jaccard:.2f} ({s.chance:.2f})" if (s := stable.get(kind)) else "-" for kind in ("neuron", "head")]
        table.add_row(escape(route.domain), f"{route.tokens:,}", f"{route.neuron_share:.0%}", *cells)
    table.caption = "stability: Jaccard of two halves without a common prompt (by chance)"
    return table


def _overlap_table(found: "Routes") -> Table:
    table = _table(
        f"Overlap of neurons, Jaccard at {found.fraction:.0%}",
        "domains",
        *("overlap", "chance", "p"),
    )
    for o in found.overlaps:
        if o.kind == "neuron" and o.fraction == found.fraction:
            table.add_row(_pair(o), f"{o.jaccard:.3f}", f"{o.chance_in_layers:.3f}", _p(o.p_value_in_layers))
    table.caption = "chance, p: random sets with as many in each layer · one domain with itself: stability, above"
    return table


def _fractions_table(found: "Routes", kind: str) -> Table:
    chosen = {(o.first, o.second, o.fraction): o for o in found.overlaps if o.kind == kind}
    fractions = sorted({fraction for _, _, fraction in chosen})
    table = _table(f"Overlap of {kind}s / chance in layers", "domains", *(f"{f:.0%}" for f in fractions))
    for first, second in dict.fromkeys((a, b) for a, b, _ in chosen):
        row = [chosen[first, second, fraction] for fraction in fractions]
        slash = "/" if len(fractions) <= COLUMNS else "/\n"
        table.add_row(_pair(row[0]), *(f"{o.jaccard:.2f}{slash}{o.chance_in_layers:.2f}" for o in row))
    return table


def _directions_table(found: "Routes") -> Table:
    table = _table(
        "Cosine of two edits on the neurons, and heads, that both domains use",
        "edits (number)",
        *("cosine [95 %]", "noise", "elsewhere", "verdict"),
    )
    for d in found.directions:
        told = d.verdict in (_TESTED if d.part == "total" else ("synergy", "conflict"))
        whole = d.part == "total" and d.kind == "neuron"
        if whole or (told and (d.part == "total" or d.part.startswith("layers"))):
            name = _pair(d) if whole else "  heads" if d.part == "total" else f"  {d.part}"
            control = f"{d.control.value:.2f}±{(d.control.high - d.control.low) / 2:.2f}" if d.control else "-"
            verdict = d.verdict + ("*" if d.p_elsewhere <= 0.05 else "")
            table.add_row(f"{name} ({d.neurons:,})", _interval(d.cosine), f"±{d.noise:.2f}", control, verdict)
    table.caption = (
        "noise: random signs, 95 % · elsewhere: as many random neurons of the same layers, 95 % · * unlike elsewhere"
    )
    return table


def _modules_sentence(found: "Routes") -> str:
    tested = [d for d in found.directions if d.part.startswith("layers") and d.verdict in _TESTED]
    clear = [d for d in tested if d.verdict != "neutral"]
    return (
        f"Modules: {len(clear)} of {len(tested)} are not neutral; noise would give up to {0.05 * len(tested):.1f}. "
        f"Cosines below {found.minimum_cosine:g} count as neutral."
    )


_TESTED = ("synergy", "neutral", "conflict")


def _notes(found: "Routes") -> list[str]:
    notes = []
    if found.layers_left_out:
        layers = ", ".join(map(str, found.layers_left_out))
        notes.append(f"Left out: the MLPs of layers {layers}, whose neurons are not known here.")
    if not found.num_heads:
        notes.append("Left out: attention heads, whose output projection is not known here.")
    for name, count in found.non_finite.items():
        notes.append(f"Left out: {count} values of {name} that are no numbers.")
    return notes


def _table(title: str, first: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", caption_justify="left")
    table.add_column(first, style="bold", overflow="fold")
    for column in columns:
        table.add_column(column, justify="right")
    return table


def _pair(item: Any) -> str:
    return escape(f"{item.first} - {item.second}")


def _p(value: float) -> str:
    return f"{value:.2g}" if value >= 1e-4 else "<1e-4"


def _interval(estimate: "Estimate") -> str:
    if estimate.low != estimate.low:
        return f"{estimate.value:.2f}"
    return f"{estimate.value:.2f} \\[{estimate.low:.2f},{estimate.high:.2f}]"
