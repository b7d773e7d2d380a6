"""Tables for people about damage: predictions beside what was measured, parts beside what chance carries."""

from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from counterpoint.diagnosis.damage_analysis.parts import RoutePart
    from counterpoint.diagnosis.damage_analysis.results import Damage, RewardDrop
    from counterpoint.diagnosis.damage_analysis.spectrum import Spectrum
    from counterpoint.stats import Estimate

MODULES_SHOWN = 12


def print_damage(found: "Damage", console: Console | None = None) -> None:
    """Prints every table that the result has numbers for, and the verdict."""
    console = console or Console()
    console.print(_orders(found))
    if found.modules:
        console.print(_modules(found, wide=console.width >= 96))
    if found.route:
        console.print(_route(found.domain, found.route))
    if found.range:
        console.print(_scales(found))
    sentences = [
        *([_spectrum_sentence(found.spectrum)] if found.spectrum else []),
        *([_reward_sentence(found.reward)] if found.reward else []),
        found.verdict,
        *([found.stopped] if found.stopped else []),
    ]
    for sentence in sentences:
        console.print(escape(sentence), soft_wrap=True, highlight=False)


def _orders(found: "Damage") -> Table:
    title = (
        f"Damage to {escape(found.domain)}, {found.options.surrogate} loss per token, "
        f"{found.informative} of {found.prompts} prompts have a signal"
    )
    table = _table(title, "term", "value", "95 %")
    rows = {
        "first order g.d": found.first,
        "second order ½ d'Hd": found.second,
        "first + second": found.predicted,
        "measured": found.measured,
        "measured - predicted": found.difference,
        "Gauss-Newton ½ d'Gd": found.gauss_newton,
        "Fisher ½ d'Fd (nats)": found.fisher,
    }
    for name, value in rows.items():
        if value is not None:
            table.add_row(name, f"{value.value:+.3g}", _interval(value))
    if found.random_edit:
        low, high = found.random_edit.low, found.random_edit.high
        table.add_row("random edit, measured", f"{found.random_edit.value:+.3g}", f"{low:+.3g} … {high:+.3g}")
        table.caption = f"random edits are as large in every module; lowest … highest of {found.options.draws}"
    return table


def _modules(found: "Damage", wide: bool) -> Table:
    columns = ["g.d", "½ d'Hd", "95 %", "|d|² (size)", *(["alone"] if wide else [])]
    table = _table("By module (rows add up)", "module", *columns)
    for row in found.modules[:MODULES_SHOWN]:
        table.add_row(
            escape(row.module),
            f"{row.first.value:+.2g}",
            f"{row.second.value:+.2g}",
            _interval(row.second),
            f"{row.edit_share:.0%} ({row.size_share:.0%})",
            *([f"{row.own_block.value:+.2g}" if row.own_block else "-"] if wide else []),
        )
    hidden = len(found.modules) - MODULES_SHOWN
    table.caption = "|d|² (size): share of the edit (of all weights)" + (
        f" · {hidden} smaller modules are left out; --json has all" if hidden > 0 else ""
    )
    return table


def _route(domain: str, route: "RoutePart") -> Table:
    title = (
        f"Neurons on the routes of both {escape(domain)} and {escape(route.other)}: {route.neurons} of "
        f"{route.all_neurons}, {route.edit_share:.1%} of |d|²"
    )
    table = _table(title, "part", "g.d", "½ d'Hd", "95 %")
    table.add_row("shared neurons", f"{route.first_on.value:+.2g}", *_cells(route.second_on))
    table.add_row("all else", f"{route.first_off.value:+.2g}", *_cells(route.second_off))
    table.add_row("between the two", "", *_cells(route.cross))
    low, high = route.random_second.low, route.random_second.high
    second = f"{route.random_second.value:+.2g}"
    table.add_row("random neurons", f"{route.random_first.value:+.2g}", second, f"{low:+.2g} … {high:+.2g}")
    table.caption = f"as many random neurons in each layer: mean, lowest … highest of {route.draws} sets"
    return table


def _scales(found: "Damage") -> Table:
    assert found.range is not None
    table = _table("Along the edit", "times d", "predicted", "measured", "95 %", "error", "of terms")
    for point in found.range.points:
        table.add_row(
            f"{point.scale:g}",
            f"{point.predicted.value:+.3g}",
            f"{point.measured.value:+.3g}",
            _interval(point.measured),
            f"{point.relative_error:.0%}",
            f"{point.term_error:.0%}{' (noise)' if point.within_noise else ''}",
        )
    table.caption = (
        "error: over the measured; of terms: over the largest of measured, first and second order\n"
        "(noise): other prompts could make measured and predicted agree"
    )
    return table


def _spectrum_sentence(found: "Spectrum") -> str:
    count = len(found.directions)
    return (
        f"The {count} strongest eigen-directions (eigenvalues {found.smallest[0]:.3g} to {found.largest[0]:.3g}) hold "
        f"{found.edit_share:.2g} of |d|² and carry {found.share.value:.0%} [{found.share.low:.0%}, "
        f"{found.share.high:.0%}] of the second order; found on half of the prompts, they carry "
        f"{found.other_half_share.value:.0%} of the other half's. Random directions carry "
        f"{found.random_share.value:.2g} on average, in the same modules {found.module_random_share.value:.2g}."
    )


def _reward_sentence(found: "RewardDrop") -> str:
    change = found.change
    sure = " (within noise)" if change.low <= 0 <= change.high else ""
    return (
        f"Held-out reward: {found.before.value:.3f} before, {found.after.value:.3f} after, change {change.value:+.3f} "
        f"[{change.low:+.3f}, {change.high:+.3f}]{sure}, {found.prompts} prompts."
    )


def _cells(value: "Estimate") -> tuple[str, str]:
    return f"{value.value:+.2g}", _interval(value)


def _interval(value: "Estimate") -> str:
    return f"\\[{value.low:.2g}, {value.high:.2g}]"


def _table(title: str, first: str, *others: str) -> Table:
    table = Table(title=title, title_justify="left", caption_justify="left")
    table.add_column(first, style="bold", overflow="fold")
    for name in others:
        table.add_column(name, justify="right", no_wrap=True)
    return table
