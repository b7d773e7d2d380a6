"""``counterpoint study``: strategies by seeds, planned contrasts, one table."""

import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Annotated

import typer

from counterpoint.errors import CounterpointError, RunError

if TYPE_CHECKING:
    from counterpoint.study import Job, JobRecord, Study

FAILED = 1
PLAIN_EVERY_S = 300.0
"""Seconds between plain lines while no run ends."""


def study(
    file: Annotated[Path, typer.Argument(metavar="STUDY", help="Study file (YAML).", show_default=False)],
    folder: Annotated[Path, typer.Option("--dir", help="Folder of all studies.")] = Path("studies"),
    name: Annotated[str | None, typer.Option("--name", help="Name of the study instead of the file's.")] = None,
    parallel: Annotated[
        int | None, typer.Option("--parallel", "-p", min=1, help="Runs at a time instead of the file's number.")
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Check everything, say what is missing and the power, and stop.")
    ] = False,
    table: Annotated[bool, typer.Option("--table", help="Run nothing; make the tables of what there is.")] = False,
) -> None:
    """Compare strategies: every row of STUDY with every seed, from one base model, on the same prompts and budget.

    Everything is checked before the first run. Runs go on where they stopped: call it again after Ctrl-C, a kill or a
    failure, or after adding rows or seeds, and it does only what is missing. Leaves DIR/NAME with runs/, study.json,
    .md, .csv, .tex and .html. Exit status 1 if a run failed; the others go on.

    A study file:

      name: pocket
      config: pocket-base.yaml      # what all rows start from
      seeds: 5
      rows: {base: base, mixed: mixed, mgs: mgs, sequential: sequential}
      contrasts: [{row: mgs, measure: average}]     # planned: these decide

    Examples:

      counterpoint study examples/pocket-study.yaml --check

      counterpoint study examples/pocket-study.yaml

      counterpoint study examples/pocket-study.yaml --table
    """
    from counterpoint.cli._console import quiet_libraries, setting_findings

    quiet_libraries()
    from counterpoint.study import load_study

    loaded = load_study(file, setting_findings)
    home = folder / (name or loaded.config.name)
    if table:
        _table(loaded, home)
        return
    _check_runs(loaded)
    _run(loaded, home, parallel or loaded.config.parallel, check=check)


def _check_runs(loaded: "Study") -> None:
    """Builds TRL's settings of every row, and loads the prompts of every different set of domains, before any run."""
    from counterpoint.engine.prepare import check_config, plan_checked
    from counterpoint.errors import ConfigError

    problems: dict[str, None] = {}
    seen = set()
    for (row, _), config in loaded.configs.items():
        problems |= dict.fromkeys(f"rows.{row}: {problem}" for problem in check_config(config))
        data = config.model_dump_json(include={"domains", "model", "max_prompt_tokens", "evaluation"})
        if not problems and data not in seen:
            seen.add(data)
            try:
                plan_checked(config)
            except CounterpointError as error:
                problems |= dict.fromkeys(f"rows.{row}: {line}" for line in str(error).splitlines())
    if problems:
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        raise ConfigError("\n".join([f"The study has {count}:", *(f"  {problem}" for problem in problems)]))


def _run(loaded: "Study", home: Path, parallel: int, *, check: bool) -> None:
    from counterpoint.disk import write_text
    from counterpoint.study import StudyFolder, check_unchanged, expected_power, plan_jobs, run_jobs

    folder = StudyFolder(home)
    jobs = plan_jobs(loaded, folder.runs)
    check_unchanged(jobs, folder)
    records = {job.id: folder.record(job.id) for job in jobs}
    missing = [name for name, record in records.items() if record is None or record.status != "done"]
    done = len(jobs) - len(missing)
    typer.echo(f"{home}: {len(jobs)} runs of {len(loaded.rows)} rows, {done} done, {parallel} at a time.")
    for sentence in expected_power(loaded, home):
        typer.echo(sentence)
    if check:
        typer.echo("Missing: " + (", ".join(missing) or "nothing"))
        return
    with folder:
        write_text(folder.path / "study.yaml", loaded.to_yaml())
        folder.keep_plan(loaded.contrasts)
        with StudyProgress() as progress:
            records_now = run_jobs(jobs, folder, parallel, progress)
    _table(loaded, home)
    if failed := [record for record in records_now.values() if record.status == "failed"]:
        for record in failed:
            typer.secho(f"{record.id} failed: {record.reason}", fg="red", err=True)
            typer.echo(f"  Its log: {folder.log(record.id)}", err=True)
        raise typer.Exit(FAILED)


def _table(loaded: "Study", home: Path) -> None:
    """Writes the files of results from what is done, and prints the tables."""
    from rich.console import Console

    from counterpoint.report import write_study_report
    from counterpoint.study import StudyFolder, summarize

    if not home.is_dir():
        raise RunError(f"{home}: there is no such study yet. Run it without --table first.")
    result = summarize(loaded, StudyFolder(home))
    result.write_all(home)
    Console().print(result, highlight=False)
    typer.echo(f"By domain: {home / 'study.md'}, .csv, .tex. Report: {write_study_report(home)}")


class StudyProgress:
    """Shows how a study goes: a bar on a terminal, one line for each run that ends. A context manager."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        self._console = Console()
        columns = TextColumn("[bold]study"), BarColumn(bar_width=24), MofNCompleteColumn(), TextColumn("runs")
        note = TextColumn("{task.fields[note]}")
        self._bar = Progress(*columns, TimeElapsedColumn(), note, console=self._console, transient=True)
        self._task = self._bar.add_task("study", total=None, note="")
        self._last_plain = time.monotonic()

    def __enter__(self) -> "StudyProgress":
        if self._console.is_terminal:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._console.is_terminal:
            self._bar.stop()

    def ended(self, record: "JobRecord", done: int, total: int) -> None:
        """Prints one line."""
        how = f"done in {record.seconds:.0f} s" if record.status == "done" else f"{record.status}: {record.reason}"
        self._line(f"[{done}/{total}] {record.id}: {how}")

    def running(self, jobs: "Sequence[Job]", done: int, total: int) -> None:
        """Moves the bar; without a terminal a line now and then."""
        names = ", ".join(job.id for job in jobs)
        if self._console.is_terminal:
            self._bar.update(self._task, completed=done, total=total, note=names)
        elif time.monotonic() - self._last_plain > PLAIN_EVERY_S:
            self._line(f"[{done}/{total}] running {names}")

    def stopping(self) -> None:
        """Says that running jobs are saved."""
        self._line("Stopping: the running runs save after their step. Press Ctrl-C again to end them at once.")

    def _line(self, text: str) -> None:
        self._last_plain = time.monotonic()
        self._console.print(text, soft_wrap=True, highlight=False, markup=False)
