"""Tables for people: domains by {before, each run's after}, with 95 % intervals."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from counterpoint.runs import RunDirectory
from counterpoint.runs.run import Run


def print_run_table(runs: Sequence[RunDirectory], console: Console | None = None) -> None:
    """Prints what every run's evaluations say: each domain before, and after training in each run."""
    table = Table(title="Held-out reward, mean [95 % interval]", title_justify="left")
    table.add_column("domain", style="bold")
    first = runs[0]
    named = {"before": scores_at(first, "before")}
    after = {run.path.name: (run.state["strategy"], scores_at(run, "after")) for run in runs}
    judged = Run.open(first.path)
    if len(runs) == 1 and judged.at_the_end:
        end = scores_at(first, "after")
        own = {one.domain: judged.evaluations[one.domain, one.first_step] for one in judged.at_the_end}
        named["after its own stage"] = end | own
        after = {first.path.name: ("at the end", end)}
    named = {name: scores for name, scores in named.items() if scores}
    columns = [*named.values(), *(scores for _, scores in after.values())]
    for name in (*named, *(label for label, _ in after.values())):
        table.add_column(name, justify="right")
    for domain in dict.fromkeys(name for scores in columns for name in scores):
        lines = [scores.get(domain, {}) for scores in columns]
        table.add_row(domain, *(cell(line) for line in lines))
        for part in dict.fromkeys(name for line in lines for name in line.get("parts") or ()):
            means = [(line.get("parts") or {}).get(part) for line in lines]
            table.add_row(escape(f"  {part}"), *("-" if mean is None else f"{mean:.3f}" for mean in means), style="dim")
    table.add_section()
    table.add_row("average", *(average(scores) for scores in columns))
    console = console or Console()
    console.print(table)
    if len(runs) == 1 and (said := judged.verdict()):
        console.print(escape(said), soft_wrap=True, highlight=False)


def scores_at(run: RunDirectory, when: str) -> dict[str, Mapping[str, Any]]:
    """The run's evaluation lines by domain at ``before`` or ``after``."""
    return {line["domain"]: line for line in run.lines("evals.jsonl") if line["when"] == when}


def cell(score: Mapping[str, Any] | None) -> str:
    """``0.412 [0.370, 0.454]``, or a dash."""
    return f"{score['mean']:.3f} [{score['low']:.3f}, {score['high']:.3f}]" if score else "-"


def average(scores: Mapping[str, Mapping[str, Any]]) -> str:
    """Mean over domains of their means."""
    return f"{sum(score['mean'] for score in scores.values()) / len(scores):.3f}" if scores else "-"
