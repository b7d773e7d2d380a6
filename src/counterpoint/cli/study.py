"""``counterpoint study``: strategies by seeds, one table."""

from collections.abc import Iterator
from enum import EnumType
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, get_type_hints

import typer

from counterpoint.errors import CounterpointError, RunError, nearest

if TYPE_CHECKING:
    from counterpoint.study.load import Study
    from counterpoint.study.results import StudyResult

FAILED = 1
OWN_OPTIONS = {"config", "model", "before", "after", "domain", "out", "json", "reference", "completions"}
"""Options that a study gives itself."""


def study(
    file: Annotated[Path, typer.Argument(metavar="STUDY", help="Study file (YAML).", show_default=False)],
    folder: Annotated[Path, typer.Option("--dir", help="Folder of all studies.")] = Path("studies"),
    name: Annotated[str | None, typer.Option("--name", help="Name of the study instead of the file's.")] = None,
    parallel: Annotated[
        int | None, typer.Option("--parallel", "-p", min=1, help="Runs at a time instead of the file's number.")
    ] = None,
    check: Annotated[bool, typer.Option("--check", help="Check everything, list what is missing, and stop.")] = False,
    table: Annotated[bool, typer.Option("--table", help="Run nothing; make the table of what there is.")] = False,
) -> None:
    """Compare strategies: every row of STUDY with every seed, from one base model, on the same prompts and budget.

    Everything is checked before the first run. Runs go on where they stopped: call it again after Ctrl-C, a kill or a
    failure, or after adding rows or seeds, and it does only what is missing. Leaves DIR/NAME with runs/, study.json,
    study.md and study.html. Exit status 1 if a run failed; the others go on.

    A study file:

      name: pocket
      config: pocket-base.yaml      # what all rows start from
      seeds: 5
      rows: {base: base, mixed: mixed, mgs: mgs, sequential: sequential, experts: experts}

    Examples:

      counterpoint study examples/pocket-study.yaml --check

      counterpoint study examples/pocket-study.yaml

      counterpoint study examples/pocket-study.yaml --table
    """
    from counterpoint.cli.loading import setting_findings
    from counterpoint.cli.running import quiet_libraries

    quiet_libraries()
    from counterpoint.study import load_study

    loaded = load_study(file, setting_findings)
    home = folder / (name or loaded.config.name)
    if table:
        _table(loaded, home)
        return
    _check_runs(loaded)
    _run(loaded, home, parallel or loaded.config.parallel, check=check)


def _unknown_options(loaded: "Study") -> Iterator[str]:
    """Options of rows of kind refresh and rollback, and choices, that their commands do not have."""
    from counterpoint.cli.refresh import refresh
    from counterpoint.cli.rollback import rollback
    from counterpoint.study.schema import RefreshRow, RollbackRow

    for name, row in loaded.rows.items():
        if not isinstance(row, RefreshRow | RollbackRow):
            continue
        types = get_type_hints(refresh if isinstance(row, RefreshRow) else rollback)
        known = types.keys() - OWN_OPTIONS - {"return"}
        for option, value in row.options.items():
            at, found = f"rows.{name}.options.{option}", option.replace("-", "_")
            if found not in known:
                yield f"{at}: no option of `counterpoint {row.kind}`: {nearest(option, known)}"
            elif isinstance(types[found], EnumType) and value not in list(types[found]):
                yield f"{at}: {value!r} is no choice: {nearest(str(value), types[found])}"


def _check_runs(loaded: "Study") -> None:
    """Builds TRL's settings of every row, and loads the prompts of every different set of domains, before any run."""
    from counterpoint.engine.prepare import check_config, plan_checked
    from counterpoint.errors import ConfigError

    problems: dict[str, None] = dict.fromkeys(_unknown_options(loaded))
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
    from counterpoint.cli.study_progress import StudyProgress
    from counterpoint.disk import write_text
    from counterpoint.study import StudyFolder, run_jobs
    from counterpoint.study.jobs import plan_jobs
    from counterpoint.study.unchanged import check_unchanged

    folder = StudyFolder(home)
    jobs = plan_jobs(loaded, folder.runs)
    check_unchanged(jobs, folder)
    records = {job.id: folder.record(job.id) for job in jobs}
    done = sum(record is not None and record.status == "done" for record in records.values())
    typer.echo(f"{home}: {len(jobs)} runs of {len(loaded.rows)} rows, {done} done, {parallel} at a time.")
    if check:
        missing = [name for name, record in records.items() if record is None or record.status != "done"]
        typer.echo("Missing: " + (", ".join(missing) or "nothing"))
        return
    with folder:
        write_text(folder.path / "study.yaml", loaded.to_yaml())
        with StudyProgress() as progress:
            records_now = run_jobs(jobs, folder, parallel, progress)
    _table(loaded, home)
    if failed := [record for record in records_now.values() if record.status == "failed"]:
        for record in failed:
            typer.secho(f"{record.id} failed: {record.reason}", fg="red", err=True)
            typer.echo(f"  Its log: {folder.log(record.id)}", err=True)
        raise typer.Exit(FAILED)


def _table(loaded: "Study", home: Path) -> None:
    """Writes study.json, study.md and study.html from what is done, and prints the tables."""
    from counterpoint.disk import write_text
    from counterpoint.report import write_study_report
    from counterpoint.study import StudyFolder, summarize
    from counterpoint.study.markdown import markdown
    from counterpoint.study.results import write_result

    if not home.is_dir():
        raise RunError(f"{home}: there is no such study yet. Run it without --table first.")
    result = summarize(loaded, StudyFolder(home))
    write_result(home / "study.json", result)
    write_text(home / "study.md", markdown(result))
    _print(result)
    typer.echo(f"Report: {write_study_report(home)}")


def _print(result: "StudyResult") -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from counterpoint.study.markdown import plain_rows, tables_of

    console = Console()
    for table in tables_of(result):
        grid = Table(title=table.title, title_justify="left")
        for index, column in enumerate(table.columns):
            grid.add_column(column, style="bold" if index == 0 else None, overflow="fold")
        for row in plain_rows(table):
            grid.add_row(*map(escape, row))
        console.print(grid)
    for note in result.notes:
        console.print(escape(note), highlight=False)
