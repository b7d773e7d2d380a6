"""Tables for people about conflicts: first the sentence that matters, then pairs and groups."""

import math
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from counterpoint.diagnosis.conflict_analysis.controls import Control
    from counterpoint.diagnosis.conflict_analysis.over_time import ConflictsOverTime, PairsOverTime
    from counterpoint.diagnosis.conflict_analysis.results import Conflicts, GroupConflicts, MetricConflicts

MOST_ROWS = 12
"""Groups a table lists; JSON holds all."""

_OVER_TIME = ("cosine", "s.e.", "step", "noise", "neg.", "p")

_METRICS = {"gradient": "", "adam": " after Adam"}


def print_conflicts(found: "Conflicts", by: str = "module", console: Console | None = None) -> None:
    """Prints what was found under every metric."""
    console = console or Console()
    for metric in found.metrics:
        groups = metric.grouping(by)
        _say(console, conflicts_sentence(metric, by))
        console.print(_pairs_table(found, metric, groups))
        for sign, title in ((-1, "Conflicts beyond noise"), (1, "Pulling together beyond noise")):
            if bool((groups.verdict_GQ == sign).any()):
                console.print(_groups_table(groups, sign, title + _METRICS.get(metric.metric, "")))
    _say(console, _basis(found))


def conflicts_sentence(metric: "MetricConflicts", by: str) -> str:
    """How many groups x pairs conflict beyond noise, and what the controls found."""
    groups = metric.grouping(by)
    within = groups.tested - groups.conflicts - groups.synergies
    return (
        f"{groups.conflicts} of {groups.tested} ({by}, pair of domains) combinations conflict beyond noise"
        f"{_METRICS.get(metric.metric, '')}; {groups.synergies} pull together, {within} are within noise. "
        + " ".join(_control_sentence(control) for control in groups.controls)
    )


def _control_sentence(control: "Control") -> str:
    return f"Control, {control.kind}: {control.conflicts} conflicts in {control.tests:,} tests."


def _basis(found: "Conflicts") -> str:
    parts = [
        f"{domain} {prompts} prompts ({completions:,} completions)"
        for domain, prompts, completions in zip(found.domains, found.prompts, found.completions, strict=True)
    ]
    return (
        f"Measured on {'; '.join(parts)}, in {found.batches} batches and {found.splits} splits. False discovery rate "
        f"{found.level:g}. Floor: what |cosine| stays below by noise alone. '-': lost in noise, "
        "more prompts are needed."
    )


def _pairs_table(found: "Conflicts", metric: "MetricConflicts", groups: "GroupConflicts") -> Table:
    table = _table(
        f"Whole model{_METRICS.get(metric.metric, '')}, and {groups.grouping}s beyond noise",
        "domains",
        *("cosine", "floor", "without noise", "conflict", "synergy", "of"),
    )
    whole = next((one for one in metric.groupings if one.grouping == "global"), None)
    for q, pair in enumerate(groups.pairs):
        cells = _cosine_cells(whole, 0, q) if whole else ["-"] * 3
        verdict_G = groups.verdict_GQ[:, q]
        counts = [int((verdict_G < 0).sum()), int((verdict_G > 0).sum()), int(groups.p_value_GQ[:, q].isfinite().sum())]
        table.add_row(_pair(pair), *cells, *map(str, counts))
    halves = whole.split_half_GD[0].tolist() if whole else []
    alone = ", ".join(f"{domain} {_signed(half)}" for domain, half in zip(found.domains, halves, strict=False))
    table.caption = f"a domain with itself, half of its batches against the other half: {escape(alone)}"
    return table


