"""Tables for people about edits: every number beside what chance or rounding gives."""

from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from counterpoint.diagnosis.edit_analysis.results import Beside, CheckpointEdits, Direction, Edits, PairEdits

MODULES_SHOWN = 12
"""Modules with the largest relative edit; the JSON has them all."""

SMALLEST_P = 1e-6
"""Smaller p-values are told as below this; the JSON has them."""


def print_edits(found: "Edits", console: Console | None = None) -> None:
    """Prints what changed, where, what the checkpoints share, and LPT's numbers to read beside."""
    console = console or Console()
    console.print(_sparsity(found))
    console.print(_curve(found, "absolute_curve", "Share of weights whose edit is below ..."))
    console.print(_curve(found, "relative_curve", "Share of weights whose relative edit is below ..."))
    for checkpoint in found.checkpoints:
        if not checkpoint.equal:
            console.print(_modules(checkpoint))
    if any(pair.overlap for pair in found.pairs):
        console.print(_overlaps(found))
    if found.pairs:
        console.print(_directions(found))
    for sentence in sentences(found):
        console.print(escape(sentence), soft_wrap=True, highlight=False)


def sentences(found: "Edits") -> list[str]:
    """What must be said beside the tables."""
    said = []
    for checkpoint in found.checkpoints:
        if checkpoint.equal:
            said.append(f"{checkpoint.name} equals {checkpoint.against}: every weight is the same.")
        if checkpoint.nonfinite:
            worst = ", ".join(
                f"{entry.tensor} ({entry.base} before, {entry.checkpoint} after)" for entry in checkpoint.nonfinite[:3]
            )
            said.append(
                f"{checkpoint.name}: NaN or Inf in {len(checkpoint.nonfinite)} tensors, left out of every number: "
                f"{worst}{' and others' if len(checkpoint.nonfinite) > 3 else ''}."
            )
    rounded = [c.name for c in found.checkpoints if next(iter(c.rounding.dtypes), "") == "bfloat16"]
    if rounded:
        said.append(
            f"Stored in bfloat16: {', '.join(rounded)}. Edits below half a step were rounded away before they could be "
            "seen here, so the sparsity is at least partly that of the format."
        )
    if rounded and found.chain and found.pairs:
        said.append(
            "In a chain of rounded checkpoints the rounding of each is in both edits beside it with opposite signs, "
            "which pulls their cosine and their agreement of signs down."
        )
    if found.skipped:
        said.append(
            f"{len(found.skipped)} tensors were not compared, {found.skipped[0]} among them: they hold whole numbers, "
            "or only one side has a place for them (a tower for images)."
        )
    reference = found.reference
    said.append(
        f"For reference, LPT (arXiv 2606.02398) reports {reference.unchanged_low:.0%}-{reference.unchanged_high:.0%} "
        f"of weights unchanged and a top-10 % Jaccard below {reference.jaccard_below} (chance 0.053) for experts of "
        "one 4B model."
    )
    return said


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", caption_justify="left")
    table.add_column(columns[0], style="bold", no_wrap=True)
    for column in columns[1:]:
        table.add_column(column, justify="right", overflow="fold")
    return table


def _sparsity(found: "Edits") -> Table:
    t = found.thresholds
    joined = "and" if t.reading == "both" else "or"
    table = _table(
        f"Unchanged weights: |edit| < {t.absolute:g} {joined} relative edit < {t.relative:g}",
        *("checkpoint", "unchanged", "identical", "bf16 hides", "equal in bf16", "norm", "relative"),
    )
    for c in found.checkpoints:
        shares = c.sparsity.unchanged, c.sparsity.identical, c.rounding.below_half_step
        table.add_row(
            escape(c.name),
            *map(_percent, (*shares, c.rounding.unchanged_in_bfloat16)),
            f"{c.whole.norm:.3g}",
            _number(c.whole.relative_norm),
        )
    table.caption = "bf16 hides: edits below half a bfloat16 step; equal in bf16: before and after round to the same"
    return table


def _curve(found: "Edits", which: str, title: str) -> Table:
    """One of the two curves over thresholds, a row per checkpoint."""
    curves = [getattr(checkpoint.sparsity, which) for checkpoint in found.checkpoints]
    table = _table(title, "checkpoint", *(f"{float(threshold):.0e}".replace("e-0", "e-") for threshold in curves[0]))
    for checkpoint, curve in zip(found.checkpoints, curves, strict=True):
        table.add_row(escape(checkpoint.name), *(_two_digits(share) for share in curve.values()))
    return table


