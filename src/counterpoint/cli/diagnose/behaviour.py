"""``counterpoint diagnose behaviour``: what a run did to every domain's scores, entropy, length and diversity."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from counterpoint.errors import CounterpointError

if TYPE_CHECKING:
    from counterpoint.diagnosis.behaviour_analysis.analysis import Behaviour
    from counterpoint.stats import Estimate


def behaviour(
    run: Annotated[Path, typer.Argument(help="Run directory, finished or not, e.g. runs/sequential.")],
    alone: Annotated[
        list[str] | None,
        typer.Option(
            "--alone",
            metavar="DOMAIN=RUN",
            help="A run that trains DOMAIN alone from the same model, in as many steps as its stage here has. "
            "Repeat for several. Rigidity is judged against it.",
        ),
    ] = None,
    json: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Also write everything there, as JSON.")
    ] = None,
) -> None:
    """Show what every stage of a run did to every domain, and flag what is beyond noise.

    forgetting: a domain fell after it had been learned. rigidity: a later domain learned less than alone. Changes are
    paired by prompt; their intervals hold for all changes of the table together.

    Examples:

      counterpoint diagnose behaviour runs/sequential

      counterpoint diagnose behaviour runs/sequential --alone qa=runs/qa-alone --json behaviour.json
    """
    from counterpoint.diagnosis import behaviour as measure
    from counterpoint.diagnosis import write_result

    found = measure(run, parse_alone(alone or ()))
    if json is not None:
        write_result(json, "behaviour", found)
    print_behaviour(found)


def parse_alone(values: "list[str] | tuple[str, ...]") -> dict[str, Path | str]:
    """``DOMAIN=RUN`` as a dictionary.

    Raises:
        CounterpointError: no equals sign.
    """
    found: dict[str, Path | str] = {}
    for value in values:
        domain, separator, path = value.partition("=")
        if not separator or not domain or not path:
            raise CounterpointError(f"--alone {value}: write DOMAIN=RUN, e.g. --alone math=runs/math-alone.")
        found[domain] = Path(path)
    return found


def print_behaviour(found: "Behaviour") -> None:
    """The tables for people, and a sentence for everything flagged or unknown."""
    from rich.console import Console
    from rich.markup import escape

    console = Console()
    if found.changes:
        console.print(_changes_table(found))
    console.print(_course_table(found))
    for sentence in (*found.sentences, *found.notes):
        console.print(escape(sentence), soft_wrap=True, highlight=False)


def _changes_table(found: "Behaviour") -> "object":
    from rich.markup import escape
    from rich.table import Table

    table = Table(
        title="Change in points while a domain was trained [95 %]; * beyond noise",
        title_justify="left",
    )
    table.add_column("domain", style="bold", overflow="fold")
    steps = list(dict.fromkeys((change.during, change.first_step, change.last_step) for change in found.changes))
    for during, _, _ in steps:
        table.add_column(escape(", ".join(during)), justify="right", overflow="fold")
    cells = {(change.domain, change.first_step): change for change in found.changes}
    for domain in found.domains:
        row = [cells.get((domain, first)) for _, first, _ in steps]
        table.add_row(escape(domain), *("-" if c is None else _points(c.change, c.verdict) for c in row))
    return table


def _points(change: "Estimate", verdict: str) -> str:
    mark = "" if verdict == "within noise" else "*"
    return f"{100 * change.value:+.0f}{mark} \\[{100 * change.low:.0f}, {100 * change.high:.0f}]"


def _course_table(found: "Behaviour") -> "object":
    from rich.markup import escape
    from rich.table import Table

    table = Table(
        title="First and last: score, length, truncation, distinct bigrams, entropy in its stage", title_justify="left"
    )
    table.add_column("domain", style="bold", overflow="fold")
    for name in ("score", "tokens", "truncated", "bigrams", "entropy"):
        table.add_column(name, justify="right")
    entropies = {entropy.domain: entropy for entropy in found.entropy}
    for domain in found.domains:
        scores = [score for score in found.scores if score.domain == domain]
        first, last = scores[0], scores[-1]
        pairs = [d for d in found.diversity if d.domain == domain and d.n == 2]
        distinct = f"{pairs[0].distinct:.2f} → {pairs[-1].distinct:.2f}" if pairs else "-"
        entropy = entropies.get(domain)
        table.add_row(
            escape(domain),
            f"{first.mean:.2f} → {last.mean:.2f}",
            f"{first.completion_length:.1f} → {last.completion_length:.1f}",
            f"{first.truncated:.1%} → {last.truncated:.1%}",
            distinct,
            f"{entropy.first.value:.2f} → {entropy.last.value:.2f}" if entropy else "-",
        )
    return table
