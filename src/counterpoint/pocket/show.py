"""What ``counterpoint pocket`` prints: the shipped base, sample answers, and the making of a base with its progress."""

import json
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from counterpoint.errors import DomainError, ModelError, nearest
from counterpoint.pocket import TASKS, model_path
from counterpoint.pocket.progress import BuildProgress


def print_info() -> None:
    """Prints where the shipped base lies, how it was made, what it reached, and one row of each domain."""
    console = Console()
    record = json.loads((model_path() / "build.json").read_text(encoding="utf-8"))
    size = (model_path() / "model.safetensors").stat().st_size
    console.print(
        f"[bold]Pocket base[/]  {record['parameters']:,} parameters, {size / 1e6:.1f} MB of weights (float16)"
    )
    console.print(escape(f"Folder       {model_path()}"), soft_wrap=True)
    console.print(
        f"Made with    torch {record['torch']}, seed {record['plan']['seed']}, {record['plan']['threads']} threads"
    )
    console.print(score_table(record["scores"]))
    table = Table("domain", "asks for", "prompt", "an answer", title="One row of each domain", title_justify="left")
    for name, task in TASKS.items():
        row = task.generate("test", 0)
        table.add_row(name, task.about, escape(row["prompt"]), escape(row["answer"]))
    console.print(table)


def score_table(scores: Mapping[str, Mapping[str, Mapping[str, float]]]) -> Table:
    """A table of stage -> domain -> ``greedy`` and ``sampled`` mean reward."""
    table = Table(
        "domain", title="Mean reward on held-out prompts: greedy / sampled at temperature 1", title_justify="left"
    )
    for stage in scores:
        table.add_column(f"after {stage}", justify="right")
    for name in TASKS:
        table.add_row(name, *(f"{of[name]['greedy']:.2f} / {of[name]['sampled']:.2f}" for of in scores.values()))
    return table


def print_samples(domain: str, folder: Path | None, *, prompts: int, seed: int) -> None:
    """Prints held-out prompts of a domain with a greedy and a sampled answer of a model, and their rewards."""
    if domain not in TASKS:
        raise DomainError(f"Unknown pocket domain {domain!r}: {nearest(domain, TASKS)}")
    if folder is not None and not (folder / "config.json").is_file():
        raise ModelError(
            f"{folder} is no model folder: it holds no config.json. Name a folder that save_pretrained wrote."
        )
    from counterpoint.pocket.measure import complete
    from counterpoint.pocket.model import load

    task = TASKS[domain]
    model, tokenizer = load(folder or model_path())
    rows = [task.generate("test", index) for index in range(prompts)]
    texts = [row["prompt"] for row in rows]
    greedy = complete(model, tokenizer, texts, greedy=True)
    sampled = complete(model, tokenizer, texts, greedy=False, seed=seed)
    table = Table("prompt", "greedy answer", "reward", "sampled answer", "reward", "a gold answer")
    for row, best, drawn in zip(rows, greedy, sampled, strict=True):
        rewards = f"{task.score(row, best):.2f}", f"{task.score(row, drawn):.2f}"
        table.add_row(escape(row["prompt"]), escape(best), rewards[0], escape(drawn), rewards[1], escape(row["answer"]))
    Console().print(table)


def build_with_progress(output: Path, *, steps: int | None, noisy_steps: int | None, seed: int, prompts: int) -> None:
    """Trains a base, shows the progress, writes the folder ``output`` and prints what the base reached."""
    _make_empty_folder(output)
    # Must be set before torch starts its threads: waiting threads that spin slow a busy machine down fifteen-fold.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from counterpoint.pocket.build import Plan, build, record, save

    plan = Plan(seed=seed)
    plan = replace(
        plan,
        competence=replace(plan.competence, steps=steps or plan.competence.steps),
        noisy=replace(plan.noisy, steps=noisy_steps or plan.noisy.steps),
    )
    console = Console()
    with BuildProgress(console, [(stage.name, stage.steps) for stage in plan.stages]) as progress:
        base = build(plan, progress.step, prompts=prompts)
    save(base, output)
    console.print(score_table(record(base)["scores"]))
    console.print(escape(f"Written to {output}"), soft_wrap=True)


def _make_empty_folder(folder: Path) -> None:
    """Makes the folder before the minutes of training, so that they are not lost for want of a place to write."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ModelError(
            f"The folder {folder} cannot be made: {error.strerror}. Choose another with --output."
        ) from error
    if any(folder.iterdir()):
        raise ModelError(f"The folder {folder} is not empty, and nothing is overwritten. Choose another with --output.")
    if not os.access(folder, os.W_OK):
        raise ModelError(f"The folder {folder} cannot be written to. Choose another with --output.")