def _groups_table(groups: "GroupConflicts", sign: int, title: str) -> Table:
    beyond = (groups.verdict_GQ == sign).nonzero().tolist()
    beyond.sort(key=lambda place: float(groups.p_value_GQ[*place]))
    rest = f" (the {MOST_ROWS} surest of {len(beyond)})" if len(beyond) > MOST_ROWS else ""
    table = _table(f"{title}{rest}", groups.grouping, *("domains", "cosine", "floor", "without noise", "p"))
    for g, q in beyond[:MOST_ROWS]:
        p_value = _p(float(groups.p_value_GQ[g, q]))
        table.add_row(escape(groups.groups[g]), _pair(groups.pairs[q]), *_cosine_cells(groups, g, q), p_value)
    return table


def _cosine_cells(groups: "GroupConflicts", g: int, q: int) -> list[str]:
    debiased, low, floor = (float(part[g, q]) for part in (groups.debiased_GQ, groups.debiased_low_GQ, groups.floor_GQ))
    wide = "-" if math.isnan(debiased) else f"{debiased:+.3f} ± {debiased - low:.3f}"
    return [_signed(float(groups.cosine_GQ[g, q])), "-" if math.isnan(floor) else f"{floor:.3f}", wide]


def print_over_time(found: "ConflictsOverTime", by: str = "module", console: Console | None = None) -> None:
    """Prints what the steps of a run say together."""
    console = console or Console()
    groups = found.grouping(by)
    within = groups.tested - groups.conflicts - groups.synergies
    _say(
        console,
        f"Over {len(found.steps)} recorded steps, {groups.conflicts} of {groups.tested} ({by}, pair of domains) "
        f"combinations conflict beyond noise; {groups.synergies} pull together, {within} are within noise.",
    )
    untested = groups.p_value_GQ.numel() - groups.tested
    if untested:
        _say(console, f"{untested} more cannot be told: in too few steps both domains have a gradient (16 are needed).")
    whole = _table("Whole model, mean over steps", "domains", *_OVER_TIME)
    for q, pair in enumerate(found.pairs):
        whole.add_row(_pair(pair), *_over_time_cells(found.grouping("global"), 0, q))
    console.print(whole)
    beyond = groups.verdict_GQ.nonzero().tolist()
    if beyond:
        beyond.sort(key=lambda place: (int(groups.verdict_GQ[*place]), float(groups.p_value_GQ[*place])))
        rest = f" ({MOST_ROWS} of {len(beyond)})" if len(beyond) > MOST_ROWS else ""
        table = _table(f"Beyond noise{rest}", by, "domains", *_OVER_TIME)
        for g, q in beyond[:MOST_ROWS]:
            table.add_row(escape(groups.groups[g]), _pair(found.pairs[q]), *_over_time_cells(groups, g, q))
        console.print(table)
    _say(
        console,
        "Step: median |cosine| of a single step; noise: what deviations around zero alone would give; neg.: share of "
        "steps below zero (noise: 50 %). Standard errors allow for steps that resemble their neighbours.",
    )


def _over_time_cells(groups: "PairsOverTime", g: int, q: int) -> list[str]:
    mean, error, size, noise, negative, p_value = (
        float(part[g, q])
        for part in (
            groups.mean_GQ,
            groups.standard_error_GQ,
            groups.median_size_GQ,
            groups.noise_size_GQ,
            groups.negative_share_GQ,
            groups.p_value_GQ,
        )
    )
    share = "-" if math.isnan(negative) else f"{negative:.0%}"
    return [_signed(mean), *("-" if math.isnan(x) else f"{x:.3f}" for x in (error, size, noise)), share, _p(p_value)]


def _table(title: str, first: str, *rest: str) -> Table:
    table = Table(title=title, title_justify="left", caption_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column(first, style="bold", no_wrap=first == "domains", overflow="fold")
    for name in rest:
        words = name == "domains"
        table.add_column(name, justify="left" if words else "right", no_wrap=True)
    return table


def _pair(pair: tuple[str, str]) -> str:
    return escape(" - ".join(pair))


def _signed(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:+.3f}"


def _p(value: float) -> str:
    return "-" if math.isnan(value) else "<.001" if value < 0.001 else f"{value:.3f}"


def _say(console: Console, text: str) -> None:
    console.print(escape(text), soft_wrap=True, highlight=False)
