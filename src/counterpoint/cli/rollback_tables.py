"""Tables of a rollback: what was tried on the selection split, and what came of it on the test split."""

from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from counterpoint.recovery import Rollback
from counterpoint.recovery.rolling_back.results import Reported, Trial


def print_rollback(found: Rollback, console: Console | None = None) -> None:
    """Prints the tables, the notes and the verdict."""
    console = console or Console()
    if found.tried:
        console.print(_tried(found))
    if found.reported:
        console.print(_reported(found))
    for note in found.notes:
        console.print(f"[dim]{escape(note)}[/dim]", soft_wrap=True, highlight=False)
    console.print(escape(found.verdict), soft_wrap=True, highlight=False)


def _tried(found: Rollback) -> Table:
    assert found.selection is not None, "what was tried was measured somewhere"
    split = found.selection
    table = Table(
        title=f"Selection split ({split.split}: {split.prompts} prompts a domain, {split.samples} samples)",
        title_justify="left",
    )
    for column in ("budget", "back", f"{found.domain}", "average", f"{found.domain}, random", "average, random"):
        table.add_column(column, justify="right")
    nothing = next(trial for trial in found.tried if trial.kind == "after")
    table.add_row("none", "", *_means([nothing], found.domain), "", "")
    for trial in found.tried:
        if trial.kind == "rollback":
            best = found.chosen is not None and (trial.budget, trial.scale) == (
                found.chosen.budget,
                found.chosen.scale,
            )
            beside = [
                one
                for one in found.tried
                if one.kind == "random" and (one.budget, one.scale) == (trial.budget, trial.scale)
            ]
            cells = [f"{trial.budget:.2%}", f"{trial.scale:.0%}"]
            cells += [*_means([trial], found.domain), *_means(beside, found.domain)]
            table.add_row(*cells, style="bold" if best else None)
    return table


def _means(trials: Sequence[Trial], domain: str) -> tuple[str, str]:
    own = sum(trial.scores[domain] for trial in trials) / len(trials)
    average = sum(sum(trial.scores.values()) / len(trial.scores) for trial in trials) / len(trials)
    return f"{own:.3f}", f"{average:.3f}"


def _reported(found: Rollback) -> Table:
    assert found.test is not None, "what is reported was measured somewhere"
    table = Table(
        title=f"Test split ({found.test.split}: {found.test.prompts} prompts a domain, {found.test.samples} samples), "
        "mean reward and change against after [95 %]",
        title_justify="left",
    )
    table.add_column("domain", style="bold")
    for row in found.reported:
        table.add_column(row.name if row.draw is None else f"random {row.draw + 1}", justify="right")
    for domain in found.reported[0].scores:
        table.add_row(domain, *(_cell(row, domain) for row in found.reported))
    return table


def _cell(row: Reported, domain: str) -> str:
    score, change = row.scores[domain], row.changes[domain]
    if row.name == "after":
        return f"{score.value:.3f}\n[{score.low:.3f}, {score.high:.3f}]"
    return f"{score.value:.3f}\n{change.value:+.3f}\n[{change.low:+.3f}, {change.high:+.3f}]"