def _modules(checkpoint: "CheckpointEdits") -> Table:
    moved = [part for part in checkpoint.modules if part.norm]
    shown = sorted(moved, key=lambda part: -(part.relative_norm or 0))[:MODULES_SHOWN]
    title = f"{escape(checkpoint.name)} against {escape(checkpoint.against)}"
    if len(shown) < len(moved):
        title += f": the {len(shown)} of {len(moved)} modules with the largest relative edit"
    table = _table(title, "module", "norm", "rel.", "same", "rank", "top 1", "top 8")
    for part in [part for part in checkpoint.modules if part in shown] + [checkpoint.whole]:
        if part is checkpoint.whole:
            table.add_section()
        table.add_row(
            part.name,
            f"{part.norm:.3g}",
            _number(part.relative_norm),
            _percent(part.unchanged),
            _rank(part.effective_rank),
            _share(part.top_1),
            _share(part.top_8),
        )
    table.caption = (
        "rel.: norm over that of the weights; same: unchanged weights; rank: effective rank; top 1, top 8: share of "
        "the edit's energy in its strongest directions; in brackets: a random edit of the same shapes"
    )
    return table


def _overlaps(found: "Edits") -> Table:
    title = f"Most changed {found.top_share:.0%} of neurons ({found.neuron_norm}): do two checkpoints share them?"
    table = _table(title, "pair", "Jaccard", "chance", "p", "in layers", "p", "95 %")
    for pair in found.pairs:
        if pair.overlap is None:
            continue
        o, shuffled = pair.overlap, pair.overlap.within_layers.shuffled
        table.add_row(
            _pair_name(pair),
            f"{o.jaccard:.3f}",
            f"{o.over_all.jaccard:.3f}",
            _p(o.over_all.p_value),
            f"{o.within_layers.jaccard:.3f}",
            _p(o.within_layers.p_value),
            f"{shuffled.low:.3f}-{shuffled.high:.3f}" if shuffled else "-",
        )
    table.caption = (
        "chance: of random sets; in layers: of sets shuffled inside layers, with where 95 % of shuffles fall"
    )
    return table


def _directions(found: "Edits") -> Table:
    table = _table("Do two edits point the same way?", "pair", "part", "cosine", "noise", "same sign", "noise")
    for pair in found.pairs:
        known = [part for part in pair.modules if part.cosine is not None]
        ends = sorted(known, key=lambda part: part.cosine or 0.0)
        rows = [pair.whole] + ([ends[0], ends[-1]] if len(ends) > 1 else [])
        for i, part in enumerate(rows):
            table.add_row("" if i else _pair_name(pair), *_direction(part))
    table.caption = (
        "all weights, then the modules of lowest and highest cosine; chance is 0 and 50 %, give or take noise"
    )
    return table


def _direction(part: "Direction") -> tuple[str, ...]:
    if part.cosine is None or part.cosine_noise is None:
        return part.name, "-", "-", "-", "-"
    if part.same_sign is None or part.same_sign_noise is None:
        return part.name, f"{part.cosine:+.3f}", f"± {part.cosine_noise:.3f}", "-", "-"
    return (
        part.name,
        f"{part.cosine:+.3f}",
        f"± {part.cosine_noise:.3f}",
        f"{part.same_sign:.1%}",
        f"± {part.same_sign_noise:.1%}",
    )


def _pair_name(pair: "PairEdits") -> str:
    return f"{escape(pair.first)} | {escape(pair.second)}"


def _percent(share: float) -> str:
    return f"{share:.1%}" if share >= 0.001 or not share else f"{share:.0e}"


def _p(value: float) -> str:
    return f"{value:.1g}" if value >= SMALLEST_P else f"< {SMALLEST_P:g}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2g}"


def _rank(value: "Beside | None") -> str:
    return f"{value.value:.0f} ({value.random:.0f})" if value else "-"


def _share(value: "Beside | None") -> str:
    return f"{_two_digits(value.value)} ({_two_digits(value.random)})" if value else "-"


def _two_digits(share: float) -> str:
    return f"{share:.0%}" if share >= 0.095 else f"{100 * share:.2g}%"
